//! The device manager of a node: plugins come and go, pods are given devices, containers are made ready for them.
//!
//! What was given is on disk before it is used. A pod that runs keeps its devices whatever becomes of the plugin.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bosun_api::pod::is_sidecar;
use bosun_api::quantity::Quantity;
use bosun_kit::metrics::Metrics;
use bosun_kubelet_alignment::{DeviceProvider, Hints, NumaMask};
use bosun_proto::deviceplugin::ContainerAllocateResponse;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceHealth, ResourceStatus};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::checkpoint;
use crate::choose::{Need, Step, choose};
use crate::hints;
use crate::plugin::Plugin;
use crate::table::{Allocations, Capacity, Device, Table, wanted};

const FILE: &str = "kubelet_internal_checkpoint";
/// How long a plugin may be away before its resource is gone from the Node, as in stock.
const GRACE: Duration = Duration::from_secs(300);
/// The Prometheus client's own buckets.
const BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfResource {
    resource_name: String,
}

/// A resource whose plugin is away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absent {
    /// The resource.
    pub resource: String,
    /// How long it is worth waiting for.
    pub until: Instant,
}

/// What is done to a container that was given devices.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Given {
    /// Variables of its environment.
    pub envs: BTreeMap<String, String>,
    /// Mounts: in the container, on the host, whether read-only.
    pub mounts: Vec<(String, String, bool)>,
    /// Device nodes: in the container, on the host, permissions.
    pub devices: Vec<(String, String, String)>,
    /// Annotations, for the runtime.
    pub annotations: BTreeMap<String, String>,
    /// Names of CDI devices.
    pub cdi_devices: Vec<String>,
}

/// The device manager of a node.
pub struct DeviceManager {
    folder: PathBuf,
    nodes: Vec<usize>,
    grace: Duration,
    table: Mutex<Table>,
    plugins: Mutex<BTreeMap<String, Arc<dyn Plugin>>>,
    /// Containers are given devices one after another.
    turn: tokio::sync::Mutex<()>,
    changed: watch::Sender<u64>,
    registrations: Family<OfResource, Counter>,
    allocations: Family<OfResource, Histogram>,
}

impl DeviceManager {
    /// The manager that keeps its state in `folder` (`device-plugins` below the kubelet's root), on a machine with these
    /// NUMA nodes. A state file that is damaged is told about and left: who had which devices is then not known.
    ///
    /// # Errors
    /// The folder cannot be made, or the file not be read.
    pub fn new(folder: &Path, nodes: Vec<usize>) -> io::Result<Self> {
        if !folder.exists() {
            bosun_kit::files::create_dir(folder, 0o750)?;
        }
        let path = folder.join(FILE);
        let table = match fs::read(&path) {
            Ok(text) => match checkpoint::decode(&text) {
                Ok((given, resources)) => Table::restored(given, resources, Instant::now()),
                Err(error) => {
                    let path = path.display();
                    tracing::error!(%path, %error, "which pods have which devices is not known; drain the node if it has device plugins");
                    Table::default()
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Table::default(),
            Err(error) => return Err(io::Error::new(error.kind(), format!("read {}: {error}", path.display()))),
        };
        Ok(Self {
            folder: folder.to_owned(),
            nodes,
            grace: GRACE,
            table: Mutex::new(table),
            plugins: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            changed: watch::Sender::new(0),
            registrations: Family::default(),
            allocations: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
        })
    }

    /// The same, but a plugin may be away for that long.
    #[must_use]
    pub fn with_grace(self, grace: Duration) -> Self {
        Self { grace, ..self }
    }

    /// Where the state file and the sockets are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Shows what is counted.
    pub fn register(&self, metrics: &Metrics) {
        metrics.with(|registry| {
            let help = "Cumulative number of device plugin registrations. Broken down by resource name";
            registry.register("kubelet_device_plugin_registration", help, self.registrations.clone());
            let help = "Duration in seconds to serve a device plugin Allocation request. Broken down by resource name";
            registry.register("kubelet_device_plugin_alloc_duration_seconds", help, self.allocations.clone());
        });
    }

    /// Told whenever plugins, devices or their health have changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Somebody asked for a plugin to be taken in.
    pub fn count_registration(&self, resource: &str) {
        self.registrations.get_or_create(&OfResource { resource_name: resource.to_owned() }).inc();
    }

    /// Takes a plugin in and follows it until it ends or `cancel` is. Returns the number of the connection.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn connect(
        self: Arc<Self>,
        resource: &str,
        plugin: Arc<dyn Plugin>,
        cancel: CancellationToken,
    ) -> Result<u64, String> {
        let options =
            plugin.options().await.map_err(|error| format!("failed to get device plugin options: {error}"))?;
        let connection = {
            // Together, so that the plugin that is asked is the one whose devices are known.
            let mut plugins = self.plugins.lock().unwrap_or_else(PoisonError::into_inner);
            plugins.insert(resource.to_owned(), plugin.clone());
            self.table().connected(resource, options, Instant::now())
        };
        let resource = resource.to_owned();
        tokio::spawn(async move {
            tokio::select! {
                () = self.follow(&resource, connection, &*plugin) => {}
                () = cancel.cancelled() => return,
            }
            self.lost(&resource, connection);
            // The Node is looked at again once the resource is gone for good.
            tokio::select! {
                () = tokio::time::sleep(self.grace + Duration::from_millis(10)) => self.tell(),
                () = cancel.cancelled() => {}
            }
        });
        Ok(connection)
    }

    /// A plugin is not to be used any more, though its connection may still stand.
    pub fn disconnect(&self, resource: &str, connection: u64) {
        self.lost(resource, connection);
    }

    async fn follow(&self, resource: &str, connection: u64, plugin: &dyn Plugin) {
        let mut devices = match plugin.watch().await {
            Ok(devices) => devices,
            Err(error) => return tracing::warn!(resource, error, "a device plugin does not list its devices"),
        };
        while let Some(listed) = devices.next().await {
            match listed {
                Ok(listed) => self.listed(resource, connection, listed),
                Err(error) => return tracing::warn!(resource, error, "a device plugin has ended"),
            }
        }
        tracing::warn!(resource, "a device plugin has ended");
    }

    fn listed(&self, resource: &str, connection: u64, devices: Vec<Device>) {
        let healthy = devices.iter().filter(|device| device.healthy).count();
        tracing::info!(resource, count = devices.len(), healthy, "devices");
        let mut table = self.table();
        table.listed(resource, connection, devices);
        self.keep_or_warn(&table);
        drop(table);
        self.tell();
    }

    fn lost(&self, resource: &str, connection: u64) {
        let mut table = self.table();
        let (newest, _) = table.disconnected(resource, connection, Instant::now());
        if newest {
            self.keep_or_warn(&table);
            drop(table);
            self.tell();
        }
    }

    fn tell(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, table: &Table) -> io::Result<()> {
        bosun_kit::files::write_atomic(&self.folder.join(FILE), checkpoint::encode(table).as_bytes(), 0o600)
    }

    fn keep_or_warn(&self, table: &Table) {
        if let Err(error) = self.keep(table) {
            tracing::warn!(%error, "what is known of devices was not written down");
        }
    }

    /// What the Node shows.
    pub fn capacity(&self) -> Capacity {
        let mut table = self.table();
        let known = table.resources().count();
        let shown = table.capacity(Instant::now(), self.grace);
        if table.resources().count() != known {
            self.keep_or_warn(&table);
        }
        shown
    }

    /// Corrects what pods may ask for in all; see [`Table::overlay`].
    pub fn overlay(&self, allocatable: &mut BTreeMap<String, Quantity>) {
        self.table().overlay(allocatable);
    }

    /// Whether the pod asks for anything that a plugin offers or has offered.
    pub fn concerns(&self, pod: &Pod) -> bool {
        let table = self.table();
        containers(pod).any(|container| !wanted(container, |name| table.knows(name)).is_empty())
    }

    /// A resource that the pod asks for and whose plugin is away, though perhaps only for a moment.
    pub fn absent(&self, pod: &Pod) -> Option<Absent> {
        let found = self.table().absent(containers(pod), Instant::now(), self.grace);
        found.map(|(resource, until)| Absent { resource, until })
    }

    /// Waits until all plugins that the pod needs are there, or have been away for too long.
    pub async fn present(&self, pod: &Pod) {
        let mut changes = self.changes();
        while let Some(absent) = self.absent(pod) {
            let left = absent.until.saturating_duration_since(Instant::now());
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(left + Duration::from_millis(1)) => {}
            }
        }
    }

    async fn allocate_one(
        &self,
        pod: &Pod,
        container: &Container,
        resource: &str,
        count: usize,
        affinity: Option<NumaMask>,
    ) -> Result<(), String> {
        let uid = uid(pod);
        let need = Need { uid, container: &container.name, resource, count, affinity };
        let mut preferred: Option<BTreeSet<String>> = None;
        let ids = loop {
            let step = choose(&self.table(), &need, preferred.as_ref()).map_err(|error| error.to_string())?;
            match step {
                Step::Nothing => return Ok(()),
                Step::Take(ids) => break ids,
                Step::Ask { available, included } => {
                    let (available, included) = (available.into_iter().collect(), included.into_iter().collect());
                    let answer = self.plugin(resource)?.preferred(available, included, count).await;
                    let failed = |error| format!("device plugin GetPreferredAllocation rpc failed with err: {error}");
                    preferred = Some(answer.map_err(failed)?.into_iter().collect());
                }
            }
        };
        let began = Instant::now();
        let response = self.plugin(resource)?.allocate(ids.iter().cloned().collect()).await;
        let of = OfResource { resource_name: resource.to_owned() };
        self.allocations.get_or_create(&of).observe(began.elapsed().as_secs_f64());
        let mut table = self.table();
        table.give((uid, &container.name), resource, &ids, response?);
        self.keep(&table).map_err(|error| format!("failed to write checkpoint file {FILE:?}: {error}"))
    }

    fn plugin(&self, resource: &str) -> Result<Arc<dyn Plugin>, String> {
        let plugins = self.plugins.lock().unwrap_or_else(PoisonError::into_inner);
        plugins.get(resource).cloned().ok_or_else(|| format!("unknown Device Plugin {resource}"))
    }

    async fn allocate_all(&self, pod: &Pod, container: &Container, affinity: Option<NumaMask>) -> Result<(), String> {
        let _turn = self.turn.lock().await;
        let wanted = {
            let table = self.table();
            wanted(container, |name| table.knows(name))
        };
        for (resource, count) in &wanted {
            self.allocate_one(pod, container, resource, *count, affinity).await?;
        }
        if !wanted.is_empty() {
            self.table().hand_on(uid(pod), &container.name, is_plain_init(pod, container));
        }
        Ok(())
    }

    /// Makes the container's devices ready for its start, and says what is to be done to it. One that has none yet
    /// though it asks for some (its plugin came after it was admitted) gets them now.
    ///
    /// # Errors
    /// The plugin refuses or does not answer, or there are no devices.
    pub async fn prepare(&self, pod: &Pod, container: &Container) -> Result<Given, String> {
        let (resources, lacking) = {
            let table = self.table();
            let resources = wanted(container, |name| table.knows(name));
            let own = table.of(uid(pod), &container.name);
            let lacking = resources.iter().any(|(name, _)| own.is_none_or(|own| !own.contains_key(name)));
            (resources, lacking)
        };
        if lacking {
            self.allocate_all(pod, container, None).await?;
        }
        if let Some(fault) = resources.iter().find_map(|(resource, _)| self.table().not_ready(resource)) {
            return Err(fault);
        }
        for (resource, _) in &resources {
            self.pre_start(pod, container, resource).await?;
        }
        let table = self.table();
        Ok(table.of(uid(pod), &container.name).map(given).unwrap_or_default())
    }

    async fn pre_start(&self, pod: &Pod, container: &Container, resource: &str) -> Result<(), String> {
        let ids = {
            let table = self.table();
            if !table.options(resource).is_some_and(|options| options.pre_start) {
                return Ok(());
            }
            let own = table.of(uid(pod), &container.name).and_then(|own| own.get(resource));
            own.map(|own| own.ids().into_iter().collect()).unwrap_or_default()
        };
        let called = self.plugin(resource)?.pre_start(ids).await;
        called.map_err(|error| format!("device plugin PreStartContainer rpc failed with err: {error}"))
    }

    /// Takes back what all pods have that are not to be kept.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        let mut table = self.table();
        let gone: Vec<String> = table.given().keys().filter(|uid| !keep(uid)).cloned().collect();
        for uid in &gone {
            table.release(uid);
        }
        if !gone.is_empty() {
            self.keep_or_warn(&table);
        }
    }

    /// The pods that have devices.
    pub fn owners(&self) -> BTreeSet<String> {
        self.table().given().keys().cloned().collect()
    }

    /// How the container's devices are, for the pod's status. One of which the plugin does not tell counts as healthy,
    /// as in stock.
    pub fn health(&self, uid: &str, container: &str) -> Vec<ResourceStatus> {
        let table = self.table();
        let of = |(resource, own): (&String, &crate::table::Allocation)| {
            let devices = table.devices(resource);
            let health = |id: String| {
                let healthy = devices.and_then(|all| all.get(&id)).is_none_or(|device| device.healthy);
                let health = if healthy { "Healthy" } else { "Unhealthy" };
                ResourceHealth { resource_id: id, health: Some(health.to_owned()), ..Default::default() }
            };
            let resources = Some(own.ids().into_iter().map(health).collect());
            ResourceStatus { name: resource.clone(), resources }
        };
        table.of(uid, container).into_iter().flatten().map(of).collect()
    }

    /// The container's devices by resource and NUMA node.
    pub fn devices(&self, uid: &str, container: &str) -> Allocations {
        self.table().of(uid, container).cloned().unwrap_or_default()
    }

    /// All healthy devices by resource.
    pub fn allocatable(&self) -> BTreeMap<String, Vec<Device>> {
        let table = self.table();
        let healthy = |name: &str| {
            let devices = table.devices(name).into_iter().flat_map(BTreeMap::values);
            devices.filter(|device| device.healthy).cloned().collect::<Vec<_>>()
        };
        table.resources().map(|name| (name.to_owned(), healthy(name))).collect()
    }
}

#[async_trait]
impl DeviceProvider for DeviceManager {
    fn hints(&self, pod: &Pod, container: &Container) -> Hints {
        hints::container(&self.table(), uid(pod), container, &self.nodes)
    }

    fn pod_hints(&self, pod: &Pod) -> Hints {
        hints::pod(&self.table(), uid(pod), pod, &self.nodes)
    }

    async fn allocate(&self, pod: &Pod, container: &Container, affinity: Option<NumaMask>) -> Result<(), String> {
        self.allocate_all(pod, container, affinity).await
    }

    fn release(&self, uid: &str) {
        self.retain(|known| known != uid);
    }
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|s| s.init_containers.as_ref()).into_iter().flatten();
    init.chain(spec.map(|s| s.containers.as_slice()).unwrap_or_default())
}

fn is_plain_init(pod: &Pod, container: &Container) -> bool {
    let init = pod.spec.as_ref().and_then(|s| s.init_containers.as_ref());
    init.into_iter().flatten().any(|init| init.name == container.name) && !is_sidecar(container)
}

/// What all its plugins want done to a container. Where two want different things of one name, the first has it.
fn given(allocations: &Allocations) -> Given {
    let mut given = Given::default();
    for (resource, allocation) in allocations {
        let ContainerAllocateResponse { envs, mounts, devices, annotations, cdi_devices } = allocation.response.clone();
        let merge = |into: &mut BTreeMap<String, String>, from: BTreeMap<String, String>| {
            for (name, value) in from {
                let kept = into.entry(name.clone()).or_insert_with(|| value.clone());
                if *kept != value {
                    tracing::warn!(resource, name, kept, value, "two device plugins want different values");
                }
            }
        };
        merge(&mut given.envs, envs);
        merge(&mut given.annotations, annotations);
        for device in devices {
            if given.devices.iter().all(|(inside, _, _)| *inside != device.container_path) {
                given.devices.push((device.container_path, device.host_path, device.permissions));
            }
        }
        for mount in mounts {
            if given.mounts.iter().all(|(inside, _, _)| *inside != mount.container_path) {
                given.mounts.push((mount.container_path, mount.host_path, mount.read_only));
            }
        }
        for device in cdi_devices {
            if !given.cdi_devices.contains(&device.name) {
                given.cdi_devices.push(device.name);
            }
        }
    }
    given
}
