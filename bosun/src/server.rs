//! `bosun server`: a control plane in one process. API server, scheduler and controllers are the same code as when each
//! runs alone; here the latter reach the API server within the process, each under its own identity.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bosun_apiserver::{ApiServer, ServiceAccountKeys, user};
use bosun_kit::client::{Credential, kubeconfig_yaml};
use bosun_kit::files::{create_dir, write_atomic};
use bosun_kit::tls;
use bosun_store::{EmbeddedStore, Store};
use clap::Args;
use ipnet::IpNet;
use kube::Client;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::addons::{self, ADDONS};
use crate::address::own_address;
use crate::join::ca_hash;
use crate::pki::ClusterPki;
use crate::token;

/// How long an addon's manifests are tried until the API server takes them.
const ADDON_DEADLINE: Duration = Duration::from_secs(60);
const LOCAL_NAMES: [&str; 4] = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"];

/// Flags of `bosun server`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Where everything of this control plane is kept: certificates, the store, the join token.
    #[arg(long, default_value = "/var/lib/bosun/server")]
    data_dir: PathBuf,
    /// Where to write the administrator's kubeconfig; in the data folder when not given.
    #[arg(long)]
    write_kubeconfig: Option<PathBuf>,

    /// The address to listen on.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED), help_heading = "API server")]
    bind_address: IpAddr,
    /// The port to listen on.
    #[arg(long, default_value_t = 6443, help_heading = "API server")]
    secure_port: u16,
    /// The address that nodes and pods reach this server by; the one listened on, or that of the default route.
    #[arg(long, help_heading = "API server")]
    advertise_address: Option<IpAddr>,
    /// Further names and addresses for the serving certificate.
    #[arg(long, value_delimiter = ',', help_heading = "API server")]
    tls_san: Vec<String>,

    /// The range that service addresses come from.
    #[arg(long, alias = "service-cluster-ip-range", default_value = "10.96.0.0/12", help_heading = "Network")]
    service_cidr: IpNet,
    /// The range that pod addresses come from; every node gets a part of it.
    #[arg(long, default_value = "10.244.0.0/16", help_heading = "Network")]
    cluster_cidr: IpNet,
    /// The cluster DNS's address, within --service-cidr.
    #[arg(long, default_value = "10.96.0.10", help_heading = "Network")]
    cluster_dns: IpAddr,
    /// The cluster's domain.
    #[arg(long, default_value = "cluster.local", help_heading = "Network")]
    cluster_domain: String,
    /// Parts and addons not to run, as `scheduler,dns`.
    #[arg(long, value_delimiter = ',', value_parser = ["scheduler", "controller-manager", "dns", "node-access"])]
    disable: Vec<String>,
}

impl Options {
    fn disabled(&self, part: &str) -> bool {
        self.disable.iter().any(|disabled| disabled == part)
    }

    /// Where others reach the API server.
    fn advertise(&self) -> Result<IpAddr> {
        match self.advertise_address {
            Some(address) => Ok(address),
            None if !self.bind_address.is_unspecified() => Ok(self.bind_address),
            None => own_address("--advertise-address"),
        }
    }

    /// All names that the serving certificate must have.
    fn names(&self, advertise: IpAddr) -> BTreeSet<String> {
        let mut names: BTreeSet<String> = LOCAL_NAMES.iter().map(|&name| name.to_owned()).collect();
        names.insert(format!("kubernetes.default.svc.{}", self.cluster_domain));
        names.insert(advertise.to_string());
        names.insert("127.0.0.1".to_owned());
        // The `kubernetes` Service has the first address of the range.
        names.extend(self.service_cidr.hosts().next().map(|first| first.to_string()));
        if !self.bind_address.is_unspecified() {
            names.insert(self.bind_address.to_string());
        }
        names.extend(self.tls_san.iter().cloned());
        names
    }
}

/// Runs a control plane until cancelled.
///
/// # Errors
/// Something it needs is missing, broken or taken, or a part ended by itself; the text names it and the remedy.
pub(crate) async fn run(options: Options, cancel: CancellationToken) -> Result<()> {
    if !options.service_cidr.contains(&options.cluster_dns) {
        bail!("--cluster-dns {} is not within --service-cidr {}", options.cluster_dns, options.service_cidr);
    }
    let advertise = options.advertise()?;
    create_dir(&options.data_dir, 0o700)?;
    // Taken before anything is written: a second server on this machine fails here and leaves no trace.
    let listener = bosun_kit::http::bind(SocketAddr::new(options.bind_address, options.secure_port)).await?;
    // The store is locked by its server: another one with this folder fails here, with the certificates untouched.
    let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(options.data_dir.join("store.redb"))?);
    let pki = ClusterPki::open(&options.data_dir.join("pki"), &options.names(advertise))?;
    let url = format!("https://{}", SocketAddr::new(advertise, options.secure_port));
    let server = ApiServer::start(api_config(&options, &pki, advertise)?, store).await?;
    let config = serving(&pki)?;
    let mut parts = JoinSet::new();
    let (service, stop) = (server.service(), cancel.clone());
    parts.spawn(async move {
        bosun_kit::http::serve(listener, Some(Arc::new(config)), service, stop).await;
        Ok(())
    });
    let admin = server.client_as(user("kubernetes-admin", ["system:masters"]));
    let token = token::ensure(&admin, &options.data_dir.join("token")).await?;
    write_admin_kubeconfig(&options, &pki, &url)?;
    let join = format!("bosun agent --server {url} --token {token} --ca-cert-hash {}", ca_hash(&pki.ca_pem)?);
    write_atomic(&options.data_dir.join("join"), format!("{join}\n").as_bytes(), 0o600)?;
    tracing::info!(url, "control plane started; a node joins with the command in {}/join", options.data_dir.display());

    start_scheduler(&mut parts, &options, &server, &cancel);
    start_controllers(&mut parts, &options, &server, &pki, &cancel)?;
    tokio::spawn(apply_addons(admin, options.clone(), cancel.clone()));

    let first = match parts.join_next().await {
        Some(ended) => ended.context("a part of the server panicked").flatten(),
        None => Ok(()),
    };
    cancel.cancel();
    while parts.join_next().await.is_some() {}
    server.stop();
    first
}

fn api_config(options: &Options, pki: &ClusterPki, advertise: IpAddr) -> Result<bosun_apiserver::Config> {
    let read = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    let keys = ServiceAccountKeys {
        private_pem: read(&pki.service_account.key)?,
        public_pem: read(&pki.service_account.cert)?,
    };
    let (cert, key) = (read(&pki.kubelet_client.cert)?, read(&pki.kubelet_client.key)?);
    let kubelet_tls = tls::client_config(tls::roots(pki.ca_pem.as_bytes())?, Some((cert.as_bytes(), key.as_bytes())))?;
    let issuer = format!("https://kubernetes.default.svc.{}", options.cluster_domain);
    Ok(bosun_apiserver::Config {
        service_account_keys: Some(keys),
        audiences: vec![issuer.clone()],
        issuer,
        service_cidrs: vec![options.service_cidr],
        advertise: Some(SocketAddr::new(advertise, options.secure_port)),
        kubelet_tls: Some(Arc::new(kubelet_tls)),
        ..bosun_apiserver::Config::default()
    })
}

fn serving(pki: &ClusterPki) -> Result<rustls::ServerConfig> {
    let cert = tls::ReloadingCert::load(&pki.apiserver.cert, &pki.apiserver.key)?;
    Ok(tls::server_config(cert, Some(tls::roots(pki.ca_pem.as_bytes())?))?)
}

fn write_admin_kubeconfig(options: &Options, pki: &ClusterPki, url: &str) -> Result<()> {
    let default = options.data_dir.join("admin.kubeconfig");
    let path = options.write_kubeconfig.as_ref().unwrap_or(&default);
    let cert = std::fs::read_to_string(&pki.admin.cert)?;
    let key = std::fs::read_to_string(&pki.admin.key)?;
    let credential = Credential::Certificate { cert_pem: &cert, key_pem: &key };
    let text = kubeconfig_yaml("bosun", url, &pki.ca_pem, "admin", &credential);
    write_atomic(path, text.as_bytes(), 0o600)?;
    Ok(())
}

fn start_scheduler(parts: &mut JoinSet<Result<()>>, options: &Options, server: &ApiServer, cancel: &CancellationToken) {
    if options.disabled("scheduler") {
        return;
    }
    let client = server.client_as(user("system:kube-scheduler", ["system:authenticated"]));
    let stop = cancel.clone();
    let config = bosun_scheduler::SchedulerConfig::default();
    parts.spawn(async move { bosun_scheduler::run(client, config, stop).await.context("scheduler") });
}

fn start_controllers(
    parts: &mut JoinSet<Result<()>>,
    options: &Options,
    server: &ApiServer,
    pki: &ClusterPki,
    cancel: &CancellationToken,
) -> Result<()> {
    if options.disabled("controller-manager") {
        return Ok(());
    }
    let config = bosun_controllers::ControllersConfig {
        cluster_cidr: Some(options.cluster_cidr),
        service_cidr: Some(options.service_cidr),
        root_ca_pem: Some(pki.ca_pem.clone()),
        signing_ca: Some((std::fs::read_to_string(&pki.ca.cert)?, std::fs::read_to_string(&pki.ca.key)?)),
        auto_approve_kubelet_serving: true,
        ..Default::default()
    };
    let server = server.clone();
    let clients = move |controller: &str| -> Client {
        let name = format!("system:serviceaccount:kube-system:{controller}");
        let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"];
        server.client_as(user(name, groups))
    };
    let stop = cancel.clone();
    parts.spawn(async move { bosun_controllers::run(clients, config, stop).await.context("controllers") });
    Ok(())
}

async fn apply_addons(admin: Client, options: Options, cancel: CancellationToken) {
    let dns = options.cluster_dns.to_string();
    let values = addons::Values { cluster_dns: &dns, cluster_domain: &options.cluster_domain };
    for addon in ADDONS.iter().filter(|addon| !options.disabled(addon.name)) {
        let apply = async {
            let mut backoff = bosun_kit::backoff::Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
            while let Err(error) = addons::apply(&admin, addon, &values).await {
                tracing::warn!("{error:#}; tried again");
                tokio::time::sleep(backoff.next_delay()).await;
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            done = tokio::time::timeout(ADDON_DEADLINE, apply) => if done.is_err() {
                tracing::error!(addon = addon.name, "addon not applied; it is tried again when the server starts anew");
            }
        }
    }
}
