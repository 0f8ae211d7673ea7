//! What is done in one sync, away from the event loop: it blocks on the kernel.

use std::time::{Duration, Instant};

use bosun_nft::{Event, Monitor, Result};

use crate::model::Protocol;
use crate::nftables::{Backend, Detector, TABLE};
use crate::plan::{FrontKey, Planner};

/// From so many fronts on, the kernel's reports of our own changes would be a flood.
const MANY: usize = 500;

/// The plan, the kernel, and the watch over what others do there.
pub(crate) struct Worker {
    pub(crate) planner: Planner,
    backend: Backend,
    /// The watch, when it is not the event loop's turn to wait for it.
    pub(crate) monitor: Option<Monitor>,
}

/// What a sync did.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Whether it compared with the kernel, not with the plan before.
    pub(crate) full: bool,
    /// Whether the kernel should be compared again: it may have been changed unseen.
    pub(crate) recheck: bool,
    /// How long the whole took.
    pub(crate) took: Duration,
    /// Whether it worked.
    pub(crate) result: Result<()>,
}

impl Worker {
    pub(crate) fn new(planner: Planner, backend: Backend) -> Self {
        Self { planner, backend, monitor: None }
    }

    /// Brings the kernel to the plan; `full` compares with what the kernel has.
    pub(crate) fn sync(&mut self, full: bool) -> Outcome {
        let start = Instant::now();
        let delta = self.planner.delta();
        let quiet = delta.fronts.len() < MANY;
        let before = if quiet { Ok(None) } else { self.backend.generation().map(Some) };
        if !quiet {
            self.monitor = None;
        }
        let changed = if full {
            self.backend.reconcile(&self.planner)
        } else if delta.is_empty() {
            Ok(false)
        } else {
            self.backend.apply(&delta).map(|_| true)
        };
        let result = changed.and_then(|changed| Ok((changed, before?)));
        let (result, recheck) = match result {
            Ok((changed, before)) => self.watch(changed, before),
            Err(error) => (Err(error), true),
        };
        if result.is_ok() && delta.stale_udp {
            let udp = delta.fronts.iter().filter(|c| c.new.is_none() && c.key.protocol == Protocol::Udp);
            let gone: Vec<FrontKey> = udp.map(|change| change.key).collect();
            match self.backend.clean_udp(&self.planner, &gone) {
                Ok(0) => {}
                Ok(count) => tracing::debug!(count, "deleted UDP connections to endpoints that are gone"),
                Err(error) => tracing::warn!(%error, "UDP connections to endpoints that are gone could not be deleted"),
            }
        }
        Outcome { full, recheck, took: start.elapsed(), result }
    }

    /// Makes sure that others' changes are seen from now on; says whether some may have been missed since `before`.
    fn watch(&mut self, changed: bool, before: Option<u32>) -> (Result<()>, bool) {
        if self.monitor.is_none() {
            match Monitor::open() {
                Ok(monitor) => self.monitor = Some(monitor),
                Err(error) => tracing::warn!(%error, "rules that others change cannot be seen"),
            }
        }
        let Some(before) = before else { return (Ok(()), false) };
        match self.backend.generation() {
            Ok(after) => (Ok(()), after != before.wrapping_add(u32::from(changed))),
            Err(error) => (Err(error), true),
        }
    }

    /// Takes another way to tell what comes from pods; a full sync must follow.
    pub(crate) fn set_detector(&mut self, detector: Detector) {
        self.backend.set_detector(detector);
    }

    /// The socket by which our own changes are known.
    pub(crate) fn port(&self) -> u32 {
        self.backend.port()
    }
}

/// Reads the changes that wait; true when someone else touched our tables, or may have.
pub(crate) fn touched(monitor: &mut Monitor, own: u32) -> bool {
    let mut touched = false;
    let read = monitor.read(|event| {
        touched |= match event {
            Event::Added { table, port, .. } | Event::Deleted { table, port, .. } => table == TABLE && port != own,
            Event::Lost => true,
            Event::Committed { .. } => false,
        };
    });
    if let Err(error) = read {
        tracing::warn!(%error, "changes of the rules could not be read");
        return true;
    }
    touched
}
