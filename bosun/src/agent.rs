//! `bosun agent`: a node in one process. It prepares what each part would be given on a stock node (a bootstrap
//! kubeconfig, a `KubeletConfiguration`, plugins in the CNI folder, a container runtime) and then runs the parts with
//! the same options they have as programs of their own.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use bosun_containerd::Settings;
use bosun_kit::client::{Credential, kubeconfig_yaml};
use bosun_kit::files::{appears, create_dir, write_atomic};
use clap::Args;
use ipnet::IpNet;
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::address::own_address;
use crate::join::fetch_ca;

/// Flags of `bosun agent`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// The API server's URL, as `https://ADDRESS:6443`.
    #[arg(long, env = "BOSUN_SERVER", help_heading = "Joining")]
    server: String,
    /// The bootstrap token, as `ID.SECRET`. Needed until the node has its own certificate.
    #[arg(long, env = "BOSUN_TOKEN", hide_env_values = true, help_heading = "Joining")]
    token: Option<String>,
    /// A file that holds the bootstrap token.
    #[arg(long, conflicts_with = "token", help_heading = "Joining")]
    token_file: Option<PathBuf>,
    /// The cluster authority's certificate.
    #[arg(long, help_heading = "Joining")]
    ca_file: Option<PathBuf>,
    /// In place of --ca-file: the authority's public-key hash, as `sha256:HEX`; the certificate is then taken from the
    /// server if it has that hash.
    #[arg(long, conflicts_with = "ca_file", help_heading = "Joining")]
    ca_cert_hash: Option<String>,

    /// The node's name; the host name when not given.
    #[arg(long, help_heading = "Node")]
    node_name: Option<String>,
    /// The node's address; that of the default route when not given.
    #[arg(long, help_heading = "Node")]
    node_ip: Option<IpAddr>,
    /// Labels for the node, as `key=value,key=value`.
    #[arg(long, default_value = "", help_heading = "Node")]
    node_labels: String,
    /// Where everything of this node is kept.
    #[arg(long, default_value = "/var/lib/bosun/agent", help_heading = "Node")]
    data_dir: PathBuf,
    /// Where container logs go (stock: /var/log/pods); links to them go into `containers` beside it.
    #[arg(long, default_value = "/var/log/pods", help_heading = "Node")]
    pod_logs_dir: PathBuf,
    /// The cgroup under which all pods of this node live.
    #[arg(long, default_value = "/", help_heading = "Node")]
    cgroup_root: String,
    /// Set the kernel's settings that stock's kubelet sets (vm.overcommit_memory, kernel.panic, ...); else they are left.
    #[arg(long)]
    set_kernel_defaults: bool,
    /// A KubeletConfiguration whose fields override what the agent sets.
    #[arg(long, help_heading = "Node")]
    kubelet_config: Option<PathBuf>,

    /// The socket of a container runtime that runs already. Without it, the agent starts containerd itself.
    #[arg(long, alias = "containerd-socket", help_heading = "Container runtime")]
    container_runtime_endpoint: Option<String>,
    /// The containerd program to start.
    #[arg(long, default_value = "containerd", help_heading = "Container runtime")]
    containerd: PathBuf,
    /// The runc program that containerd starts.
    #[arg(long, default_value = "runc", help_heading = "Container runtime")]
    runc: PathBuf,
    /// The image that holds a pod's namespaces.
    #[arg(long, default_value = "localhost/bosun-pause:dev", help_heading = "Container runtime")]
    pause_image: String,

    /// Where CNI plugins are put and looked for.
    #[arg(long, default_value = "/opt/cni/bin", help_heading = "Network")]
    cni_bin_dir: PathBuf,
    /// Where the CNI configuration is written.
    #[arg(long, default_value = "/etc/cni/net.d", help_heading = "Network")]
    cni_conf_dir: PathBuf,
    /// Where addresses given to pods are kept.
    #[arg(long, default_value = "/var/lib/cni/networks", help_heading = "Network")]
    cni_data_dir: PathBuf,
    /// The range that pod addresses come from.
    #[arg(long, default_value = "10.244.0.0/16", help_heading = "Network")]
    cluster_cidr: IpNet,
    /// The cluster DNS's address.
    #[arg(long, default_value = "10.96.0.10", help_heading = "Network")]
    cluster_dns: String,
    /// The cluster's domain.
    #[arg(long, default_value = "cluster.local", help_heading = "Network")]
    cluster_domain: String,
    /// Parts not to run, as `kube-proxy,netd`, where others do their work.
    #[arg(long, value_delimiter = ',', value_parser = ["kube-proxy", "netd"], help_heading = "Network")]
    disable: Vec<String>,
}

/// Where the agent keeps its files.
struct Files {
    ca: PathBuf,
    bootstrap_kubeconfig: PathBuf,
    kubeconfig: PathBuf,
    kubelet_config: PathBuf,
    cert_dir: PathBuf,
    root_dir: PathBuf,
    static_pods: PathBuf,
}

impl Files {
    fn under(data_dir: &Path) -> Self {
        Self {
            ca: data_dir.join("ca.crt"),
            bootstrap_kubeconfig: data_dir.join("bootstrap.kubeconfig"),
            kubeconfig: data_dir.join("kubelet.kubeconfig"),
            kubelet_config: data_dir.join("kubelet.yaml"),
            cert_dir: data_dir.join("pki"),
            root_dir: data_dir.join("kubelet"),
            static_pods: data_dir.join("manifests"),
        }
    }
}

/// Runs a node until cancelled. Pods go on when it ends.
///
/// # Errors
/// Something it needs is missing or broken, or a part ended by itself; the text names it and the remedy.
pub(crate) async fn run(options: Options, cancel: CancellationToken) -> Result<()> {
    let node_ip = options.node_ip.map_or_else(|| own_address("--node-ip"), Ok)?;
    let node_name = match &options.node_name {
        Some(name) => name.clone(),
        None => host_name()?,
    };
    create_dir(&options.data_dir, 0o700)?;
    let files = Files::under(&options.data_dir);
    trust(&options, &files).await?;
    install_plugins(&options.cni_bin_dir)?;
    let endpoint = runtime_endpoint(&options, cancel.clone()).await?;
    write_kubelet_config(&options, &files, &endpoint)?;

    let mut parts = JoinSet::new();
    let kubelet = kubelet_options(&options, &files, &node_name, node_ip)?;
    let stop = cancel.clone();
    parts.spawn(async move { kubelet.run(stop).await.context("kubelet") });
    // The others use the node's own identity, which the kubelet obtains.
    let client = tokio::select! {
        client = node_client(&files.kubeconfig) => client?,
        ended = parts.join_next() => return flatten(ended),
        () = cancel.cancelled() => return Ok(()),
    };
    if !options.disabled("kube-proxy") {
        let proxy = bosun_proxy::Config { cluster_cidr: options.cluster_cidr.to_string(), ..Default::default() };
        let (client, name, stop) = (client.clone(), node_name.clone(), cancel.clone());
        parts.spawn(async move { bosun_proxy::run(proxy, client, name, stop).await.context("kube-proxy") });
    }
    if !options.disabled("netd") {
        let netd = bosun_netd::Config {
            conf_dir: options.cni_conf_dir.clone(),
            data_dir: Some(options.cni_data_dir.clone()),
            bin_dir: options.cni_bin_dir.clone(),
            cluster_cidr: options.cluster_cidr.to_string(),
            ..Default::default()
        };
        let (name, stop) = (node_name.clone(), cancel.clone());
        parts.spawn(async move { bosun_netd::run(netd, client, name, stop).await.context("netd") });
    }
    let first = flatten(parts.join_next().await);
    cancel.cancel();
    while parts.join_next().await.is_some() {}
    first
}

impl Options {
    fn disabled(&self, part: &str) -> bool {
        self.disable.iter().any(|disabled| disabled == part)
    }

    fn token(&self) -> Result<Option<String>> {
        match (&self.token, &self.token_file) {
            (Some(token), _) => Ok(Some(token.clone())),
            (None, Some(file)) => {
                let text =
                    std::fs::read_to_string(file).with_context(|| format!("read --token-file {}", file.display()))?;
                Ok(Some(text.trim().to_owned()))
            }
            (None, None) => Ok(None),
        }
    }
}

fn flatten(ended: Option<Result<Result<()>, tokio::task::JoinError>>) -> Result<()> {
    match ended {
        None => Ok(()),
        Some(Ok(result)) => result,
        Some(Err(error)) => Err(error).context("a part of the agent panicked"),
    }
}

/// Gets the cluster's authority and writes the bootstrap kubeconfig, unless the node has a certificate already.
async fn trust(options: &Options, files: &Files) -> Result<()> {
    let ca_pem = match (&options.ca_file, &options.ca_cert_hash) {
        (Some(file), _) => {
            std::fs::read_to_string(file).with_context(|| format!("read --ca-file {}", file.display()))?
        }
        (None, Some(hash)) => fetch_ca(&options.server, hash).await?,
        (None, None) if files.ca.exists() => std::fs::read_to_string(&files.ca)?,
        (None, None) => {
            bail!("the server cannot be trusted yet: give --ca-cert-hash (the server prints it) or --ca-file")
        }
    };
    let source = options.ca_file.as_ref().unwrap_or(&files.ca);
    bosun_kit::tls::roots(ca_pem.as_bytes())
        .with_context(|| format!("{} does not hold the cluster authority's certificate", source.display()))?;
    write_atomic(&files.ca, ca_pem.as_bytes(), 0o644)?;
    match options.token()? {
        Some(token) => {
            let credential = Credential::Token(&token);
            let text = kubeconfig_yaml("bosun", &options.server, &ca_pem, "bootstrap", &credential);
            write_atomic(&files.bootstrap_kubeconfig, text.as_bytes(), 0o600)?;
        }
        None if files.kubeconfig.exists() => {}
        None => bail!("a new node needs a bootstrap token: give --token or --token-file (the server prints it)"),
    }
    Ok(())
}

/// Puts the CNI plugins where containerd looks for them: the small binary beside ours if there is one, else ourselves.
fn install_plugins(folder: &Path) -> Result<()> {
    let own = std::env::current_exe().context("find our own program")?;
    let beside = own.with_file_name("bosun-cni");
    let source = if beside.exists() { beside } else { own };
    bosun_cni::install(&source, folder).with_context(|| format!("install CNI plugins into {}", folder.display()))
}

async fn runtime_endpoint(options: &Options, cancel: CancellationToken) -> Result<String> {
    if let Some(endpoint) = &options.container_runtime_endpoint {
        return Ok(match endpoint.contains("://") {
            true => endpoint.clone(),
            false => format!("unix://{endpoint}"),
        });
    }
    let home = options.data_dir.join("containerd");
    let run = PathBuf::from("/run/bosun").join(short_hash(&options.data_dir));
    let settings = Settings {
        root: home.join("root"),
        state: run.join("state"),
        socket: run.join("containerd.sock"),
        opt: home.join("opt"),
        cni_bin_dir: options.cni_bin_dir.clone(),
        cni_conf_dir: options.cni_conf_dir.clone(),
        sandbox_image: options.pause_image.clone(),
        runc: options.runc.clone(),
        runc_root: run.join("runc"),
        restrict_oom_score_adj: !may_lower_oom_score(),
        systemd_cgroup: false,
    };
    let endpoint = format!("unix://{}", settings.socket.display());
    bosun_containerd::supervise(options.containerd.clone(), settings, cancel).await?;
    Ok(endpoint)
}

/// Two agents on one machine differ by their data folders; a socket's path is too short to hold one.
fn short_hash(path: &Path) -> String {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
    digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// Whether the kernel lets us lower `oom_score_adj`: CAP_SYS_RESOURCE (capabilities(7), bit 24) among ours.
fn may_lower_oom_score() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_some_and(|bits| bits & (1 << 24) != 0)
}

fn write_kubelet_config(options: &Options, files: &Files, endpoint: &str) -> Result<()> {
    create_dir(&files.static_pods, 0o700)?;
    let mut config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "x509": {"clientCAFile": files.ca},
            "webhook": {"enabled": true},
            "anonymous": {"enabled": false},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": options.cgroup_root,
        "clusterDNS": [options.cluster_dns],
        "clusterDomain": options.cluster_domain,
        "containerRuntimeEndpoint": endpoint,
        // An agent that was started on such a machine is meant to run there; a configuration of one's own may refuse.
        "failCgroupV1": false,
        "podLogsDir": options.pod_logs_dir,
        "rotateCertificates": true,
        "serverTLSBootstrap": true,
        "staticPodPath": files.static_pods,
    });
    if let Some(path) = &options.kubelet_config {
        let over: serde_json::Value = bosun_kit::config::from_file(path)?;
        merge(&mut config, over);
    }
    let text = serde_yaml_ng::to_string(&config)?;
    write_atomic(&files.kubelet_config, text.as_bytes(), 0o600)?;
    Ok(())
}

fn merge(base: &mut serde_json::Value, over: serde_json::Value) {
    match (base, over) {
        (serde_json::Value::Object(base), serde_json::Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(serde_json::Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

fn kubelet_options(options: &Options, files: &Files, name: &str, ip: IpAddr) -> Result<bosun_kubelet::Options> {
    let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
    let mut args = vec![
        "kubelet".to_owned(),
        flag("config", &files.kubelet_config),
        flag("kubeconfig", &files.kubeconfig),
        flag("cert-dir", &files.cert_dir),
        flag("root-dir", &files.root_dir),
        format!("--hostname-override={name}"),
        format!("--node-ip={ip}"),
    ];
    if !options.set_kernel_defaults {
        args.push("--leave-kernel-defaults".to_owned());
    }
    if files.bootstrap_kubeconfig.exists() {
        args.push(flag("bootstrap-kubeconfig", &files.bootstrap_kubeconfig));
    }
    if !options.node_labels.is_empty() {
        args.push(format!("--node-labels={}", options.node_labels));
    }
    bosun_kubelet::Options::from_args(args).context("kubelet options")
}

/// The node's own client, once the kubelet has obtained its certificate.
async fn node_client(kubeconfig: &Path) -> Result<kube::Client> {
    appears(kubeconfig).await.with_context(|| format!("wait for {}", kubeconfig.display()))?;
    bosun_kit::client::from_kubeconfig(kubeconfig).await
}

fn host_name() -> Result<String> {
    let name = nix::unistd::gethostname().context("the machine has no host name; give --node-name")?;
    Ok(name.to_string_lossy().to_lowercase())
}
