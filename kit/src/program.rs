//! What the `main` of every daemon does around its work.

use std::process::ExitCode;

use tokio_util::sync::CancellationToken;

use crate::logs::{self, LogArgs};
use crate::{memory, shutdown, tls};

/// How many threads run a daemon's tasks: the work is waiting, mostly, and each thread costs memory.
const MOST_THREADS: usize = 4;

/// Starts logging and threads, runs `work` until it ends, which it does soon after its token is cancelled (SIGTERM,
/// SIGINT), and turns its result into the exit code: 0, or 1 after the error was logged.
pub fn run<F, W>(logs: &LogArgs, work: F) -> ExitCode
where
    F: FnOnce(CancellationToken) -> W,
    W: Future<Output = anyhow::Result<()>>,
{
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    memory::limit_arenas(threads);
    logs::init(logs);
    tls::install_crypto();
    let done = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .map_err(|error| anyhow::Error::from(error).context("start worker threads"))
        .and_then(|runtime| runtime.block_on(async { work(shutdown::token()).await }));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
