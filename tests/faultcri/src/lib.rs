//! A container runtime that fails on demand: a proxy on a unix socket that passes every CRI call on to a real runtime,
//! and does to some of them what [`Rule`]s say.
//!
//! It speaks HTTP/2 and knows no call but by its path, so it needs no change when the interface grows. Of a few
//! requests and answers it reads which pod they are about, so that one pod's calls may fail while all others' go on.
//! What is worth testing with it is left to those who start it.

pub mod census;
mod proxy;
mod rules;
mod subject;

pub use census::Census;
pub use proxy::Proxy;
pub use rules::{Fault, Rule};
