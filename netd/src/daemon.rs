//! The loop: nodes, routes or rules change, and what differs from the plan is mended.

use crate::{
    Config, conflist,
    kernel::{Rtnetlink, Table},
    node,
    plan::{self, Desired},
    rules::{Guard, Rules},
    sysctl,
};
use anyhow::{Context, Result};
use bosun_kit::{
    backoff::Backoff,
    informer::{Delta, Informer},
};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus};
use kube::{Api, Client, runtime::watcher};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;

/// Runs until cancelled; routes and rules stay when it ends, so that pods go on.
///
/// # Errors
/// When a flag is wrong, or the kernel refuses the sockets that everything else needs.
pub async fn run(config: Config, client: Client, node_name: String, cancel: CancellationToken) -> Result<()> {
    let nodes =
        Informer::start_trimmed(Api::<Node>::all(client.clone()), watcher::Config::default(), cancel.clone(), trim);
    let deltas = nodes.subscribe();
    let daemon = Daemon {
        inside: config.cluster_networks()?,
        guard: if config.masquerade { Some(Guard::open()?) } else { None },
        table: Rtnetlink::open()?,
        config,
        client,
        node_name,
        nodes,
        prepared: Vec::new(),
        refused: None,
    };
    // Until the nodes are known, routes to all of them would look stale.
    let nodes = daemon.nodes.clone();
    tokio::select! {
        () = cancel.cancelled() => return Ok(()),
        () = nodes.synced() => {}
    }
    daemon.follow(deltas, &cancel).await
}

/// Keeps of a node what is looked at here.
fn trim(node: &mut Node) {
    node.metadata.annotations = None;
    node.metadata.labels = None;
    if let Some(spec) = &mut node.spec {
        let NodeSpec { pod_cidr, pod_cidrs, .. } = std::mem::take(spec);
        *spec = NodeSpec { pod_cidr, pod_cidrs, ..NodeSpec::default() };
    }
    if let Some(status) = &mut node.status {
        let NodeStatus { addresses, conditions, .. } = std::mem::take(status);
        *status = NodeStatus { addresses, conditions, ..NodeStatus::default() };
    }
}

struct Daemon<T> {
    config: Config,
    client: Client,
    node_name: String,
    nodes: Informer<Node>,
    /// The cluster's pod networks.
    inside: Vec<IpNet>,
    table: T,
    guard: Option<Guard>,
    /// The pod networks that configuration and rules were made for.
    prepared: Vec<IpNet>,
    /// What failed last, so that it is told once.
    refused: Option<String>,
}

impl<T: Table> Daemon<T> {
    async fn follow(mut self, mut deltas: UnboundedReceiver<Delta<Node>>, cancel: &CancellationToken) -> Result<()> {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        loop {
            let retry = match self.reconcile().await {
                Ok(()) => {
                    backoff.reset();
                    self.refused = None;
                    None
                }
                Err(error) => {
                    self.tell(&error);
                    Some(backoff.next_delay())
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                delta = deltas.recv() => {
                    if delta.is_none() {
                        return Ok(());
                    }
                    while deltas.try_recv().is_ok() {}
                }
                () = self.table.changed() => {}
                () = deleted(&mut self.guard) => self.prepared.clear(),
                () = sleep(retry) => {}
            }
        }
    }

    fn tell(&mut self, error: &anyhow::Error) {
        let text = format!("{error:#}");
        if self.refused.as_ref() != Some(&text) {
            tracing::warn!(error = text, "not all of the node's network is as it should be; trying again");
            self.refused = Some(text);
        }
    }

    /// Brings configuration, rules and routes to what the nodes ask for; goes on after a failure.
    async fn reconcile(&mut self) -> Result<()> {
        let nodes = self.nodes.list();
        let Some(desired) = plan::desired(&self.node_name, nodes.iter().map(AsRef::as_ref)) else {
            tracing::debug!(node = self.node_name, "waiting for the node's pod network");
            return Ok(());
        };
        let prepared = self.prepare(&desired);
        let routed = self.route(&desired).await;
        prepared?;
        routed?;
        match self.nodes.get(None, &self.node_name) {
            Some(me) => node::set_available(&self.client, &me).await,
            None => Ok(()),
        }
    }

    /// What depends on this node's pod networks alone.
    fn prepare(&mut self, desired: &Desired) -> Result<()> {
        if self.prepared == desired.pod_cidrs {
            return Ok(());
        }
        sysctl::prepare(&desired.pod_cidrs);
        if let Some(guard) = &mut self.guard {
            guard.load(&Rules { pods: desired.pod_cidrs.clone(), inside: self.inside.clone() })?;
        }
        let missing = conflist::missing_plugins(&self.config);
        if !missing.is_empty() {
            let dir = self.config.bin_dir.display();
            tracing::warn!(%dir, ?missing, "CNI plugins are missing: pods will not start; run `bosun-cni install`");
        }
        conflist::write_subnet_env(&self.config, &self.inside, &desired.pod_cidrs).context("write subnet.env")?;
        // Last: with it the runtime reports the network as ready.
        conflist::write(&self.config, &desired.pod_cidrs)
            .with_context(|| format!("write the CNI configuration into {}", self.config.conf_dir.display()))?;
        self.prepared.clone_from(&desired.pod_cidrs);
        Ok(())
    }

    async fn route(&mut self, desired: &Desired) -> Result<()> {
        for (node, reason) in &desired.skipped {
            tracing::debug!(node, reason, "no route to the node's pods");
        }
        let observed = self.table.observe().await?;
        let mut outcome = Ok(());
        for change in plan::changes(&desired.routes, &observed) {
            match self.table.apply(change).await {
                Ok(()) => tracing::info!(%change, "route"),
                Err(error) => outcome = Err(error.context("nodes must share a link")),
            }
        }
        outcome
    }
}

async fn deleted(guard: &mut Option<Guard>) {
    let Some(guard) = guard else { return std::future::pending().await };
    if let Err(error) = guard.deleted().await {
        tracing::warn!(error = format!("{error:#}"), "changes of rules are no longer noticed");
    }
}

async fn sleep(delay: Option<Duration>) {
    match delay {
        Some(delay) => tokio::time::sleep(delay).await,
        None => std::future::pending().await,
    }
}
