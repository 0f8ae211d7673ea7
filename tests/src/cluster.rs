//! A whole cluster: `bosun server` on the host, reached by the bridge's address, and `bosun agent` on every node.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};

use crate::containerd::Version;
use crate::images::Archive;
use crate::kubectl::Kubectl;
use crate::process::{Daemon, eventually};
use crate::program::run;
use crate::tools::{KUBECTL, KUBECTL_OLD};
use crate::{Containerd, Fabric, Node, Say, Tools};

/// The API server's port.
pub const PORT: u16 = 6443;
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_GRACE: Duration = Duration::from_secs(10);

/// All nodes share one disk, which is also the developer's: only a really full one counts as pressure.
const KUBELET: &str = "\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
evictionHard:
  memory.available: 100Mi
  nodefs.available: 1%
  nodefs.inodesFree: 1%
  imagefs.available: 1%
";

/// What a cluster is made of. Making the value does nothing.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Its nodes' network.
    pub fabric: Fabric,
    /// Programs that are not ours.
    pub tools: Tools,
    /// The folder of our binaries.
    pub binaries: PathBuf,
    /// `bosun server`.
    pub server: Daemon,
    /// Its nodes.
    pub members: Vec<Member>,
}

/// One node of a cluster.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its network.
    pub node: Node,
    /// Its container runtime.
    pub containerd: Containerd,
    /// `bosun agent`.
    pub agent: Daemon,
}

impl Cluster {
    /// A cluster with one node for each element of `versions`.
    pub fn new(fabric: &Fabric, tools: &Tools, binaries: PathBuf, versions: &[Version]) -> Result<Self> {
        let member = |(number, version): (u8, &Version)| {
            let node = fabric.node(number)?;
            let containerd = Containerd::new(*version, fabric, &node, tools);
            let agent = Daemon::new("agent", &node.run, &fabric.logs().join(&node.name));
            Ok(Member { node, containerd, agent })
        };
        Ok(Self {
            members: (1..).zip(versions).map(member).collect::<Result<_>>()?,
            server: Daemon::new("server", &fabric.run(), &fabric.logs()),
            fabric: fabric.clone(),
            tools: tools.clone(),
            binaries,
        })
    }

    /// The administrator's kubeconfig, usable from the host.
    pub fn kubeconfig(&self) -> PathBuf {
        self.fabric.data.join("admin.kubeconfig")
    }

    /// kubectl 1.36 as administrator.
    pub fn kubectl(&self) -> Kubectl {
        Kubectl::new(&self.tools.path(&KUBECTL), &self.kubeconfig())
    }

    /// kubectl 1.20 as administrator.
    pub fn old_kubectl(&self) -> Kubectl {
        Kubectl::new(&self.tools.path(&KUBECTL_OLD), &self.kubeconfig())
    }

    /// The API server's URL.
    pub fn url(&self) -> String {
        format!("https://{}:{PORT}", self.fabric.address())
    }

    /// Starts what does not run: network, control plane, nodes; and returns once all nodes are Ready.
    pub fn start(&self, archives: &[Archive], say: Say<'_>) -> Result<()> {
        self.fabric.raise()?;
        say("starting the control plane and the container runtimes");
        thread::scope(|scope| {
            let runtimes: Vec<_> =
                self.members.iter().map(|member| scope.spawn(|| member.start_runtime(archives))).collect();
            self.start_server()?;
            for runtime in runtimes {
                runtime.join().map_err(|_| anyhow!("a thread that starts a runtime panicked"))??;
            }
            anyhow::Ok(())
        })?;
        say("starting the nodes");
        for member in &self.members {
            self.start_agent(member)?;
        }
        say("waiting for the nodes to be Ready");
        self.members.iter().try_for_each(|member| self.wait_ready(member))
    }

    /// Starts `bosun server` unless it runs, and returns once it is ready.
    pub fn start_server(&self) -> Result<()> {
        let mut command = Command::new(self.binaries.join("bosun"));
        command.arg("server").arg("--data-dir").arg(self.server_data());
        command.arg("--bind-address").arg(self.fabric.address().to_string());
        command.arg("--write-kubeconfig").arg(self.kubeconfig());
        self.server.start(&mut command)?;
        // Cheap looks first: a client costs more processor time than the start itself.
        let address = SocketAddr::from((self.fabric.address(), PORT));
        self.server.wait("its port", START_LIMIT, || {
            self.kubeconfig().exists() && TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
        })?;
        let kubectl = self.kubectl();
        self.server
            .wait("readiness", START_LIMIT, || kubectl.run(&["get", "--raw=/readyz", "--request-timeout=5s"]).is_ok())
    }

    /// Starts `bosun agent` on a node unless it runs. Does not wait for it.
    pub fn start_agent(&self, member: &Member) -> Result<()> {
        self.start_agent_with(member, &member.node.socket(), "")
    }

    /// The same with the container runtime at another socket (something that stands before containerd, say), and more
    /// lines of the kubelet's configuration.
    pub fn start_agent_with(&self, member: &Member, runtime: &Path, configuration: &str) -> Result<()> {
        let node = &member.node;
        let data = self.server_data();
        let mut command = node.enter(self.binaries.join("bosun"));
        command.arg("agent").arg("--server").arg(self.url());
        command.arg("--token-file").arg(data.join("token")).arg("--ca-file").arg(data.join("pki/ca.crt"));
        command.args(["--node-name", &node.name, "--node-ip", &node.address.to_string()]);
        command.arg("--data-dir").arg(node.data.join("agent"));
        command.arg("--pod-logs-dir").arg(node.data.join("pod-logs/pods"));
        command.args(["--cgroup-root", &node.cgroup]);
        fs::write(node.data.join("kubelet.yaml"), format!("{KUBELET}{configuration}"))?;
        command.arg("--kubelet-config").arg(node.data.join("kubelet.yaml"));
        command.arg("--container-runtime-endpoint").arg(format!("unix://{}", runtime.display()));
        command.arg("--cni-bin-dir").arg(node.cni_plugins());
        command.arg("--cni-conf-dir").arg(node.cni_configuration());
        command.arg("--cni-data-dir").arg(node.data.join("cni/networks"));
        member.agent.start(&mut command)?;
        Ok(())
    }

    /// Waits until the agent of a node, just started, has done something that `sign` shows, and its node is Ready.
    pub fn agent_speaks(&self, member: &Member, sign: impl FnMut() -> bool) -> Result<()> {
        member.agent.wait("a first sign", START_LIMIT, sign)?;
        self.wait_ready(member)
    }

    /// Waits until the API server says that a node is Ready.
    pub fn wait_ready(&self, member: &Member) -> Result<()> {
        let (kubectl, name) = (self.kubectl(), &member.node.name);
        let path = r#"jsonpath={.status.conditions[?(@.type=="Ready")]}"#;
        member.agent.wait("a Ready node", START_LIMIT, || {
            kubectl.ask(&["get", "node", name, "-o", path]).is_ok_and(|text| text.contains(r#""status":"True""#))
        })
    }

    /// Ends everything gently that ends gently; for the rest there is [`take_down`](crate::sweep::take_down).
    pub fn stop(&self) {
        for daemon in self.members.iter().map(|member| &member.agent).chain([&self.server]) {
            let _ = daemon.stop(STOP_GRACE);
        }
    }

    fn server_data(&self) -> PathBuf {
        self.fabric.data.join("server")
    }
}

impl Member {
    /// Raises the node's network and starts its containerd with the images in it.
    pub fn start_runtime(&self, archives: &[Archive]) -> Result<()> {
        self.node.raise()?;
        self.containerd.start()?;
        self.containerd.import(archives)
    }

    /// Fetches `http://ADDRESS:PORT/PATH` from inside the node's network, by our web server's client.
    pub fn fetch(&self, binaries: &Path, url: &str) -> Result<String> {
        run(self.node.enter(binaries.join("bosun-web")).args(["--get", url]))
    }
}

/// Waits until a command inside a pod prints something, and returns it.
pub fn exec(kubectl: &Kubectl, pod: &str, command: &[&str], limit: Duration) -> Result<String> {
    let arguments = [&["exec", pod, "--"], command].concat();
    eventually(&format!("{pod}: {}", command.join(" ")), limit, || kubectl.ask(&arguments))
}

/// Reads a manifest of the tree.
pub fn manifest(layout: &crate::Layout, name: &str) -> Result<String> {
    let path = layout.root.join("deploy").join(name);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}
