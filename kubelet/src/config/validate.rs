//! What a configuration must satisfy beyond its types.

use std::time::Duration;

use super::{Error, GATES, KubeletConfiguration};
use bosun_kit::gates::FeatureGates;
use bosun_kit::tls::{TlsError, TlsPolicy};
use bosun_kubelet_cgroup::allocatable::Enforce;

impl KubeletConfiguration {
    /// Checks the configuration as a whole, naming every fault at once.
    ///
    /// # Errors
    /// [`Error::Invalid`] with one sentence a fault, in the style of stock's.
    pub fn check(&self) -> Result<(), Error> {
        let mut faults = Vec::new();
        let mut fault = |wrong: bool, text: String| {
            if wrong {
                faults.push(text);
            }
        };
        let range = |value: i32, low: i32, high: i32| value < low || value > high;
        fault(range(self.port, 1, 65535), format!("port {} must be between 1 and 65535, inclusive", self.port));
        fault(
            range(self.read_only_port, 0, 65535),
            format!("readOnlyPort {} must be between 0 and 65535, inclusive", self.read_only_port),
        );
        fault(
            range(self.healthz_port, 0, 65535),
            format!("healthzPort {} must be between 0 and 65535, inclusive", self.healthz_port),
        );
        fault(
            range(self.oom_score_adj, -1000, 1000),
            format!("oomScoreAdj {} must be between -1000 and 1000, inclusive", self.oom_score_adj),
        );
        fault(self.max_pods < 0, format!("maxPods {} must not be a negative number", self.max_pods));
        fault(self.pods_per_core < 0, format!("podsPerCore {} must not be a negative number", self.pods_per_core));
        fault(
            self.node_lease_duration_seconds <= 0,
            format!("nodeLeaseDurationSeconds {} must be greater than 0", self.node_lease_duration_seconds),
        );
        let (low, high) = (self.image_gc_low_threshold_percent, self.image_gc_high_threshold_percent);
        fault(range(high, 0, 100), format!("imageGCHighThresholdPercent {high} must be between 0 and 100, inclusive"));
        fault(range(low, 0, 100), format!("imageGCLowThresholdPercent {low} must be between 0 and 100, inclusive"));
        fault(
            low >= high,
            format!("imageGCLowThresholdPercent {low} must be less than imageGCHighThresholdPercent {high}"),
        );
        fault(
            !matches!(self.cgroup_driver.as_str(), "cgroupfs" | "systemd"),
            format!("cgroupDriver {:?} must be cgroupfs or systemd", self.cgroup_driver),
        );
        self.check_limits(&mut fault);
        fault(
            !matches!(self.authorization.mode.as_str(), "Webhook" | "AlwaysAllow"),
            format!("authorization.mode {:?} must be Webhook or AlwaysAllow", self.authorization.mode),
        );
        fault(
            !matches!(self.config_map_and_secret_change_detection_strategy.as_str(), "Watch" | "Cache" | "Get"),
            format!(
                "configMapAndSecretChangeDetectionStrategy {:?} must be Watch, Cache or Get",
                self.config_map_and_secret_change_detection_strategy
            ),
        );
        fault(
            self.serialize_image_pulls == Some(true) && self.max_parallel_image_pulls.is_some_and(|n| n > 1),
            "maxParallelImagePulls cannot be larger than 1 unless serializeImagePulls is false".to_owned(),
        );
        fault(
            self.max_parallel_image_pulls.is_some_and(|n| n < 1),
            "maxParallelImagePulls must be a positive number".to_owned(),
        );
        if let Some(period) = self.crash_loop_back_off.max_container_restart_period {
            fault(
                period.0.as_secs_f64() < 1.0 || period.0.as_secs() > 300,
                format!("crashLoopBackOff.maxContainerRestartPeriod {period} must be between 1s and 300s"),
            );
        }
        fault(
            self.tls_cert_file.is_empty() != self.tls_private_key_file.is_empty(),
            "tlsCertFile and tlsPrivateKeyFile must be given together".to_owned(),
        );
        if let Err(error) = self.tls_policy() {
            fault(true, error.to_string());
        }
        for address in &self.cluster_dns {
            fault(address.parse::<std::net::IpAddr>().is_err(), format!("clusterDNS: {address:?} is no IP address"));
        }
        fault(
            !self.pod_logs_dir.starts_with('/'),
            format!("podLogsDir {:?} must be an absolute path", self.pod_logs_dir),
        );
        fault(
            self.shutdown_grace_period < self.shutdown_grace_period_critical_pods,
            "shutdownGracePeriod must not be shorter than shutdownGracePeriodCriticalPods".to_owned(),
        );
        fault(
            !self.shutdown_grace_period_by_pod_priority.is_empty() && !self.shutdown_grace_period.is_zero(),
            "Cannot specify both shutdownGracePeriodByPodPriority and shutdownGracePeriod at the same time".to_owned(),
        );
        let (min_age, max_age) = (self.image_minimum_gc_age, self.image_maximum_gc_age);
        fault(
            !max_age.is_zero() && max_age < min_age,
            format!("imageMaximumGCAge {max_age} must be greater than imageMinimumGCAge {min_age}"),
        );
        fault(
            self.container_log_max_size.parse::<bosun_api::quantity::Quantity>().is_err(),
            format!("containerLogMaxSize {:?} is no quantity", self.container_log_max_size),
        );
        fault(
            self.container_log_max_files <= 1,
            format!("containerLogMaxFiles {} must be greater than 1", self.container_log_max_files),
        );
        fault(
            self.container_log_max_workers < 1,
            format!("containerLogMaxWorkers {} must be greater than or equal to 1", self.container_log_max_workers),
        );
        fault(
            self.container_log_monitor_interval.0.as_secs() < 3,
            format!(
                "containerLogMonitorInterval {} must be greater than or equal to 3s",
                self.container_log_monitor_interval
            ),
        );
        fault(
            !matches!(self.logging.format.as_str(), "" | "text" | "json"),
            format!("logging.format: Invalid value: {:?}: Unsupported log format", self.logging.format),
        );
        if let Some(rate) = self.tracing.as_ref().and_then(|tracing| tracing.sampling_rate_per_million) {
            let field = format!("tracing.samplingRatePerMillion: Invalid value: {rate}");
            fault(rate < 0, format!("{field}: sampling rate must be positive"));
            fault(
                rate > 1_000_000,
                format!("{field}: sampling rate per million must be less than or equal to one million"),
            );
        }
        if let Err(text) = self.gates() {
            fault(true, text);
        }
        if faults.is_empty() { Ok(()) } else { Err(Error::Invalid(faults)) }
    }

    /// What is enforced by cgroups, and how swap and quotas are used.
    fn check_limits(&self, fault: &mut dyn FnMut(bool, String)) {
        let enforced = self.enforce_node_allocatable.as_deref().unwrap_or_default();
        let has = |name: &str| enforced.iter().any(|entry| entry == name);
        fault(
            !self.cgroups_per_qos && has("pods"),
            "Node Allocatable enforcement is not supported unless Cgroups Per QOS feature is turned on: enforceNodeAllocatable with pods needs cgroupsPerQOS: true".to_owned(),
        );
        let daemons = [
            ("system-reserved", "systemReservedCgroup (--system-reserved-cgroup)", &self.system_reserved_cgroup),
            ("kube-reserved", "kubeReservedCgroup (--kube-reserved-cgroup)", &self.kube_reserved_cgroup),
        ];
        for (name, field, cgroup) in daemons {
            let compressible = format!("{name}-compressible");
            for entry in [name, &compressible].into_iter().filter(|entry| has(entry)) {
                let text = format!(
                    "{field} must be specified when {entry:?} contained in enforceNodeAllocatable (--enforce-node-allocatable)"
                );
                fault(cgroup.is_empty(), text);
            }
            fault(
                has(name) && has(&compressible),
                format!(
                    "both {name:?} and {compressible:?} cannot be specified together in enforceNodeAllocatable (--enforce-node-allocatable)"
                ),
            );
        }
        fault(
            has("none") && enforced.len() > 1,
            "enforceNodeAllocatable (--enforce-node-allocatable) may not contain additional enforcements when \"none\" is specified".to_owned(),
        );
        for entry in enforced.iter().filter(|entry| *entry != "none" && Enforce::parse(entry).is_none()) {
            fault(
                true,
                format!(
                    "option {entry:?} specified for enforceNodeAllocatable (--enforce-node-allocatable). Valid options are \"pods\", \"system-reserved\", \"kube-reserved\", \"system-reserved-compressible\", \"kube-reserved-compressible\" or \"none\""
                ),
            );
        }
        fault(
            !self.reserved_system_cpus.is_empty() && daemons.iter().any(|(_, _, cgroup)| !cgroup.is_empty()),
            "can't use reservedSystemCPUs (--reserved-cpus) with systemReservedCgroup (--system-reserved-cgroup) or kubeReservedCgroup (--kube-reserved-cgroup)".to_owned(),
        );
        fault(
            !matches!(self.memory_swap.swap_behavior.as_str(), "" | "NoSwap" | "LimitedSwap"),
            format!(
                "memorySwap.swapBehavior {:?} must be one of: \"\", \"LimitedSwap\" or \"NoSwap\"",
                self.memory_swap.swap_behavior
            ),
        );
        let period = self.cpu_cfs_quota_period.0;
        fault(
            !(Duration::from_millis(1)..=Duration::from_secs(1)).contains(&period),
            format!(
                "cpuCFSQuotaPeriod (--cpu-cfs-quota-period) {} must be between 1ms and 1sec, inclusive",
                self.cpu_cfs_quota_period
            ),
        );
        let custom = self.gates().is_ok_and(|gates| gates.enabled("CustomCPUCFSQuotaPeriod"));
        fault(
            period != Duration::from_millis(100) && !custom,
            format!(
                "cpuCFSQuotaPeriod (--cpu-cfs-quota-period) {} requires feature gate CustomCPUCFSQuotaPeriod",
                self.cpu_cfs_quota_period
            ),
        );
    }

    /// What TLS handshakes may agree on.
    ///
    /// # Errors
    /// A value of `tlsMinVersion`, `tlsCipherSuites` or `tlsCurvePreferences` that cannot be had.
    pub fn tls_policy(&self) -> Result<TlsPolicy, TlsError> {
        TlsPolicy::new(&self.tls_min_version, &self.tls_cipher_suites, &self.tls_curve_preferences)
    }

    /// The feature gates as this configuration sets them.
    ///
    /// # Errors
    /// A gate that is unknown, or locked to another value.
    pub fn gates(&self) -> Result<FeatureGates, String> {
        let mut gates = FeatureGates::new(GATES);
        for (name, value) in &self.feature_gates {
            gates.set(name, *value).map_err(|error| error.to_string())?;
        }
        Ok(gates)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_named_at_once() {
        let text = "port: 70000\nclusterDNS: [ten]\nimageGCLowThresholdPercent: 90\nfeatureGates: {NoSuchGate: true}\ntlsCipherSuites: [TLS_NULL]\nlogging: {format: xml}\ntracing: {samplingRatePerMillion: 1000001}";
        let error = KubeletConfiguration::parse(text, "f").unwrap_err().to_string();
        for part in [
            "port 70000",
            "clusterDNS: \"ten\"",
            "imageGCLowThresholdPercent 90",
            "NoSuchGate",
            "logging.format: Invalid value: \"xml\"",
            "less than or equal to one million",
            "tlsCipherSuites: \"TLS_NULL\"",
        ] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }
}
