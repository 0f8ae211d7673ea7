//! Takes the mounts and files of a pod that is gone away, whoever made them and whenever the kubelet died meanwhile.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, umount2};

use super::journal::{Entry, Journal, Kind};
use super::{VolumeError, mountinfo, removal};

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Unmount a place below the pod's folder.
    Unmount(PathBuf, Option<Kind>),
    /// Delete the pod's folder.
    Remove,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unmount(path, Some(kind)) => write!(f, "unmount {} ({kind:?})", path.display()),
            Self::Unmount(path, None) => write!(f, "unmount {} (mounted by somebody else)", path.display()),
            Self::Remove => f.write_str("remove the folder"),
        }
    }
}

/// What to do, given what is mounted below the pod's folder (in the order of mounting) and what the kubelet wrote down.
pub(super) fn plan(mounted: &[PathBuf], journal: &[Entry]) -> Vec<Step> {
    let kind = |path: &Path| journal.iter().find(|entry| entry.target == path).map(|entry| entry.kind);
    let unmounts = mounted.iter().rev().map(|path| Step::Unmount(path.clone(), kind(path)));
    unmounts.chain([Step::Remove]).collect()
}

/// Takes the pod's mounts and folder away.
///
/// # Errors
/// The first thing that would not go; the rest was still tried. While anything is mounted, nothing is deleted.
pub(super) fn run(pods: &Path, uid: &str) -> Result<(), VolumeError> {
    let folder = pods.join(uid);
    if !is_uid(uid) {
        return Ok(());
    }
    let is_folder = fs::symlink_metadata(&folder).is_ok_and(|meta| meta.is_dir());
    let mounted = if is_folder { mountinfo::below(&folder).map_err(|e| failed(&folder, e))? } else { Vec::new() };
    let mut first = None;
    for step in plan(&mounted, &Journal::of(&folder).read()) {
        tracing::debug!(uid, %step, "a pod is taken away");
        let (path, done) = match &step {
            Step::Unmount(path, _) => (folder.join(path), unmount(&folder, path)),
            Step::Remove if first.is_some() => break,
            Step::Remove => (folder.clone(), still_mounted(&folder).and_then(|()| removal::remove(pods, uid))),
        };
        if let Err(error) = done {
            first.get_or_insert(failed(&path, error));
        }
    }
    first.map_or(Ok(()), Err)
}

/// Unmounts what is mounted below the pod's folder, but what is mounted right at the places of `keep`.
///
/// # Errors
/// The first thing that would not go; the rest was still tried.
pub(super) fn unmount_others(pods: &Path, uid: &str, keep: &[PathBuf]) -> Result<(), VolumeError> {
    let folder = pods.join(uid);
    if !is_uid(uid) || fs::symlink_metadata(&folder).map_or(true, |meta| !meta.is_dir()) {
        return Ok(());
    }
    let kept = |path: &PathBuf| keep.contains(&folder.join(path));
    let mounted = mountinfo::below(&folder).map_err(|error| failed(&folder, error))?;
    let mut first = None;
    for path in mounted.iter().rev().filter(|path| !kept(path)) {
        if let Err(error) = unmount(&folder, path) {
            first.get_or_insert(failed(&folder.join(path), error));
        }
    }
    first.map_or(Ok(()), Err)
}

fn is_uid(name: &str) -> bool {
    !(name.is_empty() || name.contains('/') || name.starts_with('.'))
}

fn failed(path: &Path, source: io::Error) -> VolumeError {
    VolumeError::Remove { path: path.display().to_string(), source }
}

/// Unmounts a place below the pod's folder. It is opened without following a link: a container may have swapped a
/// folder on the way for a link to a mount of the node.
fn unmount(folder: &Path, path: &Path) -> io::Result<()> {
    let root = fs::File::open(folder)?;
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).resolve(resolve);
    let place = openat2(&root, path, how)?;
    Ok(umount2(format!("/proc/self/fd/{}", place.as_raw_fd()).as_str(), MntFlags::MNT_DETACH)?)
}

fn still_mounted(folder: &Path) -> io::Result<()> {
    if fs::symlink_metadata(folder).map_or(true, |meta| !meta.is_dir()) {
        return Ok(());
    }
    match mountinfo::below(folder)?.first() {
        None => Ok(()),
        Some(path) => Err(io::Error::other(format!("{} is still mounted; unmount it", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::mount::{MsFlags, mount};

    use super::*;
    use crate::volumes::testing::in_own_mounts;

    const NONE: Option<&str> = None;

    #[test]
    fn the_plan_goes_backwards() {
        let entry = |target: &str, kind| Entry { target: target.into(), kind };
        let journal = [entry("volumes/a", Kind::Tmpfs), entry("volumes/never", Kind::Tmpfs)];
        let mounted = ["volumes/a", "volumes/a/deeper", "volume-subpaths/a/c/0"].map(PathBuf::from);
        let steps: Vec<String> = plan(&mounted, &journal).iter().map(ToString::to_string).collect();
        let golden = "\
unmount volume-subpaths/a/c/0 (mounted by somebody else)
unmount volumes/a/deeper (mounted by somebody else)
unmount volumes/a (Tmpfs)
remove the folder";
        assert_eq!(steps.join("\n"), golden);
    }

    #[test]
    fn everything_mounted_goes_and_nothing_bound_is_deleted() {
        in_own_mounts(|| {
            let root = tempfile::tempdir().unwrap();
            let (pods, data) = (root.path().join("pods"), root.path().join("data"));
            let volume = pods.join("u1/volumes/v");
            for folder in [&data, &volume] {
                fs::create_dir_all(folder).unwrap();
            }
            fs::write(data.join("precious"), "1").unwrap();
            // Two on one place, and one inside.
            mount(Some("tmpfs"), &volume, Some("tmpfs"), MsFlags::empty(), NONE).unwrap();
            mount(Some("tmpfs"), &volume, Some("tmpfs"), MsFlags::empty(), NONE).unwrap();
            fs::create_dir(volume.join("inner")).unwrap();
            mount(Some(&data), &volume.join("inner"), NONE, MsFlags::MS_BIND, NONE).unwrap();
            // The root may be reached through a link, as where it was moved to a larger disk.
            let linked = root.path().join("linked");
            symlink(&pods, &linked).unwrap();
            run(&linked, "u1").unwrap();
            assert!(!pods.join("u1").exists() && data.join("precious").exists());
            run(&linked, "u1").unwrap();
        });
    }

    #[test]
    fn a_link_swapped_in_on_the_way_unmounts_nothing_of_the_node() {
        in_own_mounts(|| {
            let root = tempfile::tempdir().unwrap();
            let (pods, node) = (root.path().join("pods"), root.path().join("node"));
            let volume = pods.join("u1/volumes/v");
            fs::create_dir_all(volume.join("way/point")).unwrap();
            fs::create_dir_all(node.join("point")).unwrap();
            mount(Some("tmpfs"), &node.join("point"), Some("tmpfs"), MsFlags::empty(), NONE).unwrap();
            fs::write(node.join("point/precious"), "1").unwrap();
            mount(Some("tmpfs"), &volume.join("way/point"), Some("tmpfs"), MsFlags::empty(), NONE).unwrap();
            // What a container does between the look at the table and the call.
            fs::rename(volume.join("way"), volume.join("moved")).unwrap();
            symlink(&node, volume.join("way")).unwrap();
            unmount(&pods.join("u1"), Path::new("volumes/v/way/point")).unwrap_err();
            assert!(node.join("point/precious").exists());
            run(&pods, "u1").unwrap();
            assert!(node.join("point/precious").exists() && !pods.join("u1").exists());
        });
    }
}
