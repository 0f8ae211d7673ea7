//! Which slices a Service should have, with as few writes as may be. Pure.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use bosun_api::pod::{is_ready, is_terminal};
use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use super::{MANAGED_BY, MANAGER, SERVICE_NAME};
use crate::objects::{Map, controller_ref};
use crate::service_pods::{hostname, is_headless, pod_ips, publishes_unready, target_port};

/// Endpoints that one slice holds at most (stock's default).
const MAX_ENDPOINTS: usize = 100;
const HEADLESS: &str = "service.kubernetes.io/headless";

/// The writes.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) create: Vec<EndpointSlice>,
    pub(super) update: Vec<EndpointSlice>,
    pub(super) delete: Vec<Arc<EndpointSlice>>,
}

/// Slices with the same ports and family, by the ports' text.
type Groups = BTreeMap<(&'static str, String), Group>;

#[derive(Default)]
struct Group {
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
    slices: Vec<Arc<EndpointSlice>>,
}

/// Plans the slices of one Service. `zone` knows a node's zone.
pub(super) fn plan(
    service: &Service,
    pods: &[Arc<Pod>],
    existing: &[Arc<EndpointSlice>],
    zone: impl Fn(&str) -> Option<String>,
) -> Plan {
    let mut plan = Plan::default();
    let families = families(service);
    let mut groups = Groups::new();
    for family in &families {
        for pod in pods.iter().filter(|p| !is_terminal(p)) {
            let Some(endpoint) = endpoint(service, pod, family, &zone) else { continue };
            let ports = ports(service, pod);
            let group = groups.entry((family, key(&ports))).or_default();
            group.ports = ports;
            group.endpoints.push(endpoint);
        }
    }
    for slice in existing {
        let family = families.iter().find(|f| **f == slice.address_type);
        let ports = slice.ports.clone().unwrap_or_default();
        match family.and_then(|f| groups.get_mut(&(*f, key(&ports)))) {
            Some(group) => group.slices.push(slice.clone()),
            None => plan.delete.push(slice.clone()),
        }
    }
    for family in &families {
        if groups.keys().any(|(f, _)| f == family) {
            continue;
        }
        // An empty slice says that there is nothing; keep one if there is one.
        let kept = plan.delete.iter().position(|s| s.address_type == **family);
        let slice = kept.map(|index| plan.delete.remove(index));
        place_empty(service, family, slice, &mut plan);
    }
    for ((family, _), group) in groups {
        fill(service, family, group, &mut plan);
    }
    plan
}

fn families(service: &Service) -> Vec<&'static str> {
    let spec = service.spec.as_ref();
    let named = spec.and_then(|s| s.ip_families.as_deref()).unwrap_or_default();
    if !named.is_empty() {
        return named.iter().map(|f| if f == "IPv6" { "IPv6" } else { "IPv4" }).collect();
    }
    let address = spec.and_then(|s| s.cluster_ip.as_deref()).unwrap_or_default();
    vec![if address.contains(':') { "IPv6" } else { "IPv4" }]
}

fn key(ports: &[EndpointPort]) -> String {
    let mut lines: Vec<String> = ports
        .iter()
        .map(|p| {
            let text = |value: &Option<String>| value.clone().unwrap_or_default();
            format!("{}/{}/{}/{}", text(&p.name), text(&p.protocol), p.port.unwrap_or_default(), text(&p.app_protocol))
        })
        .collect();
    lines.sort();
    lines.join(",")
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let wanted = service.spec.as_ref().and_then(|s| s.ports.as_deref()).unwrap_or_default();
    wanted
        .iter()
        .filter_map(|port| {
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(target_port(port, pod)?),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

fn endpoint(service: &Service, pod: &Pod, family: &str, zone: &impl Fn(&str) -> Option<String>) -> Option<Endpoint> {
    let address = pod_ips(pod).find(|ip| matches!((ip, family), (IpAddr::V4(_), "IPv4") | (IpAddr::V6(_), "IPv6")))?;
    let serving = is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let ready = publishes_unready(service) || (serving && !terminating);
    let node = pod.spec.as_ref().and_then(|s| s.node_name.clone());
    let zone = node.as_deref().and_then(zone);
    Some(Endpoint {
        addresses: vec![address.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hints: hints(service, ready, zone.as_deref(), node.as_deref()),
        hostname: hostname(service, pod),
        node_name: node,
        zone,
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        deprecated_topology: None,
    })
}

/// Where traffic should come from, by the Service's `trafficDistribution` (KEP-4444, KEP-3015).
fn hints(service: &Service, ready: bool, zone: Option<&str>, node: Option<&str>) -> Option<EndpointHints> {
    let wanted = service.spec.as_ref()?.traffic_distribution.as_deref()?;
    if !ready {
        return None;
    }
    let same_node = wanted == "PreferSameNode";
    if !same_node && !matches!(wanted, "PreferClose" | "PreferSameZone") {
        return None;
    }
    let for_zones = zone.map(|name| vec![ForZone { name: name.to_owned() }]);
    let for_nodes = node.filter(|_| same_node).map(|name| vec![ForNode { name: name.to_owned() }]);
    (for_zones.is_some() || for_nodes.is_some()).then_some(EndpointHints { for_nodes, for_zones })
}

/// Labels of a slice: the Service's own, and those that say whose it is.
fn labels(service: &Service) -> Map {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.retain(|key, _| key != HEADLESS && key != SERVICE_NAME && key != MANAGED_BY);
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(SERVICE_NAME.to_owned(), service.name_any());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}

fn new_slice(service: &Service, family: &str, ports: Vec<EndpointPort>, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let prefix = format!("{}-", service.name_any());
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(bosun_api::hash::generate_name(&prefix)),
            generate_name: Some(prefix),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels(service)),
            owner_references: Some(vec![controller_ref(service)]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        endpoints: Some(endpoints),
        ports: Some(ports),
    }
}

fn place_empty(service: &Service, family: &str, kept: Option<Arc<EndpointSlice>>, plan: &mut Plan) {
    let Some(kept) = kept else {
        plan.create.push(new_slice(service, family, Vec::new(), Vec::new()));
        return;
    };
    let wanted = EndpointSlice { endpoints: Some(Vec::new()), ports: Some(Vec::new()), ..relabelled(service, &kept) };
    push_if_changed(&kept, wanted, plan);
}

fn relabelled(service: &Service, slice: &EndpointSlice) -> EndpointSlice {
    let mut slice = slice.clone();
    slice.metadata.labels = Some(labels(service));
    slice
}

fn push_if_changed(before: &EndpointSlice, after: EndpointSlice, plan: &mut Plan) {
    let lists = |s: &EndpointSlice| (s.endpoints.clone().unwrap_or_default(), s.ports.clone().unwrap_or_default());
    if before.metadata.labels != after.metadata.labels || lists(before) != lists(&after) {
        plan.update.push(after);
    }
}

/// Spreads a group's endpoints over its slices: what is there stays where it is, what is new fills up, first where a
/// write is due anyway.
fn fill(service: &Service, family: &str, group: Group, plan: &mut Plan) {
    let mut wanted: HashMap<String, Endpoint> = group.endpoints.into_iter().map(|e| (identity(&e), e)).collect();
    let mut slices: Vec<(Arc<EndpointSlice>, Vec<Endpoint>, bool)> = Vec::new();
    for slice in group.slices {
        let before = slice.endpoints.clone().unwrap_or_default();
        let kept: Vec<Endpoint> = before.iter().filter_map(|e| wanted.remove(&identity(e))).collect();
        let changed = kept != before;
        slices.push((slice, kept, changed));
    }
    let mut new: Vec<Endpoint> = wanted.into_values().collect();
    new.sort_by_key(identity);
    // Changed slices first; among them the fullest.
    slices.sort_by_key(|(_, kept, changed)| (!changed, std::cmp::Reverse(kept.len())));
    for (_, kept, _) in &mut slices {
        let room = MAX_ENDPOINTS.saturating_sub(kept.len()).min(new.len());
        kept.extend(new.drain(..room));
    }
    let mut any = false;
    for (slice, kept, _) in slices {
        if kept.is_empty() {
            plan.delete.push(slice);
            continue;
        }
        any = true;
        let wanted = EndpointSlice { endpoints: Some(kept), ..relabelled(service, &slice) };
        push_if_changed(&slice, wanted, plan);
    }
    while !new.is_empty() {
        let rest = new.split_off(new.len().min(MAX_ENDPOINTS));
        // A slice that would be deleted is used again, which spares its consumers a gap.
        let spare = plan.delete.iter().position(|s| s.address_type == family);
        match spare.filter(|_| !any).map(|index| plan.delete.remove(index)) {
            Some(slice) => plan.update.push(EndpointSlice {
                endpoints: Some(new),
                ports: Some(group.ports.clone()),
                ..relabelled(service, &slice)
            }),
            None => plan.create.push(new_slice(service, family, group.ports.clone(), new)),
        }
        any = true;
        new = rest;
    }
}

/// What makes an endpoint the same one: its address and pod.
fn identity(endpoint: &Endpoint) -> String {
    let address = endpoint.addresses.first().map(String::as_str).unwrap_or_default();
    let target = endpoint.target_ref.as_ref().and_then(|r| r.uid.as_deref()).unwrap_or_default();
    format!("{address}|{target}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(more: serde_json::Value) -> Service {
        let mut service = json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "s", "labels": {"team": "a"}},
            "spec": {"clusterIP": "10.96.0.9", "ipFamilies": ["IPv4"], "selector": {"app": "web"},
                     "ports": [{"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP"}]},
        });
        for (key, value) in more.as_object().unwrap() {
            service["spec"][key] = value.clone();
        }
        serde_json::from_value(service).unwrap()
    }

    fn pod(n: usize, ready: bool) -> Arc<Pod> {
        let pod = json!({
            "metadata": {"name": format!("p{n}"), "namespace": "default", "uid": format!("u{n}")},
            "spec": {"nodeName": "n1", "containers": [
                {"name": "c", "ports": [{"name": "web", "containerPort": 8080, "protocol": "TCP"}]}]},
            "status": {"podIP": format!("10.244.{}.{}", n / 250, n % 250 + 1), "conditions": [
                {"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn no_zone(_: &str) -> Option<String> {
        None
    }

    fn shown(slice: &EndpointSlice) -> Vec<String> {
        slice
            .endpoints
            .iter()
            .flatten()
            .map(|e| {
                let c = e.conditions.as_ref().unwrap();
                let flag = |value: Option<bool>, letter: &'static str| if value == Some(true) { letter } else { "-" };
                format!("{} {}{}{}", e.addresses[0], flag(c.ready, "r"), flag(c.serving, "s"), flag(c.terminating, "t"))
            })
            .collect()
    }

    #[test]
    fn a_service_without_pods_has_an_empty_slice() {
        let plan = plan(&service(json!({})), &[], &[], no_zone);
        assert_eq!(plan.create.len(), 1);
        let slice = &plan.create[0];
        assert_eq!(slice.endpoints.as_deref(), Some(&[][..]));
        assert_eq!(slice.labels()[SERVICE_NAME], "web");
        assert_eq!(slice.labels()["team"], "a");
        assert!(slice.name_any().starts_with("web-"));
    }

    #[test]
    fn conditions_and_named_ports() {
        let mut leaving = (*pod(2, true)).clone();
        leaving.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
        let pods = [pod(0, true), pod(1, false), Arc::new(leaving)];
        let plan = plan(&service(json!({})), &pods, &[], no_zone);
        assert_eq!(shown(&plan.create[0]), ["10.244.0.1 rs-", "10.244.0.2 ---", "10.244.0.3 -st"]);
        assert_eq!(plan.create[0].ports.as_ref().unwrap()[0].port, Some(8080));
    }

    #[test]
    fn unready_pods_are_published_on_demand() {
        let plan = plan(&service(json!({"publishNotReadyAddresses": true})), &[pod(1, false)], &[], no_zone);
        assert_eq!(shown(&plan.create[0]), ["10.244.0.2 r--"]);
    }

    #[test]
    fn the_empty_slice_is_used_for_the_first_pod_and_kept_after_the_last() {
        let first = plan(&service(json!({})), &[], &[], no_zone);
        let empty = Arc::new(first.create[0].clone());
        let second = plan(&service(json!({})), &[pod(0, true)], &[empty], no_zone);
        assert_eq!((second.create.len(), second.update.len(), second.delete.len()), (0, 1, 0));
        let filled = Arc::new(second.update[0].clone());
        let third = plan(&service(json!({})), &[], &[filled], no_zone);
        assert_eq!((third.create.len(), third.update.len(), third.delete.len()), (0, 1, 0));
        assert_eq!(third.update[0].endpoints.as_deref(), Some(&[][..]));
    }

    #[test]
    fn nothing_changed_nothing_written() {
        let pods: Vec<_> = (0..250).map(|n| pod(n, true)).collect();
        let first = plan(&service(json!({})), &pods, &[], no_zone);
        let sizes: Vec<_> = first.create.iter().map(|s| s.endpoints.as_ref().unwrap().len()).collect();
        assert_eq!(sizes, [100, 100, 50]);
        let existing: Vec<_> = first.create.into_iter().map(Arc::new).collect();
        let second = plan(&service(json!({})), &pods, &existing, no_zone);
        assert_eq!((second.create.len(), second.update.len(), second.delete.len()), (0, 0, 0));
        let third = plan(&service(json!({})), &pods[1..], &existing, no_zone);
        assert_eq!((third.create.len(), third.update.len(), third.delete.len()), (0, 1, 0));
    }

    #[test]
    fn hints_follow_traffic_distribution() {
        let zone = |_: &str| Some("z1".to_owned());
        let plan = plan(&service(json!({"trafficDistribution": "PreferClose"})), &[pod(0, true)], &[], zone);
        let endpoint = &plan.create[0].endpoints.as_ref().unwrap()[0];
        let hints = endpoint.hints.as_ref().unwrap();
        assert_eq!(hints.for_zones.as_ref().unwrap()[0].name, "z1");
        assert_eq!(endpoint.zone.as_deref(), Some("z1"));
    }
}
