//! Faults as text, as a client reads them.

use serde_json::{Value, json};

use super::*;
use crate::defaults;
use crate::resource::find;

fn faults(group: &str, plural: &str, mut object: Value) -> Vec<String> {
    let resource = find(group, "v1", plural).unwrap();
    defaults::apply(resource, &mut object);
    validate_create(resource, &object).iter().map(ToString::to_string).collect()
}

fn pod(spec: Value) -> Vec<String> {
    faults("", "pods", json!({"metadata": {"name": "x", "namespace": "ns"}, "spec": spec}))
}

fn container(extra: Value) -> Vec<String> {
    let mut container = json!({"name": "a", "image": "i"});
    crate::patch::merge(&mut container, extra);
    pod(json!({"containers": [container], "volumes": [{"name": "v", "emptyDir": {}}]}))
}

#[test]
fn good_objects_have_no_faults() {
    assert_eq!(container(json!({})), [""; 0]);
    let labels = json!({"app": "x"});
    let template = json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "a", "image": "i"}]}});
    let meta = json!({"name": "x", "namespace": "ns"});
    for plural in ["deployments", "replicasets", "statefulsets", "daemonsets"] {
        let object = json!({"metadata": meta, "spec": {"selector": {"matchLabels": labels}, "template": template}});
        assert_eq!(faults("apps", plural, object), [""; 0], "{plural}");
    }
    let service = json!({"metadata": meta, "spec": {"ports": [{"port": 80}], "selector": labels}});
    assert_eq!(faults("", "services", service), [""; 0]);
}

#[test]
fn metadata_faults() {
    let fault = |metadata: Value| faults("", "configmaps", json!({"metadata": metadata}));
    assert_eq!(fault(json!({"namespace": "a"})), ["metadata.name: Required value: name or generateName is required"]);
    assert_eq!(fault(json!({"name": "a"})), ["metadata.namespace: Required value"]);
    let bad = fault(json!({"name": "A", "namespace": "a"}));
    assert!(bad[0].starts_with("metadata.name: Invalid value: \"A\": a lowercase RFC 1123 subdomain must consist"));
    let bad = fault(json!({"name": "a", "namespace": "a", "labels": {"x": "-"}, "finalizers": ["foo"]}));
    assert!(bad[0].starts_with("metadata.labels: Invalid value: \"-\": a valid label must be"));
    assert_eq!(
        bad[1],
        "metadata.finalizers: Invalid value: \"foo\": name is neither a standard finalizer name nor is it fully \
         qualified"
    );
    let bad = faults("", "nodes", json!({"metadata": {"name": "n", "namespace": "a"}}));
    assert_eq!(bad, ["metadata.namespace: Forbidden: not allowed on this type"]);
}

#[test]
fn pod_faults() {
    assert_eq!(pod(json!({})), ["spec.containers: Required value"]);
    assert_eq!(
        pod(json!({"containers": [{"image": "i"}, {"name": "b"}, {"name": "b", "image": "i"}]})),
        [
            "spec.containers[0].name: Required value",
            "spec.containers[1].image: Required value",
            "spec.containers[2].name: Duplicate value: \"b\"",
        ]
    );
    assert_eq!(
        container(json!({"imagePullPolicy": "x", "ports": [{"containerPort": 70000}, {"containerPort": 0}]})),
        [
            "spec.containers[0].imagePullPolicy: Unsupported value: \"x\": supported values: \"Always\", \
             \"IfNotPresent\", \"Never\"",
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            "spec.containers[0].ports[1].containerPort: Required value",
        ]
    );
    assert_eq!(
        container(json!({"volumeMounts": [{"name": "w", "mountPath": "/a"}, {"name": "v", "mountPath": "/a"}]})),
        [
            "spec.containers[0].volumeMounts[0].name: Not found: \"w\"",
            "spec.containers[0].volumeMounts[1].mountPath: Invalid value: \"/a\": must be unique",
        ]
    );
    assert_eq!(
        container(json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}})),
        ["spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1"]
    );
    assert_eq!(
        container(json!({"livenessProbe": {}})),
        ["spec.containers[0].livenessProbe: Required value: must specify a handler type"]
    );
    assert_eq!(
        pod(json!({"containers": [{"name": "a", "image": "i"}], "restartPolicy": "x"})),
        ["spec.restartPolicy: Unsupported value: \"x\": supported values: \"Always\", \"OnFailure\", \"Never\""]
    );
}

#[test]
fn workload_faults() {
    let template = json!({"metadata": {"labels": {"app": "y"}}, "spec": {"containers": [{"name": "a", "image": "i"}]}});
    let meta = json!({"name": "x", "namespace": "ns"});
    let spec = json!({"selector": {"matchLabels": {"app": "x"}}, "template": template, "replicas": -1});
    assert_eq!(
        faults("apps", "deployments", json!({"metadata": meta, "spec": spec})),
        [
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
            "spec.template.metadata.labels: Invalid value: {\"app\":\"y\"}: `selector` does not match template `labels`",
        ]
    );
    let job = json!({"metadata": meta, "spec": {"template": template}});
    assert_eq!(
        faults("batch", "jobs", job),
        [
            "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
            "spec.selector: Required value",
        ]
    );
}

#[test]
fn service_and_role_faults() {
    let meta = json!({"name": "x", "namespace": "ns"});
    let spec = json!({"ports": [{"port": 80, "nodePort": 30000}, {"port": 80}]});
    assert_eq!(
        faults("", "services", json!({"metadata": meta, "spec": spec})),
        [
            "spec.ports[0].name: Required value",
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
            "spec.ports[1].name: Required value",
            "spec.ports[1]: Duplicate value: {\"port\":80,\"protocol\":\"TCP\"}",
        ]
    );
    assert_eq!(
        faults("rbac.authorization.k8s.io", "roles", json!({"metadata": meta, "rules": [{}]})),
        [
            "rules[0].verbs: Required value: verbs must contain at least one value",
            "rules[0].apiGroups: Required value: resource rules must supply at least one api group",
            "rules[0].resources: Required value: resource rules must supply at least one resource",
        ]
    );
}

#[test]
fn pods_change_only_where_they_may() {
    let resource = find("", "v1", "pods").unwrap();
    let base = json!({
        "metadata": {"name": "x", "namespace": "ns", "resourceVersion": "1"},
        "spec": {"containers": [{"name": "a", "image": "1"}], "nodeName": "n"},
    });
    let mut old = base.clone();
    defaults::apply(resource, &mut old);
    let update = |patch: Value| {
        let mut new = old.clone();
        crate::patch::merge(&mut new, patch);
        validate_update(resource, &old, &new)
    };
    let mut containers = old["spec"]["containers"].clone();
    containers[0]["image"] = "2".into();
    assert!(update(json!({"spec": {"containers": containers}})).is_empty());
    assert!(update(json!({"spec": {"tolerations": [{"operator": "Exists"}]}})).is_empty());
    let bad = update(json!({"spec": {"nodeName": "m"}}));
    assert!(bad[0].to_string().starts_with("spec: Forbidden: pod updates may not change fields other than"));
    let bad = update(json!({"metadata": {"name": "y"}}));
    assert_eq!(bad[0].to_string(), "metadata.name: Invalid value: \"y\": field is immutable");
}

#[test]
fn immutability() {
    let check = |group, plural, old: Value, new: Value| -> Vec<String> {
        let meta = json!({"name": "x", "namespace": "ns", "resourceVersion": "1"});
        let whole = |mut object: Value| {
            object["metadata"] = meta.clone();
            object
        };
        let resource = find(group, "v1", plural).unwrap();
        validate_update(resource, &whole(old), &whole(new)).iter().map(ToString::to_string).collect()
    };
    assert_eq!(
        check("", "configmaps", json!({"immutable": true, "data": {"a": "1"}}), json!({"immutable": true})),
        ["data: Forbidden: field is immutable when `immutable` is set"]
    );
    let role = |name: &str| json!({"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}});
    let bad = check("rbac.authorization.k8s.io", "rolebindings", role("a"), role("b"));
    assert!(bad[0].ends_with("cannot change roleRef"));
    let service = |ip: &str| json!({"spec": {"type": "ClusterIP", "clusterIP": ip, "sessionAffinity": "None"}});
    assert_eq!(
        check("", "services", service("10.0.0.1"), service("10.0.0.2"))[0],
        "spec.clusterIPs[0]: Invalid value: [\"10.0.0.2\"]: may not change once set"
    );
    assert!(!check("", "services", service("10.0.0.1"), service("")).iter().any(|fault| fault.contains("clusterIP")));
}

#[test]
fn some_kinds_are_only_updated_at_a_version() {
    let update = |group, plural| {
        let object = json!({"metadata": {"name": "x", "namespace": "ns"}});
        validate_update(find(group, "v1", plural).unwrap(), &object, &object)
    };
    assert_eq!(
        update("coordination.k8s.io", "leases")[0].to_string(),
        "metadata.resourceVersion: Invalid value: 0: must be specified for an update"
    );
    assert!(update("", "configmaps").is_empty());
}

#[test]
fn errors_are_stock() {
    let resource = find("", "v1", "pods").unwrap();
    let object = json!({"metadata": {"name": "x", "namespace": "ns"}, "spec": {"containers": [{"image": "i"}],
        "restartPolicy": "Always", "dnsPolicy": "Default"}});
    let error = check(resource, &object, validate_create(resource, &object)).unwrap_err();
    assert_eq!(error.message(), "Pod \"x\" is invalid: spec.containers[0].name: Required value");
    assert_eq!(error.code(), 422);
}
