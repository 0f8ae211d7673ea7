//! The plan, step by step against a world that does what it says; what it proposes is compared with golden text.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::pod::probe::Due;
use crate::pod::record::SandboxRecord;
use crate::pod::status::{StatusInput, is_finished, status};

/// A pod, and a runtime that does at once what the plan says.
struct World {
    pod: Pod,
    runtime: PodRecord,
    volumes: Volumes,
    images: BTreeMap<String, Result<String, Failure>>,
    busy: BTreeSet<Task>,
    restarts: BTreeMap<String, RestartDelay>,
    applied: BTreeMap<String, ResourceRequirements>,
    probes: Probes,
    ending: Option<Ending>,
    now: Timestamp,
    serial: u32,
}

const MAX: Duration = Duration::from_secs(300);

fn world(spec: serde_json::Value) -> World {
    let metadata = json!({"name": "p", "namespace": "n", "uid": "u"});
    World {
        pod: serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap(),
        runtime: PodRecord::default(),
        volumes: Volumes::Absent,
        images: BTreeMap::new(),
        busy: BTreeSet::new(),
        restarts: BTreeMap::new(),
        applied: BTreeMap::new(),
        probes: Probes::default(),
        ending: None,
        now: Timestamp::from_second(1_800_000_000).unwrap(),
        serial: 0,
    }
}

impl World {
    fn plan(&self) -> PodActions {
        let waiting = BTreeMap::new();
        let finished = is_finished(&self.input(&waiting));
        plan(&View {
            pod: &self.pod,
            runtime: &self.runtime,
            volumes: &self.volumes,
            images: &self.images,
            start_failures: &BTreeMap::new(),
            sandbox_failure: None,
            busy: &self.busy,
            applied: &self.applied,
            resize_failure: None,
            restarts: &self.restarts,
            max_restart_delay: MAX,
            probes: &self.probes,
            ending: self.ending.as_ref(),
            finished,
            now: self.now,
        })
    }

    fn input<'a>(&'a self, waiting: &'a BTreeMap<String, Waiting>) -> StatusInput<'a> {
        StatusInput {
            pod: &self.pod,
            runtime: &self.runtime,
            probes: &self.probes,
            waiting,
            failed: None,
            ending: self.ending.is_some(),
            stopped: self.runtime.running().count() == 0,
            applied: &self.applied,
            resize_pending: None,
            resize_error: None,
            host_ips: &[],
            runtime_name: "fake",
            started: self.now,
            now: self.now,
        }
    }

    /// Asks, does what is said, and returns what it was.
    fn step(&mut self) -> String {
        let actions = self.plan();
        for action in &actions.actions {
            self.apply(action);
        }
        actions.to_string()
    }

    /// Steps until there is nothing to do.
    fn settle(&mut self) -> String {
        let mut all = String::new();
        for _ in 0..50 {
            let text = self.step();
            let quiet = self.plan().actions.is_empty();
            all.push_str(&text);
            if quiet {
                return all;
            }
        }
        panic!("never settles:\n{all}");
    }

    fn nanos(&self) -> i64 {
        self.now.as_nanosecond() as i64
    }

    fn apply(&mut self, action: &Action) {
        self.serial += 1;
        match action {
            Action::MountVolumes => self.volumes = Volumes::Mounted,
            Action::CleanUp => self.volumes = Volumes::Removed,
            Action::CreateSandbox { attempt } => {
                let sandbox = SandboxRecord {
                    id: format!("s{attempt}"),
                    attempt: *attempt,
                    ready: true,
                    stopped: false,
                    created_at: self.nanos(),
                    ips: vec!["10.0.0.1".into()],
                    seen: Instant::now(),
                };
                self.runtime.merge_sandbox(sandbox);
            }
            Action::StopSandbox { id } => {
                for sandbox in self.runtime.sandboxes.iter_mut().filter(|s| s.id == *id) {
                    (sandbox.ready, sandbox.stopped) = (false, true);
                }
                let inside: Vec<String> =
                    self.runtime.running().filter(|c| c.sandbox == *id).map(|c| c.name.clone()).collect();
                inside.iter().for_each(|name| self.exit(name, 137));
            }
            Action::EnsureImage { container } => drop(self.images.insert(container.clone(), Ok("sha256:1".into()))),
            Action::StartContainer { container, attempt, sandbox } => {
                if let Some(finished) = self.runtime.newest(container).and_then(ContainerRecord::finished) {
                    let next = RestartDelay::next(self.restarts.get(container), finished, self.now, MAX);
                    self.restarts.insert(container.clone(), next);
                }
                self.images.remove(container);
                let hash = spec::container(&self.pod, container).map(|(_, c)| spec::container_hash(&c)).unwrap();
                let record = ContainerRecord {
                    id: format!("{container}{attempt}"),
                    name: container.clone(),
                    attempt: *attempt,
                    sandbox: sandbox.clone(),
                    state: State::Running,
                    created_at: self.nanos(),
                    started_at: self.nanos(),
                    finished_at: 0,
                    exit_code: 0,
                    reason: String::new(),
                    message: String::new(),
                    image: String::new(),
                    image_id: String::new(),
                    hash,
                    log_path: String::new(),
                    user: None,
                    recursive_read_only: Vec::new(),
                    grace: None,
                    round: self.runtime.round(&self.pod),
                    condemned: false,
                    seen: Instant::now(),
                };
                let (_, container) = spec::container(&self.pod, container).unwrap();
                self.applied.insert(record.id.clone(), container.resources.clone().unwrap_or_default());
                self.runtime.merge_container(record);
            }
            Action::KillContainer { container, cause, .. } => {
                self.exit(container, 143);
                let killed = self.runtime.containers.iter_mut().find(|c| c.name == *container);
                killed.unwrap().condemned = cause.starts_anew();
            }
            Action::ResizeContainer { container, id } => {
                let (_, container) = spec::container(&self.pod, container).unwrap();
                self.applied.insert(id.clone(), container.resources.clone().unwrap_or_default());
            }
            Action::ResizePod => {
                let whole = spec::spec(&self.pod).resources.clone().unwrap_or_default();
                self.applied.insert(super::super::resize::WHOLE.to_owned(), whole);
            }
            Action::Collect { sandboxes, containers } => {
                self.runtime.sandboxes.retain(|s| !sandboxes.contains(&s.id));
                self.runtime.containers.retain(|c| !containers.contains(&c.id));
            }
        }
    }

    fn exit(&mut self, name: &str, code: i32) {
        let now = self.nanos();
        let record = self.runtime.containers.iter_mut().find(|c| c.name == name && c.state == State::Running);
        if let Some(record) = record {
            (record.state, record.exit_code, record.finished_at) = (State::Exited, code, now);
        }
    }

    fn later(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
    }

    fn phase(&self) -> String {
        status(&self.input(&BTreeMap::new())).phase.unwrap()
    }
}

#[test]
fn a_pod_starts_with_everything_at_once_and_ends_in_order() {
    let mut w = world(json!({"containers": [{"name": "a", "image": "i:1"}, {"name": "b", "image": "i:1"}]}));
    assert_eq!(w.step(), "mount volumes\ncreate sandbox #0\nensure image of a\nensure image of b\n");
    assert_eq!(w.step(), "start a #0 in s0\nstart b #0 in s0\n");
    assert_eq!((w.step().as_str(), w.phase().as_str()), ("", "Running"));
    w.ending = Some(Ending { grace: 30, since: w.now });
    assert_eq!(
        w.settle(),
        "kill a (a0) within 30 s: the pod ends\nkill b (b0) within 30 s: the pod ends\nstop sandbox s0\nclean up\n"
    );
    assert_eq!(w.step(), "ended\n");
}

#[test]
fn init_containers_run_one_after_another() {
    let mut w = world(json!({"initContainers": [{"name": "x"}, {"name": "y"}], "containers": [{"name": "a"}]}));
    assert_eq!(w.settle(), "mount volumes\ncreate sandbox #0\nensure image of x\nstart x #0 in s0\n");
    assert_eq!(w.phase(), "Pending");
    w.exit("x", 1);
    assert_eq!(w.settle(), "ensure image of x\nstart x #1 in s0\n", "a failed one is tried again at once");
    w.exit("x", 1);
    assert_eq!(
        w.step(),
        "x waits: CrashLoopBackOff: back-off 10s restarting failed container=x pod=p_n(u)\nask again at 2027-01-15T08:00:10Z\n"
    );
    w.later(10);
    w.settle();
    w.exit("x", 0);
    assert_eq!(w.settle(), "ensure image of y\nstart y #0 in s0\n");
    w.exit("y", 0);
    assert_eq!(w.settle(), "ensure image of a\nstart a #0 in s0\n");
    assert_eq!(w.phase(), "Running");
}

#[test]
fn a_failed_init_container_fails_a_pod_that_never_restarts() {
    let mut w =
        world(json!({"restartPolicy": "Never", "initContainers": [{"name": "x"}], "containers": [{"name": "a"}]}));
    w.settle();
    w.exit("x", 1);
    assert_eq!(w.settle(), "stop sandbox s0\nclean up\n");
    assert_eq!(w.phase(), "Failed");
}

#[test]
fn sidecars_start_first_and_end_last() {
    let mut w = world(json!({"restartPolicy": "Never", "initContainers": [
        {"name": "s1", "restartPolicy": "Always"}, {"name": "x"}, {"name": "s2", "restartPolicy": "Always"}],
        "containers": [{"name": "a"}]}));
    w.settle();
    w.exit("x", 0);
    w.settle();
    let running: Vec<_> = w.runtime.running().map(|c| c.name.clone()).collect();
    assert_eq!(running.len(), 3, "{running:?}");
    w.exit("s1", 1);
    assert_eq!(w.settle(), "ensure image of s1\nstart s1 #1 in s0\n", "a sidecar restarts whatever the pod's policy");
    w.exit("a", 0);
    assert_eq!(
        w.settle(),
        "kill s2 (s20) within 30 s: the pod ends\nkill s1 (s11) within 30 s: the pod ends\nstop sandbox s0\nclean up\n"
    );
    assert_eq!(w.phase(), "Succeeded");
}

#[test]
fn a_dead_sandbox_with_nothing_in_it_gives_its_network_back() {
    let mut w = world(json!({"containers": [{"name": "a"}]}));
    w.settle();
    w.exit("a", 1);
    w.runtime.sandboxes[0].ready = false;
    let step = w.step();
    assert!(step.starts_with("stop sandbox s0\n"), "{step}");
}

#[test]
fn a_lost_sandbox_is_replaced_and_everything_starts_again() {
    let mut w = world(json!({"initContainers": [{"name": "x"}], "containers": [{"name": "a"}]}));
    w.settle();
    w.exit("x", 0);
    w.settle();
    w.runtime.sandboxes[0].ready = false;
    assert_eq!(w.step(), "stop sandbox s0\nensure image of x\n", "what still runs in it is stopped first");
    assert_eq!(w.settle(), "create sandbox #1\nstart x #1 in s1\n");
    w.exit("x", 0);
    assert_eq!(w.settle(), "ensure image of a\nstart a #1 in s1\n");
}

#[test]
fn a_changed_image_and_a_failed_probe_restart_the_container() {
    let mut w = world(json!({"containers": [{"name": "a", "image": "i:1",
        "livenessProbe": {"exec": {"command": ["true"]}, "failureThreshold": 1, "terminationGracePeriodSeconds": 7}}]}));
    w.settle();
    let (due, _) = w.probes.tick(&w.pod, &w.runtime, w.now);
    assert_eq!(due, [Due { container: "a".into(), container_id: "a0".into(), kind: ProbeKind::Liveness }]);
    assert!(w.probes.record(&w.pod, &due[0], false, w.now));
    assert_eq!(w.settle(), "kill a (a0) within 7 s: failed liveness probe\nensure image of a\nstart a #1 in s0\n");
    w.pod.spec.as_mut().unwrap().containers[0].image = Some("i:2".into());
    assert!(w.step().starts_with("kill a (a1) within 30 s: its definition changed"));
}

#[test]
fn a_post_start_hook_holds_the_next_container() {
    let hook = json!({"postStart": {"exec": {"command": ["true"]}}});
    let mut w = world(json!({"containers": [{"name": "a", "lifecycle": hook}, {"name": "b"}]}));
    w.step();
    w.busy.insert(Task::Start("a".into()));
    assert_eq!(w.step(), "", "while a is being started nothing happens to b");
    w.busy.clear();
    assert_eq!(w.settle(), "start a #0 in s0\nensure image of b\nstart b #0 in s0\n");
}

#[test]
fn a_granted_resize_updates_what_runs_or_restarts_it() {
    let resources = |cpu: &str, memory: &str| json!({"requests": {"cpu": cpu, "memory": memory}});
    let policy = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
    let mut w = world(json!({"restartPolicy": "OnFailure", "containers": [
        {"name": "a", "resources": resources("1", "1Gi"), "resizePolicy": policy}, {"name": "b"}]}));
    w.settle();
    let grant = |w: &mut World, cpu: &str, memory: &str| {
        let wanted = serde_json::from_value(resources(cpu, memory)).unwrap();
        w.pod.spec.as_mut().unwrap().containers[0].resources = wanted;
        status(&w.input(&BTreeMap::new())).conditions.unwrap().iter().any(|c| c.type_ == "PodResizeInProgress")
    };
    assert!(grant(&mut w, "2", "1Gi"));
    assert_eq!(w.settle(), "resize a (a0)\n");
    assert!(!grant(&mut w, "2", "1Gi"), "it is no longer in progress");
    grant(&mut w, "2", "2Gi");
    assert_eq!(w.settle(), "kill a (a0) within 30 s: it gets other resources\nensure image of a\nstart a #1 in s0\n");
}

#[test]
fn what_was_stopped_to_start_anew_does_so_whatever_its_exit_code() {
    let mut w = world(json!({"restartPolicy": "OnFailure", "containers": [{"name": "a", "image": "i:1"}]}));
    w.settle();
    w.pod.spec.as_mut().unwrap().containers[0].image = Some("i:2".into());
    w.step();
    w.runtime.containers[0].exit_code = 0;
    assert_eq!(w.phase(), "Running");
    assert_eq!(w.settle(), "ensure image of a\nstart a #1 in s0\n");
    w.exit("a", 0);
    w.settle();
    assert_eq!(w.phase(), "Succeeded");
}

#[test]
fn a_rule_restarts_all_containers_with_the_init_containers_first() {
    let rule = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]);
    let mut w = world(json!({"restartPolicy": "Never", "initContainers": [{"name": "x"}],
        "containers": [{"name": "a", "restartPolicy": "Never", "restartPolicyRules": rule}, {"name": "b"}, {"name": "c"}]}));
    let restarting = |w: &World| {
        let conditions = status(&w.input(&BTreeMap::new())).conditions.unwrap();
        let found = conditions.into_iter().find(|c| c.type_ == "AllContainersRestarting").unwrap();
        (found.status, found.reason.unwrap_or_default())
    };
    w.settle();
    w.exit("x", 0);
    w.settle();
    w.exit("c", 0);
    w.settle();
    assert_eq!(restarting(&w).0, "False");
    w.exit("a", 42);
    assert_eq!(restarting(&w), ("True".to_owned(), "RestartAllContainersStarted".to_owned()));
    assert_eq!(w.step(), "kill b (b0) within 0 s: all containers restart\n");
    assert_eq!(restarting(&w).0, "False");
    assert_eq!(
        w.settle(),
        "ensure image of x\nstart x #1 in s0\n",
        "in the same sandbox, from the first init container"
    );
    assert_eq!(w.phase(), "Pending");
    w.exit("x", 0);
    let all = w.settle();
    for name in ["a", "b", "c"] {
        assert!(all.contains(&format!("start {name} #1 in s0\n")), "{all}");
    }
    assert_eq!(w.phase(), "Running");
    w.exit("a", 1);
    assert_eq!(w.settle(), "", "another exit code is no reason");
    w.exit("b", 0);
    w.exit("c", 0);
    assert_eq!(w.phase(), "Failed");
}

fn debug_with(w: &mut World, names: &[&str]) {
    let added = names.iter().map(|name| json!({"name": name, "image": "i:1", "targetContainerName": "a"})).collect();
    w.pod.spec.as_mut().unwrap().ephemeral_containers =
        serde_json::from_value(serde_json::Value::Array(added)).unwrap();
}

#[test]
fn an_ephemeral_container_starts_once_and_counts_for_nothing() {
    let mut w =
        world(json!({"restartPolicy": "Always", "initContainers": [{"name": "x"}], "containers": [{"name": "a"}]}));
    w.settle();
    debug_with(&mut w, &["d"]);
    assert_eq!(w.settle(), "ensure image of d\nstart d #0 in s0\n", "init containers need not be over");
    assert_eq!(w.phase(), "Pending");
    w.exit("x", 0);
    w.settle();
    assert_eq!(w.phase(), "Running");
    w.exit("d", 1);
    assert_eq!(w.settle(), "", "it is never started again");
    debug_with(&mut w, &["d", "e"]);
    assert_eq!(w.settle(), "ensure image of e\nstart e #0 in s0\n");
    let told = status(&w.input(&BTreeMap::new()));
    let told: Vec<_> = told.ephemeral_container_statuses.iter().flatten().map(|s| (s.name.as_str(), s.ready)).collect();
    assert_eq!(told, [("d", false), ("e", false)]);

    // A pod whose own containers are done does not wait for it.
    w.pod.spec.as_mut().unwrap().restart_policy = Some("Never".into());
    w.exit("a", 0);
    assert_eq!(w.settle(), "kill e (e0) within 30 s: the pod ends\nstop sandbox s0\nclean up\n");
    assert_eq!(w.phase(), "Succeeded");
}

#[test]
fn an_image_that_fails_is_shown_and_tried_again_later() {
    let mut w = world(json!({"containers": [{"name": "a"}]}));
    w.step();
    let failure =
        Failure { reason: "ErrImagePull".into(), message: "no".into(), retry: w.now + SignedDuration::from_secs(10) };
    w.images.insert("a".into(), Err(failure));
    assert_eq!(w.step(), "a waits: ErrImagePull: no\nask again at 2027-01-15T08:00:10Z\n");
    w.later(10);
    assert_eq!(w.step(), "ensure image of a\na waits: ErrImagePull: no\n");
}

#[test]
fn a_shorter_grace_kills_again() {
    let mut w = world(json!({"containers": [{"name": "a"}]}));
    w.settle();
    w.ending = Some(Ending { grace: 30, since: w.now });
    w.busy.insert(Task::Kill("a0".into(), 30));
    assert_eq!(w.plan().to_string(), "");
    w.ending = Some(Ending { grace: 0, since: w.now });
    assert_eq!(w.plan().to_string(), "kill a (a0) within 0 s: the pod ends\n");
}

/// What may happen to a pod between two looks at it.
#[derive(Clone, Debug)]
enum Event {
    /// An action that is under way, by its place in the list, comes to its end.
    Done(usize),
    /// A running container exits.
    Exit(usize, i32),
    /// A probe of a running container condemns it.
    Probe(usize),
    /// The sandbox dies.
    SandboxDies,
    /// A container's image is changed.
    Image(usize),
    /// A container is granted other resources.
    Resize(usize),
    /// An ephemeral container is added.
    Debug,
    /// The kubelet is killed and starts anew: what was under way is either done or not, what is not on disk is lost.
    Restart(bool),
    /// Seconds pass.
    Pause(i64),
    /// The pod ends: deleted, evicted, or past its deadline; or its grace is cut.
    End(i64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        12 => (0usize..4).prop_map(Event::Done),
        4 => (0usize..4, prop::sample::select(vec![0, 1, 42])).prop_map(|(which, code)| Event::Exit(which, code)),
        1 => (0usize..4).prop_map(Event::Probe),
        1 => Just(Event::SandboxDies),
        1 => (0usize..3).prop_map(Event::Image),
        1 => (0usize..2).prop_map(Event::Resize),
        1 => Just(Event::Debug),
        1 => any::<bool>().prop_map(Event::Restart),
        3 => (1i64..60).prop_map(Event::Pause),
        1 => prop::sample::select(vec![0i64, 5, 30]).prop_map(Event::End),
    ];
    prop::collection::vec(event, 0..60)
}

/// A world where actions take their time.
struct Slow {
    w: World,
    under_way: Vec<Action>,
}

impl Slow {
    /// Asks, and begins what is said.
    fn look(&mut self) {
        for action in self.w.plan().actions {
            if let Action::StartContainer { container, .. } = &action {
                self.w.images.remove(container);
            }
            assert!(self.w.busy.insert(action.task()), "{action} is under way twice");
            self.under_way.push(action);
        }
        self.check();
    }

    fn finish(&mut self, which: usize) {
        if which < self.under_way.len() {
            let action = self.under_way.remove(which);
            self.w.busy.remove(&action.task());
            let dead = |id: &str| !self.w.runtime.sandboxes.iter().any(|s| s.id == id && s.ready);
            // Nothing starts in a sandbox that died meanwhile: the runtime says so.
            if !matches!(&action, Action::StartContainer { sandbox, .. } if dead(sandbox)) {
                self.w.apply(&action);
            }
        }
    }

    /// What must hold at every instant.
    fn check(&self) {
        let runtime = &self.w.runtime;
        assert!(runtime.sandboxes.iter().filter(|s| s.ready).count() <= 1, "two sandboxes are up");
        let mut names: Vec<&str> = runtime.running().map(|c| c.name.as_str()).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "a container runs twice: {names:?}");
        if self.w.ending.is_some() {
            let starts = self.w.plan().actions;
            assert!(!starts.iter().any(|a| matches!(a, Action::StartContainer { .. } | Action::CreateSandbox { .. })));
        }
    }

    fn happen(&mut self, event: Event) {
        let running =
            |slow: &Slow, which: usize| -> Option<ContainerRecord> { slow.w.runtime.running().nth(which).cloned() };
        match event {
            Event::Done(which) => self.finish(which),
            Event::Exit(which, code) => {
                if let Some(record) = running(self, which) {
                    self.w.exit(&record.name, code);
                }
            }
            Event::Probe(which) => {
                if let Some(record) = running(self, which) {
                    let due = Due { container: record.name, container_id: record.id, kind: ProbeKind::Liveness };
                    self.w.probes.record(&self.w.pod, &due, false, self.w.now);
                }
            }
            Event::SandboxDies => {
                let Some(sandbox) = self.w.runtime.sandboxes.first_mut() else { return };
                sandbox.ready = false;
                let id = sandbox.id.clone();
                let inside: Vec<String> =
                    self.w.runtime.running().filter(|c| c.sandbox == id).map(|c| c.name.clone()).collect();
                inside.iter().for_each(|name| self.w.exit(name, 137));
            }
            Event::Image(which) => {
                let container = self.w.pod.spec.as_mut().unwrap().containers.get_mut(which);
                container.unwrap().image = Some(format!("i:{}", self.w.serial));
            }
            Event::Resize(which) => {
                let limits = json!({"limits": {"cpu": format!("{}m", 100 + self.w.serial)}});
                let container = self.w.pod.spec.as_mut().unwrap().containers.get_mut(which);
                container.unwrap().resources = serde_json::from_value(limits).ok();
            }
            Event::Debug => debug_with(&mut self.w, &["d"]),
            Event::Restart(done) => {
                while done && !self.under_way.is_empty() {
                    self.finish(0);
                }
                self.under_way.clear();
                self.w.busy.clear();
                self.w.images.clear();
                self.w.restarts.clear();
                self.w.probes = Probes::default();
                if self.w.volumes != Volumes::Removed {
                    self.w.volumes = Volumes::Absent;
                }
                self.w.runtime.containers.iter_mut().for_each(|c| c.condemned = false);
            }
            Event::Pause(seconds) => self.w.later(seconds),
            Event::End(grace) => {
                let since = self.w.now;
                let ending = self.w.ending.get_or_insert(Ending { grace, since });
                ending.grace = ending.grace.min(grace);
            }
        }
    }

    /// Lets everything come to its end.
    fn settle(&mut self) {
        for _ in 0..500 {
            self.look();
            if self.under_way.is_empty() {
                return;
            }
            self.finish(0);
        }
        panic!("never settles: {}", self.w.plan());
    }
}

proptest! {
    /// Whatever happens in whatever order, nothing runs twice, nothing starts in a pod that ends, an ephemeral container
    /// starts once, a pod that is left alone settles, and one that ends leaves nothing.
    #[test]
    fn any_life_comes_to_an_end(policy in prop::sample::select(vec!["Always", "OnFailure", "Never"]), events in events()) {
        let rule = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]);
        let probe = json!({"exec": {"command": ["x"]}, "failureThreshold": 1});
        let pod = json!({"restartPolicy": policy,
            "initContainers": [{"name": "x"}, {"name": "s", "restartPolicy": "Always", "livenessProbe": probe}],
            "containers": [{"name": "a", "restartPolicy": policy, "restartPolicyRules": rule},
                {"name": "b", "livenessProbe": probe}, {"name": "c"}]});
        let mut slow = Slow { w: world(pod), under_way: Vec::new() };
        for event in events {
            slow.look();
            slow.happen(event);
            prop_assert!(slow.w.runtime.containers.iter().filter(|c| c.name == "d").count() <= 1);
        }
        slow.settle();
        if slow.w.ending.is_none() {
            // Left alone, whatever waits for a back-off comes back, and the pod is as its definition wants it.
            slow.w.later(600);
            slow.settle();
            slow.w.exit("x", 0);
            slow.settle();
            let view = slow.w.plan();
            prop_assert!(view.actions.is_empty(), "{}", view);
            slow.w.ending = Some(Ending { grace: 30, since: slow.w.now });
        }
        slow.settle();
        prop_assert!(slow.w.plan().ended);
        prop_assert_eq!(slow.w.runtime.running().count(), 0);
        prop_assert!(slow.w.runtime.sandboxes.iter().all(|s| s.stopped));
    }
}
