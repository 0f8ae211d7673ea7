//! Between the version of a request and the version that objects are kept in. Only resources that are served in more
//! than one version come here.

use bosun_api::resource::Resource;
use serde_json::{Map, Value, json};

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
    if is_old_autoscaler(resource) {
        autoscaler_to_v2(&mut value);
    }
    value
}

/// An object as it is kept, as this resource shows it.
pub(crate) fn from_stored(resource: &Resource, mut value: Value) -> Value {
    if resource.group == "events.k8s.io" {
        rename(&mut value, EVENT_FIELDS.iter().map(|(new, old)| (*old, *new)));
        relabel(&mut value, "events.k8s.io/v1");
    }
    if is_old_autoscaler(resource) {
        autoscaler_to_v1(&mut value);
    }
    value
}

fn is_old_autoscaler(resource: &Resource) -> bool {
    (resource.group, resource.version) == ("autoscaling", "v1")
}

/// `autoscaling/v1` knows one metric, the CPU; whatever else an autoscaler has is kept in an annotation.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

fn is_cpu(metric: &Value) -> bool {
    metric["type"] == "Resource"
        && metric["resource"]["name"] == "cpu"
        && metric["resource"]["target"]["type"] == "Utilization"
}

fn autoscaler_to_v2(value: &mut Value) {
    relabel(value, "autoscaling/v2");
    let mut metrics = take_annotation(value, METRICS).and_then(|m| m.as_array().cloned()).unwrap_or_default();
    let behavior = take_annotation(value, BEHAVIOR);
    if let Some(spec) = value["spec"].as_object_mut() {
        if let Some(percent) = spec.remove("targetCPUUtilizationPercentage").filter(|p| !p.is_null()) {
            metrics.insert(
                0,
                json!({"type": "Resource", "resource": {"name": "cpu",
                    "target": {"type": "Utilization", "averageUtilization": percent}}}),
            );
        }
        if !metrics.is_empty() {
            spec.insert("metrics".into(), metrics.into());
        }
        if let Some(behavior) = behavior {
            spec.insert("behavior".into(), behavior);
        }
    }
    if let Some(status) = value["status"].as_object_mut()
        && let Some(percent) = status.remove("currentCPUUtilizationPercentage").filter(|p| !p.is_null())
    {
        let current =
            json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent}}});
        status.insert("currentMetrics".into(), json!([current]));
    }
}

fn autoscaler_to_v1(value: &mut Value) {
    relabel(value, "autoscaling/v1");
    if let Some(spec) = value["spec"].as_object_mut() {
        let mut metrics = spec.remove("metrics").and_then(|m| m.as_array().cloned()).unwrap_or_default();
        let behavior = spec.remove("behavior").filter(|b| !b.is_null());
        if let Some(at) = metrics.iter().position(is_cpu) {
            let cpu = metrics.remove(at);
            let percent = cpu["resource"]["target"]["averageUtilization"].clone();
            spec.insert("targetCPUUtilizationPercentage".into(), percent);
        }
        if !metrics.is_empty() {
            value["metadata"]["annotations"][METRICS] = Value::Array(metrics).to_string().into();
        }
        if let Some(behavior) = behavior {
            value["metadata"]["annotations"][BEHAVIOR] = behavior.to_string().into();
        }
    }
    if let Some(status) = value["status"].as_object_mut() {
        let current = status.remove("currentMetrics").unwrap_or_default();
        let cpu = current.as_array().into_iter().flatten().find(|m| m["resource"]["name"] == "cpu");
        if let Some(percent) = cpu.map(|m| &m["resource"]["current"]["averageUtilization"]).filter(|p| !p.is_null()) {
            status.insert("currentCPUUtilizationPercentage".into(), percent.clone());
        }
        status.remove("conditions");
    }
}

fn take_annotation(value: &mut Value, name: &str) -> Option<Value> {
    let text = value["metadata"].get_mut("annotations")?.as_object_mut()?.remove(name)?;
    serde_json::from_str(text.as_str()?).ok()
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
    use super::*;

    #[test]
    fn autoscalers_go_there_and_back() {
        let old = bosun_api::resource::find("autoscaling", "v1", "horizontalpodautoscalers").unwrap();
        let scaler = json!({"kind": "HorizontalPodAutoscaler", "apiVersion": "autoscaling/v1", "metadata": {"name": "a"},
            "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}, "status": {"currentReplicas": 1}});
        let stored = to_stored(old, scaler.clone());
        assert_eq!(stored["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 50);
        assert_eq!(from_stored(old, stored), scaler);
    }

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
