//! Durations as Go writes them: `1h2m3.5s`, `100ms`, `0s`.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A duration in Go's notation. Also taken: a bare number, in nanoseconds, as Go's own type is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(pub Duration);

impl GoDuration {
    /// A whole number of seconds.
    pub const fn secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// Whether it is zero, which in a configuration means "the default".
    pub fn is_zero(self) -> bool {
        self.0.is_zero()
    }

    /// Itself, or `default` when zero.
    pub fn or(self, default: GoDuration) -> GoDuration {
        if self.is_zero() { default } else { self }
    }
}

/// Parses Go's notation; negative durations are refused since no field of ours may be negative.
///
/// # Errors
/// In the words of Go's `time.ParseDuration`.
pub fn parse(text: &str) -> Result<GoDuration, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    if text == "0" {
        return Ok(GoDuration::default());
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total = 0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "" => return Err(format!("time: missing unit in duration {text:?}")),
            other => return Err(format!("time: unknown unit {other:?} in duration {text:?}")),
        };
        total += number * unit;
        rest = &rest[letters..];
    }
    Duration::try_from_secs_f64(total).map(GoDuration).map_err(|_| invalid())
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, nanos) = (self.0.as_secs(), self.0.subsec_nanos());
        if whole == 0 && nanos > 0 {
            return match nanos {
                n if n >= 1_000_000 => write!(f, "{}ms", f64::from(n) / 1e6),
                n if n >= 1_000 => write!(f, "{}µs", f64::from(n) / 1e3),
                n => write!(f, "{n}ns"),
            };
        }
        let (hours, minutes) = (whole / 3600, whole / 60 % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if hours > 0 || minutes > 0 {
            write!(f, "{minutes}m")?;
        }
        write!(f, "{}s", (whole % 60) as f64 + f64::from(nanos) / 1e9)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = GoDuration;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as 10s or 1m30s")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<GoDuration, E> {
                parse(text).map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, nanos: u64) -> Result<GoDuration, E> {
                Ok(GoDuration(Duration::from_nanos(nanos)))
            }
            fn visit_unit<E: de::Error>(self) -> Result<GoDuration, E> {
                Ok(GoDuration::default())
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_as_go_does() {
        for (text, millis, shown) in [
            ("10s", 10_000, "10s"),
            ("1m30s", 90_000, "1m30s"),
            ("1.5h", 5_400_000, "1h30m0s"),
            ("100ms", 100, "100ms"),
            ("0", 0, "0s"),
        ] {
            let duration = parse(text).unwrap();
            assert_eq!(duration.0.as_millis(), millis, "{text}");
            assert_eq!(duration.to_string(), shown);
        }
        assert!(parse("5").unwrap_err().contains("missing unit"));
        assert!(parse("-5s").is_err() && parse("").is_err() && parse("5d").unwrap_err().contains("unknown unit"));
    }
}
