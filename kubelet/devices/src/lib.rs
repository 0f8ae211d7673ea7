//! Device plugins (v1beta1) and the pod resources API (v1) of a kubelet.
//!
//! What is known of plugins and devices, and who has which, is plain data with plain rules ([`table`], [`choose`],
//! [`hints`]). Edges: [`plugin`] talks to plugins, [`registration`] hears of them, [`manager`] keeps stock's state file
//! and asks plugins when a pod is admitted or a container starts, [`pod_resources`] shows what pods have.

pub mod checkpoint;
pub mod choose;
pub mod hints;
pub mod manager;
pub mod plugin;
pub mod pod_resources;
pub mod registration;
pub mod table;
pub mod unix;

pub use manager::{Absent, DeviceManager, Given};
pub use table::{Device, Table};
