//! The kubelet as a program of its own.

use std::process::ExitCode;

use bosun_kit::flags::go_args;
use bosun_kit::logs::{self, LogArgs};
use bosun_kit::shutdown;
use clap::Parser;

/// Makes the pods of this node run.
#[derive(Parser)]
#[command(name = "kubelet", version)]
struct Args {
    #[command(flatten)]
    options: bosun_kubelet::Options,
    #[command(flatten)]
    logs: LogArgs,
}

fn main() -> ExitCode {
    let args = Args::parse_from(go_args(std::env::args_os()));
    logs::init(&args.logs);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the asynchronous runtime could not be started");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(async { args.options.run(shutdown::token()).await }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
