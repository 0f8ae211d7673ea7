//! Part of a volume, bound to a place of the kubelet's own before a container sees it.
//!
//! What a volume holds is the containers' to change, at any instant. So the path is opened inside the volume by the
//! kernel in one step that cannot leave it (openat2(2) with `RESOLVE_BENEATH`: a link may point about inside the
//! volume, and nowhere else), and what was opened is bound, whatever the path means by then.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, fchmod, mkdirat};

use super::journal::{Journal, Kind};

/// How often a path is looked up anew when folders above it are renamed meanwhile.
const TRIES: u32 = 64;

/// For what a part of a volume is bound.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    /// The pod's folder.
    pub(super) pod: &'a Path,
    /// The volume's name.
    pub(super) volume: &'a str,
    /// The container's name.
    pub(super) container: &'a str,
    /// Which of the container's mounts.
    pub(super) index: usize,
}

/// Why a part of a volume cannot be given.
#[derive(Debug)]
pub(super) enum Failed {
    /// It is not there and cannot be made.
    Create(io::Error),
    /// It cannot be opened or bound.
    Prepare(io::Error),
}

/// Binds `sub` of the volume at `volume`, made if it is missing and `create` is given; returns where.
pub(super) fn bind(volume: &Path, sub: &Path, place: &Place<'_>, create: bool) -> Result<PathBuf, Failed> {
    let root = open_volume(volume).map_err(Failed::Prepare)?;
    let opened = match beneath(&root, sub, OFlag::O_PATH) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && create => {
            make(&root, sub).map_err(Failed::Create)?;
            beneath(&root, sub, OFlag::O_PATH)
        }
        other => other,
    }
    .map_err(Failed::Prepare)?;
    bind_to(&opened, place).map_err(Failed::Prepare)
}

/// The text of a file in the volume at `volume`, of `limit` bytes at most; none if it is not there.
pub(crate) fn read(volume: &Path, sub: &Path, limit: u64) -> io::Result<Option<String>> {
    let opened = open_volume(volume).and_then(|root| beneath(&root, sub, OFlag::O_RDONLY | OFlag::O_NONBLOCK));
    let file = match opened {
        Ok(opened) => fs::File::from(opened),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let known = file.metadata()?;
    if !known.is_file() || known.len() > limit {
        let what = format!("not a regular file of {limit} bytes at most");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(file, limit), &mut text)?;
    Ok(Some(text))
}

fn open_volume(volume: &Path) -> io::Result<OwnedFd> {
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC);
    Ok(openat2(nix::fcntl::AT_FDCWD, volume, how)?)
}

fn beneath(root: &OwnedFd, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
    for _ in 1..TRIES {
        match openat2(root, path, how) {
            // Something was renamed meanwhile, and the kernel cannot vouch for the way it took.
            Err(Errno::EAGAIN) => {}
            other => return Ok(other?),
        }
    }
    Ok(openat2(root, path, how)?)
}

/// Makes the folders of a missing path with the mode of the volume, each opened before the next is made in it.
fn make(root: &OwnedFd, sub: &Path) -> io::Result<()> {
    let mode = fs::metadata(of_fd(root))?.permissions().mode() & 0o777;
    let mut so_far = PathBuf::from(".");
    for part in sub.components() {
        let parent = beneath(root, &so_far, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        so_far.push(part);
        match mkdirat(&parent, part.as_os_str(), Mode::from_bits_truncate(mode)) {
            Err(Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
            Ok(()) => {
                // The mode at creation is cut by the umask.
                let made = beneath(root, &so_far, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW)?;
                fchmod(&made, Mode::from_bits_truncate(mode))?;
            }
        }
    }
    Ok(())
}

fn bind_to(opened: &OwnedFd, place: &Place<'_>) -> io::Result<PathBuf> {
    let folder = place.pod.join("volume-subpaths").join(place.volume).join(place.container);
    let target = folder.join(place.index.to_string());
    super::make_dir(&folder, 0o750)?;
    // Left from an earlier start of the container, which may have had something else there.
    while umount2(&target, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH).is_ok() {}
    let is_dir = fs::metadata(of_fd(opened))?.is_dir();
    match fs::symlink_metadata(&target) {
        Ok(known) if known.is_dir() == is_dir => {}
        Ok(known) if known.is_dir() => fs::remove_dir(&target)?,
        Ok(_) => fs::remove_file(&target)?,
        Err(_) => {}
    }
    match (is_dir, target.exists()) {
        (true, false) => fs::create_dir(&target)?,
        (false, false) => drop(fs::File::create_new(&target)?),
        _ => {}
    }
    Journal::of(place.pod).record(&target, Kind::Bind)?;
    let none: Option<&str> = None;
    mount(Some(of_fd(opened).as_str()), &target, none, MsFlags::MS_BIND, none)?;
    Ok(target)
}

fn of_fd(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

    use super::*;
    use crate::volumes::testing::in_own_mounts;

    struct Rig {
        root: tempfile::TempDir,
    }

    impl Rig {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            for folder in ["pod", "volume", "outside/deep"] {
                fs::create_dir_all(root.path().join(folder)).unwrap();
            }
            fs::set_permissions(root.path().join("volume"), fs::Permissions::from_mode(0o2777)).unwrap();
            fs::write(root.path().join("outside/secret"), "1").unwrap();
            Self { root }
        }

        fn at(&self, path: &str) -> PathBuf {
            self.root.path().join(path)
        }

        fn bind(&self, sub: &str) -> Result<PathBuf, Failed> {
            let place = Place { pod: &self.at("pod"), volume: "v", container: "c", index: 0 };
            bind(&self.at("volume"), Path::new(sub), &place, true)
        }
    }

    #[test]
    fn files_folders_and_links_inside_are_bound_where_stock_has_them() {
        in_own_mounts(|| {
            let rig = Rig::new();
            let place = rig.bind("a/b").unwrap();
            assert_eq!(place, rig.at("pod/volume-subpaths/v/c/0"));
            assert_eq!(fs::metadata(rig.at("volume/a/b")).unwrap().permissions().mode() & 0o777, 0o777);
            fs::write(place.join("file"), "1").unwrap();
            assert!(rig.at("volume/a/b/file").exists());
            // The same place again: a file this time, through a link that stays inside.
            symlink("b/file", rig.at("volume/a/link")).unwrap();
            assert_eq!(fs::read_to_string(rig.bind("a/link").unwrap()).unwrap(), "1");
            assert_eq!(Journal::of(&rig.at("pod")).read().len(), 1);
            umount2(&place, MntFlags::MNT_DETACH).unwrap();
            assert!(umount2(&place, MntFlags::MNT_DETACH).is_err(), "one mount at most is left");
        });
    }

    #[test]
    fn a_link_that_leaves_is_refused_and_nothing_is_made_behind_it() {
        in_own_mounts(|| {
            let rig = Rig::new();
            symlink(rig.at("outside"), rig.at("volume/absolute")).unwrap();
            symlink("../outside", rig.at("volume/relative")).unwrap();
            for sub in ["absolute", "relative", "absolute/new", "relative/new", "relative/deep", "absolute/secret"] {
                assert!(rig.bind(sub).is_err(), "{sub}");
            }
            assert!(!rig.at("outside/new").exists());
        });
    }

    #[test]
    fn swapping_while_it_is_bound_never_reaches_outside() {
        in_own_mounts(|| {
            let rig = Rig::new();
            fs::create_dir_all(rig.at("volume/way/deep")).unwrap();
            symlink("../outside", rig.at("volume/trap")).unwrap();
            let inside = fs::metadata(rig.at("volume/way/deep")).unwrap().ino();
            let stop = Arc::new(AtomicBool::new(false));
            let swapper = std::thread::spawn({
                let (stop, way, trap) = (stop.clone(), rig.at("volume/way"), rig.at("volume/trap"));
                move || {
                    while !stop.load(Ordering::Relaxed) {
                        renameat2(AT_FDCWD, &way, AT_FDCWD, &trap, RenameFlags::RENAME_EXCHANGE).unwrap();
                    }
                }
            });
            let (mut bound, mut refused) = (0, 0);
            for round in 0..3000 {
                match rig.bind("way/deep") {
                    Ok(place) => {
                        assert_eq!(fs::metadata(place).unwrap().ino(), inside, "round {round}");
                        bound += 1;
                    }
                    Err(_) => refused += 1,
                }
                // Missing below the trap as below the folder: it is made, inside or not at all.
                let _ = rig.bind(&format!("way/new{round}"));
            }
            stop.store(true, Ordering::Relaxed);
            swapper.join().unwrap();
            assert!(bound > 0 && refused > 0, "the race was run: {bound} bound, {refused} refused");
            assert_eq!(fs::read_dir(rig.at("outside")).unwrap().count(), 2);
            while umount2(&rig.at("pod/volume-subpaths/v/c/0"), MntFlags::MNT_DETACH).is_ok() {}
        });
    }
}
