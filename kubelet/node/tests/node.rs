//! Bootstrap, rotation, registration, status and lease against a small API server over HTTPS.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod api;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::{Api, TOKEN};
use async_trait::async_trait;
use bosun_kit::client::{Credential, kubeconfig_yaml};
use bosun_kit::events::Recorder;
use bosun_kubelet_node::facts::{RuntimeCondition, RuntimeFacts, RuntimeStatus};
use bosun_kubelet_node::identity::{Identity, IdentityConfig, IdentityError, establish};
use bosun_kubelet_node::serving::RequestedCert;
use bosun_kubelet_node::{NodeAgent, NodeConfig};
use k8s_openapi::api::core::v1::{ContainerImage, Node};
use kube::Api as KubeApi;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const NODE: &str = "/api/v1/nodes/node-1";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node-1";

fn identity_config(folder: &Path, api: &Api, token: &str) -> IdentityConfig {
    let bootstrap = folder.join("bootstrap");
    let server = format!("https://{}", api.addr);
    let text = kubeconfig_yaml("test", &server, api.ca.cert_pem(), "bootstrap", &Credential::Token(token));
    std::fs::write(&bootstrap, text).unwrap();
    IdentityConfig {
        node_name: "node-1".into(),
        kubeconfig: folder.join("kubeconfig"),
        bootstrap_kubeconfig: Some(bootstrap),
        cert_dir: folder.join("pki"),
    }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn users(api: &Api, what: &str) -> Vec<String> {
    api.log().into_iter().filter(|(_, request)| request == what).map(|(user, _)| user).collect()
}

#[tokio::test]
async fn a_token_becomes_a_certificate_once() {
    let (folder, cancel) = (tempfile::tempdir().unwrap(), CancellationToken::new());
    let api = Api::start().await;
    let config = identity_config(folder.path(), &api, TOKEN);
    let identity = establish(&config, &cancel).await.unwrap();
    let create = "POST /apis/certificates.k8s.io/v1/certificatesigningrequests";
    assert_eq!(users(&api, create), ["system:bootstrap:abcdef"]);
    let csr = &api.objects("/apis/certificates.k8s.io/")[0];
    assert_eq!(csr["spec"]["signerName"], "kubernetes.io/kube-apiserver-client-kubelet");
    assert_eq!(csr["spec"]["usages"], json!(["digital signature", "key encipherment", "client auth"]));

    let nodes = KubeApi::<Node>::all(identity.client());
    nodes.list(&Default::default()).await.unwrap();
    assert_eq!(users(&api, "GET /api/v1/nodes"), ["system:node:node-1"]);

    // A restart asks for nothing, even when the token is long gone.
    std::fs::remove_file(folder.path().join("bootstrap")).unwrap();
    establish(&config, &cancel).await.unwrap();
    assert_eq!(users(&api, create).len(), 1);
}

#[tokio::test]
async fn a_restart_amid_the_bootstrap_finds_its_request_again() {
    let (folder, cancel) = (tempfile::tempdir().unwrap(), CancellationToken::new());
    let api = Api::start().await;
    let config = identity_config(folder.path(), &api, TOKEN);
    tokio::select! {
        _ = establish(&config, &cancel) => panic!("too fast"),
        () = eventually("asked", || !api.objects("/apis/certificates.k8s.io/").is_empty()) => {}
    }
    establish(&config, &cancel).await.unwrap();
    assert_eq!(api.objects("/apis/certificates.k8s.io/").len(), 1);
}

#[tokio::test]
async fn an_unknown_token_and_a_denied_request_are_named() {
    let (folder, cancel) = (tempfile::tempdir().unwrap(), CancellationToken::new());
    let api = Api::start().await;
    let config = identity_config(folder.path(), &api, "abcdef.gone");
    let error = establish(&config, &cancel).await.err().unwrap();
    assert!(matches!(error, IdentityError::Token { .. }), "{error}");
    assert!(error.to_string().contains("may have expired"), "{error}");
    assert!(!config.kubeconfig.exists());

    *api.deny.lock().unwrap() = true;
    let config = identity_config(folder.path(), &api, TOKEN);
    let error = establish(&config, &cancel).await.err().unwrap().to_string();
    assert!(error.contains("was denied: Policy: no"), "{error}");

    let config = IdentityConfig { bootstrap_kubeconfig: None, ..config };
    let error = establish(&config, &cancel).await.err().unwrap().to_string();
    assert!(error.contains("kubeconfig") && error.contains("--bootstrap-kubeconfig"), "{error}");
}

#[tokio::test]
async fn an_expired_certificate_is_replaced_by_a_new_bootstrap_or_named() {
    let (folder, cancel) = (tempfile::tempdir().unwrap(), CancellationToken::new());
    let api = Api::start().await;
    *api.lifetime.lock().unwrap() = Duration::ZERO;
    let config = identity_config(folder.path(), &api, TOKEN);
    establish(&config, &cancel).await.unwrap();
    let without = IdentityConfig { bootstrap_kubeconfig: None, ..config.clone() };
    let error = establish(&without, &cancel).await.err().unwrap().to_string();
    assert!(error.contains("expired at") && error.contains("--bootstrap-kubeconfig"), "{error}");
    *api.lifetime.lock().unwrap() = Duration::from_secs(3600);
    establish(&config, &cancel).await.unwrap();
    establish(&without, &cancel).await.unwrap();
}

#[tokio::test]
async fn the_client_certificate_is_renewed_and_no_request_fails() {
    let (folder, cancel) = (tempfile::tempdir().unwrap(), CancellationToken::new());
    let api = Api::start().await;
    // Backdated by five minutes, this one is due for renewal at once.
    *api.lifetime.lock().unwrap() = Duration::from_secs(20);
    let config = identity_config(folder.path(), &api, TOKEN);
    let identity = establish(&config, &cancel).await.unwrap();
    *api.lifetime.lock().unwrap() = Duration::from_secs(3600);
    let client = identity.client();
    let current = || std::fs::read_link(config.cert_dir.join("kubelet-client-current.pem")).unwrap();
    let first = std::fs::read_to_string(config.cert_dir.join("kubelet-client-current.pem")).unwrap();
    let kept = tokio::spawn(identity.keep_fresh(cancel.clone()));
    let nodes = KubeApi::<Node>::all(client);
    let path = config.cert_dir.join("kubelet-client-current.pem");
    let renewed = async {
        while std::fs::read_to_string(&path).unwrap() == first {
            nodes.list(&Default::default()).await.expect("no request fails");
        }
    };
    tokio::time::timeout(Duration::from_secs(20), renewed).await.expect("renewed");
    nodes.list(&Default::default()).await.unwrap();
    assert!(current().exists() || config.cert_dir.join(current()).exists());
    let asked = users(&api, "POST /apis/certificates.k8s.io/v1/certificatesigningrequests");
    assert_eq!(asked, ["system:bootstrap:abcdef", "system:node:node-1"]);
    cancel.cancel();
    kept.await.unwrap();
}

struct Runtime(Mutex<Result<RuntimeStatus, String>>);

#[async_trait]
impl RuntimeFacts for Runtime {
    async fn version(&self) -> Result<String, String> {
        Ok("containerd://1.6.20".into())
    }

    async fn status(&self) -> Result<RuntimeStatus, String> {
        self.0.lock().unwrap().clone()
    }

    async fn images(&self) -> Result<Vec<ContainerImage>, String> {
        let image = |name: &str, size| ContainerImage { names: Some(vec![name.into()]), size_bytes: Some(size) };
        Ok(vec![image("small", 1), image("big", 2)])
    }
}

fn condition(api: &Api, type_: &str) -> Value {
    let node = api.object(NODE).unwrap_or_default();
    let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|c| c["type"] == type_).unwrap_or_default()
}

#[tokio::test]
async fn a_node_registers_reports_and_keeps_its_lease() {
    let (folder, cancel) = (tempfile::tempdir().unwrap(), CancellationToken::new());
    let api = Api::start().await;
    let identity = establish(&identity_config(folder.path(), &api, TOKEN), &cancel).await.unwrap();
    let client = identity.client();
    let network = RuntimeCondition {
        status: false,
        reason: "NetworkPluginNotReady".into(),
        message: "Network plugin returns error: cni plugin not initialized".into(),
    };
    let runtime = Arc::new(Runtime(Mutex::new(Ok(RuntimeStatus { network: Some(network), ..RuntimeStatus::ready() }))));
    let mut config = NodeConfig::new("node-1");
    config.node_ips = vec!["10.9.8.7".parse().unwrap()];
    config.root_dir = folder.path().to_owned();
    config.eviction_hard.clear();
    config.runtime_grace = Duration::from_secs(2);
    let recorder = Recorder::new(client.clone(), "kubelet", Some("node-1"));
    let agent = NodeAgent::new(config, client, runtime.clone(), recorder).unwrap();
    let handle = agent.handle();
    let running = tokio::spawn(agent.run(cancel.clone()));

    eventually("registered", || condition(&api, "Ready")["status"] == "False").await;
    assert_eq!(
        condition(&api, "Ready")["message"],
        "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady \
         message:Network plugin returns error: cni plugin not initialized"
    );
    *runtime.0.lock().unwrap() = Ok(RuntimeStatus::ready());
    let told = std::time::Instant::now();
    eventually("ready", || condition(&api, "Ready")["status"] == "True").await;
    assert!(told.elapsed() < Duration::from_millis(1500), "{:?}", told.elapsed());
    assert!(*handle.ready().wait_for(|ready| *ready).await.unwrap());
    assert_eq!(condition(&api, "Ready")["reason"], "KubeletReady");

    let node = api.object(NODE).unwrap();
    assert_eq!(node["status"]["addresses"][0], json!({"type": "InternalIP", "address": "10.9.8.7"}));
    assert_eq!(node["status"]["images"][0]["names"], json!(["big"]));
    assert_eq!(node["status"]["nodeInfo"]["containerRuntimeVersion"], "containerd://1.6.20");
    assert_eq!(node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"], 10250);
    eventually("lease owned", || {
        let lease = api.object(LEASE).unwrap_or_default();
        lease["spec"]["holderIdentity"] == "node-1"
    })
    .await;

    // A quiet node writes nothing.
    let version = api.object(NODE).unwrap()["metadata"]["resourceVersion"].clone();
    handle.poke();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(api.object(NODE).unwrap()["metadata"]["resourceVersion"], version);

    // The runtime gives no answer: that is told only once it lasts.
    *runtime.0.lock().unwrap() = Err("connection refused".into());
    handle.poke();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(condition(&api, "Ready")["status"], "True");
    tokio::time::sleep(Duration::from_millis(1600)).await;
    handle.poke();
    eventually("down", || condition(&api, "Ready")["message"] == "container runtime is down").await;
    *runtime.0.lock().unwrap() = Ok(RuntimeStatus::ready());
    eventually("up", || condition(&api, "Ready")["status"] == "True").await;

    // What the node lifecycle controller says after a silence is put right at once.
    let mut unknown = api.object(NODE).unwrap();
    for condition in unknown["status"]["conditions"].as_array_mut().unwrap() {
        condition["status"] = json!("Unknown");
    }
    api.put(NODE, unknown);
    eventually("put right", || condition(&api, "Ready")["status"] == "True").await;
    assert_eq!(condition(&api, "MemoryPressure")["status"], "False");

    let reasons = || -> Vec<String> {
        let events = api.objects("/api/v1/namespaces/default/events/");
        events.iter().map(|e| e["reason"].as_str().unwrap_or_default().to_owned()).collect()
    };
    eventually("events", || {
        let reasons = reasons();
        [
            "Starting",
            "NodeHasSufficientMemory",
            "NodeHasNoDiskPressure",
            "NodeHasSufficientPID",
            "NodeReady",
            "NodeNotReady",
        ]
        .iter()
        .all(|wanted| reasons.iter().any(|reason| reason == wanted))
    })
    .await;
    cancel.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn a_serving_certificate_is_requested_for_the_nodes_addresses() {
    let (folder, cancel) = (tempfile::tempdir().unwrap(), CancellationToken::new());
    let api = Api::start().await;
    let identity = establish(&identity_config(folder.path(), &api, TOKEN), &cancel).await.unwrap();
    let cert = RequestedCert::new("node-1", folder.path().join("pki"));
    assert!(!cert.is_issued());
    let (sans, seen) = watch::channel(Vec::new());
    let running = tokio::spawn(cert.clone().keep_fresh(identity.client(), seen, cancel.clone()));
    sans.send(vec!["10.0.0.1".into(), "node-1".into()]).unwrap();
    eventually("issued", || cert.is_issued()).await;
    // Other addresses need another certificate.
    let first = std::fs::read(folder.path().join("pki/kubelet-server-current.pem")).unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    sans.send(vec!["10.0.0.2".into(), "node-1".into()]).unwrap();
    let path = folder.path().join("pki/kubelet-server-current.pem");
    eventually("issued again", || std::fs::read(&path).unwrap() != first).await;
    // A restart has it at once.
    assert!(RequestedCert::new("node-1", folder.path().join("pki")).is_issued());
    cancel.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn a_node_made_before_is_brought_in_line() {
    let (folder, cancel) = (tempfile::tempdir().unwrap(), CancellationToken::new());
    let api = Api::start().await;
    api.put(
        NODE,
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1", "labels": {"keep": "me"}},
        "spec": {"podCIDR": "10.244.1.0/24"}, "status": {"nodeInfo": {
            "bootID": "before", "architecture": "", "containerRuntimeVersion": "", "kernelVersion": "",
            "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "", "osImage": "",
            "systemUUID": ""}}}),
    );
    let config = identity_config(folder.path(), &api, TOKEN);
    let identity: Identity = establish(&config, &cancel).await.unwrap();
    let mut config = NodeConfig::new("node-1");
    config.node_ips = vec!["10.9.8.7".parse().unwrap()];
    config.root_dir = folder.path().to_owned();
    let recorder = Recorder::new(identity.client(), "kubelet", Some("node-1"));
    let runtime = Arc::new(Runtime(Mutex::new(Ok(RuntimeStatus::ready()))));
    let agent = NodeAgent::new(config, identity.client(), runtime, recorder).unwrap();
    let mut node = agent.handle().node();
    let running = tokio::spawn(agent.run(cancel.clone()));
    eventually("reported", || condition(&api, "Ready")["status"] == "True").await;
    let stored = api.object(NODE).unwrap();
    assert_eq!(stored["metadata"]["labels"]["keep"], "me");
    assert_eq!(stored["metadata"]["labels"]["kubernetes.io/hostname"], "node-1");
    let known = node.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert_eq!(known.spec.as_ref().unwrap().pod_cidr.as_deref(), Some("10.244.1.0/24"));
    eventually("rebooted", || {
        api.objects("/api/v1/namespaces/default/events/").iter().any(|event| event["reason"] == "Rebooted")
    })
    .await;
    cancel.cancel();
    running.await.unwrap();
}
