//! The kubelet's metrics, by the names of stock's dashboards. What has no source here is not among them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::task::{Context, Poll};
use std::time::Duration;

use bosun_kit::gates::{FeatureGates, Stage};
use bosun_kit::metrics::Metrics;
use futures::future::BoxFuture;
use http::{Request, Response};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::client::Body;
use kube::config::Kubeconfig;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;

use crate::config::GATES;
use crate::manager::Pods;
use crate::pod::probe::ProbeKind;
use crate::pod::record::State;
use crate::pod::spec;
use crate::probes::Outcome;

/// The Prometheus client's own buckets, which stock takes where it names none.
pub(crate) const USUAL_BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Shows what does not change: name, version, gates.
pub fn register_facts(metrics: &Metrics, node_name: &str, gates: &FeatureGates) {
    #[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
    struct NodeName {
        node: String,
    }
    #[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
    struct Build {
        git_version: &'static str,
        major: &'static str,
        minor: &'static str,
        platform: String,
    }
    #[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
    struct Feature {
        name: &'static str,
        stage: &'static str,
    }
    let (name, build) = (Family::<NodeName, Gauge>::default(), Family::<Build, Gauge>::default());
    let features = Family::<Feature, Gauge>::default();
    name.get_or_create(&NodeName { node: node_name.to_owned() }).set(1);
    let platform = format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH);
    let build_of_this = Build {
        git_version: bosun_kit::version::GIT_VERSION,
        major: bosun_kit::version::MAJOR,
        minor: bosun_kit::version::MINOR,
        platform,
    };
    build.get_or_create(&build_of_this).set(1);
    for gate in GATES {
        let stage = match gate.stage {
            Stage::Alpha => "ALPHA",
            Stage::Beta => "BETA",
            Stage::Ga => "",
        };
        features.get_or_create(&Feature { name: gate.name, stage }).set(i64::from(gates.enabled(gate.name)));
    }
    metrics.with(|registry| {
        registry.register("kubelet_node_name", "The node's name. The count is always 1", name);
        let help = "A metric with a constant '1' value labeled by what this was built as";
        registry.register("kubernetes_build_info", help, build);
        let help = "This metric records the data about the stage and enablement of a k8s feature";
        registry.register("kubernetes_feature_enabled", help, features);
    });
}

/// Shows how many pods and containers there are, counted when asked.
pub fn register_pods(metrics: &Metrics, pods: Pods) {
    metrics.with(|registry| registry.register_collector(Box::new(RunningPods(pods))));
}

struct RunningPods(Pods);

impl fmt::Debug for RunningPods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RunningPods")
    }
}

impl Collector for RunningPods {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let handles: Vec<_> = self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let mut running = 0;
        let mut containers: BTreeMap<&'static str, i64> = BTreeMap::new();
        for handle in handles {
            let record = handle.snapshot().runtime;
            running += i64::from(record.ready_sandbox().is_some());
            for container in &record.containers {
                let state = match container.state {
                    State::Created => "created",
                    State::Running => "running",
                    State::Exited => "exited",
                    State::Unknown => "unknown",
                };
                *containers.entry(state).or_default() += 1;
            }
        }
        let running = ConstGauge::new(running);
        let help = "Number of pods that have a running pod sandbox";
        running.encode(encoder.encode_descriptor("kubelet_running_pods", help, None, running.metric_type())?)?;
        if containers.is_empty() {
            return Ok(());
        }
        let kind = prometheus_client::metrics::MetricType::Gauge;
        let help = "Number of containers currently running";
        let mut family = encoder.encode_descriptor("kubelet_running_containers", help, None, kind)?;
        for (state, count) in containers {
            let labels = [("container_state", state)];
            ConstGauge::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// Shows for how long the certificates in `folder` still hold, read when asked.
pub fn register_certificates(metrics: &Metrics, folder: &Path) {
    let folder = folder.to_owned();
    metrics.with(|registry| registry.register_collector(Box::new(Certificates { folder })));
}

#[derive(Debug)]
struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// Seconds until the certificate of that name ends; none if there is none.
    fn ttl(&self, name: &str) -> Option<f64> {
        let pem = std::fs::read(self.folder.join(name)).ok()?;
        let certs = bosun_kit::tls::parse_certs(&pem).ok()?;
        let (_, until) = bosun_kit::tls::validity(certs.first()?)?;
        Some((until - Timestamp::now().as_second()) as f64)
    }
}

impl Collector for Certificates {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let kinds = [
            (
                "kubelet-client-current.pem",
                "kubelet_certificate_manager_client_ttl_seconds",
                "Gauge of the TTL (time-to-live) of the Kubelet's client certificate",
            ),
            (
                "kubelet-server-current.pem",
                "kubelet_certificate_manager_server_ttl_seconds",
                "Gauge of the shortest TTL (time-to-live) of the Kubelet's serving certificate",
            ),
        ];
        for (file, name, help) in kinds {
            let Some(ttl) = self.ttl(file) else { continue };
            let ttl = ConstGauge::new(ttl);
            ttl.encode(encoder.encode_descriptor(name, help, None, ttl.metric_type())?)?;
        }
        Ok(())
    }
}

/// How the runtime is listed (stock's "pod lifecycle event generator").
#[derive(Clone)]
pub struct Relists {
    duration: Histogram,
    interval: Histogram,
    last_seen: Gauge,
}

impl Default for Relists {
    fn default() -> Self {
        let histogram = || Histogram::new(USUAL_BUCKETS);
        Self { duration: histogram(), interval: histogram(), last_seen: Gauge::default() }
    }
}

impl Relists {
    /// Shows them.
    pub fn register(&self, metrics: &Metrics) {
        metrics.with(|registry| {
            let help = "Duration in seconds for relisting pods in PLEG";
            registry.register("kubelet_pleg_relist_duration_seconds", help, self.duration.clone());
            let help = "Interval in seconds between relisting in PLEG";
            registry.register("kubelet_pleg_relist_interval_seconds", help, self.interval.clone());
            let help = "Timestamp in seconds when PLEG was last seen active";
            registry.register("kubelet_pleg_last_seen_seconds", help, self.last_seen.clone());
        });
    }

    /// A listing that took `duration` ended now, `interval` after the one before.
    pub fn listed(&self, duration: Duration, interval: Duration) {
        self.duration.observe(duration.as_secs_f64());
        self.interval.observe(interval.as_secs_f64());
        self.last_seen.set(Timestamp::now().as_second());
    }
}

/// Whose probe it was.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Probed {
    container: String,
    namespace: String,
    pod: String,
    probe_type: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ProbeResult {
    container: String,
    namespace: String,
    pod: String,
    pod_uid: String,
    probe_type: &'static str,
    result: &'static str,
}

/// A pod by name.
#[derive(Clone, Copy, Debug)]
pub struct PodName<'a> {
    /// Namespace.
    pub namespace: &'a str,
    /// Name.
    pub name: &'a str,
    /// UID.
    pub uid: &'a str,
}

impl<'a> PodName<'a> {
    /// Of that pod.
    pub fn of(pod: &'a Pod) -> Self {
        Self { namespace: spec::namespace(pod), name: spec::name(pod), uid: spec::uid(pod) }
    }
}

impl Probed {
    fn new(pod: PodName<'_>, container: &str, kind: ProbeKind) -> Self {
        let probe_type = match kind {
            ProbeKind::Startup => "Startup",
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Readiness => "Readiness",
        };
        Self { container: container.into(), namespace: pod.namespace.into(), pod: pod.name.into(), probe_type }
    }

    fn with(&self, of: PodName<'_>, result: &'static str) -> ProbeResult {
        let Self { container, namespace, pod, probe_type } = self.clone();
        ProbeResult { container, namespace, pod, pod_uid: of.uid.to_owned(), probe_type, result }
    }
}

/// What probes found, and how long they took.
#[derive(Clone)]
pub struct Probes {
    results: Family<ProbeResult, Counter>,
    durations: Family<Probed, Histogram>,
}

impl Default for Probes {
    fn default() -> Self {
        Self { results: Family::default(), durations: Family::new_with_constructor(|| Histogram::new(USUAL_BUCKETS)) }
    }
}

impl Probes {
    /// Shows them.
    pub fn register(&self, metrics: &Metrics) {
        metrics.with(|registry| {
            let help = "Cumulative number of a liveness, readiness or startup probe for a container by result";
            registry.register("prober_probe", help, self.results.clone());
            let help = "Duration in seconds for a probe response";
            registry.register("prober_probe_duration_seconds", help, self.durations.clone());
        });
    }

    /// A probe of that pod's container ended after `took`.
    pub fn ended(&self, pod: PodName<'_>, container: &str, kind: ProbeKind, outcome: &Outcome, took: Duration) {
        let probed = Probed::new(pod, container, kind);
        let result = match outcome {
            Outcome::Success => "successful",
            Outcome::Failure(_) => "failed",
            Outcome::Undecided(_) => "unknown",
        };
        self.results.get_or_create(&probed.with(pod, result)).inc();
        self.durations.get_or_create(&probed).observe(took.as_secs_f64());
    }

    /// Those containers of the pod are gone: nothing more is shown of them.
    pub fn forget<'a>(&self, pod: PodName<'_>, containers: impl IntoIterator<Item = &'a str>) {
        for container in containers {
            for kind in [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness] {
                let probed = Probed::new(pod, container, kind);
                self.durations.remove(&probed);
                for result in ["successful", "failed", "unknown"] {
                    self.results.remove(&probed.with(pod, result));
                }
            }
        }
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ApiRequest {
    code: String,
    host: String,
    method: String,
}

/// A client like `client` whose requests are counted in `metrics`; `kubeconfig` says which server they go to.
pub fn count_requests(client: Client, kubeconfig: &Path, metrics: &Metrics) -> Client {
    let requests = Family::<ApiRequest, Counter>::default();
    let help = "Number of HTTP requests, partitioned by status code, method, and host";
    metrics.with(|registry| registry.register("rest_client_requests", help, requests.clone()));
    let namespace = client.default_namespace().to_owned();
    let host = server(kubeconfig).unwrap_or_default();
    Client::new(Counted { client, host, requests }, namespace)
}

/// Host and port of the kubeconfig's server.
fn server(kubeconfig: &Path) -> Option<String> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).ok()?;
    let server = kubeconfig.clusters.into_iter().find_map(|named| named.cluster?.server)?;
    let uri: http::Uri = server.parse().ok()?;
    Some(uri.authority()?.to_string())
}

#[derive(Clone)]
struct Counted {
    client: Client,
    host: String,
    requests: Family<ApiRequest, Counter>,
}

impl tower::Service<Request<Body>> for Counted {
    type Response = Response<Body>;
    type Error = kube::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, kube::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), kube::Error>> {
        // Readiness is the inner client's, which takes any number of requests.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Self { client, host, requests } = self.clone();
        Box::pin(async move {
            let method = request.method().to_string();
            let answer = client.send(request).await;
            let code = answer.as_ref().map_or("<error>".to_owned(), |answer| answer.status().as_u16().to_string());
            requests.get_or_create(&ApiRequest { code, host, method }).inc();
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_have_stock_s_names() {
        let metrics = Metrics::default();
        let mut gates = FeatureGates::new(GATES);
        gates.set("ContainerCheckpoint", false).unwrap();
        register_facts(&metrics, "node-1", &gates);
        let page = metrics.render();
        assert!(page.contains(r#"kubelet_node_name{node="node-1"} 1"#), "{page}");
        assert!(page.contains(r#"kubernetes_feature_enabled{name="ContainerCheckpoint",stage="BETA"} 0"#), "{page}");
        assert!(page.contains(r#"kubernetes_build_info{git_version="v1.36"#), "{page}");
    }

    #[test]
    fn probes_are_shown_until_their_pod_is_gone() {
        let (metrics, probes) = (Metrics::default(), Probes::default());
        probes.register(&metrics);
        let pod = PodName { namespace: "default", name: "web", uid: "u-1" };
        probes.ended(pod, "app", ProbeKind::Liveness, &Outcome::Failure("no".into()), Duration::from_millis(20));
        let page = metrics.render();
        let labels = r#"container="app",namespace="default",pod="web""#;
        let total = format!(r#"prober_probe_total{{{labels},pod_uid="u-1",probe_type="Liveness",result="failed"}} 1"#);
        let count = format!(r#"prober_probe_duration_seconds_count{{{labels},probe_type="Liveness"}} 1"#);
        assert!(page.contains(&total) && page.contains(&count), "{page}");
        probes.forget(pod, ["app"]);
        assert!(!metrics.render().contains("web"));
    }

    #[tokio::test]
    async fn requests_to_the_api_server_are_counted() {
        let absent = tower::service_fn(|_: Request<Body>| async {
            Ok::<_, kube::Error>(Response::builder().status(404).body(Body::empty()).unwrap())
        });
        let file = std::env::temp_dir().join(format!("bosun-kubeconfig-{}", std::process::id()));
        let credential = bosun_kit::client::Credential::Token("t");
        let text = bosun_kit::client::kubeconfig_yaml("c", "https://10.0.0.1:6443", "ca", "u", &credential);
        std::fs::write(&file, text).unwrap();
        let metrics = Metrics::default();
        let client = count_requests(Client::new(absent, "default"), &file, &metrics);
        std::fs::remove_file(&file).unwrap();
        client.send(Request::get("/api").body(Body::empty()).unwrap()).await.unwrap();
        let page = metrics.render();
        let want = r#"rest_client_requests_total{code="404",host="10.0.0.1:6443",method="GET"} 1"#;
        assert!(page.contains(want), "{page}");
    }

    #[test]
    fn listings_and_certificates() {
        let metrics = Metrics::default();
        let relists = Relists::default();
        relists.register(&metrics);
        relists.listed(Duration::from_millis(3), Duration::from_secs(5));
        let folder = std::env::temp_dir().join(format!("bosun-certs-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let ca = bosun_kit::pki::CertificateAuthority::generate("ca").unwrap();
        std::fs::write(folder.join("kubelet-client-current.pem"), ca.cert_pem()).unwrap();
        register_certificates(&metrics, &folder);
        let page = metrics.render();
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(page.contains("kubelet_pleg_relist_duration_seconds_count 1"), "{page}");
        assert!(page.contains("kubelet_pleg_last_seen_seconds 1"), "{page}");
        let ttl = page.lines().find_map(|l| l.strip_prefix("kubelet_certificate_manager_client_ttl_seconds "));
        assert!(ttl.unwrap().parse::<f64>().unwrap() > 0.0);
        assert!(!page.contains("server_ttl_seconds"), "there is no such certificate");
    }
}
