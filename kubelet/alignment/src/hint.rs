//! What a manager of one kind of resource would like, and what suits all of them.

use std::collections::BTreeMap;
use std::fmt;

use crate::mask::NumaMask;

/// A set of NUMA nodes from which a request could be served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hint {
    /// The nodes; none for "any".
    pub affinity: Option<NumaMask>,
    /// Whether it needs no more nodes than the request does on an idle machine.
    pub preferred: bool,
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let preferred = if self.preferred { "preferred" } else { "not preferred" };
        match self.affinity {
            Some(mask) => write!(f, "{mask} {preferred}"),
            None => write!(f, "any {preferred}"),
        }
    }
}

/// Hints by resource. No entry at all: no wish. `None` for a resource: it does not care. An empty list: it cannot be
/// served anywhere.
pub type Hints = BTreeMap<String, Option<Vec<Hint>>>;

/// Marks those hints as preferred that need as few nodes as the request ever does.
pub fn mark_preferred(hints: &mut [Hint], fewest: usize) {
    for hint in hints {
        hint.preferred = hint.affinity.is_some_and(|mask| mask.count() == fewest);
    }
}
