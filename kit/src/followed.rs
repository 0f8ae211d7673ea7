//! What is read from files, and read again when they change: certificates, authorities, whole clients.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// When each file was last written; none where there is none.
pub type Stamps = Vec<Option<SystemTime>>;

/// A value read from files. The files are looked at when the value is asked for, at most once in a period; a change that
/// cannot be read is logged, and the old value goes on.
pub struct Followed<T> {
    files: Vec<PathBuf>,
    period: Duration,
    current: Mutex<Current<T>>,
}

struct Current<T> {
    value: T,
    stamps: Stamps,
    looked: Instant,
}

impl<T> fmt::Debug for Followed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Followed").field("files", &self.files).finish_non_exhaustive()
    }
}

/// When these files were last written. To be asked before they are read, so that no change is missed.
pub fn stamps(files: &[PathBuf]) -> Stamps {
    files.iter().map(|file| std::fs::metadata(file).and_then(|meta| meta.modified()).ok()).collect()
}

impl<T: Clone> Followed<T> {
    /// `value` was read from `files`, which were written at `stamps`.
    pub fn new(files: Vec<PathBuf>, stamps: Stamps, period: Duration, value: T) -> Self {
        Self { files, period, current: Mutex::new(Current { value, stamps, looked: Instant::now() }) }
    }

    /// Reads the value for the first time.
    ///
    /// # Errors
    /// What `read` says.
    pub fn read<E>(files: Vec<PathBuf>, period: Duration, read: impl FnOnce() -> Result<T, E>) -> Result<Self, E> {
        let stamps = stamps(&files);
        Ok(Self::new(files, stamps, period, read()?))
    }

    /// The files.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The value as it was last read.
    pub fn value(&self) -> T {
        self.current().value.clone()
    }

    /// Puts a value in that was read when the files had these stamps.
    pub fn put(&self, value: T, stamps: Stamps) {
        let mut current = self.current();
        (current.value, current.stamps) = (value, stamps);
    }

    /// The stamps of files that have changed since they were read, as far as it is time to look.
    pub fn changed(&self) -> Option<Stamps> {
        let mut current = self.current();
        if current.looked.elapsed() < self.period {
            return None;
        }
        current.looked = Instant::now();
        Some(stamps(&self.files)).filter(|now| *now != current.stamps)
    }

    /// The newest value: read anew if the files have changed. `what` names it in the log.
    pub fn newest<E: fmt::Display>(&self, what: &str, read: impl FnOnce() -> Result<T, E>) -> T {
        if let Some(stamps) = self.changed() {
            match read() {
                Ok(value) => {
                    self.put(value, stamps);
                    tracing::info!(files = ?self.files, "{what} reloaded");
                }
                Err(error) => tracing::warn!(%error, "{what} not reloaded; what was there goes on"),
            }
        }
        self.value()
    }

    fn current(&self) -> MutexGuard<'_, Current<T>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_taken_up_and_a_broken_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("number");
        let write = |text: &str, second: u64| {
            std::fs::write(&file, text).unwrap();
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
            std::fs::File::options().write(true).open(&file).unwrap().set_modified(at).unwrap();
        };
        let read = || std::fs::read_to_string(&file).unwrap().parse::<i32>();
        write("1", 1);
        let followed = Followed::read(vec![file.clone()], Duration::ZERO, read).unwrap();
        assert_eq!(followed.newest("the number", read), 1);
        write("2", 2);
        assert_eq!((followed.value(), followed.newest("the number", read)), (1, 2));
        write("two", 3);
        assert_eq!(followed.newest("the number", read), 2);
        write("3", 4);
        let slow = Followed::read(vec![file.clone()], Duration::from_secs(3600), read).unwrap();
        write("4", 5);
        assert_eq!(slow.newest("the number", read), 3, "it is not time to look");
    }
}
