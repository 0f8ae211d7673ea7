//! A stateful set's next writes: pods with an identity, one after another. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use bosun_api::pod::{is_ready, is_terminal, phase};
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::history::REVISION_HASH;
use crate::pods::available;
use crate::runtime::Again;

/// What one pass does.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Ordinals to create, and whether with the new template.
    pub(super) create: Vec<(i32, bool)>,
    pub(super) delete: Vec<Arc<Pod>>,
    pub(super) status: StatefulSetStatus,
    pub(super) again: Again,
}

/// The hashes of the template that is and of the one to come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Revisions<'a> {
    pub(super) current: &'a str,
    pub(super) update: &'a str,
}

/// A pod's ordinal, from its name.
pub(super) fn ordinal(set: &str, pod: &str) -> Option<i32> {
    let text = pod.strip_prefix(set)?.strip_prefix('-')?;
    text.parse().ok().filter(|n: &i32| *n >= 0 && n.to_string() == text)
}

pub(super) fn start_ordinal(spec: &StatefulSetSpec) -> i32 {
    spec.ordinals.as_ref().and_then(|o| o.start).unwrap_or_default()
}

fn partition(spec: &StatefulSetSpec) -> i32 {
    let strategy = spec.update_strategy.as_ref();
    strategy.and_then(|s| s.rolling_update.as_ref()).and_then(|r| r.partition).unwrap_or_default()
}

fn hash_of(pod: &Pod) -> &str {
    pod.labels().get(REVISION_HASH).map(String::as_str).unwrap_or_default()
}

/// Plans one pass.
pub(super) fn plan(set: &StatefulSet, revisions: Revisions<'_>, pods: &[Arc<Pod>], now: Timestamp) -> Plan {
    let Some(spec) = &set.spec else { return Plan::default() };
    let (start, replicas) = (start_ordinal(spec), spec.replicas.unwrap_or(1));
    let wanted = start..start.saturating_add(replicas);
    let mut members: BTreeMap<i32, &Arc<Pod>> = BTreeMap::new();
    let mut condemned: BTreeMap<i32, &Arc<Pod>> = BTreeMap::new();
    for pod in pods {
        let Some(n) = ordinal(&set.name_any(), &pod.name_any()) else { continue };
        if wanted.contains(&n) {
            members.insert(n, pod)
        } else {
            condemned.insert(n, pod)
        };
    }
    let mut plan = Plan { status: count(set, spec, revisions, pods, now), ..Plan::default() };
    if set.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let min_ready = spec.min_ready_seconds.unwrap_or_default();
    let ripe = |pod: &Pod, again: &mut Again| match available(pod, min_ready, now) {
        Ok(()) => true,
        Err(wait) => {
            *again = match (*again, wait) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            false
        }
    };
    let monotonic = spec.pod_management_policy.as_deref() != Some("Parallel");
    let unhealthy = members.values().chain(condemned.values()).any(|p| !is_ready(p));
    // Up, in order: each waits for the one before it.
    for n in wanted.clone() {
        match members.get(&n) {
            None => {
                let old = n < start + partition(spec) || is_early(&members, n, revisions, spec);
                plan.create.push((n, !old));
            }
            Some(pod) if is_terminal(pod) && pod.metadata.deletion_timestamp.is_none() => {
                plan.delete.push((*pod).clone());
            }
            Some(pod) if pod.metadata.deletion_timestamp.is_none() && ripe(pod, &mut plan.again) => continue,
            Some(_) => {}
        }
        if monotonic {
            return plan;
        }
    }
    // Down, from the end: only while everyone else is well.
    for (_, pod) in condemned.iter().rev() {
        let leaving = pod.metadata.deletion_timestamp.is_some();
        if !monotonic {
            if !leaving {
                plan.delete.push((*pod).clone());
            }
            continue;
        }
        let only_itself = !is_ready(pod) && members.values().all(|m| is_ready(m));
        if !leaving && (!unhealthy || only_itself) {
            plan.delete.push((*pod).clone());
        }
        return plan;
    }
    if spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("OnDelete") {
        return plan;
    }
    // Over, from the end: one at a time.
    for (n, pod) in members.iter().rev() {
        if *n < start + partition(spec) {
            break;
        }
        let leaving = pod.metadata.deletion_timestamp.is_some();
        if hash_of(pod) != revisions.update && !leaving {
            plan.delete.push((*pod).clone());
            return plan;
        }
        if leaving || !ripe(pod, &mut plan.again) {
            return plan;
        }
    }
    plan
}

/// Whether a missing pod that comes back amid a rollout belongs to the part that was not rolled yet.
fn is_early(members: &BTreeMap<i32, &Arc<Pod>>, n: i32, revisions: Revisions<'_>, spec: &StatefulSetSpec) -> bool {
    let on_delete = spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("OnDelete");
    if revisions.current == revisions.update || on_delete {
        return false;
    }
    // The rollout goes from the end: it is there yet if a later one still has the old template.
    members.range(n + 1..).any(|(_, p)| hash_of(p) == revisions.current)
}

fn count(
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    revisions: Revisions<'_>,
    pods: &[Arc<Pod>],
    now: Timestamp,
) -> StatefulSetStatus {
    let before = set.status.clone().unwrap_or_default();
    let count =
        |wanted: &dyn Fn(&Pod) -> bool| i32::try_from(pods.iter().filter(|p| wanted(p)).count()).unwrap_or(i32::MAX);
    let living = |p: &Pod| p.metadata.deletion_timestamp.is_none();
    let running_ready = |p: &Pod| phase(p) == "Running" && is_ready(p);
    let min_ready = spec.min_ready_seconds.unwrap_or_default();
    let updated = count(&|p| living(p) && hash_of(p) == revisions.update);
    let ready = count(&running_ready);
    let mut status = StatefulSetStatus {
        replicas: count(&|_| true),
        ready_replicas: Some(ready),
        available_replicas: Some(count(&|p| running_ready(p) && available(p, min_ready, now).is_ok())),
        current_replicas: Some(count(&|p| living(p) && hash_of(p) == revisions.current)),
        updated_replicas: Some(updated),
        current_revision: Some(revisions.current.to_owned()),
        update_revision: Some(revisions.update.to_owned()),
        observed_generation: set.metadata.generation,
        collision_count: Some(before.collision_count.unwrap_or_default()),
        conditions: before.conditions,
    };
    let all = spec.replicas.unwrap_or(1);
    if updated == all && ready == all && status.replicas == all {
        // The rollout is over: what was to come is what is.
        status.current_revision = status.update_revision.clone();
        status.current_replicas = Some(updated);
    }
    status
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn set(spec: Value) -> StatefulSet {
        let mut set = json!({"metadata": {"name": "db"},
            "spec": {"serviceName": "db", "selector": {}, "template": {}, "replicas": 3}});
        for (key, value) in spec.as_object().unwrap() {
            set["spec"][key] = value.clone();
        }
        serde_json::from_value(set).unwrap()
    }

    fn pod(n: i32, hash: &str, ready: bool) -> Arc<Pod> {
        let pod = json!({
            "metadata": {"name": format!("db-{n}"), "labels": {REVISION_HASH: hash}},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn run(set: &StatefulSet, pods: &[Arc<Pod>]) -> (Vec<i32>, Vec<String>) {
        let revisions = Revisions { current: "old", update: "new" };
        let plan = plan(set, revisions, pods, Timestamp::UNIX_EPOCH);
        (plan.create.iter().map(|c| c.0).collect(), plan.delete.iter().map(|p| p.name_any()).collect())
    }

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn ordinals() {
        assert_eq!(ordinal("db", "db-12"), Some(12));
        assert_eq!(ordinal("db", "db-012"), None);
        assert_eq!(ordinal("db", "db-x-1"), None);
    }

    #[test]
    fn up_one_by_one_or_all_at_once() {
        assert_eq!(run(&set(json!({})), &[]), (vec![0], vec![]));
        assert_eq!(run(&set(json!({})), &[pod(0, "new", false)]), (vec![], vec![]));
        assert_eq!(run(&set(json!({})), &[pod(0, "new", true)]), (vec![1], vec![]));
        assert_eq!(run(&set(json!({"podManagementPolicy": "Parallel"})), &[]), (vec![0, 1, 2], vec![]));
        assert_eq!(run(&set(json!({"ordinals": {"start": 5}})), &[]), (vec![5], vec![]));
    }

    #[test]
    fn down_from_the_end_and_only_while_all_are_well() {
        let one = set(json!({"replicas": 1}));
        let well = [pod(0, "new", true), pod(1, "new", true), pod(2, "new", true)];
        assert_eq!(run(&one, &well), (vec![], names(&["db-2"])));
        let sick = [pod(0, "new", true), pod(1, "new", false), pod(2, "new", true)];
        assert_eq!(run(&one, &sick), (vec![], vec![]));
    }

    #[test]
    fn over_from_the_end_one_at_a_time_down_to_the_partition() {
        let old = [pod(0, "old", true), pod(1, "old", true), pod(2, "old", true)];
        assert_eq!(run(&set(json!({})), &old).1, ["db-2"]);
        let waiting = [pod(0, "old", true), pod(1, "old", true), pod(2, "new", false)];
        assert_eq!(run(&set(json!({})), &waiting), (vec![], vec![]));
        let next = [pod(0, "old", true), pod(1, "old", true), pod(2, "new", true)];
        assert_eq!(run(&set(json!({})), &next).1, ["db-1"]);
        let part = set(json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}}));
        assert!(run(&part, &next).1.is_empty());
    }

    #[test]
    fn a_pod_that_returns_amid_a_rollout_keeps_its_side() {
        let revisions = Revisions { current: "old", update: "new" };
        let ahead = [pod(1, "old", true), pod(2, "new", true)];
        assert_eq!(plan(&set(json!({})), revisions, &ahead, Timestamp::UNIX_EPOCH).create, [(0, false)]);
        let behind = [pod(0, "old", true), pod(1, "old", true)];
        assert_eq!(plan(&set(json!({})), revisions, &behind, Timestamp::UNIX_EPOCH).create, [(2, true)]);
    }
}
