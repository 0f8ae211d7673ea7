//! Amounts the scheduler adds up: CPU in thousandths, the rest in units.

use std::collections::BTreeMap;

use bosun_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

/// CPU that a container without a request is scored with, in thousandths.
const DEFAULT_MILLI_CPU: i64 = 100;
/// Memory that a container without a request is scored with, in bytes.
const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// A vector of amounts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a CPU.
    pub milli_cpu: i64,
    /// Bytes of memory.
    pub memory: i64,
    /// Bytes of local storage.
    pub ephemeral_storage: i64,
    /// Extended resources and huge pages, in units.
    pub scalars: BTreeMap<String, i64>,
}

impl Resources {
    /// Reads a resource list; what cannot be parsed counts as zero (validation refuses it earlier).
    pub fn from_list(list: &BTreeMap<String, ApiQuantity>) -> Self {
        let mut sum = Self::default();
        for (name, quantity) in list {
            let Ok(quantity) = quantity.0.parse::<Quantity>() else {
                continue;
            };
            match name.as_str() {
                "cpu" => sum.milli_cpu = quantity.milli_value(),
                "memory" => sum.memory = quantity.value(),
                "ephemeral-storage" => sum.ephemeral_storage = quantity.value(),
                "pods" => {}
                _ => {
                    sum.scalars.insert(name.clone(), quantity.value());
                }
            }
        }
        sum
    }

    /// Adds each amount.
    pub fn add(&mut self, other: &Self) {
        self.milli_cpu = self.milli_cpu.saturating_add(other.milli_cpu);
        self.memory = self.memory.saturating_add(other.memory);
        self.ephemeral_storage = self.ephemeral_storage.saturating_add(other.ephemeral_storage);
        for (name, amount) in &other.scalars {
            let have = self.scalars.entry(name.clone()).or_default();
            *have = have.saturating_add(*amount);
        }
    }

    /// Takes each amount away.
    pub fn subtract(&mut self, other: &Self) {
        self.milli_cpu -= other.milli_cpu;
        self.memory -= other.memory;
        self.ephemeral_storage -= other.ephemeral_storage;
        for (name, amount) in &other.scalars {
            if let Some(have) = self.scalars.get_mut(name) {
                *have -= amount;
            }
        }
    }

    /// Raises each amount to at least the other's.
    pub fn raise_to(&mut self, other: &Self) {
        self.milli_cpu = self.milli_cpu.max(other.milli_cpu);
        self.memory = self.memory.max(other.memory);
        self.ephemeral_storage = self.ephemeral_storage.max(other.ephemeral_storage);
        for (name, amount) in &other.scalars {
            let have = self.scalars.entry(name.clone()).or_default();
            *have = (*have).max(*amount);
        }
    }

    /// Whether nothing is asked for.
    pub fn is_zero(&self) -> bool {
        self.milli_cpu == 0 && self.memory == 0 && self.ephemeral_storage == 0 && self.scalars.values().all(|v| *v == 0)
    }
}

/// What a pod takes from its node, and what it is scored with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodResources {
    /// The effective request (KEP-753: sidecars add to what starts after them).
    pub request: Resources,
    /// The same, with defaults for containers that ask for no CPU or memory.
    pub scored: Resources,
}

/// Adds up a pod.
pub fn of_pod(pod: &Pod) -> PodResources {
    let Some(spec) = &pod.spec else {
        return PodResources::default();
    };
    let effective = |read: &dyn Fn(&Container) -> Resources| {
        let mut running = Resources::default();
        for container in &spec.containers {
            running.add(&read(container));
        }
        let mut peak = Resources::default();
        let mut sidecars = Resources::default();
        for container in spec.init_containers.iter().flatten() {
            let own = read(container);
            if container.restart_policy.as_deref() == Some("Always") {
                running.add(&own);
                sidecars.add(&own);
                peak.raise_to(&sidecars);
            } else {
                let mut starting = sidecars.clone();
                starting.add(&own);
                peak.raise_to(&starting);
            }
        }
        running.raise_to(&peak);
        if let Some(whole) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
            let whole = Resources::from_list(whole);
            if whole.milli_cpu > 0 {
                running.milli_cpu = whole.milli_cpu;
            }
            if whole.memory > 0 {
                running.memory = whole.memory;
            }
        }
        if let Some(overhead) = &spec.overhead {
            running.add(&Resources::from_list(overhead));
        }
        running
    };
    PodResources {
        request: effective(&|container| requested(container)),
        scored: effective(&|container| {
            let mut own = requested(container);
            if own.milli_cpu == 0 {
                own.milli_cpu = DEFAULT_MILLI_CPU;
            }
            if own.memory == 0 {
                own.memory = DEFAULT_MEMORY;
            }
            own
        }),
    }
}

fn requested(container: &Container) -> Resources {
    container.resources.as_ref().and_then(|r| r.requests.as_ref()).map(Resources::from_list).unwrap_or_default()
}
