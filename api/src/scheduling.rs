//! Where a pod may run: node selectors and affinity, tolerations, host ports.
//!
//! The scheduler, the daemon set controller, the node lifecycle controller and the kubelet's
//! admission ask the same questions; the answers live here, once.

use k8s_openapi::api::core::v1::{
    Container, Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Taint, Toleration,
};

use crate::node;

/// Effect of a taint that keeps new pods away.
pub const NO_SCHEDULE: &str = "NoSchedule";
/// Effect of a taint that also evicts running pods.
pub const NO_EXECUTE: &str = "NoExecute";
/// Effect of a taint that the scheduler avoids when it can.
pub const PREFER_NO_SCHEDULE: &str = "PreferNoSchedule";

/// Whether a node's labels and name satisfy the pod's `nodeSelector` and required node affinity.
pub fn matches_node_affinity(spec: &PodSpec, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let selected = spec
        .node_selector
        .iter()
        .flatten()
        .all(|(key, value)| labels.and_then(|l| l.get(key)).is_some_and(|have| have == value));
    if !selected {
        return false;
    }
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    match required {
        None => true,
        Some(selector) => selector.node_selector_terms.iter().any(|term| matches_node_selector_term(term, node)),
    }
}

/// Whether one term of a node selector matches; a term without requirements matches nothing.
pub fn matches_node_selector_term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|l| l.get(key)).map(String::as_str);
    let field = |key: &str| (key == "metadata.name").then_some(node.metadata.name.as_deref()).flatten();
    expressions.iter().all(|r| matches_requirement(r, label(&r.key)))
        && fields.iter().all(|r| matches_requirement(r, field(&r.key)))
}

fn matches_requirement(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let number = |text: &str| text.parse::<i64>().ok();
    let compare = |greater: bool| {
        let (Some(have), Some(limit)) = (value.and_then(number), values.first().and_then(|v| number(v))) else {
            return false;
        };
        if greater { have > limit } else { have < limit }
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|v| values.iter().any(|want| want == v)),
        "NotIn" => value.is_none_or(|v| values.iter().all(|want| want != v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(true),
        "Lt" => compare(false),
        _ => false,
    }
}

/// Whether any of the tolerations covers the taint.
pub fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|t| node::tolerates(t, taint))
}

/// A port that a pod takes on its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Address it binds; `0.0.0.0` for all.
    pub ip: String,
    /// Transport protocol in upper case.
    pub protocol: String,
    /// Port number.
    pub port: i32,
}

impl HostPort {
    /// Whether both cannot be bound on one node.
    pub fn conflicts(&self, other: &HostPort) -> bool {
        let any = |ip: &str| ip == "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || any(&self.ip) || any(&other.ip))
    }
}

/// Every host port that the pod's long-running containers take.
pub fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    spec.containers.iter().chain(sidecars).flat_map(container_host_ports).collect()
}

fn container_host_ports(container: &Container) -> impl Iterator<Item = HostPort> + '_ {
    container.ports.iter().flatten().filter_map(|port| {
        let number = port.host_port.filter(|n| *n > 0)?;
        let ip = port.host_ip.as_deref().filter(|ip| !ip.is_empty());
        Some(HostPort {
            ip: ip.unwrap_or("0.0.0.0").to_owned(),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            port: number,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements() {
        let with = |operator: &str, values: &[&str]| NodeSelectorRequirement {
            key: "k".into(),
            operator: operator.into(),
            values: Some(values.iter().map(|v| (*v).to_owned()).collect()),
        };
        assert!(matches_requirement(&with("In", &["a", "b"]), Some("b")));
        assert!(!matches_requirement(&with("In", &["a"]), None));
        assert!(matches_requirement(&with("NotIn", &["a"]), None));
        assert!(matches_requirement(&with("Gt", &["3"]), Some("4")));
        assert!(!matches_requirement(&with("Lt", &["3"]), Some("x")));
        assert!(!matches_requirement(&with("Near", &["3"]), Some("3")));
    }

    #[test]
    fn wildcard_address_conflicts_with_any() {
        let port = |ip: &str| HostPort { ip: ip.into(), protocol: "TCP".into(), port: 80 };
        assert!(port("0.0.0.0").conflicts(&port("10.0.0.1")));
        assert!(!port("10.0.0.2").conflicts(&port("10.0.0.1")));
    }
}
