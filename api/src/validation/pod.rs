//! Pods and pod templates.

use std::collections::HashSet;

use serde_json::Value;

use super::container::{Scope, container};
use super::fault::{Faults, Path, given, items, text};
use super::meta;
use super::volume::volumes;
use crate::names;

const DNS_POLICIES: &[&str] = &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
const RESTART_POLICIES: &[&str] = &["Always", "OnFailure", "Never"];
const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];
const SPEC_UPDATE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(super) fn create(object: &Value, faults: &mut Faults) {
    spec(&object["spec"], &Path::root("spec"), faults);
}

/// A `PodTemplateSpec`.
pub(super) fn template(template: &Value, path: &Path<'_>, faults: &mut Faults) {
    meta::labels(&template["metadata"]["labels"], &path.child("labels"), faults);
    meta::annotations(&template["metadata"]["annotations"], &path.child("annotations"), faults);
    spec(&template["spec"], &path.child("spec"), faults);
    if !items(&template["spec"]["ephemeralContainers"]).is_empty() {
        let detail = "ephemeral containers not allowed in pod template";
        faults.forbidden(&path.child("spec").child("ephemeralContainers"), detail);
    }
}

pub(super) fn spec(spec: &Value, path: &Path<'_>, faults: &mut Faults) {
    let volumes = volumes(&spec["volumes"], &path.child("volumes"), faults);
    let host_network = spec["hostNetwork"] == true;
    let mut scope = Scope { volumes, names: HashSet::new(), host_network };
    let containers = items(&spec["containers"]);
    if containers.is_empty() {
        faults.required(&path.child("containers"), "");
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for (index, value) in items(&spec[list]).iter().enumerate() {
            container(value, &path.child(list).index(index), &mut scope, faults);
        }
    }
    host_ports(spec, path, faults);
    faults.required_one_of(&spec["restartPolicy"], &path.child("restartPolicy"), RESTART_POLICIES);
    faults.required_one_of(&spec["dnsPolicy"], &path.child("dnsPolicy"), DNS_POLICIES);
    if spec["dnsPolicy"] == "None" && items(&spec["dnsConfig"]["nameservers"]).is_empty() {
        let at = path.child("dnsConfig");
        faults.required(&at.child("nameservers"), "must provide at least one DNS nameserver when `dnsPolicy` is None");
    }
    names_in(spec, path, faults);
    numbers(spec, path, faults);
    meta::labels(&spec["nodeSelector"], &path.child("nodeSelector"), faults);
    tolerations(&spec["tolerations"], &path.child("tolerations"), faults);
    for (index, alias) in items(&spec["hostAliases"]).iter().enumerate() {
        let at = path.child("hostAliases");
        let ip = text(&alias["ip"]);
        faults.complaints(&at.index(index).child("ip"), ip, names::ip_address(ip));
    }
    spread(&spec["topologySpreadConstraints"], &path.child("topologySpreadConstraints"), faults);
}

fn names_in(spec: &Value, path: &Path<'_>, faults: &mut Faults) {
    for (field, check) in [
        ("serviceAccountName", names::dns1123_subdomain as fn(&str) -> names::Complaints),
        ("nodeName", names::dns1123_subdomain),
        ("hostname", names::dns1123_label),
        ("subdomain", names::dns1123_label),
        ("priorityClassName", names::dns1123_subdomain),
        ("runtimeClassName", names::dns1123_subdomain),
    ] {
        let value = text(&spec[field]);
        if !value.is_empty() {
            faults.complaints(&path.child(field), value, check(value));
        }
    }
}

fn numbers(spec: &Value, path: &Path<'_>, faults: &mut Faults) {
    if let Some(seconds) = spec["activeDeadlineSeconds"].as_i64() {
        for complaint in names::in_range(seconds, 1, i64::from(i32::MAX)) {
            faults.invalid(&path.child("activeDeadlineSeconds"), seconds, &complaint);
        }
    }
    faults.not_negative(&spec["terminationGracePeriodSeconds"], &path.child("terminationGracePeriodSeconds"));
}

fn host_ports(spec: &Value, path: &Path<'_>, faults: &mut Faults) {
    let mut taken = HashSet::new();
    let containers = path.child("containers");
    for (index, value) in items(&spec["containers"]).iter().enumerate() {
        for (port_index, port) in items(&value["ports"]).iter().enumerate() {
            let number = port["hostPort"].as_i64().unwrap_or_default();
            let key = format!("{}/{}/{number}", text(&port["protocol"]), text(&port["hostIP"]));
            if number != 0 && !taken.insert(key.clone()) {
                let at = containers.index(index);
                let ports = at.child("ports");
                faults.duplicate(&ports.index(port_index).child("hostPort"), key);
            }
        }
    }
}

fn tolerations(list: &Value, path: &Path<'_>, faults: &mut Faults) {
    for (index, toleration) in items(list).iter().enumerate() {
        let path = path.index(index);
        let (key, operator) = (text(&toleration["key"]), text(&toleration["operator"]));
        if key.is_empty() && operator != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            faults.invalid(&path.child("operator"), operator, detail);
        }
        if !key.is_empty() {
            faults.complaints(&path.child("key"), key, names::qualified_name(key));
        }
        match operator {
            "" | "Equal" => {
                let value = text(&toleration["value"]);
                faults.complaints(&path.child("operator"), value, names::label_value(value));
            }
            "Exists" if !text(&toleration["value"]).is_empty() => {
                faults.invalid(
                    &path.child("operator"),
                    toleration.clone(),
                    "value must be empty when `operator` is 'Exists'",
                );
            }
            "Exists" | "Lt" | "Gt" => {}
            other => faults.not_supported(&path.child("operator"), other, &["Equal", "Exists"]),
        }
        if given(&toleration["tolerationSeconds"]) && toleration["effect"] != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            faults.invalid(&path.child("effect"), text(&toleration["effect"]), detail);
        }
        if !text(&toleration["effect"]).is_empty() {
            faults.one_of(&toleration["effect"], &path.child("effect"), EFFECTS);
        }
    }
}

fn spread(list: &Value, path: &Path<'_>, faults: &mut Faults) {
    for (index, constraint) in items(list).iter().enumerate() {
        let path = path.index(index);
        let skew = constraint["maxSkew"].as_i64().unwrap_or_default();
        if skew <= 0 {
            faults.invalid(&path.child("maxSkew"), skew, "must be greater than 0");
        }
        if text(&constraint["topologyKey"]).is_empty() {
            faults.required(&path.child("topologyKey"), "can not be empty");
        }
        faults.one_of(
            &constraint["whenUnsatisfiable"],
            &path.child("whenUnsatisfiable"),
            &["DoNotSchedule", "ScheduleAnyway"],
        );
    }
}

/// Only images, the deadline, tolerations (more of them), labels and the like may change.
pub(super) fn update(old: &Value, new: &Value, faults: &mut Faults) {
    let (old, new, path) = (&old["spec"], &new["spec"], Path::root("spec"));
    if old == new {
        return;
    }
    for list in ["containers", "initContainers"] {
        if items(&old[list]).len() != items(&new[list]).len() {
            faults.forbidden(&path.child(list), "pod updates may not add or remove containers");
            return;
        }
    }
    deadline(old, new, &path, faults);
    let gates = |spec: &Value| items(&spec["schedulingGates"]).to_vec();
    if gates(new).iter().any(|gate| !gates(old).contains(gate)) {
        let detail = "only deletion is allowed, but found new scheduling gates";
        faults.forbidden(&path.child("schedulingGates"), detail);
    }
    let gated = !gates(old).is_empty();
    let mut munged = new.clone();
    for list in ["containers", "initContainers"] {
        for (index, container) in items(&old[list]).iter().enumerate() {
            if let Some(target) = munged[list].get_mut(index).and_then(Value::as_object_mut)
                && let Some(image) = container.get("image")
            {
                target.insert("image".to_owned(), image.clone());
            }
        }
    }
    let mut free = vec!["activeDeadlineSeconds", "tolerations", "schedulingGates"];
    if old["terminationGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds < 0)
        && new["terminationGracePeriodSeconds"] == 1
    {
        free.push("terminationGracePeriodSeconds");
    }
    if gated {
        free.extend(["nodeSelector", "affinity"]);
    }
    added_tolerations(old, new, &path, faults);
    for field in free {
        restore(&mut munged, old, field);
    }
    if munged != *old {
        faults.forbidden(&path, &format!("{SPEC_UPDATE}\n{}", difference(old, &munged)));
    }
}

fn restore(target: &mut Value, from: &Value, field: &str) {
    let Some(target) = target.as_object_mut() else { return };
    match from.get(field) {
        Some(value) => target.insert(field.to_owned(), value.clone()),
        None => target.remove(field),
    };
}

fn deadline(old: &Value, new: &Value, path: &Path<'_>, faults: &mut Faults) {
    let field = "activeDeadlineSeconds";
    match (old[field].as_i64(), new[field].as_i64()) {
        (Some(old), Some(new)) if new > old => {
            faults.invalid(&path.child(field), new, "must be less than or equal to previous value");
        }
        (Some(_), None) => {
            faults.invalid(&path.child(field), Value::Null, "must not update from a positive integer to nil value");
        }
        _ => {}
    }
}

fn added_tolerations(old: &Value, new: &Value, path: &Path<'_>, faults: &mut Faults) {
    let without_seconds = |toleration: &Value| {
        let mut toleration = toleration.clone();
        if let Some(map) = toleration.as_object_mut() {
            map.remove("tolerationSeconds");
        }
        toleration
    };
    let kept: Vec<_> = items(&new["tolerations"]).iter().map(without_seconds).collect();
    if items(&old["tolerations"]).iter().any(|old| !kept.contains(&without_seconds(old))) {
        faults.forbidden(
            &path.child("tolerations"),
            "existing toleration can not be modified except its tolerationSeconds",
        );
    }
}

/// The fields that differ, old and new, a line each.
fn difference(old: &Value, new: &Value) -> String {
    let empty = serde_json::Map::new();
    let (old, new) = (old.as_object().unwrap_or(&empty), new.as_object().unwrap_or(&empty));
    let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
    keys.sort();
    keys.dedup();
    let mut lines = Vec::new();
    for key in keys.into_iter().filter(|key| old.get(*key) != new.get(*key)) {
        let show = |value: Option<&Value>| value.map_or_else(|| "null".to_owned(), Value::to_string);
        lines.push(format!("-\t{key}: {}\n+\t{key}: {}", show(old.get(key)), show(new.get(key))));
    }
    lines.join("\n")
}
