//! HTTP and TCP as probes and hooks speak them: one short request, no certificate checked, no redirect followed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// How much of an answer is read; enough for an event.
const MAX_BODY: usize = 10 * 1024;

/// The number of a port given by number or by the name of a container's port.
///
/// # Errors
/// No port of the container has that name, or the number is none.
pub fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => match container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name)) {
            Some(found) => found.container_port,
            None => {
                name.parse().map_err(|_| format!("couldn't find port: {name:?} in container {:?}", container.name))?
            }
        },
    };
    u16::try_from(number).ok().filter(|n| *n > 0).ok_or_else(|| format!("invalid port number: {number}"))
}

/// An answer to a GET: its status and the beginning of its body.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The beginning of the body.
    pub body: String,
}

/// Sends the GET of a probe or hook to `host` (unless the action names another).
///
/// # Errors
/// In the words that stock's probes use, as far as people search for them.
pub async fn get(
    action: &HTTPGetAction,
    container: &Container,
    host: &str,
    agent: &str,
    deadline: Duration,
) -> Result<Answer, String> {
    let port = port(container, &action.port)?;
    let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(host);
    let https = action.scheme.as_deref() == Some("HTTPS");
    let path = action.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let url = format!("{}://{authority}{path}", if https { "https" } else { "http" });
    let request = request(action, &authority, &path, agent)?;
    let ask = async {
        let stream =
            TcpStream::connect((host, port)).await.map_err(|e| format!("dial tcp {authority}: connect: {e}"))?;
        if https {
            let name = ServerName::try_from(host.to_owned()).map_err(|e| e.to_string())?;
            let stream = connector().connect(name, stream).await.map_err(|e| e.to_string())?;
            exchange(stream, request).await
        } else {
            exchange(stream, request).await
        }
    };
    match tokio::time::timeout(deadline, ask).await {
        Ok(answer) => answer.map_err(|error| format!("Get {url:?}: {error}")),
        Err(_) => {
            Err(format!("Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"))
        }
    }
}

fn request(action: &HTTPGetAction, authority: &str, path: &str, agent: &str) -> Result<Request<Empty<Bytes>>, String> {
    let mut request = Request::get(path).body(Empty::new()).map_err(|error| error.to_string())?;
    let headers = request.headers_mut();
    let value = |text: &str| HeaderValue::from_str(text).map_err(|error| error.to_string());
    headers.insert(http::header::HOST, value(authority)?);
    headers.insert(http::header::USER_AGENT, value(agent)?);
    headers.insert(http::header::ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert(http::header::CONNECTION, HeaderValue::from_static("close"));
    for header in action.http_headers.iter().flatten() {
        let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|error| error.to_string())?;
        headers.insert(name, value(&header.value)?);
    }
    Ok(request)
}

async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<Answer, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let ask = async {
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), MAX_BODY).collect().await;
        // A body longer than that is cut; the status is what matters.
        let body = body.map(|b| String::from_utf8_lossy(&b.to_bytes()).into_owned()).unwrap_or_default();
        Ok(Answer { status, body })
    };
    tokio::pin!(ask);
    tokio::pin!(connection);
    tokio::select! {
        answer = &mut ask => answer,
        ended = &mut connection => match ended {
            Ok(()) => ask.await,
            Err(error) => Err(error.to_string()),
        },
    }
}

/// Opens and closes a TCP connection.
///
/// # Errors
/// In stock's words.
pub async fn tcp(host: &str, port: u16, deadline: Duration) -> Result<(), String> {
    let dial = TcpStream::connect((host, port));
    match tokio::time::timeout(deadline, dial).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("dial tcp {host}:{port}: connect: {error}")),
        Err(_) => Err(format!("dial tcp {host}:{port}: i/o timeout")),
    }
}

/// Probes ask whether the pod answers, not who it is: its certificate is usually its own.
fn connector() -> tokio_rustls::TlsConnector {
    static CONFIG: std::sync::LazyLock<Arc<rustls::ClientConfig>> =
        std::sync::LazyLock::new(|| Arc::new(bosun_kit::tls::unverified_client_config()));
    tokio_rustls::TlsConnector::from(CONFIG.clone())
}
