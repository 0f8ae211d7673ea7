//! The static policy (KEP-3570): who gets CPUs of its own, and from where.

use std::sync::Arc;

use bosun_api::pod::{QosClass, is_sidecar, qos_class};
use bosun_api::quantity;
use k8s_openapi::api::core::v1::{Container, Pod};
use thiserror::Error;

use super::assignment::take;
use super::options::Options;
use super::state::CpuState;
use crate::cpuset::CpuSet;
use crate::hint::{Hint, Hints, mark_preferred};
use crate::mask::NumaMask;
use crate::topology::{Level, Topology};
use crate::topology_manager::ConfigError;

const CPU: &str = "cpu";

/// Why a container gets no CPUs.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CpuError {
    /// It asks for a part of a core, where only whole ones are given.
    #[error("SMT Alignment Error: requested {requested} cpus not multiple cpus per core = {per_core}")]
    PartOfCore {
        /// How many it asks for.
        requested: usize,
        /// Threads in a core.
        per_core: usize,
    },
    /// There are too few whole cores.
    #[error(
        "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = {available}, requested CPUs = {requested}, CPUs per core = {per_core}"
    )]
    TooFewCores {
        /// How many threads of whole cores are free.
        available: usize,
        /// How many it asks for.
        requested: usize,
        /// Threads in a core.
        per_core: usize,
    },
    /// There are too few CPUs.
    #[error("{0}")]
    TooFew(String),
}

/// The CPUs of init containers of the pod that is being admitted, which its later containers take over.
#[derive(Clone, Debug, Default)]
pub struct Reusable {
    uid: String,
    cpus: CpuSet,
}

impl Reusable {
    /// Nothing of the pod is there to be taken over any more.
    pub fn forget(&mut self, uid: &str) {
        if self.uid == uid {
            *self = Self::default();
        }
    }

    fn of(&self, uid: &str) -> CpuSet {
        if self.uid == uid { self.cpus.clone() } else { CpuSet::new() }
    }

    fn update(&mut self, pod: &Pod, container: &Container, cpus: &CpuSet) {
        let uid = uid(pod);
        let before = self.of(uid);
        let cpus = match is_plain_init(pod, container) {
            true => before.union(cpus),
            false => before.difference(cpus),
        };
        *self = Self { uid: uid.to_owned(), cpus };
    }
}

/// The static policy on one machine.
#[derive(Clone, Debug)]
pub struct StaticPolicy {
    topology: Arc<Topology>,
    reserved: CpuSet,
    /// The reserved CPUs and the other threads of their cores.
    reserved_cores: CpuSet,
    options: Options,
}

/// The pod's UID.
pub(crate) fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// All containers that are aligned, in the order in which they start: init containers, then the others.
pub(crate) fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|s| s.init_containers.as_ref()).into_iter().flatten();
    init.chain(spec.map(|s| s.containers.as_slice()).unwrap_or_default())
}

/// Whether the container is one of the pod's init containers.
pub(crate) fn is_init(pod: &Pod, container: &Container) -> bool {
    let init = pod.spec.as_ref().and_then(|s| s.init_containers.as_ref());
    init.into_iter().flatten().any(|init| init.name == container.name)
}

/// Whether the container ends before the others start.
pub(crate) fn is_plain_init(pod: &Pod, container: &Container) -> bool {
    is_init(pod, container) && !is_sidecar(container)
}

/// Whether the pod as a whole has requests or limits, which the managers leave alone.
pub(crate) fn has_pod_resources(pod: &Pod) -> bool {
    let resources = pod.spec.as_ref().and_then(|s| s.resources.as_ref());
    resources.is_some_and(|r| [&r.requests, &r.limits].into_iter().flatten().any(|list| !list.is_empty()))
}

/// How many CPUs of its own the container gets: whole cores of a guaranteed pod, else none.
pub fn wanted(pod: &Pod, container: &Container) -> usize {
    if qos_class(pod) != QosClass::Guaranteed || has_pod_resources(pod) {
        return 0;
    }
    let resources = container.resources.as_ref();
    // Limits stand for requests that are not given.
    let requested = [resources.and_then(|r| r.requests.as_ref()), resources.and_then(|r| r.limits.as_ref())];
    let cpu = requested.into_iter().map(|list| quantity::get(list, CPU)).find(|cpu| !cpu.is_zero()).unwrap_or_default();
    match cpu.value().checked_mul(1000) == Some(cpu.milli_value()) {
        true => usize::try_from(cpu.value()).unwrap_or(0),
        false => 0,
    }
}

/// How many the pod has at most at one time (KEP-753).
fn wanted_by_pod(pod: &Pod) -> usize {
    let (mut init, mut lasting) = (0, 0);
    for container in containers(pod) {
        let wanted = wanted(pod, container);
        match is_plain_init(pod, container) {
            true => init = init.max(lasting + wanted),
            false => lasting += wanted,
        }
    }
    init.max(lasting)
}

impl StaticPolicy {
    /// A policy that keeps `reserved`, or `count` CPUs of its own choice if that is empty, from being given away.
    ///
    /// # Errors
    /// There is nothing to reserve, or not as much.
    pub fn new(topology: Arc<Topology>, count: usize, reserved: CpuSet, options: Options) -> Result<Self, ConfigError> {
        let reserved = match reserved.is_empty() {
            true => take(&topology, &topology.all(), count, &options).map_err(|error| {
                ConfigError(format!("[cpumanager] unable to reserve the required amount of CPUs: {error}"))
            })?,
            false => reserved,
        };
        if reserved.is_empty() {
            return Err(ConfigError(
                "the static policy requires systemreserved.cpu + kubereserved.cpu to be greater than zero".to_owned(),
            ));
        }
        if let Some(cpu) = reserved.iter().find(|cpu| !topology.cpus.contains_key(cpu)) {
            return Err(ConfigError(format!("reservedSystemCPUs {reserved}: CPU {cpu} is not online on this machine")));
        }
        let cores = reserved.iter().map(|cpu| topology.cpus[&cpu].core);
        let reserved_cores = cores.flat_map(|core| topology.cpus_in(Level::Core, core).iter().collect::<Vec<_>>());
        Ok(Self { reserved_cores: reserved_cores.collect(), topology, reserved, options })
    }

    /// The CPUs that can be given away at all.
    pub fn allocatable(&self) -> CpuSet {
        self.topology.all().difference(&self.reserved)
    }

    /// Those of them that nobody has.
    pub fn available(&self, state: &CpuState) -> CpuSet {
        state.shared.difference(&self.reserved)
    }

    /// Fills an empty state, or compares one that was read with the machine.
    ///
    /// # Errors
    /// The state belongs to another machine or configuration.
    pub fn start(&self, state: &mut CpuState) -> Result<(), ConfigError> {
        let all = match self.options.strict_reservation {
            true => self.allocatable(),
            false => self.topology.all(),
        };
        if state.shared.is_empty() && state.assigned.is_empty() {
            state.shared = all;
            return Ok(());
        }
        let fault = |text: String| Err(ConfigError(text));
        let Self { reserved, options, .. } = self;
        if state.shared.is_empty() {
            return fault("default cpuset cannot be empty".to_owned());
        }
        let both = reserved.intersection(&state.shared);
        if options.strict_reservation && !both.is_empty() {
            return fault(format!(
                "some of strictly reserved cpus: \"{both}\" are present in defaultCpuSet: \"{}\"",
                state.shared
            ));
        }
        if !options.strict_reservation && both != *reserved {
            return fault(format!(
                "not all reserved cpus: \"{reserved}\" are present in defaultCpuSet: \"{}\"",
                state.shared
            ));
        }
        for (pod, assigned) in &state.assigned {
            for (container, cpus) in assigned {
                if !state.shared.intersection(cpus).is_empty() {
                    return fault(format!(
                        "pod: {pod}, container: {container} cpuset: \"{cpus}\" overlaps with default cpuset \"{}\"",
                        state.shared
                    ));
                }
            }
        }
        let known = state.shared.union(&state.all_exclusive());
        if known != all {
            return fault(format!(
                "current set of available CPUs \"{all}\" doesn't match with CPUs in state \"{known}\""
            ));
        }
        Ok(())
    }

    /// From where the container's CPUs could come.
    pub fn hints(&self, state: &CpuState, reusable: &Reusable, pod: &Pod, container: &Container) -> Hints {
        let wanted = wanted(pod, container);
        if wanted == 0 {
            return Hints::new();
        }
        let hints = match state.exclusive(uid(pod), &container.name) {
            Some(own) if own.len() != wanted => Vec::new(),
            Some(own) => self.combinations(own, &CpuSet::new(), wanted),
            None => self.combinations(&self.available(state), &reusable.of(uid(pod)), wanted),
        };
        [(CPU.to_owned(), Some(hints))].into()
    }

    /// From where the CPUs of all the pod's containers could come.
    pub fn pod_hints(&self, state: &CpuState, reusable: &Reusable, pod: &Pod) -> Hints {
        let total = wanted_by_pod(pod);
        if total == 0 {
            return Hints::new();
        }
        let mut own = CpuSet::new();
        for container in containers(pod) {
            if let Some(cpus) = state.exclusive(uid(pod), &container.name) {
                if cpus.len() != wanted(pod, container) {
                    return [(CPU.to_owned(), Some(Vec::new()))].into();
                }
                own = own.union(cpus);
            }
        }
        let hints = match own.len() == total {
            true => self.combinations(&own, &CpuSet::new(), total),
            false => self.combinations(&self.available(state), &reusable.of(uid(pod)).union(&own), total),
        };
        [(CPU.to_owned(), Some(hints))].into()
    }

    /// Every set of NUMA nodes that holds all of `reusable` and, with what is `available`, enough.
    fn combinations(&self, available: &CpuSet, reusable: &CpuSet, wanted: usize) -> Vec<Hint> {
        let nodes = self.topology.numa_nodes();
        let mut fewest = nodes.len();
        let mut hints = Vec::new();
        for mask in NumaMask::combinations(&nodes) {
            let inside = self.topology.cpus_in_mask(mask);
            if inside.len() >= wanted {
                fewest = fewest.min(mask.count());
            }
            let matching = available.intersection(&inside).len() + reusable.difference(available).len();
            if reusable.is_subset(&inside) && matching >= wanted {
                hints.push(Hint { affinity: Some(mask), preferred: false });
            }
        }
        mark_preferred(&mut hints, fewest);
        if self.options.align_by_socket {
            for hint in &mut hints {
                hint.preferred |= hint.affinity.is_some_and(|mask| self.is_socket_aligned(mask, fewest));
            }
        }
        hints
    }

    /// Whether the nodes span no more sockets than so many nodes need.
    fn is_socket_aligned(&self, mask: NumaMask, fewest: usize) -> bool {
        let sockets = self.topology.groups(Level::Socket).len().max(1);
        let per_socket = self.topology.nodes.len() / sockets;
        per_socket > 0 && self.sockets(mask).len() == fewest.div_ceil(per_socket)
    }

    fn sockets(&self, mask: NumaMask) -> std::collections::BTreeSet<usize> {
        mask.nodes().flat_map(|node| self.topology.groups_in(Level::Socket, Level::Numa, node)).collect()
    }

    /// Gives the container its CPUs, if it is one that gets any and has none yet. Returns how many it is entitled to.
    ///
    /// # Errors
    /// There are not as many, or not in whole cores.
    pub fn allocate(
        &self,
        state: &mut CpuState,
        reusable: &mut Reusable,
        (pod, container): (&Pod, &Container),
        affinity: Option<NumaMask>,
    ) -> Result<usize, CpuError> {
        let requested = wanted(pod, container);
        if requested == 0 {
            return Ok(0);
        }
        if let Some(own) = state.exclusive(uid(pod), &container.name) {
            let own = own.clone();
            reusable.update(pod, container, &own);
            return Ok(requested);
        }
        let again = reusable.of(uid(pod));
        if self.options.full_cores_only {
            self.check_cores(state, &again, requested)?;
        }
        let available = self.available(state).union(&again);
        let near = affinity.map(|mask| self.aligned(mask, &available)).unwrap_or_default();
        let few = |text| CpuError::TooFew(text);
        let aligned = take(&self.topology, &near, requested.min(near.len()), &self.options).map_err(few)?;
        let rest = available.difference(&aligned);
        let more = take(&self.topology, &rest, requested - aligned.len(), &self.options).map_err(few)?;
        let cpus = aligned.union(&more);
        state.shared = state.shared.difference(&cpus);
        reusable.update(pod, container, &cpus);
        state.assigned.entry(uid(pod).to_owned()).or_default().insert(container.name.clone(), cpus);
        Ok(requested)
    }

    fn check_cores(&self, state: &CpuState, again: &CpuSet, requested: usize) -> Result<(), CpuError> {
        let per_core = self.topology.cpus_per_core();
        if !requested.is_multiple_of(per_core) {
            return Err(CpuError::PartOfCore { requested, per_core });
        }
        // A core of which a thread is reserved is not whole.
        let available = state.shared.difference(&self.reserved_cores).union(again).len();
        match requested > available {
            true => Err(CpuError::TooFewCores { available, requested, per_core }),
            false => Ok(()),
        }
    }

    fn aligned(&self, mask: NumaMask, available: &CpuSet) -> CpuSet {
        if !self.options.align_by_socket {
            return available.intersection(&self.topology.cpus_in_mask(mask));
        }
        let sockets = self.sockets(mask).into_iter();
        let inside = sockets.flat_map(|socket| self.topology.cpus_in(Level::Socket, socket).iter().collect::<Vec<_>>());
        available.intersection(&inside.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{container, guaranteed, machine, pod};
    use proptest::prelude::*;
    use serde_json::json;

    struct Rig {
        policy: StaticPolicy,
        state: CpuState,
        reusable: Reusable,
    }

    impl Rig {
        fn new(topology: Topology, reserved: &str, options: Options) -> Self {
            let policy = StaticPolicy::new(Arc::new(topology), 1, reserved.parse().unwrap(), options).unwrap();
            let mut state = CpuState::new("static");
            policy.start(&mut state).unwrap();
            Self { policy, state, reusable: Reusable::default() }
        }

        fn admit(&mut self, pod: &Pod, affinity: Option<NumaMask>) -> Result<(), CpuError> {
            for container in containers(pod) {
                self.policy.allocate(&mut self.state, &mut self.reusable, (pod, container), affinity)?;
            }
            Ok(())
        }

        fn release(&mut self, uid: &str) {
            self.state.release(uid);
            self.reusable.forget(uid);
        }

        fn own(&self, uid: &str, container: &str) -> String {
            self.state.exclusive(uid, container).map(ToString::to_string).unwrap_or_default()
        }
    }

    #[test]
    fn only_guaranteed_pods_with_whole_cores() {
        let count = |resources: serde_json::Value| {
            let pod = pod("a", vec![], vec![container("app", resources)]);
            wanted(&pod, &pod.spec.as_ref().unwrap().containers[0])
        };
        assert_eq!(count(json!({"cpu": "2", "memory": "1Gi"})), 2);
        assert_eq!(count(json!({"cpu": "2000m", "memory": "1Gi"})), 2);
        assert_eq!(count(json!({"cpu": "1500m", "memory": "1Gi"})), 0);
        assert_eq!(count(json!({"cpu": "2"})), 0);
    }

    #[test]
    fn cpus_are_given_and_the_pool_shrinks() {
        let mut rig = Rig::new(machine(1, 1, 4, 2), "0", Options::default());
        rig.admit(&guaranteed("a", 2, 1), None).unwrap();
        assert_eq!((rig.own("a", "app"), rig.state.shared.to_string()), ("1,5".into(), "0,2-4,6-7".into()));
        // Asked again, nothing changes.
        rig.admit(&guaranteed("a", 2, 1), None).unwrap();
        assert_eq!(rig.state.shared.to_string(), "0,2-4,6-7");
        let error = rig.admit(&guaranteed("b", 6, 1), None).unwrap_err();
        assert_eq!(error.to_string(), "not enough cpus available to satisfy request: requested=6, available=5");
        rig.release("a");
        assert_eq!(rig.state.shared.to_string(), "0-7");
    }

    #[test]
    fn without_a_list_low_cores_are_reserved() {
        let policy = StaticPolicy::new(Arc::new(machine(1, 1, 4, 2)), 2, CpuSet::new(), Options::default()).unwrap();
        assert_eq!(policy.allocatable().to_string(), "1-3,5-7");
        let none = StaticPolicy::new(Arc::new(machine(1, 1, 4, 2)), 0, CpuSet::new(), Options::default());
        assert!(none.unwrap_err().0.contains("greater than zero"));
        let absent = StaticPolicy::new(Arc::new(machine(1, 1, 1, 1)), 1, [4].into(), Options::default());
        assert!(absent.unwrap_err().0.contains("CPU 4 is not online"));
    }

    #[test]
    fn init_containers_hand_their_cpus_on_and_sidecars_keep_theirs() {
        let mut rig = Rig::new(machine(1, 1, 8, 1), "0", Options::default());
        let size = |cpus: &str| json!({"cpu": cpus, "memory": "1Gi"});
        let mut sidecar = container("sidecar", size("1"));
        sidecar["restartPolicy"] = json!("Always");
        let init = vec![container("one", size("3")), sidecar, container("two", size("4"))];
        rig.admit(&pod("a", init, vec![container("app", size("2")), container("more", size("2"))]), None).unwrap();
        let own = ["one", "sidecar", "two", "app", "more"].map(|name| rig.own("a", name));
        assert_eq!(own, ["1-3", "1", "2-5", "2-3", "4-5"]);
        assert_eq!(rig.state.shared.to_string(), "0,6-7");
    }

    #[test]
    fn whole_cores_only() {
        let options = Options { full_cores_only: true, ..Options::default() };
        // CPU 4 is the other thread of the reserved CPU 0.
        let mut rig = Rig::new(machine(1, 1, 4, 2), "0", options);
        assert_eq!(
            rig.admit(&guaranteed("a", 3, 1), None).unwrap_err().to_string(),
            "SMT Alignment Error: requested 3 cpus not multiple cpus per core = 2"
        );
        rig.admit(&guaranteed("b", 6, 1), None).unwrap();
        assert_eq!(rig.own("b", "app"), "1-3,5-7");
        assert_eq!(
            rig.admit(&guaranteed("c", 2, 1), None).unwrap_err(),
            CpuError::TooFewCores { available: 0, requested: 2, per_core: 2 }
        );
    }

    #[test]
    fn hints_name_the_nodes_that_have_enough() {
        let mut rig = Rig::new(machine(2, 1, 2, 2), "0", Options::default());
        let show = |rig: &Rig, pod: &Pod| {
            let container = &pod.spec.as_ref().unwrap().containers[0];
            let hints = rig.policy.hints(&rig.state, &rig.reusable, pod, container);
            assert_eq!(hints, rig.policy.pod_hints(&rig.state, &rig.reusable, pod));
            hints["cpu"].iter().flatten().map(ToString::to_string).collect::<Vec<_>>()
        };
        let four = guaranteed("a", 4, 1);
        // Node 0 has a reserved CPU; on an idle machine one node would do.
        assert_eq!(show(&rig, &four), ["10 preferred", "11 not preferred"]);
        rig.admit(&four, Some(NumaMask::new([1]))).unwrap();
        assert_eq!(rig.own("a", "app"), "2-3,6-7");
        assert_eq!(show(&rig, &four), ["10 preferred", "11 not preferred"]);
        assert_eq!(show(&rig, &guaranteed("b", 2, 1)), ["01 preferred", "11 not preferred"]);
        assert!(show(&rig, &guaranteed("b", 4, 1)).is_empty());
        // Given another number than it asks for.
        assert!(show(&rig, &guaranteed("a", 2, 1)).is_empty());
    }

    #[test]
    fn states_of_other_machines_are_refused() {
        let policy = StaticPolicy::new(Arc::new(machine(1, 1, 4, 1)), 1, [0].into(), Options::default()).unwrap();
        let fault = |shared: &str, own: &str| {
            let mut state = CpuState { shared: shared.parse().unwrap(), ..CpuState::new("static") };
            state.assigned.insert("a".into(), [("app".to_owned(), own.parse().unwrap())].into());
            policy.start(&mut state).unwrap_err().0
        };
        assert_eq!(fault("", "1"), "default cpuset cannot be empty");
        assert_eq!(fault("2-3", "1"), "not all reserved cpus: \"0\" are present in defaultCpuSet: \"2-3\"");
        assert_eq!(fault("0-3", "1"), "pod: a, container: app cpuset: \"1\" overlaps with default cpuset \"0-3\"");
        assert_eq!(
            fault("0,2-5", "1"),
            "current set of available CPUs \"0-3\" doesn't match with CPUs in state \"0-5\""
        );
    }

    proptest! {
        /// Whatever comes and goes: no CPU has two owners or an owner and the pool, and none is lost.
        #[test]
        fn no_cpu_has_two_owners(steps in proptest::collection::vec((0..6u8, 0..4usize, any::<bool>()), 1..40)) {
            let topology = machine(2, 1, 4, 2);
            let all = topology.all();
            let mut rig = Rig::new(topology, "0,8", Options::default());
            for (name, cpus, comes) in steps {
                let uid = format!("pod{name}");
                let known = rig.state.assigned.contains_key(&uid);
                if comes && !known && cpus > 0 {
                    let size = |n: usize| json!({"cpu": n.to_string(), "memory": "1Gi"});
                    let pod = pod(&uid, vec![container("init", size(cpus + 1))], vec![container("app", size(cpus))]);
                    if rig.admit(&pod, Some(NumaMask::new([cpus % 2]))).is_err() {
                        rig.release(&uid);
                    }
                } else if !comes {
                    rig.release(&uid);
                }
                let mut seen = rig.state.shared.clone();
                for assigned in rig.state.assigned.values() {
                    // Within a pod an init container shares with its successors.
                    let own: CpuSet = assigned.values().flat_map(CpuSet::iter).collect();
                    prop_assert!(seen.intersection(&own).is_empty());
                    seen = seen.union(&own);
                }
                prop_assert_eq!(&seen, &all);
                prop_assert!(rig.state.shared.contains(0) && rig.state.shared.contains(8));
                prop_assert!(rig.policy.start(&mut rig.state.clone()).is_ok());
            }
        }
    }
}
