//! The topology manager: one set of NUMA nodes that suits every manager, by the policy that was chosen.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::hint::{Hint, Hints};
use crate::mask::NumaMask;
use crate::topology::Topology;

/// More NUMA nodes than this make too many combinations, unless `max-allowable-numa-nodes` says otherwise.
pub const MAX_NUMA_NODES: usize = 8;

/// How strictly the managers' wishes are joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Not at all.
    #[default]
    None,
    /// The best there is, whatever that is.
    BestEffort,
    /// Only what is preferred.
    Restricted,
    /// Only one NUMA node.
    SingleNumaNode,
}

/// What is aligned as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Each container for itself.
    #[default]
    Container,
    /// All containers of a pod together.
    Pod,
}

/// Options of the topology manager.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Of sets with as many nodes, take the one whose nodes are closest to each other.
    pub prefer_closest: bool,
    /// How many NUMA nodes are taken; [`MAX_NUMA_NODES`] if none.
    pub max_nodes: Option<usize>,
}

/// A configuration that cannot be.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct ConfigError(pub String);

impl Policy {
    /// The policy of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn parse(name: &str) -> Result<Self, ConfigError> {
        match name {
            "" | "none" => Ok(Self::None),
            "best-effort" => Ok(Self::BestEffort),
            "restricted" => Ok(Self::Restricted),
            "single-numa-node" => Ok(Self::SingleNumaNode),
            other => Err(ConfigError(format!(
                "topologyManagerPolicy {other:?} must be one of: \"none\", \"best-effort\", \"restricted\", \"single-numa-node\""
            ))),
        }
    }

    /// Whether what it admits lies within the fewest NUMA nodes.
    pub fn is_guaranteed(self) -> bool {
        self == Self::SingleNumaNode
    }
}

impl Scope {
    /// The scope of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn parse(name: &str) -> Result<Self, ConfigError> {
        match name {
            "" | "container" => Ok(Self::Container),
            "pod" => Ok(Self::Pod),
            other => {
                Err(ConfigError(format!("topologyManagerScope {other:?} must be one of: \"container\", or \"pod\"")))
            }
        }
    }
}

impl Options {
    /// The options of `topologyManagerPolicyOptions`.
    ///
    /// # Errors
    /// An option is unknown, or its value wrong.
    pub fn parse(options: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let mut parsed = Self::default();
        for (name, value) in options {
            let bad = || ConfigError(format!("bad value for option {name:?}: {value:?}"));
            match name.as_str() {
                "prefer-closest-numa-nodes" => parsed.prefer_closest = parse_bool(value).ok_or_else(bad)?,
                "max-allowable-numa-nodes" => {
                    let nodes = value.parse().map_err(|_| bad())?;
                    if nodes < MAX_NUMA_NODES {
                        return Err(ConfigError(format!(
                            "the minimum value of \"max-allowable-numa-nodes\" should not be less than {MAX_NUMA_NODES}"
                        )));
                    }
                    parsed.max_nodes = Some(nodes);
                }
                _ => return Err(ConfigError(format!("unknown Topology Manager Policy option: {name:?}"))),
            }
        }
        Ok(parsed)
    }
}

/// A boolean as Go's `strconv.ParseBool` takes it.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Joins wishes.
#[derive(Clone, Debug, Default)]
pub struct TopologyManager {
    /// How strictly.
    pub policy: Policy,
    /// For what.
    pub scope: Scope,
    options: Options,
    nodes: Vec<usize>,
    distances: BTreeMap<usize, Vec<u64>>,
}

impl TopologyManager {
    /// For that machine.
    ///
    /// # Errors
    /// The machine has more NUMA nodes than the options allow, or tells no distances though they are asked for.
    pub fn new(policy: Policy, scope: Scope, options: Options, topology: &Topology) -> Result<Self, ConfigError> {
        let most = options.max_nodes.unwrap_or(MAX_NUMA_NODES);
        if policy != Policy::None && topology.nodes.len() > most {
            return Err(ConfigError(format!(
                "unsupported on machines with more than {most} NUMA Nodes; raise the option max-allowable-numa-nodes of topologyManagerPolicyOptions"
            )));
        }
        if options.prefer_closest && topology.nodes.values().any(|node| node.distances.is_empty()) {
            return Err(ConfigError("error getting NUMA distances from sysfs".to_owned()));
        }
        let distances = topology.nodes.iter().map(|(id, node)| (*id, node.distances.clone())).collect();
        Ok(Self { policy, scope, options, nodes: topology.numa_nodes(), distances })
    }

    /// The nodes that suit all, and whether the policy admits that.
    pub fn merge(&self, providers: &[Hints]) -> (Hint, bool) {
        let hints = flatten(providers);
        match self.policy {
            Policy::None => (Hint::default(), true),
            Policy::BestEffort => (self.best(&hints), true),
            Policy::Restricted => {
                let best = self.best(&hints);
                (best, best.preferred)
            }
            Policy::SingleNumaNode => {
                let single = |hint: &Hint| hint.preferred && hint.affinity.is_none_or(|mask| mask.count() == 1);
                let only = |hints: &Vec<Hint>| hints.iter().filter(|hint| single(hint)).copied().collect();
                let mut best = self.best(&hints.iter().map(only).collect::<Vec<_>>());
                if best.affinity == Some(self.everywhere()) {
                    best.affinity = None;
                }
                (best, best.preferred)
            }
        }
    }

    fn everywhere(&self) -> NumaMask {
        NumaMask::new(self.nodes.iter().copied())
    }

    /// The best of all ways to take one hint of each list.
    fn best(&self, hints: &[Vec<Hint>]) -> Hint {
        let narrowest = |hints: &Vec<Hint>| hints.iter().filter_map(|hint| hint.affinity).map(NumaMask::count).min();
        // Among those that nobody prefers, the manager that needs most nodes should get that many.
        let aim = hints.iter().filter_map(narrowest).max().unwrap_or(0);
        let mut best = None;
        self.permute(hints, &mut Vec::new(), &mut |chosen| {
            let candidate = self.join(chosen);
            best = Some(match best {
                _ if candidate.0.is_empty() => return,
                None => candidate,
                Some(best) => self.better(best, candidate, aim),
            });
        });
        let (mask, preferred) = best.unwrap_or((self.everywhere(), false));
        Hint { affinity: Some(mask), preferred }
    }

    fn permute(&self, hints: &[Vec<Hint>], chosen: &mut Vec<Hint>, each: &mut dyn FnMut(&[Hint])) {
        let Some((first, rest)) = hints.split_first() else { return each(chosen) };
        for hint in first {
            chosen.push(*hint);
            self.permute(rest, chosen, each);
            chosen.pop();
        }
    }

    /// What all of them share; preferred only if each is and all name the same nodes.
    fn join(&self, chosen: &[Hint]) -> (NumaMask, bool) {
        let masks: Vec<NumaMask> = chosen.iter().filter_map(|hint| hint.affinity).collect();
        let agree = masks.iter().all(|mask| *mask == masks[0]);
        let preferred = agree && chosen.iter().all(|hint| hint.preferred);
        (masks.iter().fold(self.everywhere(), |joined, mask| joined.and(*mask)), preferred)
    }

    fn better(&self, current: (NumaMask, bool), candidate: (NumaMask, bool), aim: usize) -> (NumaMask, bool) {
        match (current.1, candidate.1) {
            (false, true) => return candidate,
            (true, false) => return current,
            (true, true) => return self.fitter(current, candidate),
            (false, false) => {}
        }
        let (now, then) = (current.0.count(), candidate.0.count());
        // As near to the aim as can be, from below if it must be missed.
        if now > aim {
            self.fitter(current, candidate)
        } else if now == aim {
            if then == aim { self.fitter(current, candidate) } else { current }
        } else if then > aim {
            current
        } else {
            match then.cmp(&now) {
                std::cmp::Ordering::Greater => candidate,
                std::cmp::Ordering::Less => current,
                std::cmp::Ordering::Equal => self.fitter(current, candidate),
            }
        }
    }

    fn fitter(&self, current: (NumaMask, bool), candidate: (NumaMask, bool)) -> (NumaMask, bool) {
        let (one, other) = (current.0, candidate.0);
        let closest = self.policy != Policy::SingleNumaNode && self.options.prefer_closest;
        let keep = if closest && one.count() == other.count() {
            let (near, far) = (self.distance(one), self.distance(other));
            if near == far { one <= other } else { near < far }
        } else {
            one == other || one.is_narrower(other)
        };
        if keep { current } else { candidate }
    }

    /// The mean distance between the nodes, in the kernel's units.
    fn distance(&self, mask: NumaMask) -> f64 {
        let position = |node: usize| self.nodes.iter().position(|other| *other == node);
        let one = |from: usize, to: usize| {
            let known = self.distances.get(&from).zip(position(to)).and_then(|(all, to)| all.get(to));
            known.map_or(f64::INFINITY, |distance| *distance as f64)
        };
        let pairs = mask.nodes().flat_map(|from| mask.nodes().map(move |to| one(from, to)));
        pairs.sum::<f64>() / (mask.count() * mask.count()).max(1) as f64
    }
}

/// One list of hints for each resource of each manager.
fn flatten(providers: &[Hints]) -> Vec<Vec<Hint>> {
    let any = |preferred| vec![Hint { affinity: None, preferred }];
    let mut all = Vec::new();
    for hints in providers {
        if hints.is_empty() {
            all.push(any(true));
        }
        for hints in hints.values() {
            all.push(match hints {
                None => any(true),
                Some(hints) if hints.is_empty() => any(false),
                Some(hints) => hints.clone(),
            });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::machine;

    fn manager(policy: Policy, nodes: usize, prefer_closest: bool) -> TopologyManager {
        let options = Options { prefer_closest, ..Options::default() };
        TopologyManager::new(policy, Scope::Container, options, &machine(2, nodes / 2, 2, 2)).unwrap()
    }

    fn hints(resource: &str, hints: &[(&[usize], bool)]) -> Hints {
        let hint = |(nodes, preferred): &(&[usize], bool)| Hint {
            affinity: Some(NumaMask::new(nodes.iter().copied())),
            preferred: *preferred,
        };
        [(resource.to_owned(), Some(hints.iter().map(hint).collect()))].into()
    }

    /// The cases of stock's documentation and of its KEP-693, as text.
    #[test]
    fn wishes_are_joined() {
        let mut shown = String::new();
        let mut show = |name: &str, providers: &[Hints]| {
            for policy in [Policy::BestEffort, Policy::Restricted, Policy::SingleNumaNode] {
                let (hint, admit) = manager(policy, 2, false).merge(providers);
                shown += &format!("{name}: {policy:?} {hint}, {}\n", if admit { "admitted" } else { "refused" });
            }
        };
        let node0: &[(&[usize], bool)] = &[(&[0], true), (&[0, 1], false)];
        let node1: &[(&[usize], bool)] = &[(&[1], true), (&[0, 1], false)];
        show("nobody cares", &[Hints::new(), Hints::new()]);
        show("one cannot", &[[("gpu".to_owned(), Some(Vec::new()))].into(), hints("cpu", node0)]);
        show("agreed", &[hints("cpu", node1), hints("gpu", node1)]);
        show("apart", &[hints("cpu", node0), hints("gpu", node1)]);
        show("two nodes", &[hints("cpu", &[(&[0, 1], true)]), Hints::new()]);
        let golden = "\
nobody cares: BestEffort 11 preferred, admitted
nobody cares: Restricted 11 preferred, admitted
nobody cares: SingleNumaNode any preferred, admitted
one cannot: BestEffort 01 not preferred, admitted
one cannot: Restricted 01 not preferred, refused
one cannot: SingleNumaNode any not preferred, refused
agreed: BestEffort 10 preferred, admitted
agreed: Restricted 10 preferred, admitted
agreed: SingleNumaNode 10 preferred, admitted
apart: BestEffort 01 not preferred, admitted
apart: Restricted 01 not preferred, refused
apart: SingleNumaNode any not preferred, refused
two nodes: BestEffort 11 preferred, admitted
two nodes: Restricted 11 preferred, admitted
two nodes: SingleNumaNode any not preferred, refused
";
        assert_eq!(shown, golden);
    }

    #[test]
    fn close_nodes_are_preferred_when_asked() {
        // Nodes 0 and 1 are one socket's, 2 and 3 the other's.
        let wish = hints("cpu", &[(&[0, 2], true), (&[1, 2], true), (&[2, 3], true)]);
        let pick = |closest| manager(Policy::BestEffort, 4, closest).merge(std::slice::from_ref(&wish)).0;
        assert_eq!(pick(false).affinity, Some(NumaMask::new([0, 2])));
        assert_eq!(pick(true).affinity, Some(NumaMask::new([2, 3])));
    }

    #[test]
    fn configurations_are_checked() {
        let options = |name: &str, value: &str| Options::parse(&[(name.to_owned(), value.to_owned())].into());
        assert_eq!(options("max-allowable-numa-nodes", "16").unwrap().max_nodes, Some(16));
        for (name, value, fault) in [
            ("max-allowable-numa-nodes", "4", "should not be less than 8"),
            ("prefer-closest-numa-nodes", "yes", "bad value"),
            ("other", "true", "unknown Topology Manager Policy option: \"other\""),
        ] {
            assert!(options(name, value).unwrap_err().0.contains(fault), "{name}");
        }
        let large = machine(16, 1, 1, 1);
        let new = |policy, max_nodes| {
            let options = Options { max_nodes, ..Options::default() };
            TopologyManager::new(policy, Scope::Pod, options, &large).map(drop)
        };
        assert!(new(Policy::BestEffort, None).unwrap_err().0.starts_with("unsupported on machines with more than 8"));
        assert_eq!(new(Policy::BestEffort, Some(16)), Ok(()));
        assert_eq!(new(Policy::None, None), Ok(()));
        assert!(Policy::parse("best").is_err() && Scope::parse("node").is_err());
    }
}
