//! The way to a peer that listens on a unix socket, as runtimes, drivers and plugins do.

use std::path::PathBuf;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// A channel to the socket, with the deadlines of `endpoint`, whose address names the peer in errors alone. It connects
/// with the first call, and again whenever the connection was lost; a call while nobody listens fails at once.
pub fn channel(endpoint: &Endpoint, socket: PathBuf) -> Channel {
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    }))
}
