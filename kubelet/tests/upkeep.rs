//! Upkeep of a node: pods are evicted one after another, refused, preempted; what nobody needs is given back first. Most
//! of it with a runtime in memory; what is measured of cgroups and disks with a real containerd.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod fixture;
mod real;

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bosun_kit::events::Recorder;
use bosun_kubelet::admission::Offer;
use bosun_kubelet::cgroups::Cgroups;
use bosun_kubelet::config::KubeletConfiguration;
use bosun_kubelet::context::Context;
use bosun_kubelet::cri::fake::FakeRuntime;
use bosun_kubelet::cri::{GrpcRuntime, Runtime};
use bosun_kubelet::make::Node;
use bosun_kubelet::make::resources::{self, Swap};
use bosun_kubelet::manager::{Inputs, Manager, Pods};
use bosun_kubelet::observe::Observer;
use bosun_kubelet::upkeep::{Settings, Strain, Strained, Upkeep};
use bosun_kubelet_cgroup::{Driver, Hierarchy};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use real::TestNode;

const IMAGE: &str = "app:1";

/// A node whose pods come from a channel. They bear no mark of static pods, so that they are like any other.
struct Rig {
    folder: tempfile::TempDir,
    /// The runtime, if it is the one in memory.
    runtime: Arc<FakeRuntime>,
    context: Arc<Context>,
    pods: Pods,
    offer: Arc<Mutex<Offer>>,
    statics: mpsc::UnboundedSender<BTreeMap<String, Arc<Pod>>>,
    wanted: BTreeMap<String, Arc<Pod>>,
    strain: Strained,
    cancel: CancellationToken,
}

impl Rig {
    fn start(offer: Offer) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let node = fixture::node(folder.path());
        let fake = Arc::new(FakeRuntime::new());
        fake.add_image(IMAGE);
        let rig = Self::on(fake.clone(), node, Cgroups::absent(), offer);
        Self { folder, runtime: fake, ..rig }
    }

    fn on(runtime: Arc<dyn Runtime>, node: Node, cgroups: Cgroups, offer: Offer) -> Self {
        let node = Arc::new(node);
        for path in [&node.pods_dir(), &node.pod_logs_dir, &node.container_logs_dir] {
            fs::create_dir_all(path).unwrap();
        }
        let (news_to, news) = mpsc::unbounded_channel();
        let observer = Observer::new(runtime.clone(), node.clone(), news_to);
        let context = Arc::new(Context { cgroups, ..fixture::context(&node, runtime.clone(), &observer) });
        let (pods, offer, cancel) = (Pods::default(), Arc::new(Mutex::new(offer)), CancellationToken::new());
        let (ended_to, ended) = mpsc::unbounded_channel();
        let (statics, statics_from) = mpsc::unbounded_channel();
        let manager = Manager::new(context.clone(), pods.clone(), offer.clone(), ended_to, cancel.clone());
        let inputs = Inputs { api: None, statics: Some(statics_from), news, changes: None };
        tokio::spawn(manager.run(inputs, ended));
        tokio::spawn(observer.run(cancel.clone()));
        let (_, strain) = watch::channel(Strain::default());
        let (folder, runtime) = (tempfile::tempdir().unwrap(), Arc::default());
        let wanted = BTreeMap::new();
        Self { folder, runtime, context, pods, offer, statics, wanted, strain, cancel }
    }

    /// Starts upkeep with these fields of a configuration.
    fn keep_up(&mut self, fields: Value) -> Arc<Upkeep> {
        let config: KubeletConfiguration = serde_json::from_value(fields).unwrap();
        let mut settings = Settings::new(&config, 1 << 30).unwrap();
        settings.eviction_interval = Duration::from_millis(100);
        settings.storage_interval = Some(Duration::from_millis(100));
        let (strain_to, strain) = watch::channel(Strain::default());
        self.strain = strain;
        let (context, pods, offer) = (self.context.clone(), self.pods.clone(), self.offer.clone());
        let upkeep = Upkeep::new(context, pods, offer, Recorder::to_log(), settings, strain_to);
        let mut parts = tokio::task::JoinSet::new();
        upkeep.start(&mut parts, &self.cancel);
        parts.detach_all();
        upkeep
    }

    fn add(&mut self, name: &str, spec: Value) {
        let mut spec = spec;
        spec["terminationGracePeriodSeconds"] = json!(5);
        if spec.get("containers").is_none() {
            spec["containers"] = json!([container(json!({}))]);
        }
        let pod =
            json!({"metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")}, "spec": spec});
        self.wanted.insert(format!("uid-{name}"), Arc::new(serde_json::from_value(pod).unwrap()));
        self.statics.send(self.wanted.clone()).unwrap();
    }

    fn pod(&self, name: &str) -> Option<Arc<Pod>> {
        let handle = self.pods.read().unwrap().get(&format!("uid-{name}")).cloned();
        handle.map(|handle| handle.pod())
    }

    fn status(&self, name: &str) -> Value {
        self.pod(name).map(|pod| serde_json::to_value(&pod.status).unwrap()).unwrap_or_default()
    }

    async fn until(&self, name: &str, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let status = self.status(name);
            if is(&status) {
                return status;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{name}: no {what} in {status:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn until_phase(&self, name: &str, phase: &str) -> Value {
        self.until(name, phase, |status| status["phase"] == phase).await
    }
}

fn container(resources: Value) -> Value {
    json!({"name": "main", "image": IMAGE, "imagePullPolicy": "Never", "resources": resources})
}

fn condition<'a>(status: &'a Value, kind: &str) -> Option<&'a Value> {
    status["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

#[tokio::test]
async fn pods_are_evicted_in_order_one_after_another() {
    let mut rig = Rig::start(Offer::default());
    rig.add("critical", json!({"priority": 2_000_000_000}));
    rig.add("high", json!({"priority": 100}));
    rig.add("low", json!({"priority": 1}));
    for name in ["critical", "high", "low"] {
        rig.until_phase(name, "Running").await;
    }
    rig.runtime.take_calls();
    rig.keep_up(json!({"evictionHard": {"memory.available": "1Pi"}}));
    let status = rig.until_phase("low", "Failed").await;
    assert_eq!(status["reason"], "Evicted");
    let message = status["message"].as_str().unwrap();
    assert!(
        message.starts_with("The node was low on resource: memory. Threshold quantity: 1Pi, available: "),
        "{message}"
    );
    let disruption = condition(&status, "DisruptionTarget").unwrap();
    assert_eq!(
        (disruption["status"].as_str(), disruption["reason"].as_str()),
        (Some("True"), Some("TerminationByKubelet"))
    );
    assert_eq!(disruption["message"], status["message"]);
    assert_eq!(rig.status("high")["phase"], "Running", "one at a time");
    rig.until_phase("high", "Failed").await;
    let calls = rig.runtime.take_calls().join("\n");
    let stops: Vec<&str> = calls.lines().filter(|call| call.starts_with("StopContainer")).collect();
    assert_eq!(stops.first(), Some(&"StopContainer main#0 1s"), "{calls}");
    assert_eq!(rig.status("critical")["phase"], "Running");

    // And such pods are refused meanwhile.
    let conditions: Vec<String> = rig.strain.borrow().short_of.iter().map(ToString::to_string).collect();
    assert_eq!(conditions, ["MemoryPressure"]);
    rig.add("late", json!({}));
    let late = rig.until_phase("late", "Failed").await;
    assert_eq!(late["reason"], "Evicted");
    assert_eq!(late["message"], "Pod was rejected: The node had condition: [MemoryPressure]. ");
}

#[tokio::test]
async fn what_nobody_needs_is_given_back_first() {
    let mut rig = Rig::start(Offer::default());
    rig.runtime.add_image("unused:1");
    rig.add("done", json!({"restartPolicy": "Never"}));
    rig.until_phase("done", "Running").await;
    rig.runtime.exit("main", 0);
    rig.context.observer.list().await.unwrap();
    let done = rig.until_phase("done", "Succeeded").await;
    rig.add("busy", json!({"priority": 2_000_000_000}));
    rig.until_phase("busy", "Running").await;
    // The worker has given the sandbox back.
    rig.until("done", "end of its sandbox", |s| {
        condition(s, "PodReadyToStartContainers").is_some_and(|c| c["status"] == "False")
    })
    .await;
    rig.runtime.take_calls();
    rig.keep_up(json!({"evictionHard": {"nodefs.available": "1Pi"}}));
    let began = Instant::now();
    let mut calls = String::new();
    while !(calls.contains("RemoveImage sha256:unused:1") && calls.contains("RemovePodSandbox")) {
        assert!(began.elapsed() < Duration::from_secs(20), "{calls}");
        tokio::time::sleep(Duration::from_millis(50)).await;
        calls.push_str(&rig.runtime.take_calls().join("\n"));
    }
    assert!(calls.contains("RemoveContainer"), "{calls}");
    assert!(!calls.contains(&format!("RemoveImage sha256:{IMAGE}")), "in use: {calls}");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let still = rig.status("done");
    assert_eq!(still["phase"], "Succeeded", "it never lives again");
    assert_eq!(still["containerStatuses"][0]["state"], done["containerStatuses"][0]["state"]);
    assert!(!rig.runtime.take_calls().iter().any(|call| call.starts_with("CreateContainer")));
}

#[tokio::test]
async fn a_volume_that_grows_too_large_ends_its_pod() {
    let mut rig = Rig::start(Offer::default());
    let volumes = json!([{"name": "scratch", "emptyDir": {"sizeLimit": "1Mi"}}]);
    rig.add("small", json!({"volumes": volumes}));
    rig.add("large", json!({"volumes": volumes}));
    rig.until_phase("small", "Running").await;
    rig.until_phase("large", "Running").await;
    rig.keep_up(json!({"evictionHard": {"memory.available": "1"}}));
    let pods = rig.folder.path().join("kubelet/pods");
    for (pod, size) in [("small", 500_000), ("large", 2_000_000)] {
        let file = pods.join(format!("uid-{pod}/volumes/kubernetes.io~empty-dir/scratch/file"));
        fs::write(file, vec![1; size]).unwrap();
    }
    let status = rig.until_phase("large", "Failed").await;
    assert_eq!(status["reason"], "Evicted");
    assert_eq!(status["message"], "Usage of EmptyDir volume \"scratch\" exceeds the limit \"1Mi\". ");
    assert!(condition(&status, "DisruptionTarget").is_none());
    assert_eq!(rig.status("small")["phase"], "Running");
}

#[tokio::test]
async fn a_critical_pod_takes_the_place_of_another() {
    let cpu = bosun_api::quantity::Quantity::from_milli(1000);
    let offer = Offer { known: true, max_pods: 10, allocatable: [("cpu".to_owned(), cpu)].into(), ..Offer::default() };
    let mut rig = Rig::start(offer);
    let asking = |cpu: &str| json!([container(json!({"requests": {"cpu": cpu}}))]);
    rig.add("small", json!({"containers": asking("200m")}));
    rig.add("large", json!({"containers": asking("700m")}));
    rig.until_phase("small", "Running").await;
    rig.until_phase("large", "Running").await;
    rig.add("critical", json!({"priority": 2_000_000_000, "containers": asking("600m")}));
    rig.until_phase("critical", "Running").await;
    let victim = rig.status("large");
    assert_eq!((victim["phase"].as_str(), victim["reason"].as_str()), (Some("Failed"), Some("Preempting")));
    assert_eq!(victim["message"], "Preempted in order to admit critical pod");
    let disruption = condition(&victim, "DisruptionTarget").unwrap();
    assert_eq!(disruption["message"], "Pod was preempted by Kubelet to accommodate a critical pod.");
    assert_eq!(rig.status("small")["phase"], "Running");
    rig.add("common", json!({"containers": asking("600m")}));
    let refused = rig.until_phase("common", "Failed").await;
    assert_eq!(refused["reason"], "OutOfcpu");
    assert_eq!(
        refused["message"],
        "Pod was rejected: Node didn't have enough resource: cpu, requested: 600, used: 800, capacity: 1000"
    );
}

#[tokio::test]
async fn a_shutdown_ends_pods_lowest_priority_first() {
    let mut rig = Rig::start(Offer::default());
    rig.add("dns", json!({"priority": 2_000_000_000}));
    rig.add("web", json!({}));
    rig.until_phase("dns", "Running").await;
    rig.until_phase("web", "Running").await;
    // The bus of the system is nobody's here; what follows its signal is asked for by hand.
    let upkeep = rig.keep_up(json!({"evictionHard": {"memory.available": "1"},
        "shutdownGracePeriod": "7s", "shutdownGracePeriodCriticalPods": "3s"}));
    rig.runtime.take_calls();
    upkeep.shut_down(None).await;
    let calls = rig.runtime.take_calls();
    let stops: Vec<&String> = calls.iter().filter(|call| call.starts_with("StopContainer")).collect();
    assert_eq!(stops, ["StopContainer main#0 4s", "StopContainer main#0 3s"]);
    for name in ["web", "dns"] {
        let status = rig.status(name);
        assert_eq!(
            (status["phase"].as_str(), status["reason"].as_str()),
            (Some("Failed"), Some("Terminated")),
            "{name}"
        );
        assert_eq!(status["message"], "Pod was terminated in response to imminent node shutdown.");
        assert_eq!(condition(&status, "DisruptionTarget").unwrap()["reason"], "TerminationByKubelet");
    }
    assert!(rig.strain.borrow().shutting_down);
    rig.add("late", json!({}));
    let late = rig.until_phase("late", "Failed").await;
    assert_eq!(late["reason"], "NodeShutdown");
    assert_eq!(late["message"], "Pod was rejected: Pod was rejected as the node is shutting down.");
}

#[tokio::test]
async fn unused_images_go_when_the_disk_is_full() {
    let mut rig = Rig::start(Offer::default());
    rig.add("busy", json!({}));
    rig.until_phase("busy", "Running").await;
    rig.runtime.add_image("unused:1");
    let fields = |high: i32| {
        json!({"imageGCHighThresholdPercent": high, "imageGCLowThresholdPercent": 0,
        "evictionHard": {"memory.available": "1"}})
    };
    let lost = rig.keep_up(fields(0));
    assert!(lost.collect_images_once(true).await, "the file system of images is not known");
    rig.runtime.set_image_filesystem(rig.folder.path().to_str().unwrap());
    let idle = rig.keep_up(fields(101));
    // Logs are looked at beside this.
    let removed = || {
        let calls = rig.runtime.take_calls();
        calls.into_iter().filter(|call| call.starts_with("RemoveImage")).collect::<Vec<_>>()
    };
    assert!(!idle.collect_images_once(false).await, "not full");
    assert_eq!(removed(), Vec::<String>::new());
    // No disk is emptied by one small image, which is told.
    assert!(lost.collect_images_once(false).await);
    assert_eq!(removed(), ["RemoveImage sha256:unused:1"]);
}

/// A pod on the node's network that does this and then nothing.
fn doing(script: &str, resources: Value) -> Value {
    let script = format!("{script}; busybox sleep 1000");
    json!({"hostNetwork": true, "containers": [{"name": "main", "image": real::IMAGE, "imagePullPolicy": "Never",
        "command": [real::BUSYBOX, "sh", "-c", script], "resources": resources}]})
}

#[tokio::test]
async fn with_a_real_runtime_disk_and_memory_are_measured() {
    let machine = TestNode::start();
    let node = Node {
        root_dir: machine.folder.join("kubelet"),
        pod_logs_dir: machine.folder.join("logs/pods"),
        container_logs_dir: machine.folder.join("logs/containers"),
        cgroup_root: format!("/{}/kubepods", machine.name),
        cgroups_per_qos: true,
        ..fixture::node(&machine.folder)
    };
    let endpoint = format!("unix://{}", machine.path("c.sock"));
    let runtime = Arc::new(GrpcRuntime::new(&endpoint, "", Duration::from_secs(60)).unwrap());
    let cgroups = Cgroups::detect(Driver::Cgroupfs);
    cgroups.set_up_node(&node).await.unwrap();
    let mut rig = Rig::on(runtime, node, cgroups, Offer::default());
    rig.add(
        "writer",
        doing("busybox dd if=/dev/zero of=/file bs=1M count=5", json!({"limits": {"ephemeral-storage": "2Mi"}})),
    );
    rig.add("small", doing("true", json!({"requests": {"memory": "1Mi"}})));
    rig.add(
        "large",
        doing("busybox dd if=/dev/zero of=/dev/shm/file bs=1M count=30", json!({"requests": {"memory": "2Mi"}})),
    );
    for name in ["writer", "small", "large"] {
        rig.until_phase(name, "Running").await;
    }
    // The runtime measures writable layers now and then.
    rig.keep_up(json!({"evictionHard": {"memory.available": "1"}}));
    let writer = rig.until_phase("writer", "Failed").await;
    assert_eq!(writer["reason"], "Evicted");
    assert_eq!(writer["message"], "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. ");

    let cgroup = resources::cgroup_parent(&rig.pod("large").unwrap(), &rig.context.node);
    let used = || Hierarchy::new("/sys/fs/cgroup").working_set(&cgroup).unwrap_or(0);
    real::wait("use of memory", || used() > 30 << 20);
    rig.keep_up(json!({"evictionHard": {"memory.available": "1Pi"}}));
    let large = rig.until_phase("large", "Failed").await;
    let message = large["message"].as_str().unwrap();
    assert!(message.contains("Container main was using 3"), "{message}");
    assert!(message.ends_with(", request is 2Mi, has larger consumption of memory. "), "{message}");
    assert_eq!(rig.status("small")["phase"], "Running", "one at a time, the largest first");
    rig.until_phase("small", "Failed").await;
    rig.cancel.cancel();
}

#[tokio::test]
#[ignore = "needs version 2 cgroups: cargo xtask qemu"]
async fn with_a_real_runtime_swap_is_shared_out_by_memory() {
    let machine = TestNode::start();
    let node = Node {
        root_dir: machine.folder.join("kubelet"),
        pod_logs_dir: machine.folder.join("logs/pods"),
        container_logs_dir: machine.folder.join("logs/containers"),
        cgroup_root: format!("/{}/kubepods", machine.name),
        cgroups_per_qos: true,
        // Of 1 GiB of memory and 64 MiB of swap.
        limits: resources::Settings { unified: true, swap: Swap::Limited(64 << 20), ..Default::default() },
        ..fixture::node(&machine.folder)
    };
    let endpoint = format!("unix://{}", machine.path("c.sock"));
    let runtime = Arc::new(GrpcRuntime::new(&endpoint, "", Duration::from_secs(60)).unwrap());
    let cgroups = Cgroups::detect(Driver::Cgroupfs);
    cgroups.set_up_node(&node).await.unwrap();
    let mut rig = Rig::on(runtime, node, cgroups, Offer::default());
    rig.add("some", doing("true", json!({"requests": {"memory": "128Mi"}})));
    rig.add("sure", doing("true", json!({"requests": {"memory": "32Mi"}, "limits": {"memory": "32Mi"}})));
    for (name, swap) in [("some", "8388608\n"), ("sure", "0\n")] {
        rig.until_phase(name, "Running").await;
        let pod = rig.pod(name).unwrap();
        let status = serde_json::to_value(&pod.status).unwrap();
        let id =
            status["containerStatuses"][0]["containerID"].as_str().unwrap().trim_start_matches("fake://").to_owned();
        let hierarchy = Hierarchy::new("/sys/fs/cgroup");
        let cgroup = hierarchy.container(&resources::cgroup_parent(&pod, &rig.context.node), &id).unwrap();
        let file = hierarchy.folder("memory", &cgroup).join("memory.swap.max");
        assert_eq!(fs::read_to_string(file).unwrap(), swap, "{name}");
    }
    rig.cancel.cancel();
}
