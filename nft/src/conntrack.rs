//! Deletes tracked connections, so that a translation that no longer exists stops being applied.

use std::net::IpAddr;

use crate::attr::{Attributes, Message};
use crate::connection::Connection;
use crate::error::{Error, Result};
use crate::sys;

const GET: u16 = sys::NFNL_SUBSYS_CTNETLINK << 8 | 1;
const DELETE: u16 = sys::NFNL_SUBSYS_CTNETLINK << 8 | 2;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

/// UDP's number.
pub const UDP: u8 = 17;

/// The families that connections are tracked in (`AF_INET`, `AF_INET6`).
const FAMILIES: [u8; 2] = [2, 10];

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple {
    /// Protocol above IP.
    pub protocol: u8,
    /// Where its packets come from.
    pub source: IpAddr,
    /// Source port, 0 for protocols without ports.
    pub source_port: u16,
    /// Where its packets go.
    pub destination: IpAddr,
    /// Destination port, 0 for protocols without ports.
    pub destination_port: u16,
}

/// A tracked connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// As the client sent its first packet.
    pub original: Tuple,
    /// As the answer comes: its source is where the connection was sent by translation.
    pub reply: Tuple,
}

/// Deletes the connections that `stale` picks and returns how many there were. One that ends meanwhile is no error.
pub fn delete(connection: &mut Connection, mut stale: impl FnMut(&Flow) -> bool) -> Result<usize> {
    let mut deleted = 0;
    for family in FAMILIES {
        let mut found: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let listed = connection.dump(
            "list tracked connections",
            GET,
            family,
            |_| {},
            |message| {
                if let Some((tuple, id)) = pick(message, &mut stale) {
                    found.push((tuple.to_vec(), id.to_vec()));
                }
            },
        );
        match listed {
            // A connection may come or go while they are listed; those that matter are in the list.
            Ok(()) | Err(Error::Interrupted) => {}
            Err(error) => return Err(error),
        }
        for (tuple, id) in found {
            let gone = connection.request("delete a tracked connection", DELETE, family, |out| {
                out.bytes(CTA_TUPLE_ORIG | 0x8000, &tuple);
                out.bytes(CTA_ID, &id);
            });
            match gone {
                Ok(()) => deleted += 1,
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(deleted)
}

/// The original tuple and the identifier of a connection that `stale` picks.
fn pick<'a>(message: &Message<'a>, stale: &mut impl FnMut(&Flow) -> bool) -> Option<(&'a [u8], &'a [u8])> {
    let attributes = message.attributes();
    let original = attributes.get(CTA_TUPLE_ORIG)?;
    let flow = Flow { original: tuple(Attributes(original))?, reply: tuple(attributes.nested(CTA_TUPLE_REPLY))? };
    if stale(&flow) { Some((original, attributes.get(CTA_ID)?)) } else { None }
}

fn tuple(attributes: Attributes<'_>) -> Option<Tuple> {
    let (ip, proto) = (attributes.nested(CTA_TUPLE_IP), attributes.nested(CTA_TUPLE_PROTO));
    let port = |kind| proto.get(kind).and_then(|bytes| Some(u16::from_be_bytes(bytes.try_into().ok()?)));
    Some(Tuple {
        protocol: *proto.get(CTA_PROTO_NUM)?.first()?,
        source: address(ip, CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
        source_port: port(CTA_PROTO_SRC_PORT).unwrap_or_default(),
        destination: address(ip, CTA_IP_V4_DST, CTA_IP_V6_DST)?,
        destination_port: port(CTA_PROTO_DST_PORT).unwrap_or_default(),
    })
}

fn address(ip: Attributes<'_>, v4: u16, v6: u16) -> Option<IpAddr> {
    match (ip.get(v4), ip.get(v6)) {
        (Some(bytes), _) => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        (None, Some(bytes)) => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        (None, None) => None,
    }
}
