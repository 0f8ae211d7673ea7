//! Objects as rows for people (`meta.k8s.io/v1` Table).

use bosun_api::resource::Resource;
use serde_json::{Value, json};

use crate::call::metadata_only;

/// A table of objects. `include` is `None`, `Metadata` or `Object`: what of each object its row carries.
pub(crate) fn render(_resource: &Resource, objects: &[Value], include: &str, metadata: Value) -> Value {
    let columns = json!([
        {"name": "Name", "type": "string", "format": "name", "description": "Name must be unique within a namespace.", "priority": 0},
        {"name": "Created At", "type": "date", "format": "", "description": "When the object was created.", "priority": 0},
    ]);
    let row = |object: &Value| {
        let meta = &object["metadata"];
        let mut row = json!({"cells": [meta["name"], meta["creationTimestamp"]]});
        match include {
            "None" => {}
            "Object" => row["object"] = object.clone(),
            _ => row["object"] = metadata_only(object),
        }
        row
    };
    let rows: Vec<Value> = objects.iter().map(row).collect();
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": columns, "rows": rows})
}
