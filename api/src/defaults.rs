//! What the API fills in where an object says nothing.
//!
//! [`apply`] is what a stock server's versioned defaulting does. What depends on other objects (addresses, ports,
//! service accounts, priorities) is the API server's.

mod pod;
mod service;
mod workload;

use serde_json::{Map, Value, json};

use crate::resource::Resource;
pub use pod::{default_tolerations, image_pull_policy, pod_spec, pod_template};

const RBAC: &str = "rbac.authorization.k8s.io";

/// Fills in the defaults of an object that was decoded by its type.
pub fn apply(resource: &Resource, object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    match (resource.group, resource.kind) {
        ("", "Pod") => pod::pod(object),
        ("", "PodTemplate") => child(object, "template", pod_template),
        ("", "ReplicationController") => workload::replication_controller(object),
        ("", "Service") => service::service(object),
        ("", "Endpoints") => service::endpoints(object),
        ("", "Namespace") => namespace(object),
        ("", "Node") => child(object, "status", node_status),
        ("", "Secret") => secret(object),
        ("", "PersistentVolume") => persistent_volume(object),
        ("", "PersistentVolumeClaim") => persistent_volume_claim(object),
        ("", "LimitRange") => limit_range(object),
        ("apps", "Deployment") => workload::deployment(object),
        ("apps", "ReplicaSet") => workload::replica_set(object),
        ("apps", "StatefulSet") => workload::stateful_set(object),
        ("apps", "DaemonSet") => workload::daemon_set(object),
        ("batch", "Job") => workload::job(object),
        ("batch", "CronJob") => workload::cron_job(object),
        ("autoscaling", _) => workload::autoscaler(object, resource.version),
        ("discovery.k8s.io", "EndpointSlice") => service::endpoint_slice(object),
        ("networking.k8s.io", "NetworkPolicy") => child(object, "spec", service::network_policy),
        ("networking.k8s.io", "IngressClass") => {
            child(object, "spec", |spec| child_if_there(spec, "parameters", |all| set_text(all, "scope", "Cluster")));
        }
        (RBAC, "RoleBinding" | "ClusterRoleBinding") => binding(object),
        ("storage.k8s.io", "StorageClass") => {
            set_text(object, "reclaimPolicy", "Delete");
            set_text(object, "volumeBindingMode", "Immediate");
        }
        ("storage.k8s.io", "CSIDriver") => child(object, "spec", csi_driver),
        ("scheduling.k8s.io", "PriorityClass") => set_text(object, "preemptionPolicy", "PreemptLowerPriority"),
        ("admissionregistration.k8s.io", kind) => admission(object, kind),
        _ => {}
    }
}

/// `stringData` is for writing only: it goes into `data`, over what is there, and is never kept.
fn secret(object: &mut Map<String, Value>) {
    set_text(object, "type", "Opaque");
    let Some(Value::Object(texts)) = object.remove("stringData") else { return };
    if texts.is_empty() {
        return;
    }
    let data = object.entry("data").or_insert(Value::Null);
    if !data.is_object() {
        *data = json!({});
    }
    for (key, text) in texts {
        let bytes = text.as_str().unwrap_or_default().as_bytes();
        data[&key] = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes).into();
    }
}

/// Sets a field that is absent or null.
fn set(object: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    match object.get_mut(key) {
        None => {
            object.insert(key.to_owned(), value.into());
        }
        Some(old @ Value::Null) => *old = value.into(),
        Some(_) => {}
    }
}

/// Sets a text that is absent or empty.
fn set_text(object: &mut Map<String, Value>, key: &str, value: &str) {
    match object.get(key).and_then(Value::as_str) {
        Some(text) if !text.is_empty() => {}
        _ => {
            object.insert(key.to_owned(), value.into());
        }
    }
}

/// Sets a number that is absent or zero.
fn set_number(object: &mut Map<String, Value>, key: &str, value: i64) {
    if object.get(key).and_then(Value::as_i64).unwrap_or_default() == 0 {
        object.insert(key.to_owned(), value.into());
    }
}

/// Works on a field that is an object; makes it where it is absent.
fn child(object: &mut Map<String, Value>, key: &str, work: impl FnOnce(&mut Map<String, Value>)) {
    set(object, key, json!({}));
    child_if_there(object, key, work);
}

/// Works on a field that is an object, if it is there.
fn child_if_there(object: &mut Map<String, Value>, key: &str, work: impl FnOnce(&mut Map<String, Value>)) {
    if let Some(inner) = object.get_mut(key).and_then(Value::as_object_mut) {
        work(inner);
    }
}

/// Works on every object of a list.
fn each(object: &mut Map<String, Value>, key: &str, mut work: impl FnMut(&mut Map<String, Value>)) {
    let items = object.get_mut(key).and_then(Value::as_array_mut);
    for item in items.into_iter().flatten() {
        if let Some(item) = item.as_object_mut() {
            work(item);
        }
    }
}

fn text<'a>(object: &'a Map<String, Value>, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn namespace(object: &mut Map<String, Value>) {
    child(object, "metadata", |metadata| {
        let name = text(metadata, "name").to_owned();
        if !name.is_empty() {
            child(metadata, "labels", |labels| {
                labels.insert("kubernetes.io/metadata.name".to_owned(), name.into());
            });
        }
    });
    let terminating = object.get("metadata").is_some_and(|metadata| metadata.get("deletionTimestamp").is_some());
    if !terminating {
        child(object, "spec", |spec| set(spec, "finalizers", json!(["kubernetes"])));
    }
    child(object, "status", |status| set_text(status, "phase", "Active"));
}

fn node_status(status: &mut Map<String, Value>) {
    if let (None, Some(capacity)) = (status.get("allocatable"), status.get("capacity")) {
        let capacity = capacity.clone();
        status.insert("allocatable".to_owned(), capacity);
    }
}

fn persistent_volume(object: &mut Map<String, Value>) {
    child(object, "spec", |spec| {
        set_text(spec, "persistentVolumeReclaimPolicy", "Retain");
        set(spec, "volumeMode", "Filesystem");
        child_if_there(spec, "hostPath", |path| set(path, "type", ""));
    });
    child(object, "status", |status| set_text(status, "phase", "Pending"));
}

fn persistent_volume_claim(object: &mut Map<String, Value>) {
    child(object, "spec", |spec| set(spec, "volumeMode", "Filesystem"));
    child(object, "status", |status| set_text(status, "phase", "Pending"));
}

fn limit_range(object: &mut Map<String, Value>) {
    fn fill(item: &mut Map<String, Value>, from: &str, to: &str) {
        let Some(source) = item.get(from).and_then(Value::as_object).cloned() else { return };
        child(item, to, |target| {
            for (name, amount) in source {
                target.entry(name).or_insert(amount);
            }
        });
    }
    child_if_there(object, "spec", |spec| {
        each(spec, "limits", |item| {
            if text(item, "type") == "Container" {
                fill(item, "max", "default");
                fill(item, "default", "defaultRequest");
                fill(item, "min", "defaultRequest");
            }
        });
    });
}

fn binding(object: &mut Map<String, Value>) {
    child_if_there(object, "roleRef", |role| set_text(role, "apiGroup", RBAC));
    each(object, "subjects", |subject| {
        if matches!(text(subject, "kind"), "User" | "Group") {
            set_text(subject, "apiGroup", RBAC);
        }
    });
}

fn csi_driver(spec: &mut Map<String, Value>) {
    set(spec, "attachRequired", true);
    set(spec, "podInfoOnMount", false);
    set(spec, "storageCapacity", false);
    set(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    set(spec, "volumeLifecycleModes", json!(["Persistent"]));
    set(spec, "requiresRepublish", false);
    set(spec, "seLinuxMount", false);
}

fn admission(object: &mut Map<String, Value>, kind: &str) {
    fn constraints(all: &mut Map<String, Value>) {
        set(all, "matchPolicy", "Equivalent");
        set(all, "namespaceSelector", json!({}));
        set(all, "objectSelector", json!({}));
        for rules in ["rules", "resourceRules", "excludeResourceRules"] {
            each(all, rules, |rule| set(rule, "scope", "*"));
        }
    }
    match kind {
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => each(object, "webhooks", |webhook| {
            set(webhook, "failurePolicy", "Fail");
            constraints(webhook);
            set(webhook, "timeoutSeconds", 10);
            if kind == "MutatingWebhookConfiguration" {
                set(webhook, "reinvocationPolicy", "Never");
            }
            child_if_there(webhook, "clientConfig", |client| {
                child_if_there(client, "service", |service| set(service, "port", 443));
            });
        }),
        "ValidatingAdmissionPolicy" => child(object, "spec", |spec| {
            set(spec, "failurePolicy", "Fail");
            child_if_there(spec, "matchConstraints", constraints);
        }),
        _ => child_if_there(object, "spec", |spec| child_if_there(spec, "matchResources", constraints)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::find;

    fn defaulted(group: &str, plural: &str, mut object: Value) -> Value {
        apply(find(group, "v1", plural).unwrap(), &mut object);
        object
    }

    #[test]
    fn secrets_written_as_text() {
        let secret = json!({"data": {"a": "b2xk", "b": "b2xk"}, "stringData": {"a": "new"}});
        assert_eq!(defaulted("", "secrets", secret), json!({"type": "Opaque", "data": {"a": "bmV3", "b": "b2xk"}}));
    }

    #[test]
    fn pods() {
        let pod = defaulted(
            "",
            "pods",
            json!({"spec": {
                "containers": [{"name": "a", "image": "nginx", "ports": [{"containerPort": 80}],
                    "livenessProbe": {"httpGet": {"port": 80}}, "resources": {"limits": {"cpu": "1"}},
                    "env": [{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}],
                "volumes": [{"name": "v", "configMap": {"name": "c"}}, {"name": "e"}],
            }}),
        );
        assert_eq!(
            pod,
            json!({"spec": {
                "containers": [{
                    "name": "a", "image": "nginx", "imagePullPolicy": "Always",
                    "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "livenessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1,
                        "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                    "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
                    "env": [{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name", "apiVersion": "v1"}}}],
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                }],
                "volumes": [{"name": "v", "configMap": {"name": "c", "defaultMode": 420}}, {"name": "e", "emptyDir": {}}],
                "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "terminationGracePeriodSeconds": 30,
                "schedulerName": "default-scheduler", "securityContext": {}, "enableServiceLinks": true,
            }})
        );
    }

    #[test]
    fn pull_policies() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.2", "IfNotPresent"),
            ("host:5000/nginx", "Always"),
            ("host:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:abc", "IfNotPresent"),
            ("nginx:latest@sha256:abc", "Always"),
        ] {
            assert_eq!(image_pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn workloads() {
        let deployment = defaulted("apps", "deployments", json!({"spec": {"template": {"spec": {"containers": []}}}}));
        assert_eq!(deployment["spec"]["replicas"], 1);
        assert_eq!(
            deployment["spec"]["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
        );
        assert_eq!(deployment["spec"]["template"]["spec"]["dnsPolicy"], "ClusterFirst");
        assert_eq!(deployment["spec"]["template"]["spec"].get("enableServiceLinks"), None);
        let job = defaulted("batch", "jobs", json!({"spec": {"template": {"metadata": {"labels": {"a": "b"}}}}}));
        assert_eq!(job["spec"]["completions"], 1);
        assert_eq!(job["metadata"]["labels"]["a"], "b");
        assert_eq!(job["spec"].get("selector"), None);
        let job = defaulted("batch", "jobs", json!({"metadata": {"name": "j", "uid": "u"}}));
        assert_eq!(job["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"], "u");
        assert_eq!(job["spec"]["template"]["metadata"]["labels"]["job-name"], "j");
        let recreate = defaulted("apps", "deployments", json!({"spec": {"strategy": {"type": "Recreate"}}}));
        assert_eq!(recreate["spec"]["strategy"], json!({"type": "Recreate"}));
    }

    #[test]
    fn services() {
        let service = defaulted("", "services", json!({"spec": {"type": "NodePort", "ports": [{"port": 80}]}}));
        assert_eq!(
            service["spec"],
            json!({"type": "NodePort", "sessionAffinity": "None",
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
            "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster"})
        );
        let slice = defaulted("discovery.k8s.io", "endpointslices", json!({"ports": [{"port": 1}]}));
        assert_eq!(slice["ports"], json!([{"port": 1, "name": "", "protocol": "TCP"}]));
        let policy = defaulted("networking.k8s.io", "networkpolicies", json!({"spec": {"egress": [{}]}}));
        assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
    }

    #[test]
    fn others() {
        let namespace = defaulted("", "namespaces", json!({"metadata": {"name": "x"}}));
        assert_eq!(namespace["metadata"]["labels"]["kubernetes.io/metadata.name"], "x");
        assert_eq!(namespace["spec"]["finalizers"], json!(["kubernetes"]));
        let binding =
            defaulted(RBAC, "rolebindings", json!({"roleRef": {"name": "x"}, "subjects": [{"kind": "User"}]}));
        assert_eq!(binding["subjects"][0]["apiGroup"], RBAC);
        let hpa = &mut json!({"spec": {}});
        apply(find("autoscaling", "v2", "horizontalpodautoscalers").unwrap(), hpa);
        assert_eq!(hpa["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
    }

    #[test]
    fn tolerations() {
        let mut pod = json!({"spec": {"tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}]}});
        default_tolerations(&mut pod, 300);
        let all = pod["spec"]["tolerations"].as_array().unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!(all[1]["key"], "node.kubernetes.io/unreachable");
    }
}
