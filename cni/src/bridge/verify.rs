//! CHECK: is everything as ADD's result says.

use super::{Config, host_veth};
use crate::{
    Call, Code, Error,
    plan::{Kernel, Link, Place},
    result::{CniResult, Interface},
};

fn changed(message: String) -> Error {
    Error::new(Code::Changed, message)
}

pub(super) fn check(call: &Call, config: &Config, kernel: &mut dyn Kernel) -> Result<(), Error> {
    let result = call.required_prev_result()?;
    let bridge = expect_link(kernel, Place::Host, interface(result, &config.bridge)?)?;
    if bridge.kind != "bridge" || !bridge.up {
        return Err(changed(format!("{} is no bridge that is up", config.bridge)));
    }
    check_port(call, config, result, kernel, &bridge)?;
    if config.disable_container_interface {
        return Ok(());
    }
    let inside = result.interfaces.iter().find(|i| i.name == call.environment.ifname && !i.sandbox.is_empty());
    let inside = inside.ok_or_else(|| changed(format!("prevResult has no interface {}", call.environment.ifname)))?;
    let link = expect_link(kernel, Place::Container, inside)?;
    if !link.up {
        return Err(changed(format!("{} in the container is down", link.name)));
    }
    check_addresses(result, kernel, &link)?;
    check_routes(result, kernel, &link)?;
    if config.is_gateway { check_gateways(result, kernel, &bridge) } else { Ok(()) }
}

fn interface<'a>(result: &'a CniResult, name: &str) -> Result<&'a Interface, Error> {
    let found = result.interfaces.iter().find(|interface| interface.name == name && interface.sandbox.is_empty());
    found.ok_or_else(|| changed(format!("prevResult has no interface {name}")))
}

fn expect_link(kernel: &mut dyn Kernel, place: Place, expected: &Interface) -> Result<Link, Error> {
    let name = &expected.name;
    let link = kernel.link(place, name)?.ok_or_else(|| changed(format!("no link {name} in the {place}")))?;
    if !expected.mac.is_empty() && link.mac_text() != expected.mac.to_lowercase() {
        return Err(changed(format!("{name} in the {place} has MAC {}, not {}", link.mac_text(), expected.mac)));
    }
    Ok(link)
}

/// The pair's end on the host; another plugin that made it gave it another name.
fn check_port(
    call: &Call,
    config: &Config,
    result: &CniResult,
    kernel: &mut dyn Kernel,
    bridge: &Link,
) -> Result<(), Error> {
    let ours = host_veth(&call.conf.name, &call.attachment());
    let on_host = |i: &&Interface| i.sandbox.is_empty() && i.name != config.bridge;
    let name = result.interfaces.iter().find(on_host).map_or(ours, |interface| interface.name.clone());
    let port = expect_link(kernel, Place::Host, interface(result, &name)?)?;
    if port.bridge != Some(bridge.index) {
        return Err(changed(format!("{name} is no port of {}", bridge.name)));
    }
    if port.hairpin != config.hairpin_mode {
        return Err(changed(format!("{name} has hairpin mode {}, not {}", port.hairpin, config.hairpin_mode)));
    }
    if !port.up {
        return Err(changed(format!("{name} is down")));
    }
    Ok(())
}

fn check_addresses(result: &CniResult, kernel: &mut dyn Kernel, link: &Link) -> Result<(), Error> {
    let present = kernel.addresses(Place::Container, link.index)?;
    match result.ips.iter().find(|ip| !present.contains(&ip.address)) {
        Some(missing) => Err(changed(format!("{} has no address {}", link.name, missing.address))),
        None => Ok(()),
    }
}

fn check_routes(result: &CniResult, kernel: &mut dyn Kernel, link: &Link) -> Result<(), Error> {
    let present = kernel.routes(Place::Container, link.index)?;
    let main = u32::from(libc::RT_TABLE_MAIN);
    let expected = result.routes.iter().filter(|route| route.table.is_none_or(|table| table == main));
    for route in expected {
        let same = |there: &&crate::plan::KernelRoute| {
            there.dst.trunc() == route.dst.trunc() && (route.gw.is_none() || there.gw == route.gw)
        };
        if !present.iter().any(|there| same(&there)) {
            return Err(changed(format!("{} has no route to {}", link.name, route.dst)));
        }
    }
    Ok(())
}

fn check_gateways(result: &CniResult, kernel: &mut dyn Kernel, bridge: &Link) -> Result<(), Error> {
    let present = kernel.addresses(Place::Host, bridge.index)?;
    match result.ips.iter().filter_map(|ip| ip.gateway).find(|gw| !present.iter().any(|net| net.addr() == *gw)) {
        Some(missing) => Err(changed(format!("{} has no address {missing}", bridge.name))),
        None => Ok(()),
    }
}
