//! Building our own binaries.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use bosun_tests::Layout;

/// The packages with binaries that a cluster runs, and the benchmark. Always the same selection: with another one, cargo
/// would choose other features and compile half of everything again.
const PACKAGES: &[&str] =
    &["bosun", "bosun-bench", "bosun-cni", "bosun-dns", "bosun-kubelet", "bosun-pause", "bosun-proxy", "bosun-web"];

/// Builds our binaries in a profile, `debug` or `release`, and returns their folder. cargo shows its own progress.
pub(crate) fn binaries(layout: &Layout, profile: &str) -> Result<PathBuf> {
    let mut command = cargo(layout);
    command.args(["build", "--bins"]);
    if profile == "release" {
        command.arg("--release");
    }
    for package in PACKAGES {
        command.args(["--package", package]);
    }
    let status = command.stdin(Stdio::null()).status().context("cargo cannot be run")?;
    if !status.success() {
        bail!("the build failed; cargo's words are above");
    }
    Ok(layout.binaries(profile))
}

/// cargo, in the workspace's root, as if a person had typed it: build scripts of dependencies look at the package that
/// cargo says it runs (us), and everything that depends on them would be compiled again each time that changes.
pub(crate) fn cargo(layout: &Layout) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(&layout.root);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") || text == "CARGO" {
            command.env_remove(&name);
        }
    }
    command
}
