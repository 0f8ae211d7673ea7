//! What every pod worker shares.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;

use crate::alignment::Alignment;
use crate::cgroups::Cgroups;
use crate::cri::Runtime;
use crate::images::Images;
use crate::make::Node;
use crate::metrics::Probes;
use crate::objects::Objects;
use crate::observe::Observer;
use crate::report::Report;
use crate::userns::UserNamespaces;
use crate::volumes::csi::CsiVolumes;
use crate::worker::Workers;

/// What every pod worker shares.
pub struct Context {
    /// This node.
    pub node: Arc<Node>,
    /// The container runtime.
    pub runtime: Arc<dyn Runtime>,
    /// What watches it.
    pub observer: Arc<Observer>,
    /// The images of the node.
    pub images: Images,
    /// Objects that pods refer to.
    pub objects: Arc<dyn Objects>,
    /// Events.
    pub report: Report,
    /// User namespaces of pods.
    pub user_namespaces: UserNamespaces,
    /// CPUs, memory and devices that pods have for themselves.
    pub alignment: Arc<Alignment>,
    /// CSI volumes.
    pub csi: Arc<CsiVolumes>,
    /// Cgroups of pods.
    pub cgroups: Cgroups,
    /// Claims of pods; none in standalone mode.
    pub claims: Option<Arc<bosun_kubelet_dra::Manager>>,
    /// The API server; none in standalone mode.
    pub client: Option<Client>,
    /// The scheme of container ids: the runtime's name.
    pub runtime_name: String,
    /// What probes found, as metrics.
    pub probe_metrics: Probes,
    /// How long pods take to be brought about.
    pub workers: Workers,
    /// The longest delay between restarts of a container.
    pub max_restart_delay: Duration,
}

impl Context {
    /// The node's resolver file as it is now.
    pub fn resolver_text(&self) -> String {
        self.node.resolver_file.as_ref().and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default()
    }
}
