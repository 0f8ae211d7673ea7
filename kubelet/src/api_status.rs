//! Writing to the API server what became of a pod: its status, its mirror pod, its end.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerState, Pod, PodStatus};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde_json::{Map, Value, json};
use thiserror::Error;
use tokio::time::timeout;

use crate::pod::status::RESIZE_CONDITIONS;

const DEADLINE: Duration = Duration::from_secs(20);

/// Why a write failed.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The pod is not there, or it is another one of the same name.
    #[error("the pod is gone")]
    Gone,
    /// Anything else; worth another try.
    #[error("{0}")]
    Other(String),
}

fn write_error(error: kube::Error) -> WriteError {
    match error {
        kube::Error::Api(status) if status.code == 404 => WriteError::Gone,
        // A precondition on the UID that fails is a conflict.
        kube::Error::Api(status) if status.code == 409 && status.message.contains("UID") => WriteError::Gone,
        other => WriteError::Other(other.to_string()),
    }
}

async fn within<T>(answer: impl Future<Output = kube::Result<T>>) -> Result<T, WriteError> {
    match timeout(DEADLINE, answer).await {
        Ok(answer) => answer.map_err(write_error),
        Err(_) => Err(WriteError::Other(format!("no answer within {} s", DEADLINE.as_secs()))),
    }
}

/// The strategic merge patch that brings a status from `old` to `new`; none if nothing changed.
///
/// Only fields that differ are sent; what others wrote meanwhile (their own conditions) stays.
pub fn patch(uid: &str, old: Option<&PodStatus>, new: &PodStatus) -> Option<Value> {
    let fields = |status: Option<&PodStatus>| match status.map(serde_json::to_value) {
        Some(Ok(Value::Object(fields))) => fields,
        _ => Map::new(),
    };
    let (old, new) = (fields(old), fields(Some(new)));
    let mut changed = Map::new();
    for (key, value) in &new {
        if old.get(key) != Some(value) {
            changed.insert(key.clone(), merged_list(key, old.get(key), value));
        }
    }
    for key in old.keys().filter(|key| OWNED.contains(&key.as_str()) && !new.contains_key(*key)) {
        changed.insert(key.clone(), Value::Null);
    }
    (!changed.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": changed}))
}

/// Whether a change is worth a write of its own, at once: the phase, a verdict, readiness, a container's state. The rest
/// (addresses, how far the preparation of a new pod is) may wait a moment for the next change of that kind.
pub fn is_urgent(old: Option<&PodStatus>, new: &PodStatus) -> bool {
    let pending = PodStatus::default();
    essence(old.unwrap_or(&pending)) != essence(new)
}

#[derive(PartialEq)]
struct Essence<'a> {
    phase: &'a str,
    verdict: (Option<&'a str>, Option<&'a str>),
    conditions: Vec<(&'a str, &'a str)>,
    containers: Vec<(&'a str, &'a ContainerState, bool, bool)>,
}

fn essence(status: &PodStatus) -> Essence<'_> {
    let conditions = status.conditions.iter().flatten().map(|c| (c.type_.as_str(), c.status.as_str()));
    // A condition that is not there says no more than one that is false, and these two are about preparation.
    let told =
        conditions.filter(|(kind, is)| *is == "True" && !["Initialized", PREPARED, "PodScheduled"].contains(kind));
    let lists = [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    let containers = lists.into_iter().flatten().flatten().filter_map(|container| {
        let state = container.state.as_ref()?;
        let reason = state.waiting.as_ref().and_then(|waiting| waiting.reason.as_deref());
        let unborn = matches!(reason, Some("ContainerCreating" | "PodInitializing"));
        let started = container.started.unwrap_or(false);
        (!unborn).then_some((container.name.as_str(), state, container.ready, started))
    });
    Essence {
        phase: status.phase.as_deref().unwrap_or("Pending"),
        verdict: (status.reason.as_deref(), status.message.as_deref()),
        conditions: told.collect(),
        containers: containers.collect(),
    }
}

const PREPARED: &str = "PodReadyToStartContainers";

/// Fields that only the kubelet writes and may take back.
const OWNED: &[&str] = &[
    "reason",
    "message",
    "podIP",
    "podIPs",
    "containerStatuses",
    "initContainerStatuses",
    "ephemeralContainerStatuses",
];

/// Lists that the server merges by a key need to be told what is no longer in them.
fn merged_list(field: &str, old: Option<&Value>, new: &Value) -> Value {
    let key = match field {
        "podIPs" | "hostIPs" => "ip",
        "conditions" => "type",
        _ => return new.clone(),
    };
    let items = |value: Option<&Value>| value.and_then(Value::as_array).cloned().unwrap_or_default();
    let kept = items(Some(new));
    // Of the conditions only some of ours go away; those of others are theirs.
    let ours = |item: &Value| key == "ip" || RESIZE_CONDITIONS.iter().any(|kind| item[key] == *kind);
    let gone = items(old).into_iter().filter(|item| ours(item) && kept.iter().all(|other| other[key] != item[key]));
    let gone = gone.map(|item| json!({key: item[key], "$patch": "delete"})).collect::<Vec<_>>();
    Value::Array(gone.into_iter().chain(kept.iter().cloned()).collect())
}

/// Sends a patch of the status.
///
/// # Errors
/// The pod is gone, or the write failed.
pub async fn send(client: Client, namespace: &str, name: &str, patch: Value) -> Result<(), WriteError> {
    let api = Api::<Pod>::namespaced(client, namespace);
    within(api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch))).await.map(drop)
}

/// Deletes the pod for good: nothing of it runs any more.
///
/// # Errors
/// The write failed. A pod that is gone already is no error.
pub async fn delete(client: Client, namespace: &str, name: &str, uid: &str) -> Result<(), WriteError> {
    let api = Api::<Pod>::namespaced(client, namespace);
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
        ..Default::default()
    };
    match within(api.delete(name, &params)).await {
        Ok(_) | Err(WriteError::Gone) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Creates a mirror pod. One that is there already is no error.
///
/// # Errors
/// The write failed.
pub async fn create(client: Client, pod: &Pod) -> Result<(), WriteError> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let api = Api::<Pod>::namespaced(client, &namespace);
    match timeout(DEADLINE, api.create(&PostParams::default(), pod)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(kube::Error::Api(status))) if status.code == 409 => Ok(()),
        Ok(Err(error)) => Err(write_error(error)),
        Err(_) => Err(WriteError::Other("no answer in time".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::PodIP;

    #[test]
    fn a_patch_holds_what_changed_and_takes_addresses_back() {
        let ips = |ip: &str| Some(vec![PodIP { ip: ip.into() }]);
        let old = PodStatus {
            phase: Some("Pending".into()),
            pod_ips: ips("10.0.0.1"),
            reason: Some("x".into()),
            ..Default::default()
        };
        let new = PodStatus { phase: Some("Running".into()), pod_ips: ips("10.0.0.2"), ..Default::default() };
        assert_eq!(patch("u", Some(&old), &old), None);
        assert_eq!(
            patch("u", Some(&old), &new).unwrap(),
            json!({"metadata": {"uid": "u"}, "status": {
                "phase": "Running", "reason": null,
                "podIPs": [{"ip": "10.0.0.1", "$patch": "delete"}, {"ip": "10.0.0.2"}]}})
        );
    }

    #[test]
    fn preparation_may_wait_and_a_containers_state_may_not() {
        let status = |value: Value| serde_json::from_value::<PodStatus>(value).unwrap();
        let container = |state: Value| json!([{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state}]);
        let creating = json!({"waiting": {"reason": "ContainerCreating"}});
        let new = status(
            json!({"phase": "Pending", "startTime": "2026-01-01T00:00:00Z", "containerStatuses": container(creating.clone()),
            "conditions": [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "False"}]}),
        );
        assert!(!is_urgent(None, &new));
        let prepared =
            status(json!({"phase": "Pending", "podIP": "10.0.0.1", "containerStatuses": container(creating),
            "conditions": [{"type": PREPARED, "status": "True"}, {"type": "Ready", "status": "False"}]}));
        assert!(!is_urgent(Some(&new), &prepared));
        let failing = status(
            json!({"phase": "Pending", "containerStatuses": container(json!({"waiting": {"reason": "ErrImagePull"}}))}),
        );
        assert!(is_urgent(Some(&new), &failing));
        let running = status(json!({"phase": "Running", "containerStatuses": container(json!({"running": {}}))}));
        assert!(is_urgent(Some(&prepared), &running));
        let ready = PodStatus {
            conditions: status(json!({"conditions": [{"type": "Ready", "status": "True"}]})).conditions,
            ..running.clone()
        };
        assert!(is_urgent(Some(&running), &ready) && is_urgent(Some(&ready), &running));
        assert!(is_urgent(None, &status(json!({"phase": "Failed", "reason": "OutOfcpu"}))));
    }
}
