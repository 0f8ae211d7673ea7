//! `kubelet_internal_checkpoint`, the file in which stock keeps who has which devices.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bosun_kubelet_alignment::dump::Go;
use bosun_proto::deviceplugin::ContainerAllocateResponse;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::table::{Allocation, Allocations, Table};

/// Why the file is not taken.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CheckpointError {
    /// No JSON of the right form.
    #[error("{0}")]
    Malformed(String),
    /// Its checksum is another.
    #[error("checkpoint is corrupted")]
    Corrupt,
}

#[derive(Debug, Deserialize, Serialize)]
struct File {
    #[serde(rename = "Data")]
    data: Data,
    #[serde(rename = "Checksum")]
    checksum: u64,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Data {
    /// Null for none, as in Go.
    pod_device_entries: Option<Vec<Entry>>,
    registered_devices: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    #[serde(rename = "PodUID")]
    pod_uid: String,
    container_name: String,
    resource_name: String,
    #[serde(rename = "DeviceIDs")]
    device_ids: BTreeMap<i64, Vec<String>>,
    /// The plugin's answer, as protocol buffers in base64.
    alloc_resp: String,
}

impl Data {
    fn sum(&self) -> u64 {
        let strings = |list: &[String]| Go::Slice("[]string", list.iter().map(Go::str).collect());
        let entry = |entry: &Entry| {
            let ids = entry.device_ids.iter();
            let ids = ids.map(|(node, ids)| (Go::Number("int64", i128::from(*node)), strings(ids))).collect();
            let bytes = STANDARD.decode(&entry.alloc_resp).unwrap_or_default();
            let fields = vec![
                ("PodUID", Go::str(&entry.pod_uid)),
                ("ContainerName", Go::str(&entry.container_name)),
                ("ResourceName", Go::str(&entry.resource_name)),
                ("DeviceIDs", Go::Map("checkpoint.DevicesPerNUMA", ids)),
                (
                    "AllocResp",
                    Go::Slice("[]uint8", bytes.iter().map(|b| Go::Number("uint8", i128::from(*b))).collect()),
                ),
            ];
            Go::Struct("checkpoint.PodDevicesEntry", fields)
        };
        const ENTRIES: &str = "[]checkpoint.PodDevicesEntry";
        let entries = match &self.pod_device_entries {
            Some(entries) => Go::Slice(ENTRIES, entries.iter().map(entry).collect()),
            None => Go::Nil(ENTRIES),
        };
        let registered = self.registered_devices.iter().map(|(name, ids)| (Go::str(name), strings(ids))).collect();
        let fields =
            vec![("PodDeviceEntries", entries), ("RegisteredDevices", Go::Map("map[string][]string", registered))];
        Go::Struct("checkpoint.checkpointData", fields).checksum()
    }
}

/// The file's text.
pub fn encode(table: &Table) -> String {
    let mut entries = Vec::new();
    for (uid, containers) in table.given() {
        for (container, allocations) in containers {
            for (resource, allocation) in allocations {
                entries.push(Entry {
                    pod_uid: uid.clone(),
                    container_name: container.clone(),
                    resource_name: resource.clone(),
                    device_ids: allocation.devices.clone(),
                    alloc_resp: STANDARD.encode(allocation.response.encode_to_vec()),
                });
            }
        }
    }
    let healthy = |name: &str| table.healthy(name).unwrap_or_default().into_iter().collect();
    let registered_devices = table.resources().map(|name| (name.to_owned(), healthy(name))).collect();
    let data = Data { pod_device_entries: Some(entries).filter(|e| !e.is_empty()), registered_devices };
    let checksum = data.sum();
    // Strings, maps and numbers always encode.
    serde_json::to_string(&File { data, checksum }).unwrap_or_default()
}

/// Who has which devices.
pub type Owners = BTreeMap<String, BTreeMap<String, Allocations>>;

/// What the file says: who has which devices, and which resources there were.
///
/// # Errors
/// It is damaged.
pub fn decode(text: &[u8]) -> Result<(Owners, BTreeSet<String>), CheckpointError> {
    let malformed = |error: &dyn std::fmt::Display| CheckpointError::Malformed(error.to_string());
    let File { data, checksum } = serde_json::from_slice(text).map_err(|error| malformed(&error))?;
    if checksum != data.sum() {
        return Err(CheckpointError::Corrupt);
    }
    let mut owners = Owners::new();
    for entry in data.pod_device_entries.into_iter().flatten() {
        let bytes = STANDARD.decode(&entry.alloc_resp).map_err(|error| malformed(&error))?;
        let response = ContainerAllocateResponse::decode(bytes.as_slice()).map_err(|error| malformed(&error))?;
        let container = owners.entry(entry.pod_uid).or_default().entry(entry.container_name).or_default();
        container.insert(entry.resource_name, Allocation { devices: entry.device_ids, response });
    }
    Ok((owners, data.registered_devices.into_keys().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// Files that stock kubelets have written.
    #[test]
    fn stock_s_files_are_taken() {
        let empty = r#"{"Data":{"PodDeviceEntries":null,"RegisteredDevices":{"nvidia.com/gpu":["GPU-0650a168-e770-3ea8-8ac3-8a1d419763e0"]}},"Checksum":3952659280}"#;
        let (owners, resources) = decode(empty.as_bytes()).unwrap();
        assert!(owners.is_empty() && resources.contains("nvidia.com/gpu"));
        let text = r#"{"Data":{"PodDeviceEntries":[{"PodUID":"bf52b2cd-b611-4e79-86b1-280b283185c3","ContainerName":"check","ResourceName":"nvidia.com/gpu","DeviceIDs":{"-1":["tegra"]},"AllocResp":"Ch8KFk5WSURJQV9WSVNJQkxFX0RFVklDRVMSBXRlZ3Jh"}],"RegisteredDevices":{"nvidia.com/gpu":["tegra"]}},"Checksum":3660592824}"#;
        let (owners, resources) = decode(text.as_bytes()).unwrap();
        let own = &owners["bf52b2cd-b611-4e79-86b1-280b283185c3"]["check"]["nvidia.com/gpu"];
        assert_eq!(own.response.envs["NVIDIA_VISIBLE_DEVICES"], "tegra");
        // Written again once the plugin is back, it is the same file.
        let mut table = Table::restored(owners, resources, Instant::now());
        let connection = table.connected("nvidia.com/gpu", Default::default(), Instant::now());
        let device = crate::Device { id: "tegra".into(), healthy: true, nodes: None };
        table.listed("nvidia.com/gpu", connection, vec![device]);
        assert_eq!(encode(&table), text);
        assert_eq!(decode(text.replace("tegra\"]}}", "tegrb\"]}}").as_bytes()), Err(CheckpointError::Corrupt));
        assert!(matches!(decode(b"{"), Err(CheckpointError::Malformed(_))));
    }
}
