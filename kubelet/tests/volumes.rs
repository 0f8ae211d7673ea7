//! Volumes through the whole kubelet, with a runtime in memory: image volumes, and what a kubelet that was killed left
//! mounted.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod fixture;

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bosun_kubelet::admission::Offer;
use bosun_kubelet::cri::Runtime;
use bosun_kubelet::cri::fake::FakeRuntime;
use bosun_kubelet::make::Node;
use bosun_kubelet::manager::{Inputs, Manager, Pods};
use bosun_kubelet::observe::Observer;
use k8s_openapi::api::core::v1::Pod;
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A kubelet whose pods come from a channel.
struct Rig {
    folder: tempfile::TempDir,
    runtime: Arc<FakeRuntime>,
    node: Arc<Node>,
    pods: Pods,
    statics: mpsc::UnboundedSender<BTreeMap<String, Arc<Pod>>>,
    _cancel: DropGuard,
}

impl Rig {
    /// Starts it; `before` sees the node first.
    fn start(before: impl FnOnce(&Node)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let node = Arc::new(fixture::node(folder.path()));
        for path in [&node.pods_dir(), &node.pod_logs_dir, &node.container_logs_dir] {
            fs::create_dir_all(path).unwrap();
        }
        before(&node);
        let runtime = Arc::new(FakeRuntime::new());
        runtime.add_image("app:1");
        let (news_to, news) = mpsc::unbounded_channel();
        let observer = Observer::new(runtime.clone(), node.clone(), news_to);

        let context = Arc::new(fixture::context(&node, runtime.clone(), &observer));
        let (pods, cancel) = (Pods::default(), CancellationToken::new());
        let (ended_to, ended) = mpsc::unbounded_channel();
        let (statics, statics_from) = mpsc::unbounded_channel();
        let offer = Arc::new(Mutex::new(Offer::default()));
        let manager = Manager::new(context, pods.clone(), offer, ended_to, cancel.clone());
        let inputs = Inputs { api: None, statics: Some(statics_from), news, changes: None };
        tokio::spawn(manager.run(inputs, ended));
        tokio::spawn(observer.run(cancel.clone()));
        Self { folder, runtime, node, pods, statics, _cancel: cancel.drop_guard() }
    }

    fn set(&self, spec: Value) {
        let pod = json!({"metadata": {"name": "p", "namespace": "default", "uid": "u1"}, "spec": spec});
        let pod = Arc::new(serde_json::from_value(pod).unwrap());
        self.statics.send([("u1".to_owned(), pod)].into()).unwrap();
    }

    fn status(&self) -> Value {
        let handle = self.pods.read().unwrap().get("u1").cloned();
        handle.map(|handle| serde_json::to_value(&handle.pod().status).unwrap()).unwrap_or_default()
    }
}

async fn until(what: &str, limit: Duration, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < limit, "{what} takes too long");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_container_waits_for_the_image_of_its_volume_and_is_given_it() {
    let rig = Rig::start(|_| {});
    rig.set(json!({
        "containers": [{"name": "main", "image": "app:1", "imagePullPolicy": "Never",
            "volumeMounts": [{"name": "model", "mountPath": "/model", "subPath": "part"}]}],
        "volumes": [{"name": "model", "image": {"reference": "model:1", "pullPolicy": "Never"}}],
    }));
    let waiting = || rig.status()["containerStatuses"][0]["state"]["waiting"].clone();
    until("the wait", Duration::from_secs(20), || waiting()["reason"] == "ErrImageNeverPull").await;
    assert_eq!(waiting()["message"], "Container image \"model:1\" is not present with pull policy of Never");
    rig.runtime.add_image("model:1");
    until("the start", Duration::from_secs(30), || rig.status()["phase"] == "Running").await;
    let id = rig.runtime.list_containers(None).await.unwrap()[0].id.clone();
    let mounts = rig.runtime.container_status(&id, false).await.unwrap().status.unwrap().mounts;
    let mount = mounts.iter().find(|m| m.container_path == "/model").unwrap();
    let image = mount.image.as_ref().unwrap();
    assert_eq!((image.image.as_str(), image.user_specified_image.as_str()), ("sha256:model:1", "model:1"));
    assert_eq!((mount.image_sub_path.as_str(), mount.host_path.as_str()), ("part", ""));
}

#[tokio::test]
async fn what_a_killed_kubelet_left_mounted_goes_with_the_first_sweep() {
    let rig = Rig::start(|node| {
        let volume = node.pods_dir().join("gone/volumes/kubernetes.io~empty-dir/a");
        let data = node.root_dir.join("data");
        fs::create_dir_all(volume.join("under")).unwrap();
        fs::create_dir_all(&data).unwrap();
        fs::write(data.join("precious"), "1").unwrap();
        let none: Option<&str> = None;
        mount(Some(&data), &volume, none, MsFlags::MS_BIND, none).unwrap();
    });
    rig.statics.send(BTreeMap::new()).unwrap();
    let gone = rig.node.pods_dir().join("gone");
    until("the sweep", Duration::from_secs(30), || !gone.exists()).await;
    assert!(rig.node.root_dir.join("data/precious").exists());
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(rig.folder.path().to_str().unwrap()), "a mount is left");
}
