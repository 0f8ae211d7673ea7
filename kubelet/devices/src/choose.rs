//! Which devices a container gets: those of the pod's init containers first, then those near its NUMA nodes, and of
//! these the ones that the plugin prefers.

use std::collections::{BTreeMap, BTreeSet};

use bosun_kubelet_alignment::NumaMask;
use thiserror::Error;

use crate::table::{NO_NODE, Table};

/// A container's need of one resource.
#[derive(Clone, Copy, Debug)]
pub struct Need<'a> {
    /// The pod's UID.
    pub uid: &'a str,
    /// The container.
    pub container: &'a str,
    /// The resource.
    pub resource: &'a str,
    /// How many.
    pub count: usize,
    /// Near which NUMA nodes; none if it does not matter.
    pub affinity: Option<NumaMask>,
}

/// What to do about a need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It has them already.
    Nothing,
    /// Ask the plugin which of these it prefers, then decide again.
    Ask {
        /// To choose from.
        available: BTreeSet<String>,
        /// Chosen already.
        included: BTreeSet<String>,
    },
    /// Take these.
    Take(BTreeSet<String>),
}

/// Why there are no devices, in stock's words.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ChooseError {
    /// The container has another number of them than it asks for.
    #[error("pod {uid:?} container {container:?} changed request for resource {resource:?} from {had} to {count}")]
    Changed {
        /// The pod's UID.
        uid: String,
        /// The container.
        container: String,
        /// The resource.
        resource: String,
        /// How many it has.
        had: usize,
        /// How many it asks for.
        count: usize,
    },
    /// No plugin offers it.
    #[error("cannot allocate unregistered device {0}")]
    Unregistered(String),
    /// None can be used.
    #[error("no healthy devices present; cannot allocate unhealthy devices {0}")]
    Unhealthy(String),
    /// Those that it has cannot be used.
    #[error("previously allocated devices are no longer healthy; cannot allocate unhealthy devices {0}")]
    NoLongerHealthy(String),
    /// There are too few.
    #[error("requested number of devices unavailable for {resource}. Requested: {requested}, Available: {available}")]
    TooFew {
        /// The resource.
        resource: String,
        /// How many more are needed.
        requested: usize,
        /// How many there are.
        available: usize,
    },
}

/// Decides about a need. `preferred` is what the plugin said to the question before, if it was asked.
///
/// # Errors
/// There are no devices for it.
pub fn choose(table: &Table, need: &Need<'_>, preferred: Option<&BTreeSet<String>>) -> Result<Step, ChooseError> {
    let resource = need.resource.to_owned();
    let own = table.of(need.uid, need.container).and_then(|all| all.get(need.resource)).map(|a| a.ids());
    if let Some(own) = own.as_ref().filter(|own| own.len() != need.count) {
        let (uid, container) = (need.uid.to_owned(), need.container.to_owned());
        return Err(ChooseError::Changed { uid, container, resource, had: own.len(), count: need.count });
    }
    let Some(healthy) = table.healthy(need.resource) else { return Err(ChooseError::Unregistered(resource)) };
    if healthy.is_empty() {
        return Err(ChooseError::Unhealthy(resource));
    }
    if let Some(own) = own {
        return if own.is_subset(&healthy) { Ok(Step::Nothing) } else { Err(ChooseError::NoLongerHealthy(resource)) };
    }
    let mut taken = Taken { ids: BTreeSet::new(), needed: need.count };
    taken.take(&table.reusable(need.uid, need.resource));
    let available: BTreeSet<String> = healthy.difference(&table.allocated(need.resource)).cloned().collect();
    if available.len() < taken.needed {
        return Err(ChooseError::TooFew { resource, requested: taken.needed, available: available.len() });
    }
    let [near, far, nowhere] = by_affinity(table, need, &available);
    let asks = table.options(need.resource).is_some_and(|options| options.preferred);
    let ask = |from: &BTreeSet<String>, taken: &Taken| Step::Ask {
        available: from.union(&taken.ids).cloned().collect(),
        included: taken.ids.clone(),
    };
    if taken.needed > 0 && taken.needed < near.len() {
        match preferred {
            None if asks => return Ok(ask(&near, &taken)),
            preferred => {
                taken.take(&preferred.into_iter().flatten().filter(|id| near.contains(*id)).cloned().collect())
            }
        }
        taken.take(&near);
        return Ok(Step::Take(taken.ids));
    }
    taken.take(&near);
    if taken.needed > 0 {
        match preferred {
            None if asks => return Ok(ask(&available, &taken)),
            preferred => {
                taken.take(&preferred.into_iter().flatten().filter(|id| available.contains(*id)).cloned().collect());
            }
        }
    }
    taken.take(&far);
    taken.take(&nowhere);
    Ok(Step::Take(taken.ids))
}

struct Taken {
    ids: BTreeSet<String>,
    needed: usize,
}

impl Taken {
    fn take(&mut self, from: &BTreeSet<String>) {
        let more: Vec<String> = from.difference(&self.ids).take(self.needed).cloned().collect();
        self.needed -= more.len();
        self.ids.extend(more);
    }
}

/// Available devices near the wanted nodes, near others, and near none. All are near none if nobody cares.
fn by_affinity(table: &Table, need: &Need<'_>, available: &BTreeSet<String>) -> [BTreeSet<String>; 3] {
    let mut parts = [BTreeSet::new(), BTreeSet::new(), BTreeSet::new()];
    let devices = table.devices(need.resource);
    let cares = devices.into_iter().flat_map(BTreeMap::values).any(|device| device.nodes.is_some());
    let Some(mask) = need.affinity.filter(|_| cares) else {
        parts[2].clone_from(available);
        return parts;
    };
    for id in available {
        let nodes = devices.and_then(|all| all.get(id)).and_then(|device| device.nodes.as_ref());
        let nodes = nodes.into_iter().flatten().filter(|node| **node != NO_NODE);
        let nodes: Vec<usize> = nodes.filter_map(|node| usize::try_from(*node).ok()).collect();
        let part = match nodes.as_slice() {
            [] => 2,
            nodes if nodes.iter().any(|node| mask.contains(*node)) => 0,
            _ => 1,
        };
        parts[part].insert(id.clone());
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::tests::{device, ids};
    use crate::table::{Device, Options};
    use bosun_proto::deviceplugin::ContainerAllocateResponse;
    use proptest::prelude::*;
    use std::time::Instant;

    fn table(devices: Vec<Device>, preferred: bool) -> Table {
        let mut table = Table::default();
        let connection = table.connected("x/gpu", Options { preferred, pre_start: false }, Instant::now());
        table.listed("x/gpu", connection, devices);
        table
    }

    fn need(uid: &str, count: usize, nodes: Option<usize>) -> Need<'_> {
        let affinity = nodes.map(|node| NumaMask::new([node]));
        Need { uid, container: "app", resource: "x/gpu", count, affinity }
    }

    #[test]
    fn near_ones_first() {
        let devices = vec![
            device("a0", Some(0)),
            device("a1", Some(0)),
            device("b0", Some(1)),
            device("b1", Some(1)),
            device("c", None),
        ];
        let table = table(devices, false);
        let take = |count, node| choose(&table, &need("p", count, node), None);
        assert_eq!(take(1, Some(1)), Ok(Step::Take(ids(&["b0"]))));
        assert_eq!(take(3, Some(1)), Ok(Step::Take(ids(&["b0", "b1", "a0"]))));
        assert_eq!(take(5, Some(1)), Ok(Step::Take(ids(&["b0", "b1", "a0", "a1", "c"]))));
        assert_eq!(take(2, None), Ok(Step::Take(ids(&["a0", "a1"]))));
        let fault = take(6, None).unwrap_err().to_string();
        assert_eq!(fault, "requested number of devices unavailable for x/gpu. Requested: 6, Available: 5");
    }

    #[test]
    fn the_plugin_is_asked_within_what_is_near() {
        let table = table(vec![device("a", Some(0)), device("b", Some(0)), device("c", Some(1))], true);
        let one = need("p", 1, Some(0));
        let asked = Step::Ask { available: ids(&["a", "b"]), included: ids(&[]) };
        assert_eq!(choose(&table, &one, None), Ok(asked));
        assert_eq!(choose(&table, &one, Some(&ids(&["b"]))), Ok(Step::Take(ids(&["b"]))));
        assert_eq!(choose(&table, &one, Some(&ids(&["c"]))), Ok(Step::Take(ids(&["a"]))), "not what is far");
        let three = need("p", 3, Some(1));
        let asked = Step::Ask { available: ids(&["a", "b", "c"]), included: ids(&["c"]) };
        assert_eq!(choose(&table, &three, None), Ok(asked));
    }

    #[test]
    fn refusals_in_stock_s_words() {
        let fault = |table: &Table, count| choose(table, &need("p", count, None), None).unwrap_err().to_string();
        assert_eq!(fault(&Table::default(), 1), "cannot allocate unregistered device x/gpu");
        let mut known = table(vec![device("a", None)], false);
        known.give(("p", "app"), "x/gpu", &ids(&["a"]), ContainerAllocateResponse::default());
        assert_eq!(choose(&known, &need("p", 1, None), None), Ok(Step::Nothing));
        let changed = "pod \"p\" container \"app\" changed request for resource \"x/gpu\" from 1 to 2";
        assert_eq!(fault(&known, 2), changed);
        known.disconnected("x/gpu", 1, Instant::now());
        assert_eq!(fault(&known, 1), "no healthy devices present; cannot allocate unhealthy devices x/gpu");
        let connection = known.connected("x/gpu", Options::default(), Instant::now());
        known.listed("x/gpu", connection, vec![device("b", None)]);
        assert!(fault(&known, 1).starts_with("previously allocated devices are no longer healthy"));
    }

    #[test]
    fn what_init_containers_had_is_taken_over() {
        let mut table = table(vec![device("a", None), device("b", None)], false);
        let init = Need { container: "init", ..need("p", 2, None) };
        assert_eq!(choose(&table, &init, None), Ok(Step::Take(ids(&["a", "b"]))));
        table.give(("p", "init"), "x/gpu", &ids(&["a", "b"]), ContainerAllocateResponse::default());
        table.hand_on("p", "init", true);
        assert_eq!(choose(&table, &need("p", 1, None), None), Ok(Step::Take(ids(&["a"]))));
        table.give(("p", "app"), "x/gpu", &ids(&["a"]), ContainerAllocateResponse::default());
        table.hand_on("p", "app", false);
        let other = Need { container: "other", ..need("p", 1, None) };
        assert_eq!(choose(&table, &other, None), Ok(Step::Take(ids(&["b"]))));
        assert!(choose(&table, &need("q", 1, None), None).is_err());
    }

    proptest! {
        /// Whatever comes and goes: no device has two owners, and nobody gets a broken one.
        #[test]
        fn no_device_has_two_owners(steps in proptest::collection::vec((0..6u8, 1..4usize, 0..3u8), 1..60)) {
            let all = |broken: usize| -> Vec<Device> {
                (0..8).map(|n| Device { healthy: n != broken, ..device(&n.to_string(), Some(n as i64 % 2)) }).collect()
            };
            let mut table = table(all(8), false);
            for (name, count, what) in steps {
                let uid = format!("pod{name}");
                if what == 0 {
                    table.release(&uid);
                } else if what == 1 {
                    table.listed("x/gpu", 1, all(count));
                } else if let Ok(Step::Take(chosen)) = choose(&table, &need(&uid, count, Some(count % 2)), None) {
                    prop_assert_eq!(chosen.len(), count);
                    prop_assert!(chosen.is_disjoint(&table.allocated("x/gpu")));
                    prop_assert!(chosen.is_subset(&table.healthy("x/gpu").unwrap()));
                    table.give((&uid, "app"), "x/gpu", &chosen, ContainerAllocateResponse::default());
                }
            }
        }
    }
}
