//! Pods as their controllers see them: made from a template, available or not, and which to delete first.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bosun_api::pod::{condition, is_ready, is_terminal, phase};
use bosun_kit::events::{EventType, Recorder};
use k8s_openapi::api::core::v1::{ObjectReference, Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};

use crate::objects::{created, plus_seconds, until};
use crate::runtime::{Expectations, Key, code, gone_is_fine};

/// Annotation by which people say which pods go first when a set shrinks.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Neither finished nor being deleted.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// Since when the pod has been ready, if it is.
pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|c| c.status == "True")?;
    Some(ready.last_transition_time.as_ref().map_or(Timestamp::MIN, |t| t.0))
}

/// Whether the pod has been ready for `min_ready` seconds; if not yet, how long until then.
pub(crate) fn available(pod: &Pod, min_ready: i32, now: Timestamp) -> Result<(), Option<Duration>> {
    if !is_ready(pod) {
        return Err(None);
    }
    if min_ready <= 0 {
        return Ok(());
    }
    let since = ready_since(pod).ok_or(None)?;
    let at = plus_seconds(since, i64::from(min_ready));
    if at <= now { Ok(()) } else { Err(Some(until(at, now))) }
}

/// A pod made from a template.
pub(crate) fn from_template(template: &PodTemplateSpec, namespace: &str, base: &str, owner: OwnerReference) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    // The name is ours, not the server's, so that what the watch shows can be told apart from what was there before.
    let prefix = format!("{base}-");
    Pod {
        metadata: ObjectMeta {
            name: Some(bosun_api::hash::generate_name(&prefix)),
            generate_name: Some(prefix),
            namespace: Some(namespace.to_owned()),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Creates and deletes the pods of an owner, with the events that people look for.
#[derive(Clone)]
pub(crate) struct PodControl {
    pub(crate) client: Client,
    pub(crate) recorder: Recorder,
    pub(crate) expectations: Expectations,
}

impl PodControl {
    /// Creates one pod.
    pub(crate) async fn create(&self, owner: &ObjectReference, key: &Key, pod: &Pod) -> Result<(), kube::Error> {
        let name = pod.name_any();
        self.expectations.expect_creation(key, &name);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        match api.create(&PostParams::default(), pod).await {
            Ok(_) => {
                let message = format!("Created pod: {name}");
                self.recorder.event(owner, EventType::Normal, "SuccessfulCreate", message);
                Ok(())
            }
            Err(error) => {
                self.expectations.give_up(key, &name);
                if !is_namespace_ending(&error) {
                    let message = format!("Error creating: {}", text(&error));
                    self.recorder.event(owner, EventType::Warning, "FailedCreate", message);
                }
                Err(error)
            }
        }
    }

    /// Creates pods in batches that double, so that a quota or a broken template costs one request and not a thousand.
    ///
    /// Answers how many were created, and what stopped it.
    pub(crate) async fn create_all(
        &self,
        owner: &ObjectReference,
        key: &Key,
        pods: Vec<Pod>,
    ) -> (usize, Option<kube::Error>) {
        let mut done = 0;
        let mut batch = 1;
        let mut rest = pods.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(batch.min(rest.len()));
            let results = futures::future::join_all(now.iter().map(|pod| self.create(owner, key, pod))).await;
            done += results.iter().filter(|r| r.is_ok()).count();
            if let Some(error) = results.into_iter().find_map(Result::err) {
                return (done, Some(error));
            }
            rest = later;
            batch *= 2;
        }
        (done, None)
    }

    /// Deletes one pod, if it is still the same.
    pub(crate) async fn delete(&self, owner: &ObjectReference, key: &Key, pod: &Pod) -> Result<(), kube::Error> {
        let name = pod.name_any();
        self.expectations.expect_deletion(key, &name);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let same = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        match api.delete(&name, &DeleteParams::default().preconditions(same)).await {
            Ok(_) => {
                let message = format!("Deleted pod: {name}");
                self.recorder.event(owner, EventType::Normal, "SuccessfulDelete", message);
                Ok(())
            }
            Err(error) => {
                self.expectations.give_up(key, &name);
                if matches!(code(&error), 404 | 409) {
                    return gone_is_fine::<()>(Err(error)).or(Ok(()));
                }
                let message = format!("Error deleting: {}", text(&error));
                self.recorder.event(owner, EventType::Warning, "FailedDelete", message);
                Err(error)
            }
        }
    }

    /// Deletes pods all at once; the first error, if any.
    pub(crate) async fn delete_all(
        &self,
        owner: &ObjectReference,
        key: &Key,
        pods: &[Arc<Pod>],
    ) -> Option<kube::Error> {
        let results = futures::future::join_all(pods.iter().map(|pod| self.delete(owner, key, pod))).await;
        results.into_iter().find_map(Result::err)
    }
}

/// What the API server said, without our library's frame.
pub(crate) fn text(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// Whether creation failed because the namespace is being deleted: nobody needs an event about that.
pub(crate) fn is_namespace_ending(error: &kube::Error) -> bool {
    code(error) == 403 && text(error).contains("because it is being terminated")
}

/// Puts the pods first that should be deleted first when a set shrinks.
///
/// `related` are the active pods of everything that belongs together, to prefer nodes that hold more of them.
pub(crate) fn rank_for_deletion(pods: &mut [Arc<Pod>], related: &[Arc<Pod>], now: Timestamp) {
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    for pod in related.iter().filter(|p| is_active(p)) {
        *on_node.entry(node(pod)).or_default() += 1;
    }
    pods.sort_by(|a, b| compare(a, b, &on_node, now));
}

fn node(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

fn compare(a: &Pod, b: &Pod, on_node: &HashMap<&str, usize>, now: Timestamp) -> Ordering {
    let phase_rank = |pod: &Pod| match phase(pod) {
        "Pending" => 0,
        "Running" => 2,
        _ => 1,
    };
    let cost = |pod: &Pod| {
        let text = pod.annotations().get(DELETION_COST)?;
        text.parse::<i32>().ok()
    };
    let crowd = |pod: &Pod| on_node.get(node(pod)).copied().unwrap_or_default();
    // Differences of age count by orders of magnitude, so that the choice does not favour the just slightly younger.
    let magnitude = |since: Timestamp| {
        let age = now.duration_since(since).as_secs().max(0);
        if age == 0 { 0 } else { age.ilog2() + 1 }
    };
    let restarts = |pod: &Pod| {
        let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
        statuses.iter().map(|c| c.restart_count).max().unwrap_or_default()
    };
    (!node(a).is_empty())
        .cmp(&!node(b).is_empty())
        .then_with(|| phase_rank(a).cmp(&phase_rank(b)))
        .then_with(|| is_ready(a).cmp(&is_ready(b)))
        .then_with(|| cost(a).unwrap_or_default().cmp(&cost(b).unwrap_or_default()))
        .then_with(|| crowd(b).cmp(&crowd(a)))
        .then_with(|| match (ready_since(a), ready_since(b)) {
            (Some(a), Some(b)) => magnitude(a).cmp(&magnitude(b)),
            _ => Ordering::Equal,
        })
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| magnitude(created(&a.metadata)).cmp(&magnitude(created(&b.metadata))))
        .then_with(|| a.metadata.uid.cmp(&b.metadata.uid))
}
