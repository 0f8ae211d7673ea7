//! The Node authorizer: a kubelet reads what its own pods refer to, and writes what is its own.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use serde::Deserialize as _;
use serde_json::Value;

use super::rbac::Rule;
use super::{Attributes, Decision, bootstrap};

const LEASE_NAMESPACE: &str = "kube-node-lease";

/// What every node may do: the rules of `system:node`.
static NODE_RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    let role = bootstrap::objects()
        .into_iter()
        .find(|(resource, object)| *resource == "clusterroles" && object["metadata"]["name"] == "system:node");
    role.and_then(|(_, object)| Vec::deserialize(&object["rules"]).ok()).unwrap_or_default()
});

/// The kinds of objects that pods refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Pod,
    Secret,
    ConfigMap,
    Claim,
    Account,
}

/// A kind, a namespace and a name.
type Target = (Kind, String, String);

/// Who refers to what.
#[derive(Debug, Default)]
pub(super) struct NodeAuthorizer {
    /// Of each pod what is known.
    pods: HashMap<(String, String), KnownPod>,
    /// Of each target the nodes that need it, each with the number of its pods that do.
    nodes: HashMap<Target, HashMap<String, usize>>,
    /// Of each volume the namespace and name of its claim.
    volumes: HashMap<String, (String, String)>,
    /// Of each attachment its node.
    attachments: HashMap<String, String>,
}

/// A pod on a node.
#[derive(Debug)]
struct KnownPod {
    node: String,
    /// UID and generation: while they stay, so does what the pod refers to.
    state: (String, i64),
    targets: Vec<Target>,
}

fn text<'v>(value: &'v Value, path: &[&str]) -> &'v str {
    path.iter().fold(value, |value, field| &value[*field]).as_str().unwrap_or_default()
}

fn each<'v>(value: &'v Value, field: &str) -> impl Iterator<Item = &'v Value> {
    value[field].as_array().into_iter().flatten()
}

/// What a pod's kubelet must read to run it.
fn targets(pod: &Value) -> Vec<Target> {
    let (namespace, name) = (text(pod, &["metadata", "namespace"]), text(pod, &["metadata", "name"]));
    let mut found: HashSet<Target> = HashSet::new();
    found.insert((Kind::Pod, namespace.to_owned(), name.to_owned()));
    // A mirror pod cannot refer to anything.
    if pod["metadata"]["annotations"].get("kubernetes.io/config.mirror").is_none() {
        let mut add = |kind, name: &str| {
            if !name.is_empty() {
                found.insert((kind, namespace.to_owned(), name.to_owned()));
            }
        };
        let spec = &pod["spec"];
        add(Kind::Account, text(spec, &["serviceAccountName"]));
        for secret in each(spec, "imagePullSecrets") {
            add(Kind::Secret, text(secret, &["name"]));
        }
        for list in ["containers", "initContainers", "ephemeralContainers"] {
            for container in each(spec, list) {
                container_targets(container, &mut add);
            }
        }
        for volume in each(spec, "volumes") {
            volume_targets(volume, name, &mut add);
        }
    }
    found.into_iter().collect()
}

fn container_targets(container: &Value, add: &mut impl FnMut(Kind, &str)) {
    for variable in each(container, "env") {
        add(Kind::Secret, text(variable, &["valueFrom", "secretKeyRef", "name"]));
        add(Kind::ConfigMap, text(variable, &["valueFrom", "configMapKeyRef", "name"]));
    }
    for source in each(container, "envFrom") {
        add(Kind::Secret, text(source, &["secretRef", "name"]));
        add(Kind::ConfigMap, text(source, &["configMapRef", "name"]));
    }
}

fn volume_targets(volume: &Value, pod: &str, add: &mut impl FnMut(Kind, &str)) {
    add(Kind::Secret, text(volume, &["secret", "secretName"]));
    add(Kind::ConfigMap, text(volume, &["configMap", "name"]));
    add(Kind::Claim, text(volume, &["persistentVolumeClaim", "claimName"]));
    add(Kind::Secret, text(volume, &["csi", "nodePublishSecretRef", "name"]));
    if volume["ephemeral"].is_object() {
        add(Kind::Claim, &format!("{pod}-{}", text(volume, &["name"])));
    }
    for source in each(&volume["projected"], "sources") {
        add(Kind::Secret, text(source, &["secret", "name"]));
        add(Kind::ConfigMap, text(source, &["configMap", "name"]));
    }
}

impl NodeAuthorizer {
    pub(super) fn apply(&mut self, resource: &str, object: &Value) {
        let name = text(object, &["metadata", "name"]).to_owned();
        match resource {
            "pods" => self.pod(object),
            "persistentvolumes" => {
                let claim = &object["spec"]["claimRef"];
                let claim = (text(claim, &["namespace"]).to_owned(), text(claim, &["name"]).to_owned());
                self.volumes.insert(name, claim);
            }
            "volumeattachments" => {
                self.attachments.insert(name, text(object, &["spec", "nodeName"]).to_owned());
            }
            _ => {}
        }
    }

    pub(super) fn remove(&mut self, resource: &str, namespace: &str, name: &str) {
        match resource {
            "pods" => self.forget(&(namespace.to_owned(), name.to_owned())),
            "persistentvolumes" => {
                self.volumes.remove(name);
            }
            "volumeattachments" => {
                self.attachments.remove(name);
            }
            _ => {}
        }
    }

    fn pod(&mut self, pod: &Value) {
        let key = (text(pod, &["metadata", "namespace"]).to_owned(), text(pod, &["metadata", "name"]).to_owned());
        let node = text(pod, &["spec", "nodeName"]);
        let ended = matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed");
        let state =
            (text(pod, &["metadata", "uid"]).to_owned(), pod["metadata"]["generation"].as_i64().unwrap_or_default());
        if self.pods.get(&key).is_some_and(|old| old.node == node && old.state == state) && !ended {
            return;
        }
        self.forget(&key);
        if node.is_empty() || ended {
            return;
        }
        let targets = targets(pod);
        for target in &targets {
            *self.nodes.entry(target.clone()).or_default().entry(node.to_owned()).or_default() += 1;
        }
        self.pods.insert(key, KnownPod { node: node.to_owned(), state, targets });
    }

    fn forget(&mut self, key: &(String, String)) {
        let Some(KnownPod { node, targets, .. }) = self.pods.remove(key) else { return };
        for target in targets {
            let Some(nodes) = self.nodes.get_mut(&target) else { continue };
            if let Some(count) = nodes.get_mut(&node) {
                *count -= 1;
                if *count == 0 {
                    nodes.remove(&node);
                }
            }
            if nodes.is_empty() {
                self.nodes.remove(&target);
            }
        }
    }

    fn related(&self, node: &str, kind: Kind, namespace: &str, name: &str) -> bool {
        let target = (kind, namespace.to_owned(), name.to_owned());
        self.nodes.get(&target).is_some_and(|nodes| nodes.contains_key(node))
    }

    pub(super) fn authorize(&self, request: &Attributes<'_>) -> Decision {
        if !request.groups.iter().any(|group| group == "system:nodes") {
            return Decision::NoOpinion(String::new());
        }
        let Some(node) = request.user.strip_prefix("system:node:") else { return Decision::NoOpinion(String::new()) };
        if node.is_empty() {
            return no("unknown node for user \"system:node:\"");
        }
        if !request.is_resource() {
            return by_rules(request);
        }
        match (request.group, request.resource) {
            ("", "secrets") => self.read_one(node, Kind::Secret, request),
            ("", "configmaps") => self.read_one(node, Kind::ConfigMap, request),
            ("", "persistentvolumeclaims") if request.subresource == "status" => {
                self.reachable(node, Kind::Claim, request, &["update", "patch"])
            }
            ("", "persistentvolumeclaims") => self.get(node, Kind::Claim, request),
            ("", "persistentvolumes") => self.volume(node, request),
            ("storage.k8s.io", "volumeattachments") => self.attachment(node, request),
            ("", "serviceaccounts") => self.account(node, request),
            ("coordination.k8s.io", "leases") => lease(node, request),
            ("storage.k8s.io", "csinodes") => csi_node(node, request),
            ("", "nodes") => own_node(node, request),
            ("", "pods") => self.pods_of(node, request),
            _ => by_rules(request),
        }
    }

    fn reachable(&self, node: &str, kind: Kind, request: &Attributes<'_>, verbs: &[&str]) -> Decision {
        if !verbs.contains(&request.verb) {
            return no(&format!("can only {} this type", verbs.join("/")));
        }
        if request.name.is_empty() {
            return no("No Object name found");
        }
        if self.related(node, kind, request.namespace, request.name) { yes() } else { unrelated(node) }
    }

    fn read_one(&self, node: &str, kind: Kind, request: &Attributes<'_>) -> Decision {
        if !request.is_read_only() {
            return no("can only read resources of this type");
        }
        if !request.subresource.is_empty() {
            return no("cannot read subresource");
        }
        if request.namespace.is_empty() {
            return no("can only read namespaced object of this type");
        }
        self.reachable(node, kind, request, &["get", "list", "watch"])
    }

    fn get(&self, node: &str, kind: Kind, request: &Attributes<'_>) -> Decision {
        match only_get(request) {
            Some(refused) => refused,
            None if self.related(node, kind, request.namespace, request.name) => yes(),
            None => unrelated(node),
        }
    }

    fn volume(&self, node: &str, request: &Attributes<'_>) -> Decision {
        if let Some(refused) = only_get(request) {
            return refused;
        }
        match self.volumes.get(request.name) {
            Some((namespace, claim)) if self.related(node, Kind::Claim, namespace, claim) => yes(),
            _ => unrelated(node),
        }
    }

    fn attachment(&self, node: &str, request: &Attributes<'_>) -> Decision {
        match only_get(request) {
            Some(refused) => refused,
            None if self.attachments.get(request.name).is_some_and(|own| own == node) => yes(),
            None => unrelated(node),
        }
    }

    fn account(&self, node: &str, request: &Attributes<'_>) -> Decision {
        if request.verb == "get" && request.subresource.is_empty() {
            return self.get(node, Kind::Account, request);
        }
        if request.verb != "create" || request.subresource != "token" || request.name.is_empty() {
            return no("can only create tokens for individual service accounts");
        }
        if self.related(node, Kind::Account, request.namespace, request.name) { yes() } else { unrelated(node) }
    }

    fn pods_of(&self, node: &str, request: &Attributes<'_>) -> Decision {
        match (request.verb, request.subresource) {
            ("get", "") => self.get(node, Kind::Pod, request),
            ("list" | "watch" | "deletecollection", "") => {
                if request.fields.and_then(|fields| fields.required("spec.nodeName")) == Some(node) {
                    return yes();
                }
                no("can only list/watch pods with spec.nodeName field selector")
            }
            ("create" | "delete", "") | ("get" | "patch" | "update", "status") | ("create", "eviction") => yes(),
            _ => no(""),
        }
    }
}

fn yes() -> Decision {
    Decision::Allow(String::new())
}

fn no(reason: &str) -> Decision {
    Decision::NoOpinion(reason.to_owned())
}

fn unrelated(node: &str) -> Decision {
    Decision::NoOpinion(format!("no relationship found between node '{node}' and this object"))
}

fn only_get(request: &Attributes<'_>) -> Option<Decision> {
    if request.verb != "get" {
        return Some(no("can only get individual resources of this type"));
    }
    if !request.subresource.is_empty() {
        return Some(no("cannot get subresource"));
    }
    request.name.is_empty().then(|| no("No Object name found"))
}

fn by_rules(request: &Attributes<'_>) -> Decision {
    if NODE_RULES.iter().any(|rule| rule.allows(request)) { yes() } else { no("") }
}

fn own_node(node: &str, request: &Attributes<'_>) -> Decision {
    let own = request.name == node;
    match (request.verb, request.subresource) {
        // Which node is made, admission sees by its body.
        ("create", "") => yes(),
        ("get" | "patch" | "update", "" | "status") if own => yes(),
        ("list" | "watch", "") => {
            let named = request.fields.and_then(|fields| fields.required("metadata.name"));
            if own || named == Some(node) {
                yes()
            } else {
                no(&format!("node '{node}' cannot read all nodes, only its own Node object"))
            }
        }
        ("get", "") => no(&format!("node '{node}' cannot read '{}', only its own Node object", request.name)),
        _ => no(""),
    }
}

fn lease(node: &str, request: &Attributes<'_>) -> Decision {
    if !matches!(request.verb, "get" | "create" | "update" | "patch" | "delete") {
        return no("can only get, create, update, patch, or delete a node lease");
    }
    if request.namespace != LEASE_NAMESPACE {
        return no(&format!("can only access leases in the {LEASE_NAMESPACE:?} system namespace"));
    }
    if request.verb != "create" && request.name != node {
        return no("can only access node lease with the same name as the requesting node");
    }
    yes()
}

fn csi_node(node: &str, request: &Attributes<'_>) -> Decision {
    if !matches!(request.verb, "get" | "create" | "update" | "patch" | "delete") {
        return no("can only get, create, update, patch, or delete a CSINode");
    }
    if !request.subresource.is_empty() {
        return no("cannot authorize CSINode subresources");
    }
    if request.verb != "create" && request.name != node {
        return no("can only access CSINode with the same name as the requesting node");
    }
    yes()
}
