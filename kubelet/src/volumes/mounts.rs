//! What is mounted into a container: its volumes, the hosts file, the file for its termination message.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Component, PathBuf};

use bosun_proto::cri;
use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};

use super::{host_path, sub_path};
use crate::make::{Node, env, names, text};
use crate::pod::spec;

/// What was looked up for the mounts of a container.
#[derive(Clone, Debug, Default)]
pub struct Looked {
    /// The images that image volumes show, by volume.
    pub images: BTreeMap<String, cri::ImageSpec>,
    /// Whether the runtime handler of the pod can mount recursively read-only.
    pub recursive_read_only: bool,
}

/// Whether it matters for the container what [`Looked::recursive_read_only`] says.
pub fn wants_recursive_read_only(container: &Container) -> bool {
    let wanted = |m: &VolumeMount| m.recursive_read_only.as_deref().is_some_and(|mode| mode != "Disabled");
    container.volume_mounts.iter().flatten().any(wanted)
}

/// The mounts of a container about to be created; makes the files that they need.
///
/// # Errors
/// A volume that is not in the pod, a subPath that leaves its volume, or any I/O error, in words.
pub fn for_container(
    pod: &Pod,
    container: &Container,
    node: &Node,
    pod_ips: &[String],
    variables: &[(String, String)],
    looked: &Looked,
) -> Result<Vec<cri::Mount>, String> {
    let mut mounts = Vec::new();
    for (index, wanted) in container.volume_mounts.iter().flatten().enumerate() {
        mounts.push(volume_mount(pod, container, node, wanted, index, variables, looked)?);
    }
    let taken =
        |path: &str| container.volume_mounts.iter().flatten().any(|m| m.mount_path.trim_end_matches('/') == path);
    if !taken("/etc/hosts") {
        let path = hosts_file(pod, node, pod_ips).map_err(|error| format!("write the hosts file: {error}"))?;
        mounts.push(bind(text(&path), "/etc/hosts", false));
    }
    let message_path = spec::message_path(container);
    if !taken(message_path) {
        let path = message_file(pod, container, node).map_err(|error| format!("make the termination log: {error}"))?;
        mounts.push(bind(text(&path), message_path, false));
    }
    Ok(mounts)
}

fn bind(from: String, to: &str, readonly: bool) -> cri::Mount {
    cri::Mount { host_path: from, container_path: to.to_owned(), readonly, ..Default::default() }
}

fn volume_mount(
    pod: &Pod,
    container: &Container,
    node: &Node,
    wanted: &VolumeMount,
    index: usize,
    variables: &[(String, String)],
    looked: &Looked,
) -> Result<cri::Mount, String> {
    let sub = given_sub_path(wanted, variables)?;
    let to = match wanted.mount_path.starts_with('/') {
        true => wanted.mount_path.clone(),
        false => format!("/{}", wanted.mount_path),
    };
    if let Some(image) = looked.images.get(&wanted.name) {
        let image_sub_path = sub.unwrap_or_default();
        return Ok(cri::Mount {
            image: Some(image.clone()),
            image_sub_path,
            ..bind(String::new(), &to, wanted.read_only == Some(true))
        });
    }
    let volume = spec::spec(pod).volumes.iter().flatten().find(|v| v.name == wanted.name);
    let mut path = volume
        .and_then(|v| host_path(pod, node, v))
        .ok_or_else(|| format!("cannot find volume {:?} to mount into container {:?}", wanted.name, container.name))?;
    let recursive_read_only = recursive_read_only(wanted, looked.recursive_read_only)?;
    if let Some(sub) = sub {
        let sub = check_sub_path(&sub)?;
        let place =
            sub_path::Place { pod: &node.pod_dir(pod), volume: &wanted.name, container: &container.name, index };
        let create = !volume.is_some_and(super::is_live);
        path = sub_path::bind(&path, &sub, &place, create).map_err(|failed| refusal(&failed, &place))?;
    }
    let propagation = match wanted.mount_propagation.as_deref() {
        Some("HostToContainer") => cri::MountPropagation::PropagationHostToContainer,
        Some("Bidirectional") => cri::MountPropagation::PropagationBidirectional,
        _ => cri::MountPropagation::PropagationPrivate,
    };
    Ok(cri::Mount {
        propagation: propagation as i32,
        recursive_read_only,
        ..bind(text(&path), &to, wanted.read_only == Some(true) || volume.is_some_and(super::is_read_only))
    })
}

/// What the pod's owner is told. No more than that: the details would tell of the node's files.
fn refusal(failed: &sub_path::Failed, place: &sub_path::Place<'_>) -> String {
    let (what, error) = match failed {
        sub_path::Failed::Create(error) => ("create subPath directory", error),
        sub_path::Failed::Prepare(error) => ("prepare subPath", error),
    };
    tracing::warn!(volume = place.volume, container = place.container, %error, "failed to {what}");
    format!("failed to {what} for volumeMount {:?} of container {:?}", place.volume, place.container)
}

/// Whether the mount is read-only all the way down, given what the runtime can do.
fn recursive_read_only(wanted: &VolumeMount, supported: bool) -> Result<bool, String> {
    let mode = wanted.recursive_read_only.as_deref().unwrap_or("Disabled");
    let refused =
        |why: String| Err(format!("volume {:?} requested recursive read-only mode, but it is {why}", wanted.name));
    if mode == "Disabled" {
        return Ok(false);
    }
    if wanted.read_only != Some(true) {
        return refused("not read-only".to_owned());
    }
    if let Some(propagation) = wanted.mount_propagation.as_deref().filter(|p| *p != "None") {
        return refused(format!("not compatible with propagation {propagation:?}"));
    }
    match mode {
        "IfPossible" => Ok(supported),
        "Enabled" if supported => Ok(true),
        "Enabled" => refused("not supported by the runtime".to_owned()),
        other => Err(format!("unknown recursive read-only mode {other:?}")),
    }
}

/// The path inside the volume as given, with variables expanded; none for the whole volume.
fn given_sub_path(wanted: &VolumeMount, variables: &[(String, String)]) -> Result<Option<String>, String> {
    let missing = std::cell::RefCell::new(BTreeSet::new());
    let lookup = |name: &str| {
        let value = variables.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        if value.as_deref().is_none_or(str::is_empty) {
            missing.borrow_mut().insert(name.to_owned());
        }
        value
    };
    let given = match (wanted.sub_path.as_deref(), wanted.sub_path_expr.as_deref()) {
        (_, Some(expr)) if !expr.is_empty() => env::expand(expr, lookup),
        (Some(path), _) if !path.is_empty() => path.to_owned(),
        _ => return Ok(None),
    };
    let missing: Vec<String> = missing.into_inner().into_iter().collect();
    if missing.is_empty() { Ok(Some(given)) } else { Err(format!("missing value for {}", missing.join(", "))) }
}

fn check_sub_path(given: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(given);
    if path.is_absolute() {
        return Err(format!("error SubPath `{given}` must not be an absolute path"));
    }
    match path.components().any(|part| part == Component::ParentDir) {
        true => Err(format!("unable to provision SubPath `{given}`: must not contain '..'")),
        false => Ok(path),
    }
}

/// Writes the pod's hosts file, anew if its addresses changed.
fn hosts_file(pod: &Pod, node: &Node, pod_ips: &[String]) -> io::Result<PathBuf> {
    let path = node.hosts_file(pod);
    let of_node = spec::host_network(pod).then(|| fs::read_to_string("/etc/hosts").unwrap_or_default());
    let wanted = names::hosts_file(pod, node, pod_ips, of_node.as_deref());
    if fs::read_to_string(&path).ok().as_deref() != Some(&wanted) {
        // Written in place: containers that run have it mounted.
        fs::write(&path, wanted)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
    }
    Ok(path)
}

fn message_file(pod: &Pod, container: &Container, node: &Node) -> io::Result<PathBuf> {
    let folder = node.container_dir(pod, &container.name);
    fs::DirBuilder::new().recursive(true).mode(0o750).create(&folder)?;
    let path = folder.join(format!("{:08x}", rand::random::<u32>()));
    let file = fs::File::create_new(&path)?;
    // Any user in the container may write it.
    file.set_permissions(fs::Permissions::from_mode(0o666))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::volumes::testing::node;

    fn mount_of(looked: &Looked, fields: serde_json::Value) -> Result<cri::Mount, String> {
        let mut mount = serde_json::json!({"name": "v", "mountPath": "/to"});
        mount.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {"uid": "u1"}, "spec": {
            "containers": [{"name": "c", "volumeMounts": [mount]}],
            "volumes": [{"name": "v", "hostPath": {"path": "/from"}}]}}))
        .unwrap();
        let container = &spec::spec(&pod).containers[0];
        let wanted = &container.volume_mounts.as_ref().unwrap()[0];
        let variables = [("SET".to_owned(), "s".to_owned()), ("EMPTY".to_owned(), String::new())];
        volume_mount(&pod, container, &node(Path::new("/nowhere")), wanted, 0, &variables, looked)
    }

    #[test]
    fn what_the_runtime_is_told_of_a_mount() {
        use serde_json::json;
        let show = |supported: bool, fields: serde_json::Value| {
            let looked = Looked { recursive_read_only: supported, ..Looked::default() };
            mount_of(&looked, fields).map_or_else(
                |error| error,
                |m| {
                    let propagation = m.propagation();
                    let kinds = (m.readonly, m.recursive_read_only, propagation.as_str_name());
                    format!("{} -> {} {kinds:?}", m.host_path, m.container_path)
                },
            )
        };
        let rro = |mode: &str| json!({"readOnly": true, "recursiveReadOnly": mode});
        let lines = [
            show(false, json!({"readOnly": true, "mountPropagation": "HostToContainer"})),
            show(false, json!({"mountPath": "relative", "mountPropagation": "Bidirectional"})),
            show(true, rro("Disabled")),
            show(true, rro("IfPossible")),
            show(false, rro("IfPossible")),
            show(true, rro("Enabled")),
            show(false, rro("Enabled")),
            show(true, rro("Perhaps")),
            show(true, json!({"recursiveReadOnly": "Enabled"})),
            show(true, json!({"readOnly": true, "recursiveReadOnly": "Enabled", "mountPropagation": "Bidirectional"})),
            show(true, json!({"name": "other"})),
            show(true, json!({"subPath": "/a"})),
            show(true, json!({"subPath": "a/../b"})),
            show(true, json!({"subPathExpr": "$(SET)/$(NOT)/$(EMPTY)"})),
            show(true, json!({"subPath": "a"})),
        ];
        let golden = r#"/from -> /to (true, false, "PROPAGATION_HOST_TO_CONTAINER")
/from -> /relative (false, false, "PROPAGATION_BIDIRECTIONAL")
/from -> /to (true, false, "PROPAGATION_PRIVATE")
/from -> /to (true, true, "PROPAGATION_PRIVATE")
/from -> /to (true, false, "PROPAGATION_PRIVATE")
/from -> /to (true, true, "PROPAGATION_PRIVATE")
volume "v" requested recursive read-only mode, but it is not supported by the runtime
unknown recursive read-only mode "Perhaps"
volume "v" requested recursive read-only mode, but it is not read-only
volume "v" requested recursive read-only mode, but it is not compatible with propagation "Bidirectional"
cannot find volume "other" to mount into container "c"
error SubPath `/a` must not be an absolute path
unable to provision SubPath `a/../b`: must not contain '..'
missing value for EMPTY, NOT
failed to prepare subPath for volumeMount "v" of container "c""#;
        assert_eq!(lines.join("\n"), golden);
    }

    #[test]
    fn what_the_kubelet_writes_containers_only_read() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {"uid": "u1"}, "spec": {
            "containers": [{"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/to"}]}],
            "volumes": [{"name": "v", "configMap": {"name": "m"}}]}}))
        .unwrap();
        let container = &spec::spec(&pod).containers[0];
        let wanted = &container.volume_mounts.as_ref().unwrap()[0];
        let node = node(Path::new("/root"));
        let mount = volume_mount(&pod, container, &node, wanted, 0, &[], &Looked::default()).unwrap();
        assert!(mount.readonly);
        assert_eq!(mount.host_path, "/root/pods/u1/volumes/kubernetes.io~configmap/v");
    }

    #[test]
    fn an_image_volume_is_given_as_an_image_with_its_part() {
        let image = cri::ImageSpec { image: "sha256:1".into(), ..Default::default() };
        let looked = Looked { images: [("v".to_owned(), image.clone())].into(), ..Looked::default() };
        let mount = mount_of(&looked, serde_json::json!({"subPath": "a/b"})).unwrap();
        assert_eq!((mount.image, mount.image_sub_path.as_str()), (Some(image), "a/b"));
        assert_eq!((mount.host_path.as_str(), mount.container_path.as_str()), ("", "/to"));
    }
}
