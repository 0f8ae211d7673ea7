//! Limits of local storage: pods that have used more of the node's disk than they were allowed. Pure.

use bosun_api::pod::{container_limits, limits};
use bosun_api::quantity::{self, Quantity};
use k8s_openapi::api::core::v1::Pod;

use crate::critical::is_critical;
use crate::eviction::{Candidate, Eviction, IMMEDIATE, Layout, eviction};
use crate::signals::amount;
use crate::usage::{ContainerUsage, DiskUsage, PodUsage};

const RESOURCE: &str = "ephemeral-storage";

/// Whether the pod has any such limit, so that its use of disk has to be measured.
pub fn has_any(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let sized = |v: &k8s_openapi::api::core::v1::Volume| v.empty_dir.as_ref().is_some_and(|e| e.size_limit.is_some());
    spec.volumes.iter().flatten().any(sized) || limits(pod).contains_key(RESOURCE)
}

/// The pods that are above a limit, all of which are to go.
pub fn plan(layout: Layout, pods: &[Candidate<'_>]) -> Vec<Eviction> {
    let over = |candidate: &Candidate<'_>| {
        let (pod, usage) = (candidate.pod, candidate.usage.as_ref()?);
        if is_critical(pod) {
            return None;
        }
        let message = over_volume(pod, usage)
            .or_else(|| over_pod(pod, usage, layout))
            .or_else(|| over_container(pod, usage, layout))?;
        Some(eviction(pod, IMMEDIATE, message, false))
    };
    pods.iter().filter_map(over).collect()
}

fn bytes(used: u64) -> Quantity {
    amount(i64::try_from(used).unwrap_or(i64::MAX))
}

fn over_volume(pod: &Pod, usage: &PodUsage) -> Option<String> {
    pod.spec.as_ref()?.volumes.iter().flatten().find_map(|volume| {
        let limit = quantity::of(volume.empty_dir.as_ref()?.size_limit.as_ref()?);
        let used = usage.volumes.iter().find(|used| used.name == volume.name)?;
        (limit.sign() > 0 && bytes(used.used.bytes) > limit)
            .then(|| format!("Usage of EmptyDir volume {:?} exceeds the limit {:?}. ", volume.name, limit.to_string()))
    })
}

/// The disk of a container that counts: its writable layer only where that is on the kubelet's file system.
fn of_container(usage: &ContainerUsage, layout: Layout) -> DiskUsage {
    let mut used = usage.logs.unwrap_or_default();
    if !layout.image_fs {
        used += usage.rootfs.unwrap_or_default();
    }
    used
}

fn over_pod(pod: &Pod, usage: &PodUsage, layout: Layout) -> Option<String> {
    let limit = *limits(pod).get(RESOURCE)?;
    let mut used = DiskUsage::default();
    usage.containers.iter().for_each(|container| used += of_container(container, layout));
    usage.volumes.iter().for_each(|volume| used += volume.used);
    (bytes(used.bytes) > limit)
        .then(|| format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. "))
}

fn over_container(pod: &Pod, usage: &PodUsage, layout: Layout) -> Option<String> {
    usage.containers.iter().find_map(|used| {
        let container = pod.spec.as_ref()?.containers.iter().find(|c| c.name == used.name)?;
        let limit = container_limits(container).get(RESOURCE).copied().filter(|limit| !limit.is_zero())?;
        (bytes(of_container(used, layout).bytes) > limit).then(|| {
            format!("Container {} exceeded its local ephemeral storage limit {:?}. ", used.name, limit.to_string())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::VolumeUsage;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"}, "spec": spec})).unwrap()
    }

    fn usage(rootfs: u64, logs: u64, volume: u64) -> PodUsage {
        let disk = |mi: u64| DiskUsage { bytes: mi << 20, inodes: 1 };
        let container = |name: &str, rootfs, logs| ContainerUsage {
            name: name.into(),
            rootfs: Some(disk(rootfs)),
            logs: Some(disk(logs)),
            ..ContainerUsage::default()
        };
        PodUsage {
            containers: vec![container("a", rootfs, logs), container("b", 0, 0)],
            volumes: vec![VolumeUsage { name: "v".into(), used: disk(volume) }],
            ..PodUsage::default()
        }
    }

    fn text(pod: &Pod, usage: PodUsage, layout: Layout) -> String {
        assert!(has_any(pod));
        let plan = plan(layout, &[Candidate { pod, usage: Some(usage) }]);
        plan.iter().map(|eviction| format!("{eviction}\n")).collect()
    }

    #[test]
    fn each_limit_has_its_words() {
        let limited = |limit: &str| json!({"name": "a", "resources": {"limits": {"ephemeral-storage": limit}}});
        let two = pod(
            json!({"containers": [limited("10Mi"), {"name": "b"}], "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "5Mi"}}]}),
        );
        let here = Layout::default();
        assert_eq!(text(&two, usage(4, 2, 4), here), "");
        assert_eq!(
            text(&two, usage(0, 0, 6), here),
            "evict d/p within 1 s: Usage of EmptyDir volume \"v\" exceeds the limit \"5Mi\". \n"
        );
        assert_eq!(
            text(&two, usage(4, 3, 4), here),
            "evict d/p within 1 s: Pod ephemeral local storage usage exceeds the total limit of containers 10Mi. \n"
        );
        let both = pod(
            json!({"containers": [limited("10Mi"), {"name": "b", "resources": {"limits": {"ephemeral-storage": "90Mi"}}}]}),
        );
        assert_eq!(
            text(&both, usage(9, 2, 0), here),
            "evict d/p within 1 s: Container a exceeded its local ephemeral storage limit \"10Mi\". \n"
        );
        let apart = Layout { image_fs: true, ..here };
        assert_eq!(text(&both, usage(9, 2, 0), apart), "", "the writable layer is elsewhere");
    }

    #[test]
    fn critical_pods_and_pods_without_limits_stay() {
        let spec = json!({"priority": 2_000_000_000, "containers": [{"name": "a", "resources": {"limits": {"ephemeral-storage": "1"}}}]});
        assert_eq!(text(&pod(spec), usage(9, 9, 9), Layout::default()), "");
        assert!(!has_any(&pod(json!({"containers": [{"name": "a"}], "volumes": [{"name": "v", "emptyDir": {}}]}))));
    }
}
