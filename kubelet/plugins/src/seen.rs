//! Which sockets there are in the folder of registrations, and when that changed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};

/// How often to look although the kernel told of nothing, lest an event was lost.
const REPAIR: Duration = Duration::from_secs(60);
/// How often to look when the kernel grants no inotify instance.
const POLL: Duration = Duration::from_secs(1);

/// Which file a path leads to: a socket that was removed and made anew is another one. Its mode and owner may change
/// without that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The device of its file system.
    pub device: u64,
    /// Its inode, which may be used again soon.
    pub inode: u64,
    /// When it was made, where the file system knows.
    pub born: Option<SystemTime>,
}

/// The sockets by their paths.
pub type Seen = BTreeMap<PathBuf, Identity>;

/// Watches a folder, made if need be, and all folders in it. Names that begin with a dot are passed over.
pub struct Folder {
    path: PathBuf,
    events: Option<EventStream<[u8; 4096]>>,
}

impl Folder {
    /// Begins to watch. Where the kernel cannot tell of changes, the folder is looked at every second.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn watch(path: &Path) -> io::Result<Self> {
        bosun_kit::files::create_dir(path, 0o755)?;
        let events = Inotify::init().and_then(|inotify| inotify.into_event_stream([0; 4096]));
        if let Err(error) = &events {
            tracing::warn!(%error, path = %path.display(), "no inotify for plugins; looking every second");
        }
        Ok(Self { path: path.to_path_buf(), events: events.ok() })
    }

    /// The sockets that there are now. What cannot be read is logged and passed over.
    pub fn look(&mut self) -> Seen {
        let mut seen = Seen::new();
        let mut folders = vec![self.path.clone()];
        while let Some(folder) = folders.pop() {
            // Watched before it is read, so that nothing is missed in between.
            if let Err(error) = self.add(&folder).and_then(|()| list(&folder, &mut folders, &mut seen)) {
                tracing::warn!(%error, folder = %folder.display(), "a folder of plugins was passed over");
            }
        }
        seen
    }

    fn add(&self, folder: &Path) -> io::Result<()> {
        let mask =
            WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVE | WatchMask::DELETE_SELF | WatchMask::ONLYDIR;
        match &self.events {
            Some(events) => events.watches().add(folder, mask).map(drop),
            None => Ok(()),
        }
    }

    /// Returns when something may have changed. Can be dropped and called again without losing a change.
    pub async fn changed(&mut self) {
        match &mut self.events {
            Some(events) => {
                // An error of the stream, as an overflow, is a reason to look as well.
                let _ = tokio::time::timeout(REPAIR, events.next()).await;
            }
            None => tokio::time::sleep(POLL).await,
        }
    }
}

fn list(folder: &Path, folders: &mut Vec<PathBuf>, seen: &mut Seen) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        // A link to a socket counts, one to a folder does not: it could lead round in a circle.
        let path = entry.path();
        match (entry.file_type(), fs::metadata(&path)) {
            (Ok(kind), _) if kind.is_dir() => folders.push(path),
            (_, Ok(meta)) if meta.file_type().is_socket() => {
                let born = meta.created().ok();
                seen.insert(path, Identity { device: meta.dev(), inode: meta.ino(), born });
            }
            // No socket, or gone meanwhile.
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn sockets_in_all_folders_that_come_are_seen_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("plugins_registry");
        let mut folder = Folder::watch(&path).unwrap();
        assert!(folder.look().is_empty());
        fs::create_dir_all(path.join("a/b")).unwrap();
        fs::create_dir_all(path.join(".hidden")).unwrap();
        symlink(&path, path.join("a/circle")).unwrap();
        fs::write(path.join("file"), "").unwrap();
        for name in ["one", "a/b/two", ".dot", ".hidden/three"] {
            drop(UnixListener::bind(path.join(name)).unwrap());
        }
        symlink(path.join("one"), path.join("linked")).unwrap();
        folder.changed().await;
        let names = |seen: &Seen| {
            let below = |p: &PathBuf| p.strip_prefix(&path).unwrap().display().to_string();
            seen.keys().map(below).collect::<Vec<_>>().join(" ")
        };
        let first = folder.look();
        assert_eq!(names(&first), "a/b/two linked one");
        // Made anew at once, the same inode number may come back; the file is another all the same.
        fs::remove_file(path.join("a/b/two")).unwrap();
        let _again = UnixListener::bind(path.join("a/b/two")).unwrap();
        tokio::time::timeout(Duration::from_secs(10), folder.changed()).await.unwrap();
        let second = folder.look();
        assert_ne!(first[&path.join("a/b/two")], second[&path.join("a/b/two")]);
        assert_eq!(first[&path.join("one")], second[&path.join("one")]);
    }
}
