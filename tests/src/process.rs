//! Long-running processes, found again by pid files after their starter is gone.
//!
//! A pid file holds the pid and the process's start time, so that a reused pid is never taken for the process.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// How often something the kernel does not announce is looked at again.
pub const TICK: Duration = Duration::from_millis(10);

/// A process that outlives its starter.
#[derive(Clone, Debug)]
pub struct Daemon {
    /// What people call it, for messages.
    pub name: String,
    /// Where its pid is kept.
    pub pid_file: PathBuf,
    /// Where its output goes.
    pub log: PathBuf,
}

impl Daemon {
    /// A daemon called `name` with its pid file in `run` and its log in `logs`.
    pub fn new(name: &str, run: &Path, logs: &Path) -> Self {
        Self { name: name.to_owned(), pid_file: run.join(format!("{name}.pid")), log: logs.join(format!("{name}.log")) }
    }

    /// Starts it unless it runs. True when it was started.
    pub fn start(&self, command: &mut Command) -> Result<bool> {
        if self.running().is_some() {
            return Ok(false);
        }
        for folder in [self.pid_file.parent(), self.log.parent()].into_iter().flatten() {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let log = File::options().append(true).create(true).open(&self.log);
        let log = log.with_context(|| format!("cannot write {}", self.log.display()))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let pid = Pid::from_raw(child.id().cast_signed());
        let started = start_time(pid).unwrap_or_default();
        fs::write(&self.pid_file, format!("{pid} {started}\n"))?;
        Ok(true)
    }

    /// Its pid while it runs.
    pub fn running(&self) -> Option<Pid> {
        let text = fs::read_to_string(&self.pid_file).ok()?;
        let (pid, started) = text.trim().split_once(' ')?;
        let pid = Pid::from_raw(pid.parse().ok()?);
        // Reaps it when it was ours and has ended; another's child is none of our concern.
        let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
        (start_time(pid)? == started.parse::<u64>().ok()?).then_some(pid)
    }

    /// Sends SIGTERM, then SIGKILL after `grace`, and returns when it is gone.
    pub fn stop(&self, grace: Duration) -> Result<()> {
        self.end(Signal::SIGTERM, grace)?;
        self.kill()
    }

    /// Sends SIGKILL and returns when it is gone.
    pub fn kill(&self) -> Result<()> {
        self.end(Signal::SIGKILL, Duration::from_secs(10))?;
        if let Some(pid) = self.running() {
            bail!("{} (pid {pid}) does not end after SIGKILL", self.name);
        }
        let _ = fs::remove_file(&self.pid_file);
        Ok(())
    }

    /// Waits until `ready` holds, and fails at once when the process ends before.
    pub fn wait(&self, what: &str, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            if ready() {
                return Ok(());
            }
            if self.running().is_none() {
                bail!("{} ended before {what}:\n{}", self.name, self.last_words());
            }
            if Instant::now() > deadline {
                bail!("{} did not come to {what} within {limit:?}:\n{}", self.name, self.last_words());
            }
            thread::sleep(TICK);
        }
    }

    /// The last lines of its log, for an error.
    pub fn last_words(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().rev().take(15).collect();
        let lines: Vec<&str> = lines.into_iter().rev().collect();
        format!("{}\n(the whole log: {})", lines.join("\n"), self.log.display())
    }

    fn end(&self, signal: Signal, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let Some(pid) = self.running() else {
            return Ok(());
        };
        match kill(pid, signal) {
            Ok(()) | Err(nix::Error::ESRCH) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot send {signal} to {}", self.name));
            }
        }
        while self.running().is_some() && Instant::now() < deadline {
            thread::sleep(TICK);
        }
        Ok(())
    }
}

/// Waits until `check` gives a value, asking every few milliseconds. The error names what was waited for.
pub fn eventually<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("{what}: not within {limit:?}")));
            }
            Err(_) => thread::sleep(TICK * 5),
        }
    }
}

/// When a process started, in clock ticks since boot. None for no process and for one that only waits to be reaped.
fn start_time(pid: Pid) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold spaces and parentheses itself; fields count from after it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    // The first thread may be gone before the others: their files, and sockets, are open until the last has ended.
    let others = || fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|tasks| tasks.count() > 1);
    if state == "X" || (state == "Z" && !others()) {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_is_found_again_and_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let daemon = Daemon::new("sleeper", folder.path(), folder.path());
        assert!(daemon.running().is_none());
        assert!(daemon.start(Command::new("sleep").arg("60")).unwrap());
        let pid = daemon.running().unwrap();
        assert!(!daemon.start(Command::new("sleep").arg("60")).unwrap());
        fs::write(&daemon.pid_file, format!("{pid} 1\n")).unwrap();
        assert!(daemon.running().is_none(), "another start time is another process");
        fs::write(&daemon.pid_file, format!("{pid} {}\n", start_time(pid).unwrap())).unwrap();
        daemon.stop(Duration::from_secs(5)).unwrap();
        assert!(daemon.running().is_none() && !daemon.pid_file.exists());
    }

    #[test]
    fn an_early_end_is_told_with_the_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let daemon = Daemon::new("short", folder.path(), folder.path());
        daemon.start(Command::new("sh").args(["-c", "echo no luck"])).unwrap();
        let error = daemon.wait("readiness", Duration::from_secs(5), || false).unwrap_err().to_string();
        assert!(error.starts_with("short ended before readiness:\nno luck\n"), "{error}");
    }
}
