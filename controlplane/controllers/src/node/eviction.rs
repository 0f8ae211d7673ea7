//! Taint-based eviction: a pod that does not tolerate a NoExecute taint of its node leaves, at once or when its
//! toleration runs out.

use bosun_api::node::{taints, tolerates};
use bosun_api::scheduling::NO_EXECUTE;
use bosun_kit::events::{EventType, Recorder};
use bosun_kit::informer::{Delta, Informer};
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use serde_json::json;

use crate::objects::{plus_seconds, reference, until};
use crate::pods::is_active;
use crate::runtime::{Context, Controller, Key, Synced, code, gone_is_fine};

/// When a pod has to leave.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Stay,
    Leave,
    LeaveAt(Timestamp),
}

/// Judges a pod by its node's taints.
fn judge(tolerations: &[Toleration], taints: &[Taint], now: Timestamp) -> Verdict {
    let mut earliest: Option<Timestamp> = None;
    for taint in taints.iter().filter(|t| t.effect == NO_EXECUTE) {
        let covering: Vec<&Toleration> = tolerations.iter().filter(|t| tolerates(t, taint)).collect();
        if covering.is_empty() {
            return Verdict::Leave;
        }
        if let Some(seconds) = covering.iter().filter_map(|t| t.toleration_seconds).min() {
            let since = taint.time_added.as_ref().map_or(now, |t| t.0);
            let at = plus_seconds(since, seconds.max(0));
            earliest = Some(earliest.map_or(at, |e| e.min(at)));
        }
    }
    match earliest {
        None => Verdict::Stay,
        Some(at) if at <= now => Verdict::Leave,
        Some(at) => Verdict::LeaveAt(at),
    }
}

#[derive(Clone)]
struct Evictions {
    client: Client,
    recorder: Recorder,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
}

fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).filter(|n| !n.is_empty())
}

pub(crate) fn start(context: &Context) {
    let mut controller = Controller::new(context, super::lifecycle::NAME);
    let this = Evictions {
        client: controller.client.clone(),
        recorder: controller.recorder("taint-eviction-controller"),
        pods: context.watches.pods(),
        nodes: context.watches.nodes(),
    };
    let pods = this.pods.clone();
    controller.watch(&this.nodes, move |delta, queue| {
        let node = delta.object();
        if matches!(delta, Delta::Deleted(_)) || !taints(node).iter().any(|t| t.effect == NO_EXECUTE) {
            return;
        }
        let name = node.metadata.name.as_deref();
        let there = pods.filter(|p| node_name(p) == name);
        there.iter().for_each(|p| queue.add(Key::of(&p.metadata)));
    });
    let nodes = this.nodes.clone();
    controller.watch(&this.pods, move |delta, queue| {
        let pod = delta.object();
        let tainted = node_name(pod)
            .and_then(|name| nodes.get(None, name))
            .is_some_and(|node| taints(&node).iter().any(|t| t.effect == NO_EXECUTE));
        if tainted && matches!(delta, Delta::Applied(_)) {
            queue.add(Key::of(&pod.metadata));
        }
    });
    controller.run(4, move |key| {
        let this = this.clone();
        async move { this.sync(key).await }
    });
}

impl Evictions {
    async fn sync(&self, key: Key) -> Synced {
        let Some(pod) = self.pods.get(key.scope(), &key.name).filter(|p| is_active(p)) else { return Ok(None) };
        let Some(node) = node_name(&pod).and_then(|n| self.nodes.get(None, n)) else { return Ok(None) };
        let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
        let now = Timestamp::now();
        match judge(tolerations, taints(&node), now) {
            Verdict::Stay => Ok(None),
            Verdict::LeaveAt(at) => Ok(Some(until(at, now))),
            Verdict::Leave => self.evict(&key, &pod).await,
        }
    }

    async fn evict(&self, key: &Key, pod: &Pod) -> Synced {
        let message = format!("Marking for deletion Pod {key}");
        self.recorder.event(&reference(pod), EventType::Normal, "TaintManagerEviction", message);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let condition = Patch::Strategic(json!({
            "metadata": {"uid": pod.metadata.uid},
            "status": {"conditions": [{
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "DeletionByTaintManager",
                "message": "Taint manager: deleting due to NoExecute taint",
                "lastTransitionTime": Time(Timestamp::now()),
            }]},
        }));
        gone_is_fine(api.patch_status(&key.name, &PatchParams::default(), &condition).await)?;
        let same = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        match api.delete(&key.name, &DeleteParams::default().preconditions(same)).await {
            Err(error) if code(&error) == 409 => Ok(None),
            result => Ok(gone_is_fine(result).map(|()| None)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toleration(seconds: Option<i64>) -> Toleration {
        Toleration {
            key: Some("k".into()),
            operator: Some("Exists".into()),
            toleration_seconds: seconds,
            ..Toleration::default()
        }
    }

    #[test]
    fn verdicts() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let taint = |effect: &str| Taint {
            key: "k".into(),
            effect: effect.into(),
            time_added: Some(Time(at(100))),
            ..Taint::default()
        };
        let hard = [taint(NO_EXECUTE)];
        assert_eq!(judge(&[], &[taint("NoSchedule")], at(0)), Verdict::Stay);
        assert_eq!(judge(&[], &hard, at(0)), Verdict::Leave);
        assert_eq!(judge(&[toleration(None)], &hard, at(1000)), Verdict::Stay);
        assert_eq!(judge(&[toleration(Some(300))], &hard, at(150)), Verdict::LeaveAt(at(400)));
        assert_eq!(judge(&[toleration(Some(300))], &hard, at(400)), Verdict::Leave);
        assert_eq!(judge(&[toleration(Some(300)), toleration(Some(5))], &hard, at(150)), Verdict::Leave);
    }
}
