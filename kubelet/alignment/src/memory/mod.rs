//! The memory manager (KEP-1769): memory and huge pages of guaranteed containers from as few NUMA nodes as can be.

pub mod policy;
pub mod state;
