//! TLS configurations, reloadable serving certificates, and who a certificate says its holder is.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use thiserror::Error;
use x509_parser::prelude::{FromDer, X509Certificate};

/// How often a serving certificate's files are looked at for a change, at most.
const RELOAD_PERIOD: Duration = Duration::from_secs(10);

/// Why TLS material was refused.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file could not be read.
    #[error("read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text holds no certificate or key.
    #[error("{0}")]
    Pem(String),
    /// The pieces do not fit together.
    #[error("{0}")]
    Config(String),
}

/// A user as a client certificate names them (CN and O).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Common name.
    pub user: String,
    /// Organizations.
    pub groups: Vec<String>,
}

/// Makes ring the process's cryptography; call it first in `main`. A second call changes nothing.
pub fn install_crypto() {
    let _ = ring::default_provider().install_default();
}

fn provider() -> Arc<CryptoProvider> {
    CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(ring::default_provider()))
}

/// The certificates in PEM text, at least one.
///
/// # Errors
/// None in it, or a broken one.
pub fn parse_certs(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certs: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| TlsError::Pem(format!("parse certificate: {error}")))?;
    match certs.is_empty() {
        true => Err(TlsError::Pem("no certificate in PEM data".to_owned())),
        false => Ok(certs),
    }
}

/// The authorities in PEM text.
///
/// # Errors
/// None in it, or a broken one.
pub fn roots(pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for cert in parse_certs(pem)? {
        store.add(cert).map_err(|error| TlsError::Pem(format!("parse CA certificate: {error}")))?;
    }
    Ok(store)
}

/// A certificate chain and its private key, ready for use.
///
/// # Errors
/// Either is broken, or the key is not the certificate's.
pub fn certified_key(cert_pem: &[u8], key_pem: &[u8]) -> Result<CertifiedKey, TlsError> {
    let certs = parse_certs(cert_pem)?;
    let key =
        PrivateKeyDer::from_pem_slice(key_pem).map_err(|error| TlsError::Pem(format!("parse private key: {error}")))?;
    CertifiedKey::from_der(certs, key, &provider()).map_err(|error| TlsError::Config(format!("load key pair: {error}")))
}

/// A server's configuration: HTTP/2 and HTTP/1.1; with `client_ca`, a client's certificate is taken and verified when
/// one is presented, and none is asked for otherwise.
///
/// # Errors
/// `client_ca` is empty.
pub fn server_config(
    certs: Arc<dyn ResolvesServerCert>,
    client_ca: Option<RootCertStore>,
) -> Result<ServerConfig, TlsError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Config(error.to_string()))?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
                .allow_unauthenticated()
                .build()
                .map_err(|error| TlsError::Config(format!("client CA: {error}")))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_cert_resolver(certs);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// A client's configuration: trusts `roots`, shows `identity` (certificate and key, PEM) when there is one.
///
/// # Errors
/// The identity is broken.
pub fn client_config(roots: RootCertStore, identity: Option<(&[u8], &[u8])>) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Config(error.to_string()))?
        .with_root_certificates(roots);
    let Some((cert, key)) = identity else { return Ok(builder.with_no_client_auth()) };
    let key =
        PrivateKeyDer::from_pem_slice(key).map_err(|error| TlsError::Pem(format!("parse private key: {error}")))?;
    builder.with_client_auth_cert(parse_certs(cert)?, key).map_err(|error| TlsError::Config(error.to_string()))
}

/// A client's configuration that encrypts and takes any certificate: for peers whose identity is not the question, such
/// as a probed pod, or is settled otherwise, such as by a hash. Whoever shows a certificate must still hold its key.
pub fn unverified_client_config() -> ClientConfig {
    let provider = provider();
    ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("ring speaks the default protocol versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth()
}

#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Who the certificate's holder is; none without a common name.
pub fn identity(cert: &CertificateDer<'_>) -> Option<Identity> {
    let (_, cert) = X509Certificate::from_der(cert).ok()?;
    let user = cert.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = cert.subject().iter_organization().filter_map(|o| o.as_str().ok().map(str::to_owned)).collect();
    Some(Identity { user, groups })
}

/// From when to when a certificate holds, in seconds since the epoch.
pub fn validity(cert: &CertificateDer<'_>) -> Option<(i64, i64)> {
    let (_, cert) = X509Certificate::from_der(cert).ok()?;
    Some((cert.validity().not_before.timestamp(), cert.validity().not_after.timestamp()))
}

/// A serving certificate that never changes.
#[derive(Debug)]
pub struct FixedCert(Arc<CertifiedKey>);

impl FixedCert {
    /// Serves this certificate and key (PEM).
    ///
    /// # Errors
    /// As [`certified_key`].
    pub fn new(cert_pem: &[u8], key_pem: &[u8]) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self(Arc::new(certified_key(cert_pem, key_pem)?))))
    }
}

impl ResolvesServerCert for FixedCert {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

/// A serving certificate kept in two files and read again when they change, with no restart. The files are looked at
/// when a client comes, at most every few seconds; a broken change is logged and the old certificate goes on.
pub struct ReloadingCert {
    cert: PathBuf,
    key: PathBuf,
    current: Mutex<Loaded>,
}

struct Loaded {
    key: Arc<CertifiedKey>,
    stamp: Option<SystemTime>,
    looked: Instant,
}

impl fmt::Debug for ReloadingCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReloadingCert").field("cert", &self.cert).finish_non_exhaustive()
    }
}

impl ReloadingCert {
    /// Loads the pair.
    ///
    /// # Errors
    /// A file is missing or broken.
    pub fn load(cert: &Path, key: &Path) -> Result<Arc<Self>, TlsError> {
        let loaded = Loaded { key: Arc::new(read_pair(cert, key)?), stamp: stamp(cert), looked: Instant::now() };
        Ok(Arc::new(Self { cert: cert.to_owned(), key: key.to_owned(), current: Mutex::new(loaded) }))
    }
}

impl ResolvesServerCert for ReloadingCert {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.looked.elapsed() >= RELOAD_PERIOD {
            current.looked = Instant::now();
            let now = stamp(&self.cert);
            if now != current.stamp {
                match read_pair(&self.cert, &self.key) {
                    Ok(key) => {
                        current.key = Arc::new(key);
                        current.stamp = now;
                        tracing::info!(cert = %self.cert.display(), "serving certificate reloaded");
                    }
                    Err(error) => tracing::warn!(%error, "serving certificate not reloaded; the old one goes on"),
                }
            }
        }
        Some(current.key.clone())
    }
}

fn stamp(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|meta| meta.modified()).ok()
}

fn read_pair(cert: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let read =
        |path: &Path| std::fs::read(path).map_err(|source| TlsError::Read { path: path.display().to_string(), source });
    certified_key(&read(cert)?, &read(key)?)
}
