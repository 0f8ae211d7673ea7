//! Volumes of pods: made before the first container, refreshed when what they show changes, removed with the pod.
//!
//! Supported here: configMap, secret, projected, downwardAPI, emptyDir (disk and memory) and hostPath. Any other kind is
//! an error that names it.

pub mod atomic;
pub mod mounts;
mod payload;

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, HostPathVolumeSource, Pod, Volume};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
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
        (None, None) => None,
    }
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
    if let Some(source) = &volume.host_path {
        return check_host_path(source).map(|()| None).map_err(failed);
    }
    let Some(folder) = host_path(pod, node, volume) else {
        return Err(failed(format!("volumes of kind {} are not supported by this kubelet", kind(volume))));
    };
    if let Some(source) = &volume.empty_dir {
        return empty_dir(source, &folder, group).map(|()| None).map_err(|error| failed(error.to_string()));
    }
    let gathered = payload::gather(pod, node, objects, volume).await.map_err(failed)?;
    let write = || -> io::Result<()> {
        make_dir(&folder, 0o755)?;
        if let Some(group) = group {
            chown(&folder, None, Some(group))?;
        }
        atomic::write(&folder, &gathered.files, group).map(drop)
    };
    write().map_err(|error| failed(error.to_string()))?;
    Ok(gathered.refresh)
}

/// The kind of a volume that is none of ours: the one field that is set.
fn kind(volume: &Volume) -> String {
    let value = serde_json::to_value(volume).unwrap_or_default();
    let mut fields = value.as_object().into_iter().flat_map(|o| o.keys());
    fields.find(|k| *k != "name").cloned().unwrap_or_else(|| "none".to_owned())
}

fn empty_dir(source: &EmptyDirVolumeSource, folder: &Path, group: Option<u32>) -> io::Result<()> {
    let medium = source.medium.as_deref().unwrap_or_default();
    let fresh = !folder.exists();
    bosun_kit::files::create_dir(folder, 0o777)?;
    match medium {
        "" => {}
        "Memory" => {
            if !is_mount_point(folder)? {
                let limit = source.size_limit.as_ref().map(|q| bosun_api::quantity::of(q).value()).filter(|n| *n > 0);
                let options = limit.map(|bytes| format!("size={bytes}"));
                mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), options.as_deref())?;
                fs::set_permissions(folder, fs::Permissions::from_mode(0o777))?;
            }
        }
        other => return Err(io::Error::other(format!("medium {other:?} is not supported by this kubelet"))),
    }
    if let (Some(group), true) = (group, fresh) {
        chown(folder, None, Some(group))?;
        // The set-group-ID bit hands the group down to what is made inside.
        fs::set_permissions(folder, fs::Permissions::from_mode(0o2777))?;
    }
    Ok(())
}

fn check_host_path(source: &HostPathVolumeSource) -> Result<(), String> {
    let path = Path::new(&source.path);
    let wanted = source.type_.as_deref().unwrap_or_default();
    let found = fs::metadata(path);
    let fail = |what: &str| Err(format!("hostPath type check failed: {} is not {what}", source.path));
    match (wanted, &found) {
        ("", _) => Ok(()),
        ("DirectoryOrCreate", Err(_)) => bosun_kit::files::create_dir(path, 0o755).map_err(|e| e.to_string()),
        ("FileOrCreate", Err(_)) => fs::File::create_new(path)
            .and_then(|file| file.set_permissions(fs::Permissions::from_mode(0o644)))
            .map_err(|error| format!("create {}: {error}", source.path)),
        ("Directory" | "DirectoryOrCreate", Ok(meta)) if meta.is_dir() => Ok(()),
        ("Directory" | "DirectoryOrCreate", _) => fail("a directory"),
        ("File" | "FileOrCreate", Ok(meta)) if meta.is_file() => Ok(()),
        ("File" | "FileOrCreate", _) => fail("a file"),
        ("Socket", Ok(meta)) if meta.file_type().is_socket() => Ok(()),
        ("Socket", _) => fail("a socket file"),
        ("CharDevice", Ok(meta)) if meta.file_type().is_char_device() => Ok(()),
        ("CharDevice", _) => fail("a character device"),
        ("BlockDevice", Ok(meta)) if meta.file_type().is_block_device() => Ok(()),
        ("BlockDevice", _) => fail("a block device"),
        (other, _) => Err(format!("{other} is an invalid volume type")),
    }
}

/// Whether something is mounted right on `path`.
fn is_mount_point(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let (inside, above) = (fs::metadata(path)?, fs::metadata(path.parent().unwrap_or(path))?);
    Ok(inside.dev() != above.dev())
}

/// Takes the pod's volumes and folder away: first what is mounted below it, deepest first, then the files. Never
/// descends into something that is still mounted.
///
/// # Errors
/// The first thing that would not go; the rest was still tried.
pub fn tear_down(node: &Node, uid: &str) -> Result<(), VolumeError> {
    let folder = node.pods_dir().join(uid);
    if uid.is_empty() || !folder.exists() {
        return Ok(());
    }
    let mut first = None;
    for path in mounted_below(&folder) {
        if let Err(error) = umount2(&path, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH) {
            let failed = VolumeError::Remove { path: path.display().to_string(), source: error.into() };
            first.get_or_insert(failed);
        }
    }
    if first.is_none()
        && let Err(error) = fs::remove_dir_all(&folder)
        && error.kind() != io::ErrorKind::NotFound
    {
        first = Some(VolumeError::Remove { path: folder.display().to_string(), source: error });
    }
    first.map_or(Ok(()), Err)
}

/// Mount points below `folder`, deepest first.
fn mounted_below(folder: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let mut points: Vec<PathBuf> = points.map(PathBuf::from).filter(|p| p.starts_with(folder) && p != folder).collect();
    points.reverse();
    points
}

/// The kernel writes blanks and their kin as octal escapes.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}
