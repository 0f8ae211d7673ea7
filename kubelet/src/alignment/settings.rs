//! The managers' settings, from the kubelet's configuration.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, anyhow, bail};
use bosun_api::quantity::Quantity;
use bosun_kit::gates::FeatureGates;
use bosun_kubelet_alignment::Settings;
use bosun_kubelet_alignment::cpu::options::Stages;
use bosun_kubelet_alignment::memory::policy::Amounts;

use super::{CPU, MEMORY};
use crate::config::KubeletConfiguration;

/// The settings. `evicted` is the memory in bytes that hard eviction keeps free.
pub(super) fn of(config: &KubeletConfiguration, gates: &FeatureGates, root: &Path, evicted: u64) -> Result<Settings> {
    let reserved_cpus = config.reserved_system_cpus.parse().map_err(|error| anyhow!("reservedSystemCPUs: {error}"))?;
    let mut reserved_milli = 0;
    let mut node_reserved = Amounts::new();
    for (field, list) in [("kubeReserved", &config.kube_reserved), ("systemReserved", &config.system_reserved)] {
        for (name, text) in list {
            let amount = text.parse::<Quantity>().map_err(|error| anyhow!("{field}.{name}: {text:?}: {error}"))?;
            if name == CPU {
                reserved_milli += amount.milli_value();
            } else if is_memory(name) {
                *node_reserved.entry(name.clone()).or_default() += u64::try_from(amount.value()).unwrap_or(0);
            }
        }
    }
    if evicted > 0 {
        *node_reserved.entry(MEMORY.to_owned()).or_default() += evicted;
    }
    Ok(Settings {
        folder: root.to_owned(),
        cpu_policy: config.cpu_manager_policy.clone(),
        cpu_options: config.cpu_manager_policy_options.clone(),
        stages: Stages {
            alpha: gates.enabled("CPUManagerPolicyAlphaOptions"),
            beta: gates.enabled("CPUManagerPolicyBetaOptions"),
        },
        reserved_cpus,
        reserved_milli,
        memory_policy: config.memory_manager_policy.clone(),
        reserved_memory: reserved_memory(config)?,
        node_reserved,
        topology_policy: config.topology_manager_policy.clone(),
        topology_scope: config.topology_manager_scope.clone(),
        topology_options: config.topology_manager_policy_options.clone(),
    })
}

fn is_memory(name: &str) -> bool {
    name == MEMORY || name.starts_with("hugepages-")
}

fn reserved_memory(config: &KubeletConfiguration) -> Result<BTreeMap<usize, Amounts>> {
    let mut reserved: BTreeMap<usize, Amounts> = BTreeMap::new();
    for reservation in &config.reserved_memory {
        let node = reservation.numa_node;
        let of_node = reserved.entry(usize::try_from(node).map_err(|_| anyhow!("reservedMemory: numaNode {node}"))?);
        let of_node = of_node.or_default();
        if reservation.limits.is_empty() {
            bail!("invalid configuration: reservedMemory: NUMA node {node} has no limits");
        }
        for (kind, text) in &reservation.limits {
            if !is_memory(kind) {
                bail!("invalid configuration: reservedMemory: {kind:?} is no kind of memory, on NUMA node {node}");
            }
            let amount = text.parse::<Quantity>().ok().and_then(|q| u64::try_from(q.value()).ok()).filter(|n| *n > 0);
            let Some(amount) = amount else {
                bail!(
                    "invalid configuration: reservedMemory: {kind:?} of NUMA node {node} is {text:?}, no positive quantity"
                );
            };
            if of_node.insert(kind.clone(), amount).is_some() {
                bail!(
                    "invalid configuration: the reserved memory has a duplicate value for NUMA node {node} and resource {kind:?}"
                );
            }
        }
    }
    Ok(reserved)
}
