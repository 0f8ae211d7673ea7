//! WebSocket protocols that no runtime speaks, translated to SPDY/3.1, which all do.
//!
//! `v5.channel.k8s.io` is the fourth version with a way to say that a stream ends (KEP-4006): exec and attach become
//! the streams of SPDY's fourth version. `SPDY/3.1+portforward.k8s.io` carries a SPDY connection in binary messages: its
//! bytes are taken out and passed on.

use bosun_kit::http::{Body, BoxError, empty, upgrade};
use futures::{SinkExt, StreamExt};
use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::spdy::{Frame, Writer, read_frame};
use super::{Upstream, dial, offered_protocols};
use crate::host::{HostError, StreamOptions};

/// The fifth version of the channel protocol.
pub(super) const CHANNELS_V5: &str = "v5.channel.k8s.io";
/// A port-forward's SPDY connection within WebSocket.
pub(super) const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// The channel whose messages name a channel that ends.
const CLOSE: u8 = 255;

type Socket = WebSocketStream<TokioIo<Upgraded>>;
type Server = TokioIo<Upgraded>;

/// Whether the client offers `protocol`.
pub(super) fn offers(headers: &HeaderMap, protocol: &str) -> bool {
    offered_protocols(headers).iter().any(|offered| offered == protocol)
}

/// Answers an exec or attach in the fifth version, with the runtime behind `url`.
///
/// # Errors
/// The runtime's streaming server cannot be reached or refuses.
pub(super) async fn channels(
    request: Request<Body>,
    url: &str,
    options: StreamOptions,
) -> Result<Response<Body>, HostError> {
    let server = spdy(url, "v4.channel.k8s.io").await?;
    accept(request, CHANNELS_V5, move |client| async move {
        if let Err(error) = translate(client, server, options).await {
            tracing::debug!(%error, "stream ended");
        }
    })
}

/// Answers a port-forward in a tunnel, with the runtime behind `url`.
///
/// # Errors
/// As [`channels`].
pub(super) async fn tunnel(request: Request<Body>, url: &str) -> Result<Response<Body>, HostError> {
    let server = spdy(url, "portforward.k8s.io").await?;
    accept(request, TUNNEL, move |client| async move {
        if let Err(error) = carry(client, server).await {
            tracing::debug!(%error, "port-forward ended");
        }
    })
}

/// Asks the runtime for a SPDY session.
async fn spdy(url: &str, protocol: &'static str) -> Result<Server, HostError> {
    let Upstream { stream, target, authority } = dial(url).await?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(target)
        .header(header::HOST, &authority)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "SPDY/3.1")
        .header("x-stream-protocol-version", protocol)
        .body(empty());
    let request = request.map_err(|error| HostError::Internal(format!("request to {authority}: {error}")))?;
    let name = format!("the container runtime's streaming server {authority}");
    let failed = |error: hyper::Error| HostError::Unavailable(format!("{name}: {error}"));
    let mut response = upgrade::exchange(request, stream).await.map_err(failed)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(HostError::Internal(format!("{name} answered {} instead of switching to SPDY", response.status())));
    }
    Ok(TokioIo::new(hyper::upgrade::on(&mut response).await.map_err(failed)?))
}

/// Switches the client's connection to WebSocket (RFC 6455, 4.2.2) and lets `session` have it.
fn accept<F, S>(mut request: Request<Body>, protocol: &'static str, session: S) -> Result<Response<Body>, HostError>
where
    F: Future<Output = ()> + Send,
    S: FnOnce(Socket) -> F + Send + 'static,
{
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY);
    let key = key.ok_or_else(|| HostError::BadRequest("the header Sec-WebSocket-Key is missing".to_owned()))?;
    let accepted = HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
        .map_err(|error| HostError::Internal(error.to_string()))?;
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgraded.await {
            Ok(stream) => {
                session(WebSocketStream::from_raw_socket(TokioIo::new(stream), Role::Server, None).await).await;
            }
            Err(error) => tracing::debug!(%error, "the client left before its connection was upgraded"),
        }
    });
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accepted);
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    Ok(response)
}

/// Which SPDY stream stands for which channel.
struct Streams {
    by_channel: [Option<u32>; 5],
    /// Output that has not ended.
    open: Vec<u32>,
}

impl Streams {
    /// Opens the streams in the order in which servers expect them.
    async fn open(writer: &mut Writer<WriteHalf<Server>>, options: StreamOptions) -> std::io::Result<Self> {
        let kinds = [
            (3, "error", true),
            (0, "stdin", options.stdin),
            (1, "stdout", options.stdout),
            (2, "stderr", options.stderr),
            (4, "resize", options.tty),
        ];
        let mut streams = Self { by_channel: [None; 5], open: Vec::new() };
        for (channel, kind, wanted) in kinds {
            if wanted {
                let stream = writer.open(&[("streamtype", kind)]).await?;
                streams.by_channel[channel] = Some(stream);
                if matches!(channel, 1..=3) {
                    streams.open.push(stream);
                }
            }
        }
        Ok(streams)
    }

    fn stream(&self, channel: u8) -> Option<u32> {
        self.by_channel.get(usize::from(channel)).copied().flatten()
    }

    fn channel(&self, stream: u32) -> Option<u8> {
        self.by_channel.iter().position(|known| *known == Some(stream)).map(|channel| channel as u8)
    }
}

/// Carries messages and frames until the runtime has said everything or either side leaves.
async fn translate(mut client: Socket, server: Server, options: StreamOptions) -> Result<(), BoxError> {
    let (mut from_server, to_server) = tokio::io::split(server);
    let mut writer = Writer::new(to_server);
    let mut streams = Streams::open(&mut writer, options).await?;
    // A frame is read in several steps, which must not be given up half-way: it is read by a task of its own.
    let (frames_to, mut frames) = tokio::sync::mpsc::channel(16);
    let reader = tokio::spawn(async move {
        while let Ok(Some(frame)) = read_frame(&mut from_server).await {
            if frames_to.send(frame).await.is_err() {
                return;
            }
        }
    });
    let ended = exchange(&mut client, &mut writer, &mut frames, &mut streams).await;
    reader.abort();
    let _ = client.close(Some(goodbye())).await;
    ended
}

async fn exchange(
    client: &mut Socket,
    writer: &mut Writer<WriteHalf<Server>>,
    frames: &mut tokio::sync::mpsc::Receiver<Frame>,
    streams: &mut Streams,
) -> Result<(), BoxError> {
    loop {
        tokio::select! {
            frame = frames.recv() => match frame {
                None | Some(Frame::GoAway) => return Ok(()),
                Some(Frame::Ping(id)) => writer.pong(id).await?,
                Some(Frame::Data { stream, bytes, last }) => {
                    if let Some(channel) = streams.channel(stream).filter(|_| !bytes.is_empty()) {
                        client.send(message(channel, &bytes)).await?;
                    }
                    if last && ends(streams, stream) {
                        return Ok(());
                    }
                }
                Some(Frame::Reset(stream)) => {
                    if ends(streams, stream) {
                        return Ok(());
                    }
                }
                Some(Frame::Other) => {}
            },
            message = client.next() => match message {
                None | Some(Ok(Message::Close(_))) => return Ok(()),
                Some(Err(error)) => return Err(error.into()),
                Some(Ok(Message::Binary(bytes))) => from_client(writer, streams, &bytes).await?,
                Some(Ok(_)) => {}
            },
        }
    }
}

/// Takes note that a stream ended; says whether it was the last.
fn ends(streams: &mut Streams, stream: u32) -> bool {
    streams.open.retain(|open| *open != stream);
    streams.open.is_empty()
}

/// Clients take a close without a code for a failure.
fn goodbye() -> CloseFrame {
    CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::default() }
}

fn message(channel: u8, bytes: &[u8]) -> Message {
    let mut message = Vec::with_capacity(bytes.len() + 1);
    message.push(channel);
    message.extend_from_slice(bytes);
    Message::Binary(message.into())
}

async fn from_client(
    writer: &mut Writer<WriteHalf<Server>>,
    streams: &mut Streams,
    message: &[u8],
) -> std::io::Result<()> {
    match message {
        [CLOSE, channel, ..] => {
            if let Some(stream) = streams.stream(*channel) {
                writer.end(stream).await?;
                // Nothing can follow; what a client sends nevertheless is dropped.
                if matches!(channel, 0 | 4) {
                    streams.by_channel[usize::from(*channel)] = None;
                }
            }
            Ok(())
        }
        [channel @ (0 | 4), bytes @ ..] if !bytes.is_empty() => match streams.stream(*channel) {
            Some(stream) => writer.data(stream, bytes).await,
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Carries the bytes within binary messages to the server, and the server's back.
async fn carry(client: Socket, server: Server) -> Result<(), BoxError> {
    let (mut to_client, mut from_client) = client.split();
    let (mut from_server, mut to_server): (ReadHalf<Server>, WriteHalf<Server>) = tokio::io::split(server);
    let up = async {
        while let Some(message) = from_client.next().await {
            match message? {
                Message::Binary(bytes) => to_server.write_all(&bytes).await?,
                Message::Close(_) => break,
                _ => {}
            }
        }
        to_server.shutdown().await?;
        Ok::<_, BoxError>(())
    };
    let down = async {
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let read = from_server.read(&mut buffer).await?;
            if read == 0 {
                break;
            }
            to_client.send(Message::Binary(buffer[..read].to_vec().into())).await?;
        }
        to_client.send(Message::Close(Some(goodbye()))).await?;
        Ok::<_, BoxError>(())
    };
    // Whichever side ends first ends the session.
    tokio::select! {
        ended = up => ended,
        ended = down => ended,
    }
}
