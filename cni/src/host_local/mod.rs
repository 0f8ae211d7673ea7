//! host-local: gives addresses out of ranges and keeps each in a file.

mod config;
mod range;
mod store;

pub use config::{Config, Ipam};
pub use range::{Range, RangeSet};
pub use store::Store;

use crate::{
    Attachment, Call, Code, Error, Plugin,
    result::{CniResult, Dns, IpConfig},
};
use std::{net::IpAddr, path::Path};

pub(crate) struct HostLocal;

impl Plugin for HostLocal {
    fn add(&self, call: &Call) -> Result<CniResult, Error> {
        let config = Config::of(call)?;
        let dns = config.resolv_conf.as_deref().map(resolv_conf).transpose()?.unwrap_or_default();
        let mut wanted = config.requested.clone();
        let store = Store::open(&config.data_dir, &call.conf.name)?;
        let owner = call.attachment();
        let ips = allocate(&store, &config.sets, &owner, &mut wanted)?;
        if !wanted.is_empty() {
            store.release(&owner)?;
            let list: Vec<_> = wanted.iter().map(IpAddr::to_string).collect();
            return Err(Error::new(
                Code::InvalidConfig,
                format!("failed to allocate all requested IPs: {}", list.join(" ")),
            ));
        }
        Ok(CniResult { ips, routes: config.routes, dns, ..CniResult::default() })
    }

    fn del(&self, call: &Call) -> Result<(), Error> {
        let config = Config::of(call)?;
        match Store::existing(&config.data_dir, &call.conf.name)? {
            Some(store) => store.release(&call.attachment()),
            None => Ok(()),
        }
    }

    fn check(&self, call: &Call) -> Result<(), Error> {
        let config = Config::of(call)?;
        let owner = call.attachment();
        let store = Store::existing(&config.data_dir, &call.conf.name)?;
        match store.map(|store| store.addresses_of(&owner)).transpose()? {
            Some(addresses) if !addresses.is_empty() => Ok(()),
            _ => Err(Error::new(
                Code::Changed,
                format!("host-local: Failed to find address added by container {}", owner.container_id),
            )),
        }
    }

    fn gc(&self, call: &Call) -> Result<(), Error> {
        let config = Config::of(call)?;
        match Store::existing(&config.data_dir, &call.conf.name)? {
            Some(store) => store.retain(&call.valid_attachments()),
            None => Ok(()),
        }
    }

    fn status(&self, call: &Call) -> Result<(), Error> {
        let unavailable = |error: Error| Error::new(Code::NotAvailable, error.message).details(error.details);
        let config = Config::of(call).map_err(unavailable)?;
        let store = Store::open(&config.data_dir, &call.conf.name).map_err(unavailable)?;
        for set in &config.sets {
            if !set.candidates(None).any(|address| !store.is_taken(address)) {
                return Err(Error::new(Code::NotAvailable, format!("no IP addresses available in range set: {set}")));
            }
        }
        Ok(())
    }
}

/// One address of every set; on failure none is kept.
fn allocate(
    store: &Store,
    sets: &[RangeSet],
    owner: &Attachment,
    wanted: &mut Vec<IpAddr>,
) -> Result<Vec<IpConfig>, Error> {
    let lock = store.lock()?;
    if let Some(address) = store.hinted(owner).first() {
        return Err(Error::new(
            Code::InvalidConfig,
            format!("{address} has been allocated to {}, duplicate allocation is not allowed", owner.container_id),
        ));
    }
    let mut taken = Vec::with_capacity(sets.len());
    let outcome: Result<Vec<IpConfig>, Error> = sets
        .iter()
        .enumerate()
        .map(|(number, set)| {
            let request = wanted.iter().position(|address| set.contains(*address)).map(|at| wanted.swap_remove(at));
            let (address, range) = store.take(number, set, owner, request, &taken)?;
            taken.push(address);
            Ok(IpConfig { interface: None, address: range.with_prefix(address), gateway: range.gateway })
        })
        .collect();
    if outcome.is_err() {
        store.release_locked(owner, &taken)?;
    }
    drop(lock);
    outcome
}

/// The name service settings of a file in the format of `resolv.conf`.
fn resolv_conf(path: &Path) -> Result<Dns, Error> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::new(Code::Io, format!("read resolvConf {}: {error}", path.display())))?;
    let mut dns = Dns::default();
    for line in text.lines().map(str::trim) {
        let mut words = line.split_whitespace();
        let keyword = words.next().unwrap_or_default();
        match keyword {
            "nameserver" => dns.nameservers.extend(words.next().map(str::to_owned)),
            "domain" => dns.domain = words.next().unwrap_or_default().to_owned(),
            "search" => dns.search.extend(words.map(str::to_owned)),
            "options" => dns.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    Ok(dns)
}
