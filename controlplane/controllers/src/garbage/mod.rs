//! The garbage collector: what belongs to something that is gone goes too.
//!
//! It watches the metadata of every kind and keeps of it only who owns whom. A dependent whose owner vanished is deleted at
//! once, because the watch said so; the API server is asked only about owners that were never seen.

mod graph;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bosun_kit::queue::WorkQueue;
use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::{ApiResource, PartialObjectMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::garbage::graph::{FOREGROUND, Graph, KindId, ORPHAN, Standing, Step};
use crate::resources::{Kind, discover};
use crate::runtime::{Context, SyncError, code, gone_is_fine};

pub(crate) const NAME: &str = "generic-garbage-collector";
const WORKERS: usize = 20;
const DEADLINE: Duration = Duration::from_secs(60);
/// Kinds that are written all the time and own nothing, as in stock.
const IGNORED: [(&str, &str); 7] = [
    ("", "events"),
    ("events.k8s.io", "events"),
    ("authentication.k8s.io", "tokenreviews"),
    ("authorization.k8s.io", "subjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "localsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
];

struct Collector {
    client: Client,
    kinds: Vec<Kind>,
    graph: Mutex<Graph>,
    queue: WorkQueue<String>,
}

pub(crate) fn start(context: &Context) {
    let client = (context.clients)(NAME);
    let cancel = context.cancel.clone();
    let tasks = context.tasks.clone();
    context.tasks.spawn(async move {
        let Some(kinds) = discover_until(&client, &cancel).await else { return };
        let collector = Arc::new(Collector { client, kinds, graph: Mutex::default(), queue: WorkQueue::new() });
        for id in 0..collector.kinds.len() {
            let (collector, cancel) = (collector.clone(), cancel.clone());
            tasks.spawn(async move { collector.watch(id, cancel).await });
        }
        for _ in 0..WORKERS {
            let collector = collector.clone();
            tasks.spawn(async move { collector.work().await });
        }
        cancel.cancelled().await;
        collector.queue.close();
    });
}

async fn discover_until(client: &Client, cancel: &CancellationToken) -> Option<Vec<Kind>> {
    let mut backoff = bosun_kit::backoff::Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
    loop {
        match discover(client).await {
            Ok(kinds) => {
                let wanted = |k: &Kind| {
                    let ignored = IGNORED.iter().any(|(g, p)| k.resource.group == *g && k.resource.plural == *p);
                    !ignored && ["list", "watch", "delete"].iter().all(|verb| k.can(verb))
                };
                return Some(kinds.into_iter().filter(wanted).collect());
            }
            Err(error) => tracing::debug!(%error, "kinds not discovered; trying again"),
        }
        tokio::select! {
            () = cancel.cancelled() => return None,
            () = tokio::time::sleep(backoff.next_delay()) => {}
        }
    }
}

impl Collector {
    async fn watch(&self, id: KindId, cancel: CancellationToken) {
        let api: Api<PartialObjectMeta> = Api::all_with(self.client.clone(), &self.kinds[id].resource);
        let events = watcher(api, watcher::Config::default()).default_backoff().take_until(cancel.cancelled_owned());
        let mut events = std::pin::pin!(events);
        let mut listed: HashSet<String> = HashSet::new();
        while let Some(event) = events.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    tracing::debug!(%error, kind = self.kinds[id].resource.kind, "watch interrupted; it is taken up again");
                    continue;
                }
            };
            let affected = match event {
                Event::Init => {
                    listed.clear();
                    Vec::new()
                }
                Event::InitApply(object) => {
                    let uid = object.metadata.uid.clone().unwrap_or_default();
                    let affected = self.graph().applied(id, &uid, &object.metadata);
                    listed.insert(uid);
                    affected
                }
                Event::InitDone => {
                    let mut graph = self.graph();
                    let vanished: Vec<String> = graph.of_kind(id).filter(|u| !listed.contains(*u)).cloned().collect();
                    listed = HashSet::new();
                    vanished.iter().flat_map(|uid| graph.deleted(uid)).collect()
                }
                Event::Apply(object) => {
                    let uid = object.metadata.uid.clone().unwrap_or_default();
                    self.graph().applied(id, &uid, &object.metadata)
                }
                Event::Delete(object) => self.graph().deleted(object.metadata.uid.as_deref().unwrap_or_default()),
            };
            affected.into_iter().for_each(|uid| self.queue.add(uid));
        }
    }

    async fn work(&self) {
        while let Some(uid) = self.queue.get().await {
            match tokio::time::timeout(DEADLINE, self.sync(&uid)).await {
                Ok(Ok(())) => self.queue.forget(&uid),
                Ok(Err(error)) => {
                    tracing::debug!(%error, uid, "garbage collection of an object failed; it is tried again");
                    self.queue.add_rate_limited(uid.clone());
                }
                Err(_) => self.queue.add_rate_limited(uid.clone()),
            }
            self.queue.done(&uid);
        }
    }

    fn graph(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self, uid: &str, asked: &HashMap<String, Standing>) -> Option<(Step, Object)> {
        let graph = self.graph();
        let node = graph.node(uid)?;
        let object = Object { uid: uid.to_owned(), name: node.name.clone(), api: self.api(node.kind, &node.namespace) };
        Some((graph.step(uid, asked), object))
    }

    fn api(&self, kind: KindId, namespace: &str) -> Api<DynamicObject> {
        self.api_of(&self.kinds[kind].resource, namespace)
    }

    fn api_of(&self, resource: &ApiResource, namespace: &str) -> Api<DynamicObject> {
        if namespace.is_empty() {
            Api::all_with(self.client.clone(), resource)
        } else {
            Api::namespaced_with(self.client.clone(), namespace, resource)
        }
    }

    async fn sync(&self, uid: &str) -> Result<(), SyncError> {
        let Some((mut step, object)) = self.step(uid, &HashMap::new()) else { return Ok(()) };
        if let Step::Ask(owners) = &step {
            let namespace = self.graph().node(uid).map(|n| n.namespace.clone()).unwrap_or_default();
            let mut asked = HashMap::new();
            for owner in owners {
                asked.insert(owner.uid.clone(), self.ask(owner, &namespace).await?);
            }
            match self.step(uid, &asked) {
                Some((answered, _)) => step = answered,
                None => return Ok(()),
            }
        }
        match step {
            Step::Nothing => Ok(()),
            Step::Ask(_) => Err(SyncError::Other("owners changed meanwhile".to_owned())),
            Step::Disown(owners) => object.disown(&owners).await,
            Step::Delete { foreground } => self.delete(&object, foreground).await,
            Step::Unblock => object.remove_finalizer(FOREGROUND).await,
            Step::Wait(dependents) => {
                dependents.into_iter().for_each(|d| self.queue.add(d));
                Ok(())
            }
            Step::Orphan(dependents) => {
                for dependent in dependents {
                    if let Some((_, dependent)) = self.step(&dependent, &HashMap::new()) {
                        dependent.disown(std::slice::from_ref(&object.uid)).await?;
                    }
                }
                object.remove_finalizer(ORPHAN).await
            }
        }
    }

    /// Whether an owner that no watch has shown is there.
    async fn ask(&self, owner: &OwnerReference, namespace: &str) -> Result<Standing, SyncError> {
        let group = owner.api_version.rsplit_once('/').map_or("", |(group, _)| group);
        let kind = self.kinds.iter().find(|k| k.resource.group == group && k.resource.kind == owner.kind);
        let Some(kind) = kind else {
            // A kind that we do not know may be served tomorrow: its dependents are left alone.
            return Ok(Standing::Solid);
        };
        let namespace = if kind.namespaced { namespace } else { "" };
        if kind.namespaced && namespace.is_empty() {
            // A cluster-scoped object cannot be owned from within a namespace; stock leaves it, too.
            return Ok(Standing::Solid);
        }
        let found = self.api_of(&kind.resource, namespace).get_metadata_opt(&owner.name).await?;
        let standing = match found {
            Some(found) if found.metadata.uid.as_deref() == Some(&owner.uid) => Standing::Solid,
            _ => Standing::Absent,
        };
        if standing == Standing::Absent {
            let affected = self.graph().deleted(&owner.uid);
            affected.into_iter().for_each(|uid| self.queue.add(uid));
        }
        Ok(standing)
    }

    async fn delete(&self, object: &Object, foreground: bool) -> Result<(), SyncError> {
        let policy = if foreground { PropagationPolicy::Foreground } else { PropagationPolicy::Background };
        let params = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(Preconditions { uid: Some(object.uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        match object.api.delete(&object.name, &params).await {
            // Another object has the name now: ours is gone, and the watch will say so.
            Err(error) if code(&error) == 409 => Ok(()),
            result => Ok(gone_is_fine(result)?),
        }
    }
}

struct Object {
    uid: String,
    name: String,
    api: Api<DynamicObject>,
}

impl Object {
    /// Takes owners off, against the state that was read.
    async fn disown(&self, owners: &[String]) -> Result<(), SyncError> {
        let Some(live) = self.api.get_metadata_opt(&self.name).await? else { return Ok(()) };
        if live.metadata.uid.as_deref() != Some(&self.uid) {
            return Ok(());
        }
        let had = live.metadata.owner_references.unwrap_or_default();
        let kept: Vec<&OwnerReference> = had.iter().filter(|o| !owners.contains(&o.uid)).collect();
        if kept.len() == had.len() {
            return Ok(());
        }
        self.patch(json!({
            "resourceVersion": live.metadata.resource_version,
            "uid": self.uid,
            "ownerReferences": kept,
        }))
        .await
    }

    async fn remove_finalizer(&self, finalizer: &str) -> Result<(), SyncError> {
        let Some(live) = self.api.get_metadata_opt(&self.name).await? else { return Ok(()) };
        if live.metadata.uid.as_deref() != Some(&self.uid) {
            return Ok(());
        }
        let had = live.metadata.finalizers.unwrap_or_default();
        let kept: Vec<&String> = had.iter().filter(|f| *f != finalizer).collect();
        if kept.len() == had.len() {
            return Ok(());
        }
        self.patch(json!({
            "resourceVersion": live.metadata.resource_version,
            "uid": self.uid,
            "finalizers": kept,
        }))
        .await
    }

    async fn patch(&self, metadata: serde_json::Value) -> Result<(), SyncError> {
        let patch = Patch::Merge(json!({"metadata": metadata}));
        let patched = self.api.patch_metadata(&self.name, &PatchParams::default(), &patch).await;
        Ok(gone_is_fine(patched)?)
    }
}
