//! What each resource lets clients write: which parts belong to which endpoint, and what follows from a write.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bosun_api::defaults;
use bosun_api::resource::Resource;
use k8s_openapi::api::authentication::v1::UserInfo;
use serde_json::{Map, Value, json};

/// Which endpoint an update came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The object itself.
    Main,
    /// Its `status` subresource.
    Status,
    /// A part of its wishes that has a subresource of its own, such as a pod's `resize`.
    Wishes,
    /// A subresource that writes exactly what its handler changed.
    Exact,
}

/// Resources whose generation counts the changes of what is wished for.
const GENERATION: &[&str] = &[
    "cronjobs",
    "csidrivers",
    "daemonsets",
    "deployments",
    "endpointslices",
    "ingressclasses",
    "ingresses",
    "jobs",
    "networkpolicies",
    "poddisruptionbudgets",
    "pods",
    "priorityclasses",
    "replicasets",
    "replicationcontrollers",
    "statefulsets",
];

/// Resources that report their status from the start: whoever creates them knows it.
const STATUS_AT_CREATION: &[&str] = &["nodes", "componentstatuses"];

fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    let object = object.as_object_mut().expect("an object was decoded");
    let metadata = object.entry("metadata").or_insert_with(|| json!({}));
    if !metadata.is_object() {
        *metadata = json!({});
    }
    metadata.as_object_mut().expect("made an object just now")
}

/// Whether `metadata.generation` is kept.
fn has_generation(resource: &Resource) -> bool {
    GENERATION.contains(&resource.plural) && resource.group != "events.k8s.io"
}

/// Bring a new object into its first state.
pub(crate) fn prepare_create(resource: &Resource, object: &mut Value) {
    let meta = metadata(object);
    for key in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "managedFields", "generation"] {
        meta.remove(key);
    }
    if has_generation(resource) {
        meta.insert("generation".into(), 1.into());
    }
    let top = object.as_object_mut().expect("an object was decoded");
    if resource.has_status() && !STATUS_AT_CREATION.contains(&resource.plural) {
        top.insert("status".into(), json!({}));
    }
    match resource.plural {
        "namespaces" => first_namespace(top),
        "pods" => first_pod(resource, top),
        "persistentvolumes" | "persistentvolumeclaims" => {
            top.insert("status".into(), json!({"phase": "Pending"}));
        }
        "services" => {
            top.insert("status".into(), json!({"loadBalancer": {}}));
        }
        "secrets" => settle_secret(object),
        _ => {}
    }
}

fn first_namespace(top: &mut Map<String, Value>) {
    top.insert("status".into(), json!({"phase": "Active"}));
    let spec = top.entry("spec").or_insert_with(|| json!({}));
    if let Some(spec) = spec.as_object_mut() {
        let finalizers = spec.entry("finalizers").or_insert_with(|| json!([]));
        if let Some(list) = finalizers.as_array_mut()
            && !list.contains(&"kubernetes".into())
        {
            list.push("kubernetes".into());
        }
    }
    let name = top.get("metadata").and_then(|m| m.get("name")).cloned().unwrap_or_default();
    if let Some(meta) = top.get_mut("metadata").and_then(Value::as_object_mut) {
        let labels = meta.entry("labels").or_insert_with(|| json!({}));
        if let Some(labels) = labels.as_object_mut() {
            labels.insert("kubernetes.io/metadata.name".into(), name);
        }
    }
}

/// `stringData` is a way to write `data`; it is not kept.
fn settle_secret(secret: &mut Value) {
    let Some(secret) = secret.as_object_mut() else { return };
    let Some(Value::Object(plain)) = secret.remove("stringData") else { return };
    let data = secret.entry("data").or_insert_with(|| json!({}));
    for (key, value) in plain {
        data[key] = STANDARD.encode(value.as_str().unwrap_or_default()).into();
    }
}

fn first_pod(resource: &Resource, top: &mut Map<String, Value>) {
    // The class is that of the pod with its defaults: requests may come from limits.
    let mut whole = Value::Object(top.clone());
    defaults::apply(resource, &mut whole);
    let typed = serde_json::from_value(whole);
    let qos = typed.map_or("BestEffort", |pod| bosun_api::pod::qos_class(&pod).as_str());
    top.insert("status".into(), json!({"phase": "Pending", "qosClass": qos}));
    let gated = top.get("spec").and_then(|s| s.get("schedulingGates")).and_then(Value::as_array);
    if gated.is_some_and(|gates| !gates.is_empty()) {
        let condition = json!({"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates"});
        if let Some(status) = top.get_mut("status").and_then(Value::as_object_mut) {
            status.insert("conditions".into(), json!([condition]));
        }
    }
}

/// Make `new` what may become of `old`: identity is kept, the other endpoint's part is kept, the generation follows.
pub(crate) fn prepare_update(resource: &Resource, part: Part, old: &Value, new: &mut Value) {
    keep_identity(old, new);
    if resource.plural == "secrets" {
        settle_secret(new);
    }
    match part {
        Part::Main | Part::Wishes if resource.has_status() => keep(old, new, &["status"]),
        Part::Main | Part::Wishes => {}
        Part::Status => keep_all_but_status(resource, old, new),
        Part::Exact => return,
    }
    if has_generation(resource) {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0);
        let bumped = generation + i64::from(part != Part::Status && wishes_changed(old, new));
        metadata(new).insert("generation".into(), bumped.into());
    }
}

/// What no client changes.
fn keep_identity(old: &Value, new: &mut Value) {
    let meta = metadata(new);
    for key in ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generateName"] {
        match old["metadata"].get(key) {
            Some(value) => meta.insert(key.into(), value.clone()),
            None => meta.remove(key),
        };
    }
    for key in ["managedFields", "selfLink"] {
        meta.remove(key);
    }
    match old["metadata"].get("generation") {
        Some(generation) => meta.insert("generation".into(), generation.clone()),
        None => meta.remove("generation"),
    };
}

fn keep(old: &Value, new: &mut Value, keys: &[&str]) {
    let Some(new) = new.as_object_mut() else { return };
    for key in keys {
        match old.get(key) {
            Some(value) => new.insert((*key).to_owned(), value.clone()),
            None => new.remove(*key),
        };
    }
}

/// A status update carries the status, and annotations and labels with it where stock lets it.
fn keep_all_but_status(resource: &Resource, old: &Value, new: &mut Value) {
    let status = new.get("status").cloned();
    let mut meta = new.get("metadata").cloned().unwrap_or_default();
    let labels_too = matches!(resource.plural, "pods" | "nodes" | "services" | "persistentvolumes");
    let mut kept = old.clone();
    if let Some(kept_meta) = kept.get_mut("metadata").and_then(Value::as_object_mut) {
        for key in ["annotations", "labels", "finalizers"] {
            if key == "labels" && !labels_too {
                continue;
            }
            match meta.get_mut(key).map(Value::take) {
                Some(value) => kept_meta.insert(key.into(), value),
                None => kept_meta.remove(key),
            };
        }
        if let Some(revision) = meta.get_mut("resourceVersion").map(Value::take) {
            kept_meta.insert("resourceVersion".into(), revision);
        }
    }
    if let Some(kept) = kept.as_object_mut() {
        match status {
            Some(status) => kept.insert("status".into(), status),
            None => kept.remove("status"),
        };
    }
    *new = kept;
}

/// Take nulls out: a field is there or it is not. What is free-form may have them.
pub(crate) fn prune(resource: &Resource, object: &mut Value) {
    if resource.plural == "controllerrevisions" {
        return;
    }
    drop_nulls(object);
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.retain(|_, field| !field.is_null());
            object.values_mut().for_each(drop_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Whether anything but metadata and status differs; for endpoint slices labels count too.
fn wishes_changed(old: &Value, new: &Value) -> bool {
    let wishes = |object: &Value| -> Vec<(String, Value)> {
        let all = object.as_object().into_iter().flatten();
        all.filter(|(key, _)| !matches!(key.as_str(), "metadata" | "status" | "kind" | "apiVersion"))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    };
    let labels = |object: &Value| object["metadata"].get("labels").cloned();
    let slice = new.get("addressType").is_some();
    wishes(old) != wishes(new) || (slice && labels(old) != labels(new))
}

/// A signing request says who made it; what the maker says of that does not count.
pub(crate) fn stamp_requester(resource: &Resource, object: &mut Value, user: &UserInfo) {
    if resource.plural != "certificatesigningrequests" {
        return;
    }
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    for key in ["username", "uid", "groups", "extra"] {
        spec.remove(key);
    }
    if let Ok(Value::Object(stamp)) = serde_json::to_value(user) {
        spec.extend(stamp);
    }
}

#[cfg(test)]
mod tests {
    use bosun_api::resource::find;

    use super::*;

    #[test]
    fn main_and_status_do_not_touch_each_other() {
        let deployments = find("apps", "v1", "deployments").unwrap();
        let old = json!({"metadata": {"uid": "u", "generation": 3, "labels": {"a": "1"}},
            "spec": {"replicas": 1}, "status": {"replicas": 1}});
        let wish = json!({"metadata": {"uid": "v", "generation": 9, "labels": {"a": "2"}},
            "spec": {"replicas": 2}, "status": {"replicas": 2}});

        let mut new = wish.clone();
        prepare_update(deployments, Part::Main, &old, &mut new);
        assert_eq!(new["status"], old["status"]);
        assert_eq!(new["metadata"], json!({"uid": "u", "generation": 4, "labels": {"a": "2"}}));

        let mut new = wish;
        prepare_update(deployments, Part::Status, &old, &mut new);
        assert_eq!(new["spec"], old["spec"]);
        assert_eq!(new["status"], json!({"replicas": 2}));
        assert_eq!(new["metadata"], json!({"uid": "u", "generation": 3, "labels": {"a": "1"}}));
    }

    #[test]
    fn plain_text_of_a_secret_becomes_data() {
        let secrets = find("", "v1", "secrets").unwrap();
        let mut secret =
            json!({"metadata": {"name": "a"}, "stringData": {"k": "v"}, "data": {"k": "eA==", "l": "eQ=="}});
        prepare_create(secrets, &mut secret);
        assert_eq!(secret, json!({"metadata": {"name": "a"}, "data": {"k": "dg==", "l": "eQ=="}}));
    }

    #[test]
    fn creation_starts_from_nothing() {
        let pods = find("", "v1", "pods").unwrap();
        let mut pod = json!({"metadata": {"name": "a", "deletionTimestamp": "x", "generation": 7},
            "spec": {"containers": []}, "status": {"phase": "Running"}});
        prepare_create(pods, &mut pod);
        assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
        assert_eq!(pod["metadata"], json!({"name": "a", "generation": 1}));
    }
}
