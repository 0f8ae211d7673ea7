//! The kubelet's upkeep of its node: what it does so that the node goes on working while pods come, go and use more
//! than they should.
//!
//! Decisions are plain functions from what was observed to what is to be done: [`logs::plan`], [`images::Records::plan`],
//! [`eviction::assess`] and [`eviction::choose`], [`limits::plan`], [`preemption::plan`], [`shutdown::plan`]. Reading the
//! machine is in [`usage`], [`psi`], [`oom`] and [`logind`]. Pods, the container runtime and events are the kubelet's.

pub mod critical;
pub mod eviction;
pub mod images;
pub mod limits;
pub mod logind;
pub mod logs;
pub mod oom;
pub mod preemption;
pub mod psi;
pub mod shutdown;
pub mod signals;
pub mod thresholds;
pub mod usage;
