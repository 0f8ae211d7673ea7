//! Whether this node takes a pod: a last look, after the scheduler's. Pure.

use std::collections::BTreeMap;
use std::fmt;

use bosun_api::node::untolerated;
use bosun_api::pod::{Resources, requests};
use bosun_api::quantity::Quantity;
use bosun_kubelet_upkeep::preemption::Missing;
use bosun_kubelet_upkeep::{critical, eviction, shutdown};
use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint};

use crate::make::security;
use crate::pod::{labels, spec};
use crate::sysctls::{self, Allowlist};
use crate::upkeep::Strain;

/// What a node has to offer.
#[derive(Clone, Debug, Default)]
pub struct Offer {
    /// Whether the Node object was seen yet; until then only what needs none of it is looked at.
    pub known: bool,
    /// The node's name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its taints.
    pub taints: Vec<Taint>,
    /// What pods may ask for in all; a resource that is not named is not looked at.
    pub allocatable: Resources,
    /// How many pods it takes.
    pub max_pods: usize,
    /// What keeps it from taking pods.
    pub strain: Strain,
    /// Whether its kernel confines by AppArmor.
    pub apparmor: bool,
    /// Whether its runtime can give processes exactly the groups that a pod names.
    pub strict_groups: bool,
    /// The kernel parameters that pods may set.
    pub sysctls: Allowlist,
}

/// Why a pod is refused: reason and message, as in the event about it.
pub type Refusal = (String, String);

/// Whether the node takes `pod` beside `others` (those that hold resources: not ended).
///
/// # Errors
/// The reason and message, in stock's words.
pub fn admit(pod: &Pod, others: &[&Pod], offer: &Offer) -> Result<(), Refusal> {
    let refuse = |reason: &str, message: String| Err((reason.to_owned(), message));
    let Strain { short_of, shutting_down } = &offer.strain;
    if !eviction::admits(pod, short_of) {
        return refuse(eviction::REASON, eviction::refusal_message(short_of));
    }
    if *shutting_down {
        return refuse(shutdown::REFUSAL_REASON, shutdown::REFUSAL_MESSAGE.to_owned());
    }
    if let Err(message) = offer.sysctls.check(pod) {
        return refuse(sysctls::REASON, message);
    }
    // As in stock: the pod's label is looked at, not its selector (a selector that does not fit is NodeAffinity).
    let labels = pod.metadata.labels.as_ref();
    if labels.and_then(|labels| labels.get("kubernetes.io/os")).is_some_and(|os| os != "linux") {
        let message = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        return refuse("PodOSSelectorNodeLabelDoesNotMatch", message.to_owned());
    }
    if spec::spec(pod).os.as_ref().is_some_and(|os| os.name != "linux") {
        let message = "Failed to admit pod as the OS field doesn't match node OS";
        return refuse("PodOSNotSupported", message.to_owned());
    }
    if security::needs_apparmor(pod) && !offer.apparmor {
        return refuse("AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host".to_owned());
    }
    if !offer.known {
        return Ok(());
    }
    if security::wants_strict_groups(pod) && !offer.strict_groups {
        let message = "SupplementalGroupsPolicy=Strict is not supported in this node";
        return refuse("SupplementalGroupsPolicyNotSupported", message.to_owned());
    }
    if let Some(shortage) = shortages(pod, others, offer).into_iter().next() {
        return refuse(&format!("OutOf{}", shortage.resource), shortage.to_string());
    }
    placement(pod, others, offer)
}

/// What is missing for a critical pod that would fit otherwise; none for any other pod. Less important pods may have to
/// make room for it.
pub fn room_to_make(pod: &Pod, others: &[&Pod], offer: &Offer) -> Option<Missing> {
    if !critical::is_critical(pod) || !offer.known || placement(pod, others, offer).is_err() {
        return None;
    }
    let shortages = shortages(pod, others, offer);
    let missing = shortages.into_iter().map(|s| (s.resource.clone(), s.requested + s.used - s.capacity)).collect();
    Some(Missing(missing)).filter(|missing| !missing.0.is_empty())
}

/// Whether the pod belongs on this node, whatever else runs there.
fn placement(pod: &Pod, others: &[&Pod], offer: &Offer) -> Result<(), Refusal> {
    let refuse = |reason: &str, message: String| Err((reason.to_owned(), message));
    if !selected(pod, offer) {
        return refuse(
            "NodeAffinity",
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector".into(),
        );
    }
    if host_ports(pod).iter().any(|port| others.iter().any(|other| host_ports(other).iter().any(|o| clash(port, o)))) {
        let message = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
        return refuse("NodePorts", message.into());
    }
    let tolerations = spec::spec(pod).tolerations.as_deref().unwrap_or_default();
    if !is_static(pod) && untolerated(&offer.taints, tolerations, &["NoExecute"]).is_some() {
        let message = "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate";
        return refuse("TaintToleration", message.into());
    }
    Ok(())
}

/// Whether the pod comes from the node itself: no taint keeps it off.
fn is_static(pod: &Pod) -> bool {
    spec::annotation(pod, labels::CONFIG_SOURCE).is_some_and(|source| source != "api")
}

/// A resource that the node has too little of for a pod, in its base unit (thousandths for cores).
pub(crate) struct Shortage {
    pub(crate) resource: String,
    requested: i64,
    used: i64,
    capacity: i64,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shortage { resource, requested, used, capacity } = self;
        write!(
            f,
            "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
        )
    }
}

/// What the node has too little of for `pod`, beside what `others` have.
pub(crate) fn shortages(pod: &Pod, others: &[&Pod], offer: &Offer) -> Vec<Shortage> {
    let mut found = Vec::new();
    if others.len() >= offer.max_pods {
        let (used, capacity) = (others.len() as i64, offer.max_pods as i64);
        found.push(Shortage { resource: "pods".to_owned(), requested: 1, used, capacity });
    }
    let wanted = requests(pod);
    let used = others.iter().fold(Resources::new(), |mut used, other| {
        bosun_api::pod::add(&mut used, &requests(other));
        used
    });
    for (name, wanted) in wanted.iter().filter(|(_, amount)| !amount.is_zero()) {
        let Some(capacity) = offer.allocatable.get(name) else { continue };
        let amount = |q: &Quantity| if name == "cpu" { q.milli_value() } else { q.value() };
        let used = amount(&used.get(name).cloned().unwrap_or_default());
        if used + amount(wanted) > amount(capacity) {
            let (requested, capacity) = (amount(wanted), amount(capacity));
            found.push(Shortage { resource: name.clone(), requested, used, capacity });
        }
    }
    found
}

/// Whether the pod's node selector and required node affinity fit.
fn selected(pod: &Pod, offer: &Offer) -> bool {
    let labels = &offer.labels;
    let by_selector = spec::spec(pod).node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let required = spec::spec(pod)
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    by_selector && required.is_none_or(|r| r.node_selector_terms.iter().any(|term| term_fits(term, offer)))
}

fn term_fits(term: &NodeSelectorTerm, offer: &Offer) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let by_name = |r: &NodeSelectorRequirement| r.key == "metadata.name" && fits(r, Some(&offer.name));
    // A term without requirements fits nothing.
    (!expressions.is_empty() || !fields.is_empty())
        && expressions.iter().all(|r| fits(r, offer.labels.get(&r.key)))
        && fields.iter().all(by_name)
}

fn fits(requirement: &NodeSelectorRequirement, value: Option<&String>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let number = |text: &String| text.parse::<i64>().ok();
    let compare = |wanted: fn(i64, i64) -> bool| {
        let pair = value.and_then(number).zip(values.first().and_then(number));
        pair.is_some_and(|(have, limit)| wanted(have, limit))
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|v| values.contains(v)),
        "NotIn" => value.is_none_or(|v| !values.contains(v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|have, limit| have > limit),
        "Lt" => compare(|have, limit| have < limit),
        _ => false,
    }
}

type HostPort<'a> = (&'a str, &'a str, i32);

fn host_ports(pod: &Pod) -> Vec<HostPort<'_>> {
    let sidecars = spec::init_containers(pod).iter().filter(|container| spec::is_sidecar(container));
    let containers = spec::spec(pod).containers.iter().chain(sidecars);
    let ports = containers.flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let number =
                port.host_port.or(spec::host_network(pod).then_some(port.container_port)).filter(|p| *p > 0)?;
            Some((port.host_ip.as_deref().unwrap_or("0.0.0.0"), port.protocol.as_deref().unwrap_or("TCP"), number))
        })
        .collect()
}

fn clash(a: &HostPort<'_>, b: &HostPort<'_>) -> bool {
    let anywhere = |ip: &str| matches!(ip, "" | "0.0.0.0" | "::");
    (a.1, a.2) == (b.1, b.2) && (anywhere(a.0) || anywhere(b.0) || a.0 == b.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bosun_kubelet_upkeep::signals::Condition;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn offer() -> Offer {
        Offer {
            known: true,
            name: "n".into(),
            labels: [("zone".to_owned(), "a".to_owned())].into(),
            allocatable: [("cpu".to_owned(), Quantity::from_milli(1000))].into(),
            max_pods: 2,
            ..Default::default()
        }
    }

    #[test]
    fn each_refusal_has_its_reason() {
        let half = json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "600m"}}, "ports": [{"containerPort": 80, "hostPort": 80}]}]});
        let running = pod(half.clone());
        let reason = |wanted: &Pod, others: &[&Pod]| admit(wanted, others, &offer()).map_err(|(reason, _)| reason);
        assert_eq!(reason(&running, &[]), Ok(()));
        assert_eq!(reason(&running, &[&running]), Err("OutOfcpu".into()));
        let (_, message) = admit(&running, &[&running], &offer()).unwrap_err();
        assert_eq!(message, "Node didn't have enough resource: cpu, requested: 600, used: 600, capacity: 1000");
        let port = pod(json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "hostPort": 80}]}]}));
        assert_eq!(reason(&port, &[&running]), Err("NodePorts".into()));
        assert_eq!(reason(&port, &[&port, &port]), Err("OutOfpods".into()));
        let elsewhere = pod(json!({"containers": [], "nodeSelector": {"zone": "b"}}));
        assert_eq!(reason(&elsewhere, &[]), Err("NodeAffinity".into()));
        let said = |wanted: &Pod, offer: &Offer| admit(wanted, &[], offer).unwrap_err();
        let windows = pod(json!({"containers": [], "os": {"name": "windows"}}));
        let os = ("PodOSNotSupported".into(), "Failed to admit pod as the OS field doesn't match node OS".into());
        assert_eq!(said(&windows, &offer()), os);
        let mut labelled = pod(json!({"containers": []}));
        labelled.metadata.labels = Some([("kubernetes.io/os".into(), "windows".into())].into());
        let label = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        assert_eq!(said(&labelled, &offer()), ("PodOSSelectorNodeLabelDoesNotMatch".into(), label.into()));
        let selector = pod(json!({"containers": [], "nodeSelector": {"kubernetes.io/os": "windows"}}));
        assert_eq!(reason(&selector, &[]), Err("NodeAffinity".into()));
        let tuning =
            pod(json!({"containers": [], "securityContext": {"sysctls": [{"name": "vm.swappiness", "value": "1"}]}}));
        let sysctl = "forbidden sysctl: \"vm.swappiness\" not allowlisted";
        assert_eq!(said(&tuning, &offer()), ("SysctlForbidden".into(), sysctl.into()));
        let sidecar = pod(
            json!({"containers": [], "initContainers": [{"name": "s", "restartPolicy": "Always", "ports": [{"containerPort": 80, "hostPort": 80}]}]}),
        );
        assert_eq!(reason(&sidecar, &[&port]), Err("NodePorts".into()));
        let strict = pod(json!({"containers": [], "securityContext": {"supplementalGroupsPolicy": "Strict"}}));
        let groups = "SupplementalGroupsPolicy=Strict is not supported in this node";
        assert_eq!(said(&strict, &offer()), ("SupplementalGroupsPolicyNotSupported".into(), groups.into()));
        let strained = |strain| admit(&running, &[], &Offer { strain, ..Offer::default() }).unwrap_err();
        let short = Strain { short_of: [Condition::Disk].into(), ..Strain::default() };
        assert_eq!(strained(short), ("Evicted".into(), "The node had condition: [DiskPressure]. ".into()));
        let ending = Strain { shutting_down: true, ..Strain::default() };
        let late = "Pod was rejected as the node is shutting down.";
        assert_eq!(strained(ending), ("NodeShutdown".into(), late.into()));
    }

    #[test]
    fn a_taint_that_evicts_keeps_off_all_but_static_pods() {
        let taint = |effect: &str| Taint { key: "broken".into(), effect: effect.into(), ..Taint::default() };
        let tainted = |effect: &str| Offer { taints: vec![taint(effect)], ..offer() };
        let mut common = pod(json!({"containers": []}));
        assert_eq!(
            admit(&common, &[], &tainted("NoExecute")),
            Err((
                "TaintToleration".into(),
                "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate".into()
            ))
        );
        assert_eq!(admit(&common, &[], &tainted("NoSchedule")), Ok(()), "that is the scheduler's business");
        let tolerant = pod(json!({"containers": [], "tolerations": [{"key": "broken", "operator": "Exists"}]}));
        assert_eq!(admit(&tolerant, &[], &tainted("NoExecute")), Ok(()));
        common.metadata.annotations = Some([(labels::CONFIG_SOURCE.to_owned(), "file".to_owned())].into());
        assert_eq!(admit(&common, &[], &tainted("NoExecute")), Ok(()));
    }

    #[test]
    fn room_is_made_for_critical_pods_alone() {
        let half = json!({"priority": 2_000_000_000, "containers": [{"name": "a", "resources": {"requests": {"cpu": "600m"}}}]});
        let critical = pod(half.clone());
        let missing = room_to_make(&critical, &[&critical, &critical], &offer()).unwrap();
        assert_eq!(missing.to_string(), "[(res: cpu, q: 800), (res: pods, q: 1), ]");
        assert_eq!(room_to_make(&critical, &[], &offer()), None);
        let common = pod(json!({"containers": half["containers"]}));
        assert_eq!(room_to_make(&common, &[&critical, &critical], &offer()), None);
        let elsewhere =
            pod(json!({"priority": 2_000_000_000, "containers": half["containers"], "nodeSelector": {"zone": "b"}}));
        assert_eq!(room_to_make(&elsewhere, &[&critical, &critical], &offer()), None);
    }
}
