//! Certificates made here: a certificate authority, leaf certificates, signing requests.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use thiserror::Error;
use time::OffsetDateTime;

use crate::files::write_atomic;

/// How long a certificate authority of ours lives.
const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// How far back a certificate's start lies, for clocks that go after ours.
const BACKDATE: Duration = Duration::from_secs(300);

/// Why a certificate could not be made or read.
#[derive(Debug, Error)]
pub enum PkiError {
    /// The key or certificate could not be made or parsed.
    #[error("{what}: {source}")]
    Crypto {
        /// What was tried.
        what: String,
        /// What the library said.
        source: rcgen::Error,
    },
    /// A file could not be read or written.
    #[error("{what}: {source}")]
    File {
        /// What was tried, with the path.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A subject alternative name that is neither an address nor a DNS name.
    #[error("subject alternative name {0:?} is neither an IP address nor a DNS name")]
    San(String),
}

fn crypto(what: impl Into<String>) -> impl FnOnce(rcgen::Error) -> PkiError {
    let what = what.into();
    move |source| PkiError::Crypto { what, source }
}

/// What a certificate may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// To show who a client is.
    ClientAuth,
    /// To show who a server is.
    ServerAuth,
}

/// What a leaf certificate says.
#[derive(Clone, Debug)]
pub struct LeafParams {
    /// The common name: a user's name, for a client.
    pub cn: String,
    /// The organizations: a user's groups, for a client.
    pub organizations: Vec<String>,
    /// IP addresses and DNS names.
    pub sans: Vec<String>,
    /// What it is for.
    pub usages: Vec<Usage>,
    /// How long it holds from now on.
    pub lifetime: Duration,
}

/// A certificate with its private key.
#[derive(Clone)]
pub struct KeyedCert {
    /// The certificate.
    pub cert_pem: String,
    /// Its private key (PKCS #8).
    pub key_pem: String,
}

impl KeyedCert {
    /// Writes both: the certificate with mode 0644, the key with 0600.
    ///
    /// # Errors
    /// A file could not be written.
    pub fn write(&self, cert: &Path, key: &Path) -> Result<(), PkiError> {
        let file = |path: &Path| {
            let what = format!("keep {}", path.display());
            move |source| PkiError::File { what, source }
        };
        write_atomic(key, self.key_pem.as_bytes(), 0o600).map_err(file(key))?;
        write_atomic(cert, self.cert_pem.as_bytes(), 0o644).map_err(file(cert))
    }
}

/// A certificate authority: a certificate that signs others.
pub struct CertificateAuthority {
    cert_pem: String,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl CertificateAuthority {
    /// A new, self-signed authority (ECDSA P-256, ten years).
    ///
    /// # Errors
    /// No randomness for a key.
    pub fn generate(cn: &str) -> Result<Self, PkiError> {
        let key = KeyPair::generate().map_err(crypto("generate CA key"))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(cn, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::KeyCertSign];
        (params.not_before, params.not_after) = validity(CA_LIFETIME);
        let cert = params.self_signed(&key).map_err(crypto("sign CA certificate"))?;
        Self::load(&cert.pem(), &key.serialize_pem())
    }

    /// The authority of this certificate and key.
    ///
    /// # Errors
    /// Either is no PEM of its kind.
    pub fn load(cert_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        let key = KeyPair::from_pem(key_pem).map_err(crypto("parse CA key"))?;
        let issuer = Issuer::from_ca_cert_pem(cert_pem, key).map_err(crypto("parse CA certificate"))?;
        Ok(Self { cert_pem: cert_pem.to_owned(), key_pem: key_pem.to_owned(), issuer })
    }

    /// The authority kept in these two files, made and kept there if neither exists.
    ///
    /// # Errors
    /// The files cannot be read, parsed or written.
    pub fn load_or_generate(cert: &Path, key: &Path, cn: &str) -> Result<Self, PkiError> {
        let read = |path: &Path| {
            let what = format!("read {}", path.display());
            std::fs::read_to_string(path).map_err(move |source| PkiError::File { what, source })
        };
        if cert.exists() || key.exists() {
            return Self::load(&read(cert)?, &read(key)?);
        }
        let ca = Self::generate(cn)?;
        KeyedCert { cert_pem: ca.cert_pem.clone(), key_pem: ca.key_pem.clone() }.write(cert, key)?;
        Ok(ca)
    }

    /// Its certificate.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// Makes a key and a certificate for it.
    ///
    /// # Errors
    /// A name that cannot stand in a certificate.
    pub fn issue(&self, leaf: &LeafParams) -> Result<KeyedCert, PkiError> {
        let key = KeyPair::generate().map_err(crypto("generate key"))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(&leaf.cn, &leaf.organizations);
        params.subject_alt_names = leaf.sans.iter().map(|san| parse_san(san)).collect::<Result<_, _>>()?;
        apply_usages(&mut params, &leaf.usages);
        (params.not_before, params.not_after) = validity(leaf.lifetime);
        let cert = params.signed_by(&key, &self.issuer).map_err(crypto(format!("sign certificate of {}", leaf.cn)))?;
        Ok(KeyedCert { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }

    /// Signs a request as it stands: its subject and names, our usages and lifetime. Whether it may be signed is the
    /// caller's question.
    ///
    /// # Errors
    /// The request is no PKCS #10 PEM, or asks for an extension we do not know.
    pub fn sign_csr(&self, csr_pem: &str, usages: &[Usage], lifetime: Duration) -> Result<String, PkiError> {
        let mut request =
            CertificateSigningRequestParams::from_pem(csr_pem).map_err(crypto("parse signing request"))?;
        apply_usages(&mut request.params, usages);
        (request.params.not_before, request.params.not_after) = validity(lifetime);
        request.params.is_ca = IsCa::NoCa;
        request.params.use_authority_key_identifier_extension = true;
        let cert = request.signed_by(&self.issuer).map_err(crypto("sign request"))?;
        Ok(cert.pem())
    }
}

/// A self-signed serving certificate, for a server that nobody has issued one to yet.
///
/// # Errors
/// A name that cannot stand in a certificate.
pub fn self_signed(cn: &str, sans: &[String], lifetime: Duration) -> Result<KeyedCert, PkiError> {
    let key = KeyPair::generate().map_err(crypto("generate key"))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(cn, &[]);
    params.subject_alt_names = sans.iter().map(|san| parse_san(san)).collect::<Result<_, _>>()?;
    apply_usages(&mut params, &[Usage::ServerAuth]);
    (params.not_before, params.not_after) = validity(lifetime);
    let cert = params.self_signed(&key).map_err(crypto("sign certificate"))?;
    Ok(KeyedCert { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
}

/// A new key and a signing request for it: `(request, key)`, both PEM.
///
/// # Errors
/// A name that cannot stand in a request.
pub fn new_csr(cn: &str, organizations: &[String], sans: &[String]) -> Result<(String, String), PkiError> {
    let key = KeyPair::generate().map_err(crypto("generate key"))?;
    let csr = csr_for_key(&key.serialize_pem(), cn, organizations, sans)?;
    Ok((csr, key.serialize_pem()))
}

/// A signing request for a key that exists.
///
/// # Errors
/// The key is no PEM, or a name cannot stand in a request.
pub fn csr_for_key(key_pem: &str, cn: &str, organizations: &[String], sans: &[String]) -> Result<String, PkiError> {
    let key = KeyPair::from_pem(key_pem).map_err(crypto("parse key"))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(cn, organizations);
    params.subject_alt_names = sans.iter().map(|san| parse_san(san)).collect::<Result<_, _>>()?;
    let csr = params.serialize_request(&key).map_err(crypto("make signing request"))?;
    csr.pem().map_err(crypto("encode signing request"))
}

/// A new key pair for signing service-account tokens (ECDSA P-256): `(private, public)`, both PEM.
///
/// # Errors
/// No randomness for a key.
pub fn new_signing_key() -> Result<(String, String), PkiError> {
    let key = KeyPair::generate().map_err(crypto("generate signing key"))?;
    Ok((key.serialize_pem(), key.public_key_pem()))
}

fn subject(cn: &str, organizations: &[String]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    // rcgen keeps one value a type; several organizations become one certificate entry each by distinct pushes of
    // custom types, which it cannot do: every certificate of ours has one organization at most.
    if let Some(organization) = organizations.first() {
        name.push(DnType::OrganizationName, organization.as_str());
    }
    name.push(DnType::CommonName, cn);
    name
}

fn parse_san(san: &str) -> Result<SanType, PkiError> {
    if let Ok(ip) = san.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(ip));
    }
    san.to_owned().try_into().map(SanType::DnsName).map_err(|_| PkiError::San(san.to_owned()))
}

fn apply_usages(params: &mut CertificateParams, usages: &[Usage]) {
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = usages
        .iter()
        .map(|usage| match usage {
            Usage::ClientAuth => ExtendedKeyUsagePurpose::ClientAuth,
            Usage::ServerAuth => ExtendedKeyUsagePurpose::ServerAuth,
        })
        .collect();
    params.use_authority_key_identifier_extension = true;
}

fn validity(lifetime: Duration) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now - BACKDATE, now + lifetime)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls;

    fn leaf(cn: &str) -> LeafParams {
        LeafParams {
            cn: cn.into(),
            organizations: vec!["system:nodes".into()],
            sans: vec!["10.0.0.1".into(), "node-1".into()],
            usages: vec![Usage::ClientAuth],
            lifetime: Duration::from_secs(3600),
        }
    }

    #[test]
    fn an_issued_certificate_names_its_user() {
        let ca = CertificateAuthority::generate("test-ca").unwrap();
        let issued = ca.issue(&leaf("system:node:node-1")).unwrap();
        let certs = tls::parse_certs(issued.cert_pem.as_bytes()).unwrap();
        let identity = tls::identity(&certs[0]).unwrap();
        assert_eq!(identity.user, "system:node:node-1");
        assert_eq!(identity.groups, ["system:nodes"]);
    }

    #[test]
    fn a_request_is_signed_as_it_stands() {
        let ca = CertificateAuthority::generate("test-ca").unwrap();
        let (csr, _key) = new_csr("system:node:a", &["system:nodes".into()], &["10.0.0.1".into()]).unwrap();
        let cert = ca.sign_csr(&csr, &[Usage::ServerAuth], Duration::from_secs(60)).unwrap();
        let certs = tls::parse_certs(cert.as_bytes()).unwrap();
        assert_eq!(tls::identity(&certs[0]).unwrap().user, "system:node:a");
        assert!(ca.sign_csr("no pem", &[], Duration::ZERO).is_err());
    }

    #[test]
    fn a_kept_authority_is_found_again() {
        let folder = std::env::temp_dir().join(format!("bosun-kit-pki-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (cert, key) = (folder.join("ca.crt"), folder.join("ca.key"));
        let first = CertificateAuthority::load_or_generate(&cert, &key, "x").unwrap();
        let second = CertificateAuthority::load_or_generate(&cert, &key, "x").unwrap();
        assert_eq!(first.cert_pem(), second.cert_pem());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
