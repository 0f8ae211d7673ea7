//! What the kubelet tells its server (:10250) and the node agent: pods, logs, streams, the runtime's state.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bosun_kubelet_devices::DeviceManager;
use bosun_kubelet_devices::table::Capacity;
use bosun_kubelet_node::RuntimeFacts;
use bosun_kubelet_node::facts::{RuntimeCondition, RuntimeStatus};
use bosun_kubelet_server::host::{
    ContainerLog, ContainerRef, HostError, KubeletHost, PodRef, RuntimeStorage, StreamOptions, UsageSources,
};
use bosun_kubelet_upkeep::shutdown;
use bosun_proto::cri;
use futures::FutureExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerImage, NodeFeatures, NodeRuntimeHandler, NodeRuntimeHandlerFeatures, Pod, PodSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::context::Context;
use crate::cri::{CriError, CriErrorKind, Runtime};
use crate::make::text;
use crate::manager::Pods;
use crate::observe::{Observer, Owner};
use crate::pod::labels;
use crate::pod::record::{ContainerRecord, State};
use crate::pod::spec;
use crate::usage;
use crate::volumes::csi::CsiVolumes;
use crate::worker::Snapshot;

/// How long a command of `/run` may take.
const RUN: Duration = Duration::from_secs(120);
/// Without an answer to a listing for this long the runtime counts as lost (stock: 3 m).
const LOST: Duration = Duration::from_secs(180);

/// The kubelet as its server sees it.
pub struct Host {
    /// What workers share.
    pub context: Arc<Context>,
    /// The pods that have workers.
    pub pods: Pods,
    /// The configuration in effect.
    pub configz: serde_json::Value,
}

fn host_error(error: CriError) -> HostError {
    match error.kind {
        CriErrorKind::NotFound => HostError::NotFound(error.message),
        CriErrorKind::Unavailable | CriErrorKind::Deadline => HostError::Unavailable(error.to_string()),
        _ => HostError::Internal(error.to_string()),
    }
}

impl Host {
    fn snapshots(&self) -> Vec<Snapshot> {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        pods.values().map(crate::worker::Handle::snapshot).collect()
    }

    fn snapshot(&self, namespace: &str, name: &str, uid: Option<&str>) -> Option<Snapshot> {
        let wanted = |s: &Snapshot| {
            (spec::namespace(&s.pod), spec::name(&s.pod)) == (namespace, name)
                && uid.is_none_or(|uid| {
                    uid == spec::uid(&s.pod) || spec::annotation(&s.pod, labels::CONFIG_HASH) == Some(uid)
                })
        };
        self.snapshots().into_iter().find(wanted)
    }

    fn record(&self, container: &ContainerRef, previous: bool) -> Result<(Snapshot, ContainerRecord), HostError> {
        let snapshot = self
            .snapshot(&container.namespace, &container.pod, container.uid.as_deref())
            .ok_or_else(|| HostError::NotFound(format!("pod {:?} not found", container.pod)))?;
        let found = match previous {
            true => snapshot.runtime.previous(&container.container),
            false => snapshot.runtime.newest(&container.container),
        };
        let record = found.cloned().ok_or_else(|| {
            let which = if previous { "previous terminated container" } else { "container" };
            HostError::BadRequest(format!("{which} {:?} in pod {:?} not found", container.container, container.pod))
        })?;
        Ok((snapshot, record))
    }

    fn running(&self, container: &ContainerRef) -> Result<String, HostError> {
        let (_, record) = self.record(container, false)?;
        match record.state {
            State::Running => Ok(record.id),
            _ => Err(HostError::NotFound(format!("container not found ({:?})", container.container))),
        }
    }
}

#[async_trait]
impl KubeletHost for Host {
    fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods.read().unwrap_or_else(PoisonError::into_inner).values().map(crate::worker::Handle::pod).collect()
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.snapshot(namespace, name, None).map(|s| s.pod)
    }

    async fn running_pods(&self) -> Result<Vec<Pod>, HostError> {
        let containers = self.context.runtime.list_containers(None).await.map_err(host_error)?;
        let mut pods: std::collections::BTreeMap<String, Pod> = std::collections::BTreeMap::new();
        for container in containers.iter().filter(|c| c.state() == cri::ContainerState::ContainerRunning) {
            let Some(owner) = Owner::from_labels(&container.labels) else { continue };
            let pod = pods.entry(owner.uid.clone()).or_insert_with(|| Pod {
                metadata: ObjectMeta {
                    name: Some(owner.name),
                    namespace: Some(owner.namespace),
                    uid: Some(owner.uid),
                    ..Default::default()
                },
                spec: Some(PodSpec::default()),
                status: None,
            });
            if let Some(pod_spec) = &mut pod.spec {
                pod_spec.containers.push(Container {
                    name: container.labels.get(labels::CONTAINER_NAME).cloned().unwrap_or_default(),
                    image: container.image.as_ref().map(|i| i.image.clone()),
                    ..Default::default()
                });
            }
        }
        Ok(pods.into_values().collect())
    }

    async fn container_log(&self, container: &ContainerRef, previous: bool) -> Result<ContainerLog, HostError> {
        let (snapshot, record) = self.record(container, previous)?;
        let name = format!("{}/{}.log", record.name, record.attempt);
        let path = self.context.node.log_dir(&snapshot.pod).join(name);
        let done = if matches!(record.state, State::Exited | State::Unknown) {
            futures::future::ready(()).boxed()
        } else {
            let (pods, uid, id) = (self.pods.clone(), spec::uid(&snapshot.pod).to_owned(), record.id);
            async move {
                // Followers are few; asking the worker's snapshot costs nothing to anyone else.
                loop {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    let handle = pods.read().unwrap_or_else(PoisonError::into_inner).get(&uid).cloned();
                    let alive = handle.is_some_and(|h| h.snapshot().runtime.running().any(|c| c.id == id));
                    if !alive {
                        return;
                    }
                }
            }
            .boxed()
        };
        Ok(ContainerLog { path: path.exists().then_some(path), done })
    }

    async fn exec(
        &self,
        container: &ContainerRef,
        command: &[String],
        options: StreamOptions,
    ) -> Result<String, HostError> {
        let request = cri::ExecRequest {
            container_id: self.running(container)?,
            cmd: command.to_vec(),
            tty: options.tty,
            stdin: options.stdin,
            stdout: options.stdout,
            stderr: options.stderr,
        };
        self.context.runtime.exec(request).await.map_err(host_error)
    }

    async fn attach(&self, container: &ContainerRef, options: StreamOptions) -> Result<String, HostError> {
        let request = cri::AttachRequest {
            container_id: self.running(container)?,
            tty: options.tty,
            stdin: options.stdin,
            stdout: options.stdout,
            stderr: options.stderr,
        };
        self.context.runtime.attach(request).await.map_err(host_error)
    }

    async fn port_forward(&self, pod: &PodRef, ports: &[u16]) -> Result<String, HostError> {
        let snapshot = self
            .snapshot(&pod.namespace, &pod.name, pod.uid.as_deref())
            .ok_or_else(|| HostError::NotFound(format!("pod {:?} not found", pod.name)))?;
        let sandbox = snapshot
            .runtime
            .ready_sandbox()
            .ok_or_else(|| HostError::BadRequest(format!("pod {:?} is not running", pod.name)))?;
        let port = ports.iter().map(|port| i32::from(*port)).collect();
        let request = cri::PortForwardRequest { pod_sandbox_id: sandbox.id.clone(), port };
        self.context.runtime.port_forward(request).await.map_err(host_error)
    }

    async fn run(&self, container: &ContainerRef, command: &[String]) -> Result<Vec<u8>, HostError> {
        let id = self.running(container)?;
        let answer = self.context.runtime.exec_sync(&id, command.to_vec(), RUN).await.map_err(host_error)?;
        Ok([answer.stdout, answer.stderr].concat())
    }

    async fn checkpoint(&self, container: &ContainerRef, timeout: Option<Duration>) -> Result<PathBuf, HostError> {
        let id = self.running(container)?;
        let folder = self.context.node.root_dir.join("checkpoints");
        bosun_kit::files::create_dir(&folder, 0o700)
            .map_err(|error| HostError::Internal(format!("make {}: {error}", folder.display())))?;
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
        let ContainerRef { namespace, pod, container, .. } = container;
        let location = folder.join(format!("checkpoint-{pod}_{namespace}-{container}-{now}.tar"));
        let timeout = timeout.unwrap_or(Duration::ZERO);
        let runtime = &self.context.runtime;
        runtime.checkpoint_container(&id, &text(&location), timeout).await.map_err(host_error)?;
        Ok(location)
    }

    fn sync_loop_health(&self) -> Result<(), String> {
        let age = self.context.observer.age();
        if age > LOST {
            return Err(format!("the container runtime was last listed {} s ago", age.as_secs()));
        }
        Ok(())
    }

    fn usage_sources(&self) -> UsageSources {
        let node = &self.context.node;
        let pods = self
            .snapshots()
            .into_iter()
            .map(|snapshot| usage::pod(&snapshot, node, &self.context.csi, &self.context.runtime_name))
            .collect();
        let own = usage::own_cgroup().map(|cgroup| ("kubelet".to_owned(), cgroup));
        let all_pods = ("pods".to_owned(), usage::pods_cgroup(node));
        UsageSources {
            pods,
            cgroups: usage::shared_cgroups(node),
            systems: own.into_iter().chain([all_pods]).collect(),
        }
    }

    async fn runtime_storage(&self) -> Result<RuntimeStorage, HostError> {
        let runtime = &self.context.runtime;
        let (filesystems, layers) =
            futures::try_join!(runtime.image_filesystems(), runtime.container_stats()).map_err(host_error)?;
        Ok(usage::storage(filesystems, layers))
    }

    fn configz(&self) -> serde_json::Value {
        self.configz.clone()
    }

    fn log_dir(&self) -> PathBuf {
        PathBuf::from("/var/log")
    }
}

/// The runtime as the node agent sees it.
pub struct Facts {
    /// The runtime.
    pub runtime: Arc<dyn Runtime>,
    /// What watches it.
    pub observer: Arc<Observer>,
    /// What keeps the node from taking pods.
    pub strain: crate::upkeep::Strained,
    /// Devices of the node.
    pub devices: Arc<DeviceManager>,
    /// CSI volumes.
    pub csi: Arc<CsiVolumes>,
}

#[async_trait]
impl RuntimeFacts for Facts {
    fn volumes_in_use(&self) -> Vec<String> {
        self.csi.in_use()
    }

    async fn version(&self) -> Result<String, String> {
        let version = self.runtime.version().await.map_err(|error| error.to_string())?;
        Ok(format!("{}://{}", version.runtime_name, version.runtime_version))
    }

    async fn status(&self) -> Result<RuntimeStatus, String> {
        let answer = self.runtime.status(false).await.map_err(|error| error.to_string())?;
        let conditions = answer.status.unwrap_or_default().conditions;
        let condition = |kind: &str| {
            conditions.iter().find(|c| c.r#type == kind).map(|c| RuntimeCondition {
                status: c.status,
                reason: c.reason.clone(),
                message: c.message.clone(),
            })
        };
        let handler = |h: &cri::RuntimeHandler| NodeRuntimeHandler {
            name: Some(h.name.clone()),
            features: h.features.as_ref().map(|f| NodeRuntimeHandlerFeatures {
                recursive_read_only_mounts: Some(f.recursive_read_only_mounts),
                user_namespaces: Some(f.user_namespaces),
            }),
        };
        Ok(RuntimeStatus {
            runtime: condition("RuntimeReady"),
            network: condition("NetworkReady"),
            handlers: answer.runtime_handlers.iter().map(handler).collect(),
            features: answer
                .features
                .map(|f| NodeFeatures { supplemental_groups_policy: Some(f.supplemental_groups_policy) }),
        })
    }

    async fn images(&self) -> Result<Vec<ContainerImage>, String> {
        let images = self.runtime.list_images().await.map_err(|error| error.to_string())?;
        let image = |image: cri::Image| ContainerImage {
            names: Some(image.repo_digests.into_iter().chain(image.repo_tags).collect()),
            size_bytes: Some(image.size as i64),
        };
        Ok(images.into_iter().map(image).collect())
    }

    fn pressure(&self) -> bosun_kubelet_node::pressure::Pressure {
        use bosun_kubelet_upkeep::signals::Condition;
        let conditions = &self.strain.borrow().short_of;
        bosun_kubelet_node::pressure::Pressure {
            memory: conditions.contains(&Condition::Memory),
            disk: conditions.contains(&Condition::Disk),
            pid: conditions.contains(&Condition::Pid),
        }
    }

    fn devices(&self) -> bosun_kubelet_node::facts::Devices {
        let Capacity { capacity, allocatable, removed } = self.devices.capacity();
        bosun_kubelet_node::facts::Devices { capacity, allocatable, removed }
    }

    fn errors(&self) -> Vec<String> {
        let age = self.observer.age();
        let lost = (age > LOST).then(|| {
            format!("PLEG is not healthy: pleg was last seen active {}s ago; threshold is 3m0s", age.as_secs())
        });
        let ending = self.strain.borrow().shutting_down.then(|| shutdown::NOT_READY.to_owned());
        lost.into_iter().chain(ending).collect()
    }
}
