//! `/stats/summary` and `/metrics/resource`: what the node and its pods use, read when asked and not before.

mod cgroup;
mod collect;
mod resource;
mod summary;

pub use cgroup::{CgroupReader, Usage};
pub use collect::Stats;
pub use resource::render as resource_metrics;
pub use summary::{
    ContainerStats, CpuStats, FsStats, InterfaceStats, MemoryStats, NetworkStats, NodeStats, PodReference, PodStats,
    RlimitStats, Summary,
};
