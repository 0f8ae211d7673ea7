//! The way from the API server to a node: logs, exec, attach and port-forward go to the kubelet; `proxy` goes to the
//! kubelet, a pod or a service's endpoint. Upgraded connections are spliced and not looked into.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bosun_kit::http::{Body, BoxError, upgrade};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Response, Uri, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long dialling a node may take, and then its answer's head.
const DIAL_DEADLINE: Duration = Duration::from_secs(5);
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

/// Headers that concern one connection only (RFC 9110, 7.6.1) and the client's credentials, which are for us.
const NOT_PASSED_ON: [header::HeaderName; 7] = [
    header::AUTHORIZATION,
    header::HOST,
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::PROXY_AUTHORIZATION,
];

/// Why a node did not answer.
#[derive(Debug, Error)]
pub enum Error {
    /// It could not be reached.
    #[error("error dialing backend: dial tcp {address}: {source}")]
    Dial {
        /// Address and port.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It gave no answer in time.
    #[error("error dialing backend: {address} did not answer in time")]
    Deadline {
        /// Address and port.
        address: String,
    },
    /// It broke the connection off or spoke no HTTP.
    #[error("error dialing backend: {address}: {source}")]
    Exchange {
        /// Address and port.
        address: String,
        /// What the library said.
        source: hyper::Error,
    },
    /// The path cannot stand in a request.
    #[error("invalid path {0:?}")]
    Path(String),
}

/// Where a request goes.
#[derive(Clone, Debug)]
pub struct Target {
    /// Over TLS or not.
    pub tls: bool,
    /// Address of the node, pod or endpoint.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Path and query as the backend is to see them.
    pub path_and_query: String,
}

/// Carries requests to nodes.
#[derive(Clone)]
pub struct NodeProxy {
    tls: TlsConnector,
    insecure: TlsConnector,
}

trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

impl NodeProxy {
    /// Kubelets are dialled with `kubelet` (our client certificate, the authority of theirs); pods and endpoints over
    /// TLS with `backend`, which does not verify who they are, as stock's proxy does not.
    pub fn new(kubelet: Arc<rustls::ClientConfig>, backend: Arc<rustls::ClientConfig>) -> Self {
        Self { tls: without_alpn(kubelet), insecure: without_alpn(backend) }
    }

    /// Carries `request` to a kubelet and its answer back.
    ///
    /// # Errors
    /// The node cannot be reached or gives no answer: a 500 for the client, as stock has it.
    pub async fn to_kubelet(&self, request: Request<Body>, target: &Target) -> Result<Response<Body>, Error> {
        self.forward(request, target, &self.tls).await
    }

    /// Carries `request` to a pod or an endpoint and its answer back.
    ///
    /// # Errors
    /// As [`NodeProxy::to_kubelet`].
    pub async fn to_backend(&self, request: Request<Body>, target: &Target) -> Result<Response<Body>, Error> {
        self.forward(request, target, &self.insecure).await
    }

    async fn forward(
        &self,
        request: Request<Body>,
        target: &Target,
        tls: &TlsConnector,
    ) -> Result<Response<Body>, Error> {
        let address = std::net::SocketAddr::new(target.address, target.port).to_string();
        let late = |_| Error::Deadline { address: address.clone() };
        let connection = tokio::time::timeout(DIAL_DEADLINE, dial(target, tls, &address)).await.map_err(late)??;
        let request = rewrite(request, target, &address)?;
        if upgrade::is_upgrade(request.headers()) {
            return Ok(upgrade::proxy(request, connection).await);
        }
        tokio::time::timeout(ANSWER_DEADLINE, exchange(request, connection, &address)).await.map_err(late)?
    }
}

fn without_alpn(config: Arc<rustls::ClientConfig>) -> TlsConnector {
    // HTTP/1.1 alone can be upgraded.
    let mut config = Arc::unwrap_or_clone(config);
    config.alpn_protocols.clear();
    TlsConnector::from(Arc::new(config))
}

async fn dial(target: &Target, tls: &TlsConnector, address: &str) -> Result<Box<dyn Connection>, Error> {
    let failed = |source| Error::Dial { address: address.to_owned(), source };
    let stream = TcpStream::connect((target.address, target.port)).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    if !target.tls {
        return Ok(Box::new(stream));
    }
    let name = ServerName::IpAddress(target.address.into());
    Ok(Box::new(tls.connect(name, stream).await.map_err(failed)?))
}

fn rewrite(mut request: Request<Body>, target: &Target, address: &str) -> Result<Request<Body>, Error> {
    let bad = || Error::Path(target.path_and_query.clone());
    let path: PathAndQuery = target.path_and_query.parse().map_err(|_| bad())?;
    *request.uri_mut() = Uri::from(path);
    let upgrades = upgrade::is_upgrade(request.headers());
    *request.version_mut() = http::Version::HTTP_11;
    let headers = request.headers_mut();
    for name in &NOT_PASSED_ON {
        if !(upgrades && *name == header::CONNECTION) {
            headers.remove(name);
        }
    }
    headers.insert(header::HOST, HeaderValue::from_str(address).map_err(|_| bad())?);
    Ok(request)
}

async fn exchange(
    request: Request<Body>,
    connection: Box<dyn Connection>,
    address: &str,
) -> Result<Response<Body>, Error> {
    let failed = |source| Error::Exchange { address: address.to_owned(), source };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(connection)).await.map_err(failed)?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to a node ended");
        }
    });
    let mut response = sender.send_request(request).await.map_err(failed)?;
    drop_hop_by_hop(response.headers_mut());
    Ok(response.map(|body| body.map_err(BoxError::from).boxed_unsync()))
}

fn drop_hop_by_hop(headers: &mut HeaderMap) {
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::TRAILER] {
        headers.remove(name);
    }
    headers.remove("keep-alive");
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::net::SocketAddr;

    use bosun_kit::http::{full, serve, text};
    use bosun_kit::tls;
    use http::StatusCode;
    use tokio_util::sync::CancellationToken;

    use super::*;

    fn no_tls() -> Arc<rustls::ClientConfig> {
        tls::install_crypto();
        Arc::new(tls::client_config(rustls::RootCertStore::empty(), None).unwrap())
    }

    /// A backend that answers with what it was asked.
    async fn mirror() -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let service = tower::service_fn(|request: Request<Body>| async move {
            let credentials = request.headers().contains_key(header::AUTHORIZATION);
            let said = format!("{} {} credentials={credentials}", request.method(), request.uri());
            Ok::<_, Infallible>(text(StatusCode::OK, said))
        });
        tokio::spawn(serve(listener, None, service, CancellationToken::new()));
        addr
    }

    #[tokio::test]
    async fn the_path_is_rewritten_and_credentials_stay_here() {
        let addr = mirror().await;
        let proxy = NodeProxy::new(no_tls(), no_tls());
        let request = Request::post("/api/v1/namespaces/default/pods/web/log")
            .header("authorization", "Bearer secret")
            .body(full("x"))
            .unwrap();
        let target = Target {
            tls: false,
            address: addr.ip(),
            port: addr.port(),
            path_and_query: "/containerLogs/default/web/c?follow=true".into(),
        };
        let answer = proxy.to_kubelet(request, &target).await.unwrap();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "POST /containerLogs/default/web/c?follow=true credentials=false");
    }

    #[tokio::test]
    async fn a_node_that_is_gone_is_named() {
        let target = Target { tls: false, address: [127, 0, 0, 1].into(), port: 1, path_and_query: "/".into() };
        let request = Request::get("/").body(full("")).unwrap();
        let error = NodeProxy::new(no_tls(), no_tls()).to_kubelet(request, &target).await.unwrap_err().to_string();
        assert!(error.starts_with("error dialing backend: dial tcp 127.0.0.1:1"), "{error}");
    }
}
