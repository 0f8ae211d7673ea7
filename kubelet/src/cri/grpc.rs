//! The real runtime: CRI v1 by gRPC over a unix socket.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bosun_kubelet_trace::{Spec, inject, traced_result};
use bosun_proto::cri;
use bosun_proto::cri::image_service_client::ImageServiceClient;
use bosun_proto::cri::runtime_service_client::RuntimeServiceClient;
use bosun_proto::unix;
use futures::StreamExt;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::{CriError, CriErrorKind, Events, Result, Runtime};

/// The largest answer taken, as in stock.
const MAX_MESSAGE: usize = 16 * 1024 * 1024;
/// Creating a sandbox includes the network plugins.
const SANDBOX_DEADLINE: Duration = Duration::from_secs(240);
/// A pull has no natural end; stock has no deadline either, but a connection that hangs for ever helps nobody.
const PULL_DEADLINE: Duration = Duration::from_secs(3600);

/// A runtime behind a unix socket. Connects when first used and again whenever the connection is lost.
#[derive(Clone)]
pub struct GrpcRuntime {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    deadline: Duration,
}

/// The path of a `unix://` endpoint, or of a bare absolute path.
///
/// # Errors
/// The endpoint is neither, in words.
pub fn socket_path(endpoint: &str) -> std::result::Result<PathBuf, String> {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    if path.starts_with('/') {
        Ok(PathBuf::from(path))
    } else {
        Err(format!("container runtime endpoint {endpoint:?}: give unix:///path/to/socket"))
    }
}

impl GrpcRuntime {
    /// A client of the runtime at `endpoint` (and of the image service at `image_endpoint`, if that is elsewhere).
    /// Calls that have no natural length of their own end after `deadline`.
    ///
    /// # Errors
    /// An endpoint that is no unix socket. Whether somebody listens shows at the first call.
    pub fn new(endpoint: &str, image_endpoint: &str, deadline: Duration) -> std::result::Result<Self, String> {
        let channel = channel(socket_path(endpoint)?);
        let image_channel = match image_endpoint {
            "" => channel.clone(),
            other => self::channel(socket_path(other)?),
        };
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE),
            images: ImageServiceClient::new(image_channel).max_decoding_message_size(MAX_MESSAGE),
            deadline,
        })
    }
}

fn channel(path: PathBuf) -> Channel {
    unix::channel(&Endpoint::from_static("http://runtime.invalid"), path)
}

fn request<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    inject(request.metadata_mut());
    request
}

fn failed(call: &'static str, status: Status) -> CriError {
    let kind = match status.code() {
        Code::NotFound => CriErrorKind::NotFound,
        Code::Unimplemented => CriErrorKind::Unimplemented,
        Code::Unavailable => CriErrorKind::Unavailable,
        Code::DeadlineExceeded | Code::Cancelled => CriErrorKind::Deadline,
        _ => CriErrorKind::Other,
    };
    // In the form that stock's events and statuses have, which people search for.
    CriError { call, kind, message: format!("rpc error: code = {:?} desc = {}", status.code(), status.message()) }
}

/// Makes `Ok(())` of "not found", for calls that remove.
fn absent_is_fine(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

/// The service's name on the wire, by the field that holds its client.
fn service(field: &str) -> &'static str {
    if field == "images" { "runtime.v1.ImageService" } else { "runtime.v1.RuntimeService" }
}

macro_rules! call {
    ($self:ident.$service:ident.$method:ident($message:expr), $name:literal) => {
        call!($self.$service.$method($message), $name, $self.deadline)
    };
    ($self:ident.$service:ident.$method:ident($message:expr), $name:literal, $deadline:expr) => {
        traced_result(|| Spec::call(service(stringify!($service)), $name), async {
            let answer = $self.$service.clone().$method(request($message, $deadline)).await;
            answer.map(tonic::Response::into_inner).map_err(|status| failed($name, status))
        })
        .await
    };
}

#[async_trait]
impl Runtime for GrpcRuntime {
    async fn version(&self) -> Result<cri::VersionResponse> {
        call!(self.runtime.version(cri::VersionRequest { version: "0.1.0".into() }), "Version")
    }

    async fn status(&self, verbose: bool) -> Result<cri::StatusResponse> {
        call!(self.runtime.status(cri::StatusRequest { verbose }), "Status")
    }

    async fn runtime_config(&self) -> Result<cri::RuntimeConfigResponse> {
        call!(self.runtime.runtime_config(cri::RuntimeConfigRequest {}), "RuntimeConfig")
    }

    async fn set_pod_cidr(&self, ranges: &str) -> Result<()> {
        let network = cri::NetworkConfig { pod_cidr: ranges.into() };
        let config = cri::RuntimeConfig { network_config: Some(network) };
        let message = cri::UpdateRuntimeConfigRequest { runtime_config: Some(config) };
        call!(self.runtime.update_runtime_config(message), "UpdateRuntimeConfig").map(drop)
    }

    async fn run_sandbox(&self, config: cri::PodSandboxConfig, handler: String) -> Result<String> {
        let message = cri::RunPodSandboxRequest { config: Some(config), runtime_handler: handler };
        call!(self.runtime.run_pod_sandbox(message), "RunPodSandbox", SANDBOX_DEADLINE).map(|r| r.pod_sandbox_id)
    }

    async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let message = cri::StopPodSandboxRequest { pod_sandbox_id: id.into() };
        absent_is_fine(call!(self.runtime.stop_pod_sandbox(message), "StopPodSandbox").map(drop))
    }

    async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let message = cri::RemovePodSandboxRequest { pod_sandbox_id: id.into() };
        absent_is_fine(call!(self.runtime.remove_pod_sandbox(message), "RemovePodSandbox").map(drop))
    }

    async fn sandbox_status(&self, id: &str) -> Result<cri::PodSandboxStatus> {
        let message = cri::PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
        let answer = call!(self.runtime.pod_sandbox_status(message), "PodSandboxStatus")?;
        answer.status.ok_or_else(|| empty("PodSandboxStatus"))
    }

    async fn list_sandboxes(&self) -> Result<Vec<cri::PodSandbox>> {
        let message = cri::ListPodSandboxRequest { filter: None };
        call!(self.runtime.list_pod_sandbox(message), "ListPodSandbox").map(|r| r.items)
    }

    async fn create_container(
        &self,
        sandbox: &str,
        config: cri::ContainerConfig,
        sandbox_config: cri::PodSandboxConfig,
    ) -> Result<String> {
        let message = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.into(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        call!(self.runtime.create_container(message), "CreateContainer").map(|r| r.container_id)
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        let message = cri::StartContainerRequest { container_id: id.into() };
        call!(self.runtime.start_container(message), "StartContainer").map(drop)
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        let message = cri::StopContainerRequest { container_id: id.into(), timeout: grace.as_secs() as i64 };
        absent_is_fine(call!(self.runtime.stop_container(message), "StopContainer", self.deadline + grace).map(drop))
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        let message = cri::RemoveContainerRequest { container_id: id.into() };
        absent_is_fine(call!(self.runtime.remove_container(message), "RemoveContainer").map(drop))
    }

    async fn container_status(&self, id: &str, verbose: bool) -> Result<cri::ContainerStatusResponse> {
        let message = cri::ContainerStatusRequest { container_id: id.into(), verbose };
        let answer = call!(self.runtime.container_status(message), "ContainerStatus")?;
        if answer.status.is_none() { Err(empty("ContainerStatus")) } else { Ok(answer) }
    }

    async fn list_containers(&self, sandbox: Option<&str>) -> Result<Vec<cri::Container>> {
        let filter = sandbox.map(|id| cri::ContainerFilter { pod_sandbox_id: id.into(), ..Default::default() });
        call!(self.runtime.list_containers(cri::ListContainersRequest { filter }), "ListContainers")
            .map(|r| r.containers)
    }

    async fn reopen_log(&self, id: &str) -> Result<()> {
        let message = cri::ReopenContainerLogRequest { container_id: id.into() };
        call!(self.runtime.reopen_container_log(message), "ReopenContainerLog").map(drop)
    }

    async fn update_resources(&self, id: &str, resources: cri::LinuxContainerResources) -> Result<()> {
        let message = cri::UpdateContainerResourcesRequest {
            container_id: id.into(),
            linux: Some(resources),
            ..Default::default()
        };
        call!(self.runtime.update_container_resources(message), "UpdateContainerResources").map(drop)
    }

    async fn checkpoint_container(&self, id: &str, location: &str, timeout: Duration) -> Result<()> {
        let seconds = timeout.as_secs() as i64;
        let message =
            cri::CheckpointContainerRequest { container_id: id.into(), location: location.into(), timeout: seconds };
        let deadline = if seconds == 0 { self.deadline } else { timeout };
        call!(self.runtime.checkpoint_container(message), "CheckpointContainer", deadline).map(drop)
    }

    async fn exec_sync(&self, id: &str, command: Vec<String>, timeout: Duration) -> Result<cri::ExecSyncResponse> {
        let seconds = timeout.as_secs() as i64;
        let message = cri::ExecSyncRequest { container_id: id.into(), cmd: command, timeout: seconds };
        // The runtime ends the command at the timeout; the connection waits a little longer to hear of it.
        let deadline = if seconds == 0 { self.deadline } else { timeout + Duration::from_secs(2) };
        call!(self.runtime.exec_sync(message), "ExecSync", deadline)
    }

    async fn exec(&self, message: cri::ExecRequest) -> Result<String> {
        call!(self.runtime.exec(message), "Exec").map(|r| r.url)
    }

    async fn attach(&self, message: cri::AttachRequest) -> Result<String> {
        call!(self.runtime.attach(message), "Attach").map(|r| r.url)
    }

    async fn port_forward(&self, message: cri::PortForwardRequest) -> Result<String> {
        call!(self.runtime.port_forward(message), "PortForward").map(|r| r.url)
    }

    async fn container_stats(&self) -> Result<Vec<cri::ContainerStats>> {
        let message = cri::ListContainerStatsRequest { filter: None };
        call!(self.runtime.list_container_stats(message), "ListContainerStats").map(|r| r.stats)
    }

    async fn events(&self) -> Result<Events> {
        // A stream for as long as the connection lasts: the one call without a deadline. A lost event is repaired by
        // the relist.
        let stream = self
            .runtime
            .clone()
            .get_container_events(Request::new(cri::GetEventsRequest {}))
            .await
            .map_err(|status| failed("GetContainerEvents", status))?
            .into_inner();
        Ok(stream.map(|event| event.map_err(|status| failed("GetContainerEvents", status))).boxed())
    }

    async fn image_status(&self, image: &str) -> Result<Option<cri::Image>> {
        let message = cri::ImageStatusRequest { image: Some(spec(image)), verbose: false };
        call!(self.images.image_status(message), "ImageStatus").map(|r| r.image)
    }

    async fn pull_image(
        &self,
        image: &str,
        auth: Option<cri::AuthConfig>,
        sandbox_config: Option<cri::PodSandboxConfig>,
    ) -> Result<String> {
        let message = cri::PullImageRequest { image: Some(spec(image)), auth, sandbox_config };
        call!(self.images.pull_image(message), "PullImage", PULL_DEADLINE).map(|r| r.image_ref)
    }

    async fn list_images(&self) -> Result<Vec<cri::Image>> {
        call!(self.images.list_images(cri::ListImagesRequest { filter: None }), "ListImages").map(|r| r.images)
    }

    async fn remove_image(&self, image: &str) -> Result<()> {
        let message = cri::RemoveImageRequest { image: Some(spec(image)) };
        absent_is_fine(call!(self.images.remove_image(message), "RemoveImage").map(drop))
    }

    async fn image_filesystems(&self) -> Result<cri::ImageFsInfoResponse> {
        call!(self.images.image_fs_info(cri::ImageFsInfoRequest {}), "ImageFsInfo")
    }
}

fn spec(image: &str) -> cri::ImageSpec {
    cri::ImageSpec { image: image.into(), ..Default::default() }
}

fn empty(call: &'static str) -> CriError {
    CriError { call, kind: CriErrorKind::Other, message: "the runtime answered without a status".into() }
}
