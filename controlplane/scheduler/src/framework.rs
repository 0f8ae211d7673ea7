//! The seam of the scheduler: what a plug-in is, and how a decision is made of many.
//!
//! [`decide`] is pure: a snapshot and a pod go in, a [`Decision`] comes out.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::{Pod, PodSpec};

use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

/// The best a plug-in can say of a node.
pub const MAX_SCORE: i64 = 100;

/// What happened in the cluster, as a set; a pod that failed waits for the kinds that can help it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events(u16);

impl Events {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// A node appeared.
    pub const NODE_ADDED: Self = Self(1);
    /// A node's labels changed.
    pub const NODE_LABELS: Self = Self(1 << 1);
    /// A node's taints or `unschedulable` changed.
    pub const NODE_TAINTS: Self = Self(1 << 2);
    /// A node offers other amounts.
    pub const NODE_ALLOCATABLE: Self = Self(1 << 3);
    /// A pod was placed, or the labels of a placed one changed.
    pub const POD_PLACED: Self = Self(1 << 4);
    /// A placed pod is gone or takes less.
    pub const POD_REMOVED: Self = Self(1 << 5);
    /// A namespace's labels changed.
    pub const NAMESPACE: Self = Self(1 << 6);
    /// The pod itself changed.
    pub const POD_ITSELF: Self = Self(1 << 7);

    /// Both sets together.
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the sets share an event.
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// Why a node cannot take the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Name of the plug-in that says no.
    pub plugin: &'static str,
    /// The words that people know, one for each thing that is wrong.
    pub reasons: Vec<String>,
    /// Whether the removal of other pods could help.
    pub preemptible: bool,
}

/// One pod on its way to a node, with what every plug-in would otherwise work out again.
#[derive(Clone, Copy)]
pub struct Candidate<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its specification.
    pub spec: &'a PodSpec,
    /// The digest of it.
    pub info: &'a PodInfo,
}

/// A rule about where pods go.
pub trait Plugin: Send + Sync {
    /// The name by which configuration and people know it.
    fn name(&self) -> &'static str;

    /// Weight of its score.
    fn weight(&self) -> i64 {
        1
    }

    /// Events after which a pod that it rejected is worth another try.
    fn helped_by(&self) -> Events;

    /// Works out what one pod needs, once for all nodes; `None` if it has no say about this pod.
    ///
    /// # Errors
    /// A rejection that holds for every node.
    fn prepare<'a>(
        &self,
        candidate: Candidate<'a>,
        snapshot: &'a Snapshot,
    ) -> Result<Option<Box<dyn Rule + 'a>>, Rejection>;
}

/// A plug-in's say about one pod.
pub trait Rule {
    /// Whether the node can take the pod.
    ///
    /// # Errors
    /// Why it cannot.
    fn filter(&self, _node: &NodeInfo) -> Result<(), Rejection> {
        Ok(())
    }

    /// How well the node suits, on the plug-in's own scale; `None` if the rule does not score.
    fn score(&self, _node: &NodeInfo) -> Option<i64> {
        None
    }

    /// Brings the scores to 0..=[`MAX_SCORE`].
    fn normalize(&self, _scores: &mut [i64]) {}
}

/// Scales scores to the maximum; with `reverse`, the least becomes the best.
pub fn normalize_to_max(scores: &mut [i64], reverse: bool) {
    let max = scores.iter().copied().max().unwrap_or_default();
    for score in scores {
        let scaled = if max == 0 { 0 } else { *score * MAX_SCORE / max };
        *score = if reverse { MAX_SCORE - scaled } else { scaled };
    }
}

/// What to do with a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Bind it to this node.
    Bind(String),
    /// It fits nowhere now.
    Wait(Diagnosis),
}

/// Why a pod fits nowhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnosis {
    /// How many nodes there are.
    pub nodes: usize,
    /// Said of all nodes at once.
    pub everywhere: Option<String>,
    /// Said of each node.
    pub by_node: BTreeMap<String, Rejection>,
    /// Events that can help.
    pub helped_by: Events,
    /// What preemption had to say.
    pub preemption: Option<String>,
}

impl Diagnosis {
    /// Nodes that the removal of pods could open.
    pub fn preemptible(&self) -> impl Iterator<Item = &String> {
        self.by_node.iter().filter(|(_, r)| r.preemptible).map(|(name, _)| name)
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        write!(f, "0/{} nodes are available:", self.nodes)?;
        if let Some(everywhere) = &self.everywhere {
            write!(f, " {everywhere}.")?;
        } else {
            let reasons = self.by_node.values().flat_map(|r| &r.reasons);
            let histogram = histogram(reasons.map(String::as_str));
            if !histogram.is_empty() {
                write!(f, " {histogram}.")?;
            }
        }
        match &self.preemption {
            Some(said) => write!(f, " {said}"),
            None => Ok(()),
        }
    }
}

/// "2 Insufficient cpu, 1 node(s) were unschedulable", in the order people know (by text).
pub fn histogram<'a>(reasons: impl Iterator<Item = &'a str>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in reasons {
        *counts.entry(reason).or_default() += 1;
    }
    let mut lines: Vec<String> = counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    lines.sort();
    lines.join(", ")
}

/// The plug-ins' rules for one pod.
pub(crate) struct Rules<'a> {
    rules: Vec<(&'a dyn Plugin, Box<dyn Rule + 'a>)>,
}

impl<'a> Rules<'a> {
    pub(crate) fn prepare(
        plugins: &'a [Box<dyn Plugin>],
        candidate: Candidate<'a>,
        snapshot: &'a Snapshot,
    ) -> Result<Self, Rejection> {
        let mut rules = Vec::with_capacity(plugins.len());
        for plugin in plugins {
            if let Some(rule) = plugin.prepare(candidate, snapshot)? {
                rules.push((plugin.as_ref(), rule));
            }
        }
        Ok(Self { rules })
    }

    pub(crate) fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        self.rules.iter().try_for_each(|(_, rule)| rule.filter(node))
    }

    /// The best of the fitting nodes; equals are told apart by `tie`.
    fn choose(&self, fitting: &[&NodeInfo], tie: u64) -> String {
        let mut totals = vec![0i64; fitting.len()];
        for (plugin, rule) in &self.rules {
            let scores: Option<Vec<i64>> = fitting.iter().map(|node| rule.score(node)).collect();
            let Some(mut scores) = scores else { continue };
            rule.normalize(&mut scores);
            for (total, score) in totals.iter_mut().zip(scores) {
                *total += plugin.weight() * score;
            }
        }
        let best = totals.iter().copied().max().unwrap_or_default();
        let equals: Vec<&&NodeInfo> =
            fitting.iter().zip(&totals).filter(|(_, total)| **total == best).map(|(node, _)| node).collect();
        let index = usize::try_from(tie % equals.len() as u64).unwrap_or_default();
        equals[index].name.clone()
    }
}

/// Finds a node for a pod. `tie` picks among equals, so that the caller owns the dice.
pub fn decide(plugins: &[Box<dyn Plugin>], snapshot: &Snapshot, candidate: Candidate<'_>, tie: u64) -> Decision {
    let mut diagnosis =
        Diagnosis { nodes: snapshot.node_count(), helped_by: Events::NODE_ADDED, ..Diagnosis::default() };
    if diagnosis.nodes == 0 {
        return Decision::Wait(diagnosis);
    }
    let rules = match Rules::prepare(plugins, candidate, snapshot) {
        Ok(rules) => rules,
        Err(rejection) => {
            diagnosis.helped_by = diagnosis.helped_by.or(help_for(plugins, rejection.plugin));
            diagnosis.everywhere = Some(rejection.reasons.join(", "));
            return Decision::Wait(diagnosis);
        }
    };
    let mut fitting: Vec<&NodeInfo> = Vec::new();
    for node in snapshot.nodes() {
        match rules.filter(node) {
            Ok(()) => fitting.push(node),
            Err(rejection) => {
                diagnosis.helped_by = diagnosis.helped_by.or(help_for(plugins, rejection.plugin));
                diagnosis.by_node.insert(node.name.clone(), rejection);
            }
        }
    }
    match fitting.as_slice() {
        [] => Decision::Wait(diagnosis),
        [only] => Decision::Bind(only.name.clone()),
        several => Decision::Bind(rules.choose(several, tie)),
    }
}

fn help_for(plugins: &[Box<dyn Plugin>], name: &str) -> Events {
    plugins.iter().find(|p| p.name() == name).map_or(Events::NONE, |p| p.helped_by())
}
