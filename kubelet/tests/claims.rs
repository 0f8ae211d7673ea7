//! Claims of pods on a real containerd: a pod waits for its driver, its containers get the CDI devices of their requests
//! (where the runtime knows CDI: containerd 2), a claim that is shared is unprepared after its last pod, and what a
//! kubelet that is gone had prepared is unprepared by the next.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

#[path = "../dra/tests/fixture/mod.rs"]
mod driver;
mod fixture;
mod real;

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bosun_kit::events::Recorder;
use bosun_kit::metrics::Metrics;
use bosun_kubelet::admission::Offer;
use bosun_kubelet::alignment::shown::PodsResources;
use bosun_kubelet::cgroups::Cgroups;
use bosun_kubelet::claims;
use bosun_kubelet::context::Context;
use bosun_kubelet::cri::GrpcRuntime;
use bosun_kubelet::make::Node;
use bosun_kubelet::manager::{Inputs, Manager, Pods};
use bosun_kubelet::observe::Observer;
use bosun_kubelet::report::Report;
use bosun_kubelet_cgroup::Driver;
use bosun_kubelet_devices::pod_resources::Pods as _;
use bosun_kubelet_dra::Api;
use bosun_kubelet_plugins::{DRA_PLUGIN, Handler, PluginWatcher};
use bosun_proto::dra::health::HealthStatus;
use bosun_proto::podresources::PodResources;
use http::{Request, Response};
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use driver::{FakeDriver, device};
use real::TestNode;

const DRIVER: &str = "gpu.example.com";

/// The claims of the cluster, and its events.
#[derive(Default)]
struct Cluster {
    claims: Mutex<BTreeMap<String, ResourceClaim>>,
    events: Arc<Mutex<Vec<Value>>>,
}

impl Cluster {
    /// Allocates a claim for these pods.
    fn allocate(&self, name: &str, pods: &[&str]) {
        let consumer = |pod: &&str| json!({"resource": "pods", "name": pod, "uid": format!("uid-{pod}")});
        let result = |request: &str| json!({"driver": DRIVER, "pool": "node1", "device": request, "request": request});
        let claim = json!({"metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")}, "spec": {},
            "status": {"allocation": {"devices": {"results": [result("main"), result("side")]}},
                "reservedFor": pods.iter().map(consumer).collect::<Vec<_>>()}});
        self.claims.lock().unwrap().insert(name.to_owned(), serde_json::from_value(claim).unwrap());
    }

    /// A client by which events come here.
    fn client(&self) -> Client {
        let events = self.events.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let events = events.clone();
            async move {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                events.lock().unwrap().push(serde_json::from_slice(&body).unwrap_or_default());
                Ok::<_, kube::Error>(Response::builder().status(201).body(Body::from(body.to_vec())).unwrap())
            }
        });
        Client::new(service, "default")
    }

    fn was_told(&self, reason: &str, text: &str) -> bool {
        let told = |event: &Value| event["reason"] == reason && event.to_string().contains(text);
        self.events.lock().unwrap().iter().any(told)
    }
}

#[async_trait]
impl Api for Cluster {
    async fn claim(&self, _namespace: &str, name: &str) -> Result<ResourceClaim, String> {
        self.claims.lock().unwrap().get(name).cloned().ok_or_else(|| "not found".to_owned())
    }

    async fn delete_slices(&self, _driver: Option<&str>) -> Result<(), String> {
        Ok(())
    }
}

/// A kubelet within this process, whose pods come from a channel.
struct Kubelet {
    pods: Pods,
    statics: mpsc::UnboundedSender<BTreeMap<String, Arc<Pod>>>,
    wanted: BTreeMap<String, Arc<Pod>>,
    context: Arc<Context>,
    cancel: CancellationToken,
}

impl Kubelet {
    async fn start(machine: &TestNode, cluster: &Arc<Cluster>) -> Self {
        let node = Arc::new(Node {
            root_dir: machine.folder.join("kubelet"),
            pod_logs_dir: machine.folder.join("logs/pods"),
            container_logs_dir: machine.folder.join("logs/containers"),
            cgroup_root: format!("/{}/kubepods", machine.name),
            cgroups_per_qos: true,
            ..fixture::node(&machine.folder)
        });
        for path in [&node.pods_dir(), &node.pod_logs_dir, &node.container_logs_dir] {
            fs::create_dir_all(path).unwrap();
        }
        let endpoint = format!("unix://{}", machine.path("c.sock"));
        let runtime = Arc::new(GrpcRuntime::new(&endpoint, "", Duration::from_secs(60)).unwrap());
        let cgroups = Cgroups::detect(Driver::Cgroupfs);
        cgroups.set_up_node(&node).await.unwrap();
        let (news_to, news) = mpsc::unbounded_channel();
        let observer = Observer::new(runtime.clone(), node.clone(), news_to);
        observer.list().await.unwrap();
        let report = Report::new(Recorder::new(cluster.client(), "kubelet", Some("node1")));
        let registry = Metrics::default();
        let settings = bosun_kubelet_dra::Settings::new(&node.root_dir, &registry);
        let claims = bosun_kubelet_dra::Manager::start(cluster.clone(), settings).unwrap();
        let cancel = CancellationToken::new();
        let handlers = [(DRA_PLUGIN.to_owned(), claims.drivers() as Arc<dyn Handler>)];
        let watcher = PluginWatcher::new(&node.root_dir.join("plugins_registry"), handlers).unwrap();
        tokio::spawn(watcher.run(cancel.clone()));
        let context = Arc::new(Context {
            report,
            cgroups,
            claims: Some(claims),
            runtime_name: "containerd".into(),
            ..fixture::context(&node, runtime.clone(), &observer)
        });
        let pods = Pods::default();
        let (ended_to, ended) = mpsc::unbounded_channel();
        let (statics, statics_from) = mpsc::unbounded_channel();
        let offer = Arc::new(Mutex::new(Offer::default()));
        let manager = Manager::new(context.clone(), pods.clone(), offer, ended_to, cancel.clone());
        let inputs = Inputs { api: None, statics: Some(statics_from), news, changes: None };
        tokio::spawn(manager.run(inputs, ended));
        tokio::spawn(observer.run(cancel.clone()));
        tokio::spawn(claims::tell_of_devices(context.clone(), pods.clone(), cancel.clone()));
        Self { pods, statics, wanted: BTreeMap::new(), context, cancel }
    }

    /// Has a pod run that uses both requests of the claim, each in one container, and none in a third.
    fn add(&mut self, name: &str, claim: &str) {
        let container = |name: &str, claims: Value| {
            json!({"name": name, "image": real::IMAGE, "imagePullPolicy": "Never", "resources": {"claims": claims},
                "command": [real::BUSYBOX, "sh", "-c", "echo \"device=$DEVICE\"; busybox sleep 1000"]})
        };
        let spec = json!({"hostNetwork": true, "terminationGracePeriodSeconds": 0,
            "resourceClaims": [{"name": "gpu", "resourceClaimName": claim}],
            "containers": [container("main", json!([{"name": "gpu", "request": "main"}])),
                container("side", json!([{"name": "gpu", "request": "side"}])), container("none", json!([]))]});
        let pod =
            json!({"metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")}, "spec": spec});
        self.wanted.insert(format!("uid-{name}"), Arc::new(serde_json::from_value(pod).unwrap()));
        self.statics.send(self.wanted.clone()).unwrap();
    }

    fn remove(&mut self, name: &str) {
        self.wanted.remove(&format!("uid-{name}"));
        self.statics.send(self.wanted.clone()).unwrap();
    }

    fn has(&self, name: &str) -> bool {
        self.pods.read().unwrap().contains_key(&format!("uid-{name}"))
    }

    /// How a container's devices are, as its status says.
    fn health(&self, name: &str, container: usize) -> Value {
        let handle = self.pods.read().unwrap().get(&format!("uid-{name}")).cloned().unwrap();
        let status = serde_json::to_value(&handle.pod().status).unwrap();
        status["containerStatuses"][container]["allocatedResourcesStatus"].clone()
    }

    /// What agents are told that the pod has.
    fn resources(&self, name: &str) -> PodResources {
        let (alignment, claims) = (self.context.alignment.clone(), self.context.claims.clone());
        PodsResources { alignment, claims, pods: self.pods.clone() }.get("default", name).unwrap()
    }

    fn runs(&self, name: &str) -> bool {
        let handle = self.pods.read().unwrap().get(&format!("uid-{name}")).cloned();
        handle.is_some_and(|handle| handle.pod().status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Running")))
    }
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(60), "{what} takes too long");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What a container of the pod said first.
fn said(machine: &TestNode, pod: &str, container: &str) -> Option<String> {
    let folder = machine.folder.join(format!("logs/pods/default_{pod}_uid-{pod}/{container}/0.log"));
    let log = fs::read_to_string(folder).ok()?;
    log.lines().next()?.split(' ').nth(3).map(str::to_owned)
}

/// Whether the runtime makes devices by CDI when asked in the fields of the CRI.
fn knows_cdi(machine: &TestNode) -> bool {
    let out = machine.ctr().arg("version").output().unwrap();
    !String::from_utf8_lossy(&out.stdout).contains("Version:  1.6")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_from_the_first_pod_to_the_last() {
    let machine = TestNode::start();
    let cluster = Arc::new(Cluster::default());
    let device_of = |name: &str| json!({"name": name, "containerEdits": {"env": [format!("DEVICE={name}")]}});
    let spec =
        json!({"cdiVersion": "0.5.0", "kind": "example.com/gpu", "devices": [device_of("zero"), device_of("one")]});
    fs::write(machine.folder.join("cdi/gpu.json"), spec.to_string()).unwrap();
    cluster.allocate("gpu", &["first", "second"]);
    let mut kubelet = Kubelet::start(&machine, &cluster).await;

    // Without its driver the pod waits, and says why.
    kubelet.add("first", "gpu");
    let waiting =
        "Failed to prepare dynamic resources: prepare dynamic resources: DRA driver gpu.example.com is not registered";
    until("the event", || cluster.was_told("FailedPrepareDynamicResources", waiting)).await;
    let driver =
        FakeDriver::start(&machine.folder.join("kubelet"), DRIVER, &["v1.DRAPlugin", "v1alpha1.DRAResourceHealth"]);
    driver.with(|state| {
        let devices = vec![device("example.com/gpu=zero", &["main"]), device("example.com/gpu=one", &["side"])];
        state.devices.insert("gpu".into(), devices);
    });
    until("the start", || kubelet.runs("first")).await;
    if knows_cdi(&machine) {
        for (container, wanted) in [("main", "device=zero"), ("side", "device=one"), ("none", "device=")] {
            until("its words", || said(&machine, "first", container).is_some()).await;
            assert_eq!(said(&machine, "first", container).as_deref(), Some(wanted), "{container}");
        }
    }

    // Agents and the status are told.
    let resources = kubelet.resources("first");
    let of = &resources.containers[1].dynamic_resources;
    assert_eq!((of.len(), of[0].claim_name.as_str(), of[0].claim_namespace.as_str()), (1, "gpu", "default"));
    let shown = &of[0].claim_resources[0];
    assert_eq!((shown.driver_name.as_str(), shown.device_name.as_str()), (DRIVER, "one"));
    assert_eq!(shown.cdi_devices[0].name, "example.com/gpu=one");
    assert!(resources.containers[2].dynamic_resources.is_empty());
    driver.tell(&device("example.com/gpu=one", &["side"]), HealthStatus::Unhealthy, 600);
    let bad = json!([{"name": "claim:gpu/side", "resources": [{"resourceID": "example.com/gpu=one", "health": "Unhealthy"}]}]);
    until("the bad news", || kubelet.health("first", 1) == bad).await;
    assert_eq!(kubelet.health("first", 0)[0]["resources"][0]["health"], "Unknown");
    assert_eq!(kubelet.health("first", 2), Value::Null);

    // Another pod shares it; the first goes.
    kubelet.add("second", "gpu");
    until("the other's start", || kubelet.runs("second")).await;
    kubelet.remove("first");
    until("the first's end", || !kubelet.has("first")).await;
    assert_eq!(driver.calls(), ["prepare gpu"]);

    // The last one has not ended before the driver has.
    driver.with(|state| drop(state.failing.insert("gpu".into(), "busy".into())));
    kubelet.remove("second");
    until("the driver's refusal", || driver.with(|state| state.calls.len() >= 2)).await;
    assert!(kubelet.has("second"), "its device is in use");
    driver.with(|state| state.failing.clear());
    until("the last one's end", || !kubelet.has("second")).await;
    assert!(driver.with(|state| state.prepared.is_empty()));

    // A kubelet that dies leaves a pod; the next, which knows no such pod, ends it and gives its claim back.
    cluster.allocate("other", &["third"]);
    kubelet.add("third", "other");
    until("the third's start", || kubelet.runs("third")).await;
    kubelet.cancel.cancel();
    let next = Kubelet::start(&machine, &cluster).await;
    next.statics.send(BTreeMap::new()).unwrap();
    until("the end of what is left", || driver.with(|state| state.prepared.is_empty()) && machine.containers() == 0)
        .await;
    until("the orphan's end", || !next.has("third")).await;
    next.cancel.cancel();
}
