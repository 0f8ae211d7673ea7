//! How full volumes of claims and CSI volumes are: looked at from time to time (a driver may take long to say), shown by
//! the stats and as metrics.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bosun_kit::metrics::Metrics;
use bosun_kubelet_server::stats::{FsStats, file_system};
use bosun_proto::csi::NodeGetVolumeStatsResponse;
use bosun_proto::csi::volume_usage::Unit;
use futures::{StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Volume};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio_util::sync::CancellationToken;

use super::csi::{CsiVolumes, is_place};
use super::{claims, host_path, on_disk};
use crate::make::Node;
use crate::manager::Pods;
use crate::pod::spec;

/// How many volumes are looked at side by side.
const AT_ONCE: usize = 8;
/// How long one volume may take.
const DEADLINE: Duration = Duration::from_secs(30);

impl CsiVolumes {
    /// Looks at all volumes of claims, and all inline CSI volumes, of these pods.
    pub async fn measure(&self, node: &Node, pods: &[Arc<Pod>]) {
        let mut all: Vec<(Arc<Pod>, Volume)> = Vec::new();
        for pod in pods {
            let volumes = spec::spec(pod).volumes.iter().flatten().filter(|volume| is_measured(volume));
            all.extend(volumes.map(|volume| (pod.clone(), volume.clone())));
        }
        stream::iter(all)
            .for_each_concurrent(AT_ONCE, |(pod, volume)| async move {
                let key = (spec::uid(&pod).to_owned(), volume.name.clone());
                let looked = tokio::time::timeout(DEADLINE, self.measure_one(node, &pod, &volume)).await;
                let mut usage = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
                match looked.unwrap_or_default() {
                    Some(stats) => drop(usage.insert(key, stats)),
                    None => drop(usage.remove(&key)),
                }
            })
            .await;
        let known = |uid: &str| pods.iter().any(|pod| spec::uid(pod) == uid);
        self.usage.lock().unwrap_or_else(PoisonError::into_inner).retain(|(uid, _), _| known(uid));
    }

    async fn measure_one(&self, node: &Node, pod: &Pod, volume: &Volume) -> Option<FsStats> {
        let path = host_path(pod, node, volume)?;
        if !is_place(&path) {
            // A device has no file system of its own.
            let looked = on_disk(move || Ok(path.is_dir().then(|| file_system(&path, Timestamp::now())).flatten()));
            return looked.await.ok().flatten();
        }
        let name = path.parent().and_then(Path::file_name)?.to_string_lossy().into_owned();
        match self.csi.stats(spec::uid(pod), &name, false).await {
            Ok(answer) => answer.map(|answer| read(&answer, Timestamp::now())),
            Err(error) => {
                tracing::debug!(pod = spec::title(pod), volume = volume.name, error, "a volume was not measured");
                None
            }
        }
    }

    /// What was found of a pod's volume the last time.
    pub fn measured(&self, uid: &str, volume: &str) -> Option<FsStats> {
        let usage = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        usage.get(&(uid.to_owned(), volume.to_owned())).cloned()
    }
}

/// Whether the volume is one that is looked at here: the others the stats read themselves.
pub(crate) fn is_measured(volume: &Volume) -> bool {
    volume.csi.is_some() || volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some()
}

/// The name of the claim behind a volume.
pub(crate) fn claim_of(pod: &Pod, volume: &Volume) -> Option<String> {
    claims::claim_name(pod, volume)
}

fn read(answer: &NodeGetVolumeStatsResponse, time: Timestamp) -> FsStats {
    let of = |unit: Unit| answer.usage.iter().find(|usage| usage.unit() == unit);
    let number = |value: Option<i64>| u64::try_from(value.unwrap_or_default()).unwrap_or_default();
    let (bytes, inodes) = (of(Unit::Bytes), of(Unit::Inodes));
    FsStats {
        time,
        available_bytes: number(bytes.map(|usage| usage.available)),
        capacity_bytes: number(bytes.map(|usage| usage.total)),
        used_bytes: number(bytes.map(|usage| usage.used)),
        inodes_free: number(inodes.map(|usage| usage.available)),
        inodes: number(inodes.map(|usage| usage.total)),
        inodes_used: number(inodes.map(|usage| usage.used)),
    }
}

/// Looks at volumes every `period` until cancelled.
pub async fn keep(csi: Arc<CsiVolumes>, node: Arc<Node>, pods: Pods, period: Duration, cancel: CancellationToken) {
    // `volumeStatsAggPeriod` of 0 or less switches that off, as in stock.
    if period.is_zero() {
        return;
    }
    loop {
        tokio::select! {
            () = tokio::time::sleep(period) => {}
            () = cancel.cancelled() => return,
        }
        let handles: Vec<_> = pods.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let pods: Vec<Arc<Pod>> = handles.iter().map(|handle| handle.pod()).collect();
        csi.measure(&node, &pods).await;
    }
}

/// Shows how full claims' volumes are, each claim once.
pub fn register(metrics: &Metrics, csi: Arc<CsiVolumes>, pods: Pods) {
    metrics.with(|registry| registry.register_collector(Box::new(Shown { csi, pods })));
}

struct Shown {
    csi: Arc<CsiVolumes>,
    pods: Pods,
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shown")
    }
}

/// Stock's metrics: name, help, value.
type Row = (&'static str, &'static str, fn(&FsStats) -> u64);

const ROWS: [Row; 6] = [
    ("kubelet_volume_stats_available_bytes", "Number of available bytes in the volume", |s| s.available_bytes),
    ("kubelet_volume_stats_capacity_bytes", "Capacity in bytes of the volume", |s| s.capacity_bytes),
    ("kubelet_volume_stats_inodes", "Maximum number of inodes in the volume", |s| s.inodes),
    ("kubelet_volume_stats_inodes_free", "Number of free inodes in the volume", |s| s.inodes_free),
    ("kubelet_volume_stats_inodes_used", "Number of used inodes in the volume", |s| s.inodes_used),
    ("kubelet_volume_stats_used_bytes", "Number of used bytes in the volume", |s| s.used_bytes),
];

impl Shown {
    fn claims(&self) -> BTreeMap<(String, String), FsStats> {
        let handles: Vec<_> = self.pods.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let mut claims = BTreeMap::new();
        for pod in handles.iter().map(|handle| handle.pod()) {
            for volume in spec::spec(&pod).volumes.iter().flatten() {
                let Some(claim) = claim_of(&pod, volume) else { continue };
                if let Some(stats) = self.csi.measured(spec::uid(&pod), &volume.name) {
                    claims.insert((spec::namespace(&pod).to_owned(), claim), stats);
                }
            }
        }
        claims
    }
}

impl Collector for Shown {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let claims = self.claims();
        if claims.is_empty() {
            return Ok(());
        }
        for (name, help, value) in ROWS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for ((namespace, claim), stats) in &claims {
                let labels = [("namespace", namespace.as_str()), ("persistentvolumeclaim", claim.as_str())];
                let value = i64::try_from(value(stats)).unwrap_or(i64::MAX);
                ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bosun_proto::csi::VolumeUsage;

    use super::*;

    #[test]
    fn what_a_driver_says_is_read_by_its_units() {
        let usage = |unit: Unit, total| VolumeUsage { unit: unit as i32, total, used: 1, available: -1 };
        let answer = NodeGetVolumeStatsResponse {
            usage: vec![usage(Unit::Inodes, 9), usage(Unit::Bytes, 5)],
            ..Default::default()
        };
        let stats = read(&answer, Timestamp::UNIX_EPOCH);
        assert_eq!((stats.capacity_bytes, stats.inodes, stats.used_bytes, stats.available_bytes), (5, 9, 1, 0));
    }
}
