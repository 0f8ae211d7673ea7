//! This node at the kubelet's start: its name and places, its identity, and what follows the Node object.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bosun_api::pod::Resources;
use bosun_kit::metrics::Metrics;
use bosun_kubelet_node::identity::{IdentityConfig, establish};
use bosun_kubelet_node::machine::MachineReader;
use bosun_kubelet_node::{NodeConfig, NodeHandle};
use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::admission::Offer;
use crate::config::KubeletConfiguration;
use crate::make::Node;
use crate::manager::SharedOffer;
use crate::options::Options;
use crate::{metrics, upkeep};

pub(super) fn node_name(options: &Options) -> Result<String> {
    let name = match &options.hostname_override {
        Some(name) => name.clone(),
        None => nix::unistd::gethostname().context("read the host name")?.to_string_lossy().into_owned(),
    };
    let name = name.trim().to_lowercase();
    if name.is_empty() {
        bail!("the node has no name: give --hostname-override");
    }
    Ok(name)
}

pub(super) fn describe(options: &Options, config: &KubeletConfiguration, name: &str, ips: &[IpAddr]) -> Node {
    let machine = MachineReader::default().machine();
    let logs = PathBuf::from(&config.pod_logs_dir);
    let links = logs.parent().unwrap_or(Path::new("/var/log")).join("containers");
    Node {
        name: name.to_owned(),
        ips: ips.iter().map(ToString::to_string).collect(),
        root_dir: options.root_dir.clone(),
        container_logs_dir: links,
        pod_logs_dir: logs,
        cluster_dns: config.cluster_dns.clone(),
        cluster_domain: config.cluster_domain.clone(),
        resolver_file: config.resolver_file().map(PathBuf::from),
        seccomp_default: config.seccomp_default,
        cpu_quota_period: config.cpu_cfs_quota.then_some(config.cpu_cfs_quota_period.0),
        memory_capacity: machine.memory as i64,
        memory_allocatable: (machine.memory as i64 - crate::upkeep::reserved_memory(config)).max(0),
        cpu_capacity: i64::from(machine.cpus) * 1000,
        cgroup_root: format!("{}/kubepods", config.cgroup_root.trim_end_matches('/')),
        cgroups_per_qos: config.cgroups_per_qos,
        systemd_cgroups: false,
        limits: Default::default(),
    }
}

/// Obtains the node's identity; none in standalone mode.
pub(super) async fn join(
    options: &Options,
    config: &KubeletConfiguration,
    name: &str,
    cancel: &CancellationToken,
) -> Result<Option<Client>> {
    let Some(kubeconfig) = &options.kubeconfig else { return Ok(None) };
    let identity = IdentityConfig {
        node_name: name.to_owned(),
        kubeconfig: kubeconfig.clone(),
        bootstrap_kubeconfig: options.bootstrap_kubeconfig.clone(),
        cert_dir: options.cert_dir.clone(),
    };
    let identity = establish(&identity, cancel).await?;
    let client = identity.client();
    if config.rotate_certificates {
        tokio::spawn(identity.keep_fresh(cancel.clone()));
    }
    Ok(Some(client))
}

pub(super) fn node_config(
    options: &Options,
    config: &KubeletConfiguration,
    name: &str,
    ips: &[IpAddr],
) -> Result<NodeConfig> {
    let labels = bosun_kit::flags::parse_pairs(&options.node_labels)
        .map_err(|error| anyhow::anyhow!("--node-labels: {error}"))?;
    let defaults = NodeConfig::new(name);
    Ok(NodeConfig {
        register: config.register_node,
        labels: labels.into_iter().collect(),
        taints: config.register_with_taints.clone(),
        provider_id: Some(config.provider_id.clone()).filter(|id| !id.is_empty()),
        node_ips: ips.to_vec(),
        max_pods: config.max_pods as u32,
        pods_per_core: config.pods_per_core as u32,
        kube_reserved: config.kube_reserved.clone(),
        system_reserved: config.system_reserved.clone(),
        kubelet_port: config.port as u16,
        root_dir: options.root_dir.clone(),
        update_frequency: config.node_status_update_frequency.0,
        report_frequency: config.node_status_report_frequency.0,
        lease_duration: Duration::from_secs(config.node_lease_duration_seconds as u64),
        max_images: usize::try_from(config.node_status_max_images).ok(),
        controller_attach_detach: config.enable_controller_attach_detach,
        ..defaults
    })
}

/// Has the node's conditions shown as soon as they change.
pub(super) async fn tell_strain(handle: NodeHandle, mut strain: upkeep::Strained, cancel: CancellationToken) {
    loop {
        tokio::select! {
            changed = strain.changed() => match changed {
                Ok(()) => handle.poke(),
                Err(_) => return,
            },
            () = cancel.cancelled() => return,
        }
    }
}

/// Keeps what admission judges by after the Node object.
pub(super) async fn follow_offer(handle: NodeHandle, offer: SharedOffer, max_pods: i32, cancel: CancellationToken) {
    let mut nodes = handle.node();
    loop {
        if let Some(node) = nodes.borrow_and_update().clone() {
            let status = node.status.as_ref();
            let allocatable = status.and_then(|s| s.allocatable.as_ref());
            let amounts = allocatable.into_iter().flatten();
            let allocatable: Resources =
                amounts.map(|(name, amount)| (name.clone(), bosun_api::quantity::of(amount))).collect();
            // What the Node says has podsPerCore in it.
            let pods = allocatable.get("pods").and_then(|pods| usize::try_from(pods.value()).ok());
            let mut offer = offer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            *offer = Offer {
                known: true,
                name: offer.name.clone(),
                labels: node.metadata.labels.clone().unwrap_or_default(),
                taints: bosun_api::node::taints(&node).to_vec(),
                allocatable,
                max_pods: pods.unwrap_or(max_pods as usize),
                strain: offer.strain.clone(),
                apparmor: offer.apparmor,
                sysctls: offer.sysctls.clone(),
                strict_groups: status.and_then(|s| s.features.as_ref()?.supplemental_groups_policy).unwrap_or_default(),
            };
        }
        tokio::select! {
            changed = nodes.changed() => if changed.is_err() { return },
            () = cancel.cancelled() => return,
        }
    }
}

/// The client, with its requests counted.
pub(super) fn counted(client: Client, options: &Options, metrics: &Metrics) -> Client {
    match &options.kubeconfig {
        Some(kubeconfig) => metrics::count_requests(client, kubeconfig, metrics),
        None => client,
    }
}
