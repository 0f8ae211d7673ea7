//! The elements that a front, an address or a network has in the sets and maps.

use std::net::{IpAddr, SocketAddr};

use bosun_nft::Key;
use ipnet::IpNet;

use super::chain::{Chain, first_slot};
use super::layout::SetId;
use crate::plan::{Action, Front, FrontKey, Globals, NodePortAddresses, Scope};

/// What an element maps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Data {
    None,
    Value(Key),
    Goto(Chain),
    Reject,
    Drop,
}

/// An element of one of the sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) key: Key,
    /// The last key of a range of concatenated keys.
    pub(super) end: Option<Key>,
    /// The key ends a range of single keys.
    pub(super) interval_end: bool,
    pub(super) data: Data,
}

impl Element {
    fn new(key: Key, data: Data) -> Self {
        Self { key, end: None, interval_end: false, data }
    }
}

fn front_key(key: &FrontKey) -> Key {
    Key::new().ip(key.address).proto(key.protocol.number()).port(key.port)
}

fn endpoint_value(endpoint: SocketAddr) -> Key {
    Key::new().ip(endpoint.ip()).port(endpoint.port())
}

/// Hands the elements that a front has in a set to `take`.
pub(super) fn of_front(set: SetId, key: &FrontKey, front: &Front, mut take: impl FnMut(Element)) {
    match set {
        SetId::ServiceIps if !key.is_node_port() => take(Element::new(front_key(key), target(key, front))),
        SetId::ServiceNodePorts if key.is_node_port() => {
            let short = Key::new().proto(key.protocol.number()).port(key.port);
            take(Element::new(short, target(key, front)));
        }
        SetId::Endpoints => each_endpoint(front, |scope, at, endpoint| {
            take(Element::new(front_key(key).mark(first_slot(scope) + at), Data::Value(endpoint_value(endpoint))));
        }),
        SetId::AffinityEndpoints if front.affinity.is_some() => each_endpoint(front, |scope, _, endpoint| {
            let in_use = front_key(key).mark(first_slot(scope)).ip(endpoint.ip()).port(endpoint.port());
            take(Element::new(in_use, Data::None));
        }),
        SetId::Firewalled if front.sources.is_some() => take(Element::new(front_key(key), Data::None)),
        SetId::Sources => {
            for net in front.sources.iter().flat_map(|sources| IpNet::aggregate(&sources.to_vec())) {
                let end = Some(front_key(key).ip(net.broadcast()));
                take(Element { end, ..Element::new(front_key(key).ip(net.network()), Data::None) });
            }
        }
        _ => {}
    }
}

fn target(key: &FrontKey, front: &Front) -> Data {
    match (front.action, Chain::of(key, front)) {
        (_, Some(chain)) => Data::Goto(chain),
        (Action::Drop, None) => Data::Drop,
        (_, None) => Data::Reject,
    }
}

fn each_endpoint(front: &Front, mut take: impl FnMut(Scope, u32, SocketAddr)) {
    for scope in [Scope::Cluster, Scope::Local] {
        for (at, endpoint) in (0..).zip(front.scope(scope)) {
            take(scope, at, *endpoint);
        }
    }
}

/// A cluster IP.
pub(super) fn of_cluster_ip(address: IpAddr) -> Element {
    Element::new(Key::new().ip(address), Data::None)
}

/// An endpoint on this node that may reach itself.
pub(super) fn of_hairpin(address: IpAddr) -> Element {
    Element::new(Key::new().ip(address).ip(address), Data::None)
}

/// The ranges that the globals give a set, in a family.
pub(super) fn of_globals(set: SetId, globals: &Globals, v6: bool) -> Vec<Element> {
    let of_family = |net: &&IpNet| net.addr().is_ipv6() == v6;
    let nets: Vec<IpNet> = match (set, &globals.node_port_addresses) {
        (SetId::ServiceCidrs, _) => globals.service_cidrs.iter().filter(of_family).copied().collect(),
        (SetId::NodePortAddresses, NodePortAddresses::In(nets)) => nets.iter().filter(of_family).copied().collect(),
        (SetId::NodePortAddresses, NodePortAddresses::All) => return all_but_loopback(v6),
        _ => return Vec::new(),
    };
    // Sets of ranges take no overlaps; neighbours are joined, too.
    let joined = IpNet::aggregate(&nets);
    joined.iter().flat_map(|net| range(net.network(), net.broadcast())).collect()
}

/// Node ports on loopback would need martian packets let in from outside (CVE-2020-8558).
fn all_but_loopback(v6: bool) -> Vec<Element> {
    let address = |text: &str| text.parse::<IpAddr>().expect("a literal address");
    if v6 {
        return range(address("::2"), address("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"));
    }
    let mut elements = range(address("0.0.0.1"), address("126.255.255.255"));
    elements.extend(range(address("128.0.0.0"), address("255.255.255.255")));
    elements
}

fn range(first: IpAddr, last: IpAddr) -> Vec<Element> {
    bosun_nft::Element::range(Key::new().ip(first), Key::new().ip(last))
        .map(|one| Element { interval_end: one.interval_end, ..Element::new(one.key, Data::None) })
        .collect()
}
