//! The service dataplane: cluster IPs, node ports and their kin, kept in nf_tables.
//!
//! Three steps, each in its own place. [`convert`] and `watch` turn what the API server says into the small
//! [`model`]; [`plan`] decides, purely, which address answers how; [`nftables`] brings the kernel to a plan by the
//! difference to the one before, in one transaction. [`run`] ties them together, and `kube-proxy` is a thin program
//! around it.

pub mod config;
pub mod convert;
mod health;
mod metrics;
pub mod model;
pub mod nftables;
pub mod plan;
mod program;
mod run;
mod server;
mod sysctl;
mod watch;
mod worker;

pub use config::{Config, Options};
pub use run::{Error, dry_run, init, run};
