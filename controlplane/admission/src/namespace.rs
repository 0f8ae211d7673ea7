//! NamespaceLifecycle: nothing is created in a namespace that is missing or ends, and the system's own stay.

use bosun_api::status::ApiError;
use serde_json::Value;

use crate::{Attributes, World};

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub(crate) fn admit(attributes: &Attributes<'_>, object: &Value, world: World<'_>) -> Result<(), ApiError> {
    if attributes.verb == "delete" && attributes.is("", "namespaces", "") && IMMORTAL.contains(&attributes.name) {
        return Err(attributes.forbidden(object, "this namespace may not be deleted"));
    }
    let reviews = attributes.group == "authorization.k8s.io";
    if attributes.verb != "create" || attributes.namespace.is_empty() || attributes.resource == "namespaces" || reviews
    {
        return Ok(());
    }
    let namespace = (world.get)("", "namespaces", "", attributes.namespace)
        .ok_or_else(|| ApiError::not_found("", "namespaces", attributes.namespace))?;
    if namespace["status"]["phase"] == "Terminating" || !namespace["metadata"]["deletionTimestamp"].is_null() {
        let name = attributes.namespace;
        let why = format!("unable to create new content in namespace {name} because it is being terminated");
        let cause = format!("namespace {name} is being terminated");
        return Err(attributes.forbidden(object, &why).with_cause(
            "NamespaceTerminating",
            &cause,
            "metadata.namespace",
        ));
    }
    Ok(())
}
