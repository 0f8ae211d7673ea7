//! Rules that look at one node alone: its name, `unschedulable`, taints, labels, ports.

use bosun_api::node::untolerated;
use bosun_api::scheduling::{
    NO_EXECUTE, NO_SCHEDULE, PREFER_NO_SCHEDULE, matches_node_affinity, matches_node_selector_term, tolerates,
};
use k8s_openapi::api::core::v1::{PreferredSchedulingTerm, Taint, Toleration};

use crate::framework::{Candidate, Events, Plugin, Rejection, Rule, normalize_to_max};
use crate::snapshot::{NodeInfo, Snapshot};

fn reject(plugin: &'static str, reason: &str, preemptible: bool) -> Rejection {
    Rejection { plugin, reasons: vec![reason.to_owned()], preemptible }
}

/// `spec.nodeName` of a pod that asks for a node by name.
pub(super) struct NodeName;

struct NodeNameRule<'a>(&'a str);

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn helped_by(&self) -> Events {
        Events::NODE_ADDED
    }

    fn prepare<'a>(&self, candidate: Candidate<'a>, _: &'a Snapshot) -> Result<Option<Box<dyn Rule + 'a>>, Rejection> {
        let wanted = candidate.spec.node_name.as_deref().unwrap_or_default();
        Ok((!wanted.is_empty()).then(|| Box::new(NodeNameRule(wanted)) as Box<dyn Rule>))
    }
}

impl Rule for NodeNameRule<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if node.name == self.0 {
            return Ok(());
        }
        Err(reject("NodeName", "node(s) didn't match the requested node name", false))
    }
}

/// Cordoned nodes.
pub(super) struct NodeUnschedulable;

struct NodeUnschedulableRule {
    tolerated: bool,
}

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn helped_by(&self) -> Events {
        Events::NODE_ADDED.or(Events::NODE_TAINTS)
    }

    fn prepare<'a>(&self, candidate: Candidate<'a>, _: &'a Snapshot) -> Result<Option<Box<dyn Rule + 'a>>, Rejection> {
        let taint = Taint {
            key: "node.kubernetes.io/unschedulable".to_owned(),
            effect: NO_SCHEDULE.to_owned(),
            ..Taint::default()
        };
        let tolerations = candidate.spec.tolerations.as_deref().unwrap_or_default();
        Ok(Some(Box::new(NodeUnschedulableRule { tolerated: tolerates(tolerations, &taint) })))
    }
}

impl Rule for NodeUnschedulableRule {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let spec = node.object().spec.as_ref();
        let cordoned = spec.and_then(|s| s.unschedulable).unwrap_or_default();
        if !cordoned || self.tolerated {
            return Ok(());
        }
        Err(reject("NodeUnschedulable", "node(s) were unschedulable", false))
    }
}

/// Taints and tolerations.
pub(super) struct TaintToleration;

struct TaintRule<'a>(&'a [Toleration]);

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn weight(&self) -> i64 {
        3
    }

    fn helped_by(&self) -> Events {
        Events::NODE_ADDED.or(Events::NODE_TAINTS).or(Events::POD_ITSELF)
    }

    fn prepare<'a>(&self, candidate: Candidate<'a>, _: &'a Snapshot) -> Result<Option<Box<dyn Rule + 'a>>, Rejection> {
        let tolerations = candidate.spec.tolerations.as_deref().unwrap_or_default();
        Ok(Some(Box::new(TaintRule(tolerations))))
    }
}

fn taints(node: &NodeInfo) -> &[Taint] {
    let spec = node.object().spec.as_ref();
    spec.and_then(|s| s.taints.as_deref()).unwrap_or_default()
}

impl Rule for TaintRule<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        match untolerated(taints(node), self.0, &[NO_SCHEDULE, NO_EXECUTE]) {
            None => Ok(()),
            Some(_) => Err(reject("TaintToleration", "node(s) had untolerated taint(s)", false)),
        }
    }

    fn score(&self, node: &NodeInfo) -> Option<i64> {
        let avoided = taints(node).iter().filter(|t| t.effect == PREFER_NO_SCHEDULE && !tolerates(self.0, t)).count();
        i64::try_from(avoided).ok()
    }

    fn normalize(&self, scores: &mut [i64]) {
        normalize_to_max(scores, true);
    }
}

/// `nodeSelector` and node affinity.
pub(super) struct NodeAffinity;

struct NodeAffinityRule<'a> {
    candidate: Candidate<'a>,
    preferred: &'a [PreferredSchedulingTerm],
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn helped_by(&self) -> Events {
        Events::NODE_ADDED.or(Events::NODE_LABELS).or(Events::POD_ITSELF)
    }

    fn prepare<'a>(&self, candidate: Candidate<'a>, _: &'a Snapshot) -> Result<Option<Box<dyn Rule + 'a>>, Rejection> {
        let affinity = candidate.spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
        if affinity.is_none() && candidate.spec.node_selector.is_none() {
            return Ok(None);
        }
        let preferred = affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref());
        Ok(Some(Box::new(NodeAffinityRule { candidate, preferred: preferred.unwrap_or_default() })))
    }
}

impl Rule for NodeAffinityRule<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if matches_node_affinity(self.candidate.spec, node.object()) {
            return Ok(());
        }
        Err(reject("NodeAffinity", "node(s) didn't match Pod's node affinity/selector", false))
    }

    fn score(&self, node: &NodeInfo) -> Option<i64> {
        let matching = self.preferred.iter().filter(|p| matches_node_selector_term(&p.preference, node.object()));
        Some(matching.map(|p| i64::from(p.weight)).sum())
    }

    fn normalize(&self, scores: &mut [i64]) {
        normalize_to_max(scores, false);
    }
}

/// Host ports.
pub(super) struct NodePorts;

struct NodePortsRule<'a>(Candidate<'a>);

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn helped_by(&self) -> Events {
        Events::NODE_ADDED.or(Events::POD_REMOVED)
    }

    fn prepare<'a>(&self, candidate: Candidate<'a>, _: &'a Snapshot) -> Result<Option<Box<dyn Rule + 'a>>, Rejection> {
        let any = !candidate.info.ports.is_empty();
        Ok(any.then(|| Box::new(NodePortsRule(candidate)) as Box<dyn Rule>))
    }
}

impl Rule for NodePortsRule<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let wanted = &self.0.info.ports;
        let taken = node.pods.iter().flat_map(|p| &p.ports);
        if taken.into_iter().all(|t| !wanted.iter().any(|w| w.conflicts(t))) {
            return Ok(());
        }
        Err(reject("NodePorts", "node(s) didn't have free ports for the requested pod ports", true))
    }
}
