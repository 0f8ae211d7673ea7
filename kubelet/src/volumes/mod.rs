//! Volumes of pods: made before the first container, refreshed when what they show changes, removed with the pod.
//!
//! Supported here: configMap, secret, projected, downwardAPI, emptyDir (disk, memory and huge pages), hostPath,
//! image (which the runtime mounts), and claims of local and hostPath volumes. Any other kind is an error that names it.

pub mod atomic;
mod claims;
mod empty_dir;
mod host_path;
mod journal;
mod mountinfo;
pub mod mounts;
mod ownership;
mod payload;
mod removal;
mod sub_path;
mod tear_down;
#[cfg(test)]
mod testing;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Volume};
use thiserror::Error;

use crate::make::Node;
use crate::objects::Objects;
use crate::pod::spec;

/// Why a pod's volumes could not be made.
#[derive(Debug, Error)]
pub enum VolumeError {
    /// One volume failed; the text is what stock's `FailedMount` event says.
    #[error("MountVolume.SetUp failed for volume {volume:?} : {message}")]
    SetUp {
        /// Which volume.
        volume: String,
        /// Why.
        message: String,
    },
    /// A claim does not lead to a volume; the text is what stock's `FailedMount` event says.
    #[error(
        "Unable to attach or mount volumes: unmounted volumes=[{volume}], unattached volumes=[], failed to process volumes=[{volume}]: {message}"
    )]
    Claim {
        /// Which volume.
        volume: String,
        /// Why.
        message: String,
    },
    /// The pod's folders could not be made.
    #[error("make folders of the pod: {0}")]
    Folders(io::Error),
    /// Something could not be taken away.
    #[error("remove {path}: {source}")]
    Remove {
        /// What.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// What making the volumes found out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// When tokens should be renewed.
    pub refresh: Option<Timestamp>,
}

/// The plugin's name in the folder layout, for kinds that have a folder of their own.
pub fn plugin(volume: &Volume) -> Option<&'static str> {
    match volume {
        Volume { config_map: Some(_), .. } => Some("configmap"),
        Volume { secret: Some(_), .. } => Some("secret"),
        Volume { projected: Some(_), .. } => Some("projected"),
        Volume { downward_api: Some(_), .. } => Some("downward-api"),
        Volume { empty_dir: Some(_), .. } => Some("empty-dir"),
        _ => None,
    }
}

/// The path of a volume on the node, whatever its kind.
pub fn host_path(pod: &Pod, node: &Node, volume: &Volume) -> Option<PathBuf> {
    match (&volume.host_path, plugin(volume)) {
        (Some(source), _) => Some(PathBuf::from(&source.path)),
        (None, Some(plugin)) => Some(node.volume_dir(pod, plugin, &volume.name)),
        (None, None) => claims::claim_name(pod, volume).and_then(|_| claims::place(&node.pod_dir(pod), &volume.name)),
    }
}

/// Whether containers only read the volume, whatever they ask for.
pub fn is_read_only(volume: &Volume) -> bool {
    is_live(volume) || claims::is_read_only(volume)
}

/// Whether changes of the outside world change what the volume shows.
pub fn is_live(volume: &Volume) -> bool {
    matches!(plugin(volume), Some(kind) if kind != "empty-dir")
}

/// Makes (or refreshes) folders and volumes of the pod.
///
/// # Errors
/// The first volume that fails. What was made stays; making it again is harmless.
pub async fn set_up(pod: &Pod, node: &Arc<Node>, objects: &dyn Objects) -> Result<Made, VolumeError> {
    folders(pod, node).map_err(VolumeError::Folders)?;
    let group = spec::spec(pod).security_context.as_ref().and_then(|c| c.fs_group).map(|g| g as u32);
    let volumes = spec::spec(pod).volumes.as_deref().unwrap_or_default();
    // All at once: each may have to ask the API server.
    let made = futures::future::try_join_all(volumes.iter().map(|v| one(pod, node, objects, v, group))).await?;
    Ok(Made { refresh: made.into_iter().flatten().min() })
}

fn folders(pod: &Pod, node: &Node) -> io::Result<()> {
    let folder = node.pod_dir(pod);
    for (path, mode) in [(folder.clone(), 0o750), (folder.join("volumes"), 0o750), (folder.join("containers"), 0o750)] {
        make_dir(&path, mode)?;
    }
    Ok(())
}

fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    bosun_kit::files::create_dir(path, mode)
}

async fn one(
    pod: &Pod,
    node: &Arc<Node>,
    objects: &dyn Objects,
    volume: &Volume,
    group: Option<u32>,
) -> Result<Option<Timestamp>, VolumeError> {
    let failed = |message: String| VolumeError::SetUp { volume: volume.name.clone(), message };
    if let Some(source) = volume.host_path.clone() {
        return on_disk(move || host_path::check(&source)).await.map(|()| None).map_err(failed);
    }
    if volume.image.is_some() {
        return Ok(None);
    }
    if let Some(name) = claims::claim_name(pod, volume) {
        return claim(pod, node, objects, volume, &name, group).await.map(|()| None);
    }
    let Some(folder) = host_path(pod, node, volume) else {
        return Err(failed(format!("volumes of kind {} are not supported by this kubelet", kind(volume))));
    };
    let (pod_dir, name) = (node.pod_dir(pod), volume.name.clone());
    if let Some(source) = &volume.empty_dir {
        let medium = empty_dir::medium(pod, node, source).map_err(failed)?;
        let make = move || empty_dir::set_up(&pod_dir, &name, &folder, &medium, group).map_err(|e| e.to_string());
        return on_disk(make).await.map(|()| None).map_err(failed);
    }
    let payload::Gathered { files, refresh } = payload::gather(pod, node, objects, volume).await.map_err(failed)?;
    // As in stock: what may be secret lies in memory, configMaps on the disk.
    let medium = match volume.config_map {
        Some(_) => empty_dir::Medium::Disk,
        None => empty_dir::Medium::Memory(empty_dir::memory_size(pod, node, None)),
    };
    let write = move || -> io::Result<bool> {
        empty_dir::set_up(&pod_dir, &format!("wrapped_{name}"), &folder, &medium, None)?;
        atomic::write(&folder, &files, group)
    };
    on_disk(move || write().map_err(|error| error.to_string())).await.map_err(failed)?;
    Ok(refresh)
}

async fn claim(
    pod: &Pod,
    node: &Node,
    objects: &dyn Objects,
    volume: &Volume,
    name: &str,
    group: Option<u32>,
) -> Result<(), VolumeError> {
    let unresolved = |message| VolumeError::Claim { volume: volume.name.clone(), message };
    let (folder, of) = (node.pod_dir(pod), volume.name.clone());
    let ready = on_disk(move || claims::is_ready(&folder, &of).map_err(|error| error.to_string())).await;
    if ready.map_err(unresolved)? {
        return Ok(());
    }
    let found = claims::resolve(pod, objects, volume, name).await.map_err(unresolved)?;
    let context = spec::spec(pod).security_context.as_ref();
    let policy = match context.and_then(|c| c.fs_group_change_policy.as_deref()) {
        Some("OnRootMismatch") => ownership::Policy::OnRootMismatch,
        _ => ownership::Policy::Always,
    };
    let user = claims::Use {
        pod: node.pod_dir(pod),
        volume: volume.name.clone(),
        read_only: claims::is_read_only(volume),
        group,
        policy,
    };
    // Stock names the persistent volume here.
    let pv = found.metadata.name.clone().unwrap_or_default();
    let made = on_disk(move || claims::set_up(&found, &user)).await;
    made.map_err(|message| VolumeError::SetUp { volume: pv, message })
}

/// Does what may wait for a disk, without holding others up.
async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.to_string()))
}

/// The kind of a volume that is none of ours: the one field that is set.
fn kind(volume: &Volume) -> String {
    let value = serde_json::to_value(volume).unwrap_or_default();
    let mut fields = value.as_object().into_iter().flat_map(|o| o.keys());
    fields.find(|k| *k != "name").cloned().unwrap_or_else(|| "none".to_owned())
}

/// Takes the pod's volumes and folder away: first what is mounted below it, the newest first, then the files. Never
/// follows a link on the way, and deletes nothing as long as anything is mounted.
///
/// # Errors
/// The first thing that would not go; the rest was still tried.
pub async fn tear_down(node: &Node, uid: &str) -> Result<(), VolumeError> {
    let (pods, uid) = (node.pods_dir(), uid.to_owned());
    let path = pods.join(&uid).display().to_string();
    let done = tokio::task::spawn_blocking(move || tear_down::run(&pods, &uid)).await;
    done.unwrap_or_else(|error| Err(VolumeError::Remove { path, source: io::Error::other(error) }))
}
