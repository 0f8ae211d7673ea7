//! What the kubelet serves: :10250, the health endpoint, the read-only port.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bosun_kit::gates::FeatureGates;
use bosun_kit::health::Checks;
use bosun_kit::metrics::Metrics;
use bosun_kit::tls::ReloadingClientCa;
use bosun_kubelet_node::serving;
use bosun_kubelet_node::serving::RequestedCert;
use bosun_kubelet_server::auth::{ApiReviewer, Auth, AuthConfig, AuthorizationMode, Reviewer};
use bosun_kubelet_server::{KubeletServer, ServerConfig, serve_health};
use kube::Client;
use rustls::server::ResolvesServerCert;
use rustls::server::danger::ClientCertVerifier;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::KubeletConfiguration;
use crate::host::Host;
use crate::make::Node;
use crate::options::Options;

/// What the server shows.
pub(super) struct Served {
    pub(super) host: Arc<Host>,
    pub(super) metrics: Metrics,
    pub(super) probe_metrics: Metrics,
    pub(super) gates: FeatureGates,
}

/// Serves :10250, the health endpoint and the read-only port; returns the health checks.
pub(super) async fn serve(
    options: &Options,
    config: &KubeletConfiguration,
    node: &Node,
    served: Served,
    client: Option<&Client>,
    parts: &mut tokio::task::JoinSet<()>,
    cancel: &CancellationToken,
) -> Result<Checks> {
    let reviewer = client.map(|client| Arc::new(ApiReviewer::new(client.clone(), &node.name)) as Arc<dyn Reviewer>);
    let auth = Auth::new(auth_config(config), reviewer);
    let server_config = server_config(options, config, node, &served.gates);
    let server = KubeletServer::new(server_config, served.host, auth, served.metrics, served.probe_metrics);
    if config.healthz_port > 0 {
        let address = socket(&config.healthz_bind_address, config.healthz_port, "healthzBindAddress")?;
        let listener = listen(address, "healthzPort").await?;
        parts.spawn(serve_health(listener, server.checks().clone(), cancel.clone()));
    }
    if config.read_only_port > 0 {
        tracing::warn!(port = config.read_only_port, "readOnlyPort shows every pod of this node to anyone");
        let listener = listen(socket(&config.address, config.read_only_port, "address")?, "readOnlyPort").await?;
        parts.spawn(server.clone().serve_read_only(listener, cancel.clone()));
    }
    let checks = server.checks().clone();
    if config.enable_server {
        let certificate = certificate(options, config, node, client, parts, cancel)?;
        let clients = match config.authentication.x509.client_ca_file.as_str() {
            "" => None,
            path => {
                let context = || format!("authentication.x509.clientCAFile {path}");
                Some(ReloadingClientCa::load(Path::new(path)).with_context(context)? as Arc<dyn ClientCertVerifier>)
            }
        };
        let tls = bosun_kit::tls::server_config_by(&config.tls_policy()?, certificate, clients)?;
        let listener = listen(socket(&config.address, config.port, "address")?, "port").await?;
        parts.spawn(server.serve(listener, Arc::new(tls), cancel.clone()));
    }
    Ok(checks)
}

pub(super) fn auth_config(config: &KubeletConfiguration) -> AuthConfig {
    AuthConfig {
        anonymous: config.authentication.anonymous.enabled,
        webhook: config.authentication.webhook.enabled,
        token_ttl: config.authentication.webhook.cache_ttl.0,
        mode: match config.authorization.mode.as_str() {
            "AlwaysAllow" => AuthorizationMode::AlwaysAllow,
            _ => AuthorizationMode::Webhook,
        },
        authorized_ttl: config.authorization.webhook.cache_authorized_ttl.0,
        unauthorized_ttl: config.authorization.webhook.cache_unauthorized_ttl.0,
    }
}

pub(super) fn server_config(
    options: &Options,
    config: &KubeletConfiguration,
    node: &Node,
    gates: &FeatureGates,
) -> ServerConfig {
    ServerConfig {
        volume_period: config.volume_stats_agg_period.0,
        debugging_handlers: config.enable_debugging_handlers,
        system_log_handler: config.enable_system_log_handler,
        system_log_query: config.enable_system_log_query && gates.enabled("NodeLogQuery"),
        profiling_handler: config.enable_profiling_handler,
        debug_flags_handler: config.enable_debug_flags_handler,
        checkpoints: gates.enabled("ContainerCheckpoint"),
        flags: options.shown(),
        ..ServerConfig::new(&node.name, &node.root_dir)
    }
}

pub(super) fn socket(address: &str, port: i32, field: &str) -> Result<SocketAddr> {
    let ip: IpAddr = address.parse().with_context(|| format!("{field}: {address:?} is no IP address"))?;
    Ok(SocketAddr::new(ip, u16::try_from(port)?))
}

pub(super) async fn listen(address: SocketAddr, field: &str) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address} ({field}): is another kubelet running? Choose another port"))
}

pub(super) fn certificate(
    options: &Options,
    config: &KubeletConfiguration,
    node: &Node,
    client: Option<&Client>,
    parts: &mut tokio::task::JoinSet<()>,
    cancel: &CancellationToken,
) -> Result<Arc<dyn ResolvesServerCert>> {
    if !config.tls_cert_file.is_empty() {
        let (cert, key) = (Path::new(&config.tls_cert_file), Path::new(&config.tls_private_key_file));
        return Ok(serving::from_files(cert, key)?);
    }
    match client.filter(|_| config.server_tls_bootstrap) {
        Some(client) => {
            let requested = RequestedCert::new(&node.name, &options.cert_dir);
            let names: Vec<String> = node.ips.iter().cloned().chain([node.name.clone()]).collect();
            let (names_to, names) = watch::channel(names);
            let (requester, client, cancel) = (requested.clone(), client.clone(), cancel.clone());
            parts.spawn(async move {
                requester.keep_fresh(client, names, cancel).await;
                drop(names_to);
            });
            Ok(requested)
        }
        None => {
            let ips: Vec<IpAddr> = node.ips.iter().filter_map(|ip| ip.parse().ok()).collect();
            Ok(serving::self_signed(&options.cert_dir, &node.name, &ips)?)
        }
    }
}
