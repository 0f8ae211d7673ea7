//! A shutdown of the machine, with the real systemd-logind: it waits until the pods have ended.
#![expect(clippy::unwrap_used, reason = "helpers of a test: whatever fails fails the test")]

mod real;

use std::fs;
use std::process::{Child, Command, Stdio};

use serde_json::json;

use real::{BUSYBOX, IMAGE, TestNode, ok, wait_or};

/// Holds the shutdown off for this test, until it has seen enough.
struct Lock(Child);

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn inhibitors() -> String {
    let out = Command::new("systemd-inhibit").args(["--list", "--no-pager", "--no-legend"]).output().unwrap();
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[test]
#[ignore = "shuts the machine down: cargo xtask qemu"]
fn a_shutdown_waits_for_the_pods() {
    let periods = json!({"shutdownGracePeriod": "40s", "shutdownGracePeriodCriticalPods": "10s"});
    let mut node = TestNode::start_with(periods, false);
    let out = node.folder.join("out");
    fs::create_dir(&out).unwrap();
    let script = "trap 'busybox sleep 1; echo gently > /out/ended; exit 0' TERM; busybox sleep 100000 & wait";
    let spec = json!({"hostNetwork": true, "terminationGracePeriodSeconds": 20,
        "containers": [{"name": "main", "image": IMAGE, "imagePullPolicy": "Never", "command": [BUSYBOX, "sh", "-c", script],
            "volumeMounts": [{"name": "out", "mountPath": "/out"}]}],
        "volumes": [{"name": "out", "hostPath": {"path": out}}]});
    node.manifest("web", &spec);
    node.start_kubelet();
    node.until_ready("the pod");
    // The administrator's longest delay was 5 s; the kubelet has raised it.
    wait_or("the kubelet's lock", || inhibitors().contains("kubelet"), || node.log());
    let drop_in = fs::read_to_string("/etc/systemd/logind.conf.d/99-kubelet.conf").unwrap();
    assert!(drop_in.contains("InhibitDelayMaxSec=40"), "{drop_in}");
    let mut lock = Command::new("systemd-inhibit");
    lock.args(["--what=shutdown", "--mode=delay", "--who=the test", "sleep", "1000"]).stdin(Stdio::null());
    let _lock = Lock(lock.spawn().unwrap());
    wait_or("the test's lock", || inhibitors().contains("the test"), String::new);

    let manager = ["org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager"];
    ok(Command::new("busctl").arg("call").args(manager).args(["PowerOff", "b", "false"]));
    let status = || node.pods().first().map(|pod| pod["status"].clone()).unwrap_or_default();
    wait_or("the pod's end", || status()["phase"] == "Failed", || node.log());
    let status = status();
    assert_eq!(status["message"], "Pod was terminated in response to imminent node shutdown.", "{status}");
    // The machine may go on only when the container has.
    wait_or("the lock's end", || !inhibitors().contains("kubelet"), || node.log());
    assert_eq!(fs::read_to_string(out.join("ended")).unwrap(), "gently\n");
}
