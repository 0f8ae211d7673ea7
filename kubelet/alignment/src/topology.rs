//! What a machine is made of: threads in cores, cores in sockets and NUMA nodes, caches and memory.

use std::collections::{BTreeMap, BTreeSet};

use crate::cpuset::CpuSet;
use crate::mask::NumaMask;

/// Where one logical CPU is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// The NUMA node.
    pub numa: usize,
    /// The package.
    pub socket: usize,
    /// The core, named by its lowest thread, so that the number is unique in the machine.
    pub core: usize,
    /// The last-level cache that it shares with others.
    pub uncore: usize,
}

/// One NUMA node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NumaNode {
    /// Memory in bytes.
    pub memory: u64,
    /// How many huge pages, by the size of one in bytes.
    pub huge_pages: BTreeMap<u64, u64>,
    /// The kernel's distances to the nodes, in the order of their numbers; empty if it does not tell.
    pub distances: Vec<u64>,
}

/// A machine, or that part of it which is still free.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// Every online CPU.
    pub cpus: BTreeMap<usize, Cpu>,
    /// The NUMA nodes.
    pub nodes: BTreeMap<usize, NumaNode>,
}

/// A group of CPUs that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// A NUMA node.
    Numa,
    /// A package.
    Socket,
    /// A core.
    Core,
    /// A last-level cache.
    Uncore,
}

impl Cpu {
    /// The group of that level in which it is.
    pub fn group(&self, level: Level) -> usize {
        match level {
            Level::Numa => self.numa,
            Level::Socket => self.socket,
            Level::Core => self.core,
            Level::Uncore => self.uncore,
        }
    }
}

impl Topology {
    /// All CPUs.
    pub fn all(&self) -> CpuSet {
        self.cpus.keys().copied().collect()
    }

    /// The CPUs in one group.
    pub fn cpus_in(&self, level: Level, group: usize) -> CpuSet {
        self.cpus.iter().filter(|(_, cpu)| cpu.group(level) == group).map(|(id, _)| *id).collect()
    }

    /// The CPUs of some NUMA nodes.
    pub fn cpus_in_mask(&self, mask: NumaMask) -> CpuSet {
        self.cpus.iter().filter(|(_, cpu)| mask.contains(cpu.numa)).map(|(id, _)| *id).collect()
    }

    /// The groups of that level.
    pub fn groups(&self, level: Level) -> BTreeSet<usize> {
        self.cpus.values().map(|cpu| cpu.group(level)).collect()
    }

    /// The groups of a level that lie in (or have a part in) a group of another.
    pub fn groups_in(&self, level: Level, outer: Level, group: usize) -> BTreeSet<usize> {
        self.cpus.values().filter(|cpu| cpu.group(outer) == group).map(|cpu| cpu.group(level)).collect()
    }

    /// Only these CPUs of it.
    #[must_use]
    pub fn keep(&self, cpus: &CpuSet) -> Self {
        let kept = self.cpus.iter().filter(|(id, _)| cpus.contains(**id)).map(|(id, cpu)| (*id, *cpu));
        Self { cpus: kept.collect(), nodes: BTreeMap::new() }
    }

    /// Threads in a core (the average, rounded down, as stock reckons it); at least 1.
    pub fn cpus_per_core(&self) -> usize {
        self.per(Level::Core)
    }

    /// CPUs that share a last-level cache; at least 1.
    pub fn cpus_per_uncore(&self) -> usize {
        self.per(Level::Uncore)
    }

    fn per(&self, level: Level) -> usize {
        (self.cpus.len() / self.groups(level).len().max(1)).max(1)
    }

    /// The NUMA nodes' numbers.
    pub fn numa_nodes(&self) -> Vec<usize> {
        self.nodes.keys().copied().collect()
    }
}
