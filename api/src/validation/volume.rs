//! Volumes of a pod.

use std::collections::HashSet;

use serde_json::Value;

use super::container::{field_ref, relative_path, resource_ref};
use super::fault::{Faults, Path, given, items, text};
use crate::names;

const FILE_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
const HOST_PATH_TYPES: &[&str] =
    &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

/// Checks volumes and gives their names.
pub(super) fn volumes<'v>(volumes: &'v Value, path: &Path<'_>, faults: &mut Faults) -> HashSet<&'v str> {
    let mut seen = HashSet::new();
    for (index, volume) in items(volumes).iter().enumerate() {
        let path = path.index(index);
        source(volume, &path, faults);
        let (name, at) = (text(&volume["name"]), path.child("name"));
        if name.is_empty() {
            faults.required(&at, "");
        } else {
            faults.complaints(&at, name, names::dns1123_label(name));
        }
        if !name.is_empty() && !seen.insert(name) {
            faults.duplicate(&at, name);
        }
    }
    seen
}

fn source(volume: &Value, path: &Path<'_>, faults: &mut Faults) {
    let mut kinds = volume.as_object().into_iter().flatten().filter(|(key, value)| *key != "name" && given(value));
    let Some((kind, source)) = kinds.next() else {
        faults.required(path, "must specify a volume type");
        return;
    };
    for (other, _) in kinds {
        faults.forbidden(&path.child(other), "may not specify more than 1 volume type");
    }
    let at = path.child(kind);
    mode(&source["defaultMode"], &at.child("defaultMode"), faults);
    match kind.as_str() {
        "configMap" => {
            faults.required_text(&source["name"], &at.child("name"));
            keys(&source["items"], &at.child("items"), faults);
        }
        "secret" => {
            faults.required_text(&source["secretName"], &at.child("secretName"));
            keys(&source["items"], &at.child("items"), faults);
        }
        "hostPath" => host_path(source, &at, faults),
        "persistentVolumeClaim" => {
            faults.required_text(&source["claimName"], &at.child("claimName"));
        }
        "downwardAPI" => downward(&source["items"], &at.child("items"), faults),
        "projected" => projected(source, &at, faults),
        "nfs" => {
            faults.required_text(&source["server"], &at.child("server"));
            faults.required_text(&source["path"], &at.child("path"));
        }
        "csi" => {
            faults.required_text(&source["driver"], &at.child("driver"));
        }
        _ => {}
    }
}

fn host_path(source: &Value, path: &Path<'_>, faults: &mut Faults) {
    let at = path.child("path");
    if faults.required_text(&source["path"], &at) && text(&source["path"]).split('/').any(|part| part == "..") {
        faults.invalid(&at, text(&source["path"]), "must not contain '..'");
    }
    faults.one_of(&source["type"], &path.child("type"), HOST_PATH_TYPES);
}

fn mode(mode: &Value, path: &Path<'_>, faults: &mut Faults) {
    if let Some(mode) = mode.as_i64().filter(|mode| !(0..=0o777).contains(mode)) {
        faults.invalid(path, mode, "must be a number between 0 and 0777 (octal), both inclusive");
    }
}

fn keys(list: &Value, path: &Path<'_>, faults: &mut Faults) {
    for (index, item) in items(list).iter().enumerate() {
        let path = path.index(index);
        faults.required_text(&item["key"], &path.child("key"));
        file(item, &path, faults);
    }
}

fn file(item: &Value, path: &Path<'_>, faults: &mut Faults) {
    if faults.required_text(&item["path"], &path.child("path")) {
        relative_path(text(&item["path"]), &path.child("path"), faults);
    }
    mode(&item["mode"], &path.child("mode"), faults);
}

fn downward(list: &Value, path: &Path<'_>, faults: &mut Faults) {
    for (index, item) in items(list).iter().enumerate() {
        let path = path.index(index);
        file(item, &path, faults);
        match (given(&item["fieldRef"]), given(&item["resourceFieldRef"])) {
            (true, true) => {
                faults.invalid(&path, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously");
            }
            (true, false) => field_ref(&item["fieldRef"], &path.child("fieldRef"), FILE_FIELDS, faults),
            (false, true) => {
                let at = path.child("resourceFieldRef");
                faults.required_text(&item["resourceFieldRef"]["containerName"], &at.child("containerName"));
                resource_ref(&item["resourceFieldRef"], &at, faults);
            }
            (false, false) => faults.required(&path, "one of fieldRef and resourceFieldRef is required"),
        }
    }
}

fn projected(source: &Value, path: &Path<'_>, faults: &mut Faults) {
    let list = path.child("sources");
    for (index, source) in items(&source["sources"]).iter().enumerate() {
        let path = list.index(index);
        let count = source.as_object().map_or(0, serde_json::Map::len);
        if count > 1 {
            faults.forbidden(&path, "may not specify more than 1 volume type per source");
        }
        for kind in ["secret", "configMap"] {
            if given(&source[kind]) {
                let at = path.child(kind);
                faults.required_text(&source[kind]["name"], &at.child("name"));
                keys(&source[kind]["items"], &at.child("items"), faults);
            }
        }
        downward(&source["downwardAPI"]["items"], &path.child("downwardAPI").child("items"), faults);
        let token = &source["serviceAccountToken"];
        if given(token) {
            let at = path.child("serviceAccountToken");
            if token["expirationSeconds"].as_i64().is_some_and(|seconds| seconds < 600) {
                let seconds = token["expirationSeconds"].clone();
                faults.invalid(
                    &at.child("expirationSeconds"),
                    seconds,
                    "may not specify a duration less than 10 minutes",
                );
            }
            faults.required_text(&token["path"], &at.child("path"));
        }
    }
}
