//! The managers of one node together: admits pods one at a time, keeps what was given in stock's state files, and says
//! what each container has.
//!
//! What a pod was given is on disk before its first container starts, and a pod that is refused leaves nothing behind.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::sync::watch;

use crate::cpu::options::Options;
use crate::cpu::policy::{self as cpu, CpuError, containers, uid};
use crate::cpu::state::{CpuState, StateError};
use crate::cpuset::CpuSet;
use crate::hint::{Hint, Hints};
use crate::mask::NumaMask;
use crate::memory::policy as memory;
use crate::memory::state::{Block, MemoryState};
use crate::metrics::{Alignment, Measured, OnNode};
use crate::settings::Settings;
use crate::topology::{Level, Topology};
use crate::topology_manager::{self as topology_manager, ConfigError, Policy, Scope, TopologyManager};

const CPU_FILE: &str = "cpu_manager_state";
const MEMORY_FILE: &str = "memory_manager_state";
const STATIC_CPU: &str = "static";
const STATIC_MEMORY: &str = "Static";

/// Why a pod is not admitted: what its status says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// One word.
    pub reason: &'static str,
    /// The sentence.
    pub message: String,
}

impl Refusal {
    fn topology() -> Self {
        let message = "Resources cannot be allocated with Topology locality".to_owned();
        Self { reason: "TopologyAffinityError", message }
    }

    /// Something that admission did not reckon with.
    pub fn unexpected(error: impl std::fmt::Display) -> Self {
        let message = format!("Allocate failed due to {error}, which is unexpected");
        Self { reason: "UnexpectedAdmissionError", message }
    }
}

/// Who gives devices to containers; asked along with the managers here.
#[async_trait]
pub trait DeviceProvider: Send + Sync {
    /// From which NUMA nodes the container's devices could come.
    fn hints(&self, pod: &Pod, container: &Container) -> Hints;

    /// The same for all of the pod's containers together.
    fn pod_hints(&self, pod: &Pod) -> Hints;

    /// Gives the container its devices, near `affinity` if that is known; nothing if it has them or wants none.
    ///
    /// # Errors
    /// Why not, in stock's words.
    async fn allocate(&self, pod: &Pod, container: &Container, affinity: Option<NumaMask>) -> Result<(), String>;

    /// Takes back what the pod has.
    fn release(&self, uid: &str);
}

/// There are no devices.
#[async_trait]
impl DeviceProvider for () {
    fn hints(&self, _: &Pod, _: &Container) -> Hints {
        Hints::new()
    }

    fn pod_hints(&self, _: &Pod) -> Hints {
        Hints::new()
    }

    async fn allocate(&self, _: &Pod, _: &Container, _: Option<NumaMask>) -> Result<(), String> {
        Ok(())
    }

    fn release(&self, _: &str) {}
}

#[derive(Debug)]
struct State {
    cpu: CpuState,
    memory: MemoryState,
    reusable_cpus: cpu::Reusable,
    reusable_memory: memory::Reusable,
    /// What the files say.
    kept: (CpuState, MemoryState),
}

/// The managers of one node.
#[derive(Debug)]
pub struct Aligner {
    topology: Arc<Topology>,
    manager: TopologyManager,
    cpu: Option<cpu::StaticPolicy>,
    cpu_options: Options,
    memory: Option<memory::StaticPolicy>,
    folder: PathBuf,
    state: Mutex<State>,
    /// Pods are admitted one after another.
    turn: tokio::sync::Mutex<()>,
    changed: watch::Sender<u64>,
    measured: Measured,
}

impl Aligner {
    /// Starts the managers on that machine with what their state files say.
    ///
    /// # Errors
    /// The configuration cannot be, or a state file is damaged or another configuration's; the text says what to do.
    pub fn new(settings: &Settings, topology: Arc<Topology>) -> Result<Self, ConfigError> {
        let options = topology_manager::Options::parse(&settings.topology_options)?;
        let policy = Policy::parse(&settings.topology_policy)?;
        let manager = TopologyManager::new(policy, Scope::parse(&settings.topology_scope)?, options, &topology)?;
        let cpu_options = Options::parse(&settings.cpu_options, settings.stages)?;
        let cpu = match settings.cpu_policy.as_str() {
            "" | "none" => None,
            STATIC_CPU => {
                cpu_options.fit(&topology, policy)?;
                let (count, reserved) = (settings.reserved_count(), settings.reserved_cpus.clone());
                Some(cpu::StaticPolicy::new(topology.clone(), count, reserved, cpu_options)?)
            }
            other => return Err(ConfigError(format!("unknown policy: {other:?}; cpuManagerPolicy is none or static"))),
        };
        let memory = match settings.memory_policy.as_str() {
            "" | "None" => None,
            STATIC_MEMORY => {
                settings.check_memory(&topology)?;
                Some(memory::StaticPolicy::new(&topology, &settings.reserved_memory)?)
            }
            other => {
                return Err(ConfigError(format!("unknown policy: {other:?}; memoryManagerPolicy is None or Static")));
            }
        };
        let name = if cpu.is_some() { STATIC_CPU } else { "none" };
        let mut cpu_state = read(&settings.folder, CPU_FILE, "CPU", |text| CpuState::decode(text, name))?
            .unwrap_or_else(|| CpuState::new(name));
        let name = if memory.is_some() { STATIC_MEMORY } else { "None" };
        let mut memory_state = read(&settings.folder, MEMORY_FILE, "memory", |text| MemoryState::decode(text, name))?
            .unwrap_or_else(|| MemoryState::new(name));
        let drained = |file: &str, error: ConfigError| {
            let path = settings.folder.join(file);
            ConfigError(format!("{error}, please drain node and remove policy state file {}", path.display()))
        };
        if let Some(policy) = &cpu {
            policy.start(&mut cpu_state).map_err(|error| drained(CPU_FILE, error))?;
        }
        if let Some(policy) = &memory {
            policy.start(&mut memory_state).map_err(|error| drained(MEMORY_FILE, error))?;
        }
        let state = State {
            // Nothing is on disk yet, as far as is known here.
            kept: (CpuState::default(), MemoryState::default()),
            cpu: cpu_state,
            memory: memory_state,
            reusable_cpus: cpu::Reusable::default(),
            reusable_memory: memory::Reusable::default(),
        };
        let aligner = Self {
            topology,
            manager,
            cpu,
            cpu_options,
            memory,
            folder: settings.folder.clone(),
            state: Mutex::new(state),
            turn: tokio::sync::Mutex::default(),
            changed: watch::Sender::new(0),
            measured: Measured::default(),
        };
        let stored = aligner.keep(&mut aligner.state());
        stored.map_err(|error| ConfigError(format!("the managers' state files cannot be written: {error}")))?;
        Ok(aligner)
    }

    /// What the managers count.
    pub fn measured(&self) -> &Measured {
        &self.measured
    }

    /// Whether any manager here has a say about any pod.
    pub fn is_idle(&self) -> bool {
        self.cpu.is_none() && self.memory.is_none() && self.manager.policy == Policy::None
    }

    /// Told whenever somebody's CPUs, or those of the pool, have changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The machine.
    pub fn topology(&self) -> &Arc<Topology> {
        &self.topology
    }

    /// Gives every container of the pod what it is entitled to, near each other as far as the policy asks for it.
    ///
    /// # Errors
    /// It cannot be; the pod then has nothing.
    pub async fn admit(&self, pod: &Pod, devices: &dyn DeviceProvider) -> Result<(), Refusal> {
        let _turn = self.turn.lock().await;
        let began = Instant::now();
        self.measured.admissions.inc();
        let admitted = self.align(pod, devices).await;
        let stored = admitted.and_then(|()| self.keep(&mut self.state()).map_err(Refusal::unexpected));
        if stored.is_err() {
            if self.manager.policy != Policy::None {
                self.measured.refusals.inc();
            }
            devices.release(uid(pod));
            self.release(uid(pod));
        }
        self.measured.duration.observe(began.elapsed().as_secs_f64() * 1000.0);
        stored
    }

    /// Takes in a pod that runs already: what it has stays, what it lacks it gets if there is enough; it is never
    /// refused. Returns what it could not be given.
    pub fn adopt(&self, pod: &Pod) -> Option<Refusal> {
        let mut missing = None;
        let mut state = self.state();
        for container in containers(pod) {
            let allocated = self.allocate(&mut state, pod, container, Hint::default());
            missing = missing.or(allocated.err());
        }
        let stored = self.keep(&mut state);
        missing.or(stored.err().map(Refusal::unexpected))
    }

    async fn align(&self, pod: &Pod, devices: &dyn DeviceProvider) -> Result<(), Refusal> {
        let per_container = self.manager.scope == Scope::Container;
        let mut hint = Hint::default();
        if self.manager.policy != Policy::None && !per_container {
            hint = self.agree("pod", &[devices.pod_hints(pod)], |state| self.pod_hints(state, pod))?;
        }
        for container in containers(pod) {
            if self.manager.policy != Policy::None && per_container {
                let given = [devices.hints(pod, container)];
                hint = self.agree("container", &given, |state| self.hints(state, pod, container))?;
            }
            tracing::debug!(pod = uid(pod), container = container.name, %hint, "topology affinity");
            devices.allocate(pod, container, hint.affinity).await.map_err(Refusal::unexpected)?;
            self.allocate(&mut self.state(), pod, container, hint)?;
        }
        if self.manager.policy.is_guaranteed() && !per_container {
            self.count_aligned("pod", "numa_node");
        }
        Ok(())
    }

    /// The hint that suits devices, CPUs and memory.
    fn agree(
        &self,
        scope: &'static str,
        devices: &[Hints; 1],
        own: impl FnOnce(&State) -> [Hints; 2],
    ) -> Result<Hint, Refusal> {
        let [cpu, memory] = own(&self.state());
        let (hint, admitted) = self.manager.merge(&[devices[0].clone(), cpu, memory]);
        if !admitted {
            if self.manager.policy.is_guaranteed() {
                let alignment = Alignment { scope, boundary: "numa_node" };
                self.measured.not_aligned.get_or_create(&alignment).inc();
            }
            return Err(Refusal::topology());
        }
        if self.manager.policy.is_guaranteed() && scope == "container" {
            self.count_aligned(scope, "numa_node");
        }
        Ok(hint)
    }

    fn count_aligned(&self, scope: &'static str, boundary: &'static str) {
        self.measured.aligned.get_or_create(&Alignment { scope, boundary }).inc();
    }

    fn hints(&self, state: &State, pod: &Pod, container: &Container) -> [Hints; 2] {
        let cpu = self.cpu.as_ref().map(|p| p.hints(&state.cpu, &state.reusable_cpus, pod, container));
        let memory = self.memory.as_ref().map(|p| p.hints(&state.memory, &state.reusable_memory, pod, container));
        [cpu.unwrap_or_default(), memory.unwrap_or_default()]
    }

    fn pod_hints(&self, state: &State, pod: &Pod) -> [Hints; 2] {
        let cpu = self.cpu.as_ref().map(|p| p.pod_hints(&state.cpu, &state.reusable_cpus, pod));
        let memory = self.memory.as_ref().map(|p| p.pod_hints(&state.memory, &state.reusable_memory, pod));
        [cpu.unwrap_or_default(), memory.unwrap_or_default()]
    }

    fn allocate(&self, state: &mut State, pod: &Pod, container: &Container, hint: Hint) -> Result<(), Refusal> {
        let of = (pod, container);
        if let Some(policy) = &self.cpu {
            let given = policy.allocate(&mut state.cpu, &mut state.reusable_cpus, of, hint.affinity);
            if given != Ok(0) {
                self.measured.cpu_requests.inc();
            }
            match given {
                Ok(0) => {}
                Ok(_) => self.count_cpu_alignment(&state.cpu, pod, container),
                Err(error) => {
                    self.measured.cpu_errors.inc();
                    return Err(match error {
                        CpuError::TooFew(_) => Refusal::unexpected(error),
                        _ => Refusal { reason: "SMTAlignmentError", message: error.to_string() },
                    });
                }
            }
        }
        if let Some(policy) = &self.memory {
            let given = policy.allocate(&mut state.memory, &mut state.reusable_memory, of, hint);
            if given != Ok(false) {
                self.measured.memory_requests.inc();
            }
            given.map_err(|error| {
                self.measured.memory_errors.inc();
                Refusal::unexpected(error)
            })?;
        }
        Ok(())
    }

    fn count_cpu_alignment(&self, state: &CpuState, pod: &Pod, container: &Container) {
        if self.cpu_options.full_cores_only {
            self.count_aligned("container", "physical_cpu");
        }
        let cpus = state.exclusive(uid(pod), &container.name);
        let mut caches =
            cpus.into_iter().flat_map(CpuSet::iter).filter_map(|cpu| Some(self.topology.cpus.get(&cpu)?.uncore));
        let first = caches.next();
        if self.cpu_options.align_by_uncore && first.is_some_and(|first| caches.all(|cache| cache == first)) {
            self.count_aligned("container", "uncore_cache");
        }
    }

    /// Takes back what the pod has here (its devices are their provider's).
    pub fn release(&self, uid: &str) {
        self.retain(|known| known != uid);
    }

    /// Takes back what all pods have that are not to be kept.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        let mut state = self.state();
        let uids: Vec<String> = state.cpu.assigned.keys().chain(state.memory.assigned.keys()).cloned().collect();
        for uid in uids.iter().filter(|uid| !keep(uid)) {
            state.cpu.release(uid);
            state.memory.release(uid);
            state.reusable_cpus.forget(uid);
            state.reusable_memory.forget(uid);
        }
        if let Err(error) = self.keep(&mut state) {
            // Only too much is on disk; the next start takes it back.
            tracing::warn!(%error, "what pods gave back was not written down");
        }
    }

    /// The CPUs on which the container runs: its own, or the pool's; none if every CPU is everybody's.
    pub fn cpus(&self, uid: &str, container: &str) -> Option<CpuSet> {
        let state = self.state();
        state.cpu.cpus(uid, container).filter(|_| self.cpu.is_some()).cloned()
    }

    /// The container's own CPUs.
    pub fn exclusive_cpus(&self, uid: &str, container: &str) -> Option<CpuSet> {
        self.state().cpu.exclusive(uid, container).cloned()
    }

    /// Whether any container of the pod has CPUs of its own.
    pub fn has_exclusive_cpus(&self, uid: &str) -> bool {
        self.state().cpu.assigned.contains_key(uid)
    }

    /// The container's own memory.
    pub fn memory(&self, uid: &str, container: &str) -> Vec<Block> {
        self.state().memory.blocks(uid, container).cloned().unwrap_or_default()
    }

    /// The NUMA nodes of the container's own memory, in the kernel's list format; none if it has none.
    pub fn memory_nodes(&self, uid: &str, container: &str) -> Option<String> {
        let blocks = self.memory(uid, container);
        let nodes: CpuSet = blocks.iter().flat_map(|block| block.numa_affinity.iter().copied()).collect();
        (!nodes.is_empty()).then(|| nodes.to_string())
    }

    /// The CPUs that can be given away at all.
    pub fn allocatable_cpus(&self) -> CpuSet {
        self.cpu.as_ref().map(cpu::StaticPolicy::allocatable).unwrap_or_default()
    }

    /// The memory that can be given away at all.
    pub fn allocatable_memory(&self) -> Vec<Block> {
        self.memory.as_ref().map(memory::StaticPolicy::allocatable).unwrap_or_default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down what has changed, and tells of it.
    fn keep(&self, state: &mut State) -> io::Result<()> {
        self.show(&state.cpu);
        if state.kept.0 != state.cpu {
            write(&self.folder, CPU_FILE, &state.cpu.encode())?;
            state.kept.0.clone_from(&state.cpu);
            self.changed.send_modify(|count| *count += 1);
        }
        if state.kept.1 != state.memory {
            write(&self.folder, MEMORY_FILE, &state.memory.encode())?;
            state.kept.1.clone_from(&state.memory);
        }
        Ok(())
    }

    fn show(&self, state: &CpuState) {
        let Some(policy) = &self.cpu else { return };
        let exclusive = state.all_exclusive();
        self.measured.shared_pool.set(policy.available(state).len() as i64 * 1000);
        self.measured.exclusive.set(exclusive.len() as i64);
        for node in self.topology.numa_nodes() {
            let count = exclusive.intersection(&self.topology.cpus_in(Level::Numa, node)).len();
            self.measured.exclusive_on.get_or_create(&OnNode { numa_node: node.to_string() }).set(count as i64);
        }
    }
}

fn write(folder: &Path, file: &str, text: &str) -> io::Result<()> {
    bosun_kit::files::write_atomic(&folder.join(file), text.as_bytes(), 0o600)
}

fn read<T>(
    folder: &Path,
    file: &str,
    what: &str,
    decode: impl FnOnce(&[u8]) -> Result<T, StateError>,
) -> Result<Option<T>, ConfigError> {
    let path = folder.join(file);
    let fault = |error: &dyn std::fmt::Display| {
        ConfigError(format!(
            "could not restore state from checkpoint: {error}, please drain this node and delete the {what} manager checkpoint file {:?} before restarting Kubelet",
            path.display().to_string()
        ))
    };
    match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(fault(&error)),
        Ok(text) => decode(&text).map(Some).map_err(|error| fault(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{GIB, container, guaranteed, machine, pod};
    use serde_json::json;

    fn settings(folder: &Path, topology_policy: &str, scope: &str) -> Settings {
        let kept = || [("memory".to_owned(), GIB)].into();
        Settings {
            cpu_policy: STATIC_CPU.into(),
            reserved_milli: 1500,
            memory_policy: STATIC_MEMORY.into(),
            reserved_memory: [(0, kept()), (1, kept())].into(),
            node_reserved: [("memory".to_owned(), 2 * GIB)].into(),
            topology_policy: topology_policy.into(),
            topology_scope: scope.into(),
            ..Settings::none(folder.to_owned())
        }
    }

    fn start(settings: &Settings) -> Result<Aligner, String> {
        Aligner::new(settings, Arc::new(machine(2, 1, 4, 2))).map_err(|error| error.0)
    }

    /// Devices on node 1 only.
    struct OnNodeOne(std::sync::atomic::AtomicBool);

    #[async_trait]
    impl DeviceProvider for OnNodeOne {
        fn hints(&self, _: &Pod, _: &Container) -> Hints {
            let hint = Hint { affinity: Some(NumaMask::new([1])), preferred: true };
            [("example.com/nic".to_owned(), Some(vec![hint]))].into()
        }

        fn pod_hints(&self, pod: &Pod) -> Hints {
            self.hints(pod, &Container::default())
        }

        async fn allocate(&self, _: &Pod, _: &Container, affinity: Option<NumaMask>) -> Result<(), String> {
            assert_eq!(affinity, Some(NumaMask::new([1])));
            match self.0.load(std::sync::atomic::Ordering::SeqCst) {
                true => Err("the plugin is gone".into()),
                false => Ok(()),
            }
        }

        fn release(&self, _: &str) {}
    }

    #[tokio::test]
    async fn cpus_memory_and_devices_come_from_one_node() {
        let folder = tempfile::tempdir().unwrap();
        for scope in ["container", "pod"] {
            let _ = fs::remove_file(folder.path().join(CPU_FILE));
            let _ = fs::remove_file(folder.path().join(MEMORY_FILE));
            let aligner = start(&settings(folder.path(), "single-numa-node", scope)).unwrap();
            let devices = OnNodeOne(false.into());
            aligner.admit(&guaranteed("a", 4, 3), &devices).await.unwrap();
            assert_eq!(aligner.cpus("a", "app").unwrap().to_string(), "4-5,12-13");
            assert_eq!(aligner.memory_nodes("a", "app").unwrap(), "1");
            assert_eq!(aligner.cpus("b", "app").unwrap().to_string(), "0-3,6-11,14-15");
            // Node 1 has too few CPUs left; nothing of the pod stays.
            let refusal = aligner.admit(&guaranteed("b", 6, 1), &devices).await.unwrap_err();
            assert_eq!(refusal, Refusal::topology());
            // Enough CPUs, too little memory.
            assert_eq!(aligner.admit(&guaranteed("b", 2, 6), &devices).await, Err(Refusal::topology()));
            devices.0.store(true, std::sync::atomic::Ordering::SeqCst);
            let refusal = aligner.admit(&guaranteed("b", 2, 1), &devices).await.unwrap_err();
            assert_eq!(refusal.message, "Allocate failed due to the plugin is gone, which is unexpected");
            assert!(!aligner.has_exclusive_cpus("b") && aligner.memory("b", "app").is_empty());
        }
    }

    #[tokio::test]
    async fn refusals_in_stock_s_words() {
        let folder = tempfile::tempdir().unwrap();
        let aligner = start(&settings(folder.path(), "none", "container")).unwrap();
        let refusal = aligner.admit(&guaranteed("a", 15, 1), &()).await.unwrap_err();
        assert_eq!(
            (refusal.reason, refusal.message.as_str()),
            (
                "UnexpectedAdmissionError",
                "Allocate failed due to not enough cpus available to satisfy request: requested=15, available=14, which is unexpected"
            )
        );
        let refusal = aligner.admit(&guaranteed("a", 1, 15), &()).await.unwrap_err();
        assert!(refusal.message.contains("no NUMA nodes with enough memory is available"), "{refusal:?}");
        let other = tempfile::tempdir().unwrap();
        let mut whole = settings(other.path(), "none", "container");
        whole.cpu_options.insert("full-pcpus-only".into(), "true".into());
        let refusal = start(&whole).unwrap().admit(&guaranteed("a", 1, 1), &()).await.unwrap_err();
        assert_eq!(refusal.reason, "SMTAlignmentError");
    }

    #[tokio::test]
    async fn what_was_given_survives_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path(), "best-effort", "container");
        let aligner = start(&settings).unwrap();
        let mut changes = aligner.changes();
        changes.mark_unchanged();
        aligner.admit(&guaranteed("a", 2, 1), &()).await.unwrap();
        aligner.admit(&guaranteed("b", 2, 1), &()).await.unwrap();
        assert!(changes.has_changed().unwrap());
        let cpus = aligner.cpus("a", "app");
        drop(aligner);
        let aligner = start(&settings).unwrap();
        assert_eq!(aligner.cpus("a", "app"), cpus);
        assert_eq!(aligner.adopt(&guaranteed("a", 2, 1)), None);
        assert_eq!(aligner.cpus("a", "app"), cpus);
        // One that runs is not refused for what it cannot be given.
        assert!(aligner.adopt(&guaranteed("c", 14, 1)).is_some());
        assert!(!aligner.has_exclusive_cpus("c"));
        aligner.retain(|uid| uid == "b");
        assert!(!aligner.has_exclusive_cpus("a") && aligner.has_exclusive_cpus("b"));
        let text = fs::read_to_string(folder.path().join(CPU_FILE)).unwrap();
        assert!(text.contains("\"b\"") && !text.contains("\"a\""), "{text}");
        let other = Settings { cpu_policy: "none".into(), ..settings };
        let fault = start(&other).unwrap_err();
        assert!(
            fault.contains("configured policy \"none\" differs from state checkpoint policy \"static\""),
            "{fault}"
        );
        assert!(fault.contains("please drain this node and delete the CPU manager checkpoint file"), "{fault}");
    }

    #[tokio::test]
    async fn what_cannot_be_written_down_is_not_given() {
        let folder = tempfile::tempdir().unwrap();
        let kept = folder.path().join("kept");
        fs::create_dir(&kept).unwrap();
        let aligner = start(&settings(&kept, "none", "container")).unwrap();
        fs::rename(&kept, folder.path().join("away")).unwrap();
        let refusal = aligner.admit(&guaranteed("a", 2, 1), &()).await.unwrap_err();
        assert_eq!(refusal.reason, "UnexpectedAdmissionError");
        assert!(!aligner.has_exclusive_cpus("a"));
    }

    #[tokio::test]
    async fn under_the_policies_none_nothing_is_done() {
        let folder = tempfile::tempdir().unwrap();
        let aligner = start(&Settings::none(folder.path().to_owned())).unwrap();
        assert!(aligner.is_idle());
        aligner.admit(&guaranteed("a", 2, 1), &()).await.unwrap();
        assert_eq!((aligner.cpus("a", "app"), aligner.memory_nodes("a", "app")), (None, None));
        let text = fs::read_to_string(folder.path().join(CPU_FILE)).unwrap();
        assert_eq!(text, r#"{"policyName":"none","defaultCpuSet":"","checksum":1353318690}"#);
        let text = fs::read_to_string(folder.path().join(MEMORY_FILE)).unwrap();
        assert!(text.starts_with(r#"{"policyName":"None","machineState":{},"checksum":"#), "{text}");
    }

    #[test]
    fn configurations_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let good = || settings(folder.path(), "restricted", "pod");
        let fault = |change: &dyn Fn(&mut Settings)| {
            let mut settings = good();
            change(&mut settings);
            start(&settings).unwrap_err()
        };
        assert!(fault(&|s| s.cpu_policy = "dynamic".into()).contains("unknown policy: \"dynamic\""));
        assert!(fault(&|s| s.memory_policy = "static".into()).contains("memoryManagerPolicy is None or Static"));
        assert!(fault(&|s| s.reserved_milli = 0).contains("to be greater than zero"));
        assert!(fault(&|s| s.node_reserved.clear()).contains("is not equal to the value"));
        let moved = fault(&|s| drop(s.reserved_memory.insert(7, s.reserved_memory[&1].clone())));
        assert!(moved.contains("NUMA node 7 that does not exist"), "{moved}");
        let huge = fault(&|s| {
            s.node_reserved.insert("hugepages-2Mi".into(), 1);
        });
        assert!(huge.contains("hugepages-2Mi"), "{huge}");
    }

    #[tokio::test]
    async fn numbers_have_stock_s_names() {
        let folder = tempfile::tempdir().unwrap();
        let aligner = start(&settings(folder.path(), "single-numa-node", "container")).unwrap();
        let metrics = bosun_kit::metrics::Metrics::default();
        aligner.measured().register(&metrics);
        aligner.admit(&guaranteed("a", 2, 1), &()).await.unwrap();
        let burstable = pod("b", vec![], vec![container("app", json!({"cpu": "1"}))]);
        aligner.admit(&burstable, &()).await.unwrap();
        aligner.admit(&guaranteed("c", 12, 1), &()).await.unwrap_err();
        let page = metrics.render();
        for line in [
            "kubelet_cpu_manager_pinning_requests_total 1",
            "kubelet_cpu_manager_shared_pool_size_millicores 12000",
            "kubelet_cpu_manager_exclusive_cpu_allocation_count 2",
            "kubelet_cpu_manager_allocation_per_numa{numa_node=\"0\"} 2",
            "kubelet_memory_manager_pinning_requests_total 1",
            "kubelet_topology_manager_admission_requests_total 3",
            "kubelet_topology_manager_admission_errors_total 1",
            "kubelet_topology_manager_admission_duration_ms_count 3",
            "kubelet_container_aligned_compute_resources_count{scope=\"container\",boundary=\"numa_node\"} 2",
            "kubelet_container_aligned_compute_resources_failure_count{scope=\"container\",boundary=\"numa_node\"} 1",
        ] {
            assert!(page.contains(line), "{line} in {page}");
        }
    }
}
