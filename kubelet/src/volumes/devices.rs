//! The devices that a container gets for its block volumes.

use bosun_proto::cri;
use k8s_openapi::api::core::v1::{Container, Pod};

use super::claims;
use crate::make::{Node, text};
use crate::pod::spec;

/// The devices of a container about to be created.
///
/// # Errors
/// A volume that is not in the pod, or not ready, in words.
pub fn for_container(pod: &Pod, container: &Container, node: &Node) -> Result<Vec<cri::Device>, String> {
    let devices = container.volume_devices.iter().flatten().map(|wanted| {
        let volume = spec::spec(pod).volumes.iter().flatten().find(|volume| volume.name == wanted.name);
        let place = volume.and_then(|volume| claims::place(&node.pod_dir(pod), &volume.name));
        let missing = || format!("cannot find volume {:?} to pass into container {:?}", wanted.name, container.name);
        let path = place.ok_or_else(missing)?;
        let read_only = volume.is_some_and(claims::is_read_only);
        Ok(cri::Device {
            container_path: wanted.device_path.clone(),
            host_path: text(&path),
            permissions: if read_only { "r" } else { "mrw" }.to_owned(),
        })
    });
    devices.collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;
    use crate::volumes::testing::node;

    #[test]
    fn a_block_volume_is_a_device_by_what_its_claim_leads_to() {
        let root = tempfile::tempdir().unwrap();
        let pod: Pod = serde_json::from_value(json!({"metadata": {"uid": "u1"}, "spec": {
            "containers": [{"name": "c", "volumeDevices": [
                {"name": "v", "devicePath": "/dev/xvda"}, {"name": "r", "devicePath": "/dev/xvdb"}]}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c1"}},
                {"name": "r", "persistentVolumeClaim": {"claimName": "c2", "readOnly": true}}]}}))
        .unwrap();
        let node = node(root.path());
        let container = &spec::spec(&pod).containers[0];
        let error = for_container(&pod, container, &node).unwrap_err();
        assert_eq!(error, "cannot find volume \"v\" to pass into container \"c\"");
        let folder = root.path().join("pods/u1/claims");
        fs::create_dir_all(&folder).unwrap();
        for name in ["v", "r"] {
            fs::write(folder.join(format!("{name}.json")), format!("\"/place/{name}\"")).unwrap();
        }
        let devices = for_container(&pod, container, &node).unwrap();
        let shown: Vec<String> =
            devices.iter().map(|d| format!("{} -> {} {}", d.host_path, d.container_path, d.permissions)).collect();
        assert_eq!(shown.join("\n"), "/place/v -> /dev/xvda mrw\n/place/r -> /dev/xvdb r");
    }
}
