//! What the Node's status should say, and the patch that makes it say so. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use bosun_api::quantity::Quantity;
use bosun_kit::version;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus, NodeSwapStatus,
    NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Map, Value, json};

use crate::config::NodeConfig;
use crate::facts::{Devices, RuntimeStatus};
use crate::machine::{Machine, Resources};
use crate::pressure::{Pressure, Thresholds};

/// At most this many names of an image are shown.
const NAMES_PER_IMAGE: usize = 5;

/// What was found out for one report.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// The machine.
    pub machine: Machine,
    /// What is left of its resources; absent when it could not be read.
    pub resources: Option<Resources>,
    /// What the node counts as short of.
    pub pressure: Pressure,
    /// The node's addresses; empty when none is known.
    pub ips: Vec<IpAddr>,
    /// The runtime's version, as [`crate::facts::RuntimeFacts::version`] gives it.
    pub runtime_version: Option<String>,
    /// The runtime's status, or why it could not be had.
    pub runtime: Option<Result<RuntimeStatus, String>>,
    /// The images; absent to leave them as they were.
    pub images: Option<Vec<ContainerImage>>,
    /// What device plugins offer.
    pub devices: Devices,
    /// Reasons of the kubelet's own for not being ready.
    pub errors: Vec<String>,
    /// Attachable volumes that pods use; they are not to be detached.
    pub volumes_in_use: Vec<String>,
}

/// An event to record about the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeEvent {
    /// `Warning` instead of `Normal`.
    pub warning: bool,
    /// The reason.
    pub reason: &'static str,
    /// The text.
    pub message: String,
}

/// What to do about the Node's status.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The status as it should be.
    pub status: NodeStatus,
    /// Something but the heartbeat differs from what the Node says.
    pub changed: bool,
    /// The strategic merge patch for the `status` subresource.
    pub patch: Value,
    /// What to record once the patch is through.
    pub events: Vec<NodeEvent>,
    /// The node can run pods.
    pub ready: bool,
}

/// Plans the status of `previous` (the Node as the API server has it) from what was observed.
pub fn plan(
    config: &NodeConfig,
    thresholds: &Thresholds,
    observed: &Observed,
    previous: &Node,
    now: Timestamp,
) -> Plan {
    let old = previous.status.clone().unwrap_or_default();
    let mut events = Vec::new();
    let capacity = capacity(config, observed, &old);
    let allocatable = allocatable(config, thresholds, &capacity, &observed.devices);
    let node_info = node_info(observed, &old);
    reboot_event(config, &old, &node_info, &mut events);
    let conditions = conditions(config, observed, &capacity, &old, now, &mut events);
    let ready = conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
    let runtime = observed.runtime.as_ref().and_then(|r| r.as_ref().ok());
    let status = NodeStatus {
        addresses: addresses(config, observed).or(old.addresses.clone()),
        allocatable: Some(allocatable),
        capacity: Some(capacity),
        conditions: Some(conditions),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(config.kubelet_port) }),
        }),
        node_info: Some(node_info),
        images: observed.images.as_ref().map_or(old.images.clone(), |images| Some(shown_images(config, images))),
        runtime_handlers: runtime
            .map_or(old.runtime_handlers.clone(), |r| Some(r.handlers.clone()).filter(|h| !h.is_empty())),
        features: runtime.map_or(old.features.clone(), |r| r.features.clone()),
        volumes_in_use: Some(observed.volumes_in_use.clone()).filter(|volumes| !volumes.is_empty()),
        ..old.clone()
    };
    let (patch, changed) = patch(&old, &status);
    Plan { status, changed, patch, events, ready }
}

fn quantity(amount: Quantity) -> ApiQuantity {
    amount.into()
}

fn bytes(amount: u64) -> Quantity {
    Quantity::from_bytes(i64::try_from(amount).unwrap_or(i64::MAX))
}

fn capacity(config: &NodeConfig, observed: &Observed, old: &NodeStatus) -> BTreeMap<String, ApiQuantity> {
    // What others have put there (extended resources) stays.
    let ours = |name: &str| name.starts_with("hugepages-");
    let mut capacity = old.capacity.clone().unwrap_or_default();
    capacity.retain(|name, _| !ours(name));
    let machine = &observed.machine;
    let pods = match config.pods_per_core {
        0 => config.max_pods,
        per_core => config.max_pods.min(per_core.saturating_mul(machine.cpus)),
    };
    capacity.insert("cpu".to_owned(), quantity(Quantity::from_value(i64::from(machine.cpus))));
    capacity.insert("memory".to_owned(), quantity(bytes(machine.memory)));
    capacity.insert("pods".to_owned(), quantity(Quantity::from_value(i64::from(pods))));
    if let Some(resources) = &observed.resources {
        capacity.insert("ephemeral-storage".to_owned(), quantity(bytes(resources.fs_capacity)));
    }
    for (name, amount) in &machine.hugepages {
        capacity.insert(name.clone(), quantity(bytes(*amount)));
    }
    let none = observed.devices.removed.iter().map(|name| (name, &0));
    for (name, count) in observed.devices.capacity.iter().chain(none) {
        capacity.insert(name.clone(), quantity(Quantity::from_value(*count)));
    }
    capacity
}

fn allocatable(
    config: &NodeConfig,
    thresholds: &Thresholds,
    capacity: &BTreeMap<String, ApiQuantity>,
    devices: &Devices,
) -> BTreeMap<String, ApiQuantity> {
    let reserved = |name: &str, capacity: &Quantity| {
        let configured = [&config.kube_reserved, &config.system_reserved]
            .into_iter()
            .filter_map(|list| list.get(name)?.parse::<Quantity>().ok())
            .sum::<Quantity>();
        let kept = |signal| {
            let capacity = u64::try_from(capacity.value()).unwrap_or(0);
            bytes(thresholds.reserved(signal, capacity))
        };
        match name {
            "memory" => configured + kept("memory.available"),
            "ephemeral-storage" => configured + kept("nodefs.available"),
            _ => configured,
        }
    };
    let left = |from: Quantity, less: Quantity| {
        let zero = Quantity::from_value(0);
        let left = from - less;
        if left < zero { zero } else { left }
    };
    let mut allocatable: BTreeMap<String, Quantity> = capacity
        .iter()
        .map(|(name, amount)| {
            let amount = bosun_api::quantity::of(amount);
            let reserved = reserved(name, &amount);
            (name.clone(), left(amount, reserved))
        })
        .collect();
    // Memory that is set aside as huge pages is no ordinary memory.
    let huge: Quantity = capacity
        .iter()
        .filter(|(name, _)| name.starts_with("hugepages-"))
        .map(|(_, amount)| bosun_api::quantity::of(amount))
        .sum();
    if let Some(memory) = allocatable.get_mut("memory") {
        *memory = left(*memory, huge);
    }
    // Devices that are broken are there, but not for pods.
    allocatable.extend(devices.allocatable.iter().map(|(name, count)| (name.clone(), Quantity::from_value(*count))));
    allocatable.into_iter().map(|(name, amount)| (name, quantity(amount))).collect()
}

fn node_info(observed: &Observed, old: &NodeStatus) -> NodeSystemInfo {
    let machine = &observed.machine;
    let known = old.node_info.as_ref().map(|info| info.container_runtime_version.clone());
    let runtime = observed.runtime_version.clone().or(known.filter(|v| !v.is_empty()));
    NodeSystemInfo {
        architecture: machine.architecture.clone(),
        boot_id: machine.boot_id.clone(),
        container_runtime_version: runtime.unwrap_or_else(|| "Unknown".to_owned()),
        kernel_version: machine.kernel_version.clone(),
        // Deprecated, and empty since 1.33.
        kube_proxy_version: String::new(),
        kubelet_version: version::GIT_VERSION.to_owned(),
        machine_id: machine.machine_id.clone(),
        operating_system: machine.operating_system.clone(),
        os_image: machine.os_image.clone(),
        swap: (machine.swap > 0).then(|| NodeSwapStatus { capacity: i64::try_from(machine.swap).ok() }),
        system_uuid: machine.system_uuid.clone(),
    }
}

fn reboot_event(config: &NodeConfig, old: &NodeStatus, new: &NodeSystemInfo, events: &mut Vec<NodeEvent>) {
    let Some(before) = old.node_info.as_ref().map(|info| &info.boot_id).filter(|id| !id.is_empty()) else { return };
    if *before != new.boot_id {
        let message = format!("Node {} has been rebooted, boot id: {}", config.name, new.boot_id);
        events.push(NodeEvent { warning: true, reason: "Rebooted", message });
    }
}

fn addresses(config: &NodeConfig, observed: &Observed) -> Option<Vec<NodeAddress>> {
    if observed.ips.is_empty() {
        return None;
    }
    let address = |type_: &str, address: String| NodeAddress { type_: type_.to_owned(), address };
    let mut addresses: Vec<_> = observed.ips.iter().map(|ip| address("InternalIP", ip.to_string())).collect();
    addresses.push(address("Hostname", config.hostname.clone()));
    Some(addresses)
}

fn shown_images(config: &NodeConfig, images: &[ContainerImage]) -> Vec<ContainerImage> {
    let mut images = images.to_vec();
    // The largest first; by name among equals, so that nothing changes between two reports.
    images.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.names.cmp(&b.names)));
    images.truncate(config.max_images.unwrap_or(usize::MAX));
    for image in &mut images {
        if let Some(names) = &mut image.names {
            names.truncate(NAMES_PER_IMAGE);
        }
    }
    images
}

/// The four conditions, Ready last as stock has it; those that others keep stay as they are, before ours.
fn conditions(
    config: &NodeConfig,
    observed: &Observed,
    capacity: &BTreeMap<String, ApiQuantity>,
    old: &NodeStatus,
    now: Timestamp,
    events: &mut Vec<NodeEvent>,
) -> Vec<NodeCondition> {
    let old = old.conditions.as_deref().unwrap_or_default();
    let mut conditions: Vec<NodeCondition> =
        old.iter().filter(|c| !OURS.contains(&c.type_.as_str())).cloned().collect();
    let mut set = |type_: &str, status: bool, reason: &str, message: String, event: &'static str, on_creation: bool| {
        let status = if status { "True" } else { "False" };
        let before = old.iter().find(|c| c.type_ == type_);
        let turned = before.is_none_or(|c| c.status != status);
        if turned && (before.is_some() || on_creation) {
            let message = format!("Node {} status is now: {event}", config.name);
            events.push(NodeEvent { warning: false, reason: event, message });
        }
        let since = before.filter(|_| !turned).and_then(|c| c.last_transition_time.clone());
        conditions.push(NodeCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: since.or(Some(Time(now))),
        });
    };
    for (type_, short, yes, no) in [
        ("MemoryPressure", observed.pressure.memory, MEMORY[0], MEMORY[1]),
        ("DiskPressure", observed.pressure.disk, DISK[0], DISK[1]),
        ("PIDPressure", observed.pressure.pid, PID[0], PID[1]),
    ] {
        let (reason, message, event) = if short { yes } else { no };
        set(type_, short, reason, message.to_owned(), event, true);
    }
    let not_ready = not_ready(observed, capacity);
    match not_ready {
        None => set("Ready", true, "KubeletReady", "kubelet is posting ready status".to_owned(), "NodeReady", false),
        Some(why) => set("Ready", false, "KubeletNotReady", why, "NodeNotReady", false),
    }
    conditions
}

/// Conditions that this module keeps.
const OURS: [&str; 5] = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready", "OutOfDisk"];

/// Reason, message and event of a condition.
type Words = (&'static str, &'static str, &'static str);

const MEMORY: [Words; 2] = [
    ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available", "NodeHasInsufficientMemory"),
    ("KubeletHasSufficientMemory", "kubelet has sufficient memory available", "NodeHasSufficientMemory"),
];
const DISK: [Words; 2] = [
    ("KubeletHasDiskPressure", "kubelet has disk pressure", "NodeHasDiskPressure"),
    ("KubeletHasNoDiskPressure", "kubelet has no disk pressure", "NodeHasNoDiskPressure"),
];
const PID: [Words; 2] = [
    ("KubeletHasInsufficientPID", "kubelet has insufficient PID available", "NodeHasInsufficientPID"),
    ("KubeletHasSufficientPID", "kubelet has sufficient PID available", "NodeHasSufficientPID"),
];

/// Why the node cannot run pods, in stock's words; `None` when it can.
fn not_ready(observed: &Observed, capacity: &BTreeMap<String, ApiQuantity>) -> Option<String> {
    let mut reasons = Vec::new();
    match &observed.runtime {
        None => reasons.push("container runtime status check may not have completed yet".to_owned()),
        Some(Err(_)) => reasons.push("container runtime is down".to_owned()),
        Some(Ok(status)) => {
            let told = [
                ("container runtime not ready", "RuntimeReady", &status.runtime),
                ("container runtime network not ready", "NetworkReady", &status.network),
            ];
            for (text, name, condition) in told {
                match condition {
                    None => reasons.push(format!("{text}: {name} is not reported by the container runtime")),
                    Some(c) if !c.status => {
                        reasons.push(format!("{text}: {name}=false reason:{} message:{}", c.reason, c.message));
                    }
                    Some(_) => {}
                }
            }
        }
    }
    reasons.extend(observed.errors.iter().cloned());
    let missing: Vec<&str> = ["cpu", "memory", "pods", "ephemeral-storage"]
        .into_iter()
        .filter(|name| !capacity.contains_key(*name))
        .collect();
    if !missing.is_empty() {
        reasons.push(format!("missing node capacity for resources: {}", missing.join(", ")));
    }
    if observed.ips.is_empty() {
        reasons.push("the node has no address".to_owned());
    }
    let mut seen = BTreeSet::new();
    reasons.retain(|reason| seen.insert(reason.clone()));
    match reasons.len() {
        0 => None,
        1 => reasons.pop(),
        _ => Some(format!("[{}]", reasons.join(", "))),
    }
}

/// The strategic merge patch from one status to another, and whether more than heartbeats differ.
fn patch(old: &NodeStatus, new: &NodeStatus) -> (Value, bool) {
    let (old, new) = (to_object(old), to_object(new));
    let mut patch = Map::new();
    let mut changed = false;
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for key in keys {
        let (before, after) = (old.get(key), new.get(key));
        if key == "conditions" {
            changed |= strip_heartbeats(before) != strip_heartbeats(after);
            let ours = after.and_then(Value::as_array).into_iter().flatten();
            let ours = ours.filter(|c| c["type"].as_str().is_some_and(|t| OURS.contains(&t))).cloned();
            patch.insert(key.clone(), Value::Array(ours.collect()));
            continue;
        }
        if before == after {
            continue;
        }
        changed = true;
        let value = match (before, after) {
            // Merged by type, two addresses of one type would become one: the whole list is replaced instead.
            (_, Some(Value::Array(list))) if key == "addresses" => {
                let marker = [json!({"$patch": "replace"})];
                Value::Array(marker.into_iter().chain(list.iter().cloned()).collect())
            }
            (Some(Value::Object(before)), Some(Value::Object(after))) => merge(before, after),
            (_, after) => after.cloned().unwrap_or(Value::Null),
        };
        patch.insert(key.clone(), value);
    }
    (json!({"status": patch}), changed)
}

fn to_object(status: &NodeStatus) -> Map<String, Value> {
    match serde_json::to_value(status) {
        Ok(Value::Object(object)) => object,
        _ => Map::new(),
    }
}

/// The keys that differ; null for those that are gone.
fn merge(before: &Map<String, Value>, after: &Map<String, Value>) -> Value {
    let gone = before.keys().filter(|key| !after.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    let differ = after.iter().filter(|(key, value)| before.get(*key) != Some(value));
    Value::Object(gone.chain(differ.map(|(k, v)| (k.clone(), v.clone()))).collect())
}

fn strip_heartbeats(conditions: Option<&Value>) -> Vec<Value> {
    let mut conditions: Vec<Value> = conditions.and_then(Value::as_array).cloned().unwrap_or_default();
    for condition in &mut conditions {
        if let Some(condition) = condition.as_object_mut() {
            condition.remove("lastHeartbeatTime");
        }
    }
    conditions.sort_by_key(|c| c["type"].as_str().unwrap_or_default().to_owned());
    conditions
}
