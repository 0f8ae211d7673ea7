//! What the dataplane needs to know of Services, EndpointSlices and the Node, and nothing else of them.
//!
//! The API's objects are turned into these small ones as they arrive, so that a cluster of thousands of Services is
//! held in a few megabytes.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

/// `namespace/name`
pub type Name = Arc<str>;

/// A protocol that a Service can have, by its IP number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// 6
    Tcp,
    /// 17
    Udp,
    /// 132
    Sctp,
}

impl Protocol {
    /// The number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The name in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// The protocol as the API spells it; nothing means TCP.
    pub fn parse(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("" | "TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }
}

/// A Service that the proxy serves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    /// One for each of its IP families.
    pub cluster_ips: Box<[IpAddr]>,
    /// `spec.externalIPs`
    pub external_ips: Box<[IpAddr]>,
    /// Addresses of its load balancer that arrive at the node unchanged (`ipMode: VIP`).
    pub load_balancer_ips: Box<[IpAddr]>,
    /// From where the load balancer's addresses may be used; empty: from everywhere.
    pub source_ranges: Box<[IpNet]>,
    /// Its ports.
    pub ports: Box<[ServicePort]>,
    /// Seconds for which a client keeps its endpoint.
    pub affinity: Option<u32>,
    /// External traffic goes to endpoints on this node only.
    pub external_local: bool,
    /// Traffic to the cluster IP goes to endpoints on this node only.
    pub internal_local: bool,
    /// Where a load balancer asks for the number of local endpoints; 0 for nowhere.
    pub health_check_node_port: u16,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// By which EndpointSlices refer to it.
    pub name: Box<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// On the Service's addresses.
    pub port: u16,
    /// On the node's addresses; 0 for none.
    pub node_port: u16,
}

/// An EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// The Service it belongs to.
    pub service: Name,
    /// Where each Service port is found on its endpoints.
    pub ports: Box<[SlicePort]>,
    /// Its endpoints.
    pub endpoints: Box<[Endpoint]>,
}

/// A port that all endpoints of a slice have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePort {
    /// The Service port's name.
    pub name: Box<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The number on the endpoint.
    pub port: u16,
}

/// An endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// It takes traffic.
    pub ready: bool,
    /// It could take traffic, if it must though it is terminating.
    pub serving: bool,
    /// It is shutting down.
    pub terminating: bool,
    /// It is on this node.
    pub local: bool,
    /// Nodes that should prefer it.
    pub for_nodes: Box<[Box<str>]>,
    /// Zones that should prefer it.
    pub for_zones: Box<[Box<str>]>,
}

/// What matters of the Node that the proxy runs on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: Box<str>,
    /// Its internal addresses, the first of each family.
    pub addresses: Box<[IpAddr]>,
    /// Its zone (`topology.kubernetes.io/zone`).
    pub zone: Option<Box<str>>,
    /// Pods' addresses on this node.
    pub pod_cidrs: Box<[IpNet]>,
    /// It is going away: load balancers should send nothing new.
    pub leaving: bool,
}

/// A change of what the API says.
#[derive(Debug)]
pub enum Change {
    /// A Service is there, or gone.
    Service(Name, Option<Service>),
    /// The EndpointSlice of that name is there, or gone.
    Slice(Name, Option<Slice>),
    /// The Node.
    Node(Node),
    /// The ranges from which cluster IPs are taken.
    ServiceCidrs(Vec<IpNet>),
    /// Everything that there was has been told.
    Synced,
}
