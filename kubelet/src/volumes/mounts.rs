//! What is mounted into a container: its volumes, the hosts file, the file for its termination message.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use bosun_proto::cri;
use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;

use super::host_path;
use crate::make::{Node, env, names, text};
use crate::pod::spec;

/// The mounts of a container about to be created; makes the files that they need.
///
/// # Errors
/// A volume that is not in the pod, a subPath that leaves its volume, or any I/O error, in words.
pub fn for_container(
    pod: &Pod,
    container: &Container,
    node: &Node,
    pod_ips: &[String],
    variables: &[(String, String)],
) -> Result<Vec<cri::Mount>, String> {
    let mut mounts = Vec::new();
    for (index, wanted) in container.volume_mounts.iter().flatten().enumerate() {
        mounts.push(volume_mount(pod, container, node, wanted, index, variables)?);
    }
    let taken =
        |path: &str| container.volume_mounts.iter().flatten().any(|m| m.mount_path.trim_end_matches('/') == path);
    if !taken("/etc/hosts") {
        let path = hosts_file(pod, node, pod_ips).map_err(|error| format!("write the hosts file: {error}"))?;
        mounts.push(bind(text(&path), "/etc/hosts", false));
    }
    let message_path = spec::message_path(container);
    if !taken(message_path) {
        let path = message_file(pod, container, node).map_err(|error| format!("make the termination log: {error}"))?;
        mounts.push(bind(text(&path), message_path, false));
    }
    Ok(mounts)
}

fn bind(from: String, to: &str, readonly: bool) -> cri::Mount {
    cri::Mount { host_path: from, container_path: to.to_owned(), readonly, ..Default::default() }
}

fn volume_mount(
    pod: &Pod,
    container: &Container,
    node: &Node,
    wanted: &VolumeMount,
    index: usize,
    variables: &[(String, String)],
) -> Result<cri::Mount, String> {
    let volume = spec::spec(pod).volumes.iter().flatten().find(|v| v.name == wanted.name);
    let mut path = volume
        .and_then(|v| host_path(pod, node, v))
        .ok_or_else(|| format!("mount {:?} cannot be satisfied: no such volume", wanted.name))?;
    if let Some(sub) = sub_path(wanted, variables)? {
        let read_only = volume.is_some_and(super::is_live);
        path = bind_sub_path(pod, container, node, wanted, index, &path, &sub, read_only)?;
    }
    let propagation = match wanted.mount_propagation.as_deref() {
        Some("HostToContainer") => cri::MountPropagation::PropagationHostToContainer,
        Some("Bidirectional") => cri::MountPropagation::PropagationBidirectional,
        _ => cri::MountPropagation::PropagationPrivate,
    };
    let to = match wanted.mount_path.starts_with('/') {
        true => wanted.mount_path.clone(),
        false => format!("/{}", wanted.mount_path),
    };
    Ok(cri::Mount { propagation: propagation as i32, ..bind(text(&path), &to, wanted.read_only == Some(true)) })
}

/// The path inside the volume, with variables expanded; none for the whole volume.
fn sub_path(wanted: &VolumeMount, variables: &[(String, String)]) -> Result<Option<PathBuf>, String> {
    let missing = std::cell::Cell::new(None);
    let lookup = |name: &str| {
        let value = variables.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        if value.is_none() {
            missing.set(Some(name.to_owned()));
        }
        value
    };
    let given = match (wanted.sub_path.as_deref(), wanted.sub_path_expr.as_deref()) {
        (_, Some(expr)) if !expr.is_empty() => env::expand(expr, lookup),
        (Some(path), _) if !path.is_empty() => path.to_owned(),
        _ => return Ok(None),
    };
    if let Some(name) = missing.take() {
        return Err(format!(
            "missing value for {name:?} in subPathExpr {:?}",
            wanted.sub_path_expr.as_deref().unwrap_or("")
        ));
    }
    let path = PathBuf::from(&given);
    let inside = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if inside { Ok(Some(path)) } else { Err(format!("subPath {given:?} must be relative and must not contain '..'")) }
}

/// Opens the path inside the volume without ever leaving it (links are resolved as if the volume were the root), makes
/// it if it is missing, and binds what was opened to a place of its own, so that nobody can swap it between the check
/// and the start of the container.
#[expect(clippy::too_many_arguments, reason = "each names one thing that the place of the bind depends on")]
fn bind_sub_path(
    pod: &Pod,
    container: &Container,
    node: &Node,
    wanted: &VolumeMount,
    index: usize,
    volume: &Path,
    sub: &Path,
    read_only: bool,
) -> Result<PathBuf, String> {
    let failed = |error: io::Error| {
        format!(
            "failed to prepare subPath for volumeMount {:?} of container {:?}: {error}",
            wanted.name, container.name
        )
    };
    let root = fs::File::open(volume).map_err(failed)?;
    let open = |path: &Path, flags: OFlag| {
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
        openat2(&root, path, how).map_err(io::Error::from)
    };
    let opened = match open(sub, OFlag::O_PATH) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !read_only => {
            make_inside(&open, sub).map_err(failed)?;
            open(sub, OFlag::O_PATH)
        }
        other => other,
    }
    .map_err(failed)?;
    let place =
        node.pod_dir(pod).join("volume-subpaths").join(&wanted.name).join(&container.name).join(index.to_string());
    let source = format!("/proc/self/fd/{}", opened.as_raw_fd());
    let is_dir = fs::metadata(&source).map_err(failed)?.is_dir();
    let bind = || -> io::Result<()> {
        super::make_dir(place.parent().unwrap_or(&place), 0o750)?;
        // Left from an earlier start of the container.
        let _ = nix::mount::umount2(&place, nix::mount::MntFlags::MNT_DETACH);
        match (is_dir, place.exists()) {
            (true, false) => fs::create_dir(&place)?,
            (false, false) => drop(fs::File::create(&place)?),
            _ => {}
        }
        mount(Some(source.as_str()), &place, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
        Ok(())
    };
    bind().map_err(failed)?;
    Ok(place)
}

/// Makes the folders of a missing path, each opened inside the volume before the next is made in it.
fn make_inside(open: &impl Fn(&Path, OFlag) -> io::Result<std::os::fd::OwnedFd>, sub: &Path) -> io::Result<()> {
    let mut so_far = PathBuf::from(".");
    for part in sub.components() {
        let parent = open(&so_far, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        so_far.push(part);
        if open(&so_far, OFlag::O_PATH).is_err() {
            nix::sys::stat::mkdirat(&parent, part.as_os_str(), Mode::from_bits_truncate(0o750))?;
        }
    }
    Ok(())
}

/// Writes the pod's hosts file, anew if its addresses changed.
fn hosts_file(pod: &Pod, node: &Node, pod_ips: &[String]) -> io::Result<PathBuf> {
    let path = node.hosts_file(pod);
    let of_node = spec::host_network(pod).then(|| fs::read_to_string("/etc/hosts").unwrap_or_default());
    let wanted = names::hosts_file(pod, node, pod_ips, of_node.as_deref());
    if fs::read_to_string(&path).ok().as_deref() != Some(&wanted) {
        // Written in place: containers that run have it mounted.
        fs::write(&path, wanted)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
    }
    Ok(path)
}

fn message_file(pod: &Pod, container: &Container, node: &Node) -> io::Result<PathBuf> {
    let folder = node.container_dir(pod, &container.name);
    fs::DirBuilder::new().recursive(true).mode(0o750).create(&folder)?;
    let path = folder.join(format!("{:08x}", rand::random::<u32>()));
    let file = fs::File::create_new(&path)?;
    // Any user in the container may write it.
    file.set_permissions(fs::Permissions::from_mode(0o666))?;
    Ok(path)
}
