//! The machine as the kernel shows it in `/sys/devices/system`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cpuset::CpuSet;
use crate::topology::{Cpu, NumaNode, Topology};

/// The level of the cache that counts as "uncore".
const LAST_LEVEL: &str = "3";

/// Reads a machine's topology.
#[derive(Clone, Debug)]
pub struct Reader {
    system: PathBuf,
    meminfo: PathBuf,
}

impl Default for Reader {
    fn default() -> Self {
        Self::new(Path::new("/sys"), Path::new("/proc"))
    }
}

impl Reader {
    /// A reader of the machine whose `/sys` and `/proc` are these folders.
    pub fn new(sys: &Path, proc: &Path) -> Self {
        Self { system: sys.join("devices/system"), meminfo: proc.join("meminfo") }
    }

    /// The machine. Offline CPUs are left out. What a file does not tell is taken in its simplest form: no NUMA means
    /// one node with all memory, no cache of level 3 means one a socket.
    ///
    /// # Errors
    /// The list of online CPUs cannot be read.
    pub fn topology(&self) -> io::Result<Topology> {
        let online = self.system.join("cpu/online");
        let cpus: CpuSet = self.list(&online)?;
        let nodes = self.nodes();
        let mut topology = Topology::default();
        for cpu in cpus.iter() {
            let folder = self.system.join(format!("cpu/cpu{cpu}"));
            let numa = nodes.iter().find(|(_, (cpus, _))| cpus.contains(cpu)).map_or(0, |(node, _)| *node);
            // "-1" where the platform has no packages.
            let socket = number(&folder.join("topology/physical_package_id")).unwrap_or(0);
            let siblings = ["topology/core_cpus_list", "topology/thread_siblings_list"];
            let siblings = siblings.iter().find_map(|file| self.list(&folder.join(file)).ok());
            let core = siblings.and_then(|cpus| cpus.iter().next()).unwrap_or(cpu);
            let uncore = last_level_cache(&folder.join("cache")).unwrap_or(socket);
            topology.cpus.insert(cpu, Cpu { numa, socket, core, uncore });
        }
        topology.nodes = nodes.into_iter().map(|(id, (_, node))| (id, node)).collect();
        if topology.nodes.is_empty() {
            let memory = fs::read_to_string(&self.meminfo).ok().and_then(|text| total(&text)).unwrap_or(0);
            topology.nodes.insert(0, NumaNode { memory, ..NumaNode::default() });
        }
        Ok(topology)
    }

    fn list(&self, path: &Path) -> io::Result<CpuSet> {
        let wrong = |text: String| io::Error::other(format!("{}: {text}", path.display()));
        let text = fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        text.parse().map_err(|error: crate::cpuset::ParseCpuSetError| wrong(error.to_string()))
    }

    fn nodes(&self) -> BTreeMap<usize, (CpuSet, NumaNode)> {
        let folder = self.system.join("node");
        let mut nodes = BTreeMap::new();
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(id) = name.strip_prefix("node").and_then(|id| id.parse::<usize>().ok()) else { continue };
            let cpus = self.list(&entry.path().join("cpulist")).unwrap_or_default();
            let meminfo = fs::read_to_string(entry.path().join("meminfo")).unwrap_or_default();
            let distances = fs::read_to_string(entry.path().join("distance")).unwrap_or_default();
            let node = NumaNode {
                memory: total(&meminfo).unwrap_or(0),
                huge_pages: huge_pages(&entry.path().join("hugepages")),
                distances: distances.split_whitespace().filter_map(|d| d.parse().ok()).collect(),
            };
            nodes.insert(id, (cpus, node));
        }
        nodes
    }
}

fn number(path: &Path) -> Option<usize> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// `MemTotal` of a meminfo file in bytes.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.contains("MemTotal:"))?;
    let kilobytes: u64 = line.split("MemTotal:").nth(1)?.split_whitespace().next()?.parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// How many huge pages by the size of one in bytes, from folders such as `hugepages-2048kB`.
fn huge_pages(folder: &Path) -> BTreeMap<u64, u64> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let pages = entries.filter_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let size: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let count = number(&entry.path().join("nr_hugepages"))?;
        Some((size.checked_mul(1024)?, count as u64))
    });
    pages.collect()
}

fn last_level_cache(folder: &Path) -> Option<usize> {
    let entries = fs::read_dir(folder).ok()?.flatten();
    let mut folders = entries
        .map(|entry| entry.path())
        .filter(|path| fs::read_to_string(path.join("level")).is_ok_and(|level| level.trim() == LAST_LEVEL));
    number(&folders.next()?.join("id"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Two sockets, a node each, two cores a socket, two threads a core; CPU 7 is offline.
    fn machine(root: &Path) {
        let system = root.join("sys/devices/system");
        write(&system.join("cpu/online"), "0-6\n");
        for cpu in 0..8usize {
            let (socket, core) = (cpu / 2 % 2, cpu % 4);
            let folder = system.join(format!("cpu/cpu{cpu}"));
            write(&folder.join("topology/physical_package_id"), &format!("{socket}\n"));
            write(&folder.join("topology/thread_siblings_list"), &format!("{core},{}\n", core + 4));
            write(&folder.join("cache/index2/level"), "2\n");
            write(&folder.join("cache/index2/id"), "9\n");
            write(&folder.join("cache/index3/level"), "3\n");
            write(&folder.join("cache/index3/id"), &format!("{core}\n"));
        }
        for node in 0..2usize {
            let folder = system.join(format!("node/node{node}"));
            write(&folder.join("cpulist"), if node == 0 { "0-1,4-5\n" } else { "2-3,6-7\n" });
            write(
                &folder.join("meminfo"),
                &format!("Node {node} MemTotal:       2048 kB\nNode {node} MemFree: 1 kB\n"),
            );
            write(&folder.join("distance"), if node == 0 { "10 21\n" } else { "21 10\n" });
            write(&folder.join("hugepages/hugepages-2048kB/nr_hugepages"), "3\n");
        }
        write(&system.join("node/possible"), "0-1\n");
    }

    #[test]
    fn a_machine_is_read() {
        let root = tempfile::tempdir().unwrap();
        machine(root.path());
        let topology = Reader::new(&root.path().join("sys"), &root.path().join("proc")).topology().unwrap();
        assert_eq!(topology.all().to_string(), "0-6");
        assert_eq!(topology.cpus[&6], Cpu { numa: 1, socket: 1, core: 2, uncore: 2 });
        assert_eq!(topology.nodes[&1].memory, 2048 * 1024);
        assert_eq!(topology.nodes[&1].huge_pages, [(2 << 20, 3)].into());
        assert_eq!(topology.nodes[&1].distances, [21, 10]);
    }

    #[test]
    fn without_numa_there_is_one_node() {
        let root = tempfile::tempdir().unwrap();
        write(&root.path().join("sys/devices/system/cpu/online"), "0-1");
        write(&root.path().join("proc/meminfo"), "MemTotal:        1000 kB\n");
        let topology = Reader::new(&root.path().join("sys"), &root.path().join("proc")).topology().unwrap();
        assert_eq!(topology.numa_nodes(), [0]);
        assert_eq!(topology.nodes[&0].memory, 1_024_000);
        assert_eq!(topology.cpus[&1], Cpu { numa: 0, socket: 0, core: 1, uncore: 0 });
    }

    #[test]
    fn this_machine_is_read() {
        let topology = Reader::default().topology().unwrap();
        assert!(!topology.cpus.is_empty());
        assert!(topology.nodes.values().map(|node| node.memory).sum::<u64>() > 0);
    }
}
