//! In-place resize (KEP-1287): what a pod asks for, what the node has granted it, and what its containers were given.
//!
//! The API server takes a resize at any time; the node grants it, defers it until there is room, or says that it never
//! will. Everything else in the kubelet sees the pod with what was granted. Pure.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use bosun_api::pod::requests;
use bosun_api::quantity::{self, Quantity};
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use serde::{Deserialize, Serialize};

use super::plan::Resized;
use super::spec;
use crate::admission::{self, Offer};

/// The resources that may change while a container runs.
const RESIZABLE: [&str; 2] = ["cpu", "memory"];

/// What the node has granted, and what it has brought about; kept on disk, so that a restart of the kubelet neither
/// grants what was deferred nor forgets what is under way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Allocation {
    /// By container.
    pub granted: BTreeMap<String, ResourceRequirements>,
    /// To the pod as a whole (KEP-2837), if it asks for any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole: Option<ResourceRequirements>,
    /// What was last given to the runtime, by container id; and to the pod as a whole by [`WHOLE`], once that changed.
    pub applied: BTreeMap<String, ResourceRequirements>,
}

/// What stands for the pod as a whole where containers go by their id.
pub const WHOLE: &str = "";

impl Allocation {
    /// What the pod's definition asks for.
    pub fn of(pod: &Pod) -> Self {
        let granted = spec::containers(pod).map(|(_, c)| (c.name.clone(), resources(c).clone()));
        Self { granted: granted.collect(), whole: spec::spec(pod).resources.clone(), applied: BTreeMap::new() }
    }

    /// Whether there is anything in it worth keeping.
    pub fn is_trivial(&self) -> bool {
        self.whole.is_none() && self.granted.values().all(|resources| *resources == ResourceRequirements::default())
    }

    /// Whether the pod asks for something else than was granted to it.
    pub fn differs(&self, pod: &Pod) -> bool {
        let other =
            |container: &Container| self.granted.get(&container.name).is_some_and(|g| g != resources(container));
        self.whole != spec::spec(pod).resources || spec::containers(pod).any(|(_, container)| other(container))
    }

    /// Takes what a pod asks for as granted.
    pub fn grant(&mut self, pod: &Pod) {
        let Self { granted, whole, .. } = Self::of(pod);
        let before = std::mem::replace(&mut self.whole, whole);
        if before != self.whole {
            self.applied.entry(WHOLE.to_owned()).or_insert_with(|| before.unwrap_or_default());
        }
        self.granted = granted;
    }

    /// Gives the pod the resources that were granted, in place of those that it asks for.
    pub fn impose(&self, pod: &mut Pod) {
        let Some(spec) = &mut pod.spec else { return };
        spec.resources.clone_from(&self.whole);
        for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
            if let Some(granted) = self.granted.get(&container.name) {
                let trivial = *granted == ResourceRequirements::default();
                container.resources = (!trivial || container.resources.is_some()).then(|| granted.clone());
            }
        }
    }
}

/// Whether the two definitions of a pod ask for different resources. Asked with every news of a pod.
pub fn differs(one: &Pod, other: &Pod) -> bool {
    let all = |pod| spec::containers(pod).map(|(_, container)| resources(container));
    spec::spec(one).resources != spec::spec(other).resources || !all(one).eq(all(other))
}

/// What the container asks for; nothing where it does not say.
fn resources(container: &Container) -> &ResourceRequirements {
    static NOTHING: LazyLock<ResourceRequirements> = LazyLock::new(ResourceRequirements::default);
    container.resources.as_ref().unwrap_or(&NOTHING)
}

/// The node's answer to a resize.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It has the resources from now on.
    Granted,
    /// Not now; asked again when there is more room.
    Deferred(String),
    /// Never on this node.
    Infeasible(String),
}

impl Answer {
    /// The reason of the condition `PodResizePending`, and its message; none when nothing is pending.
    pub fn pending(&self) -> Option<(&'static str, &str)> {
        match self {
            Self::Granted => None,
            Self::Deferred(message) => Some(("Deferred", message)),
            Self::Infeasible(message) => Some(("Infeasible", message)),
        }
    }
}

/// Whether the node can give `pod` what it asks for beside what was granted to `others`.
pub fn judge(pod: &Pod, others: &[&Pod], offer: &Offer) -> Answer {
    let wanted = requests(pod);
    for name in RESIZABLE {
        let (Some(wanted), Some(capacity)) = (wanted.get(name), offer.allocatable.get(name)) else { continue };
        let amount = |q: &Quantity| if name == "cpu" { q.milli_value() } else { q.value() };
        if amount(wanted) > amount(capacity) {
            return Answer::Infeasible(format!(
                "Node didn't have enough capacity: {name}, requested: {}, capacity: {}",
                amount(wanted),
                amount(capacity)
            ));
        }
    }
    let shortages = admission::shortages(pod, others, offer);
    match shortages.iter().find(|short| RESIZABLE.contains(&short.resource.as_str())) {
        None => Answer::Granted,
        Some(short) => Answer::Deferred(short.to_string()),
    }
}

/// What has to be done to a running container that was given `applied`, so that it has what was granted; none if
/// nothing. (No record of what it was given means what was granted when it started.)
pub fn action(container: &Container, applied: Option<&ResourceRequirements>) -> Option<Resized> {
    let applied = applied?;
    let granted = resources(container);
    let changed = |name: &str| {
        let of = |r: &ResourceRequirements| {
            (quantity::get(r.requests.as_ref(), name), quantity::get(r.limits.as_ref(), name))
        };
        of(applied) != of(granted)
    };
    let changed: Vec<&str> = RESIZABLE.into_iter().filter(|name| changed(name)).collect();
    let policies = container.resize_policy.iter().flatten();
    let restarts = policies.filter(|p| p.restart_policy == "RestartContainer").map(|p| p.resource_name.as_str());
    match changed.as_slice() {
        [] => None,
        changed if restarts.into_iter().any(|name| changed.contains(&name)) => Some(Resized::Restart),
        _ => Some(Resized::Update),
    }
}

/// Whether the pod as a whole has yet to get what it was granted. (No record means that it had that from its start.)
pub fn is_whole_behind(pod: &Pod, applied: &BTreeMap<String, ResourceRequirements>) -> bool {
    let granted = spec::spec(pod).resources.as_ref();
    applied.get(WHOLE).is_some_and(|applied| granted.is_some_and(|granted| granted != applied))
}

/// The text of an event about a resize, as stock writes it: a few words and the resources as JSON.
pub fn message(what: &str, pod: &Pod, error: &str) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Summary<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        resources: Option<&'a ResourceRequirements>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        init_containers: Vec<Share<'a>>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        containers: Vec<Share<'a>>,
        generation: i64,
        #[serde(skip_serializing_if = "str::is_empty")]
        error: &'a str,
    }
    #[derive(Serialize)]
    struct Share<'a> {
        name: &'a str,
        resources: &'a ResourceRequirements,
    }
    fn share(container: &Container) -> Share<'_> {
        Share { name: &container.name, resources: resources(container) }
    }
    let summary = Summary {
        resources: spec::spec(pod).resources.as_ref(),
        init_containers: spec::init_containers(pod).iter().map(share).collect(),
        containers: spec::spec(pod).containers.iter().map(share).collect(),
        generation: pod.metadata.generation.unwrap_or_default(),
        error,
    };
    match serde_json::to_string(&summary) {
        Ok(text) => format!("Pod resize {what}: {text}"),
        Err(_) => format!("Pod resize {what}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(cpu: &str, policy: Value) -> Pod {
        let resources = json!({"requests": {"cpu": cpu, "memory": "64Mi"}});
        serde_json::from_value(json!({"metadata": {"generation": 2}, "spec": {"containers": [
            {"name": "a", "resources": resources, "resizePolicy": policy}]}}))
        .unwrap()
    }

    fn offer(cpu: &str) -> Offer {
        let allocatable = [("cpu".to_owned(), cpu.parse().unwrap())].into();
        Offer { known: true, allocatable, ..Offer::default() }
    }

    #[test]
    fn a_resize_is_granted_deferred_or_refused() {
        let (small, big) = (pod("1", json!([])), pod("3", json!([])));
        assert_eq!(judge(&big, &[&small], &offer("4")), Answer::Granted);
        assert_eq!(
            judge(&big, &[&small], &offer("3")),
            Answer::Deferred(
                "Node didn't have enough resource: cpu, requested: 3000, used: 1000, capacity: 3000".into()
            )
        );
        assert_eq!(
            judge(&big, &[], &offer("2")),
            Answer::Infeasible("Node didn't have enough capacity: cpu, requested: 3000, capacity: 2000".into())
        );
    }

    #[test]
    fn what_was_granted_stands_until_more_is() {
        let (old, mut new) = (pod("1", json!([])), pod("2", json!([])));
        let allocation = Allocation::of(&old);
        assert!(differs(&old, &new) && allocation.differs(&new) && !allocation.differs(&old));
        allocation.impose(&mut new);
        assert!(!differs(&old, &new) && !allocation.differs(&new));
        let text = serde_json::to_string(&allocation).unwrap();
        assert_eq!(serde_json::from_str::<Allocation>(&text).unwrap(), allocation);
    }

    #[test]
    fn what_the_pod_as_a_whole_was_granted_stands_too() {
        let whole = |cpu: &str| {
            let mut pod = pod("1", json!([]));
            let resources = json!({"limits": {"cpu": cpu}, "requests": {"cpu": cpu}});
            pod.spec.as_mut().unwrap().resources = Some(serde_json::from_value(resources).unwrap());
            pod
        };
        let (old, mut new) = (whole("2"), whole("3"));
        let mut allocation = Allocation::of(&old);
        assert!(differs(&old, &new) && allocation.differs(&new) && !allocation.is_trivial());
        assert!(matches!(judge(&new, &[], &offer("2")), Answer::Infeasible(_)));
        let wanted = new.clone();
        allocation.impose(&mut new);
        assert_eq!(new, old);
        // Once granted it is brought about; what there was is remembered until then.
        allocation.grant(&wanted);
        assert!(is_whole_behind(&wanted, &allocation.applied) && !allocation.differs(&wanted));
        allocation.applied.insert(WHOLE.to_owned(), spec::spec(&wanted).resources.clone().unwrap());
        assert!(!is_whole_behind(&wanted, &allocation.applied));
        // What an older kubelet kept says nothing of it.
        let text = r#"{"granted": {}, "applied": {}}"#;
        assert_eq!(serde_json::from_str::<Allocation>(text).unwrap(), Allocation::default());
    }

    #[test]
    fn the_policy_of_what_changed_decides() {
        let of = |pod: &Pod| spec::spec(pod).containers[0].resources.clone();
        let memory_restarts = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
        let cpu_restarts = json!([{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]);
        let before = of(&pod("1", json!([])));
        let now = |policy| action(&spec::spec(&pod("2", policy)).containers[0], before.as_ref());
        assert_eq!(now(memory_restarts.clone()), Some(Resized::Update));
        assert_eq!(now(cpu_restarts), Some(Resized::Restart));
        assert_eq!(
            action(&spec::spec(&pod("1000m", json!([]))).containers[0], before.as_ref()),
            None,
            "the same amount"
        );
        assert_eq!(action(&spec::spec(&pod("2", json!([]))).containers[0], None), None);
    }

    #[test]
    fn events_are_in_stocks_form() {
        assert_eq!(
            message("started", &pod("2", json!([])), ""),
            r#"Pod resize started: {"containers":[{"name":"a","resources":{"requests":{"cpu":"2","memory":"64Mi"}}}],"generation":2}"#
        );
    }
}
