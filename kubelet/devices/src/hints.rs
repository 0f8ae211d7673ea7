//! From which NUMA nodes a container's devices could come.

use std::collections::BTreeSet;

use bosun_kubelet_alignment::NumaMask;
use bosun_kubelet_alignment::hint::{Hint, Hints, mark_preferred};
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::table::{Device, Table, wanted};

/// The hints for what one container asks for. `nodes` are the machine's.
pub fn container(table: &Table, uid: &str, container: &Container, nodes: &[usize]) -> Hints {
    let wanted = wanted(container, |name| table.knows(name));
    let hints = wanted.into_iter().map(|(resource, count)| {
        let own = table.of(uid, &container.name).and_then(|all| all.get(&resource)).map(|a| a.ids());
        let hints = of_resource(table, uid, &resource, count, own.unwrap_or_default(), nodes);
        (resource, hints)
    });
    hints.collect()
}

/// The hints for what all containers of the pod ask for together.
pub fn pod(table: &Table, uid: &str, pod: &Pod, nodes: &[usize]) -> Hints {
    let requests = bosun_api::pod::limits(pod);
    let mut hints = Hints::new();
    for (resource, amount) in requests.iter().filter(|(name, _)| table.knows(name)) {
        let count = usize::try_from(amount.value()).unwrap_or(0);
        let own = table.given().get(uid).into_iter().flat_map(|all| all.values());
        let own = own.filter_map(|all| all.get(resource)).flat_map(|a| a.ids()).collect();
        hints.insert(resource.clone(), of_resource(table, uid, resource, count, own, nodes));
    }
    hints
}

fn of_resource(
    table: &Table,
    uid: &str,
    resource: &str,
    count: usize,
    own: BTreeSet<String>,
    nodes: &[usize],
) -> Option<Vec<Hint>> {
    let devices = table.devices(resource)?;
    if !devices.values().any(|device| device.nodes.is_some()) {
        return None;
    }
    let known = |ids: &BTreeSet<String>| -> Vec<&Device> { ids.iter().filter_map(|id| devices.get(id)).collect() };
    if !own.is_empty() {
        return Some(match own.len() == count {
            true => combinations(devices.values(), &known(&own), &[], count, nodes),
            false => Vec::new(),
        });
    }
    let reusable = table.reusable(uid, resource);
    let healthy = table.healthy(resource).unwrap_or_default();
    let available: BTreeSet<String> = healthy.difference(&table.allocated(resource)).cloned().collect();
    if available.union(&reusable).count() < count {
        return Some(Vec::new());
    }
    Some(combinations(devices.values(), &known(&available), &known(&reusable), count, nodes))
}

/// Every set of NUMA nodes near which are all of `reusable` and, with what is `available`, enough.
fn combinations<'a>(
    all: impl Iterator<Item = &'a Device> + Clone,
    available: &[&Device],
    reusable: &[&Device],
    count: usize,
    nodes: &[usize],
) -> Vec<Hint> {
    let mut fewest = nodes.len();
    let mut hints = Vec::new();
    for mask in NumaMask::combinations(nodes) {
        let near = |device: &Device| {
            let nodes = device.nodes.iter().flatten().filter_map(|node| usize::try_from(*node).ok());
            nodes.into_iter().any(|node| mask.contains(node))
        };
        if all.clone().filter(|device| near(device)).count() >= count {
            fewest = fewest.min(mask.count());
        }
        let mut bound = reusable.iter().filter(|device| device.nodes.is_some());
        let matching = available.iter().chain(reusable).filter(|device| near(device)).count();
        if bound.all(|device| near(device)) && matching >= count {
            hints.push(Hint { affinity: Some(mask), preferred: false });
        }
    }
    mark_preferred(&mut hints, fewest);
    hints
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Options;
    use crate::table::tests::{device, ids};
    use bosun_proto::deviceplugin::ContainerAllocateResponse;
    use serde_json::json;
    use std::time::Instant;

    #[test]
    fn nodes_with_enough_devices_are_named() {
        let mut table = Table::default();
        let connection = table.connected("x/gpu", Options::default(), Instant::now());
        table.listed("x/gpu", connection, vec![device("a", Some(0)), device("b", Some(1)), device("c", Some(1))]);
        let plain = table.connected("x/fuse", Options::default(), Instant::now());
        table.listed("x/fuse", plain, vec![device("f", None)]);
        let show = |table: &Table, count: usize| {
            let limits = json!({"x/gpu": count.to_string(), "x/fuse": "1", "cpu": "1"});
            let wanted: Container =
                serde_json::from_value(json!({"name": "app", "resources": {"limits": limits}})).unwrap();
            let hints = container(table, "p", &wanted, &[0, 1]);
            assert_eq!(hints["x/fuse"], None, "it does not care");
            assert_eq!(hints.len(), 2);
            let spec = json!({"containers": [wanted]});
            let whole: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
            assert_eq!(pod(table, "p", &whole, &[0, 1]), hints);
            hints["x/gpu"].iter().flatten().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(show(&table, 1), ["01 preferred", "10 preferred", "11 not preferred"]);
        assert_eq!(show(&table, 2), ["10 preferred", "11 not preferred"]);
        assert_eq!(show(&table, 3), ["11 preferred"]);
        assert!(show(&table, 4).is_empty());
        table.give(("other", "app"), "x/gpu", &ids(&["b"]), ContainerAllocateResponse::default());
        assert_eq!(show(&table, 2), ["11 not preferred"]);
        table.give(("p", "app"), "x/gpu", &ids(&["a"]), ContainerAllocateResponse::default());
        assert_eq!(show(&table, 1), ["01 preferred", "11 not preferred"]);
        assert!(show(&table, 2).is_empty());
    }
}
