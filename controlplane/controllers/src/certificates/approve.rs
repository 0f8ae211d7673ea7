//! Approval: kubelets get their client certificates when the API server says that they may ask, and, where we are told to,
//! their serving certificates when the names in them are their node's.

use std::net::IpAddr;

use bosun_kit::informer::Informer;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};

use super::request::{Request, check_kubelet_client, check_kubelet_serving, read};
use super::{KUBELET_CLIENT, KUBELET_SERVING, is_decided};
use crate::runtime::{Context, Controller, Key, SyncError, Synced, gone_is_fine};

const NAME: &str = "certificate-controller";

/// What a kubelet's client request needs permission for.
fn permission(request: &Request, spec: &CertificateSigningRequestSpec) -> (&'static str, &'static str) {
    if spec.username.as_deref() == Some(request.common_name.as_str()) {
        ("selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview.")
    } else {
        ("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview.")
    }
}

/// Whether every name in the request is the node's own.
fn names_belong(request: &Request, node: &Node) -> bool {
    let addresses = node.status.as_ref().and_then(|s| s.addresses.as_deref()).unwrap_or_default();
    let ips: Vec<IpAddr> = addresses.iter().filter_map(|a| a.address.parse().ok()).collect();
    let own_name = node.name_any();
    let is_name = |name: &String| *name == own_name || addresses.iter().any(|a| a.address == *name);
    request.addresses.iter().all(|a| ips.contains(a)) && request.dns_names.iter().all(is_name)
}

#[derive(Clone)]
struct Approver {
    client: Client,
    requests: Informer<CertificateSigningRequest>,
    nodes: Informer<Node>,
    serving: bool,
}

pub(crate) fn start(context: &Context) {
    let mut controller = Controller::new(context, NAME);
    let this = Approver {
        client: controller.client.clone(),
        requests: context.watches.signing_requests(),
        nodes: context.watches.nodes(),
        serving: context.config.auto_approve_kubelet_serving,
    };
    controller.watch_own(&this.requests);
    if this.serving {
        // A request may come before its node's addresses.
        let requests = this.requests.clone();
        controller.watch(&this.nodes, move |delta, queue| {
            let user = format!("system:node:{}", delta.object().name_any());
            let waiting = requests.filter(|r| {
                r.spec.signer_name == KUBELET_SERVING
                    && r.spec.username.as_deref() == Some(user.as_str())
                    && !is_decided(r)
            });
            waiting.iter().for_each(|r| queue.add(Key::of(&r.metadata)));
        });
    }
    controller.run(2, move |key| {
        let this = this.clone();
        async move { this.sync(key).await }
    });
}

impl Approver {
    async fn sync(&self, key: Key) -> Synced {
        let Some(csr) = self.requests.get(None, &key.name) else { return Ok(None) };
        if is_decided(&csr) || super::has_certificate(&csr) {
            return Ok(None);
        }
        let Ok(request) = read(&csr.spec.request.0) else { return Ok(None) };
        let usages = csr.spec.usages.as_deref().unwrap_or_default();
        let message = match csr.spec.signer_name.as_str() {
            KUBELET_CLIENT if check_kubelet_client(&request, usages).is_ok() => {
                let (subresource, message) = permission(&request, &csr.spec);
                if !self.may(&csr.spec, subresource).await? {
                    let user = csr.spec.username.as_deref().unwrap_or_default();
                    tracing::info!(csr = key.name, user, subresource, "not approved: the user may not ask for it");
                    return Ok(None);
                }
                message
            }
            KUBELET_SERVING if self.serving && check_kubelet_serving(&request, usages).is_ok() => {
                if !self.is_own(&csr.spec, &request) {
                    return Ok(None);
                }
                "Auto approving kubelet serving certificate: its names are its node's addresses."
            }
            _ => return Ok(None),
        };
        self.approve(&csr, message).await.map(|()| None)
    }

    /// Whether a node asks for itself, and for nothing but its own names.
    fn is_own(&self, spec: &CertificateSigningRequestSpec, request: &Request) -> bool {
        let in_group = spec.groups.iter().flatten().any(|g| g == "system:nodes");
        if !in_group || spec.username.as_deref() != Some(request.common_name.as_str()) {
            return false;
        }
        let name = request.common_name.trim_start_matches("system:node:");
        self.nodes.get(None, name).is_some_and(|node| names_belong(request, &node))
    }

    async fn may(&self, spec: &CertificateSigningRequestSpec, subresource: &str) -> Result<bool, SyncError> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: spec.username.clone(),
                uid: spec.uid.clone(),
                groups: spec.groups.clone(),
                extra: spec.extra.clone(),
                resource_attributes: Some(ResourceAttributes {
                    group: Some("certificates.k8s.io".to_owned()),
                    resource: Some("certificatesigningrequests".to_owned()),
                    subresource: Some(subresource.to_owned()),
                    verb: Some("create".to_owned()),
                    version: Some("*".to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await?;
        Ok(answer.status.is_some_and(|s| s.allowed))
    }

    async fn approve(&self, csr: &CertificateSigningRequest, message: &str) -> Result<(), SyncError> {
        let mut approved = csr.clone();
        let now = Time(Timestamp::now());
        let status = approved.status.get_or_insert_default();
        status.conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
            type_: "Approved".to_owned(),
            status: "True".to_owned(),
            reason: Some("AutoApproved".to_owned()),
            message: Some(message.to_owned()),
            last_update_time: Some(now.clone()),
            last_transition_time: Some(now),
        });
        let api: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        let written = api.replace_subresource("approval", &csr.name_any(), &PostParams::default(), &approved).await;
        Ok(gone_is_fine(written)?)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn foreign_names_do_not_belong() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n1"},
            "status": {"addresses": [
                {"type": "InternalIP", "address": "10.0.0.1"}, {"type": "Hostname", "address": "n1.local"}]},
        }))
        .unwrap();
        let request = |dns: &[&str], ip: &str| Request {
            dns_names: dns.iter().map(|d| (*d).to_owned()).collect(),
            addresses: vec![ip.parse().unwrap()],
            ..Request::default()
        };
        assert!(names_belong(&request(&["n1", "n1.local"], "10.0.0.1"), &node));
        assert!(!names_belong(&request(&["kubernetes"], "10.0.0.1"), &node));
        assert!(!names_belong(&request(&["n1"], "10.0.0.2"), &node));
    }
}
