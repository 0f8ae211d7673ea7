//! Nodes: their networks, their silence, their certificates.

use std::time::Duration;

use bosun_apiserver::user;
use bosun_kit::pki::new_csr;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::api::{PostParams, ResourceExt};
use kube::{Api, Client};
use serde_json::json;

use crate::cluster::{Cluster, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_node_gets_its_own_network_and_loses_the_taint() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    cluster.node("n2").await;
    let nodes: Api<Node> = Api::all(cluster.admin.clone());
    let ready = until(&nodes, "networks and no taints", |nodes| {
        nodes.len() == 2
            && nodes.iter().all(|n| {
                let spec = n.spec.clone().unwrap_or_default();
                spec.pod_cidr.is_some() && spec.taints.unwrap_or_default().is_empty()
            })
    })
    .await;
    let mut cidrs: Vec<String> = ready.iter().filter_map(|n| n.spec.as_ref()?.pod_cidr.clone()).collect();
    cidrs.sort();
    assert_eq!(cidrs, ["10.244.0.0/24", "10.244.1.0/24"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_leave_a_node_that_falls_silent() {
    let cluster = Cluster::with(|config| config.node_monitor_grace_period = Duration::from_secs(2)).await;
    cluster.node("n1").await;
    let pod = json!({
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "web:1"}], "tolerations": [
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1},
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}]},
    });
    cluster.create::<Pod>(pod).await;
    cluster.until::<Pod>("running", |pods| pods.iter().any(bosun_api::pod::is_ready)).await;
    let nodes: Api<Node> = Api::all(cluster.admin.clone());
    until(&nodes, "unknown and tainted", |nodes| {
        let node = &nodes[0];
        let taints = bosun_api::node::taints(node);
        bosun_api::node::condition(node, "Ready").is_some_and(|c| c.status == "Unknown")
            && ["NoSchedule", "NoExecute"]
                .iter()
                .all(|effect| taints.iter().any(|t| t.key == "node.kubernetes.io/unreachable" && t.effect == *effect))
    })
    .await;
    cluster.until::<Pod>("evicted", |pods| pods.is_empty()).await;
}

fn request(signer: &str, usages: &[&str], sans: &[String]) -> CertificateSigningRequest {
    let (pem, _) = new_csr("system:node:n1", &["system:nodes".to_owned()], sans).unwrap();
    CertificateSigningRequest {
        metadata: kube::api::ObjectMeta { generate_name: Some("csr-".to_owned()), ..Default::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: signer.to_owned(),
            usages: Some(usages.iter().map(|u| (*u).to_owned()).collect()),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    }
}

async fn signed(admin: &Client, name: &str) -> String {
    let api: Api<CertificateSigningRequest> = Api::all(admin.clone());
    let certificate = |all: &[CertificateSigningRequest]| {
        let csr = all.iter().find(|c| c.name_any() == name)?;
        csr.status.as_ref()?.certificate.as_ref().map(|c| String::from_utf8(c.0.clone()).unwrap())
    };
    let all = until(&api, "a certificate", |all| certificate(all).is_some()).await;
    certificate(&all).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kubelet_gets_its_certificates_and_nobody_elses() {
    let cluster = Cluster::start().await;
    // As the bundled server grants it: stock leaves serving certificates to people.
    let binding = serde_json::json!({
        "metadata": {"name": "kubelet-serving-approver"},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "system:certificates.k8s.io:kubelet-serving-approver",
        },
        "subjects": [{"kind": "ServiceAccount", "name": "certificate-controller", "namespace": "kube-system"}],
    });
    let bindings: Api<ClusterRoleBinding> = Api::all(cluster.admin.clone());
    bindings.create(&PostParams::default(), &serde_json::from_value(binding).unwrap()).await.unwrap();
    cluster.node("n1").await;
    let bootstrap = cluster.server.client_as(user(
        "system:bootstrap:abcdef",
        ["system:bootstrappers", "system:bootstrappers:kubeadm:default-node-token"],
    ));
    let api: Api<CertificateSigningRequest> = Api::all(bootstrap);
    let client = request("kubernetes.io/kube-apiserver-client-kubelet", &["digital signature", "client auth"], &[]);
    let created = api.create(&PostParams::default(), &client).await.unwrap();
    assert!(signed(&cluster.admin, &created.name_any()).await.contains("BEGIN CERTIFICATE"));

    let node = cluster.server.client_as(user("system:node:n1", ["system:nodes"]));
    let api: Api<CertificateSigningRequest> = Api::all(node);
    let serving =
        |san: &str| request("kubernetes.io/kubelet-serving", &["digital signature", "server auth"], &[san.to_owned()]);
    let foreign = api.create(&PostParams::default(), &serving("kubernetes.default")).await.unwrap();
    let own = api.create(&PostParams::default(), &serving("192.0.2.7")).await.unwrap();
    assert!(signed(&cluster.admin, &own.name_any()).await.contains("BEGIN CERTIFICATE"));
    let admin: Api<CertificateSigningRequest> = Api::all(cluster.admin.clone());
    let refused = admin.get(&foreign.name_any()).await.unwrap();
    assert!(refused.status.unwrap_or_default().certificate.is_none());
}
