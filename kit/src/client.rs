//! The API client: from a kubeconfig, and kubeconfigs for others.

mod following;

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;

pub use following::Following;

/// How long dialling and one answer may take. Watches are streams: their bound is the server's own.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
const WRITE_DEADLINE: Duration = Duration::from_secs(30);

/// A client after the kubeconfig at `path`. Certificates that it names as files may be replaced while it is in use.
///
/// # Errors
/// The file is missing or broken (the text names it and the field), or its TLS material is.
pub async fn from_kubeconfig(path: &Path) -> anyhow::Result<Client> {
    Ok(Following::load(path).await?.client())
}

/// The client configuration of the kubeconfig at `path`, with our deadlines.
///
/// # Errors
/// As [`from_kubeconfig`].
pub async fn config_from_kubeconfig(path: &Path) -> anyhow::Result<Config> {
    let name = || format!("kubeconfig {}", path.display());
    let kubeconfig = Kubeconfig::read_from(path).with_context(name)?;
    let mut config =
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.with_context(name)?;
    config.connect_timeout = Some(CONNECT_DEADLINE);
    config.write_timeout = Some(WRITE_DEADLINE);
    config.read_timeout = None;
    Ok(config)
}

/// A client from the kubeconfig, or, without one, from the service account of the pod we run in.
///
/// # Errors
/// Neither is there.
pub async fn from_kubeconfig_or_cluster(path: Option<&Path>) -> anyhow::Result<Client> {
    match path {
        Some(path) => from_kubeconfig(path).await,
        None => {
            let config =
                Config::incluster().context("no --kubeconfig, and no service account of a pod to use instead")?;
            Ok(Client::try_from(config)?)
        }
    }
}

/// How the holder of a kubeconfig shows who they are.
pub enum Credential<'a> {
    /// By a client certificate: its text and its key's.
    Certificate {
        /// PEM.
        cert_pem: &'a str,
        /// PEM.
        key_pem: &'a str,
    },
    /// By a client certificate in files that may be replaced (the kubelet's rotation).
    CertificateFiles {
        /// Path.
        cert: &'a Path,
        /// Path.
        key: &'a Path,
    },
    /// By a bearer token.
    Token(&'a str),
}

/// A kubeconfig with one cluster, one user and one context, all named as given.
pub fn kubeconfig_yaml(name: &str, server: &str, ca_pem: &str, user: &str, credential: &Credential<'_>) -> String {
    let credential = match credential {
        Credential::Certificate { cert_pem, key_pem } => json!({
            "client-certificate-data": STANDARD.encode(cert_pem),
            "client-key-data": STANDARD.encode(key_pem),
        }),
        Credential::CertificateFiles { cert, key } => json!({"client-certificate": cert, "client-key": key}),
        Credential::Token(token) => json!({"token": token}),
    };
    let context = format!("{user}@{name}");
    let document = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": name,
            "cluster": {"server": server, "certificate-authority-data": STANDARD.encode(ca_pem)},
        }],
        "users": [{"name": user, "user": credential}],
        "contexts": [{"name": context, "context": {"cluster": name, "user": user}}],
        "current-context": context,
    });
    serde_yaml_ng::to_string(&document).expect("a document of strings is always YAML")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_we_write_we_read() {
        let ca = crate::pki::CertificateAuthority::generate("ca").unwrap();
        let text = kubeconfig_yaml("bosun", "https://127.0.0.1:6443", ca.cert_pem(), "me", &Credential::Token("t"));
        let kubeconfig = Kubeconfig::from_yaml(&text).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        assert_eq!(config.cluster_url.to_string(), "https://127.0.0.1:6443/");
        assert_eq!(config.root_cert.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_missing_file_is_named() {
        let error = config_from_kubeconfig(Path::new("/nowhere/config")).await.unwrap_err();
        assert!(format!("{error:#}").contains("/nowhere/config"), "{error:#}");
    }
}
