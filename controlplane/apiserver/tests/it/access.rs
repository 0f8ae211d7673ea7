//! Who comes in, and what they may do: over real TLS, with real tokens, under the stock policy.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bosun_apiserver::{ApiServer, Config, ServiceAccountKeys, user};
use bosun_kit::client::{Credential, kubeconfig_yaml};
use bosun_kit::pki::{CertificateAuthority, LeafParams, Usage, new_signing_key};
use bosun_kit::tls;
use bosun_store::EmbeddedStore;
use http::Request;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret};
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

struct Secure {
    api: ApiServer,
    admin: Client,
    ca: CertificateAuthority,
    address: String,
    stop: CancellationToken,
}

impl Drop for Secure {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Secure {
    async fn start() -> Self {
        tls::install_crypto();
        let (private_pem, public_pem) = new_signing_key().unwrap();
        let keys = Some(ServiceAccountKeys { private_pem, public_pem });
        let config = Config { service_account_keys: keys, ..Config::default() };
        let api = ApiServer::start(config, Arc::new(EmbeddedStore::in_memory().unwrap())).await.unwrap();
        let ca = CertificateAuthority::generate("ca").unwrap();
        let leaf = ca.issue(&leaf("kube-apiserver", &[], Usage::ServerAuth)).unwrap();
        let certificate = tls::FixedCert::new(leaf.cert_pem.as_bytes(), leaf.key_pem.as_bytes()).unwrap();
        let serving = tls::server_config(certificate, Some(tls::roots(ca.cert_pem().as_bytes()).unwrap())).unwrap();
        let listener = bosun_kit::http::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = format!("https://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        tokio::spawn(bosun_kit::http::serve(listener, Some(Arc::new(serving)), api.service(), stop.clone()));
        let admin = api.client_as(user("admin", ["system:masters"]));
        Self { api, admin, ca, address, stop }
    }

    async fn client(&self, credential: &Credential<'_>) -> Client {
        let text = kubeconfig_yaml("test", &self.address, self.ca.cert_pem(), "me", credential);
        let config = Kubeconfig::from_yaml(&text).unwrap();
        let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
        Client::try_from(config).unwrap()
    }

    async fn by_certificate(&self, name: &str, groups: &[&str]) -> Client {
        let pair = self.ca.issue(&leaf(name, groups, Usage::ClientAuth)).unwrap();
        self.client(&Credential::Certificate { cert_pem: &pair.cert_pem, key_pem: &pair.key_pem }).await
    }

    async fn by_token(&self, token: &str) -> Client {
        self.client(&Credential::Token(token)).await
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let request =
            Request::post(path).header("content-type", "application/json").body(body.to_string().into()).unwrap();
        self.admin.request(request).await.unwrap()
    }
}

fn leaf(cn: &str, groups: &[&str], usage: Usage) -> LeafParams {
    LeafParams {
        cn: cn.to_owned(),
        organizations: groups.iter().map(|g| (*g).to_owned()).collect(),
        sans: vec!["127.0.0.1".to_owned()],
        usages: vec![usage],
        lifetime: Duration::from_secs(3600),
    }
}

fn code(error: kube::Error) -> (u16, String) {
    match error {
        kube::Error::Api(status) => (status.code, status.message),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn certificates_name_users_and_groups() {
    let server = Secure::start().await;
    let admin = server.by_certificate("root", &["system:masters"]).await;
    assert!(Api::<Node>::all(admin).list(&ListParams::default()).await.unwrap().items.is_empty());
    let nobody = server.by_certificate("nobody", &["people"]).await;
    let (status, message) = code(Api::<Node>::all(nobody.clone()).list(&ListParams::default()).await.unwrap_err());
    assert_eq!(
        (status, message.as_str()),
        (
            403,
            "nodes is forbidden: User \"nobody\" cannot list resource \"nodes\" in API group \"\" at the cluster scope"
        )
    );
    assert_eq!(nobody.apiserver_version().await.unwrap().minor, "36", "discovery is for everyone authenticated");

    let role = json!({"metadata": {"name": "maps"}, "rules": [{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["configmaps"]}]});
    server.post("/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles", role).await;
    let binding = json!({"metadata": {"name": "maps"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "maps"},
        "subjects": [{"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "people"}]});
    server.post("/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", binding).await;
    Api::<ConfigMap>::namespaced(nobody.clone(), "default").list(&ListParams::default()).await.unwrap();
    let other = Api::<ConfigMap>::namespaced(nobody.clone(), "kube-system").list(&ListParams::default()).await;
    assert_eq!(code(other.unwrap_err()).0, 403);
    let review =
        json!({"spec": {"resourceAttributes": {"verb": "list", "resource": "configmaps", "namespace": "default"}}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let request =
        Request::post(path).header("content-type", "application/json").body(review.to_string().into()).unwrap();
    let answer: Value = nobody.request(request).await.unwrap();
    assert_eq!(answer["status"]["allowed"], true);
}

#[tokio::test]
async fn who_shows_nothing_sees_health_and_nothing_else() {
    let server = Secure::start().await;
    let nobody = server.client(&Credential::Token("")).await;
    let health = nobody.request_text(Request::get("/readyz").body(Vec::new()).unwrap()).await.unwrap();
    assert_eq!(health, "ok");
    let wrong = server.by_token("no.such.token").await;
    assert_eq!(code(Api::<Node>::all(wrong).list(&ListParams::default()).await.unwrap_err()).0, 401);
    let anonymous = server.api.client_as(Default::default());
    assert!(Api::<Node>::all(anonymous).list(&ListParams::default()).await.is_err());
}

#[tokio::test]
async fn bootstrap_tokens_open_the_door_for_nodes() {
    let server = Secure::start().await;
    let secrets: Api<Secret> = Api::namespaced(server.admin.clone(), "kube-system");
    let make = |id: &str, expiration: &str| -> Secret {
        let encode = |text: &str| STANDARD.encode(text);
        let data = json!({"token-id": encode(id), "token-secret": encode("0123456789abcdef"),
            "usage-bootstrap-authentication": encode("true"), "expiration": encode(expiration),
            "auth-extra-groups": encode("system:bootstrappers:kubeadm:default-node-token")});
        serde_json::from_value(json!({"metadata": {"name": format!("bootstrap-token-{id}")},
            "type": "bootstrap.kubernetes.io/token", "data": data}))
        .unwrap()
    };
    secrets.create(&PostParams::default(), &make("abcdef", "2999-01-01T00:00:00Z")).await.unwrap();
    secrets.create(&PostParams::default(), &make("expird", "2020-01-01T00:00:00Z")).await.unwrap();
    let review = async |token: &str| {
        let spec = TokenReviewSpec { token: token.to_owned(), audiences: None };
        let review = TokenReview { spec, ..TokenReview::default() };
        let api: Api<TokenReview> = Api::all(server.admin.clone());
        api.create(&PostParams::default(), &review).await.unwrap().status.unwrap()
    };
    let good = review("abcdef.0123456789abcdef").await;
    assert_eq!(good.authenticated, Some(true));
    let user = good.user.unwrap();
    assert_eq!(user.username.as_deref(), Some("system:bootstrap:abcdef"));
    assert!(user.groups.unwrap().contains(&"system:bootstrappers:kubeadm:default-node-token".to_owned()));
    for bad in ["abcdef.0123456789abcdeX", "abcdef.0123456789abcde0", "expird.0123456789abcdef"] {
        assert_ne!(review(bad).await.authenticated, Some(true), "{bad}");
    }
}

#[tokio::test]
async fn service_account_tokens_live_as_long_as_their_pod() {
    let server = Secure::start().await;
    server.post("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
    let pods: Api<Pod> = Api::namespaced(server.admin.clone(), "default");
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let pod = pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    let request = json!({"spec": {"expirationSeconds": 3600,
        "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": pod.uid().unwrap()}}});
    let issued = server.post("/api/v1/namespaces/default/serviceaccounts/default/token", request).await;
    let token = issued["status"]["token"].as_str().unwrap();
    let client = server.by_token(token).await;
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let whoami = async || -> Result<Value, kube::Error> {
        let request = Request::post(path).header("content-type", "application/json").body(b"{}".to_vec()).unwrap();
        client.request(request).await
    };
    let user = whoami().await.unwrap()["status"]["userInfo"].clone();
    assert_eq!(user["username"], "system:serviceaccount:default:default");
    assert_eq!(user["extra"]["authentication.kubernetes.io/pod-name"], json!(["p"]));
    assert!(user["groups"].as_array().unwrap().contains(&json!("system:serviceaccounts:default")));
    pods.delete("p", &DeleteParams::default()).await.unwrap();
    assert_eq!(code(whoami().await.unwrap_err()).0, 401, "the token went with its pod");
}

#[tokio::test]
async fn nodes_keep_to_themselves() {
    let server = Secure::start().await;
    let node = server.by_certificate("system:node:n1", &["system:nodes"]).await;
    let nodes: Api<Node> = Api::all(node.clone());
    let make = |name: &str, label: &str| -> Node {
        serde_json::from_value(json!({"metadata": {"name": name, "labels": {label: "x"}}})).unwrap()
    };
    let (status, message) = code(nodes.create(&PostParams::default(), &make("n2", "a")).await.unwrap_err());
    assert_eq!(status, 403, "{message}");
    let (status, message) =
        code(nodes.create(&PostParams::default(), &make("n1", "node-role.kubernetes.io/x")).await.unwrap_err());
    assert_eq!(status, 403, "{message}");
    assert!(message.contains("is not allowed to modify labels: node-role.kubernetes.io/x"), "{message}");
    nodes.create(&PostParams::default(), &make("n1", "kubernetes.io/hostname")).await.unwrap();
    // A secret is the node's to read once one of its pods refers to it.
    server.post("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
    server.post("/api/v1/namespaces/default/secrets", json!({"metadata": {"name": "s"}})).await;
    let secrets: Api<Secret> = Api::namespaced(node, "default");
    assert_eq!(code(secrets.get("s").await.unwrap_err()).0, 403);
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i",
        "envFrom": [{"secretRef": {"name": "s"}}]}]}});
    server.post("/api/v1/namespaces/default/pods", pod).await;
    secrets.get("s").await.unwrap();
}
