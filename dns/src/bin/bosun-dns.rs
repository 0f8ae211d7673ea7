//! The cluster DNS server; see the library.

use clap::Parser;

#[derive(Parser)]
#[command(name = "bosun-dns", version, about = "Cluster DNS: names of Services and pods, all others from upstream")]
struct Cli {
    #[command(flatten)]
    args: bosun_dns::Args,
    #[command(flatten)]
    logs: bosun_kit::logs::LogArgs,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse_from(bosun_kit::flags::go_args(std::env::args_os()));
    bosun_kit::logs::init(&cli.logs);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async { bosun_dns::main(cli.args, bosun_kit::shutdown::token()).await })
}
