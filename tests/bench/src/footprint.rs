//! Memory and processor time of a process.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// Resident memory, in MB (10⁶ bytes).
pub(crate) fn memory(pid: Pid) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid} is gone"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse().context("VmRSS is no number")?;
    Ok(kibibytes * 1024.0 / 1e6)
}

/// Share of one core, in percent, used over `span` from now.
pub(crate) async fn cpu(pid: Pid, span: Duration) -> Result<f64> {
    let (before, started) = (ticks(pid)?, Instant::now());
    tokio::time::sleep(span).await;
    let used = ticks(pid)? - before;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock tick")? as f64;
    Ok(used as f64 / per_second / started.elapsed().as_secs_f64() * 100.0)
}

fn ticks(pid: Pid) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid} is gone"))?;
    let fields = stat.rsplit_once(')').context("no name")?.1;
    let mut fields = fields.split_whitespace().skip(11);
    let mut next = || fields.next().and_then(|field| field.parse::<u64>().ok()).context("no times");
    Ok(next()? + next()?)
}
