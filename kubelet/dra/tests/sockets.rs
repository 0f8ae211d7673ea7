//! Claims through real sockets: a driver registers, prepares and unprepares, goes away and comes back; the kubelet is
//! restarted in between.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod fixture;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bosun_kit::metrics::Metrics as Registry;
use bosun_kubelet_dra::{Api, Manager, Settings};
use bosun_kubelet_plugins::{DRA_PLUGIN, Handler, PluginWatcher};
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use k8s_openapi::api::resource::v1::ResourceClaim;
use serde_json::json;
use tokio_util::sync::{CancellationToken, DropGuard};

use bosun_proto::dra::health::HealthStatus;
use fixture::{FakeDriver, device};

const DRIVER: &str = "gpu.example.com";
const V1: &[&str] = &["v1.DRAPlugin"];

/// The API server, as far as claims go.
#[derive(Default)]
struct FakeApi {
    claims: Mutex<BTreeMap<String, ResourceClaim>>,
    wiped: Mutex<Vec<String>>,
    refusals: Mutex<usize>,
}

impl FakeApi {
    /// A claim that is allocated from these drivers and reserved for pods of these UIDs.
    fn claim(&self, name: &str, drivers: &[&str], pods: &[&str]) {
        let result = |driver: &&str| json!({"driver": driver, "pool": "node1", "device": "d", "request": "r"});
        let consumer = |pod: &&str| json!({"resource": "pods", "name": pod, "uid": pod});
        let claim = json!({
            "metadata": {"name": name, "namespace": "ns", "uid": format!("uid-{name}")},
            "spec": {},
            "status": {
                "allocation": {"devices": {"results": drivers.iter().map(result).collect::<Vec<_>>()}},
                "reservedFor": pods.iter().map(consumer).collect::<Vec<_>>(),
            },
        });
        self.claims.lock().unwrap().insert(name.to_owned(), serde_json::from_value(claim).unwrap());
    }

    fn wiped(&self) -> Vec<String> {
        self.wiped.lock().unwrap().clone()
    }
}

#[async_trait]
impl Api for FakeApi {
    async fn claim(&self, _namespace: &str, name: &str) -> Result<ResourceClaim, String> {
        let found = self.claims.lock().unwrap().get(name).cloned();
        found.ok_or_else(|| format!("resourceclaims.resource.k8s.io {name:?} not found"))
    }

    async fn delete_slices(&self, driver: Option<&str>) -> Result<(), String> {
        let mut refusals = self.refusals.lock().unwrap();
        if *refusals > 0 {
            *refusals -= 1;
            return Err("not now".into());
        }
        self.wiped.lock().unwrap().push(driver.unwrap_or("all").to_owned());
        Ok(())
    }
}

/// A kubelet's part in it.
struct Node {
    folder: tempfile::TempDir,
    api: Arc<FakeApi>,
    registry: Registry,
    manager: Arc<Manager>,
    watcher: DropGuard,
}

fn start(folder: &tempfile::TempDir, api: &Arc<FakeApi>, away: Duration) -> (Registry, Arc<Manager>, DropGuard) {
    let (registry, cancel) = (Registry::default(), CancellationToken::new());
    let settings = Settings { away, ..Settings::new(folder.path(), &registry) };
    let manager = Manager::start(api.clone(), settings).unwrap();
    let handlers = [(DRA_PLUGIN.to_owned(), manager.drivers() as Arc<dyn Handler>)];
    let watcher = PluginWatcher::new(&folder.path().join("plugins_registry"), handlers).unwrap();
    tokio::spawn(watcher.run(cancel.clone()));
    (registry, manager, cancel.drop_guard())
}

impl Node {
    fn new(away: Duration) -> Self {
        let (folder, api) = (tempfile::tempdir().unwrap(), Arc::new(FakeApi::default()));
        let (registry, manager, watcher) = start(&folder, &api, away);
        Self { folder, api, registry, manager, watcher }
    }

    /// Another kubelet takes over.
    fn restart(&mut self) {
        (self.registry, self.manager, self.watcher) = start(&self.folder, &self.api, Duration::from_secs(60));
    }

    async fn driver(&self, services: &[&str]) -> FakeDriver {
        let driver = FakeDriver::start(self.folder.path(), DRIVER, services);
        until("the registration", || self.manager.drivers().is_connected(DRIVER)).await;
        driver
    }

    fn state(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("dra_manager_state")).unwrap()
    }
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(30), "{what} takes too long");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A pod that uses claims by their own names.
fn pod(uid: &str, claims: &[&str]) -> Pod {
    let entry = |claim: &&str| json!({"name": claim, "resourceClaimName": claim});
    let spec = json!({"containers": [], "resourceClaims": claims.iter().map(entry).collect::<Vec<_>>()});
    serde_json::from_value(json!({"metadata": {"name": uid, "namespace": "ns", "uid": uid}, "spec": spec})).unwrap()
}

fn container(claims: serde_json::Value) -> Container {
    serde_json::from_value(json!({"name": "app", "resources": {"claims": claims}})).unwrap()
}

#[tokio::test]
async fn a_claim_is_prepared_for_its_first_pod_and_unprepared_after_its_last() {
    let node = Node::new(Duration::from_secs(60));
    let driver = node.driver(V1).await;
    assert!(driver.with(|state| state.told[0].plugin_registered));
    node.api.claim("gpu", &[DRIVER], &["p1", "p2"]);
    node.api.claim("nic", &[DRIVER], &["p1"]);
    driver.with(|state| {
        let of_gpu = vec![device("example.com/gpu=0", &["main/big"]), device("example.com/gpu=1", &["side"])];
        state.devices = [("gpu".to_owned(), of_gpu), ("nic".to_owned(), vec![device("example.com/nic=0", &[])])].into();
    });
    let (first, second) = (pod("p1", &["gpu", "nic"]), pod("p2", &["gpu"]));
    node.manager.prepare(&first).await.unwrap();
    assert_eq!(driver.calls(), ["prepare gpu nic"]);
    let ids = |pod: &Pod, claims| node.manager.cdi_devices(pod, &container(claims));
    assert_eq!(ids(&first, json!([{"name": "gpu", "request": "main"}])).unwrap(), ["example.com/gpu=0"]);
    assert_eq!(ids(&first, json!([{"name": "gpu", "request": "side"}])).unwrap(), ["example.com/gpu=1"]);
    let all = ids(&first, json!([{"name": "nic"}, {"name": "gpu"}, {"name": "gpu", "request": "side"}])).unwrap();
    assert_eq!(all, ["example.com/gpu=0", "example.com/gpu=1", "example.com/nic=0"]);
    assert!(ids(&first, json!([])).unwrap().is_empty());
    let claims = node.manager.container_claims(&first, &container(json!([{"name": "nic"}]))).unwrap();
    assert_eq!((claims.len(), claims[0].key.to_string().as_str()), (1, "ns/nic"));
    assert_eq!((claims[0].devices[0].0.as_str(), claims[0].devices[0].1.pool_name.as_str()), (DRIVER, "node1"));
    let error = ids(&second, json!([{"name": "gpu"}]));
    assert!(error.is_ok(), "it is known, though not yet for this pod: {error:?}");

    node.manager.prepare(&second).await.unwrap();
    node.manager.prepare(&first).await.unwrap();
    assert!(driver.calls().is_empty(), "it is prepared already");
    let page = node.registry.render();
    for line in [
        r#"dra_resource_claims_in_use{driver_name="<any>"} 2"#,
        r#"dra_operations_duration_seconds_count{operation_name="PrepareResources",is_error="false"} 3"#,
        r#"method_name="/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/NodePrepareResources",grpc_status_code="OK"} 1"#,
    ] {
        assert!(page.contains(line), "{line} in {page}");
    }
    node.manager.unprepare("p1").await.unwrap();
    assert_eq!(driver.calls(), ["unprepare nic"]);
    assert!(!node.manager.has_claims("p1") && node.manager.has_claims("p2"));
    node.manager.unprepare("p2").await.unwrap();
    node.manager.unprepare("p2").await.unwrap();
    assert_eq!(driver.calls(), ["unprepare gpu"]);
    assert!(driver.with(|state| state.prepared.is_empty()) && node.state().contains("null"), "{}", node.state());
}

#[tokio::test]
async fn an_older_driver_and_one_that_speaks_no_version() {
    let node = Node::new(Duration::from_secs(60));
    let driver = node.driver(&["v1alpha9.DRAPlugin", "v1beta1.DRAPlugin"]).await;
    node.api.claim("gpu", &[DRIVER], &["p1"]);
    node.manager.prepare(&pod("p1", &["gpu"])).await.unwrap();
    node.manager.unprepare("p1").await.unwrap();
    assert_eq!(driver.calls(), ["prepare gpu", "unprepare gpu"]);
    let other = FakeDriver::start(node.folder.path(), "other.example.com", &["v9.DRAPlugin"]);
    until("the refusal", || other.with(|state| !state.told.is_empty())).await;
    let told = other.with(|state| state.told[0].clone());
    assert!(!told.plugin_registered && told.error.contains("none of services supported by the plugin"), "{told:?}");
}

#[tokio::test]
async fn what_goes_wrong_is_said_and_tried_again() {
    let node = Node::new(Duration::from_secs(60));
    let of = pod("p1", &["gpu"]);
    let error = async || node.manager.prepare(&of).await.unwrap_err();
    let not_found =
        "prepare dynamic resources: fetch ResourceClaim gpu: resourceclaims.resource.k8s.io \"gpu\" not found";
    assert_eq!(error().await, not_found);
    node.api.claim("gpu", &[DRIVER], &["p2"]);
    assert_eq!(
        error().await,
        "prepare dynamic resources: pod p1 (p1) is not allowed to use ResourceClaim gpu (uid-gpu)"
    );
    node.api.claim("gpu", &[DRIVER], &["p1"]);
    assert_eq!(error().await, "prepare dynamic resources: DRA driver gpu.example.com is not registered");
    assert!(!node.manager.has_claims("p1"), "nothing is to be unprepared");

    let driver = node.driver(V1).await;
    driver.with(|state| drop(state.failing.insert("gpu".into(), "too hot".into())));
    let failed = "NodePrepareResources failed for ResourceClaim gpu: too hot";
    assert_eq!(error().await, format!("prepare dynamic resources: {failed}"));
    driver.with(|state| {
        state.failing.clear();
        state.skipping.insert("gpu".into());
    });
    assert_eq!(error().await, "prepare dynamic resources: NodePrepareResources skipped 1 ResourceClaims");
    assert!(node.manager.has_claims("p1"), "the driver may have done something");
    driver.with(|state| state.skipping.clear());
    node.manager.prepare(&of).await.unwrap();

    driver.with(|state| drop(state.failing.insert("gpu".into(), "in use".into())));
    let error = node.manager.unprepare("p1").await.unwrap_err();
    assert_eq!(error, "unprepare dynamic resources: NodeUnprepareResources failed for ResourceClaim gpu: in use");
    assert!(node.manager.has_claims("p1"));
    driver.with(|state| state.failing.clear());
    node.manager.unprepare("p1").await.unwrap();
    // A driver that has died is not waited for.
    node.manager.prepare(&of).await.unwrap();
    let mut driver = driver;
    driver.die();
    let error = node.manager.unprepare("p1").await.unwrap_err();
    assert!(
        error.starts_with("unprepare dynamic resources: NodeUnprepareResources: rpc error: code = Unavailable"),
        "{error}"
    );
}

#[tokio::test]
async fn another_kubelet_knows_what_is_prepared_and_ends_what_is_gone() {
    let mut node = Node::new(Duration::from_secs(60));
    let driver = node.driver(V1).await;
    node.api.claim("gpu", &[DRIVER], &["p1", "p2"]);
    driver.with(|state| drop(state.devices.insert("gpu".into(), vec![device("example.com/gpu=0", &[])])));
    let (first, second) = (pod("p1", &["gpu"]), pod("p2", &["gpu"]));
    node.manager.prepare(&first).await.unwrap();
    node.manager.prepare(&second).await.unwrap();
    driver.calls();
    node.restart();
    // A container that is made anew needs no driver.
    let ids = node.manager.cdi_devices(&first, &container(json!([{"name": "gpu"}]))).unwrap();
    assert_eq!(ids, ["example.com/gpu=0"]);
    until("the driver's return", || node.manager.drivers().is_connected(DRIVER)).await;
    // Another sandbox asks once more, and devices are not there twice.
    node.manager.prepare(&first).await.unwrap();
    assert_eq!(driver.calls(), ["prepare gpu"]);
    assert_eq!(node.manager.cdi_devices(&first, &container(json!([{"name": "gpu"}]))).unwrap().len(), 1);
    // One was deleted meanwhile, then the other.
    node.manager.reconcile(&BTreeSet::from(["p1".to_owned()])).await;
    assert!(driver.calls().is_empty() && !node.manager.has_claims("p2"));
    node.manager.reconcile(&BTreeSet::new()).await;
    assert_eq!(driver.calls(), ["unprepare gpu"]);
    node.restart();
    assert!(!node.manager.has_claims("p1"));
}

#[tokio::test]
async fn a_pod_that_comes_while_another_goes_keeps_the_claim() {
    let node = Node::new(Duration::from_secs(60));
    let driver = node.driver(V1).await;
    node.api.claim("gpu", &[DRIVER], &["p1", "p2"]);
    node.manager.prepare(&pod("p1", &["gpu"])).await.unwrap();
    driver.with(|state| state.delay = Duration::from_millis(100));
    let second = pod("p2", &["gpu"]);
    for _ in 0..3 {
        let (gone, come) = tokio::join!(node.manager.unprepare("p1"), node.manager.prepare(&second));
        gone.unwrap();
        come.unwrap();
        assert!(driver.with(|state| state.prepared.contains("gpu")), "{:?}", driver.calls());
        assert!(node.manager.has_claims("p2"));
        let (gone, come) =
            tokio::join!(node.manager.unprepare("p2"), async { node.manager.prepare(&pod("p1", &["gpu"])).await });
        gone.unwrap();
        come.unwrap();
        assert!(driver.with(|state| state.prepared.contains("gpu")));
    }
}

#[tokio::test]
async fn slices_of_drivers_that_are_away_are_deleted() {
    let node = Node::new(Duration::from_millis(1500));
    let wiped = |names: &[&str]| node.api.wiped() == names;
    until("the first deletion", || wiped(&["all"])).await;
    let mut driver = node.driver(V1).await;
    // Away for a moment: not worth it.
    driver.die();
    until("the loss", || !node.manager.drivers().is_connected(DRIVER)).await;
    driver.serve();
    until("the return", || node.manager.drivers().is_connected(DRIVER)).await;
    tokio::time::sleep(Duration::from_millis(2000)).await;
    assert!(wiped(&["all"]), "{:?}", node.api.wiped());
    // Dead, with its sockets still there; the API server does not answer at once.
    *node.api.refusals.lock().unwrap() = 1;
    driver.die();
    until("the deletion", || wiped(&["all", DRIVER])).await;
    assert!(node.manager.drivers().get(DRIVER).is_ok(), "it is still registered");
    // Back, and gone in order.
    driver.serve();
    driver.register();
    until("the return", || node.manager.drivers().is_connected(DRIVER)).await;
    drop(driver);
    until("the deletion", || wiped(&["all", DRIVER, DRIVER])).await;
    assert_eq!(node.manager.drivers().get(DRIVER).err().unwrap(), "DRA driver gpu.example.com is not registered");
}

#[tokio::test]
async fn how_devices_are_is_told_and_reaches_the_pods_that_use_them() {
    let node = Node::new(Duration::from_secs(60));
    let mut driver = node.driver(&["v1.DRAPlugin", "v1alpha1.DRAResourceHealth"]).await;
    node.api.claim("gpu", &[DRIVER], &["p1"]);
    let gpu = device("example.com/gpu=0", &["main"]);
    driver.with(|state| drop(state.devices.insert("gpu".into(), vec![gpu.clone(), device("none", &["side"])])));
    let mut of = pod("p1", &["gpu"]);
    of.spec.as_mut().unwrap().containers = vec![container(json!([{"name": "gpu", "request": "main"}]))];
    node.manager.prepare(&of).await.unwrap();
    let told = || {
        let status = json!({"name": "app", "image": "", "imageID": "", "ready": true, "restartCount": 0});
        let mut status: PodStatus = serde_json::from_value(json!({"containerStatuses": [status]})).unwrap();
        node.manager.tell_health(&of, &mut status);
        serde_json::to_value(&status.container_statuses.unwrap()[0].allocated_resources_status).unwrap()
    };
    let shown = |health: &str| json!([{"name": "claim:gpu/main", "resources": [{"resourceID": "example.com/gpu=0", "health": health}]}]);
    assert_eq!(told(), shown("Unknown"));
    let changed = async || {
        let wait = tokio::time::timeout(Duration::from_secs(30), node.manager.health_changed());
        assert_eq!(wait.await.unwrap(), BTreeSet::from(["p1".to_owned()]));
    };
    driver.tell(&gpu, HealthStatus::Healthy, 0);
    changed().await;
    assert_eq!(told(), shown("Healthy"));
    // What is told holds for a second only.
    driver.tell(&gpu, HealthStatus::Unhealthy, 1);
    changed().await;
    assert_eq!(told(), shown("Unhealthy"));
    changed().await;
    assert_eq!(told(), shown("Unknown"));
    // Nobody is left who could tell.
    driver.tell(&gpu, HealthStatus::Healthy, 0);
    changed().await;
    driver.die();
    changed().await;
    assert_eq!(told(), shown("Unknown"));
}
