//! What a pod should be, what it is, and what follows: pure code, without I/O or clock.

pub mod labels;
pub mod plan;
pub mod probe;
pub mod record;
pub mod resize;
pub mod restart;
pub mod spec;
pub mod status;
