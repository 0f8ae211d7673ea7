//! Priority: a pod's class becomes its number.

use bosun_api::status::ApiError;
use serde_json::{Value, json};

use crate::{Attributes, World};

const GROUP: &str = "scheduling.k8s.io";

pub(crate) fn admit(
    attributes: &Attributes<'_>,
    object: &mut Value,
    old: Option<&Value>,
    world: World<'_>,
) -> Result<(), ApiError> {
    if attributes.verb == "update" && attributes.is("", "pods", "") {
        keep(object, old);
        return Ok(());
    }
    if !attributes.creates("", "pods") {
        return Ok(());
    }
    let spec = &object["spec"];
    let asked = spec["priorityClassName"].as_str().unwrap_or_default().to_owned();
    let (name, value, policy) = match asked.as_str() {
        "" => default_class(world),
        name => {
            let class = (world.get)(GROUP, "priorityclasses", "", name)
                .ok_or_else(|| attributes.forbidden(object, &format!("no PriorityClass with name {name} was found")))?;
            (name.to_owned(), class["value"].as_i64().unwrap_or(0), policy_of(&class))
        }
    };
    if spec["priority"].as_i64().is_some_and(|given| given != value) {
        let why = format!(
            "the integer value of priority ({}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name",
            spec["priority"]
        );
        return Err(attributes.forbidden(object, &why));
    }
    let spec = &mut object["spec"];
    if !name.is_empty() {
        spec["priorityClassName"] = json!(name);
    }
    spec["priority"] = json!(value);
    if spec["preemptionPolicy"].is_null() {
        spec["preemptionPolicy"] = json!(policy);
    }
    Ok(())
}

/// An update that leaves the computed values out means to keep them.
fn keep(object: &mut Value, old: Option<&Value>) {
    let Some(old) = old else { return };
    for field in ["priority", "preemptionPolicy"] {
        if object["spec"][field].is_null() && !old["spec"][field].is_null() {
            object["spec"][field] = old["spec"][field].clone();
        }
    }
}

fn default_class(world: World<'_>) -> (String, i64, String) {
    let classes = (world.list)(GROUP, "priorityclasses");
    // Of several defaults the lowest counts, as stock has it.
    let default = classes.iter().filter(|c| c["globalDefault"] == true).min_by_key(|c| c["value"].as_i64());
    match default {
        Some(class) => {
            let name = class["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            (name, class["value"].as_i64().unwrap_or(0), policy_of(class))
        }
        None => (String::new(), 0, "PreemptLowerPriority".to_owned()),
    }
}

fn policy_of(class: &Value) -> String {
    class["preemptionPolicy"].as_str().unwrap_or("PreemptLowerPriority").to_owned()
}
