//! The signal to stop: SIGTERM and SIGINT as one token that everything listens to.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled at the first SIGTERM or SIGINT; the second one ends the process at once (exit code 1), as
/// stock components do.
///
/// # Panics
/// Never from outside: only when called without a tokio runtime.
pub fn token() -> CancellationToken {
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
            tracing::error!("signal handlers could not be installed; stop this process with SIGKILL");
            return;
        };
        let mut once = async || {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        };
        once().await;
        cancelled.cancel();
        once().await;
        std::process::exit(1);
    });
    token
}
