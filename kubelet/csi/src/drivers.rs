//! The drivers of the node: taken up when the plugin watcher finds them, shown in the Node and CSINode objects, and
//! forgotten when their sockets go.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bosun_kubelet_plugins::{Handler, Plugin, socket};
use tokio::sync::OnceCell;
use tonic::Status;

use crate::cluster::Cluster;
use crate::node_info;
use crate::service::{Capabilities, DEADLINE, GrpcNode, NodeService, words};

/// A registered driver.
pub struct Driver {
    /// Its name.
    pub name: String,
    /// Its node service.
    pub service: Arc<dyn NodeService>,
    /// The socket by which it registered.
    socket: PathBuf,
    capabilities: OnceCell<Capabilities>,
}

impl Driver {
    /// A driver that has just registered.
    pub fn new(name: &str, socket: &Path, service: Arc<dyn NodeService>) -> Self {
        Self { name: name.to_owned(), service, socket: socket.to_path_buf(), capabilities: OnceCell::new() }
    }

    /// What it can do; asked once a registration.
    ///
    /// # Errors
    /// It did not answer.
    pub async fn capabilities(&self) -> Result<&Capabilities, Status> {
        self.capabilities.get_or_try_init(|| self.service.capabilities()).await
    }
}

/// The registered drivers by name.
#[derive(Default)]
pub struct Drivers {
    known: Mutex<BTreeMap<String, Arc<Driver>>>,
}

impl Drivers {
    /// The driver of that name.
    ///
    /// # Errors
    /// It has not registered, in stock's words.
    pub fn get(&self, name: &str) -> Result<Arc<Driver>, String> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = || format!("driver name {name} not found in the list of registered CSI drivers");
        known.get(name).cloned().ok_or_else(missing)
    }

    /// Takes a driver up, in the place of one of the same name.
    pub fn put(&self, driver: Driver) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(driver.name.clone(), Arc::new(driver));
    }

    /// All drivers.
    pub fn all(&self) -> Vec<Arc<Driver>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Forgets the driver that registered by this socket. Whether it was there.
    fn remove(&self, name: &str, socket: &Path) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let own = known.get(name).is_some_and(|driver| driver.socket == socket);
        own && known.remove(name).is_some()
    }
}

/// Registers drivers; the handler of the type `CSIPlugin`.
pub struct Registrar {
    drivers: Arc<Drivers>,
    cluster: Arc<dyn Cluster>,
}

impl Registrar {
    /// Drivers go to `drivers`, what they say of the node to the cluster.
    pub fn new(drivers: Arc<Drivers>, cluster: Arc<dyn Cluster>) -> Self {
        Self { drivers, cluster }
    }
}

/// How often is looked which drivers want to be asked again how many volumes fit; shorter periods than that are this.
const LIMITS_TICK: Duration = Duration::from_secs(60);

/// Asks drivers again how many volumes fit, as often as their `nodeAllocatableUpdatePeriodSeconds` says (KEP-4876), and
/// shows it in the CSINode. Never ends.
pub async fn keep_limits(drivers: Arc<Drivers>, cluster: Arc<dyn Cluster>) {
    let mut asked = BTreeMap::new();
    loop {
        tokio::time::sleep(LIMITS_TICK).await;
        for driver in drivers.all() {
            let Ok(Some(object)) = cluster.driver(&driver.name).await else { continue };
            let period = object.spec.node_allocatable_update_period_seconds;
            if is_due(period, asked.get(&driver.name).copied(), Instant::now()) {
                asked.insert(driver.name.clone(), Instant::now());
                if let Err(error) = update_limit(&driver, &*cluster).await {
                    tracing::warn!(driver = driver.name, error, "how many volumes fit is not known anew");
                }
            }
        }
    }
}

/// Whether a driver is to be asked again, given when that was done last.
fn is_due(period: Option<i64>, asked: Option<Instant>, now: Instant) -> bool {
    let Some(period) = period.and_then(|seconds| u64::try_from(seconds).ok()).filter(|seconds| *seconds > 0) else {
        return false;
    };
    asked.is_none_or(|asked| now.saturating_duration_since(asked) >= Duration::from_secs(period))
}

async fn update_limit(driver: &Driver, cluster: &dyn Cluster) -> Result<(), String> {
    let info = driver.service.info().await.map_err(|status| words(&status))?;
    node_info::update(cluster, &driver.name, &info).await
}

#[async_trait]
impl Handler for Registrar {
    fn validate(&self, plugin: &Plugin) -> Result<(), String> {
        let (name, endpoint) = (&plugin.name, &plugin.endpoint);
        let refused = |why: &str| Err(format!("validation failed for CSI Driver {name} at endpoint {endpoint}: {why}"));
        // The name becomes part of paths.
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if name.is_empty() || name.len() > 63 || name.starts_with('.') || !name.chars().all(fits) {
            return refused("its name is no domain name of at most 63 letters");
        }
        let supported = |version: &String| version.trim_start_matches('v').split('.').next() == Some("1");
        match plugin.versions.iter().any(supported) {
            true => Ok(()),
            false => refused("none of the CSI versions reported by this driver are supported"),
        }
    }

    async fn register(&self, plugin: &Plugin) -> Result<(), String> {
        let service = Arc::new(GrpcNode::new(&socket::path(&plugin.endpoint), DEADLINE));
        let info = service.info().await.map_err(|status| words(&status))?;
        node_info::install(&*self.cluster, &plugin.name, &info).await?;
        self.drivers.put(Driver::new(&plugin.name, &plugin.socket, service));
        Ok(())
    }

    async fn deregister(&self, plugin: &Plugin) {
        if !self.drivers.remove(&plugin.name, &plugin.socket) {
            return;
        }
        if let Err(error) = node_info::uninstall(&*self.cluster, &plugin.name).await {
            tracing::warn!(
                driver = plugin.name,
                error,
                "a CSI driver that is gone is still in the CSINode or Node object"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_are_asked_again_as_often_as_they_say() {
        let now = Instant::now();
        let ago = |seconds| Some(now.checked_sub(Duration::from_secs(seconds)).unwrap());
        let rows = [(None, None), (Some(0), None), (Some(60), None), (Some(60), ago(59)), (Some(60), ago(60))];
        let due: Vec<bool> = rows.into_iter().map(|(period, asked)| is_due(period, asked, now)).collect();
        assert_eq!(due, [false, false, true, false, true]);
    }

    #[test]
    fn only_names_and_versions_that_fit_are_taken() {
        let registrar = Registrar::new(Arc::default(), Arc::new(crate::cluster::NoCluster));
        let validate = |name: &str, version: &str| {
            let plugin = Plugin {
                kind: bosun_kubelet_plugins::CSI_PLUGIN.into(),
                name: name.into(),
                endpoint: "/s".into(),
                versions: vec![version.into()],
                socket: PathBuf::new(),
            };
            registrar.validate(&plugin).map_or_else(|error| error, |()| "fits".to_owned())
        };
        assert_eq!(validate("d.example.com", "1.0.0"), "fits");
        assert!(validate("../../etc", "1.0.0").ends_with("its name is no domain name of at most 63 letters"));
        let golden = "validation failed for CSI Driver d at endpoint /s: none of the CSI versions reported by this driver are supported";
        assert_eq!(validate("d", "0.3.0"), golden);
    }
}
