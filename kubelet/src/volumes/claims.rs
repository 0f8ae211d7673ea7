//! Volumes by claim: the claim leads to a persistent volume, which says where the data is. Local and hostPath volumes
//! are known here, CSI in [`super::csi`], NFS in [`super::nfs`]; any other kind is an error that names it.
//!
//! Where a claim's volume is, is kept beside the pod, so that containers that start later (or under a later kubelet)
//! need not ask the API server.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Component, Path, PathBuf};

use bosun_api::scheduling::matches_node_selector_term;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use nix::mount::{MsFlags, mount};

use super::csi::CsiVolumes;
use super::journal::{Journal, Kind};
use super::ownership::{self, Policy};
use super::{empty_dir, host_path};
use crate::objects::Objects;
use crate::pod::spec;

/// The name of the claim behind a volume, if there is one.
pub(super) fn claim_name(pod: &Pod, volume: &Volume) -> Option<String> {
    let generated = || volume.ephemeral.as_ref().map(|_| format!("{}-{}", spec::name(pod), volume.name));
    volume.persistent_volume_claim.as_ref().map(|claim| claim.claim_name.clone()).or_else(generated)
}

/// Whether the pod asks for the claim's volume read-only.
pub(super) fn is_read_only(volume: &Volume) -> bool {
    volume.persistent_volume_claim.as_ref().is_some_and(|claim| claim.read_only == Some(true))
}

/// The persistent volume that the claim is bound to, and the claim.
///
/// # Errors
/// Why not, in stock's words.
pub(super) async fn resolve(
    pod: &Pod,
    objects: &dyn Objects,
    volume: &Volume,
    name: &str,
) -> Result<(PersistentVolume, PersistentVolumeClaim), String> {
    let namespace = spec::namespace(pod);
    let failed = |why: String| format!("error processing PVC {namespace}/{name}: {why}");
    let fetched = |why: String| failed(format!("failed to fetch PVC from API server: {why}"));
    let claim = objects.claim(namespace, name).await.map_err(fetched)?;
    let claim = claim.ok_or_else(|| fetched(format!("persistentvolumeclaims {name:?} not found")))?;
    let pv_name = bound_to(pod, volume, &claim).map_err(failed)?;
    let fetched = |why: String| failed(format!("failed to fetch PV {pv_name} from API server: {why}"));
    let found = objects.persistent_volume(&pv_name).await.map_err(fetched)?;
    let found = found.ok_or_else(|| fetched(format!("persistentvolumes {pv_name:?} not found")))?;
    check_reference(&found, &claim).and_then(|()| check_mode(pod, volume, &found)).map_err(failed)?;
    Ok((found, claim))
}

/// Whether the volume can be used on this node.
///
/// # Errors
/// It cannot, or it is not known; in stock's words.
pub(super) async fn check_affinity(found: &PersistentVolume, csi: &CsiVolumes) -> Result<(), String> {
    let affinity = found.spec.as_ref().and_then(|s| s.node_affinity.as_ref()).and_then(|a| a.required.as_ref());
    let Some(selector) = affinity else { return Ok(()) };
    // Without an API server there are no labels to go by.
    let Some(node) = csi.node().await? else { return Ok(()) };
    let fits = selector.node_selector_terms.iter().any(|term| matches_node_selector_term(term, &node));
    if fits { Ok(()) } else { Err("no matching NodeSelectorTerms".to_owned()) }
}

fn bound_to(pod: &Pod, volume: &Volume, claim: &PersistentVolumeClaim) -> Result<String, String> {
    let owners = claim.metadata.owner_references.iter().flatten();
    if volume.ephemeral.is_some() && !owners.into_iter().any(|o| o.controller == Some(true) && o.uid == spec::uid(pod))
    {
        let (namespace, name) = (spec::namespace(pod), claim.metadata.name.as_deref().unwrap_or_default());
        let pod = spec::name(pod);
        return Err(format!("PVC {namespace}/{name} was not created for pod {namespace}/{pod} (pod is not owner)"));
    }
    if claim.metadata.deletion_timestamp.is_some() {
        return Err("PVC is being deleted".to_owned());
    }
    if claim.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Bound") {
        return Err("PVC is not bound".to_owned());
    }
    let name = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).filter(|name| !name.is_empty());
    name.ok_or_else(|| "PVC has empty pvc.Spec.VolumeName".to_owned())
}

fn check_reference(found: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), String> {
    let name = found.metadata.name.as_deref().unwrap_or_default();
    let uid = claim.metadata.uid.as_deref().unwrap_or_default();
    match found.spec.as_ref().and_then(|s| s.claim_ref.as_ref()).map(|r| r.uid.as_deref().unwrap_or_default()) {
        None => Err(format!(
            "found PV object {name} but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to the claim"
        )),
        Some(known) if known != uid => Err(format!(
            "found PV object {name} but its pv.Spec.ClaimRef.UID {known} does not point to claim.UID {uid}"
        )),
        Some(_) => Ok(()),
    }
}

fn check_mode(pod: &Pod, volume: &Volume, found: &PersistentVolume) -> Result<(), String> {
    let mode = found.spec.as_ref().and_then(|s| s.volume_mode.as_deref()).unwrap_or("Filesystem");
    let mut devices = spec::containers(pod).flat_map(|(_, c)| c.volume_devices.iter().flatten());
    let is_device = devices.any(|device| device.name == volume.name);
    let name = &volume.name;
    match (mode, is_device) {
        ("Block", true) => Ok(()),
        ("Block", false) => Err(format!("volume {name} has volumeMode Block, but is specified in volumeMounts")),
        (mode, true) => Err(format!("volume {name} has volumeMode {mode}, but is specified in volumeDevices")),
        _ => Ok(()),
    }
}

/// For whom a claim's volume is made ready.
#[derive(Clone, Debug)]
pub(super) struct Use {
    /// The pod's folder.
    pub(super) pod: PathBuf,
    /// The volume's name in the pod.
    pub(super) volume: String,
    /// Whether the pod only reads.
    pub(super) read_only: bool,
    /// The pod's group.
    pub(super) group: Option<u32>,
    /// When what the volume holds is given to it.
    pub(super) policy: Policy,
}

/// Makes the data of the volume ready for the pod, and keeps where it is.
///
/// # Errors
/// A kind that is not known here, or what the node says to it.
pub(super) fn set_up(found: &PersistentVolume, user: &Use) -> Result<(), String> {
    let name = found.metadata.name.as_deref().unwrap_or_default();
    let source = found.spec.clone().unwrap_or_default();
    let block = source.volume_mode.as_deref() == Some("Block");
    let path = match (&source.host_path, &source.local) {
        (Some(_), _) if block => return Err(format!("hostPath volume {name} cannot be a device; use a local volume")),
        (None, Some(local)) if block => link_device(name, Path::new(&local.path), user)?,
        (Some(path), _) => host_path::check(path).map(|()| PathBuf::from(&path.path))?,
        (None, Some(local)) => mount_local(name, Path::new(&local.path), user)?,
        (None, None) => {
            return Err(format!(
                "persistent volume {name} is {}; this kubelet supports csi, local, nfs and hostPath",
                kind(&source)
            ));
        }
    };
    keep(user, &path).map_err(|error| format!("keep where volume {} is: {error}", user.volume))
}

fn kind(source: &impl serde::Serialize) -> String {
    const NO_SOURCES: [&str; 9] = [
        "accessModes",
        "capacity",
        "claimRef",
        "mountOptions",
        "nodeAffinity",
        "persistentVolumeReclaimPolicy",
        "storageClassName",
        "volumeAttributesClassName",
        "volumeMode",
    ];
    let value = serde_json::to_value(source).unwrap_or_default();
    let mut fields = value.as_object().into_iter().flat_map(|o| o.keys()).filter(|k| !NO_SOURCES.contains(&k.as_str()));
    fields.next().map_or("of no kind".to_owned(), |kind| format!("of kind {kind}"))
}

/// Makes the device known below the pod's folder, as stock does.
fn link_device(name: &str, path: &Path, user: &Use) -> Result<PathBuf, String> {
    let shown = path.display();
    match fs::metadata(path) {
        Ok(meta) if meta.file_type().is_block_device() => {}
        Ok(_) => return Err(format!("local volume {shown} is no block device")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(format!("path {shown:?} does not exist")),
        Err(error) => return Err(format!("look at {shown}: {error}")),
    }
    let folder = user.pod.join("volumeDevices/kubernetes.io~local-volume");
    let link = folder.join(name);
    let make = || {
        super::make_dir(&folder, 0o750)?;
        match fs::read_link(&link) {
            Ok(known) if known == path => return Ok(()),
            Ok(_) => fs::remove_file(&link)?,
            Err(_) => {}
        }
        symlink(path, &link)
    };
    make().map_err(|error: io::Error| format!("link to {shown} at {}: {error}", link.display()))?;
    Ok(link)
}

fn mount_local(name: &str, path: &Path, user: &Use) -> Result<PathBuf, String> {
    let shown = path.display();
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(format!("invalid path: {shown} must not contain '..'"));
    }
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => return Err(format!("local volume {shown} is no folder; this kubelet does not mount devices")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(format!("path {shown:?} does not exist")),
        Err(error) => return Err(format!("look at {shown}: {error}")),
    }
    let target = user.pod.join("volumes/kubernetes.io~local-volume").join(name);
    bind(path, &target, user).map_err(|error| format!("mount {shown} at {}: {error}", target.display()))?;
    Ok(target)
}

fn bind(path: &Path, target: &Path, user: &Use) -> io::Result<()> {
    super::make_dir(target, 0o750)?;
    let mounted = empty_dir::is_mounted(&user.pod, target)?;
    if !mounted {
        Journal::of(&user.pod).record(target, Kind::Bind)?;
        let none: Option<&str> = None;
        mount(Some(path), target, none, MsFlags::MS_BIND, none)?;
        if user.read_only {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(none, target, none, flags, none)?;
        }
    }
    match user.group {
        Some(group) if !user.read_only => {
            // Once mounted only what was broken off is done again: containers may have changed the rest.
            ownership::give(target, group, if mounted { Policy::OnRootMismatch } else { user.policy })
        }
        _ => Ok(()),
    }
}

fn kept(pod: &Path, volume: &str) -> PathBuf {
    pod.join("claims").join(format!("{volume}.json"))
}

pub(super) fn keep(user: &Use, path: &Path) -> io::Result<()> {
    let file = kept(&user.pod, &user.volume);
    let bytes = serde_json::to_vec(path)?;
    if fs::read(&file).ok().as_ref() == Some(&bytes) {
        return Ok(());
    }
    super::make_dir(&user.pod.join("claims"), 0o750)?;
    bosun_kit::files::write_atomic(&file, &bytes, 0o600)
}

/// Where the claim's volume is; none before it was made ready.
pub(super) fn place(pod: &Path, volume: &str) -> Option<PathBuf> {
    serde_json::from_slice(&fs::read(kept(pod, volume)).ok()?).ok()
}

/// Whether nothing is left to do: a claim that is deleted while its pod runs must not hold up the pod's other volumes.
pub(super) fn is_ready(pod: &Path, volume: &str) -> io::Result<bool> {
    match place(pod, volume) {
        Some(path) if path.is_symlink() => Ok(path.exists()),
        Some(path) if path.starts_with(pod) => Ok(path.is_dir() && empty_dir::is_mounted(pod, &path)?),
        known => Ok(known.is_some()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use serde_json::{Value, json};

    use super::*;
    use crate::volumes::tear_down;
    use crate::volumes::testing::in_own_mounts;

    fn pod(volume: Value) -> Pod {
        let metadata = json!({"name": "p", "namespace": "n", "uid": "u1"});
        let container = json!({"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/v"}]});
        serde_json::from_value(json!({"metadata": metadata, "spec": {"containers": [container], "volumes": [volume]}}))
            .unwrap()
    }

    #[test]
    fn a_claim_leads_to_its_volume_or_says_why_not() {
        let claimed = pod(json!({"name": "v", "persistentVolumeClaim": {"claimName": "data"}}));
        let own = pod(json!({"name": "v", "ephemeral": {}}));
        let volume = |pod: &Pod| spec::spec(pod).volumes.clone().unwrap().remove(0);
        assert_eq!(claim_name(&claimed, &volume(&claimed)).as_deref(), Some("data"));
        assert_eq!(claim_name(&own, &volume(&own)).as_deref(), Some("p-v"));
        let look = |pod: &Pod, claim: Value, found: Value| {
            let claim: PersistentVolumeClaim = serde_json::from_value(claim).unwrap();
            let found: PersistentVolume = serde_json::from_value(found).unwrap();
            let name = bound_to(pod, &volume(pod), &claim)?;
            check_reference(&found, &claim)?;
            check_mode(pod, &volume(pod), &found)?;
            Ok::<_, String>(name)
        };
        let bound = |metadata: Value| json!({"metadata": metadata, "spec": {"volumeName": "pv1"}, "status": {"phase": "Bound"}});
        let found = |spec: Value| json!({"metadata": {"name": "pv1"}, "spec": spec});
        let right = json!({"claimRef": {"uid": "c1"}});
        let deleted = json!({"uid": "c1", "deletionTimestamp": "2026-01-01T00:00:00Z"});
        let owned = json!({"uid": "c1", "ownerReferences": [
            {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u1", "controller": true}]});
        let lines = [
            look(&claimed, bound(json!({"uid": "c1"})), found(right.clone())),
            look(&claimed, bound(deleted), found(right.clone())),
            look(&claimed, json!({"metadata": {}, "status": {"phase": "Pending"}}), found(right.clone())),
            look(&claimed, json!({"metadata": {}, "status": {"phase": "Bound"}}), found(right.clone())),
            look(&claimed, bound(json!({"uid": "c1"})), found(json!({}))),
            look(&claimed, bound(json!({"uid": "c2"})), found(right.clone())),
            look(
                &claimed,
                bound(json!({"uid": "c1"})),
                found(json!({"claimRef": {"uid": "c1"}, "volumeMode": "Block"})),
            ),
            look(&own, bound(json!({"uid": "c1", "name": "p-v"})), found(right.clone())),
            look(&own, bound(owned), found(right)),
        ];
        let golden = "\
pv1
PVC is being deleted
PVC is not bound
PVC has empty pvc.Spec.VolumeName
found PV object pv1 but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to the claim
found PV object pv1 but its pv.Spec.ClaimRef.UID c1 does not point to claim.UID c2
volume v has volumeMode Block, but is specified in volumeMounts
PVC n/p-v was not created for pod n/p (pod is not owner)
pv1";
        assert_eq!(lines.map(|line| line.unwrap_or_else(|error| error)).join("\n"), golden);
    }

    #[test]
    fn a_local_volume_is_bound_given_to_the_group_and_outlives_the_pod() {
        in_own_mounts(|| {
            let root = tempfile::tempdir().unwrap();
            let (pods, data) = (root.path().join("pods"), root.path().join("data"));
            fs::create_dir_all(data.join("inner")).unwrap();
            fs::write(data.join("inner/file"), "1").unwrap();
            fs::write(root.path().join("outside"), "1").unwrap();
            fs::set_permissions(data.join("inner/file"), fs::Permissions::from_mode(0o600)).unwrap();
            symlink(root.path().join("outside"), data.join("link")).unwrap();
            let local = json!({"metadata": {"name": "pv1"}, "spec": {"local": {"path": data}}});
            let local: PersistentVolume = serde_json::from_value(local).unwrap();
            let mut user = Use {
                pod: pods.join("u1"),
                volume: "v".into(),
                read_only: false,
                group: Some(2000),
                policy: Policy::Always,
            };
            let look = |path: &Path| {
                let meta = fs::symlink_metadata(path).unwrap();
                (meta.gid(), meta.permissions().mode() & 0o7777)
            };
            assert!(!is_ready(&user.pod, "v").unwrap());
            set_up(&local, &user).unwrap();
            assert!(is_ready(&user.pod, "v").unwrap());
            let target = pods.join("u1/volumes/kubernetes.io~local-volume/pv1");
            assert_eq!(place(&user.pod, "v").as_ref(), Some(&target));
            assert_eq!(look(&target.join("inner/file")), (2000, 0o660));
            assert_eq!((look(&target), look(&target.join("inner"))), ((2000, 0o2775), (2000, 0o2775)));
            assert_ne!(look(&root.path().join("outside")).0, 2000, "a link is not followed");
            // Mounted already, and the group's: what containers changed stays.
            fs::set_permissions(data.join("inner/file"), fs::Permissions::from_mode(0o600)).unwrap();
            set_up(&local, &user).unwrap();
            assert_eq!(look(&target.join("inner/file")).1, 0o600);
            nix::mount::umount(&target).unwrap();
            assert!(!is_ready(&user.pod, "v").unwrap(), "after a reboot of the node it is mounted anew");
            set_up(&local, &user).unwrap();
            fs::set_permissions(data.join("inner/file"), fs::Permissions::from_mode(0o600)).unwrap();
            tear_down::run(&pods, "u1").unwrap();
            assert!(data.join("inner/file").exists() && !pods.join("u1").exists());
            // Anew by policy: the root is the group's, so nothing is looked at; then everything.
            (user.policy, user.pod) = (Policy::OnRootMismatch, pods.join("u2"));
            set_up(&local, &user).unwrap();
            assert_eq!(look(&data.join("inner/file")).1, 0o600);
            tear_down::run(&pods, "u2").unwrap();
            user.policy = Policy::Always;
            set_up(&local, &user).unwrap();
            assert_eq!(look(&data.join("inner/file")).1, 0o660);
            tear_down::run(&pods, "u2").unwrap();
            // Read-only, nothing is given and nothing can be written.
            user.read_only = true;
            set_up(&local, &user).unwrap();
            let refused = fs::write(pods.join("u2/volumes/kubernetes.io~local-volume/pv1/new"), "1").unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
            tear_down::run(&pods, "u2").unwrap();

            let other = json!({"metadata": {"name": "pv2"}, "spec": {"rbd": {"image": "i", "monitors": []}}});
            let error = set_up(&serde_json::from_value(other).unwrap(), &user).unwrap_err();
            assert_eq!(
                error,
                "persistent volume pv2 is of kind rbd; this kubelet supports csi, local, nfs and hostPath"
            );
        });
    }

    #[test]
    fn a_local_device_is_linked_and_a_folder_is_no_device() {
        use nix::sys::stat::{Mode, SFlag, makedev, mknod};

        let root = tempfile::tempdir().unwrap();
        let (pods, device) = (root.path().join("pods"), root.path().join("device"));
        mknod(&device, SFlag::S_IFBLK, Mode::S_IRUSR, makedev(7, 250)).unwrap();
        let user = Use {
            pod: pods.join("u1"),
            volume: "v".into(),
            read_only: false,
            group: Some(2000),
            policy: Policy::Always,
        };
        let pv = |path: &Path| -> PersistentVolume {
            let spec = json!({"volumeMode": "Block", "local": {"path": path}});
            serde_json::from_value(json!({"metadata": {"name": "pv1"}, "spec": spec})).unwrap()
        };
        set_up(&pv(&device), &user).unwrap();
        set_up(&pv(&device), &user).unwrap();
        let link = pods.join("u1/volumeDevices/kubernetes.io~local-volume/pv1");
        assert_eq!((place(&user.pod, "v"), fs::read_link(&link).unwrap()), (Some(link), device.clone()));
        assert!(is_ready(&user.pod, "v").unwrap());
        tear_down::run(&pods, "u1").unwrap();
        assert!(device.exists() && !pods.join("u1").exists());
        let error = set_up(&pv(root.path()), &user).unwrap_err();
        assert_eq!(error, format!("local volume {} is no block device", root.path().display()));
        let host =
            json!({"metadata": {"name": "pv2"}, "spec": {"volumeMode": "Block", "hostPath": {"path": "/dev/x"}}});
        let error = set_up(&serde_json::from_value(host).unwrap(), &user).unwrap_err();
        assert_eq!(error, "hostPath volume pv2 cannot be a device; use a local volume");
    }
}
