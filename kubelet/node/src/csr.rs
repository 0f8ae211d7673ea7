//! A certificate by CertificateSigningRequest: ask, wait until it is signed.

use std::time::Duration;

use bosun_kit::backoff::Backoff;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use kube::api::PostParams;
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use sha2::{Digest, Sha256};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer;

/// How long one answer of the API server may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long one watch goes on before it is made anew.
const WATCH: Duration = Duration::from_secs(240);

/// Which certificate is wanted.
pub(crate) struct Wanted<'a> {
    /// The signer.
    pub(crate) signer: &'static str,
    /// What it is for, in the API's words.
    pub(crate) usages: &'static [&'static str],
    /// The request (PKCS #10, PEM).
    pub(crate) csr_pem: &'a str,
    /// Name of the object; `None` lets the API server choose.
    pub(crate) name: Option<String>,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CsrError {
    /// The API server let the request not in.
    #[error("{0}")]
    Refused(Box<kube::core::Status>),
    /// The API server could not be asked, or failed.
    #[error("{0}")]
    Unreachable(String),
    /// Somebody decided that there will be none.
    #[error("certificate signing request {name} was {what}: {why}")]
    Rejected {
        /// Name of the object.
        name: String,
        /// `denied` or `failed`.
        what: &'static str,
        /// The condition's words.
        why: String,
    },
}

/// Makes the request. An existing one of the same name is taken for ours: its name is made from the key.
///
/// # Errors
/// The API server refuses or does not answer.
pub(crate) async fn create(client: &Client, wanted: &Wanted<'_>) -> Result<String, CsrError> {
    let api = Api::<CertificateSigningRequest>::all(client.clone());
    let mut object = CertificateSigningRequest {
        spec: CertificateSigningRequestSpec {
            request: ByteString(wanted.csr_pem.as_bytes().to_vec()),
            signer_name: wanted.signer.to_owned(),
            usages: Some(wanted.usages.iter().map(|&usage| usage.to_owned()).collect()),
            ..CertificateSigningRequestSpec::default()
        },
        ..CertificateSigningRequest::default()
    };
    match &wanted.name {
        Some(name) => object.metadata.name = Some(name.clone()),
        None => object.metadata.generate_name = Some("csr-".to_owned()),
    }
    match tokio::time::timeout(DEADLINE, api.create(&PostParams::default(), &object)).await {
        Ok(Ok(made)) => Ok(made.metadata.name.unwrap_or_default()),
        Ok(Err(kube::Error::Api(status))) => match &wanted.name {
            Some(name) if status.code == 409 => Ok(name.clone()),
            _ if (400..500).contains(&status.code) && status.code != 429 => Err(CsrError::Refused(status)),
            _ => Err(CsrError::Unreachable(status.to_string())),
        },
        Ok(Err(error)) => Err(CsrError::Unreachable(chain(&error))),
        Err(_) => Err(CsrError::Unreachable(format!("no answer in {DEADLINE:?}"))),
    }
}

/// Waits until the request is decided; gives the certificate chain in PEM. Goes on over lost connections for as long
/// as it is let.
///
/// # Errors
/// It was denied, or signing failed.
pub(crate) async fn wait(client: &Client, name: &str) -> Result<String, CsrError> {
    let api = Api::<CertificateSigningRequest>::all(client.clone());
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    loop {
        let decided = |csr: Option<&CertificateSigningRequest>| csr.is_some_and(|csr| decision(csr).is_some());
        match tokio::time::timeout(WATCH, await_condition(api.clone(), name, decided)).await {
            Ok(Ok(Some(csr))) => {
                if let Some(decision) = decision(&csr) {
                    return decision;
                }
            }
            Ok(Ok(None)) | Err(_) => {}
            Ok(Err(error)) => {
                tracing::debug!(%error, csr = name, "watch of a certificate signing request ended");
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}

/// What was decided, if anything.
fn decision(csr: &CertificateSigningRequest) -> Option<Result<String, CsrError>> {
    let status = csr.status.as_ref()?;
    let name = || csr.metadata.name.clone().unwrap_or_default();
    for condition in status.conditions.iter().flatten() {
        let what = match condition.type_.as_str() {
            "Denied" => "denied",
            "Failed" => "failed",
            _ => continue,
        };
        let words = [&condition.reason, &condition.message];
        let why = words.into_iter().flatten().cloned().collect::<Vec<_>>().join(": ");
        return Some(Err(CsrError::Rejected { name: name(), what, why }));
    }
    let certificate = status.certificate.as_ref().filter(|c| !c.0.is_empty())?;
    Some(Ok(String::from_utf8_lossy(&certificate.0).into_owned()))
}

/// A name that is always the same for one key and one subject, so that a restart finds its request again.
pub(crate) fn digested_name(csr_pem: &str, subject: &str, usages: &[&str]) -> String {
    let mut digest = Sha256::new();
    digest.update(public_key(csr_pem).unwrap_or_default());
    for part in [subject].iter().chain(usages) {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part.as_bytes());
    }
    let hex: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("node-csr-{}", &hex[..43])
}

/// The request's key; the request itself has a random signature.
fn public_key(csr_pem: &str) -> Option<Vec<u8>> {
    let (_, pem) = parse_x509_pem(csr_pem.as_bytes()).ok()?;
    let (_, request) = X509CertificationRequest::from_der(&pem.contents).ok()?;
    Some(request.certification_request_info.subject_pki.raw.to_vec())
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use bosun_kit::pki;

    use super::*;

    #[test]
    fn the_name_is_the_keys() {
        let (_, key) = pki::new_csr("a", &[], &[]).unwrap();
        let csr = || pki::csr_for_key(&key, "system:node:a", &["system:nodes".into()], &[]).unwrap();
        let (one, two) = (digested_name(&csr(), "a", &["x"]), digested_name(&csr(), "a", &["x"]));
        assert_eq!(one, two);
        assert_eq!(one.len(), "node-csr-".len() + 43);
        assert_ne!(one, digested_name(&csr(), "a", &["y"]));
        let (other, _) = pki::new_csr("system:node:a", &["system:nodes".into()], &[]).unwrap();
        assert_ne!(one, digested_name(&other, "a", &["x"]));
    }

    #[test]
    fn a_decision_is_read() {
        let csr = |status: serde_json::Value| -> CertificateSigningRequest {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "csr-1"},
                "spec": {"request": "", "signerName": "s"},
                "status": status,
            }))
            .unwrap()
        };
        use serde_json::json;
        assert!(decision(&csr(json!({}))).is_none());
        assert!(decision(&csr(json!({"conditions": [{"type": "Approved", "status": "True"}]}))).is_none());
        let issued = decision(&csr(json!({"certificate": "UEVN"}))).unwrap();
        assert_eq!(issued.unwrap(), "PEM");
        let denied = json!({"conditions": [{"type": "Denied", "status": "True", "reason": "No", "message": "never"}]});
        let denied = decision(&csr(denied)).unwrap().unwrap_err().to_string();
        assert_eq!(denied, "certificate signing request csr-1 was denied: No: never");
    }
}
