//! The certificate that :10250 shows: from files, by CSR (`serverTLSBootstrap`), or signed by ourselves.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bosun_kit::backoff::Backoff;
use bosun_kit::pki::{self, PkiError};
use bosun_kit::tls::{self, ReloadingCert, TlsError};
use jiff::Timestamp;
use kube::Client;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::csr::{self, Wanted};
use crate::identity::{rotation_time, sleep_until, subject};
use crate::store::CertificateStore;

const SIGNER: &str = "kubernetes.io/kubelet-serving";
const USAGES: &[&str] = &["digital signature", "key encipherment", "server auth"];
/// The life of a certificate that we sign ourselves.
const SELF_SIGNED_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

/// Why there is no serving certificate.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    /// The files cannot be used.
    #[error("serving certificate: {0}")]
    Tls(#[from] TlsError),
    /// It could not be made.
    #[error("serving certificate: {0}")]
    Pki(#[from] PkiError),
    /// It could not be kept.
    #[error("serving certificate: {0}")]
    Io(#[from] std::io::Error),
}

/// The certificate of `tlsCertFile` and `tlsPrivateKeyFile`, read again when they change.
///
/// # Errors
/// A file is missing or broken.
pub fn from_files(cert: &std::path::Path, key: &std::path::Path) -> Result<Arc<dyn ResolvesServerCert>, ServingError> {
    Ok(ReloadingCert::load(cert, key)?)
}

/// A certificate signed by ourselves, kept in `kubelet.crt` and `kubelet.key` of the certificate folder and used until
/// it expires or the node's addresses are others.
///
/// # Errors
/// It cannot be made or kept.
pub fn self_signed(
    cert_dir: &std::path::Path,
    hostname: &str,
    ips: &[IpAddr],
) -> Result<Arc<dyn ResolvesServerCert>, ServingError> {
    let (cert, key) = (cert_dir.join("kubelet.crt"), cert_dir.join("kubelet.key"));
    let sans = sans(hostname, ips);
    if !usable(&cert, &sans) {
        bosun_kit::files::create_dir(cert_dir, 0o755)?;
        let name = format!("{hostname}@{}", Timestamp::now().as_second());
        pki::self_signed(&name, &sans, SELF_SIGNED_LIFE)?.write(&cert, &key)?;
    }
    from_files(&cert, &key)
}

fn sans(hostname: &str, ips: &[IpAddr]) -> Vec<String> {
    let mut sans: Vec<String> = ips.iter().map(ToString::to_string).collect();
    if !sans.iter().any(|san| san == hostname) {
        sans.push(hostname.to_owned());
    }
    sans
}

/// Whether the certificate in the file holds for another while and names all of `sans`.
fn usable(cert: &std::path::Path, sans: &[String]) -> bool {
    let Some(leaf) = std::fs::read(cert).ok().and_then(|pem| tls::parse_certs(&pem).ok()?.into_iter().next()) else {
        return false;
    };
    let fresh = tls::validity(&leaf).is_some_and(|(_, until)| Timestamp::now().as_second() + 3600 < until);
    fresh && names(&leaf).is_some_and(|names| sans.iter().all(|san| names.contains(san)))
}

/// The addresses and names in a certificate.
fn names(leaf: &rustls::pki_types::CertificateDer<'_>) -> Option<Vec<String>> {
    use x509_parser::extensions::GeneralName;
    use x509_parser::prelude::{FromDer, X509Certificate};
    let (_, cert) = X509Certificate::from_der(leaf).ok()?;
    let extension = cert.subject_alternative_name().ok()??;
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
            _ => None,
        },
        _ => None,
    };
    Some(extension.value.general_names.iter().filter_map(name).collect())
}

/// A certificate by CSR (`kubernetes.io/kubelet-serving`), renewed before it expires and when the node's addresses
/// change. Until the first is issued, handshakes are refused, as stock does.
pub struct RequestedCert {
    node_name: String,
    store: CertificateStore,
    current: RwLock<Option<Arc<CertifiedKey>>>,
}

impl fmt::Debug for RequestedCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestedCert").field("node", &self.node_name).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for RequestedCert {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        if current.is_none() {
            tracing::warn!("no serving certificate available for the kubelet: its signing request is not approved yet");
        }
        current
    }
}

impl RequestedCert {
    /// With the certificate kept from an earlier run, if it is still good.
    pub fn new(node_name: impl Into<String>, cert_dir: impl Into<PathBuf>) -> Arc<Self> {
        let store = CertificateStore::new(cert_dir, "kubelet-server");
        let requested = Self { node_name: node_name.into(), store, current: RwLock::new(None) };
        requested.load();
        Arc::new(requested)
    }

    /// Whether a certificate is there to be shown.
    pub fn is_issued(&self) -> bool {
        self.current.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Takes the kept certificate; gives from when to when it holds and what it names.
    fn load(&self) -> Option<(Timestamp, Timestamp, Vec<String>)> {
        let pem = self.store.current().ok().flatten()?;
        let key = tls::certified_key(pem.as_bytes(), pem.as_bytes()).ok()?;
        let leaf = key.cert.first()?;
        let (from, until) = tls::validity(leaf)?;
        let (from, until) = (Timestamp::from_second(from).ok()?, Timestamp::from_second(until).ok()?);
        if until <= Timestamp::now() {
            return None;
        }
        let names = names(leaf).unwrap_or_default();
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(key));
        Some((from, until, names))
    }

    /// Asks for certificates until `cancel`. `sans` holds the node's addresses and name; nothing is asked for while it
    /// is empty.
    pub async fn keep_fresh(
        self: Arc<Self>,
        client: Client,
        mut sans: watch::Receiver<Vec<String>>,
        cancel: CancellationToken,
    ) {
        tokio::select! {
            () = self.rotate(client, &mut sans) => {}
            () = cancel.cancelled() => {}
        }
    }

    async fn rotate(&self, client: Client, sans: &mut watch::Receiver<Vec<String>>) {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(300));
        loop {
            let wanted = sans.borrow_and_update().clone();
            let covered = self.load().filter(|(_, _, names)| wanted.iter().all(|san| names.contains(san)));
            if wanted.is_empty() {
                if sans.changed().await.is_err() {
                    return;
                }
                continue;
            }
            if let Some((from, until, _)) = covered {
                let due = rotation_time(from, until);
                tokio::select! {
                    () = sleep_until(due) => {}
                    changed = sans.changed() => match changed {
                        Ok(()) => continue,
                        Err(_) => sleep_until(due).await,
                    },
                }
            }
            match self.request(&client, &wanted).await {
                Ok(()) => backoff.reset(),
                Err(error) => {
                    tracing::warn!(error, "serving certificate not issued; trying again");
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        }
    }

    async fn request(&self, client: &Client, sans: &[String]) -> Result<(), String> {
        let (cn, organizations) = subject(&self.node_name);
        let (csr_pem, key_pem) = pki::new_csr(&cn, &organizations, sans).map_err(|e| e.to_string())?;
        let wanted = Wanted { signer: SIGNER, usages: USAGES, csr_pem: &csr_pem, name: None };
        let name = csr::create(client, &wanted).await.map_err(|e| e.to_string())?;
        let issued = tokio::time::timeout(Duration::from_secs(900), csr::wait(client, &name)).await;
        let cert_pem = issued.map_err(|_| format!("{name} is not approved"))?.map_err(|e| e.to_string())?;
        tls::certified_key(cert_pem.as_bytes(), key_pem.as_bytes()).map_err(|e| e.to_string())?;
        self.store.update(&cert_pem, &key_pem, Timestamp::now()).map_err(|e| e.to_string())?;
        self.load();
        tracing::info!(csr = name, "serving certificate issued");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_of_our_own_is_kept_while_it_fits() {
        let folder = tempfile::tempdir().unwrap();
        let read = || std::fs::read(folder.path().join("kubelet.crt")).unwrap();
        let ips: [IpAddr; 1] = ["10.0.0.1".parse().unwrap()];
        self_signed(folder.path(), "node-1", &ips).unwrap();
        let first = read();
        let leaf = tls::parse_certs(&first).unwrap().remove(0);
        assert_eq!(names(&leaf).unwrap(), ["10.0.0.1", "node-1"]);
        self_signed(folder.path(), "node-1", &ips).unwrap();
        assert_eq!(read(), first);
        self_signed(folder.path(), "node-1", &["10.0.0.2".parse().unwrap()]).unwrap();
        assert_ne!(read(), first);
    }

    #[test]
    fn missing_files_are_named() {
        let error = from_files("/nowhere/tls.crt".as_ref(), "/nowhere/tls.key".as_ref()).unwrap_err();
        assert!(error.to_string().contains("/nowhere/tls"), "{error}");
    }
}
