//! Steps as rtnetlink messages.

use crate::{plan::Mac, result::Route};
use ipnet::IpNet;
use netlink_packet_core::DefaultNla;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{
        AfSpecInet, AfSpecUnspec, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth,
        LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
    },
    route::{RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType},
};
use std::{net::IpAddr, os::fd::RawFd};

fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

fn set_flags(message: &mut LinkMessage, flags: LinkFlags, on: bool) {
    message.header.change_mask |= flags;
    message.header.flags.set(flags, on);
}

fn common(message: &mut LinkMessage, mac: Option<Mac>, mtu: Option<u32>) {
    message.attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    message.attributes.extend(mtu.map(LinkAttribute::Mtu));
}

pub(crate) fn get_link(name: &str) -> RouteNetlinkMessage {
    let mut message = named(name);
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(message)
}

pub(crate) fn list_links() -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(message)
}

pub(crate) fn list_addresses(index: u32) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    RouteNetlinkMessage::GetAddress(message)
}

pub(crate) fn list_routes() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetRoute(RouteMessage::default())
}

pub(crate) fn delete_link(name: &str) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelLink(named(name))
}

pub(crate) fn set_up(name: &str, up: bool) -> RouteNetlinkMessage {
    let mut message = named(name);
    set_flags(&mut message, LinkFlags::Up, up);
    RouteNetlinkMessage::SetLink(message)
}

pub(crate) fn promiscuous(name: &str) -> RouteNetlinkMessage {
    let mut message = named(name);
    set_flags(&mut message, LinkFlags::Promisc, true);
    RouteNetlinkMessage::SetLink(message)
}

/// A bridge that comes up as it is made.
pub(crate) fn bridge(name: &str, mac: Option<Mac>, mtu: Option<u32>) -> RouteNetlinkMessage {
    let mut message = named(name);
    common(&mut message, mac, mtu);
    set_flags(&mut message, LinkFlags::Up, true);
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
    RouteNetlinkMessage::NewLink(message)
}

/// Both ends of a veth pair.
pub(crate) struct Pair<'a> {
    pub(crate) host: &'a str,
    pub(crate) host_mac: Mac,
    pub(crate) peer: &'a str,
    pub(crate) peer_mac: Mac,
    pub(crate) mtu: Option<u32>,
}

/// The pair in one message: the peer is made in its namespace, the host's end comes up as a port of the bridge.
pub(crate) fn veth(pair: &Pair<'_>, bridge: u32, netns: RawFd) -> RouteNetlinkMessage {
    let mut peer = named(pair.peer);
    common(&mut peer, Some(pair.peer_mac), pair.mtu);
    peer.attributes.push(LinkAttribute::NetNsFd(netns));
    let mut host = named(pair.host);
    common(&mut host, Some(pair.host_mac), pair.mtu);
    set_flags(&mut host, LinkFlags::Up, true);
    host.attributes.push(LinkAttribute::Controller(bridge));
    host.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    RouteNetlinkMessage::NewLink(host)
}

/// Changes a port that exists: this is a new-link message without the flag to create.
pub(crate) fn port(name: &str, hairpin: bool, isolated: bool, alias: &str) -> RouteNetlinkMessage {
    let mut message = named(name);
    message.attributes.push(LinkAttribute::IfAlias(alias.to_owned()));
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![
            InfoBridgePort::HairpinMode(hairpin),
            InfoBridgePort::Isolated(isolated),
        ])),
    ]));
    RouteNetlinkMessage::NewLink(message)
}

/// Has the link announce its IPv4 addresses by gratuitous ARP when it comes up (`arp_notify`).
pub(crate) fn announce(name: &str) -> RouteNetlinkMessage {
    const INET_CONF: u16 = 1;
    const ARP_NOTIFY: u16 = 22;
    let mut conf = Vec::with_capacity(8);
    conf.extend_from_slice(&8u16.to_ne_bytes());
    conf.extend_from_slice(&ARP_NOTIFY.to_ne_bytes());
    conf.extend_from_slice(&1u32.to_ne_bytes());
    let mut message = named(name);
    message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![AfSpecInet::Other(
        DefaultNla::new(INET_CONF, conf),
    )])]));
    RouteNetlinkMessage::SetLink(message)
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// An address; without `dad` an IPv6 one is usable at once.
pub(crate) fn address(index: u32, net: IpNet, dad: bool) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(net.addr());
    message.header.prefix_len = net.prefix_len();
    message.header.index = index;
    message.header.scope = if net.addr().is_loopback() { AddressScope::Host } else { AddressScope::Universe };
    message.attributes.push(AddressAttribute::Local(net.addr()));
    message.attributes.push(AddressAttribute::Address(net.addr()));
    match net {
        IpNet::V4(v4) if v4.prefix_len() < 31 && !v4.addr().is_loopback() => {
            message.attributes.push(AddressAttribute::Broadcast(v4.broadcast()));
        }
        IpNet::V6(_) if !dad => {
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        _ => {}
    }
    message
}

/// A route out of a link.
pub(crate) fn route(index: u32, route: &Route) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    let table = route.table.unwrap_or(libc::RT_TABLE_MAIN.into());
    message.header.address_family = family(route.dst.addr());
    message.header.destination_prefix_length = route.dst.prefix_len();
    message.header.table = u8::try_from(table).unwrap_or(libc::RT_TABLE_UNSPEC);
    message.header.protocol = RouteProtocol::Boot;
    message.header.kind = RouteType::Unicast;
    message.header.scope = match route.scope {
        Some(scope) => RouteScope::from(scope),
        None if route.gw.is_none() && route.dst.addr().is_ipv4() => RouteScope::Link,
        None => RouteScope::Universe,
    };
    let attributes = &mut message.attributes;
    if route.dst.prefix_len() > 0 {
        attributes.push(RouteAttribute::Destination(route.dst.network().into()));
    }
    attributes.extend(route.gw.map(|gw| RouteAttribute::Gateway(gw.into())));
    attributes.push(RouteAttribute::Oif(index));
    attributes.push(RouteAttribute::Table(table));
    attributes.extend(route.priority.map(RouteAttribute::Priority));
    let metrics: Vec<_> =
        route.mtu.map(RouteMetric::Mtu).into_iter().chain(route.advmss.map(RouteMetric::Advmss)).collect();
    if !metrics.is_empty() {
        attributes.push(RouteAttribute::Metrics(metrics));
    }
    RouteNetlinkMessage::NewRoute(message)
}
