//! Writes the usual expressions of a rule, in the words of the `nft` language.

use std::net::IpAddr;

use super::{Base, Cmp, Ct, DynsetOp, Expr, FibResult, LOCAL_ADDRESS, Meta, NatKind, Reg, Reject, Verdict, fib_flags};
use crate::object::{Family, Key};

/// The expressions of a rule under construction.
///
/// Each method leaves the registers free for the next; only [`Match::then`] does what it is told.
#[derive(Debug, Clone, Default)]
pub struct Match(Vec<Expr>);

impl From<Vec<Expr>> for Match {
    fn from(expressions: Vec<Expr>) -> Self {
        Self(expressions)
    }
}

const R0: Reg = Reg::word(0);

impl Match {
    /// No expressions: every packet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The expressions.
    pub fn into_expressions(self) -> Vec<Expr> {
        self.0
    }

    /// Appends one expression.
    #[must_use]
    pub fn then(mut self, expr: Expr) -> Self {
        self.0.push(expr);
        self
    }

    fn compare(self, load: Expr, op: Cmp, data: Vec<u8>) -> Self {
        self.then(load).then(Expr::Cmp { op, sreg: R0, data })
    }

    /// The family, in tables of family `inet`.
    #[must_use]
    pub fn nfproto(self, family: Family) -> Self {
        self.compare(Expr::Meta { key: Meta::NfProto, dreg: R0 }, Cmp::Eq, vec![family.number()])
    }

    /// The name of the input device.
    #[must_use]
    pub fn iifname(self, name: &str) -> Self {
        self.compare(Expr::Meta { key: Meta::IifName, dreg: R0 }, Cmp::Eq, device(name))
    }

    /// The name of the output device.
    #[must_use]
    pub fn oifname(self, name: &str) -> Self {
        self.compare(Expr::Meta { key: Meta::OifName, dreg: R0 }, Cmp::Eq, device(name))
    }

    /// Any output device but this one.
    #[must_use]
    pub fn oifname_not(self, name: &str) -> Self {
        self.compare(Expr::Meta { key: Meta::OifName, dreg: R0 }, Cmp::Ne, device(name))
    }

    /// The start of the input device's name.
    #[must_use]
    pub fn iifname_prefix(self, prefix: &str) -> Self {
        let data = prefix.as_bytes()[..prefix.len().min(15)].to_vec();
        self.compare(Expr::Meta { key: Meta::IifName, dreg: R0 }, Cmp::Eq, data)
    }

    /// The protocol above IP.
    #[must_use]
    pub fn l4proto(self, number: u8) -> Self {
        self.compare(Expr::Meta { key: Meta::L4Proto, dreg: R0 }, Cmp::Eq, vec![number])
    }

    /// The source port; the protocol must have been matched before.
    #[must_use]
    pub fn sport(self, port: u16) -> Self {
        let load = Expr::Payload { base: Base::Transport, offset: 0, len: 2, dreg: R0 };
        self.compare(load, Cmp::Eq, port.to_be_bytes().to_vec())
    }

    /// The destination port; the protocol must have been matched before.
    #[must_use]
    pub fn dport(self, port: u16) -> Self {
        self.compare(Expr::destination_port(R0), Cmp::Eq, port.to_be_bytes().to_vec())
    }

    /// The source address.
    #[must_use]
    pub fn saddr(self, addr: IpAddr) -> Self {
        self.source_in(addr, width(addr), Cmp::Eq)
    }

    /// The destination address.
    #[must_use]
    pub fn daddr(self, addr: IpAddr) -> Self {
        self.destination_in(addr, width(addr), Cmp::Eq)
    }

    /// The network of the source.
    #[must_use]
    pub fn saddr_in(self, net: IpAddr, prefix: u8) -> Self {
        self.source_in(net, prefix, Cmp::Eq)
    }

    /// A source outside a network.
    #[must_use]
    pub fn saddr_not_in(self, net: IpAddr, prefix: u8) -> Self {
        self.source_in(net, prefix, Cmp::Ne)
    }

    /// The network of the destination.
    #[must_use]
    pub fn daddr_in(self, net: IpAddr, prefix: u8) -> Self {
        self.destination_in(net, prefix, Cmp::Eq)
    }

    /// A destination outside a network.
    #[must_use]
    pub fn daddr_not_in(self, net: IpAddr, prefix: u8) -> Self {
        self.destination_in(net, prefix, Cmp::Ne)
    }

    fn source_in(self, net: IpAddr, prefix: u8, op: Cmp) -> Self {
        self.then(Expr::source_address(family(net), R0)).network(net, prefix, op)
    }

    fn destination_in(self, net: IpAddr, prefix: u8, op: Cmp) -> Self {
        self.then(Expr::destination_address(family(net), R0)).network(net, prefix, op)
    }

    fn network(self, net: IpAddr, prefix: u8, op: Cmp) -> Self {
        let bytes = Key::new().ip(net).as_slice().to_vec();
        let mask: Vec<u8> = (0..bytes.len()).map(|at| mask_byte(prefix, at)).collect();
        let data: Vec<u8> = bytes.iter().zip(&mask).map(|(byte, mask)| byte & mask).collect();
        let whole = mask.iter().all(|byte| *byte == 255);
        let masked =
            if whole { self } else { self.then(Expr::Bitwise { sreg: R0, dreg: R0, xor: vec![0; mask.len()], mask }) };
        masked.then(Expr::Cmp { op, sreg: R0, data })
    }

    /// A destination address that is, or with `false` is not, one of this host's.
    #[must_use]
    pub fn daddr_local(self, local: bool) -> Self {
        self.address_type(fib_flags::DADDR, local)
    }

    /// A source address that is, or with `false` is not, one of this host's.
    #[must_use]
    pub fn saddr_local(self, local: bool) -> Self {
        self.address_type(fib_flags::SADDR, local)
    }

    fn address_type(self, flags: u32, local: bool) -> Self {
        let op = if local { Cmp::Eq } else { Cmp::Ne };
        let load = Expr::Fib { result: FibResult::AddressType, flags, dreg: R0 };
        self.compare(load, op, LOCAL_ADDRESS.to_ne_bytes().to_vec())
    }

    /// Any of these bits of the packet mark set.
    #[must_use]
    pub fn mark_any(self, bits: u32) -> Self {
        self.then(Expr::Meta { key: Meta::Mark, dreg: R0 }).bits(bits, Cmp::Ne)
    }

    /// None of these bits of the packet mark set.
    #[must_use]
    pub fn mark_none(self, bits: u32) -> Self {
        self.then(Expr::Meta { key: Meta::Mark, dreg: R0 }).bits(bits, Cmp::Eq)
    }

    /// Any of these states, see [`super::ct_state`].
    #[must_use]
    pub fn ct_state(self, bits: u32) -> Self {
        self.then(Expr::Ct { key: Ct::State, reply: None, dreg: R0 }).bits(bits, Cmp::Ne)
    }

    /// Any of these status bits, see [`super::ct_status`].
    #[must_use]
    pub fn ct_status(self, bits: u32) -> Self {
        self.then(Expr::Ct { key: Ct::Status, reply: None, dreg: R0 }).bits(bits, Cmp::Ne)
    }

    fn bits(self, bits: u32, op: Cmp) -> Self {
        self.then(Expr::Bitwise { sreg: R0, dreg: R0, mask: bits.to_ne_bytes().to_vec(), xor: vec![0; 4] })
            .then(Expr::Cmp { op, sreg: R0, data: vec![0; 4] })
    }

    /// The key in the first register on is in a set.
    #[must_use]
    pub fn in_set(self, set: impl Into<String>) -> Self {
        self.then(Expr::Lookup { set: set.into(), sreg: R0, dreg: None, invert: false })
    }

    /// The key in the first register on is not in a set.
    #[must_use]
    pub fn not_in_set(self, set: impl Into<String>) -> Self {
        self.then(Expr::Lookup { set: set.into(), sreg: R0, dreg: None, invert: true })
    }

    /// Does what a verdict map says for the key in the first register on.
    #[must_use]
    pub fn verdict_map(self, map: impl Into<String>) -> Self {
        self.then(Expr::Lookup { set: map.into(), sreg: R0, dreg: Some(Reg::VERDICT), invert: false })
    }

    /// Adds or renews an element of a dynamic set, with the key in the first register on.
    #[must_use]
    pub fn update(self, set: impl Into<String>, timeout: Option<u64>) -> Self {
        self.then(Expr::Dynset { set: set.into(), op: DynsetOp::Update, key: R0, data: None, timeout })
    }

    /// Sets bits of the packet mark.
    #[must_use]
    pub fn set_mark_bits(self, bits: u32) -> Self {
        self.change_mark(!bits, bits)
    }

    /// Clears bits of the packet mark.
    #[must_use]
    pub fn clear_mark_bits(self, bits: u32) -> Self {
        self.change_mark(!bits, 0)
    }

    fn change_mark(self, mask: u32, xor: u32) -> Self {
        let (mask, xor) = (mask.to_ne_bytes().to_vec(), xor.to_ne_bytes().to_vec());
        self.then(Expr::Meta { key: Meta::Mark, dreg: R0 })
            .then(Expr::Bitwise { sreg: R0, dreg: R0, mask, xor })
            .then(Expr::MetaSet { key: Meta::Mark, sreg: R0 })
    }

    /// Translates the destination.
    #[must_use]
    pub fn dnat(self, addr: IpAddr, port: Option<u16>) -> Self {
        self.nat(NatKind::Destination, addr, port)
    }

    /// Translates the source.
    #[must_use]
    pub fn snat(self, addr: IpAddr) -> Self {
        self.nat(NatKind::Source, addr, None)
    }

    fn nat(mut self, kind: NatKind, addr: IpAddr, port: Option<u16>) -> Self {
        let port_reg = Reg::word(4);
        self = self.then(Expr::load(R0, &Key::new().ip(addr)));
        if let Some(port) = port {
            self = self.then(Expr::load(port_reg, &Key::new().port(port)));
        }
        let port = port.map(|_| port_reg);
        self.then(Expr::Nat { kind, family: family(addr), addr: Some(R0), port, flags: 0 })
    }

    /// Translates the source to the output device's address.
    #[must_use]
    pub fn masquerade(self) -> Self {
        self.then(Expr::Masquerade { flags: 0 })
    }

    /// Translates the source to the output device's address and a fully random port.
    #[must_use]
    pub fn masquerade_random(self) -> Self {
        self.then(Expr::Masquerade { flags: super::nat_flags::FULLY_RANDOM })
    }

    /// Counts.
    #[must_use]
    pub fn counter(self) -> Self {
        self.then(Expr::Counter)
    }

    /// Refuses with "port unreachable".
    #[must_use]
    pub fn reject(self) -> Self {
        self.then(Expr::Reject(Reject::PortUnreachable))
    }

    /// Drops.
    #[must_use]
    pub fn drop(self) -> Self {
        self.then(Expr::Verdict(Verdict::Drop))
    }

    /// Accepts.
    #[must_use]
    pub fn accept(self) -> Self {
        self.then(Expr::Verdict(Verdict::Accept))
    }

    /// Goes back to the calling chain.
    #[must_use]
    pub fn ret(self) -> Self {
        self.then(Expr::Verdict(Verdict::Return))
    }

    /// Calls a chain.
    #[must_use]
    pub fn jump(self, chain: impl Into<String>) -> Self {
        self.then(Expr::Verdict(Verdict::Jump(chain.into())))
    }

    /// Goes to a chain without coming back.
    #[must_use]
    pub fn goto(self, chain: impl Into<String>) -> Self {
        self.then(Expr::Verdict(Verdict::Goto(chain.into())))
    }
}

fn family(addr: IpAddr) -> Family {
    if addr.is_ipv6() { Family::Ip6 } else { Family::Ip }
}

fn width(addr: IpAddr) -> u8 {
    if addr.is_ipv6() { 128 } else { 32 }
}

/// The byte at an index of a mask of `prefix` ones.
fn mask_byte(prefix: u8, at: usize) -> u8 {
    let ones = usize::from(prefix).saturating_sub(at * 8).min(8);
    (0xff00_u16 >> ones) as u8
}

/// A device's name, padded as the kernel compares it.
fn device(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes()[..name.len().min(15)].to_vec();
    bytes.resize(16, 0);
    bytes
}
