//! The chains that balance: which there are is set by the plan, what is in them by their name.

use std::fmt;

use bosun_nft::Family;
use bosun_nft::expr::{DynsetOp, Expr, Match, Meta, NatKind, Reg};

use super::layout::{Detector, Options, Registers};
use crate::plan::{Action, Front, FrontKey, Masquerade, Scope};

/// A chain that balances, or decides between those that do. Its name says all about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Chain {
    /// Decides by who asks: pods and this node get the cluster's endpoints, others those on this node.
    Local {
        /// For a node port.
        node_port: bool,
        /// Endpoints in the cluster.
        cluster: u32,
        /// Endpoints on this node.
        local: u32,
        /// Seconds for which a client keeps its endpoint.
        affinity: Option<u32>,
    },
    /// Draws one of so many endpoints.
    Balance {
        /// For a node port.
        node_port: bool,
        /// When the client's address is replaced.
        masquerade: Masquerade,
        /// Which list of endpoints.
        scope: Scope,
        /// How many there are.
        endpoints: u32,
        /// Seconds for which a client keeps its endpoint.
        affinity: Option<u32>,
    },
}

/// Where the slots of a scope start.
pub(super) fn first_slot(scope: Scope) -> u32 {
    match scope {
        Scope::Cluster => 0,
        Scope::Local => 0x1_0000,
    }
}

impl Chain {
    /// The chain that a front's connections go to; none for those that are refused or dropped.
    pub(super) fn of(key: &FrontKey, front: &Front) -> Option<Self> {
        let (node_port, affinity) = (key.is_node_port(), front.affinity);
        let (cluster, local) = (front.endpoints.len() as u32, front.local.len() as u32);
        match front.action {
            Action::Reject | Action::Drop => None,
            Action::Local => Some(Self::Local { node_port, cluster, local, affinity }),
            Action::Balance(masquerade) => {
                Some(Self::Balance { node_port, masquerade, scope: Scope::Cluster, endpoints: cluster, affinity })
            }
        }
    }

    /// The chains that this one goes to.
    pub(super) fn targets(&self) -> impl Iterator<Item = Self> {
        let (pods, node, local) = match *self {
            Self::Balance { .. } => (None, None, None),
            Self::Local { node_port, cluster, local, affinity } => {
                let balance = |masquerade, scope, endpoints| {
                    let chain = Self::Balance { node_port, masquerade, scope, endpoints, affinity };
                    (endpoints > 0).then_some(chain)
                };
                (
                    balance(Masquerade::Never, Scope::Cluster, cluster),
                    balance(Masquerade::Always, Scope::Cluster, cluster),
                    balance(Masquerade::Never, Scope::Local, local),
                )
            }
        };
        [pods, node, local].into_iter().flatten()
    }

    /// The chain's rules in a family.
    pub(super) fn rules(&self, family: Family, options: &Options) -> Vec<Vec<Expr>> {
        match self {
            Self::Local { .. } => self.decide(family, options),
            Self::Balance { masquerade, .. } => {
                let mark = Match::new().set_mark_bits(options.mark).into_expressions();
                let mut rules = match masquerade {
                    Masquerade::Never => Vec::new(),
                    Masquerade::Always => vec![mark],
                    Masquerade::OffCluster if options.masquerade_all => vec![mark],
                    Masquerade::OffCluster => {
                        options.detector.outside(family).into_iter().map(|from| [from, mark.clone()].concat()).collect()
                    }
                };
                rules.extend(self.balance(family));
                rules
            }
        }
    }

    fn decide(&self, family: Family, options: &Options) -> Vec<Vec<Expr>> {
        let mut rules = Vec::new();
        for target in self.targets() {
            let goto = Match::new().goto(target.to_string()).into_expressions();
            match target {
                Self::Balance { scope: Scope::Local, .. } => rules.push(goto),
                Self::Balance { masquerade: Masquerade::Always, .. } => {
                    rules.push([Match::new().saddr_local(true).into_expressions(), goto].concat());
                }
                _ => rules.extend(options.detector.inside(family).map(|from| [from, goto.clone()].concat())),
            }
        }
        if matches!(self, Self::Local { local: 0, .. }) {
            rules.push(Match::new().drop().into_expressions());
        }
        rules
    }

    fn balance(&self, family: Family) -> Vec<Vec<Expr>> {
        let Self::Balance { node_port, scope, endpoints, affinity, .. } = *self else { return Vec::new() };
        let regs = Registers::of(family);
        let front = regs.load_front(family, node_port);
        let draw = [
            Expr::Random { dreg: regs.slot, modulus: endpoints, offset: first_slot(scope) },
            lookup("endpoints", regs.daddr, Some(regs.endpoint)),
        ];
        let dnat = Expr::Nat {
            kind: NatKind::Destination,
            family,
            addr: Some(regs.endpoint),
            port: Some(regs.endpoint_port),
            flags: 0,
        };
        let plain = [front.clone(), draw.to_vec(), vec![dnat.clone()]].concat();
        let Some(seconds) = affinity else { return vec![plain] };

        // A client that is known and whose endpoint still serves this front keeps it, and is known anew. One that is
        // not known, or whose endpoint is gone, draws one and is noted. Where no more can be noted, it just draws.
        let list = Expr::Immediate { dreg: regs.slot, data: first_slot(scope).to_ne_bytes().to_vec() };
        let client = [vec![Expr::source_address(family, regs.saddr)], front].concat();
        let note = |op| Expr::Dynset {
            set: "affinity".into(),
            op,
            key: regs.saddr,
            data: Some(regs.endpoint),
            timeout: (op != DynsetOp::Delete).then_some(u64::from(seconds) * 1000),
        };
        let known = [
            client.clone(),
            vec![
                list.clone(),
                lookup("affinity", regs.saddr, Some(regs.endpoint)),
                lookup("affinity-endpoints", regs.daddr, None),
                note(DynsetOp::Update),
                dnat.clone(),
            ],
        ];
        let unknown = [client, draw.to_vec(), vec![list, note(DynsetOp::Delete), note(DynsetOp::Add), dnat]];
        vec![known.concat(), unknown.concat(), plain]
    }
}

fn lookup(set: &str, sreg: Reg, dreg: Option<Reg>) -> Expr {
    Expr::Lookup { set: set.into(), sreg, dreg, invert: false }
}

impl Registers {
    /// Loads a front's key: its address, zero for a node port, its protocol and its port.
    pub(super) fn load_front(&self, family: Family, node_port: bool) -> Vec<Expr> {
        let address = if node_port {
            Expr::Immediate { dreg: self.daddr, data: vec![0; self.width * 4] }
        } else {
            Expr::destination_address(family, self.daddr)
        };
        vec![address, Expr::Meta { key: Meta::L4Proto, dreg: self.proto }, Expr::destination_port(self.port)]
    }
}

impl Detector {
    /// Matches what comes from a pod of this cluster, by any of these; none when that cannot be told.
    fn inside(&self, family: Family) -> impl Iterator<Item = Vec<Expr>> {
        let v6 = family == Family::Ip6;
        let found = match self {
            Self::None => Vec::new(),
            Self::Nets(nets) => {
                let nets = nets.iter().filter(|net| net.addr().is_ipv6() == v6);
                nets.map(|net| Match::new().saddr_in(net.addr(), net.prefix_len())).collect()
            }
            Self::Bridge(name) => vec![Match::new().iifname(name)],
            Self::InterfacePrefix(prefix) => vec![Match::new().iifname_prefix(prefix)],
        };
        found.into_iter().map(Match::into_expressions)
    }

    /// Matches what does not come from a pod of this cluster; none when that cannot be told.
    fn outside(&self, family: Family) -> Option<Vec<Expr>> {
        let mut expressions = Vec::new();
        for mut inside in self.inside(family) {
            // Each ends in a comparison: turned around they hold one after the other.
            if let Some(Expr::Cmp { op, .. }) = inside.last_mut() {
                *op = bosun_nft::expr::Cmp::Ne;
            }
            expressions.extend(inside);
        }
        (!expressions.is_empty()).then_some(expressions)
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (node_port, affinity) = match *self {
            Self::Local { node_port, affinity, .. } | Self::Balance { node_port, affinity, .. } => {
                (node_port, affinity)
            }
        };
        if node_port {
            out.write_str("node-port-")?;
        }
        match *self {
            Self::Local { cluster, local, .. } => write!(out, "policy-local-{local}-of-{cluster}")?,
            Self::Balance { masquerade, scope, endpoints, .. } => {
                let kind = match (masquerade, scope) {
                    (Masquerade::OffCluster, _) => "cluster",
                    (Masquerade::Always, _) => "external",
                    (Masquerade::Never, Scope::Cluster) => "pods",
                    (Masquerade::Never, Scope::Local) => "local",
                };
                write!(out, "{kind}-{endpoints}")?;
            }
        }
        match affinity {
            Some(seconds) => write!(out, "-affinity-{seconds}"),
            None => Ok(()),
        }
    }
}
