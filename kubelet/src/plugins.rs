//! Starts the plugin watcher with a handler for each type of plugin.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bosun_kit::backoff::Backoff;
use bosun_kubelet_csi::node_info;
use bosun_kubelet_plugins::{Handler, PluginWatcher};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::make::Node;
use crate::volumes::csi::CsiVolumes;

/// Registers plugins of these types as their sockets come and go.
///
/// # Errors
/// The folder of sockets cannot be made.
pub fn start(
    node: &Node,
    handlers: impl IntoIterator<Item = (String, Arc<dyn Handler>)>,
    parts: &mut JoinSet<()>,
    cancel: &CancellationToken,
) -> Result<()> {
    let folder = node.root_dir.join("plugins_registry");
    let watcher = PluginWatcher::new(&folder, handlers).context("make the folder in which plugins register")?;
    parts.spawn(watcher.run(cancel.clone()));
    Ok(())
}

/// Sees to it that there is a CSINode object, however long that takes: without one the scheduler counts no volumes.
pub async fn keep_csi_node(csi: Arc<CsiVolumes>, cancel: CancellationToken) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
    let make = async {
        while let Err(error) = node_info::ensure(csi.cluster()).await {
            tracing::debug!(error, "the CSINode object is not there yet");
            tokio::time::sleep(backoff.next_delay()).await;
        }
    };
    tokio::select! {
        () = make => {}
        () = cancel.cancelled() => {}
    }
}
