//! TaintNodesByCondition: a node that has not said it is ready gets no pods at first.

use serde_json::{Value, json};

use crate::Attributes;

const NOT_READY: &str = "node.kubernetes.io/not-ready";

pub(crate) fn admit(attributes: &Attributes<'_>, object: &mut Value) {
    if !attributes.creates("", "nodes") {
        return;
    }
    let taint = json!({"key": NOT_READY, "effect": "NoSchedule"});
    match object["spec"]["taints"].as_array_mut() {
        Some(taints) if taints.iter().any(|t| t["key"] == NOT_READY && t["effect"] == "NoSchedule") => {}
        Some(taints) => taints.push(taint),
        None => object["spec"]["taints"] = json!([taint]),
    }
}
