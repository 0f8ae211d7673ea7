//! The Static policy: from which NUMA nodes a guaranteed container's memory comes.
//!
//! A node serves containers that fit on one node, or is one of a group that serves larger ones; never both, since the
//! kernel takes pages from any node of a group.

use std::collections::BTreeMap;

use bosun_api::pod::{QosClass, qos_class};
use bosun_api::quantity;
use k8s_openapi::api::core::v1::{Container, Pod};
use thiserror::Error;

use super::state::{Block, Machine, MemoryState, NodeState, Table};
use crate::cpu::policy::{containers, has_pod_resources, is_plain_init, uid};
use crate::hint::{Hint, Hints, mark_preferred};
use crate::mask::NumaMask;
use crate::topology::Topology;
use crate::topology_manager::ConfigError;

const MEMORY: &str = "memory";

/// Bytes by kind of memory.
pub type Amounts = BTreeMap<String, u64>;

/// Why a container gets no memory of its own.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum MemoryError {
    /// No node, or group of them, has enough.
    #[error("[memorymanager] failed to get the default NUMA affinity, no NUMA nodes with enough memory is available")]
    NoDefault,
    /// Only more nodes than needed on an idle machine.
    #[error("[memorymanager] failed to find the default preferred hint")]
    NoPreferredDefault,
    /// What was agreed on is too small, and nothing larger includes it.
    #[error("[memorymanager] failed to find NUMA nodes to extend the current topology hint")]
    NoExtension,
    /// As before, but only with more nodes than needed on an idle machine.
    #[error("[memorymanager] failed to find the extended preferred hint")]
    NoPreferredExtension,
    /// A node would serve both single-node and group allocations.
    #[error("[memorymanager] preferred hint violates NUMA node allocation")]
    MixedNodes,
}

/// The memory of init containers of the pod that is being admitted, which its later containers take over.
#[derive(Clone, Debug, Default)]
pub struct Reusable {
    uid: String,
    amounts: BTreeMap<NumaMask, Amounts>,
}

impl Reusable {
    /// Nothing of the pod is there to be taken over any more.
    pub fn forget(&mut self, uid: &str) {
        if self.uid == uid {
            *self = Self::default();
        }
    }

    fn of(&self, uid: &str, mask: NumaMask, kind: &str) -> u64 {
        let amounts = self.amounts.get(&mask).filter(|_| self.uid == uid);
        amounts.and_then(|amounts| amounts.get(kind)).copied().unwrap_or(0)
    }

    fn update(&mut self, pod: &Pod, container: &Container, blocks: &[Block]) {
        if self.uid != uid(pod) {
            *self = Self { uid: uid(pod).to_owned(), amounts: BTreeMap::new() };
        }
        for block in blocks {
            let amounts = self.amounts.entry(mask_of(block)).or_default();
            let amount = amounts.entry(block.kind.clone()).or_default();
            *amount = match is_plain_init(pod, container) {
                true => block.size.max(*amount),
                false => amount.saturating_sub(block.size),
            };
        }
    }
}

/// The Static policy on one machine.
#[derive(Clone, Debug, Default)]
pub struct StaticPolicy {
    idle: Machine,
}

fn mask_of(block: &Block) -> NumaMask {
    NumaMask::new(block.numa_affinity.iter().copied())
}

/// The resource name of huge pages of so many bytes.
pub fn huge_pages_name(size: u64) -> String {
    let shown = match size {
        size if size.is_multiple_of(1 << 30) => format!("{}Gi", size >> 30),
        size if size.is_multiple_of(1 << 20) => format!("{}Mi", size >> 20),
        size => format!("{}Ki", size >> 10),
    };
    format!("hugepages-{shown}")
}

/// What the container asks for.
fn wanted(container: &Container) -> Amounts {
    let resources = container.resources.as_ref();
    let mut wanted = Amounts::new();
    // Limits stand for requests that are not given.
    let lists = resources.into_iter().flat_map(|r| [&r.limits, &r.requests]).flatten();
    for (kind, amount) in lists.flatten().filter(|(kind, _)| *kind == MEMORY || kind.starts_with("hugepages-")) {
        wanted.insert(kind.clone(), u64::try_from(quantity::of(amount).value()).unwrap_or(0));
    }
    wanted
}

/// What the pod has at most at one time (KEP-753).
fn wanted_by_pod(pod: &Pod) -> Amounts {
    let (mut init, mut lasting, mut app) = (Amounts::new(), Amounts::new(), Amounts::new());
    for container in containers(pod) {
        for (kind, amount) in wanted(container) {
            let lasting_now = lasting.entry(kind.clone()).or_default();
            if is_plain_init(pod, container) {
                let most = init.entry(kind).or_default();
                *most = (*most).max(*lasting_now + amount);
            } else {
                *lasting_now += amount;
                if !crate::cpu::policy::is_init(pod, container) {
                    app.insert(kind, 0);
                }
            }
        }
    }
    let most = |kind: &String| lasting.get(kind).copied().max(init.get(kind).copied()).unwrap_or(0);
    app.keys().map(|kind| (kind.clone(), most(kind))).collect()
}

fn concerns(pod: &Pod) -> bool {
    qos_class(pod) == QosClass::Guaranteed && !has_pod_resources(pod)
}

impl StaticPolicy {
    /// A policy on that machine, of which `reserved` (by node and kind, in bytes) is kept for the system.
    ///
    /// # Errors
    /// Nothing is reserved, or more than there is.
    pub fn new(topology: &Topology, reserved: &BTreeMap<usize, Amounts>) -> Result<Self, ConfigError> {
        if reserved.values().filter_map(|node| node.get(MEMORY)).sum::<u64>() == 0 {
            return Err(ConfigError("[memorymanager] you should specify the system reserved memory".to_owned()));
        }
        let mut idle = Machine::new();
        for (id, node) in &topology.nodes {
            let kept = |kind: &str| reserved.get(id).and_then(|r| r.get(kind)).copied().unwrap_or(0);
            let mut memory_map = BTreeMap::new();
            let mut huge = 0;
            let table = |kind: &str, total: u64, taken: u64| {
                let system_reserved = kept(kind);
                let allocatable = total.checked_sub(system_reserved + taken).ok_or_else(|| {
                    ConfigError(format!(
                        "reservedMemory: NUMA node {id} has {total} bytes of {kind}, fewer than the {system_reserved} reserved and {taken} in huge pages"
                    ))
                })?;
                Ok(Table { total, system_reserved, allocatable, reserved: 0, free: allocatable })
            };
            for (size, count) in &node.huge_pages {
                let (kind, total) = (huge_pages_name(*size), size.saturating_mul(*count));
                memory_map.insert(kind.clone(), table(&kind, total, 0)?);
                huge += total;
            }
            memory_map.insert(MEMORY.to_owned(), table(MEMORY, node.memory, huge)?);
            idle.insert(*id, NodeState { number_of_assignments: 0, memory_map, cells: vec![*id] });
        }
        Ok(Self { idle })
    }

    /// What can be given away at all.
    pub fn allocatable(&self) -> Vec<Block> {
        let tables = self.idle.iter().flat_map(|(id, node)| node.memory_map.iter().map(move |table| (*id, table)));
        let blocks = tables.filter(|(_, (_, table))| table.allocatable > 0).map(|(id, (kind, table))| Block {
            numa_affinity: vec![id],
            kind: kind.clone(),
            size: table.allocatable,
        });
        blocks.collect()
    }

    /// Fills an empty state, or compares one that was read with the machine.
    ///
    /// # Errors
    /// The state belongs to another machine or configuration.
    pub fn start(&self, state: &mut MemoryState) -> Result<(), ConfigError> {
        if state.machine.is_empty() {
            if !state.assigned.is_empty() {
                return Err(ConfigError(
                    "[memorymanager] machine state can not be empty when it has memory assignments".to_owned(),
                ));
            }
            state.machine = self.idle.clone();
            return Ok(());
        }
        let mut expected = self.idle.clone();
        for (pod, assigned) in &state.assigned {
            for (container, blocks) in assigned {
                for block in blocks {
                    let missing = |what: &str| {
                        ConfigError(format!(
                            "[memorymanager] (pod: {pod}, container: {container}) the memory assignment uses {what} that does not exist"
                        ))
                    };
                    for id in &block.numa_affinity {
                        let node = expected.get(id).ok_or_else(|| missing("the NUMA"))?;
                        node.memory_map.get(&block.kind).ok_or_else(|| missing("memory resource"))?;
                    }
                    put(&mut expected, block, block.size);
                }
            }
        }
        match alike(&state.machine, &expected) {
            true => Ok(()),
            false => {
                Err(ConfigError("[memorymanager] the expected machine state is different from the real one".to_owned()))
            }
        }
    }

    /// From where the container's memory could come.
    pub fn hints(&self, state: &MemoryState, reusable: &Reusable, pod: &Pod, container: &Container) -> Hints {
        if !concerns(pod) {
            return Hints::new();
        }
        let wanted = wanted(container);
        match state.blocks(uid(pod), &container.name) {
            Some(blocks) => regenerated(blocks, &wanted),
            None => self.combinations(state, reusable, uid(pod), &wanted),
        }
    }

    /// From where the memory of all the pod's containers could come.
    pub fn pod_hints(&self, state: &MemoryState, reusable: &Reusable, pod: &Pod) -> Hints {
        if !concerns(pod) {
            return Hints::new();
        }
        let wanted = wanted_by_pod(pod);
        match containers(pod).find_map(|container| state.blocks(uid(pod), &container.name)) {
            Some(blocks) => regenerated(blocks, &wanted),
            None => self.combinations(state, reusable, uid(pod), &wanted),
        }
    }

    /// Every set of nodes that may serve the request and has enough.
    fn combinations(&self, state: &MemoryState, reusable: &Reusable, uid: &str, wanted: &Amounts) -> Hints {
        let ids: Vec<usize> = state.machine.keys().copied().collect();
        let mut fewest = ids.len();
        let mut found = Vec::new();
        for mask in NumaMask::combinations(&ids) {
            let nodes: Vec<&NodeState> = mask.nodes().filter_map(|id| state.machine.get(&id)).collect();
            let sum = |kind: &str, of: fn(&Table) -> u64| {
                nodes.iter().filter_map(|node| node.memory_map.get(kind)).map(of).sum::<u64>()
            };
            if wanted.iter().any(|(kind, amount)| sum(kind, |table| table.allocatable) < *amount) {
                continue;
            }
            fewest = fewest.min(mask.count());
            let grouped = mask.count() == 1 && nodes.iter().any(|node| node.cells.len() > 1);
            let enough = |(kind, amount): (&String, &u64)| {
                sum(kind, |table| table.free) + reusable.of(uid, mask, kind) >= *amount
            };
            if !grouped && !mixes(&state.machine, mask) && wanted.iter().all(enough) {
                found.push(Hint { affinity: Some(mask), preferred: false });
            }
        }
        mark_preferred(&mut found, fewest);
        match found.is_empty() {
            // As in stock, no entry at all; the allocation then says what is missing.
            true => Hints::new(),
            false => wanted.keys().map(|kind| (kind.clone(), Some(found.clone()))).collect(),
        }
    }

    /// Gives the container its memory, if it is one that gets any and has none yet. Returns whether it is such a one.
    ///
    /// # Errors
    /// There is too little where it may come from.
    pub fn allocate(
        &self,
        state: &mut MemoryState,
        reusable: &mut Reusable,
        (pod, container): (&Pod, &Container),
        hint: Hint,
    ) -> Result<bool, MemoryError> {
        if !concerns(pod) {
            return Ok(false);
        }
        if let Some(blocks) = state.blocks(uid(pod), &container.name) {
            reusable.update(pod, container, blocks);
            return Ok(true);
        }
        let wanted = wanted(container);
        let mask = self.choose(state, reusable, uid(pod), &wanted, hint)?;
        let mut blocks = Vec::new();
        for (kind, size) in wanted {
            let block = Block { numa_affinity: mask.nodes().collect(), kind, size };
            let again = reusable.of(uid(pod), mask, &block.kind);
            put(&mut state.machine, &block, size.saturating_sub(again));
            blocks.push(block);
        }
        reusable.update(pod, container, &blocks);
        take_over(state, pod, container, &blocks);
        state.assigned.entry(uid(pod).to_owned()).or_default().insert(container.name.clone(), blocks);
        Ok(true)
    }

    /// The nodes from which it comes: the topology manager's, widened if they have too little.
    fn choose(
        &self,
        state: &MemoryState,
        reusable: &Reusable,
        uid: &str,
        wanted: &Amounts,
        hint: Hint,
    ) -> Result<NumaMask, MemoryError> {
        let all = || self.combinations(state, reusable, uid, wanted).into_values().flatten().next().unwrap_or_default();
        let mut preferred = hint.preferred;
        let mask = match hint.affinity {
            Some(mask) => mask,
            None => {
                let best = best(&all()).ok_or(MemoryError::NoDefault)?;
                if !best.1 && preferred {
                    return Err(MemoryError::NoPreferredDefault);
                }
                preferred = best.1;
                best.0
            }
        };
        let free = |kind: &str| {
            let tables = mask.nodes().filter_map(|id| state.machine.get(&id)?.memory_map.get(kind));
            tables.map(|table| table.free).sum::<u64>()
        };
        let enough = wanted.iter().all(|(kind, amount)| free(kind) + reusable.of(uid, mask, kind) >= *amount);
        let mask = if enough {
            mask
        } else {
            let wider = all().into_iter().filter(|hint| hint.affinity.is_some_and(|wider| mask.is_subset(wider)));
            let best = best(&wider.collect::<Vec<_>>()).ok_or(MemoryError::NoExtension)?;
            if !best.1 && preferred {
                return Err(MemoryError::NoPreferredExtension);
            }
            best.0
        };
        if mixes(&state.machine, mask) { Err(MemoryError::MixedNodes) } else { Ok(mask) }
    }
}

/// The preferred ones first, then the narrowest.
fn best(hints: &[Hint]) -> Option<(NumaMask, bool)> {
    let hints = hints.iter().filter_map(|hint| Some((hint.affinity?, hint.preferred)));
    hints.reduce(|best, other| match (best.1, other.1) {
        (false, true) => other,
        (one, two) if one == two && other.0.is_narrower(best.0) => other,
        _ => best,
    })
}

/// Whether a node would serve allocations of different groups.
fn mixes(machine: &Machine, mask: NumaMask) -> bool {
    let used = mask.nodes().filter_map(|id| machine.get(&id)).filter(|node| node.number_of_assignments > 0);
    let other = |node: &NodeState| node.cells.len() == 1 || NumaMask::new(node.cells.iter().copied()) != mask;
    mask.count() > 1 && used.into_iter().any(other)
}

/// Takes `size` bytes for the block, from its nodes in order.
fn put(machine: &mut Machine, block: &Block, size: u64) {
    let mut left = size;
    for id in &block.numa_affinity {
        let Some(node) = machine.get_mut(id) else { continue };
        node.number_of_assignments += 1;
        node.cells.clone_from(&block.numa_affinity);
        if let Some(table) = node.memory_map.get_mut(&block.kind) {
            let part = left.min(table.free);
            table.reserved += part;
            table.free -= part;
            left -= part;
        }
    }
}

/// Lessens the blocks of init containers by what `container` takes over, so that the blocks' sum is what the pod has.
fn take_over(state: &mut MemoryState, pod: &Pod, container: &Container, blocks: &[Block]) {
    let Some(assigned) = state.assigned.get_mut(uid(pod)) else { return };
    for block in blocks {
        let mut left = block.size;
        for init in containers(pod).take_while(|earlier| earlier.name != container.name) {
            if !is_plain_init(pod, init) {
                continue;
            }
            for own in assigned.get_mut(&init.name).into_iter().flatten() {
                if own.kind == block.kind && mask_of(own) == mask_of(block) {
                    let part = left.min(own.size);
                    own.size -= part;
                    left -= part;
                }
            }
        }
    }
}

/// The hints that led to what the container has; none if it asks for something else by now.
fn regenerated(blocks: &[Block], wanted: &Amounts) -> Hints {
    let same = blocks.len() == wanted.len() && blocks.iter().all(|block| wanted.get(&block.kind) == Some(&block.size));
    if !same {
        return Hints::new();
    }
    let hint = |block: &Block| vec![Hint { affinity: Some(mask_of(block)), preferred: true }];
    blocks.iter().map(|block| (block.kind.clone(), Some(hint(block)))).collect()
}

/// Whether two states are of one machine with the same given away. Within a group it does not matter from which node.
fn alike(one: &Machine, other: &Machine) -> bool {
    let node_alike = |id: &usize, a: &NodeState| {
        let Some(b) = other.get(id) else { return false };
        let sizes = |node: &NodeState| -> Vec<(String, [u64; 3])> {
            let tables = node.memory_map.iter();
            tables.map(|(kind, t)| (kind.clone(), [t.total, t.system_reserved, t.allocatable])).collect()
        };
        let sums = |machine: &Machine| -> Vec<[u64; 2]> {
            let of = |kind: &String| {
                let tables = a.cells.iter().filter_map(|id| machine.get(id)?.memory_map.get(kind));
                tables.fold([0, 0], |[free, reserved], table| [free + table.free, reserved + table.reserved])
            };
            a.memory_map.keys().map(of).collect()
        };
        let cells = |node: &NodeState| NumaMask::new(node.cells.iter().copied());
        a.number_of_assignments == b.number_of_assignments
            && cells(a) == cells(b)
            && sizes(a) == sizes(b)
            && sums(one) == sums(other)
    };
    one.len() == other.len() && one.iter().all(|(id, node)| node_alike(id, node))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{GIB, container, guaranteed, machine, pod};
    use proptest::prelude::*;
    use serde_json::json;

    struct Rig {
        policy: StaticPolicy,
        state: MemoryState,
        reusable: Reusable,
    }

    impl Rig {
        /// Two nodes of 8 GiB, of which 1 GiB each is reserved; node 1 has 512 huge pages of 2 MiB.
        fn new() -> Self {
            let mut topology = machine(2, 1, 2, 1);
            topology.nodes.get_mut(&1).unwrap().huge_pages.insert(2 << 20, 512);
            let kept = || [(MEMORY.to_owned(), GIB)].into();
            let policy = StaticPolicy::new(&topology, &[(0, kept()), (1, kept())].into()).unwrap();
            let mut state = MemoryState::new("Static");
            policy.start(&mut state).unwrap();
            Self { policy, state, reusable: Reusable::default() }
        }

        fn admit(&mut self, pod: &Pod, hint: Hint) -> Result<(), MemoryError> {
            for container in containers(pod) {
                self.policy.allocate(&mut self.state, &mut self.reusable, (pod, container), hint)?;
            }
            Ok(())
        }

        fn release(&mut self, uid: &str) {
            self.state.release(uid);
            self.reusable.forget(uid);
        }

        fn show(&self) -> String {
            let node = |(id, node): (&usize, &NodeState)| {
                let kinds = node.memory_map.iter().map(|(kind, t)| format!("{kind} {}M free", t.free >> 20));
                let kinds: Vec<_> = kinds.collect();
                format!("node{id} {:?} x{}: {}", node.cells, node.number_of_assignments, kinds.join(", "))
            };
            self.state.machine.iter().map(node).collect::<Vec<_>>().join("; ")
        }
    }

    #[test]
    fn memory_comes_from_one_node_or_from_a_group() {
        let mut rig = Rig::new();
        let any = Hint::default();
        rig.admit(&guaranteed("a", 1, 5), any).unwrap();
        let idle = "hugepages-2Mi 1024M free, memory 6144M free";
        assert_eq!(rig.show(), format!("node0 [0] x1: memory 2048M free; node1 [1] x0: {idle}"));
        // Node 0 serves single ones, so that no group with it can be made.
        assert_eq!(rig.admit(&guaranteed("b", 1, 8), any), Err(MemoryError::NoDefault));
        assert_eq!(
            rig.admit(&guaranteed("b", 1, 1), Hint { affinity: Some(NumaMask::new([0, 1])), preferred: false }),
            Err(MemoryError::MixedNodes)
        );
        rig.release("a");
        rig.admit(&guaranteed("b", 1, 8), any).unwrap();
        let group = "node0 [0, 1] x1: memory 0M free; node1 [0, 1] x1: hugepages-2Mi 1024M free, memory 5120M free";
        assert_eq!(rig.show(), group);
        rig.policy.start(&mut rig.state.clone()).unwrap();
        rig.release("b");
        assert_eq!(rig.show(), format!("node0 [0] x0: memory 7168M free; node1 [1] x0: {idle}"));
    }

    #[test]
    fn hints_and_their_fulfilment() {
        let mut rig = Rig::new();
        let huge = json!({"cpu": "1", "memory": "2Gi", "hugepages-2Mi": "512Mi"});
        let huge = pod("a", vec![], vec![container("app", huge)]);
        let hints = rig.policy.pod_hints(&rig.state, &rig.reusable, &huge);
        let shown: Vec<_> = hints["hugepages-2Mi"].iter().flatten().map(ToString::to_string).collect();
        assert_eq!(shown, ["10 preferred", "11 not preferred"]);
        assert_eq!(hints["memory"], hints["hugepages-2Mi"]);
        // Agreed on node 0 by others: widened to a group that has the pages.
        let narrow = |preferred| Hint { affinity: Some(NumaMask::new([0])), preferred };
        assert_eq!(rig.admit(&huge, narrow(true)), Err(MemoryError::NoPreferredExtension));
        rig.admit(&huge, narrow(false)).unwrap();
        assert_eq!(rig.state.blocks("a", "app").unwrap()[0].numa_affinity, [0, 1]);
        let again = rig.policy.pod_hints(&rig.state, &rig.reusable, &huge);
        assert_eq!(again["memory"].as_ref().unwrap()[0].to_string(), "11 preferred");
        assert!(rig.policy.pod_hints(&rig.state, &rig.reusable, &guaranteed("a", 1, 3)).is_empty());
    }

    #[test]
    fn init_containers_hand_their_memory_on() {
        let mut rig = Rig::new();
        let size = |gib: &str| json!({"cpu": "1", "memory": gib});
        let init = vec![container("init", size("4Gi"))];
        let pod = pod("a", init, vec![container("one", size("3Gi")), container("two", size("2Gi"))]);
        rig.admit(&pod, Hint::default()).unwrap();
        let own = |name: &str| rig.state.blocks("a", name).unwrap()[0].size >> 30;
        assert_eq!([own("init"), own("one"), own("two")], [0, 3, 2]);
        assert!(rig.show().starts_with("node0 [0] x3: memory 2048M free"), "{}", rig.show());
        rig.release("a");
        assert!(rig.show().starts_with("node0 [0] x0: memory 7168M free"), "{}", rig.show());
    }

    #[test]
    fn states_of_other_machines_are_refused() {
        let mut rig = Rig::new();
        rig.admit(&guaranteed("a", 1, 2), Hint::default()).unwrap();
        let fault = |change: &dyn Fn(&mut MemoryState)| {
            let mut state = rig.state.clone();
            change(&mut state);
            rig.policy.start(&mut state).map_err(|error| error.0)
        };
        assert_eq!(fault(&|_| ()), Ok(()));
        let less =
            |state: &mut MemoryState| state.machine.get_mut(&0).unwrap().memory_map.get_mut(MEMORY).unwrap().total -= 1;
        assert!(fault(&less).unwrap_err().ends_with("is different from the real one"));
        assert!(fault(&|state| state.assigned.clear()).is_err());
        assert!(fault(&|state| state.machine.clear()).unwrap_err().contains("can not be empty"));
        let none = StaticPolicy::new(&machine(1, 1, 1, 1), &BTreeMap::new());
        assert!(none.unwrap_err().0.contains("you should specify the system reserved memory"));
        let much = StaticPolicy::new(&machine(1, 1, 1, 1), &[(0, [(MEMORY.to_owned(), 9 * GIB)].into())].into());
        assert!(much.unwrap_err().0.contains("fewer than the"));
        assert_eq!(
            [2 << 20, 1 << 30, 64 << 10].map(huge_pages_name),
            ["hugepages-2Mi", "hugepages-1Gi", "hugepages-64Ki"]
        );
    }

    proptest! {
        /// Whatever comes and goes, the books are right: nothing is given twice, and all comes back.
        #[test]
        fn the_books_are_right(steps in proptest::collection::vec((0..5u8, 1..9u64, any::<bool>()), 1..40)) {
            let mut rig = Rig::new();
            let idle = rig.state.clone();
            for (name, gib, comes) in steps {
                let uid = format!("pod{name}");
                if comes && !rig.state.assigned.contains_key(&uid) {
                    let size = |gib: u64| json!({"cpu": "1", "memory": format!("{gib}Gi")});
                    let pod = pod(&uid, vec![container("init", size(gib / 2 + 1))], vec![container("app", size(gib))]);
                    if rig.admit(&pod, Hint::default()).is_err() {
                        rig.release(&uid);
                    }
                } else if !comes {
                    rig.release(&uid);
                }
                for node in rig.state.machine.values() {
                    for table in node.memory_map.values() {
                        prop_assert_eq!(table.free + table.reserved, table.allocatable);
                    }
                }
                let given: u64 = rig.state.machine.values().map(|node| node.memory_map[MEMORY].reserved).sum();
                let blocks: u64 = rig.state.assigned.values().flat_map(|c| c.values()).flatten().map(|b| b.size).sum();
                prop_assert_eq!(given, blocks);
                prop_assert!(rig.policy.start(&mut rig.state.clone()).is_ok());
            }
            for uid in rig.state.assigned.keys().cloned().collect::<Vec<_>>() {
                rig.release(&uid);
            }
            prop_assert_eq!(rig.state, idle);
        }
    }
}
