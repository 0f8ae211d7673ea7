//! What runs for as long as the kubelet does: sockets for device plugins and for agents, and what follows their news.

use std::sync::Arc;

use anyhow::Result;
use bosun_kit::metrics::Metrics;
use bosun_kubelet_devices::{pod_resources, registration};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::pools;
use super::shown::{self, PodsResources};
use crate::config::KubeletConfiguration;
use crate::context::Context;
use crate::manager::Pods;

/// Starts it. `on_devices` is called whenever devices have changed.
///
/// # Errors
/// A socket cannot be made.
pub fn start(
    context: &Arc<Context>,
    pods: &Pods,
    config: &KubeletConfiguration,
    metrics: &Metrics,
    on_devices: impl Fn() + Send + 'static,
    parts: &mut JoinSet<()>,
    cancel: &CancellationToken,
) -> Result<()> {
    let alignment = &context.alignment;
    alignment.register(metrics);
    registration::serve(alignment.devices.clone(), cancel.clone())?;
    let requests = pod_resources::Requests::default();
    requests.register(metrics);
    let folder = context.node.root_dir.join(shown::FOLDER);
    let claims = context.claims.clone();
    let shown = Arc::new(PodsResources { alignment: alignment.clone(), claims, pods: pods.clone() });
    pod_resources::serve(&folder, shown, requests, cancel.clone())?;
    let period = config.cpu_manager_reconcile_period.0;
    parts.spawn(pools::keep(context.clone(), pods.clone(), period, cancel.clone()));
    parts.spawn(pools::tell_of_devices(context.clone(), pods.clone(), on_devices, cancel.clone()));
    Ok(())
}
