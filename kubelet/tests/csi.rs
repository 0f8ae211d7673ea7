//! CSI from the driver's socket to the files in a container: a driver registers with the kubelet, pods on a real
//! containerd use its volumes, the driver hangs and restarts, the kubelet is killed, and nothing is left in the end.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod csi_driver;
mod fixture;
mod real;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bosun_kit::events::Recorder;
use bosun_kit::metrics::Metrics;
use bosun_kubelet::admission::Offer;
use bosun_kubelet::context::Context;
use bosun_kubelet::cri::{GrpcRuntime, Runtime};
use bosun_kubelet::images::Images;
use bosun_kubelet::make::Node;
use bosun_kubelet::manager::{Inputs, Manager, Pods};
use bosun_kubelet::objects::Objects;
use bosun_kubelet::observe::Observer;
use bosun_kubelet::report::Report;
use bosun_kubelet::volumes::csi::CsiVolumes;
use bosun_kubelet::volumes::measured;
use bosun_kubelet::worker::Message;
use bosun_kubelet_csi::PodUse;
use bosun_kubelet_csi::cluster::{Cluster, Written};
use bosun_kubelet_csi::volume::SecretRef;
use bosun_kubelet_plugins::PluginWatcher;
use csi_driver::{Driver, NAME, Told};
use k8s_openapi::api::authentication::v1::TokenRequestStatus;
use k8s_openapi::api::core::v1::{Node as ApiNode, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use real::{BUSYBOX, IMAGE, TestNode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);

/// The API server's objects, as JSON by kind and name.
#[derive(Default)]
struct Api(Mutex<BTreeMap<String, Value>>);

impl Api {
    fn put(&self, key: &str, object: Value) {
        self.0.lock().unwrap().insert(key.to_owned(), object);
    }

    fn get<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        self.0.lock().unwrap().get(key).map(|object| serde_json::from_value(object.clone()).unwrap())
    }

    fn value(&self, key: &str) -> Value {
        self.get(key).unwrap_or_default()
    }
}

#[async_trait]
impl Objects for Api {
    async fn claim(&self, _namespace: &str, name: &str) -> Result<Option<PersistentVolumeClaim>, String> {
        Ok(self.get(&format!("claim/{name}")))
    }

    async fn persistent_volume(&self, name: &str) -> Result<Option<PersistentVolume>, String> {
        Ok(self.get(&format!("pv/{name}")))
    }

    async fn services(&self, _namespace: &str) -> Result<Vec<Service>, String> {
        Ok(Vec::new())
    }

    fn follow(&self, _uid: &str, _pod: Option<&Pod>) {}
}

#[async_trait]
impl Cluster for Api {
    async fn driver(&self, name: &str) -> Result<Option<CSIDriver>, String> {
        Ok(self.get(&format!("driver/{name}")))
    }

    async fn attachment(&self, _name: &str) -> Result<Option<VolumeAttachment>, String> {
        Ok(None)
    }

    async fn secret(&self, secret: &SecretRef) -> Result<Option<Secret>, String> {
        Ok(self.get(&format!("secret/{}/{}", secret.namespace, secret.name)))
    }

    async fn token(&self, pod: &PodUse, audience: &str, _seconds: Option<i64>) -> Result<TokenRequestStatus, String> {
        let token = format!("{}/{audience}", pod.uid);
        Ok(serde_json::from_value(json!({"token": token, "expirationTimestamp": "2030-01-01T00:00:00Z"})).unwrap())
    }

    async fn grown(&self, claim: &PersistentVolumeClaim, capacity: &Quantity) -> Result<(), String> {
        let key = format!("claim/{}", claim.metadata.name.clone().unwrap());
        let mut claim = self.value(&key);
        claim["status"]["capacity"]["storage"] = json!(capacity);
        self.put(&key, claim);
        Ok(())
    }

    async fn node(&self) -> Result<Option<ApiNode>, String> {
        Ok(self.get("node"))
    }

    async fn patch_node(&self, patch: &Value) -> Result<Written, String> {
        let mut node = self.value("node");
        json_patch::merge(&mut node, patch);
        self.put("node", node);
        Ok(Written::Done)
    }

    async fn csi_node(&self) -> Result<Option<CSINode>, String> {
        Ok(self.get("csinode"))
    }

    async fn write_csi_node(&self, object: &CSINode) -> Result<Written, String> {
        self.put("csinode", serde_json::to_value(object).unwrap());
        Ok(Written::Done)
    }
}

/// A kubelet in this process, and what it is told.
struct Kubelet {
    pods: Pods,
    statics: mpsc::UnboundedSender<BTreeMap<String, Arc<Pod>>>,
    csi: Arc<CsiVolumes>,
    cancel: CancellationToken,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

struct World {
    machine: TestNode,
    node: Arc<Node>,
    api: Arc<Api>,
    told: Arc<Told>,
    data: PathBuf,
    wanted: BTreeMap<String, Arc<Pod>>,
    kubelet: Option<Kubelet>,
}

impl World {
    fn new() -> Self {
        let machine = TestNode::start();
        let node = Arc::new(fixture::node(&machine.folder));
        for path in [&node.pods_dir(), &node.pod_logs_dir, &node.container_logs_dir] {
            fs::create_dir_all(path).unwrap();
        }
        let api = Arc::new(Api::default());
        api.put("node", json!({"metadata": {"name": "node1", "uid": "n1", "labels": {"zone": "a"}}}));
        let data = machine.folder.join("volumes");
        Self { machine, node, api, told: Arc::default(), data, wanted: BTreeMap::new(), kubelet: None }
    }

    fn driver(&self) -> Driver {
        Driver::start(&self.node.root_dir, &self.data, &self.told)
    }

    async fn start_kubelet(&mut self) {
        let socket = format!("unix://{}", self.machine.path("c.sock"));
        let runtime: Arc<dyn Runtime> = Arc::new(GrpcRuntime::new(&socket, "", Duration::from_secs(120)).unwrap());
        let (news_to, news) = mpsc::unbounded_channel();
        let observer = Observer::new(runtime.clone(), self.node.clone(), news_to);
        observer.list().await.unwrap();
        let report = Report::new(Recorder::to_log());
        let csi = CsiVolumes::with(&self.node, self.api.clone());
        let context = Arc::new(Context {
            csi: csi.clone(),
            images: Images::new(runtime.clone(), self.api.clone(), report, 1),
            objects: self.api.clone(),
            runtime_name: "containerd".into(),
            ..fixture::context(&self.node, runtime, &observer)
        });
        let (pods, cancel) = (Pods::default(), CancellationToken::new());
        let (ended_to, ended) = mpsc::unbounded_channel();
        let (statics, statics_from) = mpsc::unbounded_channel();
        let offer = Arc::new(Mutex::new(Offer::default()));
        let manager = Manager::new(context, pods.clone(), offer, ended_to, cancel.clone());
        let inputs = Inputs { api: None, statics: Some(statics_from), news, changes: None };
        let watcher = PluginWatcher::new(&self.node.root_dir.join("plugins_registry"), [csi.registrar()]).unwrap();
        let tasks = vec![
            tokio::spawn(manager.run(inputs, ended)),
            tokio::spawn(observer.run(cancel.clone())),
            tokio::spawn(watcher.run(cancel.clone())),
        ];
        statics.send(self.wanted.clone()).unwrap();
        self.kubelet = Some(Kubelet { pods, statics, csi, cancel, tasks });
    }

    /// Ends the kubelet with everything that it was at.
    async fn kill_kubelet(&mut self) {
        let kubelet = self.kubelet.take().unwrap();
        kubelet.cancel.cancel();
        for task in kubelet.tasks {
            let _ = task.await;
        }
    }

    fn kubelet(&self) -> &Kubelet {
        self.kubelet.as_ref().unwrap()
    }

    fn tell(&self) {
        self.kubelet().statics.send(self.wanted.clone()).unwrap();
    }

    /// A volume and a claim of it.
    fn volume(&self, name: &str, spec: Value) {
        let mut pv = json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": "1Gi"}, "claimRef": {"uid": format!("claim-{name}")},
            "csi": {"driver": NAME, "volumeHandle": format!("h-{name}")}}});
        json_patch::merge(&mut pv, &json!({"spec": spec}));
        self.api.put(&format!("pv/{name}"), pv);
        self.api.put(
            &format!("claim/{name}"),
            json!({"metadata": {"name": name, "namespace": "default", "uid": format!("claim-{name}")},
                "spec": {"volumeName": name}, "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}}}),
        );
    }

    fn pod(&mut self, name: &str, volume: Value, more: Value, script: &str) {
        let mut volume = volume;
        volume["name"] = json!("v");
        let mut container = json!({"name": "main", "image": IMAGE, "imagePullPolicy": "Never",
            "command": [BUSYBOX, "sh", "-c", format!("{script}; exec busybox sleep 1000")],
            "volumeMounts": [{"name": "v", "mountPath": "/data"}]});
        let part = |name: &str| more.get(name).cloned().unwrap_or_else(|| json!({}));
        json_patch::merge(&mut container, &part("container"));
        let mut spec = json!({"hostNetwork": true, "terminationGracePeriodSeconds": 0,
            "containers": [container], "volumes": [volume]});
        json_patch::merge(&mut spec, &part("spec"));
        let pod = json!({"metadata": {"name": name, "namespace": "default", "uid": name}, "spec": spec});
        self.wanted.insert(name.to_owned(), Arc::new(serde_json::from_value(pod).unwrap()));
        self.tell();
    }

    fn remove(&mut self, name: &str) {
        self.wanted.remove(name);
        self.tell();
    }

    fn status(&self, name: &str) -> Value {
        let handle = self.kubelet().pods.read().unwrap().get(name).cloned();
        handle.map(|handle| serde_json::to_value(&handle.pod().status).unwrap()).unwrap_or_default()
    }

    fn is_running(&self, name: &str) -> bool {
        self.status(name)["containerStatuses"][0]["state"]["running"].is_object()
    }

    async fn running(&self, name: &str) {
        self.until(&format!("{name} to run"), || self.is_running(name)).await;
    }

    async fn gone(&self, name: &str) {
        let folder = self.node.pods_dir().join(name);
        self.until(&format!("{name} to go"), || !folder.exists()).await;
    }

    async fn until(&self, what: &str, done: impl Fn() -> bool) {
        let began = Instant::now();
        while !done() {
            assert!(
                began.elapsed() < PATIENCE,
                "{what} takes too long; the driver was asked: {:#?}",
                self.told.log.lock().unwrap()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn wrote(&self, file: &str) -> String {
        fs::read_to_string(self.data.join(file)).unwrap_or_default()
    }
}

fn claim(name: &str) -> Value {
    json!({"persistentVolumeClaim": {"claimName": name}})
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_a_driver_from_registration_to_the_last_pod() {
    let mut world = World::new();
    tokio::time::timeout(Duration::from_secs(400), follow(&mut world)).await.expect("the test takes too long");
}

async fn follow(world: &mut World) {
    world.api.put(
        &format!("driver/{NAME}"),
        json!({"metadata": {"name": NAME}, "spec": {"attachRequired": false, "podInfoOnMount": true,
            "fsGroupPolicy": "File", "tokenRequests": [{"audience": "vault"}],
            "volumeLifecycleModes": ["Persistent", "Ephemeral"]}}),
    );
    world.start_kubelet().await;
    let driver = world.driver();
    tokio::time::timeout(PATIENCE, world.told.registered.notified()).await.unwrap();
    registration_shows_in_the_api(world);
    staged_and_published(world).await;
    inline(world).await;
    one_pod_only(world).await;
    device(world).await;
    grown_and_measured(world).await;
    wrong_node(world).await;
    hanging_driver(world).await;
    killed_kubelet(world).await;
    let driver = restarted_driver(world, driver).await;
    nothing_is_left(world, driver).await;
}

fn registration_shows_in_the_api(world: &World) {
    let csi_node = world.api.value("csinode");
    let golden = json!([{"name": NAME, "nodeID": "machine-1", "allocatable": {"count": 16},
        "topologyKeys": ["topology.test.csi.example.com/rack"]}]);
    assert_eq!(csi_node["spec"]["drivers"], golden);
    let node = world.api.value("node");
    assert_eq!(node["metadata"]["labels"]["topology.test.csi.example.com/rack"], "r1");
    let ids = node["metadata"]["annotations"]["csi.volume.kubernetes.io/nodeid"].as_str().unwrap();
    assert_eq!(ids, format!("{{\"{NAME}\":\"machine-1\"}}"));
}

async fn staged_and_published(world: &mut World) {
    world.api.put("secret/default/stage", json!({"data": {"key": "aGlkZGVu"}}));
    let secret = json!({"name": "stage", "namespace": "default"});
    world.volume("shared", json!({"csi": {"nodeStageSecretRef": secret}}));
    let group = json!({"spec": {"securityContext": {"fsGroup": 2000}}});
    world.pod("first", claim("shared"), group, "echo $(busybox stat -c %g /data) > /data/first");
    world.running("first").await;
    world.until("the file", || world.wrote("h-shared/first") == "2000\n").await;
    assert_eq!(fs::metadata(world.data.join("h-shared")).unwrap().gid(), 2000);
    assert_eq!(world.told.line("stage h-shared").unwrap(), "stage h-shared secrets key");
    world.pod("second", claim("shared"), json!({}), "busybox cp /data/first /data/second");
    world.running("second").await;
    world.until("the copy", || world.wrote("h-shared/second") == "2000\n").await;
    assert_eq!((world.told.count("stage h-shared"), world.told.count("publish h-shared")), (1, 2));
    world.remove("first");
    world.gone("first").await;
    assert_eq!(world.told.count("unstage h-shared"), 0, "the second pod still has it");
    world.remove("second");
    world.gone("second").await;
    assert_eq!(world.told.count("unstage h-shared"), 1);
}

async fn inline(world: &mut World) {
    let volume = json!({"csi": {"driver": NAME, "readOnly": true}});
    world.pod("inline", volume, json!({}), "busybox touch /data/x 2> /dev/termination-log");
    world.running("inline").await;
    let golden = "SINGLE_NODE_MULTI_WRITER context ephemeral,pod.name,pod.namespace,pod.uid,serviceAccount.name,serviceAccount.tokens secrets ";
    assert!(world.told.line("publish csi-").unwrap().ends_with(golden), "{:?}", world.told.line("publish csi-"));
    world.remove("inline");
    world.gone("inline").await;
    assert_eq!(world.told.count("unpublish csi-"), 1);
}

async fn one_pod_only(world: &mut World) {
    world.volume("alone", json!({"accessModes": ["ReadWriteOncePod"]}));
    world.pod("one", claim("alone"), json!({}), "true");
    world.running("one").await;
    assert!(world.told.line("publish h-alone").unwrap().contains("SINGLE_NODE_SINGLE_WRITER"));
    world.pod("other", claim("alone"), json!({}), "true");
    let tried = world.node.pods_dir().join("other");
    world.until("a try", || tried.exists()).await;
    world.remove("one");
    world.gone("one").await;
    world.running("other").await;
    let log = world.told.log.lock().unwrap().clone();
    let calls: Vec<&str> = log.iter().filter(|l| l.contains("h-alone")).map(|l| l.split(' ').next().unwrap()).collect();
    assert_eq!(calls, ["stage", "publish", "unpublish", "unstage", "stage", "publish"], "never two at a time");
    world.remove("other");
    world.gone("other").await;
}

async fn device(world: &mut World) {
    world.volume("disk", json!({"volumeMode": "Block"}));
    fs::create_dir_all(&world.data).unwrap();
    let mut bytes = vec![0; 1 << 20];
    bytes[..5].copy_from_slice(b"hello");
    fs::write(world.data.join("h-disk"), &bytes).unwrap();
    let container = json!({"volumeMounts": null, "volumeDevices": [{"name": "v", "devicePath": "/dev/xvda"}]});
    let script = "busybox dd if=/dev/xvda bs=5 count=1 of=/dev/termination-log 2>/dev/null; exit 0";
    let more = json!({"container": container, "spec": {"restartPolicy": "Never"}});
    world.pod("device", claim("disk"), more, script);
    let ended = || world.status("device")["containerStatuses"][0]["state"]["terminated"]["message"].clone();
    world.until("the device to be read", || ended() == "hello").await;
    world.remove("device");
    world.gone("device").await;
    assert_eq!((world.told.count("unpublish h-disk"), world.told.count("unstage h-disk")), (1, 1));
}

async fn grown_and_measured(world: &mut World) {
    world.volume("grows", json!({}));
    world.pod("grows", claim("grows"), json!({}), "true");
    world.running("grows").await;
    world.volume("grows", json!({"capacity": {"storage": "2Gi"}}));
    let look_again = || {
        let handle = world.kubelet().pods.read().unwrap().get("grows").cloned().unwrap();
        handle.tell(Message::ObjectsChanged);
    };
    look_again();
    let shown = || world.api.value("claim/grows")["status"]["capacity"]["storage"].clone();
    world.until("the claim to show its size", || shown() == "2Gi").await;
    assert_eq!(world.told.line("expand").unwrap(), "expand h-grows 2147483648");
    let pods = world.kubelet().pods.read().unwrap().values().map(|handle| handle.pod()).collect::<Vec<_>>();
    world.kubelet().csi.measure(&world.node, &pods).await;
    let measured = world.kubelet().csi.measured("grows", "v").unwrap();
    assert_eq!((measured.capacity_bytes, measured.used_bytes, measured.inodes_used), (1000, 250, 7));
    let metrics = Metrics::new();
    measured::register(&metrics, world.kubelet().csi.clone(), world.kubelet().pods.clone());
    let line = "kubelet_volume_stats_used_bytes{namespace=\"default\",persistentvolumeclaim=\"grows\"} 250";
    assert!(metrics.render().contains(line), "{}", metrics.render());
    world.remove("grows");
    world.gone("grows").await;
    assert_eq!(world.kubelet().csi.measured("grows", "v"), None);
}

async fn wrong_node(world: &mut World) {
    let terms = |zone: &str| {
        json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]}]}}})
    };
    world.volume("elsewhere", terms("b"));
    world.pod("elsewhere", claim("elsewhere"), json!({}), "true");
    let folder = world.node.pods_dir().join("elsewhere");
    world.until("a try", || folder.exists()).await;
    world.volume("elsewhere", terms("a"));
    world.running("elsewhere").await;
    assert_eq!(world.told.count("stage h-elsewhere"), 1);
    world.remove("elsewhere");
    world.gone("elsewhere").await;
}

async fn hanging_driver(world: &mut World) {
    world.volume("slow", json!({}));
    world.volume("fast", json!({}));
    world.told.hang.lock().unwrap().insert("publish h-slow".into());
    world.pod("slow", claim("slow"), json!({}), "true");
    world.until("the driver to hang", || world.told.count("publish h-slow") == 1).await;
    let began = Instant::now();
    world.pod("fast", claim("fast"), json!({}), "true");
    world.running("fast").await;
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert!(!world.is_running("slow"));
}

/// While the driver hangs between stage and publish, the kubelet is killed. The next one goes on where it was; what a
/// pod that went meanwhile had is given back.
async fn killed_kubelet(world: &mut World) {
    world.kill_kubelet().await;
    world.told.hang.lock().unwrap().clear();
    world.wanted.remove("fast");
    world.start_kubelet().await;
    world.running("slow").await;
    assert_eq!((world.told.count("stage h-slow"), world.told.count("publish h-slow")), (1, 2));
    world.gone("fast").await;
    assert_eq!((world.told.count("unpublish h-fast"), world.told.count("unstage h-fast")), (1, 1));
}

async fn restarted_driver(world: &mut World, driver: Driver) -> Driver {
    drop(driver);
    world.until("the driver to be forgotten", || world.api.value("csinode")["spec"]["drivers"] == json!([])).await;
    assert!(world.is_running("slow"), "a pod does not mind that its driver is away");
    world.volume("later", json!({}));
    world.pod("later", claim("later"), json!({}), "true");
    world.remove("slow");
    world.until("the pod to end", || !world.is_running("slow")).await;
    assert!(world.node.pods_dir().join("slow").exists(), "what the driver mounted waits for the driver");
    let driver = world.driver();
    world.running("later").await;
    world.gone("slow").await;
    assert_eq!(world.told.count("unstage h-slow"), 1);
    world.remove("later");
    world.gone("later").await;
    driver
}

async fn nothing_is_left(world: &mut World, driver: Driver) {
    drop(driver);
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let left: Vec<&str> =
        table.lines().filter(|line| line.contains(world.data.parent().unwrap().to_str().unwrap())).collect();
    assert!(left.iter().all(|line| !line.contains("kubernetes.io")), "{left:#?}");
    let mut folders = vec![world.node.root_dir.join("plugins/kubernetes.io")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            assert!(entry.path().is_dir(), "{} is left", entry.path().display());
            folders.push(entry.path());
        }
    }
    world.kill_kubelet().await;
}
