//! What is the same whatever Services there are: sets, base chains and their rules.

use std::fmt::Write as _;

use bosun_nft::expr::{Expr, Match, Meta, Reg, Reject, ct_status};
use bosun_nft::{Batch, Chain, Family, Hook, Rule, Set, SetData, Table, Type};
use ipnet::IpNet;

/// The keys of a family: front, slot, address, pair, sourced front, client, endpoint in use.
macro_rules! keys {
    ($address:expr) => {
        [
            &[$address, Type::InetProto, Type::InetService],
            &[$address, Type::InetProto, Type::InetService, Type::Mark],
            &[$address],
            &[$address, $address],
            &[$address, Type::InetProto, Type::InetService, $address],
            &[$address, $address, Type::InetProto, Type::InetService, Type::Mark],
            &[$address, Type::InetProto, Type::InetService, Type::Mark, $address, Type::InetService],
        ]
    };
}
/// The most clients whose endpoint is remembered, over all Services of a family.
const AFFINITY_CLIENTS: u32 = 1 << 18;

/// How to tell what comes from pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detector {
    /// Not at all.
    None,
    /// By source address.
    Nets(Vec<IpNet>),
    /// By the bridge it comes from.
    Bridge(String),
    /// By the start of the name of the interface it comes from.
    InterfacePrefix(String),
}

/// What the rules depend on beyond the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The bit of the packet mark that asks for masquerading.
    pub mark: u32,
    /// Masquerade everything that goes to a cluster IP.
    pub masquerade_all: bool,
    /// How to tell what comes from pods.
    pub detector: Detector,
}

/// Which register holds what in the rules that balance: keys must lie in consecutive registers, so they overlap.
///
/// `saddr daddr proto port slot` is a client's key, `daddr proto port slot` an endpoint's, and what follows is where
/// an endpoint goes; with it, `daddr … endpoint_port` is the key of an endpoint in use.
pub(super) struct Registers {
    /// Words of an address.
    pub(super) width: usize,
    pub(super) saddr: Reg,
    pub(super) daddr: Reg,
    pub(super) proto: Reg,
    pub(super) port: Reg,
    pub(super) slot: Reg,
    pub(super) endpoint: Reg,
    pub(super) endpoint_port: Reg,
}

impl Registers {
    pub(super) fn of(family: Family) -> Self {
        let width: u32 = if family == Family::Ip6 { 4 } else { 1 };
        Self {
            width: width as usize,
            saddr: Reg::word(0),
            daddr: Reg::word(width),
            proto: Reg::word(2 * width),
            port: Reg::word(2 * width + 1),
            slot: Reg::word(2 * width + 2),
            endpoint: Reg::word(2 * width + 3),
            endpoint_port: Reg::word(3 * width + 3),
        }
    }
}

/// The sets and maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum SetId {
    /// address . protocol . port → what to do.
    ServiceIps,
    /// protocol . port → what to do.
    ServiceNodePorts,
    /// address . protocol . port . slot → endpoint.
    Endpoints,
    /// Cluster IPs.
    ClusterIps,
    /// Ranges of cluster IPs.
    ServiceCidrs,
    /// Addresses on which node ports are served.
    NodePortAddresses,
    /// source . destination of what a pod sends to itself.
    Hairpin,
    /// address . protocol . port for which the source counts.
    Firewalled,
    /// address . protocol . port . source that may.
    Sources,
    /// client . address . protocol . port . list → endpoint.
    Affinity,
    /// address . protocol . port . list . endpoint that is in use.
    AffinityEndpoints,
}

impl SetId {
    /// All whose elements the plan sets.
    pub(super) const PLANNED: [Self; 10] = [
        Self::ServiceIps,
        Self::ServiceNodePorts,
        Self::Endpoints,
        Self::ClusterIps,
        Self::ServiceCidrs,
        Self::NodePortAddresses,
        Self::Hairpin,
        Self::Firewalled,
        Self::Sources,
        Self::AffinityEndpoints,
    ];

    /// The set's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::ServiceIps => "service-ips",
            Self::ServiceNodePorts => "service-nodeports",
            Self::Endpoints => "endpoints",
            Self::ClusterIps => "cluster-ips",
            Self::ServiceCidrs => "service-cidrs",
            Self::NodePortAddresses => "nodeport-ips",
            Self::Hairpin => "hairpin-connections",
            Self::Firewalled => "firewalled",
            Self::Sources => "firewall-sources",
            Self::Affinity => "affinity",
            Self::AffinityEndpoints => "affinity-endpoints",
        }
    }

    /// The set in a table of a family.
    pub(super) fn define(self, table: Table<'static>) -> Set<'static> {
        let (keys, endpoint): ([&'static [Type]; 7], &'static [Type]) = match table.family {
            Family::Ip6 => (keys!(Type::Ipv6Addr), &[Type::Ipv6Addr, Type::InetService]),
            _ => (keys!(Type::Ipv4Addr), &[Type::Ipv4Addr, Type::InetService]),
        };
        let [front, slot, address, pair, sourced, client, in_use] = keys;
        let plain = |key| Set::new(table, self.name(), key);
        match self {
            Self::ServiceIps => Set::verdict_map(table, self.name(), front),
            Self::ServiceNodePorts => Set::verdict_map(table, self.name(), &[Type::InetProto, Type::InetService]),
            Self::Endpoints => Set::map(table, self.name(), slot, endpoint),
            Self::ClusterIps => plain(address),
            Self::ServiceCidrs | Self::NodePortAddresses => Set { interval: true, ..plain(address) },
            Self::Hairpin => plain(pair),
            Self::Firewalled => plain(front),
            Self::Sources => Set { interval: true, ..plain(sourced) },
            Self::Affinity => Set {
                dynamic: true,
                timeout: Some(0),
                size: Some(AFFINITY_CLIENTS),
                data: SetData::Value(endpoint),
                ..plain(client)
            },
            Self::AffinityEndpoints => plain(in_use),
        }
    }
}

const SERVICES: &str = "services";
/// Refuses; a chain, because a map cannot.
pub(super) const REJECT: &str = "reject";

/// The base chains: name, hook, priority.
const BASE: [(&str, Hook, i32); 3] = [
    ("nat-prerouting", Hook::Prerouting, -100),
    ("nat-output", Hook::Output, -100),
    ("nat-postrouting", Hook::Postrouting, 100),
];

/// The rules that are always there, by chain.
pub(super) fn rules(family: Family, options: &Options) -> Vec<(&'static str, Vec<Expr>)> {
    let services = Match::new().jump(SERVICES).into_expressions();
    let mut rules = vec![("nat-prerouting", services.clone()), ("nat-output", services)];
    // TCP by reset: on one host an ICMP error comes back while the client is still in connect(), which then ignores it
    // and asks again a second later.
    rules.push((REJECT, Match::new().l4proto(6).then(Expr::Reject(Reject::TcpReset)).into_expressions()));
    rules.push((REJECT, Match::new().reject().into_expressions()));
    rules.extend(service_rules(family).into_iter().map(|rule| (SERVICES, rule)));
    rules.extend(postrouting_rules(family, options).into_iter().map(|rule| ("nat-postrouting", rule)));
    rules
}

fn service_rules(family: Family) -> [Vec<Expr>; 5] {
    let width = Registers::of(family).width as u32;
    let word = Reg::word;
    let front = || {
        let load = [
            Expr::destination_address(family, word(0)),
            Expr::Meta { key: Meta::L4Proto, dreg: word(width) },
            Expr::destination_port(word(width + 1)),
        ];
        Match::from(load.to_vec())
    };
    let daddr = || Match::new().then(Expr::destination_address(family, word(0)));
    let source = Expr::source_address(family, word(width + 2));
    let node_port = Match::new()
        .daddr_local(true)
        .then(Expr::destination_address(family, word(0)))
        .in_set(SetId::NodePortAddresses.name())
        .then(Expr::Meta { key: Meta::L4Proto, dreg: word(0) })
        .then(Expr::destination_port(word(1)))
        .verdict_map(SetId::ServiceNodePorts.name());
    [
        front().in_set(SetId::Firewalled.name()).then(source).not_in_set(SetId::Sources.name()).drop(),
        front().verdict_map(SetId::ServiceIps.name()),
        daddr().in_set(SetId::ClusterIps.name()).goto(REJECT),
        daddr().in_set(SetId::ServiceCidrs.name()).drop(),
        node_port,
    ]
    .map(Match::into_expressions)
}

fn postrouting_rules(family: Family, options: &Options) -> [Vec<Expr>; 2] {
    let width = Registers::of(family).width as u32;
    let marked = Match::new().mark_any(options.mark).clear_mark_bits(options.mark).masquerade_random();
    let to_itself = Match::new()
        .ct_status(ct_status::DNAT)
        .then(Expr::source_address(family, Reg::word(0)))
        .then(Expr::destination_address(family, Reg::word(width)))
        .in_set(SetId::Hairpin.name())
        .masquerade_random();
    [marked, to_itself].map(Match::into_expressions)
}

/// Puts the layout into a batch that starts from an empty table.
pub(super) fn build(batch: &mut Batch, table: Table<'static>, options: &Options) {
    batch.add_table(table);
    for (name, hook, priority) in BASE {
        batch.add_chain(&Chain::base(table, name, hook, "nat", priority));
    }
    for name in [SERVICES, REJECT, &*signature(table.family, options)] {
        batch.add_chain(&Chain::regular(table, name));
    }
    for set in SetId::PLANNED.into_iter().chain([SetId::Affinity]) {
        batch.add_set(&set.define(table));
    }
    for (chain, expressions) in rules(table.family, options) {
        batch.add_rule(&Rule::new(table, chain, expressions));
    }
}

/// The names of the chains that the layout has.
pub(super) fn chains(family: Family, options: &Options) -> impl Iterator<Item = String> {
    let fixed = BASE.map(|(name, _, _)| name).into_iter().chain([SERVICES, REJECT]).map(str::to_owned);
    fixed.chain([signature(family, options)])
}

/// The name of an empty chain that tells which layout a table has, so that another one is replaced.
pub(super) fn signature(family: Family, options: &Options) -> String {
    let mut text = format!("{options:?}");
    for (chain, expressions) in rules(family, options) {
        let _ = write!(text, "{chain}");
        expressions.iter().for_each(|expr| _ = write!(text, "{expr}"));
    }
    for set in SetId::PLANNED.into_iter().chain([SetId::Affinity]) {
        let _ = write!(text, "{:?}", set.define(Table::new(family, "")));
    }
    // FNV-1a: stable over builds, which the standard hasher does not promise.
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("layout-{hash:016x}")
}
