//! A node for tests: a fresh network namespace with containers' namespaces beside it, and plugins called as a runtime
//! calls them.

#![allow(dead_code, reason = "each test file uses its own part of the node")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use std::{
    fs::File,
    io::Write,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Where the reference plugins are: as `cargo xtask test` says, else where Debian installs them.
pub(crate) fn reference() -> PathBuf {
    std::env::var_os("BOSUN_REFERENCE_CNI").map_or_else(|| "/usr/lib/cni".into(), PathBuf::from)
}

/// Named namespaces that go away with this.
pub(crate) struct Node {
    prefix: String,
    pub(crate) data: tempfile::TempDir,
    pub(crate) plugins: PathBuf,
}

pub(crate) fn ip(args: &str) -> Output {
    Command::new("ip").args(args.split_whitespace()).output().unwrap()
}

fn must(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Node {
    /// A node whose plugins are ours.
    pub(crate) fn new() -> Self {
        let data = tempfile::tempdir().unwrap();
        let plugins = data.path().join("bin");
        bosun_cni::install(Path::new(env!("CARGO_BIN_EXE_bosun-cni")), &plugins).unwrap();
        Self::with_plugins(data, plugins)
    }

    /// A node with the reference plugins.
    pub(crate) fn reference() -> Self {
        Self::with_plugins(tempfile::tempdir().unwrap(), reference())
    }

    fn with_plugins(data: tempfile::TempDir, plugins: PathBuf) -> Self {
        let prefix = format!("cni{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let node = Self { prefix, data, plugins };
        must(ip(&format!("netns add {}", node.host())));
        node.exec("ip link set lo up");
        node
    }

    pub(crate) fn host(&self) -> String {
        format!("{}-host", self.prefix)
    }

    /// The path of a container's namespace, which is made.
    pub(crate) fn container(&self, id: &str) -> PathBuf {
        let name = format!("{}-{id}", self.prefix);
        must(ip(&format!("netns add {name}")));
        Path::new("/run/netns").join(name)
    }

    pub(crate) fn remove_container(&self, id: &str) {
        must(ip(&format!("netns del {}-{id}", self.prefix)));
    }

    /// Runs a command in the node.
    pub(crate) fn exec(&self, command: &str) -> String {
        must(ip(&format!("netns exec {} {command}", self.host())))
    }

    /// Runs a command in a container.
    pub(crate) fn inside(&self, id: &str, command: &str) -> String {
        must(ip(&format!("netns exec {}-{id} {command}", self.prefix)))
    }

    /// Fails unless an address answers the container: a port nobody listens on is refused, what is cut off is silent.
    pub(crate) fn reaches(&self, id: &str, target: &str) {
        let path = format!("/run/netns/{}-{id}", self.prefix);
        let target = SocketAddr::new(target.parse().unwrap(), 9);
        let tried = std::thread::spawn(move || {
            setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            TcpStream::connect_timeout(&target, Duration::from_secs(3)).map(drop)
        });
        let error = tried.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{target}");
    }

    /// A network on `cni0` with host-local addresses.
    pub(crate) fn network(&self, version: &str) -> Value {
        json!({
            "cniVersion": version, "name": "testnet", "type": "bridge", "bridge": "cni0",
            "isDefaultGateway": true, "hairpinMode": true,
            "ipam": {
                "type": "host-local", "dataDir": self.data.path().join("networks"),
                "ranges": [[{"subnet": "10.88.0.0/22"}]],
            },
        })
    }

    /// Starts a plugin.
    pub(crate) fn start(&self, plugin: &str, command: &str, id: &str, netns: Option<&Path>, conf: &Value) -> Child {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.host()])
            .arg(self.plugins.join(plugin))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", id)
            .env("CNI_IFNAME", if plugin == "loopback" { "lo" } else { "eth0" })
            .env("CNI_PATH", &self.plugins)
            .envs(netns.map(|path| ("CNI_NETNS", path)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
        child
    }

    /// Calls a plugin and reads its answer: the result, or the error object.
    pub(crate) fn call(
        &self,
        plugin: &str,
        command: &str,
        id: &str,
        netns: Option<&Path>,
        conf: &Value,
    ) -> Result<Value, Value> {
        answer(self.start(plugin, command, id, netns, conf))
    }

    pub(crate) fn add(&self, id: &str, conf: &Value) -> Value {
        let netns = self.container(id);
        self.call("bridge", "ADD", id, Some(&netns), conf).unwrap()
    }

    /// The files of addresses that are taken.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.data.path().join("networks/testnet")) else {
            return Vec::new();
        };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.parse::<std::net::IpAddr>().is_ok()).collect()
    }

    /// The veths on the host.
    pub(crate) fn veths(&self) -> usize {
        self.exec("ip -o link show type veth").lines().count()
    }
}

/// Waits for a plugin and reads what it says.
pub(crate) fn answer(child: Child) -> Result<Value, Value> {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let value = if text.trim().is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(!complaint.contains("panicked"), "{complaint}");
    if output.status.success() { Ok(value) } else { Err(value) }
}

/// The configuration with what ADD answered, as DEL and CHECK get it.
pub(crate) fn with_result(conf: &Value, result: &Value) -> Value {
    let mut conf = conf.clone();
    conf["prevResult"] = result.clone();
    conf
}

impl Drop for Node {
    fn drop(&mut self) {
        let listed = String::from_utf8(ip("netns list").stdout).unwrap();
        for name in listed.lines().filter_map(|line| line.split_whitespace().next()) {
            if name.strip_prefix(&self.prefix).is_some_and(|rest| rest.starts_with('-')) {
                ip(&format!("netns del {name}"));
            }
        }
    }
}
