//! Addresses of the machine we run on, as the current network namespace has them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use anyhow::{Context as _, Result};
use nix::ifaddrs::getifaddrs;

/// The address that others most likely reach us by: the source address of the default route, else the first address
/// that is not a loopback one.
///
/// # Errors
/// There is none; the text says which flag to give.
pub(crate) fn own_address(flag: &str) -> Result<IpAddr> {
    by_default_route()
        .or_else(first_address)
        .with_context(|| format!("this machine has no address but loopback; give one with {flag}"))
}

/// Asks the kernel for a route without sending anything: connecting a UDP socket only looks one up.
fn by_default_route() -> Option<IpAddr> {
    let look_up = |from: IpAddr, to: IpAddr| {
        let socket = UdpSocket::bind((from, 0)).ok()?;
        socket.connect((to, 53)).ok()?;
        let addr = socket.local_addr().ok()?.ip();
        (!addr.is_loopback() && !addr.is_unspecified()).then_some(addr)
    };
    // Addresses reserved for documentation (RFC 5737, RFC 3849): routed by the default route everywhere.
    look_up(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into())
        .or_else(|| look_up(Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()))
}

fn first_address() -> Option<IpAddr> {
    let addresses = getifaddrs().ok()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
        let v6 = address.as_sockaddr_in6().map(|a| IpAddr::from(a.ip()));
        v4.or(v6)
    });
    let link_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let mut usable: Vec<IpAddr> = addresses.filter(|ip| !ip.is_loopback() && !link_local(ip)).collect();
    usable.sort_by_key(IpAddr::is_ipv6);
    usable.first().copied()
}
