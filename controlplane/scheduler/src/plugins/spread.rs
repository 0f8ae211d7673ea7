//! Spread over topology domains: the pod's own constraints, or the cluster's defaults.

use std::collections::{BTreeMap, HashMap};

use bosun_api::node::untolerated;
use bosun_api::scheduling::{NO_EXECUTE, NO_SCHEDULE, matches_node_affinity};
use bosun_api::selector;
use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::framework::{Candidate, Events, MAX_SCORE, Plugin, Rejection, Rule};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";
const NAME: &str = "PodTopologySpread";

/// Even spread over domains.
pub(super) struct PodTopologySpread;

struct SpreadRule<'a> {
    candidate: Candidate<'a>,
    hard: Vec<Constraint<'a>>,
    soft: Vec<Constraint<'a>>,
}

/// Which pods a constraint counts.
enum Counted {
    Selector(LabelSelector),
    Controller(String),
    Nothing,
}

struct Constraint<'a> {
    key: &'a str,
    max_skew: i64,
    min_domains: i64,
    counted: Counted,
    honor_affinity: bool,
    honor_taints: bool,
    /// Domain → matching pods in it.
    domains: BTreeMap<String, i64>,
    /// For the host name, counts by node, because each node is its own domain.
    counts: HashMap<String, i64>,
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        NAME
    }

    fn weight(&self) -> i64 {
        2
    }

    fn helped_by(&self) -> Events {
        Events::NODE_ADDED
            .or(Events::NODE_LABELS)
            .or(Events::NODE_TAINTS)
            .or(Events::POD_PLACED)
            .or(Events::POD_REMOVED)
            .or(Events::POD_ITSELF)
    }

    fn prepare<'a>(
        &self,
        candidate: Candidate<'a>,
        snapshot: &'a Snapshot,
    ) -> Result<Option<Box<dyn Rule + 'a>>, Rejection> {
        let own = candidate.spec.topology_spread_constraints.as_deref().unwrap_or_default();
        let (hard, soft): (Vec<_>, Vec<_>) = own.iter().partition(|c| c.when_unsatisfiable == "DoNotSchedule");
        let read = |list: Vec<&'a TopologySpreadConstraint>| -> Vec<Constraint<'a>> {
            list.into_iter().map(|c| Constraint::of(c, candidate)).collect()
        };
        let mut hard = read(hard);
        let mut soft = read(soft);
        if own.is_empty() {
            soft = defaults(candidate);
        }
        if hard.is_empty() && soft.is_empty() {
            return Ok(None);
        }
        count(&mut hard, candidate, snapshot, true);
        count(&mut soft, candidate, snapshot, !own.is_empty());
        Ok(Some(Box::new(SpreadRule { candidate, hard, soft })))
    }
}

/// The cluster's defaults: pods of one controller spread over hosts, and more loosely over zones.
fn defaults(candidate: Candidate<'_>) -> Vec<Constraint<'static>> {
    let Some(controller) = &candidate.info.controller else {
        return Vec::new();
    };
    let constraint = |key, max_skew| Constraint {
        key,
        max_skew,
        min_domains: 1,
        counted: Counted::Controller(controller.clone()),
        honor_affinity: true,
        honor_taints: false,
        domains: BTreeMap::new(),
        counts: HashMap::new(),
    };
    vec![constraint(HOSTNAME, 3), constraint(ZONE, 5)]
}

/// Counts matching pods by domain, over nodes that carry every key.
fn count(constraints: &mut [Constraint<'_>], candidate: Candidate<'_>, snapshot: &Snapshot, all_keys: bool) {
    let keys: Vec<String> = constraints.iter().map(|c| c.key.to_owned()).collect();
    for node in snapshot.nodes() {
        if all_keys && keys.iter().any(|key| node.label(key).is_none()) {
            continue;
        }
        for constraint in constraints.iter_mut() {
            let Some(domain) = node.label(constraint.key) else {
                continue;
            };
            if !constraint.includes(candidate, node) {
                continue;
            }
            let namespace = &candidate.info.namespace;
            let pods = node
                .pods
                .iter()
                .filter(|p| !p.terminating && p.namespace == *namespace && constraint.counts_pod(p))
                .count();
            let pods = i64::try_from(pods).unwrap_or(i64::MAX);
            *constraint.domains.entry(domain.to_owned()).or_default() += pods;
            constraint.counts.insert(node.name.clone(), pods);
        }
    }
}

impl<'a> Constraint<'a> {
    fn of(spec: &'a TopologySpreadConstraint, candidate: Candidate<'_>) -> Self {
        let counted = match &spec.label_selector {
            None => Counted::Nothing,
            Some(selector) => {
                let mut selector = selector.clone();
                for key in spec.match_label_keys.iter().flatten() {
                    if let Some(value) = candidate.info.labels.get(key) {
                        selector.match_labels.get_or_insert_default().insert(key.clone(), value.clone());
                    }
                }
                Counted::Selector(selector)
            }
        };
        Self {
            key: &spec.topology_key,
            max_skew: i64::from(spec.max_skew),
            min_domains: i64::from(spec.min_domains.unwrap_or(1)),
            counted,
            honor_affinity: spec.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: spec.node_taints_policy.as_deref() == Some("Honor"),
            domains: BTreeMap::new(),
            counts: HashMap::new(),
        }
    }

    fn includes(&self, candidate: Candidate<'_>, node: &NodeInfo) -> bool {
        let object = node.object();
        if self.honor_affinity && !matches_node_affinity(candidate.spec, object) {
            return false;
        }
        let taints = object.spec.as_ref().and_then(|s| s.taints.as_deref());
        let tolerations = candidate.spec.tolerations.as_deref().unwrap_or_default();
        !self.honor_taints || untolerated(taints.unwrap_or_default(), tolerations, &[NO_SCHEDULE, NO_EXECUTE]).is_none()
    }

    fn counts_pod(&self, pod: &PodInfo) -> bool {
        match &self.counted {
            Counted::Selector(s) => selector::matches(s, &pod.labels),
            Counted::Controller(uid) => pod.controller.as_ref() == Some(uid),
            Counted::Nothing => false,
        }
    }

    fn least(&self) -> i64 {
        let domains = i64::try_from(self.domains.len()).unwrap_or(i64::MAX);
        if domains < self.min_domains {
            return 0;
        }
        self.domains.values().copied().min().unwrap_or_default()
    }
}

impl Rule for SpreadRule<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        for constraint in &self.hard {
            let Some(domain) = node.label(constraint.key) else {
                return Err(Rejection {
                    plugin: NAME,
                    reasons: vec![
                        "node(s) didn't match pod topology spread constraints (missing required label)".to_owned(),
                    ],
                    preemptible: false,
                });
            };
            let have = constraint.domains.get(domain).copied().unwrap_or_default();
            let own = i64::from(constraint.counts_pod(self.candidate.info));
            if have + own - constraint.least() > constraint.max_skew {
                return Err(Rejection {
                    plugin: NAME,
                    reasons: vec!["node(s) didn't match pod topology spread constraints".to_owned()],
                    preemptible: true,
                });
            }
        }
        Ok(())
    }

    fn score(&self, node: &NodeInfo) -> Option<i64> {
        if self.soft.is_empty() {
            return None;
        }
        let mut sum = 0.0;
        for constraint in &self.soft {
            let Some(domain) = node.label(constraint.key) else {
                continue;
            };
            let have = if constraint.key == HOSTNAME {
                constraint.counts.get(&node.name).copied()
            } else {
                constraint.domains.get(domain).copied()
            };
            let weight = (constraint.domains.len() as f64 + 2.0).ln();
            sum += have.unwrap_or_default() as f64 * weight + (constraint.max_skew - 1) as f64;
        }
        Some(sum.round() as i64)
    }

    fn normalize(&self, scores: &mut [i64]) {
        let max = scores.iter().copied().max().unwrap_or_default();
        let min = scores.iter().copied().min().unwrap_or_default();
        for score in scores {
            *score = if max == 0 { MAX_SCORE } else { MAX_SCORE * (max + min - *score) / max };
        }
    }
}
