//! The API server over a real store, driven by the client library that everything else uses.

#![expect(clippy::unwrap_used, reason = "in a test a failed unwrap is the report")]

mod access;
mod basics;
mod harness;
mod protobuf;
mod semantics;
