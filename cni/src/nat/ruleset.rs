//! The table: sets, chains and the rules that look into the sets.

use bosun_nft::{
    Batch, Chain, Connection, Expr, Family, Hook, Key, Reg, Result, Rule, Set, SetRef, Table, Type,
    expr::{Base, Match, Meta, NatKind, ct_status},
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(super) const TABLE: Table<'static> = Table::new(Family::Inet, "bosun-cni");

/// IPv4 and IPv6, which have sets of their own.
pub(super) const FAMILIES: [bool; 2] = [true, false];

/// The mark of packets that came by a host's port, as the reference plugin has it (bit 13).
const MARK: u32 = 1 << 13;

const DESTINATION_NAT: i32 = -100;
const SOURCE_NAT: i32 = 100;

/// The sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Address, protocol and port of the host to address and port of the container.
    Ports,
    /// Sources and containers between which a host's port is masqueraded.
    Hairpin,
    /// Containers and destinations between which nothing is masqueraded.
    Inside,
    /// Containers that are masqueraded.
    Masquerade,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Ports, Self::Hairpin, Self::Inside, Self::Masquerade];

    fn name(self, v4: bool) -> &'static str {
        match (self, v4) {
            (Self::Ports, true) => "ports4",
            (Self::Ports, false) => "ports6",
            (Self::Hairpin, true) => "hairpin4",
            (Self::Hairpin, false) => "hairpin6",
            (Self::Inside, true) => "inside4",
            (Self::Inside, false) => "inside6",
            (Self::Masquerade, true) => "masquerade4",
            (Self::Masquerade, false) => "masquerade6",
        }
    }

    fn fields(self, v4: bool) -> &'static [Type] {
        match (self, v4) {
            (Self::Ports, true) => &[Type::Ipv4Addr, Type::InetProto, Type::InetService],
            (Self::Ports, false) => &[Type::Ipv6Addr, Type::InetProto, Type::InetService],
            (Self::Hairpin | Self::Inside, true) => &[Type::Ipv4Addr, Type::Ipv4Addr],
            (Self::Hairpin | Self::Inside, false) => &[Type::Ipv6Addr, Type::Ipv6Addr],
            (Self::Masquerade, true) => &[Type::Ipv4Addr],
            (Self::Masquerade, false) => &[Type::Ipv6Addr],
        }
    }

    fn set(self, v4: bool) -> Set<'static> {
        let (name, fields) = (self.name(v4), self.fields(v4));
        let plain = Set::new(TABLE, name, fields);
        match (self, v4) {
            (Self::Ports, true) => Set::map(TABLE, name, fields, &[Type::Ipv4Addr, Type::InetService]),
            (Self::Ports, false) => Set::map(TABLE, name, fields, &[Type::Ipv6Addr, Type::InetService]),
            (Self::Hairpin | Self::Inside, _) => Set { interval: true, ..plain },
            (Self::Masquerade, _) => plain,
        }
    }
}

/// A set's name in the table.
pub(super) fn reference(kind: Kind, v4: bool) -> SetRef<'static> {
    SetRef { table: TABLE, name: kind.name(v4) }
}

/// A key of a set from the kernel's bytes.
pub(super) fn key(kind: Kind, v4: bool, bytes: &[u8]) -> Key {
    let (mut key, mut at) = (Key::new(), 0);
    for field in kind.fields(v4) {
        key = key.bytes(bytes.get(at..at + field.len()).unwrap_or_default());
        at += field.len().next_multiple_of(4);
    }
    key
}

const HOSTPORTS: &str = "hostports";
const PREROUTING: &str = "prerouting";
const OUTPUT: &str = "output";
const POSTROUTING: &str = "postrouting";

fn chains() -> [Chain<'static>; 4] {
    [
        Chain::regular(TABLE, HOSTPORTS),
        Chain::base(TABLE, PREROUTING, Hook::Prerouting, "nat", DESTINATION_NAT),
        Chain::base(TABLE, OUTPUT, Hook::Output, "nat", DESTINATION_NAT),
        Chain::base(TABLE, POSTROUTING, Hook::Postrouting, "nat", SOURCE_NAT),
    ]
}

/// Whether chains and rules are there; sets cannot be missing when the rules that use them are there.
pub(super) fn is_complete(connection: &mut Connection) -> Result<bool> {
    let there = match connection.rules(TABLE, None) {
        Ok(rules) => rules.len(),
        Err(error) if error.is_not_found() => 0,
        Err(error) => return Err(error),
    };
    Ok(there == rules().len())
}

/// Makes table, sets, chains and rules; what is there already stays, elements too.
pub(super) fn build(batch: &mut Batch) {
    batch.add_table(TABLE);
    for (kind, v4) in Kind::ALL.into_iter().flat_map(|kind| FAMILIES.map(|v4| (kind, v4))) {
        batch.add_set(&kind.set(v4));
    }
    for chain in chains() {
        batch.add_chain(&chain);
        batch.flush_chain(TABLE, chain.name);
    }
    for (chain, rule) in rules() {
        batch.add_rule(&Rule::new(TABLE, chain, rule));
    }
}

fn rules() -> Vec<(&'static str, Match)> {
    let mut rules = vec![
        (PREROUTING, Match::new().daddr_local(true).jump(HOSTPORTS)),
        (OUTPUT, Match::new().daddr_local(true).jump(HOSTPORTS)),
        (HOSTPORTS, Match::new().set_mark_bits(MARK)),
    ];
    for v4 in FAMILIES {
        let family = family(v4);
        rules.push((HOSTPORTS, translate(v4, Expr::destination_address(family, Reg::word(0)))));
        rules.push((HOSTPORTS, translate(v4, Expr::load(Reg::word(0), &Key::new().ip(any(v4))))));
    }
    // A packet that is for the host itself has no mark to carry on.
    rules.push((HOSTPORTS, Match::new().clear_mark_bits(MARK)));
    let by_port = |v4| Match::new().nfproto(family(v4)).mark_any(MARK).ct_status(ct_status::DNAT);
    let loopback = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0));
    rules.push((POSTROUTING, by_port(true).saddr_in(loopback, 8).masquerade()));
    for v4 in FAMILIES {
        let of_family = || Match::new().nfproto(family(v4));
        rules.push((POSTROUTING, load_pair(by_port(v4), v4).in_set(Kind::Hairpin.name(v4)).masquerade()));
        rules.push((POSTROUTING, load_pair(of_family(), v4).in_set(Kind::Inside.name(v4)).ret()));
        let (multicast, length) = multicast(v4);
        rules.push((POSTROUTING, of_family().daddr_in(multicast, length).ret()));
        let source = of_family().then(Expr::source_address(family(v4), Reg::word(0)));
        rules.push((POSTROUTING, source.in_set(Kind::Masquerade.name(v4)).masquerade()));
    }
    rules
}

fn family(v4: bool) -> Family {
    if v4 { Family::Ip } else { Family::Ip6 }
}

fn any(v4: bool) -> IpAddr {
    if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

fn multicast(v4: bool) -> (IpAddr, u8) {
    if v4 { (Ipv4Addr::new(224, 0, 0, 0).into(), 4) } else { (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0).into(), 8) }
}

/// How many words an address fills.
fn words(v4: bool) -> u32 {
    if v4 { 1 } else { 4 }
}

/// Sends the packet on by the map, with `address` loading the first field of the key.
fn translate(v4: bool, address: Expr) -> Match {
    let (protocol, port) = (Reg::word(words(v4)), Reg::word(words(v4) + 1));
    Match::new()
        .nfproto(family(v4))
        .then(address)
        .then(Expr::Meta { key: Meta::L4Proto, dreg: protocol })
        .then(Expr::Payload { base: Base::Transport, offset: 2, len: 2, dreg: port })
        .then(Expr::Lookup {
            set: Kind::Ports.name(v4).to_owned(),
            sreg: Reg::word(0),
            dreg: Some(Reg::word(0)),
            invert: false,
        })
        .then(Expr::Nat {
            kind: NatKind::Destination,
            family: family(v4),
            addr: Some(Reg::word(0)),
            port: Some(Reg::word(words(v4))),
            flags: 0,
        })
}

/// Loads source and destination as a key.
fn load_pair(rule: Match, v4: bool) -> Match {
    rule.then(Expr::source_address(family(v4), Reg::word(0)))
        .then(Expr::destination_address(family(v4), Reg::word(words(v4))))
}
