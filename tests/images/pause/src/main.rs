//! The process that holds a pod's namespaces open.
//!
//! It is process 1 of the pod's sandbox: it reaps what is orphaned to it when containers share the process
//! namespace, and leaves at the first SIGTERM or SIGINT so that a pod's teardown never waits for it.

use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

fn main() {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        signals.add(signal);
    }
    if let Err(error) = signals.thread_block() {
        eprintln!("pause: cannot block signals: {error}");
        std::process::exit(1);
    }
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => reap(),
            Ok(_) => return,
            Err(nix::Error::EINTR) => {}
            Err(error) => {
                eprintln!("pause: cannot wait for a signal: {error}");
                std::process::exit(1);
            }
        }
    }
}

/// Collects every child that has ended; one SIGCHLD may stand for several.
fn reap() {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            return;
        }
    }
}
