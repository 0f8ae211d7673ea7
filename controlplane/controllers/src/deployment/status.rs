//! A deployment's status: counts, and the conditions Available, Progressing and ReplicaFailure. Pure.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::plan::{Target, size};
use crate::objects::{plus_seconds, until};
use crate::runtime::Again;

const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const REPLICA_FAILURE: &str = "ReplicaFailure";
const COMPLETE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";

/// The status to write, if it differs from what is there, and when time alone may change it.
pub(super) fn plan(
    target: &Target<'_>,
    new: Option<&ReplicaSet>,
    old: &[Arc<ReplicaSet>],
    created: Option<&str>,
    now: Timestamp,
) -> (Option<DeploymentStatus>, Again) {
    let before = target.deployment.status.clone().unwrap_or_default();
    let mut status = count(target, new, old, &before);
    judge_availability(target, &mut status, now);
    let again = judge_progress(target, new, created, &before, &mut status, now);
    promote_failure(new, old, &mut status);
    let changed = normal(&status) != normal(&before);
    (changed.then_some(status), again)
}

/// Counts that are absent are zeros: without this every pass would find a difference.
fn normal(status: &DeploymentStatus) -> DeploymentStatus {
    let mut status = status.clone();
    let numbers = [
        &mut status.replicas,
        &mut status.updated_replicas,
        &mut status.ready_replicas,
        &mut status.available_replicas,
        &mut status.unavailable_replicas,
        &mut status.terminating_replicas,
    ];
    for number in numbers {
        *number = Some(number.unwrap_or_default());
    }
    status.conditions = Some(status.conditions.unwrap_or_default());
    status
}

fn count(
    target: &Target<'_>,
    new: Option<&ReplicaSet>,
    old: &[Arc<ReplicaSet>],
    before: &DeploymentStatus,
) -> DeploymentStatus {
    let all = || new.into_iter().chain(old.iter().map(AsRef::as_ref));
    let sum = |read: fn(&ReplicaSetStatus) -> i32| all().filter_map(|s| s.status.as_ref()).map(read).sum::<i32>();
    let available = sum(|s| s.available_replicas.unwrap_or_default());
    let wanted: i32 = all().map(size).sum();
    DeploymentStatus {
        observed_generation: target.deployment.metadata.generation,
        replicas: Some(sum(|s| s.replicas)),
        updated_replicas: Some(new.and_then(|s| s.status.as_ref()).map(|s| s.replicas).unwrap_or_default()),
        ready_replicas: Some(sum(|s| s.ready_replicas.unwrap_or_default())),
        available_replicas: Some(available),
        unavailable_replicas: Some((wanted - available).max(0)),
        terminating_replicas: Some(sum(|s| s.terminating_replicas.unwrap_or_default())),
        collision_count: before.collision_count,
        conditions: before.conditions.clone(),
    }
}

/// Whether every replica is of the current template and available.
pub(super) fn is_complete(target: &Target<'_>, status: &DeploymentStatus) -> bool {
    let all = Some(target.replicas);
    let or_zero = |n: Option<i32>| Some(n.unwrap_or_default());
    or_zero(status.updated_replicas) == all
        && or_zero(status.replicas) == all
        && or_zero(status.available_replicas) == all
        && status.observed_generation >= target.deployment.metadata.generation
}

fn judge_availability(target: &Target<'_>, status: &mut DeploymentStatus, now: Timestamp) {
    let enough = status.available_replicas.unwrap_or_default() >= target.replicas - target.max_unavailable;
    let (value, reason, message) = if enough {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    set(status, condition(AVAILABLE, value, reason, message.to_owned(), now));
}

fn judge_progress(
    target: &Target<'_>,
    new: Option<&ReplicaSet>,
    created: Option<&str>,
    before: &DeploymentStatus,
    status: &mut DeploymentStatus,
    now: Timestamp,
) -> Again {
    let deadline = target.spec.progress_deadline_seconds.filter(|s| *s != i32::MAX);
    let Some(deadline) = deadline else {
        remove(status, PROGRESSING);
        return None;
    };
    let current = find(before, PROGRESSING).cloned();
    let reason = current.as_ref().and_then(|c| c.reason.as_deref()).unwrap_or_default();
    if target.spec.paused == Some(true) {
        if reason != "DeploymentPaused" && reason != TIMED_OUT {
            set(status, condition(PROGRESSING, "Unknown", "DeploymentPaused", "Deployment is paused".into(), now));
        }
        return None;
    }
    if reason == "DeploymentPaused" {
        set(status, condition(PROGRESSING, "Unknown", "DeploymentResumed", "Deployment is resumed".into(), now));
    }
    if let Some(name) = created {
        let message = format!("Created new replica set {name:?}");
        set(status, condition(PROGRESSING, "True", "NewReplicaSetCreated", message, now));
        return Some(std::time::Duration::from_secs(u64::try_from(deadline).unwrap_or_default() + 1));
    }
    if current.is_none()
        && let Some(new) = new
    {
        let message = format!("Found new replica set {:?}", new.name_any());
        set(status, condition(PROGRESSING, "True", "FoundNewReplicaSet", message, now));
    }
    let subject = match new {
        Some(set) => format!("ReplicaSet {:?}", set.name_any()),
        None => format!("Deployment {:?}", target.deployment.name_any()),
    };
    let settled = status.replicas == status.updated_replicas && reason == COMPLETE;
    if !settled {
        if is_complete(target, status) {
            let message = format!("{subject} has successfully progressed.");
            set(status, condition(PROGRESSING, "True", COMPLETE, message, now));
        } else if progressed(before, status) {
            let message = format!("{subject} is progressing.");
            let mut next = condition(PROGRESSING, "True", "ReplicaSetUpdated", message, now);
            if let Some(current) = current.as_ref().filter(|c| c.status == "True") {
                next.last_transition_time = current.last_transition_time.clone();
            }
            remove(status, PROGRESSING);
            status.conditions.get_or_insert_default().push(next);
        } else if timed_out(find(status, PROGRESSING), deadline, now) {
            let message = format!("{subject} has timed out progressing.");
            set(status, condition(PROGRESSING, "False", TIMED_OUT, message, now));
        }
    }
    look_again(find(status, PROGRESSING), deadline, now)
}

/// Whether more is done than before.
fn progressed(before: &DeploymentStatus, now: &DeploymentStatus) -> bool {
    let or_zero = Option::<i32>::unwrap_or_default;
    let old = |s: &DeploymentStatus| or_zero(s.replicas) - or_zero(s.updated_replicas);
    or_zero(now.updated_replicas) > or_zero(before.updated_replicas)
        || old(now) < old(before)
        || or_zero(now.ready_replicas) > or_zero(before.ready_replicas)
        || or_zero(now.available_replicas) > or_zero(before.available_replicas)
}

fn timed_out(progressing: Option<&DeploymentCondition>, deadline: i32, now: Timestamp) -> bool {
    let Some(condition) = progressing else { return false };
    match condition.reason.as_deref() {
        Some(COMPLETE) => false,
        Some(TIMED_OUT) => true,
        _ => expires(condition, deadline).is_some_and(|at| at < now),
    }
}

fn expires(condition: &DeploymentCondition, deadline: i32) -> Option<Timestamp> {
    let since = condition.last_update_time.as_ref()?;
    Some(plus_seconds(since.0, i64::from(deadline)))
}

fn look_again(progressing: Option<&DeploymentCondition>, deadline: i32, now: Timestamp) -> Again {
    let condition = progressing?;
    if matches!(condition.reason.as_deref(), Some(COMPLETE | TIMED_OUT | "DeploymentPaused")) {
        return None;
    }
    Some(until(expires(condition, deadline)?, now) + std::time::Duration::from_secs(1))
}

/// What keeps a set from creating pods is the deployment's trouble too.
fn promote_failure(new: Option<&ReplicaSet>, old: &[Arc<ReplicaSet>], status: &mut DeploymentStatus) {
    let failure = |set: &ReplicaSet| {
        let conditions = set.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().find(|c| c.type_ == REPLICA_FAILURE).cloned()
    };
    let found = new.and_then(failure).or_else(|| old.iter().find_map(|s| failure(s)));
    match found {
        None => remove(status, REPLICA_FAILURE),
        Some(failure) => set(
            status,
            DeploymentCondition {
                type_: REPLICA_FAILURE.to_owned(),
                status: failure.status,
                reason: failure.reason,
                message: failure.message,
                last_update_time: failure.last_transition_time.clone(),
                last_transition_time: failure.last_transition_time,
            },
        ),
    }
}

/// The status of a deployment whose new set could not be created.
pub(super) fn with_create_error(deployment: &Deployment, message: String, now: Timestamp) -> DeploymentStatus {
    let mut status = deployment.status.clone().unwrap_or_default();
    set(&mut status, condition(PROGRESSING, "False", "ReplicaSetCreateError", message, now));
    status
}

fn condition(kind: &str, value: &str, reason: &str, message: String, now: Timestamp) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

fn find<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == kind)
}

fn remove(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|c| c.type_ != kind);
    }
}

/// Sets a condition; one with the same status and reason stays as it is.
fn set(status: &mut DeploymentStatus, mut next: DeploymentCondition) {
    if let Some(current) = find(status, &next.type_) {
        if current.status == next.status && current.reason == next.reason {
            return;
        }
        if current.status == next.status {
            next.last_transition_time = current.last_transition_time.clone();
        }
    }
    let kind = next.type_.clone();
    remove(status, &kind);
    status.conditions.get_or_insert_default().push(next);
}
