//! A cgroup's counters, from version 1 hierarchies or the unified one.

use std::fs;
use std::path::{Path, PathBuf};

use bosun_kubelet_cgroup::{Hierarchy, field, number};

use super::detail::processes_below;
use super::pressure::Pressures;

/// Reads cgroups below one mount point, normally `/sys/fs/cgroup`.
#[derive(Debug, Clone)]
pub struct CgroupReader {
    hierarchy: Hierarchy,
}

/// What a cgroup has used. Times in nanoseconds, sizes in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time since the cgroup was made.
    pub cpu: u64,
    /// All memory, page cache included.
    pub memory: u64,
    /// File pages that have not been touched for a while.
    pub inactive_file: u64,
    /// Anonymous pages.
    pub rss: u64,
    /// Memory limit, if there is one.
    pub limit: Option<u64>,
    /// Page faults.
    pub faults: u64,
    /// Page faults that went to disk.
    pub major_faults: u64,
    /// Swap used, where the kernel counts it.
    pub swap: Option<u64>,
    /// Swap that may be used, if that is limited.
    pub swap_limit: Option<u64>,
}

impl Usage {
    /// Memory that cannot be given back without pain.
    pub fn working_set(&self) -> u64 {
        self.memory.saturating_sub(self.inactive_file)
    }
}

impl CgroupReader {
    /// Finds out which version is mounted at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { hierarchy: Hierarchy::new(root) }
    }

    /// The counters of `cgroup` (`/kubepods/…`); `None` when it is gone. `/` is the root, an empty name is no cgroup.
    pub fn read(&self, cgroup: &str) -> Option<Usage> {
        if cgroup.is_empty() {
            return None;
        }
        if self.is_unified() { unified(&self.folder("", cgroup)) } else { self.version_1(cgroup) }
    }

    /// A process in `cgroup` or below it.
    pub fn any_process(&self, cgroup: &str) -> Option<u32> {
        if cgroup.is_empty() { None } else { first_process(&self.folder("memory", cgroup), 3) }
    }

    /// Every process in `cgroup` and below it.
    pub(crate) fn processes(&self, cgroup: &str) -> Vec<u32> {
        if cgroup.is_empty() { Vec::new() } else { processes_below(&self.folder("memory", cgroup)) }
    }

    /// The stalls in `cgroup`, which version 1 does not count.
    pub(crate) fn pressures(&self, cgroup: &str) -> Pressures {
        if self.is_unified() { Pressures::read(&self.folder("", cgroup)) } else { Pressures::default() }
    }

    /// Whether this is version 2.
    pub(crate) fn is_unified(&self) -> bool {
        self.hierarchy.is_unified()
    }

    /// Where `cgroup` stands in the hierarchy of a controller; in version 2 there is one for all.
    pub(crate) fn folder(&self, controller: &str, cgroup: &str) -> PathBuf {
        self.hierarchy.folder(controller, cgroup)
    }

    fn version_1(&self, cgroup: &str) -> Option<Usage> {
        let cpu = ["cpuacct", "cpu,cpuacct", "cpu"]
            .iter()
            .find_map(|controller| number(&self.folder(controller, cgroup).join("cpuacct.usage")))?;
        let folder = self.folder("memory", cgroup);
        let memory = number(&folder.join("memory.usage_in_bytes"))?;
        let stat = fs::read_to_string(folder.join("memory.stat")).ok()?;
        let of = |name| field(&stat, name).unwrap_or(0);
        // "No limit" is the largest multiple of the page size that fits.
        let limit = number(&folder.join("memory.limit_in_bytes")).filter(|&limit| limit < i64::MAX as u64 - (1 << 20));
        Some(Usage {
            cpu,
            memory,
            inactive_file: of("total_inactive_file"),
            rss: of("total_rss"),
            limit,
            faults: of("total_pgfault"),
            major_faults: of("total_pgmajfault"),
            swap: number(&folder.join("memory.memsw.usage_in_bytes")).map(|all| all.saturating_sub(memory)),
            swap_limit: number(&folder.join("memory.memsw.limit_in_bytes"))
                .zip(limit)
                .map(|(all, memory)| all.saturating_sub(memory)),
        })
    }
}

fn unified(folder: &Path) -> Option<Usage> {
    let cpu = fs::read_to_string(folder.join("cpu.stat")).ok()?;
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let of = |name| field(&stat, name).unwrap_or(0);
    Some(Usage {
        cpu: field(&cpu, "usage_usec")?.saturating_mul(1000),
        memory: number(&folder.join("memory.current")).unwrap_or(0),
        inactive_file: of("inactive_file"),
        rss: of("anon"),
        limit: number(&folder.join("memory.max")),
        faults: of("pgfault"),
        major_faults: of("pgmajfault"),
        swap: number(&folder.join("memory.swap.current")),
        swap_limit: number(&folder.join("memory.swap.max")),
    })
}

fn first_process(folder: &Path, depth: u8) -> Option<u32> {
    let processes = fs::read_to_string(folder.join("cgroup.procs")).ok()?;
    if let Some(pid) = processes.lines().find_map(|line| line.parse().ok()) {
        return Some(pid);
    }
    if depth == 0 {
        return None;
    }
    let entries = folder.read_dir().ok()?.flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).find_map(|e| first_process(&e.path(), depth - 1))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    #[test]
    fn reads_version_1() {
        let tree = tree(&[
            ("cpuacct/kubepods/pod1/cpuacct.usage", "123\n"),
            ("memory/kubepods/pod1/memory.usage_in_bytes", "1000\n"),
            ("memory/kubepods/pod1/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/kubepods/pod1/memory.stat", "rss 1\ntotal_rss 600\ntotal_inactive_file 300\ntotal_pgfault 7\n"),
            ("memory/kubepods/pod1/cgroup.procs", ""),
            ("memory/kubepods/pod1/c/cgroup.procs", "42\n43\n"),
        ]);
        let reader = CgroupReader::new(tree.path());
        let usage = reader.read("/kubepods/pod1").unwrap();
        let want = Usage { cpu: 123, memory: 1000, inactive_file: 300, rss: 600, faults: 7, ..Usage::default() };
        assert_eq!(usage, want);
        assert_eq!(usage.working_set(), 700);
        assert_eq!(reader.any_process("/kubepods/pod1"), Some(42));
        assert_eq!(reader.read("/kubepods/pod2"), None);
        assert_eq!((reader.read(""), reader.any_process(""), reader.processes("")), (None, None, Vec::new()));
    }

    #[test]
    fn reads_the_unified_hierarchy() {
        let tree = tree(&[
            ("cgroup.controllers", "cpu memory\n"),
            ("kubepods/pod1/cpu.stat", "usage_usec 5\nuser_usec 4\n"),
            ("kubepods/pod1/memory.current", "1000\n"),
            ("kubepods/pod1/memory.max", "2000\n"),
            ("kubepods/pod1/memory.swap.current", "50\n"),
            ("kubepods/pod1/memory.swap.max", "max\n"),
            ("kubepods/pod1/memory.stat", "anon 600\ninactive_file 300\npgfault 7\npgmajfault 1\n"),
        ]);
        let usage = CgroupReader::new(tree.path()).read("kubepods/pod1").unwrap();
        assert_eq!(
            usage,
            Usage {
                cpu: 5000,
                memory: 1000,
                inactive_file: 300,
                rss: 600,
                limit: Some(2000),
                faults: 7,
                major_faults: 1,
                swap: Some(50),
                swap_limit: None,
            }
        );
    }
}
