//! Which CPUs are taken: whole NUMA nodes and sockets first, then whole cores, then single threads, near each other.

use std::collections::BTreeMap;

use crate::cpuset::CpuSet;
use crate::mask::combinations;
use crate::topology::{Level, Topology};

use super::options::Options;

/// Takes `count` of the `available` CPUs.
///
/// # Errors
/// There are not as many.
pub fn take(topology: &Topology, available: &CpuSet, count: usize, options: &Options) -> Result<CpuSet, String> {
    if !options.across_numa {
        return packed(topology, available, count, options.across_cores, options.align_by_uncore);
    }
    let group = if options.full_cores_only { topology.cpus_per_core() } else { 1 };
    distributed(topology, available, count, group, options.across_cores)
}

/// As near together as can be.
fn packed(
    topology: &Topology,
    available: &CpuSet,
    count: usize,
    spread: bool,
    align_by_uncore: bool,
) -> Result<CpuSet, String> {
    let mut taker = Taker::new(topology, available, count, spread);
    taker.check(count)?;
    let [first, second] = taker.outer();
    taker.take_whole(first);
    taker.take_whole(second);
    if align_by_uncore {
        taker.take_uncore();
    }
    if !spread {
        taker.take_whole(Level::Core);
    }
    taker.take_single();
    match taker.needed {
        0 => Ok(taker.taken),
        _ => Err("failed to allocate cpus".to_owned()),
    }
}

/// One allocation under way.
struct Taker<'a> {
    topology: &'a Topology,
    free: Topology,
    needed: usize,
    taken: CpuSet,
    spread: bool,
    /// NUMA nodes are not smaller than sockets.
    numa_outside: bool,
}

impl<'a> Taker<'a> {
    fn new(topology: &'a Topology, available: &CpuSet, needed: usize, spread: bool) -> Self {
        let numa_outside = topology.groups(Level::Socket).len() >= topology.groups(Level::Numa).len();
        Self { topology, free: topology.keep(available), needed, taken: CpuSet::new(), spread, numa_outside }
    }

    fn check(&self, requested: usize) -> Result<(), String> {
        let available = self.free.cpus.len();
        match self.needed > available {
            true => Err(format!(
                "not enough cpus available to satisfy request: requested={requested}, available={available}"
            )),
            false => Ok(()),
        }
    }

    /// The two outer levels, the larger one first.
    fn outer(&self) -> [Level; 2] {
        if self.numa_outside { [Level::Numa, Level::Socket] } else { [Level::Socket, Level::Numa] }
    }

    fn take(&mut self, cpus: &CpuSet) {
        self.needed = self.needed.saturating_sub(cpus.len());
        for cpu in cpus.iter() {
            self.free.cpus.remove(&cpu);
        }
        self.taken = self.taken.union(cpus);
    }

    fn is_whole(&self, level: Level, group: usize) -> bool {
        self.free.cpus_in(level, group).len() == self.topology.cpus_in(level, group).len()
    }

    /// Those with fewest free CPUs first, so that large holes stay; then by number.
    fn sorted(&self, level: Level, groups: impl IntoIterator<Item = usize>) -> Vec<usize> {
        let mut groups: Vec<usize> = groups.into_iter().collect();
        groups.sort_by_key(|group| (self.free.cpus_in(level, *group).len(), *group));
        groups
    }

    /// The groups in which something is free, in the order in which they are taken from.
    fn ordered(&self, level: Level) -> Vec<usize> {
        let [outermost, next] = self.outer();
        let within = |outer: Level| {
            let outer_groups = self.ordered(outer).into_iter();
            outer_groups.flat_map(|group| self.sorted(level, self.free.groups_in(level, outer, group))).collect()
        };
        match level {
            level if level == outermost => self.sorted(level, self.free.groups(level)),
            Level::Uncore => within(Level::Numa),
            Level::Core => within(next),
            _ => within(outermost),
        }
    }

    fn take_whole(&mut self, level: Level) {
        for group in self.ordered(level) {
            let cpus = self.free.cpus_in(level, group);
            if self.needed > 0 && self.is_whole(level, group) && self.needed >= cpus.len() {
                self.take(&cpus);
            }
        }
    }

    fn take_uncore(&mut self) {
        for group in self.ordered(Level::Uncore) {
            if self.needed >= self.topology.cpus_per_uncore() {
                self.take_whole(Level::Uncore);
            }
            if self.needed == 0 {
                return;
            }
            self.take_part_of_uncore(group);
        }
    }

    /// Takes all that is still needed from one cache, whole cores as far as that goes; nothing if it has too little.
    fn take_part_of_uncore(&mut self, uncore: usize) {
        let per_core = self.topology.cpus_per_core();
        let cores = self.free.groups_in(Level::Core, Level::Uncore, uncore);
        let cores = cores.into_iter().take(self.needed.div_ceil(per_core));
        let mut cpus: Vec<usize> =
            cores.flat_map(|core| self.free.cpus_in(Level::Core, core).iter().collect::<Vec<_>>()).collect();
        cpus.sort_unstable();
        if !self.needed.is_multiple_of(2) && per_core > 1 && cpus.len() > self.needed {
            cpus.pop();
        }
        if cpus.len() == self.needed {
            self.take(&cpus.into_iter().collect());
        }
    }

    fn take_single(&mut self) {
        let level = if self.spread { Level::Socket } else { Level::Core };
        for group in self.ordered(level) {
            for cpu in self.free.cpus_in(level, group).iter() {
                if self.needed == 0 {
                    return;
                }
                self.take(&CpuSet::from([cpu]));
            }
        }
    }
}

/// Evenly over the fewest NUMA nodes that can do it, in groups of `group` CPUs (KEP-2902); of several ways the one that
/// leaves the nodes most alike.
fn distributed(
    topology: &Topology,
    available: &CpuSet,
    count: usize,
    group: usize,
    spread: bool,
) -> Result<CpuSet, String> {
    let pack = || packed(topology, available, count, spread, false);
    if count == 0 || !count.is_multiple_of(group) {
        return pack();
    }
    let mut taker = Taker::new(topology, available, count, spread);
    taker.check(count)?;
    let nodes = taker.ordered(Level::Numa);
    let groups = |cpus: usize| cpus.div_ceil(group);
    let per_node = groups(topology.cpus.len()).div_ceil(topology.groups(Level::Numa).len().max(1));
    let fewest = groups(count).div_ceil(per_node.max(1)).max(1);
    let most = groups(count).min(nodes.len());
    for size in fewest..=most {
        let Some((chosen, remainder)) = evenest(&taker, &nodes, size, count, group) else { continue };
        let share = count / chosen.len() / group * group;
        for node in &chosen {
            let cpus = packed(topology, &taker.free.cpus_in(Level::Numa, *node), share, spread, false)?;
            taker.take(&cpus);
        }
        while taker.needed > 0 {
            let before = taker.needed;
            for node in &remainder {
                let left = taker.free.cpus_in(Level::Numa, *node);
                if taker.needed > 0 && left.len() >= group {
                    taker.take(&packed(topology, &left, group, spread, false)?);
                }
            }
            if taker.needed == before {
                return Err(format!("accounting error, not enough CPUs allocated, remaining: {}", taker.needed));
            }
        }
        return Ok(taker.taken);
    }
    pack()
}

/// Of all sets of `size` nodes the one over which `count` CPUs can be spread so that what is left is most even, and the
/// nodes that give the CPUs that cannot be shared out evenly.
fn evenest(
    taker: &Taker<'_>,
    nodes: &[usize],
    size: usize,
    count: usize,
    group: usize,
) -> Option<(Vec<usize>, Vec<usize>)> {
    let free: BTreeMap<usize, usize> =
        nodes.iter().map(|node| (*node, taker.free.cpus_in(Level::Numa, *node).len())).collect();
    let mut best: Option<(f64, Vec<usize>, Vec<usize>)> = None;
    for chosen in combinations(nodes, size) {
        let share = count / size / group * group;
        let whole: usize = chosen.iter().map(|node| free[node] / group * group).sum();
        if whole < count || chosen.iter().any(|node| free[node] < share) {
            continue;
        }
        let mut left = free.clone();
        for node in &chosen {
            *left.entry(*node).or_default() -= share;
        }
        let rest = count - share * size;
        let Some((balance, remainder)) = remainders(&chosen, &left, rest, group) else { continue };
        if best.as_ref().is_none_or(|(known, _, _)| balance < *known) {
            best = Some((balance, chosen, remainder));
        }
    }
    best.map(|(_, chosen, remainder)| (chosen, remainder))
}

/// From which of the nodes `rest` CPUs come, and how uneven that leaves all of them.
fn remainders(chosen: &[usize], left: &BTreeMap<usize, usize>, rest: usize, group: usize) -> Option<(f64, Vec<usize>)> {
    if rest == 0 {
        return Some((deviation(left), Vec::new()));
    }
    let able: Vec<usize> = chosen.iter().copied().filter(|node| left[node] >= group).collect();
    let mut best: Option<(f64, Vec<usize>)> = None;
    for size in (1..=able.len()).rev() {
        for subset in combinations(&able, size) {
            if subset.iter().map(|node| left[node] / group * group).sum::<usize>() < rest {
                continue;
            }
            let (mut left, mut rest) = (left.clone(), rest);
            while rest > 0 {
                for node in &subset {
                    if rest > 0 && left[node] >= group {
                        *left.entry(*node).or_default() -= group;
                        rest = rest.saturating_sub(group);
                    }
                }
            }
            let balance = deviation(&left);
            if best.as_ref().is_none_or(|(known, _)| balance < *known) {
                best = Some((balance, subset));
            }
        }
    }
    best
}

/// The standard deviation, rounded as stock does it, so that what differs by rounding alone counts as equal.
fn deviation(left: &BTreeMap<usize, usize>) -> f64 {
    let count = left.len().max(1) as f64;
    let mean = left.values().sum::<usize>() as f64 / count;
    let square = left.values().map(|value| (*value as f64 - mean).powi(2)).sum::<f64>() / count;
    (square.sqrt() * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::machine;
    use proptest::prelude::*;

    const PLAIN: Options = Options {
        full_cores_only: false,
        across_numa: false,
        align_by_socket: false,
        across_cores: false,
        strict_reservation: false,
        align_by_uncore: false,
    };

    fn show(topology: &Topology, available: &str, count: usize, options: Options) -> String {
        match take(topology, &available.parse().unwrap(), count, &options) {
            Ok(cpus) => cpus.to_string(),
            Err(error) => error,
        }
    }

    /// Two sockets, a NUMA node each, six cores a socket, two threads: CPU 0 and CPU 12 are one core. The same machine
    /// and answers as in stock's own tests.
    #[test]
    fn near_together() {
        let dual = machine(2, 1, 6, 2);
        let mut shown = String::new();
        for (available, count) in [
            ("0-23", 0),
            ("0-23", 1),
            ("0-23", 2),
            ("0-23", 12),
            ("0-23", 14),
            ("0-23", 24),
            ("1-23", 12),
            ("0-5,12-17", 3),
            ("0,3-5,12,17", 3),
            ("6-23", 1),
            ("0-3", 5),
        ] {
            shown += &format!("{count} of {available}: {}\n", show(&dual, available, count, PLAIN));
        }
        let golden = "\
0 of 0-23: 
1 of 0-23: 0
2 of 0-23: 0,12
12 of 0-23: 0-5,12-17
14 of 0-23: 0-6,12-18
24 of 0-23: 0-23
12 of 1-23: 6-11,18-23
3 of 0-5,12-17: 0-1,12
3 of 0,3-5,12,17: 0,3,12
1 of 6-23: 12
5 of 0-3: not enough cpus available to satisfy request: requested=5, available=4
";
        assert_eq!(shown, golden);
    }

    #[test]
    fn by_options() {
        let dual = machine(2, 1, 6, 2);
        // Threads of different cores.
        assert_eq!(show(&dual, "0-23", 4, Options { across_cores: true, ..PLAIN }), "0-3");
        // Half from each node, since one has too little.
        let across = Options { across_numa: true, ..PLAIN };
        assert_eq!(show(&dual, "0-23", 14, across), "0-3,6-9,12-14,18-20");
        assert_eq!(show(&dual, "0-23", 12, across), "0-5,12-17");
        let whole = Options { full_cores_only: true, ..across };
        assert_eq!(show(&dual, "0-23", 16, whole), "0-3,6-9,12-15,18-21");
        // Caches of two cores each: 0,1,12,13 share one. A hole of the right size is taken before a larger one.
        let uncore = Options { align_by_uncore: true, ..PLAIN };
        assert_eq!(show(&dual, "0-23", 4, uncore), "0-1,12-13");
        assert_eq!(show(&dual, "1-23", 4, uncore), "2-3,14-15");
        assert_eq!(show(&dual, "1-5,13-17", 3, uncore), "2-3,14");
    }

    #[test]
    fn sockets_with_several_nodes() {
        // Two sockets of two nodes of two cores.
        let machine = machine(2, 2, 2, 2);
        assert_eq!(show(&machine, "0-15", 8, PLAIN), "0-3,8-11");
        assert_eq!(show(&machine, "1-15", 8, PLAIN), "4-7,12-15");
        assert_eq!(show(&machine, "1-15", 4, PLAIN), "2-3,10-11");
    }

    proptest! {
        #[test]
        fn as_many_as_asked_and_only_available_ones(
            shape in (1..3usize, 1..3usize, 1..5usize, 1..3usize),
            holes in proptest::collection::vec(any::<bool>(), 48),
            count in 0..40usize,
            flags in 0..16u8,
        ) {
            let topology = machine(shape.0, shape.1, shape.2, shape.3);
            let available: CpuSet =
                topology.all().iter().filter(|cpu| holes.get(*cpu).copied().unwrap_or(true)).collect();
            let bit = |n: u8| flags & (1 << n) != 0;
            let options = Options {
                full_cores_only: bit(0),
                across_numa: bit(1),
                across_cores: bit(2),
                align_by_uncore: bit(3),
                ..PLAIN
            };
            match take(&topology, &available, count, &options) {
                Ok(cpus) => {
                    prop_assert_eq!(cpus.len(), count);
                    prop_assert!(cpus.is_subset(&available));
                }
                Err(_) => prop_assert!(count > available.len()),
            }
        }
    }
}
