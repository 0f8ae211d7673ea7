//! What a driver says of the node, in the Node object (its id of the node, labels of topology) and the CSINode object
//! (id, topology keys, how many volumes fit). The changes are plain functions of the objects as they are.

use std::collections::BTreeMap;

use bosun_proto::csi::NodeGetInfoResponse;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};

use crate::cluster::{Cluster, Written};

/// The annotation with each driver's id of the node.
pub const NODE_ID: &str = "csi.volume.kubernetes.io/nodeid";
/// How often a change that somebody else got ahead of is made anew.
const TRIES: u32 = 8;

/// Shows a driver in both objects.
///
/// # Errors
/// What the driver says contradicts the Node's labels, or the API server refuses.
pub async fn install(cluster: &dyn Cluster, driver: &str, info: &NodeGetInfoResponse) -> Result<(), String> {
    if info.node_id.is_empty() {
        return Err(format!("error adding CSI driver node info: driver {driver} gave an empty node id"));
    }
    change_node(cluster, |node| with_driver(node, driver, info)).await?;
    change_csi_node(cluster, |node, known| csi_node_with(node, known, driver, info)).await
}

/// Shows in the CSINode what a driver says now.
///
/// # Errors
/// The API server refuses.
pub async fn update(cluster: &dyn Cluster, driver: &str, info: &NodeGetInfoResponse) -> Result<(), String> {
    change_csi_node(cluster, |node, known| csi_node_with(node, known, driver, info)).await
}

/// Takes a driver out of both objects; labels stay, as in stock.
///
/// # Errors
/// The API server refuses.
pub async fn uninstall(cluster: &dyn Cluster, driver: &str) -> Result<(), String> {
    change_csi_node(cluster, |_, known| csi_node_without(known?, driver)).await?;
    change_node(cluster, |node| Ok(without_driver(node, driver))).await
}

/// Makes the CSINode object if there is none, so that the scheduler knows that no driver is there yet.
///
/// # Errors
/// The API server refuses, or there is no Node object yet.
pub async fn ensure(cluster: &dyn Cluster) -> Result<(), String> {
    change_csi_node(cluster, |node, known| known.is_none().then(|| empty(node))).await
}

async fn change_node(
    cluster: &dyn Cluster,
    change: impl Fn(&Node) -> Result<Option<Value>, String>,
) -> Result<(), String> {
    for _ in 0..TRIES {
        let Some(node) = cluster.node().await? else { return Ok(()) };
        let Some(patch) = change(&node)? else { return Ok(()) };
        if let Written::Done = cluster.patch_node(&patch).await? {
            return Ok(());
        }
    }
    Err("the Node object changes faster than it can be written".to_owned())
}

async fn change_csi_node(
    cluster: &dyn Cluster,
    change: impl Fn(&Node, Option<CSINode>) -> Option<CSINode>,
) -> Result<(), String> {
    for _ in 0..TRIES {
        let Some(node) = cluster.node().await? else { return Ok(()) };
        let Some(wanted) = change(&node, cluster.csi_node().await?) else { return Ok(()) };
        if let Written::Done = cluster.write_csi_node(&wanted).await? {
            return Ok(());
        }
    }
    Err("the CSINode object changes faster than it can be written".to_owned())
}

/// The patch that tells of a driver in the Node; none if it does already.
///
/// # Errors
/// A label of topology is there with another value.
pub fn with_driver(node: &Node, driver: &str, info: &NodeGetInfoResponse) -> Result<Option<Value>, String> {
    let none = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&none);
    let mut new = BTreeMap::new();
    for (key, value) in info.accessible_topology.iter().flat_map(|topology| &topology.segments) {
        match labels.get(key) {
            Some(known) if known == value => {}
            Some(known) => {
                return Err(format!(
                    "detected topology value collision: driver reported {key:?}:{value:?} but existing label is {key:?}:{known:?}"
                ));
            }
            None => drop(new.insert(key.clone(), value.clone())),
        }
    }
    let mut ids = node_ids(node);
    let changed = ids.insert(driver.to_owned(), info.node_id.clone()).as_ref() != Some(&info.node_id);
    if !changed && new.is_empty() {
        return Ok(None);
    }
    Ok(Some(patch(node, json!({"labels": new, "annotations": {NODE_ID: shown(&ids)}}))))
}

/// The patch that takes a driver out of the Node; none if it is not there.
pub fn without_driver(node: &Node, driver: &str) -> Option<Value> {
    let mut ids = node_ids(node);
    ids.remove(driver)?;
    let ids = if ids.is_empty() { Value::Null } else { Value::String(shown(&ids)) };
    Some(patch(node, json!({"annotations": {NODE_ID: ids}})))
}

fn patch(node: &Node, mut metadata: Value) -> Value {
    metadata["resourceVersion"] = json!(node.metadata.resource_version);
    json!({"metadata": metadata})
}

fn node_ids(node: &Node) -> BTreeMap<String, String> {
    let text = node.metadata.annotations.as_ref().and_then(|all| all.get(NODE_ID));
    text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

fn shown(ids: &BTreeMap<String, String>) -> String {
    serde_json::to_string(ids).unwrap_or_default()
}

fn empty(node: &Node) -> CSINode {
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node.metadata.name.clone().unwrap_or_default(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        ..OwnerReference::default()
    };
    CSINode {
        metadata: ObjectMeta {
            name: node.metadata.name.clone(),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: CSINodeSpec { drivers: Vec::new() },
    }
}

/// The CSINode with a driver in it; none if it is so already.
pub fn csi_node_with(node: &Node, known: Option<CSINode>, driver: &str, info: &NodeGetInfoResponse) -> Option<CSINode> {
    let wanted = CSINodeDriver {
        name: driver.to_owned(),
        node_id: info.node_id.clone(),
        topology_keys: info.accessible_topology.as_ref().map(|topology| topology.segments.keys().cloned().collect()),
        // No limit is no entry.
        allocatable: (info.max_volumes_per_node > 0)
            .then(|| VolumeNodeResources { count: Some(i32::try_from(info.max_volumes_per_node).unwrap_or(i32::MAX)) }),
    };
    let mut object = known.unwrap_or_else(|| empty(node));
    let drivers = &mut object.spec.drivers;
    match drivers.iter_mut().find(|known| known.name == driver) {
        Some(known) if same(known, &wanted) => return None,
        Some(known) => *known = wanted,
        None => drivers.push(wanted),
    }
    Some(object)
}

/// No keys are the same as an empty list of them.
fn same(known: &CSINodeDriver, wanted: &CSINodeDriver) -> bool {
    let keys = |driver: &CSINodeDriver| driver.topology_keys.clone().unwrap_or_default();
    known.node_id == wanted.node_id && known.allocatable == wanted.allocatable && keys(known) == keys(wanted)
}

/// The CSINode without a driver; none if it is not there.
pub fn csi_node_without(mut known: CSINode, driver: &str) -> Option<CSINode> {
    let before = known.spec.drivers.len();
    known.spec.drivers.retain(|known| known.name != driver);
    (known.spec.drivers.len() < before).then_some(known)
}

#[cfg(test)]
mod tests {
    use bosun_proto::csi::Topology;

    use super::*;

    fn info(id: &str, zone: &str, max: i64) -> NodeGetInfoResponse {
        let segments = [("topology.d/zone".to_owned(), zone.to_owned())].into();
        NodeGetInfoResponse {
            node_id: id.into(),
            max_volumes_per_node: max,
            accessible_topology: Some(Topology { segments }),
        }
    }

    fn node(metadata: Value) -> Node {
        serde_json::from_value(json!({"metadata": metadata})).unwrap()
    }

    #[test]
    fn the_node_is_told_once_and_contradiction_is_refused() {
        let fresh = node(json!({"name": "n", "resourceVersion": "5"}));
        let golden = r#"{"metadata":{"annotations":{"csi.volume.kubernetes.io/nodeid":"{\"d\":\"i-1\"}"},"labels":{"topology.d/zone":"a"},"resourceVersion":"5"}}"#;
        assert_eq!(with_driver(&fresh, "d", &info("i-1", "a", 0)).unwrap().unwrap().to_string(), golden);
        let told = node(json!({"name": "n", "labels": {"topology.d/zone": "a"},
            "annotations": {NODE_ID: r#"{"d":"i-1","e":"x"}"#}}));
        assert_eq!(with_driver(&told, "d", &info("i-1", "a", 0)).unwrap(), None);
        let error = with_driver(&told, "d", &info("i-1", "b", 0)).unwrap_err();
        let golden = r#"detected topology value collision: driver reported "topology.d/zone":"b" but existing label is "topology.d/zone":"a""#;
        assert_eq!(error, golden);
        let patch = without_driver(&told, "d").unwrap();
        assert_eq!(patch["metadata"]["annotations"][NODE_ID], r#"{"e":"x"}"#);
        assert_eq!(without_driver(&told, "other"), None);
        let alone = node(json!({"annotations": {NODE_ID: r#"{"d":"i-1"}"#}}));
        assert!(without_driver(&alone, "d").unwrap()["metadata"]["annotations"][NODE_ID].is_null());
    }

    #[test]
    fn the_csi_node_has_each_driver_once_with_its_limit() {
        let node = node(json!({"name": "n", "uid": "u"}));
        let made = csi_node_with(&node, None, "d", &info("i-1", "a", 20)).unwrap();
        let golden = r#"{"apiVersion":"storage.k8s.io/v1","kind":"CSINode","metadata":{"name":"n","ownerReferences":[{"apiVersion":"v1","kind":"Node","name":"n","uid":"u"}]},"spec":{"drivers":[{"allocatable":{"count":20},"name":"d","nodeID":"i-1","topologyKeys":["topology.d/zone"]}]}}"#;
        assert_eq!(serde_json::to_value(&made).unwrap().to_string(), golden);
        assert_eq!(csi_node_with(&node, Some(made.clone()), "d", &info("i-1", "a", 20)), None);
        let changed = csi_node_with(&node, Some(made.clone()), "d", &info("i-1", "a", 0)).unwrap();
        assert_eq!((changed.spec.drivers.len(), &changed.spec.drivers[0].allocatable), (1, &None));
        let two = csi_node_with(&node, Some(made), "e", &info("i-2", "a", i64::MAX)).unwrap();
        assert_eq!(two.spec.drivers[1].allocatable.as_ref().unwrap().count, Some(i32::MAX));
        let one = csi_node_without(two, "d").unwrap();
        assert_eq!(one.spec.drivers[0].name, "e");
        assert_eq!(csi_node_without(one, "d"), None);
    }
}
