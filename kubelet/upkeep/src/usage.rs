//! What pods use: memory and processes from cgroups of version 1 or 2, disk by counting blocks.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::ops::AddAssign;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::signals::Observation;

/// Use of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Bytes of blocks.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// What a container uses; none where it is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerUsage {
    /// Its name in the pod.
    pub name: String,
    /// The memory that cannot be given back, in bytes.
    pub memory: Option<u64>,
    /// Its writable layer.
    pub rootfs: Option<DiskUsage>,
    /// Its logs.
    pub logs: Option<DiskUsage>,
}

/// What a volume on the node's disk uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeUsage {
    /// Its name in the pod.
    pub name: String,
    /// How much.
    pub used: DiskUsage,
}

/// What a pod uses; none where it is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodUsage {
    /// The memory that cannot be given back, in bytes.
    pub memory: Option<u64>,
    /// Its processes.
    pub processes: Option<u64>,
    /// Its containers.
    pub containers: Vec<ContainerUsage>,
    /// Its volumes on the node's disk.
    pub volumes: Vec<VolumeUsage>,
}

impl AddAssign for DiskUsage {
    fn add_assign(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.inodes = self.inodes.saturating_add(other.inodes);
    }
}

/// Reads cgroups below their mount point, `/sys/fs/cgroup` but in tests.
#[derive(Clone, Debug)]
pub struct Cgroups {
    root: PathBuf,
    unified: bool,
}

impl Cgroups {
    /// Finds out which version is mounted at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        let unified = root.join("cgroup.controllers").exists();
        Self { root, unified }
    }

    /// The working set of a cgroup: its memory without file pages that have not been touched for a while.
    pub fn memory(&self, cgroup: &str) -> Option<u64> {
        let folder = self.folder("memory", cgroup);
        let (usage, inactive) = match self.unified {
            true => ("memory.current", "inactive_file"),
            false => ("memory.usage_in_bytes", "total_inactive_file"),
        };
        let stat = fs::read_to_string(folder.join("memory.stat")).ok()?;
        let inactive = stat.lines().find_map(|line| line.strip_prefix(inactive)?.trim().parse::<u64>().ok());
        Some(number(&folder.join(usage))?.saturating_sub(inactive.unwrap_or(0)))
    }

    /// Processes and threads in a cgroup and below.
    pub fn processes(&self, cgroup: &str) -> Option<u64> {
        number(&self.folder("pids", cgroup).join("pids.current"))
    }

    /// The cgroup of a container in its pod's, whatever the runtime and its driver put around the id.
    pub fn container(&self, pod: &str, id: &str) -> Option<String> {
        let entries = fs::read_dir(self.folder("memory", pod)).ok()?.flatten();
        let mut names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.find(|name| name.contains(id)).map(|name| format!("{}/{name}", pod.trim_end_matches('/')))
    }

    /// Where the controller's files of a cgroup are. A bare slice stands below the slices that its name lists.
    pub fn folder(&self, controller: &str, cgroup: &str) -> PathBuf {
        let root = if self.unified { self.root.clone() } else { self.root.join(controller) };
        let (first, rest) = cgroup.trim_start_matches('/').split_once('/').unwrap_or((cgroup.trim_matches('/'), ""));
        let folder = match first.strip_suffix(".slice") {
            Some(name) => {
                let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
                ends.fold(root, |path, end| path.join(format!("{}.slice", &name[..end])))
            }
            None => root.join(first),
        };
        if rest.is_empty() { folder } else { folder.join(rest) }
    }

    /// Whether there is a single hierarchy.
    pub fn is_unified(&self) -> bool {
        self.unified
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Counts what lies in a folder, without following links or leaving its file system. Blocks for as long as that takes,
/// but not past `deadline`.
///
/// # Errors
/// The folder cannot be read, or time was up. What vanishes meanwhile is no error.
pub fn disk_usage(path: &Path, deadline: Instant) -> io::Result<DiskUsage> {
    let root = fs::symlink_metadata(path)?;
    let mut links = HashSet::new();
    let mut total = counted(&root);
    let mut folders = if root.is_dir() { vec![path.to_path_buf()] } else { Vec::new() };
    while let Some(folder) = folders.pop() {
        if Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{} is too large to count", path.display())));
        }
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(found) = entry.metadata() else { continue };
            if found.dev() != root.dev() || (found.nlink() > 1 && !found.is_dir() && !links.insert(found.ino())) {
                continue;
            }
            total += counted(&found);
            if found.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(total)
}

fn counted(found: &fs::Metadata) -> DiskUsage {
    DiskUsage { bytes: found.blocks() * 512, inodes: 1 }
}

/// Bytes and inodes of the file system that holds `path`.
///
/// # Errors
/// It cannot be asked.
pub fn file_system(path: &Path) -> io::Result<(Observation, Observation)> {
    let found = nix::sys::statvfs::statvfs(path)
        .map_err(|error| io::Error::other(format!("file system of {}: {error}", path.display())))?;
    let bytes = |blocks: u64| i64::try_from(blocks.saturating_mul(found.fragment_size())).unwrap_or(i64::MAX);
    let count = |inodes: u64| i64::try_from(inodes).unwrap_or(i64::MAX);
    let space = Observation { available: bytes(found.blocks_available()), capacity: bytes(found.blocks()) };
    Ok((space, Observation { available: count(found.files_free()), capacity: count(found.files()) }))
}

/// The device of the file system that holds `path`; none if it cannot be asked.
pub fn device(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|found| found.dev())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    #[test]
    fn reads_both_versions() {
        let old = tree(&[
            ("memory/kubepods/pod1/memory.usage_in_bytes", "1000\n"),
            ("memory/kubepods/pod1/memory.stat", "inactive_file 5\ntotal_inactive_file 300\n"),
            ("memory/kubepods/pod1/abc/memory.stat", ""),
            ("pids/kubepods/pod1/pids.current", "7\n"),
        ]);
        let cgroups = Cgroups::new(old.path());
        assert_eq!((cgroups.memory("/kubepods/pod1"), cgroups.processes("/kubepods/pod1")), (Some(700), Some(7)));
        assert_eq!(cgroups.container("/kubepods/pod1", "abc").as_deref(), Some("/kubepods/pod1/abc"));
        assert_eq!(cgroups.memory("/kubepods/pod2"), None);
        let new = tree(&[
            ("cgroup.controllers", "memory pids\n"),
            ("kubepods.slice/kubepods-pod1.slice/memory.current", "1000\n"),
            ("kubepods.slice/kubepods-pod1.slice/memory.stat", "anon 1\ninactive_file 400\n"),
            ("kubepods.slice/kubepods-pod1.slice/pids.current", "3\n"),
            ("kubepods.slice/kubepods-pod1.slice/cri-containerd-abc.scope/memory.current", "10\n"),
            ("kubepods.slice/kubepods-pod1.slice/cri-containerd-abc.scope/memory.stat", "inactive_file 1\n"),
        ]);
        let cgroups = Cgroups::new(new.path());
        assert_eq!(
            (cgroups.memory("kubepods-pod1.slice"), cgroups.processes("kubepods-pod1.slice")),
            (Some(600), Some(3))
        );
        let container = cgroups.container("kubepods-pod1.slice", "abc").unwrap();
        assert_eq!(cgroups.memory(&container), Some(9));
    }

    #[test]
    fn counts_blocks_once() {
        let folder = tree(&[("a/b/file", &"x".repeat(100_000)), ("c", "y")]);
        fs::hard_link(folder.path().join("a/b/file"), folder.path().join("link")).unwrap();
        std::os::unix::fs::symlink("/", folder.path().join("root")).unwrap();
        let used = disk_usage(folder.path(), Instant::now() + Duration::from_secs(60)).unwrap();
        assert_eq!(used.inodes, 6, "three folders, two files and a link");
        assert!((100_000..200_000).contains(&used.bytes), "{used:?}");
        let late = disk_usage(folder.path(), Instant::now() - Duration::from_secs(1)).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        assert!(disk_usage(&folder.path().join("none"), Instant::now()).is_err());
        let (space, inodes) = file_system(folder.path()).unwrap();
        assert!(space.capacity > 0 && space.available <= space.capacity && inodes.available <= inodes.capacity);
    }
}
