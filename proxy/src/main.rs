//! The binary `kube-proxy`.

use std::process::ExitCode;

use bosun_kit::flags::go_args;
use bosun_kit::logs::LogArgs;
use bosun_kit::program;
use clap::Parser;

/// Serves the cluster's Services on this node.
#[derive(Parser)]
#[command(name = "kube-proxy", version = bosun_kit::version::GIT_VERSION)]
struct Cli {
    #[command(flatten)]
    options: bosun_proxy::Options,
    #[command(flatten)]
    logs: LogArgs,
}

fn main() -> ExitCode {
    let cli = Cli::parse_from(go_args(std::env::args_os()));
    program::run(&cli.logs, |cancel| cli.options.run(cancel))
}
