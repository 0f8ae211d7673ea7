//! Building our own binaries.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use bosun_tests::Layout;

/// The packages with binaries that a cluster runs.
const PACKAGES: &[&str] = &["bosun", "bosun-cni", "bosun-dns", "bosun-pause", "bosun-web"];

/// Builds what a cluster runs in a profile, `debug` or `release`, and returns the folder of the binaries. cargo shows its
/// own progress.
pub(crate) fn binaries(layout: &Layout, profile: &str, more: &[&str]) -> Result<PathBuf> {
    let mut command = cargo(layout);
    command.args(["build", "--bins"]);
    if profile == "release" {
        command.arg("--release");
    }
    for package in PACKAGES.iter().chain(more) {
        command.args(["--package", package]);
    }
    let status = command.stdin(Stdio::null()).status().context("cargo cannot be run")?;
    if !status.success() {
        bail!("the build failed; cargo's words are above");
    }
    Ok(layout.binaries(profile))
}

/// cargo, in the workspace's root.
pub(crate) fn cargo(layout: &Layout) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(&layout.root);
    command
}
