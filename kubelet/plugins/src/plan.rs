//! What to do next with the sockets of plugins: a plain function of what is seen and what is known.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::Plugin;
use crate::seen::{Identity, Seen};

/// The delay after the first failure, as in stock.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// The longest delay between two tries, as in stock.
const LAST_RETRY: Duration = Duration::from_secs(122);

/// What is known of a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Which socket it was when that was found out.
    pub identity: Identity,
    /// How far it is.
    pub state: State,
}

/// How far a socket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Something is being done; its end is told.
    Busy,
    /// The plugin is registered.
    Registered(Plugin),
    /// It failed so often in series, and is tried again then.
    Failed {
        /// How often.
        failures: u32,
        /// When it is tried again.
        retry: Instant,
    },
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask the plugin at this socket who it is and register it.
    Register(PathBuf, Identity),
    /// The plugin is gone.
    Deregister(PathBuf, Plugin),
    /// A socket that never led to a plugin is gone.
    Forget(PathBuf),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Register(socket, _) => write!(f, "register {}", socket.display()),
            Self::Deregister(socket, plugin) => {
                write!(f, "deregister {} {} ({})", plugin.kind, plugin.name, socket.display())
            }
            Self::Forget(socket) => write!(f, "forget {}", socket.display()),
        }
    }
}

/// What to do now. Plugins that are gone come first; a socket that was made anew is deregistered, and registered by
/// the plan after that.
pub fn plan(seen: &Seen, known: &BTreeMap<PathBuf, Known>, now: Instant) -> Vec<Step> {
    let gone = known.iter().filter_map(|(socket, known)| leave(seen, socket, known));
    let come = seen.iter().filter(|(socket, identity)| is_due(known.get(*socket), **identity, now));
    gone.chain(come.map(|(socket, identity)| Step::Register(socket.clone(), *identity))).collect()
}

fn leave(seen: &Seen, socket: &Path, known: &Known) -> Option<Step> {
    let there = seen.get(socket);
    match &known.state {
        State::Busy => None,
        State::Registered(_) if there == Some(&known.identity) => None,
        State::Registered(plugin) => Some(Step::Deregister(socket.to_path_buf(), plugin.clone())),
        State::Failed { .. } => there.is_none().then(|| Step::Forget(socket.to_path_buf())),
    }
}

fn is_due(known: Option<&Known>, identity: Identity, now: Instant) -> bool {
    match known {
        None => true,
        Some(Known { state: State::Failed { retry, .. }, identity: of }) => *retry <= now || *of != identity,
        Some(_) => false,
    }
}

/// When a plan may next differ from the last one although nothing else happened.
pub fn next_retry(known: &BTreeMap<PathBuf, Known>) -> Option<Instant> {
    let retries = known.values().filter_map(|known| match known.state {
        State::Failed { retry, .. } => Some(retry),
        _ => None,
    });
    retries.min()
}

/// How long to wait after so many failures in series (one or more): doubling from half a second to two minutes.
pub fn delay(failures: u32) -> Duration {
    FIRST_RETRY.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LAST_RETRY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(inode: u64) -> Identity {
        Identity { device: 1, inode, born: None }
    }

    fn plugin(name: &str) -> Plugin {
        Plugin {
            kind: crate::CSI_PLUGIN.into(),
            name: name.into(),
            endpoint: String::new(),
            versions: Vec::new(),
            socket: PathBuf::new(),
        }
    }

    #[test]
    fn each_socket_by_what_is_seen_and_known_of_it() {
        let now = Instant::now();
        let seen: Seen = ["anew", "failed", "failed-anew", "failed-due", "new", "stays", "under-way"]
            .into_iter()
            .map(|name| (PathBuf::from(name), identity(2)))
            .collect();
        let registered = |name| State::Registered(plugin(name));
        let failed = |retry| State::Failed { failures: 1, retry };
        let later = now + Duration::from_secs(1);
        let known: BTreeMap<PathBuf, Known> = [
            ("anew", 1, registered("a")),
            ("failed", 2, failed(later)),
            ("failed-anew", 1, failed(later)),
            ("failed-due", 2, failed(now)),
            ("gone", 1, registered("g")),
            ("gone-failed", 1, failed(later)),
            ("gone-under-way", 1, State::Busy),
            ("stays", 2, registered("s")),
            ("under-way", 1, State::Busy),
        ]
        .into_iter()
        .map(|(name, inode, state)| (name.into(), Known { identity: identity(inode), state }))
        .collect();
        let steps: Vec<String> = plan(&seen, &known, now).iter().map(ToString::to_string).collect();
        let golden = "\
deregister CSIPlugin a (anew)
deregister CSIPlugin g (gone)
forget gone-failed
register failed-anew
register failed-due
register new";
        assert_eq!(steps.join("\n"), golden);
        assert_eq!(next_retry(&known), Some(now));
    }

    #[test]
    fn tries_come_less_and_less_often() {
        let delays: Vec<u128> = [1, 2, 3, 8, 9, 10, u32::MAX].map(|n| delay(n).as_millis()).into();
        assert_eq!(delays, [500, 1000, 2000, 64_000, 122_000, 122_000, 122_000]);
    }
}
