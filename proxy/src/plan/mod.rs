//! The dataplane as data: which address answers how.
//!
//! Everything here is a pure function of the model. A [`Front`] is one (address, protocol, port) that clients use; its
//! [`Action`] says what happens to a new connection to it. What the kernel is told is derived from this alone.

mod planner;
mod service;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::{Name, Protocol};

pub use planner::{Delta, FrontChange, Planner};
pub use service::{ServicePlan, plan_service};

/// What clients connect to. A node port has the unspecified address of its family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrontKey {
    /// The address, unspecified for every node-port address.
    pub address: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

impl FrontKey {
    /// A port on the node's own addresses of a family.
    pub fn node_port(v6: bool, protocol: Protocol, port: u16) -> Self {
        let address = if v6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        Self { address, protocol, port }
    }

    /// Whether it is a node port.
    pub fn is_node_port(&self) -> bool {
        self.address.is_unspecified()
    }
}

/// When the client's address is replaced by the node's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Masquerade {
    /// Never.
    Never,
    /// When it is not a pod's of this cluster (or always, if so configured).
    OffCluster,
    /// Always.
    Always,
}

/// Which of a front's endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Those of the whole cluster.
    Cluster,
    /// Those on this node.
    Local,
}

/// What happens to a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// It goes to one of the endpoints of the cluster, or, for cluster IPs of internal policy `Local`, of this node.
    Balance(Masquerade),
    /// It goes to one on this node, with its address kept; from pods and from this node to one of the cluster.
    Local,
    /// It is refused.
    Reject,
    /// It is dropped.
    Drop,
}

/// How one front answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Front {
    /// What happens.
    pub action: Action,
    /// Endpoints for [`Scope::Cluster`].
    pub endpoints: Arc<[SocketAddr]>,
    /// Endpoints for [`Scope::Local`].
    pub local: Arc<[SocketAddr]>,
    /// Seconds for which a client keeps its endpoint.
    pub affinity: Option<u32>,
    /// Who may connect; none for everyone.
    pub sources: Option<Arc<[IpNet]>>,
}

impl Front {
    /// The endpoints of a scope.
    pub fn scope(&self, scope: Scope) -> &[SocketAddr] {
        match scope {
            Scope::Cluster => &self.endpoints,
            Scope::Local => &self.local,
        }
    }
}

/// On which of the node's addresses its ports are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// On all but loopback.
    All,
    /// On those in these networks.
    In(BTreeSet<IpNet>),
}

/// The dataplane of a node: what [`Planner`] holds, in one piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Every front.
    pub fronts: BTreeMap<FrontKey, (Name, Front)>,
    /// Cluster IPs: what is not served on them is refused.
    pub cluster_ips: BTreeSet<IpAddr>,
    /// Addresses of endpoints on this node: what they send to themselves by a Service is masqueraded.
    pub local_endpoints: BTreeSet<IpAddr>,
    /// What else depends on the node and the cluster.
    pub globals: Globals,
}

/// What the plan has beyond Services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Globals {
    /// Where node ports are served.
    pub node_port_addresses: NodePortAddresses,
    /// What in these ranges is no Service's address is dropped.
    pub service_cidrs: BTreeSet<IpNet>,
}

impl fmt::Display for FrontKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_node_port() {
            let family = if self.address.is_ipv6() { "ip6" } else { "ip" };
            write!(out, "{family} node port {} {}", self.protocol.name(), self.port)
        } else {
            write!(out, "{} {} {}", self.address, self.protocol.name(), self.port)
        }
    }
}
