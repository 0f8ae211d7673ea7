//! How an agent comes to trust a server it has never seen: the hash of the cluster's authority, in kubeadm's notation
//! (`sha256:` and the hexadecimal SHA-256 of its SubjectPublicKeyInfo), is compared with what the server shows in its
//! TLS handshake. The token goes over the wire only after that.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use bosun_kit::tls;
use rustls::pki_types::ServerName;
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer, X509Certificate};

const DEADLINE: Duration = Duration::from_secs(10);

/// The hash that names an authority.
///
/// # Errors
/// The text holds no certificate.
pub(crate) fn ca_hash(ca_pem: &str) -> Result<String> {
    let certs = tls::parse_certs(ca_pem.as_bytes())?;
    spki_hash(&certs[0]).context("the authority's certificate cannot be parsed")
}

fn spki_hash(cert: &[u8]) -> Option<String> {
    let (_, cert) = X509Certificate::from_der(cert).ok()?;
    let digest = Sha256::digest(cert.public_key().raw);
    Some(format!("sha256:{}", digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
}

/// Fetches the authority's certificate (PEM) from `server` (`https://host:port`) and checks it against `hash`.
///
/// # Errors
/// The server cannot be reached, or shows no certificate with that hash.
pub(crate) async fn fetch_ca(server: &str, hash: &str) -> Result<String> {
    let uri: http::Uri = server.parse().with_context(|| format!("--server {server:?} is no URL"))?;
    let host = uri.host().with_context(|| format!("--server {server:?} has no host"))?;
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = uri.port_u16().unwrap_or(6443);
    let name = ServerName::try_from(bare.clone()).with_context(|| format!("--server {server:?}"))?;
    let connector = TlsConnector::from(Arc::new(tls::unverified_client_config()));
    let dial = async {
        let stream = TcpStream::connect((bare.as_str(), port)).await?;
        connector.connect(name, stream).await
    };
    let stream = tokio::time::timeout(DEADLINE, dial)
        .await
        .with_context(|| format!("{server} does not answer within {DEADLINE:?}"))?
        .with_context(|| format!("connect to {server}"))?;
    let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
    match shown.iter().find(|cert| spki_hash(cert).as_deref() == Some(hash)) {
        Some(cert) => Ok(pem(cert)),
        None => bail!("{server} shows no certificate with hash {hash}: it is another cluster's, or the hash is wrong"),
    }
}

fn pem(cert: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(cert);
    let lines: Vec<&str> = (0..text.len()).step_by(64).map(|at| &text[at..text.len().min(at + 64)]).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bosun_kit::http::{Body, empty, serve};
    use bosun_kit::pki::{CertificateAuthority, LeafParams, Usage};
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[tokio::test]
    async fn the_authority_is_taken_only_with_the_right_hash() {
        tls::install_crypto();
        let ca = CertificateAuthority::generate("kubernetes").unwrap();
        let leaf = LeafParams {
            cn: "kube-apiserver".into(),
            organizations: Vec::new(),
            sans: vec!["127.0.0.1".into()],
            usages: vec![Usage::ServerAuth],
            lifetime: Duration::from_secs(60),
        };
        let issued = ca.issue(&leaf).unwrap();
        let chain = issued.cert_pem + ca.cert_pem();
        let cert = tls::FixedCert::new(chain.as_bytes(), issued.key_pem.as_bytes()).unwrap();
        let config = Arc::new(tls::server_config(cert, None).unwrap());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("https://{}", listener.local_addr().unwrap());
        let service =
            tower::service_fn(|_: http::Request<Body>| async { Ok::<_, Infallible>(http::Response::new(empty())) });
        tokio::spawn(serve(listener, Some(config), service, CancellationToken::new()));

        let hash = ca_hash(ca.cert_pem()).unwrap();
        let fetched = fetch_ca(&server, &hash).await.unwrap();
        assert_eq!(ca_hash(&fetched).unwrap(), hash);
        let wrong = format!("sha256:{}", "0".repeat(64));
        let error = fetch_ca(&server, &wrong).await.unwrap_err().to_string();
        assert!(error.contains("another cluster's"), "{error}");
    }
}
