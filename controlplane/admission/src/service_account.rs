//! ServiceAccount: every pod runs as one, and finds its token, the cluster's CA and its namespace under one folder.

use bosun_api::status::ApiError;
use rand::Rng;
use serde_json::{Value, json};

use crate::{Attributes, World};

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
const MIRROR: &str = "kubernetes.io/config.mirror";
/// A bit over an hour: the value by which the API server knows a token that it may extend.
const TOKEN_SECONDS: i64 = 3607;

pub(crate) fn admit(attributes: &Attributes<'_>, object: &mut Value, world: World<'_>) -> Result<(), ApiError> {
    if !attributes.creates("", "pods") {
        return Ok(());
    }
    if object["metadata"]["annotations"].get(MIRROR).is_some() {
        return mirror(attributes, object);
    }
    if object["spec"]["serviceAccountName"].as_str().unwrap_or_default().is_empty() {
        object["spec"]["serviceAccountName"] = json!("default");
    }
    // The old name of the field, which stock fills as well.
    object["spec"]["serviceAccount"] = object["spec"]["serviceAccountName"].clone();
    let name = object["spec"]["serviceAccountName"].as_str().unwrap_or_default().to_owned();
    let account = (world.get)("", "serviceaccounts", attributes.namespace, &name).ok_or_else(|| {
        let missing = ApiError::not_found("", "serviceaccounts", &name);
        let why = format!("error looking up service account {}/{name}: {}", attributes.namespace, missing.message());
        attributes.forbidden(object, &why)
    })?;
    let wants_token = object["spec"]["automountServiceAccountToken"]
        .as_bool()
        .or(account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if wants_token {
        mount_token(&mut object["spec"]);
    }
    let none_given = object["spec"]["imagePullSecrets"].as_array().is_none_or(Vec::is_empty);
    if none_given && account["imagePullSecrets"].as_array().is_some_and(|secrets| !secrets.is_empty()) {
        object["spec"]["imagePullSecrets"] = account["imagePullSecrets"].clone();
    }
    Ok(())
}

/// A mirror pod stands for a static one, which has no account.
fn mirror(attributes: &Attributes<'_>, object: &Value) -> Result<(), ApiError> {
    if object["spec"]["serviceAccountName"].as_str().is_some_and(|name| !name.is_empty()) {
        return Err(attributes.forbidden(object, "a mirror pod may not reference service accounts"));
    }
    let volumes = object["spec"]["volumes"].as_array();
    let projects_token = |volume: &Value| {
        let sources = volume["projected"]["sources"].as_array();
        sources.is_some_and(|sources| sources.iter().any(|s| !s["serviceAccountToken"].is_null()))
    };
    if volumes.is_some_and(|volumes| volumes.iter().any(projects_token)) {
        return Err(attributes.forbidden(object, "a mirror pod may not use ServiceAccountToken volume projections"));
    }
    Ok(())
}

fn mount_token(spec: &mut Value) {
    let volumes = spec["volumes"].as_array().into_iter().flatten();
    let existing = volumes
        .filter_map(|volume| volume["name"].as_str())
        .find(|name| name.starts_with(VOLUME_PREFIX))
        .map(str::to_owned);
    let name = existing.clone().unwrap_or_else(|| format!("{VOLUME_PREFIX}{}", suffix()));
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        // Not `spec[list]`: to index what is not there would write a null.
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            mounted |= mount_in(container, &name);
        }
    }
    if mounted && existing.is_none() {
        let volume = volume(&name);
        match spec["volumes"].as_array_mut() {
            Some(volumes) => volumes.push(volume),
            None => spec["volumes"] = json!([volume]),
        }
    }
}

/// Mounts the volume unless the container has something of its own at that place. Whether it was mounted.
fn mount_in(container: &mut Value, volume: &str) -> bool {
    let mount = json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH});
    match container["volumeMounts"].as_array_mut() {
        Some(mounts) if mounts.iter().any(|m| m["mountPath"] == MOUNT_PATH) => false,
        Some(mounts) => {
            mounts.push(mount);
            true
        }
        None => {
            container["volumeMounts"] = json!([mount]);
            true
        }
    }
}

fn volume(name: &str) -> Value {
    json!({
        "name": name,
        "projected": {
            "defaultMode": 0o644,
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{
                    "path": "namespace",
                    "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                }]}},
            ],
        },
    })
}

/// Five letters and digits that make no words, as stock's generated names end.
fn suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut rng = rand::rng();
    (0..5).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect()
}
