//! What the proxy answers over HTTP: its health for load balancers and the kubelet, its metrics for monitoring.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ::http::{Request, Response, StatusCode};
use bosun_kit::http::{self, Body};
use bosun_kit::metrics::not_found;
use http::{json, text};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tower::service_fn;

use crate::config::{Config, Settings};
use crate::metrics::Metrics;

/// What the answers depend on.
pub(crate) struct State {
    pub(crate) metrics: Metrics,
    config: serde_json::Value,
    /// How long a change may wait for the rules to follow.
    patience: Duration,
    times: Mutex<Times>,
    leaving: AtomicBool,
}

#[derive(Default)]
struct Times {
    /// When the oldest change that is not in the rules came.
    queued: Option<Instant>,
    /// When the rules were last brought to the plan.
    synced: Option<jiff::Timestamp>,
}

impl State {
    pub(crate) fn new(config: &Config, sync_period: Duration) -> Self {
        Self {
            metrics: Metrics::new(),
            config: json!({ "kubeproxy.config.k8s.io": config }),
            patience: 2 * sync_period,
            times: Mutex::default(),
            leaving: AtomicBool::new(false),
        }
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A change waits.
    pub(crate) fn queued(&self) {
        self.times().queued.get_or_insert_with(Instant::now);
        self.metrics.queued();
    }

    /// The rules have followed.
    pub(crate) fn synced(&self) {
        *self.times() = Times { queued: None, synced: Some(jiff::Timestamp::now()) };
    }

    pub(crate) fn set_node_leaving(&self, leaving: bool) {
        self.leaving.store(leaving, Ordering::Relaxed);
    }

    /// Whether the rules follow changes in time.
    pub(crate) fn is_healthy(&self) -> bool {
        let times = self.times();
        times.synced.is_some() && times.queued.is_none_or(|since| since.elapsed() < self.patience)
    }

    /// The answer to `/healthz`, which also says whether the node takes new traffic, or to `/livez`, which does not.
    fn health(&self, with_node: bool) -> Response<Body> {
        let eligible = !self.leaving.load(Ordering::Relaxed);
        let ok = self.is_healthy() && (eligible || !with_node);
        let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let now = jiff::Timestamp::now();
        let updated = self.times().synced;
        let healthy = updated.filter(|_| !self.is_healthy()).or(Some(now).filter(|_| self.is_healthy()));
        let mut body = json!({
            "lastUpdated": healthy.map(|time| time.to_string()).unwrap_or_default(),
            "currentTime": now.to_string(),
        });
        if with_node {
            body["nodeEligible"] = eligible.into();
            self.metrics.healthz(status);
        } else {
            self.metrics.livez(status);
        }
        json(status, &body)
    }

    fn answer_health(&self, path: &str) -> Response<Body> {
        match path {
            "/healthz" => self.health(true),
            "/livez" => self.health(false),
            _ => not_found(),
        }
    }

    fn answer_metrics(&self, path: &str) -> Response<Body> {
        match path {
            "/metrics" => self.metrics.registry.respond(),
            "/healthz" => self.health(true),
            "/proxyMode" => text(StatusCode::OK, "nftables"),
            "/configz" => json(StatusCode::OK, &self.config),
            _ => not_found(),
        }
    }
}

type Answer = fn(&State, &str) -> Response<Body>;

/// Starts both servers. A port that is taken is an error only with `bindAddressHardFail`.
pub(crate) async fn start(
    settings: &Settings,
    state: &Arc<State>,
    cancel: &CancellationToken,
) -> Result<(), std::io::Error> {
    let answers: [(SocketAddr, Answer); 2] =
        [(settings.healthz, State::answer_health), (settings.metrics, State::answer_metrics)];
    for (address, answer) in answers {
        let listener = match http::bind(address).await {
            Ok(listener) => listener,
            Err(error) if settings.bind_hard_fail => return Err(error),
            Err(error) => {
                tracing::error!(%error, "served without it");
                continue;
            }
        };
        let state = state.clone();
        let service = service_fn(move |request: Request<Body>| {
            let response = answer(&state, request.uri().path());
            async move { Ok::<_, Infallible>(response) }
        });
        tokio::spawn(http::serve(listener, None, service, cancel.clone()));
    }
    Ok(())
}
