//! ReplicaSets: as many pods of a template as the specification says.

use std::sync::Arc;

use bosun_api::pod::is_ready;
use bosun_api::selector::Selector;
use bosun_kit::informer::Informer;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};

use crate::objects::{apply_claim, claim, controller_key, controller_of, controller_ref, reference, uid};
use crate::pods::{PodControl, available, from_template, is_active, rank_for_deletion, text};
use crate::runtime::{Again, Context, Controller, Expectations, Key, SyncError, Synced};

const NAME: &str = "replicaset-controller";
/// Pods that one pass creates or deletes at most.
const BURST: usize = 500;

/// What one pass does.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Pods to create.
    pub(crate) create: usize,
    /// Pods to delete.
    pub(crate) delete: Vec<Arc<Pod>>,
}

/// Compares what is there with what is wanted. `related` helps to choose whom to delete.
pub(crate) fn plan(wanted: usize, pods: &[Arc<Pod>], related: &[Arc<Pod>], now: Timestamp) -> Plan {
    let mut active: Vec<Arc<Pod>> = pods.iter().filter(|p| is_active(p)).cloned().collect();
    if active.len() < wanted {
        return Plan { create: (wanted - active.len()).min(BURST), delete: Vec::new() };
    }
    let surplus = (active.len() - wanted).min(BURST);
    if surplus > 0 && surplus < active.len() {
        rank_for_deletion(&mut active, related, now);
    }
    active.truncate(surplus);
    Plan { create: 0, delete: active }
}

/// The status that these pods amount to, and when it may change by time alone.
pub(crate) fn status(
    set: &ReplicaSet,
    pods: &[Arc<Pod>],
    failure: Option<(&str, String)>,
    now: Timestamp,
) -> (ReplicaSetStatus, Again) {
    let spec = set.spec.clone().unwrap_or_default();
    let before = set.status.clone().unwrap_or_default();
    let template = spec.template.as_ref().and_then(|t| t.metadata.as_ref()).and_then(|m| m.labels.clone());
    let labels = Selector::from_map(&template.unwrap_or_default());
    let empty = crate::objects::Map::new();
    let mut counted = ReplicaSetStatus {
        observed_generation: set.metadata.generation,
        conditions: before.conditions.clone(),
        ..ReplicaSetStatus::default()
    };
    let (mut labelled, mut ready, mut ripe, mut terminating) = (0, 0, 0, 0);
    let mut again: Again = None;
    for pod in pods {
        if !is_active(pod) {
            let ending = pod.metadata.deletion_timestamp.is_some() && !bosun_api::pod::is_terminal(pod);
            terminating += i32::from(ending);
            continue;
        }
        counted.replicas += 1;
        labelled += i32::from(labels.matches(pod.metadata.labels.as_ref().unwrap_or(&empty)));
        ready += i32::from(is_ready(pod));
        match available(pod, spec.min_ready_seconds.unwrap_or_default(), now) {
            Ok(()) => ripe += 1,
            Err(Some(wait)) => again = Some(again.map_or(wait, |a| a.min(wait))),
            Err(None) => {}
        }
    }
    counted.fully_labeled_replicas = Some(labelled);
    counted.ready_replicas = Some(ready);
    counted.available_replicas = Some(ripe);
    counted.terminating_replicas = Some(terminating);
    set_failure(&mut counted, failure, now);
    (counted, again)
}

fn set_failure(status: &mut ReplicaSetStatus, failure: Option<(&str, String)>, now: Timestamp) {
    const TYPE: &str = "ReplicaFailure";
    let mut conditions = status.conditions.take().unwrap_or_default();
    match failure {
        None => conditions.retain(|c| c.type_ != TYPE),
        Some((reason, message)) => {
            if !conditions.iter().any(|c| c.type_ == TYPE) {
                conditions.push(ReplicaSetCondition {
                    type_: TYPE.to_owned(),
                    status: "True".to_owned(),
                    reason: Some(reason.to_owned()),
                    message: Some(message),
                    last_transition_time: Some(Time(now)),
                });
            }
        }
    }
    status.conditions = (!conditions.is_empty()).then_some(conditions);
}

/// Whether a status says the same as another; absent numbers are zeros.
fn same(a: &ReplicaSetStatus, b: &ReplicaSetStatus) -> bool {
    let numbers = |s: &ReplicaSetStatus| {
        [Some(s.replicas), s.fully_labeled_replicas, s.ready_replicas, s.available_replicas, s.terminating_replicas]
            .map(Option::unwrap_or_default)
    };
    numbers(a) == numbers(b)
        && a.observed_generation == b.observed_generation
        && a.conditions.as_deref().unwrap_or_default() == b.conditions.as_deref().unwrap_or_default()
}

#[derive(Clone)]
struct ReplicaSets {
    client: Client,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    control: PodControl,
}

pub(crate) fn start(context: &Context) {
    let mut controller = Controller::new(context, NAME);
    let expectations = Expectations::default();
    let this = ReplicaSets {
        client: controller.client.clone(),
        sets: context.watches.replica_sets(),
        pods: context.watches.pods(),
        control: PodControl {
            client: controller.client.clone(),
            recorder: controller.recorder(NAME),
            expectations: expectations.clone(),
        },
    };
    controller.watch_own(&this.sets);
    let sets = this.sets.clone();
    controller.watch(&this.pods, move |delta, queue| {
        let meta = &delta.object().metadata;
        if let Some(key) = controller_key(meta, "ReplicaSet") {
            expectations.observe(&key, delta);
            queue.add(key);
        } else if controller_of(meta).is_none() {
            // An orphan: whoever selects it may take it.
            let empty = crate::objects::Map::new();
            let labels = meta.labels.as_ref().unwrap_or(&empty);
            let takers = sets.filter(|s| s.metadata.namespace == meta.namespace && selector(s).matches(labels));
            takers.iter().for_each(|set| queue.add(Key::of(&set.metadata)));
        }
    });
    controller.run(4, move |key| {
        let this = this.clone();
        async move { this.sync(key).await }
    });
}

fn selector(set: &ReplicaSet) -> Selector {
    let spec = set.spec.as_ref().map(|s| &s.selector);
    Selector::from_spec(spec).unwrap_or_else(|_| Selector::nothing())
}

impl ReplicaSets {
    async fn sync(&self, key: Key) -> Synced {
        let Some(set) = self.sets.get(key.scope(), &key.name) else {
            self.control.expectations.forget(&key);
            return Ok(None);
        };
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let owners: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &key.namespace);
        let satisfied = self.control.expectations.satisfied(&key);
        let candidates = self.candidates(&set);
        let claim = claim(&set.metadata, &selector(&set), candidates, is_active);
        let owned = apply_claim(&api, &*set, claim, &owners).await?;
        let mut failure = None;
        let mut error = None;
        if satisfied && set.metadata.deletion_timestamp.is_none() {
            (failure, error) = self.manage(&key, &set, &owned).await;
        }
        let (new, again) = status(&set, &owned, failure, Timestamp::now());
        if !same(&new, &set.status.clone().unwrap_or_default()) {
            let mut written = (*set).clone();
            written.status = Some(new);
            owners.replace_status(&key.name, &PostParams::default(), &written).await?;
        }
        match error {
            Some(error) => Err(SyncError::from(error)),
            None => Ok(again),
        }
    }

    /// Pods of ours, and pods of nobody.
    fn candidates(&self, set: &ReplicaSet) -> Vec<Arc<Pod>> {
        let own = uid(&set.metadata);
        self.pods.filter(|pod| {
            pod.metadata.namespace == set.metadata.namespace
                && controller_of(&pod.metadata).is_none_or(|o| o.uid == own)
        })
    }

    async fn manage(
        &self,
        key: &Key,
        set: &ReplicaSet,
        owned: &[Arc<Pod>],
    ) -> (Option<(&'static str, String)>, Option<kube::Error>) {
        let spec = set.spec.clone().unwrap_or_default();
        let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or_default();
        let steps = plan(wanted, owned, &self.related(set), Timestamp::now());
        let about = reference(set);
        if steps.create > 0 {
            let template = spec.template.unwrap_or_default();
            let pods = (0..steps.create)
                .map(|_| from_template(&template, &key.namespace, &key.name, controller_ref(set)))
                .collect();
            let (_, error) = self.control.create_all(&about, key, pods).await;
            return (error.as_ref().map(|e| ("FailedCreate", text(e))), error);
        }
        let error = self.control.delete_all(&about, key, &steps.delete).await;
        (error.as_ref().map(|e| ("FailedDelete", text(e))), error)
    }

    /// Active pods of every set with the same controller.
    fn related(&self, set: &ReplicaSet) -> Vec<Arc<Pod>> {
        let mut uids = vec![uid(&set.metadata).to_owned()];
        if let Some(owner) = controller_of(&set.metadata) {
            let siblings = self.sets.filter(|s| controller_of(&s.metadata).is_some_and(|o| o.uid == owner.uid));
            uids.extend(siblings.iter().map(|s| uid(&s.metadata).to_owned()));
        }
        self.pods.filter(|p| controller_of(&p.metadata).is_some_and(|o| uids.contains(&o.uid)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, node: &str, phase: &str, ready: bool) -> Arc<Pod> {
        let pod = json!({
            "metadata": {"name": name, "uid": name},
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": phase, "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn doomed(plan: &Plan) -> Vec<&str> {
        plan.delete.iter().map(|p| p.metadata.name.as_deref().unwrap()).collect()
    }

    #[test]
    fn fills_up_and_does_not_count_the_finished() {
        let pods = [pod("a", "n", "Running", true), pod("b", "n", "Failed", false)];
        let plan = plan(3, &pods, &[], Timestamp::UNIX_EPOCH);
        assert_eq!((plan.create, plan.delete.len()), (2, 0));
    }

    #[test]
    fn the_least_useful_go_first() {
        let pods = [
            pod("ready", "n1", "Running", true),
            pod("unready", "n1", "Running", false),
            pod("pending", "n1", "Pending", false),
            pod("homeless", "", "Pending", false),
            pod("crowded", "n2", "Running", true),
            pod("crowded-too", "n2", "Running", true),
        ];
        let ranked = plan(1, &pods, &pods, Timestamp::UNIX_EPOCH);
        assert_eq!(doomed(&ranked)[..3], ["homeless", "pending", "unready"]);
        assert_eq!(plan(0, &pods, &pods, Timestamp::UNIX_EPOCH).delete.len(), 6);
    }

    #[test]
    fn status_counts_and_knows_when_to_look_again() {
        let set: ReplicaSet = serde_json::from_value(json!({
            "metadata": {"name": "r", "generation": 3},
            "spec": {"minReadySeconds": 10, "selector": {}, "template": {"metadata": {"labels": {"a": "b"}}}},
        }))
        .unwrap();
        let ready: Arc<Pod> = Arc::new(
            serde_json::from_value(json!({
                "metadata": {"labels": {"a": "b"}},
                "status": {"conditions": [
                    {"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:00:00Z"}]},
            }))
            .unwrap(),
        );
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let (early, again) = status(&set, std::slice::from_ref(&ready), None, at(4));
        assert_eq!((early.ready_replicas, early.available_replicas), (Some(1), Some(0)));
        assert_eq!(again, Some(std::time::Duration::from_secs(6)));
        let (late, again) = status(&set, &[ready], None, at(10));
        assert_eq!((late.available_replicas, late.observed_generation, again), (Some(1), Some(3), None));
    }
}
