//! Cluster DNS: answers the names of Services and pods after the Kubernetes DNS specification 1.1, and asks upstream
//! servers for all others.
//!
//! [`zone::Zone`] is what is known of the cluster, kept small; [`answer::answer`] is pure: zone and question in, records
//! out. [`load`] keeps the zone by watching Services and EndpointSlices, [`server`] speaks UDP and TCP, [`forward`] asks
//! upstream and remembers answers.

pub mod answer;
mod config;
mod figures;
pub mod forward;
pub mod load;
pub mod server;
mod status;
pub mod zone;

pub use config::{Config, Options};

use anyhow::Context;
use std::sync::{Arc, RwLock};
use tokio_util::sync::CancellationToken;

/// Serves until cancelled: name service, health, readiness and metrics.
///
/// # Errors
/// When an address cannot be listened on, or no API client can be made of the flags.
pub async fn run(config: Config, client: kube::Client, cancel: CancellationToken) -> anyhow::Result<()> {
    let zone = Arc::new(RwLock::new(zone::Zone::new(&config.cluster_domain).context("--cluster-domain")?));
    let metrics = bosun_kit::metrics::Metrics::new();
    let figures = figures::Figures::register(&metrics);
    let forwarder = forward::Forwarder::new(config.upstreams.clone(), figures.clone());
    let server = server::Server::new(zone.clone(), forwarder, figures);
    let synced = load::start(client, zone, &cancel);
    status::serve(&config, metrics, synced, &cancel).await?;
    server.serve(&config.listen, &cancel).await
}

impl Options {
    /// Serves after these flags until cancelled.
    ///
    /// # Errors
    /// As [`run`], and when no API client can be made of the flags.
    pub async fn run(self, cancel: CancellationToken) -> anyhow::Result<()> {
        let client = bosun_kit::client::from_kubeconfig_or_cluster(self.kubeconfig.as_deref()).await?;
        run(self.into_config()?, client, cancel).await
    }
}
