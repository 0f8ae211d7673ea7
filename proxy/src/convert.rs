//! The API's objects as the model's.

use std::net::IpAddr;
use std::sync::Arc;

use bosun_api::node;
use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::model::{Endpoint, Name, Node, Protocol, Service, ServicePort, Slice, SlicePort};

/// The label that names a slice's Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const ZONE: &str = "topology.kubernetes.io/zone";
/// The autoscaler puts this taint on a node that it is about to delete.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

/// `namespace/name` of an object.
pub fn name(metadata: &ObjectMeta) -> Name {
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    Arc::from(format!("{}/{}", part(&metadata.namespace), part(&metadata.name)))
}

/// The Service as the proxy serves it; none when it serves it not: ExternalName, headless, no address yet.
pub fn service(object: &core::Service) -> Option<Service> {
    let spec = object.spec.as_ref()?;
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    if kind == "ExternalName" || spec.cluster_ip.as_deref() == Some("None") {
        return None;
    }
    let listed = spec.cluster_ips.as_deref().filter(|ips| !ips.is_empty());
    let cluster_ips = addresses(listed.unwrap_or(spec.cluster_ip.as_slice()));
    if cluster_ips.is_empty() {
        return None;
    }
    let load_balancer = kind == "LoadBalancer";
    let external_ips = addresses(spec.external_ips.as_deref().unwrap_or_default());
    let outside = load_balancer || kind == "NodePort" || !external_ips.is_empty();
    let external_local = outside && spec.external_traffic_policy.as_deref() == Some("Local");
    let health_check = spec.health_check_node_port.filter(|_| load_balancer && external_local);
    Some(Service {
        cluster_ips,
        external_ips,
        load_balancer_ips: if load_balancer { ingress(object) } else { Box::default() },
        source_ranges: if load_balancer { source_ranges(object) } else { Box::default() },
        ports: spec.ports.iter().flatten().filter_map(service_port).collect(),
        affinity: affinity(spec),
        external_local,
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        health_check_node_port: health_check.map(port).unwrap_or_default(),
    })
}

fn addresses(texts: &[String]) -> Box<[IpAddr]> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

/// A port number; 0 for what is none.
fn port(number: i32) -> u16 {
    u16::try_from(number).unwrap_or_default()
}

fn service_port(object: &core::ServicePort) -> Option<ServicePort> {
    Some(ServicePort {
        name: object.name.as_deref().unwrap_or_default().into(),
        protocol: Protocol::parse(object.protocol.as_deref())?,
        port: port(object.port),
        node_port: object.node_port.map(port).unwrap_or_default(),
    })
}

/// The balancer's addresses that reach the node as destination; with `ipMode: Proxy` they do not.
fn ingress(object: &core::Service) -> Box<[IpAddr]> {
    let balancer = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
    let here = ingress.iter().filter(|one| one.ip_mode.as_deref() != Some("Proxy"));
    here.filter_map(|one| one.ip.as_deref()?.parse().ok()).collect()
}

fn source_ranges(object: &core::Service) -> Box<[IpNet]> {
    let ranges = object.spec.as_ref().and_then(|spec| spec.load_balancer_source_ranges.as_deref()).unwrap_or_default();
    ranges.iter().filter_map(|text| text.trim().parse().ok()).collect()
}

fn affinity(spec: &core::ServiceSpec) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = config.and_then(|config| config.timeout_seconds).and_then(|seconds| u32::try_from(seconds).ok());
    Some(seconds.filter(|seconds| *seconds > 0).unwrap_or(DEFAULT_AFFINITY_SECONDS))
}

/// The slice as seen from a node; none when it belongs to no Service or holds names in place of addresses.
pub fn slice(object: &EndpointSlice, node: &str) -> Option<Slice> {
    let service = object.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    if object.address_type == "FQDN" {
        return None;
    }
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    Some(Slice {
        service: Arc::from(format!("{namespace}/{service}")),
        ports: object.ports.iter().flatten().filter_map(slice_port).collect(),
        endpoints: object.endpoints.iter().flatten().filter_map(|one| endpoint(one, node)).collect(),
    })
}

fn slice_port(object: &k8s_openapi::api::discovery::v1::EndpointPort) -> Option<SlicePort> {
    Some(SlicePort {
        name: object.name.as_deref().unwrap_or_default().into(),
        protocol: Protocol::parse(object.protocol.as_deref())?,
        port: object.port.map(port).filter(|port| *port > 0)?,
    })
}

fn endpoint(object: &k8s_openapi::api::discovery::v1::Endpoint, node: &str) -> Option<Endpoint> {
    let conditions = object.conditions.as_ref();
    let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
    let hints = object.hints.as_ref();
    let zones = hints.and_then(|hints| hints.for_zones.as_deref()).unwrap_or_default();
    let nodes = hints.and_then(|hints| hints.for_nodes.as_deref()).unwrap_or_default();
    Some(Endpoint {
        // The addresses of an endpoint are equivalent: the first one is used (EndpointSlice API).
        address: object.addresses.first()?.parse().ok()?,
        ready,
        serving: conditions.and_then(|c| c.serving).unwrap_or(ready),
        terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
        local: object.node_name.as_deref() == Some(node),
        for_nodes: nodes.iter().map(|hint| hint.name.as_str().into()).collect(),
        for_zones: zones.iter().map(|hint| hint.name.as_str().into()).collect(),
    })
}

/// What matters of the Node.
pub fn node(object: &core::Node) -> Node {
    let status = object.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let internal: Vec<IpAddr> =
        status.iter().filter(|one| one.type_ == "InternalIP").filter_map(|one| one.address.parse().ok()).collect();
    let first = |v6: bool| internal.iter().copied().find(|address| address.is_ipv6() == v6);
    let labels = object.metadata.labels.as_ref();
    Node {
        name: object.metadata.name.as_deref().unwrap_or_default().into(),
        addresses: first(false).into_iter().chain(first(true)).collect(),
        zone: labels.and_then(|labels| labels.get(ZONE)).map(|zone| zone.as_str().into()),
        pod_cidrs: node::pod_cidrs(object).into_iter().filter_map(|cidr| cidr.parse().ok()).collect(),
        leaving: object.metadata.deletion_timestamp.is_some()
            || node::taints(object).iter().any(|taint| taint.key == TO_BE_DELETED),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(spec: serde_json::Value) -> Option<Service> {
        service(&serde_json::from_value(json!({"metadata": {"name": "a", "namespace": "b"}, "spec": spec})).unwrap())
    }

    #[test]
    fn services_without_an_address_are_not_served() {
        assert_eq!(parse(json!({"type": "ExternalName", "externalName": "example.com"})), None);
        assert_eq!(parse(json!({"clusterIP": "None", "clusterIPs": ["None"]})), None);
        assert_eq!(parse(json!({"ports": [{"port": 80}]})), None);
    }

    #[test]
    fn a_service_keeps_what_matters() {
        let service = parse(json!({
            "type": "LoadBalancer", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"],
            "sessionAffinity": "ClientIP", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000,
            "loadBalancerSourceRanges": ["10.0.0.0/8 "],
            "ports": [{"name": "dns", "protocol": "UDP", "port": 53, "nodePort": 30053}, {"port": 1, "protocol": "X"}],
        }))
        .unwrap();
        assert_eq!(service.cluster_ips.len(), 2);
        assert_eq!(service.affinity, Some(10_800));
        assert!(service.external_local && !service.internal_local);
        assert_eq!(service.health_check_node_port, 32000);
        assert_eq!(service.source_ranges.len(), 1);
        assert_eq!(service.ports.len(), 1);
        assert_eq!((service.ports[0].protocol, service.ports[0].node_port), (Protocol::Udp, 30053));
    }

    #[test]
    fn conditions_default_as_the_api_says() {
        let object = json!({
            "metadata": {"name": "a-1", "namespace": "b", "labels": {"kubernetes.io/service-name": "a"}},
            "addressType": "IPv4", "ports": [{"name": "", "port": 80}],
            "endpoints": [
                {"addresses": ["10.1.0.1"], "nodeName": "n1"},
                {"addresses": ["10.1.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            ],
        });
        let slice = slice(&serde_json::from_value(object).unwrap(), "n1").unwrap();
        assert_eq!(&*slice.service, "b/a");
        let flags: Vec<_> = slice.endpoints.iter().map(|e| (e.ready, e.serving, e.terminating, e.local)).collect();
        assert_eq!(flags, [(true, true, false, true), (false, true, true, false)]);
    }
}
