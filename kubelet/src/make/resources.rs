//! Requests and limits in the kernel's units.

use bosun_api::pod::{QosClass, container_requests, limits, qos_class, requests};
use bosun_api::quantity;
use bosun_proto::cri;
use k8s_openapi::api::core::v1::{Container, Pod};

use super::Node;
use crate::pod::spec;

/// From this priority on a pod counts as critical for its node.
const NODE_CRITICAL: i32 = 2_000_001_000;
/// The least weight and the least quota that the kernel takes.
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
const MIN_QUOTA: i64 = 1000;

/// Cores in thousandths as cgroup v1 shares.
pub fn shares(milli: i64) -> i64 {
    if milli == 0 { MIN_SHARES } else { (milli * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES) }
}

/// Cores in thousandths as a quota in microseconds of `period`; 0 for none.
pub fn quota(milli: i64, period: i64) -> i64 {
    if milli == 0 { 0 } else { (milli * period / 1000).max(MIN_QUOTA) }
}

/// How eagerly the kernel kills the container when memory runs out.
pub fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity: i64) -> i64 {
    const GUARANTEED: i64 = -997;
    if spec::spec(pod).priority.is_some_and(|p| p >= NODE_CRITICAL) {
        return GUARANTEED;
    }
    match qos_class(pod) {
        QosClass::Guaranteed => GUARANTEED,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let request = container_requests(container).get("memory").map_or(0, |q| q.value());
            let adjust = 1000 - (1000 * i128::from(request) / i128::from(memory_capacity.max(1))) as i64;
            // Always worse off than Guaranteed, always better than BestEffort.
            adjust.clamp(1000 + GUARANTEED, 999)
        }
    }
}

/// The limits of one container.
pub fn container_resources(pod: &Pod, container: &Container, node: &Node) -> cri::LinuxContainerResources {
    let limit_list = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    let cpu_limit = quantity::get(limit_list, "cpu").milli_value();
    let memory_limit = quantity::get(limit_list, "memory").value();
    let cpu_request = container_requests(container).get("cpu").map_or(0, |q| q.milli_value());
    let mut resources = cri::LinuxContainerResources {
        cpu_shares: shares(cpu_request),
        memory_limit_in_bytes: memory_limit,
        oom_score_adj: oom_score_adj(pod, container, node.memory_capacity),
        ..Default::default()
    };
    if let Some(period) = node.cpu_quota_period {
        let period = period.as_micros() as i64;
        resources.cpu_period = period;
        resources.cpu_quota = quota(cpu_limit, period);
    }
    resources
}

/// The limits of a pod's cgroup: shares, quota and period in microseconds (0 for none), bytes of memory (0 for none).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodLimits {
    /// CPU weight in v1 shares.
    pub shares: i64,
    /// CPU quota.
    pub quota: i64,
    /// Its period.
    pub period: i64,
    /// Memory limit.
    pub memory: i64,
}

/// The limits of a pod's cgroup. A limit counts only if every container has one.
pub fn pod_limits(pod: &Pod, node: &Node) -> PodLimits {
    let cpu = requests(pod).get("cpu").map_or(0, |q| q.milli_value());
    let all = limits(pod);
    let everywhere = |name: &str| {
        let declared =
            |c: &Container| !quantity::get(c.resources.as_ref().and_then(|r| r.limits.as_ref()), name).is_zero();
        spec::containers(pod).all(|(_, c)| declared(c))
    };
    let mut result = PodLimits { shares: shares(cpu), ..Default::default() };
    if let Some(period) = node.cpu_quota_period.filter(|_| everywhere("cpu")) {
        result.period = period.as_micros() as i64;
        result.quota = quota(all.get("cpu").map_or(0, |q| q.milli_value()), result.period);
    }
    if everywhere("memory") {
        result.memory = all.get("memory").map_or(0, |q| q.value());
    }
    result
}

/// The cgroup of a pod, as the runtime is told: `/kubepods/burstable/pod<uid>`, or the slice of that name.
pub fn cgroup_parent(pod: &Pod, node: &Node) -> String {
    if !node.cgroups_per_qos {
        return node.cgroup_root.trim_end_matches("/kubepods").to_owned();
    }
    let uid = spec::uid(pod);
    let class = match qos_class(pod) {
        QosClass::Guaranteed => "",
        QosClass::Burstable => "burstable",
        QosClass::BestEffort => "besteffort",
    };
    if node.systemd_cgroups {
        let class = if class.is_empty() { String::new() } else { format!("-{class}") };
        return format!("kubepods{class}-pod{}.slice", uid.replace('-', "_"));
    }
    let class = if class.is_empty() { String::new() } else { format!("/{class}") };
    format!("{}{class}/pod{uid}", node.cgroup_root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_units() {
        assert_eq!((shares(0), shares(1), shares(250), shares(1000)), (2, 2, 256, 1024));
        assert_eq!((quota(0, 100_000), quota(5, 100_000), quota(500, 100_000)), (0, 1000, 50_000));
    }

    #[test]
    fn oom_scores_order_the_classes() {
        let pod = |resources: serde_json::Value| -> Pod {
            let spec = serde_json::json!({"containers": [{"name": "a", "resources": resources}]});
            serde_json::from_value(serde_json::json!({"spec": spec})).unwrap()
        };
        let score = |pod: &Pod| oom_score_adj(pod, &spec::spec(pod).containers[0], 1 << 30);
        assert_eq!(score(&pod(serde_json::json!({}))), 1000);
        assert_eq!(score(&pod(serde_json::json!({"requests": {"memory": "512Mi"}}))), 500);
        assert_eq!(score(&pod(serde_json::json!({"requests": {"cpu": "1m"}}))), 999);
        assert_eq!(score(&pod(serde_json::json!({"limits": {"memory": "1Mi", "cpu": "1"}}))), -997);
    }
}
