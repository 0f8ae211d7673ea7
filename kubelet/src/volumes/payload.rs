//! The files of configMap, secret, projected and downwardAPI volumes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, ServiceAccountTokenProjection, Volume, VolumeProjection,
};

use super::atomic::{File, Payload};
use super::trust_bundle;
use crate::make::{Node, downward};
use crate::objects::{Objects, TokenRequest};
use crate::pod::spec;

const DEFAULT_MODE: i32 = 0o644;
const NO_CONFIG_KEY: &str = "configmap references non-existent config key";
const NO_SECRET_KEY: &str = "references non-existent secret key";

/// The files of a volume and when to gather them anew at the latest.
#[derive(Default)]
pub(super) struct Gathered {
    pub(super) files: Payload,
    pub(super) refresh: Option<Timestamp>,
}

type Data = BTreeMap<String, Vec<u8>>;

pub(super) async fn gather(
    pod: &Pod,
    node: &Arc<Node>,
    objects: &dyn Objects,
    volume: &Volume,
) -> Result<Gathered, String> {
    let mut out = Gathered::default();
    if let Some(source) = &volume.config_map {
        let optional = source.optional == Some(true);
        let data = config_map(pod, objects, &source.name, optional).await?;
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        select(&mut out.files, data, source.items.as_deref(), mode, optional, NO_CONFIG_KEY)?;
    } else if let Some(source) = &volume.secret {
        let name = source.secret_name.as_deref().unwrap_or_default();
        let optional = source.optional == Some(true);
        let data = secret(pod, objects, name, optional).await?;
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        select(&mut out.files, data, source.items.as_deref(), mode, optional, NO_SECRET_KEY)?;
    } else if let Some(source) = &volume.downward_api {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        downward_files(&mut out.files, pod, node, source.items.as_deref(), mode)?;
    } else if let Some(source) = &volume.projected {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        for part in source.sources.iter().flatten() {
            project(&mut out, pod, node, objects, part, mode).await?;
        }
    }
    Ok(out)
}

async fn project(
    out: &mut Gathered,
    pod: &Pod,
    node: &Arc<Node>,
    objects: &dyn Objects,
    part: &VolumeProjection,
    mode: i32,
) -> Result<(), String> {
    if let Some(source) = &part.config_map {
        let optional = source.optional == Some(true);
        let data = config_map(pod, objects, &source.name, optional).await?;
        select(&mut out.files, data, source.items.as_deref(), mode, optional, NO_CONFIG_KEY)?;
    }
    if let Some(source) = &part.secret {
        let optional = source.optional == Some(true);
        let data = secret(pod, objects, &source.name, optional).await?;
        select(&mut out.files, data, source.items.as_deref(), mode, optional, NO_SECRET_KEY)?;
    }
    if let Some(source) = &part.downward_api {
        downward_files(&mut out.files, pod, node, source.items.as_deref(), mode)?;
    }
    if let Some(source) = &part.service_account_token {
        let renew = token(&mut out.files, pod, objects, source, mode).await?;
        out.refresh = Some(out.refresh.map_or(renew, |known| known.min(renew)));
    }
    if let Some(source) = &part.cluster_trust_bundle {
        let again = trust_bundle::project(&mut out.files, objects, source, mode).await?;
        out.refresh = Some(out.refresh.map_or(again, |known| known.min(again)));
    }
    if part.pod_certificate.is_some() {
        return Err("projected sources of kind podCertificate are not supported by this kubelet".to_owned());
    }
    Ok(())
}

async fn config_map(pod: &Pod, objects: &dyn Objects, name: &str, optional: bool) -> Result<Option<Data>, String> {
    match objects.config_map(spec::namespace(pod), name).await? {
        Some(map) => Ok(Some(config_map_data(map))),
        None if optional => Ok(None),
        None => Err(format!("configmap {name:?} not found")),
    }
}

fn config_map_data(map: ConfigMap) -> Data {
    let text = map.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.into_bytes()));
    let binary = map.binary_data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0));
    text.chain(binary).collect()
}

async fn secret(pod: &Pod, objects: &dyn Objects, name: &str, optional: bool) -> Result<Option<Data>, String> {
    match objects.secret(spec::namespace(pod), name).await? {
        Some(Secret { data, .. }) => Ok(Some(data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)).collect())),
        None if optional => Ok(None),
        None => Err(format!("secret {name:?} not found")),
    }
}

/// Puts the chosen keys (all, if none are named) into the volume.
fn select(
    files: &mut Payload,
    data: Option<Data>,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: bool,
    missing: &str,
) -> Result<(), String> {
    let Some(mut data) = data else { return Ok(()) };
    let file = |bytes: Vec<u8>, mode: i32| File { bytes, mode: mode as u32, uid: None };
    match items.filter(|items| !items.is_empty()) {
        None => files.extend(data.into_iter().map(|(key, bytes)| (PathBuf::from(key), file(bytes, mode)))),
        Some(items) => {
            for item in items {
                match data.get_mut(&item.key) {
                    Some(bytes) => {
                        let path = PathBuf::from(&item.path);
                        files.insert(path, file(bytes.clone(), item.mode.unwrap_or(mode)));
                    }
                    None if optional => {}
                    None => return Err(format!("{missing}: {}", item.key)),
                }
            }
        }
    }
    Ok(())
}

fn downward_files(
    files: &mut Payload,
    pod: &Pod,
    node: &Node,
    items: Option<&[DownwardAPIVolumeFile]>,
    mode: i32,
) -> Result<(), String> {
    for item in items.unwrap_or_default() {
        let value = match (&item.field_ref, &item.resource_field_ref) {
            (Some(selector), _) => downward::field(pod, node, &[], selector)?,
            (None, Some(selector)) => downward::resource(pod, node, "", selector)?,
            (None, None) => return Err(format!("{}: neither fieldRef nor resourceFieldRef is given", item.path)),
        };
        let file = File { bytes: value.into_bytes(), mode: item.mode.unwrap_or(mode) as u32, uid: None };
        files.insert(PathBuf::from(&item.path), file);
    }
    Ok(())
}

async fn token(
    files: &mut Payload,
    pod: &Pod,
    objects: &dyn Objects,
    source: &ServiceAccountTokenProjection,
    mode: i32,
) -> Result<Timestamp, String> {
    let request = TokenRequest {
        namespace: spec::namespace(pod).to_owned(),
        service_account: spec::spec(pod).service_account_name.clone().unwrap_or_else(|| "default".to_owned()),
        pod: spec::name(pod).to_owned(),
        pod_uid: spec::uid(pod).to_owned(),
        audience: source.audience.clone().filter(|a| !a.is_empty()),
        seconds: source.expiration_seconds.unwrap_or(3600),
    };
    let token = objects.token(&request).await?;
    // Who may read it: the group of the volume, else the one user that all containers run as, else root.
    let context = spec::spec(pod).security_context.as_ref();
    let grouped = context.is_some_and(|c| c.fs_group.is_some());
    let user = the_user(pod).filter(|_| !grouped);
    let mode = if grouped || user.is_some() { 0o600 | if grouped { 0o040 } else { 0 } } else { mode };
    let file = File { bytes: token.token.into_bytes(), mode: mode as u32, uid: user.map(|u| u as u32) };
    files.insert(PathBuf::from(&source.path), file);
    Ok(renewal(Timestamp::now(), token.expires))
}

/// When to renew: after 80 % of the token's life, at most a day.
fn renewal(issued: Timestamp, expires: Timestamp) -> Timestamp {
    let life = expires.duration_since(issued).max(SignedDuration::ZERO);
    issued + (life * 4 / 5).min(SignedDuration::from_hours(24))
}

/// The user that every container of the pod runs as, if it is one and named.
fn the_user(pod: &Pod) -> Option<i64> {
    let of_pod = spec::spec(pod).security_context.as_ref().and_then(|c| c.run_as_user);
    let users = spec::containers(pod).map(|(_, c)| c.security_context.as_ref().and_then(|s| s.run_as_user).or(of_pod));
    let mut users = users.collect::<Vec<_>>();
    users.dedup();
    match users.as_slice() {
        [only] => *only,
        _ => None,
    }
}
