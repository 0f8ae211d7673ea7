//! Pods, and the templates of everything that makes them.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Map, Value, json};

use super::{child, child_if_there, each, set, set_number, set_text, text};

/// 0644, as JSON has it.
const DEFAULT_MODE: i64 = 0o644;

pub(super) fn pod(object: &mut Map<String, Value>) {
    child(object, "spec", |spec| {
        pod_spec(spec);
        set(spec, "enableServiceLinks", true);
        for list in ["containers", "initContainers"] {
            each(spec, list, requests_from_limits);
        }
        requests_of_the_whole(spec);
        if spec.get("hostNetwork") == Some(&Value::Bool(true)) {
            for list in ["containers", "initContainers"] {
                each(spec, list, host_ports);
            }
        }
    });
}

/// Defaults of a `PodTemplateSpec`.
pub fn pod_template(template: &mut Map<String, Value>) {
    child(template, "spec", pod_spec);
}

/// Defaults of a `PodSpec`, in a pod or a template.
pub fn pod_spec(spec: &mut Map<String, Value>) {
    set_text(spec, "dnsPolicy", "ClusterFirst");
    set_text(spec, "restartPolicy", "Always");
    set_text(spec, "schedulerName", "default-scheduler");
    set(spec, "terminationGracePeriodSeconds", 30);
    set(spec, "securityContext", json!({}));
    service_account_alias(spec);
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        each(spec, list, container);
    }
    each(spec, "volumes", volume);
}

/// `serviceAccount` is the old name of `serviceAccountName`; both are given out.
fn service_account_alias(spec: &mut Map<String, Value>) {
    let name = match text(spec, "serviceAccountName") {
        "" => text(spec, "serviceAccount"),
        name => name,
    };
    if !name.is_empty() {
        let name = Value::from(name);
        spec.insert("serviceAccount".to_owned(), name.clone());
        spec.insert("serviceAccountName".to_owned(), name);
    }
}

fn container(container: &mut Map<String, Value>) {
    set_text(container, "terminationMessagePath", "/dev/termination-log");
    set_text(container, "terminationMessagePolicy", "File");
    let policy = image_pull_policy(text(container, "image"));
    set_text(container, "imagePullPolicy", policy);
    set(container, "resources", json!({}));
    each(container, "ports", |port| set_text(port, "protocol", "TCP"));
    each(container, "env", |variable| {
        child_if_there(variable, "valueFrom", |source| child_if_there(source, "fieldRef", field_ref));
    });
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        child_if_there(container, name, probe);
    }
    child_if_there(container, "lifecycle", |lifecycle| {
        for name in ["postStart", "preStop"] {
            child_if_there(lifecycle, name, |handler| child_if_there(handler, "httpGet", http_get));
        }
    });
}

/// When to pull an image whose container does not say: always when its tag is `latest` or none.
#[must_use]
pub fn image_pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, false), |(name, _)| (name, true));
    let last = name.rsplit('/').next().unwrap_or_default();
    match last.split_once(':') {
        Some((_, "latest")) => "Always",
        None if !digest => "Always",
        _ => "IfNotPresent",
    }
}

fn probe(probe: &mut Map<String, Value>) {
    set_number(probe, "timeoutSeconds", 1);
    set_number(probe, "periodSeconds", 10);
    set_number(probe, "successThreshold", 1);
    set_number(probe, "failureThreshold", 3);
    child_if_there(probe, "httpGet", http_get);
    child_if_there(probe, "grpc", |grpc| set(grpc, "service", ""));
}

fn http_get(action: &mut Map<String, Value>) {
    set_text(action, "path", "/");
    set_text(action, "scheme", "HTTP");
}

fn field_ref(field: &mut Map<String, Value>) {
    set_text(field, "apiVersion", "v1");
}

fn requests_from_limits(container: &mut Map<String, Value>) {
    child_if_there(container, "resources", |resources| {
        let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { return };
        child(resources, "requests", |requests| {
            for (name, amount) in limits {
                requests.entry(name).or_insert(amount);
            }
        });
    });
}

/// A pod with limits as a whole asks, for each resource that it names no request of, for what its containers ask for
/// together, and where they ask for none of it for its limit (KEP-2837). Huge pages are never promised twice: of them its
/// limit is the request. A spec that cannot be read is left to validation.
fn requests_of_the_whole(spec: &mut Map<String, Value>) {
    let Some(limits) = spec.get("resources").and_then(|all| all.get("limits")).and_then(Value::as_object).cloned()
    else {
        return;
    };
    if limits.is_empty() {
        return;
    }
    let mut containers = spec.clone();
    containers.remove("resources");
    containers.remove("overhead");
    let Ok(containers) = serde_json::from_value(Value::Object(containers)) else { return };
    let of_containers = crate::pod::requests(&Pod { spec: Some(containers), ..Pod::default() });
    child(spec, "resources", |resources| {
        child(resources, "requests", |requests| {
            for (name, amount) in of_containers.iter().filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory")) {
                requests.entry(name.clone()).or_insert_with(|| amount.to_string().into());
            }
            let supported = |name: &str| matches!(name, "cpu" | "memory") || name.starts_with("hugepages-");
            for (name, amount) in limits.into_iter().filter(|(name, _)| supported(name)) {
                requests.entry(name).or_insert(amount);
            }
        });
    });
}

fn host_ports(container: &mut Map<String, Value>) {
    each(container, "ports", |port| {
        if let Some(number) = port.get("containerPort").and_then(Value::as_i64) {
            set_number(port, "hostPort", number);
        }
    });
}

fn volume(volume: &mut Map<String, Value>) {
    if volume.keys().all(|key| key == "name") {
        volume.insert("emptyDir".to_owned(), json!({}));
        return;
    }
    for name in ["secret", "configMap", "downwardAPI", "projected"] {
        child_if_there(volume, name, |source| set(source, "defaultMode", DEFAULT_MODE));
    }
    child_if_there(volume, "downwardAPI", downward_items);
    child_if_there(volume, "projected", |projected| {
        each(projected, "sources", |source| {
            child_if_there(source, "downwardAPI", downward_items);
            child_if_there(source, "serviceAccountToken", |token| set(token, "expirationSeconds", 3600));
        });
    });
    child_if_there(volume, "hostPath", |path| set(path, "type", ""));
    child_if_there(volume, "iscsi", |iscsi| set_text(iscsi, "iscsiInterface", "default"));
    child_if_there(volume, "image", |image| {
        let policy = image_pull_policy(text(image, "reference"));
        set_text(image, "pullPolicy", policy);
    });
    child_if_there(volume, "ephemeral", |ephemeral| {
        child_if_there(ephemeral, "volumeClaimTemplate", |template| {
            child(template, "spec", |spec| set(spec, "volumeMode", "Filesystem"));
        });
    });
}

fn downward_items(source: &mut Map<String, Value>) {
    each(source, "items", |item| child_if_there(item, "fieldRef", field_ref));
}

/// Lets a pod stay for some seconds on a node that is not ready or not reachable, unless the pod says otherwise.
///
/// The admission plug-in DefaultTolerationSeconds does this to pods when they are made.
pub fn default_tolerations(pod: &mut Value, seconds: i64) {
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return };
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerations = spec.get("tolerations").and_then(Value::as_array);
        let covered = tolerations.into_iter().flatten().filter_map(Value::as_object).any(|toleration| {
            let covers = |field, wanted: &str| text(toleration, field).is_empty() || text(toleration, field) == wanted;
            covers("key", key) && covers("effect", "NoExecute")
        });
        if covered {
            continue;
        }
        let toleration = json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
        match spec.get_mut("tolerations") {
            Some(Value::Array(all)) => all.push(toleration),
            _ => {
                spec.insert("tolerations".to_owned(), Value::Array(vec![toleration]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_s_own_requests_come_from_its_containers_and_its_limits() {
        let mut object = json!({"spec": {
            "resources": {"limits": {"cpu": "2", "memory": "1Gi", "hugepages-2Mi": "4Mi"}},
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "250m"}}}, {"name": "b", "resources": {"limits": {"cpu": "1"}}}],
        }});
        pod(object.as_object_mut().unwrap());
        let want = json!({"cpu": "1250m", "memory": "1Gi", "hugepages-2Mi": "4Mi"});
        assert_eq!(object["spec"]["resources"]["requests"], want);
        // Without limits nothing is added.
        let mut object = json!({"spec": {"resources": {"requests": {"memory": "1Gi"}}, "containers": [{"name": "a"}]}});
        pod(object.as_object_mut().unwrap());
        assert_eq!(object["spec"]["resources"], json!({"requests": {"memory": "1Gi"}}));
    }
}
