//! Nodes as network namespaces on one bridge.
//!
//! The bridge is the one thing in the host's own network: a link with an address, so that the host and its nodes
//! reach each other. No rule, route (but the connected one) or sysctl is written there.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::program::{call, run, succeeds};

/// Where short-lived state lives; short, because socket paths are limited to 107 bytes.
const RUN: &str = "/run/bosun";
/// More than this does not fit the addresses.
const MOST_NODES: u8 = 200;

/// A set of nodes on a bridge. Making the value does nothing; [`Fabric::raise`] and [`Node::raise`] act.
#[derive(Clone, Debug)]
pub struct Fabric {
    /// Its name: at most eight letters and digits, part of every link's and namespace's name.
    pub name: String,
    /// Where everything that may grow is kept, below the build folder.
    pub data: PathBuf,
    third: u8,
}

/// One node of a fabric.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name, `node-1` and so on.
    pub name: String,
    /// Its network namespace, as a file to enter by.
    pub netns: PathBuf,
    /// Its address on the bridge.
    pub address: Ipv4Addr,
    /// Sockets, pid files and containerd's state.
    pub run: PathBuf,
    /// Images, volumes, logs.
    pub data: PathBuf,
    /// Its cgroup's path in every hierarchy.
    pub cgroup: String,
    link: String,
    bridge: String,
    gateway: Ipv4Addr,
}

impl Fabric {
    /// A fabric called `name` with its files in `data`, on the network 198.18.`third`.0/24 (RFC 2544: never routed).
    pub fn new(name: &str, data: &Path, third: u8) -> Self {
        debug_assert!(name.len() <= 8 && name.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        Self { name: name.to_owned(), data: data.to_owned(), third }
    }

    /// Sockets, pid files and containerd's state.
    pub fn run(&self) -> PathBuf {
        Path::new(RUN).join(&self.name)
    }

    /// Logs of what runs on the host and on the nodes.
    pub fn logs(&self) -> PathBuf {
        self.data.join("logs")
    }

    /// The bridge, and the first part of every namespace's and cgroup's name.
    pub fn bridge(&self) -> String {
        format!("bosun-{}", self.name)
    }

    /// The host's address on the bridge.
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.third, 1)
    }

    /// Start of the names of the host's ends of the nodes' links.
    pub(crate) fn link_prefix(&self) -> String {
        format!("v{}-", self.name)
    }

    /// The node with this number, from 1. Making the value does nothing.
    pub fn node(&self, number: u8) -> Result<Node> {
        if number == 0 || number > MOST_NODES {
            bail!("a node's number is 1 to {MOST_NODES}, not {number}");
        }
        let name = format!("node-{number}");
        Ok(Node {
            netns: self.run().join(&name).join("netns"),
            address: Ipv4Addr::new(198, 18, self.third, 10 + number),
            run: self.run().join(&name),
            data: self.data.join(&name),
            cgroup: format!("/{}/{name}", self.bridge()),
            link: format!("{}{number}", self.link_prefix()),
            bridge: self.bridge(),
            gateway: self.address(),
            name,
        })
    }

    /// The nodes there are, from what an earlier run left.
    pub fn nodes(&self) -> Result<Vec<Node>> {
        let mut numbers: Vec<u8> = fs::read_dir(self.run())
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix("node-")?.parse().ok())
            .collect();
        numbers.sort_unstable();
        numbers.into_iter().map(|number| self.node(number)).collect()
    }

    /// Makes the bridge unless it is there. Fails when another tree's fabric of this name is there.
    pub fn raise(&self) -> Result<()> {
        fs::create_dir_all(self.run()).with_context(|| format!("cannot make {}", self.run().display()))?;
        fs::create_dir_all(&self.data).with_context(|| format!("cannot make {}", self.data.display()))?;
        let owner = self.run().join("owner");
        match fs::read_to_string(&owner) {
            Ok(other) if Path::new(&other) != self.data => {
                bail!("nodes called {:?} run already, out of {other}; take them down there first", self.name);
            }
            Ok(_) => {}
            Err(_) => fs::write(&owner, self.data.as_os_str().as_encoded_bytes())?,
        }
        let bridge = self.bridge();
        if !link_exists(&bridge) {
            call("ip", &["link", "add", &bridge, "type", "bridge"])?;
        }
        call("ip", &["address", "replace", &format!("{}/24", self.address()), "dev", &bridge])?;
        call("ip", &["link", "set", &bridge, "up"])?;
        Ok(())
    }
}

impl Node {
    /// Makes the namespace, its link to the bridge and its addresses unless they are there.
    pub fn raise(&self) -> Result<()> {
        for folder in [&self.run, &self.data] {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let netns = self.netns.to_string_lossy();
        if !is_mount_point(&self.netns) {
            fs::write(&self.netns, "")?;
            call("unshare", &[&format!("--net={netns}"), "true"])?;
        }
        if !link_exists(&self.link) {
            let peer = ["type", "veth", "peer", "name", "eth0", "netns", &netns];
            call("ip", &[&["link", "add", &self.link][..], &peer].concat())?;
        }
        call("ip", &["link", "set", &self.link, "master", &self.bridge, "up"])?;
        let inside = |arguments: &[&str]| run(self.enter("ip").args(arguments));
        inside(&["link", "set", "lo", "up"])?;
        inside(&["address", "replace", &format!("{}/24", self.address), "dev", "eth0"])?;
        inside(&["link", "set", "eth0", "up"])?;
        inside(&["route", "replace", "default", "via", &self.gateway.to_string()])?;
        Ok(())
    }

    /// A command that runs inside the node's network; everything else it sees is the host's.
    pub fn enter(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns.display())).arg("--").arg(program.as_ref());
        command
    }

    /// The address `containerd` serves the CRI on.
    pub fn socket(&self) -> PathBuf {
        self.run.join("containerd.sock")
    }

    /// Where the node's containerd finds CNI configuration.
    pub fn cni_configuration(&self) -> PathBuf {
        self.data.join("cni/net.d")
    }

    /// Where the node's containerd finds CNI plugins.
    pub fn cni_plugins(&self) -> PathBuf {
        self.data.join("cni/bin")
    }
}

fn is_mount_point(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let path = path.to_string_lossy();
    table.lines().any(|line| line.split(' ').nth(4) == Some(&path))
}

fn link_exists(name: &str) -> bool {
    succeeds("ip", &["link", "show", "dev", name])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernel() {
        let fabric = Fabric::new("tabcdef0", Path::new("/data"), 7);
        let node = fabric.node(200).unwrap();
        assert!(fabric.bridge().len() <= 15 && node.link.len() <= 15);
        assert_eq!(node.address, Ipv4Addr::new(198, 18, 7, 210));
        assert!(node.socket().as_os_str().len() <= 107 - ".ttrpc".len());
        assert!(fabric.node(0).is_err() && fabric.node(201).is_err());
    }
}
