//! `/metrics/slis`: how the health checks came out, each time that somebody asked.

use bosun_kit::health::Checks;
use bosun_kit::metrics::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Check {
    name: &'static str,
    r#type: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    name: &'static str,
    status: &'static str,
    r#type: &'static str,
}

/// Health checks whose outcomes are counted.
#[derive(Clone, Default)]
pub(crate) struct CountedChecks {
    checks: Checks,
    metrics: Metrics,
    last: Family<Check, Gauge>,
    total: Family<Outcome, Counter>,
}

impl CountedChecks {
    /// None yet.
    pub(crate) fn new() -> Self {
        let new = Self::default();
        new.metrics.with(|registry| {
            let help = "[STABLE] This metric records the result of a single healthcheck";
            registry.register("kubernetes_healthcheck", help, new.last.clone());
            let help = "[STABLE] This metric records the results of all healthcheck";
            registry.register("kubernetes_healthchecks", help, new.total.clone());
        });
        new
    }

    /// Adds a check, as [`Checks::add`] does.
    pub(crate) fn add(&self, name: &'static str, check: impl Fn() -> Result<(), String> + Send + Sync + 'static) {
        let (last, total) = (self.last.clone(), self.total.clone());
        self.checks.add(name, move || {
            let outcome = check();
            let status = if outcome.is_ok() { "success" } else { "error" };
            last.get_or_create(&Check { name, r#type: "healthz" }).set(i64::from(outcome.is_ok()));
            total.get_or_create(&Outcome { name, status, r#type: "healthz" }).inc();
            outcome
        });
    }

    /// The checks.
    pub(crate) fn checks(&self) -> &Checks {
        &self.checks
    }

    /// What `/metrics/slis` shows.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}
