//! The exchange with one plugin: who it is, whether its handler takes it, and telling it so.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bosun_proto::pluginregistration::registration_client::RegistrationClient;
use bosun_proto::pluginregistration::{InfoRequest, RegistrationStatus};
use thiserror::Error;
use tokio::time::timeout;
use tonic::transport::Channel;

use crate::watcher::REGISTER_DEADLINE;
use crate::{Handler, Plugin, socket};

/// How long a plugin may take from its socket to listening, as in stock.
const DIAL_DEADLINE: Duration = Duration::from_secs(10);
/// How long it may take to say who it is. Stock gives a second, which a node under load does not always keep.
const INFO_DEADLINE: Duration = Duration::from_secs(5);
/// How long it may take to be told, as in stock.
const NOTIFY_DEADLINE: Duration = Duration::from_secs(5);

/// The handlers by the type of their plugins.
pub type Handlers = BTreeMap<String, Arc<dyn Handler>>;

/// Why a plugin was not registered, in stock's words.
#[derive(Debug, Error)]
#[error("RegisterPlugin error -- {0}")]
pub struct Refused(String);

/// Asks the plugin at the socket who it is, registers it and tells it how that went.
///
/// # Errors
/// It does not answer, is of no known type, or its handler refuses it.
pub async fn register(path: &Path, handlers: &Handlers) -> Result<Plugin, Refused> {
    let shown = path.display();
    let dialled = |error: std::io::Error| Refused(format!("dial failed at socket {shown}, err: {error}"));
    let mut client = RegistrationClient::new(socket::dial(path, DIAL_DEADLINE).await.map_err(dialled)?);
    let plugin = info(&mut client, path).await?;
    let done = take(&plugin, handlers).await;
    let error = done.as_ref().err().map(ToString::to_string).unwrap_or_default();
    let status = RegistrationStatus { plugin_registered: done.is_ok(), error };
    // A plugin that cannot be told is registered or refused all the same; if it is gone, its socket goes too.
    if let Err(error) = within(NOTIFY_DEADLINE, client.notify_registration_status(status)).await {
        tracing::warn!(plugin = plugin.name, socket = %shown, error, "a plugin was not told how its registration went");
    }
    done.map(|()| plugin)
}

async fn info(client: &mut RegistrationClient<Channel>, path: &Path) -> Result<Plugin, Refused> {
    let shown = path.display();
    let failed =
        |error: String| Refused(format!("failed to get plugin info using RPC GetInfo at socket {shown}, err: {error}"));
    let info = within(INFO_DEADLINE, client.get_info(InfoRequest {})).await.map_err(failed)?.into_inner();
    let endpoint = if info.endpoint.is_empty() { shown.to_string() } else { info.endpoint };
    Ok(Plugin {
        kind: info.r#type,
        name: info.name,
        endpoint,
        versions: info.supported_versions,
        socket: path.to_path_buf(),
    })
}

async fn take(plugin: &Plugin, handlers: &Handlers) -> Result<(), Refused> {
    let Some(handler) = handlers.get(&plugin.kind) else {
        let (kind, socket) = (&plugin.kind, plugin.socket.display());
        return Err(Refused(format!("no handler registered for plugin type: {kind} at socket {socket}")));
    };
    let failed = |why: String| Refused(format!("plugin registration failed with err: {why}"));
    handler.validate(plugin).map_err(|why| Refused(format!("plugin validation failed with err: {why}")))?;
    within(REGISTER_DEADLINE, handler.register(plugin)).await.map_err(failed)
}

async fn within<T, E: Display>(limit: Duration, call: impl Future<Output = Result<T, E>>) -> Result<T, String> {
    match timeout(limit, call).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
    }
}
