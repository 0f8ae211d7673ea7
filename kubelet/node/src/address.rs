//! Which addresses the node is reached at, in the network namespace that the kubelet runs in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

/// No address was found.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node's address is not known: no default route and no interface with a global address; give --node-ip")]
pub struct NoAddress;

/// The node's addresses: those configured, or the one that the default route goes out from.
///
/// # Errors
/// None was configured and none is found.
pub fn node_ips(configured: &[IpAddr]) -> Result<Vec<IpAddr>, NoAddress> {
    let find = |ip: &IpAddr| match ip {
        ip if !ip.is_unspecified() => Some(*ip),
        IpAddr::V4(_) => default_v4().or_else(|| first_global(IpAddr::is_ipv4)),
        IpAddr::V6(_) => default_v6().or_else(|| first_global(IpAddr::is_ipv6)),
    };
    if !configured.is_empty() {
        let found: Vec<IpAddr> = configured.iter().filter_map(find).collect();
        return if found.is_empty() { Err(NoAddress) } else { Ok(found) };
    }
    default_v4().or_else(default_v6).or_else(|| first_global(|_| true)).map(|ip| vec![ip]).ok_or(NoAddress)
}

/// The source address towards a documentation address (RFC 5737), which only the default route leads to. Connecting a
/// datagram socket sends nothing.
fn default_v4() -> Option<IpAddr> {
    source((Ipv4Addr::UNSPECIFIED, 0).into(), (Ipv4Addr::new(192, 0, 2, 1), 9).into())
}

fn default_v6() -> Option<IpAddr> {
    let documentation = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    source((Ipv6Addr::UNSPECIFIED, 0).into(), (documentation, 9).into())
}

fn source(from: SocketAddr, to: SocketAddr) -> Option<IpAddr> {
    let socket = UdpSocket::bind(from).ok()?;
    socket.connect(to).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(usable)
}

fn first_global(wanted: impl Fn(&IpAddr) -> bool) -> Option<IpAddr> {
    let interfaces = getifaddrs().ok()?;
    interfaces
        .filter(|i| i.flags.contains(InterfaceFlags::IFF_UP) && !i.flags.contains(InterfaceFlags::IFF_LOOPBACK))
        .filter_map(|i| {
            let address = i.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        })
        .find(|ip| usable(ip) && wanted(ip))
}

fn usable(ip: &IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || link_local)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configured_address_stands() {
        let ips: Vec<IpAddr> = vec!["10.1.2.3".parse().unwrap(), "fd00::3".parse().unwrap()];
        assert_eq!(node_ips(&ips), Ok(ips));
    }
}
