//! Notice from the kernel that processes stall for want of memory, by a pressure stall trigger
//! (Documentation/accounting/psi.rst), so that a shortage is looked at before the next round.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A tenth of a second stalled within two. Windows that are multiples of two seconds need no privilege.
const TRIGGER: &[u8] = b"some 100000 2000000\0";

#[allow(unsafe_code, reason = "tokio has no safe constructor for this; the safety comment has the reason")]
fn register(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: a File's descriptor is valid and its own until it is dropped, which AsyncFd does after deregistering.
    Ok(unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY)? })
}

/// A trigger on memory stalls.
#[derive(Debug)]
pub struct MemoryStalls(AsyncFd<File>);

impl MemoryStalls {
    /// Sets a trigger on `path` (`/proc/pressure/memory`, or a cgroup's `memory.pressure`).
    ///
    /// # Errors
    /// The kernel has no such file, or refuses the trigger.
    pub fn watch(path: &Path) -> io::Result<Self> {
        let mut file = File::options().read(true).write(true).open(path)?;
        file.write_all(TRIGGER)?;
        register(file).map(Self)
    }

    /// Waits for the next notice; the kernel gives one a window at most.
    ///
    /// # Errors
    /// The trigger is gone.
    pub async fn next(&self) -> io::Result<()> {
        let mut ready = self.0.ready(Interest::PRIORITY).await?;
        ready.clear_ready();
        Ok(())
    }
}
