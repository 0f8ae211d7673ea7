//! Cgroups: how they are called, what is written into them, and where their counters are; on version 1 hierarchies and
//! on the unified one, written by ourselves (driver `cgroupfs`) or through systemd (driver `systemd`).
//!
//! | module | what it is |
//! |---|---|
//! | [`name`] | a cgroup's name, and what each driver makes of it |
//! | [`limits`] | what a cgroup may use, in the kernel's units |
//! | [`layout`] | which hierarchies this machine has |
//! | [`plan`] | the steps that make, change or remove a cgroup: data, printed as text |
//! | [`allocatable`] | what all pods together may use, and what daemons may |
//! | [`tree`] | the edge: carries plans out |
//! | [`systemd`] | the edge to systemd: slices as units |
//! | [`hierarchy`] | where counters are, and those that several parts of the kubelet read |

pub mod allocatable;
pub mod hierarchy;
pub mod layout;
pub mod limits;
pub mod name;
pub mod plan;
pub mod systemd;
pub mod tree;

pub use hierarchy::{Hierarchy, field, number};
pub use layout::Layout;
pub use limits::{Amount, Limits, Quota};
pub use name::{Driver, Name};
pub use tree::Tree;
