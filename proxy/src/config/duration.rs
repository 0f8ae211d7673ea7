//! Durations as Go writes them (`time.ParseDuration`): `1s`, `2h22m`, `1.5s`, `300ms`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration in Go's notation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GoDuration(pub Duration);

impl GoDuration {
    /// So many seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// The duration, or none when it is zero.
    pub fn nonzero(self) -> Option<Duration> {
        (!self.0.is_zero()).then_some(self.0)
    }
}

impl FromStr for GoDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("invalid duration {text:?}: write it like 30s, 1m30s or 500ms");
        if text == "0" {
            return Ok(Self::default());
        }
        let mut rest = text;
        let mut seconds = 0.0;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| c != '.' && !c.is_ascii_digit()).ok_or_else(invalid)?;
            let (number, tail) = rest.split_at(digits);
            let unit_end = tail.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit_end);
            let factor = match unit {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return Err(invalid()),
            };
            seconds += number.parse::<f64>().map_err(|_| invalid())? * factor;
            rest = tail;
        }
        if text.is_empty() {
            return Err(invalid());
        }
        Duration::try_from_secs_f64(seconds).map(Self).map_err(|_| invalid())
    }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, nanos) = (self.0.as_secs(), self.0.subsec_nanos());
        if seconds == 0 && nanos > 0 {
            return write!(out, "{}ms", self.0.as_secs_f64() * 1000.0);
        }
        let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
        if hours > 0 {
            write!(out, "{hours}h")?;
        }
        if hours > 0 || minutes > 0 {
            write!(out, "{minutes}m")?;
        }
        write!(out, "{}s", (seconds % 60) as f64 + f64::from(nanos) / 1e9)
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_notation_both_ways() {
        for (text, millis) in [("0s", 0), ("1s", 1000), ("1m30s", 90_000), ("2h22m0s", 8_520_000), ("500ms", 500)] {
            let parsed: GoDuration = text.parse().unwrap();
            assert_eq!(parsed.0.as_millis(), millis);
            assert_eq!(parsed.to_string(), text);
        }
        for text in ["", "5", "s", "1x", "-1s", "1..2s"] {
            assert!(text.parse::<GoDuration>().is_err(), "{text}");
        }
    }
}
