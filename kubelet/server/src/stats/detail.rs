//! Everything a cgroup counts, for `/metrics/cadvisor`: processor, memory, block devices, processes, limits, pressure.
//!
//! A field is `None` where the kernel does not count it (in this version of cgroups, or at the root).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bosun_kubelet_cgroup::{field, number};

use super::cgroup::{CgroupReader, Usage};
use super::pressure::Pressures;

/// Nanoseconds of one tick of `cpuacct.stat`: USER_HZ is 100 on every architecture that Linux runs Kubernetes on.
const TICK: u64 = 10_000_000;
/// A v1 memory limit from here on means none.
const NO_LIMIT: u64 = 1 << 62;

/// What a cgroup has used and may use. Times in nanoseconds, sizes in bytes.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Detail {
    /// What the summary shows.
    pub(crate) usage: Usage,
    /// Processor time in user mode, and in the kernel.
    pub(crate) cpu_modes: Option<(u64, u64)>,
    /// How the processor quota was enforced.
    pub(crate) throttling: Option<Throttling>,
    /// Processor limits.
    pub(crate) cpu_limits: Option<CpuLimits>,
    /// The rest of memory.
    pub(crate) memory: Memory,
    /// Memory limits: all, with swap, reservation; 0 for none. Absent at the root.
    pub(crate) memory_limits: Option<[u64; 3]>,
    /// Kills for want of memory.
    pub(crate) oom_kills: Option<u64>,
    /// Transfers by device and operation.
    pub(crate) io: Vec<DeviceIo>,
    /// Processes with everything below.
    pub(crate) processes: Vec<u32>,
    /// Threads: how many, and at most (0 for no limit).
    pub(crate) threads: Option<(u64, u64)>,
    /// Stalls.
    pub(crate) pressures: Pressures,
    /// When the cgroup was made, in seconds since the epoch.
    pub(crate) created: Option<i64>,
}

/// How the processor quota was enforced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Throttling {
    pub(crate) periods: u64,
    pub(crate) throttled_periods: u64,
    pub(crate) throttled: u64,
    /// Periods with a burst, and the time of bursts.
    pub(crate) bursts: Option<(u64, u64)>,
}

/// Processor limits, in the terms of version 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CpuLimits {
    pub(crate) shares: u64,
    /// Microseconds of each period; absent without a limit.
    pub(crate) quota: Option<u64>,
    pub(crate) period: u64,
}

/// Memory beyond what [`Usage`] has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) cache: u64,
    pub(crate) mapped: u64,
    pub(crate) kernel: u64,
    pub(crate) active_file: u64,
    pub(crate) most: Option<u64>,
    pub(crate) failcnt: u64,
    /// What version 2 alone tells.
    pub(crate) unified: Option<UnifiedMemory>,
}

/// What version 2 alone tells of memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct UnifiedMemory {
    pub(crate) dirty: u64,
    pub(crate) writeback: u64,
    pub(crate) scanned: u64,
    pub(crate) stolen: u64,
    pub(crate) refault_file: u64,
    pub(crate) refault_anon: u64,
    pub(crate) high_events: u64,
    pub(crate) max_events: u64,
}

/// One device's transfers by operation (`Read`, `Write`, …): bytes and requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct DeviceIo {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) bytes: BTreeMap<String, u64>,
    pub(crate) requests: BTreeMap<String, u64>,
}

impl CgroupReader {
    /// All counters of `cgroup`; `None` when it is gone. At the root of version 2, where the kernel counts no memory,
    /// what it has of `usage` is left at zero.
    pub(crate) fn detail(&self, cgroup: &str) -> Option<Detail> {
        let at_root = cgroup == "/";
        let mut detail = match self.is_unified() {
            true => unified(&self.folder("", cgroup), at_root, self.read(cgroup))?,
            false => Detail { usage: self.read(cgroup)?, ..self.detail_of_version_1(cgroup) },
        };
        if at_root {
            detail.memory_limits = None;
        }
        Some(detail)
    }

    fn detail_of_version_1(&self, cgroup: &str) -> Detail {
        let cpu = self.folder("cpu", cgroup);
        let accounting = self.folder("cpuacct", cgroup);
        let memory = self.folder("memory", cgroup);
        let blkio = self.folder("blkio", cgroup);
        let pids = self.folder("pids", cgroup);
        let modes = text(&accounting, "cpuacct.stat");
        let mode = |name| field(&modes, name).map(|ticks| ticks.saturating_mul(TICK));
        let throttled = text(&cpu, "cpu.stat");
        let stat = text(&memory, "memory.stat");
        let of = |name: &str| field(&stat, &format!("total_{name}")).unwrap_or(0);
        let amount = |name: &str| number(&memory.join(name)).unwrap_or(0);
        let limit = |name: &str| Some(amount(name)).filter(|limit| *limit < NO_LIMIT).unwrap_or(0);
        let mut io = BTreeMap::new();
        let most_telling = |all: &str, below: &str| {
            Some(text(&blkio, all)).filter(|t| !t.is_empty()).unwrap_or_else(|| text(&blkio, below))
        };
        let bytes = most_telling("blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes");
        let requests = most_telling("blkio.throttle.io_serviced_recursive", "blkio.throttle.io_serviced");
        blkio_lines(&bytes, &mut io, |device| &mut device.bytes);
        blkio_lines(&requests, &mut io, |device| &mut device.requests);
        Detail {
            usage: Usage::default(),
            cpu_modes: mode("user").zip(mode("system")),
            throttling: field(&throttled, "nr_periods").map(|periods| Throttling {
                periods,
                throttled_periods: field(&throttled, "nr_throttled").unwrap_or(0),
                throttled: field(&throttled, "throttled_time").unwrap_or(0),
                bursts: field(&throttled, "nr_bursts").zip(field(&throttled, "burst_time")),
            }),
            cpu_limits: number(&cpu.join("cpu.shares")).map(|shares| CpuLimits {
                shares,
                quota: number(&cpu.join("cpu.cfs_quota_us")),
                period: number(&cpu.join("cpu.cfs_period_us")).unwrap_or(0),
            }),
            memory: Memory {
                cache: of("cache"),
                mapped: of("mapped_file"),
                kernel: amount("memory.kmem.usage_in_bytes"),
                active_file: of("active_file"),
                most: number(&memory.join("memory.max_usage_in_bytes")),
                failcnt: amount("memory.failcnt"),
                unified: None,
            },
            memory_limits: Some([
                limit("memory.limit_in_bytes"),
                limit("memory.memsw.limit_in_bytes"),
                limit("memory.soft_limit_in_bytes"),
            ]),
            oom_kills: field(&text(&memory, "memory.oom_control"), "oom_kill"),
            io: io.into_values().collect(),
            processes: self.processes(cgroup),
            threads: number(&pids.join("pids.current")).map(|n| (n, number(&pids.join("pids.max")).unwrap_or(0))),
            pressures: Pressures::default(),
            created: created(&memory),
        }
    }
}

fn unified(folder: &Path, at_root: bool, usage: Option<Usage>) -> Option<Detail> {
    let cpu = text(folder, "cpu.stat");
    let usage = match usage {
        Some(usage) => usage,
        None if at_root => Usage::default(),
        None => return None,
    };
    let microseconds = |name: &str| field(&cpu, name).map(|n| n.saturating_mul(1000));
    let events = text(folder, "memory.events");
    let event = |name: &str| field(&events, name).unwrap_or(0);
    let amount = |name: &str| number(&folder.join(name));
    let max = text(folder, "cpu.max");
    let mut max = max.split_whitespace();
    let (quota, period) = (max.next().and_then(|n| n.parse().ok()), max.next().and_then(|n| n.parse().ok()));
    Some(Detail {
        usage,
        cpu_modes: microseconds("user_usec").zip(microseconds("system_usec")),
        throttling: field(&cpu, "nr_periods").map(|periods| Throttling {
            periods,
            throttled_periods: field(&cpu, "nr_throttled").unwrap_or(0),
            throttled: microseconds("throttled_usec").unwrap_or(0),
            bursts: field(&cpu, "nr_bursts").zip(microseconds("burst_usec")),
        }),
        // The conversion by which runtimes make weights of shares, backwards.
        cpu_limits: amount("cpu.weight").map(|weight| CpuLimits {
            shares: 2 + (weight.saturating_sub(1) * 262_142) / 9_999,
            quota,
            period: period.unwrap_or(100_000),
        }),
        memory: unified_memory(folder, &events),
        memory_limits: Some([
            amount("memory.max").unwrap_or(0),
            amount("memory.swap.max").unwrap_or(0),
            amount("memory.low").unwrap_or(0),
        ]),
        oom_kills: (!events.is_empty()).then(|| event("oom_kill")),
        io: unified_io(&text(folder, "io.stat")),
        processes: processes_below(folder),
        threads: amount("pids.current").map(|n| (n, amount("pids.max").unwrap_or(0))),
        pressures: Pressures::read(folder),
        created: created(folder),
    })
}

fn unified_memory(folder: &Path, events: &str) -> Memory {
    let stat = text(folder, "memory.stat");
    let of = |name: &str| field(&stat, name).unwrap_or(0);
    let event = |name: &str| field(events, name).unwrap_or(0);
    Memory {
        cache: of("file"),
        mapped: of("file_mapped"),
        kernel: of("kernel"),
        active_file: of("active_file"),
        most: number(&folder.join("memory.peak")),
        failcnt: event("max"),
        unified: Some(UnifiedMemory {
            dirty: of("file_dirty"),
            writeback: of("file_writeback"),
            scanned: of("pgscan"),
            stolen: of("pgsteal"),
            refault_file: of("workingset_refault_file"),
            refault_anon: of("workingset_refault_anon"),
            high_events: event("high"),
            max_events: event("max"),
        }),
    }
}

/// Lines of `io.stat`: `8:0 rbytes=… wbytes=… rios=… wios=… dbytes=… dios=…`.
fn unified_io(text: &str) -> Vec<DeviceIo> {
    let device = |line: &str| {
        let mut words = line.split_whitespace();
        let (major, minor) = numbers(words.next()?)?;
        let mut device = DeviceIo { major, minor, ..DeviceIo::default() };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let Ok(value) = value.parse() else { continue };
            let operation = match key.as_bytes().first()? {
                b'r' => "Read",
                b'w' => "Write",
                b'd' => "Discard",
                _ => continue,
            };
            match key.get(1..) {
                Some("bytes") => device.bytes.insert(operation.to_owned(), value),
                Some("ios") => device.requests.insert(operation.to_owned(), value),
                _ => None,
            };
        }
        Some(device)
    };
    text.lines().filter_map(device).collect()
}

/// Lines of a v1 `blkio` file: `8:0 Read 123`; the last, `Total 123`, names no device.
fn blkio_lines(
    text: &str,
    devices: &mut BTreeMap<(u32, u32), DeviceIo>,
    of: impl Fn(&mut DeviceIo) -> &mut BTreeMap<String, u64>,
) {
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(id), Some(operation), Some(value)) = (words.next(), words.next(), words.next()) else { continue };
        let (Some((major, minor)), Ok(value)) = (numbers(id), value.parse()) else { continue };
        let fresh = || DeviceIo { major, minor, ..DeviceIo::default() };
        of(devices.entry((major, minor)).or_insert_with(fresh)).insert(operation.to_owned(), value);
    }
}

fn numbers(id: &str) -> Option<(u32, u32)> {
    let (major, minor) = id.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Every process in the cgroup and below.
pub(crate) fn processes_below(folder: &Path) -> Vec<u32> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        found.extend(text(&folder, "cgroup.procs").lines().filter_map(|line| line.parse::<u32>().ok()));
        let entries = folder.read_dir().into_iter().flatten().flatten();
        folders.extend(entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
    }
    found
}

fn created(folder: &Path) -> Option<i64> {
    let modified = fs::metadata(folder).ok()?.modified().ok()?;
    Some(modified.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs() as i64)
}

fn text(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::cgroup::tests::tree;
    use super::*;

    fn operations(pairs: &[(&str, u64)]) -> BTreeMap<String, u64> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    }

    #[test]
    fn reads_version_1() {
        let tree = tree(&[
            ("cpuacct/kubepods/c/cpuacct.usage", "5000000000\n"),
            ("cpuacct/kubepods/c/cpuacct.stat", "user 300\nsystem 200\n"),
            ("cpu/kubepods/c/cpu.stat", "nr_periods 10\nnr_throttled 2\nthrottled_time 7\n"),
            ("cpu/kubepods/c/cpu.shares", "512\n"),
            ("cpu/kubepods/c/cpu.cfs_quota_us", "-1\n"),
            ("cpu/kubepods/c/cpu.cfs_period_us", "100000\n"),
            ("memory/kubepods/c/memory.usage_in_bytes", "1000\n"),
            ("memory/kubepods/c/memory.stat", "cache 1\ntotal_cache 20\ntotal_mapped_file 30\ntotal_active_file 40\n"),
            ("memory/kubepods/c/memory.limit_in_bytes", "4096\n"),
            ("memory/kubepods/c/memory.soft_limit_in_bytes", "9223372036854771712\n"),
            ("memory/kubepods/c/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
            ("memory/kubepods/c/memory.failcnt", "6\n"),
            ("memory/kubepods/c/cgroup.procs", "11\n"),
            ("memory/kubepods/c/d/cgroup.procs", "12\n"),
            ("blkio/kubepods/c/blkio.throttle.io_service_bytes", "8:0 Read 512\n8:0 Write 1024\nTotal 1536\n"),
            ("blkio/kubepods/c/blkio.throttle.io_serviced", "8:0 Read 1\n8:0 Write 2\nTotal 3\n"),
            ("pids/kubepods/c/pids.current", "4\n"),
            ("pids/kubepods/c/pids.max", "max\n"),
        ]);
        let detail = CgroupReader::new(tree.path()).detail("/kubepods/c").unwrap();
        assert_eq!(detail.cpu_modes, Some((3_000_000_000, 2_000_000_000)));
        let throttling = Throttling { periods: 10, throttled_periods: 2, throttled: 7, bursts: None };
        assert_eq!(detail.throttling, Some(throttling));
        assert_eq!(detail.cpu_limits, Some(CpuLimits { shares: 512, quota: None, period: 100_000 }));
        assert_eq!((detail.memory.cache, detail.memory.mapped, detail.memory.active_file), (20, 30, 40));
        assert_eq!((detail.memory_limits, detail.oom_kills), (Some([4096, 0, 0]), Some(3)));
        assert_eq!((detail.memory.failcnt, detail.processes, detail.threads), (6, vec![11, 12], Some((4, 0))));
        let io = DeviceIo {
            major: 8,
            minor: 0,
            bytes: operations(&[("Read", 512), ("Write", 1024)]),
            requests: operations(&[("Read", 1), ("Write", 2)]),
        };
        assert_eq!(detail.io, [io]);
    }

    #[test]
    fn reads_the_unified_hierarchy() {
        let tree = tree(&[
            ("cgroup.controllers", "cpu memory\n"),
            (
                "k/cpu.stat",
                "usage_usec 5\nuser_usec 4\nsystem_usec 1\nnr_periods 9\nnr_throttled 1\nthrottled_usec 2\n",
            ),
            ("k/cpu.weight", "39\n"),
            ("k/cpu.max", "50000 100000\n"),
            ("k/memory.current", "1000\n"),
            ("k/memory.max", "max\n"),
            ("k/memory.peak", "2000\n"),
            ("k/memory.stat", "anon 600\nfile 70\nfile_mapped 8\npgscan 5\n"),
            ("k/memory.events", "low 0\nhigh 1\nmax 2\noom 1\noom_kill 4\n"),
            ("k/io.stat", "254:1 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n"),
            ("k/pids.current", "3\n"),
            ("k/pids.max", "100\n"),
        ]);
        let detail = CgroupReader::new(tree.path()).detail("/k").unwrap();
        assert_eq!(detail.cpu_modes, Some((4000, 1000)));
        assert_eq!(detail.throttling.unwrap().throttled, 2000);
        assert_eq!(detail.cpu_limits, Some(CpuLimits { shares: 998, quota: Some(50_000), period: 100_000 }));
        assert_eq!((detail.memory.cache, detail.memory.most, detail.memory.failcnt), (70, Some(2000), 2));
        assert_eq!(detail.memory.unified.unwrap().scanned, 5);
        assert_eq!((detail.oom_kills, detail.threads), (Some(4), Some((3, 100))));
        assert_eq!(detail.io[0].bytes, operations(&[("Discard", 0), ("Read", 10), ("Write", 20)]));
        assert!(CgroupReader::new(tree.path()).detail("/gone").is_none());
    }
}
