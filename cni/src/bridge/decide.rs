//! What an attachment needs, decided from configuration, addresses and what is there: no kernel in here.

use super::{Config, alias, host_veth};
use crate::{
    Call, Code, Error,
    plan::{Link, Mac, Place, Step},
    result::{CniResult, Interface, IpConfig, Route},
};
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What is on the host before.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The link with the bridge's name.
    pub bridge: Option<Link>,
    /// Its addresses.
    pub addresses: Vec<IpNet>,
}

/// The steps and the result they lead to.
#[derive(Clone, Debug)]
pub struct Plan {
    /// To be applied in order.
    pub steps: Vec<Step>,
    /// What ADD answers.
    pub result: CniResult,
}

/// Decides the steps of ADD.
///
/// # Errors
/// When what is there stands against it: a link of that name that is no bridge, another address on the bridge.
pub fn plan(call: &Call, config: &Config, addresses: CniResult, observed: &Observed) -> Result<Plan, Error> {
    let result = with_gateways(config, addresses);
    let gateways = gateways(config, &result.ips);
    let mut steps = Vec::new();
    bridge_steps(config, &gateways, observed, &mut steps)?;
    let link = veth_steps(call, config, &result.ips, &mut steps);
    container_steps(call, config, &result, &mut steps);
    let result = with_interfaces(call, config, observed, &link, result);
    Ok(Plan { steps, result })
}

fn default_route(family_of: IpAddr) -> IpNet {
    let any: IpAddr = if family_of.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // A prefix length of zero is valid for every address.
    IpNet::new(any, 0).unwrap_or_else(|_| any.into())
}

/// The address that follows the network's own.
fn first_address(net: IpNet) -> IpAddr {
    match net.network() {
        IpAddr::V4(v4) => Ipv4Addr::from(u32::from(v4).wrapping_add(1)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6).wrapping_add(1)).into(),
    }
}

/// Adds the gateways and default routes that the configuration asks for and IPAM left out.
fn with_gateways(config: &Config, mut result: CniResult) -> CniResult {
    for ip in &mut result.ips {
        ip.interface = Some(2);
        if config.is_gateway && ip.gateway.is_none() {
            ip.gateway = Some(first_address(ip.address));
        }
        let default = default_route(ip.address.addr());
        let routed = result.routes.iter().any(|route| route.dst == default && route.gw.is_some());
        if config.is_default_gateway && !routed {
            result.routes.push(Route::new(default, ip.gateway));
        }
    }
    result
}

/// The bridge's own addresses, when it is to be the gateway.
fn gateways(config: &Config, ips: &[IpConfig]) -> Vec<IpNet> {
    ips.iter()
        .filter(|_| config.is_gateway)
        .filter_map(|ip| IpNet::new(ip.gateway?, ip.address.prefix_len()).ok())
        .collect()
}

fn bridge_steps(config: &Config, gateways: &[IpNet], observed: &Observed, steps: &mut Vec<Step>) -> Result<(), Error> {
    let name = &config.bridge;
    match &observed.bridge {
        Some(link) if link.kind != "bridge" => {
            return Err(Error::new(Code::InvalidConfig, format!("{name:?} already exists but is not a bridge")));
        }
        Some(link) if link.up => {}
        Some(_) => steps.push(Step::Up { place: Place::Host, link: name.clone() }),
        None => {
            // A given address stays the bridge's, where else it would take its lowest port's.
            let mac = gateways.first().map(|gateway| Mac::of_address(gateway.addr()));
            steps.push(Step::CreateBridge { name: name.clone(), mac, mtu: config.mtu });
        }
    }
    if config.promisc_mode && !observed.bridge.as_ref().is_some_and(|link| link.promiscuous) {
        steps.push(Step::Promiscuous { link: name.clone() });
    }
    for gateway in gateways {
        gateway_steps(config, *gateway, &observed.addresses, steps)?;
    }
    for (v4, key) in [(true, "net/ipv4/ip_forward"), (false, "net/ipv6/conf/all/forwarding")] {
        if gateways.iter().any(|gateway| gateway.addr().is_ipv4() == v4) {
            steps.push(Step::Sysctl { place: Place::Host, key: key.to_owned(), value: "1" });
        }
    }
    Ok(())
}

/// Puts the gateway's address on the bridge; another one in its way is an error, or goes by `forceAddress`.
fn gateway_steps(config: &Config, gateway: IpNet, present: &[IpNet], steps: &mut Vec<Step>) -> Result<(), Error> {
    if present.contains(&gateway) {
        return Ok(());
    }
    let v4 = gateway.addr().is_ipv4();
    let overlaps = |other: &IpNet| other.contains(&gateway.addr()) || gateway.contains(&other.addr());
    for other in present.iter().filter(|other| other.addr().is_ipv4() == v4 && (v4 || overlaps(other))) {
        if !config.force_address {
            let message = format!("{:?} already has an IP address different from {gateway}", config.bridge);
            return Err(Error::new(Code::InvalidConfig, message));
        }
        steps.push(Step::DeleteAddress { place: Place::Host, link: config.bridge.clone(), address: *other });
    }
    let (place, link) = (Place::Host, config.bridge.clone());
    steps.push(Step::AddAddress { place, link, address: gateway, dad: config.enable_dad });
    Ok(())
}

/// Name and hardware addresses of the pair.
struct Pair {
    host: String,
    host_mac: Mac,
    mac: Mac,
}

fn veth_steps(call: &Call, config: &Config, ips: &[IpConfig], steps: &mut Vec<Step>) -> Pair {
    let attachment = call.attachment();
    let host = host_veth(&call.conf.name, &attachment);
    let named = |end: &str| Mac::of_name(format!("{}/{attachment}/{end}", call.conf.name).as_bytes());
    let by_address = || {
        let v4 = ips.iter().find(|ip| ip.address.addr().is_ipv4());
        v4.or(ips.first()).map(|ip| Mac::of_address(ip.address.addr()))
    };
    let mac = config.mac.or_else(by_address).unwrap_or_else(|| named("container"));
    let pair = Pair { host_mac: named("host"), host, mac };
    steps.push(Step::CreateVeth {
        host: pair.host.clone(),
        host_mac: pair.host_mac,
        peer: attachment.ifname.clone(),
        peer_mac: mac,
        mtu: config.mtu,
        bridge: config.bridge.clone(),
    });
    steps.push(Step::Port {
        link: pair.host.clone(),
        hairpin: config.hairpin_mode,
        isolated: config.port_isolation,
        alias: alias(&call.conf.name, &attachment),
    });
    pair
}

fn container_steps(call: &Call, config: &Config, result: &CniResult, steps: &mut Vec<Step>) {
    let (place, link) = (Place::Container, call.environment.ifname.clone());
    if config.disable_container_interface {
        return;
    }
    let v6 = result.ips.iter().any(|ip| ip.address.addr().is_ipv6());
    if v6 {
        let key = format!("net/ipv6/conf/{link}/disable_ipv6");
        steps.push(Step::Sysctl { place, key, value: "0" });
    }
    for ip in &result.ips {
        steps.push(Step::AddAddress { place, link: link.clone(), address: ip.address, dad: config.enable_dad });
    }
    // Neighbours that knew the address with another hardware address learn the new one.
    if config.mac.is_some() && !result.ips.is_empty() {
        steps.push(Step::Announce { place, link: link.clone() });
    }
    steps.push(Step::Up { place, link: link.clone() });
    for route in &result.routes {
        let v4 = route.dst.addr().is_ipv4();
        let gateway = || result.ips.iter().filter(|ip| ip.address.addr().is_ipv4() == v4).find_map(|ip| ip.gateway);
        let route = Route { gw: route.gw.or_else(gateway), ..route.clone() };
        steps.push(Step::AddRoute { place, link: link.clone(), route });
    }
}

fn with_interfaces(call: &Call, config: &Config, observed: &Observed, pair: &Pair, mut result: CniResult) -> CniResult {
    let sandbox = call.netns().map(|path| path.display().to_string()).unwrap_or_default();
    let link = |name: &str, mac: String, sandbox: String| Interface {
        name: name.to_owned(),
        mac,
        mtu: config.mtu,
        sandbox,
        ..Interface::default()
    };
    let bridge_mac = observed.bridge.as_ref().map(Link::mac_text).unwrap_or_default();
    result.interfaces = vec![
        link(&config.bridge, bridge_mac, String::new()),
        link(&pair.host, pair.host_mac.to_string(), String::new()),
        link(&call.environment.ifname, pair.mac.to_string(), sandbox),
    ];
    if !call.conf.dns.is_empty() {
        result.dns = call.conf.dns.clone();
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{call::Environment, plan::to_text};
    use serde_json::{Value, json};

    fn call(extra: Value) -> Call {
        let environment = Environment::from_lookup(|name| {
            let value = match name {
                "CNI_COMMAND" => "ADD",
                "CNI_CONTAINERID" => "c1",
                "CNI_NETNS" => "/run/netns/c1",
                "CNI_IFNAME" => "eth0",
                "CNI_PATH" => "/opt/cni/bin",
                _ => return None,
            };
            Some(value.to_owned())
        })
        .unwrap();
        let mut conf = json!({"cniVersion": "1.0.0", "name": "net", "type": "bridge", "ipam": {"type": "host-local"}});
        conf.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        Call::new(environment, conf.to_string().as_bytes()).unwrap()
    }

    fn addresses() -> CniResult {
        let ip = |address: &str| IpConfig { interface: None, address: address.parse().unwrap(), gateway: None };
        CniResult { ips: vec![ip("10.1.0.5/24"), ip("fd00::5/64")], ..CniResult::default() }
    }

    fn steps(extra: Value, observed: &Observed) -> Result<String, String> {
        let call = call(extra);
        let config = Config::of(&call).map_err(|e| e.to_string())?;
        plan(&call, &config, addresses(), observed).map(|plan| to_text(&plan.steps)).map_err(|e| e.to_string())
    }

    fn bridge(addresses: &[&str]) -> Observed {
        let link = Link { index: 3, name: "cni0".into(), kind: "bridge".into(), up: true, ..Link::default() };
        Observed { bridge: Some(link), addresses: addresses.iter().map(|a| a.parse().unwrap()).collect() }
    }

    #[test]
    fn the_first_container_makes_the_bridge() {
        let text = steps(json!({"isDefaultGateway": true, "hairpinMode": true, "mtu": 1450}), &Observed::default());
        let golden = "\
host: create bridge cni0 mac 0a:58:0a:01:00:01 mtu 1450
host: cni0 address 10.1.0.1/24
host: cni0 address fd00::1/64
host: sysctl net/ipv4/ip_forward 1
host: sysctl net/ipv6/conf/all/forwarding 1
host: create veth veth5dc08b36ab mac 52:ef:4c:d7:8a:dc peer eth0 mac 0a:58:0a:01:00:05 mtu 1450 on cni0
host: port veth5dc08b36ab hairpin alias bosun-cni/net/c1/eth0
container: sysctl net/ipv6/conf/eth0/disable_ipv6 0
container: eth0 address 10.1.0.5/24
container: eth0 address fd00::5/64
container: eth0 up
container: route 0.0.0.0/0 via 10.1.0.1 dev eth0
container: route ::/0 via fd00::1 dev eth0
";
        let mask = |text: &str| {
            // Hashed names and addresses are checked for what they are elsewhere.
            let host = host_veth("net", &call(json!({})).attachment());
            let mac = Mac::of_name(b"net/c1/eth0/host").to_string();
            text.replace(&host, "veth5dc08b36ab").replace(&mac, "52:ef:4c:d7:8a:dc")
        };
        assert_eq!(mask(&text.unwrap()), golden);
    }

    #[test]
    fn the_next_container_finds_it() {
        let text = steps(json!({"isGateway": true, "mac": ""}), &bridge(&["10.1.0.1/24", "fd00::1/64"])).unwrap();
        assert!(!text.contains("create bridge") && !text.contains("host: cni0") && !text.contains("route"), "{text}");
    }

    #[test]
    fn an_address_in_the_way_is_an_error_or_replaced() {
        let error = steps(json!({"isGateway": true}), &bridge(&["10.9.0.1/24"])).unwrap_err();
        assert_eq!(error, r#""cni0" already has an IP address different from 10.1.0.1/24"#);
        let text =
            steps(json!({"isGateway": true, "forceAddress": true}), &bridge(&["10.9.0.1/24", "fd01::1/64"])).unwrap();
        assert!(text.starts_with(
            "host: cni0 delete address 10.9.0.1/24\nhost: cni0 address 10.1.0.1/24\nhost: cni0 address fd00::1/64\n"
        ));
    }

    #[test]
    fn a_given_hardware_address_is_announced() {
        let text = steps(json!({"runtimeConfig": {"mac": "02:00:00:00:00:09"}}), &bridge(&[])).unwrap();
        assert!(
            text.contains("peer eth0 mac 02:00:00:00:00:09")
                && text.contains("container: eth0 announce\ncontainer: eth0 up")
        );
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (extra, message) in [
            (json!({"vlan": 5}), "bridge: vlan: 5 is not supported yet"),
            (json!({"macspoofchk": true}), "bridge: macspoofchk: true is not supported yet"),
            (
                json!({"hairpinMode": true, "promiscMode": true}),
                "cannot set hairpin mode and promiscuous mode at the same time",
            ),
            (json!({"bridge": "a/b"}), r#"invalid bridge name "a/b""#),
            (json!({"runtimeConfig": {"mac": "x"}}), r#"invalid MAC address "x""#),
        ] {
            assert_eq!(steps(extra, &Observed::default()).unwrap_err(), message);
        }
        let taken = Observed { bridge: Some(Link { kind: "veth".into(), ..Link::default() }), ..Observed::default() };
        assert_eq!(steps(json!({}), &taken).unwrap_err(), r#""cni0" already exists but is not a bridge"#);
    }
}
