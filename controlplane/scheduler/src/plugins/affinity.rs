//! Affinity and anti-affinity between pods, in both directions.

use std::collections::HashMap;

use bosun_api::selector;
use k8s_openapi::api::core::v1::{Affinity, PodAffinityTerm, WeightedPodAffinityTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use crate::framework::{Candidate, Events, MAX_SCORE, Plugin, Rejection, Rule};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

const NAME: &str = "InterPodAffinity";
/// What a required affinity of a running pod counts for when another is scored.
const HARD_AFFINITY_WEIGHT: i64 = 1;

/// Pods that want to be together, or apart.
pub(super) struct InterPodAffinity;

/// (topology key, value) → weight or count.
type Domains = HashMap<(String, String), i64>;

struct AffinityRule {
    /// For each required term, domains that hold a match.
    together: Vec<(String, Domains)>,
    /// No pod matches anywhere, and the pod would match itself: the first of a group.
    first: bool,
    apart: Domains,
    apart_keys: Vec<String>,
    /// Domains that a running pod wants free of this one.
    forbidden: Domains,
    preferred: Domains,
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        NAME
    }

    fn weight(&self) -> i64 {
        2
    }

    fn helped_by(&self) -> Events {
        Events::NODE_ADDED
            .or(Events::NODE_LABELS)
            .or(Events::POD_PLACED)
            .or(Events::POD_REMOVED)
            .or(Events::POD_ITSELF)
            .or(Events::NAMESPACE)
    }

    fn prepare<'a>(
        &self,
        candidate: Candidate<'a>,
        snapshot: &'a Snapshot,
    ) -> Result<Option<Box<dyn Rule + 'a>>, Rejection> {
        let own = candidate.info.affinity.as_deref();
        let any_running = snapshot.nodes().any(|node| node.pods.iter().any(|p| p.affinity.is_some()));
        if own.is_none() && !any_running {
            return Ok(None);
        }
        let rule = AffinityRule::read(candidate.info, own, snapshot);
        Ok((!rule.is_empty()).then(|| Box::new(rule) as Box<dyn Rule>))
    }
}

impl AffinityRule {
    fn read(incoming: &PodInfo, own: Option<&Affinity>, snapshot: &Snapshot) -> Self {
        let together_terms = terms(own, true);
        let apart_terms = terms(own, false);
        let mut rule = Self {
            together: together_terms.iter().map(|t| (t.topology_key.clone(), Domains::new())).collect(),
            first: false,
            apart: Domains::new(),
            apart_keys: apart_terms.iter().map(|t| t.topology_key.clone()).collect(),
            forbidden: Domains::new(),
            preferred: Domains::new(),
        };
        for node in snapshot.nodes() {
            for pod in &node.pods {
                // A pod matches only if it satisfies all required terms together.
                let all =
                    !together_terms.is_empty() && together_terms.iter().all(|t| matches(t, incoming, pod, snapshot));
                if all {
                    for (term, (_, domains)) in together_terms.iter().zip(&mut rule.together) {
                        add(domains, &term.topology_key, node, 1);
                    }
                }
                for term in &apart_terms {
                    if matches(term, incoming, pod, snapshot) {
                        add(&mut rule.apart, &term.topology_key, node, 1);
                    }
                }
                rule.prefer(own, incoming, pod, node, snapshot);
                if let Some(theirs) = pod.affinity.as_deref() {
                    rule.heed(theirs, incoming, pod, node, snapshot);
                }
            }
        }
        rule.first = rule.together.iter().all(|(_, domains)| domains.is_empty())
            && together_terms.iter().all(|t| matches(t, incoming, incoming, snapshot));
        rule
    }

    fn is_empty(&self) -> bool {
        self.together.is_empty() && self.apart_keys.is_empty() && self.forbidden.is_empty() && self.preferred.is_empty()
    }

    /// The incoming pod's own preferences.
    fn prefer(
        &mut self,
        own: Option<&Affinity>,
        incoming: &PodInfo,
        pod: &PodInfo,
        node: &NodeInfo,
        snapshot: &Snapshot,
    ) {
        for (sign, weighted) in weighted_terms(own) {
            let term = &weighted.pod_affinity_term;
            if matches(term, incoming, pod, snapshot) {
                let weight = sign * i64::from(weighted.weight);
                add(&mut self.preferred, &term.topology_key, node, weight);
            }
        }
    }

    /// What a running pod wants of the incoming one.
    fn heed(&mut self, theirs: &Affinity, incoming: &PodInfo, pod: &PodInfo, node: &NodeInfo, snapshot: &Snapshot) {
        for term in terms(Some(theirs), false) {
            if matches(term, pod, incoming, snapshot) {
                add(&mut self.forbidden, &term.topology_key, node, 1);
            }
        }
        for term in terms(Some(theirs), true) {
            if matches(term, pod, incoming, snapshot) {
                add(&mut self.preferred, &term.topology_key, node, HARD_AFFINITY_WEIGHT);
            }
        }
        for (sign, weighted) in weighted_terms(Some(theirs)) {
            let term = &weighted.pod_affinity_term;
            if matches(term, pod, incoming, snapshot) {
                let weight = sign * i64::from(weighted.weight);
                add(&mut self.preferred, &term.topology_key, node, weight);
            }
        }
    }
}

fn add(domains: &mut Domains, key: &str, node: &NodeInfo, weight: i64) {
    if let Some(value) = node.label(key) {
        *domains.entry((key.to_owned(), value.to_owned())).or_default() += weight;
    }
}

fn terms(affinity: Option<&Affinity>, together: bool) -> Vec<&PodAffinityTerm> {
    let list = affinity.and_then(|a| {
        if together {
            let terms = a.pod_affinity.as_ref()?;
            terms.required_during_scheduling_ignored_during_execution.as_ref()
        } else {
            let terms = a.pod_anti_affinity.as_ref()?;
            terms.required_during_scheduling_ignored_during_execution.as_ref()
        }
    });
    list.into_iter().flatten().collect()
}

fn weighted_terms(affinity: Option<&Affinity>) -> Vec<(i64, &WeightedPodAffinityTerm)> {
    let Some(affinity) = affinity else {
        return Vec::new();
    };
    let together = affinity.pod_affinity.iter().flat_map(|a| {
        let list = &a.preferred_during_scheduling_ignored_during_execution;
        list.iter().flatten().map(|t| (1, t))
    });
    let apart = affinity.pod_anti_affinity.iter().flat_map(|a| {
        let list = &a.preferred_during_scheduling_ignored_during_execution;
        list.iter().flatten().map(|t| (-1, t))
    });
    together.chain(apart).collect()
}

/// Whether `other` is one of the pods that `holder`'s term speaks of.
fn matches(term: &PodAffinityTerm, holder: &PodInfo, other: &PodInfo, snapshot: &Snapshot) -> bool {
    let named = term.namespaces.as_deref().unwrap_or_default();
    let in_namespace = match &term.namespace_selector {
        None if named.is_empty() => other.namespace == holder.namespace,
        None => named.contains(&other.namespace),
        Some(wanted) => {
            let empty = crate::snapshot::Labels::new();
            let labels = snapshot.namespaces.get(&other.namespace).unwrap_or(&empty);
            named.contains(&other.namespace) || selector::matches(wanted, labels)
        }
    };
    if !in_namespace {
        return false;
    }
    let Some(wanted) = &term.label_selector else {
        return false;
    };
    let keyed = term.match_label_keys.is_some() || term.mismatch_label_keys.is_some();
    if keyed {
        return selector::matches(&with_label_keys(wanted, term, holder), &other.labels);
    }
    selector::matches(wanted, &other.labels)
}

fn with_label_keys(wanted: &LabelSelector, term: &PodAffinityTerm, holder: &PodInfo) -> LabelSelector {
    let mut wanted = wanted.clone();
    let lists = [("In", term.match_label_keys.as_deref()), ("NotIn", term.mismatch_label_keys.as_deref())];
    for (operator, keys) in lists {
        for key in keys.unwrap_or_default() {
            if let Some(value) = holder.labels.get(key) {
                let expressions = wanted.match_expressions.get_or_insert_default();
                expressions.push(LabelSelectorRequirement {
                    key: key.clone(),
                    operator: operator.to_owned(),
                    values: Some(vec![value.clone()]),
                });
            }
        }
    }
    wanted
}

fn rejection(reason: &str, preemptible: bool) -> Rejection {
    Rejection { plugin: NAME, reasons: vec![reason.to_owned()], preemptible }
}

impl Rule for AffinityRule {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let domain = |key: &str| node.label(key).map(|v| (key.to_owned(), v.to_owned()));
        let together = self
            .together
            .iter()
            .all(|(key, domains)| domain(key).is_some_and(|d| self.first || domains.contains_key(&d)));
        if !together {
            return Err(rejection("node(s) didn't match pod affinity rules", false));
        }
        let crowded = self.apart_keys.iter().any(|key| domain(key).is_some_and(|d| self.apart.contains_key(&d)));
        if crowded {
            return Err(rejection("node(s) didn't match pod anti-affinity rules", true));
        }
        let forbidden = self.forbidden.keys().any(|(key, value)| node.label(key) == Some(value));
        if forbidden {
            return Err(rejection("node(s) didn't satisfy existing pods anti-affinity rules", true));
        }
        Ok(())
    }

    fn score(&self, node: &NodeInfo) -> Option<i64> {
        let here = self.preferred.iter().filter(|((key, value), _)| node.label(key) == Some(value));
        Some(here.map(|(_, weight)| weight).sum())
    }

    fn normalize(&self, scores: &mut [i64]) {
        let max = scores.iter().copied().max().unwrap_or_default();
        let min = scores.iter().copied().min().unwrap_or_default();
        for score in scores {
            *score = if max == min { 0 } else { MAX_SCORE * (*score - min) / (max - min) };
        }
    }
}
