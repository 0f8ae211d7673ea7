//! NodeRestriction: what a node may write of itself and of its pods, and that it may write nothing else.

use bosun_api::status::ApiError;
use serde_json::Value;

use crate::admission::Operation;
use crate::authorize::in_group;
use crate::call::Call;
use crate::strategy::Part;

const NODES: &str = "system:nodes";
const PREFIX: &str = "system:node:";
/// Labels of the node itself that its kubelet may set; other `kubernetes.io` and `k8s.io` ones are the administrator's.
const OWN_LABELS: &[&str] = &[
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
const OWN_PREFIXES: &[&str] = &["kubelet.kubernetes.io", "node.kubernetes.io"];
const MIRROR: &str = "kubernetes.io/config.mirror";

type Get<'a> = &'a dyn Fn(&str, &str, &str, &str) -> Option<std::sync::Arc<Value>>;

/// # Errors
/// 403 for a write by a node that is not about itself.
pub(crate) fn admit(
    call: &Call,
    operation: Operation,
    value: &Value,
    old: Option<&Value>,
    get: Get<'_>,
) -> Result<(), ApiError> {
    if !in_group(&call.user, NODES) {
        return Ok(());
    }
    let user = call.user.username.as_deref().unwrap_or_default();
    let Some(node) = user.strip_prefix(PREFIX).filter(|node| !node.is_empty()) else {
        return Err(call.forbidden("could not determine node from user"));
    };
    let refusal = match (call.resource.group, call.resource.plural, call.info.subresource.as_str()) {
        ("", "pods", sub) => pod(call, operation, sub, value, node, get),
        ("", "nodes", _) => own_node(operation, value, old, node),
        ("", "serviceaccounts", "token") => None,
        ("coordination.k8s.io", "leases", _) => lease(call, value, node),
        ("storage.k8s.io", "csinodes", _) => named(value, node).then_some(()).map_or_else(
            || Some("can only access CSINode with the same name as the requesting node".to_owned()),
            |()| None,
        ),
        _ => None,
    };
    refusal.map_or(Ok(()), |why| Err(call.forbidden(&why)))
}

fn named(value: &Value, node: &str) -> bool {
    value["metadata"]["name"].as_str() == Some(node)
}

fn pod(call: &Call, operation: Operation, sub: &str, value: &Value, node: &str, get: Get<'_>) -> Option<String> {
    match (operation, sub) {
        (Operation::Create, "") => mirror_pod(value, node, get),
        (Operation::Delete, _) if value["spec"]["nodeName"].as_str() != Some(node) => {
            Some(format!("node {node:?} can only delete pods with spec.nodeName set to itself"))
        }
        (Operation::Update(Part::Status), _) if value["spec"]["nodeName"].as_str() != Some(node) => {
            Some(format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself"))
        }
        (Operation::Delete | Operation::Update(Part::Status), _) => None,
        _ => Some(format!("unexpected operation {:?}", call.info.verb.to_ascii_uppercase())),
    }
}

/// The only pods that a node makes are the shadows of its static pods; they can use nothing of the API.
fn mirror_pod(value: &Value, node: &str, get: Get<'_>) -> Option<String> {
    let metadata = &value["metadata"];
    if metadata["annotations"].get(MIRROR).is_none() {
        return Some(format!("pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"));
    }
    let spec = &value["spec"];
    if spec["nodeName"].as_str() != Some(node) {
        return Some(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    let owners = metadata["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default();
    let owned_by_node = |owner: &Value| {
        let uid = get("", "nodes", "", node).map(|n| n["metadata"]["uid"].clone());
        owner["apiVersion"] == "v1"
            && owner["kind"] == "Node"
            && owner["name"].as_str() == Some(node)
            && owner["controller"] == true
            && !owner["blockOwnerDeletion"].as_bool().unwrap_or(false)
            && uid.is_some_and(|uid| uid == owner["uid"])
    };
    match owners {
        [] => {}
        [owner] if owned_by_node(owner) => {}
        _ => return Some(format!("node {node:?} can only create pods with an owner reference set to itself")),
    }
    if spec["serviceAccountName"].as_str().is_some_and(|name| !name.is_empty()) {
        return Some(format!("node {node:?} can not create pods that reference a service account"));
    }
    let mut volumes = spec["volumes"].as_array().into_iter().flatten();
    let refers = |volume: &Value| {
        ["secret", "configMap", "persistentVolumeClaim"].iter().any(|kind| volume.get(*kind).is_some())
            || volume["projected"]["sources"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|s| ["secret", "configMap", "serviceAccountToken"].iter().any(|kind| s.get(*kind).is_some()))
    };
    volumes.any(refers).then(|| format!("node {node:?} can not create pods that reference API objects"))
}

fn own_node(operation: Operation, value: &Value, old: Option<&Value>, node: &str) -> Option<String> {
    if !named(value, node) {
        return Some(format!(
            "node {node:?} is not allowed to modify node {:?}",
            value["metadata"]["name"].as_str().unwrap_or_default()
        ));
    }
    if !value["spec"]["configSource"].is_null() {
        return Some(format!("node {node:?} is not allowed to set configSource"));
    }
    if operation == Operation::Update(Part::Main)
        && let Some(old) = old
    {
        if old["spec"]["taints"] != value["spec"]["taints"] {
            return Some(format!("node {node:?} is not allowed to modify taints"));
        }
        if old["metadata"]["ownerReferences"] != value["metadata"]["ownerReferences"] {
            return Some(format!("node {node:?} is not allowed to update its ownerReferences"));
        }
    }
    let none = Value::Null;
    let before = old.map_or(&none, |old| &old["metadata"]["labels"]);
    let mut refused: Vec<&str> = changed_labels(before, &value["metadata"]["labels"]).filter(|l| !may_set(l)).collect();
    refused.sort_unstable();
    (!refused.is_empty()).then(|| format!("is not allowed to modify labels: {}", refused.join(", ")))
}

fn changed_labels<'a>(before: &'a Value, after: &'a Value) -> impl Iterator<Item = &'a str> {
    let gone = before.as_object().into_iter().flatten().filter(move |(key, _)| after.get(key.as_str()).is_none());
    let new =
        after.as_object().into_iter().flatten().filter(move |(key, value)| before.get(key.as_str()) != Some(*value));
    gone.chain(new).map(|(key, _)| key.as_str())
}

fn may_set(label: &str) -> bool {
    let Some((domain, _)) = label.split_once('/') else { return true };
    let within = |parent: &str| domain == parent || domain.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'));
    if within("node-restriction.kubernetes.io") {
        return false;
    }
    if !within("kubernetes.io") && !within("k8s.io") {
        return true;
    }
    OWN_LABELS.contains(&label) || OWN_PREFIXES.iter().any(|prefix| within(prefix))
}

fn lease(call: &Call, value: &Value, node: &str) -> Option<String> {
    if call.info.namespace != "kube-node-lease" {
        return Some("can only access leases in the \"kube-node-lease\" system namespace".to_owned());
    }
    (!named(value, node)).then(|| "can only access node lease with the same name as the requesting node".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_a_kubelet_may_set() {
        for good in
            ["a", "example.com/a", "kubernetes.io/hostname", "node.kubernetes.io/x", "x.kubelet.kubernetes.io/y"]
        {
            assert!(may_set(good), "{good}");
        }
        for bad in ["node-restriction.kubernetes.io/a", "node-role.kubernetes.io/control-plane", "foo.k8s.io/a"] {
            assert!(!may_set(bad), "{bad}");
        }
    }
}
