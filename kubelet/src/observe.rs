//! Looking at the runtime: what a container or sandbox is right now, and the news of what changed.
//!
//! News come from three sides: the runtime's event stream where it has one; a process-file-descriptor for each running
//! container where it has not, so that an exit is known at once without asking; and a listing now and then that repairs
//! whatever was missed.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bosun_proto::cri;
use futures::StreamExt;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::cri::{CriErrorKind, Result, Runtime};
use crate::make::Node;
use crate::metrics::Relists;
use crate::pod::labels;
use crate::pod::record::{ContainerRecord, SandboxRecord, State};

/// How often everything is listed when exits are told by the runtime's events.
const REPAIR_WITH_EVENTS: Duration = Duration::from_secs(30);
/// How often without them.
const REPAIR_WITHOUT_EVENTS: Duration = Duration::from_secs(5);
/// How long the runtime has to tell of one pod at the start, when nothing is begun before it is known what runs; and
/// later.
const FIRST_LOOK: Duration = Duration::from_secs(30);
const LATER_LOOK: Duration = Duration::from_secs(60);
/// When what it did not tell is asked again.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How many pods are asked about at the same time.
const LOOKS: usize = 16;
/// A termination message is cut here.
const MAX_MESSAGE: u64 = 4096;
/// How much of a log's end stands in for one.
const MAX_LOG_TAIL: u64 = 2048;
const MAX_LOG_LINES: usize = 80;

/// Which pod something in the runtime belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The pod's UID.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
}

impl Owner {
    /// After the labels that a kubelet leaves; none if somebody else made it.
    pub fn from_labels(map: &std::collections::BTreeMap<String, String>) -> Option<Self> {
        let get = |key: &str| map.get(key).filter(|v| !v.is_empty()).cloned();
        Some(Self { uid: get(labels::POD_UID)?, name: get(labels::POD_NAME)?, namespace: get(labels::POD_NAMESPACE)? })
    }
}

/// What was found out.
#[derive(Debug)]
pub enum News {
    /// The state of a container.
    Container(Owner, Box<ContainerRecord>),
    /// The state of a sandbox.
    Sandbox(Owner, SandboxRecord),
    /// A listing begun at that time showed these ids and no others.
    Listed(Instant, Arc<HashSet<String>>),
}

/// Watches the runtime.
pub struct Observer {
    runtime: Arc<dyn Runtime>,
    node: Arc<Node>,
    news: mpsc::UnboundedSender<News>,
    /// What the last news of each id said, so that a listing asks only about what differs.
    known: Mutex<HashMap<String, u8>>,
    /// What is being asked about because a listing showed it.
    looking: Mutex<HashSet<String>>,
    streaming: AtomicBool,
    relist: Notify,
    /// When the runtime last answered a listing.
    listed: Mutex<Instant>,
    relists: Relists,
}

/// A listing, and what in it is not known yet.
struct Survey {
    since: Instant,
    ids: Arc<HashSet<String>>,
    news: Vec<Look>,
}

/// Something to ask about: a container, or (without one) a sandbox.
struct Look {
    owner: Owner,
    sandbox: String,
    container: Option<String>,
}

impl Look {
    fn id(&self) -> &str {
        self.container.as_deref().unwrap_or(&self.sandbox)
    }
}

/// Something is being asked about.
struct Looking<'a> {
    observer: &'a Observer,
    id: &'a str,
}

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        self.observer.looking.lock().unwrap_or_else(PoisonError::into_inner).remove(self.id);
    }
}

const SANDBOX_READY: u8 = 10;
const SANDBOX_DOWN: u8 = 11;

fn code(state: State) -> u8 {
    state as u8
}

impl Observer {
    /// An observer of `runtime` that sends to `news`.
    pub fn new(runtime: Arc<dyn Runtime>, node: Arc<Node>, news: mpsc::UnboundedSender<News>) -> Arc<Self> {
        Arc::new(Self {
            runtime,
            node,
            news,
            known: Mutex::default(),
            looking: Mutex::default(),
            streaming: AtomicBool::new(false),
            relist: Notify::new(),
            listed: Mutex::new(Instant::now()),
            relists: Relists::default(),
        })
    }

    /// How the runtime is listed, as metrics.
    pub fn relists(&self) -> &Relists {
        &self.relists
    }

    /// How long ago the runtime last answered a listing.
    pub fn age(&self) -> Duration {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Asks the runtime about a container, and reads its termination message if it has ended.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn container(&self, id: &str, sandbox: &str) -> Result<ContainerRecord> {
        let answer = self.runtime.container_status(id, false).await?;
        Ok(self.record(&answer.status.unwrap_or_default(), sandbox))
    }

    /// Asks the runtime about a sandbox.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn sandbox(&self, id: &str) -> Result<SandboxRecord> {
        let record = SandboxRecord::from_status(&self.runtime.sandbox_status(id).await?);
        self.know(id, if record.ready { SANDBOX_READY } else { SANDBOX_DOWN });
        Ok(record)
    }

    fn record(&self, status: &cri::ContainerStatus, sandbox: &str) -> ContainerRecord {
        let mut record = ContainerRecord::from_status(status, sandbox);
        if record.state == State::Exited
            && let Some(message) = termination_message(status, &self.node)
        {
            record.message = message;
        }
        self.know(&record.id, code(record.state));
        record
    }

    fn know(&self, id: &str, state: u8) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), state);
    }

    fn knows(&self, id: &str, state: u8) -> bool {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(id) == Some(&state)
    }

    /// Lists everything once and tells what is new, so that at the start all that runs is known. One pod of which the
    /// runtime does not tell for a while is left to a later listing.
    ///
    /// # Errors
    /// The runtime's; what was told so far stands.
    pub async fn list(&self) -> Result<()> {
        let survey = self.survey().await?;
        self.conclude(survey, FIRST_LOOK).await;
        Ok(())
    }

    /// Takes back what is believed of these ids, and lists again soon: what the runtime really holds is told anew.
    pub fn doubt<'a>(&self, ids: impl IntoIterator<Item = &'a str>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for id in ids {
            known.remove(id);
        }
        drop(known);
        self.relist.notify_one();
    }

    async fn survey(&self) -> Result<Survey> {
        let since = Instant::now();
        let (sandboxes, containers) =
            futures::try_join!(self.runtime.list_sandboxes(), self.runtime.list_containers(None))?;
        // The runtime has answered. How long it takes to tell of one pod says nothing about its health.
        let before =
            std::mem::replace(&mut *self.listed.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
        self.relists.listed(since.elapsed(), before.elapsed());
        let mut ids = HashSet::with_capacity(sandboxes.len() + containers.len());
        let mut news = Vec::new();
        for sandbox in &sandboxes {
            ids.insert(sandbox.id.clone());
            let Some(owner) = Owner::from_labels(&sandbox.labels) else { continue };
            let ready = sandbox.state() == cri::PodSandboxState::SandboxReady;
            if !self.knows(&sandbox.id, if ready { SANDBOX_READY } else { SANDBOX_DOWN }) {
                news.push(Look { owner, sandbox: sandbox.id.clone(), container: None });
            }
        }
        for container in containers {
            ids.insert(container.id.clone());
            let Some(owner) = Owner::from_labels(&container.labels) else { continue };
            let state = State::from(container.state());
            if !self.knows(&container.id, code(state)) {
                news.push(Look { owner, sandbox: container.pod_sandbox_id, container: Some(container.id) });
            }
        }
        self.known.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| ids.contains(id));
        Ok(Survey { since, ids: Arc::new(ids), news })
    }

    /// Tells of a listing, then asks about what is new in it, each pod for itself, and tells that.
    async fn conclude(&self, survey: Survey, patience: Duration) {
        let Survey { since, ids, news } = survey;
        self.tell(News::Listed(since, ids.clone()));
        if news.is_empty() {
            return;
        }
        let looks = futures::stream::iter(news).map(|look| async move {
            let Some(_looking) = self.begin(look.id()) else { return true };
            tokio::time::timeout(patience, self.look(&look)).await.is_ok_and(|told| told)
        });
        let told: Vec<bool> = looks.buffer_unordered(LOOKS).collect().await;
        // Again, since what nobody owns is acted on when it is listed.
        self.tell(News::Listed(since, ids));
        if told.contains(&false) {
            tokio::time::sleep(LOOK_AGAIN).await;
            self.relist.notify_one();
        }
    }

    /// Marks something as being asked about until the returned value ends; none if it is already.
    fn begin<'a>(&'a self, id: &'a str) -> Option<Looking<'a>> {
        let mut looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        // Not `then_some`: a mark made in vain would be taken away at once, under the lock.
        looking.insert(id.to_owned()).then(|| Looking { observer: self, id })
    }

    /// Asks about one thing and tells of it; false if the runtime does not say.
    async fn look(&self, look: &Look) -> bool {
        let Look { owner, sandbox, container } = look;
        let told = match container {
            None => self.sandbox(sandbox).await.map(|record| News::Sandbox(owner.clone(), record)),
            Some(id) => {
                let record = self.container(id, sandbox).await;
                record.map(|record| News::Container(owner.clone(), Box::new(record)))
            }
        };
        match told {
            Ok(news) => self.tell(news),
            // It went meanwhile: the next listing does not have it.
            Err(error) if error.is_not_found() => {}
            Err(error) => {
                tracing::warn!(pod = owner.name, namespace = owner.namespace, %error, "the runtime was not heard of a pod");
                return false;
            }
        }
        true
    }

    fn tell(&self, news: News) {
        // Nobody listens any more only at the end of the process.
        let _ = self.news.send(news);
    }

    /// Follows the runtime until cancelled.
    pub async fn run(self: Arc<Self>, cancel: CancellationToken) {
        let streamer = self.clone();
        let stop = cancel.clone();
        tokio::spawn(async move {
            tokio::select! { () = streamer.stream() => {}, () = stop.cancelled() => {} }
        });
        loop {
            let pause = if self.streaming.load(Ordering::Relaxed) { REPAIR_WITH_EVENTS } else { REPAIR_WITHOUT_EVENTS };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.relist.notified() => tokio::time::sleep(Duration::from_millis(50)).await,
                () = cancel.cancelled() => return,
            }
            match self.survey().await {
                Ok(survey) => {
                    let observer = self.clone();
                    // Beside the next listing: a pod of which the runtime does not tell holds up no other.
                    tokio::spawn(async move { observer.conclude(survey, LATER_LOOK).await });
                }
                Err(error) => tracing::warn!(%error, "the container runtime was not listed"),
            }
        }
    }

    /// Follows the event stream, anew whenever it ends; gives up for good if the runtime has none.
    async fn stream(&self) {
        let mut backoff = bosun_kit::backoff::Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        loop {
            match self.runtime.events().await {
                Ok(mut events) => {
                    self.streaming.store(true, Ordering::Relaxed);
                    // What happened before the stream began is in no event.
                    self.relist.notify_one();
                    while let Some(event) = events.next().await {
                        match event {
                            Ok(event) => {
                                backoff.reset();
                                self.take(event).await;
                            }
                            Err(error) if error.kind == CriErrorKind::Unimplemented => {
                                self.streaming.store(false, Ordering::Relaxed);
                                return;
                            }
                            Err(error) => {
                                tracing::debug!(%error, "the event stream ended");
                                break;
                            }
                        }
                    }
                }
                Err(error) if error.kind == CriErrorKind::Unimplemented => {
                    tracing::info!("the container runtime has no event stream; its containers are watched one by one");
                    return;
                }
                Err(error) => tracing::debug!(%error, "the event stream did not begin"),
            }
            self.streaming.store(false, Ordering::Relaxed);
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    async fn take(&self, event: cri::ContainerEventResponse) {
        use cri::ContainerEventType as Kind;
        let kind = event.container_event_type();
        let Some(sandbox) = &event.pod_sandbox_status else { return self.relist.notify_one() };
        let Some(owner) = Owner::from_labels(&sandbox.labels) else { return };
        if kind == Kind::ContainerDeletedEvent {
            return self.relist.notify_one();
        }
        let record = SandboxRecord::from_status(sandbox);
        if record.ready || kind == Kind::ContainerStoppedEvent {
            self.know(&record.id, if record.ready { SANDBOX_READY } else { SANDBOX_DOWN });
            let of_sandbox = event.container_id == sandbox.id;
            if of_sandbox && kind == Kind::ContainerStoppedEvent && record.ready {
                // The event may be ahead of the status it carries.
                self.relist.notify_one();
            }
            self.tell(News::Sandbox(owner.clone(), record));
        }
        for status in &event.containers_statuses {
            let stale = status.id == event.container_id
                && kind == Kind::ContainerStoppedEvent
                && status.state() != cri::ContainerState::ContainerExited;
            let record = match stale {
                true => match self.container(&status.id, &sandbox.id).await {
                    Ok(record) => record,
                    Err(_) => continue,
                },
                false if self.knows(&status.id, code(State::from(status.state()))) => continue,
                false => self.record(status, &sandbox.id),
            };
            self.tell(News::Container(owner.clone(), Box::new(record)));
        }
    }

    /// The first process of a running container, to be watched; none if it has ended or the runtime does not tell.
    async fn process_of(&self, id: &str) -> Option<AsyncFd<OwnedFd>> {
        let answer = match self.runtime.container_status(id, true).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!(%error, "the process of a container is not known");
                return None;
            }
        };
        if answer.status?.state() != cri::ContainerState::ContainerRunning {
            return None;
        }
        watchable(open_process(pid(answer.info.get("info")?)?)?)
    }

    /// Tells the exit of a running container as soon as it happens, if no event stream does. Returns when it did, or
    /// when its process cannot be watched (then the listings tell).
    pub async fn watch_exit(self: Arc<Self>, owner: Owner, id: String, sandbox: String) {
        // A moment, so that this does not compete with the start of the pod.
        tokio::time::sleep(Duration::from_millis(300)).await;
        if self.streaming.load(Ordering::Relaxed) {
            return;
        }
        tracing::debug!(container = id, "watching for its exit");
        if let Some(process) = self.process_of(&id).await {
            // Only a container that runs after its process was opened has surely this process.
            match self.container(&id, &sandbox).await {
                Ok(record) if record.state == State::Running => drop(process.readable().await),
                Ok(record) => return self.tell(News::Container(owner, Box::new(record))),
                Err(_) => return,
            }
        }
        // The runtime needs a moment to take note.
        let mut pause = Duration::from_millis(2);
        while pause < Duration::from_secs(3) {
            tokio::time::sleep(pause).await;
            match self.container(&id, &sandbox).await {
                Ok(record) if record.state != State::Running => {
                    return self.tell(News::Container(owner, Box::new(record)));
                }
                Ok(_) => pause *= 2,
                Err(_) => return,
            }
        }
    }
}

/// The process id in what containerd tells when asked verbosely.
fn pid(info: &str) -> Option<i32> {
    #[derive(serde::Deserialize)]
    struct Info {
        pid: i32,
    }
    serde_json::from_str::<Info>(info).ok().map(|info| info.pid).filter(|pid| *pid > 0)
}

/// A descriptor that becomes readable when the process ends (pidfd_open(2)).
fn open_process(pid: i32) -> Option<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(pid)?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::NONBLOCK).ok()
}

#[expect(unsafe_code, reason = "tokio asks for a promise about the descriptor that its type already makes")]
fn watchable(process: OwnedFd) -> Option<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd stays open, and stays the same descriptor, for as long as the AsyncFd that owns it.
    unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) }.ok()
}

/// What the container left as its last word: the file that it was told of, or the end of its log if it failed without
/// a word and its policy says so.
fn termination_message(status: &cri::ContainerStatus, node: &Node) -> Option<String> {
    let path = status.annotations.get(labels::MESSAGE_PATH)?;
    let mount =
        status.mounts.iter().find(|m| m.container_path == *path && Path::new(&m.host_path).starts_with(&node.root_dir));
    let file = mount.and_then(|m| read_tail(Path::new(&m.host_path), MAX_MESSAGE)).filter(|text| !text.is_empty());
    let to_log = status.annotations.get(labels::MESSAGE_POLICY).is_some_and(|p| p == "FallbackToLogsOnError");
    match file {
        Some(text) => Some(text),
        None if to_log && status.exit_code != 0 => log_tail(Path::new(&status.log_path)),
        None => None,
    }
}

fn read_tail(path: &Path, most: u64) -> Option<String> {
    let mut file = fs::File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most))).ok()?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The end of a log in the CRI's format, without its time and stream columns.
fn log_tail(path: &Path) -> Option<String> {
    let text = read_tail(path, MAX_LOG_TAIL * 2)?;
    let lines: Vec<&str> = text.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).collect();
    let kept = lines[lines.len().saturating_sub(MAX_LOG_LINES)..].join("\n");
    let cut = kept.char_indices().find(|(at, _)| kept.len() - at <= MAX_LOG_TAIL as usize).map_or(0, |(at, _)| at);
    Some(kept[cut..].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::fake::FakeRuntime;

    #[test]
    fn a_pod_is_asked_about_once_at_a_time() {
        let node = Arc::new(crate::make::tests::node());
        let observer = Observer::new(Arc::new(FakeRuntime::new()), node, mpsc::unbounded_channel().0);
        let first = observer.begin("a").unwrap();
        assert!(observer.begin("a").is_none());
        assert!(observer.begin("b").is_some());
        drop(first);
        assert!(observer.begin("a").is_some());
    }
}
