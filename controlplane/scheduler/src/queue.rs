//! Pods that wait for a node: ready now, backing off, or waiting for an event that can help.
//!
//! Pure: the caller passes the time in.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;

use crate::framework::Events;

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LAST_BACKOFF: Duration = Duration::from_secs(10);
/// A pod waits no longer than this for an event, in case the right one was not foreseen.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Ready, with its turn.
    Active(u64),
    /// Ready at this time.
    BackingOff(Instant),
    /// Waits for an event since this time.
    Waiting(Instant),
    /// Has scheduling gates.
    Gated,
    /// Handed out by [`Queue::pop`].
    InFlight,
}

#[derive(Debug)]
struct Queued {
    pod: Arc<Pod>,
    attempts: u32,
    failed: Option<Instant>,
    helped_by: Events,
    place: Place,
}

/// The pods without a node.
#[derive(Debug, Default)]
pub struct Queue {
    pods: HashMap<String, Queued>,
    active: BTreeSet<(Reverse<i32>, u64, String)>,
    turns: u64,
}

fn priority(pod: &Pod) -> Reverse<i32> {
    Reverse(pod.spec.as_ref().and_then(|s| s.priority).unwrap_or_default())
}

fn gated(pod: &Pod) -> bool {
    let gates = pod.spec.as_ref().and_then(|s| s.scheduling_gates.as_ref());
    gates.is_some_and(|g| !g.is_empty())
}

impl Queue {
    /// Takes a pod in, or notes that it changed. Answers whether it is held by scheduling gates.
    pub fn upsert(&mut self, pod: Arc<Pod>, now: Instant) -> bool {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let held = gated(&pod);
        let Some(queued) = self.pods.get_mut(&uid) else {
            let place = if held { Place::Gated } else { Place::InFlight };
            self.pods.insert(uid.clone(), Queued { pod, attempts: 0, failed: None, helped_by: Events::NONE, place });
            if !held {
                self.activate(&uid);
            }
            return held;
        };
        let changed = queued.pod.spec != pod.spec || queued.pod.metadata.labels != pod.metadata.labels;
        queued.pod = pod;
        match queued.place {
            Place::Gated if !held => self.activate(&uid),
            Place::Waiting(_) if changed && queued.helped_by.intersects(Events::POD_ITSELF) => {
                self.revive(&uid, now);
            }
            _ => {}
        }
        held
    }

    /// Forgets a pod. Answers whether it was here.
    pub fn remove(&mut self, uid: &str) -> bool {
        let Some(queued) = self.pods.remove(uid) else {
            return false;
        };
        if let Place::Active(turn) = queued.place {
            self.active.remove(&(priority(&queued.pod), turn, uid.to_owned()));
        }
        true
    }

    /// Forgets every pod that `known` does not hold for.
    pub fn retain(&mut self, known: impl Fn(&str) -> bool) {
        let gone: Vec<String> = self.pods.keys().filter(|uid| !known(uid)).cloned().collect();
        for uid in gone {
            self.remove(&uid);
        }
    }

    /// The next pod to place: highest priority first, then first come.
    pub fn pop(&mut self) -> Option<Arc<Pod>> {
        let (_, _, uid) = self.active.pop_first()?;
        let queued = self.pods.get_mut(&uid)?;
        queued.place = Place::InFlight;
        queued.attempts += 1;
        Some(queued.pod.clone())
    }

    /// Whether a pod is ready.
    pub fn has_ready(&self) -> bool {
        !self.active.is_empty()
    }

    /// Puts a popped pod back, to wait for one of these events.
    pub fn wait_for(&mut self, uid: &str, helped_by: Events, now: Instant) {
        if let Some(queued) = self.pods.get_mut(uid) {
            queued.failed = Some(now);
            queued.helped_by = helped_by;
            queued.place = Place::Waiting(now);
        }
    }

    /// Puts a popped pod back, to try again after its back-off.
    pub fn retry(&mut self, uid: &str, now: Instant) {
        if let Some(queued) = self.pods.get_mut(uid) {
            queued.failed = Some(now);
            queued.place = Place::Waiting(now);
        }
        self.revive(uid, now);
    }

    /// Wakes the pods that these events can help.
    pub fn happened(&mut self, events: Events, now: Instant) {
        let woken: Vec<String> = self
            .pods
            .iter()
            .filter(|(_, q)| matches!(q.place, Place::Waiting(_)) && q.helped_by.intersects(events))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in woken {
            self.revive(&uid, now);
        }
    }

    /// Moves on whoever's time has come.
    pub fn tick(&mut self, now: Instant) {
        let due: Vec<String> =
            self.pods.iter().filter(|(_, q)| due(q).is_some_and(|at| at <= now)).map(|(uid, _)| uid.clone()).collect();
        for uid in due {
            self.activate(&uid);
        }
    }

    /// When [`Queue::tick`] has something to do.
    pub fn next_tick(&self) -> Option<Instant> {
        self.pods.values().filter_map(due).min()
    }

    fn revive(&mut self, uid: &str, now: Instant) {
        let Some(queued) = self.pods.get_mut(uid) else {
            return;
        };
        let ready = queued.failed.map(|failed| failed + backoff(queued.attempts));
        match ready {
            Some(at) if at > now => queued.place = Place::BackingOff(at),
            _ => self.activate(uid),
        }
    }

    fn activate(&mut self, uid: &str) {
        let turn = self.turns;
        if let Some(queued) = self.pods.get_mut(uid) {
            self.turns += 1;
            queued.place = Place::Active(turn);
            self.active.insert((priority(&queued.pod), turn, uid.to_owned()));
        }
    }
}

fn due(queued: &Queued) -> Option<Instant> {
    match queued.place {
        Place::BackingOff(at) => Some(at),
        Place::Waiting(since) => Some(since + LONGEST_WAIT),
        _ => None,
    }
}

fn backoff(attempts: u32) -> Duration {
    let doubled = 1u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
    FIRST_BACKOFF.saturating_mul(doubled).min(LAST_BACKOFF)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PodSchedulingGate, PodSpec};

    use super::*;

    fn pod(name: &str, priority: i32) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.into());
        pod.metadata.uid = Some(name.into());
        pod.spec = Some(PodSpec { priority: Some(priority), ..PodSpec::default() });
        pod
    }

    fn name(pod: Option<Arc<Pod>>) -> Option<String> {
        pod.and_then(|p| p.metadata.name.clone())
    }

    #[test]
    fn priority_then_order_of_arrival() {
        let now = Instant::now();
        let mut queue = Queue::default();
        for (name, priority) in [("a", 0), ("b", 5), ("c", 0)] {
            queue.upsert(Arc::new(pod(name, priority)), now);
        }
        let order: Vec<_> = std::iter::from_fn(|| name(queue.pop())).collect();
        assert_eq!(order, ["b", "a", "c"]);
    }

    #[test]
    fn only_the_event_that_can_help_wakes_and_only_after_back_off() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.upsert(Arc::new(pod("a", 0)), now);
        queue.pop();
        queue.wait_for("a", Events::NODE_TAINTS, now);
        queue.happened(Events::POD_REMOVED, now);
        assert_eq!(queue.next_tick(), Some(now + LONGEST_WAIT));
        queue.happened(Events::NODE_TAINTS, now + Duration::from_millis(1));
        assert!(!queue.has_ready());
        assert_eq!(queue.next_tick(), Some(now + FIRST_BACKOFF));
        queue.tick(now + FIRST_BACKOFF);
        assert_eq!(name(queue.pop()).as_deref(), Some("a"));
    }

    #[test]
    fn back_off_doubles_to_its_bound() {
        assert_eq!(backoff(1), Duration::from_secs(1));
        assert_eq!(backoff(3), Duration::from_secs(4));
        assert_eq!(backoff(40), LAST_BACKOFF);
    }

    #[test]
    fn a_gated_pod_waits_for_its_gates() {
        let now = Instant::now();
        let mut queue = Queue::default();
        let mut held = pod("a", 0);
        held.spec.get_or_insert_default().scheduling_gates = Some(vec![PodSchedulingGate { name: "g".into() }]);
        assert!(queue.upsert(Arc::new(held), now));
        assert!(!queue.has_ready());
        assert!(!queue.upsert(Arc::new(pod("a", 0)), now));
        assert!(queue.has_ready());
    }

    #[test]
    fn a_pod_that_is_in_flight_is_not_queued_twice() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.upsert(Arc::new(pod("a", 0)), now);
        queue.pop();
        queue.upsert(Arc::new(pod("a", 0)), now);
        assert!(!queue.has_ready());
        assert!(queue.remove("a"));
    }
}
