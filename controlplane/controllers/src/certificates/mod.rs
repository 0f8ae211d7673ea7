//! Certificate signing requests: approved when their maker may have them, signed when approved, and cleared away.

pub(crate) mod approve;
pub(crate) mod clean;
mod request;
pub(crate) mod sign;

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;

/// Client certificates of kubelets.
const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Serving certificates of kubelets.
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
/// Client certificates of people and programs.
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Anything.
const LEGACY: &str = "kubernetes.io/legacy-unknown";

fn has_condition(csr: &CertificateSigningRequest, kind: &str) -> bool {
    let conditions = csr.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == kind && c.status == "True")
}

fn is_decided(csr: &CertificateSigningRequest) -> bool {
    has_condition(csr, "Approved") || has_condition(csr, "Denied")
}

fn has_certificate(csr: &CertificateSigningRequest) -> bool {
    csr.status.as_ref().and_then(|s| s.certificate.as_ref()).is_some_and(|c| !c.0.is_empty())
}
