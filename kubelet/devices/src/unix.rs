//! gRPC over unix sockets, both ways.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

/// How long a peer may take to accept a connection, as in stock.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a connection that could not be accepted (too many files) is left alone.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Listens at `path`, in whose place a socket of an earlier run may stand. Only root may connect.
///
/// # Errors
/// The folder or the socket cannot be made.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let context = |error: io::Error| io::Error::new(error.kind(), format!("listen at {}: {error}", path.display()));
    if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
        bosun_kit::files::create_dir(folder, 0o750)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(context(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(context)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(context)?;
    Ok(listener)
}

/// Serves a gRPC service until cancelled.
pub async fn serve<S>(listener: UnixListener, service: S, cancel: CancellationToken)
where
    S: tower::Service<http::Request<Incoming>, Response = http::Response<tonic::body::Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = cancel.cancelled() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection to a socket of the kubelet was not accepted");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let (service, cancel) = (TowerToHyperService::new(service.clone()), cancel.clone());
        tokio::spawn(async move {
            let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                _ = served => {}
                () = cancel.cancelled() => {}
            }
        });
    }
}

/// A client of the service that listens at `path`. It connects with the first call.
pub fn channel(path: PathBuf) -> Channel {
    let endpoint = Endpoint::from_static("http://socket.invalid").connect_timeout(CONNECT);
    bosun_proto::unix::channel(&endpoint, path)
}
