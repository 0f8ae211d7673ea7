//! Putting the parts together: the runtime, the API server if there is one, the sources, the manager, the server.

mod machine;
mod node;
mod runtime;
mod served;
mod statics;

use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result};
use bosun_kit::events::Recorder;
use bosun_kit::informer::Informer;
use bosun_kit::metrics::Metrics;
use bosun_kit::rate::Limit;
use bosun_kubelet_cgroup::{Driver, Layout};
use bosun_kubelet_dra::KubeApi;
use bosun_kubelet_node::machine::MachineReader;
use bosun_kubelet_node::{NodeAgent, NodeHandle, address};
use bosun_kubelet_plugins::{DRA_PLUGIN, Handler};
use bosun_kubelet_trace::Tracing;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::runtime::watcher;
use sd_notify::NotifyState;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::admission::Offer;
use crate::alignment::plugins::DevicePlugins;
use crate::alignment::{self, Alignment};
use crate::cgroups::Cgroups;
use crate::claims;
use crate::config::KubeletConfiguration;
use crate::context::Context;
use crate::cri::{MeteredRuntime, Runtime};
use crate::host::{Facts, Host};
use crate::images::Images;
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
use crate::startup;
use crate::sysctls::Allowlist;
use crate::systemd;
use crate::upkeep::{self, Upkeep};
use crate::userns::{self, Ids, UserNamespaces};
use crate::volumes::csi::CsiVolumes;
use crate::volumes::measured;
use crate::worker::Workers;

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
    machine::adjust_oom_score(config.oom_score_adj);
    let name = node::node_name(&options)?;
    let ips = address::node_ips(&options.node_ip)?;
    let metrics = Metrics::new();
    let gates = config.gates().map_err(anyhow::Error::msg)?;
    let watchdog = systemd::watchdog_timeout().map_err(anyhow::Error::msg)?;
    machine::prepare_kernel(&options, &config, &gates)?;
    machine::open_files(config.max_open_files);
    metrics::register_facts(&metrics, &name, &gates);
    metrics::register_certificates(&metrics, &options.cert_dir);
    let tracing = start_tracing(&config, &name)?;
    let runtime = runtime::connect(&config, &cancel).await?;
    let runtime: Arc<dyn Runtime> = Arc::new(MeteredRuntime::new(runtime, &metrics));
    let version = runtime::patiently("Version", &cancel, || runtime.version()).await?;
    tracing::info!(name = version.runtime_name, version = version.runtime_version, "container runtime");
    let ask = gates.enabled("KubeletCgroupDriverFromCRI");
    let driver = runtime::patiently("RuntimeConfig", &cancel, || limiting::driver(&*runtime, &config, ask)).await?;
    let node = Arc::new(Node {
        systemd_cgroups: driver == Driver::Systemd,
        limits: limiting::settings(&config, &layout),
        ..node::describe(&options, &config, &name, &ips)
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
    runtime::patiently("listing what it holds", &cancel, || observer.list()).await?;

    let client = node::join(&options, &config, &name, &cancel).await?;
    let client = client.map(|client| node::counted(client, &options, &metrics));
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
        .with_providers(runtime::credential_providers(&options)?)
        .with_limit(Limit::new(config.registry_pull_qps, config.registry_burst));
    if gates.enabled("KubeletEnsureSecretPulledImages") {
        images = images.with_records(runtime::pull_records(&*runtime, &node, &config).await?);
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
    let offer: SharedOffer = Arc::new(Mutex::new(Offer {
        name: name.clone(),
        apparmor: machine::has_apparmor(),
        sysctls,
        ..Offer::default()
    }));
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
        let mut of_node = node::node_config(&options, &config, &name, &ips)?;
        of_node.eviction_hard.clone_from(&upkeep.eviction_hard);
        let agent = NodeAgent::new(of_node, client.clone(), Arc::new(facts), recorder.clone())?;
        let handle = agent.handle();
        agent_handle = Some(handle.clone());
        parts.spawn(node::tell_strain(handle.clone(), strain, cancel.clone()));
        parts.spawn(agent.run(cancel.clone()));
        parts.spawn(pod_network::follow(runtime.clone(), handle.node(), cancel.clone()));
        parts.spawn(node::follow_offer(handle, offer.clone(), config.max_pods, cancel.clone()));
    }
    let poke = move || agent_handle.iter().for_each(NodeHandle::poke);
    parts.spawn(claims::tell_of_devices(context.clone(), pods.clone(), cancel.clone()));
    alignment::start(&context, &pods, &config, &metrics, poke.clone(), &mut parts, &cancel)?;
    let served = served::Served { host, metrics: metrics.clone(), probe_metrics, gates };
    let checks = served::serve(&options, &config, &node, served, client.as_ref(), &mut parts, &cancel).await?;
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
    let statics = statics::static_pods(&config, &name, &mut parts, &cancel);
    let inputs = Inputs { api: informer, statics, news, changes: api_objects.map(|objects| (changes, objects)) };
    let (ended_to, ended) = mpsc::unbounded_channel();
    let urls = statics::url_pods(&config, &name, &mut parts, &cancel);
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

fn configz(config: &KubeletConfiguration) -> serde_json::Value {
    serde_json::to_value(config).unwrap_or_default()
}
