//! The embedded store: one file on redb.
//!
//! Why redb: pure Rust (the binary stays static, no C library), well kept, one file, copy-on-write B-trees with
//! checksums, so that a torn last write is rolled back when the file is opened; a small cache that we can bound; and
//! one writer, which is what group commit wants anyway.
//!
//! The file holds one table, a log: (revision, position in the transaction) to the version written there. As in etcd,
//! an index in memory says which versions each key has; it also holds every live value, so that only reads of the past
//! touch the file. One thread writes: it takes all transactions that are waiting, decides each against the index and
//! the ones before it, commits them as one durable write, then updates the index, tells the watchers and answers.

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc};

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use redb::{Builder, Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};
use tokio::sync::oneshot;

use crate::index::{Index, Version};
use crate::record::{self, Place};
use crate::{
    Batch, Error, Event, EventKind, Expect, KeyValue, Listing, Op, Range, Result, Revision, Store, Txn, TxnOutcome,
    Watch,
};

const LOG: TableDefinition<'static, Place, &'static [u8]> = TableDefinition::new("log");
const META: TableDefinition<'static, &'static str, u64> = TableDefinition::new("meta");
const FORMAT: u64 = 1;
/// Live values are in the index; redb's cache only serves its own pages.
const CACHE_BYTES: usize = 4 << 20;
/// One commit takes at most this many transactions.
const GROUP: usize = 1024;
/// The revision of an empty store, as in etcd.
const FIRST: Revision = 1;

type Opener = Box<dyn Fn() -> Result<Database> + Send + Sync>;

/// The embedded store. Dropping it ends the writer thread once all accepted transactions are answered.
#[derive(Debug)]
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    commands: Mutex<Option<mpsc::Sender<Command>>>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
}

struct Shared {
    path: String,
    index: RwLock<Index>,
    /// `None` after a failed write, until the file could be opened again.
    database: RwLock<Option<Database>>,
    open: Opener,
}

enum Command {
    Txn(Txn, oneshot::Sender<Result<TxnOutcome>>),
    Compact(Revision, oneshot::Sender<Result<()>>),
}

impl EmbeddedStore {
    /// Open the store in `path`, or create it.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the file is not what was written, [`Error::Io`] if it cannot be opened, for example
    /// because another process has it open.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path: PathBuf = path.as_ref().to_owned();
        let shown = path.display().to_string();
        let name = shown.clone();
        Self::start(
            shown,
            Box::new(move || {
                guarded(&name, || {
                    Builder::new().set_cache_size(CACHE_BYTES).create(&path).map_err(|e| failure(&name, e.into()))
                })
            }),
        )
    }

    /// A store in memory, for tests: the same code on a file that is not there.
    ///
    /// # Errors
    /// None in practice.
    pub fn in_memory() -> Result<Self> {
        Self::with_backend("memory", redb::backends::InMemoryBackend::new)
    }

    /// A store on a backend of the caller's; the closure is called again after a failed write.
    pub(crate) fn with_backend<B: StorageBackend>(
        name: &str,
        backend: impl Fn() -> B + Send + Sync + 'static,
    ) -> Result<Self> {
        let shown = name.to_owned();
        let open = move || {
            let builder = Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(backend());
            builder.map_err(|e| failure(&shown, e.into()))
        };
        Self::start(name.to_owned(), Box::new(open))
    }

    fn start(path: String, open: Opener) -> Result<Self> {
        let database = open()?;
        let index = guarded(&path, || load(&path, &database))?;
        let shared = Arc::new(Shared { path, index: RwLock::new(index), database: RwLock::new(Some(database)), open });
        let (commands, inbox) = mpsc::channel();
        let writer = shared.clone();
        let writer = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run(&inbox))
            .map_err(|e| Error::Io { path: shared.path.clone(), reason: format!("starting the writer: {e}") })?;
        Ok(Self { shared, commands: Mutex::new(Some(commands)), writer: Mutex::new(Some(writer)) })
    }

    fn send(&self, command: Command) -> Result<()> {
        let sender = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        sender.as_ref().ok_or(Error::Closed)?.send(command).map_err(|_| Error::Closed)
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = writer.join();
        }
    }
}

impl Store for EmbeddedStore {
    fn revision(&self) -> BoxFuture<'_, Result<Revision>> {
        std::future::ready(Ok(self.shared.index().revision)).boxed()
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<KeyValue>>> {
        std::future::ready(Ok(self.shared.index().get(key).cloned())).boxed()
    }

    fn list(&self, range: Range) -> BoxFuture<'_, Result<Listing>> {
        let found = self.shared.index().range(&range);
        async move {
            let (versions, remaining, revision) = found?;
            if versions.iter().all(|v| matches!(v, Version::Live(_))) {
                let items = versions.into_iter().filter_map(live).collect();
                return Ok(Listing { items, remaining, revision });
            }
            let shared = self.shared.clone();
            let items = tokio::task::spawn_blocking(move || shared.resolve(versions, revision))
                .await
                .map_err(|_| Error::Closed)??;
            Ok(Listing { items, remaining, revision })
        }
        .boxed()
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome>> {
        let (reply, answer) = oneshot::channel();
        let sent = self.send(Command::Txn(txn, reply));
        async move {
            sent?;
            answer.await.map_err(|_| Error::Closed)?
        }
        .boxed()
    }

    fn watch(&self, prefix: &str, from: Revision) -> BoxFuture<'_, Result<Watch>> {
        let prefix = prefix.to_owned();
        let shared = self.shared.clone();
        async move {
            let (missed, receiver, revision) = tokio::task::spawn_blocking(move || shared.subscribe(&prefix, from))
                .await
                .map_err(|_| Error::Closed)??;
            let first = stream::iter([Ok(Batch { revision, events: missed })]);
            let rest = stream::unfold(receiver, |mut r| async { r.recv().await.map(|batch| (batch, r)) });
            Ok(first.chain(rest).boxed())
        }
        .boxed()
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<()>> {
        let (reply, answer) = oneshot::channel();
        let sent = self.send(Command::Compact(revision, reply));
        async move {
            sent?;
            answer.await.map_err(|_| Error::Closed)?
        }
        .boxed()
    }
}

impl Shared {
    fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Run something on the file.
    fn on_file<T>(&self, run: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = database.as_ref() else {
            return Err(Error::Io { path: self.path.clone(), reason: "closed after a failed write".into() });
        };
        guarded(&self.path, || run(database).map_err(|e| failure(&self.path, e)))
    }

    /// Fill in the values of versions that are in the log.
    fn resolve(&self, versions: Vec<Version>, at: Revision) -> Result<Vec<KeyValue>> {
        let places: Vec<Place> = versions
            .iter()
            .filter_map(|v| match v {
                Version::InLog(place) => Some(*place),
                Version::Live(_) => None,
            })
            .collect();
        let mut past = self.read(&places)?.into_iter();
        let mut items = Vec::with_capacity(versions.len());
        for version in versions {
            match version {
                Version::Live(kv) => items.push(kv),
                // A compaction may have passed between the look at the index and this.
                Version::InLog(_) => items.push(
                    past.next()
                        .flatten()
                        .ok_or_else(|| Error::Compacted { requested: at, oldest: self.index().compacted })?,
                ),
            }
        }
        Ok(items)
    }

    fn read(&self, places: &[Place]) -> Result<Vec<Option<KeyValue>>> {
        let raw: Vec<Option<Vec<u8>>> = self.on_file(|database| {
            let table = database.begin_read()?.open_table(LOG)?;
            places.iter().map(|place| Ok(table.get(*place)?.map(|v| v.value().to_vec()))).collect()
        })?;
        let decode = |(place, bytes): (&Place, Option<Vec<u8>>)| {
            bytes.map(|bytes| record::decode(*place, &bytes).map(|r| r.kv)).transpose()
        };
        places
            .iter()
            .zip(raw)
            .map(decode)
            .collect::<Result<_, _>>()
            .map_err(|reason| Error::Damaged { path: self.path.clone(), reason })
    }

    #[expect(clippy::type_complexity, reason = "used once, taken apart at once")]
    fn subscribe(
        &self,
        prefix: &str,
        from: Revision,
    ) -> Result<(Vec<Arc<Event>>, tokio::sync::mpsc::Receiver<Result<Batch>>, Revision)> {
        // The lock is held over the read of the log: what is published meanwhile must not be missed or doubled.
        let mut index = self.index_mut();
        let (missed, receiver) = index.watch(prefix, from)?;
        let missed = match missed {
            Ok(recent) => recent,
            Err(from) => self.replay(&index, prefix, from)?,
        };
        Ok((missed, receiver, index.revision))
    }

    /// Changes since `from`, out of the log.
    fn replay(&self, index: &Index, prefix: &str, from: Revision) -> Result<Vec<Arc<Event>>> {
        let raw: Vec<(Place, Vec<u8>)> = self.on_file(|database| {
            let table = database.begin_read()?.open_table(LOG)?;
            let mut raw = Vec::new();
            for row in table.range((from, 0)..)? {
                let (place, bytes) = row?;
                raw.push((place.value(), bytes.value().to_vec()));
            }
            Ok(raw)
        })?;
        let mut events = Vec::new();
        for (place, bytes) in raw {
            let record =
                record::decode(place, &bytes).map_err(|reason| Error::Damaged { path: self.path.clone(), reason })?;
            if !record.kv.key.starts_with(prefix) {
                continue;
            }
            let prev = match index.before(&record.kv.key, place) {
                Some(before) => self.read(&[before])?.pop().flatten(),
                None => None,
            };
            let kind = if record.deleted { EventKind::Delete } else { EventKind::Put };
            events.push(Arc::new(Event { kind, kv: record.kv, prev }));
        }
        Ok(events)
    }

    fn run(&self, inbox: &mpsc::Receiver<Command>) {
        while let Ok(first) = inbox.recv() {
            let mut group = Vec::new();
            let mut next = Some(first);
            while let Some(command) = next.take() {
                match command {
                    Command::Txn(txn, reply) => group.push((txn, reply)),
                    Command::Compact(revision, reply) => {
                        let _ = reply.send(self.compact(revision));
                    }
                }
                if group.len() < GROUP {
                    next = inbox.try_recv().ok();
                }
            }
            if !group.is_empty() {
                self.commit(group);
            }
        }
    }

    fn commit(&self, group: Vec<(Txn, oneshot::Sender<Result<TxnOutcome>>)>) {
        if let Err(error) = self.reopen() {
            for (_, reply) in group {
                let _ = reply.send(Err(error.clone()));
            }
            return;
        }
        let plan = {
            let index = self.index();
            let mut plan = Plan::new(&index);
            let outcomes: Vec<_> = group.iter().map(|(txn, _)| plan.decide(txn)).collect();
            (plan.revision, plan.changes, outcomes)
        };
        let (revision, changes, outcomes) = plan;
        let written = if changes.is_empty() { Ok(()) } else { self.write(&changes) };
        match written {
            Ok(()) => {
                if !changes.is_empty() {
                    self.index_mut().publish(revision, changes);
                }
                for ((_, reply), outcome) in group.into_iter().zip(outcomes) {
                    let _ = reply.send(outcome);
                }
            }
            Err(error) => {
                tracing::error!(%error, "commit failed");
                for ((_, reply), outcome) in group.into_iter().zip(outcomes) {
                    // A conflict is only as good as the writes it was decided upon, which did not happen.
                    let _ = reply.send(outcome.and(Err(error.clone())));
                }
                self.database.write().unwrap_or_else(PoisonError::into_inner).take();
            }
        }
    }

    fn write(&self, changes: &[(Place, Arc<Event>)]) -> Result<()> {
        self.on_file(|database| {
            let txn = database.begin_write()?;
            {
                let mut log = txn.open_table(LOG)?;
                for (place, event) in changes {
                    let deleted = event.kind == EventKind::Delete;
                    log.insert(*place, record::encode(*place, &event.kv, deleted).as_slice())?;
                }
            }
            txn.commit()?;
            Ok(())
        })
    }

    /// After a failed write the file is opened anew, and what the failed write did leave in it is taken in: it was
    /// answered with an error, but from here on it is as good as any other write.
    fn reopen(&self) -> Result<()> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if database.is_some() {
            return Ok(());
        }
        let opened = (self.open)()?;
        let found = guarded(&self.path, || load(&self.path, &opened))?;
        let known = self.index().revision;
        if found.revision < known {
            let reason = format!("it is at revision {}, and {known} was acknowledged", found.revision);
            return Err(Error::Damaged { path: self.path.clone(), reason });
        }
        *database = Some(opened);
        drop(database);
        if found.revision > known {
            let index = self.index();
            let events = self.replay(&index, "", known + 1)?;
            drop(index);
            let mut sub = HashMap::new();
            let changes = events
                .into_iter()
                .map(|event| {
                    let next: &mut u32 = sub.entry(event.kv.mod_revision).or_default();
                    let place = (event.kv.mod_revision, *next);
                    *next += 1;
                    (place, event)
                })
                .collect();
            self.index_mut().publish(found.revision, changes);
        }
        Ok(())
    }

    fn compact(&self, revision: Revision) -> Result<()> {
        self.reopen()?;
        let (doomed, current) = {
            let index = self.index();
            if revision > index.revision {
                return Err(Error::Future { requested: revision, current: index.revision });
            }
            if revision <= index.compacted {
                return Err(Error::Compacted { requested: revision, oldest: index.compacted });
            }
            (index.superseded(revision), index.revision)
        };
        let freed = self.on_file(|database| {
            let txn = database.begin_write()?;
            {
                let mut log = txn.open_table(LOG)?;
                for place in &doomed {
                    log.remove(*place)?;
                }
                let mut meta = txn.open_table(META)?;
                meta.insert("compacted", revision)?;
                meta.insert("revision", current)?;
            }
            txn.commit()?;
            Ok(())
        });
        match freed {
            Ok(()) => {
                self.index_mut().compact(revision);
                Ok(())
            }
            Err(error) => {
                self.database.write().unwrap_or_else(PoisonError::into_inner).take();
                Err(error)
            }
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("path", &self.path).finish_non_exhaustive()
    }
}

/// What a group of transactions amounts to: decided one after the other, each seeing the ones before it.
struct Plan<'a> {
    index: &'a Index,
    overlay: HashMap<Arc<str>, Option<KeyValue>>,
    revision: Revision,
    changes: Vec<(Place, Arc<Event>)>,
}

impl<'a> Plan<'a> {
    fn new(index: &'a Index) -> Self {
        Self { index, overlay: HashMap::new(), revision: index.revision, changes: Vec::new() }
    }

    fn current(&self, key: &str) -> Option<&KeyValue> {
        match self.overlay.get(key) {
            Some(pending) => pending.as_ref(),
            None => self.index.get(key),
        }
    }

    fn decide(&mut self, txn: &Txn) -> Result<TxnOutcome> {
        let holds = txn.guards.iter().all(|guard| match (&guard.expect, self.current(&guard.key)) {
            (Expect::Absent, None) => true,
            (Expect::At(revision), Some(kv)) => kv.mod_revision == *revision,
            _ => false,
        });
        if !holds {
            let current = txn.guards.iter().map(|guard| self.current(&guard.key).cloned()).collect();
            return Ok(TxnOutcome::Conflict { current });
        }
        let mut seen = HashSet::new();
        for op in &txn.ops {
            let (Op::Put { key, .. } | Op::Delete { key }) = op;
            if !seen.insert(key) {
                return Err(Error::DuplicateKey(key.clone()));
            }
        }
        let revision = self.revision + 1;
        let before = self.changes.len();
        for op in &txn.ops {
            self.apply(revision, u32::try_from(self.changes.len() - before).unwrap_or(u32::MAX), op);
        }
        if self.changes.len() > before {
            self.revision = revision;
        }
        Ok(TxnOutcome::Committed { revision: self.revision })
    }

    fn apply(&mut self, revision: Revision, sub: u32, op: &Op) {
        let event = match op {
            Op::Put { key, value } => {
                let prev = self.current(key).cloned();
                let kv = KeyValue {
                    key: prev.as_ref().map_or_else(|| Arc::from(key.as_str()), |kv| kv.key.clone()),
                    value: value.clone(),
                    create_revision: prev.as_ref().map_or(revision, |kv| kv.create_revision),
                    mod_revision: revision,
                    version: prev.as_ref().map_or(0, |kv| kv.version) + 1,
                };
                self.overlay.insert(kv.key.clone(), Some(kv.clone()));
                Event { kind: EventKind::Put, kv, prev }
            }
            Op::Delete { key } => {
                let Some(prev) = self.current(key).cloned() else {
                    return;
                };
                self.overlay.insert(prev.key.clone(), None);
                let kv = KeyValue {
                    key: prev.key.clone(),
                    value: bytes::Bytes::new(),
                    create_revision: 0,
                    mod_revision: revision,
                    version: 0,
                };
                Event { kind: EventKind::Delete, kv, prev: Some(prev) }
            }
        };
        self.changes.push(((revision, sub), Arc::new(event)));
    }
}

fn live(version: Version) -> Option<KeyValue> {
    match version {
        Version::Live(kv) => Some(kv),
        Version::InLog(_) => None,
    }
}

/// Read the whole log, and check every record of it.
fn load(path: &str, database: &Database) -> Result<Index> {
    let damaged = |reason: String| Error::Damaged { path: path.to_owned(), reason };
    let io = |e: redb::Error| failure(path, e);
    let (compacted, floor) = prepare(database).map_err(io)?.map_err(damaged)?;
    let mut index = Index::new(compacted, floor);
    let read = |index: &mut Index| -> Result<Result<(), String>, redb::Error> {
        let table = database.begin_read()?.open_table(LOG)?;
        for row in table.range::<Place>(..)? {
            let (place, bytes) = row?;
            let place = place.value();
            match record::decode(place, bytes.value()) {
                Ok(record) => index.load(place, record),
                Err(reason) => return Ok(Err(reason)),
            }
        }
        Ok(Ok(()))
    };
    read(&mut index).map_err(io)?.map_err(damaged)?;
    Ok(index)
}

/// Make the tables if the file is new. Gives (compacted revision, lowest present revision).
fn prepare(database: &Database) -> Result<Result<(Revision, Revision), String>, redb::Error> {
    let txn = database.begin_write()?;
    let known = {
        txn.open_table(LOG)?;
        let mut meta = txn.open_table(META)?;
        let read = |meta: &redb::Table<'_, &str, u64>, key| -> Result<Option<u64>, redb::Error> {
            Ok(meta.get(key)?.map(|v| v.value()))
        };
        match read(&meta, "format")? {
            Some(FORMAT) => {}
            Some(other) => {
                return Ok(Err(format!("its format is {other}, this version reads {FORMAT}")));
            }
            None => {
                meta.insert("format", FORMAT)?;
            }
        }
        (read(&meta, "compacted")?.unwrap_or(0), read(&meta, "revision")?.unwrap_or(FIRST))
    };
    txn.commit()?;
    Ok(Ok(known))
}

/// redb meets some kinds of damage with a panic; on our side that is an error like any other.
fn guarded<T>(path: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let reason = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
            .unwrap_or_else(|| "unreadable".into());
        Err(Error::Damaged { path: path.to_owned(), reason })
    })
}

fn failure(path: &str, error: redb::Error) -> Error {
    let path = path.to_owned();
    match error {
        redb::Error::Io(e) if e.kind() == std::io::ErrorKind::StorageFull => Error::NoSpace(path),
        redb::Error::Io(e) if e.kind() == std::io::ErrorKind::QuotaExceeded => Error::NoSpace(path),
        redb::Error::Io(e) if e.kind() == std::io::ErrorKind::InvalidData => {
            Error::Damaged { path, reason: e.to_string() }
        }
        redb::Error::Corrupted(reason) => Error::Damaged { path, reason },
        redb::Error::DatabaseAlreadyOpen => Error::Io { path, reason: "another process has it open".into() },
        other => Error::Io { path, reason: other.to_string() },
    }
}

#[cfg(test)]
mod tests;
