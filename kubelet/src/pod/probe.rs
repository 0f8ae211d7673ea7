//! Probes as state machines: when one is due and what its results mean. Running them is left to [`crate::probes`].

use std::collections::BTreeMap;
use std::fmt;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, Probe};

use super::record::{PodRecord, State};
use super::spec;

/// What a probe asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProbeKind {
    /// Has it started? Until then no other probe runs.
    Startup,
    /// Does it live? If not, it is restarted.
    Liveness,
    /// Does it serve? If not, it gets no traffic.
    Readiness,
}

impl fmt::Display for ProbeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Readiness => "Readiness",
        })
    }
}

/// The probe of that kind, if the container has one.
pub fn probe_of(container: &Container, kind: ProbeKind) -> Option<&Probe> {
    match kind {
        ProbeKind::Startup => container.startup_probe.as_ref(),
        ProbeKind::Liveness => container.liveness_probe.as_ref(),
        ProbeKind::Readiness => container.readiness_probe.as_ref(),
    }
}

/// The state of one probe of one container.
#[derive(Clone, Debug)]
pub struct ProbeState {
    /// The container that it is about; a new one starts over.
    pub container_id: String,
    /// What is believed. None as long as no threshold was reached.
    pub verdict: Option<bool>,
    last: Option<bool>,
    run: i32,
    next: Timestamp,
    running: bool,
    held: bool,
}

/// All probes of a pod.
#[derive(Clone, Debug, Default)]
pub struct Probes {
    states: BTreeMap<(String, ProbeKind), ProbeState>,
    /// Readiness and startup that were known before a restart of the kubelet, by container id.
    remembered: BTreeMap<String, Remembered>,
}

/// What is kept of a container across a restart of the kubelet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub struct Remembered {
    /// It was ready.
    pub ready: bool,
    /// It had started.
    pub started: bool,
}

/// A probe to run now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// Which container.
    pub container: String,
    /// Its id.
    pub container_id: String,
    /// Which probe.
    pub kind: ProbeKind,
}

fn seconds(value: Option<i32>, default: i32) -> SignedDuration {
    SignedDuration::from_secs(i64::from(value.filter(|v| *v > 0).unwrap_or(default)))
}

/// The time that a probe may take.
pub fn timeout(probe: &Probe) -> std::time::Duration {
    std::time::Duration::from_secs(probe.timeout_seconds.filter(|v| *v > 0).unwrap_or(1) as u64)
}

impl Probes {
    /// Starts from what was known before a restart of the kubelet.
    pub fn remembering(remembered: BTreeMap<String, Remembered>) -> Self {
        Self { states: BTreeMap::new(), remembered }
    }

    /// Follows the containers: probes of new ones begin, those of gone ones end. Returns what is due at `now` (and
    /// marks it as running) and when the next one is.
    pub fn tick(&mut self, pod: &Pod, runtime: &PodRecord, now: Timestamp) -> (Vec<Due>, Option<Timestamp>) {
        let mut due = Vec::new();
        let mut wake: Option<Timestamp> = None;
        for (role, container) in spec::containers(pod) {
            if role == spec::Role::Init {
                continue;
            }
            let running = runtime.newest(&container.name).filter(|c| c.state == State::Running);
            for kind in [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness] {
                let Some(probe) = probe_of(container, kind) else { continue };
                let key = (container.name.clone(), kind);
                let Some(record) = running else {
                    self.states.remove(&key);
                    continue;
                };
                if self.states.get(&key).is_none_or(|s| s.container_id != record.id) {
                    let state = self.begin(&record.id, record.started_at, probe, kind, now);
                    self.states.insert(key.clone(), state);
                }
                let started = kind == ProbeKind::Startup || self.started(container, &record.id);
                let state = self.states.get_mut(&key).expect("inserted above if it was not there");
                if state.running || state.held || !started {
                    continue;
                }
                if kind == ProbeKind::Startup && state.verdict == Some(true) {
                    continue;
                }
                if state.next <= now {
                    state.running = true;
                    due.push(Due { container: container.name.clone(), container_id: record.id.clone(), kind });
                } else {
                    wake = Some(wake.map_or(state.next, |w| w.min(state.next)));
                }
            }
        }
        (due, wake)
    }

    fn begin(&self, id: &str, started_at: i64, probe: &Probe, kind: ProbeKind, now: Timestamp) -> ProbeState {
        let remembered = self.remembered.get(id);
        let verdict = match kind {
            ProbeKind::Startup => remembered.filter(|r| r.started).map(|_| true),
            ProbeKind::Liveness => None,
            ProbeKind::Readiness => remembered.map(|r| r.ready),
        };
        let started = super::record::timestamp(started_at).unwrap_or(now);
        let first = started + SignedDuration::from_secs(i64::from(probe.initial_delay_seconds.unwrap_or(0).max(0)));
        ProbeState {
            container_id: id.to_owned(),
            verdict,
            last: None,
            run: 0,
            next: first.max(now),
            running: false,
            held: false,
        }
    }

    /// Takes in a result. Returns whether what is believed changed.
    pub fn record(&mut self, pod: &Pod, due: &Due, success: bool, now: Timestamp) -> bool {
        let Some((_, container)) = spec::container(pod, &due.container) else { return false };
        let Some(probe) = probe_of(&container, due.kind) else { return false };
        let Some(state) = self.states.get_mut(&(due.container.clone(), due.kind)) else { return false };
        if state.container_id != due.container_id {
            return false;
        }
        state.running = false;
        state.next = now + seconds(probe.period_seconds, 10);
        state.run = if state.last == Some(success) { state.run + 1 } else { 1 };
        state.last = Some(success);
        let threshold = if success { probe.success_threshold } else { probe.failure_threshold };
        let needed = threshold.filter(|t| *t > 0).unwrap_or(if success { 1 } else { 3 });
        if state.run < needed {
            return false;
        }
        if !success && due.kind != ProbeKind::Readiness {
            // The container is about to be killed; its next life starts over.
            state.held = true;
        }
        let changed = state.verdict != Some(success);
        state.verdict = Some(success);
        if changed && due.kind == ProbeKind::Startup && success {
            // Readiness and liveness need not wait for their own period on top.
            for kind in [ProbeKind::Liveness, ProbeKind::Readiness] {
                if let Some(other) = self.states.get_mut(&(due.container.clone(), kind)) {
                    other.next = other.next.min(now);
                }
            }
        }
        changed
    }

    /// Drops the mark of a probe that could not be run, so that it is tried again after its period.
    pub fn skip(&mut self, pod: &Pod, due: &Due, now: Timestamp) {
        let container = spec::container(pod, &due.container);
        let probe = container.as_ref().and_then(|(_, c)| probe_of(c, due.kind));
        let period = probe.map_or(SignedDuration::from_secs(10), |p| seconds(p.period_seconds, 10));
        if let Some(state) = self.states.get_mut(&(due.container.clone(), due.kind)) {
            state.running = false;
            state.next = now + period;
        }
    }

    /// Whether the container with that id has started, as its startup probe says (yes without one).
    pub fn started(&self, container: &Container, id: &str) -> bool {
        if container.startup_probe.is_none() {
            return true;
        }
        match self.verdict(&container.name, ProbeKind::Startup, id) {
            Some(verdict) => verdict,
            None => self.remembered.get(id).is_some_and(|r| r.started),
        }
    }

    /// Whether the running container with that id is ready.
    pub fn ready(&self, container: &Container, id: &str) -> bool {
        if !self.started(container, id) {
            return false;
        }
        if container.readiness_probe.is_none() {
            return true;
        }
        match self.verdict(&container.name, ProbeKind::Readiness, id) {
            Some(verdict) => verdict,
            None => self.remembered.get(id).is_some_and(|r| r.ready),
        }
    }

    /// Which probe has condemned the container with that id.
    pub fn condemned(&self, container: &str, id: &str) -> Option<ProbeKind> {
        [ProbeKind::Startup, ProbeKind::Liveness]
            .into_iter()
            .find(|kind| self.verdict(container, *kind, id) == Some(false))
    }

    fn verdict(&self, container: &str, kind: ProbeKind, id: &str) -> Option<bool> {
        let state = self.states.get(&(container.to_owned(), kind))?;
        if state.container_id == id { state.verdict } else { None }
    }

    /// What to keep across a restart of the kubelet.
    pub fn to_remember(&self, pod: &Pod, runtime: &PodRecord) -> BTreeMap<String, Remembered> {
        spec::containers(pod)
            .filter(|(_, c)| c.readiness_probe.is_some() || c.startup_probe.is_some())
            .filter_map(|(_, c)| {
                let record = runtime.newest(&c.name).filter(|r| r.state == State::Running)?;
                let kept = Remembered { ready: self.ready(c, &record.id), started: self.started(c, &record.id) };
                Some((record.id.clone(), kept))
            })
            .collect()
    }
}
