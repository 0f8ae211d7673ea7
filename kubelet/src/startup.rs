//! How long pods take to start, as metrics: seen through the API server, which is what users see.
//!
//! The service-level indicator leaves out what is not the node's doing: pulling images and the pod's own init
//! containers. A pod that ran before this kubelet saw it tells nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bosun_kit::informer::{Delta, Informer};
use bosun_kit::metrics::Metrics;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use tokio_util::sync::CancellationToken;

use crate::pod::spec;

const START_BUCKETS: [f64; 25] = [
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0,
    600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];
const PULL_BUCKETS: [f64; 18] = [
    1.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0,
    3600.0,
];
/// Sizes of images up to so many bytes go by this name.
const SIZES: [(u64, &str); 11] = [
    (10 << 20, "0-10MB"),
    (100 << 20, "10MB-100MB"),
    (500 << 20, "100MB-500MB"),
    (1 << 30, "500MB-1GB"),
    (5 << 30, "1GB-5GB"),
    (10 << 30, "5GB-10GB"),
    (20 << 30, "10GB-20GB"),
    (30 << 30, "20GB-30GB"),
    (40 << 30, "30GB-40GB"),
    (60 << 30, "40GB-60GB"),
    (100 << 30, "60GB-100GB"),
];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Size {
    image_size_in_bytes: &'static str,
}

/// The pulls of images: how long they took, and when each pod waited for them.
#[derive(Clone)]
pub struct ImagePulls {
    durations: Family<Size, Histogram>,
    /// From the first pull's start to the last one's end, by the pod's UID.
    spans: Arc<Mutex<HashMap<String, (Timestamp, Timestamp)>>>,
}

impl Default for ImagePulls {
    fn default() -> Self {
        let histogram = || Histogram::new(PULL_BUCKETS);
        Self { durations: Family::new_with_constructor(histogram), spans: Arc::default() }
    }
}

impl ImagePulls {
    /// Shows how long they took.
    pub fn register(&self, metrics: &Metrics) {
        let help = "Duration in seconds to pull an image";
        metrics.with(|registry| registry.register("kubelet_image_pull_duration_seconds", help, self.durations.clone()));
    }

    /// A pull for the pod went well; `size` is the image's in bytes, 0 if that is not known.
    pub fn pulled(&self, uid: &str, began: Timestamp, ended: Timestamp, size: u64) {
        let name = match size {
            0 => "N/A",
            size => SIZES.iter().find(|(most, _)| size <= *most).map_or("GT100GB", |(_, name)| name),
        };
        let labels = Size { image_size_in_bytes: name };
        self.durations.get_or_create(&labels).observe(seconds(ended.duration_since(began)));
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let span = spans.entry(uid.to_owned()).or_insert((began, ended));
        *span = (span.0.min(began), span.1.max(ended));
    }

    /// The pod is gone.
    pub fn forget(&self, uid: &str) {
        self.take(uid);
    }

    /// How long the pod waited for images; forgets it.
    fn take(&self, uid: &str) -> SignedDuration {
        let span = self.spans.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        span.map_or(SignedDuration::ZERO, |(began, ended)| ended.duration_since(began))
    }
}

/// How long one pod took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Start {
    /// Since this kubelet saw it first.
    since_seen: SignedDuration,
    /// Since it was created.
    total: SignedDuration,
    /// The same without pulls and init containers; absent where storage from elsewhere had to come first.
    indicator: Option<SignedDuration>,
}

/// The pods that have not started yet.
#[derive(Default)]
struct Starting {
    /// When each was first seen; none once it has started.
    seen: HashMap<String, Option<Timestamp>>,
}

impl Starting {
    /// Takes in a pod as it is `now`; tells when it has just started.
    fn observe(&mut self, pod: &Pod, pulls: &ImagePulls, now: Timestamp) -> Option<Start> {
        let uid = spec::uid(pod);
        let running = runs(pod);
        let seen = self.seen.entry(uid.to_owned()).or_insert_with(|| (!running).then_some(now));
        if bosun_api::pod::is_terminal(pod) {
            *seen = None;
        }
        if !running {
            return None;
        }
        let first = seen.take()?;
        let created = pod.metadata.creation_timestamp.as_ref()?.0;
        let total = now.duration_since(created);
        let pulling = pulls.take(uid);
        let indicator = (!has_storage(pod)).then(|| total - pulling - initializing(pod));
        Some(Start { since_seen: now.duration_since(first), total, indicator })
    }

    fn forget(&mut self, uid: &str, pulls: &ImagePulls) {
        self.seen.remove(uid);
        pulls.forget(uid);
    }
}

/// Whether all containers have started.
fn runs(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    let started = |status: &ContainerStatus| {
        status.state.as_ref().and_then(|s| s.running.as_ref()).is_some_and(|running| running.started_at.is_some())
    };
    !statuses.is_empty() && statuses.iter().all(started)
}

/// How long init containers ran, one after the other.
fn initializing(pod: &Pod) -> SignedDuration {
    let statuses = pod.status.as_ref().and_then(|s| s.init_container_statuses.as_deref()).unwrap_or_default();
    let ran = |status: &ContainerStatus| {
        let ended = status.state.as_ref()?.terminated.as_ref()?;
        Some(ended.finished_at.as_ref()?.0.duration_since(ended.started_at.as_ref()?.0))
    };
    statuses.iter().filter_map(ran).sum()
}

/// Whether the pod waits for storage that somebody else provides.
fn has_storage(pod: &Pod) -> bool {
    spec::spec(pod).volumes.iter().flatten().any(|volume| {
        volume.persistent_volume_claim.is_some()
            || volume.ephemeral.is_some()
            || volume.csi.is_some()
            || volume.nfs.is_some()
            || volume.iscsi.is_some()
            || volume.fc.is_some()
    })
}

fn seconds(duration: SignedDuration) -> f64 {
    duration.as_secs_f64().max(0.0)
}

/// Follows the pods of `informer` until cancelled and shows in `metrics` how long they take to start.
pub async fn follow(informer: Informer<Pod>, pulls: ImagePulls, metrics: Metrics, cancel: CancellationToken) {
    let histogram = || Histogram::new(START_BUCKETS);
    let (start, total, indicator) = (histogram(), histogram(), histogram());
    metrics.with(|registry| {
        let help = "Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run";
        registry.register("kubelet_pod_start_duration_seconds", help, start.clone());
        let help = "Duration in seconds to start a pod since creation, including time to pull images and run init \
                    containers, measured from pod creation timestamp to when all its containers are reported as \
                    started and observed via watch";
        registry.register("kubelet_pod_start_total_duration_seconds", help, total.clone());
        let help = "Duration in seconds to start a pod, excluding time to pull images and run init containers, \
                    measured from pod creation timestamp to when all its containers are reported as started and \
                    observed via watch";
        registry.register("kubelet_pod_start_sli_duration_seconds", help, indicator.clone());
    });
    let mut deltas = informer.subscribe();
    let mut starting = Starting::default();
    loop {
        let delta = tokio::select! {
            delta = deltas.recv() => delta,
            () = cancel.cancelled() => return,
        };
        match delta {
            None => return,
            Some(Delta::Deleted(pod)) => starting.forget(spec::uid(&pod), &pulls),
            Some(Delta::Applied(pod)) => {
                let Some(took) = starting.observe(&pod, &pulls, Timestamp::now()) else { continue };
                start.observe(seconds(took.since_seen));
                if let Some(without) = took.indicator {
                    total.observe(seconds(took.total));
                    indicator.observe(seconds(without));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_767_225_600 + second).unwrap()
    }

    fn pod(running: bool, volumes: serde_json::Value) -> Pod {
        let state = match running {
            true => json!({"running": {"startedAt": at(19).to_string()}}),
            false => json!({"waiting": {"reason": "ContainerCreating"}}),
        };
        let ran = json!({"startedAt": at(10).to_string(), "finishedAt": at(13).to_string(), "exitCode": 0});
        let status = |name: &str, state: serde_json::Value| json!({"name": name, "state": state, "image": "i", "imageID": "i", "ready": false, "restartCount": 0});
        let pod = json!({
            "metadata": {"uid": "u", "creationTimestamp": at(0).to_string()},
            "spec": {"containers": [{"name": "app"}], "volumes": volumes},
            "status": {
                "initContainerStatuses": [status("init", json!({"terminated": ran}))],
                "containerStatuses": [status("app", state)],
            },
        });
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn the_indicator_leaves_pulls_and_init_containers_out() {
        let (pulls, metrics) = (ImagePulls::default(), Metrics::default());
        pulls.register(&metrics);
        let mut starting = Starting::default();
        assert_eq!(starting.observe(&pod(false, json!([])), &pulls, at(1)), None);
        pulls.pulled("u", at(2), at(5), 50 << 20);
        pulls.pulled("u", at(3), at(9), 50 << 20);
        let second = SignedDuration::from_secs;
        let want = Start { since_seen: second(19), total: second(20), indicator: Some(second(20 - 7 - 3)) };
        assert_eq!(starting.observe(&pod(true, json!([])), &pulls, at(20)), Some(want));
        assert_eq!(starting.observe(&pod(true, json!([])), &pulls, at(30)), None, "a pod starts once");
        let page = metrics.render();
        let count = r#"kubelet_image_pull_duration_seconds_count{image_size_in_bytes="10MB-100MB"} 2"#;
        assert!(page.contains(count), "{page}");
    }

    #[test]
    fn what_ran_before_or_waits_for_storage_is_no_measure() {
        let pulls = ImagePulls::default();
        let mut starting = Starting::default();
        assert_eq!(starting.observe(&pod(true, json!([])), &pulls, at(1)), None, "it ran before we came");
        starting.forget("u", &pulls);
        let claim = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]);
        assert_eq!(starting.observe(&pod(false, claim.clone()), &pulls, at(1)), None);
        assert_eq!(starting.observe(&pod(true, claim), &pulls, at(2)).unwrap().indicator, None);
    }
}
