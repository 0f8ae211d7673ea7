//! Keeps plugins registered as their sockets come and go.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::plan::{Known, State, Step, delay, next_retry, plan};
use crate::register::{Handlers, register};
use crate::seen::{Folder, Identity, Seen};
use crate::{Handler, Plugin};

/// How long a handler may take to register a plugin.
pub const REGISTER_DEADLINE: Duration = Duration::from_secs(300);
/// How long a handler may take to forget one.
const DEREGISTER_DEADLINE: Duration = Duration::from_secs(60);

/// Watches for plugins; see the crate's comment.
pub struct PluginWatcher {
    folder: Folder,
    handlers: Arc<Handlers>,
    known: BTreeMap<PathBuf, Known>,
    /// How often each socket's last tries failed in series, kept while one is tried again.
    failures: BTreeMap<PathBuf, u32>,
    running: JoinSet<Done>,
    of: HashMap<Id, PathBuf>,
}

/// What became of a step.
enum Done {
    Registered(Plugin),
    Failed,
    Deregistered,
}

impl PluginWatcher {
    /// A watcher of the folder (stock's is `<root>/plugins_registry`), which is made if it is not there. Plugins of
    /// types that no handler is for are refused.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn new(folder: &Path, handlers: impl IntoIterator<Item = (String, Arc<dyn Handler>)>) -> io::Result<Self> {
        Ok(Self {
            folder: Folder::watch(folder)?,
            handlers: Arc::new(handlers.into_iter().collect()),
            known: BTreeMap::new(),
            failures: BTreeMap::new(),
            running: JoinSet::new(),
            of: HashMap::new(),
        })
    }

    /// Registers plugins until cancelled. They stay registered then: the next kubelet finds their sockets.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut seen = self.folder.look();
        loop {
            self.apply(&seen);
            let retry = next_retry(&self.known);
            let due = async {
                match retry {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.folder.changed() => seen = self.folder.look(),
                Some(done) = self.running.join_next_with_id() => self.done(done),
                () = due => {}
                () = cancel.cancelled() => return,
            }
        }
    }

    fn apply(&mut self, seen: &Seen) {
        for step in plan(seen, &self.known, Instant::now()) {
            tracing::info!(%step, "plugin");
            match step {
                Step::Forget(socket) => {
                    self.known.remove(&socket);
                    self.failures.remove(&socket);
                }
                Step::Register(socket, identity) => self.start_register(socket, identity),
                Step::Deregister(socket, plugin) => self.start_deregister(socket, plugin),
            }
        }
    }

    fn start_register(&mut self, socket: PathBuf, identity: Identity) {
        if self.known.get(&socket).is_none_or(|known| known.identity != identity) {
            self.failures.remove(&socket);
        }
        self.known.insert(socket.clone(), Known { identity, state: State::Busy });
        let (path, handlers) = (socket.clone(), self.handlers.clone());
        let task = self.running.spawn(async move {
            match register(&path, &handlers).await {
                Ok(plugin) => Done::Registered(plugin),
                Err(error) => {
                    tracing::warn!(socket = %path.display(), %error, "a plugin was not registered");
                    Done::Failed
                }
            }
        });
        self.of.insert(task.id(), socket);
    }

    fn start_deregister(&mut self, socket: PathBuf, plugin: Plugin) {
        if let Some(known) = self.known.get_mut(&socket) {
            known.state = State::Busy;
        }
        let handler = self.handlers.get(&plugin.kind).cloned();
        let task = self.running.spawn(async move {
            if let Some(handler) = handler
                && tokio::time::timeout(DEREGISTER_DEADLINE, handler.deregister(&plugin)).await.is_err()
            {
                tracing::warn!(plugin = plugin.name, "forgetting a plugin took too long and was broken off");
            }
            Done::Deregistered
        });
        self.of.insert(task.id(), socket);
    }

    fn done(&mut self, done: Result<(Id, Done), JoinError>) {
        let (id, done) = match done {
            Ok(done) => done,
            Err(error) => {
                tracing::error!(%error, "a plugin's handler broke");
                (error.id(), Done::Failed)
            }
        };
        let Some(socket) = self.of.remove(&id) else { return };
        match done {
            Done::Registered(plugin) => {
                tracing::info!(kind = plugin.kind, plugin = plugin.name, socket = %socket.display(), "plugin registered");
                self.failures.remove(&socket);
                self.set(&socket, State::Registered(plugin));
            }
            Done::Failed => {
                let failures = self.failures.entry(socket.clone()).or_default();
                *failures = failures.saturating_add(1);
                let failures = *failures;
                let wait = bosun_kit::backoff::jittered(delay(failures), 0.1);
                self.set(&socket, State::Failed { failures, retry: Instant::now() + wait });
            }
            // Whether there is a socket again, the next plan finds.
            Done::Deregistered => drop(self.known.remove(&socket)),
        }
    }

    fn set(&mut self, socket: &Path, state: State) {
        if let Some(known) = self.known.get_mut(socket) {
            known.state = state;
        }
    }
}
