//! The file by which claims are known to the next kubelet: `dra_manager_state`, in stock's form, so that a node can go
//! from one to the other with its pods running.
//!
//! An object with `Data` (JSON in a text) and its CRC-32. Written whole or not at all.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::cache::{Cache, ClaimInfo};

/// The file's name in the kubelet's folder.
pub const FILE: &str = "dra_manager_state";
const KIND: &str = "DRACheckpoint";
const GROUP: &str = "checkpoint.dra.kubelet.k8s.io/";
const VERSION: &str = "checkpoint.dra.kubelet.k8s.io/v1";

/// Why the file cannot be used. Which claims are prepared is then not known, and guessing would leave devices in use.
#[derive(Debug, Error)]
#[error("DRA state file {path}: {reason}; drain the node, remove the file and start the kubelet again")]
pub struct Corrupt {
    path: String,
    reason: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct File {
    data: String,
    checksum: u32,
}

#[derive(Serialize, Deserialize)]
struct Data {
    #[serde(default)]
    kind: String,
    #[serde(default, rename = "apiVersion")]
    api_version: String,
    #[serde(default, rename = "Entries", alias = "ClaimInfoStateList")]
    entries: Option<Vec<ClaimInfo>>,
}

/// The text of the file.
pub fn encode(cache: &Cache) -> serde_json::Result<String> {
    let entries: Vec<ClaimInfo> = cache.claims().cloned().collect();
    let entries = (!entries.is_empty()).then_some(entries);
    let data = serde_json::to_string(&Data { kind: KIND.into(), api_version: VERSION.into(), entries })?;
    let checksum = crc32fast::hash(data.as_bytes());
    serde_json::to_string(&File { data, checksum })
}

/// What a file says.
///
/// # Errors
/// In words: it is no such file, or not as it was written.
pub fn decode(text: &str) -> Result<Cache, String> {
    let file: File = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let sum = crc32fast::hash(file.data.as_bytes());
    if sum != file.checksum {
        return Err(format!("checkpoint is corrupted (its checksum is {}, its data's {sum})", file.checksum));
    }
    let data: Data = serde_json::from_str(&file.data).map_err(|error| error.to_string())?;
    if data.kind != KIND || !data.api_version.starts_with(GROUP) {
        return Err(format!("{} of {} is not {KIND} of {VERSION}", data.kind, data.api_version));
    }
    Ok(Cache::new(data.entries.unwrap_or_default()))
}

/// Where the file is.
#[derive(Clone, Debug)]
pub struct Checkpoint(PathBuf);

impl Checkpoint {
    /// In the kubelet's folder.
    pub fn within(folder: &Path) -> Self {
        Self(folder.join(FILE))
    }

    /// What it says; nothing if there is none.
    ///
    /// # Errors
    /// It cannot be read or is damaged.
    pub fn load(&self) -> Result<Cache, Corrupt> {
        let corrupt = |reason: String| Corrupt { path: self.0.display().to_string(), reason };
        match fs::read_to_string(&self.0) {
            Ok(text) => decode(&text).map_err(corrupt),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Cache::default()),
            Err(error) => Err(corrupt(error.to_string())),
        }
    }

    /// Has it say this.
    ///
    /// # Errors
    /// It cannot be written; the old file is then whole.
    pub fn store(&self, cache: &Cache) -> io::Result<()> {
        let text = encode(cache).map_err(io::Error::other)?;
        bosun_kit::files::write_atomic(&self.0, text.as_bytes(), 0o600)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Device, DriverState};

    /// As a stock kubelet writes it.
    const STOCK: &str = r#"{"kind":"DRACheckpoint","apiVersion":"checkpoint.dra.kubelet.k8s.io/v1","Entries":[{"ClaimUID":"u1","ClaimName":"gpu","Namespace":"default","PodUIDs":{"p1":{}},"DriverState":{"gpu.example.com":{"Devices":[{"PoolName":"n1","DeviceName":"d1","ShareID":null,"RequestNames":["r"],"CDIDeviceIDs":["example.com/gpu=d1"]}]},"none.example.com":{"Devices":null}}}]}"#;

    fn file(data: &str) -> String {
        serde_json::to_string(&File { data: data.into(), checksum: crc32fast::hash(data.as_bytes()) }).unwrap()
    }

    #[test]
    fn stock_s_file_is_read_and_written_byte_by_byte() {
        let cache = decode(&file(STOCK)).unwrap();
        let device = Device {
            pool_name: "n1".into(),
            device_name: "d1".into(),
            share_id: None,
            request_names: vec!["r".into()],
            cdi_device_ids: vec!["example.com/gpu=d1".into()],
        };
        let claim = ClaimInfo {
            claim_uid: "u1".into(),
            claim_name: "gpu".into(),
            namespace: "default".into(),
            pod_uids: ["p1".to_owned()].into(),
            driver_state: [
                ("gpu.example.com".to_owned(), DriverState { devices: vec![device] }),
                ("none.example.com".to_owned(), DriverState::default()),
            ]
            .into(),
            prepared: false,
        };
        assert_eq!(cache, Cache::new([claim]));
        assert_eq!(encode(&cache).unwrap(), file(STOCK));
        let empty = encode(&Cache::default()).unwrap();
        assert!(empty.contains(r#"\"Entries\":null"#), "{empty}");
        assert!(decode(&empty).unwrap().is_empty());
    }

    #[test]
    fn damage_is_found_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::within(folder.path());
        assert!(checkpoint.load().unwrap().is_empty());
        checkpoint.store(&decode(&file(STOCK)).unwrap()).unwrap();
        assert!(!checkpoint.load().unwrap().is_empty());
        let path = folder.path().join(FILE);
        let text = fs::read_to_string(&path).unwrap();
        for damaged in [text.replace("gpu", "tpu"), text[..text.len() / 2].to_owned(), String::new()] {
            fs::write(&path, damaged).unwrap();
            let error = checkpoint.load().unwrap_err().to_string();
            assert!(error.contains(FILE) && error.contains("drain the node"), "{error}");
        }
        let foreign = file(&STOCK.replace("DRACheckpoint", "Other"));
        assert!(decode(&foreign).unwrap_err().contains("Other"));
    }
}
