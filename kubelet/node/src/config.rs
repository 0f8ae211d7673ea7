//! How the node presents itself: flags and `KubeletConfiguration` fields, already defaulted.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;

/// What the kubelet was told about its node.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Name of the Node object.
    pub name: String,
    /// Value of the `kubernetes.io/hostname` label and of the Hostname address.
    pub hostname: String,
    /// `--register-node`: make the Node object; otherwise somebody else does, and only its status is kept.
    pub register: bool,
    /// `--node-labels`.
    pub labels: BTreeMap<String, String>,
    /// `registerWithTaints`.
    pub taints: Vec<Taint>,
    /// `--register-schedulable=false`.
    pub unschedulable: bool,
    /// `providerID`.
    pub provider_id: Option<String>,
    /// `--node-ip`: addresses, at most one a family; an unspecified one (`0.0.0.0`, `::`) picks the family alone.
    pub node_ips: Vec<IpAddr>,
    /// `maxPods`.
    pub max_pods: u32,
    /// `podsPerCore`; 0 for no such limit.
    pub pods_per_core: u32,
    /// `kubeReserved`: resource name to quantity.
    pub kube_reserved: BTreeMap<String, String>,
    /// `systemReserved`: resource name to quantity.
    pub system_reserved: BTreeMap<String, String>,
    /// `evictionHard`: signal to quantity or percentage.
    pub eviction_hard: BTreeMap<String, String>,
    /// The port of the kubelet's server.
    pub kubelet_port: u16,
    /// The kubelet's folder, whose file system counts as ephemeral storage.
    pub root_dir: PathBuf,
    /// `nodeStatusUpdateFrequency`: how often the status is computed.
    pub update_frequency: Duration,
    /// `nodeStatusReportFrequency`: how often an unchanged status is sent.
    pub report_frequency: Duration,
    /// `nodeLeaseDurationSeconds`; renewed each quarter of it.
    pub lease_duration: Duration,
    /// How long a container runtime that gives no answer still counts as it last was (stock: 30 s): one slow or lost
    /// answer, or its restart, takes no node away.
    pub runtime_grace: Duration,
    /// `nodeStatusMaxImages`; none for no limit.
    pub max_images: Option<usize>,
    /// `enableControllerAttachDetach`.
    pub controller_attach_detach: bool,
}

impl NodeConfig {
    /// The defaults of Kubernetes 1.36 for a node of this name.
    pub fn new(name: impl Into<String>) -> Self {
        let name = name.into();
        let eviction = [
            ("memory.available", "100Mi"),
            ("nodefs.available", "10%"),
            ("nodefs.inodesFree", "5%"),
            ("imagefs.available", "15%"),
            ("imagefs.inodesFree", "5%"),
        ];
        Self {
            hostname: name.clone(),
            name,
            register: true,
            labels: BTreeMap::new(),
            taints: Vec::new(),
            unschedulable: false,
            provider_id: None,
            node_ips: Vec::new(),
            max_pods: 110,
            pods_per_core: 0,
            kube_reserved: BTreeMap::new(),
            system_reserved: BTreeMap::new(),
            eviction_hard: eviction.map(|(signal, limit)| (signal.to_owned(), limit.to_owned())).into(),
            kubelet_port: 10250,
            root_dir: "/var/lib/kubelet".into(),
            update_frequency: Duration::from_secs(10),
            report_frequency: Duration::from_secs(300),
            lease_duration: Duration::from_secs(40),
            runtime_grace: Duration::from_secs(30),
            max_images: Some(50),
            controller_attach_detach: true,
        }
    }
}
