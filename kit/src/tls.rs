//! TLS configurations, reloadable serving certificates, and who a certificate says its holder is.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use thiserror::Error;
use x509_parser::prelude::{FromDer, X509Certificate};

mod policy;

pub use policy::TlsPolicy;

use crate::followed::Followed;

/// How often files of certificates are looked at for a change, at most.
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
    let verifier = client_ca.map(client_verifier).transpose()?;
    server_config_by(&TlsPolicy::default(), certs, verifier)
}

/// As [`server_config`], with what `policy` allows and a verifier of clients' certificates such as
/// [`ReloadingClientCa`].
///
/// # Errors
/// `policy` leaves nothing to agree on.
pub fn server_config_by(
    policy: &TlsPolicy,
    certs: Arc<dyn ResolvesServerCert>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
) -> Result<ServerConfig, TlsError> {
    let builder = ServerConfig::builder_with_provider(policy.provider())
        .with_protocol_versions(policy.versions())
        .map_err(|error| TlsError::Config(error.to_string()))?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(verifier) => builder.with_client_cert_verifier(verifier),
    };
    let mut config = builder.with_cert_resolver(certs);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn client_verifier(roots: RootCertStore) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| TlsError::Config(format!("client CA: {error}")))
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
#[derive(Debug)]
pub struct ReloadingCert(Followed<Arc<CertifiedKey>>);

impl ReloadingCert {
    /// Loads the pair.
    ///
    /// # Errors
    /// A file is missing or broken.
    pub fn load(cert: &Path, key: &Path) -> Result<Arc<Self>, TlsError> {
        let files = vec![cert.to_owned(), key.to_owned()];
        let followed = Followed::read(files, RELOAD_PERIOD, || read_pair(cert, key).map(Arc::new))?;
        Ok(Arc::new(Self(followed)))
    }
}

impl ResolvesServerCert for ReloadingCert {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let read = || match self.0.files() {
            [cert, key] => read_pair(cert, key).map(Arc::new),
            _ => Ok(self.0.value()),
        };
        Some(self.0.newest("serving certificate", read))
    }
}

/// The authorities of clients' certificates, kept in a file and read again when it changes, with no restart. As with
/// [`ReloadingCert`], a broken change is logged and the old authorities go on.
#[derive(Debug)]
pub struct ReloadingClientCa(Followed<Arc<dyn ClientCertVerifier>>);

impl ReloadingClientCa {
    /// Loads the file.
    ///
    /// # Errors
    /// It is missing or broken.
    pub fn load(file: &Path) -> Result<Arc<Self>, TlsError> {
        Self::looking_every(RELOAD_PERIOD, file)
    }

    fn looking_every(period: Duration, file: &Path) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self(Followed::read(vec![file.to_owned()], period, || read_ca(file))?)))
    }

    fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        let read = || self.0.files().first().map_or_else(|| Ok(self.0.value()), |file| read_ca(file));
        self.0.newest("client authorities", read)
    }
}

impl ClientCertVerifier for ReloadingClientCa {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// None: a client with one certificate shows it without being told who could have signed it.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verifier().verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

fn read_ca(file: &Path) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let pem = std::fs::read(file).map_err(|source| TlsError::Read { path: file.display().to_string(), source })?;
    client_verifier(roots(&pem)?)
}

fn read_pair(cert: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let read =
        |path: &Path| std::fs::read(path).map_err(|source| TlsError::Read { path: path.display().to_string(), source });
    certified_key(&read(cert)?, &read(key)?)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;
    use crate::pki::{CertificateAuthority, KeyedCert, LeafParams, Usage};

    fn issue(ca: &CertificateAuthority, usage: Usage) -> KeyedCert {
        let (sans, lifetime) = (vec!["127.0.0.1".to_owned()], Duration::from_secs(600));
        let params = LeafParams { cn: "n".into(), organizations: vec![], sans, usages: vec![usage], lifetime };
        ca.issue(&params).unwrap()
    }

    /// Whether the handshake succeeds, and what it agreed on.
    async fn handshake(server: ServerConfig, client: ClientConfig) -> Result<(u16, String), String> {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let accept = TlsAcceptor::from(Arc::new(server)).accept(far);
        let connect = TlsConnector::from(Arc::new(client)).connect("127.0.0.1".try_into().unwrap(), near);
        let (accepted, connected) = tokio::join!(accept, connect);
        accepted.map_err(|error| error.to_string())?;
        let stream = connected.map_err(|error| error.to_string())?;
        let (_, session) = stream.get_ref();
        let version = session.protocol_version().map(u16::from).unwrap();
        Ok((version, format!("{:?}", session.negotiated_cipher_suite().unwrap().suite())))
    }

    fn client(ca: &CertificateAuthority, identity: Option<&KeyedCert>, tls12: bool) -> ClientConfig {
        let identity = identity.map(|i| (i.cert_pem.as_bytes(), i.key_pem.as_bytes()));
        let roots = roots(ca.cert_pem().as_bytes()).unwrap();
        if !tls12 {
            return client_config(roots, identity).unwrap();
        }
        ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    }

    #[tokio::test]
    async fn handshakes_off_the_policy_are_refused() {
        let ca = CertificateAuthority::generate("ca").unwrap();
        let serving = issue(&ca, Usage::ServerAuth);
        let serving = FixedCert::new(serving.cert_pem.as_bytes(), serving.key_pem.as_bytes()).unwrap();
        let server = |min: &str, suites: &[&str]| {
            let suites: Vec<String> = suites.iter().map(|suite| (*suite).to_owned()).collect();
            server_config_by(&TlsPolicy::new(min, &suites, &[]).unwrap(), serving.clone(), None).unwrap()
        };
        let (aes128, aes256) = ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384");
        assert_eq!(handshake(server("", &[]), client(&ca, None, true)).await.unwrap().0, 0x0303);
        assert!(handshake(server("VersionTLS13", &[]), client(&ca, None, true)).await.is_err());
        assert_eq!(handshake(server("VersionTLS13", &[]), client(&ca, None, false)).await.unwrap().0, 0x0304);
        for only in [aes128, aes256] {
            assert_eq!(handshake(server("", &[only]), client(&ca, None, true)).await.unwrap().1, only);
        }
        // This server has no key for an RSA suite.
        let rsa = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256";
        assert!(handshake(server("", &[rsa]), client(&ca, None, true)).await.is_err());
    }

    #[tokio::test]
    async fn client_authorities_are_read_again_when_their_file_changes() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.crt");
        let (old, new) =
            (CertificateAuthority::generate("old").unwrap(), CertificateAuthority::generate("new").unwrap());
        std::fs::write(&file, old.cert_pem()).unwrap();
        let serving = issue(&old, Usage::ServerAuth);
        let serving = FixedCert::new(serving.cert_pem.as_bytes(), serving.key_pem.as_bytes()).unwrap();
        let clients = ReloadingClientCa::looking_every(Duration::ZERO, &file).unwrap();
        let server = server_config_by(&TlsPolicy::default(), serving, Some(clients)).unwrap();
        let enter = async |ca: &CertificateAuthority| {
            handshake(server.clone(), client(&old, Some(&issue(ca, Usage::ClientAuth)), false)).await.is_ok()
        };
        let later = |seconds| {
            let time = SystemTime::now() + Duration::from_secs(seconds);
            std::fs::File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
        };
        assert!(enter(&old).await && !enter(&new).await);
        std::fs::write(&file, "no certificate").unwrap();
        later(1);
        assert!(enter(&old).await, "a broken change is passed over");
        std::fs::write(&file, new.cert_pem()).unwrap();
        later(2);
        assert!(enter(&new).await && !enter(&old).await);
    }
}
