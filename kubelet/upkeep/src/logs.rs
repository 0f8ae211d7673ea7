//! Rotation of container logs: `0.log` becomes `0.log.<time>` when it is too large, older ones are compressed, the
//! oldest go, and the runtime is told to open a new file.
//!
//! What to do with the files is decided by [`plan`] from their names alone. Files are never read whole: one line of a
//! log may be as large as the disk.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::StreamExt;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use tokio_util::sync::CancellationToken;

const COMPRESSED: &str = ".gz";
const TEMPORARY: &str = ".tmp";
const TIME_FORMAT: &str = "%Y%m%d-%H%M%S";

/// When a log is rotated and how much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// `containerLogMaxSize` in bytes: a log of at least this size is rotated.
    pub max_size: u64,
    /// `containerLogMaxFiles`: the files kept of a container, the current one included.
    pub max_files: usize,
    /// `containerLogMaxWorkers`: rotations at the same time.
    pub workers: usize,
    /// `containerLogMonitorInterval`: how often sizes are looked at.
    pub interval: Duration,
}

/// A running container and its current log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerLog {
    /// The runtime's id of the container.
    pub id: String,
    /// The path of its current log.
    pub path: PathBuf,
}

/// Who knows the containers and can make them write to a new file.
#[async_trait]
pub trait Logs: Send + Sync + 'static {
    /// The containers that run now.
    fn running(&self) -> Vec<ContainerLog>;

    /// Makes the runtime open the container's log anew after it was moved away.
    async fn reopen(&self, id: &str) -> Result<(), String>;
}

/// What to do with the rotated logs of one container, as file names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogPlan {
    /// To be removed.
    pub remove: Vec<String>,
    /// To be compressed.
    pub compress: Vec<String>,
}

/// Plans for rotated logs by their names, before one more is made of the current log.
pub fn plan(rotated: &BTreeSet<String>, max_files: usize) -> LogPlan {
    // Left over: half-written files, and logs of which a compressed copy is whole.
    let spent = |name: &String| name.ends_with(TEMPORARY) || rotated.contains(&format!("{name}{COMPRESSED}"));
    let (mut remove, kept): (Vec<String>, Vec<String>) = rotated.iter().cloned().partition(spent);
    // One place is the current log's, one its that is about to be rotated. Names sort by time.
    let excess = kept.len().saturating_sub(max_files.saturating_sub(2));
    let mut kept = kept.into_iter();
    remove.extend(kept.by_ref().take(excess));
    LogPlan { remove, compress: kept.filter(|name| !name.ends_with(COMPRESSED)).collect() }
}

/// Looks at the logs each interval and rotates those that are too large, until cancelled.
pub async fn run(logs: Arc<dyn Logs>, policy: Policy, cancel: CancellationToken) {
    let mut ticks = tokio::time::interval(policy.interval.max(Duration::from_millis(100)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = cancel.cancelled() => return,
        }
        look(&*logs, &policy).await;
    }
}

/// Looks once at all logs.
pub async fn look(logs: &dyn Logs, policy: &Policy) {
    let all = futures::stream::iter(logs.running());
    all.for_each_concurrent(policy.workers.max(1), |log| async move {
        if let Err(error) = look_at(logs, policy, &log).await {
            tracing::warn!(container = log.id, path = %log.path.display(), error, "the log was not rotated");
        }
    })
    .await;
}

async fn look_at(logs: &dyn Logs, policy: &Policy, log: &ContainerLog) -> Result<(), String> {
    match fs::symlink_metadata(&log.path) {
        Ok(found) if found.len() < policy.max_size => Ok(()),
        Ok(_) => rotate(logs, policy, log).await,
        // A kubelet that died between moving the file away and telling the runtime left it so.
        Err(error) if error.kind() == io::ErrorKind::NotFound => logs.reopen(&log.id).await,
        Err(error) => Err(error.to_string()),
    }
}

async fn rotate(logs: &dyn Logs, policy: &Policy, log: &ContainerLog) -> Result<(), String> {
    let (path, max_files) = (log.path.clone(), policy.max_files);
    let tidied = tokio::task::spawn_blocking(move || tidy(&path, max_files)).await;
    if let Err(error) = tidied.map_err(|error| error.to_string())? {
        // A full disk keeps old logs from being compressed; that is no reason to let the current one grow on.
        tracing::warn!(path = %log.path.display(), %error, "old logs were not tidied");
    }
    let rotated = beside(&log.path, &format!(".{}", stamp(Timestamp::now(), TimeZone::system())));
    if rotated.exists() {
        // Twice within a second: the next look has another name for it.
        return Ok(());
    }
    fs::rename(&log.path, &rotated).map_err(|error| format!("rename to {}: {error}", rotated.display()))?;
    if let Err(error) = logs.reopen(&log.id).await {
        // If the runtime did open a new file, and only its answer was lost, that one stays.
        let back = fs::hard_link(&rotated, &log.path).and_then(|()| fs::remove_file(&rotated));
        let back = match back {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            Err(error) => format!("; the file was not moved back: {error}"),
            Ok(()) => String::new(),
        };
        return Err(format!("reopen the log: {error}{back}"));
    }
    Ok(())
}

/// The time as it stands in the name of a rotated log.
pub fn stamp(now: Timestamp, zone: TimeZone) -> String {
    Zoned::new(now, zone).strftime(TIME_FORMAT).to_string()
}

/// Removes a container's log with everything rotated from it. The first thing that would not go is told.
///
/// # Errors
/// Any I/O error but that a file is not there.
pub fn remove(log: &Path) -> io::Result<()> {
    let mut first = unlink(log).err();
    for name in rotated(log)? {
        if let Err(error) = unlink(&log.with_file_name(name)) {
            first.get_or_insert(error);
        }
    }
    first.map_or(Ok(()), Err)
}

fn unlink(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io::Error::new(error.kind(), format!("remove {}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}

/// Applies the plan for what was rotated before.
fn tidy(log: &Path, max_files: usize) -> io::Result<()> {
    let plan = plan(&rotated(log)?, max_files);
    let mut first = None;
    for name in &plan.remove {
        if let Err(error) = unlink(&log.with_file_name(name)) {
            first.get_or_insert(error);
        }
    }
    for name in &plan.compress {
        if let Err(error) = compress(&log.with_file_name(name)) {
            first.get_or_insert(error);
        }
    }
    first.map_or(Ok(()), Err)
}

/// The names of files rotated from `log`.
fn rotated(log: &Path) -> io::Result<BTreeSet<String>> {
    let (Some(folder), Some(name)) = (log.parent(), log.file_name().and_then(|n| n.to_str())) else {
        return Ok(BTreeSet::new());
    };
    let prefix = format!("{name}.");
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        other => other?,
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter(|name| name.starts_with(&prefix)).collect())
}

/// Replaces a file by its compressed copy. Whatever happens, one of them is whole.
fn compress(path: &Path) -> io::Result<()> {
    let beside_it = beside(path, TEMPORARY);
    let write = || -> io::Result<()> {
        let mut from = File::open(path)?;
        let mut to = GzEncoder::new(File::create(&beside_it)?, Compression::default());
        io::copy(&mut from, &mut to)?;
        to.finish()?.sync_all()?;
        fs::rename(&beside_it, beside(path, COMPRESSED))?;
        fs::remove_file(path)
    };
    write().map_err(|error| {
        // The part-written copy is worth nothing; the error that matters is the one above.
        let _ = fs::remove_file(&beside_it);
        io::Error::new(error.kind(), format!("compress {}: {error}", path.display()))
    })
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::sync::Mutex;

    fn names(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn old_logs_are_compressed_and_the_oldest_go() {
        let found = names(&[
            "0.log.20260101-000001.gz",
            "0.log.20260101-000002.gz",
            "0.log.20260101-000003",
            "0.log.20260101-000003.tmp",
            "0.log.20260101-000004",
            "0.log.20260101-000004.gz",
        ]);
        assert_eq!(
            plan(&found, 5),
            LogPlan {
                remove: vec![
                    "0.log.20260101-000003.tmp".into(),
                    "0.log.20260101-000004".into(),
                    "0.log.20260101-000001.gz".into()
                ],
                compress: vec!["0.log.20260101-000003".into()],
            }
        );
        assert_eq!(plan(&found, 2).compress, Vec::<String>::new(), "nothing but the current and the next is kept");
    }

    #[test]
    fn the_name_is_the_time() {
        let at: Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
        assert_eq!(stamp(at, TimeZone::UTC), "20260101-120000");
    }

    /// A runtime that makes the file anew when told to reopen it.
    struct Runtime {
        log: PathBuf,
        refuses: bool,
        /// It does what it is asked, and its answer is lost.
        loses: bool,
        reopened: Mutex<u32>,
    }

    #[async_trait]
    impl Logs for Runtime {
        fn running(&self) -> Vec<ContainerLog> {
            vec![ContainerLog { id: "c1".into(), path: self.log.clone() }]
        }

        async fn reopen(&self, _id: &str) -> Result<(), String> {
            *self.reopened.lock().unwrap() += 1;
            if self.refuses {
                return Err("no such container".into());
            }
            fs::write(&self.log, "").map_err(|error| error.to_string())?;
            if self.loses { Err("the stream was reset".into()) } else { Ok(()) }
        }
    }

    fn policy() -> Policy {
        Policy { max_size: 100, max_files: 3, workers: 1, interval: Duration::from_secs(10) }
    }

    fn rig(refuses: bool) -> (tempfile::TempDir, Runtime) {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("0.log");
        (folder, Runtime { log, refuses, loses: false, reopened: Mutex::default() })
    }

    #[tokio::test]
    async fn a_large_log_is_rotated_and_the_one_before_compressed() {
        let (folder, runtime) = rig(false);
        fs::write(&runtime.log, "x".repeat(99)).unwrap();
        look(&runtime, &policy()).await;
        assert_eq!(*runtime.reopened.lock().unwrap(), 0, "small enough");
        fs::write(&runtime.log, "x".repeat(100)).unwrap();
        fs::write(folder.path().join("0.log.20250101-000000"), "the one before").unwrap();
        fs::write(folder.path().join("0.log.20240101-000000.gz"), "the oldest").unwrap();
        fs::write(folder.path().join("10.log.20240101-000000"), "of another container").unwrap();
        look(&runtime, &policy()).await;
        assert_eq!(*runtime.reopened.lock().unwrap(), 1);
        assert_eq!(fs::read(&runtime.log).unwrap(), b"");
        let found: Vec<String> = rotated(&runtime.log).unwrap().into_iter().collect();
        assert_eq!((found.len(), found[0].as_str()), (2, "0.log.20250101-000000.gz"), "{found:?}");
        let mut text = String::new();
        let packed = File::open(folder.path().join(&found[0])).unwrap();
        flate2::read::GzDecoder::new(packed).read_to_string(&mut text).unwrap();
        assert_eq!(text, "the one before");
        assert_eq!(fs::metadata(folder.path().join(&found[1])).unwrap().len(), 100);
        remove(&runtime.log).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "only the other container's is left");
    }

    #[tokio::test]
    async fn a_refused_reopening_leaves_the_log_where_it_was() {
        let (folder, runtime) = rig(true);
        fs::write(&runtime.log, "x".repeat(200)).unwrap();
        look(&runtime, &policy()).await;
        assert_eq!(fs::metadata(&runtime.log).unwrap().len(), 200);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_log_opened_anew_stays_although_the_answer_was_lost() {
        let (folder, mut runtime) = rig(false);
        runtime.loses = true;
        fs::write(&runtime.log, "x".repeat(200)).unwrap();
        look(&runtime, &policy()).await;
        // What the runtime writes from now on is in the file that it opened, not in one that was moved over it.
        assert_eq!(fs::metadata(&runtime.log).unwrap().len(), 0);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "the rotated one is kept");
    }

    #[tokio::test]
    async fn a_lost_log_is_opened_again() {
        let (_folder, runtime) = rig(false);
        look(&runtime, &policy()).await;
        assert!(runtime.log.exists());
    }

    proptest::proptest! {
        #[test]
        fn no_more_files_are_kept_than_asked_for(
            seconds in proptest::collection::btree_set(0u32..60, 0..20), packed in proptest::bits::u64::ANY, files in 2usize..8
        ) {
            let name = |s: &u32| {
                let end = if packed >> s & 1 == 1 { COMPRESSED } else { "" };
                format!("0.log.20260101-0000{s:02}{end}")
            };
            let found: BTreeSet<String> = seconds.iter().map(name).collect();
            let plan = plan(&found, files);
            let kept: Vec<&String> = found.iter().filter(|n| !plan.remove.contains(n)).collect();
            assert!(kept.len() + 2 <= files.max(2), "the current one and the next come on top");
            assert!(plan.remove.iter().all(|gone| kept.iter().all(|kept| gone < *kept)), "the oldest go");
            assert!(plan.compress.iter().all(|name| kept.contains(&name)));
        }
    }
}
