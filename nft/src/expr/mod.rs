//! Expressions: the instructions of a rule.
//!
//! A rule is a list of [`Expr`], run in order until one does not match or gives a verdict. [`Match`] writes the usual
//! ones; an [`Expr`] can be put anywhere between them. An expression prints as `nft --debug=netlink` prints it.

mod display;
mod encode;
mod matching;

use crate::object::{Family, Key};

pub use matching::Match;

/// A register of the nf_tables machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reg(pub(crate) u32);

impl Reg {
    /// Where verdicts go.
    pub const VERDICT: Self = Self(0);

    /// The n-th 32-bit word, 0 to 15. A longer value also fills the words that follow.
    pub const fn word(n: u32) -> Self {
        Self(8 + n)
    }
}

/// What happens to a packet.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// Drops it.
    Drop,
    /// Ends the base chain; later hooks still see it.
    Accept,
    /// Goes on with the next rule.
    Continue,
    /// Goes back to the calling chain.
    Return,
    /// Calls a chain.
    Jump(String),
    /// Goes to a chain without coming back to this one.
    Goto(String),
}

/// What offsets count from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// The link-layer header.
    Link,
    /// The IP header.
    Network,
    /// The TCP, UDP, … header.
    Transport,
}

/// A property of the packet outside its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meta {
    /// Packet mark, host byte order.
    Mark,
    /// Index of the input device, host byte order.
    Iif,
    /// Index of the output device, host byte order.
    Oif,
    /// Name of the input device, 16 bytes.
    IifName,
    /// Name of the output device, 16 bytes.
    OifName,
    /// Family, one byte.
    NfProto,
    /// Protocol above IP, one byte.
    L4Proto,
}

/// A property of the packet's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ct {
    /// State bits, see [`ct_state`].
    State,
    /// 0 original, 1 reply; one byte.
    Direction,
    /// Status bits, see [`ct_status`].
    Status,
    /// Connection mark, host byte order.
    Mark,
    /// Source address before translation; needs a direction.
    SourceIp,
    /// Destination address before translation; needs a direction.
    DestinationIp,
    /// Source address of IPv6; needs a direction.
    SourceIp6,
    /// Destination address of IPv6; needs a direction.
    DestinationIp6,
    /// Protocol; one byte, needs a direction.
    Protocol,
    /// Source port; needs a direction.
    SourcePort,
    /// Destination port; needs a direction.
    DestinationPort,
}

/// Bits of [`Ct::State`].
pub mod ct_state {
    /// Belongs to no connection.
    pub const INVALID: u32 = 1;
    /// Seen in both directions.
    pub const ESTABLISHED: u32 = 2;
    /// Belongs to another connection.
    pub const RELATED: u32 = 4;
    /// First packet.
    pub const NEW: u32 = 8;
}

/// Bits of [`Ct::Status`].
pub mod ct_status {
    /// Source translated.
    pub const SNAT: u32 = 0x10;
    /// Destination translated.
    pub const DNAT: u32 = 0x20;
}

/// How two values are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cmp {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
    /// Less.
    Lt,
    /// Less or equal.
    Le,
    /// Greater.
    Gt,
    /// Greater or equal.
    Ge,
}

/// Which address a translation changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NatKind {
    /// The source.
    Source,
    /// The destination.
    Destination,
}

/// Flags of translations (`NF_NAT_RANGE_*`).
pub mod nat_flags {
    /// Random source port.
    pub const RANDOM: u32 = 4;
    /// The same address for each connection of a client.
    pub const PERSISTENT: u32 = 8;
    /// Random source port, not derived from the connection's hash.
    pub const FULLY_RANDOM: u32 = 16;
}

/// What a routing look-up gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FibResult {
    /// Index of the device.
    Oif,
    /// Name of the device.
    OifName,
    /// Type of the address (`RTN_*`), host byte order; see [`LOCAL_ADDRESS`].
    AddressType,
}

/// The type of the host's own addresses (`RTN_LOCAL`).
pub const LOCAL_ADDRESS: u32 = 2;

/// Flags of a routing look-up.
pub mod fib_flags {
    /// Look up the source address.
    pub const SADDR: u32 = 1;
    /// Look up the destination address.
    pub const DADDR: u32 = 2;
    /// With the packet's mark.
    pub const MARK: u32 = 4;
    /// On the input device only.
    pub const IIF: u32 = 8;
    /// On the output device only.
    pub const OIF: u32 = 16;
}

/// How a packet is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// ICMP or ICMPv6 "port unreachable", by the packet's family.
    PortUnreachable,
    /// ICMP or ICMPv6 "administratively prohibited", by the packet's family.
    AdminProhibited,
    /// A TCP reset.
    TcpReset,
}

/// What a rule does to a dynamic set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DynsetOp {
    /// Adds the key unless it is there.
    Add,
    /// Adds the key, or renews its time-out.
    Update,
    /// Deletes the key.
    Delete,
}

/// Units of a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Per {
    /// A second.
    Second,
    /// A minute.
    Minute,
    /// An hour.
    Hour,
}

impl Per {
    pub(crate) fn seconds(self) -> u64 {
        match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3600,
        }
    }
}

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Loads bytes of the packet.
    Payload {
        /// What the offset counts from.
        base: Base,
        /// First byte.
        offset: u32,
        /// Number of bytes.
        len: u32,
        /// Where to.
        dreg: Reg,
    },
    /// Loads a property of the packet.
    Meta {
        /// Which.
        key: Meta,
        /// Where to.
        dreg: Reg,
    },
    /// Sets a property of the packet.
    MetaSet {
        /// Which.
        key: Meta,
        /// Where from.
        sreg: Reg,
    },
    /// Loads a property of the connection.
    Ct {
        /// Which.
        key: Ct,
        /// False: original, true: reply; for the properties that need it.
        reply: Option<bool>,
        /// Where to.
        dreg: Reg,
    },
    /// Sets a property of the connection.
    CtSet {
        /// Which.
        key: Ct,
        /// Where from.
        sreg: Reg,
    },
    /// Matches when a register compares with a value.
    Cmp {
        /// How.
        op: Cmp,
        /// The register.
        sreg: Reg,
        /// The value.
        data: Vec<u8>,
    },
    /// Matches when a register is in, or with `invert` not in, a range.
    Range {
        /// Turns the match around.
        invert: bool,
        /// The register.
        sreg: Reg,
        /// The first value.
        from: Vec<u8>,
        /// The last value.
        to: Vec<u8>,
    },
    /// `dreg = (sreg & mask) ^ xor`
    Bitwise {
        /// Where from.
        sreg: Reg,
        /// Where to.
        dreg: Reg,
        /// The bits to keep.
        mask: Vec<u8>,
        /// The bits to turn; as long as the mask.
        xor: Vec<u8>,
    },
    /// Looks up a key; matches when it is there, or with `invert` when it is not.
    Lookup {
        /// The set or map.
        set: String,
        /// Where the key is.
        sreg: Reg,
        /// Where a map's value goes; [`Reg::VERDICT`] for a verdict map.
        dreg: Option<Reg>,
        /// Turns the match around; not with maps.
        invert: bool,
    },
    /// Loads a constant.
    Immediate {
        /// Where to.
        dreg: Reg,
        /// The value.
        data: Vec<u8>,
    },
    /// Gives a verdict.
    Verdict(Verdict),
    /// Translates addresses or ports.
    Nat {
        /// Source or destination.
        kind: NatKind,
        /// [`Family::Ip`] or [`Family::Ip6`].
        family: Family,
        /// Where the address is.
        addr: Option<Reg>,
        /// Where the port is.
        port: Option<Reg>,
        /// Bits of [`nat_flags`].
        flags: u32,
    },
    /// Source translation to the address of the output device.
    Masquerade {
        /// Bits of [`nat_flags`].
        flags: u32,
    },
    /// Destination translation to this host.
    Redirect {
        /// Where the port is.
        port: Option<Reg>,
    },
    /// A random number, `offset..offset + modulus`, host byte order.
    Random {
        /// Where to.
        dreg: Reg,
        /// How many different numbers.
        modulus: u32,
        /// The least one.
        offset: u32,
    },
    /// A hash of registers, `offset..offset + modulus`, host byte order.
    Hash {
        /// Where from.
        sreg: Reg,
        /// Number of bytes.
        len: u32,
        /// Where to.
        dreg: Reg,
        /// How many different numbers.
        modulus: u32,
        /// The least one.
        offset: u32,
        /// Varies the hash.
        seed: u32,
    },
    /// A routing look-up.
    Fib {
        /// What for.
        result: FibResult,
        /// Bits of [`fib_flags`].
        flags: u32,
        /// Where to.
        dreg: Reg,
    },
    /// Changes a dynamic set.
    Dynset {
        /// The set or map.
        set: String,
        /// What to do.
        op: DynsetOp,
        /// Where the key is.
        key: Reg,
        /// Where a map's value is.
        data: Option<Reg>,
        /// The element's time-out in milliseconds.
        timeout: Option<u64>,
    },
    /// Counts packets and bytes.
    Counter,
    /// Refuses the packet with an answer.
    Reject(Reject),
    /// Matches while the rate is below, or with `over` above, a limit.
    Limit {
        /// Packets.
        rate: u64,
        /// Per this time.
        per: Per,
        /// Packets beyond the rate at once.
        burst: u32,
        /// Turns the match around.
        over: bool,
    },
    /// Leaves the packet out of connection tracking.
    Notrack,
}

impl Expr {
    /// Loads the source address of IPv4 or IPv6.
    pub fn source_address(family: Family, dreg: Reg) -> Self {
        let (offset, len) = if family == Family::Ip6 { (8, 16) } else { (12, 4) };
        Self::Payload { base: Base::Network, offset, len, dreg }
    }

    /// Loads the destination address of IPv4 or IPv6.
    pub fn destination_address(family: Family, dreg: Reg) -> Self {
        let (offset, len) = if family == Family::Ip6 { (24, 16) } else { (16, 4) };
        Self::Payload { base: Base::Network, offset, len, dreg }
    }

    /// Loads the destination port.
    pub fn destination_port(dreg: Reg) -> Self {
        Self::Payload { base: Base::Transport, offset: 2, len: 2, dreg }
    }

    /// Matches when a register holds a value.
    pub fn equal(sreg: Reg, value: impl Into<Vec<u8>>) -> Self {
        Self::Cmp { op: Cmp::Eq, sreg, data: value.into() }
    }

    /// Loads a constant.
    pub fn load(dreg: Reg, value: &Key) -> Self {
        Self::Immediate { dreg, data: value.as_slice().to_vec() }
    }
}
