//! Events about pods and their containers, in stock's form.

use bosun_kit::events::{EventType, Recorder};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};

use crate::pod::{labels, spec};

/// Records events about pods; cheap to clone.
#[derive(Clone)]
pub struct Report {
    recorder: Recorder,
}

impl Report {
    /// Events go to `recorder`.
    pub fn new(recorder: Recorder) -> Self {
        Self { recorder }
    }

    /// Something happened to the pod.
    pub fn pod(&self, pod: &Pod, kind: EventType, reason: &str, message: impl Into<String>) {
        self.recorder.event(&reference(pod), kind, reason, message);
    }

    /// Something happened to a container of the pod.
    pub fn container(&self, pod: &Pod, container: &str, kind: EventType, reason: &str, message: impl Into<String>) {
        let about = ObjectReference { field_path: Some(spec::field_path(pod, container)), ..reference(pod) };
        self.recorder.event(&about, kind, reason, message);
    }
}

/// How events name the pod. A static pod goes by its hash, which is its mirror pod's name for it.
fn reference(pod: &Pod) -> ObjectReference {
    let uid = spec::annotation(pod, labels::CONFIG_HASH).unwrap_or_else(|| spec::uid(pod));
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: Some(spec::name(pod).into()),
        namespace: Some(spec::namespace(pod).into()),
        uid: Some(uid.into()),
        resource_version: pod.metadata.resource_version.clone(),
        field_path: None,
    }
}
