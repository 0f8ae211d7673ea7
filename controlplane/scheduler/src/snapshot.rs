//! What the scheduler knows of the cluster: nodes with what runs on them, as decisions see it.
//!
//! A [`Snapshot`] is mutated by watch events and by assumed placements, and read by plug-ins.
//! One task owns it, so a decision never sees it change.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bosun_api::scheduling::{HostPort, host_ports};
use k8s_openapi::api::core::v1::{Affinity, Node, Pod};
use k8s_openapi::jiff::Timestamp;

use crate::resources::{PodResources, Resources, of_pod};

/// Labels of any object.
pub type Labels = BTreeMap<String, String>;

/// The part of a placed pod that decisions need.
#[derive(Clone, Debug, Default)]
pub struct PodInfo {
    /// The pod's uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// Uid of its controller, if it has one.
    pub controller: Option<String>,
    /// What it takes.
    pub resources: PodResources,
    /// Host ports it holds.
    pub ports: Vec<HostPort>,
    /// Pod affinity and anti-affinity, if it states any.
    pub affinity: Option<Box<Affinity>>,
    /// Its priority.
    pub priority: i32,
    /// When it started, for the choice of victims.
    pub started: Option<Timestamp>,
    /// Whether it is being deleted.
    pub terminating: bool,
}

impl PodInfo {
    /// Reads a pod.
    pub fn new(pod: &Pod) -> Self {
        let meta = &pod.metadata;
        let spec = pod.spec.as_ref();
        let affinity = spec
            .and_then(|s| s.affinity.as_ref())
            .filter(|a| a.pod_affinity.is_some() || a.pod_anti_affinity.is_some())
            .map(|a| Box::new(Affinity { node_affinity: None, ..a.clone() }));
        Self {
            uid: meta.uid.clone().unwrap_or_default(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            labels: meta.labels.clone().unwrap_or_default(),
            controller: controller_uid(pod).map(str::to_owned),
            resources: of_pod(pod),
            ports: host_ports(pod),
            affinity,
            priority: spec.and_then(|s| s.priority).unwrap_or_default(),
            started: pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0),
            terminating: meta.deletion_timestamp.is_some(),
        }
    }
}

/// Uid of the pod's controller.
pub fn controller_uid(pod: &Pod) -> Option<&str> {
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    owners.iter().find(|o| o.controller == Some(true)).map(|o| o.uid.as_str())
}

/// A node and what is placed on it.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    /// The node's name.
    pub name: String,
    /// The object; absent while only pods that name it are known.
    pub node: Option<Arc<Node>>,
    /// What it offers.
    pub allocatable: Resources,
    /// How many pods it takes.
    pub allocatable_pods: i64,
    /// Sum of the effective requests.
    pub requested: Resources,
    /// Sum of what pods are scored with.
    pub scored: Resources,
    /// Pods on it, placed or assumed.
    pub pods: Vec<Arc<PodInfo>>,
}

impl NodeInfo {
    fn empty(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            node: None,
            allocatable: Resources::default(),
            allocatable_pods: 0,
            requested: Resources::default(),
            scored: Resources::default(),
            pods: Vec::new(),
        }
    }

    /// The node's object.
    ///
    /// Decisions only visit nodes whose object is known.
    pub fn object(&self) -> &Node {
        self.node.as_deref().expect("only known nodes are visited")
    }

    /// A label of the node.
    pub fn label(&self, key: &str) -> Option<&str> {
        let labels = self.node.as_ref()?.metadata.labels.as_ref()?;
        labels.get(key).map(String::as_str)
    }

    fn set_node(&mut self, node: Arc<Node>) {
        let offered = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
        self.allocatable = offered.map(Resources::from_list).unwrap_or_default();
        self.allocatable_pods = offered
            .and_then(|list| list.get("pods"))
            .and_then(|q| q.0.parse::<bosun_api::quantity::Quantity>().ok())
            .map(|q| q.value())
            .unwrap_or_default();
        self.node = Some(node);
    }

    pub(crate) fn add_pod(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.resources.request);
        self.scored.add(&pod.resources.scored);
        self.pods.push(pod);
    }

    pub(crate) fn remove_pod(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let index = self.pods.iter().position(|p| p.uid == uid)?;
        let pod = self.pods.swap_remove(index);
        self.requested.subtract(&pod.resources.request);
        self.scored.subtract(&pod.resources.scored);
        Some(pod)
    }
}

/// The cluster as the scheduler sees it.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    nodes: BTreeMap<String, Arc<NodeInfo>>,
    placed: HashMap<String, String>,
    /// Labels of each namespace, for affinity terms that select namespaces.
    pub namespaces: BTreeMap<String, Labels>,
}

impl Snapshot {
    /// Nodes whose object is known, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<NodeInfo>> {
        self.nodes.values().filter(|n| n.node.is_some())
    }

    /// One node.
    pub fn node(&self, name: &str) -> Option<&Arc<NodeInfo>> {
        self.nodes.get(name).filter(|n| n.node.is_some())
    }

    /// Number of nodes whose object is known.
    pub fn node_count(&self) -> usize {
        self.nodes().count()
    }

    /// Adds or replaces a node's object.
    pub fn set_node(&mut self, node: Arc<Node>) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let entry = self.nodes.entry(name.clone()).or_insert_with(|| Arc::new(NodeInfo::empty(&name)));
        Arc::make_mut(entry).set_node(node);
    }

    /// Forgets a node's object; its pods stay until their own deletion arrives.
    pub fn remove_node(&mut self, name: &str) {
        let Some(entry) = self.nodes.get_mut(name) else {
            return;
        };
        if entry.pods.is_empty() {
            self.nodes.remove(name);
        } else {
            Arc::make_mut(entry).node = None;
        }
    }

    /// Places a pod on a node, or replaces what was known of it.
    pub fn set_pod(&mut self, node: &str, pod: PodInfo) {
        self.remove_pod(&pod.uid);
        self.placed.insert(pod.uid.clone(), node.to_owned());
        let entry = self.nodes.entry(node.to_owned()).or_insert_with(|| Arc::new(NodeInfo::empty(node)));
        Arc::make_mut(entry).add_pod(Arc::new(pod));
    }

    /// Takes a pod off its node; answers whether it was there.
    pub fn remove_pod(&mut self, uid: &str) -> bool {
        let Some(node) = self.placed.remove(uid) else {
            return false;
        };
        let Some(entry) = self.nodes.get_mut(&node) else {
            return false;
        };
        let info = Arc::make_mut(entry);
        info.remove_pod(uid);
        if info.node.is_none() && info.pods.is_empty() {
            self.nodes.remove(&node);
        }
        true
    }

    /// Uids of all placed pods.
    pub fn placed(&self) -> impl Iterator<Item = &String> {
        self.placed.keys()
    }

    /// The node that a pod is placed on.
    pub fn placement(&self, uid: &str) -> Option<&str> {
        self.placed.get(uid).map(String::as_str)
    }

    /// A copy in which one node is changed, for trying out preemption.
    pub(crate) fn with_node(&self, info: NodeInfo) -> Self {
        let mut copy = self.clone();
        copy.nodes.insert(info.name.clone(), Arc::new(info));
        copy
    }
}
