//! When the node is short of something: the hard eviction thresholds against what is left. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bosun_api::quantity::Quantity;

use crate::machine::{Machine, Resources};

/// What the node is short of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Memory.
    pub memory: bool,
    /// Bytes or inodes of a file system.
    pub disk: bool,
    /// Process ids.
    pub pid: bool,
}

/// A threshold: an amount, or a share of the capacity.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Threshold {
    /// At least this much must be left.
    Amount(u64),
    /// At least this share (0–1) of the capacity must be left.
    Share(f64),
}

/// A threshold that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("evictionHard {signal}: {value:?} is neither a quantity nor a percentage from 0% to 100%")]
pub struct BadThreshold {
    /// The signal.
    pub signal: String,
    /// Its value.
    pub value: String,
}

impl Threshold {
    /// Reads `100Mi` or `10%`.
    ///
    /// # Errors
    /// It is neither.
    pub fn parse(signal: &str, value: &str) -> Result<Self, BadThreshold> {
        let bad = || BadThreshold { signal: signal.to_owned(), value: value.to_owned() };
        if let Some(percent) = value.strip_suffix('%') {
            let share = percent.parse::<f64>().map_err(|_| bad())? / 100.0;
            return if (0.0..=1.0).contains(&share) { Ok(Self::Share(share)) } else { Err(bad()) };
        }
        let amount: Quantity = value.parse().map_err(|_| bad())?;
        u64::try_from(amount.value()).map(Self::Amount).map_err(|_| bad())
    }

    /// The amount that must be left of a capacity.
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Amount(amount) => amount,
            Self::Share(share) => (capacity as f64 * share) as u64,
        }
    }
}

/// The parsed `evictionHard`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Thresholds(BTreeMap<String, Threshold>);

impl Thresholds {
    /// Reads the map of signals.
    ///
    /// # Errors
    /// The first value that cannot be read.
    pub fn parse(signals: &BTreeMap<String, String>) -> Result<Self, BadThreshold> {
        let parse = |(signal, value): (&String, &String)| Ok((signal.clone(), Threshold::parse(signal, value)?));
        signals.iter().map(parse).collect::<Result<_, _>>().map(Self)
    }

    /// How much of a signal's capacity is kept back from pods.
    pub fn reserved(&self, signal: &str, capacity: u64) -> u64 {
        self.0.get(signal).map_or(0, |threshold| threshold.of(capacity))
    }

    /// What the node is short of now.
    pub fn pressure(&self, machine: &Machine, now: &Resources) -> Pressure {
        let short = |signal: &str, available: u64, capacity: u64| {
            self.0.get(signal).is_some_and(|threshold| available < threshold.of(capacity))
        };
        Pressure {
            memory: short("memory.available", now.memory_available, machine.memory),
            disk: short("nodefs.available", now.fs_available, now.fs_capacity)
                || (now.inodes > 0 && short("nodefs.inodesFree", now.inodes_free, now.inodes)),
            pid: short("pid.available", now.pids_available, now.pids),
        }
    }
}

/// Keeps a pressure shown for a while after it was last seen, so that the node does not flap.
#[derive(Debug, Clone, Default)]
pub struct Settling {
    memory: Option<Instant>,
    disk: Option<Instant>,
    pid: Option<Instant>,
}

impl Settling {
    /// The pressure to show, given the one seen now.
    pub fn show(&mut self, seen: Pressure, now: Instant, period: Duration) -> Pressure {
        let settle = |last: &mut Option<Instant>, seen: bool| {
            if seen {
                *last = Some(now);
            }
            last.is_some_and(|last| now.duration_since(last) < period) || seen
        };
        Pressure {
            memory: settle(&mut self.memory, seen.memory),
            disk: settle(&mut self.disk, seen.disk),
            pid: settle(&mut self.pid, seen.pid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thresholds(signals: &[(&str, &str)]) -> Result<Thresholds, BadThreshold> {
        Thresholds::parse(&signals.iter().map(|(s, v)| ((*s).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn compares_what_is_left() {
        let limits = thresholds(&[("memory.available", "100Mi"), ("nodefs.available", "10%"), ("pid.available", "5")]);
        let limits = limits.unwrap();
        let machine = Machine { memory: 1 << 30, ..Machine::default() };
        let fine = Resources {
            memory_available: 100 << 20,
            fs_capacity: 1000,
            fs_available: 100,
            pids: 100,
            pids_available: 5,
            ..Resources::default()
        };
        assert_eq!(limits.pressure(&machine, &fine), Pressure::default());
        let short = Resources { memory_available: (100 << 20) - 1, fs_available: 99, pids_available: 4, ..fine };
        assert_eq!(limits.pressure(&machine, &short), Pressure { memory: true, disk: true, pid: true });
        assert_eq!(limits.reserved("nodefs.available", 1000), 100);
        assert_eq!(limits.reserved("imagefs.available", 1000), 0);
    }

    #[test]
    fn names_a_bad_threshold() {
        for bad in ["x", "110%", "-1", "%"] {
            let error = thresholds(&[("memory.available", bad)]).unwrap_err().to_string();
            assert!(error.contains("memory.available") && error.contains(bad), "{error}");
        }
    }

    #[test]
    fn pressure_settles() {
        let mut settling = Settling::default();
        let start = Instant::now();
        let period = Duration::from_secs(300);
        let short = Pressure { memory: true, ..Pressure::default() };
        assert_eq!(settling.show(Pressure::default(), start, period), Pressure::default());
        assert_eq!(settling.show(short, start, period), short);
        assert_eq!(settling.show(Pressure::default(), start + period / 2, period), short);
        assert_eq!(settling.show(Pressure::default(), start + period, period), Pressure::default());
    }
}
