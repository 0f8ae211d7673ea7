//! From request to answer: authenticate, authorize, route, handle.

use std::convert::Infallible;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bosun_kit::health::Checks;
use bosun_kit::http::{Body, BoxError, Peer, json, serve, stream, text};
use bosun_kit::metrics::{Metrics, not_found};
use bosun_kit::tls;
use bosun_kubelet_trace::{Spec, is_on, note, traced};
use futures::TryStreamExt;
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode, header};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::auth::{Auth, Refusal, User};
use crate::host::{ContainerRef, HostError, KubeletHost, PodRef, RuntimeStorage, StreamOptions};
use crate::logs::{self, LogQuery, QueryError};
use crate::node_logs;
use crate::requests::RequestMetrics;
use crate::route::{Route, query_pairs};
use crate::sli::CountedChecks;
use crate::stats::{self, Stats, StatsConfig};
use crate::streaming;
use crate::zpages;

/// How long the kubelet may take to answer one question.
const HOST_DEADLINE: Duration = Duration::from_secs(30);
/// How long the runtime may take to tell what it keeps on disk.
const STORAGE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a checkpoint may take that names no time.
const CHECKPOINT_DEADLINE: Duration = Duration::from_secs(150);
/// How long a command of `/run` may take.
const RUN_DEADLINE: Duration = Duration::from_secs(3600);

/// How the server is set up.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Name of the node.
    pub node_name: String,
    /// The kubelet's folder, whose file system `/stats/summary` shows.
    pub root_dir: PathBuf,
    /// For how long the size of a folder is taken as known (`volumeStatsAggPeriod`).
    pub volume_period: Duration,
    /// `enableDebuggingHandlers`: logs, exec, attach, run, port-forward and the running pods are served.
    pub debugging_handlers: bool,
    /// `enableSystemLogHandler`: `/logs/` is served.
    pub system_log_handler: bool,
    /// `enableSystemLogQuery`: `/logs/?query=…` is understood.
    pub system_log_query: bool,
    /// `enableProfilingHandler`: `/debug/pprof` is not refused as switched off, but as missing.
    pub profiling_handler: bool,
    /// `enableDebugFlagsHandler`: the same of `/debug/flags/v`.
    pub debug_flags_handler: bool,
    /// The gate `ContainerCheckpoint`: `/checkpoint/` is served.
    pub checkpoints: bool,
    /// Flags and their values, as `/flagz` shows them.
    pub flags: Vec<(String, String)>,
}

impl ServerConfig {
    /// With stock's defaults.
    pub fn new(node_name: impl Into<String>, root_dir: impl Into<PathBuf>) -> Self {
        Self {
            node_name: node_name.into(),
            root_dir: root_dir.into(),
            volume_period: Duration::from_secs(60),
            debugging_handlers: true,
            system_log_handler: true,
            system_log_query: false,
            profiling_handler: true,
            debug_flags_handler: true,
            checkpoints: true,
            flags: Vec::new(),
        }
    }
}

/// The kubelet's server. One is made, shared, and served on :10250.
pub struct KubeletServer {
    config: ServerConfig,
    host: Arc<dyn KubeletHost>,
    auth: Auth,
    metrics: Metrics,
    probe_metrics: Metrics,
    requests: RequestMetrics,
    checks: CountedChecks,
    started: Timestamp,
    stats: Arc<Stats>,
}

impl KubeletServer {
    /// `metrics` is what `/metrics` shows (the server adds its own), `probe_metrics` what `/metrics/probes` shows.
    pub fn new(
        config: ServerConfig,
        host: Arc<dyn KubeletHost>,
        auth: Auth,
        metrics: Metrics,
        probe_metrics: Metrics,
    ) -> Arc<Self> {
        let stats = StatsConfig {
            volume_period: config.volume_period,
            ..StatsConfig::new(config.node_name.clone(), config.root_dir.clone())
        };
        let stats = Arc::new(Stats::new(stats));
        let requests = RequestMetrics::register(&metrics);
        let checks = CountedChecks::new();
        checks.add("ping", || Ok(()));
        checks.add("log", || Ok(()));
        let of_host = host.clone();
        checks.add("syncloop", move || of_host.sync_loop_health());
        let started = Timestamp::now();
        Arc::new(Self { config, host, auth, metrics, probe_metrics, requests, checks, started, stats })
    }

    /// The checks behind `/healthz`, to be shown on :10248 too.
    pub fn checks(&self) -> &Checks {
        self.checks.checks()
    }

    /// Serves `listener` until `cancel`. `tls` comes from `bosun_kit::tls::server_config` with the client CA.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        tls: Arc<rustls::ServerConfig>,
        cancel: CancellationToken,
    ) {
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = self.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        serve(listener, Some(tls), service, cancel).await;
    }

    /// Serves what needs no authentication where the configuration says so (`readOnlyPort`), until `cancel`.
    pub async fn serve_read_only(self: Arc<Self>, listener: TcpListener, cancel: CancellationToken) {
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = self.clone();
            async move { Ok::<_, Infallible>(server.answer_read_only(request).await) }
        });
        serve(listener, None, service, cancel).await;
    }

    /// Answers one request of the read-only port: pods, usage, metrics and health; nothing that runs or shows more.
    pub async fn answer_read_only(&self, request: Request<Body>) -> Response<Body> {
        let route = match Route::parse(request.method(), request.uri().path()) {
            route @ (Route::Health(_)
            | Route::Pods
            | Route::Summary
            | Route::Metrics
            | Route::CadvisorMetrics
            | Route::ResourceMetrics
            | Route::ProbeMetrics
            | Route::SliMetrics
            | Route::MethodNotAllowed(_)) => route,
            _ => Route::NotFound,
        };
        let _measured = self.requests.begin(request.method().as_str(), route.metric(), "readonly");
        self.handle(route, request).await.unwrap_or_else(|error| failed(&error))
    }

    /// Answers one request; the connection's [`Peer`] is in its extensions.
    pub async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let route = Route::parse(&parts.method, parts.uri.path());
        if !is_on() {
            return self.answer_to(parts, body, route).await;
        }
        let (headers, method, path) = (parts.headers.clone(), parts.method.to_string(), route.metric());
        let span = || Spec::request(format!("/{path}"), &headers).with("http.request.method", method);
        traced(span, async {
            let answer = self.answer_to(parts, body, route).await;
            note("http.response.status_code", i64::from(answer.status().as_u16()));
            answer
        })
        .await
    }

    async fn answer_to(&self, parts: Parts, body: Body, route: Route) -> Response<Body> {
        let _measured = self.requests.begin(parts.method.as_str(), route.metric(), "readwrite");
        let certificate = parts.extensions.get::<Peer>().and_then(certificate_user);
        match self.auth.check(&parts, certificate).await {
            Ok(user) => {
                tracing::trace!(user = user.name, method = %parts.method, path = parts.uri.path(), "request");
                let answer = self.handle(self.permitted(route), Request::from_parts(parts, body)).await;
                answer.unwrap_or_else(|error| failed(&error))
            }
            Err(refusal) => refused(&refusal),
        }
    }

    /// The route, unless the configuration switched it off.
    fn permitted(&self, route: Route) -> Route {
        let debugging = matches!(
            route,
            Route::Run(_)
                | Route::Exec(_)
                | Route::Attach(_)
                | Route::PortForward(_)
                | Route::Logs(_)
                | Route::RunningPods
                | Route::Checkpoint(_)
                | Route::NodeLog(_)
                | Route::Profile
                | Route::DebugFlags
        );
        match route {
            _ if debugging && !self.config.debugging_handlers => Route::Disabled("Debug endpoints are disabled."),
            Route::NodeLog(_) if !self.config.system_log_handler => Route::Disabled("logs endpoint is disabled."),
            Route::Profile if !self.config.profiling_handler => Route::Disabled("profiling endpoint is disabled."),
            Route::DebugFlags if !self.config.debug_flags_handler => Route::Disabled("flags endpoint is disabled."),
            Route::Checkpoint(_) if !self.config.checkpoints => Route::NotFound,
            route => route,
        }
    }

    async fn handle(&self, route: Route, request: Request<Body>) -> Result<Response<Body>, HostError> {
        let query = request.uri().query();
        match route {
            Route::Health(single) => Ok(self.checks().respond("healthz", single.as_deref(), query)),
            Route::Pods => Ok(pod_list(self.host.pods().iter().map(|pod| &**pod))),
            Route::RunningPods => Ok(pod_list(within(HOST_DEADLINE, self.host.running_pods()).await?.iter())),
            Route::Logs(target) => self.logs(&target, query).await,
            Route::Exec(target) => self.exec(&target, request).await,
            Route::Attach(target) => self.attach(&target, request).await,
            Route::Run(target) => self.run(&target, query).await,
            Route::PortForward(target) => self.port_forward(target, request).await,
            Route::Summary => {
                // As Go reads a boolean.
                let on = |value: &str| matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True");
                let brief = query_pairs(query).iter().any(|(k, v)| k == "only_cpu_and_memory" && on(v));
                Ok(json(StatusCode::OK, &self.summary(brief).await?))
            }
            Route::Metrics => Ok(self.metrics.respond()),
            Route::ProbeMetrics => Ok(self.probe_metrics.respond()),
            Route::ResourceMetrics => Ok(prometheus(stats::resource_metrics(&self.summary(true).await?))),
            Route::CadvisorMetrics => Ok(prometheus(self.cadvisor().await?)),
            Route::Configz => Ok(json(StatusCode::OK, &json!({"kubeletconfig": self.host.configz()}))),
            Route::SliMetrics => Ok(self.checks.metrics().respond()),
            Route::Statusz => Ok(zpages::status(request.headers(), self.started, Timestamp::now())),
            Route::Flagz => Ok(zpages::flags(request.headers(), &self.config.flags)),
            Route::Checkpoint(target) => self.checkpoint(&target, query).await,
            Route::NodeLog(path) => {
                let queries = self.config.system_log_query;
                Ok(node_logs::respond(self.host.log_dir(), path, &query_pairs(query), queries).await)
            }
            Route::Profile => Ok(missing("Go's runtime profiles (/debug/pprof): this kubelet has no Go runtime")),
            Route::DebugFlags => Ok(missing("changing flags while running (/debug/flags/v)")),
            Route::MethodNotAllowed(allowed) => {
                let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
                response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
                Ok(response)
            }
            Route::Disabled(message) => Ok(text(StatusCode::METHOD_NOT_ALLOWED, format!("{message}\n"))),
            Route::NotFound => Ok(not_found()),
        }
    }

    async fn summary(&self, brief: bool) -> Result<stats::Summary, HostError> {
        let sources = self.host.usage_sources();
        let storage = if brief { RuntimeStorage::default() } else { self.runtime_storage().await };
        let stats = self.stats.clone();
        blocking(move || stats.collect(&sources, &storage, brief)).await
    }

    /// What the runtime keeps on disk; a summary without it is better than none.
    async fn runtime_storage(&self) -> RuntimeStorage {
        within(STORAGE_DEADLINE, self.host.runtime_storage()).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "the runtime's storage is left out of the summary");
            RuntimeStorage::default()
        })
    }

    async fn cadvisor(&self) -> Result<String, HostError> {
        let sources = self.host.usage_sources();
        let stats = self.stats.clone();
        blocking(move || stats.cadvisor(&sources)).await
    }

    async fn logs(&self, target: &ContainerRef, query: Option<&str>) -> Result<Response<Body>, HostError> {
        let pairs = query_pairs(query);
        let pairs = pairs.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let query = match LogQuery::parse(pairs, Timestamp::now()) {
            Ok(query) => query,
            Err(error @ QueryError::Undecodable) => return Err(HostError::BadRequest(error.to_string())),
            Err(error @ QueryError::Invalid) => return Ok(text(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())),
        };
        let ContainerRef { namespace, pod: name, container, .. } = target;
        let pod = self.host.pod(namespace, name);
        let pod = pod.ok_or_else(|| HostError::NotFound(format!("pod {name:?} does not exist")))?;
        if !logs::has_container(&pod, container) {
            return Err(HostError::NotFound(format!("container {container:?} not found in pod {name:?}")));
        }
        let log = within(HOST_DEADLINE, self.host.container_log(target, query.previous)).await?;
        let bytes = logs::read(log, query)
            .await
            .map_err(|error| HostError::Internal(format!("failed to open the log of {target}: {error}")))?;
        let mut response = Response::new(stream(bytes.map_err(BoxError::from)));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        Ok(response)
    }

    async fn exec(&self, target: &ContainerRef, mut request: Request<Body>) -> Result<Response<Body>, HostError> {
        let query = query_pairs(request.uri().query());
        let options = streaming::stream_options(&query)?;
        self.check_target(target)?;
        let carriage = streaming::check_upgrade(request.headers_mut(), false)?;
        let command: Vec<String> = query.into_iter().filter(|(key, _)| key == "command").map(|(_, v)| v).collect();
        let url = within(HOST_DEADLINE, self.host.exec(target, &command, options)).await?;
        streaming::carry(request, &url, carriage, options).await
    }

    async fn attach(&self, target: &ContainerRef, mut request: Request<Body>) -> Result<Response<Body>, HostError> {
        let options = streaming::stream_options(&query_pairs(request.uri().query()))?;
        self.check_target(target)?;
        let carriage = streaming::check_upgrade(request.headers_mut(), false)?;
        let url = within(HOST_DEADLINE, self.host.attach(target, options)).await?;
        streaming::carry(request, &url, carriage, options).await
    }

    async fn port_forward(&self, mut target: PodRef, mut request: Request<Body>) -> Result<Response<Body>, HostError> {
        let ports = streaming::forwarded_ports(request.headers(), &query_pairs(request.uri().query()))?;
        let pod = self.find(&target.namespace, &target.name, target.uid.as_deref())?;
        let carriage = streaming::check_upgrade(request.headers_mut(), true)?;
        // From here on this pod is meant and no later one of its name.
        target.uid.clone_from(&pod.metadata.uid);
        let url = within(HOST_DEADLINE, self.host.port_forward(&target, &ports)).await?;
        streaming::carry(request, &url, carriage, StreamOptions::default()).await
    }

    async fn run(&self, target: &ContainerRef, query: Option<&str>) -> Result<Response<Body>, HostError> {
        self.check_target(target)?;
        let query = query_pairs(query);
        let command = query.iter().find(|(key, _)| key == "cmd").map_or("", |(_, value)| value);
        let command: Vec<String> = command.split(' ').map(str::to_owned).collect();
        let output = within(RUN_DEADLINE, self.host.run(target, &command)).await?;
        Ok(text(StatusCode::OK, output))
    }

    async fn checkpoint(&self, target: &ContainerRef, query: Option<&str>) -> Result<Response<Body>, HostError> {
        let not_found = |message: String| Err(HostError::NotFound(message));
        let Some(pod) = self.host.pod(&target.namespace, &target.pod) else {
            return not_found("pod does not exist".to_owned());
        };
        if !logs::has_container(&pod, &target.container) {
            return not_found(format!("container {} does not exist", target.container));
        }
        // Of several the last counts, and what is no number is a 404, as in stock.
        let query = query_pairs(query);
        let timeout = match query.iter().rfind(|(key, _)| key == "timeout").map(|(_, value)| value.parse::<u32>()) {
            None => None,
            Some(Ok(seconds)) => Some(Duration::from_secs(seconds.into())),
            Some(Err(_)) => return not_found("cannot parse value of timeout parameter".to_owned()),
        };
        let deadline = timeout.map_or(CHECKPOINT_DEADLINE, |timeout| timeout + Duration::from_secs(5));
        let written = within(deadline, self.host.checkpoint(target, timeout)).await;
        let location =
            written.map_err(|error| HostError::Internal(format!("checkpointing of {target} failed ({error})")))?;
        Ok(json(StatusCode::OK, &json!({"items": [location]})))
    }

    fn check_target(&self, target: &ContainerRef) -> Result<(), HostError> {
        let pod = self.find(&target.namespace, &target.pod, target.uid.as_deref())?;
        if logs::has_container(&pod, &target.container) {
            return Ok(());
        }
        Err(HostError::NotFound(format!("container not found ({:?})", target.container)))
    }

    fn find(&self, namespace: &str, name: &str, uid: Option<&str>) -> Result<Arc<Pod>, HostError> {
        let pod = self.host.pod(namespace, name).ok_or_else(|| HostError::NotFound("pod does not exist".to_owned()))?;
        if uid.is_some() && uid != pod.metadata.uid.as_deref() {
            return Err(HostError::NotFound("pod not found".to_owned()));
        }
        Ok(pod)
    }
}

/// Serves `/healthz` in plain text, normally on 127.0.0.1:10248, until `cancel`.
pub async fn serve_health(listener: TcpListener, checks: Checks, cancel: CancellationToken) {
    let service = tower::service_fn(move |request: Request<Body>| {
        let response = match Route::parse(request.method(), request.uri().path()) {
            Route::Health(single) => checks.respond("healthz", single.as_deref(), request.uri().query()),
            _ => not_found(),
        };
        std::future::ready(Ok::<_, Infallible>(response))
    });
    serve(listener, None, service, cancel).await;
}

/// The user of the connection's certificate. A connection may outlive it: it is looked at for each request.
fn certificate_user(peer: &Peer) -> Option<User> {
    let leaf = peer.certificates.first()?;
    let (from, until) = tls::validity(leaf)?;
    if !(from..=until).contains(&Timestamp::now().as_second()) {
        return None;
    }
    let identity = tls::identity(leaf)?;
    Some(User { name: identity.user, groups: identity.groups, ..User::default() })
}

fn refused(refusal: &Refusal) -> Response<Body> {
    let status = match refusal {
        Refusal::Unauthorized => StatusCode::UNAUTHORIZED,
        Refusal::Forbidden { .. } => StatusCode::FORBIDDEN,
        Refusal::NoAnswer { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    };
    text(status, refusal.to_string())
}

fn failed(error: &HostError) -> Response<Body> {
    let status = match error {
        HostError::NotFound(_) => StatusCode::NOT_FOUND,
        HostError::BadRequest(_) => StatusCode::BAD_REQUEST,
        HostError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        HostError::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    text(status, error.to_string())
}

/// Reads usage on a thread that may block.
async fn blocking<T: Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> Result<T, HostError> {
    tokio::task::spawn_blocking(read).await.map_err(|error| HostError::Internal(format!("read usage: {error}")))
}

/// The answer for what stock has and we have not.
fn missing(what: &str) -> Response<Body> {
    text(StatusCode::NOT_IMPLEMENTED, format!("not implemented: {what}\n"))
}

async fn within<T>(
    deadline: Duration,
    answer: impl Future<Output = Result<T, HostError>> + Send,
) -> Result<T, HostError> {
    match tokio::time::timeout(deadline, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(HostError::Unavailable(format!("the container runtime gave no answer in {deadline:?}"))),
    }
}

fn pod_list<'a>(pods: impl Iterator<Item = &'a Pod>) -> Response<Body> {
    let items: Vec<&Pod> = pods.collect();
    json(StatusCode::OK, &json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

fn prometheus(page: String) -> Response<Body> {
    let mut response = text(StatusCode::OK, page);
    let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}
