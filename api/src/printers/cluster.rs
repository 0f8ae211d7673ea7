//! Nodes, namespaces, configuration, storage, access.

use serde_json::Value;

use super::{NONE, UNKNOWN, UNSET, View, duration, or, since, text};

pub(super) fn core(kind: &str, view: &View<'_>) -> Vec<Value> {
    match kind {
        "Namespace" => vec![view.name(), view.text("/status/phase").into(), view.age()],
        "ConfigMap" => {
            let count = view.count("/data") + view.count("/binaryData");
            vec![view.name(), count.into(), view.age()]
        }
        "Secret" => vec![view.name(), view.text("/type").into(), view.count("/data").into(), view.age()],
        "ServiceAccount" => vec![view.name(), view.count("/secrets").into(), view.age()],
        "LimitRange" => vec![view.name(), view.text("/metadata/creationTimestamp").into()],
        "ComponentStatus" => component_status(view),
        _ => vec![view.name(), view.age()],
    }
}

fn component_status(view: &View<'_>) -> Vec<Value> {
    let healthy = view.list("/conditions").iter().find(|condition| condition["type"] == "Healthy");
    let (status, message, error) = match healthy {
        Some(condition) => {
            let status = match text(condition, "status") {
                "True" => "Healthy",
                "False" => "Unhealthy",
                _ => "Unknown",
            };
            (status, text(condition, "message"), text(condition, "error"))
        }
        None => ("Unknown", "", ""),
    };
    vec![view.name(), status.into(), message.into(), error.into()]
}

pub(super) fn node(view: &View<'_>) -> Vec<Value> {
    let address = |kind: &str| {
        let found = view.list("/status/addresses").iter().find(|address| address["type"] == kind);
        Value::from(or(found.map_or("", |address| text(address, "address")), NONE))
    };
    let info = |field: &str| Value::from(or(view.text(&format!("/status/nodeInfo/{field}")), UNKNOWN));
    vec![
        view.name(),
        node_status(view).into(),
        node_roles(view).into(),
        view.age(),
        view.text("/status/nodeInfo/kubeletVersion").into(),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

fn node_status(view: &View<'_>) -> String {
    let ready = view.list("/status/conditions").iter().find(|condition| condition["type"] == "Ready");
    let mut status = match ready {
        Some(condition) if condition["status"] == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if view.at("/spec/unschedulable") == &Value::Bool(true) {
        status.push_str(",SchedulingDisabled");
    }
    status
}

fn node_roles(view: &View<'_>) -> String {
    const PREFIX: &str = "node-role.kubernetes.io/";
    let mut roles: Vec<&str> = Vec::new();
    for (key, value) in view.at("/metadata/labels").as_object().into_iter().flatten() {
        if let Some(role) = key.strip_prefix(PREFIX).filter(|role| !role.is_empty()) {
            roles.push(role);
        } else if key == "kubernetes.io/role" {
            roles.extend(value.as_str().filter(|role| !role.is_empty()));
        }
    }
    roles.sort_unstable();
    roles.dedup();
    or(&roles.join(","), NONE).to_owned()
}

/// Events of both groups; they name their fields differently.
pub(super) fn event(view: &View<'_>) -> Vec<Value> {
    let first_of = |pointers: &[&str]| pointers.iter().map(|pointer| view.text(pointer)).find(|text| !text.is_empty());
    let first = first_of(&["/firstTimestamp", "/deprecatedFirstTimestamp", "/eventTime"]);
    let last = first_of(&["/series/lastObservedTime", "/lastTimestamp", "/deprecatedLastTimestamp"]).or(first);
    let ago = |time: Option<&str>| time.map_or_else(|| UNKNOWN.to_owned(), |time| since(time, view.now));
    let about = if view.at("/involvedObject").is_object() { "/involvedObject" } else { "/regarding" };
    let about = view.at(about);
    let kind = text(about, "kind").to_lowercase();
    let counts = ["/series/count", "/count", "/deprecatedCount"];
    let count = counts.iter().map(|pointer| view.number(pointer)).find(|count| *count != 0).unwrap_or(1);
    vec![
        ago(last).into(),
        view.text("/type").into(),
        view.text("/reason").into(),
        format!("{kind}/{}", text(about, "name")).into(),
        text(about, "fieldPath").into(),
        event_source(view).into(),
        or(view.text("/message"), view.text("/note")).trim().into(),
        ago(first).into(),
        count.to_string().into(),
        view.name(),
    ]
}

fn event_source(view: &View<'_>) -> String {
    let component = ["/source/component", "/reportingComponent", "/reportingController", "/deprecatedSource/component"]
        .iter()
        .map(|pointer| view.text(pointer))
        .find(|text| !text.is_empty())
        .unwrap_or_default();
    let host = or(view.text("/source/host"), view.text("/deprecatedSource/host"));
    if host.is_empty() { component.to_owned() } else { format!("{component}, {host}") }
}

/// `RWO,ROX`, or nothing.
fn access_modes(modes: &[Value]) -> String {
    let order =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    order
        .iter()
        .filter(|(mode, _)| modes.iter().any(|own| own == mode))
        .map(|(_, short)| *short)
        .collect::<Vec<_>>()
        .join(",")
}

/// The class in the field, or in the annotation of old.
fn storage_class(view: &View<'_>) -> String {
    let old = view.at("/metadata/annotations").get("volume.beta.kubernetes.io/storage-class").and_then(Value::as_str);
    old.unwrap_or(view.text("/spec/storageClassName")).to_owned()
}

pub(super) fn persistent_volume(view: &View<'_>) -> Vec<Value> {
    let claim = view.at("/spec/claimRef");
    let claim =
        if claim.is_null() { String::new() } else { format!("{}/{}", text(claim, "namespace"), text(claim, "name")) };
    let phase =
        if view.at("/metadata/deletionTimestamp").is_null() { view.text("/status/phase") } else { "Terminating" };
    vec![
        view.name(),
        view.text("/spec/capacity/storage").into(),
        access_modes(view.list("/spec/accessModes")).into(),
        view.text("/spec/persistentVolumeReclaimPolicy").into(),
        phase.into(),
        claim.into(),
        storage_class(view).into(),
        or(view.text("/spec/volumeAttributesClassName"), UNSET).into(),
        view.text("/status/reason").into(),
        view.age(),
        or(view.text("/spec/volumeMode"), UNSET).into(),
    ]
}

pub(super) fn persistent_volume_claim(view: &View<'_>) -> Vec<Value> {
    let phase =
        if view.at("/metadata/deletionTimestamp").is_null() { view.text("/status/phase") } else { "Terminating" };
    let volume = view.text("/spec/volumeName");
    let bound = !volume.is_empty();
    vec![
        view.name(),
        phase.into(),
        volume.into(),
        if bound { view.text("/status/capacity/storage") } else { "" }.into(),
        if bound { access_modes(view.list("/status/accessModes")) } else { String::new() }.into(),
        storage_class(view).into(),
        or(view.text("/spec/volumeAttributesClassName"), UNSET).into(),
        view.age(),
        or(view.text("/spec/volumeMode"), UNSET).into(),
    ]
}

pub(super) fn resource_quota(view: &View<'_>) -> Vec<Value> {
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (name, hard) in view.at("/status/hard").as_object().into_iter().flatten() {
        let used = text(view.at("/status/used"), name);
        let shown = format!("{name}: {}/{}", or(used, "0"), hard.as_str().unwrap_or_default());
        if name.starts_with("limits.") { limits.push(shown) } else { requests.push(shown) }
    }
    vec![view.name(), requests.join(", ").into(), limits.join(", ").into(), view.age()]
}

pub(super) fn signing_request(view: &View<'_>) -> Vec<Value> {
    let holds = |kind: &str| view.list("/status/conditions").iter().any(|condition| condition["type"] == kind);
    let mut states: Vec<&str> = ["Approved", "Denied", "Failed"].into_iter().filter(|kind| holds(kind)).collect();
    if !states.contains(&"Approved") && !states.contains(&"Denied") {
        states.insert(0, "Pending");
    }
    if !view.text("/status/certificate").is_empty() {
        states.push("Issued");
    }
    let lasts = view.at("/spec/expirationSeconds").as_i64().map_or_else(|| NONE.to_owned(), duration);
    vec![
        view.name(),
        view.age(),
        or(view.text("/spec/signerName"), NONE).into(),
        view.text("/spec/username").into(),
        lasts.into(),
        states.join(",").into(),
    ]
}

pub(super) fn rbac(kind: &str, view: &View<'_>) -> Vec<Value> {
    if matches!(kind, "Role" | "ClusterRole") {
        return vec![view.name(), view.text("/metadata/creationTimestamp").into()];
    }
    let subjects = |kind: &str| {
        let named = view.list("/subjects").iter().filter(|subject| subject["kind"] == kind).map(|subject| {
            match text(subject, "namespace") {
                "" => text(subject, "name").to_owned(),
                namespace => format!("{namespace}/{}", text(subject, "name")),
            }
        });
        Value::from(named.collect::<Vec<_>>().join(", "))
    };
    vec![
        view.name(),
        format!("{}/{}", view.text("/roleRef/kind"), view.text("/roleRef/name")).into(),
        view.age(),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}

pub(super) fn storage(kind: &str, view: &View<'_>) -> Vec<Value> {
    let flag = |pointer: &str| Value::from(view.at(pointer).as_bool().unwrap_or_default().to_string());
    match kind {
        "StorageClass" => {
            let key = "storageclass.kubernetes.io/is-default-class";
            let default = text(view.at("/metadata/annotations"), key) == "true";
            let name = view.text("/metadata/name");
            vec![
                if default { format!("{name} (default)") } else { name.to_owned() }.into(),
                view.text("/provisioner").into(),
                or(view.text("/reclaimPolicy"), "Delete").into(),
                or(view.text("/volumeBindingMode"), UNSET).into(),
                flag("/allowVolumeExpansion"),
                view.age(),
            ]
        }
        "CSIDriver" => {
            let audiences: Vec<_> =
                view.list("/spec/tokenRequests").iter().map(|request| text(request, "audience")).collect();
            let modes: Vec<_> = view.list("/spec/volumeLifecycleModes").iter().filter_map(Value::as_str).collect();
            vec![
                view.name(),
                flag("/spec/attachRequired"),
                flag("/spec/podInfoOnMount"),
                flag("/spec/storageCapacity"),
                or(&audiences.join(","), UNSET).into(),
                flag("/spec/requiresRepublish"),
                or(&modes.join(","), NONE).into(),
                view.age(),
            ]
        }
        "CSINode" => vec![view.name(), view.count("/spec/drivers").into(), view.age()],
        "CSIStorageCapacity" => vec![
            view.name(),
            view.text("/storageClassName").into(),
            or(view.text("/capacity"), UNSET).into(),
            view.age(),
        ],
        "VolumeAttachment" => vec![
            view.name(),
            view.text("/spec/attacher").into(),
            view.text("/spec/source/persistentVolumeName").into(),
            view.text("/spec/nodeName").into(),
            flag("/status/attached"),
            view.age(),
        ],
        _ => vec![view.name(), view.text("/driverName").into(), view.age()],
    }
}

pub(super) fn other(kind: &str, view: &View<'_>) -> Vec<Value> {
    match kind {
        "Lease" => vec![view.name(), view.text("/spec/holderIdentity").into(), view.age()],
        "PriorityClass" => vec![
            view.name(),
            view.number("/value").into(),
            view.at("/globalDefault").as_bool().unwrap_or_default().into(),
            or(view.text("/preemptionPolicy"), "PreemptLowerPriority").into(),
            view.age(),
        ],
        "RuntimeClass" => vec![view.name(), view.text("/handler").into(), view.age()],
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => {
            vec![view.name(), view.count("/webhooks").into(), view.age()]
        }
        "ValidatingAdmissionPolicy" => {
            let kind = view.at("/spec/paramKind");
            let shown = if kind.is_null() {
                UNSET.to_owned()
            } else {
                format!("{}/{}", text(kind, "apiVersion"), text(kind, "kind"))
            };
            vec![view.name(), view.count("/spec/validations").into(), shown.into(), view.age()]
        }
        "ValidatingAdmissionPolicyBinding" => {
            let reference = view.at("/spec/paramRef");
            let shown = match (text(reference, "namespace"), text(reference, "name")) {
                ("", "") => UNSET.to_owned(),
                ("", name) => name.to_owned(),
                (namespace, name) => format!("{namespace}/{name}"),
            };
            vec![view.name(), view.text("/spec/policyName").into(), shown.into(), view.age()]
        }
        _ => vec![view.name(), view.age()],
    }
}
