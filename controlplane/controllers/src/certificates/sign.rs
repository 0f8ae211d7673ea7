//! Signing: approved requests get their certificates from the cluster's authority.

use std::sync::Arc;
use std::time::Duration;

use bosun_kit::informer::Informer;
use bosun_kit::pki::CertificateAuthority;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};

use super::request::{check_client, check_kubelet_client, check_kubelet_serving, extended, read};
use super::{CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY, has_certificate, has_condition};
use crate::runtime::{Context, Controller, Key, Synced, gone_is_fine};

const NAME: &str = "certificate-controller";
/// The shortest life that may be asked for.
const SHORTEST: Duration = Duration::from_secs(600);

/// Whether the signer signs this; if not, why.
fn check(spec: &CertificateSigningRequestSpec) -> Result<(), String> {
    let usages = spec.usages.as_deref().unwrap_or_default();
    let request = read(&spec.request.0)?;
    let verdict = match spec.signer_name.as_str() {
        KUBELET_CLIENT => check_kubelet_client(&request, usages),
        KUBELET_SERVING => {
            if spec.username.as_deref() == Some(request.common_name.as_str()) {
                check_kubelet_serving(&request, usages)
            } else {
                Err("requested common name is not the requestor's")
            }
        }
        CLIENT => check_client(usages),
        _ => Ok(()),
    };
    verdict.map_err(str::to_owned)
}

/// How long the certificate lives: what is asked for, within bounds.
fn lifetime(spec: &CertificateSigningRequestSpec, longest: Duration) -> Duration {
    let asked = spec.expiration_seconds.and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs);
    asked.map_or(longest, |asked| asked.max(SHORTEST).min(longest))
}

#[derive(Clone)]
struct Signer {
    client: Client,
    requests: Informer<CertificateSigningRequest>,
    authority: Arc<CertificateAuthority>,
    longest: Duration,
}

pub(crate) fn start(context: &Context) {
    let Some((cert, key)) = &context.config.signing_ca else {
        tracing::info!("no signing certificate given: certificate requests are not signed here");
        return;
    };
    let authority = match CertificateAuthority::load(cert, key) {
        Ok(authority) => Arc::new(authority),
        Err(error) => {
            tracing::error!(%error, "the signing certificate cannot be used: certificate requests are not signed");
            return;
        }
    };
    let mut controller = Controller::new(context, NAME);
    let this = Signer {
        client: controller.client.clone(),
        requests: context.watches.signing_requests(),
        authority,
        longest: context.config.signing_duration,
    };
    controller.watch_own(&this.requests);
    controller.run(2, move |key| {
        let this = this.clone();
        async move { this.sync(key).await }
    });
}

impl Signer {
    async fn sync(&self, key: Key) -> Synced {
        let Some(csr) = self.requests.get(None, &key.name) else { return Ok(None) };
        let ours = [KUBELET_CLIENT, KUBELET_SERVING, CLIENT, LEGACY].contains(&csr.spec.signer_name.as_str());
        let approved = has_condition(&csr, "Approved") && !has_condition(&csr, "Denied");
        if !ours || !approved || has_certificate(&csr) || has_condition(&csr, "Failed") {
            return Ok(None);
        }
        let mut signed = (*csr).clone();
        let status = signed.status.get_or_insert_default();
        match self.sign(&csr.spec) {
            Ok(pem) => status.certificate = Some(ByteString(pem.into_bytes())),
            Err(why) => {
                tracing::warn!(csr = key.name, why, "request cannot be signed");
                status.conditions.get_or_insert_default().push(failed(why));
            }
        }
        let api: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        gone_is_fine(api.replace_status(&key.name, &PostParams::default(), &signed).await)?;
        Ok(None)
    }

    fn sign(&self, spec: &CertificateSigningRequestSpec) -> Result<String, String> {
        check(spec)?;
        let pem = String::from_utf8(spec.request.0.clone()).map_err(|_| "the request is no text".to_owned())?;
        let usages = extended(spec.usages.as_deref().unwrap_or_default());
        self.authority.sign_csr(&pem, &usages, lifetime(spec, self.longest)).map_err(|e| e.to_string())
    }
}

fn failed(why: String) -> CertificateSigningRequestCondition {
    let now = Time(Timestamp::now());
    CertificateSigningRequestCondition {
        type_: "Failed".to_owned(),
        status: "True".to_owned(),
        reason: Some("SignerValidationFailure".to_owned()),
        message: Some(why),
        last_update_time: Some(now.clone()),
        last_transition_time: Some(now),
    }
}

#[cfg(test)]
mod tests {
    use bosun_kit::pki::new_csr;

    use super::*;

    fn spec(signer: &str, cn: &str, user: &str, usages: &[&str]) -> CertificateSigningRequestSpec {
        let (pem, _) = new_csr(cn, &["system:nodes".to_owned()], &["n1".to_owned()]).unwrap();
        CertificateSigningRequestSpec {
            signer_name: signer.to_owned(),
            request: ByteString(pem.into_bytes()),
            username: Some(user.to_owned()),
            usages: Some(usages.iter().map(|u| (*u).to_owned()).collect()),
            ..CertificateSigningRequestSpec::default()
        }
    }

    #[test]
    fn a_serving_certificate_is_for_its_requestor_alone() {
        let usages = ["digital signature", "server auth"];
        assert_eq!(check(&spec(KUBELET_SERVING, "system:node:n1", "system:node:n1", &usages)), Ok(()));
        assert!(check(&spec(KUBELET_SERVING, "system:node:n1", "system:node:n2", &usages)).is_err());
        assert!(check(&spec(KUBELET_CLIENT, "system:node:n1", "system:node:n1", &usages)).is_err());
    }

    #[test]
    fn lifetimes_are_bounded() {
        let year = Duration::from_secs(365 * 24 * 3600);
        let mut spec = CertificateSigningRequestSpec::default();
        assert_eq!(lifetime(&spec, year), year);
        spec.expiration_seconds = Some(1);
        assert_eq!(lifetime(&spec, year), SHORTEST);
        spec.expiration_seconds = Some(3600);
        assert_eq!(lifetime(&spec, year), Duration::from_secs(3600));
    }
}
