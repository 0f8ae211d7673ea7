//! Tables, chains, rules, sets and elements, as the caller names and describes them.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::expr::{Expr, Match, Verdict};

/// The packets that a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// ARP.
    Arp,
    /// Frames on a bridge.
    Bridge,
    /// Frames on one device.
    Netdev,
}

impl Family {
    /// The kernel's number (`NFPROTO_*`).
    pub fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Arp => 3,
            Self::Netdev => 5,
            Self::Bridge => 7,
            Self::Ip6 => 10,
        }
    }

    /// The name as `nft` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Arp => "arp",
            Self::Netdev => "netdev",
            Self::Bridge => "bridge",
            Self::Ip6 => "ip6",
        }
    }

    /// The family of a kernel's number.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Inet, Self::Ip, Self::Ip6, Self::Arp, Self::Bridge, Self::Netdev]
            .into_iter()
            .find(|family| family.number() == number)
    }
}

/// A table's family and name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Table<'a> {
    /// The packets it sees.
    pub family: Family,
    /// Its name.
    pub name: &'a str,
}

impl<'a> Table<'a> {
    /// Names a table.
    pub const fn new(family: Family, name: &'a str) -> Self {
        Self { family, name }
    }
}

/// Where in the path of a packet a base chain sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Received, before routing.
    Prerouting,
    /// For this host.
    Input,
    /// Through this host.
    Forward,
    /// From this host.
    Output,
    /// Leaving, after routing.
    Postrouting,
}

/// A chain; with a hook it is a base chain.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a> {
    /// The table it is in.
    pub table: Table<'a>,
    /// Its name.
    pub name: &'a str,
    /// What makes it a base chain.
    pub base: Option<Base<'a>>,
}

/// What a base chain has beyond a regular one.
#[derive(Debug, Clone, Copy)]
pub struct Base<'a> {
    /// Where it sits.
    pub hook: Hook,
    /// `filter`, `nat` or `route`.
    pub kind: &'a str,
    /// Lower runs earlier.
    pub priority: i32,
    /// Whether a packet that reaches the end is dropped.
    pub drop: bool,
}

impl<'a> Chain<'a> {
    /// A chain to jump to.
    pub const fn regular(table: Table<'a>, name: &'a str) -> Self {
        Self { table, name, base: None }
    }

    /// A chain that the kernel calls at `hook`, accepting what reaches its end.
    pub const fn base(table: Table<'a>, name: &'a str, hook: Hook, kind: &'a str, priority: i32) -> Self {
        Self { table, name, base: Some(Base { hook, kind, priority, drop: false }) }
    }
}

/// A rule to append or insert.
#[derive(Debug, Clone)]
pub struct Rule<'a> {
    /// The table it is in.
    pub table: Table<'a>,
    /// The chain it is in.
    pub chain: &'a str,
    /// What it does, in order.
    pub expressions: Vec<Expr>,
    /// A note that `nft` prints; cut at 127 bytes.
    pub comment: Option<String>,
}

impl<'a> Rule<'a> {
    /// A rule of the given expressions.
    pub fn new(table: Table<'a>, chain: &'a str, expressions: impl Into<Match>) -> Self {
        Self { table, chain, expressions: expressions.into().into_expressions(), comment: None }
    }

    /// Adds a note.
    #[must_use]
    pub fn comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = Some(comment.into());
        self
    }
}

/// The type of one field of a key or of a value: how long it is and how `nft` prints it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Type {
    /// `ipv4_addr`
    Ipv4Addr,
    /// `ipv6_addr`
    Ipv6Addr,
    /// `ether_addr`
    EtherAddr,
    /// `inet_proto`
    InetProto,
    /// `inet_service`: a port
    InetService,
    /// `mark`: a number of 32 bits in host byte order
    Mark,
    /// `ifname`, padded with zeros to 16 bytes
    IfName,
}

impl Type {
    /// The number by which `nft` knows the type.
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Ipv4Addr => 7,
            Self::Ipv6Addr => 8,
            Self::EtherAddr => 9,
            Self::InetProto => 12,
            Self::InetService => 13,
            Self::Mark => 19,
            Self::IfName => 41,
        }
    }

    /// Length in bytes, without padding.
    #[expect(clippy::len_without_is_empty, reason = "the length of a type, not of a collection")]
    pub const fn len(self) -> usize {
        match self {
            Self::InetProto => 1,
            Self::InetService => 2,
            Self::Ipv4Addr | Self::Mark => 4,
            Self::EtherAddr => 6,
            Self::Ipv6Addr | Self::IfName => 16,
        }
    }

    /// 1 for host byte order, 2 for network byte order.
    pub(crate) fn byte_order(self) -> u32 {
        match self {
            Self::Mark | Self::IfName => 1,
            _ => 2,
        }
    }
}

/// What a set maps its keys to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetData<'a> {
    /// Nothing: a plain set.
    None,
    /// A value, concatenated from these fields.
    Value(&'a [Type]),
    /// A verdict.
    Verdict,
}

/// The name of a set or map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetRef<'a> {
    /// The table it is in.
    pub table: Table<'a>,
    /// Its name.
    pub name: &'a str,
}

/// A set or a map.
#[derive(Debug, Clone, Copy)]
pub struct Set<'a> {
    /// The table it is in.
    pub table: Table<'a>,
    /// Its name.
    pub name: &'a str,
    /// The fields of its key.
    pub key: &'a [Type],
    /// What it maps to.
    pub data: SetData<'a>,
    /// Keys are ranges.
    pub interval: bool,
    /// Rules add elements to it.
    pub dynamic: bool,
    /// Elements time out; the default in milliseconds, 0 for none but what each element says.
    pub timeout: Option<u64>,
    /// The most elements it may have; needed for dynamic sets, otherwise none.
    pub size: Option<u32>,
    /// A note that `nft` prints.
    pub comment: Option<&'a str>,
}

impl<'a> Set<'a> {
    /// A plain set of exact keys.
    pub const fn new(table: Table<'a>, name: &'a str, key: &'a [Type]) -> Self {
        let data = SetData::None;
        Self { table, name, key, data, interval: false, dynamic: false, timeout: None, size: None, comment: None }
    }

    /// A map from keys to values.
    pub const fn map(table: Table<'a>, name: &'a str, key: &'a [Type], value: &'a [Type]) -> Self {
        let mut set = Self::new(table, name, key);
        set.data = SetData::Value(value);
        set
    }

    /// A map from keys to verdicts.
    pub const fn verdict_map(table: Table<'a>, name: &'a str, key: &'a [Type]) -> Self {
        let mut set = Self::new(table, name, key);
        set.data = SetData::Verdict;
        set
    }

    /// Its name.
    pub const fn reference(&self) -> SetRef<'a> {
        SetRef { table: self.table, name: self.name }
    }
}

/// The bytes of a key or a value: fields one after another, each padded to four bytes when there is more than one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    bytes: [u8; 64],
    len: u8,
    fields: u8,
}

impl Default for Key {
    fn default() -> Self {
        Self { bytes: [0; 64], len: 0, fields: 0 }
    }
}

impl Key {
    /// No fields yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a field given by its bytes. Fields past 64 bytes in all, the kernel's limit, are cut off.
    #[must_use]
    pub fn bytes(mut self, field: &[u8]) -> Self {
        let start = usize::from(self.len).next_multiple_of(4);
        let end = (start + field.len()).min(self.bytes.len());
        self.bytes[start..end].copy_from_slice(&field[..end - start]);
        self.len = end as u8;
        self.fields += 1;
        self
    }

    /// Appends an IPv4 address.
    #[must_use]
    pub fn ipv4(self, addr: Ipv4Addr) -> Self {
        self.bytes(&addr.octets())
    }

    /// Appends an IPv6 address.
    #[must_use]
    pub fn ipv6(self, addr: Ipv6Addr) -> Self {
        self.bytes(&addr.octets())
    }

    /// Appends an address of either family.
    #[must_use]
    pub fn ip(self, addr: std::net::IpAddr) -> Self {
        match addr {
            std::net::IpAddr::V4(addr) => self.ipv4(addr),
            std::net::IpAddr::V6(addr) => self.ipv6(addr),
        }
    }

    /// Appends an IP protocol number.
    #[must_use]
    pub fn proto(self, number: u8) -> Self {
        self.bytes(&[number])
    }

    /// Appends a port.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        self.bytes(&port.to_be_bytes())
    }

    /// Appends a number of type [`Type::Mark`].
    #[must_use]
    pub fn mark(self, value: u32) -> Self {
        self.bytes(&value.to_ne_bytes())
    }

    /// The bytes as the kernel wants them.
    pub fn as_slice(&self) -> &[u8] {
        let len = usize::from(self.len);
        &self.bytes[..if self.fields > 1 { len.next_multiple_of(4) } else { len }]
    }
}

/// What an element maps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElementData<'a> {
    /// Nothing.
    None,
    /// A value.
    Value(Key),
    /// A verdict.
    Verdict(&'a Verdict),
}

/// An element of a set or map.
#[derive(Debug, Clone, Copy)]
pub struct Element<'a> {
    /// Its key, or the start of its range.
    pub key: Key,
    /// The last key of its range, in sets of concatenated ranges.
    pub key_end: Option<Key>,
    /// Marks the first key after a range, in sets of single ranges.
    pub interval_end: bool,
    /// What it maps to.
    pub data: ElementData<'a>,
    /// Its own time-out in milliseconds.
    pub timeout: Option<u64>,
    /// A note that `nft` prints; cut at 127 bytes.
    pub comment: Option<&'a str>,
}

impl<'a> Element<'a> {
    /// An element of a plain set.
    pub fn new(key: Key) -> Self {
        Self { key, key_end: None, interval_end: false, data: ElementData::None, timeout: None, comment: None }
    }

    /// An element of a map.
    pub fn value(key: Key, value: Key) -> Self {
        Self { data: ElementData::Value(value), ..Self::new(key) }
    }

    /// An element of a verdict map.
    pub fn verdict(key: Key, verdict: &'a Verdict) -> Self {
        Self { data: ElementData::Verdict(verdict), ..Self::new(key) }
    }

    /// The elements that make the range `first..=last` of a set of single ranges: the start, and the end where the
    /// range does not run to the last key there is.
    pub fn range(first: Key, last: Key) -> impl Iterator<Item = Element<'static>> {
        let end = successor(last).map(|key| Element { interval_end: true, ..Element::new(key) });
        std::iter::once(Element::new(first)).chain(end)
    }
}

/// The key that follows, as a big-endian number; none after the last.
fn successor(mut key: Key) -> Option<Key> {
    for byte in key.bytes[..usize::from(key.len)].iter_mut().rev() {
        let (next, overflow) = byte.overflowing_add(1);
        *byte = next;
        if !overflow {
            return Some(key);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_padded_only_when_there_are_several() {
        assert_eq!(Key::new().port(80).as_slice(), [0, 80]);
        let key = Key::new().ipv4(Ipv4Addr::new(10, 0, 0, 1)).proto(6).port(80);
        assert_eq!(key.as_slice(), [10, 0, 0, 1, 6, 0, 0, 0, 0, 80, 0, 0]);
    }

    #[test]
    fn ranges_end_at_the_next_key() {
        let range = |a, b| -> Vec<_> {
            Element::range(Key::new().ipv4(a), Key::new().ipv4(b))
                .map(|e| (e.key.as_slice().to_vec(), e.interval_end))
                .collect()
        };
        let first = range(Ipv4Addr::new(10, 0, 0, 0), Ipv4Addr::new(10, 0, 0, 255));
        assert_eq!(first, [(vec![10, 0, 0, 0], false), (vec![10, 0, 1, 0], true)]);
        assert_eq!(range(Ipv4Addr::new(240, 0, 0, 0), Ipv4Addr::BROADCAST).len(), 1);
    }
}
