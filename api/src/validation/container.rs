//! Containers: names, images, ports, environment, mounts, resources, probes.

use std::collections::HashSet;

use serde_json::Value;

use super::fault::{Faults, Path, entries, given, items, text};
use crate::names;
use crate::quantity::Quantity;

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const ENV_RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// What containers of one pod share.
pub(super) struct Scope<'v> {
    /// The pod's volumes.
    pub(super) volumes: HashSet<&'v str>,
    /// Names taken so far.
    pub(super) names: HashSet<&'v str>,
    /// Whether the pod is in the host's network.
    pub(super) host_network: bool,
}

/// A container of any sort.
pub(super) fn container<'v>(container: &'v Value, path: &Path<'_>, scope: &mut Scope<'v>, faults: &mut Faults) {
    name_and_image(container, path, scope, faults);
    faults.one_of(&container["imagePullPolicy"], &path.child("imagePullPolicy"), &["Always", "IfNotPresent", "Never"]);
    faults.one_of(
        &container["terminationMessagePolicy"],
        &path.child("terminationMessagePolicy"),
        &["FallbackToLogsOnError", "File"],
    );
    ports(&container["ports"], &path.child("ports"), scope.host_network, faults);
    for (index, variable) in items(&container["env"]).iter().enumerate() {
        env(variable, &path.child("env").index(index), faults);
    }
    for (index, source) in items(&container["envFrom"]).iter().enumerate() {
        env_from(source, &path.child("envFrom").index(index), faults);
    }
    mounts(&container["volumeMounts"], &path.child("volumeMounts"), scope, faults);
    resources(&container["resources"], &path.child("resources"), faults);
    for (name, may_need_more) in [("livenessProbe", false), ("readinessProbe", true), ("startupProbe", false)] {
        if given(&container[name]) {
            probe(&container[name], &path.child(name), may_need_more, faults);
        }
    }
    for name in ["postStart", "preStop"] {
        let hook = &container["lifecycle"][name];
        if given(hook) {
            let lifecycle = path.child("lifecycle");
            handler(hook, &lifecycle.child(name), &["exec", "httpGet", "tcpSocket", "sleep"], faults);
        }
    }
}

fn name_and_image<'v>(container: &'v Value, path: &Path<'_>, scope: &mut Scope<'v>, faults: &mut Faults) {
    let (name, at) = (text(&container["name"]), path.child("name"));
    if name.is_empty() {
        faults.required(&at, "");
    } else {
        faults.complaints(&at, name, names::dns1123_label(name));
        if !scope.names.insert(name) {
            faults.duplicate(&at, name);
        }
    }
    let (image, at) = (text(&container["image"]), path.child("image"));
    if image.is_empty() {
        faults.required(&at, "");
    } else if image.trim() != image {
        faults.invalid(&at, image, "must not have leading or trailing whitespace");
    }
}

fn ports(ports: &Value, path: &Path<'_>, host_network: bool, faults: &mut Faults) {
    let mut names_seen = HashSet::new();
    for (index, port) in items(ports).iter().enumerate() {
        let path = path.index(index);
        let name = text(&port["name"]);
        if !name.is_empty() {
            let complaints = names::port_name(name);
            if !complaints.is_empty() {
                faults.complaints(&path.child("name"), name, complaints);
            } else if !names_seen.insert(name) {
                faults.duplicate(&path.child("name"), name);
            }
        }
        match port["containerPort"].as_i64().unwrap_or_default() {
            0 => faults.required(&path.child("containerPort"), ""),
            number => port_number(number, &path.child("containerPort"), faults),
        }
        let host = port["hostPort"].as_i64().unwrap_or_default();
        if host != 0 {
            port_number(host, &path.child("hostPort"), faults);
            if host_network && port["containerPort"].as_i64() != Some(host) {
                faults.invalid(&path.child("hostPort"), host, "must match `containerPort` when `hostNetwork` is true");
            }
        }
        faults.required_one_of(&port["protocol"], &path.child("protocol"), PROTOCOLS);
    }
}

/// A port's number.
pub(super) fn port_number(number: i64, path: &Path<'_>, faults: &mut Faults) {
    for complaint in names::port_number(number) {
        faults.invalid(path, number, &complaint);
    }
}

/// A port by number or name.
pub(super) fn port_or_name(port: &Value, path: &Path<'_>, faults: &mut Faults) {
    match port {
        Value::String(name) => faults.complaints(path, name, names::port_name(name)),
        other => port_number(other.as_i64().unwrap_or_default(), path, faults),
    }
}

fn env(variable: &Value, path: &Path<'_>, faults: &mut Faults) {
    let name = text(&variable["name"]);
    if name.is_empty() {
        faults.required(&path.child("name"), "");
    } else {
        faults.complaints(&path.child("name"), name, names::env_var_name(name));
    }
    let source = &variable["valueFrom"];
    if !given(source) {
        return;
    }
    let at = path.child("valueFrom");
    let chosen: Vec<_> = entries(source).collect();
    if chosen.is_empty() {
        let detail =
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
        faults.invalid(&at, "", detail);
    } else if !text(&variable["value"]).is_empty() {
        faults.invalid(&at, "", "may not be specified when `value` is not empty");
    } else if chosen.len() > 1 {
        faults.invalid(&at, "", "may not have more than one field specified at a time");
    }
    for (kind, reference) in chosen {
        let at = at.child(kind);
        match kind {
            "fieldRef" => field_ref(reference, &at, ENV_FIELDS, faults),
            "resourceFieldRef" => resource_ref(reference, &at, faults),
            "fileKeyRef" => file_ref(reference, &at, faults),
            _ => key_ref(reference, &at, faults),
        }
    }
}

/// A field of the pod by its path.
pub(super) fn field_ref(field: &Value, path: &Path<'_>, supported: &[&str], faults: &mut Faults) {
    let name = text(&field["fieldPath"]);
    let at = path.child("fieldPath");
    if name.is_empty() {
        faults.required(&at, "");
        return;
    }
    match name.split_once('[').and_then(|(map, key)| Some((map, key.strip_suffix(']')?))) {
        Some(("metadata.labels" | "metadata.annotations", key)) => {
            let key = key.trim_matches(['\'', '"']);
            faults.complaints(&at, key, names::qualified_name(&key.to_lowercase()));
        }
        Some(_) => faults.invalid(&at, name, "does not support subscript"),
        None if !supported.contains(&name) => faults.not_supported(&at, name, supported),
        None => {}
    }
}

/// A resource of a container.
pub(super) fn resource_ref(field: &Value, path: &Path<'_>, faults: &mut Faults) {
    let name = text(&field["resource"]);
    if name.is_empty() {
        faults.required(&path.child("resource"), "");
    } else if !ENV_RESOURCES.contains(&name)
        && !name.starts_with("limits.hugepages-")
        && !name.starts_with("requests.hugepages-")
    {
        faults.not_supported(&path.child("resource"), name, ENV_RESOURCES);
    }
}

/// A key in a file of a volume (KEP-3721).
fn file_ref(reference: &Value, path: &Path<'_>, faults: &mut Faults) {
    for field in ["volumeName", "path", "key"] {
        if text(&reference[field]).is_empty() {
            faults.required(&path.child(field), "");
        }
    }
    let file = text(&reference["path"]);
    if file.starts_with('/') {
        faults.invalid(&path.child("path"), file, "must be a relative path");
    } else if file.split('/').any(|part| part == "..") {
        faults.invalid(&path.child("path"), file, "must not contain '..'");
    }
    let key = text(&reference["key"]);
    if !key.is_empty() {
        faults.complaints(&path.child("key"), key, names::env_var_name(key));
    }
}

fn key_ref(reference: &Value, path: &Path<'_>, faults: &mut Faults) {
    let name = text(&reference["name"]);
    if name.is_empty() {
        faults.required(&path.child("name"), "");
    } else {
        faults.complaints(&path.child("name"), name, names::dns1123_subdomain(name));
    }
    let key = text(&reference["key"]);
    if key.is_empty() {
        faults.required(&path.child("key"), "");
    } else {
        faults.complaints(&path.child("key"), key, names::config_map_key(key));
    }
}

fn env_from(source: &Value, path: &Path<'_>, faults: &mut Faults) {
    let prefix = text(&source["prefix"]);
    if !prefix.is_empty() {
        faults.complaints(&path.child("prefix"), prefix, names::env_var_name(prefix));
    }
    let chosen: Vec<_> = ["configMapRef", "secretRef"].into_iter().filter(|kind| given(&source[*kind])).collect();
    match chosen.as_slice() {
        [] => faults.invalid(path, "", "must specify one of: `configMapRef` or `secretRef`"),
        [kind] => {
            faults.required_text(&source[*kind]["name"], &path.child(kind).child("name"));
        }
        _ => faults.invalid(path, "", "may not have more than one field specified at a time"),
    }
}

fn mounts(mounts: &Value, path: &Path<'_>, scope: &Scope<'_>, faults: &mut Faults) {
    let mut seen = HashSet::new();
    for (index, mount) in items(mounts).iter().enumerate() {
        let path = path.index(index);
        let name = text(&mount["name"]);
        if name.is_empty() {
            faults.required(&path.child("name"), "");
        } else if !scope.volumes.contains(name) {
            faults.not_found(&path.child("name"), name);
        }
        let at = text(&mount["mountPath"]);
        if at.is_empty() {
            faults.required(&path.child("mountPath"), "");
        } else if !seen.insert(at) {
            faults.invalid(&path.child("mountPath"), at, "must be unique");
        }
        for field in ["subPath", "subPathExpr"] {
            let inner = text(&mount[field]);
            if !inner.is_empty() {
                relative_path(inner, &path.child(field), faults);
            }
        }
        if !text(&mount["subPath"]).is_empty() && !text(&mount["subPathExpr"]).is_empty() {
            faults.invalid(
                &path.child("subPathExpr"),
                text(&mount["subPathExpr"]),
                "subPathExpr and subPath are mutually exclusive",
            );
        }
    }
}

/// A path that stays below where it begins.
pub(super) fn relative_path(inner: &str, path: &Path<'_>, faults: &mut Faults) {
    if inner.starts_with('/') {
        faults.invalid(path, inner, "must be a relative path");
    }
    if inner.split('/').any(|part| part == "..") {
        faults.invalid(path, inner, "must not contain '..'");
    }
}

/// Requests and limits.
pub(super) fn resources(resources: &Value, path: &Path<'_>, faults: &mut Faults) {
    let amount = |value: &Value| text(value).parse::<Quantity>().unwrap_or_default();
    let (limits, requests) = (path.child("limits"), path.child("requests"));
    for (list, at) in [(&resources["limits"], &limits), (&resources["requests"], &requests)] {
        for (name, value) in entries(list) {
            let at = at.key(name);
            resource_name(name, &at, faults);
            if amount(value).sign() < 0 {
                faults.invalid(&at, text(value), "must be greater than or equal to 0");
            }
            if !name.contains('/') || name.contains("kubernetes.io/") {
                continue;
            }
            if amount(value).nano_value() % 1_000_000_000 != 0 && amount(value) < Quantity::from_value(1 << 33) {
                faults.invalid(&at, text(value), "must be an integer");
            }
        }
    }
    for (name, request) in entries(&resources["requests"]) {
        let limit = &resources["limits"][name];
        if !given(limit) {
            if name.starts_with("hugepages-") || name.contains('/') {
                faults.required(&limits, "Limit must be set for non overcommitable resources");
            }
            continue;
        }
        if (name.starts_with("hugepages-") || name.contains('/')) && amount(request) != amount(limit) {
            faults.invalid(&requests, text(request), &format!("must be equal to {name} limit of {}", text(limit)));
        } else if amount(request) > amount(limit) {
            let detail = format!("must be less than or equal to {name} limit of {}", text(limit));
            faults.invalid(&requests, text(request), &detail);
        }
    }
}

fn resource_name(name: &str, path: &Path<'_>, faults: &mut Faults) {
    faults.complaints(path, name, names::qualified_name(name));
    let standard = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    if !name.contains('/') && !standard {
        faults.invalid(path, name, "must be a standard resource type or fully qualified");
        faults.invalid(path, name, "must be a standard resource for containers");
    }
}

fn probe(probe: &Value, path: &Path<'_>, may_need_more: bool, faults: &mut Faults) {
    handler(probe, path, &["exec", "httpGet", "tcpSocket", "grpc"], faults);
    for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        faults.not_negative(&probe[field], &path.child(field));
    }
    let threshold = probe["successThreshold"].as_i64().unwrap_or(1);
    if !may_need_more && threshold != 1 {
        faults.invalid(&path.child("successThreshold"), threshold, "must be 1");
    }
    if let Some(seconds) = probe["terminationGracePeriodSeconds"].as_i64().filter(|seconds| *seconds <= 0) {
        faults.invalid(&path.child("terminationGracePeriodSeconds"), seconds, "must be greater than 0");
    }
}

fn handler(handler: &Value, path: &Path<'_>, kinds: &[&str], faults: &mut Faults) {
    let chosen: Vec<_> = kinds.iter().filter(|kind| given(&handler[**kind])).collect();
    let Some((first, more)) = chosen.split_first() else {
        faults.required(path, "must specify a handler type");
        return;
    };
    for kind in more {
        faults.forbidden(&path.child(kind), "may not specify more than 1 handler type");
    }
    let (action, at) = (&handler[**first], path.child(first));
    match **first {
        "exec" if items(&action["command"]).is_empty() => faults.required(&at.child("command"), ""),
        "httpGet" => {
            faults.required_text(&action["path"], &at.child("path"));
            port_or_name(&action["port"], &at.child("port"), faults);
            faults.one_of(&action["scheme"], &at.child("scheme"), &["HTTP", "HTTPS"]);
            for (index, header) in items(&action["httpHeaders"]).iter().enumerate() {
                let name = text(&header["name"]);
                faults.complaints(
                    &at.child("httpHeaders").index(index).child("name"),
                    name,
                    names::http_header_name(name),
                );
            }
        }
        "tcpSocket" => port_or_name(&action["port"], &at.child("port"), faults),
        "grpc" => port_number(action["port"].as_i64().unwrap_or_default(), &at.child("port"), faults),
        _ => {}
    }
}
