//! Rows as text, as people read them.

use serde_json::{Value, json};

use super::*;
use crate::resource::{RESOURCES, find};

const NOW: &str = "2026-01-01T01:00:00Z";

fn line(group: &str, version: &str, plural: &str, mut object: Value) -> String {
    object["metadata"]["name"] = "x".into();
    object["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
    let cells = cells(find(group, version, plural).unwrap(), &object, NOW.parse().unwrap());
    let shown = cells.iter().map(|cell| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned));
    shown.collect::<Vec<_>>().join(" | ")
}

fn pod(status: Value) -> String {
    let spec =
        json!({"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}], "nodeName": "n"});
    line("", "v1", "pods", json!({"spec": spec, "status": status}))
}

#[test]
fn every_kind_fills_its_columns() {
    for resource in RESOURCES {
        let cells = cells(resource, &json!({"metadata": {"name": "x"}}), NOW.parse().unwrap());
        assert_eq!(cells.len(), columns(resource).len(), "{}", resource.kind);
        assert_eq!(column_definitions(resource).as_array().unwrap().len(), cells.len());
    }
}

#[test]
fn durations() {
    for (seconds, expected) in [
        (-5, "<invalid>"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (330, "5m30s"),
        (3600, "60m"),
        (4 * 3600, "4h"),
        (4 * 3600 + 60, "4h1m"),
        (9 * 3600 + 60, "9h"),
        (49 * 3600, "2d1h"),
        (30 * 86400, "30d"),
        (800 * 86400, "2y70d"),
    ] {
        assert_eq!(duration(seconds), expected);
    }
}

#[test]
fn pods() {
    assert_eq!(pod(json!({"phase": "Pending"})), "x | 0/2 | Pending | 0 | 60m | <none> | n | <none> | <none>");
    let init = json!([{"name": "i", "state": {"running": {}}}]);
    assert!(pod(json!({"phase": "Pending", "initContainerStatuses": init})).starts_with("x | 0/2 | Init:0/1 |"));
    let done = json!([{"name": "i", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]);
    let loops = json!([
        {"name": "a", "ready": true, "state": {"running": {}}},
        {"name": "b", "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"finishedAt": "2026-01-01T00:59:55Z"}}},
    ]);
    let status = json!({"phase": "Running", "initContainerStatuses": done, "containerStatuses": loops,
        "podIPs": [{"ip": "10.0.0.1"}]});
    assert_eq!(pod(status), "x | 1/2 | CrashLoopBackOff | 3 (5s ago) | 60m | 10.0.0.1 | n | <none> | <none>");
    let failed = json!([{"name": "i", "state": {"terminated": {"exitCode": 2}}}]);
    assert!(pod(json!({"phase": "Pending", "initContainerStatuses": failed})).contains("| Init:ExitCode:2 |"));
    let half = json!([
        {"name": "a", "ready": true, "state": {"running": {}}},
        {"name": "b", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}},
    ]);
    assert!(pod(json!({"phase": "Running", "containerStatuses": half})).contains("| 1/2 | NotReady |"));
}

#[test]
fn pods_on_their_way_out() {
    let mut object = json!({"metadata": {"deletionTimestamp": NOW}, "status": {"phase": "Running"}});
    assert!(line("", "v1", "pods", object.clone()).contains("| Terminating |"));
    object["status"]["phase"] = "Succeeded".into();
    assert!(line("", "v1", "pods", object).contains("| Succeeded |"));
}

#[test]
fn workloads() {
    let template = json!({"spec": {"containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "j"}]}});
    let spec = json!({"replicas": 3, "template": template, "selector": {"matchLabels": {"app": "x"}}});
    let status = json!({"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 1});
    let object = json!({"spec": spec, "status": status});
    assert_eq!(line("apps", "v1", "deployments", object), "x | 2/3 | 3 | 1 | 60m | a,b | i,j | app=x");
    let job = json!({"spec": {"completions": 1}, "status": {"succeeded": 1, "startTime": "2026-01-01T00:00:00Z",
        "completionTime": "2026-01-01T00:00:07Z", "conditions": [{"type": "Complete", "status": "True"}]}});
    assert_eq!(line("batch", "v1", "jobs", job), "x | Complete | 1/1 | 7s | 60m |  |  | <unset>");
}

#[test]
fn services_and_nodes() {
    let service = json!({"spec": {"type": "NodePort", "clusterIP": "10.0.0.1", "selector": {"a": "b"},
        "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}});
    assert_eq!(
        line("", "v1", "services", service),
        "x | NodePort | 10.0.0.1 | <none> | 80:30080/TCP,53/UDP | 60m | a=b"
    );
    let node = json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}},
        "spec": {"unschedulable": true},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"kubeletVersion": "v1.36.0"},
            "addresses": [{"type": "InternalIP", "address": "10.0.0.2"}]}});
    assert_eq!(
        line("", "v1", "nodes", node),
        "x | Ready,SchedulingDisabled | control-plane | 60m | v1.36.0 | 10.0.0.2 | <none> | <unknown> | <unknown> | \
         <unknown>"
    );
    let slice = json!({"addressType": "IPv4", "ports": [{"port": 80}],
        "endpoints": [{"addresses": ["1.1.1.1"]}, {"addresses": ["1.1.1.2"]}, {"addresses": ["1.1.1.3"]}, {"addresses": ["1.1.1.4"]}]});
    assert_eq!(
        line("discovery.k8s.io", "v1", "endpointslices", slice),
        "x | IPv4 | 80 | 1.1.1.1,1.1.1.2,1.1.1.3 + 1 more... | 60m"
    );
}

#[test]
fn events_and_requests() {
    let event = json!({"type": "Normal", "reason": "Scheduled", "message": "done\n", "count": 2,
        "involvedObject": {"kind": "Pod", "name": "p"}, "lastTimestamp": "2026-01-01T00:59:00Z",
        "firstTimestamp": "2026-01-01T00:58:00Z", "source": {"component": "kubelet", "host": "n"}});
    assert_eq!(line("", "v1", "events", event), "60s | Normal | Scheduled | pod/p |  | kubelet, n | done | 2m | 2 | x");
    let request = json!({"spec": {"signerName": "s", "username": "u"},
        "status": {"certificate": "c", "conditions": [{"type": "Approved"}]}});
    assert_eq!(
        line("certificates.k8s.io", "v1", "certificatesigningrequests", request),
        "x | 60m | s | u | <none> | Approved,Issued"
    );
}

#[test]
fn tables() {
    let resource = find("", "v1", "configmaps").unwrap();
    let object = json!({"metadata": {"name": "x"}, "data": {"a": "b"}});
    let table =
        table(resource, [&object], json!({"resourceVersion": "7"}), NOW.parse().unwrap(), IncludeObject::Metadata);
    assert_eq!(table["rows"][0]["cells"], json!(["x", 1, "<unknown>"]));
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    assert_eq!(table["columnDefinitions"][0]["format"], "name");
}
