//! Nodes: whether they are heard of, what keeps pods away from them, and their pod networks.

pub(crate) mod eviction;
pub(crate) mod ipam;
pub(crate) mod lifecycle;
