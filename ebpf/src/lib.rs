//! What the kernel offers for a dataplane in eBPF.
//!
//! There is no such dataplane in this build; this says what a kernel has for one and what it lacks.

use std::fmt;
use std::path::Path;

use nix::sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, FsType, statfs};

/// What is found, feature by feature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features {
    /// Types of the kernel's own structures, which programs that fit several kernels need.
    pub btf: bool,
    /// A file system on which maps and programs outlive the process.
    pub bpffs: bool,
    /// The cgroup2 hierarchy to which socket programs attach.
    pub cgroup2: bool,
    /// The compiler without which programs are interpreted.
    pub jit: bool,
}

/// Looks under a root directory (`/`, but for tests) for what the kernel offers. Reads only.
pub fn probe(root: &Path) -> Features {
    let is = |path: &str, wanted: FsType| statfs(&root.join(path)).is_ok_and(|fs| fs.filesystem_type() == wanted);
    let jit = std::fs::read_to_string(root.join("proc/sys/net/core/bpf_jit_enable"));
    Features {
        btf: root.join("sys/kernel/btf/vmlinux").exists(),
        bpffs: is("sys/fs/bpf", BPF_FS_MAGIC),
        cgroup2: ["sys/fs/cgroup", "sys/fs/cgroup/unified"].iter().any(|path| is(path, CGROUP2_SUPER_MAGIC)),
        jit: jit.is_ok_and(|text| text.trim() != "0"),
    }
}

impl fmt::Display for Features {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let features = [
            (self.btf, "BTF (/sys/kernel/btf/vmlinux)"),
            (self.bpffs, "bpffs (/sys/fs/bpf)"),
            (self.cgroup2, "cgroup2 (/sys/fs/cgroup)"),
            (self.jit, "BPF JIT (net.core.bpf_jit_enable)"),
        ];
        for (at, (there, name)) in features.into_iter().enumerate() {
            write!(out, "{}{} {name}", if at > 0 { ", " } else { "" }, if there { "has" } else { "lacks" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_root_lacks_everything_and_says_so() {
        let features = probe(Path::new("/nonexistent"));
        assert_eq!(features, Features { btf: false, bpffs: false, cgroup2: false, jit: false });
        assert!(features.to_string().starts_with("lacks BTF (/sys/kernel/btf/vmlinux), lacks bpffs"));
    }

    #[test]
    fn this_kernel_says_what_it_has() {
        let kernel = probe(Path::new("/"));
        assert_eq!(kernel.btf, Path::new("/sys/kernel/btf/vmlinux").exists());
    }
}
