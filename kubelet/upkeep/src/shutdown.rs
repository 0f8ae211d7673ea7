//! The order in which pods end when the machine is about to be shut down. Pure.

use std::fmt;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use crate::critical::{SYSTEM_CRITICAL, priority};

/// The reason of an ended pod's status.
pub const REASON: &str = "Terminated";
/// What that status and the condition DisruptionTarget say.
pub const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";
/// The reason of a pod that comes too late.
pub const REFUSAL_REASON: &str = "NodeShutdown";
/// What that pod is told.
pub const REFUSAL_MESSAGE: &str = "Pod was rejected as the node is shutting down.";
/// Why the node is not ready meanwhile.
pub const NOT_READY: &str = "node is shutting down";

/// Pods from a priority on, and the time they get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// The lowest priority of the group.
    pub priority: i32,
    /// Seconds that its pods get.
    pub seconds: i64,
}

/// A pod that is to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Its UID.
    pub uid: String,
    /// Seconds of grace.
    pub grace: i64,
}

/// Pods that end at the same time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// How long they are waited for.
    pub seconds: i64,
    /// The pods.
    pub pods: Vec<Ending>,
}

/// The groups of a configuration, lowest priority first; none if nothing is to be done at a shutdown.
///
/// `by_priority` is `shutdownGracePeriodByPodPriority`; without it the two periods make two groups.
pub fn groups(by_priority: &[Group], period: Duration, critical: Duration) -> Vec<Group> {
    let mut groups = by_priority.to_vec();
    if groups.is_empty() && !period.is_zero() {
        let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
        let common = period.saturating_sub(critical);
        groups.push(Group { priority: 0, seconds: seconds(common) });
        groups.push(Group { priority: SYSTEM_CRITICAL, seconds: seconds(period.saturating_sub(common)) });
    }
    groups.sort_by_key(|group| group.priority);
    groups
}

/// How long a shutdown must be held off for all groups.
pub fn total(groups: &[Group]) -> Duration {
    groups.iter().map(|group| Duration::from_secs(u64::try_from(group.seconds).unwrap_or(0))).sum()
}

/// The stages of a shutdown. A pod below all groups ends with the lowest one.
pub fn plan(groups: &[Group], pods: &[&Pod]) -> Vec<Stage> {
    let mut stages: Vec<Stage> = groups.iter().map(|g| Stage { seconds: g.seconds, pods: Vec::new() }).collect();
    for pod in pods {
        let above = groups.iter().rposition(|group| group.priority <= priority(pod)).unwrap_or(0);
        let Some(stage) = stages.get_mut(above) else { continue };
        let own = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        let grace = own.map_or(stage.seconds, |own| own.min(stage.seconds));
        stage.pods.push(Ending { uid: pod.metadata.uid.clone().unwrap_or_default(), grace });
    }
    stages.retain(|stage| !stage.pods.is_empty());
    stages
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "within {} s:", self.seconds)?;
        self.pods.iter().try_for_each(|pod| write!(f, " {} ({} s)", pod.uid, pod.grace))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, priority: i32, grace: i64) -> Pod {
        serde_json::from_value(json!({"metadata": {"uid": name},
            "spec": {"priority": priority, "terminationGracePeriodSeconds": grace, "containers": []}}))
        .unwrap()
    }

    fn text(groups: &[Group], pods: &[Pod]) -> String {
        let pods: Vec<&Pod> = pods.iter().collect();
        plan(groups, &pods).iter().map(|stage| format!("{stage}\n")).collect()
    }

    #[test]
    fn critical_pods_end_last() {
        let pods =
            [pod("dns", SYSTEM_CRITICAL, 30), pod("web", 0, 30), pod("job", -5, 1), pod("node", 2_000_001_000, 5)];
        let two = groups(&[], Duration::from_secs(30), Duration::from_secs(10));
        assert_eq!(text(&two, &pods), "within 20 s: web (20 s) job (1 s)\nwithin 10 s: dns (10 s) node (5 s)\n");
        assert_eq!(total(&two), Duration::from_secs(30));
        assert_eq!(groups(&[], Duration::ZERO, Duration::ZERO), []);
        assert_eq!(text(&[], &pods), "");
    }

    #[test]
    fn priorities_make_groups() {
        let given = [
            Group { priority: 100, seconds: 10 },
            Group { priority: 0, seconds: 60 },
            Group { priority: SYSTEM_CRITICAL, seconds: 5 },
        ];
        let groups = groups(&given, Duration::from_secs(1), Duration::ZERO);
        let pods = [pod("a", -1, 30), pod("b", 99, 30), pod("c", 100, 30), pod("d", SYSTEM_CRITICAL - 1, 30)];
        assert_eq!(text(&groups, &pods), "within 60 s: a (30 s) b (30 s)\nwithin 10 s: c (10 s) d (10 s)\n");
    }
}
