//! The kubelet as a program of its own.

use std::process::ExitCode;

use bosun_kit::flags::go_args;
use bosun_kit::logs::LogArgs;
use bosun_kit::program;
use clap::Parser;

/// Makes the pods of this node run.
#[derive(Parser)]
#[command(name = "kubelet", version = bosun_kit::version::GIT_VERSION)]
struct Args {
    #[command(flatten)]
    options: bosun_kubelet::Options,
    #[command(flatten)]
    logs: LogArgs,
}

fn main() -> ExitCode {
    let args = Args::parse_from(go_args(std::env::args_os()));
    program::run(&args.logs, |cancel| args.options.run(cancel))
}
