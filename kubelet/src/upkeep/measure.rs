//! What is left of the node's resources, and what pods use of them. Files are read where that holds nobody up.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bosun_kubelet_cgroup::Hierarchy;
use bosun_kubelet_node::machine::MachineReader;
use bosun_kubelet_upkeep::eviction::Layout;
use bosun_kubelet_upkeep::signals::{Observation, Observations, Resource, Signal};
use bosun_kubelet_upkeep::usage::{self, ContainerUsage, DiskUsage, PodUsage, VolumeUsage};

use super::{Upkeep, blocking, runtime_file_systems, soon};
use crate::make::resources;
use crate::pod::spec;
use crate::volumes;
use crate::worker::Snapshot;

/// How long the disk use of all pods together may be measured. A pod that is not done by then counts as unmeasured.
const COUNTING: Duration = Duration::from_secs(60);

/// What was measured of the node.
#[derive(Clone, Debug, Default)]
pub(super) struct Observed {
    pub(super) signals: Observations,
    pub(super) layout: Layout,
}

/// Where the use of one pod is read.
struct Source {
    uid: String,
    cgroup: String,
    /// Name, id and log folder of each.
    containers: Vec<(String, String, PathBuf)>,
    /// Name and folder of each on the node's disk.
    volumes: Vec<(String, PathBuf)>,
}

impl Upkeep {
    /// Measures the node.
    pub(super) async fn observe(&self) -> Observed {
        let (images, layers) = runtime_file_systems(&self.context).await;
        let node = self.context.node.clone();
        let cgroups = self.cgroups.clone();
        let allowed = self.settings.allocatable_memory;
        let pods_cgroup = crate::usage::pods_cgroup(&node);
        let look = move || {
            let mut observed = Observed::default();
            observe_machine(&mut observed.signals, &node.root_dir, node.memory_capacity);
            if let Some(used) = node.cgroups_per_qos.then(|| cgroups.working_set(&pods_cgroup)).flatten() {
                let available = allowed.saturating_sub(i64::try_from(used).unwrap_or(i64::MAX));
                let signal = Observation { available, capacity: allowed };
                observed.signals.insert(Signal::AllocatableMemoryAvailable, signal);
            }
            observe_disks(&mut observed, &node.root_dir, images, layers);
            observed
        };
        blocking(look).await.unwrap_or_default()
    }

    /// Measures what pods use of a resource.
    pub(super) async fn measure(&self, pods: &[Snapshot], resource: Resource) -> HashMap<String, PodUsage> {
        let sources: Vec<Source> = pods.iter().map(|snapshot| self.source(snapshot)).collect();
        let cgroups = self.cgroups.clone();
        let on_disk = matches!(resource, Resource::EphemeralStorage | Resource::Inodes);
        let layers = if on_disk { self.writable_layers().await } else { HashMap::new() };
        let measure = move || {
            let deadline = soon(COUNTING);
            let of = |source: Source| {
                let usage = match resource {
                    Resource::Memory => memory(&cgroups, &source),
                    Resource::Pids => processes(&cgroups, &source),
                    Resource::EphemeralStorage | Resource::Inodes => disk(&layers, &source, deadline),
                };
                usage.map(|usage| (source.uid, usage))
            };
            sources.into_iter().filter_map(of).collect()
        };
        blocking(measure).await.unwrap_or_default()
    }

    fn source(&self, snapshot: &Snapshot) -> Source {
        let (pod, node) = (&*snapshot.pod, &*self.context.node);
        let logs = node.log_dir(pod);
        let containers = snapshot.runtime.running().map(|c| (c.name.clone(), c.id.clone(), logs.join(&c.name)));
        let volumes = spec::spec(pod).volumes.iter().flatten().filter(|v| is_local_ephemeral(v));
        let volumes = volumes.filter_map(|v| Some((v.name.clone(), volumes::host_path(pod, node, v)?)));
        Source {
            uid: spec::uid(pod).to_owned(),
            cgroup: resources::cgroup_parent(pod, node),
            containers: containers.collect(),
            volumes: volumes.collect(),
        }
    }

    /// What the writable layers of containers use, by container id.
    async fn writable_layers(&self) -> HashMap<String, DiskUsage> {
        let stats = self.context.runtime.container_stats().await;
        let stats = stats.inspect_err(|error| tracing::warn!(%error, "writable layers were not measured"));
        let layer = |stats: bosun_proto::cri::ContainerStats| {
            let layer = stats.writable_layer?;
            let used = DiskUsage {
                bytes: layer.used_bytes.map_or(0, |value| value.value),
                inodes: layer.inodes_used.map_or(0, |value| value.value),
            };
            Some((stats.attributes?.id, used))
        };
        stats.unwrap_or_default().into_iter().filter_map(layer).collect()
    }
}

/// Volumes whose content lies on the node's disk and goes with the pod.
fn is_local_ephemeral(volume: &k8s_openapi::api::core::v1::Volume) -> bool {
    let on_disk = |e: &k8s_openapi::api::core::v1::EmptyDirVolumeSource| e.medium.as_deref().unwrap_or("").is_empty();
    volume.empty_dir.as_ref().is_some_and(on_disk) || volume.config_map.is_some() || volume.downward_api.is_some()
}

fn observe_machine(signals: &mut Observations, root_dir: &std::path::Path, memory: i64) {
    let found = match MachineReader::default().resources(root_dir) {
        Ok(found) => found,
        Err(error) => return tracing::warn!(%error, "resources not read"),
    };
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let mut add = |signal, available, capacity| {
        // A file system that does not count its inodes has none to run out of.
        if capacity > 0 {
            signals.insert(signal, Observation { available, capacity });
        }
    };
    add(Signal::MemoryAvailable, number(found.memory_available), memory);
    add(Signal::NodeFsAvailable, number(found.fs_available), number(found.fs_capacity));
    add(Signal::NodeFsInodesFree, number(found.inodes_free), number(found.inodes));
    add(Signal::PidAvailable, number(found.pids_available), number(found.pids));
}

fn observe_disks(
    observed: &mut Observed,
    root_dir: &std::path::Path,
    images: Option<PathBuf>,
    layers: Option<PathBuf>,
) {
    let Some(images) = images else { return };
    let device = |path: &std::path::Path| usage::device(path);
    observed.layout.image_fs = device(root_dir) != device(&images);
    let layers = layers.unwrap_or_else(|| images.clone());
    observed.layout.container_fs = device(&layers) != device(&images);
    let disks = [
        (images, Signal::ImageFsAvailable, Signal::ImageFsInodesFree),
        (layers, Signal::ContainerFsAvailable, Signal::ContainerFsInodesFree),
    ];
    for (path, space_signal, inodes_signal) in disks {
        match usage::file_system(&path) {
            Ok((space, inodes)) => {
                observed.signals.insert(space_signal, space);
                if inodes.capacity > 0 {
                    observed.signals.insert(inodes_signal, inodes);
                }
            }
            Err(error) => tracing::warn!(%error, "a file system of the runtime was not measured"),
        }
    }
}

fn memory(cgroups: &Hierarchy, source: &Source) -> Option<PodUsage> {
    let container = |(name, id, _): &(String, String, PathBuf)| ContainerUsage {
        name: name.clone(),
        memory: cgroups.container(&source.cgroup, id).and_then(|cgroup| cgroups.working_set(&cgroup)),
        ..ContainerUsage::default()
    };
    let memory = Some(cgroups.working_set(&source.cgroup)?);
    Some(PodUsage { memory, containers: source.containers.iter().map(container).collect(), ..PodUsage::default() })
}

fn processes(cgroups: &Hierarchy, source: &Source) -> Option<PodUsage> {
    Some(PodUsage { processes: Some(cgroups.tasks(&source.cgroup)?), ..PodUsage::default() })
}

fn disk(layers: &HashMap<String, DiskUsage>, source: &Source, deadline: Instant) -> Option<PodUsage> {
    let mut usage = PodUsage::default();
    for (name, id, logs) in &source.containers {
        usage.containers.push(ContainerUsage {
            name: name.clone(),
            rootfs: layers.get(id).copied(),
            logs: counted(logs, deadline)?,
            ..ContainerUsage::default()
        });
    }
    for (name, folder) in &source.volumes {
        if let Some(used) = counted(folder, deadline)? {
            usage.volumes.push(VolumeUsage { name: name.clone(), used });
        }
    }
    Some(usage)
}

/// What lies in a folder; within it none if it is not there, none at all if time was up.
fn counted(folder: &std::path::Path, deadline: Instant) -> Option<Option<DiskUsage>> {
    match usage::disk_usage(folder, deadline) {
        Ok(used) => Some(Some(used)),
        Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {
            tracing::warn!(%error, "the disk use of a pod is not known");
            None
        }
        Err(_) => Some(None),
    }
}
