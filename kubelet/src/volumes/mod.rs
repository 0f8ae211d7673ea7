//! Volumes of pods: made before the first container, refreshed when what they show changes, removed with the pod.
//!
//! Supported here: configMap, secret, projected, downwardAPI, emptyDir (disk, memory and huge pages), hostPath,
//! image (which the runtime mounts), nfs, CSI, and claims of CSI, local, nfs and hostPath volumes. Any other kind is an
//! error that names it.

pub mod atomic;
mod claims;
pub mod csi;
pub mod devices;
mod empty_dir;
mod host_path;
mod journal;
pub mod measured;
mod mountinfo;
pub mod mounts;
mod nfs;
mod ownership;
mod payload;
mod removal;
mod sub_path;
mod tear_down;
#[cfg(test)]
mod testing;
mod trust_bundle;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bosun_kit::events::EventType;
use bosun_kubelet_csi::{CsiError, Volume as CsiVolume, mounter::Growing};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, Volume};
use thiserror::Error;

pub(crate) use sub_path::read;

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
    /// A step before that failed; the text is what stock's `FailedMount` event says.
    #[error("{what} failed for volume {volume:?} : {message}")]
    Step {
        /// Which step, in stock's words.
        what: &'static str,
        /// Which volume.
        volume: String,
        /// Why.
        message: String,
    },
    /// A CSI volume is not ready.
    #[error(transparent)]
    Csi(#[from] CsiError),
    /// CSI volumes were not given back.
    #[error("{0}")]
    GiveBack(String),
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

impl VolumeError {
    /// The reason of the event that tells of it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Csi(error) if error.block => "FailedMapVolume",
            _ => "FailedMount",
        }
    }

    /// How long to wait before the next try.
    pub fn retry(&self) -> Duration {
        match self {
            Self::Csi(error) => error.retry,
            _ => RETRY,
        }
    }
}

/// How soon volumes are tried again that nothing else is known of.
const RETRY: Duration = Duration::from_secs(2);
/// How soon a CSI volume is looked at again whose claim could not be read; it is ready all the same.
const LOOK_AGAIN: SignedDuration = SignedDuration::from_secs(60);

/// What making the volumes found out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// When tokens should be renewed, and volumes looked at again.
    pub refresh: Option<Timestamp>,
    /// What is to be told of volumes that are ready.
    pub notes: Vec<Note>,
}

/// Something to tell in an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// What kind of event.
    pub kind: EventType,
    /// Its reason.
    pub reason: &'static str,
    /// Its text.
    pub message: String,
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
        (None, None) if volume.nfs.is_some() => Some(nfs::target(&node.pod_dir(pod), &volume.name)),
        (None, None) if volume.csi.is_some() => csi::inline_path(pod, node, volume),
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
pub async fn set_up(
    pod: &Pod,
    node: &Arc<Node>,
    objects: &dyn Objects,
    csi: &Arc<csi::CsiVolumes>,
) -> Result<Made, VolumeError> {
    folders(pod, node).map_err(VolumeError::Folders)?;
    let volumes = spec::spec(pod).volumes.as_deref().unwrap_or_default();
    // All at once: each may have to ask the API server.
    let made = futures::future::try_join_all(volumes.iter().map(|v| one(pod, node, objects, csi, v))).await?;
    let refresh = made.iter().filter_map(|made| made.refresh).min();
    Ok(Made { refresh, notes: made.into_iter().flat_map(|made| made.notes).collect() })
}

/// The group that what volumes hold is given to.
fn group(pod: &Pod) -> Option<u32> {
    spec::spec(pod).security_context.as_ref().and_then(|c| c.fs_group).map(|g| g as u32)
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
    csi: &Arc<csi::CsiVolumes>,
    volume: &Volume,
) -> Result<Made, VolumeError> {
    let group = group(pod);
    let failed = |message: String| VolumeError::SetUp { volume: volume.name.clone(), message };
    if let Some(source) = volume.host_path.clone() {
        return on_disk(move || host_path::check(&source)).await.map(|()| Made::default()).map_err(failed);
    }
    if volume.image.is_some() {
        return Ok(Made::default());
    }
    if let Some(source) = &volume.nfs {
        let (pod, nfs) = (node.pod_dir(pod), nfs::Nfs::new(source, None, false));
        return nfs.mount(&pod, &nfs::target(&pod, &volume.name)).await.map(|()| Made::default()).map_err(failed);
    }
    if let Some(inline) = csi::inline(pod, volume) {
        return csi::set_up(pod, csi, &inline, None, policy(pod)).await.map(|(_, made)| made);
    }
    if let Some(name) = claims::claim_name(pod, volume) {
        return claim(pod, node, objects, csi, volume, &name).await;
    }
    let Some(folder) = host_path(pod, node, volume) else {
        return Err(failed(format!(
            "volumes of kind {} are not supported by this kubelet; use a CSI driver for it",
            kind(volume)
        )));
    };
    let (pod_dir, name) = (node.pod_dir(pod), volume.name.clone());
    if let Some(source) = &volume.empty_dir {
        let medium = empty_dir::medium(pod, node, source).map_err(failed)?;
        let make = move || empty_dir::set_up(&pod_dir, &name, &folder, &medium, group).map_err(|e| e.to_string());
        return on_disk(make).await.map(|()| Made::default()).map_err(failed);
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
    Ok(Made { refresh, ..Made::default() })
}

fn policy(pod: &Pod) -> ownership::Policy {
    let context = spec::spec(pod).security_context.as_ref();
    match context.and_then(|c| c.fs_group_change_policy.as_deref()) {
        Some("OnRootMismatch") => ownership::Policy::OnRootMismatch,
        _ => ownership::Policy::Always,
    }
}

async fn claim(
    pod: &Pod,
    node: &Node,
    objects: &dyn Objects,
    csi: &Arc<csi::CsiVolumes>,
    volume: &Volume,
    name: &str,
) -> Result<Made, VolumeError> {
    let unresolved = |message| VolumeError::Claim { volume: volume.name.clone(), message };
    let (folder, of) = (node.pod_dir(pod), volume.name.clone());
    let place = claims::place(&folder, &of).filter(|place| csi::is_place(place));
    let ready = match &place {
        // The driver's; it may have to grow.
        Some(place) => csi.csi.is_ready(spec::uid(pod), place).map_err(|error| unresolved(error.to_string()))?,
        None => {
            let ready = on_disk(move || claims::is_ready(&folder, &of).map_err(|error| error.to_string())).await;
            if ready.map_err(unresolved)? {
                return Ok(Made::default());
            }
            false
        }
    };
    let (found, claim) = match claims::resolve(pod, objects, volume, name).await {
        // A claim that is deleted while its pod runs, or an API server that is away, takes nothing from the pod.
        Err(_) if ready => return Ok(Made { refresh: Some(Timestamp::now() + LOOK_AGAIN), ..Made::default() }),
        other => other.map_err(unresolved)?,
    };
    // Stock names the persistent volume here.
    let pv = found.metadata.name.clone().unwrap_or_default();
    if !ready {
        let what = "MountVolume.NodeAffinity check";
        let checked = claims::check_affinity(&found, csi).await;
        checked.map_err(|message| VolumeError::Step { what, volume: pv.clone(), message })?;
    }
    let user = claims::Use {
        pod: node.pod_dir(pod),
        volume: volume.name.clone(),
        read_only: claims::is_read_only(volume),
        group: group(pod),
        policy: policy(pod),
    };
    if let Some(wanted) = CsiVolume::of_pv(&found, user.read_only) {
        let capacity = found.spec.as_ref().and_then(|s| s.capacity.as_ref()).and_then(|c| c.get("storage")).cloned();
        let growing = Growing { claim, capacity };
        let (path, made) = csi::set_up(pod, csi, &wanted, Some(&growing), user.policy).await?;
        let kept = on_disk(move || claims::keep(&user, &path).map_err(|error| error.to_string())).await;
        return kept.map(|()| made).map_err(|message| VolumeError::SetUp { volume: pv, message });
    }
    let failed = |message| VolumeError::SetUp { volume: pv.clone(), message };
    if let Some(source) = found.spec.as_ref().and_then(|spec| spec.nfs.as_ref()) {
        let options = found.spec.as_ref().and_then(|spec| spec.mount_options.as_deref());
        let (export, path) = (nfs::Nfs::new(source, options, user.read_only), nfs::target(&user.pod, &pv));
        export.mount(&user.pod, &path).await.map_err(failed)?;
        let kept = on_disk(move || claims::keep(&user, &path).map_err(|error| error.to_string())).await;
        return kept.map(|()| Made::default()).map_err(failed);
    }
    let made = on_disk(move || claims::set_up(&found, &user)).await;
    made.map(|()| Made::default()).map_err(|message| VolumeError::SetUp { volume: pv, message })
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

/// Takes the pod's volumes and folder away: first what drivers made ready, then what is mounted below it, the newest
/// first, then the files. Never follows a link on the way, and deletes nothing as long as anything is mounted.
///
/// # Errors
/// The first thing that would not go; the rest was still tried.
pub async fn tear_down(node: &Node, csi: &csi::CsiVolumes, uid: &str) -> Result<(), VolumeError> {
    csi::give_back(node, csi, uid).await?;
    let (pods, uid) = (node.pods_dir(), uid.to_owned());
    let path = pods.join(&uid).display().to_string();
    let done = tokio::task::spawn_blocking(move || tear_down::run(&pods, &uid)).await;
    done.unwrap_or_else(|error| Err(VolumeError::Remove { path, source: io::Error::other(error) }))
}
