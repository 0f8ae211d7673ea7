//! Measures what docs/numbers.md promises, prints a table with the floor or the peer beside each number, and writes
//! it as JSON. Everything is measured on one machine in one run; `cargo xtask bench` builds what it needs.

#![expect(clippy::print_stdout, reason = "the table is what it is for")]

mod cni;
mod cri;
mod footprint;
mod latency;
mod pods;
mod probes;
mod report;
mod run;
mod writes;

use std::process::ExitCode;

use bosun_tests::containerd::Version;
use clap::Parser;

/// Measures what docs/numbers.md promises.
#[derive(Parser)]
#[command(name = "cargo xtask bench --")]
pub(crate) struct Options {
    /// Which measurements; all when none is named.
    #[arg(value_enum)]
    only: Vec<Part>,
    /// Rounds of each timing; the median counts.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Pods made at once.
    #[arg(long, default_value_t = 30)]
    pods: usize,
    /// Pods that are each probed once a second.
    #[arg(long, default_value_t = 110)]
    probed: usize,
    /// Pods of which is measured how soon a watcher knows that they run.
    #[arg(long, default_value_t = 50)]
    seen: usize,
    /// Services (and as many EndpointSlices) written.
    #[arg(long, default_value_t = 5000)]
    services: usize,
    /// The profile whose binaries are measured.
    #[arg(long, default_value = "release")]
    pub(crate) profile: String,
    /// Use containerd 1.6 in place of 2.1.
    #[arg(long)]
    old_containerd: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// Raw CRI calls with the reference CNI plugins; needs nothing of ours.
    Reference,
    /// CNI plugins by themselves, ours and the reference ones.
    Cni,
    /// Start, memory, one pod, many pods: needs a node.
    Node,
    /// A node full of pods that are each probed once a second.
    Probes,
    /// How soon a watcher knows that a container runs.
    Latency,
    /// Objects written per second.
    Writes,
}

impl Options {
    pub(crate) fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    pub(crate) fn version(&self) -> Version {
        if self.old_containerd { Version::V1_6 } else { Version::V2_1 }
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    bosun_kit::tls::install_crypto();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: worker threads cannot be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run::run(&options)) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}
