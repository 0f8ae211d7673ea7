//! One worker a pod: a task that takes in what changes, asks [`plan`] what to do, lets each action run as a task of its
//! own and shows the result. Serial in its decisions, never blocked by its actions; no worker waits for another.

mod outcome;
mod resize;
mod rounds;
mod show;
mod tasks;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bosun_kit::backoff::Backoff;
use bosun_kit::events::EventType;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::api_status::WriteError;
use crate::context::Context;
use crate::metrics::PodName;
use crate::observe::Owner;
use crate::pod::plan::{Action, Ending, Failure, PodActions, Task, View, Volumes, Waiting, active_deadline, plan};
use crate::pod::probe::{Due, Probes, Remembered};
use crate::pod::record::{ContainerRecord, PodRecord, SandboxRecord, State};
use crate::pod::resize::{Allocation, Answer};
use crate::pod::restart::RestartDelay;
use crate::pod::spec;
use crate::pod::status::{StatusInput, is_finished};
use crate::probes::Outcome;
use resize::granted;
pub use rounds::Workers;
use rounds::{Rounds, Tasks};
use tasks::{Ready, TaskResult};

/// News for a worker.
#[derive(Debug)]
pub enum Message {
    /// The pod's definition is now this.
    Update(Arc<Pod>),
    /// No source knows the pod any more.
    Remove,
    /// A container's state.
    Container(Box<ContainerRecord>),
    /// A sandbox's state.
    Sandbox(SandboxRecord),
    /// A listing begun at that time showed these ids and no others.
    Listed(Instant, Arc<std::collections::HashSet<String>>),
    /// Something that a volume shows has changed.
    ObjectsChanged,
    /// The node's answer to the resources that the newest definition asks for.
    Resize(Answer),
    /// Something that its status shows may have changed.
    Look,
    /// The mirror pod of this static pod, as the API server has it; none if it is not there.
    Mirror(Option<Arc<Pod>>),
    /// The node keeps the pod no longer: it fails with this verdict and ends.
    End(Box<Verdict>),
}

/// Why the node ends a pod that nobody deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The reason of its status.
    pub reason: &'static str,
    /// The message of its status.
    pub message: String,
    /// The most seconds of grace; none for the pod's own.
    pub grace: Option<i64>,
    /// The message of its condition DisruptionTarget; none for no such condition.
    pub disruption: Option<String>,
}

/// How a pod comes to its worker.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// What the runtime already holds of it.
    pub runtime: PodRecord,
    /// Refused on arrival: reason and message.
    pub rejected: Option<(String, String)>,
    /// Known to no source: only to be ended.
    pub orphan: bool,
    /// From a file, to be shown by a mirror pod.
    pub is_static: bool,
}

/// What others may see of a pod.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The definition with its newest status.
    pub pod: Arc<Pod>,
    /// What the runtime holds.
    pub runtime: PodRecord,
}

/// A running worker.
#[derive(Clone, Debug)]
pub struct Handle {
    messages: mpsc::UnboundedSender<Message>,
    snapshot: Arc<Mutex<Snapshot>>,
}

impl Handle {
    /// Tells the worker. A worker that has ended hears nothing.
    pub fn tell(&self, message: Message) {
        let _ = self.messages.send(message);
    }

    /// What is known of the pod.
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The definition with its newest status.
    pub fn pod(&self) -> Arc<Pod> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner).pod.clone()
    }
}

/// Starts a worker. It sends the pod's UID to `ended` when nothing of the pod is left.
pub fn spawn(
    context: Arc<Context>,
    pod: Arc<Pod>,
    start: Start,
    ended: mpsc::UnboundedSender<String>,
    cancel: CancellationToken,
) -> Handle {
    let seen = Instant::now();
    let (messages, inbox) = mpsc::unbounded_channel();
    let snapshot = Arc::new(Mutex::new(Snapshot { pod: pod.clone(), runtime: start.runtime.clone() }));
    let handle = Handle { messages: messages.clone(), snapshot: snapshot.clone() };
    let worker = Worker::new(context, pod, start, messages, snapshot);
    // What others reckon with is what was granted.
    handle.snapshot.lock().unwrap_or_else(PoisonError::into_inner).pod = worker.pod.clone();
    tokio::spawn(async move {
        worker.context.workers.started(seen);
        let uid = worker.uid.clone();
        if worker.run(inbox, cancel).await {
            let _ = ended.send(uid);
        }
    });
    handle
}

enum Done {
    Action(Task, Box<TaskResult>),
    Probe(Due, Outcome),
    Sent(Box<PodStatus>, Result<(), WriteError>),
    Deleted(Result<(), WriteError>),
    MirrorWritten(Result<(), WriteError>),
}

struct Worker {
    context: Arc<Context>,
    uid: String,
    owner: Owner,
    pod: Arc<Pod>,
    is_static: bool,
    orphan: bool,
    /// The UID under which the status is written; a static pod's is its mirror's.
    api_uid: Option<String>,
    mirror_known: bool,
    /// It had ended before this kubelet saw it: it never lives again, whatever is left of it.
    was_terminal: bool,
    runtime: PodRecord,
    volumes: Volumes,
    refresh: Option<Timestamp>,
    ready: BTreeMap<String, Ready>,
    images: BTreeMap<String, Result<String, Failure>>,
    start_failures: BTreeMap<String, Failure>,
    sandbox_failure: Option<Failure>,
    sandbox_backoff: Backoff,
    /// What was granted and given; the pod's definition here always has what was granted.
    allocation: Allocation,
    kept_allocation: Option<Allocation>,
    /// The newest definition, if it asks for other resources than were granted.
    wanted: Option<Arc<Pod>>,
    answer: Answer,
    resize_failure: Option<Failure>,
    resizing: bool,
    /// What containers that are being started are given.
    starting: BTreeMap<String, ResourceRequirements>,
    /// Containers of which others told while they were being started, should the task that does it not tell.
    made: BTreeMap<String, ContainerRecord>,
    restarts: BTreeMap<String, RestartDelay>,
    told_backoff: BTreeMap<String, Timestamp>,
    probes: Probes,
    remembered: BTreeMap<String, Remembered>,
    waiting: BTreeMap<String, Waiting>,
    failed: Option<(String, String)>,
    /// The most seconds of grace that a verdict leaves.
    grace_limit: Option<i64>,
    disruption: Option<PodCondition>,
    rejected: bool,
    removed: bool,
    ending: Option<Ending>,
    ended: bool,
    busy: BTreeSet<Task>,
    tasks: Tasks<Done>,
    rounds: Rounds,
    watched: BTreeSet<String>,
    sent: Option<PodStatus>,
    writing: bool,
    write_after: Option<Timestamp>,
    /// Since when a change waits that is not urgent.
    gathered: Option<Timestamp>,
    write_backoff: Backoff,
    deleted: bool,
    started: Timestamp,
    /// Ends pulls and hooks that no longer matter.
    give_up: CancellationToken,
    messages: mpsc::UnboundedSender<Message>,
    snapshot: Arc<Mutex<Snapshot>>,
}

impl Worker {
    fn new(
        context: Arc<Context>,
        pod: Arc<Pod>,
        start: Start,
        messages: mpsc::UnboundedSender<Message>,
        snapshot: Arc<Mutex<Snapshot>>,
    ) -> Self {
        let now = Timestamp::now();
        let uid = spec::uid(&pod).to_owned();
        let owner = Owner { uid: uid.clone(), name: spec::name(&pod).into(), namespace: spec::namespace(&pod).into() };
        let remembered = tasks::recall(&context.node, &pod);
        let kept_allocation: Option<Allocation> = tasks::recall_allocation(&context.node, &pod);
        let allocation = kept_allocation.clone().unwrap_or_else(|| Allocation::of(&pod));
        let (pod, wanted) = granted(&allocation, &pod);
        let started = pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map_or(now, |t| t.0);
        // What the API server already shows is not sent again.
        let sent = if start.is_static { None } else { pod.status.clone() };
        Self {
            uid: uid.clone(),
            owner,
            api_uid: (!start.is_static && !start.orphan).then_some(uid),
            was_terminal: bosun_api::pod::is_terminal(&pod),
            is_static: start.is_static,
            orphan: start.orphan,
            mirror_known: false,
            removed: start.orphan,
            rejected: start.rejected.is_some(),
            failed: start.rejected,
            grace_limit: None,
            disruption: None,
            runtime: start.runtime,
            volumes: Volumes::default(),
            refresh: None,
            ready: BTreeMap::new(),
            images: BTreeMap::new(),
            start_failures: BTreeMap::new(),
            sandbox_failure: None,
            sandbox_backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(10)),
            allocation,
            kept_allocation,
            wanted,
            answer: Answer::Granted,
            resize_failure: None,
            resizing: false,
            starting: BTreeMap::new(),
            made: BTreeMap::new(),
            restarts: BTreeMap::new(),
            told_backoff: BTreeMap::new(),
            probes: Probes::remembering(remembered.clone()),
            remembered,
            waiting: BTreeMap::new(),
            ending: None,
            ended: false,
            busy: BTreeSet::new(),
            tasks: Tasks::new(),
            rounds: Rounds::default(),
            watched: BTreeSet::new(),
            sent,
            writing: false,
            write_after: None,
            gathered: None,
            write_backoff: Backoff::new(Duration::from_millis(200), Duration::from_secs(30)),
            deleted: false,
            started,
            give_up: CancellationToken::new(),
            messages,
            snapshot,
            pod,
            context,
        }
    }

    /// Works until nothing of the pod is left (true) or the kubelet stops (false; the pod then goes on running).
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Message>, cancel: CancellationToken) -> bool {
        self.context.objects.follow(&self.uid, Some(&self.pod));
        self.watch_running();
        loop {
            let wake = self.step();
            if self.deleted {
                self.context.objects.follow(&self.uid, None);
                self.context.images.forget(&self.uid);
                let containers = spec::containers(&self.pod).map(|(_, container)| container.name.as_str());
                self.context.probe_metrics.forget(PodName::of(&self.pod), containers);
                tasks::forget(&self.context, &self.pod, &self.runtime).await;
                return true;
            }
            let pause = wake.map(|at| until(at, Timestamp::now()));
            tokio::select! {
                biased;
                () = cancel.cancelled() => return false,
                Some(message) = inbox.recv() => self.take(message),
                Some(done) = self.tasks.join_next() => match done {
                    Ok(done) => self.finish(done),
                    Err(error) => tracing::error!(pod = spec::title(&self.pod), %error, "a task of the pod failed"),
                },
                () = sleep(pause) => {}
            }
            // Take in whatever else has arrived, so that it is decided on together.
            while let Ok(message) = inbox.try_recv() {
                self.take(message);
            }
            while let Some(Ok(done)) = self.tasks.try_join_next() {
                self.finish(done);
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Update(pod) => self.update(&pod),
            Message::Remove => {
                self.removed = true;
                if !self.is_static {
                    // Nobody is left to show a status to.
                    self.api_uid = None;
                }
            }
            // Of a container that is being started, the task that does it tells.
            Message::Container(record) if record.state == State::Created && self.is_starting(&record.name) => {
                self.made.insert(record.name.clone(), *record);
            }
            Message::Container(record) => drop(self.merge(*record)),
            Message::Sandbox(record) => drop(self.runtime.merge_sandbox(record)),
            Message::Listed(since, ids) => drop(self.runtime.retain(since, |id| ids.contains(id))),
            Message::ObjectsChanged => self.volumes_stale(),
            Message::Resize(answer) => self.answer_resize(answer),
            Message::End(verdict) => self.end(*verdict),
            Message::Look => {}
            Message::Mirror(mirror) => {
                self.mirror_known = true;
                self.mirror(mirror.as_deref());
            }
        }
    }

    fn is_starting(&self, container: &str) -> bool {
        self.busy.iter().any(|task| matches!(task, Task::Start(name) if name == container))
    }

    fn end(&mut self, verdict: Verdict) {
        self.grace_limit = verdict.grace.into_iter().chain(self.grace_limit).min();
        if self.failed.is_some() || self.was_terminal || bosun_api::pod::is_terminal(&self.pod) {
            return;
        }
        self.disruption = verdict.disruption.map(|message| PodCondition {
            type_: "DisruptionTarget".into(),
            status: "True".into(),
            reason: Some("TerminationByKubelet".into()),
            message: Some(message),
            last_transition_time: Some(Time(Timestamp::now())),
            observed_generation: self.pod.metadata.generation,
            ..PodCondition::default()
        });
        self.failed = Some((verdict.reason.to_owned(), verdict.message));
    }

    fn merge(&mut self, record: ContainerRecord) -> bool {
        // A container that has just started was given what was granted at that time.
        if self.runtime.containers.iter().all(|known| known.id != record.id)
            && let Some(resources) = self.starting.remove(&record.name)
        {
            self.allocation.applied.insert(record.id.clone(), resources);
        }
        let changed = self.runtime.merge_container(record);
        self.watch_running();
        changed
    }

    /// Has every running container's exit told.
    fn watch_running(&mut self) {
        self.watched.retain(|id| self.runtime.containers.iter().any(|c| c.id == *id));
        for container in self.runtime.running() {
            if self.watched.insert(container.id.clone()) {
                let (id, sandbox) = (container.id.clone(), container.sandbox.clone());
                tokio::spawn(self.context.observer.clone().watch_exit(self.owner.clone(), id, sandbox));
            }
        }
    }

    fn update(&mut self, new: &Arc<Pod>) {
        self.rounds.updated();
        let mut pod = (**new).clone();
        let status = pod.status.take().unwrap_or_default();
        let theirs = status.conditions.unwrap_or_default();
        let mut own = self.pod.status.clone().unwrap_or_default();
        // Which claims the pod has is for others to say.
        own.resource_claim_statuses = status.resource_claim_statuses.or(own.resource_claim_statuses);
        own.extended_resource_claim_status =
            status.extended_resource_claim_status.or(own.extended_resource_claim_status);
        // Conditions that others write (readiness gates, disruption) come from them, the rest is ours.
        let conditions = own.conditions.get_or_insert_with(Vec::new);
        conditions.retain(|c| OWN_CONDITIONS.contains(&c.type_.as_str()));
        conditions.extend(theirs.into_iter().filter(|c| !OWN_CONDITIONS.contains(&c.type_.as_str())));
        pod.status = Some(own);
        if pod.metadata.labels != self.pod.metadata.labels || pod.metadata.annotations != self.pod.metadata.annotations
        {
            self.volumes_stale();
        }
        let (pod, wanted) = granted(&self.allocation, &Arc::new(pod));
        if wanted.is_none() {
            self.answer = Answer::Granted;
        }
        (self.pod, self.wanted) = (pod, wanted);
    }

    fn volumes_stale(&mut self) {
        if self.volumes == Volumes::Mounted {
            self.volumes = Volumes::Stale;
        }
    }

    /// Decides and acts once; returns when to do so again if nothing happens.
    fn step(&mut self) -> Option<Timestamp> {
        let now = Timestamp::now();
        self.check_ends(now);
        let mut wake = Wake(None);
        if self.ending.is_none() && self.volumes == Volumes::Mounted && self.refresh.is_some_and(|at| at <= now) {
            self.volumes = Volumes::Stale;
        }
        let actions = self.decide(now);
        wake.at(actions.wake);
        self.ended = actions.ended;
        if self.ended {
            self.context.alignment.release(&self.uid);
        }
        self.tell_backoff(&actions.waiting, now);
        self.waiting = actions.waiting;
        for action in actions.actions {
            self.act(action, now);
        }
        wake.at(self.run_probes(now));
        wake.at(self.refresh.filter(|_| self.ending.is_none()));
        wake.at(
            active_deadline(&self.pod, Some(self.started)).filter(|_| self.ending.is_none() && self.failed.is_none())
        );
        self.show(now);
        self.tell_resized();
        self.remember();
        self.rounds.decided(&self.context.workers, !self.busy.is_empty(), self.ending.is_some(), Instant::now());
        wake.at(self.write(now));
        wake.0
    }

    /// Whether the pod is to end, and with what grace.
    fn check_ends(&mut self, now: Timestamp) {
        if self.failed.is_none()
            && self.ending.is_none()
            && active_deadline(&self.pod, Some(self.started)).is_some_and(|at| at <= now)
        {
            let message = "Pod was active on the node longer than the specified deadline".to_owned();
            self.context.report.pod(&self.pod, EventType::Normal, "DeadlineExceeded", message.clone());
            self.failed = Some(("DeadlineExceeded".into(), message));
        }
        let deleted = self.pod.metadata.deletion_timestamp.is_some();
        if !(self.removed || deleted || self.was_terminal || self.failed.is_some()) {
            return;
        }
        let own = self.runtime.containers.iter().filter_map(|c| c.grace).max();
        let grace = if self.orphan { own.unwrap_or(1) } else { spec::grace_period(&self.pod) };
        let grace = self.grace_limit.map_or(grace, |limit| grace.min(limit));
        match &mut self.ending {
            // A grace period only ever shrinks.
            Some(ending) => ending.grace = ending.grace.min(grace),
            None => {
                self.ending = Some(Ending { grace, since: now });
                self.give_up.cancel();
            }
        }
    }

    fn decide(&mut self, now: Timestamp) -> PodActions {
        if self.rejected && self.runtime.is_empty() {
            return PodActions { ended: true, ..Default::default() };
        }
        let finished = is_finished(&self.input(now));
        plan(&View {
            pod: &self.pod,
            runtime: &self.runtime,
            volumes: &self.volumes,
            images: &self.images,
            start_failures: &self.start_failures,
            sandbox_failure: self.sandbox_failure.as_ref(),
            busy: &self.busy,
            applied: &self.allocation.applied,
            resize_failure: self.resize_failure.as_ref(),
            restarts: &self.restarts,
            max_restart_delay: self.context.max_restart_delay,
            probes: &self.probes,
            ending: self.ending.as_ref(),
            finished,
            now,
        })
    }

    fn input(&self, now: Timestamp) -> StatusInput<'_> {
        StatusInput {
            pod: &self.pod,
            runtime: &self.runtime,
            probes: &self.probes,
            waiting: &self.waiting,
            failed: self.failed.as_ref(),
            ending: self.ending.is_some(),
            stopped: self.ending.is_some() && self.runtime.running().count() == 0,
            applied: &self.allocation.applied,
            resize_pending: self.answer.pending(),
            resize_error: self.resize_failure.as_ref().map(|failure| failure.message.as_str()),
            host_ips: &self.context.node.ips,
            runtime_name: &self.context.runtime_name,
            started: self.started,
            now,
        }
    }

    /// An event for each container that begins to wait out its back-off.
    fn tell_backoff(&mut self, waiting: &BTreeMap<String, Waiting>, now: Timestamp) {
        for (container, _) in waiting.iter().filter(|(_, w)| w.reason == "CrashLoopBackOff") {
            let told = self
                .told_backoff
                .get(container)
                .is_some_and(|at| now.duration_since(*at) < SignedDuration::from_secs(10));
            if !told {
                self.told_backoff.insert(container.clone(), now);
                let message =
                    format!("Back-off restarting failed container {container} in pod {}", spec::title(&self.pod));
                self.context.report.container(&self.pod, container, EventType::Warning, "BackOff", message);
            }
        }
    }

    fn act(&mut self, action: Action, now: Timestamp) {
        tracing::debug!(pod = spec::title(&self.pod), %action, "act");
        let task = action.task();
        if !self.busy.insert(task.clone()) {
            return;
        }
        self.tasks.act(&self.pod, &action, self.ending.is_some());
        let context = self.context.clone();
        let pod = self.pod.clone();
        let done = move |result| Done::Action(task, Box::new(result));
        match action {
            Action::MountVolumes => {
                self.tasks.spawn(async move { done(tasks::mount(&context, &pod).await) });
            }
            Action::CleanUp => {
                self.tasks.spawn(async move { done(tasks::clean_up(&context, &pod).await) });
            }
            Action::CreateSandbox { attempt } => {
                if attempt > 0 {
                    let message = "Pod sandbox changed, it will be killed and re-created.";
                    self.context.report.pod(&self.pod, EventType::Normal, "SandboxChanged", message);
                }
                self.tasks.spawn(async move { done(tasks::create_sandbox(&context, &pod, attempt).await) });
            }
            Action::StopSandbox { id } => {
                self.tasks.spawn(async move { done(tasks::stop_sandbox(&context, id).await) });
            }
            Action::Collect { sandboxes, containers } => {
                let logs = self.runtime.containers.iter().filter(|c| containers.contains(&c.id)).cloned().collect();
                self.tasks.spawn(async move { done(tasks::collect(&context, &pod, sandboxes, logs).await) });
            }
            Action::EnsureImage { container } => {
                let give_up = self.give_up.clone();
                self.tasks.spawn(async move { done(tasks::prepare(&context, &pod, container, give_up).await) });
            }
            Action::StartContainer { container, attempt, sandbox } => {
                self.start_failures.remove(&container);
                if let Some(last) = self.runtime.newest(&container).and_then(ContainerRecord::finished) {
                    let known = self.restarts.get(&container);
                    let next = RestartDelay::next(known, last, now, self.context.max_restart_delay);
                    self.restarts.insert(container.clone(), next);
                }
                self.images.remove(&container);
                let Some(ready) = self.ready.remove(&container) else {
                    self.busy.remove(&Task::Start(container));
                    self.tasks.nothing();
                    return;
                };
                if let Some((_, definition)) = spec::container(&pod, &container) {
                    self.starting.insert(container.clone(), definition.resources.clone().unwrap_or_default());
                }
                let target = spec::target(&pod, &container).map(|target| {
                    let found = self.runtime.newest(target).map(|record| record.id.clone());
                    found.ok_or_else(|| format!("unable to find target container {target}"))
                });
                let start = tasks::StartContainer {
                    target,
                    pod,
                    container,
                    attempt,
                    round: self.runtime.round(&self.pod),
                    ips: self.pod_ips(&sandbox),
                    sandbox,
                    ready,
                    messages: self.messages.clone(),
                    give_up: self.give_up.clone(),
                };
                self.tasks.spawn(async move { done(tasks::start(&context, start).await) });
            }
            Action::ResizeContainer { container, id } => {
                self.tasks.spawn(async move { done(tasks::resize(&context, &pod, &container, id).await) });
            }
            Action::ResizePod => {
                let running = self.runtime.running().map(|c| (c.name.clone(), c.id.clone())).collect();
                self.tasks.spawn(async move { done(tasks::resize_whole(&context, &pod, running).await) });
            }
            Action::KillContainer { container, id, grace, cause } => {
                if let Some(record) = self.runtime.containers.iter_mut().find(|c| c.id == id) {
                    record.condemned |= cause.starts_anew();
                }
                let sandbox = self.runtime.containers.iter().find(|c| c.id == id).map(|c| c.sandbox.clone());
                let sandbox = sandbox.unwrap_or_default();
                let host = self.pod_ips(&sandbox).into_iter().next().unwrap_or_default();
                let kill = tasks::Kill { pod, container, id, sandbox, host, grace, cause };
                self.tasks.spawn(async move { done(tasks::kill(&context, kill).await) });
            }
        }
    }

    fn pod_ips(&self, sandbox: &str) -> Vec<String> {
        if spec::host_network(&self.pod) {
            return self.context.node.ips.clone();
        }
        self.runtime.sandboxes.iter().find(|s| s.id == sandbox).map(|s| s.ips.clone()).unwrap_or_default()
    }

    fn run_probes(&mut self, now: Timestamp) -> Option<Timestamp> {
        if self.ending.is_some() {
            return None;
        }
        let (due, wake) = self.probes.tick(&self.pod, &self.runtime, now);
        for due in due {
            let (context, pod) = (self.context.clone(), self.pod.clone());
            let sandbox = self.runtime.newest(&due.container).map(|c| c.sandbox.clone()).unwrap_or_default();
            let host = self.pod_ips(&sandbox).into_iter().next().unwrap_or_default();
            self.tasks.spawn(async move {
                let began = Instant::now();
                let outcome = tasks::probe(&context, &pod, &due, &host).await;
                let name = PodName::of(&pod);
                context.probe_metrics.ended(name, &due.container, due.kind, &outcome, began.elapsed());
                Done::Probe(due, outcome)
            });
        }
        wake
    }
}

const OWN_CONDITIONS: &[&str] = &[
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    "PodResizePending",
    "PodResizeInProgress",
    "AllContainersRestarting",
];

/// The earliest of some times.
struct Wake(Option<Timestamp>);

impl Wake {
    fn at(&mut self, time: Option<Timestamp>) {
        self.0 = match (self.0, time) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
}

fn until(at: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or_default()
}

async fn sleep(pause: Option<Duration>) {
    match pause {
        // Timers fire to the millisecond; a hair more, so that the time has surely come.
        Some(pause) => tokio::time::sleep(pause + Duration::from_millis(1)).await,
        None => std::future::pending().await,
    }
}
