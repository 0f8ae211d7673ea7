//! Looking at objects through their types: strict about what is wrong, exact about what is unknown.

use std::collections::HashMap;
use std::sync::LazyLock;

use k8s_openapi::api::{
    apps::v1 as apps, authentication::v1 as authentication, authorization::v1 as authorization,
    autoscaling::v1 as autoscaling1, autoscaling::v2 as autoscaling, batch::v1 as batch,
    certificates::v1 as certificates, coordination::v1 as coordination, core::v1 as core, discovery::v1 as discovery,
    events::v1 as events, networking::v1 as networking, node::v1 as node, policy::v1 as policy, rbac::v1 as rbac,
    scheduling::v1 as scheduling, storage::v1 as storage,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// What a typed look at an object found.
#[derive(Debug)]
pub(crate) struct Decoded {
    /// The object as its type writes it: unknown fields are gone.
    pub(crate) value: Value,
    /// Paths of the unknown fields.
    pub(crate) unknown: Vec<String>,
}

type Decoder = fn(Value) -> Result<Decoded, String>;
type Kind = (&'static str, &'static str, &'static str);

static DECODERS: LazyLock<HashMap<Kind, Decoder>> = LazyLock::new(decoders);

/// Decode an object of a kind; `None` if the kind is not known.
pub(crate) fn decode(group: &str, version: &str, kind: &str, value: Value) -> Option<Result<Decoded, String>> {
    let decoder = DECODERS.get(&(group, version, kind))?;
    Some(decoder(value))
}

macro_rules! kinds {
    ($($kind:ty),* $(,)?) => {
        [$((
            (
                <$kind as k8s_openapi::Resource>::GROUP,
                <$kind as k8s_openapi::Resource>::VERSION,
                <$kind as k8s_openapi::Resource>::KIND,
            ),
            through::<$kind> as Decoder,
        )),*]
    };
}

fn decoders() -> HashMap<Kind, Decoder> {
    HashMap::from(kinds![
        core::Binding,
        core::ComponentStatus,
        core::ConfigMap,
        core::Endpoints,
        core::Event,
        core::LimitRange,
        core::Namespace,
        core::Node,
        core::PersistentVolume,
        core::PersistentVolumeClaim,
        core::Pod,
        core::PodTemplate,
        core::ReplicationController,
        core::ResourceQuota,
        core::Secret,
        core::Service,
        core::ServiceAccount,
        apps::ControllerRevision,
        apps::DaemonSet,
        apps::Deployment,
        apps::ReplicaSet,
        apps::StatefulSet,
        authentication::SelfSubjectReview,
        authentication::TokenRequest,
        authentication::TokenReview,
        authorization::LocalSubjectAccessReview,
        authorization::SelfSubjectAccessReview,
        authorization::SelfSubjectRulesReview,
        authorization::SubjectAccessReview,
        autoscaling::HorizontalPodAutoscaler,
        autoscaling1::HorizontalPodAutoscaler,
        autoscaling1::Scale,
        batch::CronJob,
        batch::Job,
        certificates::CertificateSigningRequest,
        coordination::Lease,
        discovery::EndpointSlice,
        events::Event,
        networking::IPAddress,
        networking::Ingress,
        networking::IngressClass,
        networking::NetworkPolicy,
        networking::ServiceCIDR,
        node::RuntimeClass,
        policy::Eviction,
        policy::PodDisruptionBudget,
        rbac::ClusterRole,
        rbac::ClusterRoleBinding,
        rbac::Role,
        rbac::RoleBinding,
        scheduling::PriorityClass,
        storage::CSIDriver,
        storage::CSINode,
        storage::CSIStorageCapacity,
        storage::StorageClass,
        storage::VolumeAttachment,
        storage::VolumeAttributesClass,
    ])
}

/// Look at an object through its type.
fn through<T: DeserializeOwned + Serialize>(value: Value) -> Result<Decoded, String> {
    let mut unknown = Vec::new();
    let typed: T = {
        let mut track = serde_path_to_error::Track::new();
        let path = serde_path_to_error::Deserializer::new(value, &mut track);
        let result = serde_ignored::deserialize(path, |field| unknown.push(shown(&field)));
        result.map_err(|e: serde_json::Error| match track.path().to_string().as_str() {
            "." | "" => e.to_string(),
            path => format!("{path}: {e}"),
        })?
    };
    let value = serde_json::to_value(typed).map_err(|e| e.to_string())?;
    Ok(Decoded { value, unknown })
}

/// A path as Go's strict decoder writes it: `spec.containers[0].image`.
fn shown(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", shown(parent)),
        Path::Map { parent, key } => match shown(parent) {
            parent if parent.is_empty() => key.clone(),
            parent => format!("{parent}.{key}"),
        },
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => shown(parent),
    }
}
