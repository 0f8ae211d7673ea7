//! Admission by the resource managers, with a runtime in memory: what comes back after a reboot, and what waits.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod fixture;
#[path = "../devices/tests/fixture/mod.rs"]
mod plugin;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bosun_kubelet::admission::Offer;
use bosun_kubelet::alignment::Alignment;
use bosun_kubelet::alignment::plugins::DevicePlugins;
use bosun_kubelet::config::KubeletConfiguration;
use bosun_kubelet::context::Context;
use bosun_kubelet::cri::fake::FakeRuntime;
use bosun_kubelet::manager::{Inputs, Manager, Pods};
use bosun_kubelet::observe::Observer;
use bosun_kubelet_devices::registration;
use bosun_kubelet_plugins::{DEVICE_PLUGIN, Plugin};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use plugin::{TestPlugin, device};

const DEVICE: &str = "example.com/null";
const IMAGE: &str = "app:1";

/// A kubelet whose Node shows no devices at first. It ends when dropped.
struct Kubelet {
    pods: Pods,
    statics: mpsc::UnboundedSender<BTreeMap<String, Arc<Pod>>>,
    alignment: Arc<Alignment>,
    devices: PathBuf,
    _cancel: DropGuard,
}

impl Kubelet {
    /// On the runtime, which outlives it.
    fn start(folder: &Path, runtime: &Arc<FakeRuntime>, configuration: Value) -> Self {
        let node = Arc::new(fixture::node(folder));
        for path in [&node.pods_dir(), &node.pod_logs_dir, &node.container_logs_dir] {
            fs::create_dir_all(path).unwrap();
        }
        let config: KubeletConfiguration = serde_json::from_value(configuration).unwrap();
        let alignment =
            Alignment::open(&config, &config.gates().unwrap(), &node.root_dir, (0, &BTreeMap::new())).unwrap();
        let alignment = Arc::new(alignment);
        let cancel = CancellationToken::new();
        registration::serve(alignment.devices.clone(), cancel.clone()).unwrap();
        let (news_to, news) = mpsc::unbounded_channel();
        let observer = Observer::new(runtime.clone(), node.clone(), news_to);
        let context =
            Arc::new(Context { alignment: alignment.clone(), ..fixture::context(&node, runtime.clone(), &observer) });
        let (pods, offered) = (Pods::default(), Default::default());
        let allocatable = [(DEVICE.to_owned(), offered), ("cpu".to_owned(), "64".parse().unwrap())].into();
        let offer = Offer { known: true, max_pods: 10, allocatable, ..Offer::default() };
        let (ended_to, ended) = mpsc::unbounded_channel();
        let (statics, statics_from) = mpsc::unbounded_channel();
        let manager = Manager::new(context, pods.clone(), Arc::new(Mutex::new(offer)), ended_to, cancel.clone());
        let inputs = Inputs { api: None, statics: Some(statics_from), news, changes: None };
        let list = observer.clone();
        tokio::spawn(async move {
            // What runs is known before any pod comes.
            list.list().await.unwrap();
            manager.run(inputs, ended).await;
        });
        tokio::spawn(observer.run(cancel.clone()));
        let devices = node.root_dir.join("device-plugins");
        Self { pods, statics, alignment, devices, _cancel: cancel.drop_guard() }
    }

    fn set(&self, pods: &[(&str, Value)]) {
        let pod = |(name, resources): &(&str, Value)| {
            let container = json!({"name": "app", "image": IMAGE, "imagePullPolicy": "Never",
                "resources": {"limits": resources, "requests": resources}});
            let metadata = json!({"name": name, "namespace": "default", "uid": name});
            let spec = json!({"containers": [container], "terminationGracePeriodSeconds": 1});
            let pod = serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap();
            ((*name).to_owned(), Arc::new(pod))
        };
        self.statics.send(pods.iter().map(pod).collect()).unwrap();
    }

    fn phase(&self, name: &str) -> Option<String> {
        let pod = self.pods.read().unwrap().get(name)?.pod();
        pod.status.as_ref()?.phase.clone()
    }

    async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !done(self) {
            assert!(began.elapsed() < Duration::from_secs(20), "{what} takes too long");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn plug(&self) -> TestPlugin {
        let plugin = TestPlugin::start(&self.devices, DEVICE, vec![device("a", "Healthy", None)]);
        plugin.register().await.unwrap();
        plugin
    }
}

fn runtime() -> Arc<FakeRuntime> {
    let runtime = Arc::new(FakeRuntime::new());
    runtime.add_image(IMAGE);
    runtime
}

#[tokio::test]
async fn after_a_reboot_pods_wait_for_their_plugin() {
    let folder = tempfile::tempdir().unwrap();
    let wanted = ("one", json!({DEVICE: "1"}));
    let kubelet = Kubelet::start(folder.path(), &runtime(), json!({}));
    let plugin = kubelet.plug().await;
    kubelet.until("devices", |k| k.alignment.devices.capacity().allocatable.get(DEVICE) == Some(&1)).await;
    kubelet.set(std::slice::from_ref(&wanted));
    // The Node says that there are none; the plugin knows better.
    kubelet.until("the pod", |k| k.phase("one").as_deref() == Some("Running")).await;
    drop((kubelet, plugin));

    // The runtime has forgotten everything, and the plugin is itself a pod that is not there yet.
    let kubelet = Kubelet::start(folder.path(), &runtime(), json!({}));
    kubelet.set(&[wanted.clone(), ("two", json!({DEVICE: "1"})), ("plain", json!({"cpu": "10m"}))]);
    kubelet.until("the other pod", |k| k.phase("plain").as_deref() == Some("Running")).await;
    assert_eq!((kubelet.phase("one"), kubelet.phase("two")), (None, None));
    // One that goes while it waits leaves nothing.
    kubelet.set(&[wanted, ("plain", json!({"cpu": "10m"}))]);
    let plugin = kubelet.plug().await;
    kubelet.until("the pod to come back", |k| k.phase("one").as_deref() == Some("Running")).await;
    assert_eq!(kubelet.alignment.devices.owners(), ["one".to_owned()].into());
    assert_eq!(kubelet.phase("two"), None);
    drop(plugin);
}

#[tokio::test]
async fn a_running_pod_keeps_what_it_has_and_another_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = runtime();
    let configuration = || json!({"cpuManagerPolicy": "static", "reservedSystemCPUs": "0"});
    let free = bosun_kubelet_alignment::sysfs::Reader::default().topology().unwrap().all().len() - 1;
    assert!(free > 0, "this test needs two CPUs");
    let size = |cpus: usize| json!({"cpu": cpus.to_string(), "memory": "1Mi"});
    let kubelet = Kubelet::start(folder.path(), &runtime, configuration());
    kubelet.set(&[("own", size(free))]);
    kubelet.until("the pod", |k| k.phase("own").as_deref() == Some("Running")).await;
    let cpus = kubelet.alignment.aligner.exclusive_cpus("own", "app").unwrap();
    assert_eq!(cpus.len(), free);
    drop(kubelet);

    let kubelet = Kubelet::start(folder.path(), &runtime, configuration());
    // The new pod comes in the same breath, and its name comes first.
    kubelet.set(&[("also", size(1)), ("own", size(free))]);
    kubelet.until("the refusal", |k| k.phase("also").as_deref() == Some("Failed")).await;
    kubelet.until("the pod", |k| k.phase("own").as_deref() == Some("Running")).await;
    assert_eq!(kubelet.alignment.aligner.exclusive_cpus("own", "app"), Some(cpus));
    let refused = kubelet.pods.read().unwrap()["also"].pod();
    assert_eq!(refused.status.as_ref().unwrap().reason.as_deref(), Some("UnexpectedAdmissionError"));
    // Once it is gone there is room.
    kubelet.set(&[("also", size(1))]);
    kubelet.until("its CPUs", |k| !k.alignment.aligner.has_exclusive_cpus("own")).await;
    kubelet.set(&[("also", size(1)), ("next", size(free))]);
    kubelet.until("the next pod", |k| k.phase("next").as_deref() == Some("Running")).await;
}

#[tokio::test]
async fn plugins_may_register_as_drivers_do() {
    let folder = tempfile::tempdir().unwrap();
    let kubelet = Kubelet::start(folder.path(), &runtime(), json!({}));
    let (kind, handler) = DevicePlugins::registrar(kubelet.alignment.devices.clone(), CancellationToken::new());
    assert_eq!(kind, DEVICE_PLUGIN);
    let told = |name: &str, version: &str| Plugin {
        kind: kind.clone(),
        name: name.into(),
        endpoint: kubelet.devices.join("test.sock").to_str().unwrap().into(),
        versions: vec![version.into()],
        socket: folder.path().join("registry/test.sock"),
    };
    let version = handler.validate(&told(DEVICE, "v2")).unwrap_err();
    assert_eq!(version, "manager version, v1beta1, is not among plugin supported versions [\"v2\"]");
    assert!(handler.validate(&told("cpu", "v1beta1")).unwrap_err().contains("\"cpu\" is invalid"));
    let known = told(DEVICE, "v1beta1");
    assert_eq!(handler.validate(&known), Ok(()));
    assert!(handler.register(&known).await.unwrap_err().contains("failed to get device plugin options"));
    let _plugin = TestPlugin::start(&kubelet.devices, DEVICE, vec![device("a", "Healthy", None)]);
    handler.register(&known).await.unwrap();
    let healthy = |kubelet: &Kubelet| kubelet.alignment.devices.capacity().allocatable.get(DEVICE).copied();
    kubelet.until("the device", |k| healthy(k) == Some(1)).await;
    handler.deregister(&known).await;
    assert_eq!(healthy(&kubelet), Some(0));
}
