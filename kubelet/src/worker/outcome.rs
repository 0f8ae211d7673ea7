//! What a worker's tasks brought: taken into its record, told as events.

use bosun_kit::events::EventType;
use jiff::{SignedDuration, Timestamp};

use super::resize::RESIZE_RETRY;
use super::tasks::TaskResult;
use super::{Done, Worker};
use crate::api_status::WriteError;
use crate::pod::plan::{Failure, Task, Volumes};
use crate::pod::probe::{Due, ProbeKind};
use crate::pod::{resize, spec};
use crate::probes::Outcome;

impl Worker {
    pub(super) fn finish(&mut self, done: Done) {
        let now = Timestamp::now();
        match done {
            Done::Action(task, result) => {
                self.busy.remove(&task);
                self.apply(task, *result, now);
            }
            Done::Probe(due, outcome) => self.probed(&due, outcome, now),
            Done::Sent(status, result) => {
                self.writing = false;
                match result {
                    Ok(()) => {
                        self.write_backoff.reset();
                        self.sent = Some(*status);
                    }
                    Err(WriteError::Gone) => self.sent = Some(*status),
                    Err(WriteError::Other(error)) => {
                        tracing::warn!(pod = spec::title(&self.pod), error, "the pod's status was not written");
                        self.write_after = now.checked_add(self.write_backoff.next_delay()).ok();
                    }
                }
            }
            Done::Deleted(result) => {
                self.writing = false;
                match result {
                    Ok(()) | Err(WriteError::Gone) => self.deleted = true,
                    Err(WriteError::Other(error)) => {
                        tracing::warn!(pod = spec::title(&self.pod), error, "the pod was not deleted");
                        self.write_after = now.checked_add(self.write_backoff.next_delay()).ok();
                    }
                }
            }
            Done::MirrorWritten(result) => {
                self.writing = false;
                if let Err(error) = result {
                    tracing::warn!(pod = spec::title(&self.pod), %error, "the mirror pod was not written");
                    self.write_after = now.checked_add(self.write_backoff.next_delay()).ok();
                }
            }
        }
    }

    pub(super) fn apply(&mut self, task: Task, result: TaskResult, now: Timestamp) {
        match result {
            TaskResult::Mounted(Ok(made)) => {
                self.volumes = Volumes::Mounted;
                self.refresh = made.refresh;
            }
            TaskResult::Mounted(Err((message, wait))) => {
                // What is mounted stays good for what runs; a new pod waits.
                let retry = now + SignedDuration::try_from(wait).unwrap_or(SignedDuration::from_secs(2));
                self.volumes = Volumes::Failed(Failure { reason: "FailedMount".into(), message, retry });
            }
            TaskResult::CleanedUp(Ok(())) => self.volumes = Volumes::Removed,
            TaskResult::CleanedUp(Err(message)) => {
                tracing::warn!(pod = spec::title(&self.pod), message, "what the pod held was not given back");
                let retry = now + SignedDuration::from_secs(2);
                self.volumes = Volumes::Failed(Failure { reason: "FailedUnmount".into(), message, retry });
            }
            TaskResult::Collected(ids) => {
                self.runtime.containers.retain(|c| !ids.contains(&c.id));
                self.runtime.sandboxes.retain(|s| !ids.contains(&s.id));
            }
            TaskResult::Sandbox(Ok(record)) => {
                self.sandbox_failure = None;
                self.sandbox_backoff.reset();
                self.runtime.merge_sandbox(record);
            }
            TaskResult::SandboxStopped(id, Ok(())) => {
                self.sandbox_failure = None;
                for sandbox in self.runtime.sandboxes.iter_mut().filter(|s| s.id == id) {
                    (sandbox.ready, sandbox.stopped) = (false, true);
                }
            }
            TaskResult::Sandbox(Err(message)) | TaskResult::SandboxStopped(_, Err(message)) => {
                let retry = now.checked_add(self.sandbox_backoff.next_delay()).unwrap_or(now);
                self.sandbox_failure = Some(Failure { reason: "FailedCreatePodSandBox".into(), message, retry });
            }
            TaskResult::Prepared(Ok(ready)) => {
                let Task::Image(container) = task else { return };
                self.start_failures.remove(&container);
                self.images.insert(container.clone(), Ok(ready.image.reference.clone()));
                self.ready.insert(container, ready);
            }
            TaskResult::Prepared(Err(failure)) => {
                let Task::Image(container) = task else { return };
                self.images.insert(container, Err(failure));
            }
            TaskResult::Started(records, failure) => {
                let Task::Start(container) = task else { return };
                // Made, though the runtime's answer was lost: the next one needs another name.
                let unsure = failure.as_ref().is_some_and(|failure| failure.reason == "CreateContainerError");
                let made = self.made.remove(&container).filter(|_| unsure);
                for record in records.into_iter().chain(made) {
                    self.merge(record);
                }
                if let Some(failure) = failure {
                    self.start_failures.insert(container, failure);
                }
            }
            TaskResult::Resized(id, Ok(resources)) => {
                self.resize_failure = None;
                self.allocation.applied.insert(id, resources);
                self.keep_allocation();
            }
            TaskResult::Resized(_, Err(message)) => {
                let text = resize::message("error", &self.pod, &message);
                self.context.report.pod(&self.pod, EventType::Warning, "ResizeError", text);
                let retry = now + RESIZE_RETRY;
                self.resize_failure = Some(Failure { reason: "Error".into(), message, retry });
            }
            TaskResult::Killed(record) => {
                if let Some(record) = record {
                    self.merge(record);
                }
            }
        }
    }

    pub(super) fn probed(&mut self, due: &Due, outcome: Outcome, now: Timestamp) {
        let report = &self.context.report;
        let unhealthy = |text: &str| {
            let message = format!("{} probe failed: {text}", due.kind);
            report.container(&self.pod, &due.container, EventType::Warning, "Unhealthy", message);
        };
        let success = match &outcome {
            Outcome::Success => true,
            Outcome::Failure(text) => {
                unhealthy(text);
                false
            }
            Outcome::Undecided(text) => {
                let message = format!("{} probe errored: {text}", due.kind);
                report.container(&self.pod, &due.container, EventType::Warning, "Unhealthy", message);
                return self.probes.skip(&self.pod, due, now);
            }
        };
        let changed = self.probes.record(&self.pod, due, success, now);
        if changed && !success && due.kind != ProbeKind::Readiness {
            tracing::info!(pod = spec::title(&self.pod), container = due.container, "{} probe failed", due.kind);
        }
    }
}
