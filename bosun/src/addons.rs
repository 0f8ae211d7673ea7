//! What the server puts into a new cluster by itself: the manifests under `deploy/` that it carries inside.
//!
//! An object that is missing is created; one whose manifest changed since (told by a hash in an annotation) is patched;
//! one that a person made without us is left alone.

use std::time::Duration;

use anyhow::{Context as _, Result};
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind, TypeMeta};
use kube::{Api, Client};
use serde::Deserialize as _;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const HASH: &str = "bosun.dev/addon-hash";
const DEADLINE: Duration = Duration::from_secs(10);

/// One set of manifests.
pub(crate) struct Addon {
    /// What `--disable` calls it.
    pub(crate) name: &'static str,
    /// Its YAML documents.
    pub(crate) manifests: &'static str,
}

/// All sets, in the order they are applied.
pub(crate) const ADDONS: &[Addon] = &[
    Addon { name: "node-access", manifests: include_str!("../../deploy/node-access.yaml") },
    Addon { name: "dns", manifests: include_str!("../../deploy/dns.yaml") },
];

/// What replaces the defaults that stand in the manifests, which are whole by themselves for `kubectl apply`.
pub(crate) struct Values<'a> {
    /// The cluster DNS's address.
    pub(crate) cluster_dns: &'a str,
    /// The cluster's domain.
    pub(crate) cluster_domain: &'a str,
}

/// Brings the cluster to what `addon` says.
///
/// # Errors
/// A manifest is broken, or the API server refuses an object; the text names it.
pub(crate) async fn apply(client: &Client, addon: &Addon, values: &Values<'_>) -> Result<()> {
    for object in documents(addon, values)? {
        let kind = object.types.as_ref().map(|t| t.kind.clone()).unwrap_or_default();
        let name = object.metadata.name.clone().unwrap_or_default();
        let what = format!("addon {}: {kind} {name}", addon.name);
        tokio::time::timeout(DEADLINE, apply_one(client, object)).await.context(what.clone())?.context(what)?;
    }
    Ok(())
}

async fn apply_one(client: &Client, object: DynamicObject) -> Result<()> {
    let types = object.types.clone().context("no apiVersion and kind")?;
    let name = object.metadata.name.clone().context("no name")?;
    let resource = ApiResource::from_gvk(&gvk(&types)?);
    let api: Api<DynamicObject> = match &object.metadata.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let wanted = hash_of(&object);
    match api.get_opt(&name).await? {
        None => {
            api.create(&PostParams::default(), &object).await?;
        }
        Some(there) => {
            let kept = hash_of(&there);
            if kept.is_some() && kept != wanted {
                api.patch(&name, &PatchParams::default(), &Patch::Merge(&object)).await?;
            }
        }
    }
    Ok(())
}

fn hash_of(object: &DynamicObject) -> Option<String> {
    object.metadata.annotations.as_ref()?.get(HASH).cloned()
}

fn gvk(types: &TypeMeta) -> Result<GroupVersionKind> {
    GroupVersionKind::try_from(types).with_context(|| format!("apiVersion {:?}", types.api_version))
}

fn documents(addon: &Addon, values: &Values<'_>) -> Result<Vec<DynamicObject>> {
    let text =
        addon.manifests.replace("10.96.0.10", values.cluster_dns).replace("cluster.local", values.cluster_domain);
    let mut objects = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(&text) {
        let mut value = Value::deserialize(document).with_context(|| format!("addon {}", addon.name))?;
        if value.is_null() {
            continue;
        }
        let hash: String = Sha256::digest(value.to_string()).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        value["metadata"]["annotations"][HASH] = json!(hash);
        objects.push(serde_json::from_value(value).with_context(|| format!("addon {}", addon.name))?);
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clusters_own_values_replace_the_defaults() {
        let values = Values { cluster_dns: "10.9.0.10", cluster_domain: "corp.example" };
        let dns = ADDONS.iter().find(|addon| addon.name == "dns").unwrap();
        let service =
            documents(dns, &values).unwrap().into_iter().find(|o| o.types.as_ref().unwrap().kind == "Service");
        assert_eq!(service.unwrap().data["spec"]["clusterIP"], "10.9.0.10");
    }

    #[test]
    fn every_manifest_we_carry_can_be_read() {
        let values = Values { cluster_dns: "10.96.0.10", cluster_domain: "cluster.local" };
        for addon in ADDONS {
            let objects = documents(addon, &values).unwrap();
            assert!(!objects.is_empty(), "{}", addon.name);
            for object in objects {
                assert!(gvk(object.types.as_ref().unwrap()).is_ok());
                assert!(hash_of(&object).is_some());
            }
        }
    }
}
