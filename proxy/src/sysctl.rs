//! Kernel settings: the limits and times of connection tracking, and the process's own score. What cannot be set,
//! where `/proc/sys` is read-only, is told and done without.

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::config::{Conntrack, GoDuration};

const ROOT: &str = "/proc/sys/net/netfilter";

/// Applies what is configured.
pub(crate) fn apply(conntrack: &Conntrack, oom_score_adj: Option<i32>) {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    for (name, value) in wanted(conntrack, cores) {
        if let Err(error) = raise(&Path::new(ROOT).join(name), name, &value) {
            tracing::warn!(setting = format!("net.netfilter.{name}"), value, %error, "kernel setting left as it is");
        }
    }
    if let Some(score) = oom_score_adj
        && let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string())
    {
        tracing::debug!(score, %error, "oom_score_adj left as it is");
    }
}

/// The settings and their values; what is zero or not set is left alone.
fn wanted(conntrack: &Conntrack, cores: usize) -> Vec<(&'static str, String)> {
    let per_core = conntrack.max_per_core.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0);
    let least = conntrack.min.and_then(|n| u64::try_from(n).ok()).unwrap_or_default();
    let max = per_core.map(|n| (n * cores as u64).max(least).to_string());
    let seconds = |duration: Option<Duration>| duration.map(|duration| duration.as_secs().to_string());
    let optional = |duration: Option<GoDuration>| seconds(duration.and_then(GoDuration::nonzero));
    [
        ("nf_conntrack_max", max),
        ("nf_conntrack_tcp_timeout_established", optional(conntrack.tcp_established_timeout)),
        ("nf_conntrack_tcp_timeout_close_wait", optional(conntrack.tcp_close_wait_timeout)),
        ("nf_conntrack_tcp_be_liberal", conntrack.tcp_be_liberal.then(|| "1".to_owned())),
        ("nf_conntrack_udp_timeout", seconds(conntrack.udp_timeout.nonzero())),
        ("nf_conntrack_udp_timeout_stream", seconds(conntrack.udp_stream_timeout.nonzero())),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
    .collect()
}

/// Writes a setting unless it has the value; the limit is only ever raised.
fn raise(path: &Path, name: &str, value: &str) -> io::Result<()> {
    let present = std::fs::read_to_string(path)?;
    let number = |text: &str| text.trim().parse::<u64>().unwrap_or_default();
    let enough = name == "nf_conntrack_max" && number(&present) >= number(value);
    if enough || present.trim() == value { Ok(()) } else { std::fs::write(path, value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_scale_with_cores_and_leave_zeros_alone() {
        let names = |conntrack: &Conntrack, cores| wanted(conntrack, cores);
        let settings = names(&Conntrack::default(), 8);
        assert_eq!(settings[0], ("nf_conntrack_max", "262144".to_owned()));
        assert_eq!(settings.len(), 3, "{settings:?}");
        assert_eq!(names(&Conntrack::default(), 1)[0].1, "131072");
        let none = Conntrack { max_per_core: Some(0), ..Conntrack::default() };
        assert!(names(&none, 8).iter().all(|(name, _)| *name != "nf_conntrack_max"));
    }
}
