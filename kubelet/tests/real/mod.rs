//! A node with a real containerd, in a network namespace of its own.
#![allow(dead_code, reason = "each test program uses a part of this")]

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bosun_kubelet_cgroup::{Driver, Name, Tree};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The program of the containers.
pub(crate) const BUSYBOX: &str = "/bin/busybox";
/// How long anything may take; on an emulated machine everything does.
const PATIENCE: Duration = Duration::from_secs(120);
/// The image that is on the node.
pub(crate) const IMAGE: &str = "localhost/busybox:dev";

/// A node: a network namespace with its own containerd, and a kubelet that comes and goes.
pub(crate) struct TestNode {
    /// Its network namespace and the cgroup of its pods.
    pub(crate) name: String,
    /// Where all its files are.
    pub(crate) folder: PathBuf,
    /// Fields of the kubelet's configuration that differ from a test's usual ones.
    pub(crate) configuration: Value,
    /// Whether cgroups are systemd's to make.
    systemd: bool,
    /// The environment of its kubelet, beyond the test's own.
    pub(crate) env: Vec<(String, String)>,
    containerd: Option<Child>,
    kubelet: Option<Child>,
}

impl TestNode {
    /// Starts containerd alone.
    pub(crate) fn start() -> Self {
        Self::start_with(json!({}), false)
    }

    /// As [`Self::start`], with fields for the kubelet's configuration, and cgroups made by systemd if so wished.
    pub(crate) fn start_with(configuration: Value, systemd: bool) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("kbt{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        // A socket's path is short; the system's folder for temporary files is.
        let folder = std::env::temp_dir().join(&name);
        for part in ["root", "state", "cni", "cdi", "manifests", "logs/pods"] {
            fs::create_dir_all(folder.join(part)).unwrap();
        }
        ok(Command::new("ip").args(["netns", "add", &name]));
        ok(Command::new("ip").args(["-n", &name, "link", "set", "lo", "up"]));
        let env = Vec::new();
        let mut node = Self { name, folder, configuration, systemd, env, containerd: None, kubelet: None };
        node.write_configs();
        node.containerd =
            Some(node.spawn("containerd", &["--config", &node.path("containerd.toml")], "containerd.log"));
        wait("containerd", || node.ctr().arg("version").output().is_ok_and(|out| out.status.success()));
        fs::write(node.folder.join("busybox.tar"), image_archive()).unwrap();
        ok(node.ctr().args(["-n", "k8s.io", "images", "import", &node.path("busybox.tar")]));
        node
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    fn write_configs(&mut self) {
        let at = self.folder.display();
        let containerd = format!(
            r#"version = 2
root = "{at}/root"
state = "{at}/state"
[grpc]
address = "{at}/c.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "{at}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
cdi_spec_dirs = ["{at}/cdi"]
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
conf_dir = "{at}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = {}
"#,
            self.systemd
        );
        fs::write(self.folder.join("containerd.toml"), containerd).unwrap();
        self.configure(&json!({}));
    }

    /// Changes fields of the configuration that the next kubelet starts with.
    pub(crate) fn configure(&mut self, fields: &Value) {
        for (name, value) in fields.as_object().into_iter().flatten() {
            self.configuration[name] = value.clone();
        }
        let at = self.folder.display();
        let mut kubelet = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": format!("unix://{at}/c.sock"),
            "staticPodPath": format!("{at}/manifests"), "podLogsDir": format!("{at}/logs/pods"),
            "cgroupRoot": format!("/{}", self.name), "failCgroupV1": false,
            "readOnlyPort": 10255,
            "containerLogMaxSize": "2Ki", "containerLogMaxFiles": 3, "containerLogMonitorInterval": "3s",
            "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
            "authorization": {"mode": "AlwaysAllow"},
        });
        for (field, value) in self.configuration.as_object().into_iter().flatten() {
            kubelet[field] = value.clone();
        }
        fs::write(self.folder.join("kubelet.yaml"), kubelet.to_string()).unwrap();
    }

    fn spawn(&self, program: &str, args: &[&str], log: &str) -> Child {
        let log = fs::File::options().create(true).append(true).open(self.folder.join(log)).unwrap();
        Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.name))
            .arg(program)
            .args(args)
            .envs(self.env.iter().cloned())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap()
    }

    pub(crate) fn start_kubelet(&mut self) {
        let (config, root, pki) = (self.path("kubelet.yaml"), self.path("kubelet"), self.path("pki"));
        let args = [
            "--config",
            &config,
            "--root-dir",
            &root,
            "--cert-dir",
            &pki,
            "--hostname-override",
            "node1",
            "--node-ip",
            "127.0.0.1",
            "-v",
            "4",
        ];
        self.kubelet = Some(self.spawn(env!("CARGO_BIN_EXE_kubelet"), &args, "kubelet.log"));
    }

    /// The kubelet's process id.
    pub(crate) fn kubelet_pid(&self) -> u32 {
        self.kubelet.as_ref().unwrap().id()
    }

    /// Starts a kubelet that must end by itself with a failure; returns what it said.
    pub(crate) fn kubelet_that_ends(&mut self) -> String {
        let before = self.log().len();
        self.start_kubelet();
        let began = Instant::now();
        let code = loop {
            if let Some(code) = self.kubelet_ended() {
                break code;
            }
            assert!(began.elapsed() < Duration::from_secs(30), "the kubelet runs on:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        };
        assert_ne!(code, 0);
        self.log()[before..].to_owned()
    }

    /// A field of the kubelet's memory, such as `VmHWM`, in kB.
    pub(crate) fn kubelet_memory(&self, field: &str) -> u64 {
        let pid = self.kubelet_pid();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{field}:"))).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// The kubelet's exit code, once it has ended by itself.
    pub(crate) fn kubelet_ended(&mut self) -> Option<i32> {
        let code = self.kubelet.as_mut()?.try_wait().unwrap()?.code();
        self.kubelet = None;
        code
    }

    /// Waits until the kubelet has ended by itself or, with a signal, because of that; its exit code.
    pub(crate) fn end_of_kubelet(&mut self, signal: Option<nix::sys::signal::Signal>) -> i32 {
        let mut kubelet = self.kubelet.take().unwrap();
        if let Some(signal) = signal {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(kubelet.id() as i32), signal).unwrap();
        }
        let mut code = None;
        wait_or(
            "the kubelet's end",
            || {
                code = kubelet.try_wait().unwrap();
                code.is_some()
            },
            || self.log(),
        );
        code.unwrap().code().unwrap()
    }

    pub(crate) fn kill_kubelet(&mut self) {
        let mut kubelet = self.kubelet.take().unwrap();
        kubelet.kill().unwrap();
        kubelet.wait().unwrap();
    }

    pub(crate) fn ctr(&self) -> Command {
        let mut command = Command::new("ctr");
        command.args(["-a", &self.path("c.sock")]);
        command
    }

    pub(crate) fn manifest(&self, name: &str, spec: &Value) {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec});
        fs::write(self.folder.join("manifests").join(format!("{name}.yaml")), pod.to_string()).unwrap();
    }

    /// The pods as :10250 shows them.
    pub(crate) fn pods(&self) -> Vec<Value> {
        let out = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.name))
            .args(["curl", "-sk", "https://127.0.0.1:10250/pods"])
            .output()
            .unwrap();
        let list: Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
        list["items"].as_array().cloned().unwrap_or_default()
    }

    pub(crate) fn ready(&self) -> Option<Value> {
        let pods = self.pods();
        let pod = pods.first()?;
        let ready = |s: &Value| s["ready"] == true;
        let statuses = pod["status"]["containerStatuses"].as_array()?;
        statuses.iter().all(ready).then(|| pod.clone())
    }

    pub(crate) fn until_ready(&self, what: &str) -> Value {
        let mut found = None;
        wait_or(
            what,
            || {
                found = self.ready();
                found.is_some()
            },
            || self.log(),
        );
        found.unwrap()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("kubelet.log")).unwrap_or_default()
    }

    pub(crate) fn containers(&self) -> usize {
        let out = self.ctr().args(["-n", "k8s.io", "containers", "ls", "-q"]).output().unwrap();
        String::from_utf8_lossy(&out.stdout).lines().count()
    }

    pub(crate) fn cgroups(&self) -> usize {
        let pods = |controller: fs::DirEntry| {
            let folder = controller.path().join(&self.name).join("kubepods/besteffort");
            fs::read_dir(folder)
                .map(|d| d.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("pod")).count())
                .unwrap_or(0)
        };
        let separate: usize = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(pods).sum();
        let unified = format!("/sys/fs/cgroup/{}/kubepods/besteffort", self.name);
        let unified = fs::read_dir(unified).into_iter().flatten().flatten();
        separate + unified.filter(|e| e.file_name().to_string_lossy().starts_with("pod")).count()
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        for child in [self.kubelet.as_mut(), self.containerd.as_mut()].into_iter().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // After a failure containers still run: end what carries this node's folder in its command line, or is in its
        // cgroups, and unmount what is mounted below the folder.
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Ok(pid) = process.file_name().to_string_lossy().parse::<i32>() else { continue };
            let read = |file: &str| fs::read(process.path().join(file)).unwrap_or_default();
            let mark = |file: &str| String::from_utf8_lossy(&read(file)).contains(&self.name);
            if pid != std::process::id() as i32 && (mark("cmdline") || mark("cgroup")) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        for point in points.filter(|p| p.contains(&self.name)).collect::<Vec<_>>().into_iter().rev() {
            let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
        }
        let driver = if self.systemd { Driver::Systemd } else { Driver::Cgroupfs };
        let name = Name::from_path(&self.name);
        let remove = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(Tree::detect(driver).remove(&name))
        };
        // In a thread of its own: a test may have a runtime already.
        match std::thread::scope(|scope| scope.spawn(remove).join()) {
            Ok(Ok(())) => {}
            failed => eprintln!("the cgroups of {} were not removed: {failed:?}", self.name),
        }
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

pub(crate) fn ok(command: &mut Command) {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}

pub(crate) fn wait(what: &str, done: impl FnMut() -> bool) {
    wait_or(what, done, String::new);
}

pub(crate) fn wait_or(what: &str, mut done: impl FnMut() -> bool, why: impl Fn() -> String) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "{what} takes too long\n{}", why());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A program of this machine, wherever the search path has it.
pub(crate) fn host_program(name: &str) -> PathBuf {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| PathBuf::from("/bin").join(name))
}

/// A static busybox of this machine.
fn host_busybox() -> Vec<u8> {
    fs::read(host_program("busybox")).expect("a static busybox is installed")
}

/// The layer and the configuration of an image that holds busybox; run without a command it sleeps, which makes it a
/// sandbox image too.
pub(crate) fn image_parts() -> (Vec<u8>, String) {
    let mut layer = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind: tar::EntryType, mode: u32, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        layer.append_data(&mut header, path, content).unwrap();
    };
    for folder in ["bin", "etc", "proc", "sys", "dev", "tmp"] {
        add(folder, tar::EntryType::Directory, 0o755, &[]);
    }
    add("bin/busybox", tar::EntryType::Regular, 0o755, &host_busybox());
    add("etc/passwd", tar::EntryType::Regular, 0o644, b"root:x:0:0::/:/bin/busybox\n");
    let layer = layer.into_inner().unwrap();
    let config = json!({"architecture": "amd64", "os": "linux",
        "config": {"Entrypoint": [BUSYBOX, "sleep", "1000000"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))]}});
    (layer, config.to_string())
}

/// SHA-256 in hexadecimal.
pub(crate) fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn image_archive() -> Vec<u8> {
    let (layer, config) = image_parts();
    let config_name = format!("{}.json", digest(config.as_bytes()));
    let manifest = json!([{"Config": config_name, "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]).to_string();
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in
        [(config_name.as_str(), config.as_bytes()), ("layer.tar", &layer), ("manifest.json", manifest.as_bytes())]
    {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, content).unwrap();
    }
    let mut bytes = archive.into_inner().unwrap();
    bytes.flush().unwrap();
    bytes
}
