//! What a write must pass between decoding and the store: rules that look at more than the object itself.

use std::sync::Arc;

use bosun_api::status::ApiError;
use serde_json::Value;

use crate::call::Call;
use crate::object::Raw;
use crate::server::{Inner, stored};
use crate::strategy::Part;

/// What a request is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Update(Part),
    Delete,
}

/// Namespaces that are always there.
const IMMORTAL: &[&str] = &["default", "kube-public", "kube-system"];

impl Inner {
    /// Admit a write, completing the object on the way.
    ///
    /// # Errors
    /// 403 and 404 in the words of the rule that refuses.
    pub(crate) async fn admit(
        self: &Arc<Self>,
        call: &Call,
        operation: Operation,
        value: &mut Value,
        old: Option<&Value>,
    ) -> Result<(), ApiError> {
        let _ = (value, old);
        self.namespace_lifecycle(call, operation).await?;
        Ok(())
    }

    /// NamespaceLifecycle: nothing new in a namespace that is not there or is going; some never go.
    async fn namespace_lifecycle(&self, call: &Call, operation: Operation) -> Result<(), ApiError> {
        if call.resource.plural == "namespaces" {
            if operation == Operation::Delete && IMMORTAL.contains(&call.info.name.as_str()) {
                return Err(call.forbidden("this namespace may not be deleted"));
            }
            return Ok(());
        }
        let namespace = call.namespace();
        if operation != Operation::Create || namespace.is_empty() {
            return Ok(());
        }
        let kv = self.store.get(&format!("/registry/namespaces/{namespace}")).await.map_err(stored)?;
        let Some(kv) = kv else { return Err(ApiError::not_found("", "namespaces", namespace)) };
        let value = Raw::of(&kv).value();
        if value["metadata"]["deletionTimestamp"].is_null() && value["status"]["phase"] != "Terminating" {
            return Ok(());
        }
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        Err(call.forbidden(&why).with_cause(
            "NamespaceTerminating",
            &format!("namespace {namespace} is being terminated"),
            "metadata.namespace",
        ))
    }
}
