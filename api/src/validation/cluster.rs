//! Namespaces, nodes, leases, storage, certificates and other kinds with few rules.

use base64::Engine as _;
use serde_json::Value;

use super::fault::{Faults, Path, given, items, text};
use super::meta;
use crate::names;

const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];
const ACCESS_MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

pub(super) fn namespace(object: &Value, faults: &mut Faults) {
    let spec = Path::root("spec");
    for finalizer in items(&object["spec"]["finalizers"]) {
        let name = text(finalizer);
        let path = spec.child("finalizers");
        let complaints = names::qualified_name(name);
        if complaints.is_empty() && !name.contains('/') && name != "kubernetes" {
            faults.invalid(&path, name, "name is neither a standard finalizer name nor is it fully qualified");
        }
        faults.complaints(&path, name, complaints);
    }
}

pub(super) fn node(object: &Value, faults: &mut Faults) {
    let spec = Path::root("spec");
    let list = spec.child("taints");
    let mut seen = Vec::new();
    for (index, taint) in items(&object["spec"]["taints"]).iter().enumerate() {
        let path = list.index(index);
        let key = text(&taint["key"]);
        faults.complaints(&path.child("key"), key, names::qualified_name(key));
        let value = text(&taint["value"]);
        faults.complaints(&path.child("value"), value, names::label_value(value));
        faults.required_one_of(&taint["effect"], &path.child("effect"), EFFECTS);
        let id = (key, text(&taint["effect"]));
        if seen.contains(&id) {
            faults.duplicate(&path, taint.clone());
        }
        seen.push(id);
    }
    for (index, cidr) in items(&object["spec"]["podCIDRs"]).iter().enumerate() {
        if text(cidr).parse::<ipnet::IpNet>().is_err() {
            let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            faults.invalid(&spec.child("podCIDRs").index(index), text(cidr), detail);
        }
    }
}

pub(super) fn node_update(old: &Value, new: &Value, faults: &mut Faults) {
    let (old, new, path) = (&old["spec"], &new["spec"], Path::root("spec"));
    if !items(&old["podCIDRs"]).is_empty() && old["podCIDRs"] != new["podCIDRs"] {
        let detail = "node updates may not change podCIDR except from \"\" to valid";
        faults.forbidden(&path.child("podCIDRs"), detail);
    }
    if !text(&old["providerID"]).is_empty() && old["providerID"] != new["providerID"] {
        let detail = "node updates may not change providerID except from \"\" to valid";
        faults.forbidden(&path.child("providerID"), detail);
    }
}

pub(super) fn lease(object: &Value, faults: &mut Faults) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    if let Some(seconds) = spec["leaseDurationSeconds"].as_i64().filter(|seconds| *seconds <= 0) {
        faults.invalid(&path.child("leaseDurationSeconds"), seconds, "must be greater than 0");
    }
    faults.not_negative(&spec["leaseTransitions"], &path.child("leaseTransitions"));
}

pub(super) fn event(object: &Value, faults: &mut Faults) {
    let (involved, namespace) = (&object["involvedObject"], text(&object["metadata"]["namespace"]));
    let about = text(&involved["namespace"]);
    let path = Path::root("involvedObject");
    if about.is_empty() {
        // Events about what has no namespace are kept in `default`.
        if namespace != "default" && namespace != "kube-system" {
            faults.invalid(&path.child("namespace"), about, "does not match event.namespace");
        }
    } else if about != namespace {
        faults.invalid(&path.child("namespace"), about, "does not match event.namespace");
    }
}

pub(super) fn claim(spec: &Value, path: &Path<'_>, faults: &mut Faults) {
    access_modes(spec, path, faults);
    if !given(&spec["resources"]["requests"]["storage"]) {
        let resources = path.child("resources");
        faults.required(&resources.key("storage"), "");
    }
    faults.one_of(&spec["volumeMode"], &path.child("volumeMode"), &["Block", "Filesystem"]);
}

pub(super) fn claim_update(old: &Value, new: &Value, faults: &mut Faults) {
    const FREE: &[&str] = &["resources", "volumeAttributesClassName"];
    let (old, new) = (&old["spec"], &new["spec"]);
    let fixed = |spec: &Value| {
        let mut spec = spec.clone();
        if let Some(spec) = spec.as_object_mut() {
            spec.retain(|key, _| !FREE.contains(&key.as_str()));
        }
        spec
    };
    let (mut before, after) = (fixed(old), fixed(new));
    // The binder fills in the volume once.
    if let (Some(before), Some(name)) = (before.as_object_mut(), after.get("volumeName"))
        && !before.contains_key("volumeName")
    {
        before.insert("volumeName".to_owned(), name.clone());
    }
    if before != after {
        let detail = "spec is immutable after creation except resources.requests and volumeAttributesClassName for \
                      bound claims";
        faults.forbidden(&Path::root("spec"), detail);
    }
}

fn access_modes(spec: &Value, path: &Path<'_>, faults: &mut Faults) {
    let (modes, at) = (items(&spec["accessModes"]), path.child("accessModes"));
    if modes.is_empty() {
        faults.required(&at, "at least 1 access mode is required");
    }
    for mode in modes {
        faults.one_of(mode, &at, ACCESS_MODES);
    }
}

pub(super) fn volume(object: &Value, faults: &mut Faults) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    access_modes(spec, &path, faults);
    if !given(&spec["capacity"]["storage"]) {
        faults.required(&path.child("capacity"), "");
    }
    faults.one_of(
        &spec["persistentVolumeReclaimPolicy"],
        &path.child("persistentVolumeReclaimPolicy"),
        &["Delete", "Recycle", "Retain"],
    );
    faults.one_of(&spec["volumeMode"], &path.child("volumeMode"), &["Block", "Filesystem"]);
    const SOURCES: &[&str] = &[
        "awsElasticBlockStore",
        "azureDisk",
        "azureFile",
        "cephfs",
        "cinder",
        "csi",
        "fc",
        "flexVolume",
        "flocker",
        "gcePersistentDisk",
        "glusterfs",
        "hostPath",
        "iscsi",
        "local",
        "nfs",
        "photonPersistentDisk",
        "portworxVolume",
        "quobyte",
        "rbd",
        "scaleIO",
        "storageos",
        "vsphereVolume",
    ];
    if !SOURCES.iter().any(|source| given(&spec[*source])) {
        faults.required(&path, "must specify a volume type");
    }
    if given(&spec["local"]) && !given(&spec["nodeAffinity"]) {
        faults.required(&path.child("nodeAffinity"), "Local volume requires node affinity");
    }
}

pub(super) fn storage_class(object: &Value, faults: &mut Faults) {
    faults.required_text(&object["provisioner"], &Path::root("provisioner"));
    faults.one_of(&object["reclaimPolicy"], &Path::root("reclaimPolicy"), &["Delete", "Retain"]);
    let modes = ["Immediate", "WaitForFirstConsumer"];
    faults.one_of(&object["volumeBindingMode"], &Path::root("volumeBindingMode"), &modes);
}

pub(super) fn storage_class_update(old: &Value, new: &Value, faults: &mut Faults) {
    for (field, detail) in [
        ("parameters", "updates to parameters are forbidden."),
        ("provisioner", "updates to provisioner are forbidden."),
        ("reclaimPolicy", "updates to reclaimPolicy are forbidden."),
    ] {
        if old[field] != new[field] {
            faults.forbidden(&Path::root(field), detail);
        }
    }
    faults.immutable(&old["volumeBindingMode"], &new["volumeBindingMode"], &Path::root("volumeBindingMode"));
}

pub(super) fn priority_class(object: &Value, faults: &mut Faults) {
    const HIGHEST: i64 = 1_000_000_000;
    const SYSTEM: &[(&str, i64)] =
        &[("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];
    let (name, value) = (text(&object["metadata"]["name"]), object["value"].as_i64().unwrap_or_default());
    let path = Path::root("metadata");
    if name.starts_with("system-") {
        if !SYSTEM.contains(&(name, value)) {
            let detail = "priority class names with 'system-' prefix are reserved for system use only. error: the \
                          value does not match that of the system priority class";
            faults.forbidden(&path.child("name"), detail);
        }
    } else if value > HIGHEST {
        faults
            .forbidden(&Path::root("value"), &format!("maximum allowed value of a user defined priority is {HIGHEST}"));
    }
    let policies = ["Never", "PreemptLowerPriority"];
    faults.one_of(&object["preemptionPolicy"], &Path::root("preemptionPolicy"), &policies);
}

pub(super) fn priority_class_update(old: &Value, new: &Value, faults: &mut Faults) {
    if old["value"] != new["value"] {
        faults.forbidden(&Path::root("value"), "may not be changed in an update.");
    }
    faults.immutable(&old["preemptionPolicy"], &new["preemptionPolicy"], &Path::root("preemptionPolicy"));
}

pub(super) fn runtime_class(object: &Value, faults: &mut Faults) {
    let handler = text(&object["handler"]);
    faults.complaints(&Path::root("handler"), handler, names::dns1123_label(handler));
    let scheduling = Path::root("scheduling");
    meta::labels(&object["scheduling"]["nodeSelector"], &scheduling.child("nodeSelector"), faults);
}

pub(super) fn signing_request(object: &Value, faults: &mut Faults) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    let pem = base64::engine::general_purpose::STANDARD.decode(text(&spec["request"])).unwrap_or_default();
    if !String::from_utf8_lossy(&pem).contains("-----BEGIN CERTIFICATE REQUEST-----") {
        let detail = "PEM block type must be CERTIFICATE REQUEST";
        faults.invalid(&path.child("request"), text(&spec["request"]), detail);
    }
    if items(&spec["usages"]).is_empty() {
        faults.required(&path.child("usages"), "usages must be specified");
    }
    signer_name(text(&spec["signerName"]), &path.child("signerName"), faults);
    if let Some(seconds) = spec["expirationSeconds"].as_i64().filter(|seconds| *seconds < 600) {
        faults.invalid(
            &path.child("expirationSeconds"),
            seconds,
            "may not specify a duration less than 600 seconds (10 minutes)",
        );
    }
}

fn signer_name(name: &str, path: &Path<'_>, faults: &mut Faults) {
    if name.is_empty() {
        faults.required(path, "");
        return;
    }
    match name.split('/').collect::<Vec<_>>().as_slice() {
        [domain, signer] if !signer.is_empty() => {
            faults.complaints(path, domain, names::dns1123_subdomain(domain));
            if !domain.contains('.') {
                faults.invalid(path, name, "should be a domain with at least two segments separated by dots");
            }
        }
        _ => faults.invalid(
            path,
            name,
            "must be a fully qualified domain and path of the form 'example.com/signer-name'",
        ),
    }
}
