//! Volumes through their whole life with a driver in memory that minds its own rules, an API server in memory, and
//! kubelets that are killed between any two steps.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod fake;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bosun_kubelet_csi::drivers::{Driver, Drivers};
use bosun_kubelet_csi::mounter::Growing;
use bosun_kubelet_csi::{Csi, CsiError, Made, PodUse, Volume};
use fake::{FakeCluster, FakeDriver};
use k8s_openapi::api::core::v1::PersistentVolume;
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

const DRIVER: &str = "d.example.com";

/// A node with one driver, whose kubelet may be killed.
struct World {
    root: TempDir,
    driver: Arc<FakeDriver>,
    cluster: Arc<FakeCluster>,
    csi: Csi,
}

impl World {
    fn new(object: Value) -> Self {
        let root = tempfile::tempdir().unwrap();
        let (driver, cluster) = (Arc::new(FakeDriver::default()), Arc::new(FakeCluster::default()));
        let mut spec = json!({"metadata": {"name": DRIVER}, "spec": {"attachRequired": false}});
        spec["spec"].as_object_mut().unwrap().extend(object.as_object().unwrap().clone());
        *cluster.driver.lock().unwrap() = Some(serde_json::from_value(spec).unwrap());
        let csi = kubelet(root.path(), "boot1", &driver, &cluster);
        Self { root, driver, cluster, csi }
    }

    /// Another kubelet takes over.
    fn restart(&mut self, boot: &str) {
        self.csi = kubelet(self.root.path(), boot, &self.driver, &self.cluster);
    }

    async fn up(&self, volume: &Volume, pod: &PodUse) -> Result<Made, CsiError> {
        self.csi.set_up(volume, pod, None, Box::new(|_| Ok(()))).await
    }

    fn log(&self) -> String {
        std::mem::take(&mut *self.driver.log.lock().unwrap()).join("\n")
    }

    /// What is left below the root, but empty folders.
    fn files(&self) -> Vec<String> {
        let mut files = Vec::new();
        let mut folders = vec![self.root.path().to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().flatten() {
                match entry.path().is_dir() {
                    true => folders.push(entry.path()),
                    false => files.push(entry.path().display().to_string()),
                }
            }
        }
        files
    }
}

fn kubelet(root: &Path, boot: &str, driver: &Arc<FakeDriver>, cluster: &Arc<FakeCluster>) -> Csi {
    let drivers = Arc::new(Drivers::default());
    drivers.put(Driver::new(DRIVER, Path::new("/socket"), driver.clone()));
    Csi::new(root, "node1", boot, drivers, cluster.clone())
}

fn volume(name: &str, spec: Value) -> Volume {
    let mut pv = json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"],
        "csi": {"driver": DRIVER, "volumeHandle": format!("h-{name}"), "volumeAttributes": {"size": "1"}}}});
    let own = pv["spec"].as_object_mut().unwrap();
    for (key, value) in spec.as_object().unwrap() {
        match (own.get_mut(key).and_then(Value::as_object_mut), value.as_object()) {
            (Some(known), Some(more)) => known.extend(more.clone()),
            _ => drop(own.insert(key.clone(), value.clone())),
        }
    }
    let pv: PersistentVolume = serde_json::from_value(pv).unwrap();
    Volume::of_pv(&pv, false).unwrap()
}

fn pod(uid: &str) -> PodUse {
    PodUse {
        name: format!("name-{uid}"),
        namespace: "ns".into(),
        uid: uid.into(),
        service_account: "default".into(),
        group: None,
    }
}

#[tokio::test]
async fn two_pods_share_what_is_staged_and_the_last_one_gives_it_back() {
    let world = World::new(json!({}));
    let volume = volume("pv1", json!({}));
    let made = world.up(&volume, &pod("u1")).await.unwrap();
    assert_eq!(made.path, world.root.path().join("pods/u1/volumes/kubernetes.io~csi/pv1/mount"));
    world.up(&volume, &pod("u1")).await.unwrap();
    world.up(&volume, &pod("u2")).await.unwrap();
    world.csi.tear_down("u1").await.unwrap();
    world.csi.tear_down("u2").await.unwrap();
    world.csi.tear_down("u2").await.unwrap();
    let golden = "\
stage h-pv1 globalmount SINGLE_NODE_WRITER {\"size\": \"1\"}
publish h-pv1 u1 {\"size\": \"1\"}
publish h-pv1 u2 {\"size\": \"1\"}
unpublish h-pv1 u1
unpublish h-pv1 u2
unstage h-pv1";
    assert_eq!(world.log(), golden);
    assert!(world.files().is_empty(), "{:?}", world.files());
}

#[tokio::test]
async fn the_attachment_is_waited_for_and_its_context_handed_over() {
    let world = World::new(json!({"attachRequired": true}));
    let volume = volume("pv1", json!({}));
    let attach = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(world.log(), "", "nothing is staged before");
        assert_eq!(world.csi.in_use(), ["kubernetes.io/csi/d.example.com^h-pv1"], "told before it is mounted");
        world.cluster.attach(&volume, "node1", json!({"attached": true, "attachmentMetadata": {"disk": "sdb"}}));
    };
    let pod = pod("u1");
    let (made, ()) = tokio::join!(world.up(&volume, &pod), attach);
    made.unwrap();
    assert!(world.log().contains("context {\"disk\": \"sdb\"}"));
    world.csi.tear_down("u1").await.unwrap();
    assert!(world.csi.in_use().is_empty());
    // What the attacher says goes into the event.
    world.cluster.attach(&volume, "node1", json!({"attached": false, "attachError": {"message": "no such disk"}}));
    let error = world.up(&volume, &pod).await.unwrap_err();
    assert_eq!(error.to_string(), "MountVolume.WaitForAttach failed for volume \"pv1\" : no such disk");
}

#[tokio::test]
async fn refusals_are_stocks_and_come_less_and_less_often() {
    let world = World::new(json!({}));
    let wanted = volume("pv1", json!({}));
    let refuse = |call: &str| world.driver.refuse(call, tonic::Status::internal("no disk"));
    refuse("stage");
    let first = world.up(&wanted, &pod("u1")).await.unwrap_err();
    let golden = "MountVolume.MountDevice failed for volume \"pv1\" : rpc error: code = Internal desc = no disk";
    assert_eq!(first.to_string(), golden);
    assert!(world.files().iter().all(|file| !file.contains("plugins")), "nothing is staged: {:?}", world.files());
    let second = world.up(&wanted, &pod("u1")).await.unwrap_err();
    assert!(first.retry < Duration::from_millis(600) && second.retry > Duration::from_millis(900));
    world.driver.refusals.lock().unwrap().clear();
    refuse("publish");
    let error = world.up(&wanted, &pod("u1")).await.unwrap_err();
    assert!(error.to_string().starts_with("MountVolume.SetUp failed for volume \"pv1\" : rpc error: code = Internal"));
    world.driver.refusals.lock().unwrap().clear();
    world.up(&wanted, &pod("u1")).await.unwrap();
    world.csi.tear_down("u1").await.unwrap();
    let other = Volume { driver: "other".into(), ..volume("pv2", json!({})) };
    *world.cluster.driver.lock().unwrap() = None;
    world.cluster.attach(&other, "node1", json!({"attached": true}));
    let error = world.up(&other, &pod("u1")).await.unwrap_err();
    let golden = "MountVolume.MountDevice failed for volume \"pv2\" : kubernetes.io/csi: attacher.MountDevice failed to create newCsiDriverClient: driver name other not found in the list of registered CSI drivers";
    assert_eq!(error.to_string(), golden);
    world.csi.tear_down("u1").await.unwrap();
    let inline = json!({"name": "v", "csi": {"driver": DRIVER}});
    let inline = Volume::inline(&serde_json::from_value(inline).unwrap(), "ns", "u1").unwrap();
    let error = world.up(&inline, &pod("u1")).await.unwrap_err();
    let golden = "MountVolume.NewMounter initialization failed for volume \"v\" : volume mode \"Ephemeral\" not supported by driver d.example.com (no CSIDriver object)";
    assert_eq!(error.to_string(), golden);
    assert!(world.files().is_empty(), "{:?}", world.files());
}

#[tokio::test]
async fn an_inline_volume_is_only_published_and_told_of_its_pod() {
    let world = World::new(json!({"volumeLifecycleModes": ["Ephemeral"], "podInfoOnMount": true,
        "tokenRequests": [{"audience": "vault", "expirationSeconds": 600}], "requiresRepublish": true}));
    world.cluster.secrets.lock().unwrap().insert("ns/s".into(), [("key".to_owned(), "hidden".to_owned())].into());
    let inline = json!({"name": "v", "csi": {"driver": DRIVER, "nodePublishSecretRef": {"name": "s"}}});
    let inline = Volume::inline(&serde_json::from_value(inline).unwrap(), "ns", "u1").unwrap();
    let made = world.up(&inline, &pod("u1")).await.unwrap();
    assert_eq!(made.again, Some(Duration::from_secs(60)));
    world.up(&inline, &pod("u1")).await.unwrap();
    let log = world.log();
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!((lines.len(), lines[0]), (2, lines[1]), "told again, with the token that is still good");
    for part in [
        r#""csi.storage.k8s.io/ephemeral": "true""#,
        r#""csi.storage.k8s.io/pod.name": "name-u1""#,
        r#"{\"vault\":{\"expirationTimestamp\":\"2030-01-01T00:00:00Z\",\"token\":\"token-1\"}}"#,
        "secrets [\"key\"]",
    ] {
        assert!(lines[0].contains(part), "{part} in {log}");
    }
    let persistent = volume("pv1", json!({}));
    let error = world.up(&persistent, &pod("u1")).await.unwrap_err();
    assert!(
        error.to_string().ends_with(
            "volume mode \"Persistent\" not supported by driver d.example.com (only supports [\"Ephemeral\"])"
        )
    );
    world.csi.tear_down("u1").await.unwrap();
    assert!(!world.log().contains("unstage") && world.files().is_empty());
}

#[tokio::test]
async fn one_pod_has_the_volume_for_itself() {
    let world = World::new(json!({}));
    let volume = volume("pv1", json!({"accessModes": ["ReadWriteOncePod"]}));
    world.up(&volume, &pod("u1")).await.unwrap();
    let error = world.up(&volume, &pod("u2")).await.unwrap_err();
    let golden = "MountVolume failed for volume \"pv1\" : volume uses the ReadWriteOncePod access mode and is already in use by another pod";
    assert_eq!(error.to_string(), golden);
    world.csi.tear_down("u1").await.unwrap();
    world.up(&volume, &pod("u2")).await.unwrap();
    world.csi.tear_down("u2").await.unwrap();
    assert!(world.files().is_empty());
}

#[tokio::test]
async fn a_volume_that_grew_is_grown_once_and_the_claim_told() {
    let world = World::new(json!({}));
    let volume = volume("pv1", json!({}));
    let claim = |shown: &str| Growing {
        claim: serde_json::from_value(json!({"metadata": {"name": "c", "namespace": "ns"},
            "status": {"capacity": {"storage": shown}}}))
        .unwrap(),
        capacity: Some(serde_json::from_value(json!("2Gi")).unwrap()),
    };
    let up = |growing: Growing| async {
        let (volume, growing) = (volume.clone(), growing);
        world.csi.set_up(&volume, &pod("u1"), Some(&growing), Box::new(|_| Ok(()))).await
    };
    let made = up(claim("2Gi")).await.unwrap();
    assert_eq!((made.again, made.grown), (Some(Duration::from_secs(60)), None));
    let made = up(claim("1Gi")).await.unwrap();
    assert_eq!(made.grown.unwrap(), "MountVolume.NodeExpandVolume succeeded for volume \"pv1\" node1");
    assert!(world.log().ends_with("expand h-pv1 u1 2147483648"));
    assert_eq!(*world.cluster.grown.lock().unwrap(), ["ns/c 2Gi"]);
    // A volume in use stays usable, whatever the driver says.
    world.driver.refuse("expand", tonic::Status::internal("resize2fs failed"));
    let made = up(claim("1Gi")).await.unwrap();
    let golden =
        "MountVolume.NodeExpandVolume failed for volume \"pv1\" : rpc error: code = Internal desc = resize2fs failed";
    assert_eq!(made.complaint.unwrap(), golden);
    world.driver.refuse("expand", tonic::Status::failed_precondition("in use"));
    assert_eq!(up(claim("1Gi")).await.unwrap().complaint, None);
}

#[tokio::test]
async fn the_group_is_given_once_and_again_only_if_that_was_broken_off() {
    let world = World::new(json!({"fsGroupPolicy": "File"}));
    let (volume, pod) = (volume("pv1", json!({})), PodUse { group: Some(2000), ..pod("u1") });
    let given = Arc::new(std::sync::Mutex::new(Vec::new()));
    let up = |answer: Result<(), String>| {
        let given = given.clone();
        world.csi.set_up(
            &volume,
            &pod,
            None,
            Box::new(move |path| {
                given.lock().unwrap().push(path.ends_with("mount"));
                answer
            }),
        )
    };
    let error = up(Err("no space".into())).await.unwrap_err();
    assert!(error.to_string().ends_with("applyFSGroup failed for vol h-pv1: no space"));
    up(Ok(())).await.unwrap();
    up(Ok(())).await.unwrap();
    assert_eq!(*given.lock().unwrap(), [true, true]);
    assert_eq!(world.log().matches("publish").count(), 1);
}

#[tokio::test]
async fn a_driver_that_hangs_holds_up_its_own_volume_only() {
    let world = World::new(json!({}));
    let (slow, fast) = (volume("slow", json!({})), volume("fast", json!({})));
    *world.driver.hang.lock().unwrap() = Some(("stage h-slow".into(), true));
    let (pod1, pod2) = (pod("u1"), pod("u2"));
    let hangs = world.up(&slow, &pod1);
    tokio::pin!(hangs);
    tokio::select! {
        _ = &mut hangs => panic!("it hangs"),
        made = world.up(&fast, &pod2) => drop(made.unwrap()),
    }
    world.csi.tear_down("u2").await.unwrap();
}

#[tokio::test]
async fn after_a_reboot_everything_is_made_anew() {
    let mut world = World::new(json!({}));
    let volume = volume("pv1", json!({}));
    world.up(&volume, &pod("u1")).await.unwrap();
    world.restart("boot1");
    world.up(&volume, &pod("u1")).await.unwrap();
    assert_eq!(world.log().lines().count(), 2, "a kubelet that restarts finds it ready");
    world.driver.reboot();
    world.restart("boot2");
    world.up(&volume, &pod("u1")).await.unwrap();
    assert_eq!(
        world.log().lines().map(|line| line.split(' ').next().unwrap()).collect::<Vec<_>>(),
        ["stage", "publish"]
    );
    world.csi.tear_down("u1").await.unwrap();
    assert!(world.files().is_empty());
}

#[derive(Clone, Debug)]
enum Move {
    Up(u8, u8),
    Down(u8),
    /// The call of that number from now hangs, before or after it had its effect, and the kubelet is killed then.
    Kill(u8, bool, Box<Move>),
    Refuse(u8, Box<Move>),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let plain = prop_oneof![(0..3u8, 0..2u8).prop_map(|(p, v)| Move::Up(p, v)), (0..3u8).prop_map(Move::Down)];
    let any = prop_oneof![
        3 => plain.clone(),
        2 => (0..3u8, any::<bool>(), plain.clone()).prop_map(|(n, after, m)| Move::Kill(n, after, Box::new(m))),
        1 => (0..4u8, plain).prop_map(|(call, m)| Move::Refuse(call, Box::new(m))),
    ];
    proptest::collection::vec(any, 1..24)
}

async fn play(world: &World, step: &Move) {
    let volumes = [volume("pv0", json!({})), volume("pv1", json!({}))];
    match step {
        Move::Up(pod_number, number) => {
            let _ = world.up(&volumes[usize::from(*number)], &pod(&format!("u{pod_number}"))).await;
        }
        Move::Down(pod_number) => drop(world.csi.tear_down(&format!("u{pod_number}")).await),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// The driver minds the order itself: it panics when a volume is published that is not staged, or unstaged while it
    /// is published. In the end nothing may be left.
    #[test]
    fn whenever_the_kubelet_is_killed_everything_is_given_back(moves in moves()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new(json!({}));
            for step in &moves {
                match step {
                    Move::Kill(calls, after, inner) => {
                        world.driver.hang_at(u32::from(*calls), *after);
                        tokio::select! {
                            () = play(&world, inner) => {}
                            () = world.driver.hanging.notified() => {}
                        }
                        world.driver.hang_never();
                        world.restart("boot1");
                    }
                    Move::Refuse(call, inner) => {
                        let call = ["stage", "publish", "unpublish", "unstage"][usize::from(*call)];
                        world.driver.refuse(call, tonic::Status::internal("refused"));
                        play(&world, inner).await;
                        world.driver.refusals.lock().unwrap().clear();
                    }
                    plain => play(&world, plain).await,
                }
            }
            for pod in 0..3 {
                world.csi.tear_down(&format!("u{pod}")).await.unwrap();
            }
            assert!(world.driver.is_empty(), "{:?}", world.driver.state.lock().unwrap());
            assert!(world.files().is_empty(), "{:?}", world.files());
        });
    }
}
