//! A job's next writes: which pods to count, to create, to delete, and what its status says. Pure.
//!
//! A finished pod is counted exactly once: its uid goes into `uncountedTerminatedPods`, then its finalizer is taken off,
//! and only when that is seen does the uid turn into a number (KEP-2307).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bosun_api::pod::{is_ready, phase};
use k8s_openapi::api::batch::v1::{
    Job, JobCondition, JobSpec, JobStatus, PodFailurePolicyRule, UncountedTerminatedPods,
};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::indexes;
use crate::objects::{created, plus_seconds, until};
use crate::runtime::Again;

/// Keeps a finished pod until it is counted.
pub(super) const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// Annotation and label with the pod's completion index.
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";

const FIRST_BACKOFF: Duration = Duration::from_secs(10);
const LAST_BACKOFF: Duration = Duration::from_secs(600);

/// The writes of one pass, in their order.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Written first.
    pub(super) status: JobStatus,
    /// Pods whose finalizer goes once the status is written.
    pub(super) release: Vec<Arc<Pod>>,
    pub(super) delete: Vec<Arc<Pod>>,
    /// Pods to create, each with its index if the job has indexes.
    pub(super) create: Vec<Option<i32>>,
    /// Reason and message of an event; a warning unless the job is fine.
    pub(super) events: Vec<(bool, &'static str, String)>,
    pub(super) again: Again,
}

/// Whether the job is over.
pub(super) fn finished(job: &Job) -> Option<&JobCondition> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| c.status == "True" && matches!(c.type_.as_str(), "Complete" | "Failed"))
}

pub(super) fn is_tracked(pod: &Pod) -> bool {
    pod.finalizers().iter().any(|f| f == FINALIZER)
}

pub(super) fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

fn index_of(pod: &Pod) -> Option<i32> {
    pod.annotations().get(INDEX)?.parse().ok()
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

struct Work<'a> {
    spec: &'a JobSpec,
    pods: &'a [Arc<Pod>],
    now: Timestamp,
    plan: Plan,
    succeeded: i32,
    failed: i32,
    completed: BTreeSet<i32>,
    active: Vec<Arc<Pod>>,
}

/// Plans one pass. `settled` is false while earlier writes have not been seen: then nothing is created or deleted.
pub(super) fn plan(job: &Job, pods: &[Arc<Pod>], settled: bool, now: Timestamp) -> Plan {
    let Some(spec) = &job.spec else { return Plan::default() };
    let status = job.status.clone().unwrap_or_default();
    let mut work = Work {
        spec,
        pods,
        now,
        completed: indexes::parse(status.completed_indexes.as_deref().unwrap_or_default()),
        plan: Plan { status, ..Plan::default() },
        succeeded: 0,
        failed: 0,
        active: Vec::new(),
    };
    work.count();
    if finished(job).is_some() {
        return work.plan;
    }
    let suspended = spec.suspend == Some(true);
    work.note_start(suspended);
    if !work.conclude(job) {
        work.note_suspension(suspended);
        if settled {
            work.manage(suspended);
        }
    }
    if !settled {
        work.plan.delete.clear();
    }
    work.plan
}

impl Work<'_> {
    fn is_failed(&self, pod: &Pod) -> bool {
        if phase(pod) == "Failed" {
            return true;
        }
        let waits =
            self.spec.pod_replacement_policy.as_deref() == Some("Failed") || self.spec.pod_failure_policy.is_some();
        !waits && pod.metadata.deletion_timestamp.is_some() && phase(pod) != "Succeeded"
    }

    /// Moves pods on their way from finished to counted, and counts the rest.
    fn count(&mut self) {
        let uncounted = self.plan.status.uncounted_terminated_pods.take().unwrap_or_default();
        let held = |uid: &String| self.pods.iter().any(|p| self::uid(p) == uid && is_tracked(p));
        let (mut succeeded, counted_succeeded): (Vec<String>, Vec<String>) =
            uncounted.succeeded.unwrap_or_default().into_iter().partition(held);
        let (mut failed, counted_failed): (Vec<String>, Vec<String>) =
            uncounted.failed.unwrap_or_default().into_iter().partition(held);
        let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        let status = &mut self.plan.status;
        let before = (status.succeeded.unwrap_or_default(), status.failed.unwrap_or_default());
        status.succeeded = Some(before.0 + count(counted_succeeded.len()));
        status.failed = Some(before.1 + count(counted_failed.len()));
        let indexed = is_indexed(self.spec);
        let (mut ready, mut terminating) = (0, 0);
        for pod in self.pods {
            let tracked = is_tracked(pod);
            if phase(pod) == "Succeeded" {
                if tracked && indexed {
                    self.completed.extend(index_of(pod));
                    self.plan.release.push(pod.clone());
                } else if tracked {
                    push_once(&mut succeeded, uid(pod));
                    self.plan.release.push(pod.clone());
                }
            } else if self.is_failed(pod) {
                if tracked {
                    if !self.is_ignored(pod) {
                        push_once(&mut failed, uid(pod));
                    }
                    self.plan.release.push(pod.clone());
                }
                terminating += i32::from(phase(pod) != "Failed");
            } else if pod.metadata.deletion_timestamp.is_some() {
                terminating += 1;
            } else {
                ready += i32::from(is_ready(pod));
                self.active.push(pod.clone());
            }
        }
        let status = &mut self.plan.status;
        if indexed {
            status.succeeded = Some(count(self.completed.len()));
            status.completed_indexes = Some(indexes::format(&self.completed)).filter(|t| !t.is_empty());
        }
        self.succeeded = status.succeeded.unwrap_or_default() + count(succeeded.len());
        self.failed = status.failed.unwrap_or_default() + count(failed.len());
        status.active = Some(count(self.active.len())).filter(|n| *n > 0);
        status.ready = Some(ready);
        status.terminating = Some(terminating);
        status.succeeded = status.succeeded.filter(|n| *n > 0);
        status.failed = status.failed.filter(|n| *n > 0);
        let list = |uids: Vec<String>| (!uids.is_empty()).then_some(uids);
        status.uncounted_terminated_pods =
            Some(UncountedTerminatedPods { succeeded: list(succeeded), failed: list(failed) });
    }

    fn note_start(&mut self, suspended: bool) {
        if self.plan.status.start_time.is_none() && !suspended {
            self.plan.status.start_time = Some(Time(self.now));
        }
    }

    fn condition(&self, kind: &str) -> Option<&JobCondition> {
        self.plan.status.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == "True")
    }

    fn set(&mut self, kind: &str, status: &str, reason: &str, message: &str) {
        let conditions = self.plan.status.conditions.get_or_insert_default();
        if conditions.iter().any(|c| c.type_ == kind && c.status == status) {
            return;
        }
        conditions.retain(|c| c.type_ != kind);
        conditions.push(JobCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_probe_time: Some(Time(self.now)),
            last_transition_time: Some(Time(self.now)),
        });
    }

    /// Whether the job is decided: then what still runs is deleted, and when all is counted the job is over.
    fn conclude(&mut self, job: &Job) -> bool {
        if self.condition("FailureTarget").is_none() && self.condition("SuccessCriteriaMet").is_none() {
            if let Some((reason, message)) = self.failure(job) {
                self.set("FailureTarget", "True", reason, &message);
            } else if self.is_complete() {
                let message = "Reached expected number of succeeded pods";
                self.set("SuccessCriteriaMet", "True", "CompletionsReached", message);
            } else {
                return false;
            }
        }
        self.plan.delete = self.active.clone();
        let counted = self.plan.status.uncounted_terminated_pods.as_ref().is_none_or(|u| {
            u.succeeded.as_ref().is_none_or(Vec::is_empty) && u.failed.as_ref().is_none_or(Vec::is_empty)
        });
        let terminating = self.plan.status.terminating.unwrap_or_default();
        if !counted || !self.active.is_empty() || terminating > 0 {
            return true;
        }
        let text = |c: &JobCondition| (c.reason.clone().unwrap_or_default(), c.message.clone().unwrap_or_default());
        if let Some((reason, message)) = self.condition("FailureTarget").map(text) {
            self.set("Failed", "True", &reason, &message);
            let known = failure_reason(&reason);
            self.plan.events.push((false, known, message));
        } else if let Some((reason, message)) = self.condition("SuccessCriteriaMet").map(text) {
            self.set("Complete", "True", &reason, &message);
            self.plan.status.completion_time = Some(Time(self.now));
            self.plan.events.push((true, "Completed", "Job completed".to_owned()));
        }
        true
    }

    fn failure(&mut self, job: &Job) -> Option<(&'static str, String)> {
        if let Some(message) = self.failed_by_policy(job) {
            return Some(("PodFailurePolicy", message));
        }
        let limit = self.spec.backoff_limit.unwrap_or(6);
        if self.failed > limit || self.restarted_too_often(limit) {
            return Some(("BackoffLimitExceeded", "Job has reached the specified backoff limit".to_owned()));
        }
        let deadline = self.spec.active_deadline_seconds.filter(|_| self.spec.suspend != Some(true))?;
        let start = self.plan.status.start_time.as_ref()?.0;
        let at = plus_seconds(start, deadline);
        if at <= self.now {
            return Some(("DeadlineExceeded", "Job was active longer than specified deadline".to_owned()));
        }
        self.look_again(until(at, self.now));
        None
    }

    fn restarted_too_often(&self, limit: i32) -> bool {
        let template = self.spec.template.spec.as_ref();
        if template.and_then(|s| s.restart_policy.as_deref()) != Some("OnFailure") {
            return false;
        }
        let restarts: i32 = self
            .active
            .iter()
            .filter(|p| matches!(phase(p), "Running" | "Pending"))
            .flat_map(|p| container_statuses(p))
            .map(|s| s.restart_count)
            .sum();
        if limit == 0 { restarts > 0 } else { restarts >= limit }
    }

    fn is_complete(&self) -> bool {
        match self.spec.completions {
            Some(completions) => self.succeeded >= completions,
            None => self.succeeded > 0 && self.active.is_empty(),
        }
    }

    fn note_suspension(&mut self, suspended: bool) {
        let is = self.condition("Suspended").is_some();
        if suspended && !is {
            self.set("Suspended", "True", "JobSuspended", "Job suspended");
            self.plan.events.push((true, "Suspended", "Job suspended".to_owned()));
            self.plan.status.start_time = None;
        } else if !suspended && is {
            self.set("Suspended", "False", "JobResumed", "Job resumed");
            self.plan.events.push((true, "Resumed", "Job resumed".to_owned()));
            self.plan.status.start_time = Some(Time(self.now));
        }
    }

    /// Creates what is missing and deletes what is too much.
    fn manage(&mut self, suspended: bool) {
        let parallelism = self.spec.parallelism.unwrap_or(1);
        let active = i32::try_from(self.active.len()).unwrap_or(i32::MAX);
        let wanted = match self.spec.completions {
            _ if suspended => 0,
            None if self.succeeded > 0 => active.min(parallelism),
            None => parallelism,
            Some(completions) => parallelism.min((completions - self.succeeded).max(0)),
        };
        if active > wanted {
            let mut surplus = self.active.clone();
            surplus.sort_by_key(|p| (is_ready(p), phase(p) == "Running", std::cmp::Reverse(created(&p.metadata))));
            let count = usize::try_from(active - wanted).unwrap_or_default();
            self.plan.delete = surplus.into_iter().take(count).collect();
            return;
        }
        let mut missing = wanted - active;
        if self.spec.pod_replacement_policy.as_deref() == Some("Failed") {
            missing -= self.plan.status.terminating.unwrap_or_default();
        }
        if missing <= 0 {
            return;
        }
        if let Some(wait) = self.backing_off() {
            return self.look_again(wait);
        }
        let missing = usize::try_from(missing).unwrap_or_default();
        self.plan.create = if is_indexed(self.spec) {
            let busy: BTreeSet<i32> = self.active.iter().filter_map(|p| index_of(p)).collect();
            let all = 0..self.spec.completions.unwrap_or_default();
            let free = all.filter(|i| !self.completed.contains(i) && !busy.contains(i));
            free.take(missing).map(Some).collect()
        } else {
            vec![None; missing]
        };
    }

    /// How long failures hold the next pod back: 10 s, doubling with each failure since the last success.
    fn backing_off(&self) -> Option<Duration> {
        let last_success = self.pods.iter().filter(|p| phase(p) == "Succeeded").filter_map(|p| ended(p)).max();
        let failures: Vec<Timestamp> = self
            .pods
            .iter()
            .filter(|p| phase(p) == "Failed" && !self.is_ignored(p))
            .filter_map(|p| ended(p))
            .filter(|at| last_success.is_none_or(|s| *at > s))
            .collect();
        let latest = failures.iter().max()?;
        let exponent = u32::try_from(failures.len()).unwrap_or(u32::MAX) - 1;
        let factor = 1u32.checked_shl(exponent).unwrap_or(u32::MAX);
        let delay = FIRST_BACKOFF.saturating_mul(factor).min(LAST_BACKOFF);
        let at = plus_seconds(*latest, i64::try_from(delay.as_secs()).unwrap_or_default());
        Some(until(at, self.now)).filter(|wait| !wait.is_zero())
    }

    fn look_again(&mut self, wait: Duration) {
        self.plan.again = Some(self.plan.again.map_or(wait, |a| a.min(wait)));
    }

    fn rule(&self, pod: &Pod) -> Option<(usize, &PodFailurePolicyRule)> {
        let rules = &self.spec.pod_failure_policy.as_ref()?.rules;
        rules.iter().enumerate().find(|(_, rule)| matches_rule(rule, pod))
    }

    fn is_ignored(&self, pod: &Pod) -> bool {
        self.rule(pod).is_some_and(|(_, rule)| rule.action == "Ignore")
    }

    fn failed_by_policy(&self, job: &Job) -> Option<String> {
        let namespace = job.namespace().unwrap_or_default();
        self.pods.iter().filter(|p| phase(p) == "Failed").find_map(|pod| {
            let (index, rule) = self.rule(pod)?;
            let name = pod.name_any();
            (rule.action == "FailJob").then(|| match container_that_matches(rule, pod) {
                Some((container, code)) => format!(
                    "Container {container} for pod {namespace}/{name} failed with exit code {code} matching FailJob rule at index {index}"
                ),
                None => format!("Pod {namespace}/{name} has condition matching FailJob rule at index {index}"),
            })
        })
    }
}

fn failure_reason(reason: &str) -> &'static str {
    match reason {
        "DeadlineExceeded" => "DeadlineExceeded",
        "PodFailurePolicy" => "PodFailurePolicy",
        _ => "BackoffLimitExceeded",
    }
}

fn push_once(list: &mut Vec<String>, uid: &str) {
    if !list.iter().any(|u| u == uid) {
        list.push(uid.to_owned());
    }
}

fn container_statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.as_ref();
    let init = status.and_then(|s| s.init_container_statuses.as_deref()).unwrap_or_default();
    let main = status.and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    init.iter().chain(main)
}

/// When the pod's last container ended.
fn ended(pod: &Pod) -> Option<Timestamp> {
    let times = container_statuses(pod)
        .filter_map(|s| s.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref().map(|t| t.0))
        .max();
    let transition = || {
        let ready = bosun_api::pod::condition(pod, "Ready")?;
        ready.last_transition_time.as_ref().map(|t| t.0)
    };
    times.or_else(transition).or_else(|| pod.metadata.deletion_timestamp.as_ref().map(|t| t.0))
}

fn matches_rule(rule: &PodFailurePolicyRule, pod: &Pod) -> bool {
    if phase(pod) != "Failed" {
        return false;
    }
    if rule.on_exit_codes.is_some() {
        return container_that_matches(rule, pod).is_some();
    }
    rule.on_pod_conditions.iter().flatten().any(|wanted| {
        bosun_api::pod::condition(pod, &wanted.type_)
            .is_some_and(|c| c.status == wanted.status.as_deref().unwrap_or("True"))
    })
}

fn container_that_matches<'a>(rule: &PodFailurePolicyRule, pod: &'a Pod) -> Option<(&'a str, i32)> {
    let wanted = rule.on_exit_codes.as_ref()?;
    container_statuses(pod).find_map(|status| {
        if wanted.container_name.as_ref().is_some_and(|name| *name != status.name) {
            return None;
        }
        let code = status.state.as_ref()?.terminated.as_ref()?.exit_code;
        let listed = wanted.values.contains(&code);
        let matches = code != 0 && if wanted.operator == "NotIn" { !listed } else { listed };
        matches.then_some((status.name.as_str(), code))
    })
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
