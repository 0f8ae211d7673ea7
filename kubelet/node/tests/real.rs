//! The same path against the house's own API server over HTTPS: from a bootstrap token to a Ready node
//! with its lease and both certificates, every step allowed by RBAC, the Node authorizer and admission.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bosun_apiserver::{ApiServer, Config, user};
use bosun_kit::client::{Credential, kubeconfig_yaml};
use bosun_kit::events::Recorder;
use bosun_kit::pki::{CertificateAuthority, LeafParams, Usage};
use bosun_kit::tls;
use bosun_kubelet_node::facts::{RuntimeFacts, RuntimeStatus};
use bosun_kubelet_node::identity::{IdentityConfig, establish};
use bosun_kubelet_node::serving::RequestedCert;
use bosun_kubelet_node::{NodeAgent, NodeConfig};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ContainerImage, Event, Node, Secret};
use kube::api::{Api, ListParams, PostParams};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

struct Runtime;

#[async_trait]
impl RuntimeFacts for Runtime {
    async fn version(&self) -> Result<String, String> {
        Ok("containerd://2.1.9".into())
    }

    async fn status(&self) -> Result<RuntimeStatus, String> {
        Ok(RuntimeStatus::ready())
    }

    async fn images(&self) -> Result<Vec<ContainerImage>, String> {
        Ok(vec![ContainerImage { names: Some(vec!["pause".into()]), size_bytes: Some(1) }])
    }
}

async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let wait = async {
        loop {
            if let Some(found) = ask().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// An API server in this process, and where it is reached.
async fn api_server(
    folder: &std::path::Path,
    ca: &CertificateAuthority,
    cancel: &CancellationToken,
) -> (ApiServer, String) {
    let store = Arc::new(bosun_store::EmbeddedStore::open(folder.join("store.redb")).unwrap());
    let server = ApiServer::start(Config::default(), store).await.unwrap();
    let leaf = LeafParams {
        cn: "kube-apiserver".into(),
        organizations: vec![],
        sans: vec!["127.0.0.1".into()],
        usages: vec![Usage::ServerAuth],
        lifetime: Duration::from_secs(3600),
    };
    let serving = ca.issue(&leaf).unwrap();
    let serving = tls::FixedCert::new(serving.cert_pem.as_bytes(), serving.key_pem.as_bytes()).unwrap();
    let config = tls::server_config(serving, Some(tls::roots(ca.cert_pem().as_bytes()).unwrap())).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(bosun_kit::http::serve(listener, Some(Arc::new(config)), server.service(), cancel.clone()));
    (server, url)
}

/// Approves and signs every certificate request, in place of the controllers.
async fn sign_all(admin: kube::Client, ca: CertificateAuthority) {
    let requests = Api::<CertificateSigningRequest>::all(admin);
    loop {
        for mut csr in requests.list(&ListParams::default()).await.unwrap().items {
            if csr.status.as_ref().is_some_and(|status| status.certificate.is_some()) {
                continue;
            }
            let name = csr.metadata.name.clone().unwrap();
            let approved = json!({"conditions": [{"type": "Approved", "status": "True", "reason": "Test"}]});
            csr.status = Some(serde_json::from_value(approved).unwrap());
            let params = PostParams::default();
            let mut csr = requests.replace_subresource("approval", &name, &params, &csr).await.unwrap();
            let server = csr.spec.usages.iter().flatten().any(|usage| usage == "server auth");
            let usage = if server { Usage::ServerAuth } else { Usage::ClientAuth };
            let pem = std::str::from_utf8(&csr.spec.request.0).unwrap();
            let cert = ca.sign_csr(pem, &[usage], Duration::from_secs(3600)).unwrap();
            csr.status.as_mut().unwrap().certificate = Some(k8s_openapi::ByteString(cert.into_bytes()));
            requests.replace_status(&name, &params, &csr).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_token_to_ready() {
    bosun_kit::logs::init(&bosun_kit::logs::LogArgs { verbosity: 2, logging_format: "text".into() });
    tls::install_crypto();
    let (folder, cancel) = (tempfile::tempdir().unwrap(), CancellationToken::new());
    let (cert, key) = (folder.path().join("ca.crt"), folder.path().join("ca.key"));
    let ca = CertificateAuthority::load_or_generate(&cert, &key, "cluster").unwrap();
    let (server, url) = api_server(folder.path(), &ca, &cancel).await;
    let admin = server.client_as(user("admin", ["system:masters"]));
    let signer =
        tokio::spawn(sign_all(admin.clone(), CertificateAuthority::load_or_generate(&cert, &key, "").unwrap()));
    let text = |text: &str| json!(k8s_openapi::ByteString(text.as_bytes().to_vec()));
    let secret = json!({
        "metadata": {"name": "bootstrap-token-abcdef", "namespace": "kube-system"},
        "type": "bootstrap.kubernetes.io/token",
        "data": {
            "token-id": text("abcdef"),
            "token-secret": text("0123456789abcdef"),
            "usage-bootstrap-authentication": text("true"),
            "auth-extra-groups": text("system:bootstrappers:kubeadm:default-node-token"),
        },
    });
    let secrets = Api::<Secret>::namespaced(admin.clone(), "kube-system");
    secrets.create(&PostParams::default(), &serde_json::from_value(secret).unwrap()).await.unwrap();

    let began = Instant::now();
    let bootstrap = folder.path().join("bootstrap.kubeconfig");
    let token = Credential::Token("abcdef.0123456789abcdef");
    std::fs::write(&bootstrap, kubeconfig_yaml("test", &url, ca.cert_pem(), "bootstrap", &token)).unwrap();
    let config = IdentityConfig {
        node_name: "node-1".into(),
        kubeconfig: folder.path().join("kubeconfig"),
        bootstrap_kubeconfig: Some(bootstrap),
        cert_dir: folder.path().join("pki"),
    };
    let identity = establish(&config, &cancel).await.unwrap();
    let client = identity.client();
    let cert = RequestedCert::new("node-1", folder.path().join("pki"));
    let (_sans, names) = watch::channel(vec!["10.9.8.7".to_owned(), "node-1".to_owned()]);
    tokio::spawn(cert.clone().keep_fresh(client.clone(), names, cancel.clone()));
    let mut config = NodeConfig::new("node-1");
    config.node_ips = vec!["10.9.8.7".parse().unwrap()];
    config.root_dir = folder.path().to_owned();
    config.eviction_hard.clear();
    let recorder = Recorder::new(client.clone(), "kubelet", Some("node-1"));
    let agent = NodeAgent::new(config, client, Arc::new(Runtime), recorder).unwrap();
    let mut ready = agent.handle().ready();
    let running = tokio::spawn(agent.run(cancel.clone()));

    if tokio::time::timeout(Duration::from_secs(20), ready.wait_for(|ready| *ready)).await.is_err() {
        panic!("the node is not Ready: {:#?}", Api::<Node>::all(admin).get("node-1").await);
    }
    let nodes = Api::<Node>::all(admin.clone());
    let node = until("ready", || async { nodes.get("node-1").await.ok().filter(bosun_api::node::is_ready) }).await;
    assert!(began.elapsed() < Duration::from_secs(4), "token to Ready took {:?}", began.elapsed());
    assert_eq!(bosun_api::node::internal_ip(&node), Some("10.9.8.7"));
    let status = node.status.as_ref().unwrap();
    let types: Vec<&str> = status.conditions.iter().flatten().map(|c| c.type_.as_str()).collect();
    assert_eq!(types, ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"]);
    assert_eq!(status.images.as_ref().unwrap().len(), 1);
    assert_eq!(status.node_info.as_ref().unwrap().container_runtime_version, "containerd://2.1.9");

    until("serving certificate", || async { cert.is_issued().then_some(()) }).await;
    let leases = Api::<Lease>::namespaced(admin.clone(), "kube-node-lease");
    let lease = until("lease", || async { leases.get("node-1").await.ok() }).await;
    assert_eq!(lease.spec.unwrap().holder_identity.as_deref(), Some("node-1"));
    let events = Api::<Event>::namespaced(admin, "default");
    until("events", || async {
        let events = events.list(&ListParams::default()).await.ok()?;
        events.items.iter().any(|event| event.reason.as_deref() == Some("Starting")).then_some(())
    })
    .await;
    // The conditions that the report patched are what a client reads: nothing was dropped or doubled on the way.
    let again = nodes.get("node-1").await.unwrap().status.unwrap();
    assert_eq!(again.addresses.unwrap().len(), 2);
    signer.abort();
    cancel.cancel();
    running.await.unwrap();
}
