//! The device manager with a plugin behind real sockets: registration, allocation, plugins that go and come back,
//! kubelets that restart, and what agents are told.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod fixture;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bosun_kubelet_alignment::{DeviceProvider, NumaMask};
use bosun_kubelet_devices::{DeviceManager, pod_resources, registration, unix};
use bosun_proto::podresources::pod_resources_lister_client::PodResourcesListerClient;
use bosun_proto::podresources::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, ContainerResources, GetPodResourcesRequest,
    ListPodResourcesRequest, PodResources,
};
use fixture::{TestPlugin, device};
use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::json;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const GPU: &str = "example.com/gpu";

/// A kubelet's device manager. It ends when dropped.
struct Kubelet {
    manager: Arc<DeviceManager>,
    cancel: CancellationToken,
}

impl Kubelet {
    fn start(folder: &Path) -> Self {
        let manager = DeviceManager::new(folder, vec![0, 1]).unwrap();
        let manager = Arc::new(manager.with_grace(Duration::from_millis(1500)));
        let cancel = CancellationToken::new();
        registration::serve(manager.clone(), cancel.clone()).unwrap();
        Self { manager, cancel }
    }

    async fn until(&self, what: &str, done: impl Fn(&DeviceManager) -> bool) {
        let mut changes = self.manager.changes();
        let wait = async {
            while !done(&self.manager) {
                changes.changed().await.unwrap();
            }
        };
        timeout(Duration::from_secs(10), wait).await.unwrap_or_else(|_| panic!("waited for {what}"));
    }

    async fn until_healthy(&self, count: i64) {
        let shown = |manager: &DeviceManager| manager.capacity().allocatable.get(GPU).copied();
        self.until(&format!("{count} healthy devices"), |manager| shown(manager) == Some(count)).await;
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

fn pod(uid: &str, count: usize) -> (Pod, Container) {
    let container = json!({"name": "app", "resources": {"limits": {GPU: count.to_string()}}});
    let pod = json!({"metadata": {"name": uid, "uid": uid}, "spec": {"containers": [container]}});
    (serde_json::from_value(pod).unwrap(), serde_json::from_value(container).unwrap())
}

#[tokio::test]
async fn a_container_gets_devices_and_keeps_them() {
    let folder = tempfile::tempdir().unwrap();
    let kubelet = Kubelet::start(folder.path());
    let plugin = TestPlugin::start(
        folder.path(),
        GPU,
        vec![device("a", "Healthy", Some(0)), device("b", "Healthy", Some(1)), device("c", "Healthy", Some(1))],
    );
    plugin.register().await.unwrap();
    kubelet.until_healthy(3).await;
    let (one, app) = pod("one", 1);
    kubelet.manager.allocate(&one, &app, Some(NumaMask::new([1]))).await.unwrap();
    assert_eq!(plugin.take_calls(), ["GetPreferredAllocation b,c", "Allocate c"]);
    let given = kubelet.manager.prepare(&one, &app).await.unwrap();
    assert_eq!(plugin.take_calls(), ["PreStartContainer c"]);
    assert_eq!(given.devices, [("/dev/test-c".into(), "/dev/null".into(), "rw".into())]);
    assert_eq!(given.mounts, [("/test-hosts".into(), "/etc/hosts".into(), true)]);
    assert_eq!(given.envs["TEST_DEVICES"], "c");
    // Its device breaks: the pod's status says so, and nobody else gets it.
    plugin.offer(vec![device("a", "Healthy", Some(0)), device("c", "Unhealthy", Some(1))]);
    kubelet.until_healthy(1).await;
    let health = kubelet.manager.health("one", "app");
    assert_eq!(health[0].resources.as_ref().unwrap()[0].health.as_deref(), Some("Unhealthy"));
    let (two, app) = pod("two", 2);
    let fault = kubelet.manager.allocate(&two, &app, None).await.unwrap_err();
    assert_eq!(fault, "requested number of devices unavailable for example.com/gpu. Requested: 2, Available: 1");
    // The plugin goes, and comes back in time.
    drop(plugin);
    kubelet.until_healthy(0).await;
    assert_eq!(kubelet.manager.absent(&two).unwrap().resource, GPU);
    let plugin = TestPlugin::start(folder.path(), GPU, ["a", "b", "c"].map(|id| device(id, "Healthy", None)).into());
    plugin.register().await.unwrap();
    kubelet.until_healthy(3).await;
    kubelet.manager.allocate(&two, &app, None).await.unwrap();
    assert_eq!(kubelet.manager.devices("one", "app")[GPU].devices, [(1, vec!["c".to_owned()])].into());
    // It goes for good.
    drop(plugin);
    kubelet.until("the resource to be gone", |manager| manager.capacity().removed.contains(GPU)).await;
    assert!(kubelet.manager.concerns(&one), "what it has is still known");
}

#[tokio::test]
async fn a_restarted_kubelet_knows_and_waits() {
    let folder = tempfile::tempdir().unwrap();
    let kubelet = Kubelet::start(folder.path());
    let plugin =
        TestPlugin::start(folder.path(), GPU, vec![device("a", "Healthy", None), device("b", "Healthy", None)]);
    plugin.register().await.unwrap();
    kubelet.until_healthy(2).await;
    let (one, app) = pod("one", 1);
    kubelet.manager.allocate(&one, &app, None).await.unwrap();
    drop((kubelet, plugin));

    let kubelet = Kubelet::start(folder.path());
    assert!(!folder.path().join("test.sock").exists(), "plugins are made to register again");
    let shown = kubelet.manager.capacity();
    assert_eq!((shown.capacity[GPU], shown.allocatable[GPU]), (0, 0));
    assert_eq!(kubelet.manager.devices("one", "app")[GPU].ids().len(), 1);
    // A pod that comes before the plugin waits for it.
    let (two, _) = pod("two", 1);
    let waiting = tokio::spawn({
        let (manager, two) = (kubelet.manager.clone(), two.clone());
        async move { manager.present(&two).await }
    });
    assert!(!waiting.is_finished());
    let plugin =
        TestPlugin::start(folder.path(), GPU, vec![device("a", "Healthy", None), device("b", "Healthy", None)]);
    plugin.register().await.unwrap();
    timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
    kubelet.manager.allocate(&two, &app, None).await.unwrap();
    assert_ne!(kubelet.manager.devices("one", "app")[GPU].ids(), kubelet.manager.devices("two", "app")[GPU].ids());
    // One that never comes is not waited for without end.
    drop(plugin);
    kubelet.until_healthy(0).await;
    timeout(Duration::from_secs(5), kubelet.manager.present(&two)).await.unwrap();
    let (three, app) = pod("three", 1);
    let fault = kubelet.manager.allocate(&three, &app, None).await.unwrap_err();
    assert!(fault.contains("no healthy devices present") || fault.contains("unregistered"), "{fault}");
    kubelet.manager.retain(|uid| uid == "two");
    assert_eq!(kubelet.manager.owners(), ["two".to_owned()].into());
    drop(kubelet);
    let kubelet = Kubelet::start(folder.path());
    assert_eq!(kubelet.manager.owners(), ["two".to_owned()].into());
}

#[tokio::test]
async fn registrations_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let kubelet = Kubelet::start(folder.path());
    let native = TestPlugin::start(folder.path(), "cpu", Vec::new());
    let refused = native.register().await.unwrap_err();
    assert!(refused.message().contains("the ResourceName \"cpu\" is invalid"), "{refused}");
    drop(native);
    // A plugin that is not there.
    let gone = TestPlugin::start(folder.path(), GPU, Vec::new());
    std::fs::remove_file(folder.path().join("test.sock")).unwrap();
    let refused = gone.register().await.unwrap_err();
    assert!(refused.message().contains("failed to get device plugin options"), "{refused}");
    assert!(kubelet.manager.capacity().capacity.is_empty());
}

#[tokio::test]
async fn a_damaged_state_file_does_not_keep_the_kubelet_from_starting() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("kubelet_internal_checkpoint"), "{").unwrap();
    let kubelet = Kubelet::start(folder.path());
    assert!(kubelet.manager.owners().is_empty());
}

struct OnePod;

impl pod_resources::Pods for OnePod {
    fn list(&self) -> Vec<PodResources> {
        let containers = vec![ContainerResources { name: "app".into(), cpu_ids: vec![2, 3], ..Default::default() }];
        vec![PodResources { name: "web".into(), namespace: "default".into(), containers }]
    }

    fn get(&self, namespace: &str, name: &str) -> Option<PodResources> {
        self.list().into_iter().find(|pod| (pod.namespace.as_str(), pod.name.as_str()) == (namespace, name))
    }

    fn allocatable(&self) -> AllocatableResourcesResponse {
        AllocatableResourcesResponse { cpu_ids: vec![1, 2, 3], ..Default::default() }
    }
}

#[tokio::test]
async fn agents_are_told_what_pods_have() {
    let folder = tempfile::tempdir().unwrap();
    let (cancel, requests) = (CancellationToken::new(), pod_resources::Requests::default());
    let metrics = bosun_kit::metrics::Metrics::default();
    requests.register(&metrics);
    let folder = folder.path().join("pod-resources");
    pod_resources::serve(&folder, Arc::new(OnePod), requests, cancel.clone()).unwrap();
    let mut client = PodResourcesListerClient::new(unix::channel(folder.join("kubelet.sock")));
    let pods = client.list(ListPodResourcesRequest {}).await.unwrap().into_inner().pod_resources;
    assert_eq!(pods[0].containers[0].cpu_ids, [2, 3]);
    let all = client.get_allocatable_resources(AllocatableResourcesRequest {}).await.unwrap().into_inner();
    assert_eq!(all.cpu_ids, [1, 2, 3]);
    let get = |name: &str| GetPodResourcesRequest { pod_name: name.into(), pod_namespace: "default".into() };
    assert_eq!(client.get(get("web")).await.unwrap().into_inner().pod_resources.unwrap().name, "web");
    let fault = client.get(get("db")).await.unwrap_err();
    assert_eq!(fault.message(), "pod db in namespace default not found");
    let page = metrics.render();
    assert!(page.contains("kubelet_pod_resources_endpoint_requests_total{server_api_version=\"v1\"} 4"), "{page}");
    assert!(page.contains("kubelet_pod_resources_endpoint_requests_list{server_api_version=\"v1\"} 1"), "{page}");
    assert!(page.contains("kubelet_pod_resources_endpoint_errors_get{server_api_version=\"v1\"} 1"), "{page}");
    // More than the rate allows are refused, at once.
    let mut refused = None;
    for _ in 0..1000 {
        refused = refused.or(client.list(ListPodResourcesRequest {}).await.err());
    }
    let refused = refused.unwrap();
    assert_eq!((refused.code(), refused.message()), (tonic::Code::ResourceExhausted, "rejected by rate limit"));
    cancel.cancel();
}
