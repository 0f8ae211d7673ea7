//! The edge to cgroups: the QoS tree and one cgroup a pod, with the cgroupfs driver on v1 hierarchies or on v2.
//!
//! Under the systemd driver the runtime makes the slices; then nothing here is written.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use crate::make::Node;
use crate::make::resources::{self, PodLimits};

const PERIOD_FILE: &str = "cpu.cfs_period_us";

/// Where cgroups are written.
#[derive(Clone, Debug)]
pub enum Cgroups {
    /// A single hierarchy.
    V2(PathBuf),
    /// One hierarchy a controller: its name and where it is mounted.
    V1(Vec<(String, PathBuf)>),
    /// Somebody else writes them.
    None,
}

impl Cgroups {
    /// What this machine has. `driver` is `cgroupfs` or `systemd`.
    pub fn detect(driver: &str) -> Self {
        if driver == "systemd" {
            return Self::None;
        }
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self::from_mountinfo(&text)
    }

    fn from_mountinfo(text: &str) -> Self {
        let (mut v1, mut v2) = (Vec::new(), None);
        for line in text.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let point = left.split(' ').nth(4).unwrap_or_default();
            let mut right = right.split(' ');
            match (right.next(), right.nth(1)) {
                (Some("cgroup"), Some(options)) => {
                    for name in options.split(',').filter(|o| !matches!(*o, "rw" | "ro" | "relatime")) {
                        v1.push((name.to_owned(), PathBuf::from(point)));
                    }
                }
                (Some("cgroup2"), _) if v2.is_none() => v2 = Some(PathBuf::from(point)),
                _ => {}
            }
        }
        v1.retain(|(name, _)| !name.starts_with("xattr") && !name.starts_with("clone_children"));
        match (v1.is_empty(), v2) {
            (true, Some(point)) => Self::V2(point),
            (true, None) => Self::None,
            (false, point) => {
                // Beside v1 hierarchies a bare v2 may stand, in which runtimes make cgroups too.
                v1.extend(point.map(|point| ("unified".to_owned(), point)));
                Self::V1(v1)
            }
        }
    }

    /// Makes the QoS tree below `node.cgroup_root`.
    ///
    /// # Errors
    /// A cgroup could not be made.
    pub fn set_up_node(&self, node: &Node) -> io::Result<()> {
        if !node.cgroups_per_qos {
            return Ok(());
        }
        let root = &node.cgroup_root;
        self.make(root, PodLimits { shares: resources::shares(node.cpu_capacity), ..Default::default() })?;
        for class in ["burstable", "besteffort"] {
            self.make(&format!("{root}/{class}"), PodLimits { shares: 2, ..Default::default() })?;
        }
        Ok(())
    }

    /// Sets the weight of all burstable pods together to what they ask for.
    pub fn weigh_burstable(&self, node: &Node, milli: i64) {
        let limits = PodLimits { shares: resources::shares(milli), ..Default::default() };
        if let Err(error) = self.make(&format!("{}/burstable", node.cgroup_root), limits) {
            tracing::warn!(%error, "the weight of the burstable pods was not set");
        }
    }

    /// Makes the pod's cgroup with its limits.
    ///
    /// # Errors
    /// It could not be made, or a limit was refused.
    pub fn set_up_pod(&self, pod: &Pod, node: &Node) -> io::Result<()> {
        if !node.cgroups_per_qos {
            return Ok(());
        }
        self.make(&resources::cgroup_parent(pod, node), resources::pod_limits(pod, node))
    }

    /// Removes the pod's cgroup and what is left in it. Waits a little for processes that are just dying.
    ///
    /// # Errors
    /// Something in it is still alive.
    pub async fn tear_down_pod(&self, path: &str) -> io::Result<()> {
        let mut last = None;
        for attempt in 0..8u32 {
            last = self.paths(path).iter().filter_map(|p| remove_tree(p).err()).next();
            if last.is_none() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(2 << attempt)).await;
        }
        last.map_or(Ok(()), Err)
    }

    /// The paths of all cgroups of pods that are there, below the hierarchy's root; for finding those left over.
    pub fn pods(&self, node: &Node) -> Vec<(String, String)> {
        let mut found = std::collections::BTreeSet::new();
        for class in ["", "/burstable", "/besteffort"] {
            let parent = format!("{}{class}", node.cgroup_root);
            for folder in self.paths(&parent) {
                for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    if let Some(uid) = name.strip_prefix("pod") {
                        found.insert((uid.to_owned(), format!("{parent}/{name}")));
                    }
                }
            }
        }
        found.into_iter().collect()
    }

    /// Where the cgroup is, in every hierarchy.
    fn paths(&self, path: &str) -> Vec<PathBuf> {
        let inside = path.trim_start_matches('/');
        match self {
            Self::V2(root) => vec![root.join(inside)],
            Self::V1(all) => {
                let mut paths: Vec<_> = all.iter().map(|(_, root)| root.join(inside)).collect();
                paths.dedup();
                paths
            }
            Self::None => Vec::new(),
        }
    }

    fn make(&self, path: &str, limits: PodLimits) -> io::Result<()> {
        let inside = path.trim_start_matches('/');
        match self {
            Self::None => Ok(()),
            Self::V2(root) => make_v2(root, inside, limits),
            Self::V1(all) => {
                // Only those that hold a limit; the runtime makes the rest as it needs them.
                for (name, root) in all.iter().filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory")) {
                    let folder = root.join(inside);
                    fs::create_dir_all(&folder)?;
                    match name.as_str() {
                        "cpu" => {
                            write(&folder, "cpu.shares", limits.shares)?;
                            if limits.quota > 0 {
                                write(&folder, PERIOD_FILE, limits.period)?;
                                write(&folder, "cpu.cfs_quota_us", limits.quota)?;
                            }
                        }
                        _ if limits.memory > 0 => write(&folder, "memory.limit_in_bytes", limits.memory)?,
                        _ => {}
                    }
                }
                Ok(())
            }
        }
    }
}

fn make_v2(root: &Path, inside: &str, limits: PodLimits) -> io::Result<()> {
    let mut folder = root.to_path_buf();
    for part in Path::new(inside).components() {
        // Controllers are handed down one level at a time. One that is refused is missing in the kernel.
        for controller in ["cpu", "cpuset", "io", "memory", "hugetlb", "pids"] {
            let _ = fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"));
        }
        folder.push(part);
        if !folder.exists() {
            fs::create_dir(&folder)?;
        }
    }
    // The mapping of shares to weights that runtimes use (KEP-2254).
    let weight = 1 + (limits.shares.clamp(2, 262_144) - 2) * 9999 / 262_142;
    write(&folder, "cpu.weight", weight)?;
    if limits.quota > 0 {
        let max = format!("{} {}", limits.quota, limits.period);
        fs::write(folder.join("cpu.max"), max)?;
    }
    if limits.memory > 0 {
        write(&folder, "memory.max", limits.memory)?;
    }
    Ok(())
}

fn write(folder: &Path, file: &str, value: i64) -> io::Result<()> {
    let path = folder.join(file);
    fs::write(&path, value.to_string())
        .map_err(|error| io::Error::new(error.kind(), format!("write {value} to {}: {error}", path.display())))
}

/// Removes a cgroup, its children first.
fn remove_tree(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io::Error::new(error.kind(), format!("remove cgroup {}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found() {
        let v1 = "30 29 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n31 29 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
        assert!(matches!(Cgroups::from_mountinfo(v1), Cgroups::V1(all) if all.len() == 2 && all[0].0 == "cpu"));
        let v2 = "30 29 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        assert!(matches!(Cgroups::from_mountinfo(v2), Cgroups::V2(_)));
    }
}
