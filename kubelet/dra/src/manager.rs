//! Has the claims of pods prepared and unprepared, as [`plan`] decides.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bosun_kit::metrics::Metrics as Registry;
use bosun_proto::dra::v1::{Claim, NodePrepareResourceResponse};
use futures::future::{join_all, try_join_all};
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus, ResourceHealth, ResourceRequirements, ResourceStatus};
use tokio::sync::{OwnedMutexGuard, mpsc};

use crate::api::Api;
use crate::cache::{Cache, ClaimInfo, ContainerClaim, Device, DriverState, Key};
use crate::checkpoint::{Checkpoint, Corrupt};
use crate::claims::{self, Allocated};
use crate::drivers::{AWAY, Drivers};
use crate::health::{Changed, Health};
use crate::metrics::Metrics;
use crate::plan::{self, Change, Plan};

/// The claims of this node's pods.
pub struct Manager {
    api: Arc<dyn Api>,
    drivers: Arc<Drivers>,
    cache: Arc<Mutex<Cache>>,
    checkpoint: Checkpoint,
    /// Held while the checkpoint is written, so that its states come in order.
    keeper: tokio::sync::Mutex<()>,
    /// The checkpoint does not say what the cache does: its last writing failed.
    behind: AtomicBool,
    claims: Mutex<BTreeMap<Key, Weak<tokio::sync::Mutex<()>>>>,
    health: Option<Arc<Health>>,
    changed: tokio::sync::Mutex<mpsc::UnboundedReceiver<Changed>>,
    metrics: Metrics,
}

/// How claims are looked after.
pub struct Settings<'a> {
    /// The kubelet's folder.
    pub folder: &'a Path,
    /// Where to show what is counted.
    pub registry: &'a Registry,
    /// Whether drivers are asked how their devices are (the gate `ResourceHealthStatus`).
    pub health: bool,
    /// How long a driver may be away before its ResourceSlices are deleted.
    pub away: Duration,
}

impl<'a> Settings<'a> {
    /// With stock's defaults.
    pub fn new(folder: &'a Path, registry: &'a Registry) -> Self {
        Self { folder, registry, health: true, away: AWAY }
    }
}

impl Manager {
    /// Takes up what the kubelet before this one kept in its folder, and begins to delete the ResourceSlices of drivers
    /// that are not there.
    ///
    /// # Errors
    /// What was kept cannot be used.
    pub fn start(api: Arc<dyn Api>, settings: Settings<'_>) -> Result<Arc<Self>, Corrupt> {
        let Settings { folder, registry, health, away } = settings;
        let metrics = Metrics::default();
        let (changes, changed) = mpsc::unbounded_channel();
        let health = health.then(|| Arc::new(Health::new(changes)));
        let checkpoint = Checkpoint::within(folder);
        let cache = Arc::new(Mutex::new(checkpoint.load()?));
        metrics.register(registry, cache.clone());
        let drivers = Drivers::start(api.clone(), away, health.clone(), metrics.clone());
        Ok(Arc::new(Self {
            api,
            drivers,
            cache,
            checkpoint,
            keeper: tokio::sync::Mutex::default(),
            behind: AtomicBool::new(false),
            claims: Mutex::default(),
            health,
            changed: tokio::sync::Mutex::new(changed),
            metrics,
        }))
    }

    /// The drivers, for the plugin watcher.
    pub fn drivers(&self) -> Arc<Drivers> {
        self.drivers.clone()
    }

    /// Has all claims of the pod prepared; to be repeated until it goes well, before a container of it is made.
    ///
    /// # Errors
    /// Why not, as stock words it in its event.
    pub async fn prepare(&self, pod: &Pod) -> Result<(), String> {
        let began = Instant::now();
        let done = self.prepare_all(pod).await;
        self.metrics.operated("PrepareResources", done.is_ok(), began.elapsed());
        done.map_err(|error| format!("prepare dynamic resources: {error}"))
    }

    async fn prepare_all(&self, pod: &Pod) -> Result<(), String> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let look = claims::of_pod(pod)?.into_iter().map(async |reference| {
            let claim = self.api.claim(namespace, &reference.name).await;
            let claim = claim.map_err(|error| format!("fetch ResourceClaim {}: {error}", reference.name))?;
            claims::check(pod, &reference, &claim)
        });
        let wanted: Vec<Allocated> = try_join_all(look).await?;
        // A pod whose driver is not there is written down nowhere, so that it can be deleted without it.
        for driver in wanted.iter().flat_map(|claim| &claim.drivers) {
            self.drivers.get(driver)?;
        }
        let _held = self.hold(wanted.iter().map(|claim| claim.key.clone()).collect()).await;
        let plan = plan::prepare(&self.cache(), uid, &wanted)?;
        self.keep(&plan.before).await?;
        let calls = plan.calls.iter().map(async |(driver, claims)| {
            let answers = self.drivers.get(driver)?.prepare(claims).await?;
            self.take_up(driver, claims, answers);
            Ok::<_, String>(())
        });
        all(join_all(calls).await)?;
        self.keep(&plan.after).await
    }

    /// Writes down what a driver made available, in place of what it said before.
    fn take_up(&self, driver: &str, claims: &[Claim], mut answers: BTreeMap<String, NodePrepareResourceResponse>) {
        let mut cache = self.cache();
        for claim in claims {
            let devices = answers.remove(&claim.uid).unwrap_or_default().devices;
            let devices = devices.into_iter().map(|device| Device {
                pool_name: device.pool_name,
                device_name: device.device_name,
                share_id: device.share_id,
                request_names: device.request_names,
                cdi_device_ids: device.cdi_device_ids,
            });
            if let Some(known) = cache.get_mut(&Key::new(&claim.namespace, &claim.name)) {
                known.driver_state.insert(driver.to_owned(), DriverState { devices: devices.collect() });
            }
        }
    }

    /// Has the claims of a pod that is over unprepared, as far as no other pod uses them; to be repeated until it goes
    /// well.
    ///
    /// # Errors
    /// Why not, as stock words it.
    pub async fn unprepare(&self, uid: &str) -> Result<(), String> {
        if !self.has_claims(uid) {
            return Ok(());
        }
        let began = Instant::now();
        let done = self.unprepare_all(uid).await;
        self.metrics.operated("UnprepareResources", done.is_ok(), began.elapsed());
        done.map_err(|error| format!("unprepare dynamic resources: {error}"))
    }

    async fn unprepare_all(&self, uid: &str) -> Result<(), String> {
        let keys = self.cache().of_pod(uid);
        let _held = self.hold(keys.into_iter().collect()).await;
        let Plan { calls, after, .. } = plan::unprepare(&self.cache(), uid);
        let calls = calls.iter().map(async |(driver, claims)| self.drivers.get(driver)?.unprepare(claims).await);
        all(join_all(calls).await)?;
        self.keep(&after).await
    }

    /// Whether something is, or may be, prepared for the pod.
    pub fn has_claims(&self, uid: &str) -> bool {
        !self.cache().of_pod(uid).is_empty()
    }

    /// Has the claims unprepared that are kept for pods which are not among the active ones, by UID: those that were
    /// deleted by force, or while no kubelet was there. What fails is tried again the next time.
    pub async fn reconcile(&self, active: &BTreeSet<String>) {
        let stale = plan::stale(&self.cache(), active);
        for uid in stale {
            if let Err(error) = self.unprepare(&uid).await {
                tracing::warn!(uid, error, "claims of a pod that is gone were not unprepared");
            }
        }
    }

    /// The CDI names of the devices that the container uses, each once.
    ///
    /// # Errors
    /// A claim of it is not prepared.
    pub fn cdi_devices(&self, pod: &Pod, container: &Container) -> Result<Vec<String>, String> {
        let mut ids: Vec<String> = Vec::new();
        for claim in self.container_claims(pod, container)? {
            for id in claim.devices.into_iter().flat_map(|(_, device)| device.cdi_device_ids) {
                if !ids.contains(&id) {
                    ids.push(id);
                }
            }
        }
        Ok(ids)
    }

    /// What the container has of its pod's claims: for the runtime and for the pod-resources API.
    ///
    /// # Errors
    /// A claim of it is not prepared.
    pub fn container_claims(&self, pod: &Pod, container: &Container) -> Result<Vec<ContainerClaim>, String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let cache = self.cache();
        let mut found: Vec<ContainerClaim> = Vec::new();
        for (name, request) in claims::of_container(pod, container)? {
            let key = Key::new(namespace, &name);
            let info = cache.get(&key).ok_or_else(|| {
                format!("internal error: unable to get claim info for ResourceClaim {name} in namespace {namespace}")
            })?;
            let at = found.iter().position(|claim| claim.key == key).unwrap_or_else(|| {
                found.push(ContainerClaim { key, devices: Vec::new() });
                found.len() - 1
            });
            for (driver, device) in info.devices(request.as_deref()) {
                let device = (driver.to_owned(), device.clone());
                if !found[at].devices.contains(&device) {
                    found[at].devices.push(device);
                }
            }
        }
        Ok(found)
    }

    /// Waits until devices are otherwise than before; the pods that use them, by UID. For one caller at a time.
    pub async fn health_changed(&self) -> BTreeSet<String> {
        let Some(changed) = self.changed.lock().await.recv().await else { return std::future::pending().await };
        let uses = |claim: &&ClaimInfo| {
            let devices = claim.driver_state.get(&changed.driver).map(|state| state.devices.as_slice());
            let named = |device: &Device| (device.pool_name.clone(), device.device_name.clone());
            devices.unwrap_or_default().iter().any(|device| changed.devices.contains(&named(device)))
        };
        self.cache().claims().filter(uses).flat_map(|claim| claim.pod_uids.clone()).collect()
    }

    /// Puts into the statuses of the pod's containers how the devices of their claims are.
    pub fn tell_health(&self, pod: &Pod, status: &mut PodStatus) {
        let Some(health) = &self.health else { return };
        let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
        for shown in status.container_statuses.iter_mut().flatten() {
            let Some(container) = containers.iter().find(|container| container.name == shown.name) else { continue };
            let own = self.resource_statuses(pod, container, health);
            if own.is_empty() {
                continue;
            }
            let statuses = shown.allocated_resources_status.get_or_insert_with(Vec::new);
            statuses.retain(|known| own.iter().all(|own| own.name != known.name));
            statuses.extend(own);
        }
    }

    /// One status a claim (or request of it) of the container, with its devices by their first CDI names.
    fn resource_statuses(&self, pod: &Pod, container: &Container, health: &Health) -> Vec<ResourceStatus> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let wanted = container.resources.as_ref().and_then(|resources| resources.claims.as_deref());
        let cache = self.cache();
        let mut statuses = Vec::new();
        for entry in wanted.unwrap_or_default() {
            let alone = Container {
                resources: Some(ResourceRequirements { claims: Some(vec![entry.clone()]), ..Default::default() }),
                ..Default::default()
            };
            let mut resources: Vec<ResourceHealth> = Vec::new();
            for (name, request) in claims::of_container(pod, &alone).unwrap_or_default() {
                let Some(info) = cache.get(&Key::new(namespace, &name)) else { continue };
                for (driver, device) in info.devices(request.as_deref()) {
                    let Device { pool_name, device_name, cdi_device_ids, .. } = device;
                    let by_name = || format!("{driver}/{pool_name}/{device_name}");
                    let resource_id = cdi_device_ids.first().cloned().unwrap_or_else(by_name);
                    if resources.iter().all(|known| known.resource_id != resource_id) {
                        let condition = health.of(driver, &(pool_name.clone(), device_name.clone()));
                        let health = Some(condition.as_str().to_owned());
                        resources.push(ResourceHealth { resource_id, health, ..Default::default() });
                    }
                }
            }
            if !resources.is_empty() {
                let request = entry.request.as_deref().filter(|request| !request.is_empty());
                let name = request.map_or(entry.name.clone(), |request| format!("{}/{request}", entry.name));
                statuses.push(ResourceStatus { name: format!("claim:{name}"), resources: Some(resources) });
            }
        }
        statuses
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the cache and keeps it on disk.
    async fn keep(&self, changes: &[Change]) -> Result<(), String> {
        if changes.is_empty() && !self.behind.load(Ordering::Acquire) {
            return Ok(());
        }
        let _writing = self.keeper.lock().await;
        let copy = {
            let mut cache = self.cache();
            changes.iter().for_each(|change| change.apply(&mut cache));
            cache.clone()
        };
        // Until it is written.
        self.behind.store(true, Ordering::Release);
        let checkpoint = self.checkpoint.clone();
        let stored = tokio::task::spawn_blocking(move || checkpoint.store(&copy)).await;
        let stored = stored.map_err(|error| error.to_string()).and_then(|done| done.map_err(|e| e.to_string()));
        stored.map_err(|error| format!("checkpoint ResourceClaim cache: {error}"))?;
        self.behind.store(false, Ordering::Release);
        Ok(())
    }

    /// Keeps others off these claims: two pods that share one must not have it prepared and unprepared at a time. Taken
    /// in their order, so that nobody waits in a circle.
    async fn hold(&self, keys: BTreeSet<Key>) -> Vec<OwnedMutexGuard<()>> {
        let mut held = Vec::new();
        for key in keys {
            let lock = {
                let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
                claims.retain(|_, lock| lock.strong_count() > 0);
                let known = claims.get(&key).and_then(Weak::upgrade);
                let lock = known.unwrap_or_default();
                claims.insert(key, Arc::downgrade(&lock));
                lock
            };
            held.push(lock.lock_owned().await);
        }
        held
    }
}

/// Every driver has answered; the first failure, if there is one.
fn all(answers: Vec<Result<(), String>>) -> Result<(), String> {
    answers.into_iter().collect()
}
