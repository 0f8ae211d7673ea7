//! What makes pods, and what watches over them.

use serde_json::Value;

use super::fault::{Faults, Path, entries, given, text};
use super::pod;
use super::selector::{label_selector, workload_selector};

/// A template whose pods always restart.
fn lasting_template(spec: &Value, path: &Path<'_>, faults: &mut Faults) {
    let template = path.child("template");
    pod::template(&spec["template"], &template, faults);
    let policy = text(&spec["template"]["spec"]["restartPolicy"]);
    let at = template.child("spec");
    if !policy.is_empty() && policy != "Always" {
        faults.not_supported(&at.child("restartPolicy"), policy, &["Always"]);
    }
    if given(&spec["template"]["spec"]["activeDeadlineSeconds"]) {
        faults.forbidden(&at.child("activeDeadlineSeconds"), "activeDeadlineSeconds in ReplicaSet is not Supported");
    }
}

pub(super) fn deployment(object: &Value, faults: &mut Faults) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    faults.not_negative(&spec["replicas"], &path.child("replicas"));
    workload_selector(spec, "deployment", &path, faults);
    lasting_template(spec, &path, faults);
    strategy(&spec["strategy"], &path.child("strategy"), faults);
    faults.not_negative(&spec["minReadySeconds"], &path.child("minReadySeconds"));
    faults.not_negative(&spec["revisionHistoryLimit"], &path.child("revisionHistoryLimit"));
    if let Some(deadline) = spec["progressDeadlineSeconds"].as_i64() {
        let at = path.child("progressDeadlineSeconds");
        faults.not_negative(&spec["progressDeadlineSeconds"], &at);
        if deadline <= spec["minReadySeconds"].as_i64().unwrap_or_default() {
            faults.invalid(&at, deadline, "must be greater than minReadySeconds");
        }
    }
}

fn strategy(strategy: &Value, path: &Path<'_>, faults: &mut Faults) {
    let rolling = path.child("rollingUpdate");
    match text(&strategy["type"]) {
        "Recreate" => {
            if given(&strategy["rollingUpdate"]) {
                faults.forbidden(&rolling, "may not be specified when strategy `type` is 'Recreate'");
            }
        }
        "RollingUpdate" => {
            let update = &strategy["rollingUpdate"];
            let unavailable = amount(&update["maxUnavailable"], &rolling.child("maxUnavailable"), faults);
            let surge = amount(&update["maxSurge"], &rolling.child("maxSurge"), faults);
            if unavailable == Some(0) && surge == Some(0) {
                let value = update["maxUnavailable"].clone();
                faults.invalid(&rolling.child("maxUnavailable"), value, "may not be 0 when `maxSurge` is 0");
            }
            if unavailable.is_some_and(|amount| amount > 100) && update["maxUnavailable"].is_string() {
                let value = update["maxUnavailable"].clone();
                faults.invalid(&rolling.child("maxUnavailable"), value, "must not be greater than 100%");
            }
        }
        other => faults.not_supported(&path.child("type"), other, &["Recreate", "RollingUpdate"]),
    }
}

/// A number, or the number of a percentage.
fn amount(value: &Value, path: &Path<'_>, faults: &mut Faults) -> Option<i64> {
    match value {
        Value::Number(number) => {
            faults.not_negative(value, path);
            number.as_i64()
        }
        Value::String(percent) => {
            let complaints = crate::names::percent(percent);
            let valid = complaints.is_empty();
            faults.complaints(path, percent, complaints);
            if valid { percent.trim_end_matches('%').parse().ok() } else { None }
        }
        _ => Some(0),
    }
}

pub(super) fn replica_set(object: &Value, faults: &mut Faults) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    faults.not_negative(&spec["replicas"], &path.child("replicas"));
    faults.not_negative(&spec["minReadySeconds"], &path.child("minReadySeconds"));
    workload_selector(spec, "replicaset", &path, faults);
    if given(&spec["template"]) {
        lasting_template(spec, &path, faults);
    } else {
        faults.required(&path.child("template"), "");
    }
}

pub(super) fn replication_controller(object: &Value, faults: &mut Faults) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    faults.not_negative(&spec["replicas"], &path.child("replicas"));
    if spec["selector"].as_object().is_none_or(serde_json::Map::is_empty) {
        faults.required(&path.child("selector"), "");
    }
    if !given(&spec["template"]) {
        faults.required(&path.child("template"), "");
        return;
    }
    let labels = &spec["template"]["metadata"]["labels"];
    if entries(&spec["selector"]).any(|(key, value)| labels.get(key) != Some(value)) {
        let at = path.child("template");
        let at = at.child("metadata");
        let labels = if given(labels) { labels.clone() } else { serde_json::json!({}) };
        faults.invalid(&at.child("labels"), labels, "`selector` does not match template `labels`");
    }
    lasting_template(spec, &path, faults);
}

pub(super) fn stateful_set(object: &Value, faults: &mut Faults) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    faults.one_of(&spec["podManagementPolicy"], &path.child("podManagementPolicy"), &["OrderedReady", "Parallel"]);
    let update = path.child("updateStrategy");
    faults.one_of(&spec["updateStrategy"]["type"], &update.child("type"), &["OnDelete", "RollingUpdate"]);
    faults.not_negative(&spec["replicas"], &path.child("replicas"));
    workload_selector(spec, "statefulset", &path, faults);
    lasting_template(spec, &path, faults);
}

pub(super) fn daemon_set(object: &Value, faults: &mut Faults) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    workload_selector(spec, "daemonset", &path, faults);
    lasting_template(spec, &path, faults);
    let update = path.child("updateStrategy");
    faults.one_of(&spec["updateStrategy"]["type"], &update.child("type"), &["RollingUpdate", "OnDelete"]);
    faults.not_negative(&spec["minReadySeconds"], &path.child("minReadySeconds"));
}

pub(super) fn job(object: &Value, faults: &mut Faults) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    job_spec(spec, &path, faults);
    if !given(&spec["selector"]) {
        faults.required(&path.child("selector"), "");
        return;
    }
    workload_selector(spec, "job", &path, faults);
}

fn job_spec(spec: &Value, path: &Path<'_>, faults: &mut Faults) {
    for field in ["parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished"] {
        faults.not_negative(&spec[field], &path.child(field));
    }
    if spec["completionMode"] == "Indexed" && !given(&spec["completions"]) {
        faults.required(&path.child("completions"), "when completion mode is Indexed");
    }
    faults.one_of(&spec["completionMode"], &path.child("completionMode"), &["NonIndexed", "Indexed"]);
    let template = path.child("template");
    pod::template(&spec["template"], &template, faults);
    let at = template.child("spec");
    match text(&spec["template"]["spec"]["restartPolicy"]) {
        "" | "Always" => faults.required(&at.child("restartPolicy"), "valid values: \"OnFailure\", \"Never\""),
        policy @ ("OnFailure" | "Never") => {
            if policy == "OnFailure" && given(&spec["podFailurePolicy"]) {
                let detail = "only \"Never\" is supported when podFailurePolicy is specified";
                faults.invalid(&at.child("restartPolicy"), policy, detail);
            }
        }
        other => faults.not_supported(&at.child("restartPolicy"), other, &["OnFailure", "Never"]),
    }
}

pub(super) fn cron_job(object: &Value, faults: &mut Faults) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    let (schedule, at) = (text(&spec["schedule"]), path.child("schedule"));
    if schedule.is_empty() {
        faults.required(&at, "");
    } else if !schedule.starts_with('@') {
        let fields: Vec<&str> = schedule.split_whitespace().collect();
        if fields.len() != 5 {
            let detail = format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" "));
            faults.invalid(&at, schedule, &detail);
        }
    }
    faults.one_of(&spec["concurrencyPolicy"], &path.child("concurrencyPolicy"), &["Allow", "Forbid", "Replace"]);
    for field in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        faults.not_negative(&spec[field], &path.child(field));
    }
    let template = path.child("jobTemplate");
    job_spec(&spec["jobTemplate"]["spec"], &template.child("spec"), faults);
}

pub(super) fn autoscaler(object: &Value, faults: &mut Faults) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    let (low, high) = (spec["minReplicas"].as_i64().unwrap_or(1), spec["maxReplicas"].as_i64().unwrap_or_default());
    if low < 1 {
        faults.invalid(&path.child("minReplicas"), low, "must be greater than or equal to 1");
    }
    if high < 1 {
        faults.invalid(&path.child("maxReplicas"), high, "must be greater than 0");
    }
    if high < low {
        faults.invalid(&path.child("maxReplicas"), high, "must be greater than or equal to `minReplicas`");
    }
    let target = path.child("scaleTargetRef");
    faults.required_text(&spec["scaleTargetRef"]["kind"], &target.child("kind"));
    faults.required_text(&spec["scaleTargetRef"]["name"], &target.child("name"));
}

pub(super) fn disruption_budget(object: &Value, faults: &mut Faults) {
    let (spec, path) = (&object["spec"], Path::root("spec"));
    if given(&spec["minAvailable"]) && given(&spec["maxUnavailable"]) {
        faults.invalid(&path, spec.clone(), "minAvailable and maxUnavailable cannot be both set");
    }
    for field in ["minAvailable", "maxUnavailable"] {
        if given(&spec[field]) {
            amount(&spec[field], &path.child(field), faults);
        }
    }
    label_selector(&spec["selector"], &path.child("selector"), faults);
}

pub(super) fn update(kind: &str, old: &Value, new: &Value, faults: &mut Faults) {
    let (old, new, path) = (&old["spec"], &new["spec"], Path::root("spec"));
    match kind {
        "Deployment" | "ReplicaSet" | "DaemonSet" => {
            faults.immutable(&old["selector"], &new["selector"], &path.child("selector"));
        }
        "StatefulSet" => stateful_set_update(old, new, &path, faults),
        "Job" => job_update(old, new, &path, faults),
        "ControllerRevision" => faults.immutable(&old["data"], &new["data"], &Path::root("data")),
        _ => {}
    }
}

fn stateful_set_update(old: &Value, new: &Value, path: &Path<'_>, faults: &mut Faults) {
    const FREE: &[&str] = &[
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    let rest = |spec: &Value| -> Vec<(String, Value)> {
        let kept = entries(spec).filter(|(key, _)| !FREE.contains(key));
        kept.map(|(key, value)| (key.to_owned(), value.clone())).collect()
    };
    if rest(old) != rest(new) {
        let detail = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
                      'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
                      'minReadySeconds' are forbidden";
        faults.forbidden(path, detail);
    }
}

fn job_update(old: &Value, new: &Value, path: &Path<'_>, faults: &mut Faults) {
    for field in ["completions", "selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex"] {
        let elastic =
            field == "completions" && new["completionMode"] == "Indexed" && new["completions"] == new["parallelism"];
        if !elastic {
            faults.immutable(&old[field], &new[field], &path.child(field));
        }
    }
    // While a Job is suspended, where its pods go may still be set (KEP-2926).
    let strip = |spec: &Value| {
        let mut template = spec["template"].clone();
        if let Some(pod) = template.get_mut("spec").and_then(Value::as_object_mut) {
            for field in ["nodeSelector", "affinity", "tolerations", "schedulingGates"] {
                pod.remove(field);
            }
        }
        if let Some(metadata) = template.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("annotations");
            metadata.remove("labels");
        }
        template
    };
    let same = if old["suspend"] == true { strip(old) == strip(new) } else { old["template"] == new["template"] };
    if !same {
        faults.invalid(&path.child("template"), new["template"].clone(), "field is immutable");
    }
}
