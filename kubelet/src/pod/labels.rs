//! The labels and annotations that a kubelet leaves on sandboxes and containers. They are what `crictl` shows and what
//! a restarted kubelet knows its pods by, so names and formats are stock's.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::spec;

/// Pod name.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// Pod namespace.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Pod UID.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// Container name.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Hash of what a container cannot change without a restart.
pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
/// Which restart this is.
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// Where the container leaves its termination message.
pub const MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
/// Whether the log's end stands in for a missing message.
pub const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
/// The pod's grace period, for a kubelet that meets the container without its pod.
pub const GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";
/// The deletion grace period, likewise.
pub const DELETION_GRACE_PERIOD: &str = "io.kubernetes.pod.deletionGracePeriod";
/// The preStop hook, likewise, as JSON.
pub const PRE_STOP: &str = "io.kubernetes.container.preStopHandler";
/// How often all containers of the pod had been restarted together when this one was made; absent for never. The one
/// annotation that stock does not have: it keeps the rounds apart for a kubelet that was restarted amid one.
pub const RESTART_ROUND: &str = "bosun.dev/restart-round";
/// Declared ports as JSON.
pub const PORTS: &str = "io.kubernetes.container.ports";

/// Where a pod's definition came from: `api`, `file` or `http`.
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
/// When its definition was first seen.
pub const CONFIG_SEEN: &str = "kubernetes.io/config.seen";
/// Hash of a static pod's definition.
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// On a mirror pod: the hash of the static pod that it shows.
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// Labels of a sandbox: the pod's own and how to find the pod.
pub fn sandbox_labels(pod: &Pod) -> BTreeMap<String, String> {
    let mut labels = pod.metadata.labels.clone().unwrap_or_default();
    labels.insert(POD_NAME.into(), spec::name(pod).into());
    labels.insert(POD_NAMESPACE.into(), spec::namespace(pod).into());
    labels.insert(POD_UID.into(), spec::uid(pod).into());
    labels
}

/// Labels of a container.
pub fn container_labels(pod: &Pod, container: &Container) -> BTreeMap<String, String> {
    BTreeMap::from([
        (POD_NAME.into(), spec::name(pod).into()),
        (POD_NAMESPACE.into(), spec::namespace(pod).into()),
        (POD_UID.into(), spec::uid(pod).into()),
        (CONTAINER_NAME.into(), container.name.clone()),
    ])
}

/// Annotations of a container.
pub fn container_annotations(
    pod: &Pod,
    container: &Container,
    restart_count: u32,
    round: u32,
) -> BTreeMap<String, String> {
    let mut annotations = BTreeMap::from([
        (CONTAINER_HASH.into(), spec::container_hash(container)),
        (RESTART_COUNT.into(), restart_count.to_string()),
        (MESSAGE_PATH.into(), spec::message_path(container).into()),
        (MESSAGE_POLICY.into(), spec::message_policy(container).into()),
        (GRACE_PERIOD.into(), spec::grace_period(pod).to_string()),
    ]);
    if round > 0 {
        annotations.insert(RESTART_ROUND.into(), round.to_string());
    }
    if let Some(grace) = pod.metadata.deletion_grace_period_seconds {
        annotations.insert(DELETION_GRACE_PERIOD.into(), grace.to_string());
    }
    let pre_stop = container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref());
    if let Some(Ok(text)) = pre_stop.map(serde_json::to_string) {
        annotations.insert(PRE_STOP.into(), text);
    }
    if let Some(Ok(text)) = container.ports.as_ref().filter(|p| !p.is_empty()).map(serde_json::to_string) {
        annotations.insert(PORTS.into(), text);
    }
    annotations
}
