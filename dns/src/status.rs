//! /health, /ready and /metrics, each at its own address.

use crate::Config;
use ::http::{Request, Response, StatusCode};
use anyhow::Result;
use bosun_kit::{
    http::{self, Body},
    metrics::{Metrics, not_found},
};
use std::{convert::Infallible, net::SocketAddr};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Starts serving; the addresses are taken when this returns.
pub(crate) async fn serve(
    config: &Config,
    metrics: Metrics,
    synced: watch::Receiver<bool>,
    cancel: &CancellationToken,
) -> Result<()> {
    listen(config.health_address, "/health", cancel, || http::text(StatusCode::OK, "OK")).await?;
    let ready = move || match *synced.borrow() {
        true => http::text(StatusCode::OK, "OK"),
        false => http::text(StatusCode::SERVICE_UNAVAILABLE, "kubernetes"),
    };
    listen(config.ready_address, "/ready", cancel, ready).await?;
    listen(config.metrics_address, "/metrics", cancel, move || metrics.respond()).await
}

async fn listen<F>(address: SocketAddr, path: &'static str, cancel: &CancellationToken, answer: F) -> Result<()>
where
    F: Fn() -> Response<Body> + Clone + Send + 'static,
{
    let listener = http::bind(address).await?;
    let service = tower::service_fn(move |request: Request<Body>| {
        let response = if request.uri().path() == path { answer() } else { not_found() };
        std::future::ready(Ok::<_, Infallible>(response))
    });
    tokio::spawn(http::serve(listener, None, service, cancel.clone()));
    Ok(())
}
