//! Pulls by a real containerd from a registry of this test's own: logins, merged pulls, and who may use what was pulled.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod real;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bosun_kit::events::Recorder;
use bosun_kubelet::cri::Runtime;
use bosun_kubelet::cri::grpc::GrpcRuntime;
use bosun_kubelet::images::pulled::{Records, Verification};
use bosun_kubelet::images::{Images, Present, Wanted};
use bosun_kubelet::objects::Objects;
use bosun_kubelet::pod::plan::Failure;
use bosun_kubelet::report::Report;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Pod, Secret};
use real::TestNode;
use serde_json::{Value, json};

/// A registry of one image, which is `open/app` for all and `team/app` for who knows the word.
struct Registry {
    blobs: BTreeMap<String, Vec<u8>>,
    manifest: String,
    word: Mutex<String>,
    manifests_read: AtomicUsize,
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

impl Registry {
    fn new() -> Self {
        let (layer, config) = real::image_parts();
        let part = |kind: &str, bytes: &[u8]| {
            json!({"mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": format!("sha256:{}", real::digest(bytes)), "size": bytes.len()})
        };
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST,
            "config": part("config.v1+json", config.as_bytes()), "layers": [part("layer.v1.tar", &layer)]});
        let blobs = [config.into_bytes(), layer].map(|blob| (format!("sha256:{}", real::digest(&blob)), blob));
        Self {
            blobs: blobs.into(),
            manifest: manifest.to_string(),
            word: Mutex::new("word".to_owned()),
            manifests_read: AtomicUsize::new(0),
        }
    }

    fn answer(&self, request: &Request<hyper::body::Incoming>) -> Response<Full<Bytes>> {
        let login = format!("Basic {}", STANDARD.encode(format!("user:{}", self.word.lock().unwrap())));
        let given = request.headers().get("authorization").and_then(|value| value.to_str().ok());
        let path = request.uri().path();
        if path.contains("/team/") && given != Some(&login) {
            let refusal = Response::builder().status(StatusCode::UNAUTHORIZED);
            return refusal.header("www-authenticate", "Basic realm=\"test\"").body(Full::default()).unwrap();
        }
        let (kind, digest, bytes) = match path.rsplit_once('/') {
            Some((front, _)) if front.ends_with("/manifests") => {
                if request.method() == http::Method::HEAD {
                    self.manifests_read.fetch_add(1, Ordering::Relaxed);
                }
                let bytes = self.manifest.as_bytes();
                (MANIFEST, format!("sha256:{}", real::digest(bytes)), bytes)
            }
            Some((front, name)) if front.ends_with("/blobs") && self.blobs.contains_key(name) => {
                ("application/octet-stream", name.to_owned(), self.blobs[name].as_slice())
            }
            _ => return Response::builder().status(StatusCode::NOT_FOUND).body(Full::default()).unwrap(),
        };
        let body = if request.method() == http::Method::HEAD { Bytes::new() } else { Bytes::copy_from_slice(bytes) };
        let answer = Response::builder().header("content-type", kind).header("docker-content-digest", digest);
        answer.header("content-length", bytes.len()).body(Full::new(body)).unwrap()
    }

    /// Serves in the node's network namespace. Returns host and port.
    fn serve(self: &Arc<Self>, node: &TestNode) -> String {
        let namespace = format!("/run/netns/{}", node.name);
        // A thread of its own: it stays in the namespace.
        let bound = std::thread::spawn(move || {
            let namespace = std::fs::File::open(namespace).unwrap();
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            std::net::TcpListener::bind("127.0.0.1:0").unwrap()
        });
        let listener = bound.join().unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let (listener, registry) = (tokio::net::TcpListener::from_std(listener).unwrap(), self.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let registry = registry.clone();
                let handler = hyper::service::service_fn(move |request| {
                    let answer = registry.answer(&request);
                    async { Ok::<_, Infallible>(answer) }
                });
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                tokio::spawn(async move { server.serve_connection(TokioIo::new(stream), handler).await.ok() });
            }
        });
        address.to_string()
    }
}

/// Secrets by name, each with the password in it.
struct Secrets {
    registry: String,
    passwords: Mutex<BTreeMap<&'static str, &'static str>>,
}

#[async_trait]
impl Objects for Secrets {
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, String> {
        let Some(password) = self.passwords.lock().unwrap().get(name).copied() else { return Ok(None) };
        let config = json!({"auths": {&self.registry: {"auth": STANDARD.encode(format!("user:{password}"))}}});
        let data = json!({".dockerconfigjson": STANDARD.encode(config.to_string())});
        let metadata = json!({"name": name, "namespace": namespace, "uid": format!("uid-of-{name}")});
        Ok(Some(serde_json::from_value(json!({"metadata": metadata, "data": data})).unwrap()))
    }
}

struct Rig {
    images: Images,
    node: TestNode,
    registry: Arc<Registry>,
    secrets: Arc<Secrets>,
    host: String,
}

impl Rig {
    fn start() -> Self {
        let node = TestNode::start();
        let registry = Arc::new(Registry::new());
        let host = registry.serve(&node);
        let runtime =
            GrpcRuntime::new(&format!("unix://{}", node.path("c.sock")), "", Duration::from_secs(120)).unwrap();
        let passwords = [("good", "word"), ("same", "word"), ("bad", "guess")];
        let secrets = Arc::new(Secrets { registry: host.clone(), passwords: Mutex::new(passwords.into()) });
        let images = images(Arc::new(runtime), secrets.clone(), &node);
        Self { images, node, registry, secrets, host }
    }

    async fn ensure(&self, image: &str, policy: &str, uid: &str, secrets: &[&str]) -> Result<Present, Failure> {
        let secrets: Vec<Value> = secrets.iter().map(|name| json!({"name": name})).collect();
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": uid, "namespace": "default", "uid": uid},
            "spec": {"containers": [{"name": "c", "image": image}], "imagePullSecrets": secrets}}))
        .unwrap();
        self.images.ensure(&pod, Wanted { container: Some("c"), image, policy }).await
    }

    fn pulls(&self) -> usize {
        self.registry.manifests_read.load(Ordering::Relaxed)
    }
}

fn images(runtime: Arc<dyn Runtime>, secrets: Arc<Secrets>, node: &TestNode) -> Images {
    let records = Records::open(&node.folder.join("kubelet"), Verification::default()).unwrap();
    Images::new(runtime, secrets, Report::new(Recorder::to_log()), 2).with_records(Arc::new(records))
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_pulled_with_a_login_and_kept_for_those_who_have_one() {
    let rig = Rig::start();
    tokio::time::timeout(Duration::from_secs(120), follow(&rig)).await.expect("the test takes too long");
}

async fn follow(rig: &Rig) {
    let (open, team) = (format!("{}/open/app:1", rig.host), format!("{}/team/app:1", rig.host));
    // Pods that ask at once wait for one pull.
    let asked = ["a", "b", "c", "d"].map(|uid| rig.ensure(&open, "IfNotPresent", uid, &[]));
    for present in futures::future::join_all(asked).await {
        present.unwrap();
    }
    assert_eq!(rig.pulls(), 1);
    rig.ensure(&open, "Never", "e", &[]).await.unwrap();

    let refused = rig.ensure(&team, "IfNotPresent", "f", &[]).await.unwrap_err();
    assert_eq!(refused.reason, "ErrImagePull");
    let held = rig.ensure(&team, "IfNotPresent", "f", &["good"]).await.unwrap_err();
    assert_eq!(held.reason, "ImagePullBackOff");
    assert!(held.message.starts_with(&format!("Back-off pulling image {team:?}: ErrImagePull: ")), "{}", held.message);

    // The bad login is tried first, the good one then.
    let pulled = rig.ensure(&team, "IfNotPresent", "g", &["bad", "good"]).await.unwrap();
    assert_eq!(pulled, rig.ensure(&team, "IfNotPresent", "h", &["good"]).await.unwrap());
    let before = rig.pulls();
    rig.ensure(&team, "Never", "i", &["same"]).await.unwrap();
    assert_eq!(rig.pulls(), before, "the same login in another secret needs no pull");
    let refused = rig.ensure(&team, "Never", "j", &["bad"]).await.unwrap_err();
    assert_eq!(refused.reason, "ErrImageNeverPull", "an image that others pulled is not there for this pod");
    assert_eq!(rig.ensure(&team, "IfNotPresent", "k", &["bad"]).await.unwrap_err().reason, "ErrImagePull");

    // The owner of a known secret changes the password; a kubelet that starts anew knows as much.
    *rig.registry.word.lock().unwrap() = "other".to_owned();
    rig.secrets.passwords.lock().unwrap().insert("good", "other");
    let runtime =
        GrpcRuntime::new(&format!("unix://{}", rig.node.path("c.sock")), "", Duration::from_secs(120)).unwrap();
    let images = images(Arc::new(runtime), rig.secrets.clone(), &rig.node);
    let before = rig.pulls();
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "l", "namespace": "default", "uid": "l"},
        "spec": {"containers": [], "imagePullSecrets": [{"name": "good"}]}}))
    .unwrap();
    images.ensure(&pod, Wanted { container: Some("c"), image: &team, policy: "IfNotPresent" }).await.unwrap();
    assert_eq!(rig.pulls(), before);
}
