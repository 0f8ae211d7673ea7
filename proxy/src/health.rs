//! Health check node ports: a load balancer asks each node whether it has endpoints of a Service.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ::http::{HeaderValue, Request, Response, StatusCode};
use bosun_kit::http::{self, Body, json};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tower::service_fn;

use crate::model::Name;
use crate::server::State;

/// The servers that run, by port.
pub(crate) struct HealthChecks {
    state: Arc<State>,
    cancel: CancellationToken,
    servers: BTreeMap<u16, Server>,
}

struct Server {
    service: Name,
    endpoints: Arc<AtomicUsize>,
    cancel: CancellationToken,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl HealthChecks {
    pub(crate) fn new(state: Arc<State>, cancel: CancellationToken) -> Self {
        Self { state, cancel, servers: BTreeMap::new() }
    }

    /// Starts and stops servers so that there is one for each wanted port, and tells them their numbers.
    pub(crate) async fn update(&mut self, wanted: BTreeMap<u16, (Name, usize)>) {
        self.servers.retain(|port, server| wanted.get(port).is_some_and(|(name, _)| *name == server.service));
        for (port, (name, count)) in wanted {
            match self.servers.get(&port) {
                Some(server) => server.endpoints.store(count, Ordering::Relaxed),
                None => self.start(port, name, count).await,
            }
        }
    }

    async fn start(&mut self, port: u16, service: Name, count: usize) {
        // Listening on the unspecified IPv6 address takes both families.
        let listener = match http::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
            Ok(listener) => Ok(listener),
            Err(_) => http::bind(SocketAddr::from(([0, 0, 0, 0], port))).await,
        };
        let listener = match listener {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(service = &*service, port, %error, "the health check node port cannot be served");
                return;
            }
        };
        let (endpoints, cancel) = (Arc::new(AtomicUsize::new(count)), self.cancel.child_token());
        let (name, shown, state) = (service.clone(), endpoints.clone(), self.state.clone());
        let answer = service_fn(move |_: Request<Body>| {
            let response = respond(&name, shown.load(Ordering::Relaxed), state.is_healthy());
            async move { Ok::<_, Infallible>(response) }
        });
        tokio::spawn(http::serve(listener, None, answer, cancel.clone()));
        self.servers.insert(port, Server { service, endpoints, cancel });
    }
}

/// 200 when there are endpoints here and the rules lead to them.
fn respond(service: &str, endpoints: usize, healthy: bool) -> Response<Body> {
    let (namespace, name) = service.split_once('/').unwrap_or_default();
    let status = if endpoints > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({
        "service": {"namespace": namespace, "name": name},
        "localEndpoints": endpoints,
        "serviceProxyHealthy": healthy,
    });
    let mut response = json(status, &body);
    let headers = response.headers_mut();
    headers.insert("X-Content-Type-Options", HeaderValue::from_static("nosniff"));
    headers.insert("X-Load-Balancing-Endpoint-Weight", HeaderValue::from(endpoints as u64));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_endpoints_is_unhealthy() {
        assert_eq!(respond("a/b", 2, true).status(), StatusCode::OK);
        assert_eq!(respond("a/b", 2, true).headers()["x-load-balancing-endpoint-weight"], "2");
        assert_eq!(respond("a/b", 0, true).status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(respond("a/b", 2, false).status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}
