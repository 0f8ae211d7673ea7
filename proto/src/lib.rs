//! The protocols that Bosun speaks by gRPC, generated from our own `.proto` files.
//!
//! What a message means is said in the `.proto` file; this crate holds the generated types, a client and a server
//! trait for each service, and the way to a peer on a unix socket ([`unix`]).

pub mod unix;

/// The Container Runtime Interface, `runtime.v1` as of Kubernetes 1.36.
///
/// The server side is there for runtimes written for tests.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated; the .proto file is the documentation"
)]
pub mod cri {
    include!(concat!(env!("OUT_DIR"), "/runtime.v1.rs"));
}

/// The Container Storage Interface, `csi.v1`: the node service.
///
/// The server side is there for drivers written for tests.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated; the .proto file is the documentation"
)]
pub mod csi {
    include!(concat!(env!("OUT_DIR"), "/csi.v1.rs"));
}

/// How plugins make themselves known to the kubelet, `pluginregistration` v1.
///
/// The server side is there for plugins written for tests.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated; the .proto file is the documentation"
)]
pub mod pluginregistration {
    include!(concat!(env!("OUT_DIR"), "/pluginregistration.rs"));
}

/// What the kubelet asks of DRA drivers.
///
/// The server sides are there for drivers written for tests.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated; the .proto file is the documentation"
)]
pub mod dra {
    /// The API of today.
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/k8s.io.kubelet.pkg.apis.dra.v1.rs"));
    }
    /// The one before, with the messages of [`v1`].
    pub mod v1beta1 {
        include!(concat!(env!("OUT_DIR"), "/k8s.io.kubelet.pkg.apis.dra.v1beta1.rs"));
    }
    /// Whether devices are well.
    pub mod health {
        include!(concat!(env!("OUT_DIR"), "/v1alpha1.rs"));
    }
}

/// Device plugins, `v1beta1` as of Kubernetes 1.36: the kubelet serves `Registration`, plugins serve `DevicePlugin`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated; the .proto file is the documentation"
)]
pub mod deviceplugin {
    include!(concat!(env!("OUT_DIR"), "/v1beta1.rs"));
}

/// The pod resources API, `v1` as of Kubernetes 1.36, which the kubelet serves to agents on its node.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated; the .proto file is the documentation"
)]
pub mod podresources {
    include!(concat!(env!("OUT_DIR"), "/v1.rs"));
}
