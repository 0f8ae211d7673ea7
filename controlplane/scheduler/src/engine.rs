//! The scheduler at work: one task takes watch events in, decides, and hands writes to tasks of their own.
//!
//! Because that task alone owns the [`Snapshot`] and the [`Queue`], no event can slip between a decision and the wait that
//! follows it. A placement counts as soon as it is decided (it is *assumed*), so the next pod need not wait for the
//! binding's round trip.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bosun_kit::events::{EventType, Recorder};
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{Binding, Namespace, Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::framework::{Candidate, Decision, Diagnosis, Events, Plugin, decide};
use crate::preemption::{self, Preemption};
use crate::queue::Queue;
use crate::snapshot::{PodInfo, Snapshot};

const DEADLINE: Duration = Duration::from_secs(30);
/// Writes that may be under way at once.
const WRITES: usize = 100;

/// What a task that binds has to report.
struct Bound {
    pod: Arc<Pod>,
    node: String,
    result: Result<(), String>,
}

/// A pod that preemption made room for.
struct Nominated {
    node: String,
    info: PodInfo,
}

pub(crate) struct Engine {
    name: String,
    client: Client,
    plugins: Vec<Box<dyn Plugin>>,
    recorder: Recorder,
    snapshot: Snapshot,
    queue: Queue,
    /// Pods whose binding is under way or not yet seen.
    assumed: HashSet<String>,
    nominated: HashMap<String, Nominated>,
    writes: Arc<Semaphore>,
    bound: mpsc::UnboundedSender<Bound>,
    /// Uids seen by a list that is under way.
    listed: HashSet<String>,
    listed_nodes: HashSet<String>,
    synced: [bool; 3],
}

impl Engine {
    /// Schedules until cancelled.
    pub(crate) async fn run(client: Client, name: String, cancel: CancellationToken) -> anyhow::Result<()> {
        let (bound, mut results) = mpsc::unbounded_channel();
        let mut engine = Self {
            recorder: Recorder::new(client.clone(), &name, None),
            name,
            client: client.clone(),
            plugins: crate::plugins::all(),
            snapshot: Snapshot::default(),
            queue: Queue::default(),
            assumed: HashSet::new(),
            nominated: HashMap::new(),
            writes: Arc::new(Semaphore::new(WRITES)),
            bound,
            listed: HashSet::new(),
            listed_nodes: HashSet::new(),
            synced: [false; 3],
        };
        let unfinished = watcher::Config::default().fields("status.phase!=Succeeded,status.phase!=Failed");
        let mut pods = pin!(watch::<Pod>(Api::all(client.clone()), unfinished));
        let mut nodes = pin!(watch::<Node>(Api::all(client.clone()), watcher::Config::default()));
        let mut namespaces = pin!(watch::<Namespace>(Api::all(client), watcher::Config::default()));
        loop {
            let ready = engine.synced == [true; 3] && engine.queue.has_ready();
            let tick = engine.queue.next_tick();
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                event = pods.next() => engine.pod_event(event.context("the watch of pods ended")?),
                event = nodes.next() => engine.node_event(event.context("the watch of nodes ended")?),
                event = namespaces.next() => engine.namespace_event(event.context("the watch of namespaces ended")?),
                Some(result) = results.recv() => engine.settle(result),
                () = async {}, if ready => engine.schedule_next(),
                () = sleep_until(tick), if tick.is_some() => engine.queue.tick(Instant::now()),
            }
        }
    }

    fn namespace_event(&mut self, event: Event<Namespace>) {
        match event {
            Event::Init => {}
            Event::InitDone => self.synced[2] = true,
            Event::InitApply(namespace) | Event::Apply(namespace) => {
                let name = namespace.metadata.name.unwrap_or_default();
                let labels = namespace.metadata.labels.unwrap_or_default();
                let before = self.snapshot.namespaces.insert(name, labels.clone());
                if before.as_ref() != Some(&labels) {
                    self.queue.happened(Events::NAMESPACE, Instant::now());
                }
            }
            Event::Delete(namespace) => {
                self.snapshot.namespaces.remove(&namespace.metadata.name.unwrap_or_default());
            }
        }
    }

    fn node_event(&mut self, event: Event<Node>) {
        match event {
            Event::Init => self.listed_nodes.clear(),
            Event::InitApply(node) => {
                self.listed_nodes.insert(node.metadata.name.clone().unwrap_or_default());
                self.node_applied(node);
            }
            Event::InitDone => {
                let gone: Vec<String> = self
                    .snapshot
                    .nodes()
                    .map(|n| n.name.clone())
                    .filter(|name| !self.listed_nodes.contains(name))
                    .collect();
                for name in gone {
                    self.snapshot.remove_node(&name);
                }
                self.listed_nodes = HashSet::new();
                self.synced[1] = true;
            }
            Event::Apply(node) => self.node_applied(node),
            Event::Delete(node) => self.snapshot.remove_node(&node.metadata.name.unwrap_or_default()),
        }
    }

    fn node_applied(&mut self, mut node: Node) {
        node.metadata.managed_fields = None;
        let name = node.metadata.name.clone().unwrap_or_default();
        let before = self.snapshot.node(&name).and_then(|n| n.node.clone());
        let events = before.as_deref().map_or(Events::NODE_ADDED, |before| node_changes(before, &node));
        self.snapshot.set_node(Arc::new(node));
        if events != Events::NONE {
            self.queue.happened(events, Instant::now());
        }
    }

    fn pod_event(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(pod) => {
                self.listed.insert(pod.metadata.uid.clone().unwrap_or_default());
                self.pod_applied(pod);
            }
            Event::InitDone => self.forget_unlisted(),
            Event::Apply(pod) => self.pod_applied(pod),
            Event::Delete(pod) => self.pod_gone(pod.metadata.uid.as_deref().unwrap_or_default()),
        }
    }

    fn forget_unlisted(&mut self) {
        let listed = std::mem::take(&mut self.listed);
        let gone: Vec<String> = self
            .snapshot
            .placed()
            .filter(|uid| !listed.contains(*uid) && !self.assumed.contains(*uid))
            .cloned()
            .collect();
        for uid in gone {
            self.pod_gone(&uid);
        }
        self.queue.retain(|uid| listed.contains(uid));
        self.synced[0] = true;
    }

    fn pod_applied(&mut self, mut pod: Pod) {
        pod.metadata.managed_fields = None;
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
        if matches!(phase, "Succeeded" | "Failed") {
            return self.pod_gone(&uid);
        }
        let spec = pod.spec.as_ref();
        let node = spec.and_then(|s| s.node_name.clone()).filter(|n| !n.is_empty());
        if let Some(node) = node {
            self.assumed.remove(&uid);
            self.nominated.remove(&uid);
            self.queue.remove(&uid);
            self.snapshot.set_pod(&node, PodInfo::new(&pod));
            self.queue.happened(Events::POD_PLACED, Instant::now());
            return;
        }
        if self.assumed.contains(&uid) {
            return;
        }
        let ours = spec.and_then(|s| s.scheduler_name.as_deref()).unwrap_or("default-scheduler") == self.name;
        if !ours || pod.metadata.deletion_timestamp.is_some() {
            self.queue.remove(&uid);
            self.nominated.remove(&uid);
            return;
        }
        let pod = Arc::new(pod);
        if self.queue.upsert(pod.clone(), Instant::now()) {
            let message = "Scheduling is blocked due to non-empty scheduling gates";
            self.write_condition(&pod, "SchedulingGated", message, None);
        }
    }

    fn pod_gone(&mut self, uid: &str) {
        self.assumed.remove(uid);
        self.nominated.remove(uid);
        self.queue.remove(uid);
        if self.snapshot.remove_pod(uid) {
            self.queue.happened(Events::POD_REMOVED, Instant::now());
        }
    }

    fn schedule_next(&mut self) {
        let Some(pod) = self.queue.pop() else { return };
        let Some(spec) = pod.spec.as_ref() else { return };
        let info = PodInfo::new(&pod);
        let candidate = Candidate { pod: &pod, spec, info: &info };
        let promised = self.promised(&info);
        let snapshot = promised.as_ref().unwrap_or(&self.snapshot);
        match decide(&self.plugins, snapshot, candidate, rand::random()) {
            Decision::Bind(node) => self.bind(pod.clone(), info, node),
            Decision::Wait(mut diagnosis) => {
                let preemption = preemption::plan(&self.plugins, snapshot, candidate, &diagnosis);
                self.wait(&pod, &info, &mut diagnosis, preemption);
            }
        }
    }

    /// The snapshot with the room that was promised to pods at least as important, if any was.
    fn promised(&self, info: &PodInfo) -> Option<Snapshot> {
        let held = |uid: &String, n: &Nominated| *uid != info.uid && n.info.priority >= info.priority;
        if !self.nominated.iter().any(|(uid, n)| held(uid, n)) {
            return None;
        }
        let mut snapshot = self.snapshot.clone();
        for nominated in self.nominated.iter().filter(|(uid, n)| held(uid, n)).map(|(_, n)| n) {
            snapshot.set_pod(&nominated.node, nominated.info.clone());
        }
        Some(snapshot)
    }

    fn bind(&mut self, pod: Arc<Pod>, info: PodInfo, node: String) {
        self.assumed.insert(info.uid.clone());
        self.nominated.remove(&info.uid);
        self.snapshot.set_pod(&node, info);
        let (client, writes, bound) = (self.client.clone(), self.writes.clone(), self.bound.clone());
        tokio::spawn(async move {
            let _permit = writes.acquire_owned().await;
            let result = match tokio::time::timeout(DEADLINE, write_binding(&client, &pod, &node)).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("the API server did not answer in time".to_owned()),
            };
            // The engine may have stopped meanwhile.
            let _ = bound.send(Bound { pod, node, result });
        });
    }

    /// Takes in how a binding went.
    fn settle(&mut self, bound: Bound) {
        let Bound { pod, node, result } = bound;
        let (uid, namespace, name) = identity(&pod);
        match result {
            Ok(()) => {
                self.queue.remove(uid);
                let message = format!("Successfully assigned {namespace}/{name} to {node}");
                self.recorder.event(&reference(&pod), EventType::Normal, "Scheduled", message);
            }
            Err(error) => {
                tracing::warn!(pod = %format_args!("{namespace}/{name}"), node, error, "binding failed; it is tried again");
                // Unless the watch has told of the binding, or of the pod's end, already.
                if self.assumed.remove(uid) {
                    self.snapshot.remove_pod(uid);
                    self.queue.happened(Events::POD_REMOVED, Instant::now());
                    self.queue.retry(uid, Instant::now());
                }
            }
        }
    }

    fn wait(
        &mut self,
        pod: &Arc<Pod>,
        info: &PodInfo,
        diagnosis: &mut Diagnosis,
        preemption: Result<Preemption, String>,
    ) {
        let mut nominate = None;
        match preemption {
            _ if diagnosis.nodes == 0 => {}
            Ok(preemption) => {
                self.nominated
                    .insert(info.uid.clone(), Nominated { node: preemption.node.clone(), info: info.clone() });
                nominate = Some(preemption.node.clone());
                diagnosis.helped_by = diagnosis.helped_by.or(Events::POD_REMOVED);
                self.evict(info, preemption);
            }
            Err(said) => diagnosis.preemption = Some(format!("no new claims to deallocate, {said}")),
        }
        let message = diagnosis.to_string();
        tracing::debug!(pod = %format_args!("{}/{}", info.namespace, info.name), message, "no node fits");
        self.recorder.event(&reference(pod), EventType::Warning, "FailedScheduling", message.clone());
        self.queue.wait_for(&info.uid, diagnosis.helped_by, Instant::now());
        self.write_condition(pod, "Unschedulable", &message, nominate.as_deref());
    }

    /// Writes `PodScheduled=False`, unless the pod says so already.
    fn write_condition(&self, pod: &Arc<Pod>, reason: &str, message: &str, nominate: Option<&str>) {
        let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let before = conditions.iter().find(|c| c.type_ == "PodScheduled");
        let same = before.is_some_and(|c| {
            c.status == "False" && c.reason.as_deref() == Some(reason) && c.message.as_deref() == Some(message)
        });
        if same && nominate.is_none() {
            return;
        }
        let since = before
            .filter(|c| c.status == "False")
            .and_then(|c| c.last_transition_time.clone())
            .unwrap_or(Time(Timestamp::now()));
        let mut status = json!({"conditions": [{
            "type": "PodScheduled",
            "status": "False",
            "reason": reason,
            "message": message,
            "lastProbeTime": null,
            "lastTransitionTime": since,
        }]});
        if let Some(node) = nominate {
            status["nominatedNodeName"] = json!(node);
        }
        let (client, writes, pod) = (self.client.clone(), self.writes.clone(), pod.clone());
        tokio::spawn(async move {
            let _permit = writes.acquire_owned().await;
            let (uid, namespace, name) = identity(&pod);
            let api: Api<Pod> = Api::namespaced(client, namespace);
            let patch = Patch::Strategic(json!({"metadata": {"uid": uid}, "status": status}));
            let params = PatchParams::default();
            let written = api.patch_status(name, &params, &patch);
            match tokio::time::timeout(DEADLINE, written).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::debug!(%error, pod = name, "condition not written"),
                Err(_) => tracing::debug!(pod = name, "condition not written in time"),
            }
        });
    }

    fn evict(&self, preemptor: &PodInfo, preemption: Preemption) {
        for victim in preemption.victims.into_iter().filter(|v| !v.terminating) {
            let about = ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                namespace: Some(victim.namespace.clone()),
                name: Some(victim.name.clone()),
                uid: Some(victim.uid.clone()),
                ..ObjectReference::default()
            };
            let message = format!("Preempted by pod {} on node {}", preemptor.uid, preemption.node);
            self.recorder.event(&about, EventType::Normal, "Preempted", message);
            let (client, scheduler) = (self.client.clone(), self.name.clone());
            tokio::spawn(async move {
                let deleted = tokio::time::timeout(DEADLINE, write_preemption(&client, &victim, &scheduler)).await;
                if !matches!(deleted, Ok(Ok(()))) {
                    tracing::warn!(pod = victim.name, namespace = victim.namespace, "preemption failed");
                }
            });
        }
    }
}

fn watch<K>(api: Api<K>, config: watcher::Config) -> impl Stream<Item = Event<K>> + Send
where
    K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    watcher(api, config).default_backoff().filter_map(async |event| match event {
        Ok(event) => Some(event),
        Err(error) => {
            tracing::debug!(%error, kind = %K::kind(&()), "watch interrupted; it is taken up again");
            None
        }
    })
}

async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at.into()).await;
    }
}

async fn write_binding(client: &Client, pod: &Pod, node: &str) -> kube::Result<()> {
    let (uid, namespace, name) = identity(pod);
    let binding = Binding {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            uid: Some(uid.to_owned()),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let _: serde_json::Value = api.create_subresource("binding", name, &PostParams::default(), &binding).await?;
    Ok(())
}

async fn write_preemption(client: &Client, victim: &PodInfo, scheduler: &str) -> kube::Result<()> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &victim.namespace);
    let condition = json!({"metadata": {"uid": victim.uid}, "status": {"conditions": [{
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "PreemptionByScheduler",
        "message": format!("{scheduler}: preempting to accommodate a higher priority pod"),
        "lastTransitionTime": Time(Timestamp::now()),
    }]}});
    api.patch_status(&victim.name, &PatchParams::default(), &Patch::Strategic(condition)).await?;
    let same = Preconditions { uid: Some(victim.uid.clone()), resource_version: None };
    api.delete(&victim.name, &DeleteParams::default().preconditions(same)).await?;
    Ok(())
}

fn identity(pod: &Pod) -> (&str, &str, &str) {
    let meta = &pod.metadata;
    (
        meta.uid.as_deref().unwrap_or_default(),
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    )
}

fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        field_path: None,
    }
}

fn node_changes(before: &Node, after: &Node) -> Events {
    let mut events = Events::NONE;
    if before.metadata.labels != after.metadata.labels {
        events = events.or(Events::NODE_LABELS);
    }
    let (old, new) = (before.spec.as_ref(), after.spec.as_ref());
    if old.map(|s| (&s.taints, s.unschedulable)) != new.map(|s| (&s.taints, s.unschedulable)) {
        events = events.or(Events::NODE_TAINTS);
    }
    let offered = |node: &Node| node.status.as_ref().and_then(|s| s.allocatable.clone());
    if offered(before) != offered(after) {
        events = events.or(Events::NODE_ALLOCATABLE);
    }
    events
}
