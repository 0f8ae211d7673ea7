//! What the managers count, by the names of stock's dashboards.

use bosun_kit::metrics::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

/// How far something was aligned.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Alignment {
    /// `container` or `pod`.
    pub scope: &'static str,
    /// `numa_node`, `physical_cpu` or `uncore_cache`.
    pub boundary: &'static str,
}

/// A NUMA node.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct OnNode {
    /// Its number.
    pub numa_node: String,
}

/// What the managers count.
#[derive(Clone, Debug)]
pub struct Measured {
    pub(crate) cpu_requests: Counter,
    pub(crate) cpu_errors: Counter,
    pub(crate) shared_pool: Gauge,
    pub(crate) exclusive: Gauge,
    pub(crate) exclusive_on: Family<OnNode, Gauge>,
    pub(crate) memory_requests: Counter,
    pub(crate) memory_errors: Counter,
    pub(crate) admissions: Counter,
    pub(crate) refusals: Counter,
    pub(crate) duration: Histogram,
    // Counted under names without the suffix that the text format gives counters; stock's names matter more.
    pub(crate) aligned: Family<Alignment, Gauge>,
    pub(crate) not_aligned: Family<Alignment, Gauge>,
}

impl Default for Measured {
    fn default() -> Self {
        Self {
            cpu_requests: Counter::default(),
            cpu_errors: Counter::default(),
            shared_pool: Gauge::default(),
            exclusive: Gauge::default(),
            exclusive_on: Family::default(),
            memory_requests: Counter::default(),
            memory_errors: Counter::default(),
            admissions: Counter::default(),
            refusals: Counter::default(),
            duration: Histogram::new(exponential_buckets(0.05, 2.0, 15)),
            aligned: Family::default(),
            not_aligned: Family::default(),
        }
    }
}

impl Measured {
    /// Shows them.
    pub fn register(&self, metrics: &Metrics) {
        metrics.with(|registry| {
            let mut counter =
                |name: &str, help: &str, counter: &Counter| registry.register(name, help, counter.clone());
            counter(
                "kubelet_cpu_manager_pinning_requests",
                "The number of cpu core allocations which required pinning",
                &self.cpu_requests,
            );
            counter(
                "kubelet_cpu_manager_pinning_errors",
                "The number of cpu core allocations which required pinning failed",
                &self.cpu_errors,
            );
            counter(
                "kubelet_memory_manager_pinning_requests",
                "The number of memory pages allocations which required pinning",
                &self.memory_requests,
            );
            counter(
                "kubelet_memory_manager_pinning_errors",
                "The number of memory pages allocations which required pinning that failed",
                &self.memory_errors,
            );
            counter(
                "kubelet_topology_manager_admission_requests",
                "The number of admission requests where resources have to be aligned",
                &self.admissions,
            );
            counter(
                "kubelet_topology_manager_admission_errors",
                "The number of admission request failures where resources could not be aligned",
                &self.refusals,
            );
            let help = "Duration in milliseconds to serve a pod admission request";
            registry.register("kubelet_topology_manager_admission_duration_ms", help, self.duration.clone());
            let help = "The size of the shared CPU pool for non-guaranteed QoS pods, in millicores";
            registry.register("kubelet_cpu_manager_shared_pool_size_millicores", help, self.shared_pool.clone());
            let help = "The total number of CPUs exclusively allocated to containers running on this node";
            registry.register("kubelet_cpu_manager_exclusive_cpu_allocation_count", help, self.exclusive.clone());
            let help = "Number of CPUs allocated per NUMA node";
            registry.register("kubelet_cpu_manager_allocation_per_numa", help, self.exclusive_on.clone());
            let help = "Cumulative number of aligned compute resources allocated to containers by alignment type";
            registry.register("kubelet_container_aligned_compute_resources_count", help, self.aligned.clone());
            let help =
                "Cumulative number of failures to allocate aligned compute resources to containers by alignment type";
            registry.register(
                "kubelet_container_aligned_compute_resources_failure_count",
                help,
                self.not_aligned.clone(),
            );
        });
    }
}
