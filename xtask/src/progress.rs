//! What is being done, on one line that changes; plain lines where there is no terminal.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// One task's progress.
pub(crate) struct Progress {
    bar: ProgressBar,
    started: Instant,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        let style = ProgressStyle::with_template("{spinner:.cyan} [{elapsed}] {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { bar, started: Instant::now() }
    }

    /// Shows what is being done now.
    pub(crate) fn say(&self, line: &str) {
        if self.bar.is_hidden() {
            eprintln!("[{:>6.1} s] {line}", self.started.elapsed().as_secs_f64());
        } else {
            self.bar.set_message(line.to_owned());
        }
    }

    /// Leaves a line for what is finished.
    pub(crate) fn done(&self, line: &str) {
        let line = format!("✓ [{:>5.1} s] {line}", self.started.elapsed().as_secs_f64());
        if self.bar.is_hidden() {
            eprintln!("{line}");
        } else {
            self.bar.println(line);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
