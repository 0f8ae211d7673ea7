//! Which nodes should have a daemon pod, and which pods come and go. Pure.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bosun_api::node::{taints, untolerated};
use bosun_api::pod::{is_ready, phase};
use bosun_api::scheduling::{NO_EXECUTE, NO_SCHEDULE, matches_node_affinity};
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::history::REVISION_HASH;
use crate::objects::created;
use crate::pods::available;
use crate::runtime::Again;

/// The writes of one pass.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Nodes that get a pod.
    pub(super) create: Vec<String>,
    /// Pods to delete.
    pub(super) delete: Vec<Arc<Pod>>,
    /// Those among them that failed, with the words for an event.
    pub(super) failed: Vec<(Arc<Pod>, String)>,
    pub(super) status: DaemonSetStatus,
    pub(super) again: Again,
}

/// Taints that a daemon pod bears by nature: key, effect, for host-network pods only.
const TOLERATED: [(&str, &str, bool); 7] = [
    ("node.kubernetes.io/not-ready", NO_EXECUTE, false),
    ("node.kubernetes.io/unreachable", NO_EXECUTE, false),
    ("node.kubernetes.io/disk-pressure", NO_SCHEDULE, false),
    ("node.kubernetes.io/memory-pressure", NO_SCHEDULE, false),
    ("node.kubernetes.io/pid-pressure", NO_SCHEDULE, false),
    ("node.kubernetes.io/unschedulable", NO_SCHEDULE, false),
    ("node.kubernetes.io/network-unavailable", NO_SCHEDULE, true),
];

/// Adds the tolerations that a daemon pod has by nature.
pub(super) fn add_tolerations(spec: &mut PodSpec) {
    let host_network = spec.host_network == Some(true);
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect, only_host_network) in TOLERATED {
        if only_host_network && !host_network {
            continue;
        }
        let toleration = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
}

/// Ties a pod to one node, by affinity, so that the scheduler still checks that it fits.
pub(super) fn pin_to(spec: &mut PodSpec, node: &str) {
    let term = NodeSelectorTerm {
        match_expressions: None,
        match_fields: Some(vec![NodeSelectorRequirement {
            key: "metadata.name".to_owned(),
            operator: "In".to_owned(),
            values: Some(vec![node.to_owned()]),
        }]),
    };
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let node_affinity: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    // What the template asks of nodes was answered when this node was chosen.
    node_affinity.required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![term] });
}

/// The node that a daemon pod runs on or is tied to.
pub(super) fn node_of(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(name) = spec.node_name.as_deref().filter(|n| !n.is_empty()) {
        return Some(name);
    }
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let selector = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    selector
        .node_selector_terms
        .iter()
        .flat_map(|t| t.match_fields.iter().flatten())
        .find(|r| r.key == "metadata.name" && r.operator == "In")
        .and_then(|r| r.values.as_ref()?.first())
        .map(String::as_str)
}

/// Whether a node should get a daemon pod, and whether one that is there may stay.
fn judge(spec: &PodSpec, node: &Node) -> (bool, bool) {
    let named = spec.node_name.as_deref().filter(|n| !n.is_empty());
    if named.is_some_and(|n| n != node.name_any()) || !matches_node_affinity(spec, node) {
        return (false, false);
    }
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    if untolerated(taints(node), tolerations, &[NO_SCHEDULE, NO_EXECUTE]).is_none() {
        return (true, true);
    }
    (false, untolerated(taints(node), tolerations, &[NO_EXECUTE]).is_none())
}

struct Work<'a> {
    set: &'a DaemonSet,
    hash: &'a str,
    min_ready: i32,
    now: Timestamp,
    plan: Plan,
}

/// Plans one pass. `hash` is the current revision's; `backing_off` says how long a node's failed pod is left alone.
pub(super) fn plan(
    set: &DaemonSet,
    hash: &str,
    nodes: &[Arc<Node>],
    pods: &[Arc<Pod>],
    backing_off: impl Fn(&str) -> Option<Duration>,
    now: Timestamp,
) -> Plan {
    let Some(spec) = &set.spec else { return Plan::default() };
    let mut template = spec.template.spec.clone().unwrap_or_default();
    add_tolerations(&mut template);
    let mut by_node: HashMap<&str, Vec<&Arc<Pod>>> = HashMap::new();
    for pod in pods {
        if let Some(node) = node_of(pod) {
            by_node.entry(node).or_default().push(pod);
        }
    }
    let mut work =
        Work { set, hash, min_ready: spec.min_ready_seconds.unwrap_or_default(), now, plan: Plan::default() };
    let mut eligible: Vec<&str> = Vec::new();
    for node in nodes {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let on_node = by_node.get(name).map(Vec::as_slice).unwrap_or_default();
        let (should_run, may_stay) = judge(&template, node);
        if should_run {
            eligible.push(name);
        }
        work.manage(name, on_node, should_run, may_stay, &backing_off);
        work.count(on_node, should_run);
    }
    work.orphans(nodes, &by_node);
    let rolling = spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()) != Some("OnDelete");
    if rolling {
        work.roll(&eligible, &by_node);
    }
    work.finish()
}

impl Work<'_> {
    /// Creates what is missing on a node and deletes what is too much.
    fn manage(
        &mut self,
        node: &str,
        pods: &[&Arc<Pod>],
        should_run: bool,
        may_stay: bool,
        backing_off: &impl Fn(&str) -> Option<Duration>,
    ) {
        let living: Vec<&Arc<Pod>> = pods.iter().filter(|p| p.metadata.deletion_timestamp.is_none()).copied().collect();
        if !may_stay {
            self.plan.delete.extend(living.into_iter().cloned());
            return;
        }
        let mut running: Vec<&Arc<Pod>> = Vec::new();
        for pod in living {
            match phase(pod) {
                "Failed" => {
                    if let Some(wait) = backing_off(node) {
                        self.look_again(wait);
                        running.push(pod);
                        continue;
                    }
                    let name = pod.name_any();
                    let namespace = pod.namespace().unwrap_or_default();
                    let words =
                        format!("Found failed daemon pod {namespace}/{name} on node {node}, will try to kill it");
                    self.plan.failed.push((pod.clone(), words));
                    self.plan.delete.push(pod.clone());
                }
                "Succeeded" => self.plan.delete.push(pod.clone()),
                _ => running.push(pod),
            }
        }
        if pods.is_empty() && should_run {
            self.plan.create.push(node.to_owned());
        }
        let surge = self.max_surge() > 0;
        if running.len() > 1 && !surge {
            running.sort_by_key(|p| (!is_ready(p), created(&p.metadata)));
            self.plan.delete.extend(running.into_iter().skip(1).cloned());
        }
    }

    /// Pods of nodes that are gone.
    fn orphans(&mut self, nodes: &[Arc<Node>], by_node: &HashMap<&str, Vec<&Arc<Pod>>>) {
        for (node, pods) in by_node {
            let known = nodes.iter().any(|n| n.metadata.name.as_deref() == Some(node));
            // A pod that has a node is the pod GC's; one that was only meant for it would wait for ever.
            let waiting = pods.iter().filter(|p| p.spec.as_ref().and_then(|s| s.node_name.as_ref()).is_none());
            if !known {
                let living = waiting.filter(|p| p.metadata.deletion_timestamp.is_none());
                self.plan.delete.extend(living.map(|p| (*p).clone()));
            }
        }
    }

    fn count(&mut self, pods: &[&Arc<Pod>], should_run: bool) {
        let status = &mut self.plan.status;
        if !should_run {
            status.number_misscheduled += i32::from(!pods.is_empty());
            return;
        }
        status.desired_number_scheduled += 1;
        let mut sorted = pods.to_vec();
        sorted.sort_by_key(|p| (!is_ready(p), created(&p.metadata)));
        let Some(pod) = sorted.first() else { return };
        status.current_number_scheduled += 1;
        status.number_ready += i32::from(is_ready(pod));
        let updated = sorted.iter().any(|p| self.hash_of(p) == self.hash);
        let status = &mut self.plan.status;
        *status.updated_number_scheduled.get_or_insert(0) += i32::from(updated);
        match available(pod, self.min_ready, self.now) {
            Ok(()) => *status.number_available.get_or_insert(0) += 1,
            Err(Some(wait)) => self.look_again(wait),
            Err(None) => {}
        }
    }

    fn hash_of<'p>(&self, pod: &'p Pod) -> &'p str {
        pod.labels().get(REVISION_HASH).map(String::as_str).unwrap_or_default()
    }

    fn look_again(&mut self, wait: Duration) {
        self.plan.again = Some(self.plan.again.map_or(wait, |a| a.min(wait)));
    }

    fn rolling(
        &self,
        read: impl Fn(&k8s_openapi::api::apps::v1::RollingUpdateDaemonSet) -> Option<&IntOrString>,
    ) -> Option<IntOrString> {
        let strategy = self.set.spec.as_ref()?.update_strategy.as_ref()?;
        read(strategy.rolling_update.as_ref()?).cloned()
    }

    fn max_surge(&self) -> i32 {
        let total = self.plan.status.desired_number_scheduled;
        self.rolling(|r| r.max_surge.as_ref()).map_or(0, |v| scaled_up(&v, total))
    }

    fn max_unavailable(&self) -> i32 {
        let total = self.plan.status.desired_number_scheduled;
        self.rolling(|r| r.max_unavailable.as_ref()).map_or(1, |v| scaled_up(&v, total))
    }

    /// Replaces pods of earlier revisions, as far as the strategy allows.
    fn roll(&mut self, eligible: &[&str], by_node: &HashMap<&str, Vec<&Arc<Pod>>>) {
        let (surge, unavailable) = (self.max_surge(), self.max_unavailable());
        if surge > 0 {
            return self.roll_by_surge(eligible, by_node, surge);
        }
        let mut down = 0;
        let mut unhealthy: Vec<Arc<Pod>> = Vec::new();
        let mut healthy: Vec<Arc<Pod>> = Vec::new();
        for node in eligible {
            let pods = by_node.get(node).map(Vec::as_slice).unwrap_or_default();
            let living: Vec<&&Arc<Pod>> = pods.iter().filter(|p| p.metadata.deletion_timestamp.is_none()).collect();
            let ripe = living.iter().any(|p| available(p, self.min_ready, self.now).is_ok());
            down += i32::from(!ripe);
            let [only] = living.as_slice() else { continue };
            if self.hash_of(only) != self.hash {
                if ripe { healthy.push((**only).clone()) } else { unhealthy.push((**only).clone()) }
            }
        }
        let room = usize::try_from((unavailable - down).max(0)).unwrap_or_default();
        self.replace(unhealthy);
        self.replace(healthy.into_iter().take(room));
    }

    fn replace(&mut self, pods: impl IntoIterator<Item = Arc<Pod>>) {
        for pod in pods {
            if !self.plan.delete.iter().any(|p| p.metadata.uid == pod.metadata.uid) {
                self.plan.delete.push(pod);
            }
        }
    }

    /// The new pod comes first, on as many nodes at once as the surge allows; the old one goes when it is available.
    fn roll_by_surge(&mut self, eligible: &[&str], by_node: &HashMap<&str, Vec<&Arc<Pod>>>, surge: i32) {
        let mut surging = 0;
        let mut next: Vec<String> = Vec::new();
        for node in eligible {
            let pods = by_node.get(node).map(Vec::as_slice).unwrap_or_default();
            let living = pods.iter().filter(|p| p.metadata.deletion_timestamp.is_none());
            let (new, old): (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) =
                living.copied().partition(|p| self.hash_of(p) == self.hash);
            match (new.first(), old.first()) {
                (Some(new), Some(old)) => {
                    if available(new, self.min_ready, self.now).is_ok() {
                        self.replace([(*old).clone()]);
                    } else {
                        surging += 1;
                    }
                }
                (None, Some(old)) => {
                    if available(old, self.min_ready, self.now).is_ok() {
                        next.push((*node).to_owned());
                    } else {
                        self.replace([(*old).clone()]);
                    }
                }
                _ => {}
            }
        }
        let room = usize::try_from((surge - surging).max(0)).unwrap_or_default();
        self.plan.create.extend(next.into_iter().take(room));
    }

    fn finish(mut self) -> Plan {
        let status = &mut self.plan.status;
        status.observed_generation = self.set.metadata.generation;
        status.collision_count = self.set.status.as_ref().and_then(|s| s.collision_count);
        status.conditions = self.set.status.as_ref().and_then(|s| s.conditions.clone());
        let ripe = status.number_available.unwrap_or_default();
        let missing = status.desired_number_scheduled - ripe;
        status.number_available = (ripe > 0).then_some(ripe);
        status.number_unavailable = (missing > 0).then_some(missing);
        status.updated_number_scheduled = status.updated_number_scheduled.filter(|n| *n > 0);
        self.plan
    }
}

fn scaled_up(value: &IntOrString, total: i32) -> i32 {
    crate::deployment::scaled(value, total, true)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn set(strategy: Value) -> DaemonSet {
        serde_json::from_value(json!({
            "metadata": {"name": "d", "generation": 1},
            "spec": {"selector": {}, "updateStrategy": strategy,
                     "template": {"spec": {"containers": [], "nodeSelector": {"role": "worker"}}}},
        }))
        .unwrap()
    }

    fn rolling(unavailable: Value, surge: Value) -> DaemonSet {
        set(json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": surge}}))
    }

    fn node(name: &str, spec: Value) -> Arc<Node> {
        let node = json!({"metadata": {"name": name, "labels": {"role": "worker"}}, "spec": spec});
        Arc::new(serde_json::from_value(node).unwrap())
    }

    fn nodes(names: &[&str]) -> Vec<Arc<Node>> {
        names.iter().map(|n| node(n, json!({}))).collect()
    }

    fn pod(name: &str, on: &str, hash: &str, ready: bool) -> Arc<Pod> {
        let pod = json!({
            "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {REVISION_HASH: hash}},
            "spec": {"nodeName": on, "containers": []},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn run(set: &DaemonSet, nodes: &[Arc<Node>], pods: &[Arc<Pod>]) -> (Vec<String>, Vec<String>, DaemonSetStatus) {
        let plan = plan(set, "new", nodes, pods, |_| None, Timestamp::UNIX_EPOCH);
        (plan.create, plan.delete.iter().map(|p| p.name_any()).collect(), plan.status)
    }

    #[test]
    fn one_pod_on_each_node_that_fits() {
        let mut nodes = nodes(&["a", "b"]);
        nodes.push(node("tainted", json!({"taints": [{"key": "x", "effect": "NoSchedule"}]})));
        nodes.push(node(
            "cordoned",
            json!({"unschedulable": true, "taints": [
            {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]}),
        ));
        nodes.push(Arc::new(serde_json::from_value(json!({"metadata": {"name": "other"}})).unwrap()));
        let pods =
            [pod("p", "a", "new", true), pod("stays", "tainted", "new", true), pod("goes", "other", "new", true)];
        let (create, delete, status) = run(&rolling(json!(1), json!(0)), &nodes, &pods);
        assert_eq!(create, ["b", "cordoned"]);
        assert_eq!(delete, ["goes"]);
        assert_eq!((status.desired_number_scheduled, status.number_ready, status.number_misscheduled), (3, 1, 2));
    }

    #[test]
    fn a_rolling_update_keeps_its_bound() {
        let nodes = nodes(&["a", "b", "c"]);
        let old = [pod("pa", "a", "old", true), pod("pb", "b", "old", true), pod("pc", "c", "old", true)];
        assert_eq!(run(&rolling(json!(1), json!(0)), &nodes, &old).1.len(), 1);
        assert_eq!(run(&rolling(json!("50%"), json!(0)), &nodes, &old).1.len(), 2);
        let one_down = [pod("pa", "a", "new", false), pod("pb", "b", "old", true), pod("pc", "c", "old", true)];
        assert_eq!(run(&rolling(json!(1), json!(0)), &nodes, &one_down).1.len(), 0);
        let sick = [pod("pa", "a", "old", false), pod("pb", "b", "old", true), pod("pc", "c", "new", true)];
        assert_eq!(run(&rolling(json!(1), json!(0)), &nodes, &sick).1, ["pa"]);
        assert!(run(&set(json!({"type": "OnDelete"})), &nodes, &old).1.is_empty());
    }

    #[test]
    fn with_surge_the_new_pod_comes_first() {
        let nodes = nodes(&["a", "b"]);
        let strategy = rolling(json!(0), json!(1));
        let old = [pod("pa", "a", "old", true), pod("pb", "b", "old", true)];
        let (create, delete, _) = run(&strategy, &nodes, &old);
        assert_eq!((create.len(), delete.len()), (1, 0));
        let both = [pod("pa", "a", "old", true), pod("na", "a", "new", true), pod("pb", "b", "old", true)];
        let (create, delete, _) = run(&strategy, &nodes, &both);
        assert_eq!(delete, ["pa"]);
        assert_eq!(create, ["b"]);
    }

    #[test]
    fn pods_are_pinned() {
        let mut spec = PodSpec::default();
        pin_to(&mut spec, "n1");
        let pod = Pod { spec: Some(spec), ..Pod::default() };
        assert_eq!(node_of(&pod), Some("n1"));
    }
}
