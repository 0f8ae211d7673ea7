//! What the kubelet writes into cgroups, as a program with a real containerd: limits of pods, of classes and of all pods,
//! those of daemons, and what is left over.
//!
//! The same promises hold on version 1 hierarchies and on the unified one. Tests that want systemd, swap or version 2
//! are marked as ignored; `cargo xtask qemu` runs them on a machine that has all of it.
#![expect(clippy::unwrap_used, reason = "helpers of a test: whatever fails fails the test")]

mod real;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use bosun_kubelet_cgroup::limits::weight;
use bosun_kubelet_cgroup::{Driver, Layout, Limits, Name, Tree};
use serde_json::{Value, json};

use real::{BUSYBOX, IMAGE, TestNode, ok, wait, wait_or};

/// The cgroups of a test node, read as the kernel shows them.
struct View {
    layout: Layout,
    driver: Driver,
    pods: Name,
}

impl View {
    fn of(node: &TestNode, driver: Driver) -> Self {
        Self { layout: Layout::detect(), driver, pods: Name::from_path(&node.name).child("kubepods") }
    }

    fn folder(&self, name: &Name, controller: &str) -> PathBuf {
        self.layout.folder(controller, &name.path(self.driver)).unwrap()
    }

    /// The file's text, by its name in version 1 or in version 2.
    fn read(&self, name: &Name, controller: &str, files: [&str; 2]) -> String {
        let file = self.folder(name, controller).join(files[usize::from(self.layout.is_unified())]);
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        text.trim().to_owned()
    }

    fn shares(&self, name: &Name) -> u64 {
        self.read(name, "cpu", ["cpu.shares", "cpu.weight"]).parse().unwrap()
    }

    /// What shares of version 1 look like here.
    fn as_here(&self, shares: u64) -> u64 {
        if self.layout.is_unified() { weight(shares) } else { shares }
    }

    fn memory(&self, name: &Name) -> String {
        self.read(name, "memory", ["memory.limit_in_bytes", "memory.max"])
    }

    fn pids(&self, name: &Name) -> String {
        self.read(name, "pids", ["pids.max"; 2])
    }

    fn quota(&self, name: &Name) -> String {
        if self.layout.is_unified() {
            return self.read(name, "cpu", ["", "cpu.max"]);
        }
        let part = |file| self.read(name, "cpu", [file, ""]);
        format!("{} {}", part("cpu.cfs_quota_us"), part("cpu.cfs_period_us"))
    }

    /// The pods that have a cgroup in a class, or right below all pods.
    fn children(&self, name: &Name) -> Vec<Name> {
        let tree = Tree::detect(self.driver);
        tree.children(name).into_iter().filter(|name| name.last().starts_with("pod")).collect()
    }

    fn all(&self) -> Vec<Name> {
        let classes = [self.pods.clone(), self.pods.child("burstable"), self.pods.child("besteffort")];
        classes.iter().flat_map(|class| self.children(class)).collect()
    }
}

fn sleeper(resources: &Value) -> Value {
    json!({"name": "main", "image": IMAGE, "imagePullPolicy": "Never", "resources": resources,
        "command": [BUSYBOX, "sleep", "100000"]})
}

fn pod(containers: &[Value]) -> Value {
    json!({"hostNetwork": true, "terminationGracePeriodSeconds": 0, "containers": containers})
}

fn uid(node: &TestNode, name: &str) -> String {
    let pods = node.pods();
    let pod = pods.iter().find(|pod| pod["metadata"]["labels"]["app"] == name).unwrap();
    pod["metadata"]["uid"].as_str().unwrap().to_owned()
}

fn until_running(node: &TestNode, count: usize) {
    let running = || node.pods().iter().filter(|pod| pod["status"]["phase"] == "Running").count();
    wait_or("the pods", || running() == count, || node.log());
}

fn machine_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn number(path: &str) -> u64 {
    fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

/// Pods of each class get what they ask for, the classes what their pods ask for, and all of them what the node leaves
/// them; a pod that ends leaves nothing.
fn limits_reach(driver: Driver) {
    let reserved = json!({
        "kubeReserved": {"cpu": "100m", "memory": "64Mi"}, "systemReserved": {"memory": "36Mi", "pid": "1000"},
        "podPidsLimit": 128,
        // Whatever is configured, the runtime's word counts where it says one.
        "cgroupDriver": driver.as_str(),
    });
    let mut node = TestNode::start_with(reserved, driver == Driver::Systemd);
    let view = View::of(&node, driver);
    node.manifest("sure", &pod(&[sleeper(&json!({"limits": {"cpu": "900m", "memory": "32Mi"}}))]));
    let asks = json!({"requests": {"cpu": "250m"}, "limits": {"cpu": "333m", "memory": "64Mi"}});
    node.manifest("some", &pod(&[sleeper(&asks)]));
    node.manifest("none", &pod(&[sleeper(&json!({}))]));
    let mut whole = pod(&[sleeper(&json!({"requests": {"cpu": "50m"}}))]);
    whole["resources"] =
        json!({"requests": {"cpu": "150m", "memory": "16Mi"}, "limits": {"cpu": "1", "memory": "48Mi"}});
    node.manifest("whole", &whole);
    node.start_kubelet();
    until_running(&node, 4);

    // All pods.
    let cpus = std::thread::available_parallelism().unwrap().get() as u64;
    wait_or(
        "the node's limits",
        || view.memory(&view.pods) == (machine_memory() - (100 << 20)).to_string(),
        || node.log(),
    );
    assert_eq!(view.shares(&view.pods), view.as_here((cpus * 1000 - 100) * 1024 / 1000));
    let pids = number("/proc/sys/kernel/pid_max").min(number("/proc/sys/kernel/threads-max"));
    assert_eq!(view.pids(&view.pods), (pids - 1000).to_string());
    wait_or("the event", || node.log().contains("Updated Node Allocatable limit across pods"), || node.log());
    // Classes: 250m and 150m.
    let burstable = view.pods.child("burstable");
    wait_or("the weight", || view.shares(&burstable) == view.as_here(409), || node.log());
    assert_eq!(view.shares(&view.pods.child("besteffort")), view.as_here(2));
    // Pods.
    let of = |class: Option<&str>, name: &str| {
        let parent = class.map_or_else(|| view.pods.clone(), |class| view.pods.child(class));
        parent.child(&format!("pod{}", uid(&node, name)))
    };
    let sure = of(None, "sure");
    assert_eq!((view.shares(&sure), view.quota(&sure)), (view.as_here(921), "90000 100000".to_owned()));
    assert_eq!((view.memory(&sure), view.pids(&sure)), ((32 << 20).to_string(), "128".to_owned()));
    let some = of(Some("burstable"), "some");
    assert_eq!(view.shares(&some), view.as_here(256));
    // systemd writes its own rounding whenever it looks at the slice again.
    let quota = view.quota(&some);
    let rounded = driver == Driver::Systemd && quota == "34000 100000";
    assert!(quota == "33300 100000" || rounded, "{quota}");
    assert_eq!(view.memory(&some), (64 << 20).to_string());
    let none = of(Some("besteffort"), "none");
    assert_eq!((view.shares(&none), view.pids(&none)), (view.as_here(2), "128".to_owned()));
    let whole = of(Some("burstable"), "whole");
    assert_eq!((view.shares(&whole), view.quota(&whole)), (view.as_here(153), "100000 100000".to_owned()));
    assert_eq!(view.memory(&whole), (48 << 20).to_string());
    if view.layout.is_unified() {
        // No pod asked for huge pages, so none has any; between pods and node there is no bound.
        let pages = |name: &Name| view.read(name, "hugetlb", ["", "hugetlb.2MB.max"]);
        assert_eq!((pages(&sure).as_str(), pages(&burstable).as_str()), ("0", "max"));
    }
    if driver == Driver::Systemd {
        slices_hold(&view, &some);
    }
    for name in ["sure", "some", "none", "whole"] {
        fs::remove_file(node.folder.join(format!("manifests/{name}.yaml"))).unwrap();
    }
    wait_or("the end of the pods", || node.pods().is_empty() && view.all().is_empty(), || node.log());
    assert_eq!(view.shares(&burstable), view.as_here(2));
}

/// systemd knows the slices with their limits, and leaves them alone when it reads its configuration again.
fn slices_hold(view: &View, pod: &Name) {
    let show = |property: &str| {
        let out = Command::new("systemctl").args(["show", "--value", "-p", property, &pod.slice()]).output().unwrap();
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    };
    assert_eq!((show("ActiveState").as_str(), show("Transient").as_str()), ("active", "yes"));
    assert_eq!((show("MemoryMax"), show("TasksMax")), ((64 << 20).to_string(), "128".to_owned()));
    assert_eq!((show("CPUWeight"), show("CPUQuotaPerSecUSec")), (weight(256).to_string(), "340ms".to_owned()));
    ok(Command::new("systemctl").arg("daemon-reload"));
    assert_eq!(view.memory(pod), (64 << 20).to_string());
    let controllers = view.read(&view.pods, "cpu", ["", "cgroup.controllers"]);
    assert!(["cpu", "cpuset", "hugetlb", "memory", "pids"].iter().all(|c| controllers.contains(c)), "{controllers}");
}

#[test]
fn limits_reach_folders() {
    limits_reach(Driver::Cgroupfs);
}

#[test]
#[ignore = "needs a machine that systemd runs: cargo xtask qemu"]
fn limits_reach_slices() {
    limits_reach(Driver::Systemd);
}

/// A process in the cgroup of a pod that nobody knows.
struct Stray(Child);

impl Drop for Stray {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_is_left_in_the_cgroup_of_an_unknown_pod_is_killed_and_removed() {
    let mut node = TestNode::start();
    let own = format!("/{}/kubelet", node.name);
    node.configure(&json!({"kubeletCgroups": own}));
    let view = View::of(&node, Driver::Cgroupfs);
    let left = view.pods.child("burstable").child("pod00000000-dead");
    let stray =
        Command::new(real::host_program("busybox")).args(["sleep", "1000"]).stdin(Stdio::null()).spawn().unwrap();
    let mut stray = Stray(stray);
    let folder = view.folder(&left, "pids").join("inner");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("cgroup.procs"), stray.0.id().to_string()).unwrap();
    node.start_kubelet();
    wait_or("the stray's end", || stray.0.try_wait().unwrap().is_some(), || node.log());
    wait_or("the cgroup's end", || view.all().is_empty(), || node.log());
    // It lives where it was told to.
    let memberships = fs::read_to_string(format!("/proc/{}/cgroup", node.kubelet_pid())).unwrap();
    assert!(memberships.lines().all(|line| line.ends_with(&own)), "{memberships}");
}

#[test]
fn daemons_are_held_to_what_is_reserved_for_them() {
    let configuration = json!({
        "kubeReserved": {"cpu": "200m", "memory": "256Mi"}, "kubeReservedCgroup": "/PLACE",
        "enforceNodeAllocatable": ["pods", "kube-reserved"],
    });
    let mut node = TestNode::start_with(configuration, false);
    let place = Name::from_path(&node.name).child("daemons");
    node.configure(&json!({"kubeReservedCgroup": place.to_string()}));
    node.start_kubelet();
    // It must be there already.
    let mut code = None;
    wait_or(
        "the kubelet's end",
        || {
            code = node.kubelet_ended();
            code.is_some()
        },
        String::new,
    );
    assert_eq!(code, Some(1), "{}", node.log());
    let log = node.log();
    let told = format!("Failed to enforce Kube Reserved Cgroup Limits on \"{place}\": ");
    assert!(log.contains(&told) && log.contains("FailedNodeAllocatableEnforcement"), "{log}");

    let view = View::of(&node, Driver::Cgroupfs);
    let tree = Tree::detect(Driver::Cgroupfs);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(tree.make(&place, &Limits::default())).unwrap();
    view.layout.folders(&place.path(Driver::Cgroupfs)).iter().for_each(|folder| fs::create_dir_all(folder).unwrap());
    node.start_kubelet();
    let told = format!("Updated limits on kube reserved cgroup {place}");
    wait_or("enforcement", || node.log().contains(&told), || node.log());
    assert_eq!((view.shares(&place), view.memory(&place)), (view.as_here(204), (256 << 20).to_string()));
}

#[test]
#[ignore = "needs version 2 cgroups: cargo xtask qemu"]
fn a_container_that_runs_out_of_memory_dies_as_a_whole() {
    let mut node = TestNode::start();
    // The shell itself stays small; what it starts does not.
    let script = "busybox sleep 1000 & busybox dd if=/dev/zero of=/dev/shm/file bs=1M count=60; busybox sleep 1000";
    let spec = json!({"hostNetwork": true, "terminationGracePeriodSeconds": 0, "restartPolicy": "Never", "containers": [
        {"name": "main", "image": IMAGE, "imagePullPolicy": "Never", "command": [BUSYBOX, "sh", "-c", script],
            "resources": {"limits": {"memory": "32Mi"}}}]});
    node.manifest("hungry", &spec);
    node.start_kubelet();
    let ended = || node.pods().first().map(|pod| pod["status"]["containerStatuses"][0]["state"]["terminated"].clone());
    wait_or("the end", || ended().is_some_and(|state| state["exitCode"] == 137), || node.log());
    assert_eq!(ended().unwrap()["reason"], "OOMKilled");
}

/// A file that the machine swaps to.
struct SwapFile(PathBuf);

impl SwapFile {
    fn on() -> Self {
        let file = Self(std::env::temp_dir().join("swap"));
        fs::write(&file.0, vec![0_u8; 64 << 20]).unwrap();
        ok(Command::new("chmod").arg("600").arg(&file.0));
        ok(Command::new("mkswap").arg(&file.0));
        ok(Command::new("swapon").arg(&file.0));
        file
    }
}

impl Drop for SwapFile {
    fn drop(&mut self) {
        let _ = Command::new("swapoff").arg(&self.0).status();
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
#[ignore = "makes swap for the whole machine: cargo xtask qemu"]
fn a_machine_that_swaps_is_refused_unless_that_is_allowed() {
    let _swap = SwapFile::on();
    let mut node = TestNode::start_with(json!({"memorySwap": {"swapBehavior": "LimitedSwap"}}), false);
    node.start_kubelet();
    wait("the refusal", || node.log().contains("running with swap on is not supported, please disable swap"));
    wait("the kubelet's end", || node.kubelet_ended().is_some());
    node.configure(&json!({"failSwapOn": false}));
    node.start_kubelet();
    wait_or("its start", || node.log().contains("kubelet started"), || node.log());
}
