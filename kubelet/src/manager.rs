//! The pods of the node: hands each to a worker, passes news on, ends what no source knows, clears what was left over.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bosun_kit::events::EventType;
use bosun_kit::informer::{Delta, Informer};
use bosun_kubelet_alignment::Refusal as Refused;
use bosun_kubelet_upkeep::preemption;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::admission::{Offer, Refusal, admit, room_to_make};
use crate::context::Context;
use crate::objects::ApiObjects;
use crate::observe::{News, Owner};
use crate::pod::record::PodRecord;
use crate::pod::resize::{self, Answer};
use crate::pod::spec;
use crate::sources::is_mirror;
use crate::worker::{self, Handle, Message, Start, Verdict};

/// How often left-overs are looked for.
const SWEEP: Duration = Duration::from_secs(60);
/// How often pods that make room are looked at.
const ROOM_POLL: Duration = Duration::from_millis(100);

/// The pods that have workers, by UID; shared with the server.
pub type Pods = Arc<RwLock<HashMap<String, Handle>>>;

/// Where the manager hears from.
pub struct Inputs {
    /// Pods of this node from the API server; none in standalone mode.
    pub api: Option<Informer<Pod>>,
    /// All static pods, whenever they changed; none without a folder.
    pub statics: Option<mpsc::UnboundedReceiver<BTreeMap<String, Arc<Pod>>>>,
    /// What was seen of the runtime.
    pub news: mpsc::UnboundedReceiver<News>,
    /// Objects that changed, and who knows their followers.
    pub changes: Option<(mpsc::UnboundedReceiver<String>, Arc<ApiObjects>)>,
}

/// Shared view of what the node offers; its labels come and go.
pub type SharedOffer = Arc<Mutex<Offer>>;

/// Where static pods come from. Of two with one UID the first one's counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Files,
    Url,
}

/// What becomes of a pod that arrives.
enum Judgement {
    Admit,
    Refuse(Refusal),
    /// Once these, by UID, are gone.
    MakeRoom(Vec<String>),
}

/// Hands pods to workers.
pub struct Manager {
    context: Arc<Context>,
    pods: Pods,
    offer: SharedOffer,
    /// What the runtime holds of pods that have no worker (yet).
    unclaimed: HashMap<String, (Owner, PodRecord)>,
    statics: BTreeMap<String, Arc<Pod>>,
    /// What each source of static pods said last; none if it has not spoken yet.
    said: BTreeMap<Source, Option<BTreeMap<String, Arc<Pod>>>>,
    urls: Option<mpsc::UnboundedReceiver<BTreeMap<String, Arc<Pod>>>>,
    /// Static pods whose predecessor of the same name must end first.
    queued: BTreeMap<String, Arc<Pod>>,
    /// Critical pods that wait until others have made room, and whether they are static.
    held: BTreeMap<String, (Arc<Pod>, bool)>,
    /// Those of them that the node's managers are giving what they are entitled to; what these ask for is taken.
    aligning: BTreeSet<String>,
    /// Those of them that wait until all sources have spoken, so that what runs, and what is gone, is known before.
    unaligned: BTreeSet<String>,
    aligned_to: mpsc::UnboundedSender<(String, Result<(), Refused>)>,
    aligned: mpsc::UnboundedReceiver<(String, Result<(), Refused>)>,
    again_to: mpsc::UnboundedSender<String>,
    again: mpsc::UnboundedReceiver<String>,
    mirrors: HashMap<(String, String), Arc<Pod>>,
    /// Pods that ask for more resources than there are at present.
    deferred: BTreeMap<String, Arc<Pod>>,
    statics_known: bool,
    api_known: bool,
    ended_to: mpsc::UnboundedSender<String>,
    cancel: CancellationToken,
}

impl Manager {
    /// A manager that fills `pods`.
    pub fn new(
        context: Arc<Context>,
        pods: Pods,
        offer: SharedOffer,
        ended_to: mpsc::UnboundedSender<String>,
        cancel: CancellationToken,
    ) -> Self {
        let (again_to, again) = mpsc::unbounded_channel();
        let (aligned_to, aligned) = mpsc::unbounded_channel();
        Self {
            held: BTreeMap::new(),
            aligning: BTreeSet::new(),
            unaligned: BTreeSet::new(),
            aligned_to,
            aligned,
            again_to,
            again,
            context,
            pods,
            offer,
            unclaimed: HashMap::new(),
            statics: BTreeMap::new(),
            said: BTreeMap::new(),
            urls: None,
            queued: BTreeMap::new(),
            mirrors: HashMap::new(),
            deferred: BTreeMap::new(),
            statics_known: false,
            api_known: false,
            ended_to,
            cancel,
        }
    }

    /// With static pods from a URL too: all of them, whenever they changed.
    pub fn also_from_url(mut self, pods: Option<mpsc::UnboundedReceiver<BTreeMap<String, Arc<Pod>>>>) -> Self {
        self.urls = pods;
        self
    }

    /// Works until cancelled. The runtime must have been listed once, so that what runs is adopted and not started anew.
    pub async fn run(mut self, mut inputs: Inputs, mut ended: mpsc::UnboundedReceiver<String>) {
        while let Ok(news) = inputs.news.try_recv() {
            self.observe(news);
        }
        self.api_known = inputs.api.is_none();
        let sources = [(Source::Files, inputs.statics.is_some()), (Source::Url, self.urls.is_some())];
        self.said = sources.into_iter().filter(|(_, there)| *there).map(|(source, _)| (source, None)).collect();
        self.statics_known = self.said.is_empty();
        let informer = inputs.api.clone();
        let mut deltas = inputs.api.as_ref().map(Informer::subscribe);
        let mut synced = std::pin::pin!(async move {
            match &informer {
                Some(informer) => informer.synced().await,
                None => std::future::pending().await,
            }
        });
        let mut sweep = tokio::time::interval_at(tokio::time::Instant::now() + Duration::from_secs(5), SWEEP);
        loop {
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => return,
                Some(delta) = next(&mut deltas) => self.api_delta(delta),
                Some(statics) = next(&mut inputs.statics) => self.static_pods(Source::Files, statics),
                Some(statics) = next(&mut self.urls) => self.static_pods(Source::Url, statics),
                Some(news) = inputs.news.recv() => self.observe(news),
                Some(uid) = ended.recv() => self.ended(&uid),
                Some(uid) = self.again.recv() => if let Some((pod, is_static)) = self.held.remove(&uid) {
                    self.add(pod, is_static);
                },
                Some((uid, answer)) = self.aligned.recv() => self.aligned(&uid, answer),
                Some(change) = next_change(&mut inputs.changes) => self.objects_changed(&change, &inputs.changes),
                () = &mut synced, if !self.api_known => {
                    // What the first list held is in the queue before this.
                    while let Some(delta) = deltas.as_mut().and_then(|d| d.try_recv().ok()) {
                        self.api_delta(delta);
                    }
                    self.api_known = true;
                    self.sources_known();
                }
                _ = sweep.tick() => self.sweep().await,
            }
        }
    }

    fn handle(&self, uid: &str) -> Option<Handle> {
        self.pods.read().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    fn api_delta(&mut self, delta: Delta<Pod>) {
        let (pod, gone) = match delta {
            Delta::Applied(pod) => (pod, false),
            Delta::Deleted(pod) => (pod, true),
        };
        if is_mirror(&pod) {
            return self.mirror(&pod, gone);
        }
        match (self.handle(spec::uid(&pod)), gone) {
            (Some(handle), true) => {
                // Force-deleted: whoever did it wants it gone, within the grace it names.
                handle.tell(Message::Update(pod));
                handle.tell(Message::Remove);
            }
            (Some(handle), false) => {
                handle.tell(Message::Update(pod.clone()));
                self.judge_resize(&pod, &handle);
            }
            (None, true) => drop(self.held.remove(spec::uid(&pod))),
            (None, false) => match self.held.get_mut(spec::uid(&pod)) {
                // One that is to go already waits for nothing.
                Some(_) if pod.metadata.deletion_timestamp.is_some() => {
                    self.held.remove(spec::uid(&pod));
                    self.add(pod, false);
                }
                Some((held, _)) => *held = pod,
                None => self.add(pod, false),
            },
        }
    }

    fn mirror(&mut self, mirror: &Arc<Pod>, gone: bool) {
        let key = (spec::namespace(mirror).to_owned(), spec::name(mirror).to_owned());
        let shown = (!gone).then(|| mirror.clone());
        match &shown {
            Some(pod) => drop(self.mirrors.insert(key.clone(), pod.clone())),
            None => drop(self.mirrors.remove(&key)),
        }
        match self.statics.values().find(|p| (spec::namespace(p), spec::name(p)) == (&key.0, &key.1)) {
            Some(pod) => {
                if let Some(handle) = self.handle(spec::uid(pod)) {
                    handle.tell(Message::Mirror(shown));
                }
            }
            None => self.drop_mirror(mirror, gone),
        }
    }

    /// Deletes a mirror pod that shows no static pod any more.
    fn drop_mirror(&self, mirror: &Arc<Pod>, gone: bool) {
        let (true, false, Some(client)) = (self.statics_known, gone, self.context.client.clone()) else { return };
        let mirror = mirror.clone();
        tokio::spawn(async move {
            let (namespace, name, uid) = (spec::namespace(&mirror), spec::name(&mirror), spec::uid(&mirror));
            if let Err(error) = crate::api_status::delete(client, namespace, name, uid).await {
                tracing::warn!(%error, name, "a mirror pod without its static pod was not deleted");
            }
        });
    }

    fn static_pods(&mut self, source: Source, said: BTreeMap<String, Arc<Pod>>) {
        self.said.insert(source, Some(said));
        let mut new = BTreeMap::new();
        for (uid, pod) in self.said.values().flatten().flatten() {
            new.entry(uid.clone()).or_insert_with(|| pod.clone());
        }
        let old = std::mem::replace(&mut self.statics, new);
        for uid in old.keys().filter(|uid| !self.statics.contains_key(*uid)) {
            self.queued.remove(uid);
            self.held.remove(uid);
            if let Some(handle) = self.handle(uid) {
                handle.tell(Message::Remove);
            }
        }
        let added: Vec<_> =
            self.statics.iter().filter(|(uid, _)| !old.contains_key(*uid)).map(|(_, p)| p.clone()).collect();
        for pod in added {
            // One with the same name may still be ending; then this one waits for it.
            if self.same_name(&pod) {
                self.queued.insert(spec::uid(&pod).to_owned(), pod);
            } else {
                self.add(pod, true);
            }
        }
        // A source that has not spoken yet may know what nobody else does.
        if !self.said.values().all(Option::is_some) {
            return;
        }
        if !self.statics_known {
            self.statics_known = true;
            self.sources_known();
        }
        let lost: Vec<_> = self
            .mirrors
            .iter()
            .filter(|(key, _)| !self.statics.values().any(|p| (spec::namespace(p), spec::name(p)) == (&key.0, &key.1)))
            .map(|(_, mirror)| mirror.clone())
            .collect();
        for mirror in lost {
            self.drop_mirror(&mirror, false);
        }
    }

    fn same_name(&self, pod: &Pod) -> bool {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        pods.iter().any(|(uid, handle)| {
            let other = handle.pod();
            uid != spec::uid(pod)
                && (spec::namespace(&other), spec::name(&other)) == (spec::namespace(pod), spec::name(pod))
        })
    }

    fn add(&mut self, pod: Arc<Pod>, is_static: bool) {
        let uid = spec::uid(&pod).to_owned();
        let runtime = self.unclaimed.remove(&uid).map(|(_, record)| record).unwrap_or_default();
        // What runs was let in once; a restart of the kubelet does not judge it again.
        let adopted = !runtime.is_empty() || bosun_api::pod::is_terminal(&pod);
        if adopted && !bosun_api::pod::is_terminal(&pod) {
            self.context.alignment.adopt(&pod);
        }
        let judgement = match adopted || pod.metadata.deletion_timestamp.is_some() {
            true => Judgement::Admit,
            false => self.judge(&pod),
        };
        let rejected = match judgement {
            Judgement::Admit if !adopted && self.is_to_align(&pod) => return self.align(pod, is_static),
            Judgement::Admit => None,
            Judgement::MakeRoom(victims) => return self.make_room(pod, is_static, victims),
            Judgement::Refuse(refusal) => Some(self.refuse(&pod, refusal)),
        };
        self.begin(pod, Start { runtime, rejected, orphan: false, is_static });
    }

    /// Tells of a refusal; what the pod's status says of it.
    fn refuse(&self, pod: &Pod, (reason, message): Refusal) -> Refusal {
        self.context.report.pod(pod, EventType::Warning, &reason, message.clone());
        (reason, format!("Pod was rejected: {message}"))
    }

    fn is_to_align(&self, pod: &Pod) -> bool {
        pod.metadata.deletion_timestamp.is_none() && self.context.alignment.concerns(pod)
    }

    /// Has the node's managers give the pod what it is entitled to, which may take as long as a device plugin does.
    fn align(&mut self, pod: Arc<Pod>, is_static: bool) {
        let uid = spec::uid(&pod).to_owned();
        self.held.insert(uid.clone(), (pod, is_static));
        self.aligning.insert(uid.clone());
        self.unaligned.insert(uid);
        if self.api_known && self.statics_known {
            self.align_waiting();
        }
    }

    fn align_waiting(&mut self) {
        self.give_back_unknown();
        for uid in std::mem::take(&mut self.unaligned) {
            let Some((pod, _)) = self.held.get(&uid).cloned() else {
                self.aligning.remove(&uid);
                continue;
            };
            let (context, answer_to) = (self.context.clone(), self.aligned_to.clone());
            tokio::spawn(async move {
                let answer = context.alignment.admit(&pod, &context.report).await;
                let _ = answer_to.send((uid, answer));
            });
        }
    }

    /// Takes back what pods had that are no more.
    fn give_back_unknown(&self) {
        if self.api_known && self.statics_known {
            let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
            // One that has ended is about to give it back itself.
            let lives = |uid: &str| {
                pods.get(uid).map(Handle::snapshot).is_some_and(|snapshot| {
                    !bosun_api::pod::is_terminal(&snapshot.pod) || snapshot.runtime.running().next().is_some()
                })
            };
            let known = |uid: &str| lives(uid) || self.unclaimed.contains_key(uid) || self.held.contains_key(uid);
            self.context.alignment.retain(known);
        }
    }

    fn aligned(&mut self, uid: &str, answer: Result<(), Refused>) {
        self.aligning.remove(uid);
        let Some((pod, is_static)) = self.held.remove(uid) else {
            // Gone meanwhile, or it goes.
            return self.context.alignment.release(uid);
        };
        let refusal = answer.err().map(|refused| (refused.reason.to_owned(), refused.message));
        let rejected = refusal.map(|refusal| self.refuse(&pod, refusal));
        self.begin(pod, Start { rejected, is_static, ..Start::default() });
    }

    /// Gives the pod a worker; what it asks for beyond what it was granted is judged at once.
    fn begin(&mut self, pod: Arc<Pod>, start: Start) {
        let is_static = start.is_static;
        self.start(pod.clone(), start);
        if let (Some(handle), false) = (self.handle(spec::uid(&pod)), is_static) {
            self.judge_resize(&pod, &handle);
        }
    }

    /// Answers a pod that asks for other resources than it was granted.
    fn judge_resize(&mut self, pod: &Arc<Pod>, handle: &Handle) {
        let uid = spec::uid(pod);
        self.deferred.remove(uid);
        if !resize::differs(pod, &handle.pod()) {
            return;
        }
        let others = self.others(uid);
        let others: Vec<&Pod> = others.iter().map(|p| &**p).collect();
        let answer = {
            let offer = self.offer.lock().unwrap_or_else(PoisonError::into_inner);
            match self.context.alignment.forbids_resize(pod, &handle.pod()) {
                Some(message) => Answer::Infeasible(message),
                None => resize::judge(pod, &others, &offer),
            }
        };
        if let Answer::Deferred(_) = &answer {
            self.deferred.insert(uid.to_owned(), pod.clone());
        }
        handle.tell(Message::Resize(answer));
    }

    /// Asks again for those that had to wait, the most important first (then by age), since there may be more room.
    fn judge_deferred(&mut self) {
        let mut waiting: Vec<Arc<Pod>> = std::mem::take(&mut self.deferred).into_values().collect();
        waiting.sort_by_key(|pod| {
            let priority = spec::spec(pod).priority.unwrap_or_default();
            (std::cmp::Reverse(priority), pod.metadata.creation_timestamp.as_ref().map(|at| at.0))
        });
        for pod in waiting {
            if let Some(handle) = self.handle(spec::uid(&pod)) {
                self.judge_resize(&pod, &handle);
            }
        }
    }

    /// The other pods that hold resources, with what was granted to them.
    fn others(&self, uid: &str) -> Vec<Arc<Pod>> {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        let aligning = self.held.iter().filter(|(other, _)| self.aligning.contains(*other) && *other != uid);
        let others = pods.iter().filter(|(other, _)| *other != uid).map(|(_, handle)| handle.pod());
        let others = others.chain(aligning.map(|(_, (pod, _))| pod.clone()));
        others.filter(|pod| !bosun_api::pod::is_terminal(pod)).collect()
    }

    fn judge(&self, pod: &Pod) -> Judgement {
        let others = self.others(spec::uid(pod));
        let others: Vec<&Pod> = others.iter().map(|p| &**p).collect();
        let mut offer = self.offer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.context.alignment.overlay(&mut offer.allocatable);
        let Err(refusal) = admit(pod, &others, &offer) else { return Judgement::Admit };
        let Some(missing) = room_to_make(pod, &others, &offer) else { return Judgement::Refuse(refusal) };
        match preemption::plan(pod, &others, &missing) {
            Ok(victims) => Judgement::MakeRoom(victims.into_iter().map(|p| spec::uid(p).to_owned()).collect()),
            Err(error) => {
                let message = format!(
                    "Unexpected error while attempting to recover from admission failure: preemption: error finding a set of pods to preempt: {error}"
                );
                Judgement::Refuse(("UnexpectedAdmissionError".to_owned(), message))
            }
        }
    }

    /// Ends pods so that a critical one fits, and adds that once nothing of them runs.
    fn make_room(&mut self, pod: Arc<Pod>, is_static: bool, victims: Vec<String>) {
        let uid = spec::uid(&pod).to_owned();
        tracing::info!(pod = spec::title(&pod), count = victims.len(), "pods are ended for a critical one");
        let victims: Vec<Handle> = victims.iter().filter_map(|uid| self.handle(uid)).collect();
        for victim in &victims {
            self.context.report.pod(&victim.pod(), EventType::Warning, preemption::REASON, preemption::MESSAGE);
            victim.tell(Message::End(Box::new(Verdict {
                reason: preemption::REASON,
                message: preemption::MESSAGE.to_owned(),
                grace: None,
                disruption: Some(preemption::CONDITION_MESSAGE.to_owned()),
            })));
        }
        self.held.insert(uid.clone(), (pod, is_static));
        let again = self.again_to.clone();
        tokio::spawn(async move {
            let over = |victim: &Handle| {
                let snapshot = victim.snapshot();
                bosun_api::pod::is_terminal(&snapshot.pod) && snapshot.runtime.running().count() == 0
            };
            while !victims.iter().all(over) {
                tokio::time::sleep(ROOM_POLL).await;
            }
            let _ = again.send(uid);
        });
    }

    fn start(&mut self, pod: Arc<Pod>, start: Start) {
        let uid = spec::uid(&pod).to_owned();
        let is_static = start.is_static;
        let key = (spec::namespace(&pod).to_owned(), spec::name(&pod).to_owned());
        let handle = worker::spawn(self.context.clone(), pod, start, self.ended_to.clone(), self.cancel.child_token());
        if is_static && self.api_known && self.context.client.is_some() {
            handle.tell(Message::Mirror(self.mirrors.get(&key).cloned()));
        }
        self.pods.write().unwrap_or_else(PoisonError::into_inner).insert(uid, handle);
    }

    /// All sources have spoken: what runs without any of them is ended.
    fn sources_known(&mut self) {
        if !(self.api_known && self.statics_known) {
            return;
        }
        for pod in self.statics.values() {
            if let (Some(handle), true) = (self.handle(spec::uid(pod)), self.context.client.is_some()) {
                let key = (spec::namespace(pod).to_owned(), spec::name(pod).to_owned());
                handle.tell(Message::Mirror(self.mirrors.get(&key).cloned()));
            }
        }
        for mirror in self.mirrors.values() {
            let shown =
                |p: &Arc<Pod>| (spec::namespace(p), spec::name(p)) == (spec::namespace(mirror), spec::name(mirror));
            if !self.statics.values().any(shown) {
                self.drop_mirror(mirror, false);
            }
        }
        self.align_waiting();
        let orphans: Vec<(Owner, PodRecord)> = self.unclaimed.drain().map(|(_, known)| known).collect();
        for (owner, runtime) in orphans {
            self.end_orphan(&owner, runtime);
        }
    }

    fn end_orphan(&mut self, owner: &Owner, runtime: PodRecord) {
        tracing::info!(
            pod = owner.name,
            namespace = owner.namespace,
            uid = owner.uid,
            "ending a pod that no source knows"
        );
        let names: BTreeSet<String> = runtime.containers.iter().map(|c| c.name.clone()).collect();
        let containers = names.into_iter().map(|name| Container { name, ..Default::default() }).collect();
        let pod = Pod {
            metadata: ObjectMeta {
                name: Some(owner.name.clone()),
                namespace: Some(owner.namespace.clone()),
                uid: Some(owner.uid.clone()),
                ..Default::default()
            },
            spec: Some(PodSpec { containers, ..Default::default() }),
            status: None,
        };
        self.start(Arc::new(pod), Start { runtime, orphan: true, ..Default::default() });
    }

    fn observe(&mut self, news: News) {
        match news {
            News::Container(owner, record) => match self.handle(&owner.uid) {
                Some(handle) => handle.tell(Message::Container(record)),
                None => drop(self.unclaimed(owner).merge_container(*record)),
            },
            News::Sandbox(owner, record) => match self.handle(&owner.uid) {
                Some(handle) => handle.tell(Message::Sandbox(record)),
                None => drop(self.unclaimed(owner).merge_sandbox(record)),
            },
            News::Listed(since, ids) => self.listed(since, &ids),
        }
    }

    fn unclaimed(&mut self, owner: Owner) -> &mut PodRecord {
        &mut self.unclaimed.entry(owner.uid.clone()).or_insert_with(|| (owner, PodRecord::default())).1
    }

    fn listed(&mut self, since: Instant, ids: &Arc<std::collections::HashSet<String>>) {
        for handle in self.pods.read().unwrap_or_else(PoisonError::into_inner).values() {
            handle.tell(Message::Listed(since, ids.clone()));
        }
        self.unclaimed.retain(|_, (_, record)| {
            record.retain(since, |id| ids.contains(id));
            !record.is_empty()
        });
        if self.api_known && self.statics_known {
            // Late news of a pod that has just ended must not bring it back: only what a listing still shows counts.
            let orphans: Vec<_> = self.unclaimed.drain().map(|(_, known)| known).collect();
            for (owner, runtime) in orphans {
                self.end_orphan(&owner, runtime);
            }
        }
    }

    fn ended(&mut self, uid: &str) {
        let gone = self.pods.write().unwrap_or_else(PoisonError::into_inner).remove(uid);
        let Some(gone) = gone.map(|handle| handle.pod()) else { return };
        self.deferred.remove(uid);
        self.judge_deferred();
        let waiting = self
            .queued
            .iter()
            .find(|(_, p)| (spec::namespace(p), spec::name(p)) == (spec::namespace(&gone), spec::name(&gone)));
        if let Some(uid) = waiting.map(|(uid, _)| uid.clone())
            && let Some(pod) = self.queued.remove(&uid)
        {
            self.add(pod, true);
        }
    }

    fn objects_changed(&self, change: &str, from: &Option<(mpsc::UnboundedReceiver<String>, Arc<ApiObjects>)>) {
        let Some((_, objects)) = from else { return };
        for uid in objects.followers(change) {
            if let Some(handle) = self.handle(&uid) {
                handle.tell(Message::ObjectsChanged);
            }
        }
    }

    /// Removes folders and cgroups of pods that nobody knows, and asks again for resizes that had to wait.
    async fn sweep(&mut self) {
        self.judge_deferred();
        // A source that does not speak keeps nobody waiting for ever.
        self.align_waiting();
        if !(self.api_known && self.statics_known) {
            return;
        }
        let known: BTreeSet<String> =
            self.pods.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect();
        let unknown =
            |uid: &str| !known.contains(uid) && !self.unclaimed.contains_key(uid) && !self.queued.contains_key(uid);
        if let Some(claims) = self.context.claims.clone() {
            let there = known.iter().chain(self.unclaimed.keys()).chain(self.queued.keys()).chain(self.held.keys());
            let active: BTreeSet<String> = there.cloned().collect();
            // Drivers take their time, and nobody waits for them here.
            tokio::spawn(async move { claims.reconcile(&active).await });
        }
        let node = &self.context.node;
        for entry in std::fs::read_dir(node.pods_dir()).into_iter().flatten().flatten() {
            let uid = entry.file_name().to_string_lossy().into_owned();
            if unknown(&uid) {
                self.context.csi.end_unknown(node, uid);
            }
        }
        for entry in std::fs::read_dir(&node.pod_logs_dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.rsplit('_').next().is_some_and(|uid| name.contains('_') && unknown(uid)) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        for entry in std::fs::read_dir(&node.container_logs_dir).into_iter().flatten().flatten() {
            // A link to a log that is gone.
            if entry.path().is_symlink() && !entry.path().exists() {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        self.context.cgroups.weigh_all(node, &self.others("")).await;
        self.context.cgroups.sweep(node, unknown).await;
        // Pods come and go in bursts; what they took meanwhile is not ours to keep.
        bosun_kit::memory::give_back();
    }
}

async fn next<T>(receiver: &mut Option<mpsc::UnboundedReceiver<T>>) -> Option<T> {
    match receiver {
        Some(receiver) => receiver.recv().await,
        None => std::future::pending().await,
    }
}

async fn next_change(changes: &mut Option<(mpsc::UnboundedReceiver<String>, Arc<ApiObjects>)>) -> Option<String> {
    match changes {
        Some((receiver, _)) => receiver.recv().await,
        None => std::future::pending().await,
    }
}
