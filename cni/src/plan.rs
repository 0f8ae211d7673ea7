//! What a plugin asks of the kernel, as data: steps that print as text, what was observed, and the edge that does it.

use crate::{Error, result::Route};
use ipnet::IpNet;
use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

/// A hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address that goes with an IP address: `0a:58` and the IPv4 address.
    ///
    /// An address that is given again to another container keeps its hardware address, so no neighbour's cache is
    /// stale. IPv6 addresses are hashed.
    #[must_use]
    pub fn of_address(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => {
                let [a, b, c, d] = v4.octets();
                Self([0x0a, 0x58, a, b, c, d])
            }
            IpAddr::V6(v6) => Self::of_name(&v6.octets()),
        }
    }

    /// A locally administered unicast address made from a name.
    #[must_use]
    pub fn of_name(name: &[u8]) -> Self {
        let [_, _, a, b, c, d, e, f] = fnv1a(name).to_be_bytes();
        Self([(a & 0xfe) | 0x02, b, c, d, e, f])
    }

    /// Reads `aa:bb:cc:dd:ee:ff`, `-` is taken for `:`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            *byte = u8::from_str_radix(parts.next().filter(|part| part.len() == 2)?, 16).ok()?;
        }
        parts.next().is_none().then_some(Self(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The 64-bit FNV-1a hash: stable over builds, as names derived from it must be.
#[must_use]
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// Which network namespace a step is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The one the plugin was started in.
    Host,
    /// The container's.
    Container,
}

/// One change. A list of them is applied in order and stops at the first that fails.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the fields are named after what they set")]
pub enum Step {
    /// A bridge that is up; one of that name that exists is left as it is.
    CreateBridge {
        name: String,
        mac: Option<Mac>,
        mtu: Option<u32>,
    },
    /// A veth pair: `host` up and a port of `bridge`, `peer` down in the container.
    CreateVeth {
        host: String,
        host_mac: Mac,
        peer: String,
        peer_mac: Mac,
        mtu: Option<u32>,
        bridge: String,
    },
    /// What a bridge port does, and the alias that says whose it is.
    Port {
        link: String,
        hairpin: bool,
        isolated: bool,
        alias: String,
    },
    Promiscuous {
        link: String,
    },
    AddAddress {
        place: Place,
        link: String,
        address: IpNet,
        dad: bool,
    },
    DeleteAddress {
        place: Place,
        link: String,
        address: IpNet,
    },
    /// Announce addresses when the link comes up.
    Announce {
        place: Place,
        link: String,
    },
    Up {
        place: Place,
        link: String,
    },
    Down {
        place: Place,
        link: String,
    },
    AddRoute {
        place: Place,
        link: String,
        route: Route,
    },
    /// Writes `value` to `/proc/sys/` + `key` unless it is there already.
    Sysctl {
        place: Place,
        key: String,
        value: &'static str,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Container => "container",
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flag = |on: bool, word: &'static str| if on { word } else { "" };
        match self {
            Self::CreateBridge { name, mac, mtu } => {
                write!(f, "host: create bridge {name}{}{}", option(" mac ", *mac), option(" mtu ", *mtu))
            }
            Self::CreateVeth { host, host_mac, peer, peer_mac, mtu, bridge } => write!(
                f,
                "host: create veth {host} mac {host_mac} peer {peer} mac {peer_mac}{} on {bridge}",
                option(" mtu ", *mtu)
            ),
            Self::Port { link, hairpin, isolated, alias } => write!(
                f,
                "host: port {link}{}{} alias {alias}",
                flag(*hairpin, " hairpin"),
                flag(*isolated, " isolated")
            ),
            Self::Promiscuous { link } => write!(f, "host: {link} promiscuous"),
            Self::AddAddress { place, link, address, dad } => {
                write!(f, "{place}: {link} address {address}{}", flag(*dad, " dad"))
            }
            Self::DeleteAddress { place, link, address } => write!(f, "{place}: {link} delete address {address}"),
            Self::Announce { place, link } => write!(f, "{place}: {link} announce"),
            Self::Up { place, link } => write!(f, "{place}: {link} up"),
            Self::Down { place, link } => write!(f, "{place}: {link} down"),
            Self::AddRoute { place, link, route } => write!(
                f,
                "{place}: route {}{} dev {link}{}{}{}{}{}",
                route.dst,
                option(" via ", route.gw),
                option(" mtu ", route.mtu),
                option(" advmss ", route.advmss),
                option(" metric ", route.priority),
                option(" table ", route.table),
                option(" scope ", route.scope),
            ),
            Self::Sysctl { place, key, value } => write!(f, "{place}: sysctl {key} {value}"),
        }
    }
}

fn option(word: &str, value: Option<impl fmt::Display>) -> String {
    value.map(|value| format!("{word}{value}")).unwrap_or_default()
}

/// The steps, one a line.
#[must_use]
pub fn to_text(steps: &[Step]) -> String {
    steps.iter().map(|step| format!("{step}\n")).collect()
}

/// A link as the kernel has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The kind of a virtual link: `bridge`, `veth`.
    pub kind: String,
    /// Its hardware address; empty for a link without.
    pub mac: Vec<u8>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it is promiscuous.
    pub promiscuous: bool,
    /// The index of the bridge it is a port of.
    pub bridge: Option<u32>,
    /// Whether it is a hairpin port.
    pub hairpin: bool,
    /// Its alias.
    pub alias: String,
}

impl Link {
    /// The hardware address as results write it.
    #[must_use]
    pub fn mac_text(&self) -> String {
        self.mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
    }
}

/// A route as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelRoute {
    /// Where to.
    pub dst: IpNet,
    /// By which gateway.
    pub gw: Option<IpAddr>,
    /// The outgoing link's index.
    pub link: u32,
}

/// The kernel, as far as plugins need it.
pub trait Kernel {
    /// The link of that name, if there is one.
    ///
    /// # Errors
    /// When the kernel does not answer.
    fn link(&mut self, place: Place, name: &str) -> Result<Option<Link>, Error>;
    /// All links with an alias that starts with `prefix`.
    ///
    /// # Errors
    /// When the kernel does not answer.
    fn links_with_alias(&mut self, prefix: &str) -> Result<Vec<Link>, Error>;
    /// The addresses of a link, but IPv6 link-local ones.
    ///
    /// # Errors
    /// When the kernel does not answer.
    fn addresses(&mut self, place: Place, index: u32) -> Result<Vec<IpNet>, Error>;
    /// The routes of the main table that go out of a link.
    ///
    /// # Errors
    /// When the kernel does not answer.
    fn routes(&mut self, place: Place, index: u32) -> Result<Vec<KernelRoute>, Error>;
    /// Applies the steps in order.
    ///
    /// # Errors
    /// The first step that failed and why; steps after it may not have been tried.
    fn apply(&mut self, steps: &[Step]) -> Result<(), Error>;
    /// Deletes a link; false when there was none.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn delete_link(&mut self, place: Place, name: &str) -> Result<bool, Error>;
}

/// Whether an address is one that the kernel makes by itself.
#[must_use]
pub fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if Ipv6Addr::is_unicast_link_local(v6))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses() {
        assert_eq!(Mac::of_address("10.244.0.7".parse().unwrap()).to_string(), "0a:58:0a:f4:00:07");
        let hashed = Mac::of_name(b"some container");
        assert_eq!(hashed.0[0] & 3, 2, "local and unicast");
        assert_eq!(Mac::parse(&hashed.to_string()), Some(hashed));
        for bad in ["", "0a:58", "0a:58:00:00:00:00:00", "zz:58:00:00:00:00", "0a:58:0:0:0:00"] {
            assert_eq!(Mac::parse(bad), None, "{bad}");
        }
    }
}
