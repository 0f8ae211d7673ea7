//! What is known of device plugins, their devices, and who was given which. Pure: time comes in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bosun_api::quantity::{self, Quantity};
use bosun_proto::deviceplugin::ContainerAllocateResponse;
use k8s_openapi::api::core::v1::Container;

/// The NUMA node of devices that name none.
pub const NO_NODE: i64 = -1;

/// A device as its plugin describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name, unique within the resource.
    pub id: String,
    /// Whether it can be used.
    pub healthy: bool,
    /// The NUMA nodes that it is near; none if the plugin does not care.
    pub nodes: Option<Vec<i64>>,
}

/// What a plugin wants to be asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Before each start of a container.
    pub pre_start: bool,
    /// Which devices go well together.
    pub preferred: bool,
}

/// Whether a plugin is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint {
    /// The connection of that number, since then.
    Connected(u64, Options, Instant),
    /// Away since then; perhaps only for a moment.
    Away(Instant),
}

/// A resource that a plugin has offered.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Resource {
    endpoint: Endpoint,
    devices: BTreeMap<String, Device>,
    /// The plugin has told of its devices since it connected.
    listed: bool,
    /// It has done so at least once since this kubelet started.
    seen: bool,
}

/// What a container has of one resource.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Allocation {
    /// Its devices by NUMA node ([`NO_NODE`] for none). One that is near several nodes is in each.
    pub devices: BTreeMap<i64, Vec<String>>,
    /// What the plugin wants done to the container.
    pub response: ContainerAllocateResponse,
}

impl Allocation {
    /// The devices' names.
    pub fn ids(&self) -> BTreeSet<String> {
        self.devices.values().flatten().cloned().collect()
    }
}

/// By resource.
pub type Allocations = BTreeMap<String, Allocation>;

/// What the Node shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// All devices, by resource.
    pub capacity: BTreeMap<String, i64>,
    /// Those that are healthy.
    pub allocatable: BTreeMap<String, i64>,
    /// Resources whose plugin has been away for too long; the Node shows none of them.
    pub removed: BTreeSet<String>,
}

/// Everything that is known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    resources: BTreeMap<String, Resource>,
    removed: BTreeSet<String>,
    /// By pod UID and container.
    given: BTreeMap<String, BTreeMap<String, Allocations>>,
    connections: u64,
    /// Devices of init containers of the pod that is being admitted, which its later containers take over.
    reusable: (String, BTreeMap<String, BTreeSet<String>>),
}

/// How many of each resource the container asks for, of those named in `filter`.
pub fn wanted(container: &Container, filter: impl Fn(&str) -> bool) -> Vec<(String, usize)> {
    // Extended resources cannot be overcommitted, so that limits say all.
    let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    let limits = limits.into_iter().flatten().filter(|(name, _)| filter(name));
    let counts =
        limits.map(|(name, amount)| (name.clone(), usize::try_from(quantity::of(amount).value()).unwrap_or(0)));
    counts.filter(|(_, count)| *count > 0).collect()
}

impl Table {
    /// What a state file said: what pods have, and which resources there were. Their plugins count as away from now on.
    pub fn restored(
        given: BTreeMap<String, BTreeMap<String, Allocations>>,
        resources: impl IntoIterator<Item = String>,
        now: Instant,
    ) -> Self {
        let away = || Resource { endpoint: Endpoint::Away(now), devices: BTreeMap::new(), listed: false, seen: false };
        let resources = resources.into_iter().map(|name| (name, away())).collect();
        Self { resources, given, ..Self::default() }
    }

    /// A plugin has connected. Returns the number of the connection.
    pub fn connected(&mut self, resource: &str, options: Options, now: Instant) -> u64 {
        self.connections += 1;
        self.removed.remove(resource);
        let known = self.resources.entry(resource.to_owned()).or_insert_with(|| Resource {
            endpoint: Endpoint::Away(now),
            devices: BTreeMap::new(),
            listed: false,
            seen: false,
        });
        known.endpoint = Endpoint::Connected(self.connections, options, now);
        known.listed = false;
        self.connections
    }

    /// A plugin told of all its devices. Returns the pods that have one whose health is not what it was.
    pub fn listed(&mut self, resource: &str, connection: u64, devices: Vec<Device>) -> BTreeSet<String> {
        let Some(known) = self.resources.get_mut(resource) else { return BTreeSet::new() };
        if !matches!(known.endpoint, Endpoint::Connected(number, ..) if number == connection) {
            return BTreeSet::new();
        }
        let devices: BTreeMap<String, Device> = devices.into_iter().map(|device| (device.id.clone(), device)).collect();
        let differs = |id: &String| known.devices.get(id).map(|d| d.healthy) != devices.get(id).map(|d| d.healthy);
        let changed: BTreeSet<String> =
            known.devices.keys().chain(devices.keys()).filter(|id| differs(id)).cloned().collect();
        (known.devices, known.listed, known.seen) = (devices, true, true);
        self.owners(resource, &changed)
    }

    /// A plugin's connection has ended: none of its devices is healthy until it comes back. Returns whether that was
    /// its newest connection, and the pods that have such a device.
    pub fn disconnected(&mut self, resource: &str, connection: u64, now: Instant) -> (bool, BTreeSet<String>) {
        let Some(known) = self.resources.get_mut(resource) else { return (false, BTreeSet::new()) };
        if !matches!(known.endpoint, Endpoint::Connected(number, ..) if number == connection) {
            return (false, BTreeSet::new());
        }
        known.endpoint = Endpoint::Away(now);
        known.listed = false;
        let all = known.devices.keys().cloned().collect();
        for device in known.devices.values_mut() {
            device.healthy = false;
        }
        (true, self.owners(resource, &all))
    }

    fn owners(&self, resource: &str, devices: &BTreeSet<String>) -> BTreeSet<String> {
        let has = |all: &BTreeMap<String, Allocations>| {
            all.values().filter_map(|a| a.get(resource)).any(|a| !a.ids().is_disjoint(devices))
        };
        self.given.iter().filter(|(_, all)| has(all)).map(|(uid, _)| uid.clone()).collect()
    }

    /// What the Node shows. Resources whose plugin has been away for longer than `grace` are dropped.
    pub fn capacity(&mut self, now: Instant, grace: Duration) -> Capacity {
        let gone = |r: &Resource| matches!(r.endpoint, Endpoint::Away(since) if now.duration_since(since) > grace);
        let dropped: Vec<String> = self.resources.iter().filter(|(_, r)| gone(r)).map(|(n, _)| n.clone()).collect();
        for name in dropped {
            self.resources.remove(&name);
            self.removed.insert(name);
        }
        let mut shown = Capacity { removed: self.removed.clone(), ..Capacity::default() };
        for (name, resource) in &self.resources {
            let healthy = resource.devices.values().filter(|device| device.healthy).count();
            shown.capacity.insert(name.clone(), resource.devices.len() as i64);
            shown.allocatable.insert(name.clone(), healthy as i64);
        }
        shown
    }

    /// Corrects what pods may ask for in all: what is healthy, and at least what they have, so that what was admitted
    /// once is not refused for a device that broke. Of a plugin that is away nothing is said: it may come back.
    pub fn overlay(&self, allocatable: &mut BTreeMap<String, Quantity>) {
        for (name, resource) in &self.resources {
            if !resource.listed {
                allocatable.remove(name);
                continue;
            }
            let healthy = resource.devices.values().filter(|device| device.healthy).count();
            allocatable.insert(name.clone(), Quantity::from_value(healthy.max(self.allocated(name).len()) as i64));
        }
    }

    /// Whether a plugin offers the resource, or has offered it.
    pub fn knows(&self, resource: &str) -> bool {
        self.resources.contains_key(resource)
            || self.given.values().flat_map(BTreeMap::values).any(|all| all.contains_key(resource))
    }

    /// A resource that one of the containers asks for and whose plugin is away, or has not told of its devices yet; with
    /// the time until which it is worth waiting for.
    pub fn absent<'a>(
        &self,
        containers: impl IntoIterator<Item = &'a Container>,
        now: Instant,
        grace: Duration,
    ) -> Option<(String, Instant)> {
        let mut names = containers.into_iter().flat_map(|container| wanted(container, |name| self.knows(name)));
        names.find_map(|(name, _)| {
            let resource = self.resources.get(&name)?;
            let (Endpoint::Away(since) | Endpoint::Connected(_, _, since)) = resource.endpoint;
            Some((name, since + grace)).filter(|(_, until)| !resource.listed && *until > now)
        })
    }

    /// Why a container cannot start with what it has of the resource; none if it can. A plugin that is only away for a
    /// moment does not matter, but after a reboot it is the plugin that makes the devices ready.
    pub fn not_ready(&self, resource: &str) -> Option<String> {
        match self.resources.get(resource) {
            None => Some(format!("endpoint not found in cache for a registered resource: {resource}")),
            Some(known) if !known.seen => Some(format!("the device plugin of {resource} is not there yet")),
            Some(_) => None,
        }
    }

    /// The resources that are known by their plugins.
    pub fn resources(&self) -> impl Iterator<Item = &str> {
        self.resources.keys().map(String::as_str)
    }

    /// A resource's healthy devices; none if no plugin has offered it.
    pub fn healthy(&self, resource: &str) -> Option<BTreeSet<String>> {
        let devices = self.resources.get(resource)?.devices.values();
        Some(devices.filter(|device| device.healthy).map(|device| device.id.clone()).collect())
    }

    /// A resource's devices.
    pub fn devices(&self, resource: &str) -> Option<&BTreeMap<String, Device>> {
        self.resources.get(resource).map(|r| &r.devices)
    }

    /// What the plugin of a resource wants to be asked; none if it is away.
    pub fn options(&self, resource: &str) -> Option<Options> {
        match self.resources.get(resource)?.endpoint {
            Endpoint::Connected(_, options, _) => Some(options),
            Endpoint::Away(_) => None,
        }
    }

    /// All devices of the resource that somebody has.
    pub fn allocated(&self, resource: &str) -> BTreeSet<String> {
        let all = self.given.values().flat_map(BTreeMap::values).filter_map(|all| all.get(resource));
        all.flat_map(|allocation| allocation.devices.values().flatten().cloned()).collect()
    }

    /// What the container has.
    pub fn of(&self, uid: &str, container: &str) -> Option<&Allocations> {
        self.given.get(uid)?.get(container)
    }

    /// What all containers have.
    pub fn given(&self) -> &BTreeMap<String, BTreeMap<String, Allocations>> {
        &self.given
    }

    /// Gives the container devices of a resource.
    pub fn give(
        &mut self,
        (uid, container): (&str, &str),
        resource: &str,
        ids: &BTreeSet<String>,
        response: ContainerAllocateResponse,
    ) {
        let mut devices: BTreeMap<i64, Vec<String>> = BTreeMap::new();
        for id in ids {
            let known = self.resources.get(resource).and_then(|r| r.devices.get(id));
            let nodes = known.and_then(|device| device.nodes.clone()).filter(|nodes| !nodes.is_empty());
            for node in nodes.unwrap_or_else(|| vec![NO_NODE]) {
                devices.entry(node).or_default().push(id.clone());
            }
        }
        let allocations = self.given.entry(uid.to_owned()).or_default().entry(container.to_owned()).or_default();
        allocations.insert(resource.to_owned(), Allocation { devices, response });
    }

    /// Takes back what the pod has; whether that was anything.
    pub fn release(&mut self, uid: &str) -> bool {
        if self.reusable.0 == uid {
            self.reusable = Default::default();
        }
        self.given.remove(uid).is_some()
    }

    /// Devices that the pod's next container may take over from its init containers.
    pub fn reusable(&self, uid: &str, resource: &str) -> BTreeSet<String> {
        let found = self.reusable.1.get(resource).filter(|_| self.reusable.0 == uid);
        found.cloned().unwrap_or_default()
    }

    /// The container was served: what an init container has may be taken over, what another one has may not.
    pub fn hand_on(&mut self, uid: &str, container: &str, is_plain_init: bool) {
        if self.reusable.0 != uid {
            self.reusable = (uid.to_owned(), BTreeMap::new());
        }
        let own = self.given.get(uid).and_then(|all| all.get(container));
        for (resource, allocation) in own.into_iter().flatten() {
            let reusable = self.reusable.1.entry(resource.clone()).or_default();
            match is_plain_init {
                true => reusable.extend(allocation.ids()),
                false => reusable.retain(|id| !allocation.ids().contains(id)),
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn device(id: &str, node: Option<i64>) -> Device {
        Device { id: id.to_owned(), healthy: true, nodes: node.map(|node| vec![node]) }
    }

    pub(crate) fn ids(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(ToString::to_string).collect()
    }

    const GRACE: Duration = Duration::from_secs(300);

    #[test]
    fn a_plugin_comes_goes_and_comes_back() {
        let now = Instant::now();
        let mut table = Table::default();
        let first = table.connected("x/gpu", Options::default(), now);
        let broken = || Device { healthy: false, ..device("b", None) };
        table.listed("x/gpu", first, vec![device("a", None), broken()]);
        table.give(("p", "app"), "x/gpu", &ids(&["a"]), ContainerAllocateResponse::default());
        let show = |table: &mut Table, later: u64| {
            let shown = table.capacity(now + Duration::from_secs(later), GRACE);
            (shown.capacity.get("x/gpu").copied(), shown.allocatable.get("x/gpu").copied(), shown.removed.len())
        };
        assert_eq!(show(&mut table, 0), (Some(2), Some(1), 0));
        // A newer connection; the end of the old one means nothing.
        let second = table.connected("x/gpu", Options::default(), now);
        assert_eq!(table.disconnected("x/gpu", first, now), (false, ids(&[])));
        assert_eq!(table.listed("x/gpu", second, vec![device("a", None), device("b", None)]), ids(&[]));
        assert_eq!(show(&mut table, 0), (Some(2), Some(2), 0));
        table.listed("x/gpu", second, vec![broken()]);
        let mut allocatable = BTreeMap::new();
        table.overlay(&mut allocatable);
        assert_eq!(allocatable["x/gpu"].value(), 1, "what a pod has counts as there");
        table.listed("x/gpu", second, vec![device("a", None), device("b", None)]);
        assert_eq!(table.disconnected("x/gpu", second, now), (true, ids(&["p"])));
        assert_eq!(show(&mut table, 300), (Some(2), Some(0), 0));
        let mut allocatable = [("x/gpu".to_owned(), Quantity::from_value(0))].into();
        table.overlay(&mut allocatable);
        assert!(allocatable.is_empty(), "it may come back");
        assert_eq!(show(&mut table, 301), (None, None, 1));
        assert!(table.knows("x/gpu"), "a pod still has one");
        let third = table.connected("x/gpu", Options::default(), now);
        assert_eq!(table.listed("x/gpu", third, vec![device("a", None)]), ids(&["p"]));
        assert_eq!(show(&mut table, 400), (Some(1), Some(1), 0));
    }

    #[test]
    fn not_yet_is_not_never() {
        let now = Instant::now();
        let mut table = Table::restored(BTreeMap::new(), ["x/gpu".to_owned()], now);
        let container: Container = serde_json::from_value(
            serde_json::json!({"name": "app", "resources": {"limits": {"x/gpu": "1", "cpu": "1", "x/other": "1"}}}),
        )
        .unwrap();
        let absent = |table: &Table, later: u64| table.absent([&container], now + Duration::from_secs(later), GRACE);
        assert_eq!(absent(&table, 10), Some(("x/gpu".into(), now + GRACE)));
        assert_eq!(absent(&table, 301), None, "too late");
        let connection = table.connected("x/gpu", Options::default(), now);
        assert!(absent(&table, 10).is_some(), "it has not told of its devices yet");
        table.listed("x/gpu", connection, vec![device("a", None)]);
        assert_eq!(absent(&table, 10), None);
        // A container with such a device starts after the plugin has come, and also while it is away for a moment.
        let mut table = Table::restored(BTreeMap::new(), ["x/gpu".to_owned()], now);
        assert_eq!(table.not_ready("x/gpu").unwrap(), "the device plugin of x/gpu is not there yet");
        let connection = table.connected("x/gpu", Options::default(), now);
        table.listed("x/gpu", connection, vec![device("a", None)]);
        assert_eq!(table.not_ready("x/gpu"), None);
        table.disconnected("x/gpu", connection, now);
        assert_eq!(table.not_ready("x/gpu"), None);
        assert!(table.not_ready("x/other").unwrap().starts_with("endpoint not found"));
    }
}
