//! What the embedded store keeps in memory: the live version of every key, where older versions stand in the log, the
//! latest changes, and the watchers.
//!
//! Only the writer thread changes it, after the change is durable; readers share it.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::record::{Place, Record};
use crate::{Batch, Error, Event, EventKind, KeyValue, Range, Result, Revision};

/// The latest changes are kept up to this many and this many bytes of values.
const RING_EVENTS: usize = 4096;
const RING_BYTES: usize = 2 << 20;
/// A watcher that lets this many batches pile up is cut off.
const WATCHER_BATCHES: usize = 65_536;

/// An older version of a key: its value is in the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Past {
    pub(crate) place: Place,
    pub(crate) deleted: bool,
}

/// Everything known about one key.
#[derive(Debug, Default)]
struct Entry {
    live: Option<KeyValue>,
    live_place: Place,
    /// Older versions and deletions, oldest first.
    past: Vec<Past>,
}

#[derive(Debug)]
struct Watcher {
    prefix: String,
    from: Revision,
    sender: mpsc::Sender<Result<Batch>>,
}

/// One version that a historical read needs.
#[derive(Debug)]
pub(crate) enum Version {
    Live(KeyValue),
    InLog(Place),
}

#[derive(Debug)]
pub(crate) struct Index {
    keys: BTreeMap<Arc<str>, Entry>,
    pub(crate) revision: Revision,
    /// Versions superseded at or before this are gone.
    pub(crate) compacted: Revision,
    ring: VecDeque<Arc<Event>>,
    ring_bytes: usize,
    /// Every change after this revision is in the ring.
    ring_floor: Revision,
    watchers: Vec<Watcher>,
}

impl Index {
    pub(crate) fn new(compacted: Revision, floor: Revision) -> Self {
        Self {
            keys: BTreeMap::new(),
            revision: floor,
            compacted,
            ring: VecDeque::new(),
            ring_bytes: 0,
            ring_floor: floor,
            watchers: Vec::new(),
        }
    }

    /// Take a record of the log in, in the log's order, as it was before the process started.
    pub(crate) fn load(&mut self, place: Place, record: Record) {
        self.revision = self.revision.max(place.0);
        self.ring_floor = self.revision;
        self.step(place, &record.kv, record.deleted);
    }

    pub(crate) fn get(&self, key: &str) -> Option<&KeyValue> {
        self.keys.get(key)?.live.as_ref()
    }

    /// Take a committed batch in, and tell the watchers.
    pub(crate) fn publish(&mut self, revision: Revision, changes: Vec<(Place, Arc<Event>)>) {
        self.revision = revision;
        for (place, event) in &changes {
            self.step(*place, &event.kv, event.kind == EventKind::Delete);
            self.ring_bytes += weight(event);
            self.ring.push_back(event.clone());
        }
        while self.ring.len() > RING_EVENTS || self.ring_bytes > RING_BYTES {
            let Some(oldest) = self.ring.pop_front() else {
                break;
            };
            self.ring_bytes -= weight(&oldest);
            self.ring_floor = oldest.kv.mod_revision;
        }
        self.watchers.retain(|watcher| {
            let events: Vec<_> = changes
                .iter()
                .map(|(_, event)| event)
                .filter(|e| e.kv.mod_revision >= watcher.from && e.kv.key.starts_with(&watcher.prefix))
                .cloned()
                .collect();
            // The last slot of the channel is kept for the notice that it has been cut off.
            if watcher.sender.capacity() <= 1 {
                let _ = watcher.sender.try_send(Err(Error::Lagged));
                return false;
            }
            watcher.sender.try_send(Ok(Batch { revision, events })).is_ok()
        });
    }

    fn step(&mut self, place: Place, kv: &KeyValue, deleted: bool) {
        let entry = self.keys.entry(kv.key.clone()).or_default();
        if entry.live.take().is_some() {
            entry.past.push(Past { place: entry.live_place, deleted: false });
        }
        if deleted {
            entry.past.push(Past { place, deleted: true });
        } else {
            entry.live = Some(kv.clone());
            entry.live_place = place;
        }
    }

    /// The keys of a range at a revision: versions, how many the limit has cut off, and the revision shown.
    pub(crate) fn range(&self, range: &Range) -> Result<(Vec<Version>, usize, Revision)> {
        let at = self.readable(range.revision)?;
        let start = match &range.start {
            Some(start) if *start > range.prefix => start.as_str(),
            _ => range.prefix.as_str(),
        };
        let mut found = Vec::new();
        let mut remaining = 0;
        let tail = self.keys.range::<str, _>((Bound::Included(start), Bound::Unbounded));
        for (_, entry) in tail.take_while(|(key, _)| key.starts_with(&range.prefix)) {
            let Some(version) = entry.at(at) else {
                continue;
            };
            if range.limit > 0 && found.len() == range.limit {
                remaining += 1;
            } else {
                found.push(version);
            }
        }
        Ok((found, remaining, at))
    }

    fn readable(&self, wanted: Option<Revision>) -> Result<Revision> {
        let at = wanted.unwrap_or(self.revision);
        if at < self.compacted {
            return Err(Error::Compacted { requested: at, oldest: self.compacted });
        }
        if at > self.revision {
            return Err(Error::Future { requested: at, current: self.revision });
        }
        Ok(at)
    }

    /// Register a watcher. Gives the changes that it has missed and its channel; `Err(place)` when the ring does not
    /// reach back far enough and the log must be read from there.
    #[expect(clippy::type_complexity, reason = "the two ways to catch up, named where it is matched")]
    pub(crate) fn watch(
        &mut self,
        prefix: &str,
        from: Revision,
    ) -> Result<(Result<Vec<Arc<Event>>, Revision>, mpsc::Receiver<Result<Batch>>)> {
        if from <= self.compacted && from <= self.revision && self.compacted > 0 {
            return Err(Error::Compacted { requested: from, oldest: self.compacted + 1 });
        }
        let missed = if from > self.ring_floor {
            Ok(self
                .ring
                .iter()
                .filter(|e| e.kv.mod_revision >= from && e.kv.key.starts_with(prefix))
                .cloned()
                .collect())
        } else {
            Err(from)
        };
        let (sender, receiver) = mpsc::channel(WATCHER_BATCHES);
        self.watchers.push(Watcher { prefix: prefix.to_owned(), from, sender });
        Ok((missed, receiver))
    }

    /// Where the version of `key` before `place` stands, if it was live and is still known.
    pub(crate) fn before(&self, key: &str, place: Place) -> Option<Place> {
        let entry = self.keys.get(key)?;
        let older = entry.past.iter().rev().find(|past| past.place < place)?;
        (!older.deleted).then_some(older.place)
    }

    /// The places that compaction to `revision` would free.
    pub(crate) fn superseded(&self, revision: Revision) -> Vec<Place> {
        self.keys.values().flat_map(|entry| entry.superseded(revision)).collect()
    }

    /// Forget what [`Index::superseded`] named.
    pub(crate) fn compact(&mut self, revision: Revision) {
        self.compacted = revision;
        self.keys.retain(|_, entry| {
            let gone = entry.superseded(revision).count();
            entry.past.drain(..gone);
            entry.past.shrink_to_fit();
            entry.live.is_some() || !entry.past.is_empty()
        });
        while self.ring.front().is_some_and(|e| e.kv.mod_revision <= revision) {
            let Some(oldest) = self.ring.pop_front() else {
                break;
            };
            self.ring_bytes -= weight(&oldest);
        }
        self.ring_floor = self.ring_floor.max(revision);
    }
}

impl Entry {
    fn at(&self, revision: Revision) -> Option<Version> {
        if let Some(live) = &self.live
            && live.mod_revision <= revision
        {
            return Some(Version::Live(live.clone()));
        }
        let past = self.past.iter().rev().find(|past| past.place.0 <= revision)?;
        (!past.deleted).then_some(Version::InLog(past.place))
    }

    /// Versions that no read at or after `revision` can see: those with a successor at or before it, and a deletion
    /// at or before it.
    fn superseded(&self, revision: Revision) -> impl Iterator<Item = Place> + '_ {
        let next = |i: usize| match self.past.get(i + 1) {
            Some(past) => Some(past.place.0),
            None => self.live.as_ref().map(|kv| kv.mod_revision),
        };
        self.past
            .iter()
            .enumerate()
            .take_while(move |(i, past)| {
                let replaced = next(*i).is_some_and(|successor| successor <= revision);
                replaced || (past.deleted && past.place.0 <= revision)
            })
            .map(|(_, past)| past.place)
    }
}

fn weight(event: &Event) -> usize {
    event.kv.value.len() + event.prev.as_ref().map_or(0, |kv| kv.value.len()) + 128
}
