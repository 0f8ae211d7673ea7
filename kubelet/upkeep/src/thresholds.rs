//! Eviction thresholds, read from `evictionHard` and its kin.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bosun_api::quantity::Quantity;

use crate::signals::{Signal, amount};

/// Thresholds that hold where none are given.
pub const DEFAULTS: [(&str, &str); 5] = [
    ("memory.available", "100Mi"),
    ("nodefs.available", "10%"),
    ("nodefs.inodesFree", "5%"),
    ("imagefs.available", "15%"),
    ("imagefs.inodesFree", "5%"),
];

/// An amount, or a part of what there is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// So much.
    Amount(Quantity),
    /// So many percent.
    Percent(f32),
}

/// What must be left of something.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    /// Of what.
    pub signal: Signal,
    /// How much.
    pub value: Value,
    /// How long less may be left before pods are evicted; zero for a hard threshold.
    pub grace: Duration,
    /// How much more must be left before the shortage counts as over.
    pub reclaim: Option<Value>,
}

/// The maps of the configuration as they are given.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// `evictionHard`; empty for the defaults.
    pub hard: BTreeMap<String, String>,
    /// `evictionSoft`.
    pub soft: BTreeMap<String, String>,
    /// `evictionSoftGracePeriod`, parsed.
    pub soft_grace: BTreeMap<String, Duration>,
    /// `evictionMinimumReclaim`.
    pub minimum_reclaim: BTreeMap<String, String>,
    /// `mergeDefaultEvictionSettings`: whether the defaults hold for signals that `hard` does not name.
    pub merge_defaults: bool,
    /// Whether pods are held below the node's allocatable (`enforceNodeAllocatable` with `pods`).
    pub allocatable: bool,
}

/// A threshold that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct BadThreshold {
    /// The field of the configuration.
    pub field: &'static str,
    /// Why, in words.
    pub message: String,
}

impl Value {
    /// Reads `100Mi` or `10%`.
    ///
    /// # Errors
    /// It is neither, or out of range; in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is neither a quantity nor a percentage from 0% to 100%");
        if let Some(percent) = text.strip_suffix('%') {
            let percent: f32 = percent.parse().map_err(|_| bad())?;
            return if (0.0..=100.0).contains(&percent) { Ok(Self::Percent(percent)) } else { Err(bad()) };
        }
        let quantity: Quantity = text.parse().map_err(|_| bad())?;
        if quantity.sign() < 0 { Err(bad()) } else { Ok(Self::Amount(quantity)) }
    }

    /// The amount, of a capacity.
    pub fn of(self, capacity: i64) -> Quantity {
        match self {
            Self::Amount(quantity) => quantity,
            // In stock's precision, so that the amounts in messages are stock's.
            Self::Percent(percent) => amount((capacity as f64 * f64::from(percent / 100.0)) as i64),
        }
    }

    /// `0%` and `100%` switch a threshold off.
    fn is_off(self) -> bool {
        matches!(self, Self::Percent(percent) if percent <= 0.0 || percent >= 100.0)
    }
}

impl Threshold {
    /// Whether pods are evicted at once.
    pub fn is_hard(&self) -> bool {
        self.grace.is_zero()
    }
}

/// Reads the thresholds.
///
/// # Errors
/// The first signal or value that cannot be read.
pub fn parse(given: &Given) -> Result<Vec<Threshold>, BadThreshold> {
    let reclaim = values("evictionMinimumReclaim", &given.minimum_reclaim)?;
    let mut thresholds = Vec::new();
    for (signal, value) in values("evictionHard", &hard(given))? {
        thresholds.push(threshold("evictionHard", signal, value, Duration::ZERO)?);
    }
    for (signal, value) in values("evictionSoft", &given.soft)? {
        let grace = given.soft_grace.get(signal.name()).copied().ok_or_else(|| BadThreshold {
            field: "evictionSoftGracePeriod",
            message: format!("grace period must be specified for the soft eviction threshold {signal}"),
        })?;
        thresholds.push(threshold("evictionSoft", signal, value, grace)?);
    }
    thresholds.retain(|threshold| !threshold.value.is_off());
    for threshold in &mut thresholds {
        threshold.reclaim = reclaim.get(&threshold.signal).copied();
    }
    if given.allocatable {
        let hard = thresholds.iter().find(|t| t.signal == Signal::MemoryAvailable && t.is_hard()).copied();
        thresholds.extend(hard.map(|hard| Threshold { signal: Signal::AllocatableMemoryAvailable, ..hard }));
    }
    Ok(thresholds)
}

/// `evictionHard` with the defaults where they hold.
pub fn hard(given: &Given) -> BTreeMap<String, String> {
    let mut hard = BTreeMap::new();
    if given.hard.is_empty() || given.merge_defaults {
        hard.extend(DEFAULTS.map(|(signal, value)| (signal.to_owned(), value.to_owned())));
    }
    hard.extend(given.hard.clone());
    hard
}

fn values(field: &'static str, map: &BTreeMap<String, String>) -> Result<BTreeMap<Signal, Value>, BadThreshold> {
    map.iter()
        .map(|(signal, value)| {
            let bad = |message| BadThreshold { field, message };
            let value = Value::parse(value).map_err(|text| bad(format!("{signal}: {text}")))?;
            Ok((signal.parse::<Signal>().map_err(bad)?, value))
        })
        .collect()
}

fn threshold(field: &'static str, signal: Signal, value: Value, grace: Duration) -> Result<Threshold, BadThreshold> {
    if matches!(value, Value::Amount(quantity) if quantity.is_zero()) {
        return Err(BadThreshold { field, message: format!("eviction threshold {signal} must be positive: 0") });
    }
    Ok(Threshold { signal, value, grace, reclaim: None })
}

/// Thresholds with those of the containers' file system, which nobody configures: they are the image file system's
/// where containers are on that, else the kubelet's.
pub fn with_container_fs(thresholds: &[Threshold], on_image_fs: bool) -> Vec<Threshold> {
    let (bytes, inodes) = match on_image_fs {
        true => (Signal::ImageFsAvailable, Signal::ImageFsInodesFree),
        false => (Signal::NodeFsAvailable, Signal::NodeFsInodesFree),
    };
    let is_own = |signal| matches!(signal, Signal::ContainerFsAvailable | Signal::ContainerFsInodesFree);
    let mut all: Vec<Threshold> = thresholds.iter().filter(|t| !is_own(t.signal)).copied().collect();
    for (from, to) in [(bytes, Signal::ContainerFsAvailable), (inodes, Signal::ContainerFsInodesFree)] {
        let copies = thresholds.iter().filter(|t| t.signal == from).map(|t| Threshold { signal: to, ..*t });
        all.extend(copies);
    }
    all
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Amount(quantity) => quantity.fmt(f),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} < {}", self.signal, self.value)?;
        if !self.grace.is_zero() {
            write!(f, " for {} s", self.grace.as_secs())?;
        }
        match &self.reclaim {
            Some(reclaim) => write!(f, ", by {reclaim} more"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn text(thresholds: &[Threshold]) -> String {
        thresholds.iter().map(|t| format!("{t}\n")).collect()
    }

    #[test]
    fn defaults_and_given_ones() {
        let defaults = parse(&Given { allocatable: true, ..Given::default() }).unwrap();
        assert_eq!(
            text(&defaults),
            "memory.available < 100Mi\nnodefs.available < 10%\nnodefs.inodesFree < 5%\nimagefs.available < 15%\n\
             imagefs.inodesFree < 5%\nallocatableMemory.available < 100Mi\n"
        );
        let given = Given {
            hard: map(&[("memory.available", "1Gi"), ("imagefs.available", "0%")]),
            soft: map(&[("pid.available", "20%")]),
            soft_grace: [("pid.available".to_owned(), Duration::from_secs(90))].into(),
            minimum_reclaim: map(&[("memory.available", "200Mi")]),
            ..Given::default()
        };
        assert_eq!(
            text(&parse(&given).unwrap()),
            "memory.available < 1Gi, by 200Mi more\npid.available < 20% for 90 s\n"
        );
        let merged = parse(&Given { merge_defaults: true, ..given.clone() }).unwrap();
        assert_eq!(
            text(&merged),
            "memory.available < 1Gi, by 200Mi more\nnodefs.available < 10%\nnodefs.inodesFree < 5%\n\
             imagefs.inodesFree < 5%\npid.available < 20% for 90 s\n"
        );
        let all = with_container_fs(&merged, false);
        assert!(text(&all).ends_with("containerfs.available < 10%\ncontainerfs.inodesFree < 5%\n"), "{}", text(&all));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let fails = |given: Given, part: &str| {
            let error = parse(&given).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        for bad in ["x", "110%", "-1", "%"] {
            fails(Given { hard: map(&[("memory.available", bad)]), ..Given::default() }, bad);
        }
        fails(
            Given { hard: map(&[("memory.free", "1Gi")]), ..Given::default() },
            "unsupported eviction signal memory.free",
        );
        fails(Given { hard: map(&[("memory.available", "0")]), ..Given::default() }, "must be positive");
        fails(Given { soft: map(&[("pid.available", "1")]), ..Given::default() }, "grace period must be specified");
    }
}
