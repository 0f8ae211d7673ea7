//! Gives what a volume holds to the pod's group, as `fsGroup` and `fsGroupChangePolicy` ask.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmod, fchmodat, fstat, fstatat};
use nix::unistd::{Gid, fchown, fchownat};

use super::removal::names;

/// When the content is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    /// At every set-up.
    Always,
    /// Only if the volume's root is not the group's yet.
    OnRootMismatch,
}

/// The group may read and write.
const SHARED: u32 = 0o660;
/// It may enter folders, which hand it down.
const FOLDER: u32 = 0o2110;

/// Gives the volume at `path` to the group. Links are handed over themselves and never followed, and what is mounted
/// inside is left alone. The root comes last: a walk that was broken off is known by it.
///
/// # Errors
/// The first thing that could not be changed.
pub(super) fn give(path: &Path, group: u32, policy: Policy) -> io::Result<()> {
    let how = OpenHow::new().flags(OFlag::O_DIRECTORY | OFlag::O_CLOEXEC);
    let root = openat2(AT_FDCWD, path, how)?;
    if policy == Policy::OnRootMismatch && is_given(&root, group)? {
        return Ok(());
    }
    give_folder(root, Gid::from_raw(group))
}

fn is_given(root: &OwnedFd, group: u32) -> io::Result<bool> {
    let found = fstat(root)?;
    let bits = SHARED | FOLDER;
    Ok(found.st_gid == group && found.st_mode & bits == bits)
}

/// Goes down without recursion: a volume may be deeper than the stack. Folders are changed after what they hold.
fn give_folder(root: OwnedFd, group: Gid) -> io::Result<()> {
    let mut open = vec![(names(&root)?, root)];
    while let Some((left, folder)) = open.last_mut() {
        match left.pop() {
            Some(name) => {
                if let Some(inner) = give_one(folder, &name, group)? {
                    open.push((names(&inner)?, inner));
                }
            }
            None => {
                fchown(folder.as_fd(), None, Some(group))?;
                let mode = fstat(folder.as_fd())?.st_mode;
                fchmod(folder.as_fd(), Mode::from_bits_truncate(mode | SHARED | FOLDER))?;
                open.pop();
            }
        }
    }
    Ok(())
}

/// Changes what is no folder; opens what is one. What is gone meanwhile is no error.
fn give_one(folder: &OwnedFd, name: &OsString, group: Gid) -> io::Result<Option<OwnedFd>> {
    let found = match fstatat(folder, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::ENOENT) => return Ok(None),
        other => other?,
    };
    let kind = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT;
    if kind == SFlag::S_IFDIR {
        let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
        let how = OpenHow::new().flags(OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).resolve(resolve);
        return match openat2(folder, name.as_os_str(), how) {
            Ok(inner) => Ok(Some(inner)),
            // Mounted inside, gone, or swapped for something else.
            Err(Errno::EXDEV | Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR) => Ok(None),
            Err(error) => Err(error.into()),
        };
    }
    fchownat(folder, name.as_os_str(), None, Some(group), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if kind != SFlag::S_IFLNK {
        let mode = Mode::from_bits_truncate(found.st_mode | SHARED);
        fchmodat(folder, name.as_os_str(), mode, FchmodatFlags::NoFollowSymlink)?;
    }
    Ok(None)
}
