//! The kubelet's upkeep of its node, by the plans of [`bosun_kubelet_upkeep`]: logs are rotated, unused images removed,
//! pods evicted when the node runs short of something, kills for want of memory told, shutdowns of the machine held off
//! until the pods have ended.

mod eviction;
mod images;
mod measure;
mod shutdown;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bosun_api::quantity::Quantity;
use bosun_kit::events::{EventType, Recorder};
use bosun_kubelet_cgroup::Hierarchy;
use bosun_kubelet_upkeep::signals::Condition;
use bosun_kubelet_upkeep::thresholds::{self, BadThreshold, Given};
use bosun_kubelet_upkeep::{eviction as plans, images as image_plans, logs, oom, shutdown as shutdown_plans};
use k8s_openapi::api::core::v1::ObjectReference;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::{KubeletConfiguration, duration};
use crate::context::Context;
use crate::manager::{Pods, SharedOffer};
use crate::pod::spec;
use crate::worker::{Handle, Snapshot};

/// What keeps the node from taking pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strain {
    /// What it is short of.
    pub short_of: BTreeSet<Condition>,
    /// Whether the machine is about to be shut down.
    pub shutting_down: bool,
}

/// The node's strain, as it is told to whoever shows it.
pub type Strained = watch::Receiver<Strain>;

/// What the configuration says about upkeep.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Rotation of logs; none if it is switched off.
    pub logs: Option<logs::Policy>,
    /// Collection of images.
    pub images: image_plans::Policy,
    /// Eviction.
    pub eviction: plans::Config,
    /// How often it looks without a cause.
    pub eviction_interval: Duration,
    /// `evictionHard` with the defaults where they hold.
    pub eviction_hard: std::collections::BTreeMap<String, String>,
    /// Memory that all pods together may use, in bytes.
    pub allocatable_memory: i64,
    /// Groups of pods that end before a shutdown of the machine; empty if it is not to wait for pods.
    pub shutdown: Vec<shutdown_plans::Group>,
    /// How often the disk use of pods with limits is measured; none if limits are not enforced.
    pub storage_interval: Option<Duration>,
}

/// How often eviction looks at the node, as in stock.
const HOUSEKEEPING: Duration = Duration::from_secs(10);

impl Settings {
    /// Reads the configuration, for a node with so many bytes of memory.
    ///
    /// # Errors
    /// A threshold cannot be read.
    pub fn new(config: &KubeletConfiguration, memory: i64) -> Result<Self, BadThreshold> {
        let grace = config.eviction_soft_grace_period.iter().map(|(signal, text)| {
            let bad = |message| BadThreshold { field: "evictionSoftGracePeriod", message };
            duration::parse(text).map(|grace| (signal.clone(), grace.0)).map_err(bad)
        });
        let enforced = config.enforce_node_allocatable.as_ref();
        let given = Given {
            hard: config.eviction_hard.clone(),
            soft: config.eviction_soft.clone(),
            soft_grace: grace.collect::<Result<_, _>>()?,
            minimum_reclaim: config.eviction_minimum_reclaim.clone(),
            merge_defaults: config.merge_default_eviction_settings,
            allocatable: enforced.is_none_or(|list| list.iter().any(|part| part == "pods")),
        };
        let max_size = config.container_log_max_size.parse::<Quantity>().map_or(-1, |size| size.value());
        Ok(Self {
            logs: u64::try_from(max_size).ok().map(|max_size| logs::Policy {
                max_size,
                max_files: usize::try_from(config.container_log_max_files).unwrap_or(0),
                workers: usize::try_from(config.container_log_max_workers).unwrap_or(1),
                interval: config.container_log_monitor_interval.0,
            }),
            images: image_plans::Policy {
                high: u64::try_from(config.image_gc_high_threshold_percent).unwrap_or(100),
                low: u64::try_from(config.image_gc_low_threshold_percent).unwrap_or(0),
                min_age: config.image_minimum_gc_age.0,
                max_age: config.image_maximum_gc_age.0,
            },
            eviction: plans::Config {
                thresholds: thresholds::parse(&given)?,
                transition: config.eviction_pressure_transition_period.0,
                max_pod_grace: i64::from(config.eviction_max_pod_grace_period),
            },
            eviction_interval: HOUSEKEEPING,
            eviction_hard: thresholds::hard(&given),
            allocatable_memory: memory - reserved_memory(config),
            shutdown: shutdown_groups(config),
            storage_interval: config.local_storage_capacity_isolation.then_some(config.volume_stats_agg_period.0),
        })
    }
}

/// Memory that is kept from pods for the node itself, in bytes.
pub(crate) fn reserved_memory(config: &KubeletConfiguration) -> i64 {
    let reserved = [&config.kube_reserved, &config.system_reserved].into_iter();
    reserved.filter_map(|list| list.get("memory")?.parse::<Quantity>().ok()).sum::<Quantity>().value()
}

fn shutdown_groups(config: &KubeletConfiguration) -> Vec<shutdown_plans::Group> {
    let group = |given: &crate::config::ShutdownGracePeriod| shutdown_plans::Group {
        priority: given.priority,
        seconds: given.shutdown_grace_period_seconds,
    };
    let by_priority: Vec<_> = config.shutdown_grace_period_by_pod_priority.iter().map(group).collect();
    let (period, critical) = (config.shutdown_grace_period.0, config.shutdown_grace_period_critical_pods.0);
    shutdown_plans::groups(&by_priority, period, critical)
}

/// Keeps the node in order.
pub struct Upkeep {
    context: Arc<Context>,
    pods: Pods,
    offer: SharedOffer,
    recorder: Recorder,
    settings: Settings,
    images: images::Collector,
    strain: watch::Sender<Strain>,
    cgroups: Hierarchy,
}

impl Upkeep {
    /// Nothing happens before [`Upkeep::start`]. What keeps the node from taking pods is told to `strain` and shown in
    /// `offer`.
    pub fn new(
        context: Arc<Context>,
        pods: Pods,
        offer: SharedOffer,
        recorder: Recorder,
        settings: Settings,
        strain: watch::Sender<Strain>,
    ) -> Arc<Self> {
        let images =
            images::Collector::new(context.runtime.clone(), settings.images, context.images.records().cloned());
        let cgroups = Hierarchy::new("/sys/fs/cgroup");
        Arc::new(Self { context, pods, offer, recorder, settings, images, strain, cgroups })
    }

    /// Starts everything, until cancelled.
    pub fn start(self: &Arc<Self>, parts: &mut JoinSet<()>, cancel: &CancellationToken) {
        if let Some(policy) = self.settings.logs {
            parts.spawn(logs::run(self.clone(), policy, cancel.clone()));
        }
        let until = |cancel: CancellationToken, work: futures::future::BoxFuture<'static, ()>| async move {
            tokio::select! { () = work => {}, () = cancel.cancelled() => {} }
        };
        parts.spawn(until(cancel.clone(), Box::pin(self.clone().collect_images())));
        parts.spawn(until(cancel.clone(), Box::pin(self.clone().watch_shortages())));
        if !self.settings.shutdown.is_empty() {
            parts.spawn(until(cancel.clone(), Box::pin(self.clone().watch_shutdowns())));
        }
        parts.spawn(until(cancel.clone(), Box::pin(self.clone().watch_kills(PathBuf::from("/dev/kmsg")))));
    }

    /// Tells of processes killed because the machine ran out of memory.
    async fn watch_kills(self: Arc<Self>, log: PathBuf) {
        let log = match oom::KernelLog::open(&log) {
            Ok(log) => log,
            Err(error) => {
                tracing::warn!(path = %log.display(), %error, "the kernel log cannot be read: no event tells of a SystemOOM");
                return;
            }
        };
        loop {
            match log.next().await {
                Ok(record) => {
                    if let Some(victim) = oom::parse(&record) {
                        self.node_event(EventType::Warning, oom::REASON, victim.message());
                    }
                }
                Err(error) => return tracing::warn!(%error, "the kernel log cannot be read any more"),
            }
        }
    }

    /// Changes what is told of the node's strain.
    fn strain(&self, change: impl FnOnce(&mut Strain)) {
        self.strain.send_if_modified(|told| {
            let before = told.clone();
            change(told);
            self.offer.lock().unwrap_or_else(PoisonError::into_inner).strain.clone_from(told);
            *told != before
        });
    }

    fn snapshots(&self) -> Vec<Snapshot> {
        self.pods.read().unwrap_or_else(PoisonError::into_inner).values().map(Handle::snapshot).collect()
    }

    /// An event about the node. Such events carry the name as UID: that is how kubectl finds them.
    fn node_event(&self, kind: EventType, reason: &str, message: String) {
        let name = &self.context.node.name;
        let about = ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(name.clone()),
            uid: Some(name.clone()),
            ..ObjectReference::default()
        };
        self.recorder.event(&about, kind, reason, message);
    }
}

#[async_trait]
impl logs::Logs for Upkeep {
    fn running(&self) -> Vec<logs::ContainerLog> {
        let node = &self.context.node;
        let of_pod = |s: Snapshot| {
            let folder = node.log_dir(&s.pod);
            let log = |c: &crate::pod::record::ContainerRecord| logs::ContainerLog {
                id: c.id.clone(),
                path: folder.join(format!("{}/{}.log", c.name, c.attempt)),
            };
            s.runtime.running().map(log).collect::<Vec<_>>()
        };
        self.snapshots().into_iter().flat_map(of_pod).collect()
    }

    async fn reopen(&self, id: &str) -> Result<(), String> {
        self.context.runtime.reopen_log(id).await.map_err(|error| error.to_string())
    }
}

/// Runs work that may block where it does not hold up others.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.inspect_err(|error| tracing::error!(%error, "a measurement failed")).ok()
}

/// The file systems that the runtime names, first for images, then for writable layers.
async fn runtime_file_systems(context: &Context) -> (Option<PathBuf>, Option<PathBuf>) {
    let answer = match context.runtime.image_filesystems().await {
        Ok(answer) => answer,
        Err(error) => {
            tracing::debug!(%error, "the image file system is not known");
            return (None, None);
        }
    };
    let first = |list: &[bosun_proto::cri::FilesystemUsage]| {
        let point = list.first()?.fs_id.as_ref().map(|id| id.mountpoint.clone())?;
        (!point.is_empty()).then(|| PathBuf::from(point))
    };
    (first(&answer.image_filesystems), first(&answer.container_filesystems))
}

/// How a pod is named in logs.
fn title(snapshot: &Snapshot) -> String {
    spec::title(&snapshot.pod)
}

/// Whether `path` is still there.
fn exists(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}

fn soon(wait: Duration) -> Instant {
    Instant::now() + wait
}
