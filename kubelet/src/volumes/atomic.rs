//! A folder of files that changes as one: readers see the old content or the new, never a mix.
//!
//! The layout is stock's, since programs watch for it: the files are in a folder named by time, `..data` is a link to
//! that folder, and every visible name is a link through `..data`. A change writes a new folder and swaps `..data` by
//! rename.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};

use super::empty_dir;

/// One file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its content.
    pub bytes: Vec<u8>,
    /// Its mode.
    pub mode: u32,
    /// Its owner, if not root.
    pub uid: Option<u32>,
}

/// The files of a volume by their path inside it.
pub type Payload = BTreeMap<PathBuf, File>;

const DATA: &str = "..data";
/// What a volume's group may do with what it shows, whatever the files' own modes say.
const GROUP_READS: u32 = 0o440;

/// Makes `folder` show `payload`, owned by `group` and readable for it if one is given. Returns whether anything changed.
///
/// # Errors
/// A path that leaves the volume, or any I/O error; the old content is then still shown.
pub fn write(folder: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    if let Some(bad) = payload.keys().find(|path| !is_inside(path)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("path {} leaves the volume", bad.display())));
    }
    fs::create_dir_all(folder)?;
    if let Some(group) = group {
        empty_dir::hand_to(folder, group, GROUP_READS | 0o110)?;
    }
    let payload = &readable(payload, group);
    let data = folder.join(DATA);
    let old = fs::read_link(&data).ok();
    if let Some(old) = &old
        && same(&folder.join(old), payload)
    {
        return Ok(false);
    }
    let fresh = write_fresh(folder, payload, group)?;
    let swapped = swap(folder, &data, &fresh);
    if let Err(error) = swapped {
        // What is shown is untouched; the half-made folder is worth nothing.
        let _ = fs::remove_dir_all(folder.join(&fresh));
        return Err(error);
    }
    link_names(folder, payload)?;
    if let Some(old) = old {
        let _ = fs::remove_dir_all(folder.join(old));
    }
    Ok(true)
}

fn readable(payload: &Payload, group: Option<u32>) -> Payload {
    let mut payload = payload.clone();
    if group.is_some() {
        payload.values_mut().for_each(|file| file.mode |= GROUP_READS);
    }
    payload
}

fn is_inside(path: &Path) -> bool {
    let mut parts = path.components();
    let normal = parts.clone().next().is_some() && parts.all(|part| matches!(part, Component::Normal(_)));
    normal && !path.to_string_lossy().starts_with("..")
}

/// Whether the folder holds exactly these files.
fn same(folder: &Path, payload: &Payload) -> bool {
    let mut count = 0;
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        let Ok(entries) = fs::read_dir(&next) else { return false };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let Some(wanted) = path.strip_prefix(folder).ok().and_then(|inside| payload.get(inside)) else {
                return false;
            };
            let mode = fs::metadata(&path).map(|m| m.permissions().mode() & 0o7777).ok();
            if mode != Some(wanted.mode) || fs::read(&path).ok().as_deref() != Some(&wanted.bytes) {
                return false;
            }
            count += 1;
        }
    }
    count == payload.len()
}

fn write_fresh(folder: &Path, payload: &Payload, group: Option<u32>) -> io::Result<PathBuf> {
    let stamp = jiff::Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S");
    let name = PathBuf::from(format!("{stamp}.{}", rand::random::<u32>()));
    let fresh = folder.join(&name);
    fs::create_dir(&fresh)?;
    own_folder(&fresh, group)?;
    let written = payload.iter().try_for_each(|(path, file)| {
        make_parents(&fresh, path, group)?;
        let path = fresh.join(path);
        fs::write(&path, &file.bytes)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))?;
        if file.uid.is_some() || group.is_some() {
            chown(&path, file.uid, group)?;
        }
        Ok(())
    });
    match written {
        Ok(()) => Ok(name),
        Err(error) => {
            let _ = fs::remove_dir_all(&fresh);
            Err(error)
        }
    }
}

/// Makes the folders between `fresh` and the file.
fn make_parents(fresh: &Path, file: &Path, group: Option<u32>) -> io::Result<()> {
    let mut folder = fresh.to_path_buf();
    for part in file.parent().into_iter().flat_map(Path::components) {
        folder.push(part);
        if !folder.exists() {
            fs::create_dir(&folder)?;
            own_folder(&folder, group)?;
        }
    }
    Ok(())
}

fn own_folder(folder: &Path, group: Option<u32>) -> io::Result<()> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    group.map_or(Ok(()), |group| empty_dir::hand_to(folder, group, GROUP_READS | 0o110))
}

fn swap(folder: &Path, data: &Path, fresh: &Path) -> io::Result<()> {
    let beside = folder.join("..data_tmp");
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(fresh, &beside)?;
    fs::rename(&beside, data)
}

/// Links the first part of every path through `..data`, and removes links of files that are gone.
fn link_names(folder: &Path, payload: &Payload) -> io::Result<()> {
    let first = |path: &Path| path.components().next().map(|part| part.as_os_str().to_owned());
    let wanted: BTreeSet<_> = payload.keys().filter_map(|path| first(path)).collect();
    for name in &wanted {
        let link = folder.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link)?;
        }
    }
    for entry in fs::read_dir(folder)?.flatten() {
        let name = entry.file_name();
        if !name.to_string_lossy().starts_with("..") && !wanted.contains(&name) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |text: &str| File { bytes: text.into(), mode: 0o640, uid: None };
        files.iter().map(|(path, text)| (PathBuf::from(path), file(text))).collect()
    }

    #[test]
    fn changes_as_one_and_drops_what_is_gone() {
        let folder = std::env::temp_dir().join(format!("bosun-atomic-{}", std::process::id()));
        let read = |name: &str| fs::read_to_string(folder.join(name));
        assert!(write(&folder, &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap());
        assert_eq!((read("a").unwrap(), read("sub/b").unwrap()), ("1".into(), "2".into()));
        assert_eq!(fs::read_link(folder.join("a")).unwrap(), Path::new("..data/a"));
        assert_eq!(fs::metadata(folder.join("a")).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(!write(&folder, &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap());
        assert!(write(&folder, &payload(&[("a", "3")]), None).unwrap());
        assert_eq!(read("a").unwrap(), "3");
        assert!(read("sub/b").is_err());
        // The folder, the link to it, and one name.
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 3);
        assert!(write(&folder, &payload(&[("../x", "3")]), None).is_err());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_group_reads_whatever_the_mode_and_folders_hand_it_down() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        let mut secret = payload(&[("sub/key", "1")]);
        secret.values_mut().for_each(|file| file.mode = 0o400);
        assert!(write(folder.path(), &secret, Some(2000)).unwrap());
        assert!(!write(folder.path(), &secret, Some(2000)).unwrap(), "nothing changed");
        let look = |path: &str| {
            let meta = fs::metadata(folder.path().join(path)).unwrap();
            (meta.gid(), meta.permissions().mode() & 0o7777)
        };
        assert_eq!(look("sub/key"), (2000, 0o440));
        assert_eq!((look("..data"), look("sub")), ((2000, 0o2755), (2000, 0o2755)));
    }
}
