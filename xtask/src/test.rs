//! `test`: every test there is.

use std::env;
use std::ffi::OsString;
use std::process::{ExitCode, Stdio};

use anyhow::{Context as _, Result};
use bosun_tests::tools::{BUSYBOX, CNI_PLUGINS, CONTAINERD_1_6, RUNC, Scope};
use bosun_tests::{Layout, Tools};
use clap::{Args, ValueEnum};

use crate::build::cargo;
use crate::progress::Progress;

#[derive(Args)]
pub(crate) struct Options {
    /// Only tests of this package.
    #[arg(long, short)]
    package: Option<String>,
    /// Further arguments for `cargo test`: a name, or `-- --nocapture`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Fetches what tests need and runs them by `cargo test`; its exit code is ours. The binaries that end-to-end tests
/// start are built first with the same selection, so that nothing is compiled twice.
pub(crate) fn run(layout: &Layout, options: &Options) -> Result<ExitCode> {
    test(layout, options, &[])
}

#[derive(Args)]
pub(crate) struct Faults {
    /// How often the node agent is killed while pods are made, probed and removed; the tests do it ten times.
    #[arg(long, default_value_t = 200)]
    kills: u32,
    /// Only this part.
    #[arg(long, value_enum)]
    only: Option<Part>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Part {
    /// Calls to the container runtime are refused, delayed or cut.
    Runtime,
    /// Processes are killed.
    Kills,
    /// Hostile manifests, probes that never answer, a log line of 1 GB.
    Input,
}

/// The tests that disturb a kubelet or a cluster, in their long form: hostile input, every call to the container runtime
/// with every fault, then kills of every process under many pods.
pub(crate) fn faults(layout: &Layout, options: &Faults) -> Result<ExitCode> {
    let environment = [("BOSUN_KILLS", options.kills.to_string()), ("BOSUN_FAULTS", "all".to_owned())];
    const RUNTIME: [&str; 3] = ["bosun-tests", "e2e", "cri::"];
    const KILLS: [&str; 3] = ["bosun-tests", "e2e", "faults::"];
    const INPUT: [&str; 3] = ["bosun-kubelet", "hostile", ""];
    let only: &[_] = match options.only {
        None => &[INPUT, RUNTIME, KILLS],
        Some(Part::Runtime) => &[RUNTIME],
        Some(Part::Kills) => &[KILLS],
        Some(Part::Input) => &[INPUT],
    };
    for [package, program, cases] in only {
        let arguments = ["--test", program, "--", cases].map(str::to_owned).into();
        let tests = Options { package: Some((*package).to_owned()), arguments };
        let code = test(layout, &tests, &environment)?;
        if code != ExitCode::SUCCESS {
            return Ok(code);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn test(layout: &Layout, options: &Options, environment: &[(&str, String)]) -> Result<ExitCode> {
    let progress = Progress::new();
    let tools = Tools::fetch(layout, Scope::Tests, &|line| progress.say(line))?;
    progress.done("the programs the tests need are there");
    drop(progress);
    let built = cargo(layout).args(["build", "--workspace"]).stdin(Stdio::null()).status();
    if !built.context("cargo cannot be run")?.success() {
        return Ok(ExitCode::FAILURE);
    }
    let mut command = cargo(layout);
    command.arg("test").env("PATH", search_path(&tools)?).env("BOSUN_REFERENCE_CNI", tools.folder(&CNI_PLUGINS));
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    match &options.package {
        Some(package) => command.args(["--package", package]),
        None => command.args(["--workspace", "--no-fail-fast"]),
    };
    let status = command.args(&options.arguments).stdin(Stdio::null()).status().context("cargo cannot be run")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The system's programs, and before them containerd and runc of the system's release and a static busybox from where
/// they were unpacked: crates' own tests start them by name.
fn search_path(tools: &Tools) -> Result<OsString> {
    let system = env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    let fetched = [&CONTAINERD_1_6, &RUNC, &BUSYBOX].map(|package| tools.folder(package));
    env::join_paths(fetched.into_iter().chain(env::split_paths(&system))).context("PATH")
}
