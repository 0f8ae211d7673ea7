//! `KubeletConfiguration` v1beta1, every field of Kubernetes 1.36, with its defaults.
//!
//! A field that has no effect here yet still parses, so that a file written for stock starts this kubelet; it is named
//! in a warning at start ([`KubeletConfiguration::without_effect`]). An unknown field is an error with its path.

pub mod duration;
mod gates;
mod validate;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bosun_kit::config::{ConfigError, expect_kind, from_yaml};
use k8s_openapi::api::core::v1::Taint;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use duration::GoDuration;
pub use gates::GATES;

/// Why a configuration was refused.
#[derive(Debug, Error)]
pub enum Error {
    /// It could not be read or decoded.
    #[error(transparent)]
    Decode(#[from] ConfigError),
    /// It decodes but contradicts itself or asks for what cannot be.
    #[error("invalid kubelet configuration: {}", .0.join("; "))]
    Invalid(Vec<String>),
}

/// The configuration of a kubelet. Field by field as in the `kubelet.config.k8s.io/v1beta1` reference.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct KubeletConfiguration {
    /// `kubelet.config.k8s.io/v1beta1`.
    pub api_version: String,
    /// `KubeletConfiguration`.
    pub kind: String,
    /// Whether the HTTPS server runs.
    pub enable_server: bool,
    /// Folder or file of static pod manifests.
    pub static_pod_path: String,
    /// Where container logs go.
    pub pod_logs_dir: String,
    /// How often a pod is looked at without a cause.
    pub sync_frequency: GoDuration,
    /// How often static manifests are read without a notice from the kernel.
    pub file_check_frequency: GoDuration,
    /// How often the static pod URL is fetched.
    pub http_check_frequency: GoDuration,
    /// A URL of static pod manifests.
    #[serde(rename = "staticPodURL")]
    pub static_pod_url: String,
    /// Headers for the static pod URL.
    #[serde(rename = "staticPodURLHeader")]
    pub static_pod_url_header: BTreeMap<String, Vec<String>>,
    /// Address of the HTTPS server.
    pub address: String,
    /// Port of the HTTPS server.
    pub port: i32,
    /// Port without authentication; 0 for none.
    pub read_only_port: i32,
    /// Serving certificate.
    pub tls_cert_file: String,
    /// Key of the serving certificate.
    pub tls_private_key_file: String,
    /// Allowed cipher suites.
    pub tls_cipher_suites: Vec<String>,
    /// Allowed key exchange groups.
    pub tls_curve_preferences: Vec<i32>,
    /// Lowest TLS version.
    pub tls_min_version: String,
    /// Whether the client certificate is renewed by CSR.
    pub rotate_certificates: bool,
    /// Whether the serving certificate comes by CSR.
    #[serde(rename = "serverTLSBootstrap")]
    pub server_tls_bootstrap: bool,
    /// Who a caller of the server is.
    pub authentication: Authentication,
    /// What a caller of the server may do.
    pub authorization: Authorization,
    /// Pulls started per second; 0 for no limit.
    #[serde(rename = "registryPullQPS")]
    pub registry_pull_qps: i32,
    /// Pulls started at once above the rate.
    pub registry_burst: i32,
    /// When a present image is checked against the pod's credentials.
    pub image_pull_credentials_verification_policy: String,
    /// Images that need no such check.
    pub preloaded_images_verification_allowlist: Vec<String>,
    /// Events per second; 0 for no limit.
    #[serde(rename = "eventRecordQPS")]
    pub event_record_qps: i32,
    /// Events at once above the rate.
    pub event_burst: i32,
    /// Whether logs, exec and their kin are served.
    pub enable_debugging_handlers: bool,
    /// Block profiling.
    pub enable_contention_profiling: bool,
    /// Port of the health endpoint; 0 for none.
    pub healthz_port: i32,
    /// Address of the health endpoint.
    pub healthz_bind_address: String,
    /// The kubelet's own oom_score_adj.
    pub oom_score_adj: i32,
    /// The DNS domain of the cluster.
    pub cluster_domain: String,
    /// Addresses of the cluster's DNS.
    #[serde(rename = "clusterDNS")]
    pub cluster_dns: Vec<String>,
    /// Idle time after which an exec or attach is closed.
    pub streaming_connection_idle_timeout: GoDuration,
    /// How often the node's status is computed.
    pub node_status_update_frequency: GoDuration,
    /// How often an unchanged node status is sent.
    pub node_status_report_frequency: GoDuration,
    /// How long the node's lease holds.
    pub node_lease_duration_seconds: i32,
    /// Age below which an unused image is kept.
    #[serde(rename = "imageMinimumGCAge")]
    pub image_minimum_gc_age: GoDuration,
    /// Age above which an unused image goes; 0 for never.
    #[serde(rename = "imageMaximumGCAge")]
    pub image_maximum_gc_age: GoDuration,
    /// Disk use that starts image collection.
    #[serde(rename = "imageGCHighThresholdPercent")]
    pub image_gc_high_threshold_percent: i32,
    /// Disk use that ends image collection.
    #[serde(rename = "imageGCLowThresholdPercent")]
    pub image_gc_low_threshold_percent: i32,
    /// How often volumes are measured.
    pub volume_stats_agg_period: GoDuration,
    /// Cgroup of the kubelet.
    pub kubelet_cgroups: String,
    /// Cgroup for system processes.
    pub system_cgroups: String,
    /// Cgroup under which the pods' cgroups stand.
    pub cgroup_root: String,
    /// Whether pods get cgroups by QoS class.
    #[serde(rename = "cgroupsPerQOS")]
    pub cgroups_per_qos: bool,
    /// Who writes cgroups, where the runtime does not say.
    pub cgroup_driver: String,
    /// Exclusive CPUs.
    pub cpu_manager_policy: String,
    /// Whether the OOM killer takes one process or the container.
    #[serde(rename = "singleProcessOOMKill")]
    pub single_process_oom_kill: Option<bool>,
    /// Options of the CPU manager.
    pub cpu_manager_policy_options: BTreeMap<String, String>,
    /// How often the CPU manager looks.
    pub cpu_manager_reconcile_period: GoDuration,
    /// Exclusive memory.
    pub memory_manager_policy: String,
    /// Alignment of devices, CPUs and memory.
    pub topology_manager_policy: String,
    /// What is aligned.
    pub topology_manager_scope: String,
    /// Options of the topology manager.
    pub topology_manager_policy_options: BTreeMap<String, String>,
    /// Memory kept for higher QoS classes.
    pub qos_reserved: BTreeMap<String, String>,
    /// Deadline of runtime calls other than long ones.
    pub runtime_request_timeout: GoDuration,
    /// Historical; the network plugin decides.
    pub hairpin_mode: String,
    /// Pods that the node takes.
    pub max_pods: i32,
    /// Pod addresses in standalone mode.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: String,
    /// Processes in a pod; -1 for the node's limit.
    pub pod_pids_limit: i64,
    /// The resolver file that pods inherit; empty for none.
    pub resolv_conf: Option<String>,
    /// Historical.
    pub run_once: bool,
    /// Whether CPU limits are enforced.
    #[serde(rename = "cpuCFSQuota")]
    pub cpu_cfs_quota: bool,
    /// Period of the CPU quota.
    #[serde(rename = "cpuCFSQuotaPeriod")]
    pub cpu_cfs_quota_period: GoDuration,
    /// Images in the node's status; -1 for all.
    pub node_status_max_images: i32,
    /// The kubelet's own limit of open files.
    pub max_open_files: i64,
    /// Historical; this kubelet speaks JSON.
    pub content_type: String,
    /// Requests to the API server per second.
    #[serde(rename = "kubeAPIQPS")]
    pub kube_api_qps: i32,
    /// Requests at once above the rate.
    #[serde(rename = "kubeAPIBurst")]
    pub kube_api_burst: i32,
    /// Whether images are pulled one after another.
    pub serialize_image_pulls: Option<bool>,
    /// Pulls at the same time.
    pub max_parallel_image_pulls: Option<i32>,
    /// Thresholds that evict at once.
    pub eviction_hard: BTreeMap<String, String>,
    /// Thresholds that evict after a time.
    pub eviction_soft: BTreeMap<String, String>,
    /// That time.
    pub eviction_soft_grace_period: BTreeMap<String, String>,
    /// How long a pressure condition lasts at least.
    pub eviction_pressure_transition_period: GoDuration,
    /// Grace of a pod evicted by a soft threshold.
    pub eviction_max_pod_grace_period: i32,
    /// How much an eviction must win.
    pub eviction_minimum_reclaim: BTreeMap<String, String>,
    /// Whether given thresholds join the default ones.
    pub merge_default_eviction_settings: bool,
    /// Pods per core; 0 for no such limit.
    pub pods_per_core: i32,
    /// Whether a controller attaches volumes.
    pub enable_controller_attach_detach: bool,
    /// Whether a wrong sysctl fails the start.
    pub protect_kernel_defaults: bool,
    /// Historical.
    #[serde(rename = "makeIPTablesUtilChains")]
    pub make_ip_tables_util_chains: bool,
    /// Historical.
    pub iptables_masquerade_bit: i32,
    /// Historical.
    pub iptables_drop_bit: i32,
    /// Feature gates.
    pub feature_gates: BTreeMap<String, bool>,
    /// Whether swap fails the start.
    pub fail_swap_on: bool,
    /// How pods use swap.
    pub memory_swap: MemorySwap,
    /// Size at which a container log is rotated.
    pub container_log_max_size: String,
    /// Log files kept per container.
    pub container_log_max_files: i32,
    /// Rotations at once.
    pub container_log_max_workers: i32,
    /// How often log sizes are looked at.
    pub container_log_monitor_interval: GoDuration,
    /// How changes of mounted objects are found.
    pub config_map_and_secret_change_detection_strategy: String,
    /// Resources kept for the system.
    pub system_reserved: BTreeMap<String, String>,
    /// Resources kept for the kubelet and its kin.
    pub kube_reserved: BTreeMap<String, String>,
    /// CPUs kept for the system.
    #[serde(rename = "reservedSystemCPUs")]
    pub reserved_system_cpus: String,
    /// Historical.
    pub show_hidden_metrics_for_version: String,
    /// Cgroup in which systemReserved is enforced.
    pub system_reserved_cgroup: String,
    /// Cgroup in which kubeReserved is enforced.
    pub kube_reserved_cgroup: String,
    /// What is enforced by cgroups.
    pub enforce_node_allocatable: Option<Vec<String>>,
    /// Sysctls that pods may set beyond the safe ones.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Flexvolume plugins.
    pub volume_plugin_dir: String,
    /// The node's identity at a cloud provider.
    #[serde(rename = "providerID")]
    pub provider_id: String,
    /// Eviction by kernel notice.
    pub kernel_memcg_notification: bool,
    /// Logs of the kubelet itself.
    pub logging: Logging,
    /// Whether /logs is served.
    pub enable_system_log_handler: bool,
    /// Whether the system log can be queried.
    pub enable_system_log_query: bool,
    /// How long a node shutdown waits for pods.
    pub shutdown_grace_period: GoDuration,
    /// The part of it for critical pods.
    pub shutdown_grace_period_critical_pods: GoDuration,
    /// The same by priority.
    pub shutdown_grace_period_by_pod_priority: Vec<ShutdownGracePeriod>,
    /// Back-off between restarts.
    pub crash_loop_back_off: CrashLoopBackOff,
    /// Memory kept per NUMA node.
    pub reserved_memory: Vec<MemoryReservation>,
    /// Whether profiles are served.
    pub enable_profiling_handler: bool,
    /// Whether flags can be changed while running.
    pub enable_debug_flags_handler: bool,
    /// Whether RuntimeDefault is the seccomp profile of pods that name none.
    pub seccomp_default: bool,
    /// Share of the limit at which memory.high stands.
    pub memory_throttling_factor: Option<f64>,
    /// Whether requests become memory.min.
    pub memory_reservation_policy: String,
    /// Taints that the node registers with.
    pub register_with_taints: Vec<Taint>,
    /// Whether the node registers itself.
    pub register_node: bool,
    /// Where spans go.
    pub tracing: Option<Tracing>,
    /// Whether local storage is accounted.
    pub local_storage_capacity_isolation: bool,
    /// Socket of the runtime.
    pub container_runtime_endpoint: String,
    /// Socket of the image service; empty for the runtime's.
    pub image_service_endpoint: String,
    /// Whether cgroup v1 fails the start.
    pub fail_cgroup_v1: bool,
    /// Ranges for user namespaces.
    pub user_namespaces: Option<UserNamespaces>,
}

impl Default for KubeletConfiguration {
    fn default() -> Self {
        Self {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            enable_server: true,
            static_pod_path: Default::default(),
            pod_logs_dir: "/var/log/pods".to_owned(),
            sync_frequency: GoDuration::secs(60),
            file_check_frequency: GoDuration::secs(20),
            http_check_frequency: GoDuration::secs(20),
            static_pod_url: Default::default(),
            static_pod_url_header: Default::default(),
            address: "0.0.0.0".to_owned(),
            port: 10250,
            read_only_port: Default::default(),
            tls_cert_file: Default::default(),
            tls_private_key_file: Default::default(),
            tls_cipher_suites: Default::default(),
            tls_curve_preferences: Default::default(),
            tls_min_version: Default::default(),
            rotate_certificates: Default::default(),
            server_tls_bootstrap: Default::default(),
            authentication: Default::default(),
            authorization: Default::default(),
            registry_pull_qps: 5,
            registry_burst: 10,
            image_pull_credentials_verification_policy: "NeverVerifyPreloadedImages".to_owned(),
            preloaded_images_verification_allowlist: Default::default(),
            event_record_qps: 50,
            event_burst: 100,
            enable_debugging_handlers: true,
            enable_contention_profiling: Default::default(),
            healthz_port: 10248,
            healthz_bind_address: "127.0.0.1".to_owned(),
            oom_score_adj: -999,
            cluster_domain: Default::default(),
            cluster_dns: Default::default(),
            streaming_connection_idle_timeout: GoDuration::secs(14400),
            node_status_update_frequency: GoDuration::secs(10),
            node_status_report_frequency: Default::default(),
            node_lease_duration_seconds: 40,
            image_minimum_gc_age: GoDuration::secs(120),
            image_maximum_gc_age: Default::default(),
            image_gc_high_threshold_percent: 85,
            image_gc_low_threshold_percent: 80,
            volume_stats_agg_period: GoDuration::secs(60),
            kubelet_cgroups: Default::default(),
            system_cgroups: Default::default(),
            cgroup_root: Default::default(),
            cgroups_per_qos: true,
            cgroup_driver: "cgroupfs".to_owned(),
            cpu_manager_policy: "none".to_owned(),
            single_process_oom_kill: Default::default(),
            cpu_manager_policy_options: Default::default(),
            cpu_manager_reconcile_period: GoDuration::secs(10),
            memory_manager_policy: "None".to_owned(),
            topology_manager_policy: "none".to_owned(),
            topology_manager_scope: "container".to_owned(),
            topology_manager_policy_options: Default::default(),
            qos_reserved: Default::default(),
            runtime_request_timeout: GoDuration::secs(120),
            hairpin_mode: "promiscuous-bridge".to_owned(),
            max_pods: 110,
            pod_cidr: Default::default(),
            pod_pids_limit: -1,
            resolv_conf: Default::default(),
            run_once: Default::default(),
            cpu_cfs_quota: true,
            cpu_cfs_quota_period: GoDuration(Duration::from_millis(100)),
            node_status_max_images: 50,
            max_open_files: 1000000,
            content_type: "application/vnd.kubernetes.protobuf".to_owned(),
            kube_api_qps: 50,
            kube_api_burst: 100,
            serialize_image_pulls: Default::default(),
            max_parallel_image_pulls: Default::default(),
            eviction_hard: Default::default(),
            eviction_soft: Default::default(),
            eviction_soft_grace_period: Default::default(),
            eviction_pressure_transition_period: GoDuration::secs(300),
            eviction_max_pod_grace_period: Default::default(),
            eviction_minimum_reclaim: Default::default(),
            merge_default_eviction_settings: Default::default(),
            pods_per_core: Default::default(),
            enable_controller_attach_detach: true,
            protect_kernel_defaults: Default::default(),
            make_ip_tables_util_chains: true,
            iptables_masquerade_bit: 14,
            iptables_drop_bit: 15,
            feature_gates: Default::default(),
            fail_swap_on: true,
            memory_swap: Default::default(),
            container_log_max_size: "10Mi".to_owned(),
            container_log_max_files: 5,
            container_log_max_workers: 1,
            container_log_monitor_interval: GoDuration::secs(10),
            config_map_and_secret_change_detection_strategy: "Watch".to_owned(),
            system_reserved: Default::default(),
            kube_reserved: Default::default(),
            reserved_system_cpus: Default::default(),
            show_hidden_metrics_for_version: Default::default(),
            system_reserved_cgroup: Default::default(),
            kube_reserved_cgroup: Default::default(),
            enforce_node_allocatable: Default::default(),
            allowed_unsafe_sysctls: Default::default(),
            volume_plugin_dir: "/usr/libexec/kubernetes/kubelet-plugins/volume/exec/".to_owned(),
            provider_id: Default::default(),
            kernel_memcg_notification: Default::default(),
            logging: Default::default(),
            enable_system_log_handler: true,
            enable_system_log_query: Default::default(),
            shutdown_grace_period: Default::default(),
            shutdown_grace_period_critical_pods: Default::default(),
            shutdown_grace_period_by_pod_priority: Default::default(),
            crash_loop_back_off: Default::default(),
            reserved_memory: Default::default(),
            enable_profiling_handler: true,
            enable_debug_flags_handler: true,
            seccomp_default: Default::default(),
            memory_throttling_factor: Default::default(),
            memory_reservation_policy: "None".to_owned(),
            register_with_taints: Default::default(),
            register_node: true,
            tracing: Default::default(),
            local_storage_capacity_isolation: true,
            container_runtime_endpoint: "unix:///run/containerd/containerd.sock".to_owned(),
            image_service_endpoint: Default::default(),
            fail_cgroup_v1: true,
            user_namespaces: Default::default(),
        }
    }
}

const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
const KIND: &str = "KubeletConfiguration";

/// How callers of the server are known.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Authentication {
    /// Client certificates.
    pub x509: X509,
    /// Bearer tokens by TokenReview.
    pub webhook: WebhookAuthentication,
    /// Callers without credentials.
    pub anonymous: Anonymous,
}

/// Authentication by client certificate.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct X509 {
    /// The authority that signs client certificates; empty for none.
    #[serde(rename = "clientCAFile")]
    pub client_ca_file: String,
}

/// Authentication by TokenReview.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WebhookAuthentication {
    /// Whether tokens are taken.
    pub enabled: bool,
    /// How long an answer holds.
    #[serde(rename = "cacheTTL")]
    pub cache_ttl: GoDuration,
}

impl Default for WebhookAuthentication {
    fn default() -> Self {
        Self { enabled: true, cache_ttl: GoDuration::secs(120) }
    }
}

/// Callers without credentials.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Anonymous {
    /// Whether they are let in, as `system:anonymous`.
    pub enabled: bool,
}

/// What callers of the server may do.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Authorization {
    /// `Webhook` or `AlwaysAllow`.
    pub mode: String,
    /// The webhook's caches.
    pub webhook: WebhookAuthorization,
}

impl Default for Authorization {
    fn default() -> Self {
        Self { mode: "Webhook".to_owned(), webhook: WebhookAuthorization::default() }
    }
}

/// Authorization by SubjectAccessReview.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WebhookAuthorization {
    /// How long a yes holds.
    #[serde(rename = "cacheAuthorizedTTL")]
    pub cache_authorized_ttl: GoDuration,
    /// How long a no holds.
    #[serde(rename = "cacheUnauthorizedTTL")]
    pub cache_unauthorized_ttl: GoDuration,
}

impl Default for WebhookAuthorization {
    fn default() -> Self {
        Self { cache_authorized_ttl: GoDuration::secs(300), cache_unauthorized_ttl: GoDuration::secs(30) }
    }
}

/// How pods use swap.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MemorySwap {
    /// `NoSwap` (or empty) or `LimitedSwap`.
    pub swap_behavior: String,
}

/// Back-off between container restarts.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CrashLoopBackOff {
    /// The longest delay, 1 s to 300 s; absent means 300 s.
    pub max_container_restart_period: Option<GoDuration>,
}

/// Memory kept on one 125A node.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MemoryReservation {
    /// The NUMA node.
    pub numa_node: i32,
    /// How much, by kind of memory.
    pub limits: BTreeMap<String, String>,
}

/// Grace at node shutdown for pods from a priority on.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ShutdownGracePeriod {
    /// The lowest priority it is for.
    pub priority: i32,
    /// The grace in seconds.
    pub shutdown_grace_period_seconds: i64,
}

/// Ranges for user namespaces.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct UserNamespaces {
    /// Ids per pod, a multiple of 65536.
    #[serde(rename = "idsPerPod")]
    pub ids_per_pod: Option<i64>,
}

/// Logs of the kubelet itself.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Logging {
    /// `text` or `json`.
    pub format: String,
    /// How often buffered logs are written; nothing is buffered here.
    pub flush_frequency: Option<GoDuration>,
    /// 0 to 10; 2 is the usual.
    pub verbosity: u32,
    /// Verbosity by file; taken, without effect.
    pub vmodule: Vec<Vmodule>,
    /// Options of the formats; taken, without effect.
    pub options: serde_json::Map<String, serde_json::Value>,
}

/// Verbosity of some source files of stock.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Vmodule {
    /// Which files.
    pub file_pattern: String,
    /// How verbose.
    pub verbosity: u32,
}

/// Where spans go.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Tracing {
    /// The collector.
    pub endpoint: Option<String>,
    /// Samples per million.
    pub sampling_rate_per_million: Option<i32>,
}

impl KubeletConfiguration {
    /// Reads a configuration file (YAML or JSON), fills defaults and validates.
    ///
    /// # Errors
    /// The file cannot be read, has an unknown field or a field of the wrong type, or fails validation.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.display().to_string(), source })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// The file, if there is one, with the drop-ins of `folder` merged into it: all `*.conf` below it in the order of
    /// their paths; mappings are merged, anything else is replaced (KEP-3983).
    ///
    /// # Errors
    /// As [`KubeletConfiguration::load`] for each file, or the folder cannot be read; then for what they make together.
    pub fn load_with_drop_ins(file: Option<&Path>, folder: &Path) -> Result<Self, Error> {
        let mut merged = serde_json::json!({"apiVersion": API_VERSION, "kind": KIND});
        for path in file.map(Path::to_owned).into_iter().chain(drop_ins(folder)?) {
            let origin = path.display().to_string();
            let text =
                std::fs::read_to_string(&path).map_err(|source| ConfigError::Read { path: origin.clone(), source })?;
            // Each by itself first, so that an error names the file it is in.
            let alone: Self = from_yaml(&text, &origin)?;
            expect_kind(&origin, (API_VERSION, KIND), (&alone.api_version, &alone.kind))?;
            json_patch::merge(&mut merged, &from_yaml(&text, &origin)?);
        }
        Self::parse(&merged.to_string(), &format!("{} and its drop-ins", folder.display()))
    }

    /// As [`KubeletConfiguration::load`], from text; `origin` names it in errors.
    ///
    /// # Errors
    /// As [`KubeletConfiguration::load`].
    pub fn parse(text: &str, origin: &str) -> Result<Self, Error> {
        let mut config: Self = from_yaml(text, origin)?;
        expect_kind(origin, (API_VERSION, KIND), (&config.api_version, &config.kind))?;
        config.fill_defaults();
        config.check()?;
        Ok(config)
    }

    /// Turns zero values into defaults, as stock does.
    pub fn fill_defaults(&mut self) {
        let defaults = Self::default();
        if self.node_status_report_frequency.is_zero() {
            let explicit = self.node_status_update_frequency != defaults.node_status_update_frequency
                && !self.node_status_update_frequency.is_zero();
            self.node_status_report_frequency =
                if explicit { self.node_status_update_frequency } else { GoDuration::secs(300) };
        }
        if self.pod_pids_limit < 0 {
            self.pod_pids_limit = -1;
        }
        or_default(&mut self.authorization.mode, "Webhook".to_owned());
        self.authorization.webhook.cache_authorized_ttl =
            self.authorization.webhook.cache_authorized_ttl.or(GoDuration::secs(300));
        self.authorization.webhook.cache_unauthorized_ttl =
            self.authorization.webhook.cache_unauthorized_ttl.or(GoDuration::secs(30));
        self.authentication.webhook.cache_ttl = self.authentication.webhook.cache_ttl.or(GoDuration::secs(120));
        or_default(&mut self.pod_logs_dir, defaults.pod_logs_dir);
        self.sync_frequency = self.sync_frequency.or(defaults.sync_frequency);
        self.file_check_frequency = self.file_check_frequency.or(defaults.file_check_frequency);
        self.http_check_frequency = self.http_check_frequency.or(defaults.http_check_frequency);
        or_default(&mut self.address, defaults.address);
        or_default(&mut self.port, defaults.port);
        or_default(&mut self.registry_burst, defaults.registry_burst);
        or_default(
            &mut self.image_pull_credentials_verification_policy,
            defaults.image_pull_credentials_verification_policy,
        );
        or_default(&mut self.event_burst, defaults.event_burst);
        or_default(&mut self.healthz_bind_address, defaults.healthz_bind_address);
        self.streaming_connection_idle_timeout =
            self.streaming_connection_idle_timeout.or(defaults.streaming_connection_idle_timeout);
        self.node_status_update_frequency = self.node_status_update_frequency.or(defaults.node_status_update_frequency);
        or_default(&mut self.node_lease_duration_seconds, defaults.node_lease_duration_seconds);
        self.image_minimum_gc_age = self.image_minimum_gc_age.or(defaults.image_minimum_gc_age);
        self.volume_stats_agg_period = self.volume_stats_agg_period.or(defaults.volume_stats_agg_period);
        or_default(&mut self.cgroup_driver, defaults.cgroup_driver);
        or_default(&mut self.cpu_manager_policy, defaults.cpu_manager_policy);
        self.cpu_manager_reconcile_period = self.cpu_manager_reconcile_period.or(defaults.cpu_manager_reconcile_period);
        or_default(&mut self.memory_manager_policy, defaults.memory_manager_policy);
        or_default(&mut self.topology_manager_policy, defaults.topology_manager_policy);
        or_default(&mut self.topology_manager_scope, defaults.topology_manager_scope);
        self.runtime_request_timeout = self.runtime_request_timeout.or(defaults.runtime_request_timeout);
        or_default(&mut self.hairpin_mode, defaults.hairpin_mode);
        or_default(&mut self.max_pods, defaults.max_pods);
        self.cpu_cfs_quota_period = self.cpu_cfs_quota_period.or(defaults.cpu_cfs_quota_period);
        or_default(&mut self.content_type, defaults.content_type);
        or_default(&mut self.kube_api_burst, defaults.kube_api_burst);
        self.eviction_pressure_transition_period =
            self.eviction_pressure_transition_period.or(defaults.eviction_pressure_transition_period);
        or_default(&mut self.container_log_max_size, defaults.container_log_max_size);
        or_default(&mut self.container_log_max_files, defaults.container_log_max_files);
        or_default(&mut self.container_log_max_workers, defaults.container_log_max_workers);
        self.container_log_monitor_interval =
            self.container_log_monitor_interval.or(defaults.container_log_monitor_interval);
        or_default(
            &mut self.config_map_and_secret_change_detection_strategy,
            defaults.config_map_and_secret_change_detection_strategy,
        );
        or_default(&mut self.volume_plugin_dir, defaults.volume_plugin_dir);
        or_default(&mut self.memory_reservation_policy, defaults.memory_reservation_policy);
        or_default(&mut self.container_runtime_endpoint, defaults.container_runtime_endpoint);
    }

    /// The resolver file that pods inherit, if any.
    pub fn resolver_file(&self) -> Option<&str> {
        match self.resolv_conf.as_deref() {
            Some("") => None,
            Some(path) => Some(path),
            None => Some("/etc/resolv.conf"),
        }
    }

    /// Image pulls at the same time: one when serialized, else the maximum, else no bound but a generous one.
    pub fn parallel_pulls(&self) -> usize {
        let serialized = self.serialize_image_pulls.unwrap_or(self.max_parallel_image_pulls.is_none_or(|n| n < 2));
        match (serialized, self.max_parallel_image_pulls) {
            // Serial is what stock defaults to, and what blocks every pod behind one slow registry. Unless it is asked
            // for, three at a time.
            (true, _) if self.serialize_image_pulls == Some(true) => 1,
            (_, Some(n)) if n > 0 => n as usize,
            (true, _) => 3,
            (false, _) => 16,
        }
    }

    /// The longest delay between restarts of a container.
    pub fn max_restart_delay(&self) -> Duration {
        self.crash_loop_back_off.max_container_restart_period.unwrap_or(GoDuration::secs(300)).0
    }

    /// Names of the fields that were changed from their defaults although nothing here acts on them yet.
    pub fn without_effect(&self) -> Vec<&'static str> {
        let (Ok(given), Ok(defaults)) = (serde_json::to_value(self), serde_json::to_value(Self::default())) else {
            return Vec::new();
        };
        WITHOUT_EFFECT.iter().copied().filter(|field| given[*field] != defaults[*field]).collect()
    }
}

fn or_default<T: Default + PartialEq>(value: &mut T, default: T) {
    if *value == T::default() {
        *value = default;
    }
}

/// Fields that parse but change nothing yet.
const WITHOUT_EFFECT: &[&str] = &[
    "enableContentionProfiling",
    "systemCgroups",
    "qosReserved",
    "hairpinMode",
    "runOnce",
    "contentType",
    "kubeAPIQPS",
    "kubeAPIBurst",
    "makeIPTablesUtilChains",
    "iptablesMasqueradeBit",
    "iptablesDropBit",
    "configMapAndSecretChangeDetectionStrategy",
    "showHiddenMetricsForVersion",
    "volumePluginDir",
    "kernelMemcgNotification",
    "memoryThrottlingFactor",
    "memoryReservationPolicy",
];

/// The drop-ins below a folder, in order.
fn drop_ins(folder: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let read = |path: &Path| -> std::io::Result<Vec<PathBuf>> {
        std::fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.path())).collect()
    };
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries =
            read(&folder).map_err(|source| ConfigError::Read { path: folder.display().to_string(), source })?;
        let (inner, files): (Vec<_>, Vec<_>) = entries.into_iter().partition(|path| path.is_dir());
        folders.extend(inner);
        found.extend(files.into_iter().filter(|path| path.extension().is_some_and(|kind| kind == "conf")));
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_ins_are_merged_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
            std::fs::write(folder.path().join(name), format!("{head}{text}")).unwrap();
        };
        let base = folder.path().join("base.yaml");
        write("base.yaml", "maxPods: 10\nclusterDNS: [10.0.0.1, 10.0.0.2]\nevictionHard: {memory.available: 1Mi}\n");
        write("20-more.conf", "maxPods: 30\nevictionHard: {pid.available: '5%'}\n");
        write("10-first.conf", "maxPods: 20\nclusterDNS: [10.0.0.9]\n");
        write("30-other.yaml", "maxPods: 99\n");
        let config = KubeletConfiguration::load_with_drop_ins(Some(&base), folder.path()).unwrap();
        assert_eq!((config.max_pods, config.cluster_dns), (30, vec!["10.0.0.9".to_owned()]));
        assert_eq!(config.eviction_hard.len(), 2);
        write("40-wrong.conf", "authentication: {x509: {clientCaFile: /a}}\n");
        let error = KubeletConfiguration::load_with_drop_ins(None, folder.path()).unwrap_err().to_string();
        assert!(error.contains("40-wrong.conf") && error.contains("authentication.x509.clientCaFile"), "{error}");
        let error = KubeletConfiguration::load_with_drop_ins(None, Path::new("/nowhere")).unwrap_err().to_string();
        assert!(error.contains("/nowhere"), "{error}");
    }

    #[test]
    fn an_empty_file_gives_the_defaults() {
        let config =
            KubeletConfiguration::parse("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration", "f")
                .unwrap();
        assert_eq!((config.port, config.max_pods), (10250, 110));
        assert_eq!(config.node_status_report_frequency, GoDuration::secs(300));
        assert!(config.without_effect().is_empty());
    }

    #[test]
    fn zero_means_default() {
        let text = "syncFrequency: 0s\ncgroupDriver: \"\"\nmaxPods: 0\nlogging: {flushFrequency: 0, verbosity: 0, options: {json: {infoBufferSize: \"0\"}}}";
        let config = KubeletConfiguration::parse(text, "f").unwrap();
        assert_eq!(config.sync_frequency, GoDuration::secs(60));
        assert_eq!((config.cgroup_driver.as_str(), config.max_pods), ("cgroupfs", 110));
    }

    #[test]
    fn unknown_fields_have_their_path_and_idle_ones_are_named() {
        let error =
            KubeletConfiguration::parse("authentication: {x509: {clientCaFile: /a}}", "kubelet.yaml").unwrap_err();
        assert!(error.to_string().contains("authentication.x509.clientCaFile"), "{error}");
        let config = KubeletConfiguration::parse("hairpinMode: none\nmaxPods: 5", "f").unwrap();
        assert_eq!(config.without_effect(), ["hairpinMode"]);
    }

    #[test]
    fn every_name_is_the_reference_s() {
        let value = serde_json::to_value(KubeletConfiguration::default()).unwrap();
        for name in WITHOUT_EFFECT.iter().chain(&[
            "staticPodURL",
            "clusterDNS",
            "registryPullQPS",
            "tlsCertFile",
            "cpuCFSQuotaPeriod",
            "iptablesDropBit",
            "resolvConf",
            "serverTLSBootstrap",
        ]) {
            assert!(value.get(name).is_some(), "{name}");
        }
        // All of 1.36's, with apiVersion and kind.
        assert_eq!(value.as_object().unwrap().len(), 125 + 2);
    }
}
