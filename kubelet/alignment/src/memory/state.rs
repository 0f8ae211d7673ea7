//! What the memory manager has given away, and `memory_manager_state`, the file in which stock keeps that.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cpu::state::StateError;
use crate::dump::Go;

/// Memory of one kind on one NUMA node, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Table {
    /// All of it.
    pub total: u64,
    /// Kept for the system.
    pub system_reserved: u64,
    /// What may be given away.
    pub allocatable: u64,
    /// What was given away.
    pub reserved: u64,
    /// The rest.
    pub free: u64,
}

/// One NUMA node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeState {
    /// How many blocks are on it.
    pub number_of_assignments: i64,
    /// By kind: `memory`, `hugepages-2Mi`.
    pub memory_map: BTreeMap<String, Table>,
    /// The nodes with which it is used as one.
    pub cells: Vec<usize>,
}

/// A container's memory of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Block {
    /// The nodes from which it comes.
    pub numa_affinity: Vec<usize>,
    /// The kind.
    #[serde(rename = "type")]
    pub kind: String,
    /// Bytes.
    pub size: u64,
}

/// The NUMA nodes by number.
pub type Machine = BTreeMap<usize, NodeState>;

/// Blocks by pod UID and container.
pub type Assigned = BTreeMap<String, BTreeMap<String, Vec<Block>>>;

/// Who has which memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryState {
    /// The policy by which it was given.
    pub policy: String,
    /// The nodes; empty under the policy `None`.
    pub machine: Machine,
    /// The containers' blocks.
    pub assigned: Assigned,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Checkpoint {
    policy_name: String,
    machine_state: Machine,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    entries: Assigned,
    checksum: u64,
}

impl Checkpoint {
    /// The checksum under one of the names that the Go type has had.
    fn sum(&self, type_name: &'static str, with_pods: bool) -> u64 {
        let nodes = self.machine_state.iter();
        let nodes = nodes.map(|(id, node)| (number("int", *id as u64), Go::Pointer(Box::new(go_node(node))))).collect();
        let blocks = |blocks: &Vec<Block>| Go::Slice("[]state.Block", blocks.iter().map(go_block).collect());
        let containers = |all: &BTreeMap<String, Vec<Block>>| {
            Go::Map("map[string][]state.Block", all.iter().map(|(name, own)| (Go::str(name), blocks(own))).collect())
        };
        let entries = self.entries.iter().map(|(pod, all)| (Go::str(pod), containers(all))).collect();
        let mut fields = vec![
            ("PolicyName", Go::str(&self.policy_name)),
            ("MachineState", Go::Map("state.NUMANodeMap", nodes)),
            ("Entries", Go::Map("state.ContainerMemoryAssignments", entries)),
        ];
        if with_pods {
            fields.push(("PodEntries", Go::Map("state.PodMemoryAssignments", Vec::new())));
        }
        fields.push(("Checksum", number("checksum.Checksum", 0)));
        Go::Pointer(Box::new(Go::Struct(type_name, fields))).checksum()
    }

    fn is_whole(&self) -> bool {
        let forms = [
            ("state.MemoryManagerCheckpoint", false),
            ("state.MemoryManagerCheckpointV1", false),
            ("state.MemoryManagerCheckpoint", true),
        ];
        self.checksum == 0 || forms.into_iter().any(|(name, with_pods)| self.checksum == self.sum(name, with_pods))
    }
}

fn number(type_name: &'static str, value: u64) -> Go {
    Go::Number(type_name, i128::from(value))
}

fn nodes(ids: &[usize]) -> Go {
    Go::Slice("[]int", ids.iter().map(|id| number("int", *id as u64)).collect())
}

fn go_block(block: &Block) -> Go {
    let fields = vec![
        ("NUMAAffinity", nodes(&block.numa_affinity)),
        ("Type", Go::Str("v1.ResourceName", block.kind.clone())),
        ("Size", number("uint64", block.size)),
    ];
    Go::Struct("state.Block", fields)
}

fn go_node(node: &NodeState) -> Go {
    let table = |table: &Table| {
        let fields = vec![
            ("TotalMemSize", number("uint64", table.total)),
            ("SystemReserved", number("uint64", table.system_reserved)),
            ("Allocatable", number("uint64", table.allocatable)),
            ("Reserved", number("uint64", table.reserved)),
            ("Free", number("uint64", table.free)),
        ];
        Go::Pointer(Box::new(Go::Struct("state.MemoryTable", fields)))
    };
    let kinds = node.memory_map.iter().map(|(kind, of)| (Go::Str("v1.ResourceName", kind.clone()), table(of)));
    let fields = vec![
        ("NumberOfAssignments", Go::Number("int", i128::from(node.number_of_assignments))),
        ("MemoryMap", Go::Map("map[v1.ResourceName]*state.MemoryTable", kinds.collect())),
        ("Cells", nodes(&node.cells)),
    ];
    Go::Struct("state.NUMANodeState", fields)
}

impl MemoryState {
    /// Nothing given away under that policy.
    pub fn new(policy: &str) -> Self {
        Self { policy: policy.to_owned(), ..Self::default() }
    }

    /// The container's blocks.
    pub fn blocks(&self, uid: &str, container: &str) -> Option<&Vec<Block>> {
        self.assigned.get(uid)?.get(container)
    }

    /// The file's text.
    pub fn encode(&self) -> String {
        let Self { policy, machine, assigned } = self.clone();
        let mut checkpoint = Checkpoint { policy_name: policy, machine_state: machine, entries: assigned, checksum: 0 };
        checkpoint.checksum = checkpoint.sum("state.MemoryManagerCheckpoint", false);
        // Maps with keys that are text or numbers always encode.
        serde_json::to_string(&checkpoint).unwrap_or_default()
    }

    /// Reads the file of the configured policy.
    ///
    /// # Errors
    /// It is damaged, or another policy's.
    pub fn decode(text: &[u8], policy: &str) -> Result<Self, StateError> {
        let checkpoint: Checkpoint =
            serde_json::from_slice(text).map_err(|error| StateError::Malformed(error.to_string()))?;
        if !checkpoint.is_whole() {
            return Err(StateError::Corrupt);
        }
        if checkpoint.policy_name != policy {
            let (configured, found) = (policy.to_owned(), checkpoint.policy_name);
            return Err(StateError::OtherPolicy { configured, found });
        }
        Ok(Self { policy: policy.to_owned(), machine: checkpoint.machine_state, assigned: checkpoint.entries })
    }

    /// Gives back what the pod has; whether that was anything.
    pub fn release(&mut self, uid: &str) -> bool {
        let Some(containers) = self.assigned.remove(uid) else { return false };
        for block in containers.into_values().flatten() {
            self.give_back(&block);
        }
        true
    }

    fn give_back(&mut self, block: &Block) {
        let mut left = block.size;
        for id in &block.numa_affinity {
            let Some(node) = self.machine.get_mut(id) else { continue };
            node.number_of_assignments -= 1;
            if node.number_of_assignments == 0 {
                // Used alone again from here on.
                node.cells = vec![*id];
            }
            if let Some(table) = node.memory_map.get_mut(&block.kind) {
                let back = left.min(table.reserved);
                table.free += back;
                table.reserved -= back;
                left -= back;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of stock's own tests.
    const STOCK: &str = r#"{"policyName":"static","machineState":{"0":{"numberOfAssignments":0,"memoryMap":{"memory":{"total":2048,"systemReserved":512,"allocatable":1536,"reserved":512,"free":1024}},"cells":[]}},"entries":{"pod":{"container1":[{"numaAffinity":[0],"type":"memory","size":512}]}},"checksum":4215593881}"#;

    #[test]
    fn stock_s_files_are_taken() {
        let state = MemoryState::decode(STOCK.as_bytes(), "static").unwrap();
        assert_eq!(state.machine[&0].memory_map["memory"].free, 1024);
        assert_eq!(state.encode(), STOCK);
        let damaged = STOCK.replace("1536", "1537");
        assert_eq!(MemoryState::decode(damaged.as_bytes(), "static"), Err(StateError::Corrupt));
        assert!(matches!(MemoryState::decode(STOCK.as_bytes(), "None"), Err(StateError::OtherPolicy { .. })));
    }
}
