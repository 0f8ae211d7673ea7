//! The fronts of one Service.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::{Action, Front, FrontKey, Masquerade};
use crate::model::{Endpoint, Node, Protocol, Service, ServicePort, Slice};

/// What one Service contributes to the dataplane.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServicePlan {
    /// Its fronts.
    pub fronts: Vec<(FrontKey, Front)>,
    /// Its cluster IPs.
    pub cluster_ips: Box<[IpAddr]>,
    /// Addresses of its endpoints on this node.
    pub local_endpoints: Vec<IpAddr>,
    /// The health check port and the number of ready endpoints on this node.
    pub health_check: Option<(u16, usize)>,
    /// Endpoints that UDP connections may still be using: serving, ready or not.
    pub udp_serving: Vec<SocketAddr>,
}

/// Decides what a Service's addresses do, given its slices and the node. See `pkg/proxy/topology.go` for the order in
/// which endpoints are considered.
pub fn plan_service<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    node: &Node,
) -> ServicePlan {
    let mut plan = ServicePlan { cluster_ips: service.cluster_ips.clone(), ..ServicePlan::default() };
    let mut local_ready = std::collections::BTreeSet::new();
    for cluster_ip in &service.cluster_ips {
        for port in &service.ports {
            let candidates = Candidates::of(port, cluster_ip.is_ipv6(), slices.clone());
            local_ready.extend(candidates.local_ready());
            plan.local_endpoints.extend(candidates.0.iter().filter(|c| c.endpoint.local).map(|c| c.address.ip()));
            if port.protocol == Protocol::Udp {
                let serving = candidates.0.iter().filter(|c| c.endpoint.serving || c.endpoint.ready);
                plan.udp_serving.extend(serving.map(|c| c.address));
            }
            fronts(&mut plan.fronts, service, port, *cluster_ip, &candidates, node);
        }
    }
    // An external IP may also be the balancer's: the first of the two counts.
    plan.fronts.sort_by_key(|(key, _)| *key);
    plan.fronts.dedup_by_key(|(key, _)| *key);
    plan.local_endpoints.sort_unstable();
    plan.local_endpoints.dedup();
    if service.health_check_node_port > 0 {
        plan.health_check = Some((service.health_check_node_port, local_ready.len()));
    }
    plan
}

/// The fronts of one port in the family of one cluster IP.
fn fronts(
    out: &mut Vec<(FrontKey, Front)>,
    service: &Service,
    port: &ServicePort,
    cluster_ip: IpAddr,
    candidates: &Candidates<'_>,
    node: &Node,
) {
    let cluster: Arc<[SocketAddr]> = candidates.cluster(node).into();
    let needs_local = service.internal_local || service.external_local;
    let local: Arc<[SocketAddr]> = if needs_local { candidates.local().into() } else { Arc::default() };
    let front = |action, endpoints: &Arc<[SocketAddr]>, local: &Arc<[SocketAddr]>| Front {
        action,
        endpoints: endpoints.clone(),
        local: local.clone(),
        affinity: service.affinity,
        sources: None,
    };
    let none = Arc::default();
    let internal = match (service.internal_local, cluster.is_empty(), local.is_empty()) {
        (true, _, false) => front(Action::Balance(Masquerade::OffCluster), &local, &none),
        (true, false, true) => front(Action::Drop, &none, &none),
        (false, false, _) => front(Action::Balance(Masquerade::OffCluster), &cluster, &none),
        (_, true, _) => front(Action::Reject, &none, &none),
    };
    let external = match (service.external_local, cluster.is_empty() && local.is_empty()) {
        (_, true) => front(Action::Reject, &none, &none),
        (true, false) => front(Action::Local, &cluster, &local),
        (false, false) => front(Action::Balance(Masquerade::Always), &cluster, &none),
    };
    let v6 = cluster_ip.is_ipv6();
    let at = |address, port: u16, protocol| FrontKey { address, protocol, port };
    let same_family = |address: &&IpAddr| address.is_ipv6() == v6;
    out.push((at(cluster_ip, port.port, port.protocol), internal));
    for address in service.external_ips.iter().filter(same_family) {
        out.push((at(*address, port.port, port.protocol), external.clone()));
    }
    for address in service.load_balancer_ips.iter().filter(same_family) {
        let front = Front { sources: sources(service, v6), ..external.clone() };
        out.push((at(*address, port.port, port.protocol), front));
    }
    if port.node_port > 0 {
        out.push((FrontKey::node_port(v6, port.protocol, port.node_port), external));
    }
}

/// The source ranges of a family. Ranges of only the other family allow nobody of this one.
fn sources(service: &Service, v6: bool) -> Option<Arc<[IpNet]>> {
    let of_family = |net: &&IpNet| net.addr().is_ipv6() == v6;
    (!service.source_ranges.is_empty()).then(|| service.source_ranges.iter().filter(of_family).copied().collect())
}

/// An endpoint of a Service port with its port.
struct Candidate<'a> {
    address: SocketAddr,
    endpoint: &'a Endpoint,
}

/// The endpoints of a Service port, sorted, each once.
struct Candidates<'a>(Vec<Candidate<'a>>);

impl<'a> Candidates<'a> {
    fn of(port: &ServicePort, v6: bool, slices: impl Iterator<Item = &'a Slice>) -> Self {
        let mut found = Vec::new();
        for slice in slices {
            let matching = slice.ports.iter().find(|one| one.name == port.name && one.protocol == port.protocol);
            let Some(matching) = matching else { continue };
            let endpoints = slice.endpoints.iter().filter(|endpoint| endpoint.address.is_ipv6() == v6);
            found.extend(
                endpoints
                    .map(|endpoint| Candidate { address: SocketAddr::new(endpoint.address, matching.port), endpoint }),
            );
        }
        // While an endpoint moves from slice to slice it may be in both: the better state counts.
        found.sort_by_key(|c| (c.address, !c.endpoint.ready, !c.endpoint.serving));
        found.dedup_by_key(|c| c.address);
        Self(found)
    }

    /// Endpoints for the whole cluster: ready ones, of those the preferred; else those that still serve.
    fn cluster(&self, node: &Node) -> Vec<SocketAddr> {
        let ready: Vec<_> = self.0.iter().filter(|c| c.endpoint.ready).collect();
        if ready.is_empty() {
            return self.draining(|_| true);
        }
        let hinted = [
            hinted(&ready, |endpoint| &endpoint.for_nodes, Some(&node.name)),
            hinted(&ready, |endpoint| &endpoint.for_zones, node.zone.as_deref()),
        ];
        let preferred = hinted.into_iter().flatten().next();
        preferred.unwrap_or_else(|| ready.iter().map(|c| c.address).collect())
    }

    /// Endpoints on this node: ready ones, else those that still serve.
    fn local(&self) -> Vec<SocketAddr> {
        let ready: Vec<_> = self.local_ready().collect();
        if ready.is_empty() { self.draining(|endpoint| endpoint.local) } else { ready }
    }

    fn local_ready(&self) -> impl Iterator<Item = SocketAddr> {
        self.0.iter().filter(|c| c.endpoint.ready && c.endpoint.local).map(|c| c.address)
    }

    fn draining(&self, wanted: impl Fn(&Endpoint) -> bool) -> Vec<SocketAddr> {
        let draining = self.0.iter().filter(|c| c.endpoint.serving && c.endpoint.terminating && wanted(c.endpoint));
        draining.map(|c| c.address).collect()
    }
}

/// The endpoints whose hint names `here`; none unless every endpoint has a hint and at least one names it.
fn hinted(
    ready: &[&Candidate<'_>],
    hints: impl Fn(&Endpoint) -> &[Box<str>],
    here: Option<&str>,
) -> Option<Vec<SocketAddr>> {
    let here = here?;
    if ready.iter().any(|c| hints(c.endpoint).is_empty()) {
        return None;
    }
    let named = ready.iter().filter(|c| hints(c.endpoint).iter().any(|hint| &**hint == here));
    Some(named.map(|c| c.address).collect::<Vec<_>>()).filter(|named| !named.is_empty())
}
