//! The drivers of this node, as their plugins come and go.
//!
//! A driver may have several plugins while one replaces another; the newest that is connected is asked. A driver of
//! which none is connected for a while cannot prepare anything, so its ResourceSlices are deleted, lest the scheduler
//! sends pods here that would wait for it. For the same reason those of all drivers are when the kubelet starts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bosun_kit::backoff::Backoff;
use bosun_kubelet_plugins::{Handler, Plugin, socket};
use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tokio_util::task::AbortOnDropHandle;

use crate::api::Api;
use crate::driver::{Driver, Service};
use crate::health::Health;
use crate::metrics::Metrics;

/// How long a driver may be away before its ResourceSlices are deleted, as in stock: enough to replace its pod.
pub const AWAY: Duration = Duration::from_secs(30);
/// How often deleting slices is tried.
const WIPES: usize = 100;

/// The drivers of this node.
pub struct Drivers {
    api: Arc<dyn Api>,
    away: Duration,
    /// What they tell of their devices; none if nobody wants to know.
    health: Option<Arc<Health>>,
    metrics: Metrics,
    known: Mutex<Known>,
    /// For tasks of its own.
    own: Weak<Self>,
}

#[derive(Default)]
struct Known {
    plugins: BTreeMap<String, Vec<Instance>>,
    /// Slices that are to be deleted unless their driver comes back, by its name; all drivers' by the empty one.
    wipes: BTreeMap<String, AbortOnDropHandle<()>>,
}

/// A plugin of a driver.
struct Instance {
    driver: Arc<Driver>,
    /// By which it registered.
    socket: PathBuf,
    connected: bool,
    /// Watches the connection for as long as it is known.
    _monitor: AbortOnDropHandle<()>,
    /// Listens to what it tells of its devices.
    _health: Option<AbortOnDropHandle<()>>,
}

impl Drivers {
    /// None yet; begins to delete all ResourceSlices of this node. A driver that is away for `away` ([`AWAY`]) loses
    /// its own. What drivers tell of their devices goes to `health`, if there is any.
    pub fn start(api: Arc<dyn Api>, away: Duration, health: Option<Arc<Health>>, metrics: Metrics) -> Arc<Self> {
        let drivers =
            Arc::new_cyclic(|own| Self { api, away, health, metrics, known: Mutex::default(), own: own.clone() });
        let wipe = drivers.clone().wipe(String::new(), Duration::ZERO);
        drivers.known().wipes.insert(String::new(), AbortOnDropHandle::new(tokio::spawn(wipe)));
        drivers
    }

    /// The plugin to ask for a driver.
    ///
    /// # Errors
    /// None has registered; in stock's words.
    pub fn get(&self, name: &str) -> Result<Arc<Driver>, String> {
        let known = self.known();
        let plugins = known.plugins.get(name).map(Vec::as_slice).unwrap_or_default();
        let newest = plugins.iter().rev().find(|plugin| plugin.connected).or(plugins.last());
        let newest = newest.ok_or_else(|| format!("DRA driver {name} is not registered"))?;
        Ok(newest.driver.clone())
    }

    /// Whether a plugin of the driver is connected.
    pub fn is_connected(&self, name: &str) -> bool {
        self.known().is_usable(name)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connected(&self, name: &str, registered_by: &Path, connected: bool) {
        tracing::info!(driver = name, socket = %registered_by.display(), connected, "DRA plugin");
        let mut known = self.known();
        let plugins = known.plugins.get_mut(name).into_iter().flatten();
        for plugin in plugins.filter(|plugin| plugin.socket == registered_by) {
            plugin.connected = connected;
        }
        self.look_after(&mut known, name);
    }

    /// Begins or stops to wait for the driver's return, after any change of it.
    fn look_after(&self, known: &mut Known, name: &str) {
        if known.is_usable(name) {
            known.wipes.remove(name);
        } else if let (false, Some(own)) = (known.wipes.contains_key(name), self.own.upgrade()) {
            let wipe = own.wipe(name.to_owned(), self.away);
            known.wipes.insert(name.to_owned(), AbortOnDropHandle::new(tokio::spawn(wipe)));
        }
    }

    /// Deletes the slices of a driver (or of all, if it has no name) after a time.
    async fn wipe(self: Arc<Self>, name: String, after: Duration) {
        tokio::time::sleep(after).await;
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300)).jitter(0.2);
        let which = Some(name.as_str()).filter(|name| !name.is_empty());
        for _ in 0..WIPES {
            match self.api.delete_slices(which).await {
                Ok(()) => {
                    tracing::info!(driver = name, "ResourceSlices of this node were deleted: the driver is not there");
                    break;
                }
                Err(error) => tracing::warn!(driver = name, error, "ResourceSlices were not deleted"),
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
        // The last thing it does: this ends the task itself.
        self.known().wipes.remove(&name);
    }
}

impl Known {
    fn is_usable(&self, name: &str) -> bool {
        self.plugins.get(name).is_some_and(|plugins| plugins.iter().any(|plugin| plugin.connected))
    }
}

/// Tells whether somebody listens at the endpoint, by a connection that nothing is asked over, until dropped.
async fn monitor(drivers: Weak<Drivers>, name: String, registered_by: PathBuf, endpoint: PathBuf) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
    loop {
        if let Ok(stream) = UnixStream::connect(&endpoint).await {
            let connect = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
            if let Ok((sender, connection)) = connect {
                let sender: hyper::client::conn::http2::SendRequest<Empty<Bytes>> = sender;
                let Some(known) = drivers.upgrade() else { return };
                known.connected(&name, &registered_by, true);
                drop(known);
                let _ = connection.await;
                drop(sender);
                let Some(known) = drivers.upgrade() else { return };
                known.connected(&name, &registered_by, false);
                backoff.reset();
            }
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

#[async_trait]
impl Handler for Drivers {
    fn validate(&self, plugin: &Plugin) -> Result<(), String> {
        let Plugin { name, endpoint, .. } = plugin;
        if name.is_empty() {
            return Err("DRA driver name is empty".to_owned());
        }
        Service::choose(&plugin.versions).map(drop).map_err(|why| {
            format!("invalid supported gRPC versions of DRA driver plugin {name} at endpoint {endpoint}: {why}")
        })
    }

    async fn register(&self, plugin: &Plugin) -> Result<(), String> {
        let Plugin { name, endpoint, .. } = plugin;
        let driver = Arc::new(Driver::new(plugin, self.metrics.clone())?);
        let mut known = self.known();
        let plugins = known.plugins.entry(name.clone()).or_default();
        plugins.retain(|other| other.socket != plugin.socket);
        if plugins.iter().any(|other| other.driver.endpoint == *endpoint) {
            return Err(format!("endpoint {endpoint} already registered for DRA driver plugin {name}"));
        }
        let watch = monitor(self.own.clone(), name.clone(), plugin.socket.clone(), socket::path(endpoint));
        let _monitor = AbortOnDropHandle::new(tokio::spawn(watch));
        let _health = self.health.clone().zip(driver.health()).map(|(health, channel)| {
            let plugin = plugin.clone();
            AbortOnDropHandle::new(tokio::spawn(async move { health.watch(&plugin, channel).await }))
        });
        plugins.push(Instance { driver, _health, socket: plugin.socket.clone(), connected: false, _monitor });
        self.look_after(&mut known, name);
        Ok(())
    }

    async fn deregister(&self, plugin: &Plugin) {
        let mut known = self.known();
        if let Some(plugins) = known.plugins.get_mut(&plugin.name) {
            plugins.retain(|other| other.socket != plugin.socket);
            if plugins.is_empty() {
                known.plugins.remove(&plugin.name);
            }
            self.look_after(&mut known, &plugin.name);
        }
    }
}
