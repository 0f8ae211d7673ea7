//! WebSocket protocols that no runtime speaks, with a runtime that speaks SPDY behind the server.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

#[expect(dead_code, reason = "the rig serves several files of tests")]
mod rig;

use std::time::Duration;

use bosun_kit::http::empty;
use bosun_kubelet_server::auth::{AuthConfig, AuthorizationMode};
use futures::{SinkExt, StreamExt};
use http::Request;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rig::Kubelet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

async fn connect(kubelet: &Kubelet, path: &str, protocols: &str, want: &str) -> WebSocketStream<TokioIo<Upgraded>> {
    let request = Request::builder()
        .uri(path)
        .header("host", "node")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("sec-websocket-protocol", protocols)
        .body(empty())
        .unwrap();
    let mut response = kubelet.send(Some(&kubelet.person("admin")), request).await.unwrap();
    assert_eq!(response.status(), 101, "{path}");
    assert_eq!(response.headers()["sec-websocket-protocol"], want);
    // The example of RFC 6455, 1.3.
    assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    let stream = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    WebSocketStream::from_raw_socket(stream, Role::Client, None).await
}

async fn open() -> Kubelet {
    Kubelet::start(AuthConfig { mode: AuthorizationMode::AlwaysAllow, ..AuthConfig::default() }, &[]).await
}

fn message(bytes: &[u8]) -> Message {
    Message::Binary(bytes.to_vec().into())
}

/// The messages until the server closes; a client would take anything but a normal close for a failure.
async fn until_closed(socket: &mut WebSocketStream<TokioIo<Upgraded>>) -> Vec<Vec<u8>> {
    let mut seen = Vec::new();
    loop {
        match next(socket).await {
            Some(Message::Binary(bytes)) => seen.push(bytes.to_vec()),
            Some(Message::Close(frame)) => {
                assert_eq!(frame.unwrap().code, CloseCode::Normal);
                return seen;
            }
            None => panic!("the connection ended without a close after {seen:?}"),
            Some(_) => {}
        }
    }
}

/// The next message; a server that says nothing fails the test.
async fn next(socket: &mut WebSocketStream<TokioIo<Upgraded>>) -> Option<Message> {
    let next = tokio::time::timeout(Duration::from_secs(10), socket.next()).await.unwrap();
    next.and_then(Result::ok)
}

#[tokio::test]
async fn input_ends_and_output_still_comes_in_the_fifth_version() {
    let kubelet = open().await;
    let path = "/exec/default/web/app?command=cat&input=1&output=1&error=1";
    let protocols = "v5.channel.k8s.io, v4.channel.k8s.io";
    let mut socket = connect(&kubelet, path, protocols, "v5.channel.k8s.io").await;
    socket.send(message(b"\x00hello ")).await.unwrap();
    socket.send(message(b"\x00world")).await.unwrap();
    // Without the end of its input the command would wait for ever.
    socket.send(message(&[255, 0])).await.unwrap();
    // What follows an end is dropped.
    socket.send(message(b"\x00more")).await.unwrap();
    let seen = until_closed(&mut socket).await;
    assert_eq!(seen, [b"\x01HELLO WORLD".to_vec(), b"\x03{\"status\":\"Success\"}".to_vec()]);
    assert_eq!(kubelet.host.asked.lock().unwrap()[0], r#"exec default/web/app ["cat"] in out err"#);
}

#[tokio::test]
async fn a_terminal_s_size_reaches_an_attached_process() {
    let kubelet = open().await;
    let path = "/attach/default/web/app?input=1&output=1&tty=1";
    let mut socket = connect(&kubelet, path, "v5.channel.k8s.io", "v5.channel.k8s.io").await;
    socket.send(message(b"\x04{\"Width\":80}")).await.unwrap();
    socket.send(message(&[255, 0])).await.unwrap();
    assert_eq!(until_closed(&mut socket).await[0], b"\x01{\"WIDTH\":80}");
}

#[tokio::test]
async fn a_port_forward_s_connection_is_taken_out_of_its_tunnel() {
    let kubelet = open().await;
    let tunnel = "SPDY/3.1+portforward.k8s.io";
    let mut socket = connect(&kubelet, "/portForward/default/web", tunnel, tunnel).await;
    socket.send(message(b"hello")).await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"HELLO") {
        match next(&mut socket).await {
            Some(Message::Binary(bytes)) => seen.extend_from_slice(&bytes),
            other => panic!("{other:?}"),
        }
    }
    let head = String::from_utf8(seen).unwrap();
    assert!(head.starts_with("POST /session/token?a=b HTTP/1.1/"), "{head}");
    assert!(
        head.contains("upgrade: SPDY/3.1/") && head.contains("x-stream-protocol-version: portforward.k8s.io/"),
        "{head}"
    );
    assert_eq!(kubelet.host.asked.lock().unwrap()[0], "forward u-1 []");
}
