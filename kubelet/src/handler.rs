//! The runtime handler of a pod: its RuntimeClass names it, the runtime says what it can do.

use k8s_openapi::api::core::v1::Pod;

use crate::context::Context;
use crate::pod::spec;

/// A runtime handler and what it can do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handler {
    /// Its name; empty for the runtime's default.
    pub name: String,
    /// Whether it mounts recursively read-only.
    pub recursive_read_only: bool,
    /// Whether pods in it may have user namespaces of their own.
    pub user_namespaces: bool,
}

/// The name of the pod's handler.
///
/// # Errors
/// Its RuntimeClass is not there or cannot be fetched.
pub async fn name(context: &Context, pod: &Pod) -> Result<String, String> {
    let Some(class) = spec::spec(pod).runtime_class_name.as_deref().filter(|class| !class.is_empty()) else {
        return Ok(String::new());
    };
    let failed = |error: String| format!("failed to lookup RuntimeClass {class}: {error}");
    let found = context.objects.runtime_class(class).await.map_err(failed)?;
    let found = found.ok_or_else(|| failed(format!("runtimeclass.node.k8s.io {class:?} not found")))?;
    Ok(found.handler)
}

/// The pod's handler. A runtime that does not say what it can do can do nothing special.
///
/// # Errors
/// As [`name`].
pub async fn of(context: &Context, pod: &Pod) -> Result<Handler, String> {
    let name = name(context, pod).await?;
    let status = context.runtime.status(false).await;
    let status = status.inspect_err(|error| tracing::warn!(%error, "what the runtime can do is not known"));
    let handlers = status.map(|status| status.runtime_handlers).unwrap_or_default();
    let found = handlers.into_iter().find(|known| known.name == name).and_then(|known| known.features);
    let features = found.unwrap_or_default();
    Ok(Handler {
        name,
        recursive_read_only: features.recursive_read_only_mounts,
        user_namespaces: features.user_namespaces,
    })
}

/// Why the pod cannot have a user namespace of its own in this handler.
pub fn no_user_namespaces(handler: &Handler) -> String {
    let who = match handler.name.as_str() {
        "" => "runtime".to_owned(),
        name => format!("RuntimeClass handler {name:?}"),
    };
    format!("can't set `spec.hostUsers: false`, {who} does not support user namespaces")
}
