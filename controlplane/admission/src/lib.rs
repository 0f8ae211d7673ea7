//! Admission: what the cluster adds to an object, or refuses, before it is validated and stored.
//!
//! Every plug-in is a plain function over the object and what it may look up; [`admit`] runs them in stock's order. Node
//! restriction stands with the node authorizer, whose knowledge it shares.

use std::sync::Arc;

use bosun_api::status::ApiError;
use serde_json::Value;

mod namespace;
mod node_taints;
mod pod_defaults;
mod priority;
mod service_account;
mod storage;

/// What a request does, as plug-ins see it.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    /// `create`, `update`, `delete` or `connect`.
    pub verb: &'a str,
    /// The group, empty for the core group.
    pub group: &'a str,
    /// The resource, in the plural.
    pub resource: &'a str,
    /// The subresource, or empty.
    pub subresource: &'a str,
    /// The namespace, or empty.
    pub namespace: &'a str,
    /// The name; may be empty at creation with `generateName`.
    pub name: &'a str,
}

impl Attributes<'_> {
    fn is(&self, group: &str, resource: &str, subresource: &str) -> bool {
        self.group == group && self.resource == resource && self.subresource == subresource
    }

    fn creates(&self, group: &str, resource: &str) -> bool {
        self.verb == "create" && self.is(group, resource, "")
    }

    /// 403 in the words of stock's admission chain.
    fn forbidden(&self, object: &Value, why: &str) -> ApiError {
        let name = match self.name {
            "" => object["metadata"]["name"].as_str().unwrap_or_default(),
            name => name,
        };
        ApiError::forbidden(self.group, self.resource, name, why)
    }
}

/// Finds an object by group, resource (plural), namespace (empty for cluster-scoped) and name.
pub type Lookup<'a> = &'a (dyn Fn(&str, &str, &str, &str) -> Option<Arc<Value>> + Send + Sync);

/// Lists all objects of a resource of a group.
pub type ListAll<'a> = &'a (dyn Fn(&str, &str) -> Vec<Arc<Value>> + Send + Sync);

/// What plug-ins may ask.
#[derive(Clone, Copy)]
pub struct World<'a> {
    /// One object.
    pub get: Lookup<'a>,
    /// All objects of a resource.
    pub list: ListAll<'a>,
}

/// Completes `object` and decides whether the request may go on. `old` is the object as stored, for an update.
///
/// # Errors
/// The refusal, as the client is to see it.
pub fn admit(
    attributes: &Attributes<'_>,
    object: &mut Value,
    old: Option<&Value>,
    world: World<'_>,
) -> Result<(), ApiError> {
    namespace::admit(attributes, object, world)?;
    node_taints::admit(attributes, object);
    service_account::admit(attributes, object, world)?;
    pod_defaults::tolerations(attributes, object);
    priority::admit(attributes, object, old, world)?;
    storage::default_class(attributes, object, world);
    Ok(())
}

/// The pod's `spec`, when this is a pod being created.
fn new_pod_spec<'a>(attributes: &Attributes<'_>, object: &'a mut Value) -> Option<&'a mut Value> {
    attributes.creates("", "pods").then(|| &mut object["spec"])
}

#[cfg(test)]
mod tests;
