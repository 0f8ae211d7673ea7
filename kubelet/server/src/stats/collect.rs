//! Reads usage from `/proc` and cgroups into a [`Summary`].

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use super::cgroup::{CgroupReader, Usage};
use super::disk::{DiskUse, Folders, file_system, is_mount_point};
use super::network::{Device, devices};
use super::pressure::{Pressures, PsiStats};
use super::summary::{
    ContainerStats, CpuStats, FsStats, InterfaceStats, IoStats, MemoryStats, NetworkStats, NodeStats, PodReference,
    PodStats, ProcessStats, PvcReference, RlimitStats, RuntimeStats, Summary, SwapStats, VolumeStats,
};
use crate::host::{ContainerUsageSource, PodUsageSource, RuntimeFs, RuntimeStorage, UsageSources};

/// The name under which the node's own processor time is remembered.
const NODE: &str = "";

/// How usage is read.
#[derive(Debug, Clone)]
pub struct StatsConfig {
    /// Name of the node.
    pub node_name: String,
    /// The kubelet's folder, on whose file system it reports.
    pub root_dir: PathBuf,
    /// For how long the size of a folder is taken as known (`volumeStatsAggPeriod`).
    pub volume_period: Duration,
    /// `/proc`.
    pub proc: PathBuf,
    /// Where cgroups are mounted.
    pub cgroups: PathBuf,
}

impl StatsConfig {
    /// Of the node of this name, with what is usual.
    pub fn new(node_name: impl Into<String>, root_dir: impl Into<PathBuf>) -> Self {
        Self {
            node_name: node_name.into(),
            root_dir: root_dir.into(),
            volume_period: Duration::from_secs(60),
            proc: "/proc".into(),
            cgroups: "/sys/fs/cgroup".into(),
        }
    }
}

/// Processor times by name, as read last.
type Times = HashMap<String, (Timestamp, u64)>;

/// Reads usage, and remembers the last processor times to tell rates.
pub struct Stats {
    config: StatsConfig,
    cgroups: CgroupReader,
    folders: Folders,
    last: Mutex<Times>,
}

/// One reading in the making.
struct Reading {
    now: Timestamp,
    /// Processor and memory alone are wanted.
    brief: bool,
    next: Times,
}

impl Stats {
    /// Reads by `config`.
    pub fn new(config: StatsConfig) -> Self {
        Self {
            cgroups: CgroupReader::new(&config.cgroups),
            folders: Folders::new(config.volume_period),
            last: Mutex::default(),
            config,
        }
    }

    /// Reads everything, with what the runtime told of its storage; with `only_cpu_and_memory`, that alone. Blocks for
    /// some file reads a container.
    pub fn collect(&self, sources: &UsageSources, storage: &RuntimeStorage, only_cpu_and_memory: bool) -> Summary {
        let mut reading = Reading { now: Timestamp::now(), brief: only_cpu_and_memory, next: HashMap::new() };
        let node = self.node(sources, storage, &mut reading);
        let pods = sources.pods.iter().map(|pod| self.pod(pod, storage, &mut reading)).collect();
        // What was not read this time is gone.
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = reading.next;
        Summary { node, pods }
    }

    fn node(&self, sources: &UsageSources, storage: &RuntimeStorage, reading: &mut Reading) -> NodeStats {
        let now = reading.now;
        let stat = self.read("stat");
        let info = self.read("meminfo");
        let boot = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok());
        let pressures = Pressures::of_machine(&self.config.proc);
        let mut stats = NodeStats {
            node_name: self.config.node_name.clone(),
            system_containers: sources.systems.iter().filter_map(|(n, c)| self.container(n, c, reading)).collect(),
            start_time: boot.and_then(|seconds| Timestamp::from_second(seconds).ok()),
            cpu: node_cpu(&stat).map(|used| self.cpu(NODE, used, pressures.cpu, reading)),
            memory: node_memory(&info, &self.read("vmstat"), pressures.memory, now),
            swap: node_swap(&info, now),
            ..NodeStats::default()
        };
        if !reading.brief {
            stats.io = pressures.io.map(|psi| IoStats { time: now, psi });
            stats.network = network(&self.read("net/dev"), now);
            stats.fs = file_system(&self.config.root_dir, now);
            let image_fs = storage.images.as_ref().and_then(|fs| runtime_fs(fs, now));
            let container_fs = storage.containers.as_ref().and_then(|fs| runtime_fs(fs, now));
            stats.runtime = image_fs.is_some().then_some(RuntimeStats { image_fs, container_fs });
            stats.rlimit = self.processes(now);
        }
        stats
    }

    fn container(&self, name: &str, cgroup: &str, reading: &mut Reading) -> Option<ContainerStats> {
        let usage = self.cgroups.read(cgroup)?;
        let pressures = self.cgroups.pressures(cgroup);
        let now = reading.now;
        Some(ContainerStats {
            name: name.to_owned(),
            cpu: Some(self.cpu(cgroup, usage.cpu, pressures.cpu, reading)),
            memory: Some(memory(&usage, pressures.memory, now)),
            io: pressures.io.filter(|_| !reading.brief).map(|psi| IoStats { time: now, psi }),
            swap: swap(&usage, now),
            ..ContainerStats::default()
        })
    }

    fn pod(&self, pod: &PodUsageSource, storage: &RuntimeStorage, reading: &mut Reading) -> PodStats {
        let now = reading.now;
        let whole = self.container("", &pod.cgroup, reading).unwrap_or_default();
        let containers = pod.containers.iter().filter_map(|container| {
            let mut stats = self.container(&container.name, &container.cgroup, reading)?;
            stats.start_time = container.started;
            if !reading.brief {
                self.container_storage(&mut stats, container, storage, now);
            }
            Some(stats)
        });
        let mut stats = PodStats {
            pod_ref: PodReference { name: pod.name.clone(), namespace: pod.namespace.clone(), uid: pod.uid.clone() },
            start_time: pod.started,
            containers: containers.collect(),
            cpu: whole.cpu,
            memory: whole.memory,
            io: whole.io,
            swap: whole.swap,
            ..PodStats::default()
        };
        if !reading.brief {
            if !pod.host_network {
                let process = self.pod_process(pod);
                stats.network = process.and_then(|process| network(&self.read(&format!("{process}/net/dev")), now));
            }
            let count = self.cgroups.processes(&pod.cgroup).len() as u64;
            stats.process_stats = Some(ProcessStats { process_count: count });
            let on_disk = self.volumes(pod, &mut stats.volume, now);
            stats.ephemeral_storage = self.ephemeral_storage(&stats, on_disk, now);
        }
        stats
    }

    /// Writable layer and logs.
    fn container_storage(
        &self,
        stats: &mut ContainerStats,
        source: &ContainerUsageSource,
        storage: &RuntimeStorage,
        now: Timestamp,
    ) {
        let disk = storage.containers.as_ref().or(storage.images.as_ref());
        stats.rootfs = storage
            .layers
            .get(&source.id)
            .zip(disk)
            .and_then(|(layer, disk)| Some(using(*layer, file_system(&disk.mountpoint, now)?)));
        let log_dir = source.log_dir.as_ref();
        stats.logs = log_dir.and_then(|dir| Some(using(self.folders.size(dir)?, file_system(dir, now)?)));
    }

    /// Measures the pod's volumes; returns what those take that have no file system of their own.
    fn volumes(&self, pod: &PodUsageSource, into: &mut Vec<VolumeStats>, now: Timestamp) -> DiskUse {
        let mut on_disk = DiskUse::default();
        for volume in &pod.volumes {
            let Some(mut fs) = volume.measured.clone().or_else(|| file_system(&volume.path, now)) else { continue };
            if volume.measured.is_none() && !is_mount_point(&volume.path) {
                let Some(used) = self.folders.size(&volume.path) else { continue };
                on_disk.bytes += used.bytes;
                on_disk.inodes += used.inodes;
                fs = using(used, fs);
            }
            let claim = volume.claim.as_ref();
            let pvc_ref = claim.map(|name| PvcReference { name: name.clone(), namespace: pod.namespace.clone() });
            into.push(VolumeStats { fs, name: volume.name.clone(), pvc_ref });
        }
        on_disk
    }

    fn ephemeral_storage(&self, pod: &PodStats, volumes: DiskUse, now: Timestamp) -> Option<FsStats> {
        let parts = pod.containers.iter().flat_map(|c| [c.rootfs.as_ref(), c.logs.as_ref()]).flatten();
        let sum = parts.fold(volumes, |sum, part| DiskUse {
            bytes: sum.bytes + part.used_bytes,
            inodes: sum.inodes + part.inodes_used,
        });
        Some(using(sum, file_system(&self.config.root_dir, now)?))
    }

    /// A process in the pod's network namespace, as a folder of `/proc`.
    pub(crate) fn pod_process(&self, pod: &PodUsageSource) -> Option<String> {
        let of_sandbox = pod.sandbox.as_ref().and_then(|sandbox| self.cgroups.any_process(&sandbox.cgroup));
        let process = of_sandbox.or_else(|| self.cgroups.any_process(&pod.cgroup))?;
        Some(process.to_string())
    }

    /// The device of the file system that holds the kubelet's folder, and what it holds.
    pub(crate) fn root_file_system(&self) -> Option<(String, FsStats)> {
        let stats = file_system(&self.config.root_dir, Timestamp::now())?;
        let root = self.config.root_dir.canonicalize().ok()?;
        Some((mounted_device(&self.read("self/mountinfo"), &root), stats))
    }

    pub(crate) fn cgroups(&self) -> &CgroupReader {
        &self.cgroups
    }

    pub(crate) fn proc(&self) -> &Path {
        &self.config.proc
    }

    fn cpu(&self, key: &str, used: u64, psi: Option<PsiStats>, reading: &mut Reading) -> CpuStats {
        let now = reading.now;
        reading.next.insert(key.to_owned(), (now, used));
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied();
        let rate = last.and_then(|(then, before)| {
            let elapsed = u128::try_from((now - then).total(jiff::Unit::Nanosecond).ok()? as i128).ok()?;
            let spent = u128::from(used.checked_sub(before)?);
            u64::try_from((spent * 1_000_000_000).checked_div(elapsed)?).ok()
        });
        CpuStats { time: now, usage_nano_cores: rate, usage_core_nano_seconds: used, psi }
    }

    fn processes(&self, now: Timestamp) -> Option<RlimitStats> {
        let maxpid = self.read("sys/kernel/pid_max").trim().parse().ok()?;
        // proc(5): the fourth field of loadavg is runnable/all scheduling entities.
        let loadavg = self.read("loadavg");
        let curproc = loadavg.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()?;
        Some(RlimitStats { time: now, maxpid, curproc })
    }

    /// A file of `/proc`; empty if it cannot be read.
    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.config.proc.join(name)).unwrap_or_default()
    }
}

/// Nanoseconds all cores were busy: every field of `/proc/stat`'s first line but idle and iowait; guest time is
/// already within user time (proc(5)).
fn node_cpu(stat: &str) -> Option<u64> {
    let fields: Vec<u64> =
        stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().map_while(|f| f.parse().ok()).collect();
    let busy: u64 = fields.iter().take(8).enumerate().filter(|(i, _)| !matches!(i, 3 | 4)).map(|(_, v)| v).sum();
    // USER_HZ is 100 on every architecture that Linux runs Kubernetes on.
    Some(busy.saturating_mul(10_000_000))
}

/// One line of `/proc/meminfo`, in bytes.
pub(crate) fn meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib * 1024)
}

fn node_memory(info: &str, vmstat: &str, psi: Option<PsiStats>, now: Timestamp) -> Option<MemoryStats> {
    let of = |name: &str| meminfo(info, name);
    let counter =
        |name: &str| vmstat.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.parse().ok()).unwrap_or(0);
    let total = of("MemTotal")?;
    let used = total.saturating_sub(of("MemFree")?);
    let working_set = used.saturating_sub(of("Inactive(file)").unwrap_or(0));
    Some(MemoryStats {
        time: now,
        available_bytes: Some(total.saturating_sub(working_set)),
        usage_bytes: used,
        working_set_bytes: working_set,
        rss_bytes: of("AnonPages").unwrap_or(0),
        page_faults: counter("pgfault"),
        major_page_faults: counter("pgmajfault"),
        psi,
    })
}

fn node_swap(info: &str, now: Timestamp) -> Option<SwapStats> {
    let (total, free) = (meminfo(info, "SwapTotal")?, meminfo(info, "SwapFree")?);
    Some(SwapStats { time: now, swap_available_bytes: Some(free), swap_usage_bytes: total.saturating_sub(free) })
}

fn memory(usage: &Usage, psi: Option<PsiStats>, now: Timestamp) -> MemoryStats {
    MemoryStats {
        time: now,
        available_bytes: usage.limit.map(|limit| limit.saturating_sub(usage.working_set())),
        usage_bytes: usage.memory,
        working_set_bytes: usage.working_set(),
        rss_bytes: usage.rss,
        page_faults: usage.faults,
        major_page_faults: usage.major_faults,
        psi,
    }
}

fn swap(usage: &Usage, now: Timestamp) -> Option<SwapStats> {
    let used = usage.swap?;
    let available = usage.swap_limit.map(|limit| limit.saturating_sub(used));
    Some(SwapStats { time: now, swap_available_bytes: available, swap_usage_bytes: used })
}

/// The devices of a `/proc/<pid>/net/dev`; the first counts as the default one, `eth0` before others.
fn network(dev: &str, now: Timestamp) -> Option<NetworkStats> {
    let interfaces: Vec<InterfaceStats> = devices(dev).into_iter().map(interface).collect();
    let default = interfaces.iter().find(|i| i.name == "eth0").or(interfaces.first())?.clone();
    Some(NetworkStats { time: now, default, interfaces })
}

fn interface(device: Device) -> InterfaceStats {
    InterfaceStats {
        name: device.name,
        rx_bytes: device.received.bytes,
        rx_errors: device.received.errors,
        tx_bytes: device.sent.bytes,
        tx_errors: device.sent.errors,
    }
}

/// A file system, with what one user of it takes.
fn using(used: DiskUse, fs: FsStats) -> FsStats {
    FsStats { used_bytes: used.bytes, inodes_used: used.inodes, ..fs }
}

fn runtime_fs(fs: &RuntimeFs, now: Timestamp) -> Option<FsStats> {
    Some(using(fs.used, file_system(&fs.mountpoint, now)?))
}

/// What is mounted nearest above `path`, by a `mountinfo` (proc(5)).
fn mounted_device(mountinfo: &str, path: &Path) -> String {
    // Of two mounts at one place the later hides the earlier.
    let nearest = mountinfo.lines().filter_map(mount).filter(|(point, _)| path.starts_with(point));
    let nearest = nearest.max_by_key(|(point, _)| point.components().count());
    nearest.map_or_else(String::new, |(_, device)| device.to_owned())
}

/// Where a line of `mountinfo` says what is mounted.
fn mount(line: &str) -> Option<(&Path, &str)> {
    let (left, right) = line.split_once(" - ")?;
    Some((Path::new(left.split(' ').nth(4)?), right.split(' ').nth(1)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::VolumeSource;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn tells_what_the_node_and_a_pod_use() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        write(root, "proc/stat", "cpu  10 0 5 900 80 0 1 0 3 0\nbtime 1760000000\n");
        write(
            root,
            "proc/meminfo",
            "MemTotal: 1000 kB\nMemFree: 300 kB\nInactive(file): 200 kB\nSwapTotal: 8 kB\nSwapFree: 4 kB\n",
        );
        write(root, "proc/vmstat", "pgfault 9\npgmajfault 2\n");
        write(root, "proc/loadavg", "0.1 0.2 0.3 2/345 999\n");
        write(root, "proc/sys/kernel/pid_max", "32768\n");
        let head = "Inter-| Receive | Transmit\n face |bytes ...\n";
        let lo = "    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n";
        write(root, "proc/net/dev", &format!("{head}{lo}  ens3: 10 1 2 0 0 0 0 0 20 1 4 0 0 0 0 0\n"));
        write(root, "proc/77/net/dev", &format!("{head}{lo}  eth0: 5 1 0 0 0 0 0 0 6 1 0 0 0 0 0 0\n"));
        write(root, "cg/cgroup.controllers", "");
        write(root, "cg/kubepods/pod1/cpu.stat", "usage_usec 1000\n");
        write(root, "cg/kubepods/pod1/memory.current", "500\n");
        write(root, "cg/kubepods/pod1/cgroup.procs", "77\n");
        write(root, "cg/kubepods/pod1/c1/cpu.stat", "usage_usec 900\n");
        write(root, "cg/kubepods/pod1/c1/memory.swap.current", "30\n");
        write(root, "cg/kubepods/pod1/c1/memory.swap.max", "100\n");
        write(root, "cg/kubepods/pod1/c1/memory.pressure", "some avg10=1.5 avg60=0 avg300=0 total=7\n");
        write(
            root,
            "proc/pressure/io",
            "some avg10=0 avg60=0 avg300=0 total=5\nfull avg10=0 avg60=0 avg300=0 total=4\n",
        );
        write(root, "volumes/cache/file", &"x".repeat(8192));
        write(root, "logs/app/0.log", "line\n");
        let stats = Stats::new(StatsConfig {
            proc: root.join("proc"),
            cgroups: root.join("cg"),
            ..StatsConfig::new("node-1", root)
        });
        let container = |name: &str, cgroup: &str| ContainerUsageSource {
            name: name.into(),
            id: name.into(),
            cgroup: cgroup.into(),
            log_dir: Some(root.join("logs").join(name)),
            ..ContainerUsageSource::default()
        };
        let claim = Some("claim".to_owned());
        let pod = PodUsageSource {
            name: "web".into(),
            namespace: "default".into(),
            uid: "u".into(),
            cgroup: "/kubepods/pod1".into(),
            containers: vec![container("app", "/kubepods/pod1/c1"), container("gone", "/kubepods/pod1/c2")],
            volumes: vec![VolumeSource {
                name: "cache".into(),
                path: root.join("volumes/cache"),
                claim,
                measured: None,
            }],
            ..PodUsageSource::default()
        };
        let sources = UsageSources {
            pods: vec![pod],
            systems: vec![("pods".into(), "/kubepods/pod1".into())],
            ..UsageSources::default()
        };
        let disk = RuntimeFs { mountpoint: root.to_owned(), used: DiskUse { bytes: 77, inodes: 3 } };
        let storage = RuntimeStorage {
            images: Some(disk.clone()),
            containers: Some(disk),
            layers: [("app".to_owned(), DiskUse { bytes: 1000, inodes: 1 })].into(),
        };

        let first = stats.collect(&sources, &storage, false);
        let cpu = first.node.cpu.unwrap();
        assert_eq!((cpu.usage_core_nano_seconds, cpu.usage_nano_cores), (160_000_000, None));
        assert_eq!(first.node.memory.unwrap().working_set_bytes, 500 * 1024);
        assert_eq!(first.node.network.unwrap().default.tx_errors, 4);
        assert_eq!(first.node.rlimit.unwrap().curproc, 345);
        assert_eq!(first.node.io.unwrap().psi.full.total, 4);
        assert_eq!(first.node.swap.unwrap().swap_usage_bytes, 4096);
        assert_eq!(first.node.runtime.unwrap().image_fs.unwrap().used_bytes, 77);
        assert_eq!(first.node.system_containers[0].name, "pods");
        let web = &first.pods[0];
        assert_eq!(web.network.as_ref().unwrap().default.rx_bytes, 5);
        assert_eq!((web.containers.len(), web.process_stats.as_ref().unwrap().process_count), (1, 1));
        let app = &web.containers[0];
        assert_eq!(app.rootfs.as_ref().unwrap().used_bytes, 1000);
        let swap = app.swap.as_ref().unwrap();
        assert_eq!((swap.swap_usage_bytes, swap.swap_available_bytes), (30, Some(70)));
        assert_eq!(app.memory.as_ref().unwrap().psi.unwrap().some.total, 7);
        let (volume, logs) = (&web.volume[0], app.logs.as_ref().unwrap());
        assert_eq!((volume.name.as_str(), volume.pvc_ref.as_ref().unwrap().name.as_str()), ("cache", "claim"));
        assert!(volume.fs.used_bytes >= 8192 && volume.fs.capacity_bytes > volume.fs.used_bytes);
        let ephemeral = web.ephemeral_storage.as_ref().unwrap();
        assert_eq!(ephemeral.used_bytes, 1000 + volume.fs.used_bytes + logs.used_bytes);
        let text = serde_json::to_value(web).unwrap();
        assert!(text["ephemeral-storage"]["usedBytes"].is_u64() && text["volume"][0]["pvcRef"]["name"] == "claim");

        write(root, "cg/kubepods/pod1/cpu.stat", "usage_usec 2000\n");
        let second = stats.collect(&sources, &RuntimeStorage::default(), true);
        assert!(second.pods[0].cpu.as_ref().unwrap().usage_nano_cores.unwrap() > 0);
        assert!(second.pods[0].network.is_none() && second.node.fs.is_none() && second.pods[0].volume.is_empty());
    }

    #[test]
    fn reads_this_machine() {
        let stats = Stats::new(StatsConfig::new("here", "/"));
        let summary = stats.collect(&UsageSources::default(), &RuntimeStorage::default(), false);
        assert!(summary.node.cpu.unwrap().usage_core_nano_seconds > 0);
        assert!(summary.node.memory.unwrap().working_set_bytes > 0);
        assert!(summary.node.fs.unwrap().capacity_bytes > 0);
        let page = stats.cadvisor(&UsageSources::default());
        let cores = page.lines().find(|line| line.starts_with("machine_cpu_cores{")).unwrap();
        assert!(!cores.ends_with(" 0"), "{cores}");
        assert!(page.contains("container_cpu_usage_seconds_total{") && page.contains("container_fs_limit_bytes{"));
    }

    #[test]
    fn finds_the_device_under_a_folder() {
        let text = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 8:2 / /var rw shared:1 - xfs /dev/sda2 rw\n";
        assert_eq!(mounted_device(text, Path::new("/var/lib/kubelet")), "/dev/sda2");
        assert_eq!(mounted_device(text, Path::new("/variety")), "/dev/sda1");
    }
}
