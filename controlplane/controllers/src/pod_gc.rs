//! Pods that nobody will clear away: those of nodes that are gone, those that ended without ever having a node, and finished
//! ones beyond a bound.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bosun_api::pod::is_terminal;
use bosun_kit::informer::{Delta, Informer};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::objects::created;
use crate::runtime::{Context, Controller, Key, Synced, code, gone_is_fine};

const NAME: &str = "pod-garbage-collector";
/// A node must be missing for so long, in case our watch of nodes is late.
const QUARANTINE: Duration = Duration::from_secs(40);

/// Why a pod is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Orphaned,
    Unscheduled,
    Surplus,
}

/// The pods to delete.
fn plan(
    pods: &[Arc<Pod>],
    has_node: impl Fn(&str) -> bool,
    quarantined: impl Fn(&str) -> bool,
    threshold: usize,
) -> Vec<(Arc<Pod>, Why)> {
    let mut doomed = Vec::new();
    let mut finished: Vec<&Arc<Pod>> = Vec::new();
    for pod in pods {
        let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).filter(|n| !n.is_empty());
        match node {
            Some(node) if !has_node(node) && quarantined(node) => {}
            Some(node) if !has_node(node) => doomed.push((pod.clone(), Why::Orphaned)),
            None if pod.metadata.deletion_timestamp.is_some() => doomed.push((pod.clone(), Why::Unscheduled)),
            _ if is_terminal(pod) && pod.metadata.deletion_timestamp.is_none() => finished.push(pod),
            _ => {}
        }
    }
    if threshold > 0 && finished.len() > threshold {
        finished.sort_by_key(|p| created(&p.metadata));
        let surplus = finished.len() - threshold;
        doomed.extend(finished.into_iter().take(surplus).map(|p| (p.clone(), Why::Surplus)));
    }
    doomed
}

#[derive(Clone)]
struct PodGc {
    client: Client,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    threshold: usize,
    missing: Arc<std::sync::Mutex<std::collections::HashMap<String, Instant>>>,
}

pub(crate) fn start(context: &Context) {
    let mut controller = Controller::new(context, NAME);
    let this = PodGc {
        client: controller.client.clone(),
        pods: context.watches.pods(),
        nodes: context.watches.nodes(),
        threshold: context.config.terminated_pod_threshold,
        missing: Arc::default(),
    };
    // One key for everything: a pass looks at all pods, and only what can matter starts one.
    let all = || Key::new("", "pods");
    controller.watch(&this.nodes, move |delta, queue| {
        if matches!(delta, Delta::Deleted(_)) {
            queue.add(all());
        }
    });
    let (nodes, pods, threshold) = (this.nodes.clone(), this.pods.clone(), this.threshold);
    controller.watch(&this.pods, move |delta, queue| {
        let pod = delta.object();
        let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).filter(|n| !n.is_empty());
        let homeless = node.is_none_or(|n| nodes.get(None, n).is_none());
        let leaving = pod.metadata.deletion_timestamp.is_some();
        let crowded = threshold > 0 && is_terminal(pod) && pods.len() > threshold;
        if matches!(delta, Delta::Applied(_)) && ((homeless && (leaving || node.is_some())) || crowded) {
            queue.add(all());
        }
    });
    controller.run(1, move |_| {
        let this = this.clone();
        async move { this.sync().await }
    });
}

impl PodGc {
    async fn sync(&self) -> Synced {
        let waits = self.note_missing();
        let quarantined = |node: &str| {
            let missing = self.missing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            missing.get(node).is_some_and(|since| since.elapsed() < QUARANTINE)
        };
        let has_node = |node: &str| self.nodes.get(None, node).is_some();
        for (pod, why) in plan(&self.pods.list(), has_node, quarantined, self.threshold) {
            self.delete(&pod, why).await?;
        }
        Ok(waits)
    }

    /// Notes since when nodes that pods name are missing; answers when the next quarantine ends.
    fn note_missing(&self) -> Option<Duration> {
        let mut missing = self.missing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut named: Vec<String> = self
            .pods
            .list()
            .iter()
            .filter_map(|p| p.spec.as_ref()?.node_name.clone())
            .filter(|n| !n.is_empty() && self.nodes.get(None, n).is_none())
            .collect();
        named.sort();
        named.dedup();
        missing.retain(|node, _| named.contains(node));
        for node in named {
            missing.entry(node).or_insert_with(Instant::now);
        }
        let left = missing.values().map(|since| QUARANTINE.saturating_sub(since.elapsed()));
        left.filter(|left| !left.is_zero()).min().map(|left| left + Duration::from_millis(100))
    }

    async fn delete(&self, pod: &Pod, why: Why) -> Result<(), crate::runtime::SyncError> {
        let (name, namespace) = (pod.name_any(), pod.namespace().unwrap_or_default());
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        if why == Why::Orphaned {
            let node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
            if Api::<Node>::all(self.client.clone()).get_opt(&node).await?.is_some() {
                return Ok(());
            }
            let mut status = json!({"conditions": [{
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "DeletionByPodGC",
                "message": "PodGC: node no longer exists",
                "lastTransitionTime": Time(Timestamp::now()),
            }]});
            if !is_terminal(pod) {
                status["phase"] = json!("Failed");
            }
            let patch = Patch::Strategic(json!({"metadata": {"uid": pod.metadata.uid}, "status": status}));
            gone_is_fine(api.patch_status(&name, &PatchParams::default(), &patch).await)?;
        }
        tracing::info!(pod = name, namespace, ?why, "pod is cleared away");
        let params = DeleteParams::default()
            .grace_period(0)
            .preconditions(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None });
        match api.delete(&name, &params).await {
            Err(error) if code(&error) == 409 => Ok(()),
            result => Ok(gone_is_fine(result)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, node: &str, phase: &str, leaving: bool, born: i64) -> Arc<Pod> {
        let mut pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name}, "spec": {"nodeName": node, "containers": []}, "status": {"phase": phase},
        }))
        .unwrap();
        pod.metadata.creation_timestamp = Some(Time(Timestamp::from_second(born).unwrap()));
        pod.metadata.deletion_timestamp = leaving.then_some(Time(Timestamp::UNIX_EPOCH));
        Arc::new(pod)
    }

    #[test]
    fn the_orphaned_the_homeless_and_the_oldest_finished_go() {
        let pods = [
            pod("orphan", "gone", "Running", false, 0),
            pod("maybe", "late", "Running", false, 0),
            pod("homeless", "", "Pending", true, 0),
            pod("waiting", "", "Pending", false, 0),
            pod("old", "n", "Succeeded", false, 1),
            pod("new", "n", "Failed", false, 2),
            pod("fine", "n", "Running", true, 0),
        ];
        let doomed = plan(&pods, |n| n == "n", |n| n == "late", 1);
        let told: Vec<_> = doomed.iter().map(|(p, why)| (p.name_any(), *why)).collect();
        assert_eq!(
            told,
            [
                ("orphan".to_owned(), Why::Orphaned),
                ("homeless".to_owned(), Why::Unscheduled),
                ("old".to_owned(), Why::Surplus)
            ]
        );
    }
}
