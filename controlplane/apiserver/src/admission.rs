//! What a write must pass between decoding and the store: rules that look at more than the object itself.

use std::sync::Arc;

use bosun_admission::{Attributes, World};
use bosun_api::resource::{Resource, group};
use bosun_api::selector::{FieldSelector, Selector};
use bosun_api::status::ApiError;
use futures::FutureExt;
use serde_json::Value;

use crate::call::Call;
use crate::object::{Filter, Raw};
use crate::server::Inner;
use crate::strategy::Part;

/// What a request is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Update(Part),
    Delete,
}

impl Inner {
    /// Admit a write, completing the object on the way.
    ///
    /// # Errors
    /// 403 and 404 in the words of the rule that refuses.
    pub(crate) fn admit(
        &self,
        call: &Call,
        operation: Operation,
        value: &mut Value,
        old: Option<&Value>,
    ) -> Result<(), ApiError> {
        let get = |group: &str, plural: &str, namespace: &str, name: &str| self.look_up(group, plural, namespace, name);
        let list = |group: &str, plural: &str| self.look_at_all(group, plural);
        let attributes = Attributes {
            verb: match operation {
                Operation::Create => "create",
                Operation::Update(_) => "update",
                Operation::Delete => "delete",
            },
            group: call.resource.group,
            resource: call.resource.plural,
            subresource: match operation {
                Operation::Update(Part::Status) => "status",
                _ => &call.info.subresource,
            },
            namespace: call.namespace(),
            name: &call.info.name,
        };
        bosun_admission::admit(&attributes, value, old, World { get: &get, list: &list })?;
        crate::restriction::admit(call, operation, value, old, &get)?;
        self.check_grants(call, operation, value, old)
    }

    /// An object by its place: as the cache has it, and if it has not heard of it yet, as the store has it.
    fn look_up(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let resource = preferred(group, plural)?;
        if let Some(object) = self.caches.get(resource, namespace, name) {
            return Some(Arc::new(object.raw.value()));
        }
        // An embedded store answers at once; another one is not waited for: its watch is what the cache lives on.
        let kv = self.store.get(&resource.key(namespace, name)).now_or_never()?.ok()??;
        Some(Arc::new(Raw::of(&kv).value()))
    }

    fn look_at_all(&self, group: &str, plural: &str) -> Vec<Arc<Value>> {
        let Some(resource) = preferred(group, plural) else { return Vec::new() };
        let all = Filter {
            resource,
            namespace: String::new(),
            labels: Selector::everything(),
            fields: FieldSelector::default(),
        };
        self.caches.list(&all, None, 0).objects.iter().map(|object| Arc::new(object.raw.value())).collect()
    }
}

fn preferred(name: &str, plural: &str) -> Option<&'static Resource> {
    bosun_api::resource::find(name, group(name)?.preferred(), plural)
}
