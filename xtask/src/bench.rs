//! `bench`: measures what docs/numbers.md promises.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result};
use bosun_tests::tools::Scope;
use bosun_tests::{Layout, Tools};
use clap::Args;

use crate::build;
use crate::progress::Progress;

#[derive(Args)]
pub(crate) struct Options {
    /// Arguments for the benchmark; `--help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Builds everything optimized and runs the benchmark, which prints the table.
pub(crate) fn run(layout: &Layout, options: &Options) -> Result<ExitCode> {
    let progress = Progress::new();
    Tools::fetch(layout, Scope::Tests, &|line| progress.say(line))?;
    drop(progress);
    let binaries = build::binaries(layout, "release")?;
    let program = binaries.join("bosun-bench");
    let status = Command::new(&program).args(&options.arguments).stdin(Stdio::null()).status();
    let status = status.with_context(|| format!("{} cannot be run", program.display()))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
