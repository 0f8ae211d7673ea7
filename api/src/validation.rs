//! What is wrong with an object, in a stock server's words.
//!
//! Objects come decoded by their type and with their defaults filled in. [`validate_create`] and [`validate_update`] give
//! every fault with the path of its field; [`to_error`] makes the 422 of them.

mod cluster;
mod config;
mod container;
mod fault;
mod meta;
mod pod;
mod rbac;
mod selector;
mod service;
mod volume;
mod workload;

use serde_json::Value;

pub use fault::{FaultKind, Faults, FieldError, Path};
pub use meta::name_complaints;

use crate::resource::Resource;
use crate::status::ApiError;

/// What is wrong with a new object.
#[must_use]
pub fn validate_create(resource: &Resource, object: &Value) -> Vec<FieldError> {
    let mut faults = Faults::default();
    meta::create(resource, object, &mut faults);
    let spec = Path::root("spec");
    match (resource.group, resource.kind) {
        ("", "Pod") => pod::create(object, &mut faults),
        ("", "PodTemplate") => pod::template(&object["template"], &Path::root("template"), &mut faults),
        ("", "ReplicationController") => workload::replication_controller(object, &mut faults),
        ("", "Service") => service::create(object, &mut faults),
        ("", "Endpoints") => service::endpoints(object, &mut faults),
        ("", "ConfigMap") => config::config_map(object, &mut faults),
        ("", "Secret") => config::secret(object, &mut faults),
        ("", "Namespace") => cluster::namespace(object, &mut faults),
        ("", "Node") => cluster::node(object, &mut faults),
        ("", "PersistentVolumeClaim") => cluster::claim(&object["spec"], &spec, &mut faults),
        ("", "PersistentVolume") => cluster::volume(object, &mut faults),
        ("", "Event") => cluster::event(object, &mut faults),
        ("apps", "Deployment") => workload::deployment(object, &mut faults),
        ("apps", "ReplicaSet") => workload::replica_set(object, &mut faults),
        ("apps", "StatefulSet") => workload::stateful_set(object, &mut faults),
        ("apps", "DaemonSet") => workload::daemon_set(object, &mut faults),
        ("batch", "Job") => workload::job(object, &mut faults),
        ("batch", "CronJob") => workload::cron_job(object, &mut faults),
        ("autoscaling", _) => workload::autoscaler(object, &mut faults),
        ("policy", "PodDisruptionBudget") => workload::disruption_budget(object, &mut faults),
        ("discovery.k8s.io", _) => service::endpoint_slice(object, &mut faults),
        ("networking.k8s.io", "Ingress") => service::ingress(object, &mut faults),
        ("networking.k8s.io", "NetworkPolicy") => service::network_policy(object, &mut faults),
        ("coordination.k8s.io", "Lease") => cluster::lease(object, &mut faults),
        ("certificates.k8s.io", _) => cluster::signing_request(object, &mut faults),
        ("scheduling.k8s.io", _) => cluster::priority_class(object, &mut faults),
        ("node.k8s.io", _) => cluster::runtime_class(object, &mut faults),
        ("storage.k8s.io", "StorageClass") => cluster::storage_class(object, &mut faults),
        ("rbac.authorization.k8s.io", _) => rbac::check(resource.kind, object, &mut faults),
        _ => {}
    }
    faults.0
}

/// What is wrong with the new state of an object, given the old.
///
/// For the main endpoint. For `status` use [`validate_status_update`]: the rest of the object is not the client's there.
#[must_use]
pub fn validate_update(resource: &Resource, old: &Value, new: &Value) -> Vec<FieldError> {
    let mut faults = Faults::default();
    meta::update(old, new, &mut faults);
    meta::version(resource, new, &mut faults);
    match (resource.group, resource.kind) {
        ("", "Pod") => pod::update(old, new, &mut faults),
        ("", "Service") => service::update(old, new, &mut faults),
        ("", "ConfigMap") => config::update(old, new, &["data", "binaryData"], &mut faults),
        ("", "Secret") => {
            faults.immutable(&old["type"], &new["type"], &Path::root("type"));
            config::update(old, new, &["data"], &mut faults);
        }
        ("", "Node") => cluster::node_update(old, new, &mut faults),
        ("", "PersistentVolumeClaim") => cluster::claim_update(old, new, &mut faults),
        ("apps" | "batch", kind) => workload::update(kind, old, new, &mut faults),
        ("discovery.k8s.io", _) => {
            faults.immutable(&old["addressType"], &new["addressType"], &Path::root("addressType"));
        }
        ("certificates.k8s.io", _) => {
            faults.immutable(&old["spec"], &new["spec"], &Path::root("spec"));
        }
        ("scheduling.k8s.io", _) => cluster::priority_class_update(old, new, &mut faults),
        ("node.k8s.io", _) => faults.immutable(&old["handler"], &new["handler"], &Path::root("handler")),
        ("storage.k8s.io", "StorageClass") => cluster::storage_class_update(old, new, &mut faults),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            rbac::binding_update(old, new, &mut faults);
        }
        _ => {}
    }
    // What was let in once and has not changed is not held against the object now.
    if old["spec"] != new["spec"] || new.get("spec").is_none() {
        for fault in validate_create(resource, new) {
            if !faults.0.iter().any(|known| known.field == fault.field) {
                faults.0.push(fault);
            }
        }
    }
    faults.0
}

/// What is wrong with a write to `status`: only metadata can be.
#[must_use]
pub fn validate_status_update(old: &Value, new: &Value) -> Vec<FieldError> {
    let mut faults = Faults::default();
    meta::update(old, new, &mut faults);
    faults.0
}

/// The 422 for what is wrong.
#[must_use]
pub fn to_error(resource: &Resource, name: &str, faults: Vec<FieldError>) -> ApiError {
    let causes = faults.into_iter().map(FieldError::into_cause).collect();
    ApiError::invalid(resource.group, resource.kind, name, causes)
}

/// Gives the 422 if anything is wrong.
///
/// # Errors
/// Of the faults given.
pub fn check(resource: &Resource, object: &Value, faults: Vec<FieldError>) -> Result<(), ApiError> {
    if faults.is_empty() {
        return Ok(());
    }
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().or(metadata["generateName"].as_str()).unwrap_or_default();
    Err(to_error(resource, name, faults))
}

#[cfg(test)]
mod tests;
