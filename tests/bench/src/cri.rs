//! Raw CRI calls: the floor under everything a kubelet can reach.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bosun_proto::cri::runtime_service_client::RuntimeServiceClient;
use bosun_proto::cri::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ImageSpec, LinuxContainerConfig,
    LinuxContainerResources, LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, RemoveContainerRequest,
    RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest, StopContainerRequest, StopPodSandboxRequest,
};
use bosun_tests::images::WEB;
use bosun_tests::{Fabric, Node};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

const DEADLINE: Duration = Duration::from_secs(60);

/// One node's container runtime.
#[derive(Clone)]
pub(crate) struct Runtime {
    client: RuntimeServiceClient<Channel>,
    cgroup: String,
    logs: PathBuf,
}

/// A pod with one running container.
pub(crate) struct Pod {
    sandbox: String,
    container: String,
}

impl Runtime {
    pub(crate) async fn connect(fabric: &Fabric, node: &Node) -> Result<Self> {
        let channel = dial(&node.socket()).await?;
        Ok(Self {
            client: RuntimeServiceClient::new(channel),
            cgroup: format!("{}/raw", node.cgroup),
            logs: fabric.logs().join(&node.name).join("raw"),
        })
    }

    /// The three calls that make a pod with one container.
    pub(crate) async fn run(&self, name: &str) -> Result<Pod> {
        let mut client = self.client.clone();
        let sandbox_config = self.sandbox_config(name);
        let request = RunPodSandboxRequest { config: Some(sandbox_config.clone()), ..Default::default() };
        let sandbox = client.run_pod_sandbox(request).await.context("RunPodSandbox")?.into_inner().pod_sandbox_id;
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.clone(),
            config: Some(container_config()),
            sandbox_config: Some(sandbox_config),
        };
        let container = client.create_container(request).await.context("CreateContainer")?.into_inner().container_id;
        let request = StartContainerRequest { container_id: container.clone() };
        client.start_container(request).await.context("StartContainer")?;
        Ok(Pod { sandbox, container })
    }

    /// The calls that remove it: a gentle stop first, as a kubelet does.
    pub(crate) async fn remove(&self, pod: Pod) -> Result<()> {
        let mut client = self.client.clone();
        let request = StopContainerRequest { container_id: pod.container.clone(), timeout: 30 };
        client.stop_container(request).await.context("StopContainer")?;
        let request = StopPodSandboxRequest { pod_sandbox_id: pod.sandbox.clone() };
        client.stop_pod_sandbox(request).await.context("StopPodSandbox")?;
        let request = RemoveContainerRequest { container_id: pod.container };
        client.remove_container(request).await.context("RemoveContainer")?;
        let request = RemovePodSandboxRequest { pod_sandbox_id: pod.sandbox };
        client.remove_pod_sandbox(request).await.context("RemovePodSandbox")?;
        Ok(())
    }

    fn sandbox_config(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: name.to_owned(),
                namespace: "raw".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: self.logs.join(name).display().to_string(),
            labels: BTreeMap::from([("io.kubernetes.pod.name".to_owned(), name.to_owned())]),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("{}/{name}", self.cgroup),
                ..Default::default()
            }),
            ..Default::default()
        }
    }
}

fn container_config() -> ContainerConfig {
    let resources = LinuxContainerResources { cpu_period: 100_000, cpu_shares: 2, ..Default::default() };
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: "web".to_owned(), attempt: 0 }),
        image: Some(ImageSpec { image: WEB.to_owned(), ..Default::default() }),
        log_path: "web/0.log".to_owned(),
        linux: Some(LinuxContainerConfig { resources: Some(resources), ..Default::default() }),
        ..Default::default()
    }
}

async fn dial(socket: &Path) -> Result<Channel> {
    let path = socket.to_owned();
    let connect = service_fn(move |_: Uri| {
        let path = path.clone();
        async move { anyhow::Ok(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    let endpoint = Endpoint::from_static("http://containerd").timeout(DEADLINE);
    endpoint.connect_with_connector(connect).await.with_context(|| format!("cannot reach {}", socket.display()))
}
