//! Deletes a folder without ever leaving it: every step down is opened relative to the step before, following no link
//! and crossing no mount (openat2(2)). A mount that is still there, or comes meanwhile, is an error and keeps its files.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, RenameFlags, ResolveFlag, openat2, renameat2};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Folders deeper than this are first moved up: neither the stack nor the number of open files grows with the depth
/// that a container chose.
const DEEPEST: usize = 64;

/// Deletes what is called `name` in `parent`, whatever it is. No error if it is not there.
///
/// # Errors
/// Something is mounted on it or below it, or it cannot be deleted. What could go is gone.
pub(super) fn remove(parent: &Path, name: &str) -> io::Result<()> {
    let how = OpenHow::new().flags(OFlag::O_DIRECTORY | OFlag::O_CLOEXEC);
    let parent = match openat2(AT_FDCWD, parent, how) {
        Err(Errno::ENOENT) => return Ok(()),
        other => other?,
    };
    let name = OsString::from(name);
    let Some(folder) = unlink_or_open(parent.as_fd(), &name)? else { return Ok(()) };
    let mut emptier = Emptier { top: &folder, moved: 0 };
    loop {
        let moved = emptier.moved;
        emptier.empty(&folder, 0)?;
        if emptier.moved == moved {
            break;
        }
    }
    remove_dir(parent.as_fd(), &name)
}

struct Emptier<'a> {
    top: &'a OwnedFd,
    moved: u64,
}

impl Emptier<'_> {
    fn empty(&mut self, folder: &OwnedFd, depth: usize) -> io::Result<()> {
        let mut first = None;
        for name in names(folder)? {
            if let Err(error) = self.remove_one(folder, &name, depth) {
                first.get_or_insert(error);
            }
        }
        first.map_or(Ok(()), Err)
    }

    fn remove_one(&mut self, folder: &OwnedFd, name: &OsString, depth: usize) -> io::Result<()> {
        let Some(inner) = unlink_or_open(folder.as_fd(), name)? else { return Ok(()) };
        if depth >= DEEPEST {
            self.moved += 1;
            let place = format!(".removed-{}-{:08x}", self.moved, rand::random::<u32>());
            return Ok(renameat2(folder, name.as_os_str(), self.top, place.as_str(), RenameFlags::RENAME_NOREPLACE)?);
        }
        self.empty(&inner, depth + 1)?;
        remove_dir(folder.as_fd(), name)
    }
}

/// Deletes what is no folder; opens what is one.
fn unlink_or_open(parent: std::os::fd::BorrowedFd<'_>, name: &OsString) -> io::Result<Option<OwnedFd>> {
    match unlinkat(parent, name.as_os_str(), UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(None),
        Err(Errno::EISDIR) => {}
        Err(error) => return Err(error.into()),
    }
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat2(parent, name.as_os_str(), OpenHow::new().flags(flags).resolve(resolve)) {
        Ok(folder) => Ok(Some(folder)),
        Err(Errno::ENOENT) => Ok(None),
        Err(Errno::EXDEV) => Err(io::Error::other(format!(
            "something is mounted on {}; it was not deleted. Unmount it",
            name.to_string_lossy()
        ))),
        Err(error) => Err(error.into()),
    }
}

fn remove_dir(parent: std::os::fd::BorrowedFd<'_>, name: &OsString) -> io::Result<()> {
    match unlinkat(parent, name.as_os_str(), UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The names of what is in a folder.
pub(super) fn names(folder: &OwnedFd) -> io::Result<Vec<OsString>> {
    let mut listed = Dir::openat(folder, ".", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut names = Vec::new();
    for entry in listed.iter() {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use nix::mount::{MsFlags, mount};

    use super::*;
    use crate::volumes::testing::in_own_mounts;

    #[test]
    fn a_deep_tree_goes_and_what_links_point_to_stays() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("outside")).unwrap();
        fs::write(folder.path().join("outside/kept"), "1").unwrap();
        let mut deep = folder.path().join("gone");
        for _ in 0..300 {
            deep.push("d");
        }
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("file"), "1").unwrap();
        symlink(folder.path().join("outside"), deep.join("link")).unwrap();
        symlink(folder.path().join("outside"), folder.path().join("gone/link")).unwrap();
        remove(folder.path(), "gone").unwrap();
        assert!(!folder.path().join("gone").exists() && folder.path().join("outside/kept").exists());
        remove(folder.path(), "gone").unwrap();
        // A link in the folder's place goes itself.
        symlink(folder.path().join("outside"), folder.path().join("gone")).unwrap();
        remove(folder.path(), "gone").unwrap();
        assert!(folder.path().join("outside/kept").exists());
    }

    #[test]
    fn never_deletes_through_a_mount() {
        in_own_mounts(|| {
            let folder = tempfile::tempdir().unwrap();
            let (data, pod) = (folder.path().join("data"), folder.path().join("pod"));
            fs::create_dir_all(data.join("inner")).unwrap();
            fs::write(data.join("inner/precious"), "1").unwrap();
            fs::create_dir_all(pod.join("volumes/v")).unwrap();
            fs::write(pod.join("other"), "1").unwrap();
            // A bind on the same file system: its device number tells nothing.
            let none: Option<&str> = None;
            mount(Some(&data), &pod.join("volumes/v"), none, MsFlags::MS_BIND, none).unwrap();
            let error = remove(folder.path(), "pod").unwrap_err();
            assert!(error.to_string().contains("mounted on v"), "{error}");
            assert!(data.join("inner/precious").exists() && !pod.join("other").exists());
            nix::mount::umount(&pod.join("volumes/v")).unwrap();
            remove(folder.path(), "pod").unwrap();
            assert!(data.join("inner/precious").exists() && !pod.exists());
        });
    }
}
