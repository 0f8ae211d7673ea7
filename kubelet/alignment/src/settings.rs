//! What the managers are told to do, checked as stock checks it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::cpu::options::Stages;
use crate::cpuset::CpuSet;
use crate::memory::policy::Amounts;
use crate::topology::Topology;
use crate::topology_manager::ConfigError;

/// The managers' configuration, in the terms of `KubeletConfiguration`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the state files are: the kubelet's root folder.
    pub folder: PathBuf,
    /// `cpuManagerPolicy`: `none` or `static`.
    pub cpu_policy: String,
    /// `cpuManagerPolicyOptions`.
    pub cpu_options: BTreeMap<String, String>,
    /// Which of them may be used.
    pub stages: Stages,
    /// `reservedSystemCPUs`.
    pub reserved_cpus: CpuSet,
    /// CPU of `systemReserved` and `kubeReserved` together, in thousandths of a core.
    pub reserved_milli: i64,
    /// `memoryManagerPolicy`: `None` or `Static`.
    pub memory_policy: String,
    /// `reservedMemory`: bytes by NUMA node and kind.
    pub reserved_memory: BTreeMap<usize, Amounts>,
    /// Memory of all kinds that node allocatable lacks: `systemReserved`, `kubeReserved` and the hard eviction
    /// threshold together, in bytes.
    pub node_reserved: Amounts,
    /// `topologyManagerPolicy`.
    pub topology_policy: String,
    /// `topologyManagerScope`.
    pub topology_scope: String,
    /// `topologyManagerPolicyOptions`.
    pub topology_options: BTreeMap<String, String>,
}

impl Settings {
    /// No manager does anything.
    pub fn none(folder: PathBuf) -> Self {
        Self {
            folder,
            cpu_policy: "none".to_owned(),
            cpu_options: BTreeMap::new(),
            stages: Stages::default(),
            reserved_cpus: CpuSet::new(),
            reserved_milli: 0,
            memory_policy: "None".to_owned(),
            reserved_memory: BTreeMap::new(),
            node_reserved: Amounts::new(),
            topology_policy: "none".to_owned(),
            topology_scope: "container".to_owned(),
            topology_options: BTreeMap::new(),
        }
    }

    /// How many CPUs are reserved: those named, or what is reserved in whole cores.
    pub(crate) fn reserved_count(&self) -> usize {
        match self.reserved_cpus.len() {
            0 => usize::try_from(self.reserved_milli).unwrap_or(0).div_ceil(1000),
            named => named,
        }
    }

    /// Checks `reservedMemory`: on nodes that exist, and in sum what node allocatable leaves out.
    ///
    /// # Errors
    /// It is not so.
    pub(crate) fn check_memory(&self, topology: &Topology) -> Result<(), ConfigError> {
        let mut sums = Amounts::new();
        for (node, amounts) in &self.reserved_memory {
            if !topology.nodes.contains_key(node) {
                return Err(ConfigError(format!(
                    "the reserved memory configuration references a NUMA node {node} that does not exist on this machine"
                )));
            }
            for (kind, amount) in amounts {
                *sums.entry(kind.clone()).or_default() += amount;
            }
        }
        for kind in sums.keys().chain(self.node_reserved.keys()) {
            let of = |amounts: &Amounts| amounts.get(kind).copied().unwrap_or(0);
            let (sum, expected) = (of(&sums), of(&self.node_reserved));
            if sum != expected {
                return Err(ConfigError(format!(
                    "the total amount \"{sum}\" of type {kind:?} is not equal to the value \"{expected}\" determined by Node Allocatable feature; make reservedMemory add up to systemReserved, kubeReserved and evictionHard"
                )));
            }
        }
        Ok(())
    }
}
