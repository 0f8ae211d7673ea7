//! A node's own containerd: its configuration as text, and its process under supervision.
//!
//! The configuration is a pure function of [`Settings`], for both of containerd's configuration versions. The process
//! outlives us on purpose: pods go on while the node agent restarts, so a containerd that runs already is adopted.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use bosun_kit::backoff::Backoff;
use bosun_kit::files::{create_dir, write_atomic};
use thiserror::Error;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

mod config;

pub use config::{ConfigVersion, Settings};

/// How long containerd may take until its socket answers.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How often the socket is tried until then: containerd announces nothing that we could wait for.
const START_POLL: Duration = Duration::from_millis(20);
/// How long a containerd must have run for its next end to count as the first.
const STABLE: Duration = Duration::from_secs(60);

/// Why containerd does not run.
#[derive(Debug, Error)]
pub enum Error {
    /// There is no such program.
    #[error(
        "{program} cannot be run: {source}; install containerd (Debian: apt-get install containerd), or name a running one with --container-runtime-endpoint"
    )]
    Program {
        /// What was tried.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It does not say which version it is.
    #[error("{program} --version printed {printed:?}, which names no version")]
    Version {
        /// What was tried.
        program: PathBuf,
        /// What it printed.
        printed: String,
    },
    /// A folder or file of it could not be made.
    #[error("prepare containerd: {0}")]
    Prepare(#[from] io::Error),
    /// It started and did not answer.
    #[error("containerd does not answer on {socket} after {0:?}; its log is {log}", START_DEADLINE)]
    Silent {
        /// The socket.
        socket: PathBuf,
        /// The log file.
        log: PathBuf,
    },
    /// It ended before it answered.
    #[error("containerd ended ({status}) before it answered; its log is {log}:\n{tail}")]
    Ended {
        /// How it ended.
        status: String,
        /// The log file.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
}

/// Asks `program` for its version.
///
/// # Errors
/// It cannot be run, or names none.
pub fn version(program: &Path) -> Result<ConfigVersion, Error> {
    let output = std::process::Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::Program { program: program.to_owned(), source })?;
    let printed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    ConfigVersion::of_program(&printed).ok_or_else(|| Error::Version { program: program.to_owned(), printed })
}

/// Starts `program` with these settings unless one answers on the socket already, waits until it answers, and keeps it
/// running until `cancel`: one that ends is started again, with growing delays.
///
/// # Errors
/// It cannot be started the first time.
pub async fn supervise(program: PathBuf, settings: Settings, cancel: CancellationToken) -> Result<(), Error> {
    if answers(&settings.socket) {
        tracing::info!(socket = %settings.socket.display(), "containerd runs already and is adopted");
        // Its end is noticed like that of a child, only later.
        tokio::spawn(keep(program, settings, None, cancel));
        return Ok(());
    }
    let child = start(&program, &settings).await?;
    tokio::spawn(keep(program, settings, Some(child), cancel));
    Ok(())
}

async fn keep(program: PathBuf, settings: Settings, mut child: Option<Child>, cancel: CancellationToken) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    loop {
        let since = tokio::time::Instant::now();
        tokio::select! {
            () = cancel.cancelled() => return,
            () = ended(&settings, child.as_mut()) => {}
        }
        tracing::error!(socket = %settings.socket.display(), "containerd ended and is started again");
        if since.elapsed() > STABLE {
            backoff.reset();
        }
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(backoff.next_delay()) => {}
            }
            match start(&program, &settings).await {
                Ok(started) => {
                    child = Some(started);
                    break;
                }
                Err(error) => tracing::error!(%error, "containerd not started"),
            }
        }
    }
}

/// Returns when containerd is gone. An adopted one is no child of ours: it is looked at every two seconds.
async fn ended(settings: &Settings, child: Option<&mut Child>) {
    match child {
        Some(child) => {
            if let Err(error) = child.wait().await {
                tracing::warn!(%error, "wait for containerd");
            }
        }
        None => {
            while answers(&settings.socket) {
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        }
    }
}

async fn start(program: &Path, settings: &Settings) -> Result<Child, Error> {
    let version = version(program)?;
    for folder in [&settings.root, &settings.state, &settings.opt] {
        create_dir(folder, 0o711)?;
    }
    for folder in [&settings.cni_conf_dir, &settings.cni_bin_dir] {
        create_dir(folder, 0o755)?;
    }
    if let Some(folder) = settings.socket.parent() {
        create_dir(folder, 0o755)?;
    }
    let config = settings.root.join("config.toml");
    write_atomic(&config, settings.render(version).as_bytes(), 0o600)?;
    let log = settings.root.join("containerd.log");
    let output = fs::File::options().append(true).create(true).open(&log)?;
    let mut child = Command::new(program)
        .arg("--config")
        .arg(&config)
        .env("PATH", search_path(program))
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        // Signals to our process group are not for it: it goes on when we stop.
        .process_group(0)
        .spawn()
        .map_err(|source| Error::Program { program: program.to_owned(), source })?;
    let deadline = tokio::time::Instant::now() + START_DEADLINE;
    while !answers(&settings.socket) {
        if let Some(status) = child.try_wait()? {
            return Err(Error::Ended { status: status.to_string(), tail: tail(&log), log });
        }
        if tokio::time::Instant::now() > deadline {
            return Err(Error::Silent { socket: settings.socket.clone(), log });
        }
        tokio::time::sleep(START_POLL).await;
    }
    Ok(child)
}

fn answers(socket: &Path) -> bool {
    UnixStream::connect(socket).is_ok()
}

/// The shim stands beside containerd and is found by name.
fn search_path(program: &Path) -> std::ffi::OsString {
    let inherited = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    match program.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => [folder.as_os_str(), &inherited].join(OsStr::new(":")),
        None => inherited,
    }
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}
