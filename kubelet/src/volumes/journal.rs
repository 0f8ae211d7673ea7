//! The durable record of what the kubelet mounts for a pod: one small file a mount, below the pod's folder, written
//! before the mount is made. Whoever takes the pod away, even after a crash at any instant, knows from it what is
//! the kubelet's own; what is really mounted the kernel tells ([`super::mountinfo`]).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What kind of mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    /// Memory.
    Tmpfs,
    /// Huge pages.
    Hugetlbfs,
    /// Part of a volume.
    Bind,
    /// An export of an NFS server.
    Nfs,
}

/// One mount that was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Where, relative to the pod's folder.
    pub(super) target: PathBuf,
    /// What.
    pub(super) kind: Kind,
}

/// The record of one pod.
pub(super) struct Journal<'a> {
    pod: &'a Path,
}

impl<'a> Journal<'a> {
    /// The record of the pod with this folder.
    pub(super) fn of(pod: &'a Path) -> Self {
        Self { pod }
    }

    fn folder(&self) -> PathBuf {
        self.pod.join("mounts")
    }

    /// Writes down, to the disk, that `target` is about to be mounted. Returns once a crash cannot undo that.
    ///
    /// # Errors
    /// The place is not the pod's, or any I/O error; nothing may be mounted then.
    pub(super) fn record(&self, target: &Path, kind: Kind) -> io::Result<()> {
        let outside = |_| io::Error::other(format!("{} is not below {}", target.display(), self.pod.display()));
        let entry = Entry { target: target.strip_prefix(self.pod).map_err(outside)?.to_path_buf(), kind };
        let path = self.folder().join(file_name(&entry.target));
        let known = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Entry>(&bytes).ok());
        if known.as_ref() == Some(&entry) {
            return Ok(());
        }
        super::make_dir(&self.folder(), 0o750)?;
        bosun_kit::files::write_atomic(&path, &serde_json::to_vec(&entry)?, 0o600)
    }

    /// Everything that was begun. A damaged file is passed over: the kernel knows of the mount too.
    pub(super) fn read(&self) -> Vec<Entry> {
        let files = fs::read_dir(self.folder()).into_iter().flatten().flatten();
        files.filter_map(|file| serde_json::from_slice(&fs::read(file.path()).ok()?).ok()).collect()
    }
}

/// A name for the file of one mount; a path would be too long, and has slashes.
fn file_name(target: &Path) -> String {
    let digest = Sha256::digest(target.as_os_str().as_encoded_bytes());
    format!("{}.json", hex::encode(&digest[..8]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_recorded_is_read_once_and_only_for_the_pod() {
        let pod = tempfile::tempdir().unwrap();
        let journal = Journal::of(pod.path());
        assert_eq!(journal.read(), []);
        journal.record(&pod.path().join("volumes/a"), Kind::Tmpfs).unwrap();
        journal.record(&pod.path().join("volumes/a"), Kind::Tmpfs).unwrap();
        assert_eq!(journal.read(), [Entry { target: "volumes/a".into(), kind: Kind::Tmpfs }]);
        assert!(journal.record(Path::new("/elsewhere"), Kind::Bind).is_err());
        fs::write(pod.path().join("mounts/torn.json"), "{").unwrap();
        assert_eq!(journal.read().len(), 1);
    }
}
