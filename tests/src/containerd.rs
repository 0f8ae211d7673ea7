//! A node's own containerd.

use std::collections::HashMap;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::images::{Archive, PAUSE};
use crate::process::Daemon;
use crate::program::run;
use crate::tools::{CONTAINERD_1_6, CONTAINERD_2_1, Package, RUNC, Tools};
use crate::{Fabric, Node};

/// containerd's namespace for what the CRI makes.
const NAMESPACE: &str = "k8s.io";
const START_LIMIT: Duration = Duration::from_secs(30);
const STOP_GRACE: Duration = Duration::from_secs(5);

/// The versions nodes run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 1.6.20: no event stream in the CRI.
    V1_6,
    /// 2.1.9: with it.
    V2_1,
}

/// One node's containerd.
#[derive(Clone, Debug)]
pub struct Containerd {
    /// Which version.
    pub version: Version,
    /// Its process.
    pub daemon: Daemon,
    node: Node,
    tools: Tools,
}

impl Version {
    fn package(self) -> &'static Package {
        match self {
            Self::V1_6 => &CONTAINERD_1_6,
            Self::V2_1 => &CONTAINERD_2_1,
        }
    }
}

impl Containerd {
    /// The containerd of `node`. Making the value does nothing.
    pub fn new(version: Version, fabric: &Fabric, node: &Node, tools: &Tools) -> Self {
        let daemon = Daemon::new("containerd", &node.run, &fabric.logs().join(&node.name));
        Self { version, daemon, node: node.clone(), tools: tools.clone() }
    }

    /// Starts it unless it runs, and returns once it answers.
    pub fn start(&self) -> Result<()> {
        let configuration = self.node.data.join("containerd.toml");
        for folder in [self.node.cni_configuration(), self.node.cni_plugins()] {
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let text = render(self.version, &self.node, &self.tools.path(&RUNC));
        fs::write(&configuration, text).with_context(|| format!("cannot write {}", configuration.display()))?;
        let mut command = self.node.enter(self.tools.path(self.version.package()));
        command.arg("--config").arg(&configuration).env("PATH", self.search_path());
        self.daemon.start(&mut command)?;
        let socket = self.node.socket();
        self.daemon.wait("its socket", START_LIMIT, || UnixStream::connect(&socket).is_ok())
    }

    /// Ends it; its pods go on.
    pub fn stop(&self) -> Result<()> {
        self.daemon.stop(STOP_GRACE)
    }

    /// Imports the images that are not there yet with these very contents.
    pub fn import(&self, archives: &[Archive]) -> Result<()> {
        let there = self.images()?;
        for archive in archives.iter().filter(|archive| there.get(archive.name) != Some(&archive.digest)) {
            run(self.ctr().args(["images", "import"]).arg(&archive.path))
                .with_context(|| format!("cannot import {}", archive.name))?;
            if archive.name == PAUSE {
                run(self.ctr().args(["images", "label", PAUSE, "io.cri-containerd.pinned=pinned"]))?;
            }
        }
        let there = self.images()?;
        if let Some(lost) = archives.iter().find(|archive| !there.contains_key(archive.name)) {
            bail!("{} has no image {} after importing {}", self.node.name, lost.name, lost.path.display());
        }
        Ok(())
    }

    /// containerd's own client, for this node and the CRI's namespace.
    pub fn ctr(&self) -> Command {
        let mut command = Command::new(self.tools.folder(self.version.package()).join("ctr"));
        command.arg("--address").arg(self.node.socket()).args(["--namespace", NAMESPACE]);
        command
    }

    /// Digests by image name.
    fn images(&self) -> Result<HashMap<String, String>> {
        let table = run(self.ctr().args(["images", "list"]))?;
        let row = |line: &str| {
            let mut words = line.split_whitespace();
            let name = words.next()?.to_owned();
            Some((name, words.find(|word| word.starts_with("sha256:"))?.to_owned()))
        };
        Ok(table.lines().filter_map(row).collect())
    }

    /// The shim stands beside containerd and is found by name.
    fn search_path(&self) -> OsString {
        let mut path = self.tools.folder(self.version.package()).into_os_string();
        path.push(":");
        path.push(env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/sbin:/usr/bin:/sbin:/bin")));
        path
    }
}

/// The configuration file. `restrict_oom_score_adj` lets pods start where the kernel grants no CAP_SYS_RESOURCE.
fn render(version: Version, node: &Node, runc: &Path) -> String {
    let paths = [
        node.data.join("containerd"),
        node.run.join("containerd"),
        node.socket(),
        node.cni_configuration(),
        node.cni_plugins(),
        node.data.join("opt"),
        runc.to_owned(),
        node.run.join("runc"),
    ];
    let [root, state, socket, configuration, plugins, opt, runc, runc_root] =
        paths.each_ref().map(|path| path.display());
    match version {
        Version::V1_6 => format!(
            r#"version = 2
root = "{root}"
state = "{state}"

[grpc]
  address = "{socket}"

[plugins."io.containerd.internal.v1.opt"]
  path = "{opt}"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{configuration}"

  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "{runc}"
      Root = "{runc_root}"
      SystemdCgroup = false
"#
        ),
        Version::V2_1 => format!(
            r#"version = 3
root = "{root}"
state = "{state}"

[grpc]
  address = "{socket}"

[plugins.'io.containerd.internal.v1.opt']
  path = "{opt}"

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "{PAUSE}"

[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  enable_cdi = false

  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["{plugins}"]
    conf_dir = "{configuration}"

  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"

    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      BinaryName = "{runc}"
      Root = "{runc_root}"
      SystemdCgroup = false
"#
        ),
    }
}
