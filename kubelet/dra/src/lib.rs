//! Dynamic resource allocation on the node (KEP-4381): the claims of a pod are prepared by the drivers of their devices
//! before its first container is made, and unprepared once no pod on the node uses them any more.
//!
//! [`claims`] reads what a pod refers to, [`cache`] holds what is prepared (and survives the kubelet by its
//! [`checkpoint`]), [`plan`] decides (plain functions of both), [`manager`] acts. Drivers make themselves known through
//! the plugin watcher; [`drivers`] keeps them and has the ResourceSlices of one that stays away deleted.
//! [`health`] is what drivers tell of their devices. [`driver`] and [`api`] are the edges: gRPC, and the API server.

pub mod api;
pub mod cache;
pub mod checkpoint;
pub mod claims;
pub mod driver;
pub mod drivers;
pub mod health;
pub mod manager;
pub mod metrics;
pub mod plan;

pub use api::{Api, KubeApi};
pub use cache::{ClaimInfo, ContainerClaim, Device};
pub use drivers::Drivers;
pub use manager::{Manager, Settings};
