//! The plugin watcher: CSI drivers, DRA drivers and device plugins put a socket into `<root>/plugins_registry` (or a
//! folder in it); the kubelet asks each who it is, hands it to the [`Handler`] of its type and tells it how that went.
//! A socket that goes takes its plugin along; one that is made anew is registered anew.
//!
//! [`seen`] observes the folder, [`plan`] decides (a plain function), [`watcher`] acts. What a plugin of some type
//! is good for is its handler's business.

pub mod plan;
pub mod register;
pub mod seen;
pub mod socket;
pub mod watcher;

use std::path::PathBuf;

use async_trait::async_trait;

pub use watcher::PluginWatcher;

/// The type of CSI drivers.
pub const CSI_PLUGIN: &str = "CSIPlugin";
/// The type of DRA drivers.
pub const DRA_PLUGIN: &str = "DRAPlugin";
/// The type of device plugins.
pub const DEVICE_PLUGIN: &str = "DevicePlugin";

/// What a plugin said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plugin {
    /// Its type, as [`CSI_PLUGIN`].
    pub kind: String,
    /// Its name, unique among those of its type.
    pub name: String,
    /// Where it serves its own API: a path of a socket.
    pub endpoint: String,
    /// Versions of that API (or names of its services).
    pub versions: Vec<String>,
    /// The socket by which it registered. Two sockets may name the same plugin while one replaces the other.
    pub socket: PathBuf,
}

/// What is done with plugins of one type.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Whether the plugin may be registered. Must not wait for anything.
    ///
    /// # Errors
    /// Why not; the plugin is told.
    fn validate(&self, plugin: &Plugin) -> Result<(), String>;

    /// Takes the plugin up. May be called again for a plugin that is known: then it replaces what is known of it.
    /// Calls for one socket are never concurrent, those for different sockets are. Ended after
    /// [`watcher::REGISTER_DEADLINE`].
    ///
    /// # Errors
    /// Why it failed; the plugin is told, and it is tried again as long as its socket stays. Nothing of it may be left.
    async fn register(&self, plugin: &Plugin) -> Result<(), String>;

    /// Forgets the plugin that registered by this socket. If another socket has registered a plugin of the same name
    /// since, that one stays.
    async fn deregister(&self, plugin: &Plugin);
}
