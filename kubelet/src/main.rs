//! The kubelet as a program of its own.

use std::process::ExitCode;

use bosun_kit::flags::go_args;
use bosun_kit::logs::LogArgs;
use bosun_kit::program;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser};

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
    let matches = Args::command().get_matches_from(go_args(std::env::args_os()));
    let mut args = Args::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let given = |flag: &str| matches.value_source(flag) == Some(ValueSource::CommandLine);
    // What is wrong with the configuration is said once there is a log to say it in.
    let logging = args.options.configuration().map(|config| config.logging).unwrap_or_default();
    if !given("logging_format") && !logging.format.is_empty() {
        args.logs.logging_format = logging.format;
    }
    if !given("verbosity") && logging.verbosity > 0 {
        args.logs.verbosity = u8::try_from(logging.verbosity).unwrap_or(u8::MAX);
    }
    program::run(&args.logs, |cancel| args.options.run(cancel))
}
