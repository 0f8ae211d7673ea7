//! ConfigMaps and Secrets.

use serde_json::Value;

use super::fault::{Faults, Path, entries, given, text};
use crate::names;

const LIMIT: usize = 1024 * 1024;

pub(super) fn config_map(object: &Value, faults: &mut Faults) {
    let mut size = 0;
    for (field, binary) in [("data", false), ("binaryData", true)] {
        let path = Path::root(field);
        for (key, value) in entries(&object[field]) {
            faults.complaints(&path.key(key), key, names::config_map_key(key));
            if !binary && given(&object["binaryData"][key]) {
                let detail = "duplicate of key present in binaryData";
                faults.invalid(&path.key(key), key, detail);
            }
            size += value_size(value, binary);
        }
    }
    if size > LIMIT {
        faults.too_long(&Path::root(""), LIMIT);
    }
}

fn value_size(value: &Value, base64: bool) -> usize {
    let length = text(value).len();
    if base64 { length / 4 * 3 } else { length }
}

pub(super) fn secret(object: &Value, faults: &mut Faults) {
    let path = Path::root("data");
    let mut size = 0;
    for (key, value) in entries(&object["data"]) {
        faults.complaints(&path.key(key), key, names::config_map_key(key));
        size += value_size(value, true);
    }
    if size > LIMIT {
        faults.too_long(&path, LIMIT);
    }
    let mut need = |key: &str| {
        if !given(&object["data"][key]) {
            faults.required(&path.key(key), "");
        }
    };
    match text(&object["type"]) {
        "kubernetes.io/dockercfg" => need(".dockercfg"),
        "kubernetes.io/dockerconfigjson" => need(".dockerconfigjson"),
        "kubernetes.io/ssh-auth" => need("ssh-privatekey"),
        "kubernetes.io/tls" => {
            need("tls.crt");
            need("tls.key");
        }
        "kubernetes.io/basic-auth" if !given(&object["data"]["username"]) && !given(&object["data"]["password"]) => {
            need("username");
            need("password");
        }
        "kubernetes.io/service-account-token" => {
            let metadata = Path::root("metadata");
            let annotations = metadata.child("annotations");
            let key = "kubernetes.io/service-account.name";
            if text(&object["metadata"]["annotations"][key]).is_empty() {
                faults.required(&annotations.key(key), "");
            }
        }
        _ => {}
    }
}

/// What is marked immutable stays as it is, mark included.
pub(super) fn update(old: &Value, new: &Value, fields: &[&str], faults: &mut Faults) {
    if old["immutable"] != true {
        return;
    }
    let detail = "field is immutable when `immutable` is set";
    if new["immutable"] != true {
        faults.forbidden(&Path::root("immutable"), detail);
    }
    for field in fields {
        if old[*field] != new[*field] {
            faults.forbidden(&Path::root(field), detail);
        }
    }
}
