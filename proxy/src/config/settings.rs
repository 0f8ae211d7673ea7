//! The configuration, checked and in the forms that the program works with.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use super::{Config, GoDuration};
use crate::nftables::{self, Detector};

/// On which of the node's addresses its ports are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodePortScope {
    /// On all but loopback.
    All,
    /// On some.
    Nets {
        /// On the Node object's internal addresses.
        primary: bool,
        /// On addresses in these networks.
        nets: Vec<IpNet>,
    },
}

/// A configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct SettingError {
    /// The field's path.
    pub field: &'static str,
    /// What is wrong with it and what to write instead.
    pub message: String,
}

/// What the proxy runs by.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where `/healthz` and `/livez` are served.
    pub healthz: SocketAddr,
    /// Where `/metrics`, `/proxyMode` and `/configz` are served.
    pub metrics: SocketAddr,
    /// Whether failing to listen ends the program.
    pub bind_hard_fail: bool,
    /// What the rules depend on. With [`Settings::node_cidr`] the detector follows from the Node.
    pub rules: nftables::Options,
    /// Pods of this node are told by the Node's `spec.podCIDRs`.
    pub node_cidr: bool,
    /// Where node ports are served.
    pub node_ports: NodePortScope,
    /// The least time between two changes of the rules.
    pub min_sync_period: Duration,
    /// How long after a change the rules must have followed, halved, for the proxy to count as healthy.
    pub sync_period: Duration,
    /// Addresses that override the Node's.
    pub node_address: Option<IpAddr>,
    /// `oom_score_adj` of the process.
    pub oom_score_adj: Option<i32>,
}

impl Settings {
    /// Checks a configuration. What has no effect here is told in the log.
    pub fn from_config(config: &Config) -> Result<Self, SettingError> {
        check_mode(&config.mode)?;
        warn_of_unused(config);
        let bind = address("bindAddress", &config.bind_address)?;
        let v6 = bind.is_some_and(|bind| bind.is_ipv6());
        let any = if v6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        let loopback = if v6 { IpAddr::V6(Ipv6Addr::LOCALHOST) } else { IpAddr::V4(Ipv4Addr::LOCALHOST) };
        let bit = config.nftables.masquerade_bit.unwrap_or(14);
        let mark = u32::try_from(bit).ok().filter(|bit| *bit < 32).map(|bit| 1 << bit);
        let mark = mark.ok_or_else(|| wrong("nftables.masqueradeBit", "must be within the range [0, 31]"))?;
        let (detector, node_cidr) = detector(config)?;
        Ok(Self {
            healthz: listen("healthzBindAddress", &config.healthz_bind_address, SocketAddr::new(any, 10256))?,
            metrics: listen("metricsBindAddress", &config.metrics_bind_address, SocketAddr::new(loopback, 10249))?,
            bind_hard_fail: config.bind_address_hard_fail,
            rules: nftables::Options { mark, masquerade_all: config.nftables.masquerade_all, detector },
            node_cidr,
            node_ports: node_ports(config.node_port_addresses.as_deref().unwrap_or_default())?,
            min_sync_period: config.nftables.min_sync_period.0,
            sync_period: or_default(config.nftables.sync_period, 30),
            node_address: bind.filter(|bind| !bind.is_unspecified()),
            oom_score_adj: config.oom_score_adj,
        })
    }
}

fn wrong(field: &'static str, message: impl Into<String>) -> SettingError {
    SettingError { field, message: message.into() }
}

fn or_default(duration: GoDuration, seconds: u64) -> Duration {
    duration.nonzero().unwrap_or(Duration::from_secs(seconds))
}

fn check_mode(mode: &str) -> Result<(), SettingError> {
    match mode {
        "" | "nftables" => Ok(()),
        "ebpf" => Err(wrong(
            "mode",
            format!(
                "ebpf is not part of this build; use nftables. This kernel: {}",
                bosun_ebpf::probe(std::path::Path::new("/"))
            ),
        )),
        "iptables" | "ipvs" => Err(wrong("mode", format!("{mode} is not part of this build; use nftables"))),
        other => Err(wrong("mode", format!("unknown mode {other:?}; use nftables"))),
    }
}

fn address(field: &'static str, text: &str) -> Result<Option<IpAddr>, SettingError> {
    match text {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| wrong(field, format!("{text:?} is no IP address"))),
    }
}

fn listen(field: &'static str, text: &str, default: SocketAddr) -> Result<SocketAddr, SettingError> {
    if text.is_empty() {
        return Ok(default);
    }
    let bare = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, default.port()));
    text.parse().or(bare).map_err(|_| wrong(field, format!("{text:?} is no address with a port, like {default}")))
}

fn detector(config: &Config) -> Result<(Detector, bool), SettingError> {
    let given = |field, value: &str| match value {
        "" => Err(wrong(field, format!("must be set with detectLocalMode {}", config.detect_local_mode))),
        value => Ok(value.to_owned()),
    };
    let local = &config.detect_local;
    match &*config.detect_local_mode {
        "" | "ClusterCIDR" => {
            let cidrs = config.cluster_cidr.split(',').map(str::trim).filter(|cidr| !cidr.is_empty());
            let parse =
                |cidr: &str| cidr.parse::<IpNet>().map_err(|_| wrong("clusterCIDR", format!("{cidr:?} is no CIDR")));
            let nets: Vec<IpNet> = cidrs.map(parse).collect::<Result<_, _>>()?;
            if nets.is_empty() {
                tracing::warn!("clusterCIDR is not set: what comes from outside the cluster cannot be told apart");
                return Ok((Detector::None, false));
            }
            Ok((Detector::Nets(nets), false))
        }
        "NodeCIDR" => Ok((Detector::None, true)),
        "BridgeInterface" => {
            Ok((Detector::Bridge(given("detectLocal.bridgeInterface", &local.bridge_interface)?), false))
        }
        "InterfaceNamePrefix" => {
            let prefix = given("detectLocal.interfaceNamePrefix", &local.interface_name_prefix)?;
            Ok((Detector::InterfacePrefix(prefix), false))
        }
        other => Err(wrong(
            "detectLocalMode",
            format!("unknown mode {other:?}; use ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix"),
        )),
    }
}

fn node_ports(texts: &[String]) -> Result<NodePortScope, SettingError> {
    let mut primary = texts.is_empty();
    let mut nets: Vec<IpNet> = Vec::new();
    for text in texts {
        match &**text {
            "primary" => primary = true,
            "all" | "0.0.0.0/0" | "::/0" => return Ok(NodePortScope::All),
            "localhost" => tracing::warn!("nodePortAddresses: node ports on loopback addresses are not served"),
            text => match text.parse::<IpNet>() {
                Ok(net) if net.addr().is_loopback() => {
                    tracing::warn!(cidr = text, "nodePortAddresses: node ports on loopback addresses are not served");
                }
                Ok(net) => nets.push(net),
                Err(_) => {
                    let message = format!("{text:?} is no CIDR and none of primary, localhost, all");
                    return Err(wrong("nodePortAddresses", message));
                }
            },
        }
    }
    Ok(NodePortScope::Nets { primary, nets })
}

/// Says which settings that differ from their defaults have no effect.
fn warn_of_unused(config: &Config) {
    let default = Config::default();
    let unused = [
        ("iptables", config.iptables != default.iptables && config.iptables != zero_iptables()),
        ("ipvs", config.ipvs.scheduler != default.ipvs.scheduler || config.ipvs.strict_arp),
        ("winkernel", config.winkernel != default.winkernel),
        ("portRange", config.port_range != default.port_range),
        ("windowsRunAsService", config.windows_run_as_service),
        ("enableProfiling", config.enable_profiling),
        ("showHiddenMetricsForVersion", !config.show_hidden_metrics_for_version.is_empty()),
        ("featureGates", !config.feature_gates.is_empty()),
    ];
    for (field, _) in unused.into_iter().filter(|(_, used)| *used) {
        tracing::warn!(field, "this setting has no effect in mode nftables of this build");
    }
}

/// What a configuration that spells out every zero has.
fn zero_iptables() -> super::Iptables {
    super::Iptables {
        masquerade_bit: None,
        masquerade_all: false,
        localhost_node_ports: None,
        snat_node_internal_ip: None,
        sync_period: GoDuration::default(),
        min_sync_period: GoDuration::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: impl FnOnce(&mut Config)) -> Result<Settings, SettingError> {
        let mut config = Config::default();
        change(&mut config);
        Settings::from_config(&config)
    }

    #[test]
    fn defaults_are_those_of_stock() {
        let settings = with(|_| {}).unwrap();
        assert_eq!(settings.healthz.to_string(), "0.0.0.0:10256");
        assert_eq!(settings.metrics.to_string(), "127.0.0.1:10249");
        assert_eq!(settings.rules.mark, 0x4000);
        assert_eq!(settings.node_ports, NodePortScope::Nets { primary: true, nets: Vec::new() });
        assert_eq!(settings.min_sync_period, Duration::from_secs(1));
    }

    #[test]
    fn errors_name_the_field_and_what_to_write() {
        type Case = (fn(&mut Config), &'static str);
        let cases: [Case; 6] = [
            (|c| c.mode = "ipvs".into(), "mode: ipvs is not part of this build; use nftables"),
            (|c| c.cluster_cidr = "10.0.0.0/16,x".into(), "clusterCIDR: \"x\" is no CIDR"),
            (|c| c.nftables.masquerade_bit = Some(32), "nftables.masqueradeBit: must be within the range [0, 31]"),
            (|c| c.node_port_addresses = Some(vec!["eth0".into()]), "nodePortAddresses: \"eth0\" is no CIDR"),
            (|c| c.detect_local_mode = "BridgeInterface".into(), "detectLocal.bridgeInterface: must be set"),
            (|c| c.healthz_bind_address = "x".into(), "healthzBindAddress: \"x\" is no address"),
        ];
        for (change, wanted) in cases {
            let error = with(change).unwrap_err().to_string();
            assert!(error.starts_with(wanted), "{error}");
        }
        let error = with(|c| c.mode = "ebpf".into()).unwrap_err().to_string();
        assert!(error.contains("use nftables. This kernel: "), "{error}");
    }
}
