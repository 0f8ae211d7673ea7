//! The status that the pod shows: phase, conditions, containers. Pure; who sends it is [`crate::worker`].

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    ContainerUser, HostIP, LinuxContainerUser, Pod, PodCondition, PodIP, PodStatus, ResourceRequirements, VolumeMount,
    VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::collections::BTreeMap;

use super::plan::Waiting;
use super::probe::Probes;
use super::record::{ContainerRecord, PodRecord, State, timestamp};
use super::resize;
use super::spec::{self, Role};

/// What the status is made from.
#[derive(Debug)]
pub struct StatusInput<'a> {
    /// The definition, with the status last known.
    pub pod: &'a Pod,
    /// What the runtime holds.
    pub runtime: &'a PodRecord,
    /// What the probes say.
    pub probes: &'a Probes,
    /// Containers held back by something worth telling.
    pub waiting: &'a BTreeMap<String, Waiting>,
    /// A verdict from outside the containers (rejected, past its deadline): reason and message; the pod has failed.
    pub failed: Option<&'a (String, String)>,
    /// Whether the pod is ending, so that nothing starts any more.
    pub ending: bool,
    /// Whether everything that ran has been stopped.
    pub stopped: bool,
    /// What each running container was given, by id.
    pub applied: &'a BTreeMap<String, ResourceRequirements>,
    /// What the node said to a resize, if it has not granted it: reason and message.
    pub resize_pending: Option<(&'static str, &'a str)>,
    /// Why a granted resize could not be brought about.
    pub resize_error: Option<&'a str>,
    /// The node's addresses.
    pub host_ips: &'a [String],
    /// `containerd`, the scheme of container ids.
    pub runtime_name: &'a str,
    /// When this kubelet first saw the pod.
    pub started: Timestamp,
    /// The time.
    pub now: Timestamp,
}

/// The phase that the containers make, before any verdict from outside.
pub fn phase(input: &StatusInput<'_>) -> &'static str {
    let pod = input.pod;
    let round = input.runtime.round(pod);
    for container in spec::init_containers(pod).iter().filter(|c| !spec::is_sidecar(c)) {
        if initialized_by_mains(input) {
            break;
        }
        match input.runtime.current(&container.name, round) {
            Some(r) if r.state == State::Exited && r.exit_code == 0 => {}
            Some(r) if r.state == State::Exited && !r.comes_back(pod, container) => {
                return "Failed";
            }
            _ => return "Pending",
        }
    }
    let mut counts = Counts::default();
    for container in &spec::spec(pod).containers {
        match input.runtime.newest(&container.name) {
            // It is about to run again with all others.
            Some(record) if record.round < round => counts.running += 1,
            record => counts.add(pod, container, record),
        }
    }
    counts.phase()
}

#[derive(Default)]
struct Counts {
    waiting: u32,
    running: u32,
    succeeded: u32,
    failed: u32,
}

impl Counts {
    fn add(&mut self, pod: &Pod, container: &Container, record: Option<&ContainerRecord>) {
        match record {
            None => self.waiting += 1,
            Some(r) => match r.state {
                State::Created => self.waiting += 1,
                State::Running => self.running += 1,
                State::Exited | State::Unknown if r.comes_back(pod, container) => self.running += 1,
                State::Exited if r.exit_code == 0 => self.succeeded += 1,
                State::Exited | State::Unknown => self.failed += 1,
            },
        }
    }

    fn phase(&self) -> &'static str {
        match self {
            Counts { waiting: 1.., .. } => "Pending",
            Counts { running: 1.., .. } => "Running",
            Counts { failed: 0, .. } => "Succeeded",
            _ => "Failed",
        }
    }
}

fn initialized_by_mains(input: &StatusInput<'_>) -> bool {
    let round = input.runtime.round(input.pod);
    spec::spec(input.pod).containers.iter().any(|c| input.runtime.current(&c.name, round).is_some())
}

/// Whether every container has ended and none will start again. Once so, always so: what is left of the containers may
/// be collected meanwhile.
pub fn is_finished(input: &StatusInput<'_>) -> bool {
    bosun_api::pod::is_terminal(input.pod) || matches!(phase(input), "Succeeded" | "Failed")
}

/// The status to show.
pub fn status(input: &StatusInput<'_>) -> PodStatus {
    let pod = input.pod;
    let old = pod.status.clone().unwrap_or_default();
    let all = spec::containers(pod).map(|(role, c)| (role, container_status(input, &old, role, c)));
    let (init, main): (Vec<_>, Vec<_>) = all.partition(|(role, _)| *role != Role::Main);
    let init: Vec<ContainerStatus> = init.into_iter().map(|(_, s)| s).collect();
    let main: Vec<ContainerStatus> = main.into_iter().map(|(_, s)| s).collect();
    let ephemeral = spec::ephemeral_containers(pod).iter().map(spec::as_container);
    let ephemeral: Vec<_> = ephemeral.map(|c| container_status(input, &old, Role::Ephemeral, &c)).collect();

    let mut phase = phase(input);
    let was_terminal = matches!(old.phase.as_deref(), Some("Succeeded" | "Failed"));
    if input.failed.is_some() {
        phase = "Failed";
    } else if was_terminal {
        // A pod that ended never lives again, whatever is left of its containers.
        phase = if old.phase.as_deref() == Some("Failed") { "Failed" } else { "Succeeded" };
    } else if matches!(phase, "Succeeded" | "Failed") && !input.stopped && input.runtime.running().count() > 0 {
        // Sidecars still run; the pod has not ended until they have.
        phase = "Running";
    } else if input.ending && input.stopped && !input.runtime.is_empty() {
        phase = ended_phase(input, phase);
    }
    let ips = pod_ips(input, &old);
    let (reason, message) = match input.failed {
        Some((reason, message)) => (Some(reason.clone()), Some(message.clone()).filter(|m| !m.is_empty())),
        None if was_terminal => (old.reason.clone(), old.message.clone()),
        None => (None, None),
    };
    // What the pod as a whole was granted, and what it has until that is brought about.
    let whole = spec::spec(pod).resources.as_ref();
    let applied = input.applied.get(resize::WHOLE).filter(|_| resize::is_whole_behind(pod, input.applied));
    let mut status = PodStatus {
        phase: Some(phase.to_owned()),
        reason,
        message,
        host_ip: input.host_ips.first().cloned(),
        host_ips: Some(input.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.iter().map(|ip| PodIP { ip: ip.clone() }).collect()),
        start_time: old.start_time.clone().or(Some(Time(input.started))),
        qos_class: old.qos_class.clone().or(Some(bosun_api::pod::qos_class(pod).as_str().to_owned())),
        init_container_statuses: (!init.is_empty()).then_some(init),
        container_statuses: (!main.is_empty()).then_some(main),
        ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
        observed_generation: pod.metadata.generation,
        allocated_resources: whole.and_then(|all| all.requests.clone()),
        resources: applied.or(whole).cloned(),
        // Others write which claims the pod has; it keeps what it knows of them.
        resource_claim_statuses: old.resource_claim_statuses.clone(),
        extended_resource_claim_status: old.extended_resource_claim_status.clone(),
        ..PodStatus::default()
    };
    if input.failed.is_some() && input.runtime.is_empty() && old.container_statuses.is_none() {
        // Rejected before anything ran: no container has a state worth telling.
        status.init_container_statuses = None;
        status.container_statuses = None;
    }
    status.conditions = Some(conditions(input, &old, &status));
    status
}

/// The phase of a pod that was ended from outside: what its containers' exit codes say.
fn ended_phase(input: &StatusInput<'_>, computed: &'static str) -> &'static str {
    let exited =
        |c: &Container| input.runtime.newest(&c.name).filter(|r| r.state == State::Exited).map(|r| r.exit_code);
    let codes: Vec<_> = spec::spec(input.pod).containers.iter().map(exited).collect();
    match computed {
        "Pending" | "Running" if codes.iter().all(|code| *code == Some(0)) => "Succeeded",
        "Pending" if codes.iter().all(Option::is_none) => "Pending",
        "Pending" | "Running" => "Failed",
        other => other,
    }
}

fn pod_ips(input: &StatusInput<'_>, old: &PodStatus) -> Vec<String> {
    if spec::host_network(input.pod) {
        return if input.runtime.is_empty() { Vec::new() } else { input.host_ips.to_vec() };
    }
    match input.runtime.sandboxes.first() {
        Some(sandbox) if !sandbox.ips.is_empty() => sandbox.ips.clone(),
        // Once ended, the addresses it had stay in the status, as in stock.
        _ => old.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect(),
    }
}

fn container_status(input: &StatusInput<'_>, old: &PodStatus, role: Role, container: &Container) -> ContainerStatus {
    let known = match role {
        Role::Main => &old.container_statuses,
        Role::Ephemeral => &old.ephemeral_container_statuses,
        _ => &old.init_container_statuses,
    };
    let known = known.iter().flatten().find(|s| s.name == container.name);
    let Some(record) = input.runtime.newest(&container.name) else {
        return unborn(input, role, container, known);
    };
    let running = record.state == State::Running;
    let started = running && input.probes.started(container, &record.id);
    let terminated = (record.state == State::Exited).then(|| terminated(input, record));
    let previous = input.runtime.previous(&container.name).map(|r| self::terminated(input, r));
    let known_last = known.and_then(|k| k.last_state.clone()).and_then(|s| s.terminated);
    // A container that waits to be started again shows why; how it ended moves to lastState.
    let waiting = input.waiting.get(&container.name).filter(|_| !running && !input.ending);
    let (state, last) = match (waiting, terminated) {
        (Some(w), ended) => (waiting_state(&w.reason, &w.message), ended.or(previous).or(known_last)),
        (None, Some(ended)) => {
            let state = ContainerState { terminated: Some(ended), ..Default::default() };
            (state, previous.or(known_last))
        }
        (None, None) => {
            let state = match record.state {
                State::Running => ContainerState {
                    running: Some(ContainerStateRunning { started_at: timestamp(record.started_at).map(Time) }),
                    ..Default::default()
                },
                State::Created => waiting_state("ContainerCreating", ""),
                _ => ContainerState { terminated: Some(lost(input, record)), ..Default::default() },
            };
            (state, previous.or(known_last))
        }
    };
    let ready = match role {
        Role::Init => record.state == State::Exited && record.exit_code == 0,
        Role::Ephemeral => false,
        _ => running && input.probes.ready(container, &record.id),
    };
    ContainerStatus {
        name: container.name.clone(),
        container_id: Some(format!("{}://{}", input.runtime_name, record.id)),
        image: if record.image.is_empty() { spec::image(container).to_owned() } else { record.image.clone() },
        image_id: record.image_id.clone(),
        ready,
        started: match role {
            Role::Init => Some(running),
            Role::Ephemeral => None,
            _ => Some(started),
        },
        restart_count: record.attempt as i32,
        state: Some(state),
        last_state: Some(ContainerState { terminated: last, ..Default::default() }),
        resources: input.applied.get(&record.id).filter(|_| running).or(container.resources.as_ref()).cloned(),
        allocated_resources: container.resources.as_ref().and_then(|r| r.requests.clone()),
        user: record.user.as_ref().map(|(uid, gid, groups)| ContainerUser {
            linux: Some(LinuxContainerUser { uid: *uid, gid: *gid, supplemental_groups: Some(groups.clone()) }),
        }),
        volume_mounts: volume_mounts(container, record),
        ..ContainerStatus::default()
    }
}

/// What is mounted into the container, and whether it is read-only all the way down.
fn volume_mounts(container: &Container, record: &ContainerRecord) -> Option<Vec<VolumeMountStatus>> {
    let recursive = |path: &str| record.recursive_read_only.iter().any(|known| known == path);
    let status = |mount: &VolumeMount| VolumeMountStatus {
        name: mount.name.clone(),
        mount_path: mount.mount_path.clone(),
        read_only: mount.read_only.filter(|read_only| *read_only),
        recursive_read_only: (mount.read_only == Some(true))
            .then(|| if recursive(&mount.mount_path) { "Enabled" } else { "Disabled" }.to_owned()),
        ..VolumeMountStatus::default()
    };
    let mounts = container.volume_mounts.as_ref().filter(|mounts| !mounts.is_empty());
    mounts.map(|mounts| mounts.iter().map(status).collect())
}

/// A container that the runtime does not hold: not made yet, or made once and collected since.
fn unborn(
    input: &StatusInput<'_>,
    role: Role,
    container: &Container,
    known: Option<&ContainerStatus>,
) -> ContainerStatus {
    if let Some(known) = known.filter(|k| k.state.as_ref().is_some_and(|s| s.terminated.is_some()))
        && !input.waiting.contains_key(&container.name)
    {
        return known.clone();
    }
    let state = match input.waiting.get(&container.name) {
        Some(waiting) => waiting_state(&waiting.reason, &waiting.message),
        None if spec::init_containers(input.pod).is_empty() => waiting_state("ContainerCreating", ""),
        None => waiting_state("PodInitializing", ""),
    };
    ContainerStatus {
        name: container.name.clone(),
        image: spec::image(container).to_owned(),
        state: Some(state),
        last_state: Some(known.and_then(|k| k.last_state.clone()).unwrap_or_default()),
        started: (role != Role::Ephemeral).then_some(false),
        restart_count: known.map_or(0, |k| k.restart_count),
        ..ContainerStatus::default()
    }
}

fn waiting_state(reason: &str, message: &str) -> ContainerState {
    let message = (!message.is_empty()).then(|| message.to_owned());
    let waiting = ContainerStateWaiting { reason: Some(reason.to_owned()), message };
    ContainerState { waiting: Some(waiting), ..Default::default() }
}

fn terminated(input: &StatusInput<'_>, record: &ContainerRecord) -> ContainerStateTerminated {
    ContainerStateTerminated {
        container_id: Some(format!("{}://{}", input.runtime_name, record.id)),
        exit_code: record.exit_code,
        reason: Some(record.reason.clone()).filter(|r| !r.is_empty()),
        message: Some(record.message.clone()).filter(|m| !m.is_empty()),
        started_at: timestamp(record.started_at).or(timestamp(record.created_at)).map(Time),
        finished_at: record.finished().map(Time),
        signal: None,
    }
}

fn lost(input: &StatusInput<'_>, record: &ContainerRecord) -> ContainerStateTerminated {
    ContainerStateTerminated {
        exit_code: 137,
        reason: Some("ContainerStatusUnknown".into()),
        message: Some("The container could not be located when the pod was terminated".into()),
        ..terminated(input, record)
    }
}

fn conditions(input: &StatusInput<'_>, old: &PodStatus, status: &PodStatus) -> Vec<PodCondition> {
    let phase = status.phase.as_deref().unwrap_or_default();
    let sandbox_up = input.runtime.ready_sandbox().is_some() && !(input.ending && input.stopped);
    let mut list =
        vec![("PodReadyToStartContainers", answer(sandbox_up)), ("Initialized", initialized(input, status, phase))];
    let containers_ready = containers_ready(input, status, phase);
    let ready = match ungated(input.pod, old) {
        Some(message) if containers_ready.0 => (false, Some("ReadinessGatesNotReady"), Some(message)),
        _ => containers_ready.clone(),
    };
    list.push(("Ready", ready));
    list.push(("ContainersReady", containers_ready));
    list.push(("PodScheduled", answer(true)));
    if let Some((reason, message)) = input.resize_pending {
        list.push((RESIZE_PENDING, (true, Some(reason), Some(message.to_owned()))));
    }
    if is_resizing(input) {
        let error = input.resize_error;
        list.push((RESIZE_IN_PROGRESS, (true, error.map(|_| "Error"), error.map(str::to_owned))));
    }
    let could = |c: &Container| c.restart_policy_rules.iter().flatten().any(|r| r.action == "RestartAllContainers");
    if spec::containers(input.pod).any(|(_, container)| could(container)) {
        list.push((ALL_RESTARTING, all_restarting(input, phase)));
    }
    let owned: Vec<PodCondition> = list.into_iter().map(|(kind, answer)| condition(input, old, kind, answer)).collect();
    // Others' conditions (readiness gates, DisruptionTarget) stay as they are.
    let over = |kind: &str| RESIZE_CONDITIONS.contains(&kind);
    let others =
        old.conditions.iter().flatten().filter(|c| owned.iter().all(|o| o.type_ != c.type_) && !over(&c.type_));
    let others: Vec<PodCondition> = others.cloned().collect();
    owned.into_iter().chain(others).collect()
}

const ALL_RESTARTING: &str = "AllContainersRestarting";
const RESIZE_PENDING: &str = "PodResizePending";
const RESIZE_IN_PROGRESS: &str = "PodResizeInProgress";
/// Conditions that go away when they are no longer so.
pub const RESIZE_CONDITIONS: [&str; 2] = [RESIZE_PENDING, RESIZE_IN_PROGRESS];

/// Whether containers of an earlier round still run (KEP-5532).
fn all_restarting(input: &StatusInput<'_>, phase: &str) -> Answer {
    let round = input.runtime.round(input.pod);
    let left =
        |c: &Container| input.runtime.newest(&c.name).is_some_and(|r| r.round < round && r.state == State::Running);
    match phase {
        "Succeeded" => (false, Some("PodCompleted"), None),
        "Failed" => (false, Some("PodFailed"), None),
        _ if !input.ending && spec::containers(input.pod).any(|(_, container)| left(container)) => {
            let message = "container exited with restart policy rule";
            (true, Some("RestartAllContainersStarted"), Some(message.to_owned()))
        }
        _ => answer(false),
    }
}

/// Whether a container still runs with other resources than it was granted.
fn is_resizing(input: &StatusInput<'_>) -> bool {
    resize::is_whole_behind(input.pod, input.applied)
        || spec::containers(input.pod).any(|(_, container)| {
            let running = input.runtime.newest(&container.name).filter(|r| r.state == State::Running);
            running.is_some_and(|r| resize::action(container, input.applied.get(&r.id)).is_some())
        })
}

type Answer = (bool, Option<&'static str>, Option<String>);

fn answer(yes: bool) -> Answer {
    (yes, None, None)
}

fn condition(input: &StatusInput<'_>, old: &PodStatus, kind: &str, (yes, reason, message): Answer) -> PodCondition {
    let status = if yes { "True" } else { "False" };
    let before = old.conditions.iter().flatten().find(|c| c.type_ == kind);
    let since = before.filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
    PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.map(str::to_owned),
        message,
        last_probe_time: None,
        last_transition_time: since.or(Some(Time(input.now))),
        observed_generation: input.pod.metadata.generation,
    }
}

fn initialized(input: &StatusInput<'_>, status: &PodStatus, phase: &str) -> Answer {
    if phase == "Succeeded" {
        return (true, Some("PodCompleted"), None);
    }
    if initialized_by_mains(input) {
        return answer(true);
    }
    let incomplete: Vec<&str> = status
        .init_container_statuses
        .iter()
        .flatten()
        .filter(|s| {
            let sidecar = spec::role(input.pod, &s.name) == Some(Role::Sidecar);
            if sidecar { s.started != Some(true) } else { !s.ready }
        })
        .map(|s| s.name.as_str())
        .collect();
    match incomplete.is_empty() {
        true => answer(true),
        false => {
            let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
            (false, Some("ContainersNotInitialized"), Some(message))
        }
    }
}

fn containers_ready(input: &StatusInput<'_>, status: &PodStatus, phase: &str) -> Answer {
    if phase == "Succeeded" {
        return (false, Some("PodCompleted"), None);
    }
    if phase == "Failed" {
        return (false, Some("PodFailed"), None);
    }
    let is_sidecar = |s: &&ContainerStatus| spec::role(input.pod, &s.name) == Some(Role::Sidecar);
    let sidecars = status.init_container_statuses.iter().flatten().filter(is_sidecar);
    let all = sidecars.chain(status.container_statuses.iter().flatten());
    let unready: Vec<&str> = all.filter(|s| !s.ready).map(|s| s.name.as_str()).collect();
    match unready.is_empty() {
        true => answer(true),
        false => {
            let message = format!("containers with unready status: [{}]", unready.join(" "));
            (false, Some("ContainersNotReady"), Some(message))
        }
    }
}

/// What readiness gates miss, if anything.
fn ungated(pod: &Pod, old: &PodStatus) -> Option<String> {
    let gates = spec::spec(pod).readiness_gates.iter().flatten();
    let missing: Vec<String> = gates
        .filter_map(|gate| {
            let found = old.conditions.iter().flatten().find(|c| c.type_ == gate.condition_type);
            match found {
                Some(c) if c.status == "True" => None,
                Some(c) => {
                    Some(format!("the status of pod readiness gate {:?} is not \"True\", but {}", c.type_, c.status))
                }
                None => Some(format!(
                    "corresponding condition of pod readiness gate {:?} does not exist.",
                    gate.condition_type
                )),
            }
        })
        .collect();
    (!missing.is_empty()).then(|| missing.join(", "))
}

#[cfg(test)]
mod tests {
    use bosun_proto::cri;
    use serde_json::json;

    use super::*;

    #[test]
    fn each_mount_says_whether_it_is_read_only_all_the_way_down() {
        let container: Container = serde_json::from_value(json!({"name": "c", "volumeMounts": [
            {"name": "a", "mountPath": "/a", "readOnly": true, "recursiveReadOnly": "IfPossible"},
            {"name": "b", "mountPath": "/b", "readOnly": true},
            {"name": "c", "mountPath": "/c", "readOnly": false}]}))
        .unwrap();
        let mount = |path: &str, recursive_read_only| cri::Mount {
            container_path: path.into(),
            recursive_read_only,
            ..Default::default()
        };
        let status = cri::ContainerStatus { mounts: vec![mount("/a", true), mount("/b", false)], ..Default::default() };
        let record = ContainerRecord::from_status(&status, "s");
        let golden = json!([
            {"name": "a", "mountPath": "/a", "readOnly": true, "recursiveReadOnly": "Enabled"},
            {"name": "b", "mountPath": "/b", "readOnly": true, "recursiveReadOnly": "Disabled"},
            {"name": "c", "mountPath": "/c"}]);
        assert_eq!(serde_json::to_value(volume_mounts(&container, &record)).unwrap(), golden);
        assert_eq!(volume_mounts(&Container::default(), &record), None);
    }
}
