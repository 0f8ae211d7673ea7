//! Node lifecycle: a node whose kubelet falls silent gets conditions Unknown, taints, and its pods count as not ready.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bosun_api::node::{condition, taints};
use bosun_api::pod::is_ready;
use bosun_kit::events::{EventType, Recorder};
use bosun_kit::informer::{Delta, Informer};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::objects::reference;
use crate::runtime::{Again, Context, Controller, Key, SyncError, Synced, gone_is_fine};

pub(crate) const NAME: &str = "node-controller";
pub(super) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(super) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Condition, the status that calls for it, taint.
const PRESSURES: [(&str, &str, &str); 4] = [
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];

/// What one pass writes.
#[derive(Debug, Default)]
struct Plan {
    /// Conditions that the kubelet no longer vouches for.
    conditions: Vec<NodeCondition>,
    /// The node's taints, if they change.
    taints: Option<Vec<Taint>>,
    /// Whether pods on the node count as not ready.
    pods_unready: bool,
    again: Again,
}

/// Plans for a node that was last heard of `silent` ago.
fn plan(node: &Node, silent: Duration, grace: Duration, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let status = |kind: &str| condition(node, kind).map(|c| c.status.clone());
    let mut ready = status("Ready").unwrap_or_else(|| "Unknown".to_owned());
    if silent < grace {
        plan.again = Some(grace - silent + Duration::from_millis(100));
    } else if silent >= grace {
        plan.conditions = unknown_conditions(node, now);
        "Unknown".clone_into(&mut ready);
    }
    plan.pods_unready = ready != "True" && condition(node, "Ready").is_some();
    let wanted = wanted_taints(node, &ready);
    plan.taints = merge_taints(taints(node), &wanted, now);
    plan
}

/// The kubelet's conditions, turned Unknown; those that are already stay as they are.
fn unknown_conditions(node: &Node, now: Timestamp) -> Vec<NodeCondition> {
    ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"]
        .into_iter()
        .filter_map(|kind| {
            let (reason, message, heartbeat) = match condition(node, kind) {
                Some(c) if c.status == "Unknown" => return None,
                Some(c) => ("NodeStatusUnknown", "Kubelet stopped posting node status.", c.last_heartbeat_time.clone()),
                None => ("NodeStatusNeverUpdated", "Kubelet never posted node status.", node.creation_timestamp()),
            };
            Some(NodeCondition {
                type_: kind.to_owned(),
                status: "Unknown".to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message.to_owned()),
                last_heartbeat_time: heartbeat,
                last_transition_time: Some(Time(now)),
            })
        })
        .collect()
}

/// Taints that the node's state calls for: key and effect.
fn wanted_taints(node: &Node, ready: &str) -> Vec<(&'static str, &'static str)> {
    let mut wanted = Vec::new();
    let key = match ready {
        "True" => None,
        "False" => Some(NOT_READY),
        _ => Some(UNREACHABLE),
    };
    if let Some(key) = key {
        wanted.push((key, "NoSchedule"));
        // A node that never said anything has no pods to evict.
        if condition(node, "Ready").is_some() {
            wanted.push((key, "NoExecute"));
        }
    }
    for (kind, bad, key) in PRESSURES {
        if condition(node, kind).is_some_and(|c| c.status == bad) {
            wanted.push((key, "NoSchedule"));
        }
    }
    if bosun_api::node::is_unschedulable(node) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    wanted
}

/// The node's taints with ours brought up to date; none if nothing changes.
fn merge_taints(before: &[Taint], wanted: &[(&'static str, &'static str)], now: Timestamp) -> Option<Vec<Taint>> {
    let ours = |taint: &Taint| {
        [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&taint.key.as_str())
            || PRESSURES.iter().any(|(_, _, key)| *key == taint.key)
    };
    let is = |taint: &Taint, wanted: &(&str, &str)| taint.key == wanted.0 && taint.effect == wanted.1;
    let mut after: Vec<Taint> =
        before.iter().filter(|t| !ours(t) || wanted.iter().any(|w| is(t, w))).cloned().collect();
    for missing in wanted.iter().filter(|w| !before.iter().any(|t| is(t, w))) {
        after.push(Taint {
            key: missing.0.to_owned(),
            effect: missing.1.to_owned(),
            value: None,
            time_added: Some(Time(now)),
        });
    }
    (after != before).then_some(after)
}

/// When each node was last heard of, by our own clock.
#[derive(Default)]
struct Heard {
    nodes: Mutex<HashMap<String, LastSign>>,
}

struct LastSign {
    renewed: Option<MicroTime>,
    heartbeat: Option<Time>,
    at: Instant,
}

impl Heard {
    /// Takes in what the lease and the status show, and answers how long the node has been silent.
    fn observe(&self, name: &str, lease: Option<&Lease>, node: &Node, now: Instant) -> Duration {
        let renewed = lease.and_then(|l| l.spec.as_ref()).and_then(|s| s.renew_time.clone());
        let heartbeat = condition(node, "Ready").and_then(|c| c.last_heartbeat_time.clone());
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let sign = nodes.entry(name.to_owned()).or_insert_with(|| LastSign {
            renewed: renewed.clone(),
            heartbeat: heartbeat.clone(),
            at: now,
        });
        if sign.renewed != renewed || sign.heartbeat != heartbeat {
            *sign = LastSign { renewed, heartbeat, at: now };
        }
        now.saturating_duration_since(sign.at)
    }

    fn forget(&self, name: &str) {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

#[derive(Clone)]
struct Lifecycle {
    client: Client,
    recorder: Recorder,
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    pods: Informer<Pod>,
    heard: Arc<Heard>,
    grace: Duration,
}

pub(crate) fn start(context: &Context) {
    let mut controller = Controller::new(context, NAME);
    let this = Lifecycle {
        client: controller.client.clone(),
        recorder: controller.recorder(NAME),
        nodes: context.watches.nodes(),
        leases: context.watches.node_leases(),
        pods: context.watches.pods(),
        heard: Arc::new(Heard::default()),
        grace: context.config.node_monitor_grace_period,
    };
    let (recorder, heard) = (this.recorder.clone(), this.heard.clone());
    let mut known: std::collections::HashSet<String> = std::collections::HashSet::new();
    controller.watch(&this.nodes, move |delta, queue| {
        let node = delta.object();
        let name = node.name_any();
        match delta {
            Delta::Applied(_) => {
                if known.insert(name.clone()) {
                    let message = format!("Node {name} event: Registered Node {name} in Controller");
                    recorder.event(&about(node), EventType::Normal, "RegisteredNode", message);
                }
            }
            Delta::Deleted(_) => {
                known.remove(&name);
                heard.forget(&name);
                let message = format!("Node {name} event: Removing Node {name} from Controller");
                recorder.event(&about(node), EventType::Normal, "RemovingNode", message);
            }
        }
        queue.add(Key::new("", &name));
    });
    // A renewal is noted at once, so that silence is measured from it.
    let (heard, nodes) = (this.heard.clone(), this.nodes.clone());
    controller.watch(&this.leases, move |delta, queue| {
        let lease = delta.object();
        let name = lease.name_any();
        if let Some(node) = nodes.get(None, &name) {
            let silent_before = condition(&node, "Ready").is_none_or(|c| c.status == "Unknown");
            heard.observe(&name, Some(lease), &node, Instant::now());
            if silent_before {
                queue.add(Key::new("", &name));
            }
        }
    });
    controller.needs(&this.pods);
    controller.run(2, move |key| {
        let this = this.clone();
        async move { this.sync(key).await }
    });
}

/// Events about nodes carry the node's name as uid, as stock's do, so that `kubectl describe node` finds them.
fn about(node: &Node) -> k8s_openapi::api::core::v1::ObjectReference {
    let mut about = reference(node);
    about.uid = node.metadata.name.clone();
    about.resource_version = None;
    about
}

impl Lifecycle {
    async fn sync(&self, key: Key) -> Synced {
        let Some(node) = self.nodes.get(None, &key.name) else { return Ok(None) };
        let lease = self.leases.get(Some(crate::watches::NODE_LEASE_NAMESPACE), &key.name);
        let silent = self.heard.observe(&key.name, lease.as_deref(), &node, Instant::now());
        let plan = plan(&node, silent, self.grace, Timestamp::now());
        let api: Api<Node> = Api::all(self.client.clone());
        if !plan.conditions.is_empty() {
            tracing::warn!(node = key.name, "node is silent; its conditions become Unknown");
            let patch = json!({"metadata": {"uid": node.metadata.uid}, "status": {"conditions": plan.conditions}});
            let patch = Patch::Strategic(patch);
            gone_is_fine(api.patch_status(&key.name, &PatchParams::default(), &patch).await)?;
        }
        if let Some(taints) = plan.taints {
            // Its informer's version must still be the newest, or a taint of another's would be lost.
            let version = if plan.conditions.is_empty() { node.metadata.resource_version.clone() } else { None };
            let patch = Patch::Merge(json!({
                "metadata": {"uid": node.metadata.uid, "resourceVersion": version},
                "spec": {"taints": taints},
            }));
            if plan.conditions.is_empty() {
                gone_is_fine(api.patch(&key.name, &PatchParams::default(), &patch).await)?;
            }
        }
        if plan.pods_unready {
            self.mark_pods(&node).await?;
        }
        // After a change of conditions the node comes back to us with them, and the taints follow.
        Ok(plan.again)
    }

    /// Takes readiness off the pods of a node that is not ready: Services must not send to them.
    async fn mark_pods(&self, node: &Node) -> Result<(), SyncError> {
        let name = node.name_any();
        let affected = self
            .pods
            .filter(|p| is_ready(p) && p.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(name.as_str()));
        if affected.is_empty() {
            return Ok(());
        }
        let message = format!("Node {name} status is now: NodeNotReady");
        self.recorder.event(&about(node), EventType::Normal, "NodeNotReady", message);
        for pod in affected {
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
            let patch = Patch::Strategic(json!({
                "metadata": {"uid": pod.metadata.uid},
                "status": {"conditions": [
                    {"type": "Ready", "status": "False", "lastTransitionTime": Time(Timestamp::now())}]},
            }));
            gone_is_fine(api.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await)?;
            self.recorder.event(&reference(&*pod), EventType::Warning, "NodeNotReady", "Node is not ready");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(50);

    fn node(ready: &str, spec: serde_json::Value) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "n"},
            "spec": spec,
            "status": {"conditions": [{"type": "Ready", "status": ready}, {"type": "MemoryPressure", "status": "False"}]},
        }))
        .unwrap()
    }

    fn told(plan: &Plan) -> Vec<String> {
        let conditions = plan.conditions.iter().map(|c| format!("{}={}", c.type_, c.status));
        let taints = plan.taints.iter().flatten().map(|t| format!("{}:{}", t.key, t.effect));
        conditions.chain(taints).collect()
    }

    #[test]
    fn a_silent_node_becomes_unknown_and_unreachable() {
        let silent = plan(&node("True", json!({})), GRACE, GRACE, Timestamp::UNIX_EPOCH);
        assert_eq!(
            told(&silent),
            [
                "Ready=Unknown",
                "MemoryPressure=Unknown",
                "DiskPressure=Unknown",
                "PIDPressure=Unknown",
                "node.kubernetes.io/unreachable:NoSchedule",
                "node.kubernetes.io/unreachable:NoExecute",
            ]
        );
        assert!(silent.pods_unready);
    }

    #[test]
    fn a_node_that_speaks_is_looked_at_when_its_grace_ends() {
        let fine = plan(&node("True", json!({})), Duration::from_secs(10), GRACE, Timestamp::UNIX_EPOCH);
        assert!(told(&fine).is_empty() && !fine.pods_unready);
        assert_eq!(fine.again, Some(Duration::from_millis(40_100)));
    }

    #[test]
    fn a_node_that_is_ready_again_loses_our_taints_and_keeps_others() {
        let spec = json!({"taints": [
            {"key": "mine", "effect": "NoSchedule"},
            {"key": NOT_READY, "effect": "NoSchedule"},
            {"key": UNREACHABLE, "effect": "NoExecute"},
        ]});
        let back = plan(&node("True", spec), Duration::ZERO, GRACE, Timestamp::UNIX_EPOCH);
        assert_eq!(told(&back), ["mine:NoSchedule"]);
    }

    #[test]
    fn cordon_is_a_taint() {
        let cordoned =
            plan(&node("True", json!({"unschedulable": true})), Duration::ZERO, GRACE, Timestamp::UNIX_EPOCH);
        assert_eq!(told(&cordoned), ["node.kubernetes.io/unschedulable:NoSchedule"]);
    }

    #[test]
    fn silence_counts_from_the_last_renewal() {
        let heard = Heard::default();
        let start = Instant::now();
        let lease = |second: i64| Lease {
            spec: Some(k8s_openapi::api::coordination::v1::LeaseSpec {
                renew_time: Some(MicroTime(Timestamp::from_second(second).unwrap())),
                ..Default::default()
            }),
            ..Lease::default()
        };
        let node = node("True", json!({}));
        assert_eq!(heard.observe("n", Some(&lease(1)), &node, start), Duration::ZERO);
        let later = start + Duration::from_secs(30);
        assert_eq!(heard.observe("n", Some(&lease(1)), &node, later), Duration::from_secs(30));
        assert_eq!(heard.observe("n", Some(&lease(2)), &node, later), Duration::ZERO);
    }
}
