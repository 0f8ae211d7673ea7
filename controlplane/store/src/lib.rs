//! The revisioned key-value store under the API server.
//!
//! [`Store`] has the shape of etcd v3: one global revision, multi-version reads over a bounded history, guarded
//! transactions, watch from a revision, compaction. What the values mean is the API server's business. Keys are laid
//! out as stock keeps them, `/registry/<resource>/<namespace>/<name>`.
//!
//! [`EmbeddedStore`] is the default implementation: one file, durable before the answer, group commit.

mod embedded;
mod index;
mod record;

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

pub use embedded::EmbeddedStore;

/// A point in the store's history. Every committed transaction that changes something raises it by one; it starts at
/// 1 and never falls.
pub type Revision = u64;

/// One version of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Arc<str>,
    /// The value; empty in a delete event.
    pub value: Bytes,
    /// The revision at which the key came to be (again).
    pub create_revision: Revision,
    /// The revision at which this version was written.
    pub mod_revision: Revision,
    /// How many times the key was written since its creation, this write included.
    pub version: u64,
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The key was created or changed.
    Put,
    /// The key was deleted; `kv.mod_revision` is the revision of the deletion.
    Delete,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The key after the change.
    pub kv: KeyValue,
    /// The key before the change; `None` when it was created, or when that version has been compacted.
    pub prev: Option<KeyValue>,
}

/// Some changes in order, and how far the watcher has now seen the store.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Everything up to and including this revision has been delivered.
    pub revision: Revision,
    /// The changes that the watcher asked for; may be empty.
    pub events: Vec<Arc<Event>>,
}

/// A condition on the present state of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The key does not exist.
    Absent,
    /// The key exists and was last written at this revision.
    At(Revision),
}

/// A condition that must hold for a transaction to be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// The key that the condition is about.
    pub key: String,
    /// The condition.
    pub expect: Expect,
}

/// A write inside a transaction. Each key may be written once in a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Write the value.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: Bytes,
    },
    /// Delete the key; nothing happens if it is absent.
    Delete {
        /// The key.
        key: String,
    },
}

/// Conditions and the writes that are made, all or none, if every condition holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold.
    pub guards: Vec<Guard>,
    /// Carried out in order, under one revision.
    pub ops: Vec<Op>,
}

impl Txn {
    /// Write `key` if it does not exist.
    pub fn create(key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self::default().guard(key, Expect::Absent, Some(value.into()))
    }

    /// Write `key` if it was last written at `revision`.
    pub fn update(key: impl Into<String>, value: impl Into<Bytes>, revision: Revision) -> Self {
        Self::default().guard(key, Expect::At(revision), Some(value.into()))
    }

    /// Delete `key` if it was last written at `revision`.
    pub fn delete(key: impl Into<String>, revision: Revision) -> Self {
        Self::default().guard(key, Expect::At(revision), None)
    }

    /// Both transactions as one.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.guards.extend(other.guards);
        self.ops.extend(other.ops);
        self
    }

    fn guard(mut self, key: impl Into<String>, expect: Expect, value: Option<Bytes>) -> Self {
        let key = key.into();
        self.guards.push(Guard { key: key.clone(), expect });
        self.ops.push(match value {
            Some(value) => Op::Put { key, value },
            None => Op::Delete { key },
        });
        self
    }
}

/// How a transaction ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnOutcome {
    /// Every condition held; the writes are durable.
    Committed {
        /// The revision of the writes.
        revision: Revision,
    },
    /// A condition did not hold; nothing was written.
    Conflict {
        /// The present state of each guard's key, in the order of the guards.
        current: Vec<Option<KeyValue>>,
    },
}

/// What to list.
#[derive(Clone, Debug, Default)]
pub struct Range {
    /// Keys that start with this.
    pub prefix: String,
    /// Only keys that sort at or after this, if given.
    pub start: Option<String>,
    /// At most this many; 0 is no limit.
    pub limit: usize,
    /// As the store was at this revision; `None` is now.
    pub revision: Option<Revision>,
}

/// The answer to a [`Range`].
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// The keys in order.
    pub items: Vec<KeyValue>,
    /// How many more the limit has cut off.
    pub remaining: usize,
    /// The revision that the answer shows.
    pub revision: Revision,
}

/// Why the store did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The revision has been compacted away.
    #[error("revision {requested} has been compacted; the oldest kept is {oldest}")]
    Compacted {
        /// What was asked for.
        requested: Revision,
        /// The oldest revision that can still be read.
        oldest: Revision,
    },
    /// The revision has not been reached.
    #[error("revision {requested} is in the future; the store is at {current}")]
    Future {
        /// What was asked for.
        requested: Revision,
        /// Where the store is.
        current: Revision,
    },
    /// The watcher did not keep up and was cut off; watch again from the last revision seen.
    #[error("the watcher fell too far behind and was cut off")]
    Lagged,
    /// A transaction writes one key twice.
    #[error("duplicate key in transaction: {0}")]
    DuplicateKey(String),
    /// No space is left where the store's file is. Nothing was written; reads are served.
    #[error("no space left on the device of {0}: writes are refused until there is space")]
    NoSpace(String),
    /// The file could not be read or written. Whether the write will be seen is not known.
    #[error("{path}: {reason}")]
    Io {
        /// The store's file.
        path: String,
        /// What went wrong.
        reason: String,
    },
    /// The file is not what was written; it is not used. Restore it from a snapshot.
    #[error(
        "{path} is damaged ({reason}): refusing to use it; restore it from a backup or move it away to start empty"
    )]
    Damaged {
        /// The store's file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The store has been shut down.
    #[error("the store is shut down")]
    Closed,
}

/// The result of a store call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A stream of changes. It ends after the first error.
pub type Watch = BoxStream<'static, Result<Batch>>;

/// A revisioned key-value store with the semantics of etcd v3.
pub trait Store: Send + Sync + 'static {
    /// The revision of the latest committed write.
    fn revision(&self) -> BoxFuture<'_, Result<Revision>>;

    /// One key as it is now.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<KeyValue>>>;

    /// The keys of a range, now or at an earlier revision.
    ///
    /// # Errors
    /// [`Error::Compacted`] and [`Error::Future`] for a revision that cannot be read.
    fn list(&self, range: Range) -> BoxFuture<'_, Result<Listing>>;

    /// Carry out a transaction. When this returns [`TxnOutcome::Committed`] the writes survive any crash.
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome>>;

    /// Changes to keys under `prefix`, the one made at revision `from` included.
    ///
    /// # Errors
    /// [`Error::Compacted`] if changes since `from` are no longer known.
    fn watch(&self, prefix: &str, from: Revision) -> BoxFuture<'_, Result<Watch>>;

    /// Forget every version that was superseded at or before `revision`.
    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<()>>;
}
