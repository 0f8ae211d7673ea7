//! Device plugins that make themselves known as CSI drivers do, by a socket in `plugins_registry`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bosun_kubelet_devices::plugin::GrpcPlugin;
use bosun_kubelet_devices::{DeviceManager, registration};
use bosun_kubelet_plugins::{DEVICE_PLUGIN, Handler, Plugin};
use tokio_util::sync::CancellationToken;

/// Hands device plugins to the device manager.
pub struct DevicePlugins {
    devices: Arc<DeviceManager>,
    /// Connections by the socket that registered them, and what ends each.
    connections: Mutex<HashMap<PathBuf, (u64, CancellationToken)>>,
    cancel: CancellationToken,
}

impl DevicePlugins {
    /// The handler, under the name of its type.
    pub fn registrar(devices: Arc<DeviceManager>, cancel: CancellationToken) -> (String, Arc<dyn Handler>) {
        (DEVICE_PLUGIN.to_owned(), Arc::new(Self { devices, connections: Mutex::default(), cancel }))
    }

    fn connections(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, (u64, CancellationToken)>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, plugin: &Plugin) {
        let ended = self.connections().remove(&plugin.socket);
        if let Some((connection, token)) = ended {
            token.cancel();
            self.devices.disconnect(&plugin.name, connection);
        }
    }
}

#[async_trait]
impl Handler for DevicePlugins {
    fn validate(&self, plugin: &Plugin) -> Result<(), String> {
        let version = registration::VERSION;
        if !plugin.versions.iter().any(|offered| offered == version) {
            return Err(format!(
                "manager version, {version}, is not among plugin supported versions {:?}",
                plugin.versions
            ));
        }
        match registration::is_extended_resource(&plugin.name) {
            true => Ok(()),
            false => {
                Err(format!("invalid name of device plugin socket: the ResourceName {:?} is invalid", plugin.name))
            }
        }
    }

    async fn register(&self, plugin: &Plugin) -> Result<(), String> {
        self.devices.count_registration(&plugin.name);
        let (token, of_plugin) = (self.cancel.child_token(), Arc::new(GrpcPlugin::new(plugin.endpoint.clone().into())));
        let connection = self.devices.clone().connect(&plugin.name, of_plugin, token.clone()).await?;
        let before = self.connections().insert(plugin.socket.clone(), (connection, token));
        if let Some((_, token)) = before {
            token.cancel();
        }
        Ok(())
    }

    async fn deregister(&self, plugin: &Plugin) {
        self.end(plugin);
    }
}
