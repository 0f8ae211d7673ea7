//! What is known of the cluster, as small as the answers allow: 10,000 Services fit into a few megabytes.

use hickory_proto::{ProtoError, rr::Name};
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

/// The label that names an EndpointSlice's Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Namespace and name of a Service.
pub type ServiceKey = (Arc<str>, Arc<str>);

/// The names of a cluster.
#[derive(Debug)]
pub struct Zone {
    domain: Name,
    namespaces: HashMap<Arc<str>, HashMap<Arc<str>, Entry>>,
    reverse: HashMap<IpAddr, Vec<ServiceKey>>,
}

/// A Service and its slices, either of which may come first.
#[derive(Debug, Default)]
struct Entry {
    service: Option<Service>,
    slices: Vec<Slice>,
}

/// What is answered for a Service.
#[derive(Debug, PartialEq, Eq)]
pub enum Service {
    /// One with cluster addresses.
    Cluster {
        /// The addresses.
        addresses: Box<[IpAddr]>,
        /// Its named ports.
        ports: Box<[Port]>,
    },
    /// One whose endpoints are answered.
    Headless {
        /// Whether endpoints that are not ready are answered too.
        publish_not_ready: bool,
    },
    /// An alias.
    External(Name),
}

/// A named port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: Box<str>,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: &'static str,
    /// Its number.
    pub number: u16,
}

#[derive(Debug)]
struct Slice {
    name: Box<str>,
    endpoints: Box<[Endpoint]>,
    ports: Box<[Port]>,
}

/// An endpoint of a headless Service.
#[derive(Debug)]
pub struct Endpoint {
    address: IpAddr,
    hostname: Option<Box<str>>,
    ready: bool,
}

impl Endpoint {
    /// Its address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Its label below the Service's name: its hostname, or its address with dashes.
    #[must_use]
    pub fn label(&self) -> String {
        match &self.hostname {
            Some(hostname) => hostname.to_string(),
            None => self.address.to_string().replace(['.', ':'], "-"),
        }
    }
}

/// A Service as it is looked up.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// What it is.
    pub service: &'a Service,
    entry: &'a Entry,
}

impl<'a> Found<'a> {
    /// The endpoints to answer, each with its slice's ports.
    pub fn endpoints(self) -> impl Iterator<Item = (&'a Endpoint, &'a [Port])> {
        let all = matches!(self.service, Service::Headless { publish_not_ready: true });
        let slices = self.entry.slices.iter();
        slices
            .flat_map(|slice| slice.endpoints.iter().map(|endpoint| (endpoint, &*slice.ports)))
            .filter(move |(endpoint, _)| all || endpoint.ready)
    }
}

impl Zone {
    /// A zone without Services.
    ///
    /// # Errors
    /// When `domain` is no domain name.
    pub fn new(domain: &str) -> Result<Self, ProtoError> {
        let mut domain = Name::from_ascii(domain)?.to_lowercase();
        domain.set_fqdn(true);
        Ok(Self { domain, namespaces: HashMap::new(), reverse: HashMap::new() })
    }

    /// The cluster's domain.
    #[must_use]
    pub fn domain(&self) -> &Name {
        &self.domain
    }

    /// Whether a namespace has Services.
    #[must_use]
    pub fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.get(namespace).is_some_and(|services| services.values().any(|entry| entry.service.is_some()))
    }

    /// A Service by its names in lower case.
    #[must_use]
    pub fn find(&self, namespace: &str, name: &str) -> Option<Found<'_>> {
        let entry = self.namespaces.get(namespace)?.get(name)?;
        entry.service.as_ref().map(|service| Found { service, entry })
    }

    /// The Services that an address is of.
    pub fn by_address(&self, address: IpAddr) -> impl Iterator<Item = (&ServiceKey, Found<'_>)> {
        let keys = self.reverse.get(&address).into_iter().flatten();
        keys.filter_map(|key| Some((key, self.find(&key.0, &key.1)?)))
    }

    /// How many Services there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.namespaces.values().flat_map(HashMap::values).filter(|entry| entry.service.is_some()).count()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes over a Service.
    pub fn apply_service(&mut self, object: &core::Service) {
        let Some(key) = key(&object.metadata.namespace, &object.metadata.name) else { return };
        match service(object) {
            Some(service) => self.change(&key, |entry| entry.service = Some(service)),
            None => self.remove_service(&key.0, &key.1),
        }
    }

    /// Forgets a Service.
    pub fn remove_service(&mut self, namespace: &str, name: &str) {
        self.change(&(namespace.into(), name.into()), |entry| entry.service = None);
    }

    /// Takes over an EndpointSlice.
    pub fn apply_slice(&mut self, object: &discovery::EndpointSlice) {
        let Some((key, name)) = slice_key(object) else { return };
        let slice = slice(object, &name);
        self.change(&key, |entry| {
            entry.slices.retain(|known| known.name != name);
            entry.slices.push(slice);
        });
    }

    /// Forgets an EndpointSlice.
    pub fn remove_slice(&mut self, object: &discovery::EndpointSlice) {
        let Some((key, name)) = slice_key(object) else { return };
        self.change(&key, |entry| entry.slices.retain(|known| known.name != name));
    }

    /// Forgets what a new listing did not have.
    pub fn retain_services(&mut self, seen: &BTreeSet<(String, String)>) {
        self.retain(|key, entry| {
            if !seen.contains(&(key.0.to_string(), key.1.to_string())) {
                entry.service = None;
            }
        });
    }

    /// Forgets what a new listing did not have; `seen` holds namespaces and names of slices.
    pub fn retain_slices(&mut self, seen: &BTreeSet<(String, String)>) {
        self.retain(|key, entry| {
            entry.slices.retain(|slice| seen.contains(&(key.0.to_string(), slice.name.to_string())));
        });
    }

    fn retain(&mut self, change: impl Fn(&ServiceKey, &mut Entry)) {
        let keys: Vec<ServiceKey> = self
            .namespaces
            .iter()
            .flat_map(|(namespace, services)| services.keys().map(|name| (namespace.clone(), name.clone())))
            .collect();
        keys.iter().for_each(|key| self.change(key, |entry| change(key, entry)));
    }

    /// Changes an entry and keeps the reverse names with it.
    fn change(&mut self, key: &ServiceKey, change: impl FnOnce(&mut Entry)) {
        // The key's own strings are shared by all that names the Service.
        let namespace = self.namespaces.get_key_value(&key.0).map_or_else(|| key.0.clone(), |(known, _)| known.clone());
        let services = self.namespaces.entry(namespace.clone()).or_default();
        let name = services.get_key_value(&key.1).map_or_else(|| key.1.clone(), |(known, _)| known.clone());
        let entry = services.entry(name.clone()).or_default();
        let before = addresses(entry);
        change(entry);
        let after = addresses(entry);
        if entry.service.is_none() && entry.slices.is_empty() {
            services.remove(&name);
            if services.is_empty() {
                self.namespaces.remove(&namespace);
            }
        }
        for gone in before.difference(&after) {
            if let Some(keys) = self.reverse.get_mut(gone) {
                keys.retain(|known| *known != *key);
                if keys.is_empty() {
                    self.reverse.remove(gone);
                }
            }
        }
        for new in after.difference(&before) {
            self.reverse.entry(*new).or_default().push((namespace.clone(), name.clone()));
        }
    }
}

/// The addresses that lead back to an entry's Service.
fn addresses(entry: &Entry) -> BTreeSet<IpAddr> {
    match &entry.service {
        Some(Service::Cluster { addresses, .. }) => addresses.iter().copied().collect(),
        Some(Service::Headless { .. }) => {
            entry.slices.iter().flat_map(|slice| slice.endpoints.iter().map(|endpoint| endpoint.address)).collect()
        }
        _ => BTreeSet::new(),
    }
}

fn key(namespace: &Option<String>, name: &Option<String>) -> Option<ServiceKey> {
    Some((namespace.as_deref()?.into(), name.as_deref()?.into()))
}

fn slice_key(object: &discovery::EndpointSlice) -> Option<(ServiceKey, Box<str>)> {
    let service = object.metadata.labels.as_ref()?.get(SERVICE_NAME).cloned();
    Some((key(&object.metadata.namespace, &service)?, object.metadata.name.as_deref()?.into()))
}

fn protocol(text: Option<&str>) -> &'static str {
    match text {
        Some("UDP") => "udp",
        Some("SCTP") => "sctp",
        _ => "tcp",
    }
}

/// What is answered for a Service object; none when it cannot be read.
fn service(object: &core::Service) -> Option<Service> {
    let spec = object.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        let mut name = Name::from_ascii(spec.external_name.as_deref()?).ok()?;
        name.set_fqdn(true);
        return Some(Service::External(name));
    }
    let single = spec.cluster_ip.as_slice();
    let texts = spec.cluster_ips.as_deref().filter(|list| !list.is_empty()).unwrap_or(single);
    if texts.iter().any(|text| text == "None") {
        return Some(Service::Headless { publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false) });
    }
    let addresses: Box<[IpAddr]> = texts.iter().filter_map(|text| text.parse().ok()).collect();
    if addresses.is_empty() {
        return None;
    }
    let ports = spec.ports.iter().flatten().filter_map(|port| {
        let name = port.name.as_deref().filter(|name| !name.is_empty())?;
        let number = u16::try_from(port.port).ok()?;
        Some(Port { name: name.into(), protocol: protocol(port.protocol.as_deref()), number })
    });
    Some(Service::Cluster { addresses, ports: ports.collect() })
}

fn slice(object: &discovery::EndpointSlice, name: &str) -> Slice {
    let endpoints = object.endpoints.iter().flatten().flat_map(|endpoint| {
        let conditions = endpoint.conditions.as_ref();
        let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
        let hostname = endpoint.hostname.as_deref().filter(|name| !name.is_empty());
        let addresses = endpoint.addresses.iter().filter_map(|text| text.parse().ok());
        addresses.map(move |address| Endpoint { address, hostname: hostname.map(Into::into), ready })
    });
    let ports = object.ports.iter().flatten().filter_map(|port| {
        let name = port.name.as_deref().filter(|name| !name.is_empty())?;
        let number = u16::try_from(port.port?).ok()?;
        Some(Port { name: name.into(), protocol: protocol(port.protocol.as_deref()), number })
    });
    Slice { name: name.into(), endpoints: endpoints.collect(), ports: ports.collect() }
}
