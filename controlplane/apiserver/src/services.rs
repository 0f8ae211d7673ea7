//! Cluster addresses and node ports of Services.
//!
//! What is taken is read from the Services themselves when the server starts, so it can never disagree with them; an
//! address is held in memory from when it is chosen until the write that carries it is durable or has failed.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

use bosun_api::resource::Resource;
use bosun_api::status::ApiError;
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::StatusCause;
use rand::Rng;
use serde_json::{Value, json};

/// The addresses and ports that may be given out.
#[derive(Debug)]
pub(crate) struct Services {
    cidrs: Vec<IpNet>,
    ports: RangeInclusive<u16>,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    addresses: HashSet<IpAddr>,
    /// Ports with the protocols that use them.
    ports: HashMap<u16, HashSet<String>>,
}

/// Addresses and ports that were taken for a write. They are given back unless the write is [kept](Held::keep).
#[derive(Debug, Default)]
#[must_use]
pub(crate) struct Held {
    taken: Option<Arc<Mutex<Taken>>>,
    addresses: Vec<IpAddr>,
    ports: Vec<(u16, String)>,
    /// What the write gives up.
    freed_addresses: Vec<IpAddr>,
    freed_ports: Vec<(u16, String)>,
}

impl Held {
    /// The write is durable.
    pub(crate) fn keep(mut self) {
        self.addresses = std::mem::take(&mut self.freed_addresses);
        self.ports = std::mem::take(&mut self.freed_ports);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(taken) = &self.taken else { return };
        let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        for address in &self.addresses {
            taken.addresses.remove(address);
        }
        for (port, protocol) in &self.ports {
            taken.free_port(*port, protocol);
        }
    }
}

impl Taken {
    fn take_port(&mut self, port: u16, protocol: &str) -> bool {
        self.ports.entry(port).or_default().insert(protocol.to_owned())
    }

    fn free_port(&mut self, port: u16, protocol: &str) {
        if let Some(protocols) = self.ports.get_mut(&port) {
            protocols.remove(protocol);
            if protocols.is_empty() {
                self.ports.remove(&port);
            }
        }
    }

    /// A free address: the upper part of the range first, the lower one is left for those who name theirs.
    fn free_address(&self, cidr: IpNet) -> Option<IpAddr> {
        let size: u128 = match cidr {
            IpNet::V4(net) => 1u128 << (32 - net.prefix_len()),
            IpNet::V6(net) => 1u128.checked_shl(u32::from(128 - net.prefix_len())).unwrap_or(u128::MAX).min(1 << 20),
        };
        // Neither the network's own address nor, in IPv4, the broadcast address.
        let usable = size.saturating_sub(if matches!(cidr, IpNet::V4(_)) { 2 } else { 1 });
        if usable == 0 {
            return None;
        }
        let band = (size / 16).clamp(16, 256).min(usable);
        let upper = usable - band;
        let mut rng = rand::rng();
        let mut scan = |from: u128, count: u128| {
            let start = if count > 0 { rng.random_range(0..count) } else { 0 };
            (0..count).map(|i| at(cidr, 1 + from + (start + i) % count)).find(|ip| !self.addresses.contains(ip))
        };
        scan(band, upper).or_else(|| scan(0, band))
    }

    fn free_node_port(&self, ports: &RangeInclusive<u16>) -> Option<u16> {
        let (low, high) = (u32::from(*ports.start()), u32::from(*ports.end()));
        let count = high.checked_sub(low)? + 1;
        let band = (count / 32).clamp(16, 128).min(count);
        let mut rng = rand::rng();
        let mut scan = |from: u32, count: u32| {
            let start = if count > 0 { rng.random_range(0..count) } else { 0 };
            let port = |i: u32| u16::try_from(low + from + (start + i) % count).unwrap_or(u16::MAX);
            (0..count).map(port).find(|port| !self.ports.contains_key(port))
        };
        scan(band, count - band).or_else(|| scan(0, band))
    }
}

fn at(cidr: IpNet, offset: u128) -> IpAddr {
    match cidr {
        IpNet::V4(net) => IpAddr::from((u32::from(net.network()).wrapping_add(offset as u32)).to_be_bytes()),
        IpNet::V6(net) => IpAddr::from((u128::from(net.network()).wrapping_add(offset)).to_be_bytes()),
    }
}

impl Services {
    pub(crate) fn new(cidrs: Vec<IpNet>, ports: RangeInclusive<u16>) -> Self {
        Self { cidrs, ports, taken: Arc::default() }
    }

    /// The address of the `kubernetes` Service: the first of the first range.
    pub(crate) fn first(&self) -> Option<IpAddr> {
        self.cidrs.first().map(|cidr| at(*cidr, 1))
    }

    /// Take note of a Service that exists.
    pub(crate) fn note(&self, service: &Value) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.addresses.extend(addresses(service));
        for (port, protocol) in node_ports(service) {
            taken.take_port(port, &protocol);
        }
    }

    /// A Service is gone.
    pub(crate) fn release(&self, resource: &Resource, service: &Value) {
        if !is_service(resource) {
            return;
        }
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        for address in addresses(service) {
            taken.addresses.remove(&address);
        }
        for (port, protocol) in node_ports(service) {
            taken.free_port(port, &protocol);
        }
    }

    /// Give a Service the addresses and ports that it needs and lacks, and hold those it names.
    ///
    /// # Errors
    /// 422 for an address or port that is taken or out of range, 500 when none is left.
    pub(crate) fn hold(&self, resource: &Resource, service: &mut Value, old: Option<&Value>) -> Result<Held, ApiError> {
        if !is_service(resource) {
            return Ok(Held::default());
        }
        if let Some(old) = old {
            carry_over(resource, service, old);
        }
        let before: HashSet<IpAddr> = old.map(|old| addresses(old).collect()).unwrap_or_default();
        let ports_before: HashSet<(u16, String)> = old.map(|old| node_ports(old).collect()).unwrap_or_default();
        let mut held = Held::default();
        held.taken = Some(self.taken.clone());
        {
            let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            let outcome = self
                .hold_addresses(&mut taken, service, &before, &mut held)
                .and_then(|()| self.hold_ports(&mut taken, service, &ports_before, &mut held));
            // The lock is taken again when what was held so far is given back.
            drop(taken);
            outcome?;
        }
        let after: HashSet<IpAddr> = addresses(service).collect();
        let ports_after: HashSet<(u16, String)> = node_ports(service).collect();
        held.freed_addresses = before.difference(&after).copied().collect();
        held.freed_ports = ports_before.difference(&ports_after).cloned().collect();
        Ok(held)
    }

    fn hold_addresses(
        &self,
        taken: &mut Taken,
        service: &mut Value,
        before: &HashSet<IpAddr>,
        held: &mut Held,
    ) -> Result<(), ApiError> {
        let name = service["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let spec = &mut service["spec"];
        if spec["type"].as_str() == Some("ExternalName") {
            if let Some(spec) = spec.as_object_mut() {
                for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                    spec.remove(key);
                }
            }
            return Ok(());
        }
        let families = self.families(spec, &name)?;
        if spec["clusterIP"].as_str() == Some("None") {
            spec["clusterIPs"] = json!(["None"]);
        } else {
            let mut wanted: Vec<String> = match spec["clusterIPs"].as_array() {
                Some(list) => list.iter().filter_map(|ip| ip.as_str().map(str::to_owned)).collect(),
                None => Vec::new(),
            };
            if wanted.is_empty()
                && let Some(ip) = spec["clusterIP"].as_str().filter(|ip| !ip.is_empty())
            {
                wanted.push(ip.to_owned());
            }
            let mut given = Vec::new();
            for (index, cidr) in families.iter().enumerate() {
                let address = match wanted.get(index) {
                    Some(text) => self.named_address(taken, text, before, &name, index, &wanted)?,
                    None => taken
                        .free_address(*cidr)
                        .ok_or_else(|| ApiError::internal("failed to allocate a serviceIP: range is full"))?,
                };
                if !before.contains(&address) {
                    taken.addresses.insert(address);
                    held.addresses.push(address);
                }
                given.push(address.to_string());
            }
            spec["clusterIP"] = given.first().cloned().unwrap_or_default().into();
            spec["clusterIPs"] = given.into();
        }
        let shown: Vec<&str> = families.iter().map(|cidr| family(cidr)).collect();
        spec["ipFamilies"] = json!(shown);
        if spec["ipFamilyPolicy"].as_str().is_none_or(str::is_empty) {
            spec["ipFamilyPolicy"] = "SingleStack".into();
        }
        Ok(())
    }

    /// The ranges that the Service's addresses are taken from, in order.
    fn families(&self, spec: &Value, name: &str) -> Result<Vec<IpNet>, ApiError> {
        let of = |wanted: &str| self.cidrs.iter().find(|cidr| family(cidr) == wanted).copied();
        let mut families = Vec::new();
        for (index, wanted) in spec["ipFamilies"].as_array().into_iter().flatten().enumerate() {
            let wanted = wanted.as_str().unwrap_or_default();
            families.push(of(wanted).ok_or_else(|| {
                let message = format!("Invalid value: {wanted:?}: not configured on this cluster");
                invalid(name, &format!("spec.ipFamilies[{index}]"), "FieldValueInvalid", message)
            })?);
        }
        if families.is_empty() {
            let named = spec["clusterIP"].as_str().and_then(|ip| ip.parse::<IpAddr>().ok());
            let wanted = named.map(|ip| if ip.is_ipv4() { "IPv4" } else { "IPv6" });
            families.extend(wanted.and_then(of).or_else(|| self.cidrs.first().copied()));
        }
        let dual = matches!(spec["ipFamilyPolicy"].as_str(), Some("PreferDualStack" | "RequireDualStack"));
        if dual && families.len() == 1 {
            families.extend(self.cidrs.iter().copied().find(|cidr| family(cidr) != family(&families[0])));
        }
        Ok(families)
    }

    fn named_address(
        &self,
        taken: &Taken,
        text: &str,
        before: &HashSet<IpAddr>,
        name: &str,
        index: usize,
        wanted: &[String],
    ) -> Result<IpAddr, ApiError> {
        let field = format!("spec.clusterIPs[{index}]");
        let shown = json!(wanted);
        let refuse = |why: &str| {
            let message = format!("Invalid value: {shown}: {why}");
            Err(invalid(name, if index == 0 { "spec.clusterIPs" } else { &field }, "FieldValueInvalid", message))
        };
        let Ok(address) = text.parse::<IpAddr>() else {
            return refuse("must be a valid IP address");
        };
        if before.contains(&address) {
            return Ok(address);
        }
        let Some(range) = self.cidrs.iter().find(|cidr| cidr.contains(&address)) else {
            let ranges: Vec<String> = self.cidrs.iter().map(ToString::to_string).collect();
            return refuse(&format!(
                "failed to allocate IP {address}: the provided IP ({address}) is not in the valid range. The range of \
                 valid IPs is {}",
                ranges.join(",")
            ));
        };
        if address == range.network() {
            return refuse(&format!("failed to allocate IP {address}: the provided IP is the network's own address"));
        }
        if taken.addresses.contains(&address) {
            return refuse(&format!("failed to allocate IP {address}: provided IP is already allocated"));
        }
        Ok(address)
    }

    fn hold_ports(
        &self,
        taken: &mut Taken,
        service: &mut Value,
        before: &HashSet<(u16, String)>,
        held: &mut Held,
    ) -> Result<(), ApiError> {
        let name = service["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let spec = &mut service["spec"];
        let balanced = spec["type"].as_str() == Some("LoadBalancer");
        let wants = spec["type"].as_str() == Some("NodePort")
            || (balanced && spec["allocateLoadBalancerNodePorts"].as_bool().unwrap_or(true));
        if !wants && !balanced {
            return Ok(());
        }
        // Within one Service two protocols may share a port.
        let mut own: HashMap<i64, u16> = HashMap::new();
        for (index, port) in spec["ports"].as_array_mut().into_iter().flatten().enumerate() {
            let protocol = port["protocol"].as_str().unwrap_or("TCP").to_owned();
            let number = port["port"].as_i64().unwrap_or(0);
            let asked = port["nodePort"].as_u64().filter(|p| *p > 0);
            let chosen = match asked {
                Some(asked) => self.named_port(taken, asked, &protocol, before, &name, index)?,
                None if !wants => continue,
                None => match own.get(&number).filter(|p| taken.take_port(**p, &protocol)) {
                    Some(shared) => {
                        taken.free_port(*shared, &protocol);
                        *shared
                    }
                    None => taken
                        .free_node_port(&self.ports)
                        .ok_or_else(|| ApiError::internal("failed to allocate a nodePort: range is full"))?,
                },
            };
            own.insert(number, chosen);
            if !before.contains(&(chosen, protocol.clone())) {
                taken.take_port(chosen, &protocol);
                held.ports.push((chosen, protocol));
            }
            port["nodePort"] = chosen.into();
        }
        if balanced
            && spec["externalTrafficPolicy"].as_str() == Some("Local")
            && spec["healthCheckNodePort"].as_u64().unwrap_or(0) == 0
        {
            let port = taken
                .free_node_port(&self.ports)
                .ok_or_else(|| ApiError::internal("failed to allocate a nodePort: range is full"))?;
            taken.take_port(port, "TCP");
            held.ports.push((port, "TCP".into()));
            spec["healthCheckNodePort"] = port.into();
        }
        Ok(())
    }

    fn named_port(
        &self,
        taken: &Taken,
        asked: u64,
        protocol: &str,
        before: &HashSet<(u16, String)>,
        name: &str,
        index: usize,
    ) -> Result<u16, ApiError> {
        let refuse = |why: &str| {
            let field = format!("spec.ports[{index}].nodePort");
            Err(invalid(name, &field, "FieldValueInvalid", format!("Invalid value: {asked}: {why}")))
        };
        let port = u16::try_from(asked).ok().filter(|port| self.ports.contains(port));
        let Some(port) = port else {
            return refuse(&format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                self.ports.start(),
                self.ports.end()
            ));
        };
        let used = taken.ports.get(&port).is_some_and(|protocols| protocols.contains(protocol));
        match used && !before.contains(&(port, protocol.to_owned())) {
            true => refuse("provided port is already allocated"),
            false => Ok(port),
        }
    }
}

fn invalid(name: &str, field: &str, reason: &str, message: String) -> ApiError {
    let cause = StatusCause { field: Some(field.to_owned()), message: Some(message), reason: Some(reason.to_owned()) };
    ApiError::invalid("", "Service", name, vec![cause])
}

fn is_service(resource: &Resource) -> bool {
    resource.plural == "services" && resource.group.is_empty()
}

fn family(cidr: &IpNet) -> &'static str {
    match cidr {
        IpNet::V4(_) => "IPv4",
        IpNet::V6(_) => "IPv6",
    }
}

/// An update that leaves out what was allocated keeps it, as long as the Service is of a type that has it.
pub(crate) fn carry_over(resource: &Resource, service: &mut Value, old: &Value) {
    if !is_service(resource) {
        return;
    }
    let (old, new) = (&old["spec"], &mut service["spec"]);
    let (was, is) = (old["type"].as_str(), new["type"].as_str().map(str::to_owned));
    if is.as_deref() == Some("ExternalName") || was == Some("ExternalName") {
        return;
    }
    for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        let absent = match &new[key] {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            _ => false,
        };
        if absent && !old[key].is_null() {
            new[key] = old[key].clone();
        }
    }
    let with_ports = |kind: Option<&str>| matches!(kind, Some("NodePort" | "LoadBalancer"));
    if !with_ports(is.as_deref()) {
        // A Service that has been a NodePort gives its ports back.
        for port in new["ports"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
            if with_ports(was) {
                port.remove("nodePort");
            }
        }
        return;
    }
    let known: HashMap<(i64, String), Value> = old["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|port| port["nodePort"].as_u64().is_some_and(|p| p > 0))
        .map(|port| (port_key(port), port["nodePort"].clone()))
        .collect();
    let named: HashSet<Value> =
        new["ports"].as_array().into_iter().flatten().map(|port| port["nodePort"].clone()).collect();
    for port in new["ports"].as_array_mut().into_iter().flatten() {
        if port["nodePort"].as_u64().unwrap_or(0) == 0
            && let Some(before) = known.get(&port_key(port)).filter(|before| !named.contains(before))
        {
            port["nodePort"] = before.clone();
        }
    }
}

fn port_key(port: &Value) -> (i64, String) {
    (port["port"].as_i64().unwrap_or(0), port["protocol"].as_str().unwrap_or("TCP").to_owned())
}

fn addresses(service: &Value) -> impl Iterator<Item = IpAddr> + '_ {
    let list = service["spec"]["clusterIPs"].as_array().into_iter().flatten();
    list.filter_map(|ip| ip.as_str()?.parse().ok())
}

fn node_ports(service: &Value) -> impl Iterator<Item = (u16, String)> + '_ {
    let spec = &service["spec"];
    let number = |value: &Value| value.as_u64().and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0);
    let ports = spec["ports"].as_array().into_iter().flatten();
    ports
        .filter_map(move |port| {
            Some((number(&port["nodePort"])?, port["protocol"].as_str().unwrap_or("TCP").to_owned()))
        })
        .chain(number(&spec["healthCheckNodePort"]).map(|port| (port, "TCP".to_owned())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn services() -> Services {
        Services::new(vec!["10.96.0.0/28".parse().unwrap(), "fd00::/120".parse().unwrap()], 30000..=30003)
    }

    fn hold(services: &Services, spec: Value, old: Option<&Value>) -> Result<(Value, Held), ApiError> {
        let mut service = json!({"metadata": {"name": "s"}, "spec": spec});
        let held = services.hold(bosun_api::resource::find("", "v1", "services").unwrap(), &mut service, old)?;
        Ok((service, held))
    }

    fn make(services: &Services, spec: Value) -> Result<Value, ApiError> {
        let (service, held) = hold(services, spec, None)?;
        held.keep();
        Ok(service)
    }

    #[test]
    fn families_headless_and_external_name() {
        let services = services();
        let one = make(&services, json!({"type": "ClusterIP"})).unwrap();
        assert_eq!(one["spec"]["ipFamilies"], json!(["IPv4"]));
        assert_eq!(one["spec"]["clusterIP"], one["spec"]["clusterIPs"][0]);
        let two = make(&services, json!({"type": "ClusterIP", "ipFamilyPolicy": "PreferDualStack"})).unwrap();
        assert_eq!(two["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
        assert_eq!(two["spec"]["clusterIPs"].as_array().unwrap().len(), 2);
        let headless = make(&services, json!({"type": "ClusterIP", "clusterIP": "None"})).unwrap();
        assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
        let external = make(&services, json!({"type": "ExternalName", "externalName": "x"})).unwrap();
        assert!(external["spec"].get("clusterIP").is_none());
    }

    #[test]
    fn what_is_taken_is_refused_and_what_fails_is_given_back() {
        let services = services();
        let named = json!({"type": "NodePort", "clusterIP": "10.96.0.5", "ports": [{"port": 80, "nodePort": 30001}]});
        let (service, held) = hold(&services, named.clone(), None).unwrap();
        let clash = hold(&services, json!({"type": "ClusterIP", "clusterIP": "10.96.0.5"}), None).unwrap_err();
        assert!(clash.message().contains("provided IP is already allocated"), "{clash}");
        drop(held);
        make(&services, named.clone()).unwrap();
        let port = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30001}]});
        let clash = hold(&services, port, None).unwrap_err();
        assert_eq!(
            clash.message(),
            "Service \"s\" is invalid: spec.ports[0].nodePort: Invalid value: 30001: provided port is already allocated"
        );
        let outside = hold(&services, json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": 80}]}), None);
        assert!(outside.unwrap_err().message().contains("The range of valid ports is 30000-30003"));
        services.release(bosun_api::resource::find("", "v1", "services").unwrap(), &service);
        make(&services, named).unwrap();
    }

    #[test]
    fn updates_keep_what_they_leave_out_and_give_back_what_they_drop() {
        let services = services();
        let old = make(&services, json!({"type": "NodePort", "ports": [{"port": 80}]})).unwrap();
        let (same, held) = hold(&services, json!({"type": "NodePort", "ports": [{"port": 80}]}), Some(&old)).unwrap();
        held.keep();
        assert_eq!(same["spec"], old["spec"]);
        let (plain, held) = hold(&services, json!({"type": "ClusterIP", "ports": [{"port": 80}]}), Some(&old)).unwrap();
        held.keep();
        assert!(plain["spec"]["ports"][0].get("nodePort").is_none());
        let port = old["spec"]["ports"][0]["nodePort"].clone();
        make(&services, json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": port}]})).unwrap();
    }

    #[test]
    fn full_ranges_say_so() {
        let services = services();
        for _ in 0..14 {
            make(&services, json!({"type": "ClusterIP"})).unwrap();
        }
        let full = make(&services, json!({"type": "ClusterIP"})).unwrap_err();
        assert!(full.message().contains("range is full"));
    }

    proptest! {
        #[test]
        fn nothing_is_given_twice(steps in prop::collection::vec((any::<bool>(), 0usize..8, any::<bool>()), 1..80)) {
            let services = services();
            let resource = bosun_api::resource::find("", "v1", "services").unwrap();
            let mut live: Vec<Value> = Vec::new();
            for (create, index, keep) in steps {
                if create || live.is_empty() {
                    let spec = json!({"type": "NodePort", "ports": [{"port": 80}]});
                    if let Ok((service, held)) = hold(&services, spec, None) {
                        if keep {
                            held.keep();
                            live.push(service);
                        }
                    } else {
                        prop_assert!(live.len() >= 4);
                    }
                } else {
                    let gone = live.swap_remove(index % live.len());
                    services.release(resource, &gone);
                }
                let ips: HashSet<IpAddr> = live.iter().flat_map(addresses).collect();
                let ports: HashSet<(u16, String)> = live.iter().flat_map(node_ports).collect();
                prop_assert_eq!((ips.len(), ports.len()), (live.len(), live.len()));
                let taken = services.taken.lock().unwrap();
                prop_assert_eq!(&taken.addresses, &ips);
                prop_assert_eq!(taken.ports.len(), ports.len());
            }
        }
    }
}
