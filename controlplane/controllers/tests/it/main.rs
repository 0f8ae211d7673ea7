//! The whole control plane in one process: a real API server with real permissions on a store in memory, the scheduler,
//! all controllers, and nodes whose kubelets only pretend.
#![expect(clippy::unwrap_used, reason = "a broken fixture should end the test")]

mod cluster;
mod nodes;
mod workloads;
