//! What pods hold of a node: links, addresses, cgroups, mounts, folders, shims. Looked at twice, it shows what was
//! leaked between.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::Node;
use crate::program::run;

/// Everything that a pod takes while it lives and must give back, each as a line that says what it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings(BTreeSet<String>);

impl Holdings {
    /// Looks at a node as it is now.
    ///
    /// # Errors
    /// Its network cannot be looked at.
    pub fn of(node: &Node) -> Result<Self> {
        let mut found = BTreeSet::new();
        let links = run(node.enter("ip").args(["-o", "link", "show", "type", "veth"]))?;
        for line in links.lines() {
            let name = line.split(": ").nth(1).unwrap_or(line);
            found.insert(format!("link {}", name.split('@').next().unwrap_or(name)));
        }
        files(&node.data.join("cni/networks"), "address", &mut found);
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            folders(&hierarchy.path().join(node.cgroup.trim_start_matches('/')), &mut found);
        }
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for point in table.lines().filter_map(|line| line.split(' ').nth(4)) {
            let path = Path::new(point);
            if (path.starts_with(&node.run) || path.starts_with(&node.data)) && path != node.netns {
                found.insert(format!("mount {point}"));
            }
        }
        for folder in [node.data.join("agent/kubelet/pods"), node.data.join("pod-logs/pods")] {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                found.insert(format!("folder {}", entry.path().display()));
            }
        }
        let socket = node.socket().display().to_string();
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains("containerd-shim") && line.contains(&socket) {
                let sandbox = line.split(" -id ").nth(1).and_then(|rest| rest.split(' ').next());
                found.insert(format!("shim of {}", sandbox.unwrap_or(&line)));
            }
        }
        Ok(Self(found))
    }

    /// What is here and was not there `before`.
    pub fn beyond<'a>(&'a self, before: &'a Self) -> Vec<&'a str> {
        self.0.difference(&before.0).map(String::as_str).collect()
    }
}

/// Files of the networks, each named after the address that it takes.
fn files(folder: &Path, what: &str, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() {
            files(&entry.path(), what, found);
        } else if name.starts_with(|first: char| first.is_ascii_digit()) || name.contains(':') {
            found.insert(format!("{what} {name}"));
        }
    }
}

fn folders(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let path = entry.path();
            // Those above them stay: the kubelet makes them for all pods, the runtime in further hierarchies.
            if path.components().any(|part| part.as_os_str().to_string_lossy().starts_with("pod")) {
                found.insert(format!("cgroup {}", path.display()));
            }
            folders(&path, found);
        }
    }
}
