//! Claims of pods (dynamic resource allocation) in the life of a pod: prepared before its sandbox is made, unprepared
//! once nothing of it runs.

use std::sync::{Arc, PoisonError};

use bosun_kit::events::EventType;
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::manager::Pods;
use crate::pod::spec;
use crate::worker::Message;

/// Has the claims of the pod prepared, if it has any.
///
/// # Errors
/// Why not; it has been told as an event.
pub async fn prepare(context: &Context, pod: &Pod) -> Result<(), String> {
    if !bosun_kubelet_dra::claims::uses_claims(pod) {
        return Ok(());
    }
    let prepared = match &context.claims {
        Some(claims) => claims.prepare(pod).await,
        None => {
            Err("this kubelet runs without an API server, or without the gate DynamicResourceAllocation".to_owned())
        }
    };
    prepared.inspect_err(|error| {
        let message = format!("Failed to prepare dynamic resources: {error}");
        context.report.pod(pod, EventType::Warning, "FailedPrepareDynamicResources", message);
    })
}

/// Has the claims of a pod unprepared of which nothing runs any more, as far as no other pod uses them.
///
/// # Errors
/// Why not; the pod has not ended until it goes well.
pub async fn give_back(context: &Context, pod: &Pod) -> Result<(), String> {
    match &context.claims {
        Some(claims) => claims.unprepare(spec::uid(pod)).await,
        None => Ok(()),
    }
}

/// The CDI names of the devices that a container has by its claims.
///
/// # Errors
/// A claim of it is not prepared.
pub fn cdi_devices(context: &Context, pod: &Pod, container: &Container) -> Result<Vec<String>, String> {
    match &context.claims {
        Some(claims) => claims.cdi_devices(pod, container),
        None => Ok(Vec::new()),
    }
}

/// Has pods look at their devices whenever a driver says that those have changed, until cancelled.
pub async fn tell_of_devices(context: Arc<Context>, pods: Pods, cancel: CancellationToken) {
    let Some(claims) = &context.claims else { return };
    loop {
        let changed = tokio::select! {
            changed = claims.health_changed() => changed,
            () = cancel.cancelled() => return,
        };
        let pods = pods.read().unwrap_or_else(PoisonError::into_inner);
        for handle in changed.iter().filter_map(|uid| pods.get(uid)) {
            handle.tell(Message::Look);
        }
    }
}
