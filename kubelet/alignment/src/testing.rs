//! Machines and pods that tests start from.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::topology::{Cpu, NumaNode, Topology};

pub(crate) const GIB: u64 = 1 << 30;

/// A machine of `sockets`, each with `nodes` NUMA nodes of `cores` cores of `threads` threads. Threads are numbered as
/// kernels do it: the first thread of every core, then the second ones. One cache of level 3 every two cores.
pub(crate) fn machine(sockets: usize, nodes: usize, cores: usize, threads: usize) -> Topology {
    let all = sockets * nodes * cores;
    let mut topology = Topology::default();
    for core in 0..all {
        let numa = core / cores;
        for thread in 0..threads {
            let cpu = Cpu { numa, socket: numa / nodes, core, uncore: core / 2 };
            topology.cpus.insert(core + thread * all, cpu);
        }
    }
    for node in 0..sockets * nodes {
        let distances = (0..sockets * nodes).map(|other| match node == other {
            true => 10,
            false if node / nodes == other / nodes => 12,
            false => 32,
        });
        let node_info = NumaNode { memory: 8 * GIB, huge_pages: BTreeMap::new(), distances: distances.collect() };
        topology.nodes.insert(node, node_info);
    }
    topology
}

/// A container with equal requests and limits.
pub(crate) fn container(name: &str, resources: Value) -> Value {
    json!({"name": name, "image": "i", "resources": {"requests": resources, "limits": resources}})
}

/// A pod with these containers and init containers.
pub(crate) fn pod(uid: &str, init: Vec<Value>, containers: Vec<Value>) -> Pod {
    let spec = json!({"initContainers": init, "containers": containers});
    serde_json::from_value(json!({"metadata": {"name": uid, "namespace": "default", "uid": uid}, "spec": spec}))
        .unwrap()
}

/// A guaranteed pod with one container of `cpus` cores and `gib` GiB.
pub(crate) fn guaranteed(uid: &str, cpus: usize, gib: u64) -> Pod {
    pod(uid, Vec::new(), vec![container("app", json!({"cpu": cpus.to_string(), "memory": format!("{gib}Gi")}))])
}
