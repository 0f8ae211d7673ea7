//! `/stats/summary`, `/metrics/resource` and `/metrics/cadvisor`: what the node and its pods use, read when asked and not
//! before.

mod cadvisor;
mod cgroup;
mod collect;
mod detail;
mod disk;
mod network;
mod page;
mod pressure;
mod resource;
mod summary;

pub use cgroup::{CgroupReader, Usage};
pub use collect::{Stats, StatsConfig};
pub use disk::{DiskUse, file_system};
pub use pressure::{PsiData, PsiStats};
pub use resource::render as resource_metrics;
pub use summary::{
    ContainerStats, CpuStats, FsStats, InterfaceStats, IoStats, MemoryStats, NetworkStats, NodeStats, PodReference,
    PodStats, ProcessStats, PvcReference, RlimitStats, RuntimeStats, Summary, SwapStats, VolumeStats,
};
