//! What files take on disk: of a file system by asking it, of a folder by walking it.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::summary::FsStats;

/// Bytes and inodes in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUse {
    /// Bytes.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// Remembers for a while how large folders are: walking them costs.
pub(crate) struct Folders {
    period: Duration,
    known: Mutex<HashMap<PathBuf, (Instant, DiskUse)>>,
}

impl Folders {
    /// A folder is walked again after `period`.
    pub(crate) fn new(period: Duration) -> Self {
        Self { period, known: Mutex::default() }
    }

    /// How large `folder` is; `None` if it cannot be read.
    pub(crate) fn size(&self, folder: &Path) -> Option<DiskUse> {
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((when, size)) = lock().get(folder)
            && when.elapsed() < self.period
        {
            return Some(*size);
        }
        let size = walk(folder)?;
        let mut known = lock();
        known.retain(|_, (when, _)| when.elapsed() < self.period);
        known.insert(folder.to_owned(), (Instant::now(), size));
        Some(size)
    }
}

/// Walks `folder` without leaving its file system; a file with several names counts once.
fn walk(folder: &Path) -> Option<DiskUse> {
    let top = fs::symlink_metadata(folder).ok()?;
    let mut seen = HashSet::new();
    let mut size = DiskUse::default();
    let mut folders = vec![folder.to_owned()];
    let mut count = |meta: &fs::Metadata| {
        if meta.nlink() < 2 || meta.is_dir() || seen.insert(meta.ino()) {
            size.bytes += meta.blocks() * 512;
            size.inodes += 1;
        }
    };
    count(&top);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            // Files come and go meanwhile.
            let Ok(meta) = entry.metadata() else { continue };
            if meta.dev() != top.dev() {
                continue;
            }
            count(&meta);
            if meta.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Some(size)
}

/// Whether a file system is mounted at `folder`.
pub(crate) fn is_mount_point(folder: &Path) -> bool {
    let device = |path: &Path| fs::symlink_metadata(path).map(|meta| meta.dev()).ok();
    folder.parent().is_some_and(|parent| device(parent) != device(folder))
}

/// The file system of `path`; none if it cannot be read.
pub fn file_system(path: &Path, now: Timestamp) -> Option<FsStats> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    let block = stat.fragment_size();
    Some(FsStats {
        time: now,
        available_bytes: stat.blocks_available() * block,
        capacity_bytes: stat.blocks() * block,
        used_bytes: stat.blocks().saturating_sub(stat.blocks_free()) * block,
        inodes_free: stat.files_free(),
        inodes: stat.files(),
        inodes_used: stat.files().saturating_sub(stat.files_free()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_each_file_once_and_remembers() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        fs::write(folder.path().join("sub/a"), vec![1; 10_000]).unwrap();
        fs::hard_link(folder.path().join("sub/a"), folder.path().join("b")).unwrap();
        let folders = Folders::new(Duration::from_secs(60));
        let first = folders.size(folder.path()).unwrap();
        assert_eq!(first.inodes, 3);
        assert!((10_000..40_000).contains(&first.bytes), "{first:?}");
        fs::write(folder.path().join("c"), "more").unwrap();
        assert_eq!(folders.size(folder.path()), Some(first));
        assert_eq!(Folders::new(Duration::ZERO).size(folder.path()).unwrap().inodes, 4);
        assert_eq!(folders.size(Path::new("/nowhere")), None);
        assert!(!is_mount_point(folder.path()) && is_mount_point(Path::new("/proc")));
    }
}
