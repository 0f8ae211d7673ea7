//! Pods that the node cannot do without.

use k8s_openapi::api::core::v1::Pod;

/// From this priority on a pod is critical for the cluster or its node (`system-cluster-critical`).
pub const SYSTEM_CRITICAL: i32 = 2_000_000_000;

/// The pod's priority; 0 where it has none.
pub fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0)
}

/// Whether the pod is static, or of a priority reserved for the system. The kubelet never evicts such a pod.
pub fn is_critical(pod: &Pod) -> bool {
    bosun_api::pod::is_static(pod) || priority(pod) >= SYSTEM_CRITICAL
}

/// Whether `pod` may be ended so that `wanted` can run.
pub fn is_preemptable(wanted: &Pod, pod: &Pod) -> bool {
    let declared = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.priority);
    let higher = declared(wanted).zip(declared(pod)).is_some_and(|(wanted, other)| wanted > other);
    (is_critical(wanted) && !is_critical(pod)) || higher
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn static_pods_and_system_priorities_are_critical() {
        let pod = |annotations: serde_json::Value, priority: serde_json::Value| -> Pod {
            let spec = json!({"containers": [], "priority": priority});
            serde_json::from_value(json!({"metadata": {"annotations": annotations}, "spec": spec})).unwrap()
        };
        let common = pod(json!({}), json!(10));
        let system = pod(json!({}), json!(SYSTEM_CRITICAL));
        let fixed = pod(json!({"kubernetes.io/config.source": "file"}), json!(null));
        assert!(!is_critical(&common) && is_critical(&system) && is_critical(&fixed));
        assert!(is_preemptable(&system, &common) && is_preemptable(&fixed, &common));
        assert!(!is_preemptable(&common, &system) && !is_preemptable(&fixed, &system));
        assert!(is_preemptable(&pod(json!({}), json!(SYSTEM_CRITICAL + 1000)), &system));
    }
}
