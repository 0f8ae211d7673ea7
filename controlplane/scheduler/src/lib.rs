//! The scheduler: gives each pod a node.
//!
//! *Observe*: watches of pods, nodes and namespaces feed a [`snapshot::Snapshot`] and a [`queue::Queue`].
//! *Plan*: [`framework::decide`] asks the [`plugins`] and answers with a [`framework::Decision`];
//! [`preemption::plan`] says who would have to go. Both are pure.
//! *Apply*: bindings, conditions and events are written by tasks of their own, many at a time.

mod engine;
pub mod framework;
pub mod plugins;
pub mod preemption;
pub mod queue;
pub mod resources;
pub mod snapshot;

use std::path::PathBuf;

use bosun_kit::leader::LeaderElection;
use clap::Args;
use kube::Client;
use tokio_util::sync::CancellationToken;

/// How the scheduler runs.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// Pods whose `spec.schedulerName` is this are ours.
    pub scheduler_name: String,
    /// Run only while holding this lease, beside other instances.
    pub leader_election: Option<LeaderElection>,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self { scheduler_name: "default-scheduler".to_owned(), leader_election: None }
    }
}

/// Schedules until cancelled.
///
/// # Errors
/// The lease was lost to another instance, or a watch ended for good.
pub async fn run(client: Client, config: SchedulerConfig, cancel: CancellationToken) -> anyhow::Result<()> {
    let name = config.scheduler_name;
    match config.leader_election {
        None => engine::Engine::run(client, name, cancel).await,
        Some(election) => {
            let work = client.clone();
            election.run(client, cancel, |cancel| engine::Engine::run(work, name, cancel)).await
        }
    }
}

/// Flags of `bosun scheduler`, spelled as stock's.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Path to a kubeconfig file with the API server's address and our credentials.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Elect a leader before doing work, so that several instances may run.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub leader_elect: bool,
    /// Name of the lease that leaders hold.
    #[arg(long, default_value = "kube-scheduler")]
    pub leader_elect_resource_name: String,
    /// Namespace of the lease that leaders hold.
    #[arg(long, default_value = "kube-system")]
    pub leader_elect_resource_namespace: String,
}

impl Options {
    /// Runs after these flags until cancelled.
    ///
    /// # Errors
    /// The kubeconfig cannot be used, or as [`run`].
    pub async fn run(self, cancel: CancellationToken) -> anyhow::Result<()> {
        let client = bosun_kit::client::from_kubeconfig_or_cluster(self.kubeconfig.as_deref()).await?;
        let election = self
            .leader_elect
            .then(|| LeaderElection::new(&self.leader_elect_resource_namespace, &self.leader_elect_resource_name));
        run(client, SchedulerConfig { leader_election: election, ..SchedulerConfig::default() }, cancel).await
    }
}
