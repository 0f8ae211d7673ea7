//! Expressions as netlink attributes; the attribute numbers are those of `linux/netfilter/nf_tables.h`.

use super::{Base, Cmp, Ct, DynsetOp, Expr, FibResult, Meta, NatKind, Reg, Reject, Verdict};
use crate::attr::Encoder;
use crate::object::Family;
use crate::sys;

impl Base {
    fn number(self) -> u32 {
        match self {
            Self::Link => 0,
            Self::Network => 1,
            Self::Transport => 2,
        }
    }
}

impl Meta {
    fn number(self) -> u32 {
        match self {
            Self::Mark => 3,
            Self::Iif => 4,
            Self::Oif => 5,
            Self::IifName => 6,
            Self::OifName => 7,
            Self::NfProto => 15,
            Self::L4Proto => 16,
        }
    }
}

impl Ct {
    fn number(self) -> u32 {
        match self {
            Self::State => 0,
            Self::Direction => 1,
            Self::Status => 2,
            Self::Mark => 3,
            Self::Protocol => 10,
            Self::SourcePort => 11,
            Self::DestinationPort => 12,
            Self::SourceIp => 19,
            Self::DestinationIp => 20,
            Self::SourceIp6 => 21,
            Self::DestinationIp6 => 22,
        }
    }
}

impl Cmp {
    fn number(self) -> u32 {
        match self {
            Self::Eq => 0,
            Self::Ne => 1,
            Self::Lt => 2,
            Self::Le => 3,
            Self::Gt => 4,
            Self::Ge => 5,
        }
    }
}

impl Verdict {
    pub(crate) fn encode(&self, out: &mut Encoder) {
        let (code, chain) = match self {
            Self::Drop => (0, None),
            Self::Accept => (1, None),
            Self::Continue => (-1, None),
            Self::Return => (-5, None),
            Self::Jump(chain) => (-3, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
        };
        out.nest(sys::NFTA_DATA_VERDICT, |out| {
            out.be32(sys::NFTA_VERDICT_CODE, i32::cast_unsigned(code));
            if let Some(chain) = chain {
                out.string(sys::NFTA_VERDICT_CHAIN, chain);
            }
        });
    }
}

impl Reject {
    /// Tables of one family take ICMP's own codes, tables of both take "icmpx" codes and translate them; each silently
    /// drops what is of the other kind.
    fn encode(self, out: &mut Encoder, family: Family) {
        const ICMP: u32 = 0;
        const RESET: u32 = 1;
        const ICMPX: u32 = 2;
        let (kind, code) = match (self, family) {
            (Self::TcpReset, _) => (RESET, 0),
            (Self::PortUnreachable, Family::Ip) => (ICMP, 3),
            (Self::PortUnreachable, Family::Ip6) => (ICMP, 4),
            (Self::PortUnreachable, _) => (ICMPX, 1),
            (Self::AdminProhibited, Family::Ip) => (ICMP, 13),
            (Self::AdminProhibited, Family::Ip6) => (ICMP, 1),
            (Self::AdminProhibited, _) => (ICMPX, 3),
        };
        words(out, &[(1, kind)]);
        out.u8(2, code);
    }
}

impl Expr {
    /// The name by which the kernel knows the expression.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Payload { .. } => "payload",
            Self::Meta { .. } | Self::MetaSet { .. } => "meta",
            Self::Ct { .. } | Self::CtSet { .. } => "ct",
            Self::Cmp { .. } => "cmp",
            Self::Range { .. } => "range",
            Self::Bitwise { .. } => "bitwise",
            Self::Lookup { .. } => "lookup",
            Self::Immediate { .. } | Self::Verdict(_) => "immediate",
            Self::Nat { .. } => "nat",
            Self::Masquerade { .. } => "masq",
            Self::Redirect { .. } => "redir",
            Self::Random { .. } => "numgen",
            Self::Hash { .. } => "hash",
            Self::Fib { .. } => "fib",
            Self::Dynset { .. } => "dynset",
            Self::Counter => "counter",
            Self::Reject(_) => "reject",
            Self::Limit { .. } => "limit",
            Self::Notrack => "notrack",
        }
    }

    /// Appends the expression for a rule in a table of a family.
    pub(crate) fn encode(&self, out: &mut Encoder, family: Family) {
        out.nest(sys::NFTA_LIST_ELEM, |out| {
            out.string(sys::NFTA_EXPR_NAME, self.name());
            out.nest(sys::NFTA_EXPR_DATA, |out| match self {
                Self::Reject(reject) => reject.encode(out, family),
                _ => self.encode_data(out),
            });
        });
    }

    fn encode_data(&self, out: &mut Encoder) {
        match self {
            Self::Payload { base, offset, len, dreg } => {
                words(out, &[(1, dreg.0), (2, base.number()), (3, *offset), (4, *len)]);
            }
            Self::Meta { key, dreg } => words(out, &[(1, dreg.0), (2, key.number())]),
            Self::MetaSet { key, sreg } => words(out, &[(2, key.number()), (3, sreg.0)]),
            Self::Ct { key, reply, dreg } => {
                words(out, &[(1, dreg.0), (2, key.number())]);
                if let Some(reply) = reply {
                    out.u8(3, u8::from(*reply));
                }
            }
            Self::CtSet { key, sreg } => words(out, &[(2, key.number()), (4, sreg.0)]),
            Self::Cmp { op, sreg, data } => {
                words(out, &[(1, sreg.0), (2, op.number())]);
                value(out, 3, data);
            }
            Self::Range { invert, sreg, from, to } => {
                words(out, &[(1, sreg.0), (2, u32::from(*invert))]);
                value(out, 3, from);
                value(out, 4, to);
            }
            Self::Bitwise { sreg, dreg, mask, xor } => {
                words(out, &[(1, sreg.0), (2, dreg.0), (3, mask.len() as u32)]);
                value(out, 4, mask);
                value(out, 5, xor);
            }
            Self::Lookup { set, sreg, dreg, invert } => {
                out.string(1, set);
                words(out, &[(2, sreg.0)]);
                if let Some(dreg) = dreg {
                    words(out, &[(3, dreg.0)]);
                }
                if *invert {
                    words(out, &[(5, 1)]);
                }
            }
            Self::Immediate { dreg, data } => {
                words(out, &[(1, dreg.0)]);
                value(out, 2, data);
            }
            Self::Verdict(verdict) => {
                words(out, &[(1, Reg::VERDICT.0)]);
                out.nest(2, |out| verdict.encode(out));
            }
            Self::Nat { kind, family, addr, port, flags } => {
                words(out, &[(1, u32::from(*kind == NatKind::Destination)), (2, u32::from(family.number()))]);
                optional(out, 3, addr.map(|reg| reg.0));
                optional(out, 5, port.map(|reg| reg.0));
                optional(out, 7, (*flags != 0).then_some(*flags));
            }
            Self::Masquerade { flags } => optional(out, 1, (*flags != 0).then_some(*flags)),
            Self::Redirect { port } => optional(out, 1, port.map(|reg| reg.0)),
            Self::Random { dreg, modulus, offset } => words(out, &[(1, dreg.0), (2, *modulus), (3, 1), (4, *offset)]),
            Self::Hash { sreg, len, dreg, modulus, offset, seed } => {
                words(out, &[(1, sreg.0), (2, dreg.0), (3, *len), (4, *modulus), (5, *seed), (6, *offset), (7, 0)]);
            }
            Self::Fib { result, flags, dreg } => {
                let result = match result {
                    FibResult::Oif => 1,
                    FibResult::OifName => 2,
                    FibResult::AddressType => 3,
                };
                words(out, &[(1, dreg.0), (2, result), (3, *flags)]);
            }
            Self::Dynset { set, op, key, data, timeout } => {
                let op = match op {
                    DynsetOp::Add => 0,
                    DynsetOp::Update => 1,
                    DynsetOp::Delete => 2,
                };
                out.string(1, set);
                words(out, &[(3, op), (4, key.0)]);
                optional(out, 5, data.map(|reg| reg.0));
                if let Some(timeout) = timeout {
                    out.be64(6, *timeout);
                }
            }
            Self::Counter => {
                out.be64(1, 0);
                out.be64(2, 0);
            }
            Self::Limit { rate, per, burst, over } => {
                out.be64(1, *rate);
                out.be64(2, per.seconds());
                words(out, &[(3, *burst), (4, 0), (5, u32::from(*over))]);
            }
            Self::Reject(_) | Self::Notrack => {}
        }
    }
}

fn words(out: &mut Encoder, attributes: &[(u16, u32)]) {
    for (kind, value) in attributes {
        out.be32(*kind, *value);
    }
}

fn optional(out: &mut Encoder, kind: u16, value: Option<u32>) {
    if let Some(value) = value {
        out.be32(kind, value);
    }
}

fn value(out: &mut Encoder, kind: u16, data: &[u8]) {
    out.nest(kind, |out| out.bytes(sys::NFTA_DATA_VALUE, data));
}
