//! What makes pods.

use serde_json::{Map, Value, json};

use super::{child, child_if_there, each, pod_template, set, set_text, text};

pub(super) fn deployment(object: &mut Map<String, Value>) {
    child(object, "spec", |spec| {
        set(spec, "replicas", 1);
        set(spec, "revisionHistoryLimit", 10);
        set(spec, "progressDeadlineSeconds", 600);
        child(spec, "strategy", |strategy| {
            set_text(strategy, "type", "RollingUpdate");
            if text(strategy, "type") == "RollingUpdate" {
                child(strategy, "rollingUpdate", |rolling| {
                    set(rolling, "maxUnavailable", "25%");
                    set(rolling, "maxSurge", "25%");
                });
            }
        });
        child(spec, "template", pod_template);
    });
}

pub(super) fn replica_set(object: &mut Map<String, Value>) {
    child(object, "spec", |spec| {
        set(spec, "replicas", 1);
        child_if_there(spec, "template", pod_template);
    });
}

pub(super) fn replication_controller(object: &mut Map<String, Value>) {
    child(object, "spec", |spec| {
        set(spec, "replicas", 1);
        child_if_there(spec, "template", pod_template);
    });
    let labels = object.get("spec").and_then(|spec| spec.pointer("/template/metadata/labels")).cloned();
    let Some(labels) = labels.filter(|labels| labels.as_object().is_some_and(|all| !all.is_empty())) else { return };
    child(object, "spec", |spec| set(spec, "selector", labels.clone()));
    child(object, "metadata", |metadata| set(metadata, "labels", labels));
}

pub(super) fn stateful_set(object: &mut Map<String, Value>) {
    child(object, "spec", |spec| {
        set_text(spec, "podManagementPolicy", "OrderedReady");
        child(spec, "updateStrategy", |strategy| {
            set_text(strategy, "type", "RollingUpdate");
            if text(strategy, "type") == "RollingUpdate" {
                child(strategy, "rollingUpdate", |rolling| set(rolling, "partition", 0));
            }
        });
        set(spec, "replicas", 1);
        set(spec, "revisionHistoryLimit", 10);
        child(spec, "persistentVolumeClaimRetentionPolicy", |policy| {
            set_text(policy, "whenDeleted", "Retain");
            set_text(policy, "whenScaled", "Retain");
        });
        each(spec, "volumeClaimTemplates", |claim| {
            set_text(claim, "apiVersion", "v1");
            set_text(claim, "kind", "PersistentVolumeClaim");
            super::persistent_volume_claim(claim);
        });
        child(spec, "template", pod_template);
    });
}

pub(super) fn daemon_set(object: &mut Map<String, Value>) {
    child(object, "spec", |spec| {
        child(spec, "updateStrategy", |strategy| {
            set_text(strategy, "type", "RollingUpdate");
            if text(strategy, "type") == "RollingUpdate" {
                child(strategy, "rollingUpdate", |rolling| {
                    set(rolling, "maxUnavailable", 1);
                    set(rolling, "maxSurge", 0);
                });
            }
        });
        set(spec, "revisionHistoryLimit", 10);
        child(spec, "template", pod_template);
    });
}

pub(super) fn job(object: &mut Map<String, Value>) {
    child(object, "spec", |spec| {
        if !spec.contains_key("completions") && !spec.contains_key("parallelism") {
            set(spec, "completions", 1);
        }
        set(spec, "parallelism", 1);
        set(spec, "completionMode", "NonIndexed");
        let limit = if spec.contains_key("backoffLimitPerIndex") { i32::MAX } else { 6 };
        set(spec, "backoffLimit", limit);
        set(spec, "suspend", false);
        set(spec, "manualSelector", false);
        let policy = if spec.contains_key("podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
        set(spec, "podReplacementPolicy", policy);
        job_template(spec);
    });
    job_selector(object);
    let labels = object.get("spec").and_then(|spec| spec.pointer("/template/metadata/labels")).cloned();
    if let Some(labels) = labels {
        child(object, "metadata", |metadata| set(metadata, "labels", labels));
    }
}

fn job_template(spec: &mut Map<String, Value>) {
    child_if_there(spec, "podFailurePolicy", |policy| {
        each(policy, "rules", |rule| each(rule, "onPodConditions", |pattern| set_text(pattern, "status", "True")));
    });
    child(spec, "template", pod_template);
}

pub(super) fn cron_job(object: &mut Map<String, Value>) {
    child(object, "spec", |spec| {
        set_text(spec, "concurrencyPolicy", "Allow");
        set(spec, "suspend", false);
        set(spec, "successfulJobsHistoryLimit", 3);
        set(spec, "failedJobsHistoryLimit", 1);
        child(spec, "jobTemplate", |template| child(template, "spec", job_template));
    });
}

/// Gives a Job that does not choose its own selector the one that only its pods match. That needs its UID, so nothing
/// happens to a Job that has none yet.
fn job_selector(job: &mut Map<String, Value>) {
    let read = |field: &str| {
        job.get("metadata").map_or("", |metadata| metadata[field].as_str().unwrap_or_default()).to_owned()
    };
    let (name, uid) = (read("name"), read("uid"));
    let Some(spec) = job.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if uid.is_empty() || spec.get("manualSelector") == Some(&Value::Bool(true)) {
        return;
    }
    child(spec, "template", |template| {
        child(template, "metadata", |metadata| {
            child(metadata, "labels", |labels| {
                for (key, value) in [
                    ("controller-uid", &uid),
                    ("batch.kubernetes.io/controller-uid", &uid),
                    ("job-name", &name),
                    ("batch.kubernetes.io/job-name", &name),
                ] {
                    set(labels, key, value.as_str());
                }
            });
        });
    });
    child(spec, "selector", |selector| {
        child(selector, "matchLabels", |labels| set(labels, "batch.kubernetes.io/controller-uid", uid.as_str()));
    });
}

pub(super) fn autoscaler(object: &mut Map<String, Value>, version: &str) {
    child(object, "spec", |spec| {
        set(spec, "minReplicas", 1);
        if version == "v2" {
            let cpu = json!([{
                "type": "Resource",
                "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}},
            }]);
            set(spec, "metrics", cpu);
        }
    });
}
