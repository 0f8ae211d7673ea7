//! The kubelet as a program, alone with a real containerd in a network namespace of its own: a static pod starts, is
//! adopted after a SIGKILL of the kubelet, follows its manifest, and leaves nothing behind.
#![expect(clippy::unwrap_used, reason = "helpers of a test: whatever fails fails the test")]

mod real;
mod served;

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use real::{BUSYBOX, IMAGE, TestNode, wait_or};

fn spec() -> Value {
    let shell = |script: &str| json!([BUSYBOX, "sh", "-c", script]);
    json!({
        "hostNetwork": true,
        "terminationGracePeriodSeconds": 3,
        "initContainers": [{"name": "init", "image": IMAGE, "imagePullPolicy": "Never",
            "command": shell("echo made by $(NAME) > /data/sub/file"),
            "env": [{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "volumeMounts": [{"name": "data", "mountPath": "/data/sub", "subPath": "deep/er"}]}],
        "containers": [{"name": "main", "image": IMAGE, "imagePullPolicy": "Never",
            "command": shell("cat /data/deep/er/file /info/labels; echo; echo bye > /dev/termination-log; trap 'exit 0' TERM; busybox sleep 1000 & wait"),
            "readinessProbe": {"exec": {"command": [BUSYBOX, "test", "-f", "/data/deep/er/file"]}, "periodSeconds": 1},
            "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "info", "mountPath": "/info"}]}],
        "volumes": [{"name": "data", "emptyDir": {"medium": "Memory"}},
            {"name": "info", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}],
    })
}

fn container_id(pod: &Value) -> String {
    pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap_or_default().to_owned()
}

/// A pod that talks a lot has its log rotated, and the runtime goes on in the new file.
fn rotates_logs(node: &TestNode) {
    let talk = "while :; do echo 0123456789012345678901234567890123456789; busybox usleep 10000; done";
    let spec = json!({"hostNetwork": true, "terminationGracePeriodSeconds": 0, "containers": [
        {"name": "main", "image": IMAGE, "imagePullPolicy": "Never", "command": [BUSYBOX, "sh", "-c", talk]}]});
    node.manifest("chatty", &spec);
    let files = || -> Vec<String> {
        let pods = fs::read_dir(node.folder.join("logs/pods")).unwrap().flatten();
        let pod = pods.map(|e| e.path()).find(|p| p.to_string_lossy().contains("chatty"));
        let entries = pod.and_then(|pod| fs::read_dir(pod.join("main")).ok()).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|e| e.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let rotated_twice = || {
        matches!(&files()[..], [now, old, last]
        if now == "0.log" && old.starts_with("0.log.20") && old.ends_with(".gz") && !last.ends_with(".gz"))
    };
    wait_or("two rotations", rotated_twice, || format!("{:?}\n{}", files(), node.log()));
    let newest = || {
        let pods = fs::read_dir(node.folder.join("logs/pods")).unwrap().flatten();
        let pod = pods.map(|e| e.path()).find(|p| p.to_string_lossy().contains("chatty")).unwrap();
        fs::read_to_string(pod.join("main/0.log")).unwrap_or_default()
    };
    wait_or("the new file", || newest().contains("0123456789"), || node.log());
    fs::remove_file(node.folder.join("manifests/chatty.yaml")).unwrap();
    wait_or("the end of the chatty pod", || node.pods().len() == 1, || node.log());
}

#[test]
fn a_static_pod_lives_through_a_kubelet_s_death_and_leaves_nothing() {
    let mut node = TestNode::start();
    node.start_kubelet();
    node.manifest("web", &spec());
    let pod = node.until_ready("the pod's readiness");
    assert_eq!(pod["metadata"]["name"], "web-node1");
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(pod["status"]["podIP"], "127.0.0.1");
    assert_eq!(pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"], 0);
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let log = node.folder.join(format!("logs/pods/default_web-node1_{uid}/main/0.log"));
    let text = fs::read_to_string(log).unwrap();
    assert!(text.contains("made by web-node1") && text.contains("app=\"web\""), "{text}");
    assert_eq!(fs::read_dir(node.folder.join("logs/containers")).unwrap().count(), 2);

    served::check(&node);

    // Killed and started again, the kubelet takes over what runs: no restart, and ready at once.
    node.kill_kubelet();
    node.start_kubelet();
    let adopted = node.until_ready("adoption");
    assert_eq!(container_id(&adopted), container_id(&pod));
    assert_eq!(adopted["status"]["containerStatuses"][0]["restartCount"], 0);

    // An exit is noticed and the container started again, with its last words kept.
    let out = node
        .ctr()
        .args([
            "-n",
            "k8s.io",
            "tasks",
            "kill",
            "-s",
            "SIGKILL",
            container_id(&pod).trim_start_matches("containerd://"),
        ])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let killed = Instant::now();
    wait_or(
        "the restart",
        || node.ready().is_some_and(|p| p["status"]["containerStatuses"][0]["restartCount"] == 1),
        || node.log(),
    );
    assert!(killed.elapsed() < Duration::from_secs(4), "an exit is known without waiting for a listing");
    let last = node.pods()[0]["status"]["containerStatuses"][0]["lastState"]["terminated"].clone();
    assert_eq!((last["exitCode"].as_i64(), last["message"].as_str()), (Some(137), Some("bye\n")));

    rotates_logs(&node);

    // What ends while no kubelet is there is found by the next one: its containers, its mounts, its files.
    node.kill_kubelet();
    fs::remove_file(node.folder.join("manifests/web.yaml")).unwrap();
    node.start_kubelet();
    let left = || fs::read_dir(node.folder.join("kubelet/pods")).unwrap().count();
    wait_or("the end", || node.containers() == 0 && left() == 0 && node.pods().is_empty(), || node.log());
    assert_eq!(node.cgroups(), 0);
    assert_eq!(fs::read_dir(node.folder.join("kubelet/pods")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(node.folder.join("logs/pods")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(node.folder.join("logs/containers")).unwrap().count(), 0);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.lines().any(|l| l.contains(&node.path("kubelet"))), "a mount is left");
}
