//! Whether a node has room, and which node is left best balanced.

use crate::framework::{Candidate, Events, MAX_SCORE, Plugin, Rejection, Rule};
use crate::resources::Resources;
use crate::snapshot::{NodeInfo, Snapshot};

/// Room for the pod; prefers the node with the most left.
pub(super) struct NodeResourcesFit;

struct FitRule<'a>(Candidate<'a>);

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn helped_by(&self) -> Events {
        Events::NODE_ADDED.or(Events::NODE_ALLOCATABLE).or(Events::POD_REMOVED).or(Events::POD_ITSELF)
    }

    fn prepare<'a>(&self, candidate: Candidate<'a>, _: &'a Snapshot) -> Result<Option<Box<dyn Rule + 'a>>, Rejection> {
        Ok(Some(Box::new(FitRule(candidate))))
    }
}

impl Rule for FitRule<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let request = &self.0.info.resources.request;
        let mut short = Shortage::default();
        let pods = i64::try_from(node.pods.len()).unwrap_or(i64::MAX);
        if pods + 1 > node.allocatable_pods {
            short.reasons.push("Too many pods".to_owned());
        }
        short.check("cpu", request.milli_cpu, node.requested.milli_cpu, node.allocatable.milli_cpu);
        short.check("memory", request.memory, node.requested.memory, node.allocatable.memory);
        short.check(
            "ephemeral-storage",
            request.ephemeral_storage,
            node.requested.ephemeral_storage,
            node.allocatable.ephemeral_storage,
        );
        for (name, wanted) in &request.scalars {
            let amount = |of: &Resources| of.scalars.get(name).copied().unwrap_or_default();
            short.check(name, *wanted, amount(&node.requested), amount(&node.allocatable));
        }
        if short.reasons.is_empty() {
            return Ok(());
        }
        Err(Rejection { plugin: "NodeResourcesFit", reasons: short.reasons, preemptible: !short.hopeless })
    }

    fn score(&self, node: &NodeInfo) -> Option<i64> {
        let wanted = &self.0.info.resources.scored;
        let left = |asked: i64, taken: i64, offered: i64| {
            let after = offered - taken - asked;
            (offered > 0 && after > 0).then(|| after * MAX_SCORE / offered)
        };
        let cpu = left(wanted.milli_cpu, node.scored.milli_cpu, node.allocatable.milli_cpu);
        let memory = left(wanted.memory, node.scored.memory, node.allocatable.memory);
        Some((cpu.unwrap_or_default() + memory.unwrap_or_default()) / 2)
    }
}

#[derive(Default)]
struct Shortage {
    reasons: Vec<String>,
    /// An empty node would not do either.
    hopeless: bool,
}

impl Shortage {
    fn check(&mut self, name: &str, wanted: i64, taken: i64, offered: i64) {
        if wanted > 0 && wanted > offered - taken {
            self.reasons.push(format!("Insufficient {name}"));
            self.hopeless |= wanted > offered;
        }
    }
}

/// Prefers the node whose CPU and memory are used to like parts.
pub(super) struct BalancedAllocation;

struct BalancedRule<'a>(Candidate<'a>);

impl Plugin for BalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn helped_by(&self) -> Events {
        Events::NONE
    }

    fn prepare<'a>(&self, candidate: Candidate<'a>, _: &'a Snapshot) -> Result<Option<Box<dyn Rule + 'a>>, Rejection> {
        let best_effort = candidate.info.resources.request.is_zero();
        Ok((!best_effort).then(|| Box::new(BalancedRule(candidate)) as Box<dyn Rule>))
    }
}

impl Rule for BalancedRule<'_> {
    fn score(&self, node: &NodeInfo) -> Option<i64> {
        let wanted = &self.0.info.resources.request;
        let part = |asked: i64, taken: i64, offered: i64| {
            if offered <= 0 {
                return 0.0;
            }
            ((asked + taken) as f64 / offered as f64).min(1.0)
        };
        let cpu = part(wanted.milli_cpu, node.requested.milli_cpu, node.allocatable.milli_cpu);
        let memory = part(wanted.memory, node.requested.memory, node.allocatable.memory);
        let deviation = (cpu - memory).abs() / 2.0;
        Some(((1.0 - deviation) * MAX_SCORE as f64) as i64)
    }
}
