//! The controllers: each drives one kind of thing from what is to what should be.
//!
//! Every module has the same seam. *Observe*: watches shared by all controllers (one per kind) route changes to a queue of
//! keys. *Plan*: a pure function compares what is wanted with what is there and answers with writes. *Apply*: a thin
//! reconciler carries them out, under the identity of the service account that stock gives that controller.

mod bootstrap_tokens;
mod certificates;
mod cluster_roles;
mod daemonset;
mod deployment;
mod disruption;
mod endpoints;
mod endpointslice;
mod garbage;
mod history;
mod job;
mod namespace;
mod node;
mod objects;
mod options;
mod pod_gc;
mod pods;
mod replicaset;
mod resources;
mod runtime;
mod service_accounts;
mod service_pods;
mod statefulset;
mod watches;

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use kube::Client;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use crate::options::{Options, Selection};
use crate::runtime::Context;
use crate::watches::Watches;

/// Whom a controller's name stands for: its user and groups, as an in-process caller presents them.
pub fn identity(controller: &str) -> (String, Vec<String>) {
    let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"];
    (format!("system:serviceaccount:kube-system:{controller}"), groups.map(str::to_owned).to_vec())
}

/// How the controllers run.
#[derive(Clone, Debug)]
pub struct ControllersConfig {
    /// Which of them run.
    pub controllers: Selection,
    /// Network that nodes get their pod networks from.
    pub cluster_cidr: Option<IpNet>,
    /// The same of the other family, for a cluster with both.
    pub second_cluster_cidr: Option<IpNet>,
    /// Network of Services, which no node's pod network may overlap.
    pub service_cidr: Option<IpNet>,
    /// Prefix length of a node's IPv4 pod network.
    pub node_mask_v4: u8,
    /// Prefix length of a node's IPv6 pod network.
    pub node_mask_v6: u8,
    /// Certificate and key (PEM) that sign certificate requests; without them nothing is signed.
    pub signing_ca: Option<(String, String)>,
    /// The longest life of a certificate that is signed here.
    pub signing_duration: Duration,
    /// Approve a kubelet's request for a serving certificate when its names are its node's addresses. Stock leaves this
    /// to people.
    pub auto_approve_kubelet_serving: bool,
    /// Certificates (PEM) that clients in the cluster trust the API server by.
    pub root_ca_pem: Option<String>,
    /// How long a node may be silent before it counts as unreachable.
    pub node_monitor_grace_period: Duration,
    /// Finished pods beyond this number are deleted; 0 for no bound.
    pub terminated_pod_threshold: usize,
}

impl Default for ControllersConfig {
    fn default() -> Self {
        Self {
            controllers: Selection::default(),
            cluster_cidr: None,
            second_cluster_cidr: None,
            service_cidr: None,
            node_mask_v4: 24,
            node_mask_v6: 64,
            signing_ca: None,
            signing_duration: Duration::from_secs(365 * 24 * 3600),
            auto_approve_kubelet_serving: false,
            root_ca_pem: None,
            node_monitor_grace_period: Duration::from_secs(50),
            terminated_pod_threshold: 12_500,
        }
    }
}

type Start = fn(&Context);

/// Name by which `--controllers` picks it, and how it is started.
const CONTROLLERS: &[(&str, Start)] = &[
    ("namespace-controller", namespace::start),
    ("serviceaccount-controller", service_accounts::start_service_accounts),
    ("root-ca-certificate-publisher-controller", service_accounts::start_root_ca),
    ("replicaset-controller", replicaset::start),
    ("deployment-controller", deployment::start),
    ("daemonset-controller", daemonset::start),
    ("job-controller", job::start),
    ("ttl-after-finished-controller", job::ttl::start),
    ("pod-garbage-collector-controller", pod_gc::start),
    ("statefulset-controller", statefulset::start),
    ("disruption-controller", disruption::start),
    ("clusterrole-aggregation-controller", cluster_roles::start),
    ("token-cleaner-controller", bootstrap_tokens::start),
    ("endpoints-controller", endpoints::start),
    ("endpointslice-controller", endpointslice::start),
    ("garbage-collector-controller", garbage::start),
    ("node-lifecycle-controller", node::lifecycle::start),
    ("taint-eviction-controller", node::eviction::start),
    ("node-ipam-controller", node::ipam::start),
    ("certificatesigningrequest-approving-controller", certificates::approve::start),
    ("certificatesigningrequest-signing-controller", certificates::sign::start),
    ("certificatesigningrequest-cleaner-controller", certificates::clean::start),
];

/// Names of all controllers, for `--controllers`.
pub fn names() -> impl Iterator<Item = &'static str> {
    CONTROLLERS.iter().map(|(name, _)| *name)
}

/// Runs the controllers until cancelled.
///
/// `clients` gives a client for a controller: its name is that of the service account in `kube-system` that stock's role
/// bindings know. What all controllers share is read as the garbage collector, which may read everything.
///
/// # Errors
/// The selection names a controller that does not exist.
pub async fn run(
    clients: impl Fn(&str) -> Client + Send + Sync + 'static,
    config: ControllersConfig,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    config.controllers.check(names())?;
    let clients: Arc<dyn Fn(&str) -> Client + Send + Sync> = Arc::new(clients);
    let context = Context {
        watches: Arc::new(Watches::new(clients(garbage::NAME), cancel.clone())),
        clients,
        config: Arc::new(config),
        cancel: cancel.clone(),
        tasks: TaskTracker::new(),
    };
    for (name, start) in CONTROLLERS {
        if context.config.controllers.includes(name) {
            start(&context);
            tracing::debug!(controller = name, "started");
        }
    }
    cancel.cancelled().await;
    context.tasks.close();
    // Whoever is amid a request finishes it, within reason.
    if tokio::time::timeout(Duration::from_secs(5), context.tasks.wait()).await.is_err() {
        tracing::debug!("some controllers were still busy at the end");
    }
    Ok(())
}
