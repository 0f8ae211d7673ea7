//! How often images were asked for, and how many records of pulls there are, as metrics.

use std::fmt;
use std::sync::Arc;

use bosun_kit::metrics::Metrics;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;

use super::pulled::Records;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Ensured {
    present_locally: &'static str,
    pull_policy: String,
    pull_required: &'static str,
}

/// The requests for images.
#[derive(Clone, Default)]
pub(super) struct Requests {
    ensured: Family<Ensured, Counter>,
    records: Option<Arc<Records>>,
}

impl Requests {
    /// Requests of a node that keeps records.
    pub(super) fn of(records: Arc<Records>) -> Self {
        Self { records: Some(records), ..Self::default() }
    }

    /// A request was answered: whether the image was there, and whether it has to be pulled, where that is known.
    pub(super) fn ensured(&self, policy: &str, present_locally: Option<bool>, pull_required: Option<bool>) {
        let text = |known: Option<bool>| match known {
            Some(true) => "true",
            Some(false) => "false",
            None => "unknown",
        };
        let (present_locally, pull_required) = (text(present_locally), text(pull_required));
        let labels = Ensured { present_locally, pull_policy: policy.to_lowercase(), pull_required };
        self.ensured.get_or_create(&labels).inc();
    }

    /// Shows them.
    pub(super) fn register(&self, metrics: &Metrics) {
        metrics.with(|registry| {
            let help = "Number of ensure-image requests processed by the kubelet";
            registry.register("kubelet_image_manager_ensure_image_requests", help, self.ensured.clone());
            if let Some(records) = &self.records {
                registry.register_collector(Box::new(OnDisk(records.clone())));
            }
        });
    }
}

struct OnDisk(Arc<Records>);

impl fmt::Debug for OnDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnDisk")
    }
}

impl Collector for OnDisk {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (intents, records) = self.0.count();
        for (name, help, count) in [
            ("kubelet_imagemanager_ondisk_pullintents", "Number of ImagePullIntents stored on disk", intents),
            ("kubelet_imagemanager_ondisk_pulledrecords", "Number of ImagePulledRecords stored on disk", records),
        ] {
            let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(
                name,
                help,
                None,
                prometheus_client::metrics::MetricType::Gauge,
            )?)?;
        }
        Ok(())
    }
}
