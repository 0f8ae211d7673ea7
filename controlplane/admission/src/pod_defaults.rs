//! DefaultTolerationSeconds: a pod stays five minutes on a node that is not ready or not reachable.

use serde_json::{Value, json};

use crate::{Attributes, new_pod_spec};

const KEYS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
const SECONDS: i64 = 300;

pub(crate) fn tolerations(attributes: &Attributes<'_>, object: &mut Value) {
    let Some(spec) = new_pod_spec(attributes, object) else { return };
    if !spec["tolerations"].is_array() {
        spec["tolerations"] = json!([]);
    }
    let Some(tolerations) = spec["tolerations"].as_array_mut() else { return };
    for key in KEYS {
        let covers = |t: &Value| {
            let of_key = t["key"] == key || t["key"].as_str().unwrap_or_default().is_empty();
            of_key && (t["effect"] == "NoExecute" || t["effect"].as_str().unwrap_or_default().is_empty())
        };
        if !tolerations.iter().any(covers) {
            let added = json!({"effect": "NoExecute", "key": key, "operator": "Exists", "tolerationSeconds": SECONDS});
            tolerations.push(added);
        }
    }
}
