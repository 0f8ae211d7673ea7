//! Reads usage from `/proc` and cgroups into a [`Summary`].

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

use super::cgroup::{CgroupReader, Usage};
use super::summary::{
    ContainerStats, CpuStats, FsStats, InterfaceStats, MemoryStats, NetworkStats, NodeStats, PodReference, PodStats,
    RlimitStats, Summary,
};
use crate::host::PodUsageSource;

/// The name under which the node's own processor time is remembered.
const NODE: &str = "";

/// Reads usage, and remembers the last processor times to tell rates.
pub struct Stats {
    node_name: String,
    root_dir: PathBuf,
    proc: PathBuf,
    cgroups: CgroupReader,
    last: Mutex<HashMap<String, (Timestamp, u64)>>,
}

impl Stats {
    /// Of the node of this name; `root_dir` is the kubelet's folder, on whose file system it reports.
    pub fn new(node_name: impl Into<String>, root_dir: impl Into<PathBuf>) -> Self {
        Self::at(node_name, root_dir, "/proc", "/sys/fs/cgroup")
    }

    /// The same with other places for `/proc` and the cgroups.
    pub fn at(
        node_name: impl Into<String>,
        root_dir: impl Into<PathBuf>,
        proc: impl Into<PathBuf>,
        cgroups: impl Into<PathBuf>,
    ) -> Self {
        Self {
            node_name: node_name.into(),
            root_dir: root_dir.into(),
            proc: proc.into(),
            cgroups: CgroupReader::new(cgroups),
            last: Mutex::default(),
        }
    }

    /// Reads everything; with `only_cpu_and_memory`, that alone. Blocks for some file reads a container.
    pub fn collect(&self, pods: &[PodUsageSource], only_cpu_and_memory: bool) -> Summary {
        let now = Timestamp::now();
        let mut next = HashMap::new();
        let node = self.node(now, only_cpu_and_memory, &mut next);
        let pods = pods.iter().map(|pod| self.pod(pod, now, only_cpu_and_memory, &mut next)).collect();
        // What was not read this time is gone.
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = next;
        Summary { node, pods }
    }

    fn node(&self, now: Timestamp, brief: bool, next: &mut HashMap<String, (Timestamp, u64)>) -> NodeStats {
        let stat = self.read("stat");
        let boot = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok());
        let mut stats = NodeStats {
            node_name: self.node_name.clone(),
            start_time: boot.and_then(|seconds| Timestamp::from_second(seconds).ok()),
            cpu: node_cpu(&stat).map(|used| self.cpu(NODE, used, now, next)),
            memory: node_memory(&self.read("meminfo"), &self.read("vmstat"), now),
            ..NodeStats::default()
        };
        if !brief {
            stats.network = network(&self.read("net/dev"), now);
            stats.fs = file_system(&self.root_dir, now);
            stats.rlimit = self.processes(now);
        }
        stats
    }

    fn pod(
        &self,
        pod: &PodUsageSource,
        now: Timestamp,
        brief: bool,
        next: &mut HashMap<String, (Timestamp, u64)>,
    ) -> PodStats {
        let mut stats = PodStats {
            pod_ref: PodReference { name: pod.name.clone(), namespace: pod.namespace.clone(), uid: pod.uid.clone() },
            start_time: pod.started,
            ..PodStats::default()
        };
        if let Some(usage) = self.cgroups.read(&pod.cgroup) {
            stats.cpu = Some(self.cpu(&pod.cgroup, usage.cpu, now, next));
            stats.memory = Some(memory(&usage, now));
        }
        for container in &pod.containers {
            let Some(usage) = self.cgroups.read(&container.cgroup) else { continue };
            stats.containers.push(ContainerStats {
                name: container.name.clone(),
                start_time: container.started,
                cpu: Some(self.cpu(&container.cgroup, usage.cpu, now, next)),
                memory: Some(memory(&usage, now)),
            });
        }
        if !brief && !pod.host_network {
            let pid = pod.pid.or_else(|| self.cgroups.any_process(&pod.cgroup));
            stats.network = pid.and_then(|pid| network(&self.read(&format!("{pid}/net/dev")), now));
        }
        stats
    }

    fn cpu(&self, key: &str, used: u64, now: Timestamp, next: &mut HashMap<String, (Timestamp, u64)>) -> CpuStats {
        next.insert(key.to_owned(), (now, used));
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied();
        let rate = last.and_then(|(then, before)| {
            let elapsed = u128::try_from((now - then).total(jiff::Unit::Nanosecond).ok()? as i128).ok()?;
            let spent = u128::from(used.checked_sub(before)?);
            u64::try_from((spent * 1_000_000_000).checked_div(elapsed)?).ok()
        });
        CpuStats { time: now, usage_nano_cores: rate, usage_core_nano_seconds: used }
    }

    fn processes(&self, now: Timestamp) -> Option<RlimitStats> {
        let maxpid = self.read("sys/kernel/pid_max").trim().parse().ok()?;
        // proc(5): the fourth field of loadavg is runnable/all scheduling entities.
        let loadavg = self.read("loadavg");
        let curproc = loadavg.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()?;
        Some(RlimitStats { time: now, maxpid, curproc })
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.proc.join(name)).unwrap_or_default()
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

fn node_memory(meminfo: &str, vmstat: &str, now: Timestamp) -> Option<MemoryStats> {
    let of = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib * 1024)
    };
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
    })
}

fn memory(usage: &Usage, now: Timestamp) -> MemoryStats {
    MemoryStats {
        time: now,
        available_bytes: usage.limit.map(|limit| limit.saturating_sub(usage.working_set())),
        usage_bytes: usage.memory,
        working_set_bytes: usage.working_set(),
        rss_bytes: usage.rss,
        page_faults: usage.faults,
        major_page_faults: usage.major_faults,
    }
}

/// The devices of a `/proc/<pid>/net/dev`; the first after loopback counts as the default one, `eth0` before others.
fn network(dev: &str, now: Timestamp) -> Option<NetworkStats> {
    let interfaces: Vec<InterfaceStats> =
        dev.lines().skip(2).filter_map(interface).filter(|i| i.name != "lo").collect();
    let default = interfaces.iter().find(|i| i.name == "eth0").or(interfaces.first())?.clone();
    Some(NetworkStats { time: now, default, interfaces })
}

fn interface(line: &str) -> Option<InterfaceStats> {
    let (name, counters) = line.split_once(':')?;
    let counters: Vec<u64> = counters.split_whitespace().map_while(|c| c.parse().ok()).collect();
    Some(InterfaceStats {
        name: name.trim().to_owned(),
        rx_bytes: *counters.first()?,
        rx_errors: *counters.get(2)?,
        tx_bytes: *counters.get(8)?,
        tx_errors: *counters.get(10)?,
    })
}

fn file_system(path: &Path, now: Timestamp) -> Option<FsStats> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    let block = stat.fragment_size();
    Some(FsStats {
        time: now,
        available_bytes: stat.blocks_available() * block,
        capacity_bytes: stat.blocks() * block,
        used_bytes: stat.blocks().saturating_sub(stat.blocks_free()) * block,
        inodes_free: stat.files_free(),
        inodes: stat.files(),
        inodes_used: stat.files().saturating_sub(stat.files_free()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::ContainerUsageSource;

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
        write(root, "proc/meminfo", "MemTotal: 1000 kB\nMemFree: 300 kB\nInactive(file): 200 kB\nAnonPages: 50 kB\n");
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
        let stats = Stats::at("node-1", root, root.join("proc"), root.join("cg"));
        let pod = PodUsageSource {
            name: "web".into(),
            namespace: "default".into(),
            uid: "u".into(),
            cgroup: "/kubepods/pod1".into(),
            started: None,
            host_network: false,
            pid: None,
            containers: vec![
                ContainerUsageSource { name: "app".into(), cgroup: "/kubepods/pod1/c1".into(), started: None },
                ContainerUsageSource { name: "gone".into(), cgroup: "/kubepods/pod1/c2".into(), started: None },
            ],
        };

        let first = stats.collect(std::slice::from_ref(&pod), false);
        let cpu = first.node.cpu.unwrap();
        assert_eq!((cpu.usage_core_nano_seconds, cpu.usage_nano_cores), (160_000_000, None));
        assert_eq!(first.node.memory.unwrap().working_set_bytes, 500 * 1024);
        assert_eq!(first.node.network.unwrap().default.tx_errors, 4);
        assert_eq!(first.node.rlimit.unwrap().curproc, 345);
        let web = &first.pods[0];
        assert_eq!(web.network.as_ref().unwrap().default.rx_bytes, 5);
        assert_eq!(web.containers.len(), 1);

        write(root, "cg/kubepods/pod1/cpu.stat", "usage_usec 2000\n");
        let second = stats.collect(&[pod], true);
        assert!(second.pods[0].cpu.as_ref().unwrap().usage_nano_cores.unwrap() > 0);
        assert!(second.pods[0].network.is_none() && second.node.fs.is_none());
    }

    #[test]
    fn reads_this_machine() {
        let summary = Stats::new("here", "/").collect(&[], false);
        assert!(summary.node.cpu.unwrap().usage_core_nano_seconds > 0);
        assert!(summary.node.memory.unwrap().working_set_bytes > 0);
        assert!(summary.node.fs.unwrap().capacity_bytes > 0);
    }
}
