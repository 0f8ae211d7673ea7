//! What a Pod says about itself: phase, conditions, class of service, what it asks for.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodCondition, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::quantity::{self, Quantity};

/// Amounts by resource name.
pub type Resources = BTreeMap<String, Quantity>;

/// The phase, empty when none was reported.
#[must_use]
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// Whether all containers have ended for good (`Succeeded` or `Failed`).
#[must_use]
pub fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether deletion was asked for.
#[must_use]
pub fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// The condition of a type.
#[must_use]
pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

/// Whether a condition is there and `True`.
#[must_use]
pub fn condition_is_true(pod: &Pod, kind: &str) -> bool {
    condition(pod, kind).is_some_and(|condition| condition.status == "True")
}

/// Whether the pod can serve.
#[must_use]
pub fn is_ready(pod: &Pod) -> bool {
    condition_is_true(pod, "Ready")
}

/// Puts a condition in the place of the one of its type. The time of transition stays when the status does.
///
/// Returns whether anything changed.
pub fn set_condition(status: &mut PodStatus, mut condition: PodCondition) -> bool {
    let conditions = status.conditions.get_or_insert_default();
    match conditions.iter_mut().find(|old| old.type_ == condition.type_) {
        None => conditions.push(condition),
        Some(old) => {
            if old.status == condition.status {
                condition.last_transition_time.clone_from(&old.last_transition_time);
            }
            if *old == condition {
                return false;
            }
            *old = condition;
        }
    }
    true
}

/// The owner that manages the pod.
#[must_use]
pub fn controller(pod: &Pod) -> Option<&OwnerReference> {
    controller_of(pod.metadata.owner_references.as_deref())
}

/// The one among owners that manages the object.
#[must_use]
pub fn controller_of(owners: Option<&[OwnerReference]>) -> Option<&OwnerReference> {
    owners.unwrap_or_default().iter().find(|owner| owner.controller == Some(true))
}

/// Whether the pod is a kubelet's own, or its mirror.
#[must_use]
pub fn is_static(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    let source = annotations.and_then(|all| all.get("kubernetes.io/config.source"));
    source.is_some_and(|source| source != "api") || is_mirror(pod)
}

/// Whether the pod mirrors a kubelet's own.
#[must_use]
pub fn is_mirror(pod: &Pod) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key("kubernetes.io/config.mirror"))
}

/// Whether an init container keeps running beside the main ones (KEP-753).
#[must_use]
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The class of service that decides who is evicted first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum QosClass {
    /// Asks for nothing.
    BestEffort,
    /// Asks for something.
    Burstable,
    /// Every container has equal requests and limits for CPU and memory.
    Guaranteed,
}

impl QosClass {
    /// As it stands in `status.qosClass`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BestEffort => "BestEffort",
            Self::Burstable => "Burstable",
            Self::Guaranteed => "Guaranteed",
        }
    }
}

/// The class of service of a pod.
#[must_use]
pub fn qos_class(pod: &Pod) -> QosClass {
    pod.spec.as_ref().map_or(QosClass::BestEffort, qos_class_of)
}

/// The class of service that a spec leads to.
#[must_use]
pub fn qos_class_of(spec: &PodSpec) -> QosClass {
    let counted = ["cpu", "memory"];
    let (mut any, mut guaranteed) = (false, true);
    let of_pod = spec.resources.as_ref().filter(|resources| resources.requests.is_some() || resources.limits.is_some());
    let containers = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let all: Vec<_> = match of_pod {
        Some(resources) => vec![Some(resources)],
        None => containers().map(|container| container.resources.as_ref()).collect(),
    };
    for resources in all {
        for name in counted {
            let limit = quantity::get(resources.and_then(|resources| resources.limits.as_ref()), name);
            let request =
                resources.and_then(|resources| resources.requests.as_ref()).filter(|all| all.contains_key(name));
            let request = if request.is_some() { quantity::get(request, name) } else { limit };
            any |= !request.is_zero() || !limit.is_zero();
            guaranteed &= !limit.is_zero() && request == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    }
}

/// What a pod asks the scheduler for: the greater of what its containers need together and what any init container
/// needs at its time, with the overhead of its runtime class (KEP-753, KEP-2837).
#[must_use]
pub fn requests(pod: &Pod) -> Resources {
    pod.spec.as_ref().map(|spec| effective(spec, container_requests, |all| all.requests.as_ref())).unwrap_or_default()
}

/// What a pod may use at most; a resource without a limit in some container has none here either way.
#[must_use]
pub fn limits(pod: &Pod) -> Resources {
    pod.spec.as_ref().map(|spec| effective(spec, container_limits, |all| all.limits.as_ref())).unwrap_or_default()
}

/// A container's requests; where there is none, its limit counts.
#[must_use]
pub fn container_requests(container: &Container) -> Resources {
    let mut all = container_limits(container);
    let requests = container.resources.iter().flat_map(|resources| resources.requests.iter().flatten());
    all.extend(requests.map(|(name, amount)| (name.clone(), quantity::of(amount))));
    all
}

/// A container's limits.
#[must_use]
pub fn container_limits(container: &Container) -> Resources {
    let limits = container.resources.iter().flat_map(|resources| resources.limits.iter().flatten());
    limits.map(|(name, amount)| (name.clone(), quantity::of(amount))).collect()
}

type Amounts = BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>;

fn effective(
    spec: &PodSpec,
    of: impl Fn(&Container) -> Resources,
    list: impl Fn(&k8s_openapi::api::core::v1::ResourceRequirements) -> Option<&Amounts>,
) -> Resources {
    let mut running = Resources::new();
    for container in &spec.containers {
        add(&mut running, &of(container));
    }
    // Sidecars started so far run on while later init containers have their turn.
    let (mut sidecars, mut peak) = (Resources::new(), Resources::new());
    for container in spec.init_containers.iter().flatten() {
        let mut now = of(container);
        if is_sidecar(container) {
            add(&mut running, &now);
            add(&mut sidecars, &now);
            raise(&mut peak, &sidecars);
        } else {
            add(&mut now, &sidecars);
            raise(&mut peak, &now);
        }
    }
    raise(&mut running, &peak);
    // Pod-level resources stand in the place of the sum.
    for (name, amount) in spec.resources.as_ref().and_then(list).into_iter().flatten() {
        running.insert(name.clone(), quantity::of(amount));
    }
    for (name, amount) in spec.overhead.iter().flatten() {
        *running.entry(name.clone()).or_default() += quantity::of(amount);
    }
    running
}

/// Adds amounts to others.
pub fn add(total: &mut Resources, more: &Resources) {
    for (name, amount) in more {
        *total.entry(name.clone()).or_default() += *amount;
    }
}

/// Raises amounts to at least others.
pub fn raise(total: &mut Resources, floor: &Resources) {
    for (name, amount) in floor {
        let entry = total.entry(name.clone()).or_insert(*amount);
        *entry = (*entry).max(*amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"spec": spec})).unwrap()
    }

    #[test]
    fn classes_of_service() {
        let class = |resources| qos_class(&pod(json!({"containers": [{"name": "a", "resources": resources}]})));
        assert_eq!(class(json!({})), QosClass::BestEffort);
        assert_eq!(class(json!({"requests": {"cpu": "1"}})), QosClass::Burstable);
        assert_eq!(class(json!({"limits": {"cpu": "1", "memory": "1Gi"}})), QosClass::Guaranteed);
        assert_eq!(
            class(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}})),
            QosClass::Guaranteed
        );
        assert_eq!(
            class(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1m"}})),
            QosClass::Burstable
        );
        assert_eq!(class(json!({"limits": {"example.com/gpu": "1"}})), QosClass::BestEffort);
    }

    #[test]
    fn requests_take_the_peak() {
        let pod = pod(json!({
            "overhead": {"cpu": "10m"},
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
                {"name": "i", "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}}},
            ],
            "containers": [
                {"name": "a", "resources": {"requests": {"cpu": "200m"}}},
                {"name": "b", "resources": {"requests": {"cpu": "300m"}}},
            ],
        }));
        let requests = requests(&pod);
        assert_eq!(requests["cpu"].to_string(), "1110m");
        assert_eq!(requests["memory"].to_string(), "1Gi");
    }

    #[test]
    fn conditions_keep_their_time() {
        let mut status = PodStatus::default();
        let ready = |status: &str, reason: &str| PodCondition {
            type_: "Ready".into(),
            status: status.into(),
            reason: Some(reason.into()),
            ..Default::default()
        };
        assert!(set_condition(&mut status, ready("False", "a")));
        assert!(!set_condition(&mut status, ready("False", "a")));
        assert!(set_condition(&mut status, ready("False", "b")));
        assert!(set_condition(&mut status, ready("True", "b")));
        assert_eq!(status.conditions.unwrap().len(), 1);
    }
}
