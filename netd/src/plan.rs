//! Which routes a node needs, and how to come there from those it has: no kernel in here.

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

/// A way to another node's pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The node's pod network.
    pub dst: IpNet,
    /// The node's address.
    pub via: IpAddr,
}

/// What this node's network is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// This node's pod networks.
    pub pod_cidrs: Vec<IpNet>,
    /// Ways to the others'.
    pub routes: BTreeSet<Route>,
    /// Nodes without a way, and why.
    pub skipped: BTreeMap<String, String>,
}

/// A change of the routing table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Adds a route, or changes the gateway of the one that is there.
    Replace(Route),
    /// Deletes a route.
    Delete(Route),
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} via {}", self.dst, self.via)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replace(route) => write!(f, "replace {route}"),
            Self::Delete(route) => write!(f, "delete {route}"),
        }
    }
}

/// The network of the node named `me`; none while it has no pod network.
pub fn desired<'a>(me: &str, nodes: impl IntoIterator<Item = &'a Node>) -> Option<Desired> {
    let mut pod_cidrs = Vec::new();
    let mut routes = BTreeSet::new();
    let mut skipped = BTreeMap::new();
    for node in nodes {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let cidrs = cidrs(node);
        if name == me {
            pod_cidrs = cidrs;
            continue;
        }
        let addresses = internal_addresses(node);
        for dst in cidrs {
            match addresses.iter().find(|address| address.is_ipv4() == dst.addr().is_ipv4()) {
                Some(via) => drop(routes.insert(Route { dst, via: *via })),
                None => drop(skipped.insert(name.to_owned(), format!("no InternalIP for pod network {dst}"))),
            }
        }
    }
    (!pod_cidrs.is_empty()).then_some(Desired { pod_cidrs, routes, skipped })
}

fn cidrs(node: &Node) -> Vec<IpNet> {
    let cidrs = bosun_api::node::pod_cidrs(node);
    cidrs.into_iter().filter_map(|cidr| cidr.parse::<IpNet>().ok()).map(|net| net.trunc()).collect()
}

fn internal_addresses(node: &Node) -> Vec<IpAddr> {
    let status = node.status.as_ref();
    let addresses = status.and_then(|status| status.addresses.as_ref()).into_iter().flatten();
    addresses.filter(|address| address.type_ == "InternalIP").filter_map(|a| a.address.parse().ok()).collect()
}

/// How the observed routes, all of them ours, become the desired ones.
#[must_use]
pub fn changes(desired: &BTreeSet<Route>, observed: &BTreeSet<Route>) -> Vec<Change> {
    let wanted: BTreeSet<IpNet> = desired.iter().map(|route| route.dst).collect();
    // A changed gateway is a replacement, without a moment between.
    let gone = observed.iter().filter(|route| !wanted.contains(&route.dst)).copied().map(Change::Delete);
    let new = desired.difference(observed).copied().map(Change::Replace);
    gone.chain(new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, cidrs: &[&str], addresses: &[&str]) -> Node {
        let addresses: Vec<_> = addresses.iter().map(|a| json!({"type": "InternalIP", "address": a})).collect();
        serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"podCIDR": cidrs.first(), "podCIDRs": cidrs},
            "status": {"addresses": addresses},
        }))
        .unwrap()
    }

    fn text(changes: &[Change]) -> String {
        changes.iter().map(|change| format!("{change}\n")).collect()
    }

    #[test]
    fn nothing_before_the_node_has_a_network() {
        assert_eq!(desired("a", &[node("a", &[], &["10.0.0.1"]), node("b", &["10.244.1.0/24"], &["10.0.0.2"])]), None);
        assert_eq!(desired("a", &[]), None);
    }

    #[test]
    fn a_way_to_each_other_node_of_each_family() {
        let nodes = [
            node("a", &["10.244.0.0/24", "fd00:0::/64"], &["10.0.0.1", "fd01::1"]),
            node("b", &["10.244.1.0/24", "fd00:0:0:1::/64"], &["10.0.0.2", "fd01::2"]),
            node("c", &["10.244.2.0/24"], &["fd01::3"]),
            node("d", &[], &["10.0.0.4"]),
            node("e", &["nonsense"], &["10.0.0.5"]),
        ];
        let desired = desired("a", &nodes).unwrap();
        let golden = "replace 10.244.1.0/24 via 10.0.0.2\nreplace fd00:0:0:1::/64 via fd01::2\n";
        assert_eq!(text(&changes(&desired.routes, &BTreeSet::new())), golden);
        assert_eq!(desired.skipped["c"], "no InternalIP for pod network 10.244.2.0/24");
        assert_eq!(text(&changes(&desired.routes, &desired.routes)), "");
    }

    #[test]
    fn changed_gateways_are_replaced_and_stale_routes_deleted() {
        let route = |dst: &str, via: &str| Route { dst: dst.parse().unwrap(), via: via.parse().unwrap() };
        let observed = [route("10.244.1.0/24", "10.0.0.2"), route("10.244.9.0/24", "10.0.0.9")].into();
        let desired = [route("10.244.1.0/24", "10.0.0.7")].into();
        let golden = "delete 10.244.9.0/24 via 10.0.0.9\nreplace 10.244.1.0/24 via 10.0.0.7\n";
        assert_eq!(text(&changes(&desired, &observed)), golden);
    }
}
