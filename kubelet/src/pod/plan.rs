//! The seam of the kubelet: what to do next for one pod.
//!
//! [`plan`] looks at the pod's definition, at what the runtime holds of it, at what its probes say and at the time, and
//! returns actions as data. The worker applies them, each as a task of its own, and asks again whenever anything has
//! changed; what is under way is in [`View::busy`], so that asking often is harmless.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};

use super::probe::{ProbeKind, Probes, probe_of};
use super::record::{ContainerRecord, PodRecord, State};
use super::resize;
use super::restart::RestartDelay;
use super::spec::{self, Role};

/// One thing to do. Each is done by a task of its own; the same one is never under way twice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Make the pod's volumes, folders and cgroup.
    MountVolumes,
    /// Create and start a sandbox.
    CreateSandbox {
        /// How many there were before.
        attempt: u32,
    },
    /// Stop a sandbox and what is in it.
    StopSandbox {
        /// Which.
        id: String,
    },
    /// Make sure that the container's image is on the node.
    EnsureImage {
        /// Which container.
        container: String,
    },
    /// Create and start a container.
    StartContainer {
        /// Which.
        container: String,
        /// How often it was started before.
        attempt: u32,
        /// Into which sandbox.
        sandbox: String,
    },
    /// Stop a container.
    KillContainer {
        /// Which.
        container: String,
        /// Its id.
        id: String,
        /// Seconds between SIGTERM and SIGKILL.
        grace: i64,
        /// Why.
        cause: Cause,
    },
    /// Give a running container the resources that it was granted.
    ResizeContainer {
        /// Which.
        container: String,
        /// Its id.
        id: String,
    },
    /// Give the pod as a whole the resources that it was granted.
    ResizePod,
    /// Take volumes and cgroup away: nothing runs any more.
    CleanUp,
    /// Forget sandboxes and containers that have served their time.
    Collect {
        /// Ids of sandboxes.
        sandboxes: Vec<String>,
        /// Ids of containers.
        containers: Vec<String>,
    },
}

/// Why a container is stopped.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Its pod ends.
    PodEnds,
    /// Its definition changed.
    DefinitionChanged,
    /// A probe condemned it.
    Probe(ProbeKind),
    /// It is in a sandbox that is gone.
    SandboxChanged,
    /// It gets other resources, and its resize policy asks for a restart.
    Resized,
    /// Another container's end restarts all of them.
    AllRestart,
}

impl Cause {
    /// Whether the container is stopped in order to be started again.
    pub fn starts_anew(&self) -> bool {
        matches!(self, Self::DefinitionChanged | Self::Probe(_) | Self::Resized | Self::AllRestart)
    }
}

/// How a running container comes to the resources that it was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resized {
    /// While it runs.
    Update,
    /// By being started again.
    Restart,
}

/// What names a task under way: an action without what may differ between two tries.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Task {
    /// [`Action::MountVolumes`] or [`Action::CleanUp`].
    Volumes,
    /// [`Action::CreateSandbox`] or [`Action::StopSandbox`].
    Sandbox,
    /// [`Action::EnsureImage`] of a container.
    Image(String),
    /// [`Action::StartContainer`] of a container.
    Start(String),
    /// [`Action::KillContainer`] of a container id, with the grace given.
    Kill(String, i64),
    /// [`Action::ResizeContainer`] of a container id, or [`Action::ResizePod`] by [`resize::WHOLE`].
    Resize(String),
    /// [`Action::Collect`].
    Collect,
}

impl Action {
    /// The task that does this action.
    pub fn task(&self) -> Task {
        match self {
            Action::MountVolumes | Action::CleanUp => Task::Volumes,
            Action::CreateSandbox { .. } | Action::StopSandbox { .. } => Task::Sandbox,
            Action::EnsureImage { container } => Task::Image(container.clone()),
            Action::StartContainer { container, .. } => Task::Start(container.clone()),
            Action::KillContainer { id, grace, .. } => Task::Kill(id.clone(), *grace),
            Action::ResizeContainer { id, .. } => Task::Resize(id.clone()),
            Action::ResizePod => Task::Resize(resize::WHOLE.to_owned()),
            Action::Collect { .. } => Task::Collect,
        }
    }
}

/// Something that failed and may be tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The reason shown in the status, such as `ErrImagePull`.
    pub reason: String,
    /// The message shown in the status.
    pub message: String,
    /// Not before.
    pub retry: Timestamp,
}

/// How far the pod's volumes are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Volumes {
    /// Not made, or in need of a new look.
    #[default]
    Absent,
    /// Made and current.
    Mounted,
    /// Made, but their content may be old.
    Stale,
    /// Not made: why, and when to try again.
    Failed(Failure),
    /// Taken away for good.
    Removed,
}

/// Why and how a pod is being ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Seconds of grace in all.
    pub grace: i64,
    /// Since when.
    pub since: Timestamp,
}

/// Everything that the plan depends on.
#[derive(Debug)]
pub struct View<'a> {
    /// The definition.
    pub pod: &'a Pod,
    /// What the runtime holds.
    pub runtime: &'a PodRecord,
    /// The volumes.
    pub volumes: &'a Volumes,
    /// Images found good for a container that is about to start.
    pub images: &'a BTreeMap<String, Result<String, Failure>>,
    /// Why a container could not be created or started, and when to try again.
    pub start_failures: &'a BTreeMap<String, Failure>,
    /// Why there is no sandbox, and when to try again.
    pub sandbox_failure: Option<&'a Failure>,
    /// What is under way.
    pub busy: &'a BTreeSet<Task>,
    /// What each running container was given, by id; see [`super::resize`].
    pub applied: &'a BTreeMap<String, ResourceRequirements>,
    /// Why a container could not be given other resources, and when to try again.
    pub resize_failure: Option<&'a Failure>,
    /// Back-off of restarts.
    pub restarts: &'a BTreeMap<String, RestartDelay>,
    /// The longest back-off.
    pub max_restart_delay: Duration,
    /// What the probes say.
    pub probes: &'a Probes,
    /// Set when the pod is to end.
    pub ending: Option<&'a Ending>,
    /// Whether every container has ended for good.
    pub finished: bool,
    /// The time.
    pub now: Timestamp,
}

/// A container that cannot start yet, as the status shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The reason.
    pub reason: String,
    /// The message, may be empty.
    pub message: String,
}

/// What to do next for a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodActions {
    /// What to start now, at the same time.
    pub actions: Vec<Action>,
    /// Containers held back by something worth telling.
    pub waiting: BTreeMap<String, Waiting>,
    /// When to ask again even if nothing happens.
    pub wake: Option<Timestamp>,
    /// Nothing is left to do or to wait for, and the pod is ending: its worker may go once the API knows.
    pub ended: bool,
}

/// What to do next for the pod.
pub fn plan(view: &View<'_>) -> PodActions {
    let mut plan = Planner { view, round: view.runtime.round(view.pod), out: PodActions::default() };
    match view.ending {
        Some(ending) => plan.end(ending),
        None if view.finished => plan.tidy(),
        None => plan.run(),
    }
    plan.out
}

struct Planner<'a> {
    view: &'a View<'a>,
    /// Containers of earlier rounds end, and count as never started.
    round: u32,
    out: PodActions,
}

impl<'a> Planner<'a> {
    fn act(&mut self, action: Action) {
        if !self.view.busy.contains(&action.task()) {
            self.out.actions.push(action);
        }
    }

    fn wake_at(&mut self, time: Timestamp) {
        self.out.wake = Some(self.out.wake.map_or(time, |wake| wake.min(time)));
    }

    fn wait(&mut self, container: &str, reason: &str, message: String) {
        self.out.waiting.insert(container.to_owned(), Waiting { reason: reason.to_owned(), message });
    }

    /// Whether a failed thing may be tried again; else remembers to ask when it may.
    fn may_retry(&mut self, failure: &Failure) -> bool {
        if failure.retry <= self.view.now {
            return true;
        }
        self.wake_at(failure.retry);
        false
    }

    /// The pod lives: bring every container to where it should be.
    fn run(&mut self) {
        let view = self.view;
        self.collect();
        self.volumes();
        let sandbox = self.sandbox();
        self.resize_whole(sandbox);
        self.ephemeral(sandbox);
        if self.end_round() {
            return;
        }
        let initialized = self.initialized(sandbox);
        let mut hold = false;
        for (role, container) in spec::containers(view.pod) {
            if (role == Role::Main && (hold || !initialized)) || (role == Role::Init && initialized) {
                continue;
            }
            let record = sandbox.and_then(|s| self.in_round(s, &container.name));
            match record {
                Some(r) if role == Role::Init && r.state == State::Exited && r.exit_code == 0 => continue,
                Some(r) if r.state == State::Running => self.watch_over(role, container, r),
                _ => self.start(role, container, record, sandbox),
            }
            let settled = record.is_some_and(|r| self.is_settled(container, r));
            match role {
                // One after another, each finished (or, a sidecar, started) before the next.
                Role::Init => break,
                Role::Sidecar if !initialized && !settled => break,
                Role::Sidecar => {}
                // Stock starts containers in order and runs a postStart hook before it goes on; people rely on it.
                Role::Main => hold = has_post_start(container) && !settled && !self.gave_up(record),
                Role::Ephemeral => {}
            }
        }
    }

    /// The newest container of that name in the sandbox, if it is of this round.
    fn in_round(&self, sandbox: &str, name: &str) -> Option<&'a ContainerRecord> {
        self.view.runtime.newest_in(sandbox, name).filter(|record| record.round >= self.round)
    }

    /// Ends what is left of earlier rounds, at once and without hooks (KEP-5532). Says whether there is any.
    fn end_round(&mut self) -> bool {
        let view = self.view;
        let old = |name: &str| view.runtime.newest(name).filter(|record| record.round < self.round);
        let running: Vec<&ContainerRecord> = spec::containers(view.pod)
            .filter_map(|(_, container)| old(&container.name))
            .filter(|record| record.state == State::Running)
            .collect();
        for record in &running {
            self.kill(record, 0, Cause::AllRestart);
        }
        !running.is_empty()
    }

    /// Ephemeral containers start as soon as there is a sandbox, each at most once in the pod's life.
    fn ephemeral(&mut self, sandbox: Option<&str>) {
        let view = self.view;
        for ephemeral in spec::ephemeral_containers(view.pod) {
            if view.runtime.newest(&ephemeral.name).is_none() {
                self.start(Role::Ephemeral, &spec::as_container(ephemeral), None, sandbox);
            }
        }
    }

    /// Whether main containers may start: all init containers have done their work, or a main one was made already.
    fn initialized(&self, sandbox: Option<&str>) -> bool {
        let init = spec::init_containers(self.view.pod);
        if init.is_empty() {
            return true;
        }
        let Some(sandbox) = sandbox else { return false };
        let record = |c: &Container| self.in_round(sandbox, &c.name);
        spec::spec(self.view.pod).containers.iter().any(|c| record(c).is_some())
            || init.iter().all(|c| {
                record(c).is_some_and(|r| match spec::is_sidecar(c) {
                    true => self.is_settled(c, r),
                    false => r.state == State::Exited && r.exit_code == 0,
                })
            })
    }

    /// Whether the container runs, has started as its startup probe says, and its postStart hook is over.
    fn is_settled(&self, container: &Container, record: &ContainerRecord) -> bool {
        record.state == State::Running
            && self.view.probes.started(container, &record.id)
            && !self.view.busy.contains(&Task::Start(container.name.clone()))
    }

    /// Whether a container ended, so that nothing need wait for its postStart hook.
    fn gave_up(&self, record: Option<&ContainerRecord>) -> bool {
        record.is_some_and(|r| matches!(r.state, State::Exited | State::Unknown))
    }

    fn collect(&mut self) {
        let (sandboxes, containers) = self.view.runtime.spent();
        if !(sandboxes.is_empty() && containers.is_empty()) {
            self.act(Action::Collect { sandboxes, containers });
        }
    }

    fn volumes(&mut self) {
        match self.view.volumes {
            Volumes::Absent | Volumes::Stale => self.act(Action::MountVolumes),
            Volumes::Failed(failure) => {
                if self.may_retry(failure) {
                    self.act(Action::MountVolumes);
                }
            }
            Volumes::Mounted | Volumes::Removed => {}
        }
    }

    /// The sandbox to run in; asks for one if there is none.
    fn sandbox(&mut self) -> Option<&'a str> {
        let view = self.view;
        let newest = view.runtime.sandboxes.first();
        // Whatever is left in older sandboxes goes, before a new one takes the pod's name and volumes.
        let mut stale = view.runtime.sandboxes.iter().filter(|s| !s.ready || newest.is_some_and(|n| n.id != s.id));
        // A dead one is stopped too: until then it holds a network namespace and an address.
        if let Some(sandbox) = stale.find(|s| !s.stopped) {
            self.act(Action::StopSandbox { id: sandbox.id.clone() });
            return None;
        }
        if let Some(ready) = view.runtime.ready_sandbox() {
            return Some(&ready.id);
        }
        if let Some(failure) = view.sandbox_failure
            && !self.may_retry(failure)
        {
            return None;
        }
        self.act(Action::CreateSandbox { attempt: newest.map_or(0, |s| s.attempt + 1) });
        None
    }

    /// Kills a running container that must not go on.
    fn watch_over(&mut self, role: Role, container: &Container, record: &ContainerRecord) {
        let cause = if role != Role::Init && record.hash != spec::container_hash(container) && !record.hash.is_empty() {
            Some(Cause::DefinitionChanged)
        } else {
            self.view.probes.condemned(&container.name, &record.id).map(Cause::Probe)
        };
        let Some(cause) = cause else { return self.resize(container, record) };
        let own = match &cause {
            Cause::Probe(kind) => probe_of(container, *kind).and_then(|p| p.termination_grace_period_seconds),
            _ => None,
        };
        self.kill(record, own.unwrap_or_else(|| spec::grace_period(self.view.pod)), cause);
    }

    /// Brings the pod as a whole to the resources that it was granted.
    fn resize_whole(&mut self, sandbox: Option<&str>) {
        let view = self.view;
        if sandbox.is_some()
            && resize::is_whole_behind(view.pod, view.applied)
            && view.resize_failure.is_none_or(|failure| self.may_retry(failure))
        {
            self.act(Action::ResizePod);
        }
    }

    /// Brings a running container to the resources that it was granted.
    fn resize(&mut self, container: &Container, record: &ContainerRecord) {
        match resize::action(container, self.view.applied.get(&record.id)) {
            None => {}
            Some(Resized::Restart) => self.kill(record, spec::grace_period(self.view.pod), Cause::Resized),
            Some(Resized::Update) => {
                let view = self.view;
                if view.resize_failure.is_none_or(|failure| self.may_retry(failure)) {
                    self.act(Action::ResizeContainer { container: record.name.clone(), id: record.id.clone() });
                }
            }
        }
    }

    fn kill(&mut self, record: &ContainerRecord, grace: i64, cause: Cause) {
        let under_way =
            self.view.busy.iter().any(|t| matches!(t, Task::Kill(id, g) if *id == record.id && *g <= grace));
        if !under_way {
            self.out.actions.push(Action::KillContainer {
                container: record.name.clone(),
                id: record.id.clone(),
                grace,
                cause,
            });
        }
    }

    /// Starts a container that does not run, if it should and may.
    fn start(
        &mut self,
        role: Role,
        container: &Container,
        in_sandbox: Option<&ContainerRecord>,
        sandbox: Option<&str>,
    ) {
        let view = self.view;
        let name = &container.name;
        if view.busy.contains(&Task::Start(name.clone())) {
            return;
        }
        let last = view.runtime.newest(name);
        let ended = last.filter(|r| matches!(r.state, State::Exited | State::Unknown));
        if let Some(r) = ended {
            // After a lost sandbox everything starts again, but what has succeeded for good.
            let rerun_init = role == Role::Init && in_sandbox.is_none();
            let restarted = r.round < self.round;
            if !rerun_init && !restarted && !r.comes_back(view.pod, container) {
                return;
            }
            if let Some(until) = self.backing_off(name, r) {
                self.wake_at(until);
                return;
            }
        }
        if let Some(failure) = view.start_failures.get(name)
            && !self.may_retry(failure)
        {
            self.wait(name, &failure.reason, failure.message.clone());
            return;
        }
        match view.images.get(name) {
            None => return self.act(Action::EnsureImage { container: name.clone() }),
            Some(Err(failure)) => {
                self.wait(name, &failure.reason, failure.message.clone());
                if self.may_retry(failure) {
                    self.act(Action::EnsureImage { container: name.clone() });
                }
                return;
            }
            Some(Ok(_)) => {}
        }
        let Some(sandbox) = sandbox else { return };
        if matches!(view.volumes, Volumes::Mounted | Volumes::Stale) {
            let attempt = last.map_or(0, |r| r.attempt + 1);
            self.act(Action::StartContainer { container: name.clone(), attempt, sandbox: sandbox.to_owned() });
        }
    }

    fn backing_off(&mut self, name: &str, record: &ContainerRecord) -> Option<Timestamp> {
        let view = self.view;
        let finished = record.finished()?;
        let known = view.restarts.get(name);
        let until = RestartDelay::until(known, finished, view.max_restart_delay).filter(|until| *until > view.now)?;
        let delay = known.map(|k| k.delay).unwrap_or_default();
        let message = format!(
            "back-off {} restarting failed container={name} pod={}",
            crate::config::GoDuration(delay),
            spec::title(view.pod)
        );
        self.wait(name, "CrashLoopBackOff", message);
        Some(until)
    }

    /// All containers have ended for good, but the pod stays: give back what it holds, keep its logs.
    fn tidy(&mut self) {
        let view = self.view;
        let grace = spec::grace_period(view.pod);
        for record in view.runtime.running().filter(|r| spec::role(view.pod, &r.name) == Some(Role::Ephemeral)) {
            self.kill(record, grace, Cause::PodEnds);
        }
        let sidecars: Vec<_> = self.running_sidecars().collect();
        if let Some(last) = sidecars.last() {
            return self.kill(last, grace, Cause::PodEnds);
        }
        if view.runtime.running().count() == 0 {
            self.give_back();
        }
    }

    /// The pod ends: containers, then sidecars in reverse, then the sandbox, then what is left.
    fn end(&mut self, ending: &Ending) {
        let view = self.view;
        if view.busy.iter().any(|t| matches!(t, Task::Start(_))) {
            // A container that is being started is stopped once its id is known.
            return self.kill_running(ending, false);
        }
        if view.runtime.running().count() > 0 {
            return self.kill_running(ending, true);
        }
        self.give_back();
    }

    fn kill_running(&mut self, ending: &Ending, sidecars_too: bool) {
        let view = self.view;
        let is_sidecar = |r: &ContainerRecord| spec::role(view.pod, &r.name) == Some(Role::Sidecar);
        let mains: Vec<_> = view.runtime.running().filter(|r| !is_sidecar(r)).collect();
        for record in &mains {
            self.kill(record, ending.grace, Cause::PodEnds);
        }
        if mains.is_empty() && sidecars_too {
            // What the main containers left of the grace, two seconds at least, as in stock.
            let used = view.now.duration_since(ending.since).as_secs();
            let left = (ending.grace - used).max(ending.grace.min(2));
            let last = self.running_sidecars().last();
            let under_way = |id: &str| view.busy.iter().any(|t| matches!(t, Task::Kill(k, _) if k == id));
            if let Some(last) = last
                && !under_way(&last.id)
            {
                self.kill(last, left, Cause::PodEnds);
            }
            // One that the spec does not know (any more) is no sidecar and was killed above.
        }
    }

    /// Running sidecars in the order of the spec.
    fn running_sidecars(&self) -> impl Iterator<Item = &'a ContainerRecord> + use<'a> {
        let view = self.view;
        let sidecars = spec::containers(view.pod).filter(|(role, _)| *role == Role::Sidecar);
        sidecars.filter_map(|(_, c)| view.runtime.newest(&c.name)).filter(|r| r.state == State::Running)
    }

    fn give_back(&mut self) {
        let view = self.view;
        if view.busy.contains(&Task::Sandbox) {
            return;
        }
        if let Some(sandbox) = view.runtime.sandboxes.iter().find(|s| !s.stopped) {
            if let Some(failure) = view.sandbox_failure
                && !self.may_retry(failure)
            {
                return;
            }
            return self.act(Action::StopSandbox { id: sandbox.id.clone() });
        }
        match view.volumes {
            Volumes::Removed => self.out.ended = view.busy.is_empty(),
            Volumes::Failed(failure) if view.busy.is_empty() && !self.may_retry(failure) => {}
            _ if !view.busy.contains(&Task::Volumes) => self.act(Action::CleanUp),
            _ => {}
        }
    }
}

fn has_post_start(container: &Container) -> bool {
    container.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some())
}

/// When the pod's active deadline passes, if it has one and has started.
pub fn active_deadline(pod: &Pod, started: Option<Timestamp>) -> Option<Timestamp> {
    let seconds = spec::spec(pod).active_deadline_seconds?;
    started?.checked_add(SignedDuration::from_secs(seconds)).ok()
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::PodEnds => f.write_str("the pod ends"),
            Cause::DefinitionChanged => f.write_str("its definition changed"),
            Cause::Probe(kind) => write!(f, "failed {} probe", kind.to_string().to_lowercase()),
            Cause::SandboxChanged => f.write_str("its sandbox changed"),
            Cause::Resized => f.write_str("it gets other resources"),
            Cause::AllRestart => f.write_str("all containers restart"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::MountVolumes => f.write_str("mount volumes"),
            Action::CreateSandbox { attempt } => write!(f, "create sandbox #{attempt}"),
            Action::StopSandbox { id } => write!(f, "stop sandbox {id}"),
            Action::EnsureImage { container } => write!(f, "ensure image of {container}"),
            Action::StartContainer { container, attempt, sandbox } => {
                write!(f, "start {container} #{attempt} in {sandbox}")
            }
            Action::KillContainer { container, id, grace, cause } => {
                write!(f, "kill {container} ({id}) within {grace} s: {cause}")
            }
            Action::ResizeContainer { container, id } => write!(f, "resize {container} ({id})"),
            Action::ResizePod => f.write_str("resize the pod"),
            Action::CleanUp => f.write_str("clean up"),
            Action::Collect { sandboxes, containers } => {
                write!(f, "forget {}", [sandboxes.join(" "), containers.join(" ")].join(" ").trim())
            }
        }
    }
}

impl fmt::Display for PodActions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for action in &self.actions {
            writeln!(f, "{action}")?;
        }
        for (container, waiting) in &self.waiting {
            writeln!(f, "{container} waits: {}: {}", waiting.reason, waiting.message)?;
        }
        if let Some(wake) = self.wake {
            writeln!(f, "ask again at {wake}")?;
        }
        if self.ended {
            writeln!(f, "ended")?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
