//! Which pods to remove so that a more important one fits. Pure, like [`crate::framework::decide`].

use std::cmp::Reverse;
use std::sync::Arc;

use crate::framework::{Candidate, Diagnosis, Plugin, Rules, histogram};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

/// Nodes that are tried at most; stock stops at a tenth of the cluster but not below this.
const MOST_NODES: usize = 100;

/// Pods to remove from a node.
#[derive(Clone, Debug)]
pub struct Preemption {
    /// The node that will have room.
    pub node: String,
    /// Who must go.
    pub victims: Vec<Arc<PodInfo>>,
}

/// Looks for the least harmful preemption.
///
/// # Errors
/// What to tell people when there is none.
pub fn plan(
    plugins: &[Box<dyn Plugin>],
    snapshot: &Snapshot,
    candidate: Candidate<'_>,
    diagnosis: &Diagnosis,
) -> Result<Preemption, String> {
    if candidate.spec.preemption_policy.as_deref() == Some("Never") {
        return Err("preemption: not eligible due to preemptionPolicy=Never.".to_owned());
    }
    let mut found: Vec<Preemption> = Vec::new();
    let mut fruitless = 0;
    for name in diagnosis.preemptible().take(MOST_NODES) {
        let preemption = snapshot.node(name).and_then(|node| on_node(plugins, snapshot, candidate, node));
        match preemption {
            Some(preemption) => found.push(preemption),
            None => fruitless += 1,
        }
    }
    if let Some(best) = found.into_iter().min_by_key(harm) {
        return Ok(best);
    }
    let unhelpful = diagnosis.nodes - fruitless;
    let reasons = std::iter::repeat_n("No preemption victims found for incoming pod", fruitless)
        .chain(std::iter::repeat_n("Preemption is not helpful for scheduling", unhelpful));
    Err(format!("preemption: 0/{} nodes are available: {}.", diagnosis.nodes, histogram(reasons)))
}

/// The order in which stock prefers: least important victim, least in sum, fewest, youngest.
fn harm(preemption: &Preemption) -> (i32, i64, usize, Reverse<i64>) {
    let victims = &preemption.victims;
    let highest = victims.iter().map(|v| v.priority).max().unwrap_or(i32::MIN);
    let sum = victims.iter().map(|v| i64::from(v.priority) - i64::from(i32::MIN)).sum();
    let oldest_important = victims
        .iter()
        .filter(|v| v.priority == highest)
        .filter_map(|v| v.started)
        .min()
        .map_or(i64::MAX, |t| t.as_second());
    (highest, sum, victims.len(), Reverse(oldest_important))
}

fn on_node(
    plugins: &[Box<dyn Plugin>],
    snapshot: &Snapshot,
    candidate: Candidate<'_>,
    node: &NodeInfo,
) -> Option<Preemption> {
    let mut lesser: Vec<Arc<PodInfo>> =
        node.pods.iter().filter(|p| p.priority < candidate.info.priority).cloned().collect();
    if lesser.is_empty() {
        return None;
    }
    let fits = |info: &NodeInfo| {
        let trial = snapshot.with_node(info.clone());
        Rules::prepare(plugins, candidate, &trial).is_ok_and(|rules| rules.filter(info).is_ok())
    };
    let mut trial = node.clone();
    for pod in &lesser {
        trial.remove_pod(&pod.uid);
    }
    if !fits(&trial) {
        return None;
    }
    // Let off whoever may stay, the most important and longest running first.
    lesser.sort_by_key(|p| (Reverse(p.priority), p.started.map_or(i64::MAX, |t| t.as_second())));
    let mut victims = Vec::new();
    for pod in lesser {
        trial.add_pod(pod.clone());
        if !fits(&trial) {
            trial.remove_pod(&pod.uid);
            victims.push(pod);
        }
    }
    Some(Preemption { node: node.name.clone(), victims })
}
