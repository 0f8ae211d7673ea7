//! Requests and limits in the kernel's units.

use std::collections::BTreeMap;

use bosun_api::pod::{QosClass, Resources, container_requests, is_sidecar, limits, qos_class, requests};
use bosun_api::quantity;
use bosun_kubelet_cgroup::allocatable::hugepages;
use bosun_kubelet_cgroup::limits::{MIN_SHARES, quota, shares};
use bosun_kubelet_cgroup::{Amount, Driver, Limits, Name, Quota};
use bosun_kubelet_upkeep::critical::is_critical;
use bosun_proto::cri;
use k8s_openapi::api::core::v1::{Container, Pod};

use super::Node;
use crate::pod::spec;

/// From this priority on a pod counts as critical for its node.
const NODE_CRITICAL: i32 = 2_000_001_000;
/// The period that a lifted quota stands in.
const DEFAULT_PERIOD: u64 = 100_000;

/// How this node limits pods and containers, beyond what they ask for themselves.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Whether there is a single cgroup hierarchy (version 2).
    pub unified: bool,
    /// The most processes of one pod.
    pub pids: Option<u64>,
    /// The sizes of huge pages that the kernel has, as it calls them (`2MB`).
    pub page_sizes: Vec<String>,
    /// Whether all of a container is killed when it runs out of memory (`singleProcessOOMKill: false`).
    pub kill_groups: bool,
    /// What containers have of the node's swap.
    pub swap: Swap,
}

/// What containers have of the node's swap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Swap {
    /// The kernel does not count swap: nothing is said about it.
    #[default]
    Uncounted,
    /// None.
    None,
    /// Burstable containers have a share of so many bytes, by their part in the node's memory (`LimitedSwap`).
    Limited(i64),
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
            let capacity = i128::from(memory_capacity.max(1));
            let share = share_of_pod_memory(pod);
            let score = |request: i64| 1000 - (1000 * i128::from(request.saturating_add(share)) / capacity) as i64;
            let mut adjust = score(memory_request(container));
            if is_sidecar(container) {
                // What the others need is not killed after them.
                let least = spec::spec(pod).containers.iter().map(memory_request).min();
                adjust = adjust.min(score(least.unwrap_or(0)));
            }
            // Always worse off than Guaranteed, always better than BestEffort.
            adjust.clamp(1000 + GUARANTEED, 999)
        }
    }
}

fn memory_request(container: &Container) -> i64 {
    container_requests(container).get("memory").map_or(0, |q| q.value())
}

/// The part of one container in what a pod asks for beyond its containers (KEP-2837): all have the same.
fn share_of_pod_memory(pod: &Pod) -> i64 {
    let requests = spec::spec(pod).resources.as_ref().and_then(|all| all.requests.as_ref());
    let Some(of_pod) = requests.filter(|all| all.contains_key("memory")) else { return 0 };
    let mut without = pod.clone();
    if let Some(spec) = &mut without.spec {
        spec.resources = None;
        spec.overhead = None;
    }
    let of_containers = bosun_api::pod::requests(&without).get("memory").map_or(0, |q| q.value());
    let counted = spec::containers(pod).filter(|(_, container)| counts_for_share(pod, container)).count();
    let left = quantity::get(Some(of_pod), "memory").value() - of_containers;
    left.max(0) / i64::try_from(counted).unwrap_or(i64::MAX).max(1)
}

/// Main containers, and init containers that stay.
fn counts_for_share(pod: &Pod, container: &Container) -> bool {
    is_sidecar(container) || spec::spec(pod).containers.iter().any(|main| main.name == container.name)
}

/// The limits of one container. Where it has none of its own, the pod's stands (KEP-2837).
pub fn container_resources(pod: &Pod, container: &Container, node: &Node) -> cri::LinuxContainerResources {
    let of_pod = spec::spec(pod).resources.as_ref().and_then(|all| all.limits.as_ref());
    let own = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    let limit = |name: &str| {
        let own = quantity::get(own, name);
        if own.is_zero() { quantity::get(of_pod, name) } else { own }
    };
    let (cpu_limit, memory_limit) = (limit("cpu").milli_value(), limit("memory").value());
    let asked = container.resources.as_ref().and_then(|all| all.requests.as_ref());
    let cpu_request = match asked.filter(|all| all.contains_key("cpu")) {
        Some(asked) => quantity::get(Some(asked), "cpu").milli_value(),
        None => cpu_limit,
    };
    let mut resources = cri::LinuxContainerResources {
        oom_score_adj: oom_score_adj(pod, container, node.memory_capacity),
        hugepage_limits: page_limits(container, &node.limits.page_sizes),
        ..amounts(cpu_request, cpu_limit, memory_limit, node)
    };
    if node.limits.unified && node.limits.kill_groups {
        resources.unified.insert("memory.oom.group".to_owned(), "1".to_owned());
    }
    match container_swap(pod, container, node) {
        None => {}
        Some(bytes) if node.limits.unified => {
            resources.unified.insert("memory.swap.max".to_owned(), bytes.to_string());
        }
        // Memory and swap together, in version 1.
        Some(_) => resources.memory_swap_limit_in_bytes = memory_limit,
    }
    resources
}

/// What all containers of a pod ask for and may use, for runtimes that size a machine for it.
pub fn sandbox_resources(pod: &Pod, node: &Node) -> cri::LinuxContainerResources {
    let mut bare = pod.clone();
    if let Some(spec) = &mut bare.spec {
        spec.overhead = None;
    }
    let (asked, all) = (requests(&bare), limits(&bare));
    let limit = |name: &str| all.get(name).cloned().unwrap_or_default();
    let cpu_request = asked.get("cpu").unwrap_or(&limit("cpu")).milli_value();
    amounts(cpu_request, limit("cpu").milli_value(), limit("memory").value(), node)
}

/// What the runtime class adds to a pod.
pub fn overhead(pod: &Pod, node: &Node) -> cri::LinuxContainerResources {
    let overhead = spec::spec(pod).overhead.as_ref();
    let cpu = quantity::get(overhead, "cpu").milli_value();
    let memory = quantity::get(overhead, "memory").value();
    if overhead.is_none_or(BTreeMap::is_empty) {
        return cri::LinuxContainerResources::default();
    }
    amounts(cpu, cpu, memory, node)
}

/// Cores in thousandths and bytes in the kernel's units.
fn amounts(cpu_request: i64, cpu_limit: i64, memory_limit: i64, node: &Node) -> cri::LinuxContainerResources {
    let mut resources = cri::LinuxContainerResources {
        cpu_shares: signed(shares(cpu_request)),
        memory_limit_in_bytes: memory_limit,
        ..Default::default()
    };
    if let Some(period) = period(node) {
        resources.cpu_period = signed(period);
        resources.cpu_quota = quota(cpu_limit, period).map_or(0, signed);
    }
    resources
}

/// The swap that a container may use, in bytes; none where nothing is said about it.
fn container_swap(pod: &Pod, container: &Container, node: &Node) -> Option<i64> {
    let all = match node.limits.swap {
        Swap::Uncounted => return None,
        Swap::Limited(all) if node.limits.unified => all,
        _ => return Some(0),
    };
    let list = |limits: bool| {
        container.resources.as_ref().and_then(|r| if limits { r.limits.as_ref() } else { r.requests.as_ref() })
    };
    let (request, limit) = (quantity::get(list(false), "memory").value(), quantity::get(list(true), "memory").value());
    let entitled = qos_class(pod) == QosClass::Burstable && !is_critical(pod) && request > 0 && request != limit;
    if !entitled || request > node.memory_capacity {
        return Some(0);
    }
    Some((request as f64 / node.memory_capacity.max(1) as f64 * all as f64) as i64)
}

/// Huge pages of a container: of each size that there is, none but what it has a limit for.
fn page_limits(container: &Container, sizes: &[String]) -> Vec<cri::HugepageLimit> {
    let limits = hugepages(&bosun_api::pod::container_limits(container));
    let limit = |size: &String| match limits.get(size) {
        Some(Amount::Of(bytes)) => *bytes,
        _ => 0,
    };
    sizes.iter().map(|size| cri::HugepageLimit { page_size: size.clone(), limit: limit(size) }).collect()
}

/// The limits of a pod's cgroup. A limit counts only if every container has one, or the pod as a whole.
pub fn pod_limits(pod: &Pod, node: &Node) -> Limits {
    let (asked, all, class) = (requests(pod), limits(pod), qos_class(pod));
    let of_pod = spec::spec(pod).resources.as_ref().and_then(|all| all.limits.as_ref());
    let declared = |name: &str| {
        let by = |c: &Container| !quantity::get(c.resources.as_ref().and_then(|r| r.limits.as_ref()), name).is_zero();
        match class {
            QosClass::Guaranteed => true,
            QosClass::Burstable => !quantity::get(of_pod, name).is_zero() || spec::containers(pod).all(|(_, c)| by(c)),
            QosClass::BestEffort => false,
        }
    };
    let mut result = Limits { pids: node.limits.pids.map(Amount::Of), ..Limits::default() };
    result.shares = Some(match class {
        QosClass::BestEffort => MIN_SHARES,
        _ => shares(asked.get("cpu").map_or(0, |q| q.milli_value())),
    });
    if declared("cpu") {
        let milli = all.get("cpu").map_or(0, |q| q.milli_value());
        let bound = period(node).and_then(|period| quota(milli, period));
        let quota = bound.map_or(Amount::Max, Amount::Of);
        result.quota = Some(Quota { quota, period: period(node).unwrap_or(DEFAULT_PERIOD) });
    }
    if declared("memory") {
        result.memory = all.get("memory").and_then(|q| u64::try_from(q.value()).ok()).map(Amount::Of);
    }
    result.hugepages = pod_pages(&asked, &node.limits.page_sizes);
    result
}

/// Huge pages of a pod: of each size that there is, none but what it asks for.
fn pod_pages(asked: &Resources, sizes: &[String]) -> BTreeMap<String, Amount> {
    let mut pages: BTreeMap<_, _> = sizes.iter().map(|size| (size.clone(), Amount::Of(0))).collect();
    pages.extend(hugepages(asked));
    pages
}

/// The period of CPU quotas in microseconds; none if quotas are not enforced.
fn period(node: &Node) -> Option<u64> {
    node.cpu_quota_period.and_then(|period| u64::try_from(period.as_micros()).ok())
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Who makes the node's cgroups.
pub fn driver(node: &Node) -> Driver {
    if node.systemd_cgroups { Driver::Systemd } else { Driver::Cgroupfs }
}

/// The cgroup of all pods.
pub fn pods_cgroup(node: &Node) -> Name {
    Name::from_path(&node.cgroup_root)
}

/// The cgroup that pods of a class are in.
pub fn class_cgroup(class: QosClass, node: &Node) -> Name {
    let pods = pods_cgroup(node);
    match class {
        QosClass::Guaranteed => pods,
        QosClass::Burstable => pods.child("burstable"),
        QosClass::BestEffort => pods.child("besteffort"),
    }
}

/// A pod's cgroup.
pub fn pod_cgroup(pod: &Pod, node: &Node) -> Name {
    class_cgroup(qos_class(pod), node).child(&format!("pod{}", spec::uid(pod)))
}

/// The cgroup of a pod below the hierarchy's root, as the runtime is told: `/kubepods/burstable/pod<uid>`, or the slice
/// of that name within those above it.
pub fn cgroup_parent(pod: &Pod, node: &Node) -> String {
    if node.cgroups_per_qos {
        return pod_cgroup(pod, node).path(driver(node));
    }
    match pods_cgroup(node).parent() {
        root if root.is_root() => String::new(),
        root => root.path(driver(node)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Node {
        let limits = Settings {
            unified: true,
            pids: Some(64),
            page_sizes: vec!["1GB".into(), "2MB".into()],
            kill_groups: true,
            swap: Swap::Limited(1 << 30),
        };
        let cpu_quota_period = Some(std::time::Duration::from_millis(100));
        Node { limits, cpu_quota_period, cgroups_per_qos: true, ..crate::make::tests::node() }
    }

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"uid": "1-2"}, "spec": spec})).unwrap()
    }

    fn of_first(pod: &Pod) -> cri::LinuxContainerResources {
        container_resources(pod, &spec::spec(pod).containers[0], &node())
    }

    #[test]
    fn limits_of_a_pod() {
        let limited = serde_json::json!({"limits": {"cpu": "500m", "memory": "64Mi", "hugepages-2Mi": "4Mi"},
            "requests": {"cpu": "250m", "hugepages-2Mi": "4Mi"}});
        let one = pod(serde_json::json!({"containers": [{"name": "a", "resources": limited}]}));
        let limits = pod_limits(&one, &node());
        assert_eq!(
            (limits.shares, limits.memory, limits.pids),
            (Some(256), Some(Amount::Of(64 << 20)), Some(Amount::Of(64)))
        );
        assert_eq!(limits.quota, Some(Quota { quota: Amount::Of(50_000), period: 100_000 }));
        let pages = [("1GB".to_owned(), Amount::Of(0)), ("2MB".to_owned(), Amount::Of(4 << 20))];
        assert_eq!(limits.hugepages, pages.into());
        // One container without a limit, and there is none for the pod.
        let two = pod(serde_json::json!({"containers": [{"name": "a", "resources": limited}, {"name": "b"}]}));
        let limits = pod_limits(&two, &node());
        assert_eq!((limits.shares, limits.memory, limits.quota), (Some(256), None, None));
        // Without CFS quotas one that was set before is lifted.
        let lifted = pod_limits(&one, &Node { cpu_quota_period: None, ..node() });
        assert_eq!(lifted.quota, Some(Quota { quota: Amount::Max, period: 100_000 }));
    }

    #[test]
    fn limits_of_the_pod_as_a_whole() {
        let whole =
            serde_json::json!({"requests": {"cpu": "1", "memory": "100Mi"}, "limits": {"cpu": "2", "memory": "200Mi"}});
        let own = serde_json::json!({"requests": {"cpu": "100m", "memory": "20Mi"}, "limits": {"memory": "30Mi"}});
        let pod = pod(
            serde_json::json!({"resources": whole, "containers": [{"name": "a"}, {"name": "b", "resources": own}]}),
        );
        let limits = pod_limits(&pod, &node());
        assert_eq!((limits.shares, limits.memory), (Some(1024), Some(Amount::Of(200 << 20))));
        assert_eq!(limits.quota, Some(Quota { quota: Amount::Of(200_000), period: 100_000 }));
        let of = |at: usize| container_resources(&pod, &spec::spec(&pod).containers[at], &node());
        // No request and no limit of its own: the pod's limit is both.
        assert_eq!((of(0).memory_limit_in_bytes, of(0).cpu_quota, of(0).cpu_shares), (200 << 20, 200_000, 2048));
        assert_eq!((of(1).memory_limit_in_bytes, of(1).cpu_quota, of(1).cpu_shares), (30 << 20, 200_000, 102));
        // What the pod asks for beyond its containers is shared out: (100 - 20) / 2 each, of 1 GiB.
        assert_eq!((of(0).oom_score_adj, of(1).oom_score_adj), (961, 942));
    }

    #[test]
    fn what_the_runtime_is_told_of_pages_groups_and_swap() {
        let asks = serde_json::json!({"requests": {"memory": "256Mi"}, "limits": {"hugepages-2Mi": "2Mi"}});
        let told = of_first(&pod(serde_json::json!({"containers": [{"name": "a", "resources": asks}]})));
        let pages: Vec<_> = told.hugepage_limits.iter().map(|l| (l.page_size.as_str(), l.limit)).collect();
        assert_eq!(pages, [("1GB", 0), ("2MB", 2 << 20)]);
        assert_eq!(told.unified["memory.oom.group"], "1");
        // A quarter of the memory, a quarter of the swap.
        assert_eq!(told.unified["memory.swap.max"], (256 << 20).to_string());
        let even = serde_json::json!({"requests": {"memory": "256Mi"}, "limits": {"memory": "256Mi"}});
        let told = of_first(&pod(serde_json::json!({"containers": [{"name": "a", "resources": even}, {"name": "b"}]})));
        assert_eq!(told.unified["memory.swap.max"], "0");
        let told = of_first(&pod(serde_json::json!({"containers": [{"name": "a"}]})));
        assert_eq!(told.unified["memory.swap.max"], "0");
        // In version 1 there is no swap, and it is said another way.
        let mut old = node();
        old.limits.unified = false;
        let pod = pod(serde_json::json!({"containers": [{"name": "a", "resources": {"limits": {"memory": "1Mi"}}}]}));
        let told = container_resources(&pod, &spec::spec(&pod).containers[0], &old);
        assert_eq!((told.memory_swap_limit_in_bytes, told.unified.len()), (1 << 20, 0));
    }

    #[test]
    fn names_of_cgroups() {
        let pod = pod(serde_json::json!({"containers": [{"name": "a"}]}));
        assert_eq!(cgroup_parent(&pod, &node()), "/kubepods/besteffort/pod1-2");
        let slices = Node { systemd_cgroups: true, ..node() };
        let want = "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice";
        assert_eq!(cgroup_parent(&pod, &slices), want);
        assert_eq!(cgroup_parent(&pod, &Node { cgroups_per_qos: false, ..node() }), "");
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
