//! Metadata of every kind.

use serde_json::Value;

use super::fault::{Faults, Path, entries, items, text};
use crate::names::{self, Complaints};
use crate::resource::Resource;

const ANNOTATIONS_LIMIT: usize = 256 * 1024;

/// What is wrong with the name of an object of a kind.
#[must_use]
pub fn name_complaints(resource: &Resource, name: &str) -> Complaints {
    match (resource.group, resource.kind) {
        ("", "Service") => names::dns1035_label(name),
        ("", "Namespace") => names::dns1123_label(name),
        ("rbac.authorization.k8s.io", _) => names::path_segment(name),
        ("networking.k8s.io", "IPAddress") => names::ip_address(name),
        ("batch", "CronJob") if name.len() > 52 => vec!["must be no more than 52 characters".to_owned()],
        _ => names::dns1123_subdomain(name),
    }
}

pub(super) fn create(resource: &Resource, object: &Value, faults: &mut Faults) {
    let (metadata, path) = (&object["metadata"], Path::root("metadata"));
    name(resource, metadata, &path, faults);
    let namespace = text(&metadata["namespace"]);
    match (resource.namespaced, namespace) {
        (true, "") => faults.required(&path.child("namespace"), ""),
        (true, namespace) => {
            faults.complaints(&path.child("namespace"), namespace, names::dns1123_label(namespace));
        }
        (false, "") => {}
        (false, _) => faults.forbidden(&path.child("namespace"), "not allowed on this type"),
    }
    common(metadata, &path, faults);
}

fn name(resource: &Resource, metadata: &Value, path: &Path<'_>, faults: &mut Faults) {
    let (name, base) = (text(&metadata["name"]), text(&metadata["generateName"]));
    if !base.is_empty() {
        // What follows are letters; a dash or dot at the end is fine then.
        let sample = format!("{}a", base.trim_end_matches('-'));
        faults.complaints(&path.child("generateName"), base, name_complaints(resource, &sample));
    }
    if name.is_empty() {
        faults.required(&path.child("name"), "name or generateName is required");
    } else {
        faults.complaints(&path.child("name"), name, name_complaints(resource, name));
    }
}

/// Labels, annotations, owners and finalizers, of objects and of templates.
pub(super) fn common(metadata: &Value, path: &Path<'_>, faults: &mut Faults) {
    labels(&metadata["labels"], &path.child("labels"), faults);
    annotations(&metadata["annotations"], &path.child("annotations"), faults);
    owners(metadata, &path.child("ownerReferences"), faults);
    for finalizer in items(&metadata["finalizers"]) {
        finalizer_name(text(finalizer), &path.child("finalizers"), faults);
    }
}

pub(super) fn labels(labels: &Value, path: &Path<'_>, faults: &mut Faults) {
    for (key, value) in entries(labels) {
        faults.complaints(path, key, names::qualified_name(key));
        let value = text(value);
        faults.complaints(path, value, names::label_value(value));
    }
}

pub(super) fn annotations(annotations: &Value, path: &Path<'_>, faults: &mut Faults) {
    let mut size = 0;
    for (key, value) in entries(annotations) {
        faults.complaints(path, key, names::qualified_name(&key.to_lowercase()));
        size += key.len() + text(value).len();
    }
    if size > ANNOTATIONS_LIMIT {
        faults.too_long(path, ANNOTATIONS_LIMIT);
    }
}

fn owners(metadata: &Value, path: &Path<'_>, faults: &mut Faults) {
    let mut controller: Option<&str> = None;
    for (index, owner) in items(&metadata["ownerReferences"]).iter().enumerate() {
        let path = path.index(index);
        for field in ["apiVersion", "kind", "name", "uid"] {
            if text(&owner[field]).is_empty() {
                let what = if field == "apiVersion" { "version must not be empty" } else { "must not be empty" };
                faults.invalid(&path.child(field), "", what);
            }
        }
        if owner["controller"] == true {
            let name = text(&owner["name"]);
            if let Some(other) = controller {
                let detail = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {other} and \
                     {name}"
                );
                faults.invalid(&Path::root("metadata").child("ownerReferences"), owner.clone(), &detail);
            }
            controller = Some(name);
        }
    }
}

fn finalizer_name(name: &str, path: &Path<'_>, faults: &mut Faults) {
    let complaints = names::qualified_name(name);
    if !complaints.is_empty() {
        faults.complaints(path, name, complaints);
    } else if !name.contains('/') && !matches!(name, "kubernetes" | "orphan" | "foregroundDeletion") {
        faults.invalid(path, name, "name is neither a standard finalizer name nor is it fully qualified");
    }
}

/// Kinds whose updates must say which version they are of. The others may leave it out and replace whatever there is.
const CONDITIONAL: &[&str] = &[
    "csidrivers",
    "csinodes",
    "ipaddresses",
    "leases",
    "mutatingwebhookconfigurations",
    "poddisruptionbudgets",
    "runtimeclasses",
    "servicecidrs",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
    "validatingwebhookconfigurations",
    "volumeattachments",
];

/// The version that an update must be of.
pub(super) fn version(resource: &Resource, new: &Value, faults: &mut Faults) {
    let metadata = Path::root("metadata");
    let version = text(&new["metadata"]["resourceVersion"]);
    if CONDITIONAL.contains(&resource.plural) && matches!(version, "" | "0") {
        faults.invalid(&metadata.child("resourceVersion"), 0, "must be specified for an update");
    }
}

pub(super) fn update(old: &Value, new: &Value, faults: &mut Faults) {
    let (old, new, path) = (&old["metadata"], &new["metadata"], Path::root("metadata"));
    for field in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp"] {
        faults.immutable(&old[field], &new[field], &path.child(field));
    }
    let added: Vec<String> = items(&new["finalizers"])
        .iter()
        .filter(|finalizer| !items(&old["finalizers"]).contains(finalizer))
        .map(|finalizer| format!("{:?}", text(finalizer)))
        .collect();
    if old.get("deletionTimestamp").is_some() && !added.is_empty() {
        let detail = format!(
            "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
            added.join(", ")
        );
        faults.forbidden(&path.child("finalizers"), &detail);
    }
    if old["labels"] != new["labels"] || old["annotations"] != new["annotations"] || !added.is_empty() {
        common(new, &path, faults);
    }
}
