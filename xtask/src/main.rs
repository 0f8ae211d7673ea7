//! The one entrance for people and for CI: `cargo xtask up`, `down`, `test`, `faults`, `qemu`, `bench`.

#![expect(clippy::print_stdout, reason = "it talks to people")]

mod bench;
mod build;
mod demo;
mod progress;
mod qemu;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use bosun_tests::tools::Scope;
use bosun_tests::{Layout, Tools};
use clap::{Args, Parser, Subcommand, ValueEnum};

use progress::Progress;

/// Bosun's development tasks. They need Debian 12 and root; what else they need they fetch.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build and start a cluster with a demo on it. Harmless when it runs already.
    Up(Up),
    /// End the cluster and prove that nothing of it remains.
    Down,
    /// Run every test: unit, golden, property, and on real containerd with real clients.
    Test(test::Options),
    /// Disturb a cluster at length: kill the node agent again and again under pods that come and go.
    Faults(test::Faults),
    /// Run the tests that want version 2 cgroups and systemd, in an emulated machine.
    Qemu(qemu::Options),
    /// Measure what docs/numbers.md promises; prints a table and writes target/bench.json.
    Bench(bench::Options),
    /// Fetch the programs that the other tasks need, and nothing else.
    Deps,
}

#[derive(Args)]
struct Up {
    /// How many nodes, each a network namespace with its own containerd.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=50))]
    nodes: u8,
    /// The version of containerd on the nodes.
    #[arg(long, value_enum, default_value_t = Containerd::V2_1)]
    containerd: Containerd,
    /// Use unoptimized binaries: a shorter build, for trying out a change.
    #[arg(long)]
    debug: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Containerd {
    #[value(name = "1.6")]
    V1_6,
    #[value(name = "2.1")]
    V2_1,
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    let layout = Layout::find();
    match task {
        Task::Up(options) => {
            demo::up(&layout, options.nodes, options.containerd.into(), options.debug).map(|()| ExitCode::SUCCESS)
        }
        Task::Down => demo::down(&layout).map(|()| ExitCode::SUCCESS),
        Task::Test(options) => test::run(&layout, &options),
        Task::Faults(options) => test::faults(&layout, &options),
        Task::Qemu(options) => qemu::run(&layout, &options),
        Task::Bench(options) => bench::run(&layout, &options),
        Task::Deps => {
            let progress = Progress::new();
            Tools::fetch(&layout, Scope::Tests, &|line| progress.say(line))?;
            progress.done(&format!("everything is in {}", layout.deps().display()));
            Ok(ExitCode::SUCCESS)
        }
    }
}

impl From<Containerd> for bosun_tests::containerd::Version {
    fn from(version: Containerd) -> Self {
        match version {
            Containerd::V1_6 => Self::V1_6,
            Containerd::V2_1 => Self::V2_1,
        }
    }
}
