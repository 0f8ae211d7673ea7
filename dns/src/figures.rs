//! What is counted, by the names that dashboards for cluster DNS know.

use bosun_kit::metrics::Metrics;
use hickory_proto::op::ResponseCode;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Proto {
    proto: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Rcode {
    rcode: String,
}

/// The counters; cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Figures {
    requests: Family<Proto, Counter>,
    responses: Family<Rcode, Counter>,
    pub(crate) forwarded: Counter,
    pub(crate) forward_failures: Counter,
    pub(crate) cache_hits: Counter,
    pub(crate) cache_misses: Counter,
    pub(crate) dropped: Counter,
}

impl Figures {
    pub(crate) fn register(metrics: &Metrics) -> Self {
        let figures = Self::default();
        metrics.with(|registry| {
            let ours = registry.sub_registry_with_prefix("coredns");
            ours.register("dns_requests", "Counter of DNS requests", figures.requests.clone());
            ours.register("dns_responses", "Counter of response status codes", figures.responses.clone());
            ours.register("forward_requests", "Counter of requests made upstream", figures.forwarded.clone());
            ours.register(
                "forward_failures",
                "Counter of requests no upstream answered",
                figures.forward_failures.clone(),
            );
            ours.register("cache_hits", "The count of cache hits", figures.cache_hits.clone());
            ours.register("cache_misses", "The count of cache misses", figures.cache_misses.clone());
            ours.register("dns_dropped", "Counter of requests dropped for overload", figures.dropped.clone());
        });
        figures
    }

    pub(crate) fn request(&self, proto: &'static str) {
        self.requests.get_or_create(&Proto { proto }).inc();
    }

    pub(crate) fn response(&self, code: ResponseCode) {
        let rcode = match code {
            ResponseCode::NoError => "NOERROR".to_owned(),
            ResponseCode::NXDomain => "NXDOMAIN".to_owned(),
            ResponseCode::ServFail => "SERVFAIL".to_owned(),
            ResponseCode::FormErr => "FORMERR".to_owned(),
            ResponseCode::Refused => "REFUSED".to_owned(),
            other => format!("{other:?}").to_uppercase(),
        };
        self.responses.get_or_create(&Rcode { rcode }).inc();
    }
}
