//! What nobody wishes for: manifests that are none, probes that never answer, a container that writes without end, a
//! broken configuration. Each is told by its name; the node stays up and the other pods do not notice.
#![expect(clippy::unwrap_used, reason = "helpers of a test: whatever fails fails the test")]

mod real;

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use real::{BUSYBOX, IMAGE, TestNode, ok, wait_or};

/// Megabytes of the one line; a thousand when tests run at length.
fn line_megabytes() -> u32 {
    if std::env::var_os("BOSUN_FAULTS").is_some() { 1000 } else { 150 }
}

fn shell(script: &str, more: &Value) -> Value {
    let mut container = json!({"name": "main", "image": IMAGE, "imagePullPolicy": "Never",
        "command": [BUSYBOX, "sh", "-c", script]});
    container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    container
}

fn alone(containers: Vec<Value>) -> Value {
    json!({"hostNetwork": true, "terminationGracePeriodSeconds": 0, "containers": containers})
}

fn sleeper() -> Value {
    alone(vec![shell("busybox sleep 100000", &json!({}))])
}

fn named(node: &TestNode, name: &str) -> Option<Value> {
    node.pods().into_iter().find(|pod| pod["metadata"]["name"] == format!("{name}-node1"))
}

fn ready(pod: &Value) -> bool {
    pod["status"]["containerStatuses"].as_array().is_some_and(|all| all.iter().all(|status| status["ready"] == true))
}

/// A pod that comes now must run at once, whatever else is going on.
fn a_pod_runs_at_once(node: &TestNode, name: &str) {
    node.manifest(name, &sleeper());
    let began = Instant::now();
    wait_or(&format!("{name}'s readiness"), || named(node, name).is_some_and(|pod| ready(&pod)), || node.log());
    assert!(began.elapsed() < Duration::from_secs(15), "{name} was held up: {:?}", began.elapsed());
}

fn identity(node: &TestNode) -> String {
    let pod = named(node, "steady").unwrap_or_else(|| panic!("the steady pod is gone:\n{}", node.log()));
    let status = &pod["status"]["containerStatuses"][0];
    format!("{} {} {}", status["containerID"], status["restartCount"], status["ready"])
}

fn hostile_manifests(node: &TestNode) {
    let folder = node.folder.join("manifests");
    let write = |name: &str, text: &[u8]| fs::write(folder.join(name), text).unwrap();
    write("truncated.yaml", b"apiVersion: v1\nkind: Pod\nmetadata: {name: truncated, labels: {a: ");
    write(
        "binary.yaml",
        &(0..100_000_u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect::<Vec<_>>(),
    );
    let good = |name: &str| {
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {}\n", sleeper()).into_bytes()
    };
    let comment = "#".repeat(100) + "\n";
    write("large.yaml", &[good("large"), comment.repeat(110_000).into_bytes()].concat());
    write("deep.yaml", &[b"a: ".to_vec(), b"[".repeat(100_000)].concat());
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..30 {
        let below = vec![format!("*a{}", level - 1); 10].join(", ");
        writeln!(laughs, "a{level}: &a{level} [{below}]").unwrap();
    }
    write("laughs.yaml", laughs.as_bytes());
    write("path.yaml", &good("../../escape"));
    write("uid.yaml", &good("stray, uid: ../../../escape"));
    write("no-name.yaml", b"apiVersion: v1\nkind: Pod\nspec: {containers: [{name: a, image: b}]}");
    write("list.yaml", b"[1, 2, 3]");
    write("empty.yaml", b"");
    write("twin-a.yaml", &good("twin"));
    write("twin-b.yaml", &good("twin"));
    fs::create_dir(folder.join("folder.yaml")).unwrap();
    symlink(folder.join("loop.yaml"), folder.join("loop.yaml")).unwrap();
    symlink("/dev/zero", folder.join("endless.yaml")).unwrap();
    nix::unistd::mkfifo(&folder.join("pipe.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();

    a_pod_runs_at_once(node, "after-manifests");
    wait_or("one of the twins", || named(node, "twin").is_some_and(|pod| ready(&pod)), || node.log());
    let mut names: Vec<String> = node.pods().iter().map(|pod| pod["metadata"]["name"].to_string()).collect();
    names.sort();
    assert_eq!(names, ["\"after-manifests-node1\"", "\"steady-node1\"", "\"twin-node1\""]);
    let log = node.log();
    let said = |file: &str, what: &str| {
        let found = log.lines().find(|line| line.contains("static pod manifest refused") && line.contains(file));
        let line = found.unwrap_or_else(|| panic!("nothing was said of {file}:\n{log}"));
        assert!(line.contains(what), "{what:?} should be in: {line}");
    };
    said("truncated.yaml", "truncated.yaml");
    said("binary.yaml", "UTF-8");
    said("large.yaml", "bytes that a manifest may have");
    said("deep.yaml", "nested more than 128 deep");
    said("laughs.yaml", "repetition limit exceeded");
    said("path.yaml", "metadata.name");
    said("uid.yaml", "metadata.uid");
    said("no-name.yaml", "metadata.name: Required value");
    said("list.yaml", "list.yaml");
    // What is no file is not opened, and what is empty says nothing.
    for entry in fs::read_dir(&folder).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        match (name.as_str(), entry.file_type().unwrap().is_dir()) {
            ("steady.yaml", _) => {}
            (_, true) => fs::remove_dir(entry.path()).unwrap(),
            (_, false) => fs::remove_file(entry.path()).unwrap(),
        }
    }
    wait_or("the end of the others", || node.pods().len() == 1, || node.log());
}

fn probes_that_never_answer(node: &TestNode) {
    ok(Command::new("ip").args(["-n", &node.name, "route", "add", "192.0.2.0/24", "dev", "lo"]));
    // Connections are made by the kernel; nobody ever takes them.
    let netns = fs::File::open(format!("/run/netns/{}", node.name)).unwrap();
    let listening = std::thread::spawn(move || {
        nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        std::net::TcpListener::bind("127.0.0.1:8099").unwrap()
    });
    let _silent = listening.join().unwrap();
    let probed = |name: &str, script: &str, probe: Value| {
        let mut container = shell(script, &json!({"readinessProbe": probe}));
        container["name"] = name.into();
        container["readinessProbe"]["periodSeconds"] = 1.into();
        container
    };
    node.manifest(
        "mute",
        &alone(vec![
            probed("exec", "busybox sleep 100000", json!({"exec": {"command": [BUSYBOX, "sleep", "100000"]}})),
            probed(
                "http",
                "busybox sleep 100000",
                json!({"httpGet": {"path": "/", "port": 8099, "host": "127.0.0.1"}}),
            ),
            probed("tcp", "busybox sleep 100000", json!({"tcpSocket": {"port": 80, "host": "192.0.2.1"}})),
        ]),
    );
    let events = |what: &str| node.log().matches(what).count();
    for what in ["timed out after 1s", "Client.Timeout exceeded while awaiting headers", "192.0.2.1:80: i/o timeout"] {
        wait_or(&format!("two probes that end by {what:?}"), || events(what) >= 2, || node.log());
    }
    a_pod_runs_at_once(node, "after-probes");
    let mute = named(node, "mute").unwrap();
    for status in mute["status"]["containerStatuses"].as_array().unwrap() {
        assert_eq!((status["ready"].as_bool(), status["restartCount"].as_i64()), (Some(false), Some(0)), "{status}");
    }
    for name in ["mute", "after-probes"] {
        fs::remove_file(node.folder.join(format!("manifests/{name}.yaml"))).unwrap();
    }
    wait_or("the end of the mute pod", || node.pods().len() == 1, || node.log());
}

fn a_line_without_end(node: &TestNode) {
    let megabytes = line_megabytes();
    let script = format!(
        "busybox dd if=/dev/zero bs=1M count={megabytes} 2>/dev/null | busybox tr '\\0' x; busybox sleep 100000"
    );
    node.manifest("flood", &alone(vec![shell(&script, &json!({}))]));
    wait_or("the flood", || named(node, "flood").is_some_and(|pod| ready(&pod)), || node.log());
    let before = node.kubelet_memory("VmRSS");
    let read = |query: &str, seconds: &str| {
        let url = format!("https://127.0.0.1:10250/containerLogs/default/flood-node1/main?{query}");
        let netns = format!("--net=/run/netns/{}", node.name);
        let write = ["-w", "%{http_code}", "-o", "/dev/null"];
        let curl =
            Command::new("nsenter").arg(netns).args(["curl", "-sk", "-m", seconds]).args(write).arg(&url).output();
        String::from_utf8(curl.unwrap().stdout).unwrap()
    };
    // While it writes: the end, what follows, and all of it.
    for (query, seconds) in [("tailLines=1", "20"), ("follow=true&tailLines=10", "5"), ("limitBytes=1000000", "20")] {
        assert_eq!(read(query, seconds), "200", "{query}");
    }
    let logs = || {
        let pods = fs::read_dir(node.folder.join("logs/pods")).unwrap().flatten().map(|entry| entry.path());
        let flood = pods.into_iter().find(|path| path.to_string_lossy().contains("flood"));
        let entries = flood.and_then(|path| fs::read_dir(path.join("main")).ok()).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    wait_or("a rotation", || logs().iter().any(|name| name.starts_with("0.log.20")), || format!("{:?}", logs()));
    wait_or("no more than three files", || logs().len() <= 3, || format!("{:?}", logs()));
    a_pod_runs_at_once(node, "after-flood");
    let peak = node.kubelet_memory("VmHWM");
    assert!(peak < before + 64_000, "the kubelet's memory rose from {before} to {peak} kB for a log");
    for name in ["flood", "after-flood"] {
        fs::remove_file(node.folder.join(format!("manifests/{name}.yaml"))).unwrap();
    }
    wait_or("the end of the flood", || node.pods().len() == 1, || node.log());
}

fn a_broken_configuration(node: &mut TestNode) {
    node.kill_kubelet();
    let good = fs::read_to_string(node.folder.join("kubelet.yaml")).unwrap();
    for (fields, said) in [
        (json!({"maxPods": "many"}), "maxPods"),
        (json!({"evictionHard": {"memory.available": "lots"}}), "evictionHard"),
        (json!({"authentication": {"anonymous": {"enable": true}}}), "authentication.anonymous.enable"),
        (json!({"allowedUnsafeSysctls": ["vm.swappiness"]}), "allowedUnsafeSysctls"),
        (json!({"imageGCHighThresholdPercent": 10, "imageGCLowThresholdPercent": 20}), "imageGCHighThresholdPercent"),
    ] {
        let mut broken: Value = serde_json::from_str(&good).unwrap();
        broken.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        fs::write(node.folder.join("kubelet.yaml"), broken.to_string()).unwrap();
        let text = node.kubelet_that_ends();
        assert!(text.contains(said), "{said:?} should be in:\n{text}");
        assert!(!text.contains("panicked"), "{text}");
    }
    fs::write(node.folder.join("kubelet.yaml"), good).unwrap();
    node.start_kubelet();
    wait_or("adoption", || named(node, "steady").is_some_and(|pod| ready(&pod)), || node.log());
}

#[test]
fn other_pods_do_not_notice() {
    let mut node = TestNode::start();
    node.start_kubelet();
    node.manifest("steady", &sleeper());
    wait_or("the steady pod", || named(&node, "steady").is_some_and(|pod| ready(&pod)), || node.log());
    let before = identity(&node);
    hostile_manifests(&node);
    assert_eq!(identity(&node), before);
    probes_that_never_answer(&node);
    assert_eq!(identity(&node), before);
    a_line_without_end(&node);
    assert_eq!(identity(&node), before);
    a_broken_configuration(&mut node);
    assert_eq!(identity(&node), before);
    assert!(!node.log().contains("panicked"), "{}", node.log());
    fs::remove_file(node.folder.join("manifests/steady.yaml")).unwrap();
    wait_or("the end of all", || node.containers() == 0 && node.cgroups() == 0, || node.log());
}
