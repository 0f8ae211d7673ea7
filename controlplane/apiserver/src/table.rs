//! Objects as rows for people (`meta.k8s.io/v1` Table).

use bosun_api::printers::{IncludeObject, table};
use bosun_api::resource::Resource;
use jiff::Timestamp;
use serde_json::Value;

/// A table of objects. `include` is `None`, `Metadata` or `Object`: what of each object its row carries.
pub(crate) fn render(resource: &Resource, objects: &[Value], include: &str, metadata: Value) -> Value {
    let include = match include {
        "None" => IncludeObject::None,
        "Object" => IncludeObject::Object,
        _ => IncludeObject::Metadata,
    };
    table(resource, objects, metadata, Timestamp::now(), include)
}
