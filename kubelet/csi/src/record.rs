//! What is kept of a volume on the disk, in stock's `vol_data.json` with three more fields: what was begun, in which
//! boot of the machine, whether the pod has the device itself. Each file is written whole, before what it tells of is
//! begun; a kubelet that finds one written by stock takes everything for begun and nothing for done.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::names::{self, DATA_FILE};
use crate::plan::Phase;
use crate::volume::{Lifecycle, Volume};

/// What is kept of a volume for one pod, or of one that is staged. All fields are strings, as stock reads them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// The driver's name.
    #[serde(rename = "driverName")]
    pub driver: String,
    /// The name by which the driver knows the volume.
    #[serde(rename = "volumeHandle")]
    pub handle: String,
    /// The persistent volume's name, or that of the pod's inline volume.
    #[serde(rename = "specVolID")]
    pub name: String,
    /// The node's name.
    #[serde(rename = "nodeName")]
    pub node: String,
    /// The name of its attachment; empty where nothing is attached.
    #[serde(rename = "attachmentID")]
    pub attachment: String,
    /// `Persistent` or `Ephemeral`.
    #[serde(rename = "volumeLifecycleMode")]
    pub lifecycle: String,
    /// How far it is; begun, if stock wrote the file.
    #[serde(rename = "bosunPhase", default = "begun")]
    pub phase: Phase,
    /// In which boot of the machine that was.
    #[serde(rename = "bosunBoot")]
    pub boot: String,
    /// `block` for a device.
    #[serde(rename = "bosunMode")]
    pub mode: String,
}

fn begun() -> Phase {
    Phase::Publishing
}

impl Record {
    /// The record of a volume of which nothing was begun.
    pub fn new(volume: &Volume, node: &str, attachment: Option<String>, boot: &str) -> Self {
        Self {
            driver: volume.driver.clone(),
            handle: volume.handle.clone(),
            name: volume.name.clone(),
            node: node.to_owned(),
            attachment: attachment.unwrap_or_default(),
            lifecycle: volume.lifecycle.as_str().to_owned(),
            phase: Phase::Wanted,
            boot: boot.to_owned(),
            mode: if volume.block { "block".to_owned() } else { String::new() },
        }
    }

    /// Whether the pod has the device itself.
    pub fn is_block(&self) -> bool {
        self.mode == "block"
    }

    /// Whether it is a persistent volume.
    pub fn is_persistent(&self) -> bool {
        self.lifecycle != Lifecycle::Ephemeral.as_str()
    }

    /// How far it is in this boot: what was mounted before is not any more.
    pub fn phase_in(&self, boot: &str) -> Phase {
        if self.boot == boot { self.phase } else { Phase::Wanted }
    }
}

/// A pod's record and where it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The pod's UID.
    pub pod: String,
    /// The file.
    pub file: PathBuf,
    /// What it says.
    pub record: Record,
}

/// The file of the record of a pod's volume.
pub fn pod_file(root: &Path, pod_uid: &str, name: &str, block: bool) -> PathBuf {
    match block {
        true => names::block_data(root, name).join(format!("{pod_uid}.json")),
        false => names::pod_volume(root, pod_uid, name).join(DATA_FILE),
    }
}

/// The file of the record of a staged volume.
pub fn staged_file(root: &Path, record: &Record) -> PathBuf {
    match record.is_block() {
        true => names::block_data(root, &record.name).join(DATA_FILE),
        false => names::staging(root, &record.driver, &record.handle).join(DATA_FILE),
    }
}

/// Reads a record; none if there is none.
///
/// # Errors
/// Any I/O error, and a file that holds no record: nothing may be taken for given back then.
pub fn read(file: &Path) -> io::Result<Option<Record>> {
    match fs::read(file) {
        Ok(bytes) => {
            let of = |error| {
                io::Error::other(format!("{}: {error}; remove the file once its volume is unmounted", file.display()))
            };
            serde_json::from_slice(&bytes).map(Some).map_err(of)
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(io::Error::new(error.kind(), format!("read {}: {error}", file.display()))),
    }
}

/// Writes a record so that a crash leaves the old one or the new one.
///
/// # Errors
/// Any I/O error.
pub fn write(file: &Path, record: &Record) -> io::Result<()> {
    if let Some(folder) = file.parent().filter(|folder| !folder.is_dir()) {
        bosun_kit::files::create_dir(folder, 0o750)?;
    }
    bosun_kit::files::write_atomic(file, &serde_json::to_vec(record)?, 0o600)
}

/// Removes a record, its folder and those above it up to `top`, as far as they are empty.
///
/// # Errors
/// The file cannot be removed.
pub fn remove(file: &Path, top: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let folders = file.ancestors().skip(1).take_while(|folder| *folder != top && folder.starts_with(top));
    for folder in folders {
        if fs::remove_dir(folder).is_err() {
            break;
        }
    }
    Ok(())
}

/// All records of one pod.
///
/// # Errors
/// As [`read`].
pub fn of_pod(root: &Path, pod_uid: &str) -> io::Result<Vec<Kept>> {
    let mut kept = Vec::new();
    for folder in children(&names::pod_volumes(root, pod_uid)) {
        let file = folder.join(DATA_FILE);
        if let Some(record) = read(&file)? {
            kept.push(Kept { pod: pod_uid.to_owned(), file, record });
        }
    }
    for folder in children(&names::block_volumes(root)) {
        let file = folder.join("data").join(format!("{pod_uid}.json"));
        if let Some(record) = read(&file)? {
            kept.push(Kept { pod: pod_uid.to_owned(), file, record });
        }
    }
    Ok(kept)
}

/// The records of all pods. A file that cannot be read is logged and passed over.
pub fn all(root: &Path) -> Vec<Kept> {
    let mut kept = Vec::new();
    let mut add = |pod: &str, file: PathBuf| match read(&file) {
        Ok(Some(record)) => kept.push(Kept { pod: pod.to_owned(), file, record }),
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "a volume's record was passed over"),
    };
    for pod in children(&root.join("pods")) {
        let uid = pod.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for folder in children(&names::pod_volumes(root, &uid)) {
            add(&uid, folder.join(DATA_FILE));
        }
    }
    for folder in children(&names::block_volumes(root)) {
        for file in children(&folder.join("data")) {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            match name.strip_suffix(".json") {
                Some(uid) if name != DATA_FILE && !name.starts_with('.') => add(uid, file),
                _ => {}
            }
        }
    }
    kept
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let mut children: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    children.sort();
    children
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_found_read_and_removed_with_their_folders() {
        let root = tempfile::tempdir().unwrap();
        let record = |name: &str, mode: &str| Record {
            driver: "d".into(),
            handle: format!("h-{name}"),
            name: name.into(),
            mode: mode.into(),
            boot: "b1".into(),
            phase: Phase::Ready,
            ..Record::default()
        };
        for (uid, name, mode) in [("u1", "pv1", ""), ("u2", "pv1", ""), ("u1", "pv2", "block")] {
            write(&pod_file(root.path(), uid, name, mode == "block"), &record(name, mode)).unwrap();
        }
        let show = |kept: &[Kept]| {
            kept.iter().map(|k| format!("{}/{}{}", k.pod, k.record.name, k.record.mode)).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(show(&all(root.path())), "u1/pv1 u2/pv1 u1/pv2block");
        let own = of_pod(root.path(), "u1").unwrap();
        assert_eq!(show(&own), "u1/pv1 u1/pv2block");
        assert_eq!((own[0].record.phase_in("b1"), own[0].record.phase_in("b2")), (Phase::Ready, Phase::Wanted));
        remove(&own[1].file, &names::block_volumes(root.path())).unwrap();
        assert!(!names::block_data(root.path(), "pv2").exists() && names::block_volumes(root.path()).exists());
        fs::write(&own[0].file, "{").unwrap();
        assert!(of_pod(root.path(), "u1").unwrap_err().to_string().contains("vol_data.json"));
        assert_eq!(show(&all(root.path())), "u2/pv1");
    }

    #[test]
    fn what_stock_wrote_is_begun_and_not_done() {
        let text = r#"{"attachmentID":"csi-1","driverName":"d","nodeName":"n","specVolID":"pv","volumeHandle":"h","volumeLifecycleMode":"Persistent"}"#;
        let record: Record = serde_json::from_str(text).unwrap();
        assert_eq!(
            (record.phase, record.phase_in("now"), record.is_persistent()),
            (Phase::Publishing, Phase::Wanted, true)
        );
        let written = serde_json::to_value(&record).unwrap();
        assert!(written.as_object().unwrap().values().all(serde_json::Value::is_string));
    }
}
