//! The CPU manager: exclusive CPUs for guaranteed containers with whole cores, one shared pool for all others.

pub mod assignment;
pub mod options;
pub mod policy;
pub mod state;
