//! The drivers of the node: taken up when the plugin watcher finds them, shown in the Node and CSINode objects, and
//! forgotten when their sockets go.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

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
