//! Which instance of a container a log request means, decided from the pod's status.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};

/// Whether the pod's spec has a container of that name, of any of the three kinds.
pub fn has_container(pod: &Pod, name: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    spec.containers.iter().any(|c| c.name == name)
        || spec.init_containers.iter().flatten().any(|c| c.name == name)
        || spec.ephemeral_containers.iter().flatten().any(|c| c.name == name)
}

/// The runtime's id (without the `containerd://` prefix) of the instance whose log is meant.
///
/// # Errors
/// The text the user sees when there is no such instance (yet).
pub fn container_id(pod: &Pod, container: &str, previous: bool) -> Result<String, String> {
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    let text = |what: &str| format!("container {container:?} in pod {pod_name:?} {what}");
    let status = find(pod, container).ok_or_else(|| text("is not available"))?;
    let last = status.last_state.as_ref().and_then(terminated_id);
    if previous {
        let last = last.filter(|id| !id.is_empty());
        return last
            .map(bare)
            .ok_or_else(|| format!("previous terminated container {container:?} in pod {pod_name:?} not found"));
    }
    let state = status.state.clone().unwrap_or_default();
    if state.running.is_some() {
        return Ok(bare(status.container_id.as_deref().unwrap_or_default()));
    }
    if let Some(id) = terminated_id(&state).filter(|id| !id.is_empty()) {
        return Ok(bare(id));
    }
    match last {
        Some(id) if !id.is_empty() => return Ok(bare(id)),
        Some(_) => return Err(text("is terminated")),
        None if state.terminated.is_some() => return Err(text("is terminated")),
        None => {}
    }
    let Some(waiting) = state.waiting else { return Err(text("is waiting to start - no logs yet")) };
    let why = match waiting.reason.as_deref().unwrap_or_default() {
        "ErrImagePull" => "image can't be pulled",
        "ImagePullBackOff" => "trying and failing to pull image",
        other => other,
    };
    Err(text(&format!("is waiting to start: {why}")))
}

fn find<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses]
        .into_iter()
        .flatten()
        .flatten()
        .find(|c| c.name == container)
}

fn terminated_id(state: &ContainerState) -> Option<&str> {
    state.terminated.as_ref().map(|t| t.container_id.as_deref().unwrap_or_default())
}

fn bare(id: &str) -> String {
    id.split_once("://").map_or(id, |(_, bare)| bare).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(status: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web"},
            "spec": {"containers": [{"name": "app"}], "initContainers": [{"name": "setup"}]},
            "status": {"containerStatuses": [status]},
        }))
        .unwrap()
    }

    fn status(state: serde_json::Value, last: serde_json::Value) -> serde_json::Value {
        serde_json::json!({"name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "containerID": "containerd://now", "state": state, "lastState": last})
    }

    #[test]
    fn names_the_instance_or_says_why_there_is_none() {
        use serde_json::json;
        let ended = |id: &str| json!({"terminated": {"exitCode": 1, "containerID": id}});
        let cases = [
            (status(json!({"running": {}}), json!({})), false, Ok("now")),
            (status(json!({"running": {}}), ended("containerd://old")), true, Ok("old")),
            (
                status(json!({"running": {}}), json!({})),
                true,
                Err("previous terminated container \"app\" in pod \"web\" not found"),
            ),
            (status(ended("containerd://end"), json!({})), false, Ok("end")),
            (status(ended(""), ended("containerd://old")), false, Ok("old")),
            (status(ended(""), json!({})), false, Err("container \"app\" in pod \"web\" is terminated")),
            (status(json!({"waiting": {"reason": "CrashLoopBackOff"}}), ended("containerd://old")), false, Ok("old")),
            (
                status(json!({"waiting": {"reason": "ContainerCreating"}}), json!({})),
                false,
                Err("container \"app\" in pod \"web\" is waiting to start: ContainerCreating"),
            ),
            (
                status(json!({"waiting": {"reason": "ImagePullBackOff"}}), json!({})),
                false,
                Err("container \"app\" in pod \"web\" is waiting to start: trying and failing to pull image"),
            ),
            (
                status(json!({}), json!({})),
                false,
                Err("container \"app\" in pod \"web\" is waiting to start - no logs yet"),
            ),
        ];
        for (status, previous, want) in cases {
            let got = container_id(&pod(status), "app", previous);
            assert_eq!(got.as_deref().map_err(String::as_str), want);
        }
        assert_eq!(
            container_id(&pod(status(json!({}), json!({}))), "setup", false),
            Err("container \"setup\" in pod \"web\" is not available".to_owned())
        );
    }
}
