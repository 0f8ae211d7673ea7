//! What `kubectl get` shows: the columns of every kind, and an object's cells in them.

mod cluster;
mod columns;
mod network;
mod pod;
mod workload;

use jiff::Timestamp;
use serde_json::{Value, json};

pub use columns::{Column, columns};

use crate::resource::Resource;

/// What a row of a table says of its object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// Its metadata.
    #[default]
    Metadata,
    /// All of it.
    Object,
}

impl IncludeObject {
    /// The policy that `?includeObject=` names.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "" | "Metadata" => Self::Metadata,
            "None" => Self::None,
            "Object" => Self::Object,
            _ => return None,
        })
    }
}

/// The `columnDefinitions` of a kind's table.
#[must_use]
pub fn column_definitions(resource: &Resource) -> Value {
    let definitions = columns(resource).iter().map(|column| {
        json!({
            "name": column.name,
            "type": column.ty,
            "format": if column.name == "Name" { "name" } else { "" },
            "description": column.description,
            "priority": i32::from(column.wide),
        })
    });
    definitions.collect()
}

/// One row of a table.
#[must_use]
pub fn row(resource: &Resource, object: &Value, now: Timestamp, include: IncludeObject) -> Value {
    let mut row = json!({"cells": cells(resource, object, now)});
    if let ("", "Pod") = (resource.group, resource.kind)
        && let Some(condition) = pod::row_condition(object)
    {
        row["conditions"] = json!([condition]);
    }
    match include {
        IncludeObject::None => {}
        IncludeObject::Object => row["object"] = object.clone(),
        IncludeObject::Metadata => {
            row["object"] = json!({
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": object["metadata"],
            });
        }
    }
    row
}

/// A whole table. `metadata` is the list's, or holds the object's `resourceVersion`.
#[must_use]
pub fn table<'v>(
    resource: &Resource,
    objects: impl IntoIterator<Item = &'v Value>,
    metadata: Value,
    now: Timestamp,
    include: IncludeObject,
) -> Value {
    let rows: Vec<Value> = objects.into_iter().map(|object| row(resource, object, now, include)).collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": column_definitions(resource),
        "rows": rows,
    })
}

/// An object's cells, one for each of [`columns`].
#[must_use]
pub fn cells(resource: &Resource, object: &Value, now: Timestamp) -> Vec<Value> {
    let view = View { object, now };
    let cells = match (resource.group, resource.kind) {
        ("", "Pod") => pod::cells(&view),
        ("", "Node") => cluster::node(&view),
        ("", "Event") | ("events.k8s.io", "Event") => cluster::event(&view),
        ("", "Service") => network::service(&view),
        ("", "Endpoints") => network::endpoints(&view),
        ("", "ReplicationController") => workload::replication_controller(&view),
        ("", "PersistentVolume") => cluster::persistent_volume(&view),
        ("", "PersistentVolumeClaim") => cluster::persistent_volume_claim(&view),
        ("", "ResourceQuota") => cluster::resource_quota(&view),
        ("", "PodTemplate") => workload::pod_template(&view),
        ("", kind) => cluster::core(kind, &view),
        ("apps", kind) => workload::apps(kind, &view),
        ("batch", "Job") => workload::job(&view),
        ("batch", _) => workload::cron_job(&view),
        ("autoscaling", _) => workload::autoscaler(&view, resource.version),
        ("policy", _) => workload::disruption_budget(&view),
        ("discovery.k8s.io", _) => network::endpoint_slice(&view),
        ("networking.k8s.io", kind) => network::networking(kind, &view),
        ("certificates.k8s.io", _) => cluster::signing_request(&view),
        ("rbac.authorization.k8s.io", kind) => cluster::rbac(kind, &view),
        ("storage.k8s.io", kind) => cluster::storage(kind, &view),
        (_, kind) => cluster::other(kind, &view),
    };
    debug_assert_eq!(cells.len(), columns(resource).len(), "{}", resource.kind);
    cells
}

const NONE: &str = "<none>";
const UNSET: &str = "<unset>";
const UNKNOWN: &str = "<unknown>";

/// An object on its way into cells.
struct View<'v> {
    object: &'v Value,
    now: Timestamp,
}

impl<'v> View<'v> {
    fn at(&self, pointer: &str) -> &'v Value {
        self.object.pointer(pointer).unwrap_or(&Value::Null)
    }

    fn text(&self, pointer: &str) -> &'v str {
        self.at(pointer).as_str().unwrap_or_default()
    }

    fn number(&self, pointer: &str) -> i64 {
        self.at(pointer).as_i64().unwrap_or_default()
    }

    fn list(&self, pointer: &str) -> &'v [Value] {
        self.at(pointer).as_array().map(Vec::as_slice).unwrap_or_default()
    }

    /// How many entries a map or list has.
    fn count(&self, pointer: &str) -> usize {
        match self.at(pointer) {
            Value::Object(map) => map.len(),
            Value::Array(list) => list.len(),
            _ => 0,
        }
    }

    fn name(&self) -> Value {
        self.text("/metadata/name").into()
    }

    fn age(&self) -> Value {
        self.since("/metadata/creationTimestamp").into()
    }

    fn since(&self, pointer: &str) -> String {
        since(self.text(pointer), self.now)
    }

    fn or_none(&self, pointer: &str) -> Value {
        or(self.text(pointer), NONE).into()
    }
}

fn or<'t>(text: &'t str, otherwise: &'t str) -> &'t str {
    if text.is_empty() { otherwise } else { text }
}

fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_default()
}

/// `a=b,c=d`, or `<none>`.
fn labels(map: &Value) -> String {
    let pairs: Vec<String> = map
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    if pairs.is_empty() { NONE.to_owned() } else { pairs.join(",") }
}

/// A `LabelSelector` in one line, or `<none>`; of absent selectors `<unset>`.
fn selector(value: &Value) -> String {
    if value.is_null() {
        return UNSET.to_owned();
    }
    let spec = serde_json::from_value(value.clone()).unwrap_or_default();
    let text = crate::selector::Selector::from_spec(Some(&spec)).map(|all| all.to_string()).unwrap_or_default();
    or(&text, NONE).to_owned()
}

/// How long ago a moment was, in one or two units; `<unknown>` when there is none.
#[must_use]
pub fn since(time: &str, now: Timestamp) -> String {
    match time.parse::<Timestamp>() {
        Ok(time) => duration(now.as_second() - time.as_second()),
        Err(_) => UNKNOWN.to_owned(),
    }
}

/// Seconds in one or two units: `90s`, `5m30s`, `3h`, `2d4h`, `1y20d`.
#[must_use]
pub fn duration(seconds: i64) -> String {
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    let seconds = seconds.max(0);
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    let two = |large: i64, unit: &str, small: i64, part: &str| {
        if small == 0 { format!("{large}{unit}") } else { format!("{large}{unit}{small}{part}") }
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 24 * 8 => two(days, "d", hours % 24, "h"),
        () if hours < 24 * 365 * 2 => format!("{days}d"),
        () if hours < 24 * 365 * 8 => two(years, "y", days % 365, "d"),
        () => format!("{years}y"),
    }
}

#[cfg(test)]
mod tests;
