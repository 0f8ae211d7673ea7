//! The tasks of one pod's worker, as others see them: in spans, and as durations.
//!
//! A round is what stock calls a sync: from the first action of a decision until nothing is under way any more.

use std::time::Instant;

use bosun_kit::metrics::Metrics;
use bosun_kubelet_trace::{Spec, is_on, traced};
use k8s_openapi::api::core::v1::Pod;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use tokio::task::{JoinError, JoinSet};

use crate::metrics::USUAL_BUCKETS;
use crate::pod::spec;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kind {
    operation_type: &'static str,
}

/// How long workers take.
#[derive(Clone)]
pub struct Workers {
    rounds: Family<Kind, Histogram>,
    starts: Histogram,
}

impl Default for Workers {
    fn default() -> Self {
        let histogram = || Histogram::new(USUAL_BUCKETS);
        Self { rounds: Family::new_with_constructor(histogram), starts: histogram() }
    }
}

impl Workers {
    /// Shows it.
    pub fn register(&self, metrics: &Metrics) {
        metrics.with(|registry| {
            let help =
                "Duration in seconds to sync a single pod. Broken down by operation type: create, update, or sync";
            registry.register("kubelet_pod_worker_duration_seconds", help, self.rounds.clone());
            let help = "Duration in seconds from kubelet seeing a pod to starting a worker";
            registry.register("kubelet_pod_worker_start_duration_seconds", help, self.starts.clone());
        });
    }

    /// A worker decided for the first time, so long after its pod was seen.
    pub(super) fn started(&self, seen: Instant) {
        self.starts.observe(seen.elapsed().as_secs_f64());
    }
}

/// The rounds of one worker.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    began: Option<(Instant, &'static str)>,
    any: bool,
    /// The pod was changed, and no round since.
    updated: bool,
}

impl Rounds {
    /// The pod's definition has changed.
    pub(super) fn updated(&mut self) {
        self.updated = true;
    }

    /// After a decision at `now`: whether anything is under way, and whether the pod ends.
    pub(super) fn decided(&mut self, workers: &Workers, busy: bool, ending: bool, now: Instant) {
        match (self.began, busy) {
            (None, true) => {
                let kind = match (ending, self.any, self.updated) {
                    (true, ..) => "kill",
                    (false, false, _) => "create",
                    (false, true, true) => "update",
                    (false, true, false) => "sync",
                };
                (self.began, self.any, self.updated) = (Some((now, kind)), true, false);
            }
            (Some((began, operation_type)), false) => {
                let took = now.duration_since(began).as_secs_f64();
                workers.rounds.get_or_create(&Kind { operation_type }).observe(took);
                self.began = None;
            }
            _ => {}
        }
    }
}

/// The tasks under way; each action's in a span of its own.
pub(super) struct Tasks<T> {
    set: JoinSet<T>,
    span: Option<Spec>,
}

impl<T: Send + 'static> Tasks<T> {
    pub(super) fn new() -> Self {
        Self { set: JoinSet::new(), span: None }
    }

    /// The next task is to run in the span of this action.
    pub(super) fn act(&mut self, pod: &Pod, action: &dyn std::fmt::Display, ending: bool) {
        if is_on() {
            self.span = Some(span(pod, action, ending));
        }
    }

    /// There is no next task.
    pub(super) fn nothing(&mut self) {
        self.span = None;
    }

    pub(super) fn spawn(&mut self, work: impl Future<Output = T> + Send + 'static) {
        match self.span.take() {
            Some(span) => self.set.spawn(traced(move || span, work)),
            None => self.set.spawn(work),
        };
    }

    pub(super) async fn join_next(&mut self) -> Option<Result<T, JoinError>> {
        self.set.join_next().await
    }

    pub(super) fn try_join_next(&mut self) -> Option<Result<T, JoinError>> {
        self.set.try_join_next()
    }
}

/// A span with the name and attributes that stock gives to a pod's.
fn span(pod: &Pod, action: &dyn std::fmt::Display, ending: bool) -> Spec {
    let (namespace, name) = (spec::namespace(pod).to_owned(), spec::name(pod).to_owned());
    Spec::work(if ending { "syncTerminatingPod" } else { "syncPod" })
        .with("k8s.pod.uid", spec::uid(pod).to_owned())
        .with("k8s.pod", format!("{namespace}/{name}"))
        .with("k8s.pod.name", name)
        .with("k8s.namespace.name", namespace)
        .with("action", action.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn rounds_by_what_brought_them_about() {
        let (metrics, workers, mut rounds) = (Metrics::default(), Workers::default(), Rounds::default());
        workers.register(&metrics);
        let begin = Instant::now();
        let mut at = |second, busy, ending| {
            rounds.decided(&workers, busy, ending, begin + Duration::from_secs(second));
            if second == 4 {
                rounds.updated();
            }
        };
        for (second, busy) in
            [(0, true), (1, true), (3, false), (4, false), (5, true), (6, false), (7, true), (8, false)]
        {
            at(second, busy, false);
        }
        at(9, true, true);
        at(9, false, true);
        workers.started(begin);
        let page = metrics.render();
        for (kind, sum) in [("create", "3.0"), ("update", "1.0"), ("sync", "1.0"), ("kill", "0.0")] {
            let line = format!(r#"kubelet_pod_worker_duration_seconds_sum{{operation_type="{kind}"}} {sum}"#);
            assert!(page.contains(&line), "{line} in {page}");
        }
        assert!(page.contains("kubelet_pod_worker_start_duration_seconds_count 1"), "{page}");
    }
}
