//! Address translation for containers: one nf_tables table for all, in which each attachment has elements of its own.
//!
//! Rules never change when containers come and go. An element's comment says whose it is, so that DEL and GC find what
//! to remove without being told the ports. Everything is one transaction.

mod ruleset;

use crate::{Attachment, Code, Error};
use bosun_nft::{Batch, Connection, Element, ElementData, Key, conntrack};
use ipnet::IpNet;
use ruleset::{FAMILIES, reference};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    time::Duration,
};

pub(crate) use ruleset::Kind;

/// An element that an attachment needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A host's port leads to a container's.
    Port { host: Option<IpAddr>, protocol: u8, port: u16, to: IpAddr, to_port: u16 },
    /// What comes from `from` to `to` by a host's port is masqueraded.
    Hairpin { from: IpNet, to: IpAddr },
    /// What comes from the address is masqueraded, unless it is for `inside`.
    Masquerade { from: IpAddr, inside: IpNet },
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port { host: Some(host), protocol, port, to, to_port } => {
                write!(f, "port {protocol}/{host}/{port} to {to}/{to_port}")
            }
            Self::Port { host: None, protocol, port, to, to_port } => {
                write!(f, "port {protocol}/any/{port} to {to}/{to_port}")
            }
            Self::Hairpin { from, to } => write!(f, "hairpin {from} to {to}"),
            Self::Masquerade { from, inside } => write!(f, "masquerade {from} but to {inside}"),
        }
    }
}

impl Entry {
    fn v4(&self) -> bool {
        match self {
            Self::Port { to, .. } | Self::Hairpin { to, .. } => to.is_ipv4(),
            Self::Masquerade { from, .. } => from.is_ipv4(),
        }
    }

    /// The elements in their sets.
    fn elements(&self) -> Vec<(Kind, Element<'static>)> {
        let any = if self.v4() { IpAddr::V4(0.into()) } else { IpAddr::V6(0.into()) };
        match *self {
            Self::Port { host, protocol, port, to, to_port } => {
                let key = Key::new().ip(host.unwrap_or(any)).proto(protocol).port(port);
                vec![(Kind::Ports, Element::value(key, Key::new().ip(to).port(to_port)))]
            }
            Self::Hairpin { from, to } => {
                vec![(Kind::Hairpin, range(pair(from.network(), to), pair(from.broadcast(), to)))]
            }
            Self::Masquerade { from, inside } => vec![
                (Kind::Inside, range(pair(from, inside.network()), pair(from, inside.broadcast()))),
                (Kind::Masquerade, Element::new(Key::new().ip(from))),
            ],
        }
    }
}

fn pair(source: IpAddr, destination: IpAddr) -> Key {
    Key::new().ip(source).ip(destination)
}

fn range(first: Key, last: Key) -> Element<'static> {
    Element { key_end: Some(last), ..Element::new(first) }
}

/// An element that is there, with the bytes to delete it by.
struct Present {
    kind: Kind,
    v4: bool,
    key: Key,
    key_end: Option<Key>,
    owner: String,
}

fn failed(what: &'static str) -> impl FnOnce(bosun_nft::Error) -> Error {
    move |error| {
        let hint = if matches!(error, bosun_nft::Error::Open(_)) { " (the kernel needs nf_tables)" } else { "" };
        Error::new(Code::Kernel, format!("{what}{hint}")).details(error.to_string())
    }
}

/// What marks an element as an attachment's.
fn owner(network: &str, attachment: &Attachment) -> Result<String, Error> {
    const LONGEST: usize = 127;
    let owner = format!("{network}/{attachment}");
    if owner.len() > LONGEST {
        let message = format!("network name and container ID are {} bytes too long for a rule", owner.len() - LONGEST);
        return Err(Error::new(Code::InvalidConfig, message));
    }
    Ok(owner)
}

/// Reads and changes again when somebody else changed rules in between.
fn retrying<T>(mut attempt: impl FnMut() -> bosun_nft::Result<T>) -> bosun_nft::Result<T> {
    const ATTEMPTS: u64 = 100;
    for number in 0..ATTEMPTS {
        match attempt() {
            Err(error) if error.is_not_found() || matches!(error, bosun_nft::Error::Interrupted) => {
                // Plugins that run side by side part by their process numbers.
                let wait = 200 + u64::from(std::process::id()) % 17 * 100 + number * 50;
                std::thread::sleep(Duration::from_micros(wait));
            }
            other => return other,
        }
    }
    attempt()
}

/// The table in the network namespace of this thread.
pub(crate) struct Nat(Connection);

impl Nat {
    pub(crate) fn open() -> Result<Self, Error> {
        Connection::open().map(Self).map_err(failed("open a netfilter socket"))
    }

    /// For removing: none where the kernel has no nf_tables, and so nothing of ours.
    pub(crate) fn open_existing() -> Result<Option<Self>, Error> {
        let mut connection = match Connection::open() {
            Err(error) if error.is_unsupported() => return Ok(None),
            other => other.map_err(failed("open a netfilter socket"))?,
        };
        match connection.generation() {
            Err(error) if error.is_unsupported() => Ok(None),
            _ => Ok(Some(Self(connection))),
        }
    }

    /// Gives an attachment exactly these entries of the kinds; a host's port that another had is taken over.
    pub(crate) fn set(
        &mut self,
        network: &str,
        attachment: &Attachment,
        kinds: &[Kind],
        entries: &[Entry],
    ) -> Result<(), Error> {
        let owner = owner(network, attachment)?;
        retrying(|| self.try_set(&owner, kinds, entries)).map_err(failed("load rules for the container"))?;
        self.forget_flows(entries)
    }

    fn try_set(&mut self, owner: &str, kinds: &[Kind], entries: &[Entry]) -> bosun_nft::Result<()> {
        let mut batch = Batch::new();
        if !ruleset::is_complete(&mut self.0)? {
            ruleset::build(&mut batch);
        }
        let new = || entries.iter().flat_map(|entry| entry.elements().into_iter().map(|(k, e)| (k, entry.v4(), e)));
        let keys: BTreeSet<_> = new().map(|(kind, v4, element)| (kind, v4, element.key)).collect();
        let present = self.present(kinds)?;
        let taken_over = |p: &&Present| p.owner == owner || keys.contains(&(p.kind, p.v4, p.key));
        delete(&mut batch, present.iter().filter(taken_over));
        for (kind, v4, element) in new() {
            batch.add_elements(reference(kind, v4), [Element { comment: Some(owner), ..element }]);
        }
        self.0.commit(batch)
    }

    /// Removes the entries of an attachment.
    pub(crate) fn remove(&mut self, network: &str, attachment: &Attachment, kinds: &[Kind]) -> Result<(), Error> {
        let owner = owner(network, attachment)?;
        self.retain(kinds, |theirs| theirs != owner)
    }

    /// Removes the network's entries whose attachment is not valid.
    pub(crate) fn collect(
        &mut self,
        network: &str,
        kinds: &[Kind],
        valid: impl Fn(&str, &str) -> bool,
    ) -> Result<(), Error> {
        let prefix = format!("{network}/");
        self.retain(kinds, |owner| match owner.strip_prefix(&prefix).and_then(|rest| rest.rsplit_once('/')) {
            Some((container, ifname)) => valid(container, ifname),
            None => true,
        })
    }

    fn retain(&mut self, kinds: &[Kind], keep: impl Fn(&str) -> bool) -> Result<(), Error> {
        let ports = retrying(|| self.try_retain(kinds, &keep)).map_err(failed("remove the container's rules"))?;
        self.forget_udp(&ports)
    }

    /// Answers the UDP ports of the host that led to what was removed.
    fn try_retain(&mut self, kinds: &[Kind], keep: impl Fn(&str) -> bool) -> bosun_nft::Result<BTreeSet<u16>> {
        let present = self.present(kinds)?;
        let gone = || present.iter().filter(|present| !keep(&present.owner));
        let mut batch = Batch::new();
        delete(&mut batch, gone());
        if !batch.is_empty() {
            self.0.commit(batch)?;
        }
        Ok(gone().filter_map(Present::udp_port).collect())
    }

    /// The first entry that is not there.
    pub(crate) fn missing<'a>(&mut self, entries: &'a [Entry]) -> Result<Option<&'a Entry>, Error> {
        retrying(|| self.try_missing(entries)).map_err(failed("list rules"))
    }

    fn try_missing<'a>(&mut self, entries: &'a [Entry]) -> bosun_nft::Result<Option<&'a Entry>> {
        if !ruleset::is_complete(&mut self.0)? {
            return Ok(entries.first());
        }
        let present = self.present(&Kind::ALL)?;
        let there = |v4, (kind, element): &(Kind, Element<'_>)| {
            present.iter().any(|known| (known.kind, known.v4, known.key) == (*kind, v4, element.key))
        };
        Ok(entries.iter().find(|entry| !entry.elements().iter().all(|element| there(entry.v4(), element))))
    }

    fn present(&mut self, kinds: &[Kind]) -> bosun_nft::Result<Vec<Present>> {
        let mut found = Vec::new();
        for (kind, v4) in kinds.iter().flat_map(|kind| FAMILIES.map(|v4| (*kind, v4))) {
            let listed = self.0.elements(reference(kind, v4), |element| {
                found.push(Present {
                    kind,
                    v4,
                    key: ruleset::key(kind, v4, element.key),
                    key_end: element.key_end.map(|end| ruleset::key(kind, v4, end)),
                    owner: element.comment.unwrap_or_default().to_owned(),
                });
            });
            match listed {
                // There is no table before the first container.
                Err(error) if error.is_not_found() => {}
                other => other?,
            }
        }
        Ok(found)
    }

    fn forget_flows(&mut self, entries: &[Entry]) -> Result<(), Error> {
        let ports = entries.iter().filter_map(|entry| match entry {
            Entry::Port { protocol: conntrack::UDP, port, .. } => Some(*port),
            _ => None,
        });
        self.forget_udp(&ports.collect())
    }

    /// Deletes tracked UDP flows to these host ports, which would else go on to where they went.
    fn forget_udp(&mut self, ports: &BTreeSet<u16>) -> Result<(), Error> {
        if ports.is_empty() {
            return Ok(());
        }
        let stale = |flow: &conntrack::Flow| {
            flow.original.protocol == conntrack::UDP && ports.contains(&flow.original.destination_port)
        };
        conntrack::delete(&mut self.0, stale).map(drop).map_err(failed("delete stale UDP connections"))
    }
}

impl Present {
    /// The host's port, of a UDP mapping.
    fn udp_port(&self) -> Option<u16> {
        let bytes = self.key.as_slice();
        let at = if self.v4 { 4 } else { 16 };
        let port = bytes.get(at + 4..at + 6)?.first_chunk()?;
        (self.kind == Kind::Ports && bytes[at] == conntrack::UDP).then(|| u16::from_be_bytes(*port))
    }
}

fn delete<'a>(batch: &mut Batch, gone: impl IntoIterator<Item = &'a Present>) {
    let mut sets: BTreeMap<(Kind, bool), Vec<Element<'static>>> = BTreeMap::new();
    for present in gone {
        let element = Element { key_end: present.key_end, data: ElementData::None, ..Element::new(present.key) };
        sets.entry((present.kind, present.v4)).or_default().push(element);
    }
    for ((kind, v4), elements) in sets {
        batch.delete_elements(reference(kind, v4), elements);
    }
}
