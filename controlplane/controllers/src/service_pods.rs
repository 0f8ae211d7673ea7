//! From pods to the Services that select them, for the two controllers that publish endpoints.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use bosun_api::pod::{is_ready, is_terminal};
use bosun_kit::informer::{Delta, Informer};
use bosun_kit::queue::WorkQueue;
use k8s_openapi::api::core::v1::{Container, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::objects::Map;
use crate::runtime::Key;

/// Queues the Services that a pod's change concerns; changes that no endpoint shows are passed over.
pub(crate) fn route(services: Informer<Service>) -> impl FnMut(&Delta<Pod>, &WorkQueue<Key>) + Send + 'static {
    // uid → what of the pod endpoints show: labels, and the rest.
    let mut seen: HashMap<String, (u64, u64)> = HashMap::new();
    move |delta, queue| {
        let pod = delta.object();
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let now = (hash(&pod.metadata.labels), hash_shown(pod));
        let before = match delta {
            Delta::Applied(_) => seen.insert(uid, now),
            Delta::Deleted(_) => seen.remove(&uid),
        };
        if matches!(delta, Delta::Applied(_)) && before == Some(now) {
            return;
        }
        let relabelled = before.is_some_and(|b| b.0 != now.0);
        let empty = Map::new();
        let labels = pod.metadata.labels.as_ref().unwrap_or(&empty);
        let concerned = services.filter(|s| {
            s.metadata.namespace == pod.metadata.namespace
                && selector(s).is_some_and(|selector| relabelled || selects(selector, labels))
        });
        concerned.iter().for_each(|s| queue.add(Key::of(&s.metadata)));
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn hash_shown(pod: &Pod) -> u64 {
    let spec = pod.spec.as_ref().map(|s| (&s.node_name, &s.hostname, &s.subdomain));
    let ips: Vec<IpAddr> = pod_ips(pod).collect();
    hash(&(ips, is_ready(pod), is_terminal(pod), pod.metadata.deletion_timestamp.is_some(), spec))
}

/// The selector of a Service whose endpoints are ours to publish.
pub(crate) fn selector(service: &Service) -> Option<&Map> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    spec.selector.as_ref().filter(|s| !s.is_empty())
}

/// Whether labels satisfy a Service's selector.
pub(crate) fn selects(selector: &Map, labels: &Map) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// The pod's addresses.
pub(crate) fn pod_ips(pod: &Pod) -> impl Iterator<Item = IpAddr> + '_ {
    let status = pod.status.as_ref();
    let list = status.and_then(|s| s.pod_ips.as_deref()).unwrap_or_default();
    let single = status.and_then(|s| s.pod_ip.as_deref()).filter(|_| list.is_empty());
    list.iter().map(|ip| ip.ip.as_str()).chain(single).filter_map(|ip| ip.parse().ok())
}

/// Whether the Service has no virtual address.
pub(crate) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

/// Whether unready pods are published as if they were ready.
pub(crate) fn publishes_unready(service: &Service) -> bool {
    let spec = service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses);
    spec == Some(true)
        || service.metadata.annotations.as_ref().and_then(|a| a.get(TOLERATE_UNREADY)).is_some_and(|v| v == "true")
}

const TOLERATE_UNREADY: &str = "service.alpha.kubernetes.io/tolerate-unready-endpoints";

/// The pod's own name within the Service's domain, if it has one.
pub(crate) fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec.hostname.clone().filter(|h| !h.is_empty())?;
    let same = spec.subdomain == service.metadata.name && pod.metadata.namespace == service.metadata.namespace;
    same.then_some(hostname)
}

/// The number of a Service's port on one pod; none if the pod has no port of that name.
pub(crate) fn target_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) if name.is_empty() => Some(port.port),
        Some(IntOrString::String(name)) => named_port(pod, name, port.protocol.as_deref().unwrap_or("TCP")),
    }
}

fn named_port(pod: &Pod, name: &str, protocol: &str) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    let sidecar = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.init_containers.iter().flatten().filter(sidecar);
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten())
        .find(|p| p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol)
        .map(|p| p.container_port)
}
