//! Puts the program and its plugin names into a folder, each step atomic: a runtime never sees half a file.

use crate::PLUGINS;
use std::{fs, io, os::unix::fs::PermissionsExt, path::Path};

const BINARY: &str = "bosun-cni";

/// Copies the program `exe` to `dir/bosun-cni` and links every plugin's name to it.
///
/// # Errors
/// What could not be written, with its path.
pub fn install(exe: &Path, dir: &Path) -> io::Result<()> {
    let place = |error: io::Error| io::Error::new(error.kind(), format!("install into {}: {error}", dir.display()));
    fs::create_dir_all(dir).map_err(place)?;
    let staged = dir.join(format!(".{BINARY}.{}", std::process::id()));
    let done = copy(exe, &staged).and_then(|()| fs::rename(&staged, dir.join(BINARY)));
    if let Err(error) = done {
        let _ = fs::remove_file(&staged);
        return Err(place(error));
    }
    PLUGINS.iter().try_for_each(|name| link(dir, name)).map_err(place)?;
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(place)
}

fn copy(exe: &Path, staged: &Path) -> io::Result<()> {
    fs::copy(exe, staged)?;
    fs::set_permissions(staged, fs::Permissions::from_mode(0o755))?;
    fs::File::open(staged)?.sync_all()
}

fn link(dir: &Path, name: &str) -> io::Result<()> {
    let staged = dir.join(format!(".{name}.{}", std::process::id()));
    let _ = fs::remove_file(&staged);
    std::os::unix::fs::symlink(BINARY, &staged)?;
    fs::rename(&staged, dir.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installs_twice_over_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let exe = dir.path().join("program");
        fs::write(&exe, "program").unwrap();
        let target = dir.path().join("opt/cni/bin");
        fs::create_dir_all(&target).unwrap();
        fs::write(target.join("bridge"), "another plugin").unwrap();
        for _ in 0..2 {
            install(&exe, &target).unwrap();
            for name in PLUGINS {
                assert_eq!(fs::read(target.join(name)).unwrap(), b"program", "{name}");
            }
            assert_eq!(fs::read_dir(&target).unwrap().count(), PLUGINS.len() + 1);
        }
        assert!(install(&dir.path().join("missing"), &target).unwrap_err().to_string().contains("install into"));
    }
}
