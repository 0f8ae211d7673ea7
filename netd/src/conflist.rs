//! The CNI configuration, and flannel's `subnet.env` for plugins that read it.

use crate::Config;
use ipnet::IpNet;
use serde_json::{Value, json};
use std::{io, net::IpAddr};

/// The file's name: low, so that the runtime takes it before others.
const FILE: &str = "10-bosun.conflist";
/// The plugins that the configuration names, and loopback, which runtimes use by themselves.
const PLUGINS: [&str; 4] = ["bridge", "host-local", "loopback", "portmap"];
/// What flannel says for a link of Ethernet's usual size.
const ETHERNET: u32 = 1500;

/// The configuration list for a node with these pod networks.
#[must_use]
pub fn conflist(config: &Config, pod_cidrs: &[IpNet]) -> Value {
    let ranges: Vec<_> = pod_cidrs.iter().map(|net| json!([{ "subnet": net }])).collect();
    let mut ipam = json!({ "type": "host-local", "ranges": ranges });
    if let Some(dir) = &config.data_dir {
        ipam["dataDir"] = json!(dir);
    }
    let mut bridge = json!({
        "type": "bridge",
        "bridge": config.bridge,
        "isDefaultGateway": true,
        "forceAddress": true,
        "hairpinMode": true,
        "ipam": ipam,
    });
    if let Some(mtu) = config.mtu {
        bridge["mtu"] = mtu.into();
    }
    let portmap = json!({ "type": "portmap", "capabilities": { "portMappings": true }, "snat": true });
    json!({ "cniVersion": "1.0.0", "name": "bosun", "plugins": [bridge, portmap] })
}

/// Writes the configuration unless it is there already.
pub(crate) fn write(config: &Config, pod_cidrs: &[IpNet]) -> io::Result<()> {
    let text = format!("{:#}\n", conflist(config, pod_cidrs));
    let path = config.conf_dir.join(FILE);
    if std::fs::read_to_string(&path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    bosun_kit::files::create_dir(&config.conf_dir, 0o755)?;
    bosun_kit::files::write_atomic(&path, text.as_bytes(), 0o644)?;
    tracing::info!(path = %path.display(), "CNI configuration written");
    Ok(())
}

/// The plugins that the runtime will not find.
pub(crate) fn missing_plugins(config: &Config) -> Vec<&'static str> {
    PLUGINS.into_iter().filter(|name| !config.bin_dir.join(name).is_file()).collect()
}

/// Writes `subnet.env`, when it is wanted.
pub(crate) fn write_subnet_env(config: &Config, inside: &[IpNet], pod_cidrs: &[IpNet]) -> io::Result<()> {
    let Some(path) = &config.subnet_env else { return Ok(()) };
    if let Some(parent) = path.parent() {
        bosun_kit::files::create_dir(parent, 0o755)?;
    }
    bosun_kit::files::write_atomic(path, subnet_env(config, inside, pod_cidrs).as_bytes(), 0o644)
}

fn subnet_env(config: &Config, inside: &[IpNet], pod_cidrs: &[IpNet]) -> String {
    let mut text = String::new();
    for (prefix, v4) in [("FLANNEL_", true), ("FLANNEL_IPV6_", false)] {
        let of_family = |list: &[IpNet]| list.iter().find(|net| net.addr().is_ipv4() == v4).copied();
        if let (Some(network), Some(subnet)) = (of_family(inside), of_family(pod_cidrs)) {
            // Flannel writes the subnet with its first address, which is the bridge's.
            let (first, length) = (first_address(subnet), subnet.prefix_len());
            text += &format!("{prefix}NETWORK={network}\n{prefix}SUBNET={first}/{length}\n");
        }
    }
    // The masquerade is ours; the flannel plugin must not ask the bridge plugin for another.
    text + &format!("FLANNEL_MTU={}\nFLANNEL_IPMASQ={}\n", config.mtu.unwrap_or(ETHERNET), config.masquerade)
}

fn first_address(net: IpNet) -> IpAddr {
    match net.network() {
        IpAddr::V4(v4) => IpAddr::V4((u32::from(v4).wrapping_add(1)).into()),
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6).wrapping_add(1)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_for_both_families() {
        let config = Config { mtu: Some(1450), data_dir: Some("/data".into()), ..Config::default() };
        let cidrs = ["10.244.3.0/24".parse().unwrap(), "fd00:3::/64".parse().unwrap()];
        let golden = json!({"cniVersion": "1.0.0", "name": "bosun", "plugins": [
            {
                "type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "forceAddress": true, "hairpinMode": true,
                "mtu": 1450, "ipam": {
                    "type": "host-local", "dataDir": "/data",
                    "ranges": [[{"subnet": "10.244.3.0/24"}], [{"subnet": "fd00:3::/64"}]],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
        ]});
        assert_eq!(conflist(&config, &cidrs), golden);
        let env =
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        assert_eq!(subnet_env(&config, &config.cluster_networks().unwrap(), &cidrs), env);
    }

    #[test]
    fn written_whole_and_only_once() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { conf_dir: dir.path().join("net.d"), bin_dir: dir.path().into(), ..Config::default() };
        let cidrs = ["10.244.3.0/24".parse().unwrap()];
        write(&config, &cidrs).unwrap();
        let path = config.conf_dir.join(FILE);
        let before = std::fs::metadata(&path).unwrap().modified().unwrap();
        write(&config, &cidrs).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), before);
        assert_eq!(std::fs::read_dir(&config.conf_dir).unwrap().count(), 1);
        assert_eq!(missing_plugins(&config), PLUGINS);
    }
}
