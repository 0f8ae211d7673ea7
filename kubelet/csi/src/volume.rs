//! What a pod or a persistent volume says of a CSI volume, and the capability that a driver is asked for.

use std::collections::BTreeMap;

use bosun_proto::csi::volume_capability::access_mode::Mode;
use bosun_proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use bosun_proto::csi::{VolumeCapability, node_service_capability::rpc::Type as Can};
use k8s_openapi::api::core::v1::{PersistentVolume, SecretReference, Volume as PodVolume};

use crate::names;
use crate::service::Capabilities;

/// How long a volume lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    /// It is a persistent volume.
    Persistent,
    /// It is made for one pod and goes with it.
    Ephemeral,
}

impl Lifecycle {
    /// The name that the API has for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Persistent => "Persistent",
            Self::Ephemeral => "Ephemeral",
        }
    }
}

/// Which secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A CSI volume as one pod wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The driver's name.
    pub driver: String,
    /// The name by which the driver knows the volume.
    pub handle: String,
    /// The persistent volume's name; of an inline volume, the name in the pod.
    pub name: String,
    /// How long it lives.
    pub lifecycle: Lifecycle,
    /// Whether the pod gets the device itself.
    pub block: bool,
    /// Whether the pod only reads.
    pub read_only: bool,
    /// The access modes of the persistent volume, in their order.
    pub access_modes: Vec<String>,
    /// The kind of file system; empty for the driver's own choice.
    pub fs_type: String,
    /// Options for the mount.
    pub mount_options: Vec<String>,
    /// What the driver is told of the volume.
    pub attributes: BTreeMap<String, String>,
    /// The secret for staging.
    pub stage_secret: Option<SecretRef>,
    /// The secret for publishing.
    pub publish_secret: Option<SecretRef>,
    /// The secret for growing.
    pub expand_secret: Option<SecretRef>,
}

impl Volume {
    /// The volume behind a persistent volume of CSI; none for one of another kind.
    pub fn of_pv(pv: &PersistentVolume, read_only: bool) -> Option<Self> {
        let spec = pv.spec.as_ref()?;
        let source = spec.csi.as_ref()?;
        Some(Self {
            driver: source.driver.clone(),
            handle: source.volume_handle.clone(),
            name: pv.metadata.name.clone().unwrap_or_default(),
            lifecycle: Lifecycle::Persistent,
            block: spec.volume_mode.as_deref() == Some("Block"),
            read_only,
            access_modes: spec.access_modes.clone().unwrap_or_default(),
            fs_type: source.fs_type.clone().unwrap_or_default(),
            mount_options: spec.mount_options.clone().unwrap_or_default(),
            attributes: source.volume_attributes.clone().unwrap_or_default(),
            stage_secret: source.node_stage_secret_ref.as_ref().map(secret),
            publish_secret: source.node_publish_secret_ref.as_ref().map(secret),
            expand_secret: source.node_expand_secret_ref.as_ref().map(secret),
        })
    }

    /// An inline volume of a pod; none for a volume of another kind.
    pub fn inline(volume: &PodVolume, namespace: &str, pod_uid: &str) -> Option<Self> {
        let source = volume.csi.as_ref()?;
        let secret = |name: &str| SecretRef { namespace: namespace.to_owned(), name: name.to_owned() };
        Some(Self {
            driver: source.driver.clone(),
            handle: names::inline_handle(pod_uid, &volume.name),
            name: volume.name.clone(),
            lifecycle: Lifecycle::Ephemeral,
            block: false,
            read_only: source.read_only == Some(true),
            access_modes: vec!["ReadWriteOnce".to_owned()],
            fs_type: source.fs_type.clone().unwrap_or_default(),
            mount_options: Vec::new(),
            attributes: source.volume_attributes.clone().unwrap_or_default(),
            stage_secret: None,
            publish_secret: source.node_publish_secret_ref.as_ref().map(|s| secret(&s.name)),
            expand_secret: None,
        })
    }

    /// Whether only one pod of the whole cluster may use the volume.
    pub fn one_pod(&self) -> bool {
        self.access_modes.iter().any(|mode| mode == "ReadWriteOncePod")
    }

    /// What the driver is asked to be capable of. `group` is told to drivers that give files to it themselves.
    pub fn capability(&self, can: &Capabilities, group: Option<u32>) -> VolumeCapability {
        let access = if self.block {
            AccessType::Block(BlockVolume {})
        } else {
            let group = group.filter(|_| can.has(Can::VolumeMountGroup));
            AccessType::Mount(MountVolume {
                fs_type: self.fs_type.clone(),
                mount_flags: self.mount_options.clone(),
                volume_mount_group: group.map(|g| g.to_string()).unwrap_or_default(),
            })
        };
        let mode = access_mode(self.access_modes.first().map_or("ReadWriteOnce", String::as_str), can);
        VolumeCapability { access_mode: Some(AccessMode { mode: mode as i32 }), access_type: Some(access) }
    }

    /// Whether the kubelet itself gives what the volume holds to the pod's group, by the driver's `fsGroupPolicy`.
    pub fn wants_group(&self, policy: &str, can: &Capabilities) -> bool {
        if self.block || self.read_only || can.has(Can::VolumeMountGroup) {
            return false;
        }
        match policy {
            "None" => false,
            "File" => true,
            _ => {
                !self.fs_type.is_empty()
                    && self.access_modes.iter().any(|m| m == "ReadWriteOnce" || m == "ReadWriteOncePod")
            }
        }
    }
}

fn secret(reference: &SecretReference) -> SecretRef {
    SecretRef {
        namespace: reference.namespace.clone().unwrap_or_default(),
        name: reference.name.clone().unwrap_or_default(),
    }
}

/// CSI's access mode: only drivers that tell single pods apart are asked in those words.
fn access_mode(mode: &str, can: &Capabilities) -> Mode {
    let single = can.has(Can::SingleNodeMultiWriter);
    match mode {
        "ReadWriteOnce" if single => Mode::SingleNodeMultiWriter,
        "ReadWriteOncePod" if single => Mode::SingleNodeSingleWriter,
        "ReadWriteOnce" | "ReadWriteOncePod" => Mode::SingleNodeWriter,
        "ReadOnlyMany" => Mode::MultiNodeReaderOnly,
        "ReadWriteMany" => Mode::MultiNodeMultiWriter,
        _ => Mode::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_persistent_volume_and_an_inline_one_are_read() {
        let pv: PersistentVolume = serde_json::from_value(json!({"metadata": {"name": "pv1"}, "spec": {
            "accessModes": ["ReadWriteOncePod"], "mountOptions": ["noatime"], "volumeMode": "Filesystem",
            "csi": {"driver": "d", "volumeHandle": "h", "fsType": "ext4", "volumeAttributes": {"a": "b"},
                "nodeStageSecretRef": {"namespace": "n", "name": "s"}}}}))
        .unwrap();
        let volume = Volume::of_pv(&pv, true).unwrap();
        assert_eq!((volume.driver.as_str(), volume.handle.as_str(), volume.name.as_str()), ("d", "h", "pv1"));
        assert!(volume.read_only && volume.one_pod() && !volume.block);
        assert_eq!(volume.stage_secret, Some(SecretRef { namespace: "n".into(), name: "s".into() }));
        let inline: PodVolume =
            serde_json::from_value(json!({"name": "v", "csi": {"driver": "d", "nodePublishSecretRef": {"name": "s"}}}))
                .unwrap();
        let volume = Volume::inline(&inline, "ns", "u1").unwrap();
        assert_eq!(volume.handle, names::inline_handle("u1", "v"));
        assert_eq!(volume.publish_secret, Some(SecretRef { namespace: "ns".into(), name: "s".into() }));
    }

    #[test]
    fn access_modes_by_what_the_driver_tells_apart() {
        let (old, new) = (Capabilities::default(), Capabilities::of([Can::SingleNodeMultiWriter]));
        let modes = ["ReadWriteOnce", "ReadWriteOncePod", "ReadOnlyMany", "ReadWriteMany", "?"];
        let show = |can: &Capabilities| modes.map(|mode| access_mode(mode, can).as_str_name()).join(" ");
        let golden = "SINGLE_NODE_WRITER SINGLE_NODE_WRITER MULTI_NODE_READER_ONLY MULTI_NODE_MULTI_WRITER UNKNOWN";
        assert_eq!(show(&old), golden);
        let golden =
            "SINGLE_NODE_MULTI_WRITER SINGLE_NODE_SINGLE_WRITER MULTI_NODE_READER_ONLY MULTI_NODE_MULTI_WRITER UNKNOWN";
        assert_eq!(show(&new), golden);
    }

    #[test]
    fn the_group_is_the_kubelets_by_policy_unless_the_driver_sees_to_it() {
        let volume = |fs_type: &str, mode: &str| Volume {
            driver: "d".into(),
            handle: "h".into(),
            name: "pv".into(),
            lifecycle: Lifecycle::Persistent,
            block: false,
            read_only: false,
            access_modes: vec![mode.into()],
            fs_type: fs_type.into(),
            mount_options: Vec::new(),
            attributes: BTreeMap::new(),
            stage_secret: None,
            publish_secret: None,
            expand_secret: None,
        };
        let none = Capabilities::default();
        let own = Capabilities::of([Can::VolumeMountGroup]);
        let default = "ReadWriteOnceWithFSType";
        assert!(volume("ext4", "ReadWriteOnce").wants_group(default, &none));
        assert!(!volume("", "ReadWriteOnce").wants_group(default, &none));
        assert!(!volume("ext4", "ReadWriteMany").wants_group(default, &none));
        assert!(volume("", "ReadWriteMany").wants_group("File", &none));
        assert!(!volume("ext4", "ReadWriteOnce").wants_group("None", &none));
        assert!(!volume("ext4", "ReadWriteOnce").wants_group("File", &own));
        assert!(!Volume { read_only: true, ..volume("ext4", "ReadWriteOnce") }.wants_group("File", &none));
        let asked = volume("ext4", "ReadWriteOnce").capability(&own, Some(2000));
        assert!(matches!(asked.access_type, Some(AccessType::Mount(m)) if m.volume_mount_group == "2000"));
    }
}
