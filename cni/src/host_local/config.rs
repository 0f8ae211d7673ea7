//! host-local's configuration: the keys of `ipam`, and addresses and ranges that the runtime asks for.

use super::range::{RangeConfig, RangeSet};
use crate::{Call, Code, Error, result::Route};
use serde::Deserialize;
use std::{net::IpAddr, path::PathBuf};

const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

/// The configuration with every source merged.
#[derive(Clone, Debug)]
pub struct Config {
    /// Of each set an attachment gets one address.
    pub sets: Vec<RangeSet>,
    /// Routes for the result.
    pub routes: Vec<Route>,
    /// Where the networks' folders are.
    pub data_dir: PathBuf,
    /// A `resolv.conf` to hand to the container.
    pub resolv_conf: Option<PathBuf>,
    /// Addresses that were asked for.
    pub requested: Vec<IpAddr>,
}

/// The `ipam` object.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ipam {
    ranges: Option<Vec<Vec<RangeConfig>>>,
    subnet: Option<ipnet::IpNet>,
    range_start: Option<IpAddr>,
    range_end: Option<IpAddr>,
    gateway: Option<IpAddr>,
    routes: Option<Vec<Route>>,
    data_dir: String,
    resolv_conf: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Document {
    ipam: Option<Ipam>,
    runtime_config: RuntimeConfig,
    args: Args,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RuntimeConfig {
    ip_ranges: Option<Vec<Vec<RangeConfig>>>,
    ips: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Args {
    cni: CniArgs,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct CniArgs {
    ips: Option<Vec<String>>,
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(Code::InvalidConfig, message)
}

impl Config {
    /// Reads it from a call's configuration and `CNI_ARGS`.
    ///
    /// # Errors
    /// The first key that is wrong.
    pub fn of(call: &Call) -> Result<Self, Error> {
        let document: Document = call.config()?;
        let ipam = document.ipam.ok_or_else(|| invalid("IPAM config missing 'ipam' key"))?;
        let sets = range_sets(&ipam, document.runtime_config.ip_ranges.unwrap_or_default())?;
        let mut requested = Vec::new();
        let by_env = call.environment.arg("IP").unwrap_or_default().split(',').map(str::to_owned);
        let by_args = document.args.cni.ips.into_iter().chain(document.runtime_config.ips).flatten();
        for text in by_env.chain(by_args).filter(|text| !text.is_empty()) {
            // A prefix length may be there; the range knows it.
            let address = text.split('/').next().unwrap_or_default().parse();
            requested.push(address.map_err(|_| invalid(format!("invalid IP address {text:?} requested")))?);
        }
        Ok(Self {
            sets,
            routes: ipam.routes.unwrap_or_default(),
            data_dir: if ipam.data_dir.is_empty() { DEFAULT_DATA_DIR.into() } else { ipam.data_dir.into() },
            resolv_conf: Some(ipam.resolv_conf).filter(|path| !path.is_empty()).map(PathBuf::from),
            requested,
        })
    }
}

/// The runtime's ranges come first, then the single range of the old form, then `ranges`.
fn range_sets(ipam: &Ipam, runtime: Vec<Vec<RangeConfig>>) -> Result<Vec<RangeSet>, Error> {
    let single = ipam.subnet.map(|subnet| {
        vec![RangeConfig {
            subnet: Some(subnet),
            range_start: ipam.range_start,
            range_end: ipam.range_end,
            gateway: ipam.gateway,
        }]
    });
    let configs: Vec<_> = runtime.into_iter().chain(single).chain(ipam.ranges.clone().unwrap_or_default()).collect();
    if configs.is_empty() {
        return Err(invalid("no IP ranges specified"));
    }
    let sets = configs
        .iter()
        .enumerate()
        .map(|(number, set)| {
            RangeSet::new(set).map_err(|error| invalid(format!("invalid range set {number}: {error}")))
        })
        .collect::<Result<Vec<_>, _>>()?;
    for (number, set) in sets.iter().enumerate() {
        if let Some(other) = sets[..number].iter().position(|other| other.overlaps(set)) {
            return Err(invalid(format!("range set {other} overlaps with {number}")));
        }
    }
    Ok(sets)
}
