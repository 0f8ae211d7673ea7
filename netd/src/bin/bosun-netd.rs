//! The node's network daemon; see the library.

use clap::Parser;

#[derive(Parser)]
#[command(name = "bosun-netd", version, about = "Routes between nodes, the CNI configuration and masquerade")]
struct Cli {
    #[command(flatten)]
    options: bosun_netd::Options,
    #[command(flatten)]
    logs: bosun_kit::logs::LogArgs,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse_from(bosun_kit::flags::go_args(std::env::args_os()));
    bosun_kit::logs::init(&cli.logs);
    bosun_kit::tls::install_crypto();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { cli.options.run(bosun_kit::shutdown::token()).await })
}
