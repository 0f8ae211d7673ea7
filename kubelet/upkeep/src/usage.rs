//! What pods use: what is told of it, and disks measured by counting blocks.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::ops::AddAssign;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
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
