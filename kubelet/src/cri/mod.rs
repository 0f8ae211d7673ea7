//! The edge to the container runtime: one trait, the real one over a unix socket ([`grpc`]), one that counts and
//! times another ([`metered`]), and a fake that behaves like a runtime and records what it was asked ([`fake`]).

pub mod fake;
pub mod grpc;
pub mod metered;

use std::time::Duration;

use async_trait::async_trait;
use bosun_proto::cri;
use futures::stream::BoxStream;
use thiserror::Error;

pub use grpc::GrpcRuntime;
pub use metered::MeteredRuntime;

/// Why a call to the runtime failed.
#[derive(Clone, Debug, Error)]
#[error("{call}: {message}")]
pub struct CriError {
    /// The call, by its name in the interface.
    pub call: &'static str,
    /// What kind of failure.
    pub kind: CriErrorKind,
    /// What the runtime (or the connection) said.
    pub message: String,
}

/// What kind of failure a call met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CriErrorKind {
    /// The container, sandbox or image is not there.
    NotFound,
    /// The runtime does not know the call.
    Unimplemented,
    /// The runtime cannot be reached.
    Unavailable,
    /// No answer before the deadline.
    Deadline,
    /// Anything else.
    Other,
}

impl CriError {
    /// Whether what was asked for is not there.
    pub fn is_not_found(&self) -> bool {
        self.kind == CriErrorKind::NotFound
    }
}

/// The result of a call to the runtime.
pub type Result<T> = std::result::Result<T, CriError>;

/// Events of containers, until the connection ends.
pub type Events = BoxStream<'static, Result<cri::ContainerEventResponse>>;

/// What the kubelet asks of a container runtime. Every call has a deadline of its own.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Who answers.
    async fn version(&self) -> Result<cri::VersionResponse>;
    /// Whether runtime and network are ready.
    async fn status(&self, verbose: bool) -> Result<cri::StatusResponse>;
    /// The cgroup driver of the runtime; [`CriErrorKind::Unimplemented`] before containerd 2.0.
    async fn runtime_config(&self) -> Result<cri::RuntimeConfigResponse>;
    /// Tells the runtime which addresses the node's pods have: ranges joined by commas.
    async fn set_pod_cidr(&self, ranges: &str) -> Result<()>;

    /// Creates and starts a sandbox; returns its id.
    async fn run_sandbox(&self, config: cri::PodSandboxConfig, handler: String) -> Result<String>;
    /// Kills what is in the sandbox and gives its network back. Safe to repeat; no error if it is gone.
    async fn stop_sandbox(&self, id: &str) -> Result<()>;
    /// Forgets the sandbox and its containers. Safe to repeat.
    async fn remove_sandbox(&self, id: &str) -> Result<()>;
    /// State and addresses of a sandbox.
    async fn sandbox_status(&self, id: &str) -> Result<cri::PodSandboxStatus>;
    /// All sandboxes.
    async fn list_sandboxes(&self) -> Result<Vec<cri::PodSandbox>>;

    /// Creates a container; returns its id.
    async fn create_container(
        &self,
        sandbox: &str,
        config: cri::ContainerConfig,
        sandbox_config: cri::PodSandboxConfig,
    ) -> Result<String>;
    /// Starts a created container.
    async fn start_container(&self, id: &str) -> Result<()>;
    /// Stops a container: its stop signal, then SIGKILL after `grace`. No error if it is gone.
    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()>;
    /// Forgets a container, killing it if need be. Safe to repeat.
    async fn remove_container(&self, id: &str) -> Result<()>;
    /// All that is known of a container; `verbose` adds what the runtime keeps inside (its process id).
    async fn container_status(&self, id: &str, verbose: bool) -> Result<cri::ContainerStatusResponse>;
    /// All containers, or those of one sandbox.
    async fn list_containers(&self, sandbox: Option<&str>) -> Result<Vec<cri::Container>>;
    /// Makes the runtime open the log file anew after it was moved away.
    async fn reopen_log(&self, id: &str) -> Result<()>;
    /// Changes limits of a running container.
    async fn update_resources(&self, id: &str, resources: cri::LinuxContainerResources) -> Result<()>;

    /// Writes the state of a running container to `location`, within `timeout` (zero for the usual deadline).
    async fn checkpoint_container(&self, id: &str, location: &str, timeout: Duration) -> Result<()>;

    /// Runs a command in a container and waits for it, at most `timeout`.
    async fn exec_sync(&self, id: &str, command: Vec<String>, timeout: Duration) -> Result<cri::ExecSyncResponse>;
    /// Prepares an interactive command; returns the URL of the stream.
    async fn exec(&self, request: cri::ExecRequest) -> Result<String>;
    /// Prepares to attach; returns the URL of the stream.
    async fn attach(&self, request: cri::AttachRequest) -> Result<String>;
    /// Prepares to forward ports; returns the URL of the stream.
    async fn port_forward(&self, request: cri::PortForwardRequest) -> Result<String>;

    /// Use of resources by all containers.
    async fn container_stats(&self) -> Result<Vec<cri::ContainerStats>>;
    /// The stream of events; [`CriErrorKind::Unimplemented`] before containerd 1.7.
    async fn events(&self) -> Result<Events>;

    /// The image, if it is on the node.
    async fn image_status(&self, image: &str) -> Result<Option<cri::Image>>;
    /// Pulls an image; returns its reference.
    async fn pull_image(
        &self,
        image: &str,
        auth: Option<cri::AuthConfig>,
        sandbox_config: Option<cri::PodSandboxConfig>,
    ) -> Result<String>;
    /// All images.
    async fn list_images(&self) -> Result<Vec<cri::Image>>;
    /// Removes an image.
    async fn remove_image(&self, image: &str) -> Result<()>;
    /// Filesystems that hold images.
    async fn image_filesystems(&self) -> Result<cri::ImageFsInfoResponse>;
}
