//! The node's network daemon; see the library.

use std::process::ExitCode;

use bosun_kit::flags::go_args;
use bosun_kit::logs::LogArgs;
use bosun_kit::program;
use clap::Parser;

/// Routes between nodes, the CNI configuration and masquerade.
#[derive(Parser)]
#[command(name = "bosun-netd", version)]
struct Cli {
    #[command(flatten)]
    options: bosun_netd::Options,
    #[command(flatten)]
    logs: LogArgs,
}

fn main() -> ExitCode {
    let cli = Cli::parse_from(go_args(std::env::args_os()));
    program::run(&cli.logs, |cancel| cli.options.run(cancel))
}
