//! Requests counted and timed, under stock's names.

use std::time::Duration;

use http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::request::RequestInfo;

const BUCKETS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];

/// What a request is counted under.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Labels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Coded {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: String,
    code: u16,
}

/// The server's metrics.
pub(crate) struct Metrics {
    pub(crate) registry: bosun_kit::metrics::Metrics,
    requests: Family<Coded, Counter>,
    durations: Family<Labels, Histogram, fn() -> Histogram>,
    inflight: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let registry = bosun_kit::metrics::Metrics::new();
        let requests = Family::<Coded, Counter>::default();
        let durations: Family<Labels, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(BUCKETS));
        let inflight = Gauge::default();
        registry.with(|registry| {
            registry.register("apiserver_request", "Requests by verb, resource and code", requests.clone());
            registry.register(
                "apiserver_request_duration_seconds",
                "How long requests took until their answer began",
                durations.clone(),
            );
            registry.register("apiserver_current_inflight_requests", "Requests being answered", inflight.clone());
        });
        Self { registry, requests, durations, inflight }
    }

    pub(crate) fn begin(&self, info: &RequestInfo) -> Labels {
        self.inflight.inc();
        let scope = match (info.is_resource, info.name.is_empty(), info.namespace.is_empty()) {
            (false, ..) => "",
            (true, false, _) => "resource",
            (true, true, false) => "namespace",
            (true, true, true) => "cluster",
        };
        // What is not in the table must not make up labels: anyone can send anything.
        let known = bosun_api::resource::find(&info.group, &info.version, &info.resource);
        let sub = known.and_then(|r| r.subresource(&info.subresource)).map_or("", |s| s.name);
        Labels {
            verb: info.verb.to_ascii_uppercase(),
            group: known.map_or("", |r| r.group).to_owned(),
            version: known.map_or("", |r| r.version).to_owned(),
            resource: known.map_or("", |r| r.plural).to_owned(),
            subresource: sub.to_owned(),
            scope: scope.to_owned(),
        }
    }

    pub(crate) fn end(&self, labels: Labels, status: StatusCode, took: Duration) {
        self.inflight.dec();
        self.durations.get_or_create(&labels).observe(took.as_secs_f64());
        let Labels { verb, group, version, resource, subresource, scope } = labels;
        let coded = Coded { verb, group, version, resource, subresource, scope, code: status.as_u16() };
        self.requests.get_or_create(&coded).inc();
    }
}
