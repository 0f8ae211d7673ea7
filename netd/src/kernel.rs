//! The routing table, by rtnetlink. Our routes carry a protocol number of their own, so that after a restart we know
//! ours from others'.

use crate::plan::{Change, Route};
use anyhow::{Context, Result};
use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, channel::mpsc::UnboundedReceiver};
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use rtnetlink::{Handle, MulticastGroup, new_multicast_connection};
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The protocol number of our routes: unassigned in `rtnetlink.h` and in iproute2's `rt_protos`.
pub const PROTOCOL: u8 = 0xb5;

/// The routing table, as far as the daemon needs it.
#[async_trait]
pub trait Table: Send {
    /// The routes that are ours.
    ///
    /// # Errors
    /// When the kernel does not answer.
    async fn observe(&mut self) -> Result<BTreeSet<Route>>;
    /// Does one change; deleting what is gone is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    async fn apply(&mut self, change: Change) -> Result<()>;
    /// Waits until routes, links or addresses changed since the last call.
    async fn changed(&mut self);
}

/// The kernel's table in the network namespace that this was opened in.
pub struct Rtnetlink {
    handle: Handle,
    events:
        UnboundedReceiver<(rtnetlink::packet_core::NetlinkMessage<RouteNetlinkMessage>, rtnetlink::sys::SocketAddr)>,
}

impl Rtnetlink {
    /// Opens a socket and listens to changes; needs a tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open() -> Result<Self> {
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route];
        let (connection, handle, events) = new_multicast_connection(&groups).context("open a netlink socket")?;
        tokio::spawn(connection);
        Ok(Self { handle, events })
    }
}

#[async_trait]
impl Table for Rtnetlink {
    async fn observe(&mut self) -> Result<BTreeSet<Route>> {
        let mut ours = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let mut routes = self.handle.route().get(request).execute();
            while let Some(message) = routes.try_next().await.context("list routes")? {
                ours.extend(decode(&message));
            }
        }
        Ok(ours)
    }

    async fn apply(&mut self, change: Change) -> Result<()> {
        let routes = self.handle.route();
        match change {
            Change::Replace(route) => routes.add(encode(route)).replace().execute().await.context(change.to_string()),
            Change::Delete(route) => match routes.del(encode(route)).execute().await {
                Err(rtnetlink::Error::NetlinkError(refused)) if refused.raw_code() == -libc::ESRCH => Ok(()),
                other => other.context(change.to_string()),
            },
        }
    }

    async fn changed(&mut self) {
        if self.events.next().await.is_none() {
            // The connection's task ended with the runtime; nothing will change any more.
            std::future::pending::<()>().await;
        }
        while self.events.try_recv().is_ok() {}
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn encode(route: Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.via);
    message.header.destination_prefix_length = route.dst.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::from(PROTOCOL);
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes =
        vec![RouteAttribute::Destination(route.dst.network().into()), RouteAttribute::Gateway(route.via.into())];
    message
}

/// The route of a message, when it is ours.
fn decode(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    if u8::from(header.protocol) != PROTOCOL || header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let mut dst: IpAddr = match header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        _ => Ipv6Addr::UNSPECIFIED.into(),
    };
    let mut via = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => dst = ip(address)?,
            RouteAttribute::Gateway(address) => via = ip(address),
            _ => {}
        }
    }
    let dst = IpNet::new(dst, header.destination_prefix_length).ok()?;
    // One without a gateway leads nowhere we want: any gateway that is not wanted has it deleted.
    Some(Route { dst, via: via.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}
