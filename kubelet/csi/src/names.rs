//! Paths and names, all as in stock: other programs of the node and the control plane know them too.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// The name of the plugin that all CSI volumes belong to.
pub const PLUGIN: &str = "kubernetes.io/csi";
/// The same as the name of a folder.
pub const PLUGIN_FOLDER: &str = "kubernetes.io~csi";
/// The file that says what volume a folder is for.
pub const DATA_FILE: &str = "vol_data.json";

/// The name of the attachment of a volume to a node.
pub fn attachment(handle: &str, driver: &str, node: &str) -> String {
    format!("csi-{}", sha256(&format!("{handle}{driver}{node}")))
}

/// The handle of an inline volume, which has none of its own.
pub fn inline_handle(pod_uid: &str, volume: &str) -> String {
    format!("csi-{}", sha256(&format!("{pod_uid}{volume}")))
}

/// The name of a volume in the status of a node.
pub fn unique(driver: &str, handle: &str) -> String {
    format!("{PLUGIN}/{driver}^{handle}")
}

fn sha256(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}

/// The folder of a volume that is staged with a file system; its data file and `globalmount` are in it.
pub fn staging(root: &Path, driver: &str, handle: &str) -> PathBuf {
    root.join("plugins").join(PLUGIN).join(driver).join(sha256(handle))
}

/// Where a volume is staged with a file system.
pub fn global_mount(root: &Path, driver: &str, handle: &str) -> PathBuf {
    staging(root, driver, handle).join("globalmount")
}

/// The folder of a pod's CSI volumes with file systems.
pub fn pod_volumes(root: &Path, pod_uid: &str) -> PathBuf {
    root.join("pods").join(pod_uid).join("volumes").join(PLUGIN_FOLDER)
}

/// The folder of one of them; its data file and `mount` are in it.
pub fn pod_volume(root: &Path, pod_uid: &str, name: &str) -> PathBuf {
    pod_volumes(root, pod_uid).join(escaped(name))
}

/// Where a volume is published to a pod.
pub fn target(root: &Path, pod_uid: &str, name: &str) -> PathBuf {
    pod_volume(root, pod_uid, name).join("mount")
}

/// The folder of all block volumes.
pub fn block_volumes(root: &Path) -> PathBuf {
    root.join("plugins").join(PLUGIN).join("volumeDevices")
}

/// Where a block volume is staged.
pub fn block_staging(root: &Path, name: &str) -> PathBuf {
    block_volumes(root).join("staging").join(escaped(name))
}

/// Where a block volume is published to a pod.
pub fn block_target(root: &Path, name: &str, pod_uid: &str) -> PathBuf {
    block_volumes(root).join("publish").join(escaped(name)).join(pod_uid)
}

/// The folder of what is kept of a block volume: its data file, and a file for each pod.
pub fn block_data(root: &Path, name: &str) -> PathBuf {
    block_volumes(root).join(escaped(name)).join("data")
}

/// Where a block volume's device is bound for a pod, beside those of other pods.
pub fn block_global_map(root: &Path, name: &str, pod_uid: &str) -> PathBuf {
    block_volumes(root).join(escaped(name)).join("dev").join(pod_uid)
}

/// The link to the device of a block volume in the pod's folder.
pub fn pod_device(root: &Path, pod_uid: &str, name: &str) -> PathBuf {
    root.join("pods").join(pod_uid).join("volumeDevices").join(PLUGIN_FOLDER).join(escaped(name))
}

fn escaped(name: &str) -> String {
    name.replace('/', "~")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_names_are_stocks() {
        let root = Path::new("/var/lib/kubelet");
        let lines = [
            attachment("vol-1", "ebs.csi.aws.com", "node1"),
            inline_handle("u1", "cache"),
            unique("d.example.com", "vol-1"),
            global_mount(root, "d.example.com", "vol-1").display().to_string(),
            target(root, "u1", "pv1").display().to_string(),
            block_staging(root, "pv1").display().to_string(),
            block_target(root, "pv1", "u1").display().to_string(),
            block_data(root, "pv1").display().to_string(),
            block_global_map(root, "pv1", "u1").display().to_string(),
            pod_device(root, "u1", "pv1").display().to_string(),
        ];
        let golden = "\
csi-a363f2ba21d918ae692c724ddee8f415d32634f633042c37150bd0ec204cfdc8
csi-2eb40120db329d0b1883693648d926ab29de838ab9b06942cb9e21f9d29b0788
kubernetes.io/csi/d.example.com^vol-1
/var/lib/kubelet/plugins/kubernetes.io/csi/d.example.com/d2e8363faaac7ae76def3b14091d8eb5755f6b92e9531627aeec833a8731cc49/globalmount
/var/lib/kubelet/pods/u1/volumes/kubernetes.io~csi/pv1/mount
/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/staging/pv1
/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/publish/pv1/u1
/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/pv1/data
/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/pv1/dev/u1
/var/lib/kubelet/pods/u1/volumeDevices/kubernetes.io~csi/pv1";
        assert_eq!(lines.join("\n"), golden);
    }
}
