//! What the status says, as text.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use bosun_kubelet_node::NodeConfig;
use bosun_kubelet_node::facts::{Devices, RuntimeCondition, RuntimeStatus};
use bosun_kubelet_node::machine::{Machine, Resources};
use bosun_kubelet_node::pressure::{Pressure, Thresholds};
use bosun_kubelet_node::status::{Observed, Plan, plan};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerImage, Node};
use serde_json::{Value, json};

fn observed() -> Observed {
    Observed {
        machine: Machine {
            machine_id: "m".into(),
            system_uuid: "s".into(),
            boot_id: "b".into(),
            kernel_version: "6.18.0".into(),
            os_image: "Debian GNU/Linux 12 (bookworm)".into(),
            operating_system: "linux".into(),
            architecture: "amd64".into(),
            cpus: 2,
            memory: 4 << 30,
            swap: 0,
            hugepages: [("hugepages-2Mi".to_owned(), 64 << 20)].into(),
        },
        resources: Some(Resources {
            memory_available: 2 << 30,
            fs_capacity: 100 << 30,
            fs_available: 50 << 30,
            ..Resources::default()
        }),
        pressure: Pressure::default(),
        ips: vec!["10.0.0.1".parse().unwrap()],
        runtime_version: Some("containerd://2.1.9".into()),
        runtime: Some(Ok(RuntimeStatus::ready())),
        images: Some(vec![]),
        devices: Devices::default(),
        errors: vec![],
        volumes_in_use: vec![],
    }
}

fn config() -> NodeConfig {
    let mut config = NodeConfig::new("node-1");
    config.kube_reserved = [("cpu".to_owned(), "100m".to_owned()), ("memory".to_owned(), "256Mi".to_owned())].into();
    config.system_reserved = [("memory".to_owned(), "256Mi".to_owned())].into();
    config
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_767_225_600 + second).unwrap()
}

fn run(observed: &Observed, previous: &Node, second: i64) -> Plan {
    let config = config();
    plan(&config, &Thresholds::parse(&config.eviction_hard).unwrap(), observed, previous, at(second))
}

fn node(plan: &Plan) -> Node {
    Node { status: Some(plan.status.clone()), ..Node::default() }
}

fn reasons(plan: &Plan) -> Vec<&'static str> {
    plan.events.iter().map(|event| event.reason).collect()
}

fn ready(plan: &Plan) -> (String, String) {
    let ready = plan.status.conditions.as_ref().unwrap().last().unwrap().clone();
    assert_eq!(ready.type_, "Ready", "it stands last");
    (ready.status, ready.message.unwrap())
}

#[test]
fn the_first_report() {
    let plan = run(&observed(), &Node::default(), 0);
    assert!(plan.changed && plan.ready);
    assert_eq!(reasons(&plan), ["NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID"]);
    assert_eq!(plan.events[0].message, "Node node-1 status is now: NodeHasSufficientMemory");
    let time = "2026-01-01T00:00:00Z";
    let condition = |type_: &str, status: &str, reason: &str, message: &str| {
        json!({"type": type_, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": time, "lastTransitionTime": time})
    };
    let want = json!({"status": {
        "addresses": [
            {"$patch": "replace"},
            {"type": "InternalIP", "address": "10.0.0.1"},
            {"type": "Hostname", "address": "node-1"},
        ],
        "capacity": {
            "cpu": "2", "memory": "4Gi", "pods": "110", "ephemeral-storage": "100Gi", "hugepages-2Mi": "64Mi",
        },
        "allocatable": {
            "cpu": "1900m", "memory": "3420Mi", "pods": "110", "ephemeral-storage": "90Gi", "hugepages-2Mi": "64Mi",
        },
        "conditions": [
            condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
        "images": [],
        "nodeInfo": {
            "architecture": "amd64",
            "bootID": "b",
            "containerRuntimeVersion": "containerd://2.1.9",
            "kernelVersion": "6.18.0",
            "kubeProxyVersion": "",
            "kubeletVersion": bosun_kit::version::GIT_VERSION,
            "machineID": "m",
            "operatingSystem": "linux",
            "osImage": "Debian GNU/Linux 12 (bookworm)",
            "systemUUID": "s",
        },
    }});
    assert_eq!(plan.patch, want, "{:#}", plan.patch);
}

#[test]
fn a_heartbeat_is_no_change() {
    let first = run(&observed(), &Node::default(), 0);
    let second = run(&observed(), &node(&first), 10);
    assert!(!second.changed && second.events.is_empty());
    let status = second.patch["status"].as_object().unwrap();
    assert_eq!(status.keys().collect::<Vec<_>>(), ["conditions"]);
    assert_eq!(status["conditions"][3]["lastHeartbeatTime"], "2026-01-01T00:00:10Z");
    assert_eq!(status["conditions"][3]["lastTransitionTime"], "2026-01-01T00:00:00Z");
}

#[test]
fn only_what_changed_is_sent() {
    let mut first = run(&observed(), &Node::default(), 0);
    first
        .status
        .capacity
        .as_mut()
        .unwrap()
        .insert("example.com/gpu".into(), k8s_openapi::apimachinery::pkg::api::resource::Quantity("4".into()));
    let mut now = observed();
    now.machine.hugepages.clear();
    now.images = Some(vec![ContainerImage { names: Some(vec!["a".into()]), size_bytes: Some(1) }]);
    let second = run(&now, &node(&first), 10);
    assert!(second.changed);
    let status = &second.patch["status"];
    assert_eq!(status["capacity"], json!({"hugepages-2Mi": null}));
    assert_eq!(status["allocatable"], json!({"example.com/gpu": "4", "hugepages-2Mi": null, "memory": "3484Mi"}));
    assert_eq!(status["images"][0]["names"], json!(["a"]));
    assert_eq!(status.get("nodeInfo"), None);
}

#[test]
fn why_a_node_is_not_ready() {
    let condition = |status, reason: &str, message: &str| {
        Some(RuntimeCondition { status, reason: reason.into(), message: message.into() })
    };
    let network = condition(false, "NetworkPluginNotReady", "cni plugin not initialized");
    let cases: Vec<(Observed, &str)> = vec![
        (Observed { runtime: None, ..observed() }, "container runtime status check may not have completed yet"),
        (Observed { runtime: Some(Err("dial".into())), ..observed() }, "container runtime is down"),
        (
            Observed {
                runtime: Some(Ok(RuntimeStatus { network: network.clone(), ..RuntimeStatus::ready() })),
                ..observed()
            },
            "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:cni plugin not initialized",
        ),
        (
            Observed {
                runtime: Some(Ok(RuntimeStatus {
                    network,
                    runtime: condition(false, "R", "m"),
                    ..RuntimeStatus::ready()
                })),
                ..observed()
            },
            "[container runtime not ready: RuntimeReady=false reason:R message:m, container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:cni plugin not initialized]",
        ),
        (Observed { errors: vec!["PLEG is not healthy".into()], ..observed() }, "PLEG is not healthy"),
        (Observed { resources: None, ..observed() }, "missing node capacity for resources: ephemeral-storage"),
        (Observed { ips: vec![], ..observed() }, "the node has no address"),
    ];
    let before = node(&run(&observed(), &Node::default(), 0));
    for (observed, want) in cases {
        let fresh = run(&observed, &Node::default(), 5);
        assert_eq!(ready(&fresh), ("False".to_owned(), want.to_owned()));
        assert!(!fresh.ready && !reasons(&fresh).contains(&"NodeNotReady"), "no event for a node just made");
        if want.contains("ephemeral") {
            // The capacity told earlier stands.
            continue;
        }
        let turned = run(&observed, &before, 5);
        assert_eq!(reasons(&turned), ["NodeNotReady"]);
    }
}

#[test]
fn pressures_turn_and_turn_back() {
    let first = node(&run(&observed(), &Node::default(), 0));
    let pressure = Pressure { memory: true, disk: true, pid: true };
    let short = run(&Observed { pressure, ..observed() }, &first, 10);
    assert!(short.ready, "a node under pressure is still ready");
    assert_eq!(reasons(&short), ["NodeHasInsufficientMemory", "NodeHasDiskPressure", "NodeHasInsufficientPID"]);
    let back = run(&observed(), &node(&short), 20);
    assert_eq!(reasons(&back), ["NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID"]);
}

#[test]
fn conditions_of_others_stay_and_are_not_sent() {
    let other = json!({"type": "NetworkUnavailable", "status": "False", "reason": "RouteCreated"});
    let previous: Node = serde_json::from_value(json!({"metadata": {}, "status": {"conditions": [other]}})).unwrap();
    let plan = run(&observed(), &previous, 0);
    let types: Vec<String> = plan.status.conditions.iter().flatten().map(|c| c.type_.clone()).collect();
    assert_eq!(types, ["NetworkUnavailable", "MemoryPressure", "DiskPressure", "PIDPressure", "Ready"]);
    let sent: Vec<&Value> = plan.patch["status"]["conditions"].as_array().unwrap().iter().map(|c| &c["type"]).collect();
    assert_eq!(sent, ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"]);
}

#[test]
fn a_reboot_is_told_once() {
    let first = node(&run(&observed(), &Node::default(), 0));
    let mut now = observed();
    now.machine.boot_id = "c".into();
    let second = run(&now, &first, 10);
    assert_eq!(second.events[0].message, "Node node-1 has been rebooted, boot id: c");
    assert!(second.events[0].warning);
    assert!(run(&now, &node(&second), 20).events.is_empty());
}

#[test]
fn devices_come_break_and_go() {
    let amounts = |plan: &Plan| {
        let status = plan.status.clone();
        let amount = |list: Option<std::collections::BTreeMap<String, _>>| {
            let list = list.unwrap();
            list.get("example.com/gpu").map(|q: &k8s_openapi::apimachinery::pkg::api::resource::Quantity| q.0.clone())
        };
        (amount(status.capacity), amount(status.allocatable))
    };
    let with = |devices: Devices| Observed { devices, ..observed() };
    let gpu = |count: i64| [("example.com/gpu".to_owned(), count)].into();
    let first = run(&observed(), &Node::default(), 0);
    assert_eq!(amounts(&first), (None, None));
    let broken = Devices { capacity: gpu(4), allocatable: gpu(3), ..Devices::default() };
    let second = run(&with(broken), &node(&first), 1);
    assert!(second.changed);
    assert_eq!(amounts(&second), (Some("4".into()), Some("3".into())));
    let removed = ["example.com/gpu".to_owned()].into();
    let third = run(&with(Devices { removed, ..Devices::default() }), &node(&second), 2);
    assert_eq!(amounts(&third), (Some("0".into()), Some("0".into())));
}
