//! The kubelet's HTTP server: logs, exec, attach, port-forward, usage, metrics and health on :10250, with authentication
//! and authorization.
//!
//! The server knows HTTP, users and bytes; what a pod is doing it asks of [`host::KubeletHost`], which the kubelet core
//! implements. A request passes [`auth::Auth`] first, then [`route::Route`] says which handler it means.

pub mod auth;
pub mod host;
pub mod logs;
mod node_logs;
mod requests;
pub mod route;
mod server;
mod sli;
pub mod stats;
mod streaming;
mod zpages;

pub use server::{KubeletServer, ServerConfig, serve_health};
