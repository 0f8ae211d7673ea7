//! The kernel's out-of-memory killer at work, as the kernel log tells it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use tokio::io::unix::AsyncFd;

/// The reason of the event on the node.
pub const REASON: &str = "SystemOOM";
/// The kernel cuts records longer than this (`PRINTKRB_RECORD_MAX`, 1024 bytes of text, escaped up to four times).
const RECORD: usize = 8192;
/// Records of this priority and above come from programs: only the kernel's own have facility 0.
const FROM_PROGRAMS: u32 = 8;

/// A process that was killed because the whole machine ran out of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Victim {
    /// The process's name.
    pub process: String,
    /// Its id.
    pub pid: u32,
}

impl Victim {
    /// What the event says.
    pub fn message(&self) -> String {
        format!("System OOM encountered, victim process: {}, pid: {}", self.process, self.pid)
    }
}

/// Reads a record of the kernel log: a victim, if it tells of one. Kills within a cgroup's own limit are no shortage of
/// the machine and are left out.
pub fn parse(record: &str) -> Option<Victim> {
    // dev-kmsg: priority, sequence, time and flags before the semicolon, the text up to the line's end.
    let (facts, text) = record.split_once(';')?;
    let priority: u32 = facts.split(',').next()?.parse().ok()?;
    if priority >= FROM_PROGRAMS {
        return None;
    }
    let text = text.lines().next()?;
    if let Some(facts) = text.strip_prefix("oom-kill:") {
        // Since Linux 5.0: constraint=…,nodemask=…,…,global_oom,task_memcg=…,task=…,pid=…,uid=…
        let global = facts.contains(",global_oom,") || facts.contains(",oom_memcg=/,");
        let (before, after) = facts.rsplit_once(",pid=")?;
        let (_, process) = before.split_once(",task=")?;
        let pid = after.split(',').next()?.parse().ok()?;
        return global.then(|| Victim { process: process.to_owned(), pid });
    }
    // Before: "Out of memory: Kill process 123 (name) score 900 or sacrifice child".
    let rest = text.strip_prefix("Out of memory: Kill process ")?;
    let (pid, rest) = rest.split_once(" (")?;
    let (process, _) = rest.rsplit_once(") ")?;
    Some(Victim { process: process.to_owned(), pid: pid.parse().ok()? })
}

#[allow(unsafe_code, reason = "tokio has no safe constructor for this; the safety comment has the reason")]
fn register(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: a File's descriptor is valid and its own until it is dropped, which AsyncFd does after deregistering.
    Ok(unsafe { AsyncFd::register_with_interest(file, tokio::io::Interest::READABLE)? })
}

/// The kernel log from now on.
#[derive(Debug)]
pub struct KernelLog(AsyncFd<File>);

impl KernelLog {
    /// Opens the log at `path` (`/dev/kmsg`) at its end.
    ///
    /// # Errors
    /// It cannot be read; containers without privileges may not.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut file = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
        file.seek(SeekFrom::End(0))?;
        register(file).map(Self)
    }

    /// Waits for the next record.
    ///
    /// # Errors
    /// The log cannot be read any more.
    pub async fn next(&self) -> io::Result<String> {
        let mut buffer = vec![0; RECORD];
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|file| file.get_ref().read(&mut buffer)) {
                Ok(Ok(length)) => return Ok(String::from_utf8_lossy(&buffer[..length]).into_owned()),
                // Records were overwritten before they were read; the next read gives the oldest there is.
                Ok(Err(error)) if error.raw_os_error() == Some(nix::libc::EPIPE) => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kills_for_the_whole_machine_count() {
        let system = "6,1500,99,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/kubepods/pod1/c,task=my,app,pid=4242,uid=0\n SUBSYSTEM=x\n";
        let victim = parse(system).unwrap();
        assert_eq!(victim.message(), "System OOM encountered, victim process: my,app, pid: 4242");
        let limited = "6,1,2,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=c,mems_allowed=0,oom_memcg=/kubepods/pod1,task_memcg=/kubepods/pod1/c,task=app,pid=7,uid=0";
        assert_eq!(parse(limited), None);
        assert_eq!(parse(&system.replacen("6,", "14,", 1)), None, "anyone may write that");
        let old = "3,1,2,-;Out of memory: Kill process 123 (a (b) c) score 900 or sacrifice child";
        assert_eq!(parse(old), Some(Victim { process: "a (b) c".into(), pid: 123 }));
        for other in [
            "",
            ";",
            "6,1,2,-;oom-kill:",
            "6,1,2,-;Out of memory: Killed process 5 (x) total-vm:1kB",
            "oom-kill:,task=a,pid=x",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_record_is_too_strange(record in ".*") {
            let _ = parse(&record);
            let _ = parse(&format!("6,1,2,-;oom-kill:{record}"));
            let _ = parse(&format!("6,1,2,-;Out of memory: Kill process {record}"));
        }
    }
}
