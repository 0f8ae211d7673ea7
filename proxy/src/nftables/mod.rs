//! The plan in nf_tables: one table a family, a handful of maps, one chain for each distinct way of balancing.
//!
//! ```text
//! packet ─ nat-prerouting / nat-output ─ services ─ vmap service-ips ──────┬─ cluster-2 ─ dnat by map endpoints
//!                                                 ─ vmap service-nodeports ┴─ external-2 …
//! packet ─ nat-postrouting: masquerade what is marked, and what a pod sends to itself by a Service
//! ```
//!
//! A Service costs elements in maps, never a chain or a rule: one element for each front and one for each of its
//! endpoints, whose key ends in a slot number that a rule draws at random. Chains look at first packets only, all are
//! of type `nat`, so connections that exist are never touched by a change.

mod chain;
mod element;
mod layout;
mod observe;
mod sync;

pub use layout::{Detector, Options};
pub use sync::{Backend, TABLE};
