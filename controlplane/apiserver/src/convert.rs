//! Between the version of a request and the version that objects are kept in. Only resources that are served in more
//! than one version come here.

use bosun_api::resource::Resource;
use serde_json::{Map, Value};

/// `events.k8s.io/v1` names of the fields of a `v1` Event.
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("deprecatedCount", "count"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedSource", "source"),
    ("note", "message"),
    ("regarding", "involvedObject"),
    ("reportingController", "reportingComponent"),
];

/// An object as it came in a request of this resource, as it is kept.
pub(crate) fn to_stored(resource: &Resource, mut value: Value) -> Value {
    if resource.group == "events.k8s.io" {
        rename(&mut value, EVENT_FIELDS.iter().copied());
        relabel(&mut value, "v1");
    }
    value
}

/// An object as it is kept, as this resource shows it.
pub(crate) fn from_stored(resource: &Resource, mut value: Value) -> Value {
    if resource.group == "events.k8s.io" {
        rename(&mut value, EVENT_FIELDS.iter().map(|(new, old)| (*old, *new)));
        relabel(&mut value, "events.k8s.io/v1");
    }
    value
}

fn rename(value: &mut Value, names: impl Iterator<Item = (&'static str, &'static str)>) {
    let Some(object) = value.as_object_mut() else { return };
    let mut renamed = Map::new();
    for (from, to) in names {
        if let Some(field) = object.remove(from) {
            renamed.insert(to.to_owned(), field);
        }
    }
    object.extend(renamed);
}

fn relabel(value: &mut Value, api_version: &str) {
    if let Some(object) = value.as_object_mut() {
        object.insert("apiVersion".into(), api_version.into());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_go_there_and_back() {
        let events = bosun_api::resource::find("events.k8s.io", "v1", "events").unwrap();
        let event = json!({"kind": "Event", "apiVersion": "events.k8s.io/v1", "note": "n", "reason": "r",
            "regarding": {"kind": "Pod"}, "deprecatedCount": 2});
        let stored = to_stored(events, event.clone());
        assert_eq!(
            stored,
            json!({"kind": "Event", "apiVersion": "v1", "message": "n", "reason": "r",
                "involvedObject": {"kind": "Pod"}, "count": 2})
        );
        assert_eq!(from_stored(events, stored), event);
    }
}
