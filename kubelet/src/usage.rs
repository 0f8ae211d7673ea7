//! Where the usage of pods, of their volumes and of daemons can be read, told to the server that shows it.

use std::path::PathBuf;

use bosun_api::pod::QosClass;
use bosun_kubelet_server::host::{
    ContainerUsageSource, PodUsageSource, RuntimeFs, RuntimeStorage, SandboxUsageSource, VolumeSource,
};
use bosun_kubelet_server::stats::DiskUse;
use bosun_proto::cri;

use crate::make::{Node, resources};
use crate::pod::record::timestamp;
use crate::pod::spec;
use crate::volumes::csi::CsiVolumes;
use crate::volumes::{self, measured};
use crate::worker::Snapshot;

/// Where a pod's usage can be read.
pub(crate) fn pod(snapshot: &Snapshot, node: &Node, csi: &CsiVolumes, runtime_name: &str) -> PodUsageSource {
    let Snapshot { pod, runtime } = snapshot;
    let parent = resources::cgroup_parent(pod, node);
    let logs = node.log_dir(pod);
    let containers = runtime.running().map(|container| ContainerUsageSource {
        name: container.name.clone(),
        id: container.id.clone(),
        image: container.image.clone(),
        cgroup: container_cgroup(&parent, &container.id, node, runtime_name),
        log_dir: Some(logs.join(&container.name)),
        started: timestamp(container.started_at),
    });
    let sandbox = runtime.ready_sandbox().map(|sandbox| SandboxUsageSource {
        id: sandbox.id.clone(),
        cgroup: container_cgroup(&parent, &sandbox.id, node, runtime_name),
    });
    let volumes = spec::spec(pod).volumes.iter().flatten().filter_map(|volume| {
        let (name, claim) = (volume.name.clone(), measured::claim_of(pod, volume));
        if measured::is_measured(volume) {
            let measured = Some(csi.measured(spec::uid(pod), &name)?);
            return Some(VolumeSource { name, path: PathBuf::new(), claim, measured });
        }
        // A hostPath is the node's and not the pod's: it has no plugin's folder.
        let path = volumes::plugin(volume).map(|plugin| node.volume_dir(pod, plugin, &volume.name))?;
        Some(VolumeSource { name, path, claim, measured: None })
    });
    PodUsageSource {
        name: spec::name(pod).to_owned(),
        namespace: spec::namespace(pod).to_owned(),
        uid: spec::uid(pod).to_owned(),
        cgroup: if node.cgroups_per_qos { parent.clone() } else { String::new() },
        started: runtime.sandboxes.first().and_then(|sandbox| timestamp(sandbox.created_at)),
        host_network: spec::host_network(pod),
        sandbox,
        containers: containers.collect(),
        volumes: volumes.collect(),
    }
}

/// The cgroup of all pods.
pub(crate) fn pods_cgroup(node: &Node) -> String {
    resources::pods_cgroup(node).path(resources::driver(node))
}

/// The cgroups above those of pods.
pub(crate) fn shared_cgroups(node: &Node) -> Vec<String> {
    let class = |class| resources::class_cgroup(class, node).path(resources::driver(node));
    let classes = [QosClass::Burstable, QosClass::BestEffort].map(class);
    let root = pods_cgroup(node);
    if node.cgroups_per_qos { [root].into_iter().chain(classes).collect() } else { vec![root] }
}

/// The cgroup that this process is in: of the unified hierarchy, or of the memory controller.
pub(crate) fn own_cgroup() -> Option<String> {
    own(&std::fs::read_to_string("/proc/self/cgroup").ok()?)
}

fn own(text: &str) -> Option<String> {
    let of = |wanted: &str| {
        text.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            controllers.split(',').any(|controller| controller == wanted).then(|| path.to_owned())
        })
    };
    // The root is the machine and no daemon.
    of("memory").or_else(|| of("")).filter(|path| path != "/")
}

/// The cgroup that the runtime makes for a container below the pod's.
fn container_cgroup(parent: &str, id: &str, node: &Node, runtime_name: &str) -> String {
    let name = match (runtime_name, node.systemd_cgroups) {
        ("cri-o", true) => format!("crio-{id}.scope"),
        ("cri-o", false) => format!("crio-{id}"),
        (_, true) => format!("cri-containerd-{id}.scope"),
        (_, false) => id.to_owned(),
    };
    format!("{parent}/{name}")
}

/// What the runtime's answers say of its storage.
pub(crate) fn storage(filesystems: cri::ImageFsInfoResponse, containers: Vec<cri::ContainerStats>) -> RuntimeStorage {
    let layer =
        |container: cri::ContainerStats| Some((container.attributes?.id, usage(container.writable_layer.as_ref()?)));
    RuntimeStorage {
        images: filesystems.image_filesystems.first().map(filesystem),
        containers: filesystems.container_filesystems.first().map(filesystem),
        layers: containers.into_iter().filter_map(layer).collect(),
    }
}

fn filesystem(told: &cri::FilesystemUsage) -> RuntimeFs {
    let mountpoint = told.fs_id.as_ref().map(|id| PathBuf::from(&id.mountpoint)).unwrap_or_default();
    RuntimeFs { mountpoint, used: usage(told) }
}

fn usage(told: &cri::FilesystemUsage) -> DiskUse {
    let value = |value: &Option<cri::UInt64Value>| value.as_ref().map_or(0, |v| v.value);
    DiskUse { bytes: value(&told.used_bytes), inodes: value(&told.inodes_used) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(systemd_cgroups: bool) -> Node {
        Node { systemd_cgroups, ..crate::make::tests::node() }
    }

    #[test]
    fn cgroups_of_both_drivers() {
        let slices = container_cgroup("/kubepods.slice/kubepods-pod1_2.slice", "abc", &node(true), "containerd");
        let want = "/kubepods.slice/kubepods-pod1_2.slice/cri-containerd-abc.scope";
        assert_eq!(slices, want);
        assert_eq!(container_cgroup("/kubepods/pod1-2", "abc", &node(false), "containerd"), "/kubepods/pod1-2/abc");
        assert_eq!(container_cgroup("/kubepods/pod1-2", "abc", &node(false), "cri-o"), "/kubepods/pod1-2/crio-abc");
        assert_eq!(shared_cgroups(&node(true))[1], "/kubepods.slice/kubepods-burstable.slice");
        assert_eq!(shared_cgroups(&node(false)), ["/kubepods", "/kubepods/burstable", "/kubepods/besteffort"]);
    }

    #[test]
    fn the_kubelet_s_own_cgroup() {
        assert_eq!(own("5:memory:/a\n4:cpu,cpuacct:/b\n0::/c\n").as_deref(), Some("/a"));
        assert_eq!(own("0::/system.slice/kubelet.service\n").as_deref(), Some("/system.slice/kubelet.service"));
        assert_eq!(own("0::/\n"), None);
    }
}
