//! Whole nodes on one machine, for the demo cluster, the end-to-end tests and the benchmark.
//!
//! A node is a network namespace on a bridge with its own containerd (root, state, socket, CNI folders, cgroup), so
//! that several fit beside each other and none of them touches the host's network but for one bridge with one
//! address. [`Fabric`] is the set of them; [`sweep`] takes it down and proves that nothing remains. Everything here
//! survives SIGKILL of its user: what runs is found again by what the kernel says, not by what was remembered.
//!
//! [`guest`] is a whole machine instead, emulated: another kernel, version 2 cgroups alone, systemd.
//!
//! This crate leaves to others what runs on the nodes, except for [`cluster`], which starts `bosun` on them.

pub mod cluster;
pub mod containerd;
pub mod fabric;
pub mod guest;
pub mod holdings;
pub mod images;
pub mod kubectl;
pub mod layout;
pub mod process;
pub mod program;
pub mod sweep;
pub mod tools;

pub use cluster::Cluster;
pub use containerd::Containerd;
pub use fabric::{Fabric, Node};
pub use holdings::Holdings;
pub use kubectl::Kubectl;
pub use layout::Layout;
pub use tools::Tools;

/// Told what is being done, one short line at a time.
pub type Say<'a> = &'a (dyn Fn(&str) + Sync);
