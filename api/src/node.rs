//! What a Node says about itself.

use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint, Toleration};

/// The condition of a type.
#[must_use]
pub fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

/// Whether the node says that it is ready.
#[must_use]
pub fn is_ready(node: &Node) -> bool {
    condition(node, "Ready").is_some_and(|condition| condition.status == "True")
}

/// The first address of a type (`InternalIP`, `ExternalIP`, `Hostname`).
#[must_use]
pub fn address<'a>(node: &'a Node, kind: &str) -> Option<&'a str> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    addresses.iter().find(|address| address.type_ == kind).map(|address| address.address.as_str())
}

/// The address by which others in the cluster reach the node.
#[must_use]
pub fn internal_ip(node: &Node) -> Option<&str> {
    address(node, "InternalIP")
}

/// The pod networks of the node, the main one first.
#[must_use]
pub fn pod_cidrs(node: &Node) -> Vec<&str> {
    let Some(spec) = &node.spec else {
        return Vec::new();
    };
    match spec.pod_cidrs.as_deref() {
        Some(all @ [_, ..]) => all.iter().map(String::as_str).collect(),
        _ => spec.pod_cidr.as_deref().into_iter().filter(|cidr| !cidr.is_empty()).collect(),
    }
}

/// Whether no new pods should come.
#[must_use]
pub fn is_unschedulable(node: &Node) -> bool {
    node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false)
}

/// The port on which the node's kubelet answers.
#[must_use]
pub fn kubelet_port(node: &Node) -> u16 {
    let endpoint = node.status.as_ref().and_then(|status| status.daemon_endpoints.as_ref());
    let port = endpoint.and_then(|endpoints| endpoints.kubelet_endpoint.as_ref()).map(|endpoint| endpoint.port);
    port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0).unwrap_or(10_250)
}

/// The node's taints.
#[must_use]
pub fn taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

/// Whether a toleration covers a taint.
#[must_use]
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let effect = text(&toleration.effect);
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    let key = text(&toleration.key);
    if !key.is_empty() && key != taint.key {
        return false;
    }
    let (wanted, value) = (text(&toleration.value), text(&taint.value));
    match toleration.operator.as_deref() {
        None | Some("" | "Equal") => wanted == value,
        Some("Exists") => true,
        Some(operator @ ("Lt" | "Gt")) => match (value.parse::<i64>(), wanted.parse::<i64>()) {
            (Ok(value), Ok(bound)) => {
                if operator == "Lt" {
                    value < bound
                } else {
                    value > bound
                }
            }
            _ => false,
        },
        Some(_) => false,
    }
}

/// The first taint of the given effects that no toleration covers.
#[must_use]
pub fn untolerated<'a>(taints: &'a [Taint], tolerations: &[Toleration], effects: &[&str]) -> Option<&'a Taint> {
    taints
        .iter()
        .filter(|taint| effects.contains(&taint.effect.as_str()))
        .find(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_addresses_and_conditions() {
        let node: Node = serde_json::from_value(json!({
            "spec": {"podCIDR": "10.0.0.0/24", "unschedulable": true},
            "status": {
                "addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "10.1.1.1"}],
                "conditions": [{"type": "Ready", "status": "True"}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 10251}},
            }
        }))
        .unwrap();
        assert_eq!(internal_ip(&node), Some("10.1.1.1"));
        assert!(is_ready(&node) && is_unschedulable(&node));
        assert_eq!(pod_cidrs(&node), ["10.0.0.0/24"]);
        assert_eq!(kubelet_port(&node), 10251);
        assert_eq!(kubelet_port(&Node::default()), 10250);
    }

    #[test]
    fn tolerations_cover_taints() {
        let taint = |key: &str, value: &str| Taint {
            key: key.into(),
            value: Some(value.into()),
            effect: "NoSchedule".into(),
            time_added: None,
        };
        let toleration = |value| serde_json::from_value::<Toleration>(value).unwrap();
        assert!(tolerates(&toleration(json!({"operator": "Exists"})), &taint("a", "b")));
        assert!(tolerates(&toleration(json!({"key": "a", "value": "b"})), &taint("a", "b")));
        assert!(!tolerates(&toleration(json!({"key": "a", "value": "c"})), &taint("a", "b")));
        assert!(!tolerates(
            &toleration(json!({"key": "a", "operator": "Exists", "effect": "NoExecute"})),
            &taint("a", "")
        ));
        let taints = [taint("a", "b")];
        assert!(untolerated(&taints, &[], &["NoSchedule"]).is_some());
        assert!(untolerated(&taints, &[], &["NoExecute"]).is_none());
    }
}
