//! Flags of `bosun controller-manager`, spelled as stock's.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bosun_kit::leader::LeaderElection;
use clap::Args;
use ipnet::IpNet;
use tokio_util::sync::CancellationToken;

use crate::ControllersConfig;

/// Which controllers run: `*` is all, `name` one more, `-name` all but that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection(Vec<String>);

impl Default for Selection {
    fn default() -> Self {
        Self(vec!["*".to_owned()])
    }
}

impl FromStr for Selection {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.split(',').map(str::trim).filter(|w| !w.is_empty()).map(str::to_owned).collect()))
    }
}

impl Selection {
    /// Whether the controller of that name runs.
    pub fn includes(&self, name: &str) -> bool {
        let has = |wanted: &str| self.0.iter().any(|w| w == wanted);
        has(name) || (has("*") && !has(&format!("-{name}")))
    }

    /// Checks that every word names a controller.
    ///
    /// # Errors
    /// The first word that does not.
    pub fn check<'a>(&self, known: impl Iterator<Item = &'a str>) -> anyhow::Result<()> {
        let known: Vec<&str> = known.collect();
        for word in self.0.iter().filter(|w| *w != "*") {
            let name = word.trim_start_matches('-');
            if !known.contains(&name) {
                bail!("--controllers: {word:?} is not in the list of known controllers: {}", known.join(", "));
            }
        }
        Ok(())
    }
}

/// Flags of the controller manager.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Path to a kubeconfig file with the API server's address and our credentials.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Controllers to run: '*' for all, 'foo' for one, '-foo' for all but that one.
    #[arg(long, default_value = "*", allow_hyphen_values = true)]
    pub controllers: Selection,
    /// Networks for pods, separated by commas; each node gets a part.
    #[arg(long, value_delimiter = ',')]
    pub cluster_cidr: Vec<IpNet>,
    /// Networks of Services, separated by commas.
    #[arg(long, value_delimiter = ',')]
    pub service_cluster_ip_range: Vec<IpNet>,
    /// Give nodes their pod networks from --cluster-cidr.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub allocate_node_cidrs: bool,
    /// Prefix length of a node's IPv4 pod network.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub node_cidr_mask_size_ipv4: u8,
    /// Prefix length of a node's IPv6 pod network.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u8).range(1..=128))]
    pub node_cidr_mask_size_ipv6: u8,
    /// File with the certificate that signs certificate requests.
    #[arg(long, requires = "cluster_signing_key_file")]
    pub cluster_signing_cert_file: Option<PathBuf>,
    /// File with the key that signs certificate requests.
    #[arg(long, requires = "cluster_signing_cert_file")]
    pub cluster_signing_key_file: Option<PathBuf>,
    /// Approve kubelets' requests for serving certificates whose names are their node's addresses.
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub auto_approve_kubelet_serving: bool,
    /// File with the certificates that clients in the cluster trust the API server by.
    #[arg(long)]
    pub root_ca_file: Option<PathBuf>,
    /// Seconds that a node may be silent before it counts as unreachable.
    #[arg(long, default_value = "50s", value_parser = seconds)]
    pub node_monitor_grace_period: Duration,
    /// Finished pods that may exist before the oldest are deleted; 0 for any number.
    #[arg(long, default_value_t = 12_500)]
    pub terminated_pod_gc_threshold: usize,
    /// Elect a leader before doing work, so that several instances may run.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub leader_elect: bool,
    /// Name of the lease that leaders hold.
    #[arg(long, default_value = "kube-controller-manager")]
    pub leader_elect_resource_name: String,
    /// Namespace of the lease that leaders hold.
    #[arg(long, default_value = "kube-system")]
    pub leader_elect_resource_namespace: String,
}

/// A duration of whole seconds, minutes or hours as Go writes it.
fn seconds(text: &str) -> Result<Duration, String> {
    let complain = || format!("{text:?} is not a duration such as 50s or 1m30s");
    let mut total = 0u64;
    let mut number = String::new();
    for letter in text.chars() {
        let unit = match letter {
            '0'..='9' => {
                number.push(letter);
                continue;
            }
            's' => 1,
            'm' => 60,
            'h' => 3600,
            _ => return Err(complain()),
        };
        let count: u64 = std::mem::take(&mut number).parse().map_err(|_| complain())?;
        total = count.checked_mul(unit).and_then(|s| s.checked_add(total)).ok_or_else(complain)?;
    }
    if number.is_empty() && total > 0 { Ok(Duration::from_secs(total)) } else { Err(complain()) }
}

impl Options {
    /// The configuration that these flags give.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn config(&self) -> anyhow::Result<ControllersConfig> {
        let read = |flag: &str, path: &Option<PathBuf>| {
            let read =
                |path: &PathBuf| std::fs::read_to_string(path).with_context(|| format!("{flag} {}", path.display()));
            path.as_ref().map(read).transpose()
        };
        let cert = read("--cluster-signing-cert-file", &self.cluster_signing_cert_file)?;
        let key = read("--cluster-signing-key-file", &self.cluster_signing_key_file)?;
        let mut cidrs = self.cluster_cidr.iter().copied().filter(|_| self.allocate_node_cidrs);
        Ok(ControllersConfig {
            controllers: self.controllers.clone(),
            cluster_cidr: cidrs.next(),
            second_cluster_cidr: cidrs.next(),
            service_cidr: self.service_cluster_ip_range.first().copied(),
            node_mask_v4: self.node_cidr_mask_size_ipv4,
            node_mask_v6: self.node_cidr_mask_size_ipv6,
            signing_ca: cert.zip(key),
            auto_approve_kubelet_serving: self.auto_approve_kubelet_serving,
            root_ca_pem: read("--root-ca-file", &self.root_ca_file)?,
            node_monitor_grace_period: self.node_monitor_grace_period,
            terminated_pod_threshold: self.terminated_pod_gc_threshold,
            ..ControllersConfig::default()
        })
    }

    /// Runs after these flags until cancelled, all controllers under the kubeconfig's one identity.
    ///
    /// # Errors
    /// A file cannot be used, or the lease was lost.
    pub async fn run(self, cancel: CancellationToken) -> anyhow::Result<()> {
        let config = self.config()?;
        let client = bosun_kit::client::from_kubeconfig_or_cluster(self.kubeconfig.as_deref()).await?;
        let same = client.clone();
        let clients = move |_: &str| same.clone();
        if !self.leader_elect {
            return crate::run(clients, config, cancel).await;
        }
        let election = LeaderElection::new(&self.leader_elect_resource_namespace, &self.leader_elect_resource_name);
        election.run(client, cancel, |cancel| crate::run(clients, config, cancel)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(text: &str) -> Selection {
        text.parse().unwrap_or_default()
    }

    #[test]
    fn selections() {
        assert!(selection("*").includes("a"));
        assert!(!selection("*,-a").includes("a"));
        assert!(selection("b").includes("b"));
        assert!(!selection("b").includes("a"));
        assert!(selection("*,-nope").check(["a"].into_iter()).is_err());
    }

    #[test]
    fn durations() {
        assert_eq!(seconds("1m30s"), Ok(Duration::from_secs(90)));
        assert!(seconds("50").is_err());
        assert!(seconds("").is_err());
    }
}
