//! Decisions as people see them: which node, or the words that say why not.
#![expect(clippy::unwrap_used, reason = "a broken fixture should end the test")]

use std::sync::Arc;

use bosun_scheduler::framework::{Candidate, Decision, decide};
use bosun_scheduler::plugins;
use bosun_scheduler::preemption;
use bosun_scheduler::snapshot::{PodInfo, Snapshot};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

fn node(name: &str, more: Value) -> Arc<Node> {
    let mut object = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "3"}},
    });
    merge(&mut object, more);
    Arc::new(serde_json::from_value(object).unwrap())
}

fn pod(name: &str, more: Value) -> Pod {
    let mut object = json!({
        "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "web"}]},
    });
    merge(&mut object, more);
    serde_json::from_value(object).unwrap()
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn requests(cpu: &str) -> Value {
    json!({"spec": {"containers": [{"name": "c", "image": "web", "resources": {"requests": {"cpu": cpu}}}]}})
}

/// `-> node`, or why not.
fn ask(snapshot: &Snapshot, pod: &Pod) -> String {
    let plugins = plugins::all();
    let info = PodInfo::new(pod);
    let spec = pod.spec.as_ref().unwrap();
    let candidate = Candidate { pod, spec, info: &info };
    match decide(&plugins, snapshot, candidate, 0) {
        Decision::Bind(node) => format!("-> {node}"),
        Decision::Wait(mut diagnosis) => {
            match preemption::plan(&plugins, snapshot, candidate, &diagnosis) {
                Ok(plan) => {
                    let mut victims: Vec<&str> = plan.victims.iter().map(|v| v.name.as_str()).collect();
                    victims.sort_unstable();
                    return format!("preempts {victims:?} on {}", plan.node);
                }
                Err(said) => diagnosis.preemption = Some(said),
            }
            diagnosis.to_string()
        }
    }
}

fn cluster(nodes: impl IntoIterator<Item = Arc<Node>>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for node in nodes {
        snapshot.set_node(node);
    }
    snapshot
}

#[test]
fn no_nodes() {
    assert!(ask(&cluster([]), &pod("p", json!({}))).starts_with("no nodes available to schedule pods"));
}

#[test]
fn taints_say_stock_words() {
    let tainted = json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}});
    let snapshot = cluster([node("a", tainted)]);
    assert_eq!(
        ask(&snapshot, &pod("p", json!({}))),
        "0/1 nodes are available: 1 node(s) had untolerated taint(s). \
         preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
    );
    let tolerates = json!({"spec": {"tolerations": [{"key": "k", "operator": "Exists"}]}});
    assert_eq!(ask(&snapshot, &pod("p", tolerates)), "-> a");
}

#[test]
fn reasons_are_counted() {
    let cordoned = json!({"spec": {"unschedulable": true}});
    let mut snapshot = cluster([node("a", cordoned), node("b", json!({})), node("c", json!({}))]);
    for (name, on) in [("x", "b"), ("y", "c")] {
        snapshot.set_pod(on, PodInfo::new(&pod(name, requests("1500m"))));
    }
    assert_eq!(
        ask(&snapshot, &pod("p", requests("1"))),
        "0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient cpu. \
         preemption: 0/3 nodes are available: 1 Preemption is not helpful for scheduling, \
         2 No preemption victims found for incoming pod."
    );
}

#[test]
fn what_no_empty_node_could_hold_is_beyond_preemption() {
    let snapshot = cluster([node("a", json!({}))]);
    assert!(ask(&snapshot, &pod("p", requests("64"))).ends_with("1 Preemption is not helpful for scheduling."));
}

#[test]
fn the_less_used_node_wins() {
    let mut snapshot = cluster([node("a", json!({})), node("b", json!({}))]);
    snapshot.set_pod("a", PodInfo::new(&pod("x", requests("1"))));
    assert_eq!(ask(&snapshot, &pod("p", requests("100m"))), "-> b");
}

#[test]
fn affinity_to_fields_picks_one_node() {
    let to_b = json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]}]}}}}});
    let snapshot = cluster([node("a", json!({})), node("b", json!({}))]);
    assert_eq!(ask(&snapshot, &pod("p", to_b)), "-> b");
}

#[test]
fn host_ports_conflict() {
    let port = json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]}});
    let mut snapshot = cluster([node("a", json!({}))]);
    snapshot.set_pod("a", PodInfo::new(&pod("x", port.clone())));
    assert!(ask(&snapshot, &pod("p", port)).contains("1 node(s) didn't have free ports for the requested pod ports"));
}

#[test]
fn anti_affinity_keeps_apart_in_both_directions() {
    let apart = json!({"spec": {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "kubernetes.io/hostname"}]}}}});
    let mut snapshot = cluster([node("a", json!({})), node("b", json!({}))]);
    snapshot.set_pod("a", PodInfo::new(&pod("x", apart.clone())));
    assert_eq!(ask(&snapshot, &pod("p", json!({}))), "-> b");
    snapshot.set_pod("b", PodInfo::new(&pod("y", json!({}))));
    let said = ask(&snapshot, &pod("p", apart));
    assert!(said.contains("2 node(s) didn't match pod anti-affinity rules"), "{said}");
}

#[test]
fn the_first_of_a_group_may_start_anywhere_and_the_rest_join_it() {
    let together = json!({"spec": {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "kubernetes.io/hostname"}]}}}});
    let mut snapshot = cluster([node("a", json!({})), node("b", json!({}))]);
    assert!(ask(&snapshot, &pod("p", together.clone())).starts_with("-> "));
    snapshot.set_pod("b", PodInfo::new(&pod("x", together.clone())));
    assert_eq!(ask(&snapshot, &pod("p", together)), "-> b");
}

#[test]
fn hard_spread_bounds_the_skew() {
    let spread = json!({"spec": {"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]}});
    let full = json!({"spec": {"unschedulable": true}});
    let mut snapshot = cluster([node("a", json!({})), node("b", full)]);
    assert_eq!(ask(&snapshot, &pod("p", spread.clone())), "-> a");
    snapshot.set_pod("a", PodInfo::new(&pod("x", spread.clone())));
    let said = ask(&snapshot, &pod("p", spread));
    assert!(said.contains("1 node(s) didn't match pod topology spread constraints"), "{said}");
}

#[test]
fn pods_of_one_controller_spread_by_default() {
    let owned = json!({"metadata": {"ownerReferences": [
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}]}});
    let roomy = json!({"status": {"allocatable": {"pods": "110"}}});
    let mut snapshot = cluster([node("a", roomy.clone()), node("b", roomy)]);
    let mut on = [0, 0];
    for i in 0..10 {
        let pod = pod(&format!("p{i}"), owned.clone());
        let to = ask(&snapshot, &pod);
        let index = usize::from(to == "-> b");
        on[index] += 1;
        snapshot.set_pod(["a", "b"][index], PodInfo::new(&pod));
    }
    assert_eq!(on, [5, 5]);
}

#[test]
fn preemption_takes_the_fewest_and_least_important() {
    let with = |cpu: &str, priority: i32| {
        let mut value = requests(cpu);
        merge(&mut value, json!({"spec": {"priority": priority}}));
        value
    };
    let mut snapshot = cluster([node("a", json!({})), node("b", json!({}))]);
    snapshot.set_pod("a", PodInfo::new(&pod("a1", with("1", 5))));
    snapshot.set_pod("a", PodInfo::new(&pod("a2", with("1", 5))));
    snapshot.set_pod("b", PodInfo::new(&pod("b1", with("1", 1))));
    snapshot.set_pod("b", PodInfo::new(&pod("b2", with("1", 7))));
    assert_eq!(ask(&snapshot, &pod("p", with("1", 10))), r#"preempts ["b1"] on b"#);
    assert_eq!(ask(&snapshot, &pod("p", with("2", 6))), r#"preempts ["a1", "a2"] on a"#);
    let never = json!({"spec": {"priority": 10, "preemptionPolicy": "Never"}});
    let mut polite = requests("2");
    merge(&mut polite, never);
    assert!(ask(&snapshot, &pod("p", polite)).ends_with("preemption: not eligible due to preemptionPolicy=Never."));
}
