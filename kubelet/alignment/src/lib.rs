//! Which CPUs, which memory and which NUMA nodes a container gets: the CPU manager, the memory manager and the topology
//! manager of a kubelet, with the policies, options, messages and state files of Kubernetes 1.36.
//!
//! Decisions are plain functions of the machine ([`topology`]), the state and the pod: [`cpu::assignment`] picks CPUs,
//! [`memory::policy`] picks nodes, [`topology_manager`] finds what suits all. Edges: [`sysfs`] reads the machine,
//! [`manager`] keeps the state files. Writing cpusets is left to the caller, devices to whoever implements
//! [`manager::DeviceProvider`].

pub mod cpu;
pub mod cpuset;
pub mod dump;
pub mod hint;
pub mod manager;
pub mod mask;
pub mod memory;
pub mod metrics;
pub mod settings;
pub mod sysfs;
#[cfg(test)]
mod testing;
pub mod topology;
pub mod topology_manager;

pub use cpuset::CpuSet;
pub use hint::{Hint, Hints};
pub use manager::{Aligner, DeviceProvider, Refusal};
pub use mask::NumaMask;
pub use settings::Settings;
pub use topology::Topology;
