//! The cgroups of this node's pods: the QoS tree, one cgroup a pod, and those left over.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bosun_api::pod::{QosClass, qos_class, requests};
use bosun_kit::backoff::Backoff;
use bosun_kit::metrics::Metrics;
use bosun_kubelet_cgroup::limits::{MIN_SHARES, shares};
use bosun_kubelet_cgroup::tree::Error;
use bosun_kubelet_cgroup::{Amount, Driver, Limits, Name, Tree};
use k8s_openapi::api::core::v1::Pod;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use tokio::time::Instant;

use crate::make::Node;
use crate::make::resources;
use crate::metrics;
use crate::pod::spec;

/// How long a cgroup that could not be removed is left alone: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
/// How long one sweep may take.
const LONGEST_SWEEP: Duration = Duration::from_secs(5);
/// See [`FIRST_PAUSE`].
const LONGEST_PAUSE: Duration = Duration::from_secs(30 * 60);

/// The cgroups of this node's pods.
#[derive(Debug)]
pub struct Cgroups {
    tree: Tree,
    weights: tokio::sync::Mutex<Weights>,
    refused: Mutex<HashMap<Name, Refused>>,
    durations: Family<Operation, Histogram>,
}

/// What was done to a cgroup, as stock's metric has it: `create`, `update`, `destroy`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Operation {
    operation_type: &'static str,
}

/// What burstable pods ask for, in thousandths of a core by their UID, and what was last set for all of them.
#[derive(Debug, Default)]
struct Weights {
    of_pods: HashMap<String, i64>,
    set: Option<u64>,
}

/// A cgroup that could not be removed.
#[derive(Debug)]
struct Refused {
    pause: Backoff,
    next: Instant,
}

impl Cgroups {
    /// The cgroups of this machine.
    pub fn detect(driver: Driver) -> Self {
        Self::of(Tree::detect(driver))
    }

    /// No cgroups: nothing is ever written.
    pub fn absent() -> Self {
        Self::of(Tree::absent())
    }

    /// Cgroups in a tree of one's own.
    pub fn of(tree: Tree) -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(metrics::USUAL_BUCKETS);
        let durations = Family::new_with_constructor(histogram);
        Self { tree, weights: Default::default(), refused: Default::default(), durations }
    }

    /// Shows how long cgroups take, and of which version they are.
    pub fn register(&self, metrics: &Metrics) {
        let version = Gauge::<i64>::default();
        version.set(if self.tree.layout().is_unified() { 2 } else { 1 });
        metrics.with(|registry| {
            registry.register("kubelet_cgroup_version", "cgroup version on the hosts", version);
            let help = "Duration in seconds for cgroup manager operations. Broken down by method";
            registry.register("kubelet_cgroup_manager_duration_seconds", help, self.durations.clone());
        });
    }

    async fn timed<T>(&self, operation_type: &'static str, work: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let result = work.await;
        self.durations.get_or_create(&Operation { operation_type }).observe(began.elapsed().as_secs_f64());
        result
    }

    /// What carries plans out.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Makes the cgroup of all pods and those of the classes. What all pods may use is set later, when events can tell
    /// of a failure; the weight is set at once, since the kernel's own is that of one core.
    ///
    /// # Errors
    /// A cgroup could not be made.
    pub async fn set_up_node(&self, node: &Node) -> Result<(), Error> {
        if !node.cgroups_per_qos {
            return Ok(());
        }
        let weight = |shares| Limits { shares: Some(shares), ..Limits::default() };
        self.tree.make(&resources::pods_cgroup(node), &weight(shares(node.cpu_capacity))).await?;
        for class in [QosClass::Burstable, QosClass::BestEffort] {
            // Pods are limited one by one, and all together: what is between bounds no pages.
            let hugepages = node.limits.page_sizes.iter().map(|size| (size.clone(), Amount::Max)).collect();
            let limits = Limits { hugepages, ..weight(MIN_SHARES) };
            self.tree.make(&resources::class_cgroup(class, node), &limits).await?;
        }
        Ok(())
    }

    /// Makes the pod's cgroup with its limits, or brings it to them.
    ///
    /// # Errors
    /// It could not be made, or a limit was refused.
    pub async fn set_up_pod(&self, pod: &Pod, node: &Node) -> Result<(), Error> {
        if !node.cgroups_per_qos {
            return Ok(());
        }
        if qos_class(pod) == QosClass::Burstable {
            let milli = milli(pod);
            self.weigh(node, |all| {
                all.insert(spec::uid(pod).to_owned(), milli);
            })
            .await;
        }
        let (name, limits) = (resources::pod_cgroup(pod, node), resources::pod_limits(pod, node));
        self.timed("create", self.tree.make(&name, &limits)).await
    }

    /// Kills what is left in the pod's cgroup and removes it.
    ///
    /// # Errors
    /// Something in it is still alive.
    pub async fn tear_down_pod(&self, pod: &Pod, node: &Node) -> Result<(), Error> {
        if !node.cgroups_per_qos {
            return Ok(());
        }
        let name = resources::pod_cgroup(pod, node);
        let result = self.timed("destroy", self.tree.remove(&name)).await;
        self.weigh(node, |all| {
            all.remove(spec::uid(pod));
        })
        .await;
        result
    }

    /// Tells of all pods that hold resources. Those that were adopted from an earlier kubelet are known from here only.
    pub async fn weigh_all(&self, node: &Node, pods: &[std::sync::Arc<Pod>]) {
        let burstable = pods.iter().filter(|pod| qos_class(pod) == QosClass::Burstable);
        let weights = burstable.map(|pod| (spec::uid(pod).to_owned(), milli(pod))).collect();
        self.weigh(node, |all| *all = weights).await;
    }

    /// Changes what burstable pods ask for, and sets the weight of them all to the sum.
    async fn weigh(&self, node: &Node, change: impl FnOnce(&mut HashMap<String, i64>)) {
        if !node.cgroups_per_qos {
            return;
        }
        let mut weights = self.weights.lock().await;
        change(&mut weights.of_pods);
        let sum = shares(weights.of_pods.values().sum());
        if weights.set == Some(sum) {
            return;
        }
        let limits = Limits { shares: Some(sum), ..Limits::default() };
        let class = resources::class_cgroup(QosClass::Burstable, node);
        match self.timed("update", self.tree.update(&class, &limits)).await {
            Ok(()) => weights.set = Some(sum),
            Err(error) => tracing::warn!(%error, "the weight of the burstable pods was not set"),
        }
    }

    /// Removes the cgroups of pods that nobody knows. One that cannot be removed is left alone for a while, longer each
    /// time.
    pub async fn sweep(&self, node: &Node, unknown: impl Fn(&str) -> bool) {
        if !node.cgroups_per_qos {
            return;
        }
        let found = self.left_over(node, unknown);
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).retain(|name, _| found.contains(name));
        let began = Instant::now();
        let due: Vec<Name> = found.into_iter().filter(|name| self.due(name)).collect();
        due.iter().for_each(|name| self.tree.kill(name));
        for name in due {
            // The next sweep goes on with what is left.
            if began.elapsed() > LONGEST_SWEEP {
                break;
            }
            let result = self.timed("destroy", self.tree.remove(&name)).await;
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            match result {
                Ok(()) => {
                    tracing::info!(cgroup = %name, "the cgroup of a pod that is gone was removed");
                    refused.remove(&name);
                }
                Err(error) => {
                    let pause = || Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
                    let held =
                        refused.entry(name.clone()).or_insert_with(|| Refused { pause: pause(), next: Instant::now() });
                    let delay = held.pause.next_delay();
                    held.next = Instant::now() + delay;
                    tracing::warn!(cgroup = %name, %error, ?delay, "the cgroup of a pod that is gone was not removed; it will be tried again");
                }
            }
        }
    }

    fn due(&self, name: &Name) -> bool {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.get(name).is_none_or(|held| held.next <= Instant::now())
    }

    fn left_over(&self, node: &Node, unknown: impl Fn(&str) -> bool) -> Vec<Name> {
        let classes = [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort];
        let all = classes.into_iter().flat_map(|class| self.tree.children(&resources::class_cgroup(class, node)));
        all.filter(|name| name.last().strip_prefix("pod").is_some_and(&unknown)).collect()
    }
}

fn milli(pod: &Pod) -> i64 {
    requests(pod).get("cpu").map_or(0, |q| q.milli_value())
}
