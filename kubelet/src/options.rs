//! The kubelet's flags, spelled as stock spells them. A flag overrides the configuration file.

use std::net::IpAddr;
use std::path::PathBuf;

use bosun_kit::flags::{go_args, parse_pairs};
use clap::{Args, Parser};

use crate::config::{Error, KubeletConfiguration};

/// Flags of the kubelet.
#[derive(Args, Clone, Debug, Default)]
pub struct Options {
    /// A KubeletConfiguration file.
    #[arg(long, value_name = "FILE", help_heading = "Configuration")]
    pub config: Option<PathBuf>,
    /// A folder of drop-ins, *.conf, that are merged into the configuration in the order of their names.
    #[arg(long, value_name = "DIR", help_heading = "Configuration")]
    pub config_dir: Option<PathBuf>,
    /// How to reach the API server; without it static pods run alone. Written by the bootstrap if it is missing.
    #[arg(long, value_name = "FILE", help_heading = "Configuration")]
    pub kubeconfig: Option<PathBuf>,
    /// Used to obtain a client certificate as long as there is none.
    #[arg(long, value_name = "FILE", help_heading = "Configuration")]
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// Where certificates are kept.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet/pki", help_heading = "Configuration")]
    pub cert_dir: PathBuf,
    /// Where pods have their folders.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet", help_heading = "Configuration")]
    pub root_dir: PathBuf,
    /// The node's name; the host name when not given.
    #[arg(long, value_name = "NAME", help_heading = "Node")]
    pub hostname_override: Option<String>,
    /// The node's addresses, at most one a family.
    #[arg(long, value_delimiter = ',', help_heading = "Node")]
    pub node_ip: Vec<IpAddr>,
    /// Which programs know credentials of which registries (a CredentialProviderConfig).
    #[arg(long, value_name = "FILE", requires = "image_credential_provider_bin_dir", help_heading = "Configuration")]
    pub image_credential_provider_config: Option<PathBuf>,
    /// Where those programs are.
    #[arg(long, value_name = "DIR", requires = "image_credential_provider_config", help_heading = "Configuration")]
    pub image_credential_provider_bin_dir: Option<PathBuf>,
    /// Leave the kernel's settings that stock sets (vm.overcommit_memory, kernel.panic, ...) as they are.
    #[arg(long, help_heading = "Node")]
    pub leave_kernel_defaults: bool,
    /// Labels to register with, as key=value,key=value.
    #[arg(long, default_value = "", help_heading = "Node")]
    pub node_labels: String,
    /// Whether the node registers itself.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Node")]
    pub register_node: Option<bool>,

    /// Socket of the container runtime.
    #[arg(long, help_heading = "Also in the configuration file")]
    pub container_runtime_endpoint: Option<String>,
    /// Socket of the image service.
    #[arg(long, help_heading = "Also in the configuration file")]
    pub image_service_endpoint: Option<String>,
    /// Folder of static pods.
    #[arg(long, help_heading = "Also in the configuration file")]
    pub pod_manifest_path: Option<String>,
    /// A URL of static pods.
    #[arg(long, help_heading = "Also in the configuration file")]
    pub manifest_url: Option<String>,
    /// Address of the server.
    #[arg(long, help_heading = "Also in the configuration file")]
    pub address: Option<String>,
    /// Port of the server.
    #[arg(long, help_heading = "Also in the configuration file")]
    pub port: Option<i32>,
    /// Port of the health endpoint; 0 for none.
    #[arg(long, help_heading = "Also in the configuration file")]
    pub healthz_port: Option<i32>,
    /// Port without authentication; 0 for none.
    #[arg(long, help_heading = "Also in the configuration file")]
    pub read_only_port: Option<i32>,
    /// The authority of client certificates.
    #[arg(long, help_heading = "Also in the configuration file")]
    pub client_ca_file: Option<String>,
    /// Whether callers without credentials are let in.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Also in the configuration file")]
    pub anonymous_auth: Option<bool>,
    /// Webhook or AlwaysAllow.
    #[arg(long, help_heading = "Also in the configuration file")]
    pub authorization_mode: Option<String>,
    /// Addresses of the cluster's DNS.
    #[arg(long, value_delimiter = ',', help_heading = "Also in the configuration file")]
    pub cluster_dns: Vec<String>,
    /// The cluster's domain.
    #[arg(long, help_heading = "Also in the configuration file")]
    pub cluster_domain: Option<String>,
    /// The resolver file that pods inherit.
    #[arg(long, help_heading = "Also in the configuration file")]
    pub resolv_conf: Option<String>,
    /// cgroupfs or systemd.
    #[arg(long, help_heading = "Also in the configuration file")]
    pub cgroup_driver: Option<String>,
    /// The cgroup under which pods live.
    #[arg(long, help_heading = "Also in the configuration file")]
    pub cgroup_root: Option<String>,
    /// Pods that the node takes.
    #[arg(long, help_heading = "Also in the configuration file")]
    pub max_pods: Option<i32>,
    /// Whether the client certificate is renewed.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Also in the configuration file")]
    pub rotate_certificates: Option<bool>,
    /// Serving certificate.
    #[arg(long, help_heading = "Also in the configuration file")]
    pub tls_cert_file: Option<String>,
    /// Key of the serving certificate.
    #[arg(long, help_heading = "Also in the configuration file")]
    pub tls_private_key_file: Option<String>,
    /// Whether RuntimeDefault is the seccomp profile of pods that name none.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Also in the configuration file")]
    pub seccomp_default: Option<bool>,
    /// Feature gates, as A=true,B=false.
    #[arg(long, default_value = "", help_heading = "Also in the configuration file")]
    pub feature_gates: String,
    /// Taken without effect: the runtime names the image of its sandboxes.
    #[arg(long, hide = true)]
    pub pod_infra_container_image: Option<String>,
    /// Taken without effect: swap is not looked at.
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub fail_swap_on: Option<bool>,
}

#[derive(Parser)]
#[command(name = "kubelet", no_binary_name = false)]
struct Alone {
    #[command(flatten)]
    options: Options,
}

impl Options {
    /// Options from arguments, the first of which is the program's name.
    ///
    /// # Errors
    /// A flag is unknown or its value is wrong.
    pub fn from_args(args: Vec<String>) -> Result<Self, clap::Error> {
        let args = go_args(args.into_iter().map(Into::into));
        Ok(Alone::try_parse_from(args)?.options)
    }

    /// Each flag with its value, as `/flagz` shows them.
    pub fn shown(&self) -> Vec<(String, String)> {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let switch = |value: Option<bool>| value.map(|value| value.to_string());
        let number = |value: Option<i32>| value.map(|value| value.to_string());
        let ips: Vec<String> = self.node_ip.iter().map(ToString::to_string).collect();
        let flags = [
            ("address", self.address.clone()),
            ("anonymous-auth", switch(self.anonymous_auth)),
            ("authorization-mode", self.authorization_mode.clone()),
            ("bootstrap-kubeconfig", path(&self.bootstrap_kubeconfig)),
            ("cert-dir", Some(self.cert_dir.display().to_string())),
            ("cgroup-driver", self.cgroup_driver.clone()),
            ("cgroup-root", self.cgroup_root.clone()),
            ("client-ca-file", self.client_ca_file.clone()),
            ("cluster-dns", Some(format!("[{}]", self.cluster_dns.join(",")))),
            ("cluster-domain", self.cluster_domain.clone()),
            ("config", path(&self.config)),
            ("container-runtime-endpoint", self.container_runtime_endpoint.clone()),
            ("feature-gates", Some(self.feature_gates.clone())),
            ("healthz-port", number(self.healthz_port)),
            ("hostname-override", self.hostname_override.clone()),
            ("image-service-endpoint", self.image_service_endpoint.clone()),
            ("kubeconfig", path(&self.kubeconfig)),
            ("leave-kernel-defaults", Some(self.leave_kernel_defaults.to_string())),
            ("manifest-url", self.manifest_url.clone()),
            ("max-pods", number(self.max_pods)),
            ("node-ip", Some(ips.join(","))),
            ("node-labels", Some(self.node_labels.clone())),
            ("pod-manifest-path", self.pod_manifest_path.clone()),
            ("port", number(self.port)),
            ("read-only-port", number(self.read_only_port)),
            ("register-node", switch(self.register_node)),
            ("resolv-conf", self.resolv_conf.clone()),
            ("root-dir", Some(self.root_dir.display().to_string())),
            ("rotate-certificates", switch(self.rotate_certificates)),
            ("seccomp-default", switch(self.seccomp_default)),
            ("tls-cert-file", self.tls_cert_file.clone()),
            ("tls-private-key-file", self.tls_private_key_file.clone()),
        ];
        flags.into_iter().map(|(name, value)| (name.to_owned(), value.unwrap_or_default())).collect()
    }

    /// The configuration in effect: defaults, the file, then flags.
    ///
    /// # Errors
    /// The file is missing or wrong, or what comes out contradicts itself.
    pub fn configuration(&self) -> Result<KubeletConfiguration, Error> {
        let mut config = match (&self.config, &self.config_dir) {
            (file, Some(folder)) => KubeletConfiguration::load_with_drop_ins(file.as_deref(), folder)?,
            (Some(path), None) => KubeletConfiguration::load(path)?,
            (None, None) => KubeletConfiguration::default(),
        };
        let set = |field: &mut String, value: &Option<String>| {
            if let Some(value) = value {
                value.clone_into(field);
            }
        };
        set(&mut config.container_runtime_endpoint, &self.container_runtime_endpoint);
        set(&mut config.image_service_endpoint, &self.image_service_endpoint);
        set(&mut config.static_pod_path, &self.pod_manifest_path);
        set(&mut config.static_pod_url, &self.manifest_url);
        set(&mut config.address, &self.address);
        set(&mut config.authentication.x509.client_ca_file, &self.client_ca_file);
        set(&mut config.authorization.mode, &self.authorization_mode);
        set(&mut config.cluster_domain, &self.cluster_domain);
        set(&mut config.cgroup_driver, &self.cgroup_driver);
        set(&mut config.cgroup_root, &self.cgroup_root);
        set(&mut config.tls_cert_file, &self.tls_cert_file);
        set(&mut config.tls_private_key_file, &self.tls_private_key_file);
        config.port = self.port.unwrap_or(config.port);
        config.healthz_port = self.healthz_port.unwrap_or(config.healthz_port);
        config.read_only_port = self.read_only_port.unwrap_or(config.read_only_port);
        config.max_pods = self.max_pods.unwrap_or(config.max_pods);
        config.authentication.anonymous.enabled =
            self.anonymous_auth.unwrap_or(config.authentication.anonymous.enabled);
        config.rotate_certificates = self.rotate_certificates.unwrap_or(config.rotate_certificates);
        config.seccomp_default = self.seccomp_default.unwrap_or(config.seccomp_default);
        config.register_node = self.register_node.unwrap_or(config.register_node);
        config.resolv_conf = self.resolv_conf.clone().or(config.resolv_conf);
        if !self.cluster_dns.is_empty() {
            config.cluster_dns.clone_from(&self.cluster_dns);
        }
        let gates = parse_pairs(&self.feature_gates).map_err(|text| Error::Invalid(vec![text]))?;
        for (name, value) in gates {
            let value = bosun_kit::gates::parse_bool(&value).ok_or_else(|| {
                Error::Invalid(vec![format!("feature gate {name}: {value:?} is neither true nor false")])
            })?;
            config.feature_gates.insert(name, value);
        }
        config.fill_defaults();
        config.check()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_spellings_are_taken_and_override() {
        let args = [
            "kubelet",
            "--register_node=false",
            "--max-pods",
            "7",
            "--cluster-dns=10.0.0.1,10.0.0.2",
            "--seccomp-default",
        ];
        let options = Options::from_args(args.map(str::to_owned).to_vec()).unwrap();
        let config = options.configuration().unwrap();
        assert_eq!((config.register_node, config.max_pods, config.cluster_dns.len()), (false, 7, 2));
        assert!(config.seccomp_default);
        assert!(options.shown().contains(&("max-pods".to_owned(), "7".to_owned())));
        assert!(Options::from_args(vec!["kubelet".into(), "--no-such-flag".into()]).is_err());
    }
}
