//! Where the counters of a cgroup are, in version 1 hierarchies or the unified one, and the few that more than one part
//! of the kubelet reads. What is read on top of it is up to each: the server shows usage, the upkeep evicts by it.

use std::fs;
use std::path::{Path, PathBuf};

/// Cgroups below their mount point, `/sys/fs/cgroup` but in tests.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    root: PathBuf,
    unified: bool,
}

impl Hierarchy {
    /// Finds out which version is mounted at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        let unified = root.join("cgroup.controllers").exists();
        Self { root, unified }
    }

    /// Whether there is a single hierarchy (version 2).
    pub fn is_unified(&self) -> bool {
        self.unified
    }

    /// Where the controller's files of a cgroup are. A bare slice stands below the slices that its name lists, as
    /// systemd lays them out: `a-b.slice` is `a.slice/a-b.slice`.
    pub fn folder(&self, controller: &str, cgroup: &str) -> PathBuf {
        let root = if self.unified { self.root.clone() } else { self.root.join(controller) };
        let (first, rest) = cgroup.trim_start_matches('/').split_once('/').unwrap_or((cgroup.trim_matches('/'), ""));
        let folder = match first.strip_suffix(".slice") {
            Some(name) => {
                let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
                ends.fold(root, |path, end| path.join(format!("{}.slice", &name[..end])))
            }
            None => root.join(first),
        };
        if rest.is_empty() { folder } else { folder.join(rest) }
    }

    /// The cgroup of a container in its pod's, whatever the runtime and its driver put around the id.
    pub fn container(&self, pod: &str, id: &str) -> Option<String> {
        let entries = fs::read_dir(self.folder("memory", pod)).ok()?.flatten();
        let mut names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.find(|name| name.contains(id)).map(|name| format!("{}/{name}", pod.trim_end_matches('/')))
    }

    /// All memory of a cgroup in bytes, page cache included.
    pub fn memory(&self, cgroup: &str) -> Option<u64> {
        let file = if self.unified { "memory.current" } else { "memory.usage_in_bytes" };
        number(&self.folder("memory", cgroup).join(file))
    }

    /// The working set of a cgroup: its memory without file pages that have not been touched for a while.
    pub fn working_set(&self, cgroup: &str) -> Option<u64> {
        let inactive = if self.unified { "inactive_file" } else { "total_inactive_file" };
        let stat = fs::read_to_string(self.folder("memory", cgroup).join("memory.stat")).ok()?;
        Some(self.memory(cgroup)?.saturating_sub(field(&stat, inactive).unwrap_or(0)))
    }

    /// How many processes and threads are in a cgroup and below.
    pub fn tasks(&self, cgroup: &str) -> Option<u64> {
        number(&self.folder("pids", cgroup).join("pids.current"))
    }
}

/// The number that is all of a file; none if it is not there or says something else (`max`).
pub fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The number behind a name, in lines of `name number`.
pub fn field(text: &str, name: &str) -> Option<u64> {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    #[test]
    fn reads_both_versions() {
        let old = tree(&[
            ("memory/kubepods/pod1/memory.usage_in_bytes", "1000\n"),
            ("memory/kubepods/pod1/memory.stat", "inactive_file 5\ntotal_inactive_file 300\n"),
            ("memory/kubepods/pod1/abc/memory.stat", ""),
            ("pids/kubepods/pod1/pids.current", "7\n"),
        ]);
        let cgroups = Hierarchy::new(old.path());
        assert_eq!((cgroups.working_set("/kubepods/pod1"), cgroups.tasks("/kubepods/pod1")), (Some(700), Some(7)));
        assert_eq!(cgroups.container("/kubepods/pod1", "abc").as_deref(), Some("/kubepods/pod1/abc"));
        assert_eq!((cgroups.working_set("/kubepods/pod2"), cgroups.memory("/kubepods/pod1")), (None, Some(1000)));
        let new = tree(&[
            ("cgroup.controllers", "memory pids\n"),
            ("kubepods.slice/kubepods-pod1.slice/memory.current", "1000\n"),
            ("kubepods.slice/kubepods-pod1.slice/memory.stat", "anon 1\ninactive_file 400\n"),
            ("kubepods.slice/kubepods-pod1.slice/pids.current", "3\n"),
            ("kubepods.slice/kubepods-pod1.slice/cri-containerd-abc.scope/memory.current", "10\n"),
            ("kubepods.slice/kubepods-pod1.slice/cri-containerd-abc.scope/memory.stat", "inactive_file 1\n"),
        ]);
        let cgroups = Hierarchy::new(new.path());
        assert_eq!(
            (cgroups.working_set("kubepods-pod1.slice"), cgroups.tasks("kubepods-pod1.slice")),
            (Some(600), Some(3))
        );
        let container = cgroups.container("kubepods-pod1.slice", "abc").unwrap();
        assert_eq!(cgroups.working_set(&container), Some(9));
    }
}
