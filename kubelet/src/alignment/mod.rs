//! What pods have of this node for themselves: CPUs, memory and devices. Brings the managers of
//! [`bosun_kubelet_alignment`] and [`bosun_kubelet_devices`] to pods: at admission, at the start of a container, in the
//! pod's status.

pub mod plugins;
pub mod pools;
mod settings;
pub mod shown;
mod start;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use bosun_api::pod::{QosClass, Resources, qos_class};
use bosun_api::quantity;
use bosun_kit::events::EventType;
use bosun_kit::gates::FeatureGates;
use bosun_kit::metrics::Metrics;
use bosun_kubelet_alignment::sysfs::Reader;
use bosun_kubelet_alignment::{Aligner, Refusal, Settings};
use bosun_kubelet_devices::{DeviceManager, Given};
use bosun_kubelet_node::pressure::Thresholds;
use bosun_proto::cri;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodStatus};

use crate::config::KubeletConfiguration;
use crate::make::Node;
use crate::pod::spec;
use crate::report::Report;

pub use start::start;

/// Below the kubelet's root: sockets of device plugins, and who has which devices.
const DEVICES: &str = "device-plugins";
const CPU: &str = "cpu";
const MEMORY: &str = "memory";

/// CPUs, memory and devices of this node.
pub struct Alignment {
    /// CPUs and memory.
    pub aligner: Aligner,
    /// Devices.
    pub devices: Arc<DeviceManager>,
    /// The policies, as configured.
    policies: (String, String),
    /// Whether containers with CPUs of their own are not throttled (`DisableCPUQuotaWithExclusiveCPUs`).
    unthrottled: bool,
    /// Whether the pods' statuses tell how their devices are (`ResourceHealthStatus`).
    tells_health: bool,
}

impl Alignment {
    /// What the configuration asks for, with what the state files below `root` say. `memory` is the node's, of which
    /// `eviction_hard` keeps a part free.
    ///
    /// # Errors
    /// It cannot be on this machine, or a state file is damaged or of another configuration.
    pub fn open(
        config: &KubeletConfiguration,
        gates: &FeatureGates,
        root: &Path,
        (memory, eviction_hard): (i64, &BTreeMap<String, String>),
    ) -> Result<Self> {
        let thresholds = Thresholds::parse(eviction_hard)?;
        let evicted = thresholds.reserved("memory.available", memory.try_into().unwrap_or(0));
        let settings = settings::of(config, gates, root, evicted)?;
        Self::with(
            &settings,
            root,
            gates.enabled("DisableCPUQuotaWithExclusiveCPUs"),
            gates.enabled("ResourceHealthStatus"),
        )
    }

    /// No policies; only device plugins.
    ///
    /// # Errors
    /// The state files cannot be written.
    pub fn none(root: &Path) -> Result<Self> {
        bosun_kit::files::create_dir(root, 0o750)?;
        Self::with(&Settings::none(root.to_owned()), root, true, true)
    }

    fn with(settings: &Settings, root: &Path, unthrottled: bool, tells_health: bool) -> Result<Self> {
        let topology = Arc::new(Reader::default().topology().context("read the machine's topology")?);
        let devices = DeviceManager::new(&root.join(DEVICES), topology.numa_nodes())?;
        let aligner = Aligner::new(settings, topology).map_err(|error| anyhow!("resource managers: {error}"))?;
        let policies = (settings.cpu_policy.clone(), settings.memory_policy.clone());
        Ok(Self { aligner, devices: Arc::new(devices), policies, unthrottled, tells_health })
    }

    /// Shows what is counted.
    pub fn register(&self, metrics: &Metrics) {
        self.aligner.measured().register(metrics);
        self.devices.register(metrics);
    }

    /// Whether the pod's admission is for the managers to decide too. All others do not wait for their turn.
    pub fn concerns(&self, pod: &Pod) -> bool {
        (!self.aligner.is_idle() && qos_class(pod) == QosClass::Guaranteed) || self.devices.concerns(pod)
    }

    /// Gives the pod what it is entitled to. A device plugin that is away, as after a reboot or while it is replaced, is
    /// waited for: what is not there yet may still come.
    ///
    /// # Errors
    /// It cannot be given; it then has nothing.
    pub async fn admit(&self, pod: &Pod, report: &Report) -> Result<(), Refusal> {
        if let Some(absent) = self.devices.absent(pod) {
            let message = format!("Waiting for the device plugin of {}, which is not there yet", absent.resource);
            report.pod(pod, EventType::Normal, "WaitingForDevicePlugin", message);
            self.devices.present(pod).await;
        }
        self.aligner.admit(pod, &*self.devices).await
    }

    /// Takes in a pod that runs already.
    pub fn adopt(&self, pod: &Pod) {
        if self.aligner.is_idle() {
            return;
        }
        if let Some(missing) = self.aligner.adopt(pod) {
            let reason = missing.message;
            tracing::warn!(pod = spec::title(pod), reason, "a pod that runs has not all that it is entitled to");
        }
    }

    /// Corrects what the Node says of devices: it says it with a delay, and none of a plugin that is only away for a
    /// moment.
    pub fn overlay(&self, allocatable: &mut Resources) {
        self.devices.overlay(allocatable);
    }

    /// Takes back what the pod has.
    pub fn release(&self, uid: &str) {
        self.retain(|known| known != uid);
    }

    /// Takes back what all pods have that are not to be kept.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.aligner.retain(&keep);
        self.devices.retain(&keep);
    }

    /// Why the pod cannot be given what its new definition asks for while it runs; none if the managers do not mind.
    pub fn forbids_resize(&self, new: &Pod, old: &Pod) -> Option<String> {
        let differs = |resource: &str| {
            let asked = |pod| {
                let of =
                    |c: &Container| quantity::get(c.resources.as_ref().and_then(|r| r.requests.as_ref()), resource);
                spec::containers(pod).map(|(_, container)| of(container)).collect::<Vec<_>>()
            };
            asked(new) != asked(old)
        };
        if qos_class(new) != QosClass::Guaranteed {
            return None;
        }
        let (cpu, memory) = &self.policies;
        let fault = |manager: &str, policy: &str| {
            format!("Resize is infeasible for Guaranteed Pods alongside {manager} Manager policy {policy:?}")
        };
        if cpu == "static" && differs(CPU) {
            return Some(fault("CPU", cpu));
        }
        (memory == "Static" && differs(MEMORY)).then(|| fault("Memory", memory))
    }

    /// Makes the container's devices ready for its start.
    ///
    /// # Errors
    /// A plugin refuses, or there are none.
    pub async fn prepare(&self, pod: &Pod, container: &Container) -> Result<Given, String> {
        self.devices.prepare(pod, container).await
    }

    /// Puts into the container's configuration what it was given.
    pub fn dress(&self, pod: &Pod, container: &str, given: Given, config: &mut cri::ContainerConfig) {
        config.devices.extend(given.devices.into_iter().map(|(container_path, host_path, permissions)| cri::Device {
            container_path,
            host_path,
            permissions,
        }));
        config.mounts.extend(given.mounts.into_iter().map(|(container_path, host_path, readonly)| cri::Mount {
            container_path,
            host_path,
            readonly,
            ..Default::default()
        }));
        config.annotations.extend(given.annotations);
        config.cdi_devices.extend(given.cdi_devices.into_iter().map(|name| cri::CdiDevice { name }));
        if let Some(resources) = config.linux.as_mut().and_then(|linux| linux.resources.as_mut()) {
            self.pin(pod, container, resources);
        }
    }

    /// Puts into the container's limits on which CPUs it runs, and from where its memory comes.
    pub fn pin(&self, pod: &Pod, container: &str, resources: &mut cri::LinuxContainerResources) {
        let uid = spec::uid(pod);
        resources.cpuset_cpus = self.aligner.cpus(uid, container).map(|cpus| cpus.to_string()).unwrap_or_default();
        resources.cpuset_mems = self.aligner.memory_nodes(uid, container).unwrap_or_default();
        if self.unthrottled && self.aligner.exclusive_cpus(uid, container).is_some() && resources.cpu_period > 0 {
            resources.cpu_quota = -1;
        }
    }

    /// The node by which the pod's own cgroup is limited: without throttling, if one of its containers has CPUs of its
    /// own.
    pub fn node<'a>(&self, node: &'a Node, pod: &Pod) -> Cow<'a, Node> {
        match self.unthrottled && self.aligner.has_exclusive_cpus(spec::uid(pod)) {
            true => Cow::Owned(Node { cpu_quota_period: None, ..node.clone() }),
            false => Cow::Borrowed(node),
        }
    }

    /// Puts into the pod's status how its devices are.
    pub fn tell_health(&self, uid: &str, status: &mut PodStatus) {
        if !self.tells_health {
            return;
        }
        let of = |container: &mut ContainerStatus| {
            let own = self.devices.health(uid, &container.name);
            if own.is_empty() {
                return;
            }
            let shown = container.allocated_resources_status.get_or_insert_with(Vec::new);
            shown.retain(|known| own.iter().all(|own| own.name != known.name));
            shown.extend(own);
        };
        status.container_statuses.iter_mut().flatten().for_each(of);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(uid: &str, cpu: &str, memory: &str) -> Pod {
        let resources = json!({"cpu": cpu, "memory": memory});
        let container = json!({"name": "app", "resources": {"requests": resources, "limits": resources}});
        let metadata = json!({"name": uid, "uid": uid});
        serde_json::from_value(json!({"metadata": metadata, "spec": {"containers": [container]}})).unwrap()
    }

    fn open(fields: serde_json::Value, root: &Path) -> Result<Alignment> {
        let config: KubeletConfiguration = serde_json::from_value(fields).unwrap();
        Alignment::open(&config, &config.gates().unwrap(), root, (0, &BTreeMap::new()))
    }

    #[tokio::test]
    async fn a_container_of_its_own_cpus_is_pinned_and_not_throttled() {
        let root = tempfile::tempdir().unwrap();
        let fields = json!({"cpuManagerPolicy": "static", "reservedSystemCPUs": "0"});
        let alignment = open(fields, root.path()).unwrap();
        let report = Report::new(bosun_kit::events::Recorder::to_log());
        let (own, other) = (pod("own", "1", "1Mi"), pod("other", "500m", "1Mi"));
        assert!(alignment.concerns(&own));
        alignment.admit(&own, &report).await.unwrap();
        let node = Node { cpu_quota_period: Some(std::time::Duration::from_millis(100)), ..crate::make::tests::node() };
        let pinned = |pod: &Pod| {
            let container = &pod.spec.as_ref().unwrap().containers[0];
            let mut resources = crate::make::resources::container_resources(pod, container, &node);
            alignment.pin(pod, "app", &mut resources);
            (resources.cpuset_cpus, resources.cpu_quota)
        };
        assert_eq!(pinned(&own).1, -1);
        assert!(!pinned(&own).0.is_empty() && pinned(&own).0 != pinned(&other).0);
        assert_eq!(pinned(&other).1, 50_000);
        assert_eq!(alignment.node(&node, &own).cpu_quota_period, None);
        assert_eq!(alignment.node(&node, &other).cpu_quota_period, node.cpu_quota_period);
        let forbidden = alignment.forbids_resize(&pod("own", "2", "1Mi"), &own);
        let message = "Resize is infeasible for Guaranteed Pods alongside CPU Manager policy \"static\"";
        assert_eq!(forbidden.as_deref(), Some(message));
        assert_eq!(alignment.forbids_resize(&pod("own", "1", "2Mi"), &own), None);
        alignment.release("own");
        assert_eq!(pinned(&own).1, 100_000);
    }

    #[test]
    fn configurations_that_cannot_be_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let fault = |fields| format!("{:#}", open(fields, root.path()).err().unwrap());
        let none = fault(json!({"cpuManagerPolicy": "static"}));
        assert!(none.contains("systemreserved.cpu + kubereserved.cpu to be greater than zero"), "{none}");
        let alpha = json!({"cpuManagerPolicy": "static", "reservedSystemCPUs": "0", "cpuManagerPolicyOptions": {"align-by-socket": "true"}});
        assert!(fault(alpha).contains("CPUManagerPolicyAlphaOptions"));
        let memory = fault(json!({"memoryManagerPolicy": "Static", "systemReserved": {"memory": "1Gi"}}));
        assert!(memory.contains("is not equal to the value"), "{memory}");
        let twice = json!({"memoryManagerPolicy": "Static", "reservedMemory": [
            {"numaNode": 0, "limits": {"memory": "1Gi"}}, {"numaNode": 0, "limits": {"memory": "1Gi"}}]});
        assert!(fault(twice).contains("duplicate"));
        let kind = json!({"reservedMemory": [{"numaNode": 0, "limits": {"cpu": "1"}}]});
        assert!(fault(kind).contains("\"cpu\""));
    }
}
