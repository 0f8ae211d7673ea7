//! Flags, and what they come to.

use anyhow::{Context, bail};
use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

/// The flags.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Kubeconfig of the cluster; without it the pod's service account is used.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// The cluster's domain.
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Addresses to serve DNS at, by UDP and TCP.
    #[arg(long, value_delimiter = ',', default_value = "[::]:53")]
    pub listen: Vec<SocketAddr>,
    /// Upstream servers for names outside the cluster, ADDRESS or ADDRESS:PORT, or a file in the format of resolv.conf.
    #[arg(long, value_delimiter = ',', default_value = "/etc/resolv.conf")]
    pub forward: Vec<String>,
    /// Address of /health.
    #[arg(long, default_value = "[::]:8080")]
    pub health_address: SocketAddr,
    /// Address of /ready.
    #[arg(long, default_value = "[::]:8181")]
    pub ready_address: SocketAddr,
    /// Address of /metrics.
    #[arg(long, default_value = "[::]:9153")]
    pub metrics_address: SocketAddr,
}

/// What the flags come to.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the fields are the flags")]
pub struct Config {
    pub cluster_domain: String,
    pub listen: Vec<SocketAddr>,
    pub upstreams: Vec<SocketAddr>,
    pub health_address: SocketAddr,
    pub ready_address: SocketAddr,
    pub metrics_address: SocketAddr,
}

impl Options {
    /// Reads what the flags name.
    ///
    /// # Errors
    /// Names the flag and the value that is wrong.
    pub fn into_config(self) -> anyhow::Result<Config> {
        if self.listen.is_empty() {
            bail!("--listen: no address given");
        }
        let mut upstreams = Vec::new();
        for word in self.forward.iter().filter(|word| !word.is_empty()) {
            upstreams.extend(upstream(word).with_context(|| format!("--forward {word}"))?);
        }
        Ok(Config {
            upstreams: without_ourselves(upstreams, &self.listen),
            cluster_domain: self.cluster_domain,
            listen: self.listen,
            health_address: self.health_address,
            ready_address: self.ready_address,
            metrics_address: self.metrics_address,
        })
    }
}

const PORT: u16 = 53;

fn upstream(word: &str) -> anyhow::Result<Vec<SocketAddr>> {
    if let Ok(address) = word.parse::<SocketAddr>() {
        return Ok(vec![address]);
    }
    if let Ok(address) = word.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, PORT)]);
    }
    if !word.starts_with('/') {
        bail!("neither an address nor the path of a file");
    }
    let text = std::fs::read_to_string(Path::new(word)).context("read the upstream servers")?;
    Ok(nameservers(&text).collect())
}

fn nameservers(text: &str) -> impl Iterator<Item = SocketAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.trim().parse().ok())
        .map(|address| SocketAddr::new(address, PORT))
}

/// Drops servers that are this one, where a question would go round for ever.
fn without_ourselves(upstreams: Vec<SocketAddr>, listen: &[SocketAddr]) -> Vec<SocketAddr> {
    let is_ours = |upstream: &SocketAddr| {
        listen.iter().any(|ours| {
            let here = ours.ip() == upstream.ip() || (ours.ip().is_unspecified() && upstream.ip().is_loopback());
            here && ours.port() == upstream.port()
        })
    };
    let (ours, others): (Vec<_>, Vec<_>) = upstreams.into_iter().partition(is_ours);
    for address in ours {
        tracing::warn!(%address, "upstream server is this server itself; not used, name others by --forward");
    }
    others
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_come_from_addresses_and_files_but_not_from_ourselves() {
        assert_eq!(upstream("9.9.9.9").unwrap()[0].to_string(), "9.9.9.9:53");
        assert_eq!(upstream("[::1]:5353").unwrap()[0].to_string(), "[::1]:5353");
        assert!(upstream("nonsense").is_err());
        assert!(format!("{:#}", upstream("/no/such/file").unwrap_err()).contains("No such file"));
        let list: Vec<_> =
            nameservers("search a b\nnameserver 127.0.0.1\n nameserver 10.0.0.1\nnameserver x\n").collect();
        let left = without_ourselves(list.clone(), &["[::]:53".parse().unwrap()]);
        assert_eq!(left, [list[1]]);
        assert_eq!(without_ourselves(list, &["[::]:5353".parse().unwrap()]).len(), 2);
    }
}
