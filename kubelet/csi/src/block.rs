//! Devices of block volumes, made known as in stock: bound under the plugin's folder, where each pod of the node has its
//! own, and linked from the pod's folder, which is what a container is given.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Binds the device at `global` and links to it at `link`. Safe to repeat.
///
/// # Errors
/// Any I/O error, with the path in its text.
pub fn map(device: &Path, global: &Path, link: &Path) -> io::Result<()> {
    let at = |path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"))
    };
    for path in [global, link] {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(at(folder))?;
        }
    }
    // What a kubelet that was killed left there is undone first, so that nothing is bound twice.
    unmap(global, link)?;
    fs::File::create(global).map_err(at(global))?;
    let none: Option<&str> = None;
    mount(Some(device), global, none, MsFlags::MS_BIND, none).map_err(|errno| at(global)(errno.into()))?;
    symlink(device, link).map_err(at(link))
}

/// Takes the link and the bound device away. No error if they are not there.
///
/// # Errors
/// Any I/O error.
pub fn unmap(global: &Path, link: &Path) -> io::Result<()> {
    gone(fs::remove_file(link))?;
    match umount2(global, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    gone(fs::remove_file(global))
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Err(error),
        _ => Ok(()),
    }
}
