//! The delay before a container is started again: none at first, then 10 s doubling to a maximum, forgotten after
//! twice the maximum without a failure.

use std::time::Duration;

use jiff::Timestamp;

/// The first delay.
pub const INITIAL: Duration = Duration::from_secs(10);

/// The back-off of one container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartDelay {
    /// How long after its end the container waits.
    pub delay: Duration,
    /// When it was last started for a restart.
    pub updated: Timestamp,
}

impl RestartDelay {
    /// When a container that ended at `finished` may start again; none if it may at once.
    pub fn until(known: Option<&RestartDelay>, finished: Timestamp, max: Duration) -> Option<Timestamp> {
        let known = known?;
        if known.is_stale(finished, max) {
            return None;
        }
        finished.checked_add(known.delay).ok()
    }

    /// The back-off after a restart at `now` of a container that ended at `finished`.
    pub fn next(known: Option<&RestartDelay>, finished: Timestamp, now: Timestamp, max: Duration) -> RestartDelay {
        let delay = match known {
            Some(known) if !known.is_stale(finished, max) => (known.delay * 2).min(max),
            _ => INITIAL.min(max),
        };
        RestartDelay { delay, updated: now }
    }

    fn is_stale(&self, event: Timestamp, max: Duration) -> bool {
        Duration::try_from(event.duration_since(self.updated)).is_ok_and(|age| age > max * 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    #[test]
    fn the_first_restart_is_at_once_then_delays_double_to_the_maximum() {
        let max = Duration::from_secs(300);
        let mut known = None;
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..8 {
            let start = RestartDelay::until(known.as_ref(), at(now), max).unwrap_or(at(now));
            waits.push(start.as_second() - at(now).as_second());
            known = Some(RestartDelay::next(known.as_ref(), at(now), start, max));
            now = start.as_second() - at(0).as_second() + 1;
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn a_container_that_ran_long_starts_over() {
        let known = RestartDelay { delay: Duration::from_secs(300), updated: at(0) };
        assert_eq!(RestartDelay::until(Some(&known), at(601), Duration::from_secs(300)), None);
        let next = RestartDelay::next(Some(&known), at(601), at(601), Duration::from_secs(300));
        assert_eq!(next.delay, INITIAL);
    }
}
