//! Ranges of addresses and the order in which they are given.

use ipnet::IpNet;
use serde::Deserialize;
use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

/// A range as it is configured.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RangeConfig {
    pub(crate) subnet: Option<IpNet>,
    pub(crate) range_start: Option<IpAddr>,
    pub(crate) range_end: Option<IpAddr>,
    pub(crate) gateway: Option<IpAddr>,
}

/// A range with every default filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The subnet whose prefix length the addresses get.
    pub subnet: IpNet,
    /// The first address to give.
    pub start: IpAddr,
    /// The last address to give.
    pub end: IpAddr,
    /// The gateway, which is never given.
    pub gateway: Option<IpAddr>,
}

/// Ranges of one family of which a container gets one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet(pub Vec<Range>);

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

fn address(number: u128, v4: bool) -> IpAddr {
    match u32::try_from(number) {
        Ok(number) if v4 => IpAddr::V4(number.into()),
        _ => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

impl RangeConfig {
    /// Fills in the defaults and validates.
    pub(crate) fn canonical(&self) -> Result<Range, String> {
        let subnet = self.subnet.ok_or("invalid range: no subnet")?;
        if subnet != subnet.trunc() {
            return Err(format!(
                "Network has host bits set. For a subnet mask of length {} the network address is {}",
                subnet.prefix_len(),
                subnet.network()
            ));
        }
        if subnet.prefix_len() + 2 > subnet.max_prefix_len() {
            return Err(format!("Network {subnet} too small to allocate from"));
        }
        let v4 = subnet.addr().is_ipv4();
        let first = address(number(subnet.network()) + 1, v4);
        // The last address of an IPv4 subnet is its broadcast address.
        let last = address(number(subnet.broadcast()) - u128::from(v4), v4);
        let inside = |name: &str, value: Option<IpAddr>, default: IpAddr| match value {
            Some(value) if !subnet.contains(&value) => Err(format!("{name} {value} not in network {subnet}")),
            value => Ok(value.unwrap_or(default)),
        };
        let range = Range {
            subnet,
            start: inside("RangeStart", self.range_start, first)?,
            end: inside("RangeEnd", self.range_end, last)?,
            gateway: Some(self.gateway.unwrap_or(first)),
        };
        if number(range.start) > number(range.end) {
            return Err(format!("RangeStart {} is after RangeEnd {}", range.start, range.end));
        }
        Ok(range)
    }
}

impl Range {
    /// Whether the range gives `address`.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.start.is_ipv4() && (number(self.start)..=number(self.end)).contains(&number(address))
    }

    /// The address with the subnet's prefix length.
    #[must_use]
    pub fn with_prefix(&self, address: IpAddr) -> IpNet {
        // The subnet's own length fits its family, and ranges hold one family.
        IpNet::new(address, self.subnet.prefix_len()).unwrap_or_else(|_| address.into())
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.subnet.addr().is_ipv4() == other.subnet.addr().is_ipv4()
            && number(self.start) <= number(other.end)
            && number(other.start) <= number(self.end)
    }
}

impl RangeSet {
    /// Validates the ranges as a set.
    pub(crate) fn new(configs: &[RangeConfig]) -> Result<Self, String> {
        if configs.is_empty() {
            return Err("empty range set".to_owned());
        }
        let ranges = configs.iter().map(RangeConfig::canonical).collect::<Result<Vec<_>, _>>()?;
        let v4 = ranges[0].subnet.addr().is_ipv4();
        if ranges.iter().any(|range| range.subnet.addr().is_ipv4() != v4) {
            return Err("mixed address families".to_owned());
        }
        let set = Self(ranges);
        for (at, range) in set.0.iter().enumerate() {
            if let Some(other) = set.0[..at].iter().find(|other| other.overlaps(range)) {
                return Err(format!("subnets {}-{} and {}-{} overlap", other.start, other.end, range.start, range.end));
            }
        }
        Ok(set)
    }

    /// Whether two sets would give the same address.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().any(|range| other.0.iter().any(|theirs| range.overlaps(theirs)))
    }

    /// Whether a range of the set gives `address`.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.range_of(address).is_some()
    }

    /// The range that gives `address`.
    #[must_use]
    pub fn range_of(&self, address: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.contains(address))
    }

    /// Every address once, but gateways, beginning after `last` and going round.
    pub fn candidates(&self, last: Option<IpAddr>) -> impl Iterator<Item = IpAddr> {
        let begin = last.and_then(|last| Some((self.0.iter().position(|range| range.contains(last))?, number(last))));
        let (at, after) = begin.map_or((0, None), |(at, last)| (at, Some(last)));
        let rest = move |range: &Range| after.map_or(number(range.start), |last| last + 1)..=number(range.end);
        let head = after.map(|last| number(self.0[at].start)..=last);
        let others = self.0[at + 1..].iter().chain(&self.0[..at]).map(|range| number(range.start)..=number(range.end));
        let v4 = self.0[0].subnet.addr().is_ipv4();
        std::iter::once(rest(&self.0[at]))
            .chain(others)
            .chain(head)
            .flatten()
            .map(move |number| address(number, v4))
            .filter(|address| self.range_of(*address).is_some_and(|range| range.gateway != Some(*address)))
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, range) in self.0.iter().enumerate() {
            write!(f, "{}{}-{}", if at > 0 { "," } else { "" }, range.start, range.end)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(json: &str) -> Result<RangeSet, String> {
        RangeSet::new(&serde_json::from_str::<Vec<RangeConfig>>(json).unwrap())
    }

    fn given(set: &RangeSet, last: Option<&str>) -> String {
        let list: Vec<_> = set.candidates(last.map(|last| last.parse().unwrap())).map(|ip| ip.to_string()).collect();
        list.join(" ")
    }

    #[test]
    fn gives_every_address_once_and_goes_round() {
        let plain = set(r#"[{"subnet":"10.0.0.0/29"}]"#).unwrap();
        assert_eq!(given(&plain, None), "10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5 10.0.0.6");
        assert_eq!(given(&plain, Some("10.0.0.4")), "10.0.0.5 10.0.0.6 10.0.0.2 10.0.0.3 10.0.0.4");
        assert_eq!(given(&plain, Some("10.0.0.6")), "10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5 10.0.0.6");
        assert_eq!(given(&plain, Some("192.168.0.1")), given(&plain, None));
        let two = set(r#"[{"subnet":"10.0.0.0/29","rangeStart":"10.0.0.3","rangeEnd":"10.0.0.4","gateway":"10.0.0.6"},
                {"subnet":"10.1.0.0/30"}]"#)
        .unwrap();
        assert_eq!(given(&two, None), "10.0.0.3 10.0.0.4 10.1.0.2");
        assert_eq!(given(&two, Some("10.0.0.4")), "10.1.0.2 10.0.0.3 10.0.0.4");
        assert_eq!(given(&two, Some("10.1.0.2")), "10.0.0.3 10.0.0.4 10.1.0.2");
        assert_eq!(given(&set(r#"[{"subnet":"fd00::/126"}]"#).unwrap(), None), "fd00::2 fd00::3");
    }

    #[test]
    fn bad_ranges_are_named() {
        for (json, message) in [
            ("[]", "empty range set"),
            (
                r#"[{"subnet":"10.0.0.1/24"}]"#,
                "Network has host bits set. For a subnet mask of length 24 the network address is 10.0.0.0",
            ),
            (r#"[{"subnet":"10.0.0.0/31"}]"#, "Network 10.0.0.0/31 too small to allocate from"),
            (r#"[{"subnet":"10.0.0.0/24","rangeStart":"10.0.1.1"}]"#, "RangeStart 10.0.1.1 not in network 10.0.0.0/24"),
            (
                r#"[{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.9","rangeEnd":"10.0.0.8"}]"#,
                "RangeStart 10.0.0.9 is after RangeEnd 10.0.0.8",
            ),
            (r#"[{"subnet":"10.0.0.0/24"},{"subnet":"fd00::/64"}]"#, "mixed address families"),
            (
                r#"[{"subnet":"10.0.0.0/24"},{"subnet":"10.0.0.128/25"}]"#,
                "subnets 10.0.0.1-10.0.0.254 and 10.0.0.129-10.0.0.254 overlap",
            ),
        ] {
            assert_eq!(set(json).unwrap_err(), message);
        }
    }
}
