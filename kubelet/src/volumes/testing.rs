//! What tests of volumes share.

use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::make::Node;

/// Runs `test` in a thread with a mount namespace of its own, whose mounts nobody else sees.
pub(super) fn in_own_mounts(test: impl FnOnce() + Send + 'static) {
    let inside = move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        test();
    };
    std::thread::spawn(inside).join().unwrap();
}

/// A node with its pods below `root`.
pub(super) fn node(root: &Path) -> Node {
    Node {
        name: "node1".into(),
        ips: vec!["127.0.0.1".into()],
        root_dir: root.to_owned(),
        pod_logs_dir: root.join("logs"),
        container_logs_dir: root.join("links"),
        cluster_dns: Vec::new(),
        cluster_domain: String::new(),
        resolver_file: None,
        seccomp_default: false,
        cpu_quota_period: None,
        memory_capacity: 1 << 30,
        memory_allocatable: 1 << 29,
        cpu_capacity: 1000,
        cgroup_root: "/kubepods".into(),
        cgroups_per_qos: false,
        systemd_cgroups: false,
        limits: Default::default(),
    }
}
