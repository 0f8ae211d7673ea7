//! What the kernel says of the machine: identity, capacity, and how much is left.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// What does not change while the machine runs (and its cores, which we take as fixed).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// The firmware's UUID; the machine id where there is none.
    pub system_uuid: String,
    /// Changes at each boot.
    pub boot_id: String,
    /// `uname -r`.
    pub kernel_version: String,
    /// `PRETTY_NAME` of os-release.
    pub os_image: String,
    /// `linux`.
    pub operating_system: String,
    /// As Go names it: `amd64`, `arm64`, ….
    pub architecture: String,
    /// Cores online.
    pub cpus: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of swap.
    pub swap: u64,
    /// Bytes of huge pages of each size: `hugepages-2Mi` → bytes.
    pub hugepages: BTreeMap<String, u64>,
}

/// How much is left, as the eviction signals count it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resources {
    /// Bytes of memory that can be had without pain.
    pub memory_available: u64,
    /// Bytes of the kubelet's file system.
    pub fs_capacity: u64,
    /// Bytes left on it.
    pub fs_available: u64,
    /// Inodes of it; 0 when it does not count them.
    pub inodes: u64,
    /// Inodes left on it.
    pub inodes_free: u64,
    /// The most processes and threads there can be.
    pub pids: u64,
    /// Process ids left.
    pub pids_available: u64,
}

/// Reads the machine's files below a root, `/` but in tests.
#[derive(Debug, Clone)]
pub struct MachineReader {
    root: PathBuf,
}

impl Default for MachineReader {
    fn default() -> Self {
        Self::new("/")
    }
}

impl MachineReader {
    /// Reads below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Reads what stays.
    pub fn machine(&self) -> Machine {
        let machine_id = self.first(&["etc/machine-id", "var/lib/dbus/machine-id"]).unwrap_or_default();
        let uuid = ["sys/class/dmi/id/product_uuid", "proc/device-tree/vm,uuid", "etc/machine-id"];
        let meminfo = self.text("proc/meminfo");
        Machine {
            system_uuid: self.first(&uuid).unwrap_or_else(|| machine_id.clone()),
            machine_id,
            boot_id: self.first(&["proc/sys/kernel/random/boot_id"]).unwrap_or_default(),
            kernel_version: self.first(&["proc/sys/kernel/osrelease"]).unwrap_or_default(),
            os_image: self.os_image().unwrap_or_else(|| "Unknown".to_owned()),
            operating_system: "linux".to_owned(),
            architecture: architecture().to_owned(),
            cpus: online_cpus(&self.text("proc/stat")),
            memory: meminfo_bytes(&meminfo, "MemTotal").unwrap_or(0),
            swap: meminfo_bytes(&meminfo, "SwapTotal").unwrap_or(0),
            hugepages: self.hugepages().unwrap_or_default(),
        }
    }

    /// Reads what changes; `folder` is the kubelet's (not below the root).
    ///
    /// # Errors
    /// The folder's file system cannot be asked.
    pub fn resources(&self, folder: &Path) -> io::Result<Resources> {
        let fs = nix::sys::statvfs::statvfs(folder)
            .map_err(|error| io::Error::other(format!("file system of {}: {error}", folder.display())))?;
        let meminfo = self.text("proc/meminfo");
        let of = |name| meminfo_bytes(&meminfo, name).unwrap_or(0);
        // As the eviction signal: everything but the working set, which leaves out inactive file pages.
        let memory_available = of("MemFree") + of("Inactive(file)");
        // Threads count as processes, and each has an id: whichever bound is lower comes first.
        let bound = |path| self.first(&[path]).and_then(|v| v.parse::<u64>().ok());
        let bounds = [bound("proc/sys/kernel/pid_max"), bound("proc/sys/kernel/threads-max")];
        let pids = bounds.into_iter().flatten().min().unwrap_or(0);
        let running = self.text("proc/loadavg");
        let running = running.split_whitespace().nth(3).and_then(|f| f.split_once('/')?.1.parse().ok()).unwrap_or(0);
        let block = fs.fragment_size();
        Ok(Resources {
            memory_available,
            fs_capacity: fs.blocks() * block,
            fs_available: fs.blocks_available() * block,
            inodes: fs.files(),
            inodes_free: fs.files_free(),
            pids,
            pids_available: pids.saturating_sub(running),
        })
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.root.join(path)).unwrap_or_default()
    }

    fn first(&self, paths: &[&str]) -> Option<String> {
        let trimmed = |path: &&str| {
            let text = self.text(path);
            let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
            (!text.is_empty()).then(|| text.to_owned())
        };
        paths.iter().find_map(trimmed)
    }

    fn os_image(&self) -> Option<String> {
        let release =
            ["etc/os-release", "usr/lib/os-release"].iter().map(|path| self.text(path)).find(|t| !t.is_empty())?;
        let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
        Some(name.trim_matches(['"', '\'']).to_owned())
    }

    fn hugepages(&self) -> io::Result<BTreeMap<String, u64>> {
        let mut sizes = BTreeMap::new();
        for entry in fs::read_dir(self.root.join("sys/kernel/mm/hugepages"))? {
            let entry = entry?;
            let name = entry.file_name();
            let kib = name.to_str().and_then(|n| n.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok());
            let Some(kib) = kib else { continue };
            let pages = fs::read_to_string(entry.path().join("nr_hugepages"))?.trim().parse::<u64>().unwrap_or(0);
            let bytes = i64::try_from(kib * 1024).unwrap_or(i64::MAX);
            let size = bosun_api::quantity::Quantity::from_bytes(bytes);
            sizes.insert(format!("hugepages-{size}"), pages * kib * 1024);
        }
        Ok(sizes)
    }
}

fn meminfo_bytes(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib * 1024)
}

/// `/proc/stat` has a line `cpuN` for each core online (proc(5)).
fn online_cpus(stat: &str) -> u32 {
    let core =
        |line: &&str| line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    u32::try_from(stat.lines().filter(core).count()).unwrap_or(u32::MAX).max(1)
}

/// This build's architecture in Go's words, which labels and node status use.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_machine() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("etc/machine-id", "m1\n");
        write("proc/sys/kernel/random/boot_id", "b1\n");
        write("proc/sys/kernel/osrelease", "6.18.0\n");
        write("proc/sys/kernel/pid_max", "4194304\n");
        write("proc/sys/kernel/threads-max", "1000\n");
        write("proc/loadavg", "0 0 0 1/40 7\n");
        write("etc/os-release", "ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n");
        write("proc/stat", "cpu  1\ncpu0 1\ncpu1 1\nintr 5\n");
        write("proc/meminfo", "MemTotal: 2048 kB\nMemFree: 512 kB\nInactive(file): 100 kB\nSwapTotal: 10 kB\n");
        write("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "3\n");
        write("sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "0\n");
        let reader = MachineReader::new(folder.path());
        let machine = reader.machine();
        assert_eq!(
            machine,
            Machine {
                machine_id: "m1".into(),
                system_uuid: "m1".into(),
                boot_id: "b1".into(),
                kernel_version: "6.18.0".into(),
                os_image: "Debian GNU/Linux 12 (bookworm)".into(),
                operating_system: "linux".into(),
                architecture: architecture().into(),
                cpus: 2,
                memory: 2 << 20,
                swap: 10 << 10,
                hugepages: [("hugepages-1Gi".to_owned(), 0), ("hugepages-2Mi".to_owned(), 6 << 20)].into(),
            }
        );
        let resources = reader.resources(folder.path()).unwrap();
        assert_eq!((resources.memory_available, resources.pids_available), (612 << 10, 960));
        assert!(resources.fs_capacity > 0);
        assert!(reader.resources(Path::new("/nowhere")).unwrap_err().to_string().contains("/nowhere"));
    }
}
