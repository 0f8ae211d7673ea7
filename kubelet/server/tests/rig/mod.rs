//! A kubelet server over real TLS, with a kubelet of one pod, an API server of a few permissions and a runtime's
//! streaming server behind it.

mod spdy;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bosun_kit::http::{Body, empty};
use bosun_kit::metrics::Metrics;
use bosun_kit::pki::{CertificateAuthority, KeyedCert, LeafParams, Usage};
use bosun_kit::tls;
use bosun_kubelet_server::auth::{Access, Auth, AuthConfig, ReviewError, Reviewer, User};
use bosun_kubelet_server::host::{
    ContainerLog, ContainerRef, HostError, KubeletHost, PodRef, RuntimeStorage, StreamOptions, UsageSources,
};
use bosun_kubelet_server::{KubeletServer, ServerConfig};
use futures::FutureExt;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// A kubelet with one pod.
pub(crate) struct Host {
    folder: PathBuf,
    streaming: SocketAddr,
    /// What the runtime was asked for.
    pub(crate) asked: Mutex<Vec<String>>,
    pub(crate) health: Mutex<Result<(), String>>,
}

impl Host {
    fn url(&self, what: String) -> Result<String, HostError> {
        self.asked.lock().unwrap().push(what);
        Ok(format!("http://{}/session/token?a=b", self.streaming))
    }
}

#[async_trait]
impl KubeletHost for Host {
    fn pods(&self) -> Vec<Arc<Pod>> {
        self.pod("default", "web").into_iter().collect()
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let pod = serde_json::json!({
            "metadata": {"namespace": "default", "name": "web", "uid": "u-1"},
            "spec": {"containers": [{"name": "app"}]},
        });
        ((namespace, name) == ("default", "web")).then(|| Arc::new(serde_json::from_value(pod).unwrap()))
    }

    async fn running_pods(&self) -> Result<Vec<Pod>, HostError> {
        Err(HostError::Unavailable("the runtime is away".into()))
    }

    async fn container_log(&self, _: &ContainerRef, previous: bool) -> Result<ContainerLog, HostError> {
        if previous {
            let message = "previous terminated container \"app\" in pod \"web\" not found";
            return Err(HostError::BadRequest(message.into()));
        }
        Ok(ContainerLog { path: Some(self.folder.join("0.log")), done: futures::future::ready(()).boxed() })
    }

    async fn exec(&self, target: &ContainerRef, command: &[String], o: StreamOptions) -> Result<String, HostError> {
        let streams = [(o.stdin, " in"), (o.stdout, " out"), (o.stderr, " err"), (o.tty, " tty")];
        let streams: String = streams.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
        self.url(format!("exec {target} {command:?}{streams}"))
    }

    async fn attach(&self, target: &ContainerRef, _: StreamOptions) -> Result<String, HostError> {
        self.url(format!("attach {target}"))
    }

    async fn port_forward(&self, pod: &PodRef, ports: &[u16]) -> Result<String, HostError> {
        self.url(format!("forward {} {ports:?}", pod.uid.as_deref().unwrap_or("?")))
    }

    async fn run(&self, _: &ContainerRef, command: &[String]) -> Result<Vec<u8>, HostError> {
        Ok(format!("ran {command:?}").into_bytes())
    }

    async fn checkpoint(&self, target: &ContainerRef, timeout: Option<Duration>) -> Result<PathBuf, HostError> {
        match timeout {
            Some(Duration::ZERO) => Err(HostError::Internal("CheckpointContainer: unimplemented".into())),
            _ => Ok(PathBuf::from(format!("/checkpoints/{target} {timeout:?}"))),
        }
    }

    fn sync_loop_health(&self) -> Result<(), String> {
        self.health.lock().unwrap().clone()
    }

    fn usage_sources(&self) -> UsageSources {
        UsageSources::default()
    }

    async fn runtime_storage(&self) -> Result<RuntimeStorage, HostError> {
        Err(HostError::Unavailable("the runtime is away".into()))
    }

    fn configz(&self) -> serde_json::Value {
        serde_json::json!({"maxPods": 110})
    }

    fn log_dir(&self) -> PathBuf {
        self.folder.clone()
    }
}

/// An API server that knows one token and lets users do what is listed.
#[derive(Default)]
pub(crate) struct Reviews {
    allowed: BTreeSet<(&'static str, &'static str, &'static str)>,
    pub(crate) down: Mutex<bool>,
    pub(crate) tokens: AtomicUsize,
    pub(crate) accesses: AtomicUsize,
}

#[async_trait]
impl Reviewer for Reviews {
    async fn token(&self, token: &str) -> Result<Option<User>, ReviewError> {
        self.tokens.fetch_add(1, Ordering::SeqCst);
        let user = User { name: "tokener".into(), groups: vec!["g".into()], ..User::default() };
        Ok((token == "good").then_some(user))
    }

    async fn access(&self, access: &Access) -> Result<bool, ReviewError> {
        self.accesses.fetch_add(1, Ordering::SeqCst);
        if *self.down.lock().unwrap() {
            return Err(ReviewError("down".into()));
        }
        assert!(access.user.groups.iter().any(|group| group == "system:authenticated"));
        Ok(self.allowed.contains(&(access.user.name.as_str(), access.verb, access.subresource)))
    }
}

/// The server and what stands around it.
pub(crate) struct Kubelet {
    addr: SocketAddr,
    pub(crate) ca: CertificateAuthority,
    pub(crate) host: Arc<Host>,
    pub(crate) reviews: Arc<Reviews>,
    _folder: tempfile::TempDir,
    stop: CancellationToken,
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A certificate for ten minutes.
pub(crate) fn leaf(cn: &str, usage: Usage) -> LeafParams {
    LeafParams {
        cn: cn.into(),
        organizations: vec!["people".into()],
        sans: vec!["127.0.0.1".into()],
        usages: vec![usage],
        lifetime: Duration::from_secs(600),
    }
}

impl Kubelet {
    pub(crate) async fn start(auth: AuthConfig, allowed: &[(&'static str, &'static str, &'static str)]) -> Self {
        tls::install_crypto();
        let folder = tempfile::tempdir().unwrap();
        let lines = "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:01Z stderr F two\n";
        std::fs::write(folder.path().join("0.log"), lines).unwrap();
        let host = Arc::new(Host {
            folder: folder.path().to_owned(),
            streaming: streaming_server().await,
            asked: Mutex::default(),
            health: Mutex::new(Ok(())),
        });
        let reviews = Arc::new(Reviews { allowed: allowed.iter().copied().collect(), ..Reviews::default() });
        let config = ServerConfig::new("node-1", folder.path());
        let auth = Auth::new(auth, Some(reviews.clone()));
        let server = KubeletServer::new(config, host.clone(), auth, Metrics::new(), Metrics::default());
        let ca = CertificateAuthority::generate("cluster").unwrap();
        let serving = ca.issue(&leaf("node", Usage::ServerAuth)).unwrap();
        let serving = tls::FixedCert::new(serving.cert_pem.as_bytes(), serving.key_pem.as_bytes()).unwrap();
        let client_ca = tls::roots(ca.cert_pem().as_bytes()).unwrap();
        let config = Arc::new(tls::server_config(serving, Some(client_ca)).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        tokio::spawn(server.serve(listener, config, stop.clone()));
        Self { addr, ca, host, reviews, _folder: folder, stop }
    }

    /// A connection with or without a client certificate.
    pub(crate) async fn session(&self, identity: Option<&KeyedCert>) -> Result<SendRequest<Body>, String> {
        let identity = identity.map(|i| (i.cert_pem.as_bytes(), i.key_pem.as_bytes()));
        let mut config = tls::client_config(tls::roots(self.ca.cert_pem().as_bytes()).unwrap(), identity).unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let stream = TcpStream::connect(self.addr).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let name = "127.0.0.1".try_into().unwrap();
        let stream = connector.connect(name, stream).await.map_err(|error| error.to_string())?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        tokio::spawn(connection.with_upgrades());
        Ok(sender)
    }

    pub(crate) async fn send(
        &self,
        identity: Option<&KeyedCert>,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, String> {
        self.session(identity).await?.send_request(request).await.map_err(|error| error.to_string())
    }

    pub(crate) async fn ask(&self, identity: Option<&KeyedCert>, method: &str, path: &str) -> (u16, String) {
        self.ask_with(identity, None, method, path).await
    }

    pub(crate) async fn ask_with(
        &self,
        identity: Option<&KeyedCert>,
        token: Option<&str>,
        method: &str,
        path: &str,
    ) -> (u16, String) {
        let mut request = Request::builder().method(method).uri(path).header("host", "node");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = self.send(identity, request.body(empty()).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    /// A client certificate of the cluster's authority.
    pub(crate) fn person(&self, name: &str) -> KeyedCert {
        self.ca.issue(&leaf(name, Usage::ClientAuth)).unwrap()
    }
}

/// A runtime's streaming server: says what it was asked, then echoes in upper case.
async fn streaming_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(session(stream));
        }
    });
    addr
}

async fn session(mut stream: TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let remote_command = head.contains("x-stream-protocol-version: v4.channel.k8s.io");
    let upgrade = if head.to_lowercase().contains("websocket") { "websocket" } else { "SPDY/3.1" };
    let answer = format!("HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: {upgrade}\r\n\r\n");
    stream.write_all(answer.as_bytes()).await.unwrap();
    if remote_command {
        return spdy::serve(stream).await;
    }
    stream.write_all(format!("{}|", head.replace("\r\n", "/")).as_bytes()).await.unwrap();
    let mut buffer = [0; 64];
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        stream.write_all(&buffer[..n].to_ascii_uppercase()).await.unwrap();
    }
}
