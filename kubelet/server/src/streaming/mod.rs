//! `/exec`, `/attach`, `/portForward`: the client's upgraded connection, spliced to the runtime's streaming server.
//!
//! The runtime gives a URL of one use for each session; what is said on the connection (SPDY or WebSocket frames) is
//! between the client and the runtime, as long as the runtime speaks what the client offers. The WebSocket protocols
//! that are younger than the runtimes' streaming servers are translated ([`websocket`]).

mod spdy;
mod websocket;

use std::time::Duration;

use bosun_kit::http::{Body, empty, upgrade};
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Request, Response, Uri};
use tokio::net::TcpStream;

use crate::host::{HostError, StreamOptions};

const DIAL_DEADLINE: Duration = Duration::from_secs(5);
const WS_PROTOCOL: HeaderName = header::SEC_WEBSOCKET_PROTOCOL;

/// The WebSocket subprotocols of the runtimes' streaming servers.
const CHANNEL_PROTOCOLS: [&str; 4] =
    ["v4.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io", "base64.channel.k8s.io"];

/// Reads `input`, `output`, `error` and `tty` (and their API spellings `stdin`, `stdout`, `stderr`).
///
/// # Errors
/// No stream is asked for.
pub(crate) fn stream_options(query: &[(String, String)]) -> Result<StreamOptions, HostError> {
    let on = |names: &[&str]| {
        query.iter().any(|(key, value)| names.contains(&key.as_str()) && matches!(value.as_str(), "1" | "true"))
    };
    let tty = on(&["tty"]);
    let options = StreamOptions {
        stdin: on(&["input", "stdin"]),
        stdout: on(&["output", "stdout"]),
        // A terminal has one output.
        stderr: on(&["error", "stderr"]) && !tty,
        tty,
    };
    if options.stdin || options.stdout || options.stderr {
        Ok(options)
    } else {
        Err(HostError::BadRequest("you must specify at least 1 of stdin, stdout, stderr".to_owned()))
    }
}

/// The ports of a WebSocket port-forward, from `port` parameters; SPDY names ports within the
/// connection.
///
/// # Errors
/// None, or one that is no port.
pub(crate) fn forwarded_ports(headers: &HeaderMap, query: &[(String, String)]) -> Result<Vec<u16>, HostError> {
    if !is_websocket(headers) || websocket::offers(headers, websocket::TUNNEL) {
        return Ok(Vec::new());
    }
    let values = || query.iter().filter(|(key, _)| key == "port" || key == "ports").map(|(_, value)| value);
    if values().next().is_none() {
        return Err(bad("query parameter \"port\" is required"));
    }
    values()
        .flat_map(|value| value.split(','))
        .map(|port| match port.parse::<u16>() {
            _ if port.is_empty() => Err(bad("query parameter \"port\" cannot be empty")),
            Ok(0) => Err(bad(format!("port {port:?} must be > 0"))),
            Ok(port) => Ok(port),
            Err(error) => Err(bad(format!("unable to parse {port:?} as a port: {error}"))),
        })
        .collect()
}

/// How a session is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carriage {
    /// Byte by byte.
    Splice,
    /// The fifth version of the channel protocol, translated.
    Channels,
    /// SPDY within WebSocket, taken out.
    Tunnel,
}

/// Decides how the request is carried, before the runtime is asked for a session; `forward` for a port-forward.
///
/// # Errors
/// It is no upgrade, or to a protocol that is not spoken.
pub(crate) fn check_upgrade(headers: &mut HeaderMap, forward: bool) -> Result<Carriage, HostError> {
    if !upgrade::is_upgrade(headers) {
        return Err(bad("Upgrade request required"));
    }
    match (is_websocket(headers), forward) {
        (true, false) if websocket::offers(headers, websocket::CHANNELS_V5) => Ok(Carriage::Channels),
        (true, true) if websocket::offers(headers, websocket::TUNNEL) => Ok(Carriage::Tunnel),
        (true, _) => keep_spoken_protocols(headers).map(|()| Carriage::Splice),
        (false, _) => Ok(Carriage::Splice),
    }
}

/// Carries the session to `url`, which the runtime gave.
///
/// # Errors
/// The runtime's streaming server cannot be reached.
pub(crate) async fn carry(
    request: Request<Body>,
    url: &str,
    carriage: Carriage,
    options: StreamOptions,
) -> Result<Response<Body>, HostError> {
    match carriage {
        Carriage::Splice => splice(request, url).await,
        Carriage::Channels => websocket::channels(request, url, options).await,
        Carriage::Tunnel => websocket::tunnel(request, url).await,
    }
}

fn bad(message: impl Into<String>) -> HostError {
    HostError::BadRequest(message.into())
}

fn is_websocket(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

fn offered_protocols(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(&WS_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|p| p.trim().to_owned()).filter(|p| !p.is_empty()).collect()
}

/// Takes the subprotocols that no runtime speaks out of the client's offer.
fn keep_spoken_protocols(headers: &mut HeaderMap) -> Result<(), HostError> {
    let offered = offered_protocols(headers);
    if offered.is_empty() {
        return Ok(());
    }
    let spoken: Vec<&str> =
        offered.iter().map(String::as_str).filter(|protocol| CHANNEL_PROTOCOLS.contains(protocol)).collect();
    if spoken.is_empty() {
        let offered = offered.join(", ");
        let spoken = CHANNEL_PROTOCOLS.join(", ");
        let message = format!("unable to upgrade: the container runtime speaks none of [{offered}], only [{spoken}]");
        return Err(bad(message));
    }
    let value = HeaderValue::from_str(&spoken.join(", ")).expect("made of known ASCII names");
    headers.insert(WS_PROTOCOL, value);
    Ok(())
}

/// A connection to the runtime's streaming server.
struct Upstream {
    stream: TcpStream,
    authority: String,
    /// Path and query of the session.
    target: Uri,
}

async fn dial(url: &str) -> Result<Upstream, HostError> {
    let (authority, target) = parse(url).map_err(HostError::Internal)?;
    let server = format!("the container runtime's streaming server {authority}");
    let stream = match tokio::time::timeout(DIAL_DEADLINE, TcpStream::connect(&authority)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(HostError::Unavailable(format!("error dialing {server}: {error}"))),
        Err(_) => return Err(HostError::Unavailable(format!("{server} does not answer"))),
    };
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    Ok(Upstream { stream, authority, target })
}

/// Splices the client's connection to the runtime's.
async fn splice(request: Request<Body>, url: &str) -> Result<Response<Body>, HostError> {
    let Upstream { stream, authority, target } = dial(url).await?;
    let (mut parts, _) = request.into_parts();
    parts.uri = target;
    // The client's credentials are for us.
    parts.headers.remove(header::AUTHORIZATION);
    let host =
        HeaderValue::from_str(&authority).map_err(|error| HostError::Internal(format!("{authority}: {error}")))?;
    parts.headers.insert(header::HOST, host);
    Ok(upgrade::proxy(Request::from_parts(parts, empty()), stream).await)
}

fn parse(url: &str) -> Result<(String, Uri), String> {
    let uri: Uri = url.parse().map_err(|error| format!("streaming URL {url:?}: {error}"))?;
    let authority = uri.authority().ok_or_else(|| format!("streaming URL {url:?} names no host"))?;
    if uri.scheme_str() != Some("http") {
        return Err(format!(
            "streaming URL {url:?}: only http is supported; switch TLS of the runtime's streaming server off"
        ));
    }
    let authority = match authority.port() {
        Some(_) => authority.to_string(),
        None => format!("{authority}:80"),
    };
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let target = target.parse().map_err(|error| format!("streaming URL {url:?}: {error}"))?;
    Ok((authority, target))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(query: &str) -> Vec<(String, String)> {
        crate::route::query_pairs(Some(query))
    }

    #[test]
    fn reads_stream_options() {
        let options = stream_options(&pairs("input=1&output=1&error=1&command=sh")).unwrap();
        assert_eq!(options, StreamOptions { stdin: true, stdout: true, stderr: true, tty: false });
        let options = stream_options(&pairs("stdin=true&stdout=true&stderr=true&tty=1")).unwrap();
        assert_eq!(options, StreamOptions { stdin: true, stdout: true, stderr: false, tty: true });
        assert!(stream_options(&pairs("command=ls&output=0")).is_err());
    }

    fn websocket(protocols: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONNECTION, HeaderValue::from_static("keep-alive, Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("WebSocket"));
        headers.insert(WS_PROTOCOL, HeaderValue::from_static(protocols));
        headers
    }

    #[test]
    fn translates_what_the_runtime_does_not_speak() {
        let mut headers = websocket("v4.channel.k8s.io,channel.k8s.io");
        assert_eq!(check_upgrade(&mut headers, false), Ok(Carriage::Splice));
        let mut headers = websocket("v6.channel.k8s.io,v4.channel.k8s.io");
        assert_eq!(check_upgrade(&mut headers, false), Ok(Carriage::Splice));
        assert_eq!(headers[WS_PROTOCOL], "v4.channel.k8s.io");
        let mut headers = websocket("v5.channel.k8s.io,v4.channel.k8s.io");
        assert_eq!(check_upgrade(&mut headers, false), Ok(Carriage::Channels));
        assert_eq!(check_upgrade(&mut websocket("SPDY/3.1+portforward.k8s.io"), true), Ok(Carriage::Tunnel));
        for (unspoken, forward) in [("v6.channel.k8s.io", false), ("SPDY/3.1+portforward.k8s.io", false)] {
            let refused = check_upgrade(&mut websocket(unspoken), forward).unwrap_err();
            assert!(matches!(refused, HostError::BadRequest(_)));
        }
        let refused = check_upgrade(&mut HeaderMap::new(), false).unwrap_err();
        assert!(matches!(refused, HostError::BadRequest(_)));
    }

    #[test]
    fn reads_forwarded_ports() {
        let headers = websocket("v4.channel.k8s.io");
        assert_eq!(forwarded_ports(&headers, &pairs("port=80,8080&port=53")), Ok(vec![80, 8080, 53]));
        assert_eq!(forwarded_ports(&HeaderMap::new(), &[]), Ok(vec![]));
        for bad in ["", "port=", "port=0", "port=99999", "port=http"] {
            assert!(forwarded_ports(&headers, &pairs(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn takes_only_plain_http_urls() {
        let (authority, target) = parse("http://127.0.0.1:4321/exec/token?x=1").unwrap();
        assert_eq!((authority.as_str(), target.to_string().as_str()), ("127.0.0.1:4321", "/exec/token?x=1"));
        for bad in ["https://127.0.0.1:1/x", "/exec/token", "unix:///run/x", ""] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
