//! A small API server for the tests: objects by path, watches, and signing of certificate requests, over real HTTPS.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bosun_kit::http::{Body, BoxError, Peer, json, serve, stream};
use bosun_kit::pki::{CertificateAuthority, LeafParams, Usage};
use bosun_kit::tls;
use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tokio_util::sync::CancellationToken;

/// The bootstrap token it knows.
pub(crate) const TOKEN: &str = "abcdef.0123456789abcdef";
const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

pub(crate) struct Api {
    pub(crate) addr: SocketAddr,
    pub(crate) ca: CertificateAuthority,
    /// The life of the certificates it signs.
    pub(crate) lifetime: Mutex<Duration>,
    /// Deny certificate requests.
    pub(crate) deny: Mutex<bool>,
    state: Mutex<State>,
    changes: broadcast::Sender<(String, Value)>,
    stop: CancellationToken,
}

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<String, Value>,
    /// Who asked, for what.
    log: Vec<(String, String)>,
}

impl Drop for Api {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Api {
    pub(crate) async fn start() -> Arc<Self> {
        tls::install_crypto();
        let ca = CertificateAuthority::generate("test-ca").unwrap();
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
        let api = Arc::new(Self {
            addr: listener.local_addr().unwrap(),
            ca,
            lifetime: Mutex::new(Duration::from_secs(3600)),
            deny: Mutex::new(false),
            state: Mutex::default(),
            changes: broadcast::channel(1000).0,
            stop: CancellationToken::new(),
        });
        let (weak, stop) = (Arc::downgrade(&api), api.stop.clone());
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = weak.upgrade();
            async move {
                Ok::<_, Infallible>(match api {
                    Some(api) => api.answer(request).await,
                    None => status(503, "ServiceUnavailable", "stopped"),
                })
            }
        });
        tokio::spawn(serve(listener, Some(Arc::new(config)), service, stop));
        api
    }

    pub(crate) fn object(&self, path: &str) -> Option<Value> {
        self.state.lock().unwrap().objects.get(path).cloned()
    }

    /// Puts an object there behind the kubelet's back.
    pub(crate) fn put(&self, path: &str, object: Value) {
        self.store(path, object);
    }

    pub(crate) fn log(&self) -> Vec<(String, String)> {
        self.state.lock().unwrap().log.clone()
    }

    pub(crate) fn objects(&self, prefix: &str) -> Vec<Value> {
        let state = self.state.lock().unwrap();
        state.objects.iter().filter(|(path, _)| path.starts_with(prefix)).map(|(_, object)| object.clone()).collect()
    }

    fn store(&self, path: &str, mut object: Value) -> Value {
        let mut state = self.state.lock().unwrap();
        state.version += 1;
        let kind = if state.objects.contains_key(path) { "MODIFIED" } else { "ADDED" };
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(format!("uid-{}", state.version));
        }
        state.objects.insert(path.to_owned(), object.clone());
        let collection = path.rsplit_once('/').unwrap().0.to_owned();
        let _ = self.changes.send((collection, json!({"type": kind, "object": object})));
        object
    }

    async fn answer(self: Arc<Self>, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let path = parts.uri.path().to_owned();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let certificates = parts.extensions.get::<Peer>().unwrap().certificates.clone();
        let token = parts.headers.get("authorization").and_then(|v| v.to_str().ok()?.strip_prefix("Bearer "));
        let user = match (certificates.first(), token) {
            (Some(leaf), _) => tls::identity(leaf).unwrap().user,
            (None, Some(TOKEN)) => "system:bootstrap:abcdef".to_owned(),
            _ => return status(401, "Unauthorized", "Unauthorized"),
        };
        self.state.lock().unwrap().log.push((user, format!("{} {path}", parts.method)));
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        match parts.method {
            Method::POST => self.create(&path, body),
            Method::GET if query.contains("watch=true") => self.watch(&path, &query),
            Method::GET => self.get(&path, &query),
            Method::PUT => self.replace(&path, body),
            Method::PATCH => self.patch(&path, &body),
            _ => status(405, "MethodNotAllowed", "no"),
        }
    }

    fn create(self: &Arc<Self>, collection: &str, mut object: Value) -> Response<Body> {
        if let Some(prefix) = object["metadata"]["generateName"].as_str() {
            object["metadata"]["name"] = json!(format!("{prefix}{}", self.state.lock().unwrap().version));
        }
        let path = format!("{collection}/{}", object["metadata"]["name"].as_str().unwrap());
        if self.object(&path).is_some() {
            return status(409, "AlreadyExists", "already exists");
        }
        let stored = self.store(&path, object);
        if collection == CSRS {
            let api = self.clone();
            let csr = stored.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                api.decide(&path, csr);
            });
        }
        json(StatusCode::CREATED, &stored)
    }

    fn decide(&self, path: &str, mut csr: Value) {
        use base64::Engine as _;
        let base64 = base64::engine::general_purpose::STANDARD;
        if *self.deny.lock().unwrap() {
            csr["status"] =
                json!({"conditions": [{"type": "Denied", "status": "True", "reason": "Policy", "message": "no"}]});
        } else {
            let request = base64.decode(csr["spec"]["request"].as_str().unwrap()).unwrap();
            let usages: Vec<Usage> = csr["spec"]["usages"]
                .as_array()
                .unwrap()
                .iter()
                .filter_map(|usage| match usage.as_str().unwrap() {
                    "client auth" => Some(Usage::ClientAuth),
                    "server auth" => Some(Usage::ServerAuth),
                    _ => None,
                })
                .collect();
            let lifetime = *self.lifetime.lock().unwrap();
            let cert = self.ca.sign_csr(std::str::from_utf8(&request).unwrap(), &usages, lifetime).unwrap();
            csr["status"] = json!({"certificate": base64.encode(cert)});
        }
        self.store(path, csr);
    }

    fn get(&self, path: &str, query: &str) -> Response<Body> {
        if let Some(object) = self.object(path) {
            return json(StatusCode::OK, &object);
        }
        if is_collection(path) {
            let items: Vec<Value> =
                self.objects(&format!("{path}/")).into_iter().filter(|object| selected(object, query)).collect();
            let version = self.state.lock().unwrap().version.to_string();
            return json(
                StatusCode::OK,
                &json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items}),
            );
        }
        status(404, "NotFound", "not found")
    }

    fn watch(&self, path: &str, query: &str) -> Response<Body> {
        // Everything there is first, as if it came after the version asked for: the client copes.
        let (path, query) = (path.to_owned(), query.to_owned());
        let live = BroadcastStream::new(self.changes.subscribe());
        let since: u64 = query.split('&').find_map(|p| p.strip_prefix("resourceVersion=")?.parse().ok()).unwrap_or(0);
        let newer =
            |object: &Value| object["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap() > since;
        let missed: Vec<_> = self
            .objects(&format!("{path}/"))
            .into_iter()
            .filter(newer)
            .map(|object| Ok((path.clone(), json!({"type": "MODIFIED", "object": object}))))
            .collect();
        let events = futures::stream::iter(missed).chain(live).filter_map(move |event| {
            let line =
                event.ok().filter(|(collection, event)| *collection == path && selected(&event["object"], &query));
            futures::future::ready(line.map(|(_, event)| Ok::<_, BoxError>(Bytes::from(format!("{event}\n")))))
        });
        Response::new(stream(events))
    }

    fn replace(&self, path: &str, object: Value) -> Response<Body> {
        match self.object(path) {
            None => status(404, "NotFound", "not found"),
            Some(old) if old["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] => {
                status(409, "Conflict", "the object has been modified")
            }
            Some(_) => json(StatusCode::OK, &self.store(path, object)),
        }
    }

    fn patch(&self, path: &str, patch: &Value) -> Response<Body> {
        let path = path.trim_end_matches("/status");
        let Some(mut object) = self.object(path) else { return status(404, "NotFound", "not found") };
        merge(&mut object, patch);
        json(StatusCode::OK, &self.store(path, object))
    }
}

fn is_collection(path: &str) -> bool {
    ["/nodes", "/leases", "/events", "/certificatesigningrequests"].iter().any(|kind| path.ends_with(kind))
}

fn selected(object: &Value, query: &str) -> bool {
    let name = query.split('&').find_map(|p| p.strip_prefix("fieldSelector=")?.strip_prefix("metadata.name%3D"));
    name.is_none_or(|name| object["metadata"]["name"] == name)
}

/// Strategic merge as far as nodes need it: lists of things with a `type` are merged by it.
fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in patch {
        match value {
            Value::Null => drop(into.as_object_mut().unwrap().remove(key)),
            Value::Array(list) if list.first().is_some_and(|first| first["$patch"] == "replace") => {
                into[key] = json!(list[1..]);
            }
            Value::Array(list) if key == "conditions" => {
                let mut merged = into[key].as_array().cloned().unwrap_or_default();
                for item in list {
                    match merged.iter_mut().find(|old| old["type"] == item["type"]) {
                        Some(old) => merge(old, item),
                        None => merged.push(item.clone()),
                    }
                }
                into[key] = json!(merged);
            }
            _ => merge(&mut into[key], value),
        }
    }
}

fn status(code: u16, reason: &str, message: &str) -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
        "reason": reason, "message": message});
    json(StatusCode::from_u16(code).unwrap(), &status)
}
