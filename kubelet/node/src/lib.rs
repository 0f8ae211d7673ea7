//! The node's side of cluster membership: how the kubelet gets its certificates, makes its Node known, keeps its lease and
//! its status.
//!
//! [`identity`] turns a bootstrap token into a client certificate and keeps that fresh, [`serving`] does the same for the
//! certificate of :10250. [`agent::NodeAgent`] registers the Node and reports what [`machine`] and [`facts::RuntimeFacts`]
//! say; what to report is decided by [`status::plan`], which is pure.

pub mod address;
pub mod agent;
pub mod config;
mod csr;
pub mod facts;
pub mod identity;
pub mod lease;
pub mod machine;
pub mod pressure;
pub mod register;
pub mod serving;
pub mod status;
mod store;

pub use agent::{NodeAgent, NodeHandle};
pub use config::NodeConfig;
pub use facts::RuntimeFacts;
pub use store::CertificateStore;
