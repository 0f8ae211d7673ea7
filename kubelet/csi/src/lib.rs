//! The kubelet's side of CSI, the Container Storage Interface.
//!
//! A driver registers by the plugin watcher ([`drivers`]): what it says of the node goes to the Node and CSINode objects
//! ([`node_info`]). A pod's volume is then attached by the control plane, staged once a node, published once a pod,
//! grown and given back. What is to be called next is decided in [`plan`] from what is recorded on the disk
//! ([`record`]); [`mounter`] does it. Every call has a deadline, one volume's calls never hold up another's, and a
//! kubelet that is killed at any instant knows afterwards what it had begun.
//!
//! Paths, names and texts are stock's ([`names`]), so that a node can change kubelets without being drained.

pub mod attributes;
pub mod block;
pub mod cluster;
pub mod drivers;
pub mod mounter;
pub mod names;
pub mod node_info;
pub mod plan;
pub mod record;
pub mod service;
pub mod volume;

pub use mounter::{Csi, CsiError, Made, PodUse};
pub use volume::Volume;
