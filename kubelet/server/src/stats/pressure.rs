//! Pressure stall information: how long tasks waited for a resource (kernel documentation, accounting/psi).

use std::path::Path;

use serde::Serialize;

/// The stalls of one resource.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct PsiStats {
    /// Times when nothing could run.
    pub full: PsiData,
    /// Times when something had to wait.
    pub some: PsiData,
}

/// One line of a pressure file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct PsiData {
    /// Microseconds in all, as the kernel counts them.
    pub total: u64,
    /// Per cent of the last 10 seconds.
    pub avg10: f64,
    /// Per cent of the last minute.
    pub avg60: f64,
    /// Per cent of the last 5 minutes.
    pub avg300: f64,
}

/// The stalls of a cgroup; a resource is absent where the kernel tells nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Pressures {
    /// Processor.
    pub(crate) cpu: Option<PsiStats>,
    /// Memory.
    pub(crate) memory: Option<PsiStats>,
    /// Block devices.
    pub(crate) io: Option<PsiStats>,
}

impl Pressures {
    /// Of a cgroup's folder in the unified hierarchy.
    pub(crate) fn read(folder: &Path) -> Self {
        Self::of(|name| folder.join(format!("{name}.pressure")))
    }

    /// Of the machine, from `/proc/pressure`.
    pub(crate) fn of_machine(proc: &Path) -> Self {
        Self::of(|name| proc.join("pressure").join(name))
    }

    fn of(file: impl Fn(&str) -> std::path::PathBuf) -> Self {
        let stats = |name| parse(&std::fs::read_to_string(file(name)).ok()?);
        Self { cpu: stats("cpu"), memory: stats("memory"), io: stats("io") }
    }
}

fn parse(text: &str) -> Option<PsiStats> {
    let line = |kind: &str| {
        let words = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
        let of = |key: &str| words.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        Some(PsiData {
            total: of("total")?.parse().ok()?,
            avg10: of("avg10")?.parse().ok()?,
            avg60: of("avg60")?.parse().ok()?,
            avg300: of("avg300")?.parse().ok()?,
        })
    };
    // Old kernels have no "full" line for the processor.
    Some(PsiStats { some: line("some")?, full: line("full").unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_pressure_files() {
        let psi = parse(
            "some avg10=1.50 avg60=0.20 avg300=0.01 total=12345\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n",
        );
        let some = PsiData { total: 12345, avg10: 1.5, avg60: 0.2, avg300: 0.01 };
        assert_eq!(psi, Some(PsiStats { some, full: PsiData { total: 9, ..PsiData::default() } }));
        assert_eq!(parse("some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n").unwrap().full, PsiData::default());
        assert_eq!(parse(""), None);
    }
}
