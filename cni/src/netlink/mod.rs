//! The kernel's side of [`Kernel`]: rtnetlink over a blocking socket for each namespace.

mod encode;
mod parse;
mod socket;

use crate::{
    Code, Error,
    plan::{Kernel, KernelRoute, Link, Place, Step},
};
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use nix::sched::{CloneFlags, setns};
use socket::{Refusal, Socket};
use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::MetadataExt,
    },
    path::Path,
};

/// An open network namespace.
#[derive(Debug)]
pub struct NetnsFd(File);

impl NetnsFd {
    /// Opens the namespace at `path`.
    ///
    /// # Errors
    /// When it cannot be opened, or is the one this process is in.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |error: io::Error| {
            Error::new(Code::UnknownContainer, format!("failed to open netns {:?}", path.display()))
                .details(error.to_string())
        };
        let file = File::open(path).map_err(failed)?;
        let (theirs, ours) = (file.metadata().map_err(failed)?, std::fs::metadata(OURS).map_err(failed)?);
        if (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()) {
            return Err(Error::new(
                Code::InvalidEnvironment,
                format!("CNI_NETNS {:?} is the plugin's own network namespace", path.display()),
            ));
        }
        Ok(Self(file))
    }

    fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Runs `work` with this thread in the namespace.
    fn within<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let home = File::open(OURS)?;
        setns(&self.0, CloneFlags::CLONE_NEWNET)?;
        let outcome = work();
        setns(&home, CloneFlags::CLONE_NEWNET)?;
        outcome
    }
}

/// This thread's network namespace.
const OURS: &str = "/proc/thread-self/ns/net";

/// Rtnetlink in the host's and, where there is one, the container's namespace.
#[derive(Debug)]
pub struct Netlink {
    host: Socket,
    container: Option<(NetnsFd, Socket)>,
    /// Indices of links that were looked up.
    indices: Vec<(Place, String, u32)>,
}

impl Netlink {
    /// Opens the sockets.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub fn open(container: Option<NetnsFd>) -> Result<Self, Error> {
        let failed = |error: io::Error| Error::new(Code::Kernel, "open a netlink socket").details(error.to_string());
        let host = Socket::open().map_err(failed)?;
        let container = match container {
            Some(netns) => {
                let socket = netns.within(Socket::open).map_err(failed)?;
                Some((netns, socket))
            }
            None => None,
        };
        Ok(Self { host, container, indices: Vec::new() })
    }

    fn socket(&mut self, place: Place) -> Result<&mut Socket, Error> {
        match place {
            Place::Host => Ok(&mut self.host),
            Place::Container => match &mut self.container {
                Some((_, socket)) => Ok(socket),
                None => Err(Error::new(Code::InvalidEnvironment, "no network namespace was given")),
            },
        }
    }

    fn index(&mut self, place: Place, name: &str) -> Result<u32, Error> {
        if let Some((.., index)) = self.indices.iter().find(|(at, known, _)| (*at, known.as_str()) == (place, name)) {
            return Ok(*index);
        }
        let link = self.link(place, name)?;
        link.map(|link| link.index).ok_or_else(|| Error::new(Code::Kernel, format!("no link {name} in the {place}")))
    }

    fn sysctl(&self, place: Place, key: &str, value: &str) -> Result<(), Error> {
        let path = format!("/proc/sys/{key}");
        let write = || {
            let now = std::fs::read_to_string(&path)?;
            if now.trim() == value { Ok(()) } else { std::fs::write(&path, value) }
        };
        match (place, &self.container) {
            (Place::Container, Some((netns, _))) => netns.within(write),
            _ => write(),
        }
        .map_err(|error| Error::new(Code::Kernel, format!("{place}: set {path} to {value}")).details(error.to_string()))
    }

    /// The message of a step; needs the index of links that the step names.
    fn encode(&mut self, step: &Step) -> Result<Option<(Place, RouteNetlinkMessage, u16)>, Error> {
        let fresh = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        Ok(Some(match step {
            Step::CreateBridge { name, mac, mtu } => (Place::Host, encode::bridge(name, *mac, *mtu), fresh),
            Step::CreateVeth { host, host_mac, peer, peer_mac, mtu, bridge } => {
                let bridge = self.index(Place::Host, bridge)?;
                let netns = self.container.as_ref().map_or(-1, |(netns, _)| netns.raw());
                let pair = encode::Pair { host, host_mac: *host_mac, peer, peer_mac: *peer_mac, mtu: *mtu };
                (Place::Host, encode::veth(&pair, bridge, netns), fresh)
            }
            Step::Port { link, hairpin, isolated, alias } => {
                (Place::Host, encode::port(link, *hairpin, *isolated, alias), NLM_F_ACK)
            }
            Step::Promiscuous { link } => (Place::Host, encode::promiscuous(link), NLM_F_ACK),
            Step::AddAddress { place, link, address, dad } => {
                let index = self.index(*place, link)?;
                (*place, RouteNetlinkMessage::NewAddress(encode::address(index, *address, *dad)), fresh)
            }
            Step::DeleteAddress { place, link, address } => {
                let index = self.index(*place, link)?;
                (*place, RouteNetlinkMessage::DelAddress(encode::address(index, *address, true)), NLM_F_ACK)
            }
            Step::Announce { place, link } => (*place, encode::announce(link), NLM_F_ACK),
            Step::Up { place, link } => (*place, encode::set_up(link, true), NLM_F_ACK),
            Step::Down { place, link } => (*place, encode::set_up(link, false), NLM_F_ACK),
            Step::AddRoute { place, link, route } => {
                let index = self.index(*place, link)?;
                (*place, encode::route(index, route), fresh)
            }
            Step::Sysctl { .. } => return Ok(None),
        }))
    }

    /// Sends what is pending as one batch.
    fn flush(&mut self, pending: &mut Pending) -> Result<(), Error> {
        if pending.steps.is_empty() {
            return Ok(());
        }
        let answers = self.socket(pending.place)?.batch(&pending.messages);
        let steps = std::mem::take(&mut pending.steps);
        pending.messages.clear();
        let answers = answers.map_err(|error| kernel(format!("{}", steps[0]), &Refusal::from(error)))?;
        for (step, answer) in steps.iter().zip(answers) {
            match answer {
                Err(refusal) if !harmless(step, &refusal) => {
                    return Err(kernel(step.to_string(), &refusal));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Messages of neighbouring steps that go to one socket in one system call.
struct Pending<'a> {
    place: Place,
    steps: Vec<&'a Step>,
    messages: Vec<(RouteNetlinkMessage, u16)>,
}

/// Whether the step names a link that an earlier step of the batch makes.
fn needs_flush(pending: &Pending<'_>, step: &Step) -> bool {
    let creates = pending.steps.iter().any(|step| matches!(step, Step::CreateBridge { .. } | Step::CreateVeth { .. }));
    creates
        && !matches!(
            step,
            Step::Port { .. } | Step::Promiscuous { .. } | Step::Announce { .. } | Step::Up { .. } | Step::Down { .. }
        )
}

/// What exists already is what the step wanted, where others may have made it meanwhile.
fn harmless(step: &Step, refusal: &Refusal) -> bool {
    let shared =
        matches!(step, Step::CreateBridge { .. } | Step::AddAddress { place: Place::Host, .. } | Step::AddRoute { .. });
    let gone = matches!(step, Step::DeleteAddress { .. });
    (shared && refusal.errno == libc::EEXIST) || (gone && refusal.errno == libc::EADDRNOTAVAIL)
}

fn kernel(what: String, refusal: &Refusal) -> Error {
    let code = if refusal.errno == libc::EBUSY { Code::TryAgainLater } else { Code::Kernel };
    Error::new(code, what).details(refusal.to_string())
}

impl Kernel for Netlink {
    fn link(&mut self, place: Place, name: &str) -> Result<Option<Link>, Error> {
        let socket = self.socket(place)?;
        match socket.get(encode::get_link(name), 0) {
            Ok(answers) => {
                let link = answers.iter().find_map(|answer| parse::link(answer));
                self.indices.extend(link.iter().map(|link| (place, name.to_owned(), link.index)));
                Ok(link)
            }
            Err(refusal) if matches!(refusal.errno, libc::ENODEV | libc::ENXIO) => Ok(None),
            Err(refusal) => Err(kernel(format!("{place}: look up link {name}"), &refusal)),
        }
    }

    fn links_with_alias(&mut self, prefix: &str) -> Result<Vec<Link>, Error> {
        let answers = self.host.get(encode::list_links(), NLM_F_DUMP).map_err(|e| kernel("list links".into(), &e))?;
        Ok(answers.iter().filter_map(|a| parse::link(a)).filter(|link| link.alias.starts_with(prefix)).collect())
    }

    fn addresses(&mut self, place: Place, index: u32) -> Result<Vec<IpNet>, Error> {
        let answers = self
            .socket(place)?
            .get(encode::list_addresses(index), NLM_F_DUMP)
            .map_err(|refusal| kernel(format!("{place}: list addresses"), &refusal))?;
        Ok(answers.iter().filter_map(|answer| parse::address(answer, index)).collect())
    }

    fn routes(&mut self, place: Place, index: u32) -> Result<Vec<KernelRoute>, Error> {
        let answers = self
            .socket(place)?
            .get(encode::list_routes(), NLM_F_DUMP)
            .map_err(|refusal| kernel(format!("{place}: list routes"), &refusal))?;
        Ok(answers.iter().filter_map(|answer| parse::route(answer)).filter(|route| route.link == index).collect())
    }

    fn apply(&mut self, steps: &[Step]) -> Result<(), Error> {
        let mut pending = Pending { place: Place::Host, steps: Vec::new(), messages: Vec::new() };
        for step in steps {
            if needs_flush(&pending, step) {
                self.flush(&mut pending)?;
            }
            match self.encode(step)? {
                Some((place, message, flags)) => {
                    if place != pending.place {
                        self.flush(&mut pending)?;
                        pending.place = place;
                    }
                    pending.steps.push(step);
                    pending.messages.push((message, flags));
                }
                None => {
                    self.flush(&mut pending)?;
                    if let Step::Sysctl { place, key, value } = step {
                        self.sysctl(*place, key, value)?;
                    }
                }
            }
        }
        self.flush(&mut pending)
    }

    fn delete_link(&mut self, place: Place, name: &str) -> Result<bool, Error> {
        self.indices.clear();
        let answers = self.socket(place)?.batch(&[(encode::delete_link(name), NLM_F_ACK)]);
        let what = || format!("{place}: delete link {name}");
        match answers.map_err(|error| kernel(what(), &Refusal::from(error)))?.into_iter().next() {
            Some(Err(refusal)) if matches!(refusal.errno, libc::ENODEV | libc::ENXIO) => Ok(false),
            Some(Err(refusal)) => Err(kernel(what(), &refusal)),
            _ => Ok(true),
        }
    }
}
