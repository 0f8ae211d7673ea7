//! How many requests there are, and how long they take (`kubelet_http_*`).

use std::sync::atomic::AtomicI64;
use std::time::Instant;

use bosun_kit::metrics::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    long_running: &'static str,
    method: String,
    path: &'static str,
    server_type: &'static str,
}

/// Requests by route, as metrics.
pub(crate) struct RequestMetrics {
    requests: Family<RequestLabels, Counter>,
    inflight: Family<RequestLabels, Gauge<i64, AtomicI64>>,
    durations: Family<RequestLabels, Histogram>,
}

impl RequestMetrics {
    /// Shows them in `metrics`.
    pub(crate) fn register(metrics: &Metrics) -> Self {
        let durations = || Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]);
        let new = Self {
            requests: Family::default(),
            inflight: Family::default(),
            durations: Family::new_with_constructor(durations),
        };
        metrics.with(|registry| {
            let help = "Number of the http requests received since the server started";
            registry.register("kubelet_http_requests", help, new.requests.clone());
            let help = "Number of the inflight http requests";
            registry.register("kubelet_http_inflight_requests", help, new.inflight.clone());
            let help = "Duration in seconds to serve http requests";
            registry.register("kubelet_http_requests_duration_seconds", help, new.durations.clone());
        });
        new
    }

    /// A request has come; it counts as in flight until what is returned is dropped.
    pub(crate) fn begin(&self, method: &str, path: &'static str, server_type: &'static str) -> Measured<'_> {
        let known = ["OPTIONS", "GET", "HEAD", "POST", "PUT", "DELETE", "TRACE", "CONNECT"].contains(&method);
        let long_running = if matches!(path, "exec" | "attach" | "debug") { "true" } else { "false" };
        let method = if known { method } else { "other" }.to_owned();
        let labels = RequestLabels { long_running, method, path, server_type };
        self.requests.get_or_create(&labels).inc();
        self.inflight.get_or_create(&labels).inc();
        Measured { metrics: self, labels, since: Instant::now() }
    }
}

/// Counts a request as in flight until dropped.
pub(crate) struct Measured<'a> {
    metrics: &'a RequestMetrics,
    labels: RequestLabels,
    since: Instant,
}

impl Drop for Measured<'_> {
    fn drop(&mut self) {
        self.metrics.inflight.get_or_create(&self.labels).dec();
        self.metrics.durations.get_or_create(&self.labels).observe(self.since.elapsed().as_secs_f64());
    }
}
