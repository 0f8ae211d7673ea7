//! The downward API: what a pod may learn about itself.

use std::collections::BTreeMap;

use bosun_api::quantity::{self, Quantity};
use k8s_openapi::api::core::v1::{ObjectFieldSelector, Pod, ResourceFieldSelector};

use super::Node;
use crate::pod::spec;

/// The value at a field path such as `metadata.name` or `metadata.labels['app']`. `pod_ips` are those of its sandbox.
///
/// # Errors
/// The field is none that a pod may ask for, in words.
pub fn field(pod: &Pod, node: &Node, pod_ips: &[String], selector: &ObjectFieldSelector) -> Result<String, String> {
    let path = selector.field_path.as_str();
    let of_map = |map: &Option<BTreeMap<String, String>>, key: &str| {
        map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default()
    };
    if let Some((map, key)) = subscript(path) {
        return match map {
            "metadata.labels" => Ok(of_map(&pod.metadata.labels, key)),
            "metadata.annotations" => Ok(of_map(&pod.metadata.annotations, key)),
            _ => Err(format!("field label does not support subscript: {path}")),
        };
    }
    let first = |list: &[String]| list.first().cloned().unwrap_or_default();
    Ok(match path {
        "metadata.name" => spec::name(pod).to_owned(),
        "metadata.namespace" => spec::namespace(pod).to_owned(),
        "metadata.uid" => spec::uid(pod).to_owned(),
        "metadata.labels" => lines(&pod.metadata.labels),
        "metadata.annotations" => lines(&pod.metadata.annotations),
        "spec.nodeName" => node.name.clone(),
        "spec.serviceAccountName" => spec::spec(pod).service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => first(&node.ips),
        "status.hostIPs" => node.ips.join(","),
        "status.podIP" => first(pod_ips),
        "status.podIPs" => pod_ips.join(","),
        other => return Err(format!("field label not supported: {other}")),
    })
}

/// The value of a container's resource, in units of the divisor, rounded up.
///
/// # Errors
/// The container or the resource is unknown, in words.
pub fn resource(pod: &Pod, node: &Node, container: &str, selector: &ResourceFieldSelector) -> Result<String, String> {
    let name = selector.container_name.as_deref().filter(|n| !n.is_empty()).unwrap_or(container);
    let (_, container) = spec::container(pod, name).ok_or_else(|| format!("container {name} not found"))?;
    let (kind, resource) = selector
        .resource
        .split_once('.')
        .ok_or_else(|| format!("unsupported container resource : {}", selector.resource))?;
    let resources = container.resources.as_ref();
    let amount = match kind {
        // Without a limit of its own the container has the pod's (KEP-2837).
        "limits" => match quantity::get(resources.and_then(|r| r.limits.as_ref()), resource) {
            own if own.is_zero() => {
                quantity::get(spec::spec(pod).resources.as_ref().and_then(|r| r.limits.as_ref()), resource)
            }
            own => own,
        },
        "requests" => bosun_api::pod::container_requests(&container).remove(resource).unwrap_or_default(),
        _ => return Err(format!("unsupported container resource : {}", selector.resource)),
    };
    let amount = match (amount.is_zero() && kind == "limits", resource) {
        // Without a limit the node is the limit.
        (true, "cpu") => Quantity::from_milli(node.cpu_capacity),
        (true, "memory") => Quantity::from_value(node.memory_capacity),
        _ => amount,
    };
    let divisor =
        selector.divisor.as_ref().map(quantity::of).filter(|d| !d.is_zero()).unwrap_or(Quantity::from_value(1));
    let (amount, divisor) = match resource {
        "cpu" => (amount.milli_value(), divisor.milli_value()),
        _ => (amount.value(), divisor.value()),
    };
    Ok(amount.div_euclid(divisor.max(1)).saturating_add(i64::from(amount.rem_euclid(divisor.max(1)) > 0)).to_string())
}

/// `map['key']` as its two parts.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// A map as lines of `key="escaped value"`, sorted by key.
fn lines(map: &Option<BTreeMap<String, String>>) -> String {
    let line = |(key, value): (&String, &String)| format!("{key}={value:?}");
    map.iter().flatten().map(line).collect::<Vec<_>>().join("\n")
}
