//! A worker's part in a resize in place: what was granted is kept before it is acted on, and told.

use std::sync::Arc;

use bosun_kit::events::EventType;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Pod;

use super::{Worker, tasks};
use crate::pod::resize::{self, Allocation, Answer};

/// How long a resize that the runtime or the kernel refused is left alone.
pub(super) const RESIZE_RETRY: SignedDuration = SignedDuration::from_secs(10);

impl Worker {
    /// Takes in what the node said to the resources that the pod asks for.
    pub(super) fn answer_resize(&mut self, answer: Answer) {
        let Some(wanted) = self.wanted.clone() else { return };
        let report = &self.context.report;
        if let Some((reason, text)) = answer.pending() {
            if answer != self.answer {
                let message = resize::message(reason, &wanted, text);
                report.pod(&self.pod, EventType::Warning, &format!("Resize{reason}"), message);
            }
            self.answer = answer;
            return;
        }
        report.pod(&self.pod, EventType::Normal, "ResizeStarted", resize::message("started", &wanted, ""));
        self.allocation.grant(&wanted);
        (self.answer, self.resize_failure, self.resizing) = (answer, None, true);
        self.pod = Arc::new(Pod { status: self.pod.status.clone(), ..(*wanted).clone() });
        self.wanted = None;
        // What was granted is kept before it is acted on.
        self.keep_allocation();
    }

    /// Keeps what was granted and given once the pod has a folder, if there is anything to keep.
    pub(super) fn keep_allocation(&mut self) {
        let runs = |id: &str| id == resize::WHOLE || self.runtime.running().any(|container| container.id == id);
        self.allocation.applied.retain(|id, _| runs(id));
        if self.allocation.is_trivial() || self.kept_allocation.as_ref() == Some(&self.allocation) {
            return;
        }
        if tasks::keep_allocation(&self.context.node, &self.pod, &self.allocation) {
            self.kept_allocation = Some(self.allocation.clone());
        }
    }

    /// An event once a granted resize has been brought about.
    pub(super) fn tell_resized(&mut self) {
        let done = self.resizing
            && self.pod.status.as_ref().is_none_or(|status| {
                status.conditions.iter().flatten().all(|condition| condition.type_ != "PodResizeInProgress")
            });
        if done && self.ending.is_none() {
            self.resizing = false;
            let message = resize::message("completed", &self.pod, "");
            self.context.report.pod(&self.pod, EventType::Normal, "ResizeCompleted", message);
        }
    }
}

/// The pod with what was granted to it, and the pod as it is if that asks for something else.
pub(super) fn granted(allocation: &Allocation, pod: &Arc<Pod>) -> (Arc<Pod>, Option<Arc<Pod>>) {
    if !allocation.differs(pod) {
        return (pod.clone(), None);
    }
    let mut own = (**pod).clone();
    allocation.impose(&mut own);
    (Arc::new(own), Some(pod.clone()))
}
