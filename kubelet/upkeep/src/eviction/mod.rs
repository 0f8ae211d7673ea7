//! Eviction of pods when the node runs short of something.
//!
//! [`assess`] compares what is left with the thresholds and says which conditions the node has and what is starved;
//! the kubelet then reclaims what nobody needs ([`Starved::reclaims`]), measures again, and if that was not enough
//! [`choose`] names the one pod to go. Both are pure. After each pod everything is measured anew.

mod rank;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use bosun_api::quantity::{self, Quantity};
use k8s_openapi::api::core::v1::Pod;

use crate::critical::is_critical;
use crate::signals::{Condition, Observations, Resource, Signal, amount};
use crate::thresholds::Threshold;
use crate::usage::{ContainerUsage, PodUsage};

/// The reason of an evicted pod's status and event.
pub const REASON: &str = "Evicted";
/// Seconds of grace of a pod that a hard threshold or a limit evicts.
pub const IMMEDIATE: i64 = 1;

/// What eviction goes by.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The thresholds.
    pub thresholds: Vec<Threshold>,
    /// `evictionPressureTransitionPeriod`: how long a condition is shown after it was last seen.
    pub transition: Duration,
    /// `evictionMaxPodGracePeriod`: the most seconds of grace of a pod that a soft threshold evicts.
    pub max_pod_grace: i64,
}

/// Which file systems hold what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Images are on another file system than the kubelet's folder.
    pub image_fs: bool,
    /// Writable layers of containers are on another file system than images.
    pub container_fs: bool,
}

/// What is remembered between assessments. Thresholds go by their place in [`Config::thresholds`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    since: BTreeMap<usize, Instant>,
    met: BTreeSet<usize>,
    seen: BTreeMap<Condition, Instant>,
}

/// What the node is short of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Starved {
    /// The threshold that is crossed.
    pub threshold: Threshold,
    /// The amount that must be left.
    pub quantity: Quantity,
    /// The amount that is left.
    pub available: Quantity,
}

/// The result of [`assess`].
#[derive(Clone, Debug, PartialEq)]
pub struct Assessment {
    /// What the node is to show.
    pub conditions: BTreeSet<Condition>,
    /// What is to be done something about now.
    pub starved: Option<Starved>,
    /// To be given to the next assessment.
    pub history: History,
}

/// Something of the node's own that can be given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reclaim {
    /// Containers of pods that have ended.
    Containers,
    /// Images that no container uses.
    Images,
}

/// A pod that might go, and what it uses as far as that is known.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// What it uses.
    pub usage: Option<PodUsage>,
}

/// A pod that is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction {
    /// Its UID.
    pub uid: String,
    /// Its namespace and name, for people.
    pub name: String,
    /// Seconds of grace.
    pub grace: i64,
    /// What its status and event say.
    pub message: String,
    /// Whether the pod gets the condition DisruptionTarget.
    pub disruption: bool,
}

/// Compares what is left with the thresholds.
pub fn assess(config: &Config, observed: &Observations, history: &History, now: Instant) -> Assessment {
    let crossed = |(n, threshold): (usize, &Threshold)| {
        let observation = observed.get(&threshold.signal)?;
        let mut quantity = threshold.value.of(observation.capacity);
        // Once crossed, a threshold holds until there is so much more.
        if let (true, Some(reclaim)) = (history.met.contains(&n), threshold.reclaim) {
            quantity += reclaim.of(observation.capacity);
        }
        (quantity > amount(observation.available)).then_some(n)
    };
    let crossed: BTreeSet<usize> = config.thresholds.iter().enumerate().filter_map(crossed).collect();
    let since: BTreeMap<usize, Instant> =
        crossed.iter().map(|n| (*n, history.since.get(n).copied().unwrap_or(now))).collect();
    let mut seen = history.seen.clone();
    seen.extend(crossed.iter().map(|n| (config.thresholds[*n].signal.condition(), now)));
    let lasts = |at: Instant| at == now || now.saturating_duration_since(at) < config.transition;
    let conditions = seen.iter().filter(|(_, at)| lasts(**at)).map(|(condition, _)| *condition).collect();
    let due =
        |(n, at): (&usize, &Instant)| (now.saturating_duration_since(*at) >= config.thresholds[*n].grace).then_some(*n);
    let met: BTreeSet<usize> = since.iter().filter_map(due).collect();
    let first = met.iter().min_by_key(|n| (config.thresholds[**n].signal.rank(), **n));
    let starved = first.and_then(|n| starved(config.thresholds[*n], observed));
    Assessment { conditions, starved, history: History { since, met, seen } }
}

fn starved(threshold: Threshold, observed: &Observations) -> Option<Starved> {
    let observation = observed.get(&threshold.signal)?;
    let quantity = threshold.value.of(observation.capacity);
    Some(Starved { threshold, quantity, available: amount(observation.available) })
}

/// Whether any threshold is crossed, whatever grace or minimum it has: what is asked after a reclaim.
pub fn is_short(config: &Config, observed: &Observations) -> bool {
    config
        .thresholds
        .iter()
        .any(|threshold| starved(*threshold, observed).is_some_and(|starved| starved.quantity > starved.available))
}

impl Starved {
    /// The resource of pods.
    pub fn resource(&self) -> Resource {
        self.threshold.signal.resource()
    }

    /// What to give back before any pod is evicted.
    pub fn reclaims(&self, layout: Layout) -> &'static [Reclaim] {
        const BOTH: &[Reclaim] = &[Reclaim::Containers, Reclaim::Images];
        match self.threshold.signal {
            Signal::MemoryAvailable | Signal::AllocatableMemoryAvailable | Signal::PidAvailable => &[],
            _ if !layout.image_fs && !layout.container_fs => BOTH,
            Signal::ImageFsAvailable | Signal::ImageFsInodesFree if layout.container_fs => &[Reclaim::Images],
            _ if layout.container_fs => &[Reclaim::Containers],
            // Dead containers and images are both on the image file system; the kubelet's own has neither.
            Signal::NodeFsAvailable | Signal::NodeFsInodesFree => &[],
            _ => BOTH,
        }
    }
}

/// The pod to evict: of those that may be, the first in the order of the starved resource.
pub fn choose(config: &Config, layout: Layout, starved: &Starved, pods: &[Candidate<'_>]) -> Option<Eviction> {
    let mut order: Vec<&Candidate<'_>> = pods.iter().collect();
    rank::sort(&mut order, starved.threshold.signal, layout);
    let candidate = order.into_iter().find(|candidate| !is_critical(candidate.pod))?;
    let own = candidate.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    let grace = match starved.threshold.is_hard() {
        true => IMMEDIATE,
        false => own.map_or(config.max_pod_grace, |own| own.min(config.max_pod_grace)),
    };
    Some(eviction(candidate.pod, grace, message(starved, candidate), true))
}

pub(crate) fn eviction(pod: &Pod, grace: i64, message: String, disruption: bool) -> Eviction {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let name = format!("{}/{}", text(&pod.metadata.namespace), text(&pod.metadata.name));
    Eviction { uid: text(&pod.metadata.uid), name, grace, message, disruption }
}

/// What the pod's status says, in stock's words; the blank at the end is theirs too.
fn message(starved: &Starved, candidate: &Candidate<'_>) -> String {
    let resource = starved.resource();
    let mut message = format!(
        "The node was low on resource: {resource}. Threshold quantity: {}, available: {}. ",
        starved.quantity, starved.available
    );
    let spec = candidate.pod.spec.as_ref();
    let containers: Vec<_> =
        spec.iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers)).collect();
    for usage in candidate.usage.iter().flat_map(|usage| &usage.containers) {
        let Some(container) = containers.iter().find(|c| c.name == usage.name) else { continue };
        let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
        let request = quantity::get(requests, resource.name());
        if let Some(used) = used(usage, resource).filter(|used| *used > request) {
            message.push_str(&format!(
                "Container {} was using {used}, request is {request}, has larger consumption of {resource}. ",
                usage.name
            ));
        }
    }
    message
}

fn used(usage: &ContainerUsage, resource: Resource) -> Option<Quantity> {
    let bytes = match resource {
        Resource::Memory => usage.memory,
        Resource::EphemeralStorage => usage.rootfs.zip(usage.logs).map(|(rootfs, logs)| rootfs.bytes + logs.bytes),
        Resource::Inodes | Resource::Pids => None,
    };
    bytes.map(|bytes| amount(i64::try_from(bytes).unwrap_or(i64::MAX)))
}

/// The words by which a pod is refused while the node has these conditions.
pub fn refusal_message(conditions: &BTreeSet<Condition>) -> String {
    let names: Vec<String> = conditions.iter().map(ToString::to_string).collect();
    format!("The node had condition: [{}]. ", names.join(" "))
}

/// Whether a node with these conditions takes the pod.
pub fn admits(pod: &Pod, conditions: &BTreeSet<Condition>) -> bool {
    if conditions.is_empty() || is_critical(pod) {
        return true;
    }
    let only_memory = conditions.iter().all(|condition| *condition == Condition::Memory);
    let best_effort = bosun_api::pod::qos_class(pod) == bosun_api::pod::QosClass::BestEffort;
    only_memory && (!best_effort || tolerates_memory_pressure(pod))
}

fn tolerates_memory_pressure(pod: &Pod) -> bool {
    const KEY: &str = "node.kubernetes.io/memory-pressure";
    pod.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten()).any(|toleration| {
        let effect = toleration.effect.as_deref().unwrap_or_default();
        let key = toleration.key.as_deref().unwrap_or_default();
        let fits = match toleration.operator.as_deref().unwrap_or("Equal") {
            "Exists" => key.is_empty() || key == KEY,
            "Equal" | "" => key == KEY && toleration.value.as_deref().unwrap_or_default().is_empty(),
            _ => false,
        };
        fits && matches!(effect, "" | "NoSchedule")
    })
}

impl fmt::Display for Assessment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for condition in &self.conditions {
            writeln!(f, "show {condition}")?;
        }
        match &self.starved {
            Some(Starved { threshold, available, .. }) => writeln!(f, "starved: {threshold}, {available} left"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Eviction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "evict {} within {} s: {}", self.name, self.grace, self.message)
    }
}

#[cfg(test)]
mod tests;
