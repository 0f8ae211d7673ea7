//! bridge: a veth pair between the container and a bridge on the host.

mod config;
mod decide;
mod verify;

pub use config::Config;
pub use decide::{Observed, Plan, plan};

use crate::{
    Attachment, Call, Code, Error, Netlink, NetnsFd, Plugin,
    error::Failures,
    ipam,
    nat::{Entry, Kind, Nat},
    plan::{Kernel, Place, fnv1a},
    result::CniResult,
};

pub(crate) struct Bridge;

/// The start of the alias by which GC finds the veths of a network.
fn alias_prefix(network: &str) -> String {
    format!("bosun-cni/{network}/")
}

/// The alias of an attachment's veth; empty when it would be longer than the kernel takes.
#[must_use]
pub fn alias(network: &str, attachment: &Attachment) -> String {
    const LONGEST: usize = 255;
    Some(format!("{}{attachment}", alias_prefix(network))).filter(|alias| alias.len() <= LONGEST).unwrap_or_default()
}

/// The name of the veth's end on the host: a function of the attachment, so that DEL finds it without a namespace.
#[must_use]
pub fn host_veth(network: &str, attachment: &Attachment) -> String {
    let hash = fnv1a(format!("{network}/{attachment}").as_bytes());
    format!("veth{:010x}", hash >> 24)
}

impl Plugin for Bridge {
    fn add(&self, call: &Call) -> Result<CniResult, Error> {
        let config = Config::of(call)?;
        let mut kernel = Netlink::open(call.netns().map(NetnsFd::open).transpose()?)?;
        refuse_existing(call, &mut kernel)?;
        if !config.has_ipam() {
            return attach(call, &config, &mut kernel, CniResult::default());
        }
        let addresses = ipam::add(call)?;
        attach(call, &config, &mut kernel, addresses).map_err(|error| undo_ipam(call, error))
    }

    fn del(&self, call: &Call) -> Result<(), Error> {
        let config = Config::of(call)?;
        let mut failures = Failures::default();
        failures.note(detach(call));
        if config.ip_masq {
            failures.note(Nat::open().and_then(|mut nat| nat.remove(&call.conf.name, &call.attachment(), &MASQUERADE)));
        }
        if config.has_ipam() {
            failures.note(ipam::del(call));
        }
        failures.finish()
    }

    fn check(&self, call: &Call) -> Result<(), Error> {
        let config = Config::of(call)?;
        if config.has_ipam() {
            ipam::check(call)?;
        }
        let mut kernel = Netlink::open(call.netns().map(NetnsFd::open).transpose()?)?;
        verify::check(call, &config, &mut kernel)?;
        let entries = masquerade_entries(&config, call.required_prev_result()?);
        if entries.is_empty() {
            return Ok(());
        }
        match Nat::open()?.missing(&entries)? {
            Some(missing) => Err(Error::new(Code::Changed, format!("no rule to {missing}"))),
            None => Ok(()),
        }
    }

    fn gc(&self, call: &Call) -> Result<(), Error> {
        let config = Config::of(call)?;
        let mut failures = Failures::default();
        failures.note(remove_stale_links(call));
        if config.ip_masq {
            failures.note(remove_stale_masquerade(call));
        }
        if config.has_ipam() {
            failures.note(ipam::gc(call));
        }
        failures.finish()
    }

    fn status(&self, call: &Call) -> Result<(), Error> {
        let config = Config::of(call)?;
        if config.has_ipam() {
            ipam::status(call)?;
        }
        let bridge = Netlink::open(None)?.link(Place::Host, &config.bridge)?;
        match bridge {
            Some(link) if link.kind != "bridge" => {
                Err(Error::new(Code::NotAvailable, format!("{:?} already exists but is not a bridge", config.bridge)))
            }
            _ => Ok(()),
        }
    }
}

fn refuse_existing(call: &Call, kernel: &mut dyn Kernel) -> Result<(), Error> {
    let ifname = &call.environment.ifname;
    let host = host_veth(&call.conf.name, &call.attachment());
    let inside = kernel.link(Place::Container, ifname)?.is_some();
    if inside || kernel.link(Place::Host, &host)?.is_some() {
        let message = format!("container {} already has an interface {ifname}", call.environment.container_id);
        return Err(Error::new(Code::InvalidConfig, message));
    }
    Ok(())
}

/// Observes, decides and applies; takes down what it made when a step fails.
fn attach(call: &Call, config: &Config, kernel: &mut dyn Kernel, addresses: CniResult) -> Result<CniResult, Error> {
    let observed = observe(config, kernel)?;
    let mut plan = plan(call, config, addresses, &observed)?;
    let applied = kernel.apply(&plan.steps).and_then(|()| masquerade(call, config, &plan.result));
    if let Err(error) = applied {
        let undone = kernel.delete_link(Place::Host, &host_veth(&call.conf.name, &call.attachment()));
        return Err(match undone {
            Ok(_) => error,
            Err(left) => error.details(format!("and could not undo: {left}")),
        });
    }
    if observed.bridge.is_none()
        && let Some(bridge) = kernel.link(Place::Host, &config.bridge)?
    {
        plan.result.interfaces[0].mac = bridge.mac_text();
    }
    Ok(plan.result)
}

/// Entries by which what the container sends out of its network has the host's address.
fn masquerade_entries(config: &Config, result: &CniResult) -> Vec<Entry> {
    let entry =
        |ip: &crate::result::IpConfig| Entry::Masquerade { from: ip.address.addr(), inside: ip.address.trunc() };
    result.ips.iter().filter(|_| config.ip_masq).map(entry).collect()
}

const MASQUERADE: [Kind; 2] = [Kind::Inside, Kind::Masquerade];

fn masquerade(call: &Call, config: &Config, result: &CniResult) -> Result<(), Error> {
    match masquerade_entries(config, result) {
        entries if entries.is_empty() => Ok(()),
        entries => Nat::open()?.set(&call.conf.name, &call.attachment(), &MASQUERADE, &entries),
    }
}

fn observe(config: &Config, kernel: &mut dyn Kernel) -> Result<Observed, Error> {
    let bridge = kernel.link(Place::Host, &config.bridge)?;
    let addresses = match &bridge {
        Some(link) if config.is_gateway => kernel.addresses(Place::Host, link.index)?,
        _ => Vec::new(),
    };
    Ok(Observed { bridge, addresses })
}

fn undo_ipam(call: &Call, error: Error) -> Error {
    match ipam::del(call) {
        Ok(()) => error,
        Err(left) => {
            let details = format!("{}; and could not release the address: {left}", error.details);
            error.details(details.trim_start_matches("; "))
        }
    }
}

/// Removes the veth pair, by its name on the host or by the container's interface.
fn detach(call: &Call) -> Result<(), Error> {
    let mut host = Netlink::open(None)?;
    if host.delete_link(Place::Host, &host_veth(&call.conf.name, &call.attachment()))? {
        return Ok(());
    }
    // Another plugin's pair has another name. A namespace that is gone has taken it along.
    let Some(Ok(netns)) = call.netns().filter(|path| path.exists()).map(NetnsFd::open) else {
        return Ok(());
    };
    Netlink::open(Some(netns))?.delete_link(Place::Container, &call.environment.ifname).map(drop)
}

/// Removes the veths of this network whose attachment is gone.
fn remove_stale_links(call: &Call) -> Result<(), Error> {
    let valid = call.valid_attachments();
    let prefix = alias_prefix(&call.conf.name);
    let mut kernel = Netlink::open(None)?;
    let mut failures = Failures::default();
    for link in kernel.links_with_alias(&prefix)? {
        let Some((container_id, ifname)) = link.alias[prefix.len()..].rsplit_once('/') else {
            continue;
        };
        let attachment = Attachment { container_id: container_id.to_owned(), ifname: ifname.to_owned() };
        if !valid.contains(&attachment) {
            failures.note(kernel.delete_link(Place::Host, &link.name));
        }
    }
    failures.finish()
}

fn remove_stale_masquerade(call: &Call) -> Result<(), Error> {
    let valid = call.valid_attachments();
    Nat::open()?.collect(&call.conf.name, &MASQUERADE, |container, ifname| {
        valid.iter().any(|known| known.container_id == container && known.ifname == ifname)
    })
}
