//! The cluster's own certificates, kept under the server's data folder and made when they are missing.
//!
//! ```text
//! <data-dir>/pki/ca.{crt,key}                         signs every client and serving certificate of the cluster
//! <data-dir>/pki/apiserver.{crt,key}                  the API server's, with the CA behind it in the same file
//! <data-dir>/pki/apiserver-kubelet-client.{crt,key}   what the API server shows to kubelets
//! <data-dir>/pki/admin.{crt,key}                      group system:masters, for the admin's kubeconfig
//! <data-dir>/pki/sa.{key,pub}                         signs service-account tokens
//! ```

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use bosun_kit::files::{create_dir, write_atomic};
use bosun_kit::pki::{CertificateAuthority, LeafParams, Usage, new_signing_key};
use bosun_kit::tls;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// How long the cluster's own leaf certificates hold.
const LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// One that ends sooner than this is made anew at start.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);

/// A certificate's two files.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    /// The certificate.
    pub(crate) cert: PathBuf,
    /// Its key, mode 0600.
    pub(crate) key: PathBuf,
}

/// The cluster's certificates.
pub(crate) struct ClusterPki {
    /// The cluster's authority.
    pub(crate) ca: Pair,
    /// The authority's certificate, as text.
    pub(crate) ca_pem: String,
    /// The API server's serving pair.
    pub(crate) apiserver: Pair,
    /// The API server's pair as a client of kubelets.
    pub(crate) kubelet_client: Pair,
    /// The administrator's pair.
    pub(crate) admin: Pair,
    /// The key that signs service-account tokens, and its public half.
    pub(crate) service_account: Pair,
}

impl ClusterPki {
    /// Opens the certificates under `folder`, making what is missing, ends soon, or lacks one of `names`.
    ///
    /// # Errors
    /// A file cannot be read, parsed or written.
    pub(crate) fn open(folder: &Path, names: &BTreeSet<String>) -> Result<Self> {
        create_dir(folder, 0o700)?;
        let pair =
            |name: &str| Pair { cert: folder.join(format!("{name}.crt")), key: folder.join(format!("{name}.key")) };
        let ca_files = pair("ca");
        let ca = CertificateAuthority::load_or_generate(&ca_files.cert, &ca_files.key, "kubernetes")?;
        let pki = Self {
            ca_pem: ca.cert_pem().to_owned(),
            ca: ca_files,
            apiserver: pair("apiserver"),
            kubelet_client: pair("apiserver-kubelet-client"),
            admin: pair("admin"),
            service_account: Pair { cert: folder.join("sa.pub"), key: folder.join("sa.key") },
        };
        let server = |cn: &str, sans: Vec<String>| leaf(cn, "", sans, Usage::ServerAuth);
        let client = |cn: &str, group: &str| leaf(cn, group, Vec::new(), Usage::ClientAuth);
        ensure(&ca, &pki.apiserver, &server("kube-apiserver", names.iter().cloned().collect()))?;
        ensure(&ca, &pki.kubelet_client, &client("kube-apiserver-kubelet-client", "system:masters"))?;
        ensure(&ca, &pki.admin, &client("kubernetes-admin", "system:masters"))?;
        ensure_signing_key(&pki.service_account)?;
        Ok(pki)
    }
}

fn leaf(cn: &str, group: &str, sans: Vec<String>, usage: Usage) -> LeafParams {
    let organizations = if group.is_empty() { Vec::new() } else { vec![group.to_owned()] };
    LeafParams { cn: cn.to_owned(), organizations, sans, usages: vec![usage], lifetime: LIFETIME }
}

fn ensure(ca: &CertificateAuthority, pair: &Pair, leaf: &LeafParams) -> Result<()> {
    if holds(ca, pair, leaf) {
        return Ok(());
    }
    let mut issued = ca.issue(leaf).with_context(|| format!("certificate {}", pair.cert.display()))?;
    if leaf.usages.contains(&Usage::ServerAuth) {
        // A joining node reads the authority from the handshake and checks it against the hash in its token.
        issued.cert_pem += ca.cert_pem();
    }
    issued.write(&pair.cert, &pair.key)?;
    tracing::info!(cert = %pair.cert.display(), "certificate made");
    Ok(())
}

/// Whether the certificate kept is still good for what is asked of it.
fn holds(ca: &CertificateAuthority, pair: &Pair, leaf: &LeafParams) -> bool {
    let (Ok(cert_pem), Ok(key_pem)) = (std::fs::read(&pair.cert), std::fs::read(&pair.key)) else { return false };
    let Ok(certs) = tls::parse_certs(&cert_pem) else { return false };
    let Ok(authority) = tls::parse_certs(ca.cert_pem().as_bytes()) else { return false };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let lasts = tls::validity(&certs[0]).is_some_and(|(_, end)| end > (now + RENEW_BEFORE).as_secs() as i64);
    lasts && tls::certified_key(&cert_pem, &key_pem).is_ok() && signed_with_names(&certs[0], &authority[0], &leaf.sans)
}

fn signed_with_names(cert: &[u8], authority: &[u8], sans: &[String]) -> bool {
    let (Ok((_, cert)), Ok((_, authority))) = (X509Certificate::from_der(cert), X509Certificate::from_der(authority))
    else {
        return false;
    };
    if cert.verify_signature(Some(authority.public_key())).is_err() {
        return false;
    }
    let Ok(extension) = cert.subject_alternative_name() else { return false };
    let names = extension.map(|e| e.value.general_names.as_slice()).unwrap_or_default();
    let has = |wanted: &String| {
        names.iter().any(|name| match name {
            GeneralName::DNSName(dns) => dns == wanted,
            GeneralName::IPAddress(bytes) => address(bytes).is_some_and(|ip| ip == *wanted),
            _ => false,
        })
    };
    sans.iter().all(has)
}

fn address(bytes: &[u8]) -> Option<String> {
    match bytes.len() {
        4 => Some(std::net::Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).to_string()),
        16 => Some(std::net::Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_string()),
        _ => None,
    }
}

fn ensure_signing_key(pair: &Pair) -> Result<()> {
    if pair.key.exists() && pair.cert.exists() {
        return Ok(());
    }
    let (private, public) = new_signing_key()?;
    write_atomic(&pair.key, private.as_bytes(), 0o600)?;
    write_atomic(&pair.cert, public.as_bytes(), 0o644)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(|&n| n.to_owned()).collect()
    }

    #[test]
    fn what_holds_is_kept_and_a_new_name_renews_only_the_server() {
        let folder = std::env::temp_dir().join(format!("bosun-pki-{}", std::process::id()));
        let read = |pair: &Pair| std::fs::read(&pair.cert).unwrap();
        let first = ClusterPki::open(&folder, &names(&["127.0.0.1", "kubernetes"])).unwrap();
        let (server, admin) = (read(&first.apiserver), read(&first.admin));
        let second = ClusterPki::open(&folder, &names(&["127.0.0.1", "kubernetes"])).unwrap();
        assert_eq!(read(&second.apiserver), server);
        let third = ClusterPki::open(&folder, &names(&["127.0.0.1", "10.0.0.1", "kubernetes"])).unwrap();
        assert_ne!(read(&third.apiserver), server);
        assert_eq!(read(&third.admin), admin);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
