//! What is known of one pod in the runtime: its sandboxes and containers, newest first.
//!
//! Knowledge arrives from several sides (answers to our own calls, events, relists) and not always in order. States only
//! go forward, so records merge by keeping the later state; see [`PodRecord::merge_container`].

use std::collections::BTreeMap;
use std::time::Instant;

use bosun_proto::cri;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};

use super::{labels, spec};

/// A container's state, in the order in which states follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Made, not started.
    Created,
    /// Running.
    Running,
    /// Ended.
    Exited,
    /// The runtime lost track of it.
    Unknown,
}

/// One container of the pod, running or not.
#[derive(Clone, Debug)]
pub struct ContainerRecord {
    /// The runtime's id.
    pub id: String,
    /// The name in the pod's spec.
    pub name: String,
    /// How often a container of that name was started before.
    pub attempt: u32,
    /// Which sandbox it is in.
    pub sandbox: String,
    /// Its state.
    pub state: State,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Nanoseconds since the epoch, 0 if never.
    pub started_at: i64,
    /// Nanoseconds since the epoch, 0 if not yet.
    pub finished_at: i64,
    /// Exit code; meaningful once exited.
    pub exit_code: i32,
    /// Why it ended, in a word.
    pub reason: String,
    /// The termination message, or what the runtime says.
    pub message: String,
    /// The image as the pod wrote it.
    pub image: String,
    /// The image as the runtime resolved it.
    pub image_id: String,
    /// See [`super::spec::container_hash`].
    pub hash: String,
    /// The log, relative to the pod's log folder.
    pub log_path: String,
    /// The user that runs it, where the runtime says so.
    pub user: Option<(i64, i64, Vec<i64>)>,
    /// Where something is mounted that is read-only all the way down.
    pub recursive_read_only: Vec<String>,
    /// The grace period it was created with, for pods that nobody knows any more.
    pub grace: Option<i64>,
    /// How often all containers had been restarted together when it was made; see [`PodRecord::round`].
    pub round: u32,
    /// Whether it was stopped in order to be started again (a probe, another image, other resources).
    pub condemned: bool,
    /// When it was first told to us.
    pub seen: Instant,
}

/// One sandbox of the pod.
#[derive(Clone, Debug)]
pub struct SandboxRecord {
    /// The runtime's id.
    pub id: String,
    /// How many there were before.
    pub attempt: u32,
    /// Whether it is up.
    pub ready: bool,
    /// Whether it was stopped by us (its network given back).
    pub stopped: bool,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Its addresses; none on the node's network.
    pub ips: Vec<String>,
    /// When it was first told to us.
    pub seen: Instant,
}

/// All that is known of one pod in the runtime.
#[derive(Clone, Debug, Default)]
pub struct PodRecord {
    /// Newest first.
    pub sandboxes: Vec<SandboxRecord>,
    /// Newest first.
    pub containers: Vec<ContainerRecord>,
}

impl From<cri::ContainerState> for State {
    fn from(state: cri::ContainerState) -> Self {
        match state {
            cri::ContainerState::ContainerCreated => State::Created,
            cri::ContainerState::ContainerRunning => State::Running,
            cri::ContainerState::ContainerExited => State::Exited,
            cri::ContainerState::ContainerUnknown => State::Unknown,
        }
    }
}

impl ContainerRecord {
    /// What the runtime says of a container in `sandbox`. The termination message is left as the runtime gives it.
    pub fn from_status(status: &cri::ContainerStatus, sandbox: &str) -> Self {
        let metadata = status.metadata.clone().unwrap_or_default();
        let annotation = |key: &str| status.annotations.get(key).map(String::as_str);
        let user = status.user.as_ref().and_then(|u| u.linux.as_ref());
        Self {
            id: status.id.clone(),
            name: status.labels.get(labels::CONTAINER_NAME).cloned().unwrap_or(metadata.name),
            attempt: annotation(labels::RESTART_COUNT).and_then(|n| n.parse().ok()).unwrap_or(metadata.attempt),
            sandbox: sandbox.to_owned(),
            state: status.state().into(),
            created_at: status.created_at,
            started_at: status.started_at,
            finished_at: status.finished_at,
            exit_code: status.exit_code,
            reason: status.reason.clone(),
            message: status.message.clone(),
            image: status.image.as_ref().map(|i| i.image.clone()).unwrap_or_default(),
            image_id: if status.image_ref.is_empty() { status.image_id.clone() } else { status.image_ref.clone() },
            hash: annotation(labels::CONTAINER_HASH).unwrap_or_default().to_owned(),
            log_path: status.log_path.clone(),
            user: user.map(|u| (u.uid, u.gid, u.supplemental_groups.clone())),
            recursive_read_only: status
                .mounts
                .iter()
                .filter(|mount| mount.recursive_read_only)
                .map(|mount| mount.container_path.clone())
                .collect(),
            grace: annotation(labels::DELETION_GRACE_PERIOD)
                .or(annotation(labels::GRACE_PERIOD))
                .and_then(|n| n.parse().ok()),
            round: annotation(labels::RESTART_ROUND).and_then(|n| n.parse().ok()).unwrap_or_default(),
            condemned: false,
            seen: Instant::now(),
        }
    }

    /// Whether it is started again, having ended.
    pub fn comes_back(&self, pod: &Pod, container: &Container) -> bool {
        let code = (self.state == State::Exited).then_some(self.exit_code);
        (self.condemned && spec::restart_policy_of(pod, container) != "Never")
            || spec::restarts_after(pod, container, code)
    }

    /// What was told later, with what only we know.
    fn followed_by(&self, told: Self) -> Self {
        Self { seen: self.seen, condemned: self.condemned, ..told }
    }

    /// When it ended, if it did.
    pub fn finished(&self) -> Option<Timestamp> {
        timestamp(self.finished_at)
    }
}

impl SandboxRecord {
    /// What the runtime says of a sandbox.
    pub fn from_status(status: &cri::PodSandboxStatus) -> Self {
        let network = status.network.as_ref();
        let first = network.map(|n| n.ip.clone()).filter(|ip| !ip.is_empty());
        let more = network.into_iter().flat_map(|n| n.additional_ips.iter().map(|ip| ip.ip.clone()));
        Self {
            id: status.id.clone(),
            attempt: status.metadata.as_ref().map_or(0, |m| m.attempt),
            ready: status.state() == cri::PodSandboxState::SandboxReady,
            stopped: false,
            created_at: status.created_at,
            ips: first.into_iter().chain(more).collect(),
            seen: Instant::now(),
        }
    }
}

/// A time of the runtime; none for zero.
pub fn timestamp(nanos: i64) -> Option<Timestamp> {
    (nanos > 0).then(|| Timestamp::from_nanosecond(i128::from(nanos)).ok()).flatten()
}

impl PodRecord {
    /// Whether the runtime holds nothing of the pod.
    pub fn is_empty(&self) -> bool {
        self.sandboxes.is_empty() && self.containers.is_empty()
    }

    /// The newest sandbox, if it is up.
    pub fn ready_sandbox(&self) -> Option<&SandboxRecord> {
        self.sandboxes.first().filter(|s| s.ready)
    }

    /// The newest container of that name, in whatever sandbox.
    pub fn newest(&self, name: &str) -> Option<&ContainerRecord> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// How often all containers of the pod have been restarted together (KEP-5532): a container whose end matches a rule
    /// with the action RestartAllContainers begins a round. Containers of earlier rounds end and count as never started.
    pub fn round(&self, pod: &Pod) -> u32 {
        let begins = |record: &ContainerRecord| {
            record.state == State::Exited
                && spec::containers(pod).any(|(_, container)| {
                    container.name == record.name
                        && spec::restart_rule(container, record.exit_code) == Some("RestartAllContainers")
                })
        };
        self.containers.iter().map(|record| record.round + u32::from(begins(record))).max().unwrap_or_default()
    }

    /// The newest container of that name, unless it is of a round before `round`.
    pub fn current(&self, name: &str, round: u32) -> Option<&ContainerRecord> {
        self.newest(name).filter(|record| record.round >= round)
    }

    /// The newest container of that name in `sandbox`.
    pub fn newest_in(&self, sandbox: &str, name: &str) -> Option<&ContainerRecord> {
        self.containers.iter().find(|c| c.name == name && c.sandbox == sandbox)
    }

    /// The one before the newest.
    pub fn previous(&self, name: &str) -> Option<&ContainerRecord> {
        self.containers.iter().filter(|c| c.name == name).nth(1)
    }

    /// Containers that run.
    pub fn running(&self) -> impl Iterator<Item = &ContainerRecord> {
        self.containers.iter().filter(|c| c.state == State::Running)
    }

    /// Takes in what was told of a container, unless something later is known already. Says whether anything changed.
    pub fn merge_container(&mut self, told: ContainerRecord) -> bool {
        match self.containers.iter_mut().find(|c| c.id == told.id) {
            Some(known) if told.state < known.state => false,
            Some(known) if told.state == known.state && known.state != State::Running => {
                let changed = known.message != told.message || known.exit_code != told.exit_code;
                *known = known.followed_by(told);
                changed
            }
            Some(known) => {
                let changed = known.state != told.state || known.image_id != told.image_id;
                *known = known.followed_by(told);
                changed
            }
            None => {
                self.containers.push(told);
                self.containers.sort_by_key(|c| std::cmp::Reverse((c.attempt, c.created_at)));
                true
            }
        }
    }

    /// Takes in what was told of a sandbox; one that was down never comes up again.
    pub fn merge_sandbox(&mut self, told: SandboxRecord) -> bool {
        match self.sandboxes.iter_mut().find(|s| s.id == told.id) {
            Some(known) => {
                let ready = known.ready && told.ready;
                let changed = known.ready != ready || (known.ips.is_empty() && !told.ips.is_empty());
                known.ready = ready;
                if known.ips.is_empty() {
                    known.ips = told.ips;
                }
                changed
            }
            None => {
                self.sandboxes.push(told);
                self.sandboxes.sort_by_key(|s| std::cmp::Reverse((s.attempt, s.created_at)));
                true
            }
        }
    }

    /// What has served its time: sandboxes that were replaced and hold nothing that runs, and containers older than the
    /// last one that ended of their name. Returns the ids of each.
    pub fn spent(&self) -> (Vec<String>, Vec<String>) {
        let holds = |id: &str| self.containers.iter().any(|c| c.sandbox == id && c.state == State::Running);
        let replaced = self.sandboxes.iter().skip(1).filter(|s| !s.ready && !holds(&s.id));
        let mut kept: BTreeMap<&str, usize> = BTreeMap::new();
        let old = self.containers.iter().filter(|c| {
            let count = kept.entry(c.name.as_str()).or_default();
            *count += 1;
            *count > 2 && matches!(c.state, State::Exited | State::Created)
        });
        let containers: Vec<String> = old.map(|c| c.id.clone()).collect();
        // A sandbox goes with its containers: only once none of them is kept for its log.
        let empty = |id: &str| !self.containers.iter().any(|c| c.sandbox == id && !containers.contains(&c.id));
        let sandboxes = replaced.filter(|s| empty(&s.id)).map(|s| s.id.clone()).collect();
        (sandboxes, containers)
    }

    /// Forgets what a listing begun at `since` did not show. What was told later than that is kept.
    pub fn retain(&mut self, since: Instant, listed: impl Fn(&str) -> bool) -> bool {
        let before = (self.sandboxes.len(), self.containers.len());
        self.sandboxes.retain(|s| s.seen >= since || listed(&s.id));
        self.containers.retain(|c| c.seen >= since || listed(&c.id));
        before != (self.sandboxes.len(), self.containers.len())
    }
}
