//! Upgraded connections (SPDY, WebSocket) passed through: what a client and a streaming server say to each other after
//! `101 Switching Protocols` is theirs; we only carry it.

use ::http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Body, BoxError, empty, text};

/// Whether `request` asks for another protocol on its connection (RFC 9110, 7.8).
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    let asks = |value: &header::HeaderValue| {
        value.to_str().is_ok_and(|v| v.split(',').any(|token| token.trim().eq_ignore_ascii_case("upgrade")))
    };
    headers.contains_key(header::UPGRADE) && headers.get_all(header::CONNECTION).iter().any(asks)
}

/// Sends `request`, whose URI is in origin form (`/path?query`) and whose `Host` header fits the upstream, over
/// `upstream`, a connection already dialled. When the upstream switches protocols so do we, and both sides are spliced
/// until either ends; any other answer is passed on as it is.
///
/// # Errors
/// Never: a connection that breaks before an answer is a 502 with the reason.
pub async fn proxy<I>(mut request: Request<Body>, upstream: I) -> Response<Body>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let client_side = hyper::upgrade::on(&mut request);
    match exchange(request, upstream).await {
        Ok(mut response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            let server_side = hyper::upgrade::on(&mut response);
            tokio::spawn(async move {
                if let Err(error) = splice(client_side, server_side).await {
                    tracing::debug!(%error, "upgraded connection ended");
                }
            });
            response.map(|_| empty())
        }
        Ok(response) => response.map(|body| body.map_err(BoxError::from).boxed_unsync()),
        Err(error) => text(StatusCode::BAD_GATEWAY, format!("error dialing backend: {error}")),
    }
}

/// Sends `request` as [`proxy`] does, and gives the answer as it is: after `101 Switching Protocols` the connection is
/// had by [`hyper::upgrade::on`].
///
/// # Errors
/// The connection broke before an answer.
pub async fn exchange<I>(request: Request<Body>, upstream: I) -> hyper::Result<Response<hyper::body::Incoming>>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(upstream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "upstream connection ended");
        }
    });
    sender.send_request(request).await
}

async fn splice(client: hyper::upgrade::OnUpgrade, server: hyper::upgrade::OnUpgrade) -> Result<(), BoxError> {
    let (client, server) = tokio::try_join!(client, server)?;
    let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
    tokio::io::copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_util::sync::CancellationToken;

    use super::*;

    /// A server that switches to a protocol which echoes in upper case.
    async fn shouting_server() -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let service = tower::service_fn(|mut request: Request<Body>| async move {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut io = TokioIo::new(upgrade.await.unwrap());
                let mut buffer = [0; 64];
                while let Ok(n @ 1..) = io.read(&mut buffer).await {
                    io.write_all(&buffer[..n].to_ascii_uppercase()).await.unwrap();
                }
            });
            let answer = Response::builder()
                .status(101)
                .header("connection", "upgrade")
                .header("upgrade", "shout")
                .body(empty())
                .unwrap();
            Ok::<_, Infallible>(answer)
        });
        tokio::spawn(super::super::serve(listener, None, service, CancellationToken::new()));
        addr
    }

    #[tokio::test]
    async fn bytes_cross_in_both_directions() {
        let upstream = shouting_server().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let front = listener.local_addr().unwrap();
        let service = tower::service_fn(move |request: Request<Body>| async move {
            assert!(is_upgrade(request.headers()));
            Ok::<_, Infallible>(proxy(request, TcpStream::connect(upstream).await.unwrap()).await)
        });
        tokio::spawn(super::super::serve(listener, None, service, CancellationToken::new()));

        let mut client = TcpStream::connect(front).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: shout\r\n\r\n").await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\n") {
            seen.push(client.read_u8().await.unwrap());
        }
        assert!(seen.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&seen));
        client.write_all(b"hello").await.unwrap();
        let mut answer = [0; 5];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HELLO");
    }
}
