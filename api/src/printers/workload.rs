//! What makes pods.

use serde_json::Value;

use super::{NONE, UNSET, View, duration, labels, selector, since, text};

/// Names and images of a template's containers.
fn containers(view: &View<'_>, pointer: &str) -> (Value, Value) {
    let list = view.list(&format!("{pointer}/spec/containers"));
    let join = |field: &str| list.iter().map(|container| text(container, field)).collect::<Vec<_>>().join(",");
    (join("name").into(), join("image").into())
}

pub(super) fn apps(kind: &str, view: &View<'_>) -> Vec<Value> {
    let (names, images) = containers(view, "/spec/template");
    let ready = || format!("{}/{}", view.number("/status/readyReplicas"), view.number("/spec/replicas"));
    match kind {
        "Deployment" => vec![
            view.name(),
            ready().into(),
            view.number("/status/updatedReplicas").into(),
            view.number("/status/availableReplicas").into(),
            view.age(),
            names,
            images,
            selector(view.at("/spec/selector")).into(),
        ],
        "ReplicaSet" => vec![
            view.name(),
            view.number("/spec/replicas").into(),
            view.number("/status/replicas").into(),
            view.number("/status/readyReplicas").into(),
            view.age(),
            names,
            images,
            selector(view.at("/spec/selector")).into(),
        ],
        "StatefulSet" => vec![view.name(), ready().into(), view.age(), names, images],
        "DaemonSet" => vec![
            view.name(),
            view.number("/status/desiredNumberScheduled").into(),
            view.number("/status/currentNumberScheduled").into(),
            view.number("/status/numberReady").into(),
            view.number("/status/updatedNumberScheduled").into(),
            view.number("/status/numberAvailable").into(),
            labels(view.at("/spec/template/spec/nodeSelector")).into(),
            view.age(),
            names,
            images,
            selector(view.at("/spec/selector")).into(),
        ],
        _ => vec![view.name(), controller(view), view.number("/revision").into(), view.age()],
    }
}

fn controller(view: &View<'_>) -> Value {
    let owner = view.list("/metadata/ownerReferences").iter().find(|owner| owner["controller"] == true);
    let Some(owner) = owner else { return NONE.into() };
    let (group, _) = crate::resource::split_api_version(text(owner, "apiVersion"));
    let kind = text(owner, "kind").to_lowercase();
    format!("{}/{}", crate::status::qualified(&kind, group), text(owner, "name")).into()
}

pub(super) fn replication_controller(view: &View<'_>) -> Vec<Value> {
    let (names, images) = containers(view, "/spec/template");
    vec![
        view.name(),
        view.number("/spec/replicas").into(),
        view.number("/status/replicas").into(),
        view.number("/status/readyReplicas").into(),
        view.age(),
        names,
        images,
        labels(view.at("/spec/selector")).into(),
    ]
}

pub(super) fn pod_template(view: &View<'_>) -> Vec<Value> {
    let (names, images) = containers(view, "/template");
    vec![view.name(), names, images, labels(view.at("/template/metadata/labels")).into()]
}

pub(super) fn job(view: &View<'_>) -> Vec<Value> {
    let succeeded = view.number("/status/succeeded");
    let completions = match (view.at("/spec/completions").as_i64(), view.number("/spec/parallelism")) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    };
    let took = match (view.text("/status/startTime"), view.text("/status/completionTime")) {
        ("", _) => String::new(),
        (start, "") => since(start, view.now),
        (start, end) => match (start.parse::<jiff::Timestamp>(), end.parse::<jiff::Timestamp>()) {
            (Ok(start), Ok(end)) => duration(end.as_second() - start.as_second()),
            _ => String::new(),
        },
    };
    let (names, images) = containers(view, "/spec/template");
    vec![
        view.name(),
        job_status(view).into(),
        completions.into(),
        took.into(),
        view.age(),
        names,
        images,
        selector(view.at("/spec/selector")).into(),
    ]
}

fn job_status(view: &View<'_>) -> &'static str {
    let holds = |kind: &str| {
        view.list("/status/conditions")
            .iter()
            .any(|condition| condition["type"] == kind && condition["status"] == "True")
    };
    match () {
        () if holds("Complete") => "Complete",
        () if holds("Failed") => "Failed",
        () if !view.at("/metadata/deletionTimestamp").is_null() => "Terminating",
        () if holds("Suspended") => "Suspended",
        () if holds("FailureTarget") => "FailureTarget",
        () if holds("SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    }
}

pub(super) fn cron_job(view: &View<'_>) -> Vec<Value> {
    let last = match view.text("/status/lastScheduleTime") {
        "" => NONE.to_owned(),
        time => since(time, view.now),
    };
    let suspend = match view.at("/spec/suspend").as_bool() {
        Some(true) => "True",
        Some(false) => "False",
        None => UNSET,
    };
    let (names, images) = containers(view, "/spec/jobTemplate/spec/template");
    vec![
        view.name(),
        view.text("/spec/schedule").into(),
        view.or_none("/spec/timeZone"),
        suspend.into(),
        view.count("/status/active").into(),
        last.into(),
        view.age(),
        names,
        images,
        selector(view.at("/spec/jobTemplate/spec/selector")).into(),
    ]
}

pub(super) fn autoscaler(view: &View<'_>, version: &str) -> Vec<Value> {
    let target = view.at("/spec/scaleTargetRef");
    let low = view.at("/spec/minReplicas").as_i64().map_or_else(|| UNSET.to_owned(), |number| number.to_string());
    let targets = if version == "v1" { targets_v1(view) } else { targets_v2(view) };
    vec![
        view.name(),
        format!("{}/{}", text(target, "kind"), text(target, "name")).into(),
        targets.into(),
        low.into(),
        view.number("/spec/maxReplicas").to_string().into(),
        view.number("/status/currentReplicas").to_string().into(),
        view.age(),
    ]
}

fn targets_v1(view: &View<'_>) -> String {
    let percent = |pointer: &str, otherwise: &str| {
        view.at(pointer).as_i64().map_or_else(|| otherwise.to_owned(), |number| format!("{number}%"))
    };
    let now = percent("/status/currentCPUUtilizationPercentage", "<unknown>");
    format!("cpu: {now}/{}", percent("/spec/targetCPUUtilizationPercentage", UNSET))
}

fn targets_v2(view: &View<'_>) -> String {
    let specs = view.list("/spec/metrics");
    if specs.is_empty() {
        return NONE.to_owned();
    }
    let statuses = view.list("/status/currentMetrics");
    let shown: Vec<String> = specs
        .iter()
        .enumerate()
        .map(|(index, spec)| metric(spec, statuses.get(index).unwrap_or(&Value::Null)))
        .collect();
    match shown.len() {
        count if count > 2 => format!("{} + {} more...", shown[..2].join(", "), count - 2),
        _ => shown.join(", "),
    }
}

fn metric(spec: &Value, status: &Value) -> String {
    let (field, shown_name) = match text(spec, "type") {
        "Resource" => ("resource", true),
        "ContainerResource" => ("containerResource", true),
        "Pods" => ("pods", false),
        "Object" => ("object", false),
        "External" => ("external", false),
        _ => return "<unknown type>".to_owned(),
    };
    let (target, current) = (&spec[field]["target"], &status[field]["current"]);
    let quantity = |value: &Value, fields: &[&str]| {
        fields.iter().map(|field| text(value, field)).find(|text| !text.is_empty()).map(str::to_owned)
    };
    let unknown = || "<unknown>".to_owned();
    let pair = if target["averageUtilization"].is_i64() {
        let now = current["averageUtilization"].as_i64().map_or_else(unknown, |number| format!("{number}%"));
        format!("{now}/{}%", target["averageUtilization"].as_i64().unwrap_or_default())
    } else if !text(target, "averageValue").is_empty() {
        let now = quantity(current, &["averageValue", "value"]).unwrap_or_else(unknown);
        let suffix = if matches!(field, "object" | "external") { " (avg)" } else { "" };
        format!("{now}/{}{suffix}", text(target, "averageValue"))
    } else {
        let now = quantity(current, &["value", "averageValue"]).unwrap_or_else(unknown);
        format!("{now}/{}", text(target, "value"))
    };
    if shown_name { format!("{}: {pair}", text(&spec[field], "name")) } else { pair }
}

pub(super) fn disruption_budget(view: &View<'_>) -> Vec<Value> {
    let show = |pointer: &str| match view.at(pointer) {
        Value::String(text) => Value::from(text.as_str()),
        Value::Number(number) => number.to_string().into(),
        _ => "N/A".into(),
    };
    vec![
        view.name(),
        show("/spec/minAvailable"),
        show("/spec/maxUnavailable"),
        view.number("/status/disruptionsAllowed").into(),
        view.age(),
    ]
}
