//! Which pod a call is about: read from the few requests that say it, remembered by the ids in their answers.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use bosun_proto::cri;
use prost::Message;

/// Length of what stands before each message: a flag and its size.
const HEADER: usize = 5;

/// Requests whose first field is the id of a container or sandbox.
const BY_ID: &[&str] = &[
    "StopPodSandbox",
    "RemovePodSandbox",
    "PodSandboxStatus",
    "StartContainer",
    "StopContainer",
    "RemoveContainer",
    "ContainerStatus",
    "UpdateContainerResources",
    "ReopenContainerLog",
    "ExecSync",
    "CheckpointContainer",
    "ContainerStats",
    "PodSandboxStats",
];

#[derive(Clone, PartialEq, prost::Message)]
struct First {
    #[prost(string, tag = "1")]
    id: String,
}

/// Names of pods by the ids of their sandboxes and containers.
#[derive(Debug, Default)]
pub(crate) struct Subjects {
    pods: Mutex<HashMap<String, String>>,
}

/// The one message of a request or answer; none if it is empty, compressed or not whole.
fn message<M: Message + Default>(frame: &[u8]) -> Option<M> {
    let (header, body) = frame.split_at_checked(HEADER)?;
    let size = u32::from_be_bytes(header[1..].try_into().ok()?) as usize;
    if header[0] != 0 { None } else { M::decode(body.get(..size)?).ok() }
}

impl Subjects {
    /// The pod (or image) that a request is about.
    pub(crate) fn of(&self, method: &str, request: &[u8]) -> Option<String> {
        let image = |image: Option<cri::ImageSpec>| image.map(|image| image.image);
        match method {
            "RunPodSandbox" => Some(message::<cri::RunPodSandboxRequest>(request)?.config?.metadata?.name),
            "CreateContainer" => Some(message::<cri::CreateContainerRequest>(request)?.sandbox_config?.metadata?.name),
            "ListContainers" => self.pod(&message::<cri::ListContainersRequest>(request)?.filter?.pod_sandbox_id),
            "ImageStatus" => image(message::<cri::ImageStatusRequest>(request)?.image),
            "PullImage" => image(message::<cri::PullImageRequest>(request)?.image),
            "RemoveImage" => image(message::<cri::RemoveImageRequest>(request)?.image),
            _ if BY_ID.contains(&method) => self.pod(&message::<First>(request)?.id),
            _ => None,
        }
    }

    /// Learns from an answer whose pod the id in it is; all answers that bear a new one have it in their first field.
    pub(crate) fn learn(&self, method: &str, subject: Option<&str>, answer: &[u8]) {
        if let ("RunPodSandbox" | "CreateContainer", Some(pod)) = (method, subject)
            && let Some(First { id }) = message(answer)
        {
            self.pods.lock().unwrap_or_else(PoisonError::into_inner).insert(id, pod.to_owned());
        }
    }

    fn pod(&self, id: &str) -> Option<String> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }
}
