//! Reads the few attributes of links, addresses and routes that plugins look at.

use crate::plan::{KernelRoute, Link, is_link_local};
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The attributes of a message: kind without its flag bits, and value.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// A string up to its terminating zero.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => value.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets).into()),
        16 => value.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets).into()),
        _ => None,
    }
}

/// `struct ifinfomsg` and attributes.
pub(crate) fn link(message: &[u8]) -> Option<Link> {
    let header = message.get(..16)?;
    let flags = number(&header[8..])?;
    let mut link = Link {
        index: number(&header[4..])?,
        up: flags & libc::IFF_UP as u32 != 0,
        promiscuous: flags & libc::IFF_PROMISC as u32 != 0,
        ..Link::default()
    };
    for (kind, value) in attributes(&message[16..]) {
        match kind {
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_ADDRESS => link.mac = value.to_vec(),
            libc::IFLA_MTU => link.mtu = number(value)?,
            libc::IFLA_MASTER => link.bridge = number(value),
            libc::IFLA_IFALIAS => link.alias = text(value),
            libc::IFLA_LINKINFO => link_info(value, &mut link),
            _ => {}
        }
    }
    Some(link)
}

fn link_info(value: &[u8], link: &mut Link) {
    const HAIRPIN: u16 = 4;
    for (kind, value) in attributes(value) {
        match kind {
            libc::IFLA_INFO_KIND => link.kind = text(value),
            libc::IFLA_INFO_SLAVE_DATA => {
                link.hairpin = attributes(value).any(|(kind, value)| kind == HAIRPIN && value.first() == Some(&1));
            }
            _ => {}
        }
    }
}

/// `struct ifaddrmsg` and attributes; none for other links and for IPv6 link-local addresses.
pub(crate) fn address(message: &[u8], index: u32) -> Option<IpNet> {
    let header = message.get(..8)?;
    if number(&header[4..])? != index {
        return None;
    }
    let values: Vec<_> = attributes(&message[8..]).collect();
    let find = |wanted| values.iter().find(|(kind, _)| *kind == wanted).and_then(|(_, value)| ip(value));
    let address = find(libc::IFA_LOCAL).or_else(|| find(libc::IFA_ADDRESS))?;
    if is_link_local(&address) {
        return None;
    }
    IpNet::new(address, header[1]).ok()
}

/// `struct rtmsg` and attributes; none for routes of other tables and for the kernel's local ones.
pub(crate) fn route(message: &[u8]) -> Option<KernelRoute> {
    let header = message.get(..12)?;
    let (family, length, table, kind) = (header[0], header[1], header[4], header[7]);
    if table != libc::RT_TABLE_MAIN || kind != libc::RTN_UNICAST {
        return None;
    }
    let any: IpAddr = match i32::from(family) {
        libc::AF_INET => Ipv4Addr::UNSPECIFIED.into(),
        libc::AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let (mut dst, mut gw, mut link) = (any, None, 0);
    for (kind, value) in attributes(&message[12..]) {
        match kind {
            libc::RTA_DST => dst = ip(value)?,
            libc::RTA_GATEWAY => gw = ip(value),
            libc::RTA_OIF => link = number(value)?,
            _ => {}
        }
    }
    Some(KernelRoute { dst: IpNet::new(dst, length).ok()?, gw, link })
}
