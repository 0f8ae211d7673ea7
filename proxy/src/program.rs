//! What `kube-proxy` does after its flags: clean up, write its configuration, print its plan, or run.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use bosun_kit::client::from_kubeconfig_or_cluster;
use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::nftables::Backend;
use crate::{Config, Options};

impl Options {
    /// Does what the flags ask for, until cancelled.
    ///
    /// # Errors
    /// A flag or the configuration is refused, the cluster cannot be reached, or the kernel lacks something; the text
    /// names it.
    pub async fn run(self, cancel: CancellationToken) -> Result<()> {
        if self.cleanup {
            return Backend::clean_up().context("remove the rules");
        }
        let config = self.resolve()?;
        if let Some(path) = &self.write_config_to {
            return write(&config, path);
        }
        Settings::from_config(&config)?;
        if self.init_only {
            crate::init(&config)?;
            return Ok(());
        }
        let kubeconfig = Some(&config.client_connection.kubeconfig).filter(|path| !path.is_empty()).map(PathBuf::from);
        let client = from_kubeconfig_or_cluster(kubeconfig.as_deref()).await?;
        let node = node_name(&config)?;
        if self.dry_run {
            let plan = crate::dry_run(&config, client, &node, cancel).await?;
            let print = std::io::Write::write_all(&mut std::io::stdout(), plan.to_string().as_bytes());
            return print.context("print the plan");
        }
        Ok(crate::run(config, client, node, cancel).await?)
    }
}

fn write(config: &Config, path: &Path) -> Result<()> {
    let text = serde_json::to_vec_pretty(config)?;
    bosun_kit::files::write_atomic(path, &text, 0o644).with_context(|| format!("write {}", path.display()))
}

/// The Node's name: as configured, else the host's in lower case.
fn node_name(config: &Config) -> Result<String> {
    let name = match &*config.hostname_override {
        "" => nix::unistd::gethostname().context("read the host's name")?.to_string_lossy().into_owned(),
        name => name.to_owned(),
    };
    Ok(name.trim().to_lowercase())
}
