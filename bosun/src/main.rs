//! The all-in-one binary: a control plane (`bosun server`), a node (`bosun agent`), and every part as its own
//! subcommand. Parts talk to each other only through the API; in one process they reach the API server without a
//! socket.

use std::ffi::OsString;
use std::process::ExitCode;

use bosun_kit::logs::LogArgs;
use bosun_kit::{flags, program};
use clap::{Parser, Subcommand};
use tokio_util::sync::CancellationToken;

mod addons;
mod address;
mod agent;
mod join;
mod pki;
mod server;
mod token;

/// Kubernetes in one binary: `bosun server` runs a control plane, `bosun agent` makes this machine a node of it.
#[derive(Parser)]
#[command(name = "bosun", version = bosun_kit::version::GIT_VERSION, max_term_width = 120)]
#[command(after_help = "Two commands make a cluster:\n  \
    bosun server\n  \
    bosun agent --server https://ADDRESS:6443 --token TOKEN --ca-cert-hash HASH\n\
    The server prints the second one when it starts, and keeps it in DATA-DIR/join.")]
struct Cli {
    #[command(flatten)]
    logs: LogArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a control plane: API server, scheduler and controllers in one process, on an embedded store.
    Server(Box<server::Options>),
    /// Make this machine a node: kubelet, proxy and network daemon in one process.
    Agent(Box<agent::Options>),
    /// The API server alone.
    Apiserver(Box<bosun_apiserver::Options>),
    /// The scheduler alone.
    Scheduler(bosun_scheduler::Options),
    /// The controllers alone.
    ControllerManager(Box<bosun_controllers::Options>),
    /// Cluster DNS alone.
    Dns(Box<bosun_dns::Options>),
    /// The kubelet alone; takes stock's flags.
    Kubelet(Box<bosun_kubelet::Options>),
    /// The service proxy alone; takes stock's flags.
    KubeProxy(Box<bosun_proxy::Options>),
    /// The network daemon alone.
    Netd(Box<bosun_netd::Options>),
}

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if let Some(argv0) = args.first().filter(|argv0| bosun_cni::plugin_name(argv0).is_some()) {
        return bosun_cni::main(argv0, args.iter().skip(1).cloned()).into();
    }
    let cli = Cli::parse_from(flags::go_args(args));
    program::run(&cli.logs, |cancel| run(cli.command, cancel))
}

async fn run(command: Command, cancel: CancellationToken) -> anyhow::Result<()> {
    match command {
        Command::Server(options) => server::run(*options, cancel).await,
        Command::Agent(options) => agent::run(*options, cancel).await,
        Command::Apiserver(options) => options.run(cancel).await,
        Command::Scheduler(options) => options.run(cancel).await,
        Command::ControllerManager(options) => options.run(cancel).await,
        Command::Dns(options) => options.run(cancel).await,
        Command::Kubelet(options) => options.run(cancel).await,
        Command::KubeProxy(options) => options.run(cancel).await,
        Command::Netd(options) => options.run(cancel).await,
    }
}
