//! Keeps the plan of every Service, and tells what changed since it was last asked.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::{Front, FrontKey, Globals, NodePortAddresses, Plan, ServicePlan, plan_service};
use crate::config::NodePortScope;
use crate::model::{Change, Name, Node, Protocol, Service, Slice};

/// A front before and after.
#[derive(Debug)]
pub struct FrontChange {
    /// Which.
    pub key: FrontKey,
    /// What it was; none: it is new.
    pub old: Option<Front>,
    /// What it is; none: it is gone.
    pub new: Option<Front>,
}

/// The difference between two plans.
#[derive(Debug, Default)]
pub struct Delta {
    /// Fronts that differ.
    pub fronts: Vec<FrontChange>,
    /// New cluster IPs.
    pub cluster_ips_added: Vec<IpAddr>,
    /// Cluster IPs no longer used.
    pub cluster_ips_removed: Vec<IpAddr>,
    /// New addresses of endpoints on this node.
    pub local_added: Vec<IpAddr>,
    /// Addresses of endpoints on this node no longer used.
    pub local_removed: Vec<IpAddr>,
    /// The globals, when they differ.
    pub globals: Option<Globals>,
    /// Whether UDP connections may now go where they should not.
    pub stale_udp: bool,
}

impl Delta {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.fronts.is_empty()
            && self.cluster_ips_added.is_empty()
            && self.cluster_ips_removed.is_empty()
            && self.local_added.is_empty()
            && self.local_removed.is_empty()
            && self.globals.is_none()
    }
}

#[derive(Default)]
struct Entry {
    service: Option<Service>,
    slices: Vec<(Name, Slice)>,
    plan: ServicePlan,
}

/// The model and the plan made of it.
pub struct Planner {
    scope: NodePortScope,
    entries: HashMap<Name, Entry>,
    /// The Service of each slice.
    slices: HashMap<Name, Name>,
    dirty: HashSet<Name>,
    node: Node,
    service_cidrs: BTreeSet<IpNet>,
    globals: Globals,
    /// Who has a front. Where two Services claim one, the first keeps it until it lets go.
    owners: HashMap<FrontKey, Name>,
    /// Claims that lost.
    waiting: BTreeSet<(FrontKey, Name)>,
    cluster_ips: HashMap<IpAddr, u32>,
    local: HashMap<IpAddr, u32>,
}

impl Planner {
    /// A plan without Services, for the node of a name.
    pub fn new(node: &str, scope: NodePortScope) -> Self {
        let node = Node { name: node.into(), ..Node::default() };
        let globals = globals(&scope, &node, &BTreeSet::new());
        Self {
            scope,
            entries: HashMap::new(),
            slices: HashMap::new(),
            dirty: HashSet::new(),
            node,
            service_cidrs: BTreeSet::new(),
            globals,
            owners: HashMap::new(),
            waiting: BTreeSet::new(),
            cluster_ips: HashMap::new(),
            local: HashMap::new(),
        }
    }

    /// Takes a change of the model in. The plan follows at the next [`Planner::delta`].
    pub fn take(&mut self, change: Change) {
        match change {
            Change::Service(name, service) => {
                let entry = self.entries.entry(name.clone()).or_default();
                if entry.service != service {
                    entry.service = service;
                    self.dirty.insert(name);
                }
            }
            Change::Slice(name, slice) => self.take_slice(name, slice),
            Change::Node(node) => self.take_node(node),
            Change::ServiceCidrs(cidrs) => self.service_cidrs = cidrs.into_iter().map(|net| net.trunc()).collect(),
            Change::Synced => {}
        }
    }

    fn take_slice(&mut self, name: Name, slice: Option<Slice>) {
        let before = self.slices.get(&name).cloned();
        if let Some(service) = before.filter(|before| slice.as_ref().is_none_or(|slice| slice.service != *before)) {
            if let Some(entry) = self.entries.get_mut(&service) {
                entry.slices.retain(|(one, _)| *one != name);
            }
            self.slices.remove(&name);
            self.dirty.insert(service);
        }
        let Some(slice) = slice else { return };
        let service = slice.service.clone();
        self.slices.insert(name.clone(), service.clone());
        let entry = self.entries.entry(service.clone()).or_default();
        match entry.slices.iter_mut().find(|(one, _)| *one == name) {
            Some((_, before)) if *before == slice => return,
            Some((_, before)) => *before = slice,
            None => entry.slices.push((name, slice)),
        }
        self.dirty.insert(service);
    }

    fn take_node(&mut self, node: Node) {
        if node.zone != self.node.zone {
            self.dirty.extend(self.entries.keys().cloned());
        }
        self.node = node;
    }

    /// The node as last told.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Whether the next [`Planner::delta`] may tell a difference.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty() || globals(&self.scope, &self.node, &self.service_cidrs) != self.globals
    }

    /// Makes the plan anew for what changed and tells the difference.
    pub fn delta(&mut self) -> Delta {
        let mut delta = Delta::default();
        let mut released = Vec::new();
        let mut names: Vec<_> = std::mem::take(&mut self.dirty).into_iter().collect();
        names.sort_unstable();
        for name in names {
            self.replan(&name, &mut delta, &mut released);
        }
        self.hand_over(released, &mut delta);
        delta.fronts.retain(|change| change.old != change.new);
        settle(&mut delta.cluster_ips_added, &mut delta.cluster_ips_removed);
        settle(&mut delta.local_added, &mut delta.local_removed);
        delta.stale_udp = delta.fronts.iter().any(leaves_udp);
        let globals = globals(&self.scope, &self.node, &self.service_cidrs);
        if globals != self.globals {
            self.globals = globals.clone();
            delta.globals = Some(globals);
        }
        delta
    }

    fn replan(&mut self, name: &Name, delta: &mut Delta, released: &mut Vec<FrontKey>) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        let slices = entry.slices.iter().map(|(_, slice)| slice);
        let plan = entry.service.as_ref().map(|service| plan_service(service, slices, &self.node));
        let new = plan.unwrap_or_default();
        let old = std::mem::replace(&mut entry.plan, new.clone());
        if entry.service.is_none() && entry.slices.is_empty() {
            self.entries.remove(name);
        }
        count(
            &mut self.cluster_ips,
            &new.cluster_ips,
            &old.cluster_ips,
            &mut delta.cluster_ips_added,
            &mut delta.cluster_ips_removed,
        );
        count(
            &mut self.local,
            &new.local_endpoints,
            &old.local_endpoints,
            &mut delta.local_added,
            &mut delta.local_removed,
        );
        let mut before: HashMap<FrontKey, Front> = old.fronts.into_iter().collect();
        for (key, front) in new.fronts {
            let old = before.remove(&key);
            match self.owners.get(&key) {
                Some(owner) if owner == name => delta.fronts.push(FrontChange { key, old, new: Some(front) }),
                Some(owner) => {
                    tracing::warn!(service = &**name, front = %key, %owner, "another Service has this address and port");
                    self.waiting.insert((key, name.clone()));
                }
                None => {
                    self.owners.insert(key, name.clone());
                    self.waiting.remove(&(key, name.clone()));
                    let released =
                        if released.contains(&key) { delta.fronts.iter_mut().find(|c| c.key == key) } else { None };
                    match released {
                        Some(change) => change.new = Some(front),
                        None => delta.fronts.push(FrontChange { key, old: None, new: Some(front) }),
                    }
                }
            }
        }
        for (key, front) in before {
            self.waiting.remove(&(key, name.clone()));
            if self.owners.get(&key) == Some(name) {
                self.owners.remove(&key);
                released.push(key);
                delta.fronts.push(FrontChange { key, old: Some(front), new: None });
            }
        }
    }

    /// Gives fronts that were let go to whoever waits for them.
    fn hand_over(&mut self, released: Vec<FrontKey>, delta: &mut Delta) {
        for key in released {
            if self.owners.contains_key(&key) {
                continue;
            }
            let first = self.waiting.iter().find(|(one, _)| *one == key).cloned();
            let Some((key, name)) = first else { continue };
            self.waiting.remove(&(key, name.clone()));
            let front = self.entries.get(&name).and_then(|entry| entry.plan.fronts.iter().find(|(one, _)| *one == key));
            let Some((_, front)) = front else { continue };
            let new = Some(front.clone());
            self.owners.insert(key, name);
            match delta.fronts.iter_mut().find(|change| change.key == key) {
                Some(change) => change.new = new,
                None => delta.fronts.push(FrontChange { key, old: None, new }),
            }
        }
    }

    /// Every front that counts, with its Service.
    pub fn fronts(&self) -> impl Iterator<Item = (&Name, &FrontKey, &Front)> {
        self.entries.iter().flat_map(move |(name, entry)| {
            let mine = entry.plan.fronts.iter().filter(move |(key, _)| self.owners.get(key) == Some(name));
            mine.map(move |(key, front)| (name, key, front))
        })
    }

    /// All cluster IPs.
    pub fn cluster_ips(&self) -> impl Iterator<Item = IpAddr> {
        self.cluster_ips.keys().copied()
    }

    /// All addresses of endpoints on this node.
    pub fn local_endpoints(&self) -> impl Iterator<Item = IpAddr> {
        self.local.keys().copied()
    }

    /// What the plan has beyond Services.
    pub fn globals(&self) -> &Globals {
        &self.globals
    }

    /// Health check ports: the Service and its number of ready endpoints on this node.
    pub fn health_checks(&self) -> BTreeMap<u16, (Name, usize)> {
        let check =
            |(name, entry): (&Name, &Entry)| entry.plan.health_check.map(|(port, count)| (port, (name.clone(), count)));
        self.entries.iter().filter_map(check).collect()
    }

    /// The endpoints to which UDP connections of each front may go.
    pub fn udp_fronts(&self) -> HashMap<FrontKey, &[SocketAddr]> {
        let udp = self.fronts().filter(|(_, key, _)| key.protocol == Protocol::Udp);
        udp.filter_map(|(name, key, _)| Some((*key, &*self.entries.get(name)?.plan.udp_serving))).collect()
    }

    /// The whole plan in one piece, for printing.
    pub fn plan(&self) -> Plan {
        Plan {
            fronts: self.fronts().map(|(name, key, front)| (*key, (name.clone(), front.clone()))).collect(),
            cluster_ips: self.cluster_ips().collect(),
            local_endpoints: self.local_endpoints().collect(),
            globals: self.globals.clone(),
        }
    }
}

/// Whether a UDP front lost an endpoint, or has endpoints where it had none.
fn leaves_udp(change: &FrontChange) -> bool {
    let (Some(new), true) = (&change.new, change.key.protocol == Protocol::Udp) else {
        return change.key.protocol == Protocol::Udp;
    };
    let old = change.old.as_ref();
    let before = old.map(|old| old.endpoints.iter().chain(old.local.iter())).into_iter().flatten();
    let mut before = before.peekable();
    before.peek().is_none() || before.any(|one| !new.endpoints.contains(one) && !new.local.contains(one))
}

fn globals(scope: &NodePortScope, node: &Node, service_cidrs: &BTreeSet<IpNet>) -> Globals {
    let node_port_addresses = match scope {
        NodePortScope::All => NodePortAddresses::All,
        NodePortScope::Nets { primary, nets } => {
            let own = node.addresses.iter().filter(|_| *primary).map(|address| IpNet::from(*address));
            NodePortAddresses::In(own.chain(nets.iter().map(IpNet::trunc)).collect())
        }
    };
    Globals { node_port_addresses, service_cidrs: service_cidrs.clone() }
}

/// Counts users of addresses, and notes those that get their first or lose their last.
fn count(
    users: &mut HashMap<IpAddr, u32>,
    new: &[IpAddr],
    old: &[IpAddr],
    added: &mut Vec<IpAddr>,
    removed: &mut Vec<IpAddr>,
) {
    for address in new {
        let count = users.entry(*address).or_default();
        *count += 1;
        if *count == 1 {
            added.push(*address);
        }
    }
    for address in old {
        let count = users.entry(*address).or_default();
        *count = count.saturating_sub(1);
        if *count == 0 {
            users.remove(address);
            removed.push(*address);
        }
    }
}

/// Takes out what was both added and removed.
fn settle(added: &mut Vec<IpAddr>, removed: &mut Vec<IpAddr>) {
    let both: HashSet<IpAddr> = added.iter().filter(|address| removed.contains(address)).copied().collect();
    added.retain(|address| !both.contains(address));
    removed.retain(|address| !both.contains(address));
}
