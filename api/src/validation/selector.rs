//! Label selectors in specs.

use serde_json::Value;

use super::fault::{Faults, Path, given, items, text};
use super::meta::labels;
use crate::names;
use crate::selector::Labels;

/// A `metav1.LabelSelector`.
pub(super) fn label_selector(selector: &Value, path: &Path<'_>, faults: &mut Faults) {
    labels(&selector["matchLabels"], &path.child("matchLabels"), faults);
    let list = path.child("matchExpressions");
    for (index, expression) in items(&selector["matchExpressions"]).iter().enumerate() {
        let path = list.index(index);
        let values = items(&expression["values"]);
        match text(&expression["operator"]) {
            "In" | "NotIn" if values.is_empty() => {
                faults.required(&path.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                faults.forbidden(&path.child("values"), detail);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => faults.invalid(&path.child("operator"), other, "not a valid selector operator"),
        }
        let key = text(&expression["key"]);
        faults.complaints(&path.child("key"), key, names::qualified_name(key));
        for (index, value) in values.iter().enumerate() {
            let value = text(value);
            faults.complaints(&path.child("values").index(index), value, names::label_value(value));
        }
    }
}

/// Whether a selector would match everything.
pub(super) fn is_empty(selector: &Value) -> bool {
    let none = |field: &str| match &selector[field] {
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => true,
    };
    none("matchLabels") && none("matchExpressions")
}

/// A workload's selector: there, not empty, and matching its own template.
pub(super) fn workload_selector(spec: &Value, kind: &str, path: &Path<'_>, faults: &mut Faults) {
    let (selector, at) = (&spec["selector"], path.child("selector"));
    if !given(selector) {
        faults.required(&at, "");
        return;
    }
    label_selector(selector, &at, faults);
    if is_empty(selector) {
        faults.invalid(&at, selector.clone(), &format!("empty selector is invalid for {kind}"));
        return;
    }
    let labels = &spec["template"]["metadata"]["labels"];
    if !matches(selector, labels) {
        let template = path.child("template");
        let value = if given(labels) { labels.clone() } else { serde_json::json!({}) };
        let detail = "`selector` does not match template `labels`";
        faults.invalid(&template.child("metadata").child("labels"), value, detail);
    }
}

fn matches(selector: &Value, labels: &Value) -> bool {
    let Ok(selector) = serde_json::from_value(selector.clone()) else { return false };
    let labels: Labels = serde_json::from_value(labels.clone()).unwrap_or_default();
    crate::selector::matches(&selector, &labels)
}
