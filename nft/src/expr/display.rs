//! Expressions as text, in the manner of `nft --debug=netlink`.

use std::fmt;

use super::{Base, Cmp, DynsetOp, Expr, FibResult, NatKind, Reg, Verdict};

impl fmt::Display for Reg {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { out.write_str("verdict") } else { write!(out, "r{}", self.0.saturating_sub(8)) }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drop => out.write_str("drop"),
            Self::Accept => out.write_str("accept"),
            Self::Continue => out.write_str("continue"),
            Self::Return => out.write_str("return"),
            Self::Jump(chain) => write!(out, "jump {chain}"),
            Self::Goto(chain) => write!(out, "goto {chain}"),
        }
    }
}

impl fmt::Display for Cmp {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Eq => "==",
            Self::Ne => "!=",
            Self::Lt => "<",
            Self::Le => "<=",
            Self::Gt => ">",
            Self::Ge => ">=",
        })
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Payload { base, offset, len, dreg } => {
                let base = match base {
                    Base::Link => "link",
                    Base::Network => "network",
                    Base::Transport => "transport",
                };
                write!(out, "{dreg} = {base}[{offset}..{}]", offset + len)
            }
            Self::Meta { key, dreg } => write!(out, "{dreg} = meta {}", lower(key)),
            Self::MetaSet { key, sreg } => write!(out, "meta {} = {sreg}", lower(key)),
            Self::Ct { key, reply: None, dreg } => write!(out, "{dreg} = ct {}", lower(key)),
            Self::Ct { key, reply: Some(reply), dreg } => {
                write!(out, "{dreg} = ct {} {}", if *reply { "reply" } else { "original" }, lower(key))
            }
            Self::CtSet { key, sreg } => write!(out, "ct {} = {sreg}", lower(key)),
            Self::Cmp { op, sreg, data } => write!(out, "{sreg} {op} {}", Hex(data)),
            Self::Range { invert, sreg, from, to } => {
                write!(out, "{sreg} {}in {}-{}", if *invert { "not " } else { "" }, Hex(from), Hex(to))
            }
            Self::Bitwise { sreg, dreg, mask, xor } => write!(out, "{dreg} = ({sreg} & {}) ^ {}", Hex(mask), Hex(xor)),
            Self::Lookup { set, sreg, dreg, invert } => match dreg {
                Some(dreg) => write!(out, "{dreg} = @{set}[{sreg}]"),
                None => write!(out, "{sreg} {}in @{set}", if *invert { "not " } else { "" }),
            },
            Self::Immediate { dreg, data } => write!(out, "{dreg} = {}", Hex(data)),
            Self::Verdict(verdict) => verdict.fmt(out),
            Self::Nat { kind, family, addr, port, flags } => {
                out.write_str(if *kind == NatKind::Destination { "dnat " } else { "snat " })?;
                write!(out, "{}", family.name())?;
                option(out, " addr ", addr)?;
                option(out, " port ", port)?;
                write_flags(out, *flags)
            }
            Self::Masquerade { flags } => {
                out.write_str("masquerade")?;
                write_flags(out, *flags)
            }
            Self::Redirect { port } => {
                out.write_str("redirect")?;
                option(out, " port ", port)
            }
            Self::Random { dreg, modulus, offset } => write!(out, "{dreg} = random mod {modulus} + {offset}"),
            Self::Hash { sreg, len, dreg, modulus, offset, seed } => {
                write!(out, "{dreg} = hash({sreg}, {len}, seed {seed}) mod {modulus} + {offset}")
            }
            Self::Fib { result, flags, dreg } => {
                let result = match result {
                    FibResult::Oif => "oif",
                    FibResult::OifName => "oifname",
                    FibResult::AddressType => "type",
                };
                write!(out, "{dreg} = fib {result} flags {flags:#x}")
            }
            Self::Dynset { set, op, key, data, timeout } => {
                let op = match op {
                    DynsetOp::Add => "add",
                    DynsetOp::Update => "update",
                    DynsetOp::Delete => "delete",
                };
                write!(out, "{op} @{set}[{key}]")?;
                option(out, " = ", data)?;
                option(out, " timeout ", timeout)
            }
            Self::Counter => out.write_str("counter"),
            Self::Reject(reject) => write!(out, "reject {}", lower(reject)),
            Self::Limit { rate, per, burst, over } => {
                write!(out, "limit {}{rate}/{} burst {burst}", if *over { "over " } else { "" }, lower(per))
            }
            Self::Notrack => out.write_str("notrack"),
        }
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("0x")?;
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

fn lower(value: &impl fmt::Debug) -> String {
    format!("{value:?}").to_lowercase()
}

fn option(out: &mut fmt::Formatter<'_>, label: &str, value: &Option<impl fmt::Display>) -> fmt::Result {
    match value {
        Some(value) => write!(out, "{label}{value}"),
        None => Ok(()),
    }
}

fn write_flags(out: &mut fmt::Formatter<'_>, flags: u32) -> fmt::Result {
    if flags == 0 { Ok(()) } else { write!(out, " flags {flags:#x}") }
}
