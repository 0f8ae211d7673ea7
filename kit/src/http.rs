//! Serving HTTP/1.1 and HTTP/2, with TLS or without, and splicing upgraded connections.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ::http::{Request, Response, StatusCode, header};
use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::Service;
use tower::util::BoxCloneService;

pub mod upgrade;

/// An error of any kind, as bodies carry it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of every request and answer in the house.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// How long a client may take for its TLS handshake and for the head of a request.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// How long open requests may go on once a server was told to stop.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// Who is at the other end of a connection; in the extensions of every request that [`serve`] hands on.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// The peer's address; none for a call within the process.
    pub addr: Option<SocketAddr>,
    /// The certificates it presented, verified against the client CA, the leaf first; empty without any.
    pub certificates: Arc<[CertificateDer<'static>]>,
}

/// Any service that answers every request, behind one type.
type SharedService = BoxCloneService<Request<Body>, Response<Body>, Infallible>;

/// A body of these bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// A body of nothing.
pub fn empty() -> Body {
    full(Bytes::new())
}

/// A body of chunks that come as they come.
pub fn stream(chunks: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static) -> Body {
    StreamBody::new(chunks.map_ok(Frame::data)).boxed_unsync()
}

/// A plain-text answer.
pub fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(text));
    *response.status_mut() = status;
    let plain = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response.headers_mut().insert("x-content-type-options", header::HeaderValue::from_static("nosniff"));
    response
}

/// A JSON answer.
pub fn json(status: StatusCode, value: &impl serde::Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => {
            let mut response = Response::new(full(bytes));
            *response.status_mut() = status;
            let content_type = header::HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, content_type);
            response
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("encode answer: {error}")),
    }
}

/// Listens on `addr`.
///
/// # Errors
/// The address is taken or not on this machine; the text names it and what to do.
pub async fn bind(addr: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(addr).await.map_err(|error| {
        let remedy = match error.kind() {
            std::io::ErrorKind::AddrInUse => "; stop what listens there or choose another port",
            std::io::ErrorKind::AddrNotAvailable => "; no interface has this address",
            _ => "",
        };
        std::io::Error::new(error.kind(), format!("listen on {addr}: {error}{remedy}"))
    })
}

/// Serves connections from `listener` until `cancel`, then lets open requests end for a few seconds.
pub async fn serve<S>(
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    service: S,
    cancel: CancellationToken,
) where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    // Boxed once, so that each connection's future has a type that does not depend on `S`.
    let service = SharedService::new(service);
    let acceptor = tls.map(TlsAcceptor::from);
    let open = tokio_util::task::TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, addr) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: waiting lets some be closed.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        open.spawn(connection(stream, addr, acceptor.clone(), service.clone(), cancel.clone()));
    }
    drop(listener);
    open.close();
    let _ = tokio::time::timeout(DRAIN_DEADLINE, open.wait()).await;
}

async fn connection(
    stream: TcpStream,
    addr: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    service: SharedService,
    cancel: CancellationToken,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%addr, %error, "TCP_NODELAY");
    }
    let Some(acceptor) = acceptor else {
        let peer = Peer { addr: Some(addr), certificates: Arc::from([]) };
        return requests(stream, peer, service, cancel).await;
    };
    match tokio::time::timeout(HANDSHAKE_DEADLINE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => {
            let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let certificates = certificates.iter().map(|c| c.clone().into_owned()).collect();
            let peer = Peer { addr: Some(addr), certificates };
            requests(stream, peer, service, cancel).await;
        }
        Ok(Err(error)) => tracing::debug!(%addr, %error, "TLS handshake error"),
        Err(_) => tracing::debug!(%addr, "TLS handshake took too long"),
    }
}

async fn requests<I>(stream: I, peer: Peer, service: SharedService, cancel: CancellationToken)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let addr = peer.addr;
    let handler = hyper::service::service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(|body| body.map_err(BoxError::from).boxed_unsync());
        request.extensions_mut().insert(peer.clone());
        let mut service = service.clone();
        service.call(request)
    });
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE_DEADLINE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(1000)
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(1024 * 1024)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(15));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), handler);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = cancel.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(?addr, %error, "connection ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_named_with_the_remedy() {
        let first = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let error = bind(first.local_addr().unwrap()).await.unwrap_err().to_string();
        assert!(error.contains("127.0.0.1") && error.contains("choose another port"), "{error}");
    }
}
