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

use ipnet::IpNet;
use std::path::PathBuf;

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
    /// The pods' networks of the whole cluster: what goes there is not masqueraded.
    #[arg(long = "cluster-cidr", value_delimiter = ',', default_value = "10.244.0.0/16")]
    pub cluster_cidrs: Vec<IpNet>,
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

impl Default for Config {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dir: "/opt/cni/bin".into(),
            data_dir: None,
            cluster_cidrs: vec![IpNet::V4(ipnet::Ipv4Net::new_assert([10, 244, 0, 0].into(), 16))],
            bridge: "cni0".to_owned(),
            mtu: None,
            masquerade: true,
            subnet_env: None,
        }
    }
}
