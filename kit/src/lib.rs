//! What every daemon of the house shares: serving and dialling with TLS, certificates, the API client and informers, the
//! work queue and its back-off, configuration files, flags, feature gates, logs, metrics, health and events.
//!
//! Nothing here knows what any one component decides; a component never imports another, so what two of them need
//! stands here.

pub mod backoff;
pub mod client;
pub mod config;
pub mod events;
pub mod files;
pub mod flags;
pub mod followed;
pub mod gates;
pub mod health;
pub mod http;
pub mod informer;
pub mod leader;
pub mod logs;
pub mod memory;
pub mod metrics;
pub mod pki;
pub mod program;
pub mod queue;
pub mod rate;
pub mod shutdown;
pub mod tls;
pub mod version;
