//! The node's network daemon: what CNI plugins need to know, routes to the other nodes' pods, masquerade.
//!
//! It waits for this node's `spec.podCIDRs`, writes the CNI configuration, and keeps a route to each other node's pods by
//! that node's address (host-gw: the nodes share a link). Routes and rules that anyone removes are put back when the
//! kernel tells of it. [`plan`] is pure: nodes and observed routes in, changes out; [`kernel`] does them.

mod conflist;
mod daemon;
pub mod kernel;
mod node;
pub mod plan;
mod rules;
mod sysctl;

pub use conflist::conflist;
pub use daemon::run;

use anyhow::Context;
use ipnet::IpNet;
use std::path::PathBuf;
use tokio_util::sync::CancellationToken;

const CLUSTER_CIDR: &str = "10.244.0.0/16";

/// The flags of the daemon as a program of its own.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Kubeconfig of the cluster; without it the pod's service account is used.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// This node's name in the cluster.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// What the daemon is told.
    #[command(flatten)]
    pub config: Config,
}

impl Options {
    /// Runs the daemon until cancelled.
    ///
    /// # Errors
    /// As [`run`], and when no API client can be made of the flags.
    pub async fn run(self, cancel: CancellationToken) -> anyhow::Result<()> {
        let client = bosun_kit::client::from_kubeconfig_or_cluster(self.kubeconfig.as_deref()).await?;
        run(self.config, client, self.node_name, cancel).await
    }
}

/// What the daemon is told.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Folder for the CNI configuration.
    #[arg(long = "cni-conf-dir", default_value = "/etc/cni/net.d")]
    pub conf_dir: PathBuf,
    /// Folder of the CNI plugins; what is missing there is told.
    #[arg(long = "cni-bin-dir", default_value = "/opt/cni/bin")]
    pub bin_dir: PathBuf,
    /// Folder where host-local keeps addresses; empty for its default, /var/lib/cni/networks.
    #[arg(long = "cni-data-dir")]
    pub data_dir: Option<PathBuf>,
    /// The pods' networks of the whole cluster, one of each family, with a comma between: what goes there is not
    /// masqueraded.
    #[arg(long, default_value = CLUSTER_CIDR)]
    pub cluster_cidr: String,
    /// The bridge that pods are on.
    #[arg(long, default_value = "cni0")]
    pub bridge: String,
    /// MTU of the pods' interfaces, in bytes; the kernel's choice when not given.
    #[arg(long)]
    pub mtu: Option<u32>,
    /// Masquerade what pods send out of the cluster.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub masquerade: bool,
    /// Where to write a subnet.env as flannel has it; not written when not given.
    #[arg(long)]
    pub subnet_env: Option<PathBuf>,
}

impl Config {
    /// The cluster's pod networks.
    ///
    /// # Errors
    /// Names the flag and the value that is no network.
    pub fn cluster_networks(&self) -> anyhow::Result<Vec<IpNet>> {
        let words = self.cluster_cidr.split(',').map(str::trim).filter(|word| !word.is_empty());
        words.map(|word| word.parse().with_context(|| format!("--cluster-cidr: {word:?} is no network"))).collect()
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dir: "/opt/cni/bin".into(),
            data_dir: None,
            cluster_cidr: CLUSTER_CIDR.to_owned(),
            bridge: "cni0".to_owned(),
            mtu: None,
            masquerade: true,
            subnet_env: None,
        }
    }
}
