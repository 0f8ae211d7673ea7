//! What the runtime is told of a pod: sandbox and container configurations made from the pod's definition. Pure: what
//! has to be looked up (objects, images, files) comes in.

pub mod container;
pub mod downward;
pub mod env;
pub mod env_file;
pub mod names;
pub mod resources;
pub mod sandbox;
pub mod security;

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;

use crate::pod::spec;

/// Where things of this node are, and what it is called.
#[derive(Clone, Debug)]
pub struct Node {
    /// The node's name.
    pub name: String,
    /// The node's addresses, the primary one first.
    pub ips: Vec<String>,
    /// Where pods have their folders; `/var/lib/kubelet` in stock.
    pub root_dir: PathBuf,
    /// Where pods have their logs; `/var/log/pods` in stock.
    pub pod_logs_dir: PathBuf,
    /// Where links to the logs of containers stand; `/var/log/containers` in stock.
    pub container_logs_dir: PathBuf,
    /// DNS servers for `ClusterFirst`.
    pub cluster_dns: Vec<String>,
    /// The cluster's domain, may be empty.
    pub cluster_domain: String,
    /// The resolver file that pods inherit.
    pub resolver_file: Option<PathBuf>,
    /// Whether pods that name no seccomp profile get the runtime's default.
    pub seccomp_default: bool,
    /// Whether CPU limits are enforced, and in what period.
    pub cpu_quota_period: Option<std::time::Duration>,
    /// Memory of the node in bytes.
    pub memory_capacity: i64,
    /// Memory that all pods together may use, in bytes.
    pub memory_allocatable: i64,
    /// Cores of the node in thousandths.
    pub cpu_capacity: i64,
    /// Where the pods' cgroups stand, below the hierarchy's root: `/kubepods` in stock.
    pub cgroup_root: String,
    /// Whether pods get cgroups by QoS class.
    pub cgroups_per_qos: bool,
    /// Whether cgroups are named as systemd slices.
    pub systemd_cgroups: bool,
    /// How pods and containers are limited beyond what they ask for.
    pub limits: resources::Settings,
}

impl Node {
    /// The pod's folder.
    pub fn pod_dir(&self, pod: &Pod) -> PathBuf {
        self.pods_dir().join(spec::uid(pod))
    }

    /// The folder of all pods' folders.
    pub fn pods_dir(&self) -> PathBuf {
        self.root_dir.join("pods")
    }

    /// The pod's log folder.
    pub fn log_dir(&self, pod: &Pod) -> PathBuf {
        let folder = format!("{}_{}_{}", spec::namespace(pod), spec::name(pod), spec::uid(pod));
        self.pod_logs_dir.join(folder)
    }

    /// The folder of one container's own files (its termination message).
    pub fn container_dir(&self, pod: &Pod, container: &str) -> PathBuf {
        self.pod_dir(pod).join("containers").join(container)
    }

    /// The folder of one volume.
    pub fn volume_dir(&self, pod: &Pod, plugin: &str, volume: &str) -> PathBuf {
        self.pod_dir(pod).join("volumes").join(format!("kubernetes.io~{plugin}")).join(volume)
    }

    /// The pod's hosts file.
    pub fn hosts_file(&self, pod: &Pod) -> PathBuf {
        self.pod_dir(pod).join("etc-hosts")
    }
}

/// A path as text; one that is no UTF-8 cannot be told to the runtime and becomes its nearest reading.
pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A node of one core and 1 GiB.
    pub(crate) fn node() -> Node {
        Node {
            name: "n".into(),
            ips: Vec::new(),
            root_dir: "/k".into(),
            pod_logs_dir: "/l".into(),
            container_logs_dir: "/c".into(),
            cluster_dns: Vec::new(),
            cluster_domain: String::new(),
            resolver_file: None,
            seccomp_default: false,
            cpu_quota_period: None,
            memory_capacity: 1 << 30,
            memory_allocatable: 1 << 30,
            cpu_capacity: 1000,
            cgroup_root: "/kubepods".into(),
            cgroups_per_qos: true,
            systemd_cgroups: false,
            limits: resources::Settings::default(),
        }
    }
}
