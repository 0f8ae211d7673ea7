//! Putting the parts together: the runtime, the API server if there is one, the sources, the manager, the server.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bosun_api::pod::Resources;
use bosun_kit::backoff::Backoff;
use bosun_kit::events::Recorder;
use bosun_kit::gates::FeatureGates;
use bosun_kit::health::Checks;
use bosun_kit::informer::Informer;
use bosun_kit::metrics::Metrics;
use bosun_kit::rate::Limit;
use bosun_kit::tls::ReloadingClientCa;
use bosun_kubelet_cgroup::{Driver, Layout};
use bosun_kubelet_dra::KubeApi;
use bosun_kubelet_node::identity::{IdentityConfig, establish};
use bosun_kubelet_node::machine::MachineReader;
use bosun_kubelet_node::serving::{self, RequestedCert};
use bosun_kubelet_node::{NodeAgent, NodeConfig, NodeHandle, address};
use bosun_kubelet_plugins::{DRA_PLUGIN, Handler};
use bosun_kubelet_server::auth::{ApiReviewer, Auth, AuthConfig, AuthorizationMode, Reviewer};
use bosun_kubelet_server::{KubeletServer, ServerConfig, serve_health};
use bosun_kubelet_trace::Tracing;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher;
use kube::{Api, Client};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustls::server::ResolvesServerCert;
use rustls::server::danger::ClientCertVerifier;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::admission::Offer;
use crate::alignment::plugins::DevicePlugins;
use crate::alignment::{self, Alignment};
use crate::cgroups::Cgroups;
use crate::claims;
use crate::config::KubeletConfiguration;
use crate::context::Context;
use crate::cri::{CriErrorKind, GrpcRuntime, MeteredRuntime, Runtime};
use crate::host::{Facts, Host};
use crate::images::Images;
use crate::images::providers::Providers;
use crate::images::pulled::{Records, Verification};
use crate::kernel::{Kernel, Policy};
use crate::limiting;
use crate::make::Node;
use crate::manager::{Inputs, Manager, Pods, SharedOffer};
use crate::metrics;
use crate::objects::{ApiObjects, NoObjects, Objects};
use crate::observe::Observer;
use crate::options::Options;
use crate::plugins;
use crate::pod_network;
use crate::report::Report;
use crate::sources;
use crate::startup;
use crate::sysctls::Allowlist;
use crate::systemd;
use crate::upkeep::{self, Upkeep};
use crate::userns::{self, Ids, UserNamespaces};
use crate::volumes::csi::CsiVolumes;
use crate::volumes::measured;
use crate::worker::Workers;

/// How long a container runtime that does not answer yet is waited for, from one answer to the next.
const RUNTIME_PATIENCE: Duration = Duration::from_secs(20);

impl Options {
    /// Runs the kubelet until cancelled. Pods go on when it ends.
    ///
    /// # Errors
    /// What it needs is missing, broken or contradictory; the text names it and the remedy.
    pub async fn run(self, cancel: CancellationToken) -> Result<()> {
        let config = self.configuration()?;
        run(self, config, cancel).await
    }
}

/// Runs a kubelet with this configuration (its flags already joined in) until cancelled.
///
/// # Errors
/// As [`Options::run`].
pub async fn run(options: Options, mut config: KubeletConfiguration, cancel: CancellationToken) -> Result<()> {
    for field in config.without_effect() {
        tracing::warn!(field, "this configuration field has no effect in this kubelet yet");
    }
    bosun_kit::tls::install_crypto();
    let layout = Layout::detect();
    limiting::check_machine(&config, &layout)?;
    limiting::reserve_cores(&mut config)?;
    let reservations = limiting::reservations(&config)?;
    let upkeep = upkeep::Settings::new(&config, MachineReader::default().machine().memory as i64)?;
    adjust_oom_score(config.oom_score_adj);
    let name = node_name(&options)?;
    let ips = address::node_ips(&options.node_ip)?;
    let metrics = Metrics::new();
    let gates = config.gates().map_err(anyhow::Error::msg)?;
    let watchdog = systemd::watchdog_timeout().map_err(anyhow::Error::msg)?;
    prepare_kernel(&options, &config, &gates)?;
    open_files(config.max_open_files);
    metrics::register_facts(&metrics, &name, &gates);
    metrics::register_certificates(&metrics, &options.cert_dir);
    let tracing = start_tracing(&config, &name)?;
    let runtime = connect(&config, &cancel).await?;
    let runtime: Arc<dyn Runtime> = Arc::new(MeteredRuntime::new(runtime, &metrics));
    let version = patiently("Version", &cancel, || runtime.version()).await?;
    tracing::info!(name = version.runtime_name, version = version.runtime_version, "container runtime");
    let ask = gates.enabled("KubeletCgroupDriverFromCRI");
    let driver = patiently("RuntimeConfig", &cancel, || limiting::driver(&*runtime, &config, ask)).await?;
    let node = Arc::new(Node {
        systemd_cgroups: driver == Driver::Systemd,
        limits: limiting::settings(&config, &layout),
        ..node(&options, &config, &name, &ips)
    });
    bosun_kit::files::create_dir(&node.root_dir, 0o750)?;
    bosun_kit::files::create_dir(&node.pods_dir(), 0o750)?;
    bosun_kit::files::create_dir(&node.pod_logs_dir, 0o755)?;
    bosun_kit::files::create_dir(&node.container_logs_dir, 0o755)?;
    let of_memory = (node.memory_capacity, &upkeep.eviction_hard);
    let alignment = Arc::new(Alignment::open(&config, &gates, &node.root_dir, of_memory)?);
    let cgroups = Cgroups::detect(driver);
    cgroups.register(&metrics);
    limiting::enter(&config, &cgroups)?;
    cgroups.set_up_node(&node).await.context("make the cgroups of the pods (cgroupRoot)")?;

    let (news_to, news) = mpsc::unbounded_channel();
    let observer = Observer::new(runtime.clone(), node.clone(), news_to);
    observer.relists().register(&metrics);
    // What runs is known before any source speaks, so that it is adopted.
    patiently("listing what it holds", &cancel, || observer.list()).await?;

    let client = join(&options, &config, &name, &cancel).await?;
    let client = client.map(|client| counted(client, &options, &metrics));
    let (probe_metrics, probes) = (Metrics::default(), metrics::Probes::default());
    probes.register(&probe_metrics);
    let workers = Workers::default();
    workers.register(&metrics);
    let (changes_to, changes) = mpsc::unbounded_channel();
    let recorder = match &client {
        Some(client) => {
            let limit = Limit::new(config.event_record_qps, config.event_burst);
            Recorder::limited(client.clone(), "kubelet", Some(&name), limit)
        }
        None => Recorder::to_log(),
    };
    let mut parts = tokio::task::JoinSet::new();
    let enforced = limiting::Enforced::new(&node, &config, reservations, &upkeep.eviction_hard)?;
    enforced.start(cgroups.tree(), &recorder, &mut parts, &cancel).await?;
    let report = Report::new(recorder.clone());
    let api_objects = client.clone().map(|client| ApiObjects::new(client, changes_to));
    let objects: Arc<dyn Objects> = match &api_objects {
        Some(objects) => objects.clone(),
        None => Arc::new(NoObjects),
    };
    let mut images = Images::new(runtime.clone(), objects.clone(), report.clone(), config.parallel_pulls())
        .with_providers(credential_providers(&options)?)
        .with_limit(Limit::new(config.registry_pull_qps, config.registry_burst));
    if gates.enabled("KubeletEnsureSecretPulledImages") {
        images = images.with_records(pull_records(&*runtime, &node, &config).await?);
    }
    images.register(&metrics);
    let per_pod = config.user_namespaces.as_ref().and_then(|configured| configured.ids_per_pod);
    let ids = userns::given().and_then(|given| Ids::new(per_pod, given, config.max_pods));
    let user_namespaces = UserNamespaces::open(ids.map_err(anyhow::Error::msg)?, &node.pods_dir());
    let csi = CsiVolumes::new(&node, client.clone());
    let of_claims = match client.as_ref().filter(|_| gates.enabled("DynamicResourceAllocation")) {
        Some(client) => {
            let api = Arc::new(KubeApi::new(client.clone(), &name));
            let health = gates.enabled("ResourceHealthStatus");
            let settings =
                bosun_kubelet_dra::Settings { health, ..bosun_kubelet_dra::Settings::new(&node.root_dir, &metrics) };
            Some(bosun_kubelet_dra::Manager::start(api, settings)?)
        }
        None => None,
    };
    // What registers by plugins_registry, by its type.
    let mut plugins: Vec<(String, Arc<dyn Handler>)> = Vec::new();
    plugins.extend(of_claims.iter().map(|claims| (DRA_PLUGIN.to_owned(), claims.drivers() as Arc<dyn Handler>)));
    let context = Arc::new(Context {
        csi: csi.clone(),
        node: node.clone(),
        claims: of_claims,
        user_namespaces,
        runtime: runtime.clone(),
        observer: observer.clone(),
        images,
        objects,
        report,
        alignment,
        cgroups,
        client: client.clone(),
        runtime_name: version.runtime_name.clone(),
        probe_metrics: probes,
        workers,
        max_restart_delay: config.max_restart_delay(),
    });
    let pods = Pods::default();
    metrics::register_pods(&metrics, pods.clone());
    let host = Arc::new(Host { context: context.clone(), pods: pods.clone(), configz: configz(&config) });
    let sysctls = Allowlist::with(&config.allowed_unsafe_sysctls).map_err(anyhow::Error::msg);
    let sysctls = sysctls.context("allowedUnsafeSysctls")?;
    let offer: SharedOffer =
        Arc::new(Mutex::new(Offer { name: name.clone(), apparmor: has_apparmor(), sysctls, ..Offer::default() }));
    let (strain_to, strain) = watch::channel(upkeep::Strain::default());
    let facts = Facts {
        runtime: runtime.clone(),
        observer: observer.clone(),
        strain: strain.clone(),
        devices: context.alignment.devices.clone(),
        csi: csi.clone(),
    };

    let mut agent_handle = None;
    if client.is_none() && !config.pod_cidr.is_empty() {
        parts.spawn(pod_network::announce(runtime.clone(), config.pod_cidr.clone(), cancel.clone()));
    }
    if let Some(client) = &client {
        let mut of_node = node_config(&options, &config, &name, &ips)?;
        of_node.eviction_hard.clone_from(&upkeep.eviction_hard);
        let agent = NodeAgent::new(of_node, client.clone(), Arc::new(facts), recorder.clone())?;
        let handle = agent.handle();
        agent_handle = Some(handle.clone());
        parts.spawn(tell_strain(handle.clone(), strain, cancel.clone()));
        parts.spawn(agent.run(cancel.clone()));
        parts.spawn(pod_network::follow(runtime.clone(), handle.node(), cancel.clone()));
        parts.spawn(follow_offer(handle, offer.clone(), config.max_pods, cancel.clone()));
    }
    let poke = move || agent_handle.iter().for_each(NodeHandle::poke);
    parts.spawn(claims::tell_of_devices(context.clone(), pods.clone(), cancel.clone()));
    alignment::start(&context, &pods, &config, &metrics, poke.clone(), &mut parts, &cancel)?;
    let served = Served { host, metrics: metrics.clone(), probe_metrics, gates };
    let checks = serve(&options, &config, &node, served, client.as_ref(), &mut parts, &cancel).await?;
    if let Some(timeout) = watchdog {
        parts.spawn(systemd::feed_watchdog(timeout, checks, systemd::tell, cancel.clone()));
    }
    parts.spawn(observer.run(cancel.clone()));
    let upkeep = Upkeep::new(context.clone(), pods.clone(), offer.clone(), recorder, upkeep, strain_to);
    upkeep.start(&mut parts, &cancel);
    let informer = client.as_ref().map(|client| {
        let selector = watcher::Config::default().fields(&format!("spec.nodeName={name}"));
        Informer::start(Api::<Pod>::all(client.clone()), selector, cancel.clone())
    });
    if let Some(informer) = &informer {
        let (pulls, metrics) = (context.images.measured().clone(), metrics.clone());
        parts.spawn(startup::follow(informer.clone(), pulls, metrics, cancel.clone()));
    }
    plugins.push(csi.registrar());
    plugins.push(DevicePlugins::registrar(context.alignment.devices.clone(), cancel.clone()));
    plugins::start(&node, plugins, &mut parts, &cancel)?;
    measured::register(&metrics, csi.clone(), pods.clone());
    let period = config.volume_stats_agg_period.0;
    parts.spawn(measured::keep(csi.clone(), node.clone(), pods.clone(), period, cancel.clone()));
    if client.is_some() {
        parts.spawn(csi.clone().tell_in_use(poke.clone(), cancel.clone()));
        parts.spawn(csi.clone().keep_limits(cancel.clone()));
        parts.spawn(plugins::keep_csi_node(csi, cancel.clone()));
    }
    let statics = static_pods(&config, &name, &mut parts, &cancel);
    let inputs = Inputs { api: informer, statics, news, changes: api_objects.map(|objects| (changes, objects)) };
    let (ended_to, ended) = mpsc::unbounded_channel();
    let urls = url_pods(&config, &name, &mut parts, &cancel);
    let manager = Manager::new(context, pods, offer, ended_to, cancel.clone()).also_from_url(urls);
    tracing::info!(node = name, standalone = client.is_none(), "kubelet started");
    systemd::announce(NotifyState::Ready);
    manager.run(inputs, ended).await;
    systemd::announce(NotifyState::Stopping);
    cancel.cancel();
    while parts.join_next().await.is_some() {}
    if let Some(tracing) = tracing {
        tracing.stop().await;
    }
    Ok(())
}

/// The records of who may use which image, with what a killed kubelet left behind put right.
async fn pull_records(runtime: &dyn Runtime, node: &Node, config: &KubeletConfiguration) -> Result<Arc<Records>> {
    let listed = config.preloaded_images_verification_allowlist.as_slice();
    let verification = Verification::of(&config.image_pull_credentials_verification_policy, listed);
    let records = Records::open(&node.root_dir, verification)?;
    let images = runtime.list_images().await.context("list the images of the container runtime")?;
    records.recover(images.iter().map(|image| {
        (image.id.as_str(), image.repo_tags.iter().chain(&image.repo_digests).map(String::as_str).collect())
    }));
    Ok(Arc::new(records))
}

/// Whether the kernel has AppArmor, and it is switched on.
fn has_apparmor() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}

/// Begins to send spans, if the configuration says where.
fn start_tracing(config: &KubeletConfiguration, name: &str) -> Result<Option<Tracing>> {
    let Some(tracing) = &config.tracing else { return Ok(None) };
    let settings = bosun_kubelet_trace::Settings {
        endpoint: tracing.endpoint.clone().unwrap_or_else(|| bosun_kubelet_trace::DEFAULT_ENDPOINT.to_owned()),
        per_million: tracing.sampling_rate_per_million.and_then(|rate| rate.try_into().ok()).unwrap_or_default(),
        service: "kubelet",
        host: name.to_owned(),
    };
    Ok(Some(bosun_kubelet_trace::start(&settings)?))
}

fn credential_providers(options: &Options) -> Result<Providers> {
    let pair =
        options.image_credential_provider_config.as_ref().zip(options.image_credential_provider_bin_dir.as_ref());
    Ok(pair.map(|(config, programs)| Providers::load(config, programs)).transpose()?.unwrap_or_default())
}

fn node_name(options: &Options) -> Result<String> {
    let name = match &options.hostname_override {
        Some(name) => name.clone(),
        None => nix::unistd::gethostname().context("read the host name")?.to_string_lossy().into_owned(),
    };
    let name = name.trim().to_lowercase();
    if name.is_empty() {
        bail!("the node has no name: give --hostname-override");
    }
    Ok(name)
}

fn node(options: &Options, config: &KubeletConfiguration, name: &str, ips: &[IpAddr]) -> Node {
    let machine = MachineReader::default().machine();
    let logs = PathBuf::from(&config.pod_logs_dir);
    let links = logs.parent().unwrap_or(Path::new("/var/log")).join("containers");
    Node {
        name: name.to_owned(),
        ips: ips.iter().map(ToString::to_string).collect(),
        root_dir: options.root_dir.clone(),
        container_logs_dir: links,
        pod_logs_dir: logs,
        cluster_dns: config.cluster_dns.clone(),
        cluster_domain: config.cluster_domain.clone(),
        resolver_file: config.resolver_file().map(PathBuf::from),
        seccomp_default: config.seccomp_default,
        cpu_quota_period: config.cpu_cfs_quota.then_some(config.cpu_cfs_quota_period.0),
        memory_capacity: machine.memory as i64,
        memory_allocatable: (machine.memory as i64 - crate::upkeep::reserved_memory(config)).max(0),
        cpu_capacity: i64::from(machine.cpus) * 1000,
        cgroup_root: format!("{}/kubepods", config.cgroup_root.trim_end_matches('/')),
        cgroups_per_qos: config.cgroups_per_qos,
        systemd_cgroups: false,
        limits: Default::default(),
    }
}

async fn connect(config: &KubeletConfiguration, cancel: &CancellationToken) -> Result<Arc<dyn Runtime>> {
    let endpoint = &config.container_runtime_endpoint;
    let runtime = GrpcRuntime::new(endpoint, &config.image_service_endpoint, config.runtime_request_timeout.0)
        .map_err(anyhow::Error::msg)?;
    let began = tokio::time::Instant::now();
    let mut told = false;
    loop {
        let Err(error) = runtime.version().await else { return Ok(Arc::new(runtime)) };
        if began.elapsed() > RUNTIME_PATIENCE {
            bail!(
                "no container runtime answers at {endpoint}: {error}; start containerd, or name its socket with --container-runtime-endpoint"
            );
        }
        if !told {
            tracing::warn!(endpoint, %error, "waiting for the container runtime");
            told = true;
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
            () = cancel.cancelled() => bail!("stopped while waiting for the container runtime"),
        }
    }
}

/// Asks the runtime anew while it gives no answer: one lost answer at the start must not end the kubelet.
async fn patiently<T, F: Future<Output = crate::cri::Result<T>>>(
    what: &str,
    cancel: &CancellationToken,
    ask: impl Fn() -> F,
) -> Result<T> {
    let began = tokio::time::Instant::now();
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    loop {
        let error = match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) if error.kind == CriErrorKind::Unimplemented => return Err(error.into()),
            Err(error) => error,
        };
        if began.elapsed() > RUNTIME_PATIENCE {
            bail!("the container runtime does not answer ({what}): {error}; look at containerd's log");
        }
        tracing::warn!(what, %error, "asking the container runtime again");
        tokio::select! {
            () = tokio::time::sleep(backoff.next_delay()) => {}
            () = cancel.cancelled() => bail!("stopped while waiting for the container runtime"),
        }
    }
}

/// Obtains the node's identity; none in standalone mode.
async fn join(
    options: &Options,
    config: &KubeletConfiguration,
    name: &str,
    cancel: &CancellationToken,
) -> Result<Option<Client>> {
    let Some(kubeconfig) = &options.kubeconfig else { return Ok(None) };
    let identity = IdentityConfig {
        node_name: name.to_owned(),
        kubeconfig: kubeconfig.clone(),
        bootstrap_kubeconfig: options.bootstrap_kubeconfig.clone(),
        cert_dir: options.cert_dir.clone(),
    };
    let identity = establish(&identity, cancel).await?;
    let client = identity.client();
    if config.rotate_certificates {
        tokio::spawn(identity.keep_fresh(cancel.clone()));
    }
    Ok(Some(client))
}

fn node_config(options: &Options, config: &KubeletConfiguration, name: &str, ips: &[IpAddr]) -> Result<NodeConfig> {
    let labels = bosun_kit::flags::parse_pairs(&options.node_labels)
        .map_err(|error| anyhow::anyhow!("--node-labels: {error}"))?;
    let defaults = NodeConfig::new(name);
    Ok(NodeConfig {
        register: config.register_node,
        labels: labels.into_iter().collect(),
        taints: config.register_with_taints.clone(),
        provider_id: Some(config.provider_id.clone()).filter(|id| !id.is_empty()),
        node_ips: ips.to_vec(),
        max_pods: config.max_pods as u32,
        pods_per_core: config.pods_per_core as u32,
        kube_reserved: config.kube_reserved.clone(),
        system_reserved: config.system_reserved.clone(),
        kubelet_port: config.port as u16,
        root_dir: options.root_dir.clone(),
        update_frequency: config.node_status_update_frequency.0,
        report_frequency: config.node_status_report_frequency.0,
        lease_duration: Duration::from_secs(config.node_lease_duration_seconds as u64),
        max_images: usize::try_from(config.node_status_max_images).ok(),
        controller_attach_detach: config.enable_controller_attach_detach,
        ..defaults
    })
}

/// Has the node's conditions shown as soon as they change.
async fn tell_strain(handle: NodeHandle, mut strain: upkeep::Strained, cancel: CancellationToken) {
    loop {
        tokio::select! {
            changed = strain.changed() => match changed {
                Ok(()) => handle.poke(),
                Err(_) => return,
            },
            () = cancel.cancelled() => return,
        }
    }
}

/// Keeps what admission judges by after the Node object.
async fn follow_offer(handle: NodeHandle, offer: SharedOffer, max_pods: i32, cancel: CancellationToken) {
    let mut nodes = handle.node();
    loop {
        if let Some(node) = nodes.borrow_and_update().clone() {
            let status = node.status.as_ref();
            let allocatable = status.and_then(|s| s.allocatable.as_ref());
            let amounts = allocatable.into_iter().flatten();
            let allocatable: Resources =
                amounts.map(|(name, amount)| (name.clone(), bosun_api::quantity::of(amount))).collect();
            // What the Node says has podsPerCore in it.
            let pods = allocatable.get("pods").and_then(|pods| usize::try_from(pods.value()).ok());
            let mut offer = offer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            *offer = Offer {
                known: true,
                name: offer.name.clone(),
                labels: node.metadata.labels.clone().unwrap_or_default(),
                taints: bosun_api::node::taints(&node).to_vec(),
                allocatable,
                max_pods: pods.unwrap_or(max_pods as usize),
                strain: offer.strain.clone(),
                apparmor: offer.apparmor,
                sysctls: offer.sysctls.clone(),
                strict_groups: status.and_then(|s| s.features.as_ref()?.supplemental_groups_policy).unwrap_or_default(),
            };
        }
        tokio::select! {
            changed = nodes.changed() => if changed.is_err() { return },
            () = cancel.cancelled() => return,
        }
    }
}

fn static_pods(
    config: &KubeletConfiguration,
    name: &str,
    parts: &mut tokio::task::JoinSet<()>,
    cancel: &CancellationToken,
) -> Option<mpsc::UnboundedReceiver<BTreeMap<String, Arc<Pod>>>> {
    if config.static_pod_path.is_empty() {
        return None;
    }
    let (statics_to, statics) = mpsc::unbounded_channel();
    let path = PathBuf::from(&config.static_pod_path);
    let poll = config.file_check_frequency.0;
    parts.spawn(sources::watch_static(path, name.to_owned(), poll, statics_to, cancel.clone()));
    Some(statics)
}

/// Static pods from the URL, if one is configured.
fn url_pods(
    config: &KubeletConfiguration,
    name: &str,
    parts: &mut tokio::task::JoinSet<()>,
    cancel: &CancellationToken,
) -> Option<mpsc::UnboundedReceiver<BTreeMap<String, Arc<Pod>>>> {
    if config.static_pod_url.is_empty() {
        return None;
    }
    let (pods_to, pods) = mpsc::unbounded_channel();
    let from = sources::url::Source {
        url: config.static_pod_url.clone(),
        headers: config.static_pod_url_header.clone(),
        node: name.to_owned(),
        period: config.http_check_frequency.0,
    };
    parts.spawn(from.watch(pods_to, cancel.clone()));
    Some(pods)
}

/// Looks after the kernel's settings, as far as they are this kubelet's to set.
fn prepare_kernel(options: &Options, config: &KubeletConfiguration, gates: &FeatureGates) -> Result<()> {
    let kernel = Kernel::default();
    let policy = match config.protect_kernel_defaults {
        true => Policy::Refuse,
        false if options.leave_kernel_defaults || !kernel.is_machine() => Policy::Leave,
        false if gates.enabled("KubeletInUserNamespace") => Policy::TrySet,
        false => Policy::Set,
    };
    kernel.prepare(policy).map_err(anyhow::Error::msg).context("the kernel's settings (protectKernelDefaults)")
}

/// Lets this process have as many files open as the configuration says, or as the host lets it.
fn open_files(wanted: i64) {
    let wanted = u64::try_from(wanted).unwrap_or_default();
    let set = |soft: u64, hard: u64| setrlimit(Resource::RLIMIT_NOFILE, soft, hard);
    let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    if set(wanted, wanted).is_err()
        && let Err(error) = set(wanted.min(hard), hard)
    {
        tracing::warn!(%error, wanted, "maxOpenFiles: the limit was not set");
    }
}

/// The client, with its requests counted.
fn counted(client: Client, options: &Options, metrics: &Metrics) -> Client {
    match &options.kubeconfig {
        Some(kubeconfig) => metrics::count_requests(client, kubeconfig, metrics),
        None => client,
    }
}

/// What the server shows.
struct Served {
    host: Arc<Host>,
    metrics: Metrics,
    probe_metrics: Metrics,
    gates: FeatureGates,
}

/// Serves :10250, the health endpoint and the read-only port; returns the health checks.
async fn serve(
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

fn auth_config(config: &KubeletConfiguration) -> AuthConfig {
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

fn server_config(options: &Options, config: &KubeletConfiguration, node: &Node, gates: &FeatureGates) -> ServerConfig {
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

fn socket(address: &str, port: i32, field: &str) -> Result<SocketAddr> {
    let ip: IpAddr = address.parse().with_context(|| format!("{field}: {address:?} is no IP address"))?;
    Ok(SocketAddr::new(ip, u16::try_from(port)?))
}

async fn listen(address: SocketAddr, field: &str) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address} ({field}): is another kubelet running? Choose another port"))
}

fn certificate(
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

fn configz(config: &KubeletConfiguration) -> serde_json::Value {
    serde_json::to_value(config).unwrap_or_default()
}

/// Lowers our own chance to be killed when memory runs out. A host that refuses is told about, no more.
fn adjust_oom_score(score: i32) {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
        tracing::warn!(score, %error, "the kubelet's oom_score_adj was not set; this host does not allow it");
    }
}
