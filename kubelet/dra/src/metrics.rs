//! Metrics of claims and their drivers, by stock's names.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bosun_kit::metrics::Metrics as Registry;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use crate::cache::Cache;

/// The driver of the count of all claims.
const ANY: &str = "<any>";

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Operation {
    operation_name: &'static str,
    is_error: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Call {
    driver_name: String,
    method_name: String,
    grpc_status_code: String,
}

/// How long operations and calls take.
#[derive(Clone)]
pub struct Metrics {
    operations: Family<Operation, Histogram>,
    calls: Family<Call, Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        let histogram = || Histogram::new(exponential_buckets(0.005, 2.5, 11));
        Self { operations: Family::new_with_constructor(histogram), calls: Family::new_with_constructor(histogram) }
    }
}

impl Metrics {
    /// Shows them, and how many claims of `cache` are in use.
    pub(crate) fn register(&self, registry: &Registry, cache: Arc<Mutex<Cache>>) {
        registry.with(|registry| {
            let help = "Duration in seconds of handling all ResourceClaims of a pod when it starts or stops";
            registry.register("dra_operations_duration_seconds", help, self.operations.clone());
            let help = "Duration in seconds of the DRA gRPC operations";
            registry.register("dra_grpc_operations_duration_seconds", help, self.calls.clone());
            registry.register_collector(Box::new(InUse(cache)));
        });
    }

    /// An operation for a pod ended.
    pub(crate) fn operated(&self, operation_name: &'static str, well: bool, took: Duration) {
        let is_error = if well { "false" } else { "true" };
        self.operations.get_or_create(&Operation { operation_name, is_error }).observe(took.as_secs_f64());
    }

    /// A call of a driver ended.
    pub(crate) fn called(&self, driver: &str, method: &str, code: tonic::Code, took: Duration) {
        let labels = Call {
            driver_name: driver.to_owned(),
            method_name: method.to_owned(),
            grpc_status_code: if code == tonic::Code::Ok { "OK".to_owned() } else { format!("{code:?}") },
        };
        self.calls.get_or_create(&labels).observe(took.as_secs_f64());
    }
}

/// Counted when asked, so that a driver that is gone is not shown for ever.
struct InUse(Arc<Mutex<Cache>>);

impl fmt::Debug for InUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InUse")
    }
}

impl Collector for InUse {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut counts: BTreeMap<String, i64> = [(ANY.to_owned(), 0)].into();
        for claim in self.0.lock().unwrap_or_else(PoisonError::into_inner).claims() {
            let drivers = claim.driver_state.keys().map(String::as_str).chain([ANY]);
            drivers.for_each(|driver| *counts.entry(driver.to_owned()).or_default() += 1);
        }
        let help =
            "Number of ResourceClaims in use on the node, by driver and (<any>) in all; one may have several drivers";
        let mut family = encoder.encode_descriptor("dra_resource_claims_in_use", help, None, MetricType::Gauge)?;
        for (driver, count) in counts {
            let labels = [("driver_name", driver.as_str())];
            ConstGauge::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
