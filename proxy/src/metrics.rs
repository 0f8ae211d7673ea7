//! The metrics, under the names that stock gives them.

use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

use ::http::StatusCode;
use bosun_kit::metrics::Metrics as Registry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use crate::model::Change;
use crate::worker::Outcome;

type Seconds = Gauge<f64, AtomicU64>;
type ByCode = Family<Vec<(&'static str, String)>, Counter>;

/// The metrics and the registry that renders them.
pub(crate) struct Metrics {
    pub(crate) registry: Registry,
    sync: Histogram,
    full_sync: Histogram,
    partial_sync: Histogram,
    last: Seconds,
    last_queued: Seconds,
    endpoint_changes: Counter,
    service_changes: Counter,
    failures: Counter,
    healthz: ByCode,
    livez: ByCode,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 15));
        let metrics = Self {
            registry: Registry::new(),
            sync: histogram(),
            full_sync: histogram(),
            partial_sync: histogram(),
            last: Seconds::default(),
            last_queued: Seconds::default(),
            endpoint_changes: Counter::default(),
            service_changes: Counter::default(),
            failures: Counter::default(),
            healthz: ByCode::default(),
            livez: ByCode::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&self) {
        self.registry.with(|registry| {
            let registry = registry.sub_registry_with_prefix("kubeproxy");
            let durations = [
                ("sync_proxy_rules_duration_seconds", "SyncProxyRules latency in seconds", &self.sync),
                (
                    "sync_full_proxy_rules_duration_seconds",
                    "SyncProxyRules latency in seconds for full resyncs",
                    &self.full_sync,
                ),
                (
                    "sync_partial_proxy_rules_duration_seconds",
                    "SyncProxyRules latency in seconds for partial resyncs",
                    &self.partial_sync,
                ),
            ];
            for (name, help, histogram) in durations {
                registry.register(name, help, histogram.clone());
            }
            let times = [
                (
                    "sync_proxy_rules_last_timestamp_seconds",
                    "The last time proxy rules were successfully synced",
                    &self.last,
                ),
                (
                    "sync_proxy_rules_last_queued_timestamp_seconds",
                    "The last time a sync of proxy rules was queued",
                    &self.last_queued,
                ),
            ];
            for (name, help, gauge) in times {
                registry.register(name, help, gauge.clone());
            }
            // The text format appends "_total" to counters.
            let counters = [
                (
                    "sync_proxy_rules_endpoint_changes",
                    "Cumulative proxy rules Endpoint changes",
                    &self.endpoint_changes,
                ),
                ("sync_proxy_rules_service_changes", "Cumulative proxy rules Service changes", &self.service_changes),
                ("sync_proxy_rules_nftables_sync_failures", "Cumulative proxy nftables sync failures", &self.failures),
            ];
            for (name, help, counter) in counters {
                registry.register(name, help, counter.clone());
            }
            registry.register("proxy_healthz", "Cumulative proxy healthz HTTP status", self.healthz.clone());
            registry.register("proxy_livez", "Cumulative proxy livez HTTP status", self.livez.clone());
        });
    }

    /// Counts a change.
    pub(crate) fn count(&self, change: &Change) {
        match change {
            Change::Service(..) => _ = self.service_changes.inc(),
            Change::Slice(..) => _ = self.endpoint_changes.inc(),
            Change::Node(_) | Change::ServiceCidrs(_) | Change::Synced => {}
        }
    }

    /// Notes that a sync is wanted.
    pub(crate) fn queued(&self) {
        self.last_queued.set(now());
    }

    /// Notes a sync.
    pub(crate) fn synced(&self, outcome: &Outcome) {
        let seconds = outcome.took.as_secs_f64();
        self.sync.observe(seconds);
        if outcome.full { &self.full_sync } else { &self.partial_sync }.observe(seconds);
        match outcome.result {
            Ok(()) => _ = self.last.set(now()),
            Err(_) => _ = self.failures.inc(),
        }
    }

    pub(crate) fn healthz(&self, status: StatusCode) {
        count_code(&self.healthz, status);
    }

    pub(crate) fn livez(&self, status: StatusCode) {
        count_code(&self.livez, status);
    }
}

fn count_code(family: &ByCode, status: StatusCode) {
    family.get_or_create(&vec![("code", status.as_u16().to_string())]).inc();
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_stock() {
        let metrics = Metrics::new();
        metrics.count(&Change::Service("a/b".into(), None));
        metrics.healthz(StatusCode::OK);
        let text = metrics.registry.render();
        for line in [
            "kubeproxy_sync_proxy_rules_service_changes_total 1",
            "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
            "kubeproxy_sync_proxy_rules_duration_seconds_count 0",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
