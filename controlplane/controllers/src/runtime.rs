//! What carries every controller: routes from watches to a queue of keys, workers, and expectations.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bosun_kit::events::Recorder;
use bosun_kit::informer::{Delta, Informer};
use bosun_kit::queue::WorkQueue;
use futures::future::BoxFuture;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Client, Resource};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ControllersConfig;
use crate::watches::Watches;

/// One reconciliation may take no longer, however many requests it makes.
const DEADLINE: Duration = Duration::from_secs(60);
/// An expectation that nothing has confirmed for so long is given up (stock's bound).
const EXPECTATION_LIFETIME: Duration = Duration::from_secs(300);

/// Name of an object; the namespace is empty for cluster-scoped kinds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    pub(crate) fn of(meta: &ObjectMeta) -> Self {
        Self { namespace: meta.namespace.clone().unwrap_or_default(), name: meta.name.clone().unwrap_or_default() }
    }

    /// The namespace as informers want it.
    pub(crate) fn scope(&self) -> Option<&str> {
        (!self.namespace.is_empty()).then_some(self.namespace.as_str())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// Why a reconciliation did not finish.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SyncError {
    /// The API server refused or could not be reached.
    #[error(transparent)]
    Api(Box<kube::Error>),
    /// Something else, in words.
    #[error("{0}")]
    Other(String),
}

impl From<kube::Error> for SyncError {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

impl SyncError {
    /// The object changed or went under our hands: look again.
    fn is_stale(&self) -> bool {
        matches!(self, Self::Api(error) if matches!(code(error), 404 | 409))
    }
}

/// When to look at a key again even if nothing happens.
pub(crate) type Again = Option<Duration>;
/// How a reconciliation ended.
pub(crate) type Synced = Result<Again, SyncError>;

/// HTTP code of an API error, or 0.
pub(crate) fn code(error: &kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        _ => 0,
    }
}

/// A 404 is as good as success when something should be gone.
pub(crate) fn gone_is_fine<T>(result: kube::Result<T>) -> kube::Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if code(&error) == 404 => Ok(()),
        Err(error) => Err(error),
    }
}

/// What a controller is started with.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) clients: Arc<dyn Fn(&str) -> Client + Send + Sync>,
    pub(crate) watches: Arc<Watches>,
    pub(crate) config: Arc<ControllersConfig>,
    pub(crate) cancel: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

/// A controller that is being put together.
pub(crate) struct Controller {
    pub(crate) name: &'static str,
    pub(crate) client: Client,
    pub(crate) queue: WorkQueue<Key>,
    context: Context,
    waits: Vec<BoxFuture<'static, ()>>,
}

impl Controller {
    /// Starts with the identity of the service account of that name.
    pub(crate) fn new(context: &Context, name: &'static str) -> Self {
        Self {
            name,
            client: (context.clients)(name),
            queue: WorkQueue::new(),
            context: context.clone(),
            waits: Vec::new(),
        }
    }

    /// A recorder whose events come from this controller.
    pub(crate) fn recorder(&self, component: &str) -> Recorder {
        Recorder::new(self.client.clone(), component, None)
    }

    /// Waits for the informer's first list before any work is done.
    pub(crate) fn needs<K>(&mut self, informer: &Informer<K>)
    where
        K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
    {
        let informer = informer.clone();
        self.waits.push(Box::pin(async move { informer.synced().await }));
    }

    /// Calls `route` on every change; it adds keys to the queue.
    pub(crate) fn watch<K>(
        &mut self,
        informer: &Informer<K>,
        mut route: impl FnMut(&Delta<K>, &WorkQueue<Key>) + Send + 'static,
    ) where
        K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
    {
        self.needs(informer);
        let mut changes = informer.subscribe();
        let queue = self.queue.clone();
        let cancel = self.context.cancel.clone();
        self.context.tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = cancel.cancelled() => return,
                    delta = changes.recv() => match delta {
                        Some(delta) => route(&delta, &queue),
                        None => return,
                    },
                }
            }
        });
    }

    /// Queues every object that changes.
    pub(crate) fn watch_own<K>(&mut self, informer: &Informer<K>)
    where
        K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
    {
        self.watch(informer, |delta, queue| queue.add(Key::of(delta.object().meta())));
    }

    /// Starts the workers.
    pub(crate) fn run<F>(self, workers: usize, sync: impl Fn(Key) -> F + Clone + Send + Sync + 'static)
    where
        F: Future<Output = Synced> + Send + 'static,
    {
        let Self { name, queue, context, waits, .. } = self;
        let alarms = Arc::new(Alarms::default());
        let tasks = context.tasks.clone();
        context.tasks.spawn(async move {
            tokio::select! {
                () = context.cancel.cancelled() => return,
                _ = futures::future::join_all(waits) => {}
            }
            tracing::debug!(controller = name, "caches are synced");
            for _ in 0..workers {
                let (queue, sync, alarms) = (queue.clone(), sync.clone(), alarms.clone());
                tasks.spawn(async move {
                    while let Some(key) = queue.get().await {
                        work(name, &queue, &alarms, key, &sync).await;
                    }
                });
            }
            context.cancel.cancelled().await;
            queue.close();
        });
    }
}

async fn work<F>(name: &str, queue: &WorkQueue<Key>, alarms: &Alarms, key: Key, sync: &impl Fn(Key) -> F)
where
    F: Future<Output = Synced>,
{
    match tokio::time::timeout(DEADLINE, sync(key.clone())).await {
        Ok(Ok(again)) => {
            queue.forget(&key);
            if let Some(delay) = again {
                alarms.ring(queue, &key, delay);
            }
        }
        Ok(Err(error)) if error.is_stale() => {
            tracing::debug!(controller = name, %key, %error, "object changed meanwhile; looking again");
            queue.add_rate_limited(key.clone());
        }
        Ok(Err(error)) => {
            tracing::warn!(controller = name, %key, %error, "reconciliation failed; it is tried again");
            queue.add_rate_limited(key.clone());
        }
        Err(_) => {
            tracing::warn!(controller = name, %key, "reconciliation took too long; it is tried again");
            queue.add_rate_limited(key.clone());
        }
    }
    queue.done(&key);
}

/// Keys that are to be looked at later, each with one timer however often it is asked for.
#[derive(Default)]
struct Alarms {
    set: Mutex<HashMap<Key, Instant>>,
}

impl Alarms {
    fn ring(&self, queue: &WorkQueue<Key>, key: &Key, delay: Duration) {
        let now = Instant::now();
        let at = now + delay;
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        if set.get(key).is_some_and(|before| *before > now && *before <= at) {
            return;
        }
        if set.len() > 1024 {
            set.retain(|_, at| *at > now);
        }
        set.insert(key.clone(), at);
        queue.add_after(key.clone(), delay);
    }
}

/// Writes that the informer has not shown yet: while a key has any, its counts are not to be trusted.
///
/// What is expected is a name, so the confirmation may come before the write's own answer.
#[derive(Clone, Default)]
pub(crate) struct Expectations {
    open: Arc<Mutex<HashMap<Key, Expected>>>,
}

struct Expected {
    creations: HashSet<String>,
    deletions: HashSet<String>,
    since: Instant,
}

impl Expectations {
    pub(crate) fn expect_creation(&self, owner: &Key, name: &str) {
        self.with(owner, |expected| {
            expected.creations.insert(name.to_owned());
        });
    }

    pub(crate) fn expect_deletion(&self, owner: &Key, name: &str) {
        self.with(owner, |expected| {
            expected.deletions.insert(name.to_owned());
        });
    }

    /// The write failed: it will never be seen.
    pub(crate) fn give_up(&self, owner: &Key, name: &str) {
        let mut open = self.lock();
        if let Some(expected) = open.get_mut(owner) {
            expected.creations.remove(name);
            expected.deletions.remove(name);
        }
    }

    /// Notes what a watch shows of an owned object.
    pub(crate) fn observe<K: Resource<DynamicType = ()>>(&self, owner: &Key, delta: &Delta<K>) {
        let mut open = self.lock();
        let Some(expected) = open.get_mut(owner) else { return };
        let meta = delta.object().meta();
        let name = meta.name.as_deref().unwrap_or_default();
        expected.creations.remove(name);
        if matches!(delta, Delta::Deleted(_)) || meta.deletion_timestamp.is_some() {
            expected.deletions.remove(name);
        }
        if expected.creations.is_empty() && expected.deletions.is_empty() {
            open.remove(owner);
        }
    }

    /// Whether everything expected was seen, or waiting longer is pointless.
    pub(crate) fn satisfied(&self, owner: &Key) -> bool {
        let open = self.lock();
        open.get(owner).is_none_or(|expected| {
            (expected.creations.is_empty() && expected.deletions.is_empty())
                || expected.since.elapsed() > EXPECTATION_LIFETIME
        })
    }

    /// The owner is gone.
    pub(crate) fn forget(&self, owner: &Key) {
        self.lock().remove(owner);
    }

    fn with(&self, owner: &Key, change: impl FnOnce(&mut Expected)) {
        let mut open = self.lock();
        let expected = open.entry(owner.clone()).or_insert_with(|| Expected {
            creations: HashSet::new(),
            deletions: HashSet::new(),
            since: Instant::now(),
        });
        if expected.creations.is_empty() && expected.deletions.is_empty() {
            expected.since = Instant::now();
        }
        change(expected);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Expected>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    fn pod(name: &str) -> Arc<Pod> {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.to_owned());
        Arc::new(pod)
    }

    #[test]
    fn expectations_open_and_close() {
        let expectations = Expectations::default();
        let owner = Key::new("ns", "rs");
        assert!(expectations.satisfied(&owner));
        expectations.expect_creation(&owner, "a");
        expectations.expect_deletion(&owner, "b");
        expectations.observe(&owner, &Delta::Applied(pod("a")));
        assert!(!expectations.satisfied(&owner));
        expectations.observe(&owner, &Delta::Applied(pod("b")));
        assert!(!expectations.satisfied(&owner), "b is not being deleted yet");
        expectations.observe(&owner, &Delta::Deleted(pod("b")));
        assert!(expectations.satisfied(&owner));
    }

    #[test]
    fn a_failed_write_is_not_waited_for() {
        let expectations = Expectations::default();
        let owner = Key::new("ns", "rs");
        expectations.expect_creation(&owner, "a");
        expectations.give_up(&owner, "a");
        assert!(expectations.satisfied(&owner));
    }
}
