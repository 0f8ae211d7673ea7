//! The `stats.k8s.io/v1alpha1` objects, as far as we fill them.

use jiff::Timestamp;
use serde::Serialize;

use super::pressure::PsiStats;

/// Everything: the node and its pods.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Summary {
    /// The node as a whole.
    pub node: NodeStats,
    /// Each pod.
    pub pods: Vec<PodStats>,
}

/// The node's usage.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStats {
    /// Name of the node.
    pub node_name: String,
    /// Daemons, and all pods together.
    pub system_containers: Vec<ContainerStats>,
    /// When it booted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Timestamp>,
    /// Processor time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuStats>,
    /// Memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryStats>,
    /// Stalls for block devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io: Option<IoStats>,
    /// Its network devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkStats>,
    /// The file system of the kubelet's folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fs: Option<FsStats>,
    /// What the container runtime keeps on disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<RuntimeStats>,
    /// Process ids.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rlimit: Option<RlimitStats>,
    /// Swap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap: Option<SwapStats>,
}

/// Which pod is meant.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct PodReference {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// UID.
    pub uid: String,
}

/// A pod's usage.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStats {
    /// Which pod.
    pub pod_ref: PodReference,
    /// When it was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Timestamp>,
    /// Its containers.
    pub containers: Vec<ContainerStats>,
    /// Processor time of the whole pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuStats>,
    /// Memory of the whole pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryStats>,
    /// Stalls for block devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io: Option<IoStats>,
    /// Its network namespace's devices; none with host network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkStats>,
    /// Its volumes, as far as they can be measured.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volume: Vec<VolumeStats>,
    /// Containers, logs and local volumes together, on the file system of the kubelet's folder.
    #[serde(rename = "ephemeral-storage", skip_serializing_if = "Option::is_none")]
    pub ephemeral_storage: Option<FsStats>,
    /// Its processes.
    #[serde(rename = "process_stats", skip_serializing_if = "Option::is_none")]
    pub process_stats: Option<ProcessStats>,
    /// Swap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap: Option<SwapStats>,
}

/// A container's usage.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerStats {
    /// Name.
    pub name: String,
    /// When it was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Timestamp>,
    /// Processor time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuStats>,
    /// Memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryStats>,
    /// Stalls for block devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io: Option<IoStats>,
    /// Its writable layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rootfs: Option<FsStats>,
    /// Its logs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logs: Option<FsStats>,
    /// Swap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap: Option<SwapStats>,
}

/// Processor time.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CpuStats {
    /// When it was read.
    pub time: Timestamp,
    /// Billionths of a core since the reading before; absent at the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage_nano_cores: Option<u64>,
    /// Nanoseconds of a core since the start.
    pub usage_core_nano_seconds: u64,
    /// Stalls for want of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<PsiStats>,
}

/// Memory, in bytes.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemoryStats {
    /// When it was read.
    pub time: Timestamp,
    /// Left before the limit; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<u64>,
    /// All, page cache included.
    pub usage_bytes: u64,
    /// What cannot be given back without pain: usage without inactive file pages.
    pub working_set_bytes: u64,
    /// Anonymous pages.
    pub rss_bytes: u64,
    /// Faults.
    pub page_faults: u64,
    /// Faults that went to disk.
    pub major_page_faults: u64,
    /// Stalls for want of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<PsiStats>,
}

/// Stalls for block devices.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct IoStats {
    /// When they were read.
    pub time: Timestamp,
    /// The stalls.
    pub psi: PsiStats,
}

/// Swap, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SwapStats {
    /// When it was read.
    pub time: Timestamp,
    /// Left before the limit; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_available_bytes: Option<u64>,
    /// Used.
    pub swap_usage_bytes: u64,
}

/// How many processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProcessStats {
    /// The number.
    pub process_count: u64,
}

/// What the container runtime keeps on disk.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeStats {
    /// Images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_fs: Option<FsStats>,
    /// Writable layers of containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_fs: Option<FsStats>,
}

/// A volume's usage.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeStats {
    /// Its file system, with what the volume itself takes of it.
    #[serde(flatten)]
    pub fs: FsStats,
    /// The volume's name in the pod.
    pub name: String,
    /// The claim behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pvc_ref: Option<PvcReference>,
}

/// Which claim is meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PvcReference {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
}

/// Network counters: those of the default interface, and of each.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct NetworkStats {
    /// When they were read.
    pub time: Timestamp,
    /// The default interface.
    #[serde(flatten)]
    pub default: InterfaceStats,
    /// Each interface but loopback.
    pub interfaces: Vec<InterfaceStats>,
}

/// One network device's counters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceStats {
    /// Name of the device.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Errors while receiving.
    pub rx_errors: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Errors while sending.
    pub tx_errors: u64,
}

/// A file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FsStats {
    /// When it was read.
    pub time: Timestamp,
    /// Bytes left for ordinary users.
    pub available_bytes: u64,
    /// Bytes in all.
    pub capacity_bytes: u64,
    /// Bytes used.
    pub used_bytes: u64,
    /// Inodes left.
    pub inodes_free: u64,
    /// Inodes in all.
    pub inodes: u64,
    /// Inodes used.
    pub inodes_used: u64,
}

/// Process ids.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RlimitStats {
    /// When they were read.
    pub time: Timestamp,
    /// The most there can be.
    pub maxpid: i64,
    /// How many there are.
    pub curproc: i64,
}
