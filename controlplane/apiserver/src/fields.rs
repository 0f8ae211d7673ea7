//! The fields that field selectors can name, beside `metadata.name` and `metadata.namespace`, kind by kind.

use serde_json::Value;

use bosun_api::resource::Resource;

/// A selectable field.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) label: &'static str,
    path: &'static [&'static str],
    /// What an absent field is taken for.
    absent: &'static str,
}

impl Field {
    /// The field's value as selectors compare it.
    pub(crate) fn read(&self, object: &Value) -> String {
        let found = self.path.iter().try_fold(object, |value, key| value.get(key));
        match found {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Bool(yes)) => yes.to_string(),
            Some(Value::Number(number)) => number.to_string(),
            _ => self.absent.to_owned(),
        }
    }
}

const fn field(label: &'static str, path: &'static [&'static str]) -> Field {
    Field { label, path, absent: "" }
}

const fn field_or(label: &'static str, path: &'static [&'static str], absent: &'static str) -> Field {
    Field { label, path, absent }
}

/// The place of `spec.nodeName` among a pod's fields.
pub(crate) const POD_NODE: usize = 0;

const PODS: &[Field] = &[
    field("spec.nodeName", &["spec", "nodeName"]),
    field("spec.restartPolicy", &["spec", "restartPolicy"]),
    field("spec.schedulerName", &["spec", "schedulerName"]),
    field("spec.serviceAccountName", &["spec", "serviceAccountName"]),
    field_or("spec.hostNetwork", &["spec", "hostNetwork"], "false"),
    field("status.phase", &["status", "phase"]),
    field("status.podIP", &["status", "podIP"]),
    field("status.nominatedNodeName", &["status", "nominatedNodeName"]),
];
const NODES: &[Field] = &[field_or("spec.unschedulable", &["spec", "unschedulable"], "false")];
const NAMESPACES: &[Field] = &[field("status.phase", &["status", "phase"])];
const SECRETS: &[Field] = &[field("type", &["type"])];
const SERVICES: &[Field] = &[field("spec.clusterIP", &["spec", "clusterIP"]), field("spec.type", &["spec", "type"])];
const REPLICAS: &[Field] = &[field_or("status.replicas", &["status", "replicas"], "0")];
const JOBS: &[Field] = &[field_or("status.successful", &["status", "succeeded"], "0")];
const SIGNING: &[Field] = &[field("spec.signerName", &["spec", "signerName"])];
const EVENTS: &[Field] = &[
    field("involvedObject.kind", &["involvedObject", "kind"]),
    field("involvedObject.namespace", &["involvedObject", "namespace"]),
    field("involvedObject.name", &["involvedObject", "name"]),
    field("involvedObject.uid", &["involvedObject", "uid"]),
    field("involvedObject.apiVersion", &["involvedObject", "apiVersion"]),
    field("involvedObject.resourceVersion", &["involvedObject", "resourceVersion"]),
    field("involvedObject.fieldPath", &["involvedObject", "fieldPath"]),
    field("reason", &["reason"]),
    field("reportingComponent", &["reportingComponent"]),
    field("source", &["source", "component"]),
    field("type", &["type"]),
];

/// The selectable fields of a resource's objects as they are stored.
pub(crate) fn of(resource: &Resource) -> &'static [Field] {
    match resource.storage {
        "/registry/pods" => PODS,
        "/registry/minions" => NODES,
        "/registry/namespaces" => NAMESPACES,
        "/registry/secrets" => SECRETS,
        "/registry/services/specs" => SERVICES,
        "/registry/replicasets" | "/registry/controllers" => REPLICAS,
        "/registry/jobs" => JOBS,
        "/registry/certificatesigningrequests" => SIGNING,
        "/registry/events" => EVENTS,
        _ => &[],
    }
}

/// Where a field stands in [`of`]; in `events.k8s.io`, `regarding.…` is `involvedObject.…`.
pub(crate) fn position(resource: &Resource, label: &str) -> Option<usize> {
    let fields = of(resource);
    let exact = fields.iter().position(|f| f.label == label);
    exact.or_else(|| match (resource.storage, label) {
        ("/registry/pods", "status.podIPs") => position(resource, "status.podIP"),
        ("/registry/events", "reportingController") => position(resource, "reportingComponent"),
        ("/registry/events", label) => {
            let rest = label.strip_prefix("regarding.")?;
            fields.iter().position(|f| f.label.strip_prefix("involvedObject.") == Some(rest))
        }
        _ => None,
    })
}

/// Whether a selector may name the field.
pub(crate) fn known(resource: &Resource, label: &str) -> bool {
    matches!(label, "metadata.name" | "metadata.namespace") || position(resource, label).is_some()
}
