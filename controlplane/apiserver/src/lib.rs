//! The API server: authenticate → authorize → admit, default and validate → store → watchers.
//!
//! Everything generic is driven by the table of resources in `bosun_api::resource`. What objects must look like is
//! decided there too; who may do what is decided by `bosun_authz`; where they are kept by `bosun_store`.

mod admission;
mod authn;
mod authorize;
mod bootstrap;
mod cache;
mod call;
mod codec;
mod connect;
mod convert;
mod delete;
mod discovery;
mod fields;
mod grants;
mod impersonate;
mod metrics;
mod object;
mod openapi;
mod options;
mod patch;
mod read;
mod request;
mod restriction;
mod reviews;
mod server;
mod services;
mod strategy;
mod subresources;
mod table;
mod tokens;
mod watch;
mod write;

pub use authn::user;
pub use authorize::Authorization;
pub use options::Options;
pub use server::{ApiServer, Config, Service, ServiceAccountKeys, StartError};
pub use tokens::KeyError;
