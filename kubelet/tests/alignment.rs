//! CPUs and devices of containers' own on a real containerd: the cpuset reaches the process, the pool shrinks and grows
//! under running containers, a device plugin and the kubelet restart, and what was given stays given.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

#[path = "../devices/tests/fixture/mod.rs"]
mod plugin;
mod real;

use std::fs;
use std::path::PathBuf;

use bosun_kubelet_devices::unix;
use bosun_proto::podresources::pod_resources_lister_client::PodResourcesListerClient;
use bosun_proto::podresources::{AllocatableResourcesRequest, ContainerResources, ListPodResourcesRequest};
use serde_json::{Value, json};

use plugin::{TestPlugin, device};
use real::{BUSYBOX, IMAGE, TestNode, wait_or};

const DEVICE: &str = "example.com/null";

fn sleeper(resources: &Value) -> Value {
    let container = json!({
        "name": "app", "image": IMAGE, "imagePullPolicy": "Never", "command": [BUSYBOX, "sleep", "3600"],
        "resources": {"requests": resources, "limits": resources},
    });
    json!({"containers": [container], "terminationGracePeriodSeconds": 0, "hostNetwork": true})
}

/// The pod of that name, which has the node's name added.
fn pod(node: &TestNode, name: &str) -> Option<Value> {
    let name = format!("{name}-node1");
    node.pods().into_iter().find(|pod| pod["metadata"]["name"] == name.as_str())
}

fn until(node: &TestNode, what: &str, done: impl FnMut() -> bool) {
    wait_or(what, done, || node.log());
}

/// Its container, once that runs: the id, and the process.
fn running(node: &TestNode, name: &str) -> (String, u32) {
    let mut found = None;
    until(node, name, || {
        found = pod(node, name).and_then(|pod| {
            let status = &pod["status"]["containerStatuses"][0];
            status["state"]["running"].as_object()?;
            let id = status["containerID"].as_str()?.split("://").nth(1)?.to_owned();
            let tasks = node.ctr().args(["-n", "k8s.io", "tasks", "ls"]).output().ok()?.stdout;
            let tasks = String::from_utf8_lossy(&tasks).into_owned();
            let line = tasks.lines().find(|line| line.starts_with(&id))?;
            let process = line.split_whitespace().nth(1)?.parse().ok()?;
            Some((id, process))
        });
        found.is_some()
    });
    found.unwrap()
}

/// The CPUs on which a process may run.
fn cpus(process: u32) -> String {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    line.unwrap().trim().to_owned()
}

/// What the node tells agents of that pod.
async fn told(node: &TestNode, name: &str) -> ContainerResources {
    let socket = PathBuf::from(node.path("kubelet/pod-resources/kubelet.sock"));
    let mut client = PodResourcesListerClient::new(unix::channel(socket));
    let pods = client.list(ListPodResourcesRequest {}).await.unwrap().into_inner().pod_resources;
    let found = pods.into_iter().find(|pod| pod.name == format!("{name}-node1"));
    found.unwrap().containers.remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cpus_of_its_own_reach_the_process() {
    let configuration = json!({
        "cpuManagerPolicy": "static", "reservedSystemCPUs": "0", "cpuManagerReconcilePeriod": "1s",
        "memoryManagerPolicy": "Static", "evictionHard": {"memory.available": "100Mi"},
        "reservedMemory": [{"numaNode": 0, "limits": {"memory": "100Mi"}}],
        "topologyManagerPolicy": "single-numa-node",
    });
    let mut node = TestNode::start_with(configuration, false);
    let all = fs::read_to_string("/sys/devices/system/cpu/online").unwrap().trim().to_owned();
    assert_ne!(all, "0", "this test needs two CPUs");
    node.start_kubelet();
    node.manifest("shared", &sleeper(&json!({})));
    let (shared_id, shared) = running(&node, "shared");
    assert_eq!(cpus(shared), all);
    node.manifest("own", &sleeper(&json!({"cpu": "1", "memory": "64Mi"})));
    let (own_id, own) = running(&node, "own");
    let given = cpus(own);
    assert_ne!(given, "0", "that one is reserved");
    assert!(!given.contains(['-', ',']), "one CPU, not {given}");
    let rest = || cpus(shared);
    until(&node, "the pool to shrink", || rest() != all);
    assert!(!rest().split(',').any(|part| part == given), "{}", rest());
    let shown = told(&node, "own").await;
    assert_eq!(shown.cpu_ids, [given.parse::<i64>().unwrap()]);
    let of_memory = &shown.memory[0];
    assert_eq!((of_memory.memory_type.as_str(), of_memory.size), ("memory", 64 << 20));
    assert!(told(&node, "shared").await.cpu_ids.is_empty());
    let kept: Value = serde_json::from_slice(&fs::read(node.path("kubelet/memory_manager_state")).unwrap()).unwrap();
    assert_eq!(kept["machineState"]["0"]["memoryMap"]["memory"]["reserved"], 64 << 20);
    let state: Value = serde_json::from_slice(&fs::read(node.path("kubelet/cpu_manager_state")).unwrap()).unwrap();
    assert_eq!((&state["policyName"], &state["defaultCpuSet"]), (&json!("static"), &json!(rest())));

    // More CPUs than there are.
    node.manifest("large", &sleeper(&json!({"cpu": "999", "memory": "64Mi"})));
    until(&node, "the refusal", || pod(&node, "large").is_some_and(|pod| pod["status"]["phase"] == "Failed"));
    let status = pod(&node, "large").unwrap()["status"].clone();
    assert_eq!(status["reason"], "TopologyAffinityError");
    assert_eq!(status["message"], "Pod was rejected: Resources cannot be allocated with Topology locality");

    // The kubelet is killed and comes back: the same containers on the same CPUs.
    node.kill_kubelet();
    node.start_kubelet();
    assert_eq!((running(&node, "own"), running(&node, "shared")), ((own_id, own), (shared_id, shared)));
    assert_eq!(cpus(own), given);
    assert_eq!(told(&node, "own").await.cpu_ids, [given.parse::<i64>().unwrap()]);
    // The pod goes, and its CPU to the pool.
    fs::remove_file(node.path("manifests/own.yaml")).unwrap();
    until(&node, "the pool to grow", || rest() == all);

    // Another policy does not take over what this one gave.
    node.kill_kubelet();
    node.configure(&json!({"cpuManagerPolicy": "none"}));
    node.start_kubelet();
    assert_ne!(node.end_of_kubelet(None), 0);
    let fault = "configured policy \"none\" differs from state checkpoint policy \"static\"";
    assert!(node.log().contains(fault) || node.log().contains(&fault.replace('"', "\\\"")), "{}", node.log());
    fs::remove_file(node.path("kubelet/cpu_manager_state")).unwrap();
    node.start_kubelet();
    assert_eq!(running(&node, "shared").1, shared);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_reach_the_container_and_stay() {
    let mut node = TestNode::start_with(json!({"featureGates": {"ResourceHealthStatus": true}}), false);
    node.start_kubelet();
    let folder = PathBuf::from(node.path("kubelet/device-plugins"));
    let offer = || vec![device("a", "Healthy", Some(0)), device("b", "Healthy", Some(0))];
    let start = async || {
        until(&node, "the kubelet's socket", || folder.join("kubelet.sock").exists());
        let plugin = TestPlugin::start(&folder, DEVICE, offer());
        plugin.register().await.unwrap();
        plugin
    };
    let plugin = start().await;
    node.manifest("one", &sleeper(&json!({DEVICE: "1"})));
    let (id, process) = running(&node, "one");
    assert_eq!(plugin.take_calls(), ["GetPreferredAllocation a,b", "Allocate b", "PreStartContainer b"]);
    let inside = |path: &str| fs::metadata(format!("/proc/{process}/root{path}")).is_ok();
    assert!(inside("/dev/test-b") && !inside("/dev/test-a") && inside("/test-hosts"));
    let environment = fs::read_to_string(format!("/proc/{process}/environ")).unwrap();
    assert!(environment.split('\0').any(|variable| variable == "TEST_DEVICES=b"), "{environment}");
    let shown = told(&node, "one").await.devices;
    assert_eq!((shown[0].resource_name.as_str(), &shown[0].device_ids), (DEVICE, &vec!["b".to_owned()]));
    assert_eq!(shown[0].topology.as_ref().unwrap().nodes[0].id, 0);
    // It breaks, and the pod's status says so.
    let health = || {
        let status = pod(&node, "one").unwrap()["status"]["containerStatuses"][0].clone();
        status["allocatedResourcesStatus"][0]["resources"][0]["health"].clone()
    };
    until(&node, "health", || health() == "Healthy");
    plugin.offer(vec![device("a", "Healthy", Some(0)), device("b", "Unhealthy", Some(0))]);
    until(&node, "the device to break", || health() == "Unhealthy");

    // The plugin goes and comes back: the container never notices.
    drop(plugin);
    let plugin = start().await;
    until(&node, "the device to be well again", || health() == "Healthy");
    assert_eq!(running(&node, "one"), (id.clone(), process));

    // Kubelet and plugin go. The kubelet comes back first: the pod that runs is not refused, and one that comes now
    // waits for the plugin.
    node.kill_kubelet();
    drop(plugin);
    let _ = fs::remove_file(folder.join("kubelet.sock"));
    node.manifest("two", &sleeper(&json!({DEVICE: "1"})));
    node.start_kubelet();
    assert_eq!(running(&node, "one"), (id.clone(), process));
    until(&node, "the second pod to wait", || node.log().contains("WaitingForDevicePlugin"));
    assert_eq!(told(&node, "one").await.devices[0].device_ids, ["b"]);
    assert!(pod(&node, "two").is_none_or(|pod| pod["status"]["phase"] != "Failed"));
    until(&node, "the kubelet's socket", || folder.join("kubelet.sock").exists());
    let plugin = TestPlugin::start(&folder, DEVICE, offer());
    plugin.register().await.unwrap();
    running(&node, "two");
    assert_eq!(told(&node, "two").await.devices[0].device_ids, ["a"]);
    // There are only two.
    node.manifest("three", &sleeper(&json!({DEVICE: "1"})));
    until(&node, "the refusal", || pod(&node, "three").is_some_and(|pod| pod["status"]["phase"] == "Failed"));
    let status = pod(&node, "three").unwrap()["status"].clone();
    let message = "Pod was rejected: Allocate failed due to requested number of devices unavailable for example.com/null. Requested: 1, Available: 0, which is unexpected";
    assert_eq!((&status["reason"], &status["message"]), (&json!("UnexpectedAdmissionError"), &json!(message)));
    // The first goes: its device is free.
    fs::remove_file(node.path("manifests/one.yaml")).unwrap();
    until(&node, "the first pod to be gone", || pod(&node, "one").is_none());
    node.manifest("four", &sleeper(&json!({DEVICE: "1"})));
    running(&node, "four");
    assert_eq!(told(&node, "four").await.devices[0].device_ids, ["b"]);
    let socket = PathBuf::from(node.path("kubelet/pod-resources/kubelet.sock"));
    let mut client = PodResourcesListerClient::new(unix::channel(socket));
    let all = client.get_allocatable_resources(AllocatableResourcesRequest {}).await.unwrap().into_inner();
    assert_eq!((all.devices.len(), all.cpu_ids.len()), (2, 0));
}
