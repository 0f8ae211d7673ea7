//! Raw CRI calls: the floor under everything a kubelet can reach. The requests are those that the kubelet makes of the
//! same pod (seccomp profile, namespaces, masked paths, mounts, …), so that the runtime's work is the same.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bosun_kubelet::make;
use bosun_proto::cri::runtime_service_client::RuntimeServiceClient;
use bosun_proto::cri::{
    CreateContainerRequest, Mount, NamespaceMode, RemoveContainerRequest, RemovePodSandboxRequest,
    RunPodSandboxRequest, StartContainerRequest, StopContainerRequest, StopPodSandboxRequest, UserNamespace,
};
use bosun_tests::images::WEB;
use bosun_tests::{Fabric, Node};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod as Definition;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

const DEADLINE: Duration = Duration::from_secs(60);

/// One node's container runtime.
#[derive(Clone)]
pub(crate) struct Runtime {
    client: RuntimeServiceClient<Channel>,
    node: make::Node,
}

/// A pod with one running container.
pub(crate) struct Pod {
    sandbox: String,
    container: String,
}

impl Runtime {
    pub(crate) async fn connect(fabric: &Fabric, node: &Node) -> Result<Self> {
        let channel = dial(&node.socket()).await?;
        Ok(Self { client: RuntimeServiceClient::new(channel), node: kubelet_node(fabric, node) })
    }

    /// The three calls that make a pod with one container.
    pub(crate) async fn run(&self, name: &str) -> Result<Pod> {
        let mut client = self.client.clone();
        let pod = definition(name)?;
        let resolver = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let sandbox_config = make::sandbox::config(&pod, &self.node, 0, &resolver, on_node());
        let config = self.container_config(&pod)?;
        let request = RunPodSandboxRequest { config: Some(sandbox_config.clone()), ..Default::default() };
        let sandbox = client.run_pod_sandbox(request).await.context("RunPodSandbox")?.into_inner().pod_sandbox_id;
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.clone(),
            config: Some(config),
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

    /// What the runtime knows of a container.
    pub(crate) async fn container_status(
        &self,
        request: bosun_proto::cri::ContainerStatusRequest,
    ) -> Result<bosun_proto::cri::ContainerStatus> {
        let answer = self.client.clone().container_status(request).await.context("ContainerStatus")?;
        answer.into_inner().status.context("the runtime answered without a status")
    }

    /// The container's configuration, with the files that a kubelet mounts into every container.
    fn container_config(&self, pod: &Definition) -> Result<bosun_proto::cri::ContainerConfig> {
        let container =
            pod.spec.as_ref().and_then(|spec| spec.containers.first()).context("a pod without containers")?;
        let folder = self.node.container_dir(pod, &container.name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let (hosts, message) = (self.node.hosts_file(pod), folder.join("message"));
        fs::write(&hosts, make::names::hosts_file(pod, &self.node, &[], None))?;
        fs::write(&message, "")?;
        let mounts = [(hosts, "/etc/hosts"), (message, "/dev/termination-log")].map(|(from, to)| Mount {
            container_path: to.to_owned(),
            host_path: make::text(&from),
            ..Default::default()
        });
        let (image_ref, user_namespace) = (WEB.to_owned(), on_node());
        let looked = make::container::Looked { mounts: mounts.into(), image_ref, user_namespace, ..Default::default() };
        Ok(make::container::config(pod, container, &self.node, 0, looked))
    }
}

/// No user namespace of its own.
fn on_node() -> UserNamespace {
    UserNamespace { mode: NamespaceMode::Node as i32, ..Default::default() }
}

/// The pod of [`crate::pods`], as the API server would give it to a kubelet.
fn definition(name: &str) -> Result<Definition> {
    let mut pod = crate::pods::pod(name, "raw")?;
    (pod.metadata.namespace, pod.metadata.uid) = (Some("raw".to_owned()), Some(name.to_owned()));
    Ok(pod)
}

/// The node as its kubelet sees it.
fn kubelet_node(fabric: &Fabric, node: &Node) -> make::Node {
    let logs = fabric.logs().join(&node.name);
    make::Node {
        name: node.name.clone(),
        ips: vec![node.address.to_string()],
        root_dir: node.data.join("raw"),
        pod_logs_dir: logs.join("raw"),
        container_logs_dir: logs.join("raw-containers"),
        cluster_dns: vec!["10.96.0.10".to_owned()],
        cluster_domain: "cluster.local".to_owned(),
        resolver_file: None,
        seccomp_default: false,
        cpu_quota_period: Some(Duration::from_millis(100)),
        memory_capacity: 1 << 30,
        memory_allocatable: 1 << 30,
        cpu_capacity: 2000,
        cgroup_root: format!("{}/raw", node.cgroup),
        cgroups_per_qos: true,
        systemd_cgroups: false,
        limits: Default::default(),
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
