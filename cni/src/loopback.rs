//! loopback: brings `lo` up.

use crate::{
    Call, Code, Error, Netlink, NetnsFd, Plugin,
    plan::{Kernel, Place, Step},
    result::{CniResult, Interface, IpConfig},
};
use std::path::Path;

pub(crate) struct Loopback;

/// The loopback interface's one name.
const LO: &str = "lo";

fn open(netns: Option<&Path>) -> Result<Netlink, Error> {
    Netlink::open(netns.map(NetnsFd::open).transpose()?)
}

impl Plugin for Loopback {
    fn add(&self, call: &Call) -> Result<CniResult, Error> {
        let mut kernel = open(call.netns())?;
        kernel.apply(&[Step::Up { place: Place::Container, link: LO.to_owned() }])?;
        if let Some(previous) = &call.prev_result {
            return Ok(previous.clone());
        }
        let sandbox = call.netns().map(|path| path.display().to_string()).unwrap_or_default();
        let link = kernel.link(Place::Container, LO)?.unwrap_or_default();
        let addresses = kernel.addresses(Place::Container, link.index)?;
        Ok(CniResult {
            interfaces: vec![Interface { name: LO.to_owned(), mac: link.mac_text(), sandbox, ..Interface::default() }],
            ips: addresses.into_iter().map(|address| IpConfig { interface: Some(0), address, gateway: None }).collect(),
            ..CniResult::default()
        })
    }

    fn del(&self, call: &Call) -> Result<(), Error> {
        // A namespace that is gone has taken its loopback with it.
        let Some(netns) = call.netns().filter(|path| path.exists()) else {
            return Ok(());
        };
        match open(Some(netns)) {
            Ok(mut kernel) => kernel.apply(&[Step::Down { place: Place::Container, link: LO.to_owned() }]),
            Err(error) if error.code == Code::UnknownContainer as u32 => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn check(&self, call: &Call) -> Result<(), Error> {
        match open(call.netns())?.link(Place::Container, LO)? {
            Some(link) if link.up => Ok(()),
            _ => Err(Error::new(Code::Changed, "loopback interface is down")),
        }
    }

    fn gc(&self, _: &Call) -> Result<(), Error> {
        Ok(())
    }

    fn status(&self, _: &Call) -> Result<(), Error> {
        Ok(())
    }
}
