//! The loop: changes come in, the kernel follows.

use std::sync::Arc;
use std::time::Duration;

use bosun_kit::backoff::Backoff;
use bosun_nft::Monitor;
use kube::Client;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::{self, Receiver};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, SettingError, Settings};
use crate::health::HealthChecks;
use crate::model::Change;
use crate::nftables::{Backend, Detector};
use crate::plan::{Plan, Planner};
use crate::server::{self, State};
use crate::worker::{Worker, touched};
use crate::{sysctl, watch};

/// How many changes wait at most; more make the watches wait.
const QUEUE: usize = 1024;
/// How often the kernel is compared with the plan though nothing points to a difference.
const FULL_SYNC: Duration = Duration::from_secs(3600);
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Why the proxy could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be used.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The kernel's rules cannot be used.
    #[error("mode nftables cannot be used: {0}")]
    Kernel(#[from] bosun_nft::Error),
    /// A port could not be listened on.
    #[error(transparent)]
    Listen(#[from] std::io::Error),
    /// A sync died; a fault of this program.
    #[error("a sync of the rules died: {0}")]
    Died(#[from] tokio::task::JoinError),
    /// It was stopped before it knew the cluster's state.
    #[error("stopped before the cluster's state was known")]
    Stopped,
}

/// Serves the cluster's Services on a node until `cancel`, in the process's network namespace. The rules stay when it
/// ends, so that connections go on.
pub async fn run(config: Config, client: Client, node: String, cancel: CancellationToken) -> Result<(), Error> {
    let settings = Settings::from_config(&config)?;
    sysctl::apply(&config.conntrack, settings.oom_score_adj);
    let backend = Backend::open(settings.rules.clone())?;
    let state = Arc::new(State::new(&config, settings.sync_period));
    server::start(&settings, &state, &cancel).await?;
    // The watches end with this function, however it ends.
    let watching = cancel.child_token();
    let _stop = watching.clone().drop_guard();
    let mut changes = changes(&client, &node, &watching);
    let mut planner = Planner::new(&node, settings.node_ports.clone());
    match gather(&mut planner, &mut changes, &settings, &cancel).await {
        Err(Error::Stopped) => return Ok(()),
        gathered => gathered?,
    }
    let proxy = Proxy {
        worker: Some(Worker::new(planner, backend)),
        monitor: None,
        checks: HealthChecks::new(state.clone(), cancel.clone()),
        pods: Box::default(),
        full: true,
        queued: None,
        not_before: Instant::now(),
        full_at: Instant::now() + FULL_SYNC,
        backoff: Backoff::new(RETRY, RETRY_MAX),
        settings,
        state,
    };
    proxy.go(changes, cancel).await
}

/// Does only what needs privileges: sets the kernel's connection tracking.
pub fn init(config: &Config) -> Result<(), Error> {
    let settings = Settings::from_config(config)?;
    sysctl::apply(&config.conntrack, settings.oom_score_adj);
    Ok(())
}

/// The plan for the cluster's present state, without doing anything about it.
pub async fn dry_run(config: &Config, client: Client, node: &str, cancel: CancellationToken) -> Result<Plan, Error> {
    let settings = Settings::from_config(config)?;
    let watching = cancel.child_token();
    let _stop = watching.clone().drop_guard();
    let mut changes = changes(&client, node, &watching);
    let mut planner = Planner::new(node, settings.node_ports.clone());
    gather(&mut planner, &mut changes, &settings, &cancel).await?;
    planner.delta();
    Ok(planner.plan())
}

fn changes(client: &Client, node: &str, watching: &CancellationToken) -> Receiver<Change> {
    let (sender, changes) = mpsc::channel(QUEUE);
    watch::start(client, node, &sender, watching);
    changes
}

/// Takes changes in until the model is complete.
async fn gather(
    planner: &mut Planner,
    changes: &mut Receiver<Change>,
    settings: &Settings,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    let mut missing = watch::WATCHES;
    let waits_for_node = |planner: &Planner| settings.node_cidr && planner.node().pod_cidrs.is_empty();
    while missing > 0 || waits_for_node(planner) {
        match cancel.run_until_cancelled(changes.recv()).await.flatten() {
            None => return Err(Error::Stopped),
            Some(Change::Synced) => missing = missing.saturating_sub(1),
            Some(change) => planner.take(with_address(change, settings)),
        }
    }
    Ok(())
}

/// Puts the configured address in the place of the Node's.
fn with_address(change: Change, settings: &Settings) -> Change {
    match (change, settings.node_address) {
        (Change::Node(mut node), Some(address)) => {
            let others = node.addresses.iter().filter(|one| one.is_ipv6() != address.is_ipv6());
            node.addresses = std::iter::once(address).chain(others.copied()).collect();
            Change::Node(node)
        }
        (change, _) => change,
    }
}

struct Proxy {
    /// None while it is at work.
    worker: Option<Worker>,
    monitor: Option<AsyncFd<Monitor>>,
    checks: HealthChecks,
    settings: Settings,
    state: Arc<State>,
    /// The pods' networks by which the detector was set.
    pods: Box<[ipnet::IpNet]>,
    /// The next sync compares with the kernel.
    full: bool,
    /// Since when a sync is wanted.
    queued: Option<Instant>,
    /// When the next sync may be.
    not_before: Instant,
    /// When the kernel is compared in any case.
    full_at: Instant,
    backoff: Backoff,
}

impl Proxy {
    async fn go(mut self, mut changes: Receiver<Change>, cancel: CancellationToken) -> Result<(), Error> {
        self.sync().await?;
        loop {
            let due = match self.queued {
                Some(_) => self.not_before.min(self.full_at),
                None => self.full_at,
            };
            let own = self.worker.as_ref().map_or(0, Worker::port);
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                change = changes.recv() => match change {
                    None => return Ok(()),
                    Some(change) => {
                        self.take(change);
                        while let Ok(change) = changes.try_recv() {
                            self.take(change);
                        }
                    }
                },
                touched = readable(&mut self.monitor, own) => if touched {
                    tracing::info!("someone changed our rules; they are compared with the plan");
                    self.full = true;
                    self.queue();
                },
                () = tokio::time::sleep_until(due) => {
                    self.full |= Instant::now() >= self.full_at;
                    self.sync().await?;
                }
            }
        }
    }

    fn take(&mut self, change: Change) {
        let Some(worker) = &mut self.worker else { return };
        self.state.metrics.count(&change);
        worker.planner.take(with_address(change, &self.settings));
        self.state.set_node_leaving(worker.planner.node().leaving);
        let pods_changed = self.settings.node_cidr && worker.planner.node().pod_cidrs != self.pods;
        if worker.planner.is_dirty() || pods_changed {
            self.queue();
        }
    }

    fn queue(&mut self) {
        if self.queued.is_none() {
            self.queued = Some(Instant::now());
            self.state.queued();
        }
    }

    async fn sync(&mut self) -> Result<(), Error> {
        let Some(mut worker) = self.worker.take() else { return Ok(()) };
        if self.settings.node_cidr && worker.planner.node().pod_cidrs != self.pods {
            self.pods = worker.planner.node().pod_cidrs.clone();
            worker.set_detector(Detector::Nets(self.pods.to_vec()));
            self.full = true;
        }
        worker.monitor = self.monitor.take().map(AsyncFd::into_inner);
        let full = std::mem::take(&mut self.full);
        let start = Instant::now();
        self.queued = None;
        let (mut worker, outcome) = tokio::task::spawn_blocking(move || {
            let outcome = worker.sync(full);
            (worker, outcome)
        })
        .await?;
        self.monitor = worker.monitor.take().and_then(wait_on);
        self.not_before = start + self.settings.min_sync_period;
        self.state.metrics.synced(&outcome);
        match &outcome.result {
            Ok(()) => {
                tracing::debug!(full, took = ?outcome.took, "rules synced");
                self.backoff.reset();
                self.state.synced();
                self.checks.update(worker.planner.health_checks()).await;
                if full {
                    self.full_at = Instant::now() + FULL_SYNC;
                }
            }
            Err(error) => {
                let delay = self.backoff.next_delay();
                tracing::error!(%error, retry_in = ?delay, "the rules could not be synced; everything stays as it was");
                self.not_before = Instant::now() + delay;
                // The kernel is at the plan before: only comparing tells what is to be done.
                self.full = true;
                self.queue();
            }
        }
        if outcome.recheck {
            self.full = true;
            self.queue();
        }
        self.worker = Some(worker);
        Ok(())
    }
}

#[expect(unsafe_code, reason = "AsyncFd takes a descriptor on trust")]
fn wait_on(monitor: Monitor) -> Option<AsyncFd<Monitor>> {
    // SAFETY: a `Monitor` owns its socket, never gives another descriptor, and closes it only when it is dropped.
    unsafe { AsyncFd::register(monitor) }.ok()
}

/// Waits for a change by anyone; whether it was someone else's and to our tables.
async fn readable(monitor: &mut Option<AsyncFd<Monitor>>, own: u32) -> bool {
    let Some(monitor) = monitor else { return std::future::pending().await };
    match monitor.readable_mut().await {
        Ok(mut ready) => {
            let touched = touched(ready.get_inner_mut(), own);
            ready.clear_ready();
            touched
        }
        Err(error) => {
            tracing::warn!(%error, "rules that others change cannot be seen");
            std::future::pending().await
        }
    }
}
