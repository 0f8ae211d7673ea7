//! The kubelet: makes the pods of its node run, through a container runtime, and tells what became of them.
//!
//! The seam is [`pod::plan::plan`]: from a pod's definition, what the [`observe::Observer`] saw of it and what its
//! probes say, it decides what to do next. One [`worker`] a pod asks it and lets the actions run; the [`manager`] hands
//! pods from the [`sources`] to workers. Edges: the runtime ([`cri`]), objects ([`objects`]), volumes ([`volumes`]),
//! cgroups ([`cgroups`]). What keeps the node itself going is in [`upkeep`].

pub mod admission;
pub mod alignment;
pub mod api_status;
pub mod cgroups;
pub mod claims;
pub mod config;
pub mod context;
pub mod cri;
pub mod dial;
pub mod handler;
pub mod health;
pub mod host;
pub mod images;
pub mod kernel;
mod limiting;
pub mod make;
pub mod manager;
pub mod metrics;
pub mod objects;
pub mod observe;
pub mod options;
pub mod plugins;
pub mod pod;
mod pod_network;
pub mod probes;
pub mod report;
mod run;
pub mod sources;
pub mod startup;
pub mod sysctls;
pub mod systemd;
pub mod upkeep;
mod usage;
pub mod userns;
pub mod volumes;
pub mod worker;

pub use options::Options;
pub use run::run;
