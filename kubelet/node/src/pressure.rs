//! What the node shows of being short of something, and how much the hard eviction thresholds keep back from pods. What
//! it is short of is found out by the kubelet's eviction ([`crate::RuntimeFacts::pressure`]).

use std::collections::BTreeMap;

use bosun_api::quantity::Quantity;

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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thresholds(signals: &[(&str, &str)]) -> Result<Thresholds, BadThreshold> {
        Thresholds::parse(&signals.iter().map(|(s, v)| ((*s).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn a_share_is_kept_back() {
        let limits = thresholds(&[("memory.available", "100Mi"), ("nodefs.available", "10%")]).unwrap();
        assert_eq!(limits.reserved("memory.available", 1 << 30), 100 << 20);
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
}
