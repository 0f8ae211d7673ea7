//! The command line, as stock's kube-proxy has it. A flag that is given overrides the file's field.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use bosun_kit::config::{expect_kind, from_file};
use clap::Args;

use super::{Config, GoDuration, KIND};

/// Flags of kube-proxy.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Write the configuration that results, and exit.
    #[arg(long, value_name = "FILE")]
    pub write_config_to: Option<PathBuf>,
    /// Remove every rule that kube-proxy made, and exit.
    #[arg(long)]
    pub cleanup: bool,
    /// Print what would be done for the cluster's present state, and exit.
    #[arg(long)]
    pub dry_run: bool,
    /// Do only what needs privileges (kernel settings), and exit.
    #[arg(long)]
    pub init_only: bool,
    /// How to reach the API server; without it, the service account of the pod.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The Node's name, when it is not the host's.
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// How packets are handled: nftables.
    #[arg(long, value_name = "MODE")]
    pub proxy_mode: Option<String>,
    /// The pods' network, or one for each family with a comma between.
    #[arg(long, value_name = "CIDR")]
    pub cluster_cidr: Option<String>,
    /// How to tell what comes from pods: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix.
    #[arg(long, value_name = "MODE")]
    pub detect_local_mode: Option<String>,
    /// With BridgeInterface: the pods' bridge.
    #[arg(long, value_name = "NAME")]
    pub pod_bridge_interface: Option<String>,
    /// With InterfaceNamePrefix: how the names of pods' interfaces start.
    #[arg(long, value_name = "PREFIX")]
    pub pod_interface_name_prefix: Option<String>,
    /// The node's primary address, when it is not the Node object's.
    #[arg(long, value_name = "IP")]
    pub bind_address: Option<String>,
    /// Exit when a port cannot be listened on.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub bind_address_hard_fail: Option<bool>,
    /// Where health is served [default: 0.0.0.0:10256].
    #[arg(long, value_name = "IP:PORT")]
    pub healthz_bind_address: Option<String>,
    /// Where metrics are served [default: 127.0.0.1:10249].
    #[arg(long, value_name = "IP:PORT")]
    pub metrics_bind_address: Option<String>,
    /// Where node ports are served: CIDRs, primary, all [default: primary].
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub nodeport_addresses: Option<Vec<String>>,
    /// Masquerade everything that goes to a cluster IP.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub masquerade_all: Option<bool>,
    /// The bit of the packet mark that asks for masquerading.
    #[arg(long, value_name = "BIT")]
    pub iptables_masquerade_bit: Option<i32>,
    /// The least time between two changes of the rules.
    #[arg(long, value_name = "DURATION")]
    pub iptables_min_sync_period: Option<GoDuration>,
    /// The longest time in which the rules follow a change.
    #[arg(long, value_name = "DURATION")]
    pub iptables_sync_period: Option<GoDuration>,
    /// Connections to track, for each core; 0 leaves the kernel's limit.
    #[arg(long, value_name = "N")]
    pub conntrack_max_per_core: Option<i32>,
    /// Connections to track at least.
    #[arg(long, value_name = "N")]
    pub conntrack_min: Option<i32>,
    /// How long idle TCP connections are tracked; 0 leaves the kernel's time.
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_established: Option<GoDuration>,
    /// How long half-closed TCP connections are tracked.
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_close_wait: Option<GoDuration>,
    /// Take TCP packets outside the window as valid.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub conntrack_tcp_be_liberal: Option<bool>,
    /// How long unanswered UDP flows are tracked.
    #[arg(long, value_name = "DURATION")]
    pub conntrack_udp_timeout: Option<GoDuration>,
    /// How long answered UDP flows are tracked.
    #[arg(long, value_name = "DURATION")]
    pub conntrack_udp_timeout_stream: Option<GoDuration>,
    /// The process's score for the out-of-memory killer.
    #[arg(long, value_name = "SCORE", allow_negative_numbers = true)]
    pub oom_score_adj: Option<i32>,
    /// Gates as name=true or name=false, with commas between.
    #[arg(long, value_name = "GATES")]
    pub feature_gates: Option<String>,
}

impl Options {
    /// The configuration: the file's, or the defaults, with what flags say put over it.
    pub fn resolve(&self) -> Result<Config> {
        let mut config = match &self.config {
            None => Config::default(),
            Some(path) => {
                let config: Config = from_file(path)?;
                expect_kind(&path.display().to_string(), KIND, (&config.api_version, &config.kind))?;
                config
            }
        };
        set(&mut config.hostname_override, &self.hostname_override);
        set(&mut config.mode, &self.proxy_mode);
        set(&mut config.cluster_cidr, &self.cluster_cidr);
        set(&mut config.detect_local_mode, &self.detect_local_mode);
        set(&mut config.detect_local.bridge_interface, &self.pod_bridge_interface);
        set(&mut config.detect_local.interface_name_prefix, &self.pod_interface_name_prefix);
        set(&mut config.bind_address, &self.bind_address);
        set(&mut config.bind_address_hard_fail, &self.bind_address_hard_fail);
        set(&mut config.healthz_bind_address, &self.healthz_bind_address);
        set(&mut config.metrics_bind_address, &self.metrics_bind_address);
        set_some(&mut config.node_port_addresses, &self.nodeport_addresses);
        // The flags have one name for all modes; the file has a field in each.
        set(&mut config.nftables.masquerade_all, &self.masquerade_all);
        set_some(&mut config.nftables.masquerade_bit, &self.iptables_masquerade_bit);
        set(&mut config.nftables.min_sync_period, &self.iptables_min_sync_period);
        set(&mut config.nftables.sync_period, &self.iptables_sync_period);
        let conntrack = &mut config.conntrack;
        set_some(&mut conntrack.max_per_core, &self.conntrack_max_per_core);
        set_some(&mut conntrack.min, &self.conntrack_min);
        set_some(&mut conntrack.tcp_established_timeout, &self.conntrack_tcp_timeout_established);
        set_some(&mut conntrack.tcp_close_wait_timeout, &self.conntrack_tcp_timeout_close_wait);
        set(&mut conntrack.tcp_be_liberal, &self.conntrack_tcp_be_liberal);
        set(&mut conntrack.udp_timeout, &self.conntrack_udp_timeout);
        set(&mut conntrack.udp_stream_timeout, &self.conntrack_udp_timeout_stream);
        set_some(&mut config.oom_score_adj, &self.oom_score_adj);
        if let Some(path) = &self.kubeconfig {
            config.client_connection.kubeconfig = path.display().to_string();
        }
        for (gate, value) in bosun_kit::flags::parse_pairs(self.feature_gates.as_deref().unwrap_or_default())
            .map_err(anyhow::Error::msg)?
        {
            let value = bosun_kit::gates::parse_bool(&value);
            config.feature_gates.insert(gate, value.context("--feature-gates: values are true or false")?);
        }
        Ok(config)
    }
}

fn set<T: Clone>(field: &mut T, flag: &Option<T>) {
    if let Some(value) = flag {
        field.clone_from(value);
    }
}

fn set_some<T: Clone>(field: &mut Option<T>, flag: &Option<T>) {
    if flag.is_some() {
        field.clone_from(flag);
    }
}
