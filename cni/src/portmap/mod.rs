//! portmap: host ports that lead to a container, by destination NAT.
//!
//! Always by nf_tables: `backend: iptables` is taken for the same wish. Runs after the plugin that made the interface.

mod config;

pub use config::{Config, Mapping};

use crate::{
    Call, Code, Error, Netlink, Plugin,
    nat::{Entry, Kind, Nat},
    plan::{Kernel, Place, Step},
    result::{CniResult, IpConfig},
};
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) struct Portmap;

const KINDS: [Kind; 2] = [Kind::Ports, Kind::Hairpin];

impl Plugin for Portmap {
    fn add(&self, call: &Call) -> Result<CniResult, Error> {
        let config = Config::of(call)?;
        let result = call.required_prev_result()?;
        let entries = entries(&config, &container_addresses(result));
        if !entries.is_empty() {
            if config.snat {
                allow_loopback(result)?;
            }
            Nat::open()?.set(&call.conf.name, &call.attachment(), &KINDS, &entries)?;
        }
        Ok(result.clone())
    }

    fn del(&self, call: &Call) -> Result<(), Error> {
        match Nat::open_existing()? {
            Some(mut nat) => nat.remove(&call.conf.name, &call.attachment(), &KINDS),
            None => Ok(()),
        }
    }

    fn check(&self, call: &Call) -> Result<(), Error> {
        let config = Config::of(call)?;
        let entries = entries(&config, &container_addresses(call.required_prev_result()?));
        if entries.is_empty() {
            return Ok(());
        }
        match Nat::open()?.missing(&entries)? {
            Some(missing) => Err(Error::new(Code::Changed, format!("portmap: no rule for {missing}"))),
            None => Ok(()),
        }
    }

    fn gc(&self, call: &Call) -> Result<(), Error> {
        let valid = call.valid_attachments();
        let is_valid = |container: &str, ifname: &str| {
            valid.iter().any(|known| known.container_id == container && known.ifname == ifname)
        };
        match Nat::open_existing()? {
            Some(mut nat) => nat.collect(&call.conf.name, &KINDS, is_valid),
            None => Ok(()),
        }
    }

    fn status(&self, call: &Call) -> Result<(), Error> {
        Config::of(call)?;
        Nat::open().map(drop).map_err(|error| Error { code: Code::NotAvailable as u32, ..error })
    }
}

/// The container's first address of each family.
fn container_addresses(result: &CniResult) -> Vec<IpNet> {
    let inside = |ip: &&IpConfig| match ip.interface.and_then(|index| result.interfaces.get(index as usize)) {
        Some(interface) => !interface.sandbox.is_empty(),
        None => true,
    };
    let first = |v4: bool| {
        let mut of_family = result.ips.iter().filter(inside).filter(|ip| ip.address.addr().is_ipv4() == v4);
        of_family.next().map(|ip| ip.address)
    };
    [true, false].into_iter().filter_map(first).collect()
}

/// Decides what the container needs.
fn entries(config: &Config, addresses: &[IpNet]) -> Vec<Entry> {
    let mut entries = Vec::new();
    for address in addresses {
        let v4 = address.addr().is_ipv4();
        let before = entries.len();
        for mapping in &config.mappings {
            if mapping.host_ip.is_some_and(|host| host.is_ipv4() != v4) {
                continue;
            }
            entries.push(Entry::Port {
                host: mapping.host_ip.filter(|host| !host.is_unspecified()),
                protocol: mapping.protocol,
                port: mapping.host_port,
                to: address.addr(),
                to_port: mapping.container_port,
            });
        }
        if config.snat && entries.len() > before {
            let from = if config.masquerade_all { everything(v4) } else { address.trunc() };
            entries.push(Entry::Hairpin { from, to: address.addr() });
        }
    }
    entries
}

fn everything(v4: bool) -> IpNet {
    let any: IpAddr = if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // A prefix length of zero is valid for every address.
    IpNet::new(any, 0).unwrap_or_else(|_| any.into())
}

/// Lets 127.0.0.1 reach the container: its packets may leave by the bridge.
fn allow_loopback(result: &CniResult) -> Result<(), Error> {
    let Some(link) = result.interfaces.iter().find(|interface| interface.sandbox.is_empty()) else { return Ok(()) };
    let key = format!("net/ipv4/conf/{}/route_localnet", link.name);
    Netlink::open(None)?.apply(&[Step::Sysctl { place: Place::Host, key, value: "1" }])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(config: &str, addresses: &[&str]) -> String {
        let config = Config::parse(config.as_bytes()).unwrap();
        let addresses: Vec<_> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        entries(&config, &addresses).iter().map(|entry| format!("{entry}\n")).collect()
    }

    #[test]
    fn entries_for_each_family() {
        let config = r#"{"runtimeConfig": {"portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 5353, "containerPort": 53, "protocol": "UDP", "hostIP": "192.0.2.1"},
            {"hostPort": 0, "containerPort": 81, "protocol": "tcp"}
        ]}}"#;
        let golden = "port 6/any/8080 to 10.0.0.5/80\nport 17/192.0.2.1/5353 to 10.0.0.5/53\nhairpin 10.0.0.0/24 to 10.0.0.5\n\
                      port 6/any/8080 to fd00::5/80\nhairpin fd00::/64 to fd00::5\n";
        assert_eq!(text(config, &["10.0.0.5/24", "fd00::5/64"]), golden);
    }

    #[test]
    fn without_snat_nothing_is_masqueraded() {
        let config = r#"{"snat": false, "runtimeConfig": {"portMappings": [
            {"hostPort": 80, "containerPort": 80, "protocol": "tcp", "hostIP": "0.0.0.0"}]}}"#;
        assert_eq!(text(config, &["10.0.0.5/24", "fd00::5/64"]), "port 6/any/80 to 10.0.0.5/80\n");
        assert_eq!(text("{}", &["10.0.0.5/24"]), "");
    }
}
