//! What the eviction thresholds are about: signals, the resources behind them and the node conditions they raise.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use bosun_api::quantity::Quantity;

/// Something of which a node can run short. The order is that in which shortages are dealt with: memory first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    /// Memory of the node.
    MemoryAvailable,
    /// Memory of all pods together, below what they are allowed.
    AllocatableMemoryAvailable,
    /// Bytes of the kubelet's file system.
    NodeFsAvailable,
    /// Inodes of the kubelet's file system.
    NodeFsInodesFree,
    /// Bytes of the file system of images.
    ImageFsAvailable,
    /// Inodes of the file system of images.
    ImageFsInodesFree,
    /// Bytes of the file system of containers' writable layers.
    ContainerFsAvailable,
    /// Inodes of the file system of containers' writable layers.
    ContainerFsInodesFree,
    /// Process ids.
    PidAvailable,
}

/// Every signal with its name in a configuration.
const NAMES: [(Signal, &str); 9] = [
    (Signal::MemoryAvailable, "memory.available"),
    (Signal::AllocatableMemoryAvailable, "allocatableMemory.available"),
    (Signal::NodeFsAvailable, "nodefs.available"),
    (Signal::NodeFsInodesFree, "nodefs.inodesFree"),
    (Signal::ImageFsAvailable, "imagefs.available"),
    (Signal::ImageFsInodesFree, "imagefs.inodesFree"),
    (Signal::ContainerFsAvailable, "containerfs.available"),
    (Signal::ContainerFsInodesFree, "containerfs.inodesFree"),
    (Signal::PidAvailable, "pid.available"),
];

/// What pods use of the thing that is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// Memory.
    Memory,
    /// Bytes of local disk.
    EphemeralStorage,
    /// Inodes of local disk.
    Inodes,
    /// Processes.
    Pids,
}

/// A pressure condition of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// `MemoryPressure`.
    Memory,
    /// `DiskPressure`.
    Disk,
    /// `PIDPressure`.
    Pid,
}

/// What a signal says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// What is left.
    pub available: i64,
    /// What there is in all.
    pub capacity: i64,
}

/// What each signal says; one that could not be observed is not there.
pub type Observations = BTreeMap<Signal, Observation>;

impl Signal {
    /// Its name in a configuration.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(signal, _)| *signal == self).map_or("", |(_, name)| name)
    }

    /// What pods use of it.
    pub fn resource(self) -> Resource {
        match self {
            Self::MemoryAvailable | Self::AllocatableMemoryAvailable => Resource::Memory,
            Self::NodeFsAvailable | Self::ImageFsAvailable | Self::ContainerFsAvailable => Resource::EphemeralStorage,
            Self::NodeFsInodesFree | Self::ImageFsInodesFree | Self::ContainerFsInodesFree => Resource::Inodes,
            Self::PidAvailable => Resource::Pids,
        }
    }

    /// The condition that it raises.
    pub fn condition(self) -> Condition {
        match self.resource() {
            Resource::Memory => Condition::Memory,
            Resource::EphemeralStorage | Resource::Inodes => Condition::Disk,
            Resource::Pids => Condition::Pid,
        }
    }

    /// Its place in the order in which shortages are dealt with: memory goes before everything else.
    pub fn rank(self) -> u8 {
        u8::from(self.resource() != Resource::Memory)
    }
}

impl FromStr for Signal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = NAMES.iter().find(|(_, name)| *name == text).map(|(signal, _)| *signal);
        found.ok_or_else(|| format!("unsupported eviction signal {text}"))
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Resource {
    /// Its name among a container's requests, and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::EphemeralStorage => "ephemeral-storage",
            Self::Inodes => "inodes",
            Self::Pids => "pids",
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "MemoryPressure",
            Self::Disk => "DiskPressure",
            Self::Pid => "PIDPressure",
        })
    }
}

/// An amount as messages show it, with binary suffixes.
pub fn amount(value: i64) -> Quantity {
    Quantity::from_bytes(value)
}
