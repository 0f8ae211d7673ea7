//! What the container runtime says of itself: the edge that the kubelet core implements by the CRI.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ContainerImage, NodeFeatures, NodeRuntimeHandler};

use crate::pressure::Pressure;

/// One of the runtime's conditions (CRI `RuntimeCondition`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuntimeCondition {
    /// Whether it holds.
    pub status: bool,
    /// One word on why it does not.
    pub reason: String,
    /// More words.
    pub message: String,
}

/// The runtime's own status (CRI `Status`).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RuntimeStatus {
    /// `RuntimeReady`; absent when the runtime does not tell it.
    pub runtime: Option<RuntimeCondition>,
    /// `NetworkReady`; absent when the runtime does not tell it.
    pub network: Option<RuntimeCondition>,
    /// Its handlers, as the Node shows them.
    pub handlers: Vec<NodeRuntimeHandler>,
    /// Its features, as the Node shows them.
    pub features: Option<NodeFeatures>,
}

impl RuntimeStatus {
    /// A runtime that can run pods.
    pub fn ready() -> Self {
        let holds = || Some(RuntimeCondition { status: true, ..RuntimeCondition::default() });
        Self { runtime: holds(), network: holds(), ..Self::default() }
    }
}

/// Resources of device plugins, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Devices {
    /// All devices.
    pub capacity: BTreeMap<String, i64>,
    /// Those that pods may have.
    pub allocatable: BTreeMap<String, i64>,
    /// Resources whose plugin is gone; there are none of them any more.
    pub removed: BTreeSet<String>,
}

/// Asked often: each answer must come within seconds, and the caller sets a deadline.
#[async_trait]
pub trait RuntimeFacts: Send + Sync + 'static {
    /// `<name>://<version>`, such as `containerd://1.6.20` (CRI `Version`).
    async fn version(&self) -> Result<String, String>;

    /// The runtime's status.
    async fn status(&self) -> Result<RuntimeStatus, String>;

    /// The images, in any order: digests before tags in each one's names.
    async fn images(&self) -> Result<Vec<ContainerImage>, String>;

    /// What the node is short of, as the kubelet's eviction sees it.
    fn pressure(&self) -> Pressure {
        Pressure::default()
    }

    /// What device plugins offer.
    fn devices(&self) -> Devices {
        Devices::default()
    }

    /// Attachable volumes that pods of the node use, as `kubernetes.io/csi/<driver>^<handle>`.
    fn volumes_in_use(&self) -> Vec<String> {
        Vec::new()
    }

    /// Reasons of the kubelet's own for the node not to be ready, such as a container event stream that has stopped.
    fn errors(&self) -> Vec<String> {
        Vec::new()
    }
}
