use std::sync::Arc;

use serde_json::{Value, json};

use super::*;

fn in_world<R>(objects: &[(&str, &str, &str, Value)], run: impl FnOnce(World<'_>) -> R) -> R {
    let find = |_: &str, resource: &str, namespace: &str, name: &str| {
        let found = objects.iter().find(|(r, ns, n, _)| (*r, *ns, *n) == (resource, namespace, name));
        found.map(|(.., object)| Arc::new(object.clone()))
    };
    let list = |_: &str, resource: &str| {
        objects.iter().filter(|(r, ..)| *r == resource).map(|(.., object)| Arc::new(object.clone())).collect()
    };
    run(World { get: &find, list: &list })
}

fn create<'a>(resource: &'a str) -> Attributes<'a> {
    Attributes { verb: "create", group: "", resource, subresource: "", namespace: "default", name: "web" }
}

fn usual() -> Vec<(&'static str, &'static str, &'static str, Value)> {
    vec![
        ("namespaces", "", "default", json!({"status": {"phase": "Active"}})),
        ("serviceaccounts", "default", "default", json!({"imagePullSecrets": [{"name": "pull"}]})),
        ("priorityclasses", "", "high", json!({"metadata": {"name": "high"}, "value": 1000})),
    ]
}

fn pod() -> Value {
    json!({"metadata": {"name": "web"}, "spec": {"containers": [{"name": "c"}]}})
}

#[test]
fn a_pod_is_completed() {
    let mut object = pod();
    in_world(&usual(), |world| admit(&create("pods"), &mut object, None, world)).unwrap();
    let spec = &object["spec"];
    assert_eq!(spec["serviceAccountName"], "default");
    assert_eq!(spec["serviceAccount"], "default");
    assert_eq!(spec["imagePullSecrets"], json!([{"name": "pull"}]));
    assert_eq!(spec["priority"], 0);
    assert_eq!(spec["preemptionPolicy"], "PreemptLowerPriority");
    assert_eq!(spec["tolerations"].as_array().unwrap().len(), 2);
    let mount = &spec["containers"][0]["volumeMounts"][0];
    assert_eq!(mount["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount");
    assert_eq!(mount["name"], spec["volumes"][0]["name"]);
    assert_eq!(spec["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"], 3607);
}

#[test]
fn a_pod_that_wants_no_token_gets_none() {
    let mut object = pod();
    object["spec"]["automountServiceAccountToken"] = json!(false);
    in_world(&usual(), |world| admit(&create("pods"), &mut object, None, world)).unwrap();
    assert!(object["spec"]["volumes"].is_null());
}

#[test]
fn priority_comes_from_the_class_alone() {
    let mut object = pod();
    object["spec"]["priorityClassName"] = json!("high");
    in_world(&usual(), |world| admit(&create("pods"), &mut object, None, world)).unwrap();
    assert_eq!(object["spec"]["priority"], 1000);
    let mut object = pod();
    object["spec"]["priority"] = json!(7);
    let refused = in_world(&usual(), |world| admit(&create("pods"), &mut object, None, world)).unwrap_err();
    assert_eq!(refused.code(), 403);
    let mut object = pod();
    object["spec"]["priorityClassName"] = json!("nope");
    let refused = in_world(&usual(), |world| admit(&create("pods"), &mut object, None, world)).unwrap_err();
    assert!(refused.message().contains("no PriorityClass with name nope was found"), "{refused}");
}

#[test]
fn nothing_is_created_in_a_namespace_that_is_missing_or_ends() {
    let mut object = json!({"metadata": {"name": "web"}});
    let refused = in_world(&[], |world| admit(&create("configmaps"), &mut object, None, world)).unwrap_err();
    assert_eq!((refused.code(), refused.message()), (404, "namespaces \"default\" not found"));
    let ending = [("namespaces", "", "default", json!({"status": {"phase": "Terminating"}}))];
    let refused = in_world(&ending, |world| admit(&create("configmaps"), &mut object, None, world)).unwrap_err();
    assert_eq!(refused.code(), 403);
    assert!(refused.message().contains("because it is being terminated"), "{refused}");
}

#[test]
fn the_systems_namespaces_stay() {
    let delete =
        Attributes { verb: "delete", resource: "namespaces", namespace: "", name: "kube-system", ..create("") };
    let refused = in_world(&[], |world| admit(&delete, &mut json!({}), None, world)).unwrap_err();
    assert!(refused.message().contains("this namespace may not be deleted"), "{refused}");
}

#[test]
fn a_missing_account_is_named() {
    let mut objects = usual();
    objects.retain(|(resource, ..)| *resource != "serviceaccounts");
    let refused = in_world(&objects, |world| admit(&create("pods"), &mut pod(), None, world)).unwrap_err();
    let wanted = "error looking up service account default/default: serviceaccounts \"default\" not found";
    assert!(refused.message().contains(wanted), "{refused}");
}

#[test]
fn a_new_node_is_tainted_once() {
    let mut object = json!({"metadata": {"name": "n"}});
    let attributes = Attributes { namespace: "", ..create("nodes") };
    for _ in 0..2 {
        in_world(&[], |world| admit(&attributes, &mut object, None, world)).unwrap();
    }
    let taints = object["spec"]["taints"].clone();
    assert_eq!(taints, json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]));
}

#[test]
fn a_claim_gets_the_default_class() {
    let class =
        json!({"metadata": {"name": "fast", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}});
    let mut objects = usual();
    objects.push(("storageclasses", "", "fast", class));
    let mut object = json!({"metadata": {"name": "data"}, "spec": {}});
    in_world(&objects, |world| admit(&create("persistentvolumeclaims"), &mut object, None, world)).unwrap();
    assert_eq!(object["spec"]["storageClassName"], "fast");
}
