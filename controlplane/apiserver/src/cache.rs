//! The watch cache: every object that the store holds, by resource, with what selectors need already taken out, and
//! the watchers of each resource.
//!
//! One task follows the store. A change costs as much as there are watchers interested in it: those of one object and
//! those of the pods of one node are found by name, the others are asked one by one.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use bosun_store::{Event, EventKind, Range, Revision, Store};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::{mpsc, watch};

use crate::fields;
use crate::object::{Filter, Object, Raw};
use bosun_api::resource::{self, Resource};

/// The latest changes of a resource are kept up to this many; older ones are read from the store.
const RING: usize = 256;
/// A watcher that lets this many changes pile up is cut off; it will watch again from where it was.
const BACKLOG: usize = 8192;

/// One change of one object.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) revision: Revision,
    pub(crate) deleted: bool,
    /// The object after the change; for a deletion, as it was last, at the revision of the deletion.
    pub(crate) object: Arc<Object>,
    pub(crate) prev: Option<Arc<Object>>,
    encoded: OnceLock<Bytes>,
}

/// Someone within the server who wants to hear of every change at once, before those who wait for it go on.
pub(crate) trait Observer: Send + Sync {
    /// A change of an object; `resource` is the one that it is stored as.
    fn changed(&self, resource: &Resource, change: &Change);
}

/// What a change is to one watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Added,
    Modified,
    Deleted,
}

impl Seen {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

impl Change {
    fn new(revision: Revision, deleted: bool, object: Arc<Object>, prev: Option<Arc<Object>>) -> Arc<Self> {
        Arc::new(Self { revision, deleted, object, prev, encoded: OnceLock::new() })
    }

    /// What the change is to who watches through `filter`; `None` if nothing.
    pub(crate) fn seen(&self, filter: &Filter) -> Option<Seen> {
        let now = !self.deleted && filter.matches(&self.object);
        let before = self.prev.as_ref().is_some_and(|prev| filter.matches(prev));
        match (before, now) {
            (false, true) => Some(Seen::Added),
            (true, true) => Some(Seen::Modified),
            (true, false) => Some(Seen::Deleted),
            (false, false) => None,
        }
    }

    /// The object that a watcher gets: when it falls out of the watcher's sight, as it was before.
    pub(crate) fn shown(&self, seen: Seen) -> Raw {
        match (&self.prev, seen) {
            (Some(prev), Seen::Deleted) if !self.deleted => prev.raw.at(self.revision),
            _ => self.object.raw.clone(),
        }
    }

    /// The event as one line of JSON; made once for all watchers that see it alike.
    pub(crate) fn line(&self, seen: Seen) -> Bytes {
        let usual = match (self.deleted, &self.prev) {
            (true, _) => Seen::Deleted,
            (false, None) => Seen::Added,
            (false, Some(_)) => Seen::Modified,
        };
        match seen == usual {
            true => self.encoded.get_or_init(|| line(seen, &self.shown(seen))).clone(),
            false => line(seen, &self.shown(seen)),
        }
    }
}

/// A watch event as one line of JSON.
pub(crate) fn line(seen: Seen, raw: &Raw) -> Bytes {
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(seen.as_str().as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    raw.write(&mut out);
    out.extend_from_slice(b"}\n");
    out.into()
}

/// The receiving end of a watch.
pub(crate) type Changes = mpsc::Receiver<(Seen, Arc<Change>)>;

#[derive(Debug)]
struct Watcher {
    filter: Filter,
    /// Changes up to this one are not wanted.
    since: Revision,
    sender: mpsc::Sender<(Seen, Arc<Change>)>,
}

impl Watcher {
    /// `false` when the watcher is gone or too slow.
    fn offer(&self, change: &Arc<Change>) -> bool {
        if change.revision <= self.since {
            return true;
        }
        match change.seen(&self.filter) {
            Some(seen) => self.sender.try_send((seen, change.clone())).is_ok(),
            None => true,
        }
    }
}

/// Watchers by what they can be interested in.
#[derive(Debug, Default)]
struct Watchers {
    all: Vec<Watcher>,
    by_name: HashMap<String, Vec<Watcher>>,
    by_node: HashMap<String, Vec<Watcher>>,
    count: usize,
    sweep_at: usize,
}

impl Watchers {
    fn add(&mut self, watcher: Watcher) {
        self.count += 1;
        if self.count > self.sweep_at {
            self.sweep();
        }
        let required = |field| watcher.filter.fields.required(field).map(str::to_owned);
        let bucket = match (required("metadata.name"), watcher.filter.resource.storage) {
            (Some(name), _) => self.by_name.entry(name).or_default(),
            (None, "/registry/pods") => match required("spec.nodeName") {
                Some(node) => self.by_node.entry(node).or_default(),
                None => &mut self.all,
            },
            _ => &mut self.all,
        };
        bucket.push(watcher);
    }

    fn offer(&mut self, change: &Arc<Change>) {
        self.all.retain(|w| w.offer(change));
        let (_, name) = change.object.place();
        offer_in(&mut self.by_name, name, change);
        if self.by_node.is_empty() {
            return;
        }
        let node = change.object.field(fields::POD_NODE);
        offer_in(&mut self.by_node, node, change);
        if let Some(before) = change.prev.as_ref().map(|p| p.field(fields::POD_NODE)).filter(|before| *before != node) {
            offer_in(&mut self.by_node, before, change);
        }
    }

    /// Forget who has gone without a change to notice it by.
    fn sweep(&mut self) {
        let open = |w: &Watcher| !w.sender.is_closed();
        self.all.retain(open);
        for buckets in [&mut self.by_name, &mut self.by_node] {
            buckets.retain(|_, bucket| {
                bucket.retain(open);
                !bucket.is_empty()
            });
        }
        let named: usize = self.by_name.values().chain(self.by_node.values()).map(Vec::len).sum();
        self.count = self.all.len() + named + 1;
        self.sweep_at = (self.count * 2).max(64);
    }
}

fn offer_in(buckets: &mut HashMap<String, Vec<Watcher>>, key: &str, change: &Arc<Change>) {
    if let Some(bucket) = buckets.get_mut(key) {
        bucket.retain(|w| w.offer(change));
    }
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<Arc<str>, Arc<Object>>,
    revision: Revision,
    ring: VecDeque<Arc<Change>>,
    /// Every change after this revision is in the ring.
    ring_floor: Revision,
    watchers: Watchers,
}

/// The objects of one resource.
#[derive(Debug)]
pub(crate) struct Cache {
    resource: &'static Resource,
    state: RwLock<State>,
}

/// A consistent look at a resource.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) objects: Vec<Arc<Object>>,
    /// How many more the limit has cut off; `None` when a selector makes that unknown.
    pub(crate) remaining: Option<usize>,
    pub(crate) more: bool,
    pub(crate) revision: Revision,
}

impl Cache {
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn load(&self, key: Arc<str>, raw: Raw) {
        let object = Object::new(self.resource, key.clone(), raw);
        self.write().objects.insert(key, Arc::new(object));
    }

    fn apply(&self, events: &[Arc<Event>], revision: Revision, observer: &dyn Observer) {
        let mut state = self.write();
        for event in events {
            let key = &event.kv.key;
            let change = match event.kind {
                EventKind::Put => {
                    let object = Arc::new(Object::new(self.resource, key.clone(), Raw::of(&event.kv)));
                    let prev = state.objects.insert(key.clone(), object.clone());
                    Change::new(event.kv.mod_revision, false, object, prev)
                }
                EventKind::Delete => {
                    let Some(prev) = state.objects.remove(key) else { continue };
                    let last = Arc::new(prev.deleted_at(event.kv.mod_revision));
                    Change::new(event.kv.mod_revision, true, last, Some(prev))
                }
            };
            observer.changed(self.resource, &change);
            state.watchers.offer(&change);
            state.ring.push_back(change);
            if state.ring.len() > RING
                && let Some(oldest) = state.ring.pop_front()
            {
                state.ring_floor = oldest.revision;
            }
        }
        state.revision = revision;
    }

    /// Objects from `start` (a key) on that match, at most `limit` (0 is no limit).
    fn list(&self, filter: &Filter, start: Option<&str>, limit: usize, floor: Revision) -> Snapshot {
        let state = self.read();
        let scope = self.resource.key_prefix(Some(&filter.namespace));
        let start = start.unwrap_or(&scope);
        let mut snapshot =
            Snapshot { objects: Vec::new(), remaining: None, more: false, revision: state.revision.max(floor) };
        let mut beyond = 0;
        let tail = state.objects.range::<str, _>((Bound::Included(start), Bound::Unbounded));
        for (_, object) in tail.take_while(|(key, _)| key.starts_with(&scope)) {
            if limit > 0 && snapshot.objects.len() == limit {
                snapshot.more = true;
                match filter.is_everything() {
                    true => beyond += 1,
                    false => break,
                }
            } else if filter.matches(object) {
                snapshot.objects.push(object.clone());
            }
        }
        snapshot.remaining = (snapshot.more && filter.is_everything()).then_some(beyond);
        snapshot
    }

    /// Register a watcher of changes after `since`; `None` if the ring does not reach back that far.
    fn watch(&self, filter: Filter, since: Revision) -> Option<Changes> {
        let mut state = self.write();
        if since < state.ring_floor {
            return None;
        }
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let watcher = Watcher { filter, since, sender };
        for change in &state.ring {
            watcher.offer(change);
        }
        state.watchers.add(watcher);
        Some(receiver)
    }
}

/// A watch that has begun.
#[derive(Debug)]
pub(crate) struct Started {
    /// What happened before the cache's own memory begins.
    pub(crate) missed: Vec<(Seen, Arc<Change>)>,
    pub(crate) changes: Changes,
}

/// All resources' caches, kept up to date by one task.
pub(crate) struct Caches {
    by_storage: HashMap<&'static str, Cache>,
    observer: Arc<dyn Observer>,
    /// Every change up to this revision has been taken in.
    progress: watch::Sender<Revision>,
}

impl Caches {
    /// Load everything. [`Caches::follow`] must run for as long as the caches are used.
    pub(crate) async fn load(store: &dyn Store, observer: Arc<dyn Observer>) -> bosun_store::Result<Arc<Self>> {
        let listing = store.list(Range { prefix: "/registry/".into(), ..Range::default() }).await?;
        let state = || State { revision: listing.revision, ring_floor: listing.revision, ..State::default() };
        let stored = resource::RESOURCES.iter().filter(|r| r.is_stored()).map(Resource::stored_as);
        let mut by_storage = HashMap::new();
        for resource in stored {
            by_storage.entry(resource.storage).or_insert_with(|| Cache { resource, state: RwLock::new(state()) });
        }
        let caches = Arc::new(Self { by_storage, observer, progress: watch::Sender::new(listing.revision) });
        for kv in listing.items {
            if let Some(cache) = caches.of_key(&kv.key) {
                cache.load(kv.key.clone(), Raw::of(&kv));
            }
        }
        Ok(caches)
    }

    /// Take every change in, for ever.
    pub(crate) async fn follow(self: Arc<Self>, store: Arc<dyn Store>) {
        loop {
            let from = *self.progress.borrow() + 1;
            match store.watch("/registry/", from).await {
                Ok(mut watch) => {
                    while let Some(Ok(batch)) = watch.next().await {
                        self.take(&batch.events, batch.revision);
                    }
                }
                Err(error) => tracing::error!(%error, from, "the watch cache cannot follow the store"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn take(&self, events: &[Arc<Event>], revision: Revision) {
        if let [event] = events {
            if let Some(cache) = self.of_key(&event.kv.key) {
                cache.apply(events, revision, self.observer.as_ref());
            }
        } else {
            let mut groups: HashMap<&str, (&Cache, Vec<Arc<Event>>)> = HashMap::new();
            for event in events {
                if let Some(cache) = self.of_key(&event.kv.key) {
                    let group = groups.entry(cache.resource.storage).or_insert_with(|| (cache, Vec::new()));
                    group.1.push(event.clone());
                }
            }
            for (cache, events) in groups.values() {
                cache.apply(events, revision, self.observer.as_ref());
            }
        }
        self.progress.send_replace(revision);
    }

    fn of_key(&self, key: &str) -> Option<&Cache> {
        // Storages are two or three segments deep: `/registry/pods`, `/registry/services/specs`.
        let slashes = key.match_indices('/').map(|(at, _)| at);
        slashes.skip(2).take(2).find_map(|at| self.by_storage.get(&key[..at]))
    }

    fn of(&self, resource: &Resource) -> Option<&Cache> {
        self.by_storage.get(resource.storage)
    }

    /// The revision that the caches show.
    pub(crate) fn revision(&self) -> Revision {
        *self.progress.borrow()
    }

    /// Wait until the caches show at least `revision`; `false` if that takes too long.
    pub(crate) async fn wait_for(&self, revision: Revision, deadline: Duration) -> bool {
        let mut progress = self.progress.subscribe();
        let reached = progress.wait_for(|now| *now >= revision);
        tokio::time::timeout(deadline, reached).await.is_ok_and(|r| r.is_ok())
    }

    /// Objects of a resource that match a filter.
    pub(crate) fn list(&self, filter: &Filter, start: Option<&str>, limit: usize) -> Snapshot {
        // Read first: what it says has been taken in by every cache, also by those that had no part in it.
        let floor = self.revision();
        match self.of(filter.resource) {
            Some(cache) => cache.list(filter, start, limit, floor),
            None => Snapshot { objects: Vec::new(), remaining: None, more: false, revision: floor },
        }
    }

    /// One object, as the cache has it.
    pub(crate) fn get(&self, resource: &Resource, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.of(resource)?.read().objects.get(resource.key(namespace, name).as_str()).cloned()
    }

    /// Watch for changes after `since`. What the cache has forgotten is read from the store.
    ///
    /// # Errors
    /// The store has compacted it away.
    pub(crate) async fn watch(
        &self,
        store: &dyn Store,
        filter: &Filter,
        mut since: Revision,
    ) -> bosun_store::Result<Option<Started>> {
        let Some(cache) = self.of(filter.resource) else { return Ok(None) };
        let mut missed = Vec::new();
        loop {
            if let Some(changes) = cache.watch(filter.clone(), since) {
                return Ok(Some(Started { missed, changes }));
            }
            let mut watch = store.watch(&cache.resource.key_prefix(None), since + 1).await?;
            let Some(batch) = watch.next().await else { return Ok(None) };
            let batch = batch?;
            let changes = batch.events.iter().filter_map(|event| replayed(cache.resource, event));
            missed.extend(changes.filter_map(|change| Some((change.seen(filter)?, change))));
            since = since.max(batch.revision);
        }
    }
}

/// A change out of the store's history.
fn replayed(resource: &Resource, event: &Event) -> Option<Arc<Change>> {
    let revision = event.kv.mod_revision;
    let object = |raw| Arc::new(Object::new(resource, event.kv.key.clone(), raw));
    let prev = event.prev.as_ref().map(|kv| object(Raw::of(kv)));
    Some(match event.kind {
        EventKind::Put => Change::new(revision, false, object(Raw::of(&event.kv)), prev),
        EventKind::Delete => Change::new(revision, true, Arc::new(prev.as_ref()?.deleted_at(revision)), prev),
    })
}
