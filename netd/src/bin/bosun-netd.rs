//! The node's network daemon; see the library.

use clap::Parser;
use std::path::PathBuf;

#[derive(Parser)]
#[command(name = "bosun-netd", version, about = "Routes between nodes, the CNI configuration and masquerade")]
struct Cli {
    /// Kubeconfig of the cluster; without it the pod's service account is used.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// This node's name in the cluster.
    #[arg(long, env = "NODE_NAME")]
    node_name: String,
    #[command(flatten)]
    config: bosun_netd::Config,
    #[command(flatten)]
    logs: bosun_kit::logs::LogArgs,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse_from(bosun_kit::flags::go_args(std::env::args_os()));
    bosun_kit::logs::init(&cli.logs);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = bosun_kit::client::from_kubeconfig_or_cluster(cli.kubeconfig.as_deref()).await?;
        bosun_netd::run(cli.config, client, cli.node_name, bosun_kit::shutdown::token()).await
    })
}
