//! DaemonSets: one pod on every node that fits.

mod plan;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bosun_api::selector::Selector;
use bosun_kit::backoff::Backoff;
use bosun_kit::events::{EventType, Recorder};
use bosun_kit::informer::{Delta, Informer};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};

use crate::history;
use crate::objects::{apply_claim, claim, controller_key, controller_of, controller_ref, reference, uid};
use crate::pods::{PodControl, from_template, is_active};
use crate::runtime::{Context, Controller, Expectations, Key, SyncError, Synced};

const NAME: &str = "daemon-set-controller";

/// When the failed pods of a node may be replaced: per set and node, longer each time.
type Backoffs = Arc<Mutex<HashMap<(Key, String), (Backoff, Instant)>>>;

#[derive(Clone)]
struct DaemonSets {
    client: Client,
    recorder: Recorder,
    sets: Informer<DaemonSet>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    revisions: Informer<ControllerRevision>,
    control: PodControl,
    backoffs: Backoffs,
}

pub(crate) fn start(context: &Context) {
    let mut controller = Controller::new(context, NAME);
    let expectations = Expectations::default();
    let recorder = controller.recorder("daemonset-controller");
    let this = DaemonSets {
        client: controller.client.clone(),
        recorder: recorder.clone(),
        sets: context.watches.daemon_sets(),
        pods: context.watches.pods(),
        nodes: context.watches.nodes(),
        revisions: context.watches.controller_revisions(),
        control: PodControl { client: controller.client.clone(), recorder, expectations: expectations.clone() },
        backoffs: Backoffs::default(),
    };
    controller.watch_own(&this.sets);
    controller.needs(&this.revisions);
    controller.watch(&this.pods, move |delta, queue| {
        if let Some(key) = controller_key(&delta.object().metadata, "DaemonSet") {
            expectations.observe(&key, delta);
            queue.add(key);
        }
    });
    let sets = this.sets.clone();
    let mut shapes: HashMap<String, u64> = HashMap::new();
    controller.watch(&this.nodes, move |delta, queue| {
        let node = delta.object();
        let shape = shape(node);
        let before = match delta {
            Delta::Applied(_) => shapes.insert(node.name_any(), shape),
            Delta::Deleted(_) => shapes.remove(&node.name_any()).map(|_| !shape),
        };
        if before != Some(shape) {
            sets.list().iter().for_each(|s| queue.add(Key::of(&s.metadata)));
        }
    });
    controller.run(2, move |key| {
        let this = this.clone();
        async move { this.sync(key).await }
    });
}

/// What of a node decides about daemon pods.
fn shape(node: &Node) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    node.metadata.labels.hash(&mut hasher);
    for taint in bosun_api::node::taints(node) {
        (&taint.key, &taint.value, &taint.effect).hash(&mut hasher);
    }
    hasher.finish()
}

fn selector(set: &DaemonSet) -> Selector {
    let spec = set.spec.as_ref().map(|s| &s.selector);
    Selector::from_spec(spec).unwrap_or_else(|_| Selector::nothing())
}

fn same(a: &DaemonSetStatus, b: &DaemonSetStatus) -> bool {
    let or_zero = |s: &DaemonSetStatus| {
        let mut s = s.clone();
        for number in [&mut s.number_available, &mut s.number_unavailable, &mut s.updated_number_scheduled] {
            *number = Some(number.unwrap_or_default());
        }
        s
    };
    or_zero(a) == or_zero(b)
}

impl DaemonSets {
    async fn sync(&self, key: Key) -> Synced {
        let Some(set) = self.sets.get(key.scope(), &key.name) else {
            self.control.expectations.forget(&key);
            self.backoffs.lock().unwrap_or_else(PoisonError::into_inner).retain(|(owner, _), _| *owner != key);
            return Ok(None);
        };
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let owners: Api<DaemonSet> = Api::namespaced(self.client.clone(), &key.namespace);
        let own = uid(&set.metadata);
        let candidates = self.pods.filter(|p| {
            p.metadata.namespace == set.metadata.namespace && controller_of(&p.metadata).is_none_or(|o| o.uid == own)
        });
        let claim = claim(&set.metadata, &selector(&set), candidates, is_active);
        let pods = apply_claim(&api, &*set, claim, &owners).await?;
        let hash = self.sync_history(&set, &key, &pods).await?;
        let satisfied = self.control.expectations.satisfied(&key);
        let plan =
            plan::plan(&set, &hash, &self.nodes.list(), &pods, |node| self.backing_off(&key, node), Timestamp::now());
        let error = if satisfied { self.manage(&key, &set, &hash, &plan).await } else { None };
        if !same(&plan.status, &set.status.clone().unwrap_or_default()) {
            let mut written = (*set).clone();
            written.status = Some(plan.status);
            owners.replace_status(&key.name, &PostParams::default(), &written).await?;
        }
        match error {
            Some(error) => Err(SyncError::from(error)),
            None => Ok(plan.again),
        }
    }

    async fn sync_history(&self, set: &DaemonSet, key: &Key, pods: &[Arc<Pod>]) -> Result<String, SyncError> {
        let own = uid(&set.metadata);
        let revisions = self.revisions.filter(|r| controller_of(&r.metadata).is_some_and(|o| o.uid == own));
        let spec = set.spec.clone().unwrap_or_default();
        let labels = spec.template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
        let collisions = set.status.as_ref().and_then(|s| s.collision_count).unwrap_or_default();
        let api: Api<ControllerRevision> = Api::namespaced(self.client.clone(), &key.namespace);
        let step = history::plan(set, &spec.template, &labels, collisions, &revisions);
        let current = history::apply(&api, step).await?;
        let hash = history::hash_of(&current);
        let mut used: Vec<String> =
            pods.iter().filter_map(|p| p.labels().get(history::REVISION_HASH).cloned()).collect();
        used.push(hash.clone());
        history::clean_up(&api, &revisions, &used, spec.revision_history_limit.unwrap_or(10)).await?;
        Ok(hash)
    }

    async fn manage(&self, key: &Key, set: &DaemonSet, hash: &str, plan: &plan::Plan) -> Option<kube::Error> {
        let about = reference(set);
        for (pod, words) in &plan.failed {
            self.note_failure(key, plan::node_of(pod).unwrap_or_default());
            self.recorder.event(&about, EventType::Warning, "FailedDaemonPod", words.clone());
        }
        let mut template = set.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
        plan::add_tolerations(template.spec.get_or_insert_default());
        let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
        labels.insert(history::REVISION_HASH.to_owned(), hash.to_owned());
        let generation = set.metadata.generation.unwrap_or_default().to_string();
        labels.insert("pod-template-generation".to_owned(), generation);
        let create: Vec<Pod> = plan
            .create
            .iter()
            .map(|node| {
                let mut pod = from_template(&template, &key.namespace, &key.name, controller_ref(set));
                plan::pin_to(pod.spec.get_or_insert_default(), node);
                pod
            })
            .collect();
        let (_, failed) = self.control.create_all(&about, key, create).await;
        let undeleted = self.control.delete_all(&about, key, &plan.delete).await;
        failed.or(undeleted)
    }

    fn note_failure(&self, key: &Key, node: &str) {
        let mut backoffs = self.backoffs.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || (Backoff::new(Duration::from_secs(1), Duration::from_secs(900)), Instant::now());
        let (backoff, until) = backoffs.entry((key.clone(), node.to_owned())).or_insert_with(fresh);
        *until = Instant::now() + backoff.next_delay();
    }

    fn backing_off(&self, key: &Key, node: &str) -> Option<Duration> {
        let backoffs = self.backoffs.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, until) = backoffs.get(&(key.clone(), node.to_owned()))?;
        until.checked_duration_since(Instant::now())
    }
}
