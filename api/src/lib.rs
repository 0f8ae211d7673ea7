//! Pure logic on the Kubernetes object model. No I/O, no async, no clock: whatever depends on the moment takes it as an
//! argument, so that every component decides the same way and every decision can be tested as text.

pub mod defaults;
pub mod hash;
pub mod names;
pub mod node;
pub mod openapi;
pub mod patch;
pub mod pod;
pub mod printers;
pub mod protobuf;
pub mod quantity;
pub mod resource;
pub mod scheduling;
pub mod schema;
pub mod selector;
pub mod status;
pub mod validation;
