//! The edge between the server and the kubelet: what the server asks, and the answers it can get.
//!
//! The kubelet core implements [`KubeletHost`]; the server knows nothing of pod workers or the CRI.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;

use crate::stats::{DiskUse, FsStats};

/// Why the kubelet could not answer; each kind has its HTTP status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// The pod or the container is not here (404).
    #[error("{0}")]
    NotFound(String),
    /// The request makes no sense in the present state, such as logs of a waiting container (400).
    #[error("{0}")]
    BadRequest(String),
    /// The container runtime does not answer (503).
    #[error("{0}")]
    Unavailable(String),
    /// Anything else (500).
    #[error("{0}")]
    Internal(String),
}

/// One container, as the request's path names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerRef {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// UID of the pod, when the path has one: a pod of the same name and another UID is not found.
    pub uid: Option<String>,
    /// Name of the container (main, init or ephemeral).
    pub container: String,
}

impl fmt::Display for ContainerRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.namespace, self.pod, self.container)
    }
}

/// One pod, as the request's path names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodRef {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// UID of the pod, when the path has one.
    pub uid: Option<String>,
}

/// Which streams an exec or attach wants. At least one of the three is set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// The client writes.
    pub stdin: bool,
    /// The client reads standard output.
    pub stdout: bool,
    /// The client reads standard error; never together with `tty`.
    pub stderr: bool,
    /// A terminal is allocated.
    pub tty: bool,
}

/// Where a container's log is, and when it will grow no more.
pub struct ContainerLog {
    /// The file in CRI log format; `None` when the runtime has not made one (yet): the log is empty.
    pub path: Option<PathBuf>,
    /// Resolves when the container has exited; already resolved for one that has. A follower reads to the end of the
    /// file and stops then.
    pub done: BoxFuture<'static, ()>,
}

impl fmt::Debug for ContainerLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContainerLog").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Where a container's usage can be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerUsageSource {
    /// Name of the container.
    pub name: String,
    /// The runtime's id.
    pub id: String,
    /// Its image, as the runtime names it.
    pub image: String,
    /// Its cgroup below the hierarchy's root, e.g. `/kubepods/burstable/pod<uid>/<id>`.
    pub cgroup: String,
    /// The folder of its logs.
    pub log_dir: Option<PathBuf>,
    /// When it was started.
    pub started: Option<jiff::Timestamp>,
}

/// Where the usage of a pod's sandbox can be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxUsageSource {
    /// The runtime's id.
    pub id: String,
    /// Its cgroup below the hierarchy's root.
    pub cgroup: String,
}

/// One volume of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeSource {
    /// Name in the pod.
    pub name: String,
    /// Where it is on the node.
    pub path: PathBuf,
    /// The claim behind it, in the pod's namespace.
    pub claim: Option<String>,
    /// How full it was found to be by somebody who knows better than the file system does.
    pub measured: Option<FsStats>,
}

/// Where a pod's usage can be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodUsageSource {
    /// Name of the pod.
    pub name: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// UID of the pod.
    pub uid: String,
    /// Its cgroup below the hierarchy's root; empty where pods have none of their own (`cgroupsPerQOS: false`).
    pub cgroup: String,
    /// When it was started.
    pub started: Option<jiff::Timestamp>,
    /// The pod shares the node's network: the summary does not show its counters, which are the node's.
    pub host_network: bool,
    /// Its sandbox, if it is up.
    pub sandbox: Option<SandboxUsageSource>,
    /// Its running containers.
    pub containers: Vec<ContainerUsageSource>,
    /// Its volumes.
    pub volumes: Vec<VolumeSource>,
}

/// Where the usage of the node's pods and daemons can be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsageSources {
    /// Each pod.
    pub pods: Vec<PodUsageSource>,
    /// Further cgroups that `/metrics/cadvisor` shows: of all pods, and of each QoS class.
    pub cgroups: Vec<String>,
    /// System containers of the summary, name and cgroup: `pods`, `kubelet`.
    pub systems: Vec<(String, String)>,
}

/// What one file system of the runtime holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuntimeFs {
    /// A folder on it.
    pub mountpoint: PathBuf,
    /// What the runtime uses of it.
    pub used: DiskUse,
}

/// What the runtime keeps on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuntimeStorage {
    /// Of images.
    pub images: Option<RuntimeFs>,
    /// Of containers' writable layers.
    pub containers: Option<RuntimeFs>,
    /// The writable layer of each container, by id.
    pub layers: HashMap<String, DiskUse>,
}

/// What the server needs of the kubelet. Every method must answer within seconds; the server sets the deadline.
#[async_trait]
pub trait KubeletHost: Send + Sync + 'static {
    /// The pods the kubelet was told to run, from every source.
    fn pods(&self) -> Vec<Arc<Pod>>;

    /// One of [`KubeletHost::pods`], with its newest status (the server picks containers from it).
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>>;

    /// The pods that the runtime has, as it tells them: name, namespace, UID, containers.
    async fn running_pods(&self) -> Result<Vec<Pod>, HostError>;

    /// The log of a container (of the instance before, when `previous`). The pod is known to exist and to have such a
    /// container; [`crate::logs::container_id`] picks the instance from the pod's status.
    async fn container_log(&self, container: &ContainerRef, previous: bool) -> Result<ContainerLog, HostError>;

    /// The runtime's streaming URL for a command (CRI `Exec`).
    async fn exec(
        &self,
        container: &ContainerRef,
        command: &[String],
        options: StreamOptions,
    ) -> Result<String, HostError>;

    /// The runtime's streaming URL for the running process (CRI `Attach`).
    async fn attach(&self, container: &ContainerRef, options: StreamOptions) -> Result<String, HostError>;

    /// The runtime's streaming URL for ports of a pod (CRI `PortForward`); `ports` is empty with SPDY, where each
    /// stream names its own.
    async fn port_forward(&self, pod: &PodRef, ports: &[u16]) -> Result<String, HostError>;

    /// Runs a command to its end (CRI `ExecSync`) and gives its output, standard error after standard output.
    async fn run(&self, container: &ContainerRef, command: &[String]) -> Result<Vec<u8>, HostError>;

    /// Writes the state of a container to a file of the kubelet's folder (CRI `CheckpointContainer`) and tells where;
    /// without a `timeout` the runtime's usual deadline holds.
    async fn checkpoint(&self, container: &ContainerRef, timeout: Option<Duration>) -> Result<PathBuf, HostError>;

    /// Whether the sync loop is alive; the text says why not.
    fn sync_loop_health(&self) -> Result<(), String>;

    /// What `/stats/summary`, `/metrics/resource` and `/metrics/cadvisor` show.
    fn usage_sources(&self) -> UsageSources;

    /// What the runtime keeps on disk.
    async fn runtime_storage(&self) -> Result<RuntimeStorage, HostError>;

    /// The effective `KubeletConfiguration`, as `/configz` shows it.
    fn configz(&self) -> serde_json::Value;

    /// The folder that `/logs/` shows, normally `/var/log`.
    fn log_dir(&self) -> PathBuf;
}
