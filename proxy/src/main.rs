//! The binary `kube-proxy`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use bosun_kit::client::from_kubeconfig_or_cluster;
use bosun_kit::{flags, logs, shutdown};
use bosun_proxy::config::Settings;
use bosun_proxy::nftables::Backend;
use bosun_proxy::{Config, Options};
use clap::Parser as _;

fn main() -> ExitCode {
    let options = Options::parse_from(flags::go_args(std::env::args_os()));
    logs::init(&options.logs);
    match start(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(options: &Options) -> Result<()> {
    if options.cleanup {
        return Backend::clean_up().context("remove the rules");
    }
    let config = options.resolve()?;
    if let Some(path) = &options.write_config_to {
        return write(&config, path);
    }
    Settings::from_config(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(options, config))
}

fn write(config: &Config, path: &Path) -> Result<()> {
    let text = serde_json::to_vec_pretty(config)?;
    bosun_kit::files::write_atomic(path, &text, 0o644).with_context(|| format!("write {}", path.display()))
}

async fn serve(options: &Options, config: Config) -> Result<()> {
    if options.init_only {
        bosun_proxy::init(&config)?;
        return Ok(());
    }
    let cancel = shutdown::token();
    let kubeconfig = Some(&config.client_connection.kubeconfig).filter(|path| !path.is_empty()).map(PathBuf::from);
    let client = from_kubeconfig_or_cluster(kubeconfig.as_deref()).await?;
    let node = node_name(&config)?;
    if options.dry_run {
        let plan = bosun_proxy::dry_run(&config, client, &node, cancel).await?;
        return std::io::Write::write_all(&mut std::io::stdout(), plan.to_string().as_bytes())
            .context("print the plan");
    }
    Ok(bosun_proxy::run(config, client, node, cancel).await?)
}

/// The Node's name: as configured, else the host's in lower case.
fn node_name(config: &Config) -> Result<String> {
    let name = match &*config.hostname_override {
        "" => nix::unistd::gethostname().context("read the host's name")?.to_string_lossy().into_owned(),
        name => name.to_owned(),
    };
    Ok(name.trim().to_lowercase())
}
