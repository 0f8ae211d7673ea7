//! The Node object: how it is first made, and how one that is there already is brought in line. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus, Taint};
use serde_json::{Map, Value, json};

use crate::config::NodeConfig;
use crate::machine::architecture;

const ATTACH_DETACH: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
const HOSTNAME: &str = "kubernetes.io/hostname";
const OS: [&str; 2] = ["kubernetes.io/os", "beta.kubernetes.io/os"];
const ARCH: [&str; 2] = ["kubernetes.io/arch", "beta.kubernetes.io/arch"];

/// The labels that the kubelet sets, and those it was told to.
pub fn labels(config: &NodeConfig) -> BTreeMap<String, String> {
    let os = OS.map(|label| (label.to_owned(), "linux".to_owned()));
    let arch = ARCH.map(|label| (label.to_owned(), architecture().to_owned()));
    let mut labels: BTreeMap<String, String> = os.into_iter().chain(arch).collect();
    labels.insert(HOSTNAME.to_owned(), config.hostname.clone());
    labels.extend(config.labels.clone());
    labels
}

/// The Node as it is first made. The `not-ready` taint is the API server's to add.
pub fn initial_node(config: &NodeConfig, status: NodeStatus) -> Node {
    let mut taints = config.taints.clone();
    let key = "node.kubernetes.io/unschedulable";
    if config.unschedulable && !taints.iter().any(|taint| taint.key == key && taint.effect == "NoSchedule") {
        taints.push(Taint { key: key.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() });
    }
    let mut node = Node {
        spec: Some(NodeSpec {
            provider_id: config.provider_id.clone(),
            taints: Some(taints).filter(|t| !t.is_empty()),
            unschedulable: config.unschedulable.then_some(true),
            ..NodeSpec::default()
        }),
        status: Some(status),
        ..Node::default()
    };
    node.metadata.name = Some(config.name.clone());
    node.metadata.labels = Some(labels(config));
    if config.controller_attach_detach {
        node.metadata.annotations = Some([(ATTACH_DETACH.to_owned(), "true".to_owned())].into());
    }
    node
}

/// The patch that brings a Node made earlier in line: the default labels (those of the configuration are set at the
/// first registration only, as people change them later) and the attach-detach annotation. `None` when it is.
pub fn reconcile(config: &NodeConfig, existing: &Node) -> Option<Value> {
    let wanted = labels(config);
    let has = existing.metadata.labels.clone().unwrap_or_default();
    let labels: Map<String, Value> = [HOSTNAME, OS[0], OS[1], ARCH[0], ARCH[1]]
        .into_iter()
        .filter(|label| wanted.get(*label) != has.get(*label))
        .filter_map(|label| Some((label.to_owned(), json!(wanted.get(label)?))))
        .collect();
    let annotation = existing.metadata.annotations.as_ref().and_then(|a| a.get(ATTACH_DETACH));
    let annotations = match (config.controller_attach_detach, annotation.map(String::as_str)) {
        (true, Some("true")) | (false, None) => Map::new(),
        (true, _) => Map::from_iter([(ATTACH_DETACH.to_owned(), json!("true"))]),
        (false, Some(_)) => Map::from_iter([(ATTACH_DETACH.to_owned(), Value::Null)]),
    };
    if labels.is_empty() && annotations.is_empty() {
        return None;
    }
    Some(json!({"metadata": {"labels": labels, "annotations": annotations}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> NodeConfig {
        let mut config = NodeConfig::new("node-1");
        config.labels = [("zone".to_owned(), "a".to_owned())].into();
        config
    }

    #[test]
    fn the_first_node() {
        let config = NodeConfig { unschedulable: true, ..config() };
        let node = serde_json::to_value(initial_node(&config, NodeStatus::default())).unwrap();
        let arch = architecture();
        assert_eq!(
            node["metadata"],
            json!({
                "name": "node-1",
                "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"},
                "labels": {
                    "beta.kubernetes.io/arch": arch,
                    "beta.kubernetes.io/os": "linux",
                    "kubernetes.io/arch": arch,
                    "kubernetes.io/hostname": "node-1",
                    "kubernetes.io/os": "linux",
                    "zone": "a",
                },
            })
        );
        assert_eq!(
            node["spec"],
            json!({
                "taints": [{"effect": "NoSchedule", "key": "node.kubernetes.io/unschedulable"}],
                "unschedulable": true,
            })
        );
    }

    #[test]
    fn an_older_node_gets_its_default_labels_back() {
        let mut node = initial_node(&config(), NodeStatus::default());
        assert_eq!(reconcile(&config(), &node), None);
        let labels = node.metadata.labels.as_mut().unwrap();
        labels.insert("kubernetes.io/os".to_owned(), "plan9".to_owned());
        labels.insert("zone".to_owned(), "b".to_owned());
        node.metadata.annotations = None;
        let want = json!({"metadata": {
            "labels": {"kubernetes.io/os": "linux"},
            "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"},
        }});
        assert_eq!(reconcile(&config(), &node), Some(want));
    }
}
