//! The order in which pods are evicted, by the resource that is short.

use std::cmp::{Ordering, Reverse};

use bosun_api::pod::requests;

use super::{Candidate, Layout};
use crate::critical::priority;
use crate::signals::{Resource, Signal};
use crate::usage::{DiskUsage, PodUsage};

/// What of a pod's disk use lies on the file system in question.
#[derive(Clone, Copy)]
struct Parts {
    rootfs: bool,
    logs: bool,
    volumes: bool,
}

/// Sorts pods so that the first to go is first.
///
/// For memory and disk: those above their request, then by priority, then by how far above. For processes: by priority,
/// then by their number. Of pods whose use is unknown it is supposed that they are the worst.
pub(super) fn sort(pods: &mut [&Candidate<'_>], signal: Signal, layout: Layout) {
    match signal.resource() {
        Resource::Pids => pods.sort_by(|a, b| {
            let processes = |c: &Candidate<'_>| c.usage.as_ref().and_then(|usage| usage.processes);
            by_priority(a, b).then_with(|| unknown_first(processes(a), processes(b)))
        }),
        resource => {
            let excess = |candidate: &Candidate<'_>| excess(candidate, resource, parts(signal, layout));
            pods.sort_by(|a, b| {
                let (x, y) = (excess(a), excess(b));
                let above = |excess: Option<i128>| excess.is_none_or(|excess| excess > 0);
                above(y).cmp(&above(x)).then_with(|| by_priority(a, b)).then_with(|| unknown_first(x, y))
            });
        }
    }
}

fn by_priority(a: &Candidate<'_>, b: &Candidate<'_>) -> Ordering {
    priority(a.pod).cmp(&priority(b.pod))
}

fn unknown_first<T: Ord>(a: Option<T>, b: Option<T>) -> Ordering {
    match (a, b) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Less,
        (Some(_), None) => Ordering::Greater,
        (Some(a), Some(b)) => Reverse(a).cmp(&Reverse(b)),
    }
}

/// By how much the pod uses more than it asked for.
fn excess(candidate: &Candidate<'_>, resource: Resource, parts: Parts) -> Option<i128> {
    let usage = candidate.usage.as_ref()?;
    let used = match resource {
        Resource::Memory => i128::from(usage.memory?),
        Resource::EphemeralStorage => i128::from(disk(usage, parts).bytes),
        Resource::Inodes => i128::from(disk(usage, parts).inodes),
        Resource::Pids => i128::from(usage.processes?),
    };
    let request = requests(candidate.pod).get(resource.name()).map_or(0, |quantity| quantity.value());
    Some(used - i128::from(request))
}

fn disk(usage: &PodUsage, parts: Parts) -> DiskUsage {
    let mut total = DiskUsage::default();
    for container in &usage.containers {
        total += container.rootfs.filter(|_| parts.rootfs).unwrap_or_default();
        total += container.logs.filter(|_| parts.logs).unwrap_or_default();
    }
    if parts.volumes {
        usage.volumes.iter().for_each(|volume| total += volume.used);
    }
    total
}

fn parts(signal: Signal, layout: Layout) -> Parts {
    const ALL: Parts = Parts { rootfs: true, logs: true, volumes: true };
    const LAYERS: Parts = Parts { rootfs: true, logs: false, volumes: false };
    let on_node = matches!(signal, Signal::NodeFsAvailable | Signal::NodeFsInodesFree);
    match (layout.image_fs, layout.container_fs) {
        (false, false) => ALL,
        // Writable layers are with images, the rest with the kubelet.
        (true, false) if on_node => Parts { rootfs: false, ..ALL },
        (true, false) => LAYERS,
        // Writable layers are with the kubelet; nothing of a pod but its images is with the images.
        (_, true) if matches!(signal, Signal::ImageFsAvailable | Signal::ImageFsInodesFree) => {
            Parts { rootfs: false, logs: false, volumes: false }
        }
        (_, true) => ALL,
    }
}
