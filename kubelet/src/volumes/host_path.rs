//! hostPath volumes: a path of the node, checked to be of the kind that is asked for.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Component, Path};

use k8s_openapi::api::core::v1::HostPathVolumeSource;

/// Checks the path, and makes what is to be made.
///
/// # Errors
/// What is wrong, in stock's words.
pub(super) fn check(source: &HostPathVolumeSource) -> Result<(), String> {
    let path = Path::new(&source.path);
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(format!("invalid HostPath `{}`: must not contain '..'", source.path));
    }
    let wanted = source.type_.as_deref().unwrap_or_default();
    let found = fs::metadata(path);
    let fail = |what: &str| Err(format!("hostPath type check failed: {} is not {what}", source.path));
    match (wanted, &found) {
        ("", _) => Ok(()),
        ("DirectoryOrCreate", Err(_)) => bosun_kit::files::create_dir(path, 0o755).map_err(|e| e.to_string()),
        ("FileOrCreate", Err(_)) => fs::File::create_new(path)
            .and_then(|file| file.set_permissions(fs::Permissions::from_mode(0o644)))
            .map_err(|error| format!("create {}: {error}", source.path)),
        ("Directory" | "DirectoryOrCreate", Ok(meta)) if meta.is_dir() => Ok(()),
        ("Directory" | "DirectoryOrCreate", _) => fail("a directory"),
        ("File" | "FileOrCreate", Ok(meta)) if meta.is_file() => Ok(()),
        ("File" | "FileOrCreate", _) => fail("a file"),
        ("Socket", Ok(meta)) if meta.file_type().is_socket() => Ok(()),
        ("Socket", _) => fail("a socket file"),
        ("CharDevice", Ok(meta)) if meta.file_type().is_char_device() => Ok(()),
        ("CharDevice", _) => fail("a character device"),
        ("BlockDevice", Ok(meta)) if meta.file_type().is_block_device() => Ok(()),
        ("BlockDevice", _) => fail("a block device"),
        (other, _) => Err(format!("{other} is an invalid volume type")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_takes_its_own_and_refuses_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        fs::create_dir(at("dir")).unwrap();
        fs::write(at("file"), "").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let try_at = |path: String, kind: &str| {
            check(&HostPathVolumeSource { path, type_: Some(kind.to_owned()) })
                .map_err(|text| text.replace(folder.path().to_str().unwrap(), ""))
        };
        let mut table = String::new();
        for kind in ["", "Directory", "File", "Socket", "CharDevice", "BlockDevice", "Wheel"] {
            for path in [at("dir"), at("file"), at("socket"), "/dev/null".to_owned(), at("none")] {
                if let Err(text) = try_at(path, kind) {
                    table.push_str(&format!("{kind}: {text}\n"));
                }
            }
        }
        let golden = "\
Directory: hostPath type check failed: /file is not a directory
Directory: hostPath type check failed: /socket is not a directory
Directory: hostPath type check failed: /dev/null is not a directory
Directory: hostPath type check failed: /none is not a directory
File: hostPath type check failed: /dir is not a file
File: hostPath type check failed: /socket is not a file
File: hostPath type check failed: /dev/null is not a file
File: hostPath type check failed: /none is not a file
Socket: hostPath type check failed: /dir is not a socket file
Socket: hostPath type check failed: /file is not a socket file
Socket: hostPath type check failed: /dev/null is not a socket file
Socket: hostPath type check failed: /none is not a socket file
CharDevice: hostPath type check failed: /dir is not a character device
CharDevice: hostPath type check failed: /file is not a character device
CharDevice: hostPath type check failed: /socket is not a character device
CharDevice: hostPath type check failed: /none is not a character device
BlockDevice: hostPath type check failed: /dir is not a block device
BlockDevice: hostPath type check failed: /file is not a block device
BlockDevice: hostPath type check failed: /socket is not a block device
BlockDevice: hostPath type check failed: /dev/null is not a block device
BlockDevice: hostPath type check failed: /none is not a block device
Wheel: Wheel is an invalid volume type
Wheel: Wheel is an invalid volume type
Wheel: Wheel is an invalid volume type
Wheel: Wheel is an invalid volume type
Wheel: Wheel is an invalid volume type
";
        assert_eq!(table, golden);
        try_at(at("made/deep"), "DirectoryOrCreate").unwrap();
        try_at(at("made/file"), "FileOrCreate").unwrap();
        let mode = |path: &str| fs::metadata(at(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("made/deep"), mode("made/file")), (0o755, 0o644));
        let error = try_at(at("dir/../file"), "File").unwrap_err();
        assert_eq!(error, "invalid HostPath `/dir/../file`: must not contain '..'");
    }
}
