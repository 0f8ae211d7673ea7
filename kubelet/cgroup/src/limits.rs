//! What a cgroup may use, in the kernel's units. What is `None` is left as it is.

use std::collections::BTreeMap;

/// The least and the greatest weight in version 1.
pub const MIN_SHARES: u64 = 2;
/// See [`MIN_SHARES`].
pub const MAX_SHARES: u64 = 262_144;
/// The least quota that the kernel takes, in microseconds.
pub const MIN_QUOTA: u64 = 1000;

/// A bound, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// No bound.
    Max,
    /// So much.
    Of(u64),
}

/// Processor time in each period, both in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// How much.
    pub quota: Amount,
    /// Of what.
    pub period: u64,
}

/// What a cgroup may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Weight against its neighbours, as version 1 counts it: 1024 a core.
    pub shares: Option<u64>,
    /// Processor time.
    pub quota: Option<Quota>,
    /// Bytes of memory.
    pub memory: Option<Amount>,
    /// Processes and threads.
    pub pids: Option<Amount>,
    /// Bytes of huge pages by their size as the kernel calls it (`2MB`).
    pub hugepages: BTreeMap<String, Amount>,
    /// The cores it may run on (`0-3`), in the unified hierarchy only: in version 1 the runtime hands its parent's on.
    pub cpus: Option<String>,
}

/// Cores in thousandths as a weight of version 1.
pub fn shares(milli: i64) -> u64 {
    let milli = u64::try_from(milli).unwrap_or(0);
    (milli.saturating_mul(1024) / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// Cores in thousandths as processor time in each `period` (microseconds); none where there is no limit.
pub fn quota(milli: i64, period: u64) -> Option<u64> {
    let milli = u64::try_from(milli).ok().filter(|milli| *milli > 0)?;
    Some((milli.saturating_mul(period) / 1000).max(MIN_QUOTA))
}

/// The weight in the unified hierarchy (KEP-2254). The kubelet's own cgroups have the linear mapping to this day; newer
/// runtimes give containers another one, which keeps 1024 at 100.
pub fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(MIN_SHARES, MAX_SHARES) - MIN_SHARES) * 9999 / (MAX_SHARES - MIN_SHARES)
}

/// What the kernel calls pages of a size in its cgroup files (`2MB`), of what the API calls them (`2Mi`); none for what
/// is no such size.
pub fn page_size(api: &str) -> Option<String> {
    let split = api.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = api[..split].parse().ok()?;
    let factor = match &api[split..] {
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return None,
    };
    page_size_of_bytes(number.checked_mul(factor)?)
}

/// As [`page_size`], of a size in bytes.
pub fn page_size_of_bytes(bytes: u64) -> Option<String> {
    let units = [(30, "GB"), (20, "MB"), (10, "KB")];
    let (shift, unit) = units.into_iter().find(|(shift, _)| bytes >= 1 << shift)?;
    Some(format!("{}{unit}", bytes >> shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_units() {
        assert_eq!((shares(-1), shares(0), shares(1), shares(250), shares(1000)), (2, 2, 2, 256, 1024));
        assert_eq!(shares(i64::MAX), MAX_SHARES);
        assert_eq!((quota(0, 100_000), quota(5, 100_000), quota(500, 100_000)), (None, Some(1000), Some(50_000)));
        assert_eq!((weight(0), weight(2), weight(1024), weight(262_144), weight(u64::MAX)), (1, 1, 39, 10_000, 10_000));
    }

    #[test]
    fn sizes_of_pages() {
        let all = ["2Mi", "1Gi", "64Ki", "1024Mi", "2M", "Mi", ""].map(page_size);
        let want = [Some("2MB"), Some("1GB"), Some("64KB"), Some("1GB"), None, None, None];
        assert_eq!(all.each_ref().map(Option::as_deref), want);
    }
}
