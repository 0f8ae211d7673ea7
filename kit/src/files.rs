//! Files that survive a crash: written whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use futures::StreamExt as _;
use inotify::{Inotify, WatchMask};

/// Writes `bytes` to `path` with `mode` so that a reader, or a crash at any instant, sees the old content or the new
/// one and never a part: write beside it, fsync, rename, fsync the folder.
///
/// # Errors
/// Any I/O error, with the path in its text. The old file is then still whole.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let beside = beside(path);
    let written = write_synced(&beside, bytes, mode).and_then(|()| fs::rename(&beside, path));
    if let Err(error) = written {
        // The part-written file is worth nothing; the error that matters is the one above.
        let _ = fs::remove_file(&beside);
        return Err(io::Error::new(error.kind(), format!("write {}: {error}", path.display())));
    }
    File::open(folder)?.sync_all()
}

/// Makes `path` and its parents, the last with `mode`.
///
/// # Errors
/// Any I/O error, with the path in its text.
pub fn create_dir(path: &Path, mode: u32) -> io::Result<()> {
    let make = || {
        fs::create_dir_all(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    };
    make().map_err(|error| io::Error::new(error.kind(), format!("make folder {}: {error}", path.display())))
}

/// Returns once there is a file at `path`, told by the kernel (inotify(7)) when its folder changes.
///
/// # Errors
/// The folder cannot be watched.
pub async fn appears(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let inotify = Inotify::init()?;
    // Watched before the first look, so that nothing is missed in between.
    inotify.watches().add(folder, WatchMask::CREATE | WatchMask::MOVED_TO)?;
    let mut changes = inotify.into_event_stream([0; 1024])?;
    while !path.exists() {
        if let Some(change) = changes.next().await {
            change?;
        }
    }
    Ok(())
}

fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.{:08x}", std::process::id(), rand::random::<u32>()))
}

fn write_synced(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    // The mode given at creation is cut by the umask; the promise is the mode itself.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_whole_with_the_mode_asked_and_leaves_nothing_beside() {
        let folder = std::env::temp_dir().join(format!("bosun-kit-files-{}", std::process::id()));
        create_dir(&folder, 0o700).unwrap();
        let path = folder.join("state");
        write_atomic(&path, b"one", 0o600).unwrap();
        write_atomic(&path, b"two", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[tokio::test]
    async fn a_file_that_appears_is_noticed() {
        let folder = std::env::temp_dir().join(format!("bosun-kit-appears-{}", std::process::id()));
        create_dir(&folder, 0o700).unwrap();
        let path = folder.join("late");
        let waiting = tokio::spawn({
            let path = path.clone();
            async move { appears(&path).await }
        });
        write_atomic(&folder.join("other"), b"", 0o600).unwrap();
        write_atomic(&path, b"", 0o600).unwrap();
        waiting.await.unwrap().unwrap();
        appears(&path).await.unwrap();
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn an_error_names_the_file() {
        let error = write_atomic(Path::new("/nonexistent-folder/state"), b"", 0o600).unwrap_err();
        assert!(error.to_string().contains("/nonexistent-folder/state"), "{error}");
    }
}
