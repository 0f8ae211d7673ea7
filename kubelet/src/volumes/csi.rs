//! CSI volumes of pods: which of a pod's volumes are CSI's, what they need to know of the pod, and giving them back
//! before the pod's folder goes.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bosun_kit::events::EventType;
use bosun_kubelet_csi::cluster::{ApiCluster, Cluster, NoCluster};
use bosun_kubelet_csi::drivers::{Drivers, Registrar, keep_limits};
use bosun_kubelet_csi::mounter::{GiveToGroup, Growing};
use bosun_kubelet_csi::{Csi, Made as CsiMade, PodUse, Volume as CsiVolume};
use bosun_kubelet_plugins::{CSI_PLUGIN, Handler};
use bosun_kubelet_server::stats::FsStats;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node as ApiNode, Pod, Volume};
use kube::Client;
use tokio_util::sync::CancellationToken;

use super::ownership::{self, Policy};
use super::{Made, Note, VolumeError, tear_down};
use crate::make::Node;
use crate::pod::spec;

/// What names the boot of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// CSI, with what the kubelet keeps about it.
pub struct CsiVolumes {
    pub(super) csi: Csi,
    drivers: Arc<Drivers>,
    cluster: Arc<dyn Cluster>,
    /// Pods that are gone and whose folders are being taken away.
    ending: Mutex<BTreeSet<String>>,
    /// How full volumes are, by the pod's UID and the volume's name in it.
    pub(crate) usage: Mutex<HashMap<(String, String), FsStats>>,
}

impl CsiVolumes {
    /// CSI of this node with the API server that `client` reaches, or without one.
    pub fn new(node: &Node, client: Option<Client>) -> Arc<Self> {
        match client {
            Some(client) => Self::with(node, Arc::new(ApiCluster::new(client, &node.name))),
            None => Self::with(node, Arc::new(NoCluster)),
        }
    }

    /// CSI of this node with that API server.
    pub fn with(node: &Node, cluster: Arc<dyn Cluster>) -> Arc<Self> {
        let drivers = Arc::new(Drivers::default());
        let boot = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
        let csi = Csi::new(&node.root_dir, &node.name, boot.trim(), drivers.clone(), cluster.clone());
        Arc::new(Self { csi, drivers, cluster, ending: Mutex::default(), usage: Mutex::default() })
    }

    /// What takes up drivers that register, for the plugin watcher.
    pub fn registrar(&self) -> (String, Arc<dyn Handler>) {
        (CSI_PLUGIN.to_owned(), Arc::new(Registrar::new(self.drivers.clone(), self.cluster.clone())))
    }

    /// Keeps the numbers of volumes that drivers can take, until cancelled.
    pub async fn keep_limits(self: Arc<Self>, cancel: CancellationToken) {
        tokio::select! {
            () = keep_limits(self.drivers.clone(), self.cluster.clone()) => {}
            () = cancel.cancelled() => {}
        }
    }

    /// The API server as CSI sees it.
    pub fn cluster(&self) -> &dyn Cluster {
        &*self.cluster
    }

    /// Attachable volumes that pods of this node use, as the node's status names them.
    pub fn in_use(&self) -> Vec<String> {
        self.csi.in_use()
    }

    /// Tells `poke` whenever that changed, until cancelled: what is in use has to be known before it is mounted.
    pub async fn tell_in_use(self: Arc<Self>, poke: impl Fn() + Send, cancel: CancellationToken) {
        loop {
            tokio::select! {
                () = self.csi.used().notified() => poke(),
                () = cancel.cancelled() => return,
            }
        }
    }

    /// This node as the API server has it; none without one.
    pub(super) async fn node(&self) -> Result<Option<ApiNode>, String> {
        self.cluster.node().await
    }

    /// Takes the folder of a pod that nobody knows any more away, in a task of its own: a driver may take its time.
    pub fn end_unknown(self: &Arc<Self>, node: &Arc<Node>, uid: String) {
        let begun = self.ending.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.clone());
        if !begun {
            return;
        }
        let (own, node) = (self.clone(), node.clone());
        tokio::spawn(async move {
            if let Err(error) = super::tear_down(&node, &own, &uid).await {
                tracing::warn!(uid, %error, "the folder of a pod that is gone was not removed");
            }
            own.ending.lock().unwrap_or_else(PoisonError::into_inner).remove(&uid);
        });
    }
}

/// The inline CSI volume behind a volume of a pod, if it is one.
pub(super) fn inline(pod: &Pod, volume: &Volume) -> Option<CsiVolume> {
    CsiVolume::inline(volume, spec::namespace(pod), spec::uid(pod))
}

/// Where an inline CSI volume is.
pub(super) fn inline_path(pod: &Pod, node: &Node, volume: &Volume) -> Option<PathBuf> {
    let name = &volume.csi.as_ref().map(|_| volume.name.clone())?;
    Some(bosun_kubelet_csi::names::target(&node.root_dir, spec::uid(pod), name))
}

/// Whether a claim's place is CSI's.
pub(super) fn is_place(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == bosun_kubelet_csi::names::PLUGIN_FOLDER)
}

/// Makes a CSI volume ready for the pod. Returns where it is, and what there is to tell.
pub(super) async fn set_up(
    pod: &Pod,
    csi: &Arc<CsiVolumes>,
    volume: &CsiVolume,
    growing: Option<&Growing>,
    policy: Policy,
) -> Result<(PathBuf, Made), VolumeError> {
    let user = PodUse {
        name: spec::name(pod).to_owned(),
        namespace: spec::namespace(pod).to_owned(),
        uid: spec::uid(pod).to_owned(),
        service_account: spec::spec(pod).service_account_name.clone().unwrap_or_else(|| "default".to_owned()),
        group: super::group(pod),
    };
    // In a task of its own: another volume of the pod that fails at once must not break off what a driver is at.
    let (own, wanted, growing) = (csi.clone(), volume.clone(), growing.cloned());
    let task = tokio::spawn(async move {
        let give = give(user.group, policy);
        own.csi.set_up(&wanted, &user, growing.as_ref(), give).await
    });
    let made = task
        .await
        .map_err(|error| VolumeError::SetUp { volume: volume.name.clone(), message: error.to_string() })??;
    let CsiMade { path, again, complaint, grown } = made;
    let refresh = again.and_then(|again| SignedDuration::try_from(again).ok()).map(|again| Timestamp::now() + again);
    let mut notes = Vec::new();
    if let Some(message) = complaint {
        let grows = message.contains("NodeExpandVolume");
        let reason = if grows { "VolumeResizeFailed" } else { "FailedMount" };
        notes.push(Note { kind: EventType::Warning, reason, message });
    }
    if let Some(message) = grown {
        notes.push(Note { kind: EventType::Normal, reason: "FileSystemResizeSuccessful", message });
    }
    Ok((path, Made { refresh, notes }))
}

fn give(group: Option<u32>, policy: Policy) -> GiveToGroup {
    Box::new(move |path| match group {
        Some(group) => ownership::give(path, group, policy).map_err(|error| error.to_string()),
        None => Ok(()),
    })
}

/// Gives back what drivers made ready for a pod that is gone. What else is mounted in its folder, or inside such a
/// volume, goes before.
pub(super) async fn give_back(node: &Node, csi: &CsiVolumes, uid: &str) -> Result<(), VolumeError> {
    let recorded = |error: std::io::Error| VolumeError::GiveBack(error.to_string());
    if !csi.csi.has(uid).map_err(recorded)? {
        return Ok(());
    }
    let (pods, keep, of) = (node.pods_dir(), csi.csi.targets(uid).map_err(recorded)?, uid.to_owned());
    let unmounted = tokio::task::spawn_blocking(move || tear_down::unmount_others(&pods, &of, &keep)).await;
    unmounted.unwrap_or_else(|error| Err(VolumeError::GiveBack(error.to_string())))?;
    csi.usage.lock().unwrap_or_else(PoisonError::into_inner).retain(|(pod, _), _| pod != uid);
    csi.csi.tear_down(uid).await.map_err(VolumeError::GiveBack)
}
