//! gRPC over a unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bosun_kit::backoff::Backoff;
use bosun_proto::unix;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

const FIRST_TRY: Duration = Duration::from_millis(20);
const LAST_TRY: Duration = Duration::from_secs(1);

/// The path of a socket that is given as a path or as `unix://` and a path.
pub fn path(endpoint: &str) -> PathBuf {
    let path = endpoint.strip_prefix("unix://").or_else(|| endpoint.strip_prefix("unix:")).unwrap_or(endpoint);
    PathBuf::from(path)
}

/// A channel to the socket: connects when it is first used and again whenever the connection was lost. A call while
/// nobody listens fails at once.
pub fn channel(socket: &Path) -> Channel {
    unix::channel(&Endpoint::from_static("http://plugin.invalid"), socket.to_path_buf())
}

/// A channel to the socket once somebody listens: the file is there before its process listens.
///
/// # Errors
/// Nobody listened until the deadline.
pub async fn dial(socket: &Path, deadline: Duration) -> io::Result<Channel> {
    let mut last = None;
    let trying = async {
        let mut backoff = Backoff::new(FIRST_TRY, LAST_TRY);
        loop {
            match UnixStream::connect(socket).await {
                Ok(_) => return,
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    };
    match tokio::time::timeout(deadline, trying).await {
        Ok(()) => Ok(channel(socket)),
        Err(_) => Err(last.unwrap_or_else(|| io::ErrorKind::TimedOut.into())),
    }
}
