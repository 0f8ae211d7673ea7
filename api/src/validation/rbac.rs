//! Roles and their bindings.

use serde_json::Value;

use super::fault::{Faults, Path, given, items, text};
use super::selector;
use crate::names;

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) fn check(kind: &str, object: &Value, faults: &mut Faults) {
    match kind {
        "Role" | "ClusterRole" => {
            let rules = Path::root("rules");
            for (index, value) in items(&object["rules"]).iter().enumerate() {
                rule(value, kind == "Role", &rules.index(index), faults);
            }
            let aggregation = &object["aggregationRule"];
            if given(aggregation) {
                let path = Path::root("aggregationRule");
                let list = path.child("clusterRoleSelectors");
                if items(&aggregation["clusterRoleSelectors"]).is_empty() {
                    faults.required(&list, "at least one clusterRoleSelector required if aggregationRule is non-nil");
                }
                for (index, value) in items(&aggregation["clusterRoleSelectors"]).iter().enumerate() {
                    selector::label_selector(value, &list.index(index), faults);
                }
            }
        }
        _ => binding(kind, object, faults),
    }
}

fn rule(rule: &Value, namespaced: bool, path: &Path<'_>, faults: &mut Faults) {
    let some = |field: &str| !items(&rule[field]).is_empty();
    if !some("verbs") {
        faults.required(&path.child("verbs"), "verbs must contain at least one value");
    }
    if some("nonResourceURLs") {
        let at = path.child("nonResourceURLs");
        if namespaced {
            faults.invalid(&at, rule["nonResourceURLs"].clone(), "namespaced rules cannot apply to non-resource URLs");
        }
        if some("apiGroups") || some("resources") || some("resourceNames") {
            let detail = "rules cannot apply to both regular resources and non-resource URLs";
            faults.invalid(&at, rule["nonResourceURLs"].clone(), detail);
        }
        return;
    }
    if !some("apiGroups") {
        faults.required(&path.child("apiGroups"), "resource rules must supply at least one api group");
    }
    if !some("resources") {
        faults.required(&path.child("resources"), "resource rules must supply at least one resource");
    }
}

fn binding(kind: &str, object: &Value, faults: &mut Faults) {
    let (role, path) = (&object["roleRef"], Path::root("roleRef"));
    if text(&role["apiGroup"]) != GROUP {
        faults.not_supported(&path.child("apiGroup"), text(&role["apiGroup"]), &[GROUP]);
    }
    let kinds: &[&str] = if kind == "RoleBinding" { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    if !kinds.contains(&text(&role["kind"])) {
        faults.not_supported(&path.child("kind"), text(&role["kind"]), kinds);
    }
    let name = text(&role["name"]);
    if name.is_empty() {
        faults.required(&path.child("name"), "");
    } else {
        faults.complaints(&path.child("name"), name, names::path_segment(name));
    }
    let list = Path::root("subjects");
    for (index, value) in items(&object["subjects"]).iter().enumerate() {
        subject(value, kind == "RoleBinding", &list.index(index), faults);
    }
}

fn subject(subject: &Value, namespaced: bool, path: &Path<'_>, faults: &mut Faults) {
    let group = text(&subject["apiGroup"]);
    let name = text(&subject["name"]);
    if name.is_empty() {
        faults.required(&path.child("name"), "");
    }
    match text(&subject["kind"]) {
        "ServiceAccount" => {
            if !name.is_empty() {
                faults.complaints(&path.child("name"), name, names::dns1123_subdomain(name));
            }
            if !group.is_empty() {
                faults.not_supported(&path.child("apiGroup"), group, &[""]);
            }
            if !namespaced && text(&subject["namespace"]).is_empty() {
                faults.required(&path.child("namespace"), "");
            }
        }
        "User" | "Group" => {
            if group != GROUP {
                faults.not_supported(&path.child("apiGroup"), group, &[GROUP]);
            }
        }
        other => faults.not_supported(&path.child("kind"), other, &["ServiceAccount", "User", "Group"]),
    }
}

pub(super) fn binding_update(old: &Value, new: &Value, faults: &mut Faults) {
    if old["roleRef"] != new["roleRef"] {
        faults.invalid(&Path::root("roleRef"), new["roleRef"].clone(), "cannot change roleRef");
    }
}
