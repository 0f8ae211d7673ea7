//! Volumes of a CSI driver: the tests' own driver serves on the node, and everything else is real.

use std::fs;
use std::sync::Arc;

use anyhow::{Result, ensure};
use bosun_tests::images::BUSYBOX_IMAGE;
use bosun_tests::process::eventually;
use tokio::runtime::Runtime;

use crate::Cases;
use crate::case::{Case, LIMIT, has};
use crate::csi_driver::{Driver, NAME, Told};

pub(crate) const CASES: Cases = &[("a_drivers_volume_reaches_a_pod", a_drivers_volume_reaches_a_pod)];

/// A claim and a volume that are bound to each other, as the control plane's binder would leave them.
fn bound(case: &Case, name: &str) -> Result<()> {
    let namespace = &case.namespace;
    let volume = format!("{name}-{namespace}");
    case.kubectl.apply(&format!(
        "apiVersion: v1
kind: PersistentVolume
metadata: {{name: {volume}}}
spec:
  accessModes: [ReadWriteOnce]
  capacity: {{storage: 1Gi}}
  persistentVolumeReclaimPolicy: Retain
  claimRef: {{apiVersion: v1, kind: PersistentVolumeClaim, namespace: {namespace}, name: {name}}}
  csi: {{driver: {NAME}, volumeHandle: {name}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}}}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: ''
  volumeName: {volume}
  resources: {{requests: {{storage: 1Gi}}}}
"
    ))?;
    let uid = case.field(&format!("pvc/{name}"), ".metadata.uid")?;
    let reference = format!(r#"{{"spec":{{"claimRef":{{"uid":"{uid}"}}}}}}"#);
    case.kubectl.ask(&["patch", "pv", &volume, "--type=merge", "-p", &reference])?;
    let bound = r#"{"status":{"phase":"Bound","capacity":{"storage":"1Gi"},"accessModes":["ReadWriteOnce"]}}"#;
    // Only newer clients patch a status.
    let kubectl = case.cluster.kubectl().within(namespace);
    kubectl.ask(&["patch", "pvc", name, "--subresource=status", "--type=merge", "-p", bound])?;
    Ok(())
}

fn a_drivers_volume_reaches_a_pod(case: &Case) -> Result<()> {
    let node = &case.member.node;
    let runtime = Runtime::new()?;
    let told = Arc::new(Told::default());
    let driver = {
        let _inside = runtime.enter();
        Driver::start(&node.data.join("agent/kubelet"), &node.data.join("csi"), &told)
    };
    case.kubectl.apply(&format!(
        "apiVersion: storage.k8s.io/v1\nkind: CSIDriver\nmetadata: {{name: {NAME}}}\nspec: {{attachRequired: false, \
         podInfoOnMount: true, fsGroupPolicy: File, volumeLifecycleModes: [Persistent, Ephemeral], \
         tokenRequests: [{{audience: vault}}]}}\n"
    ))?;
    let csi_node = format!("csinode/{}", node.name);
    case.becomes(&csi_node, ".spec.drivers[0].name", NAME)?;
    ensure!(case.field(&csi_node, ".spec.drivers[0].allocatable.count")? == "16");
    let labels = case.field(&format!("node/{}", node.name), ".metadata.labels")?;
    has(&labels, "topology.test.csi.example.com/rack")?;
    bound(case, "data")?;
    let spec = format!(
        "securityContext: {{fsGroup: 2000}}
containers:
- name: main
  image: {BUSYBOX_IMAGE}
  imagePullPolicy: Never
  command: [sh, -c, 'echo from the pod > /data/note; exec sleep 100000']
  volumeMounts: [{{name: data, mountPath: /data}}, {{name: own, mountPath: /own, readOnly: true}}]
volumes:
- name: data
  persistentVolumeClaim: {{claimName: data}}
- name: own
  csi: {{driver: {NAME}}}
"
    );
    case.kubectl.apply(&case.pod("user", &spec))?;
    case.ready("user")?;
    has(&fs::read_to_string(node.data.join("csi/data/note"))?, "from the pod")?;
    has(&case.exec("user", &["stat", "-c", "%g", "/data"])?, "2000")?;
    let inline = told.line("publish csi-").unwrap_or_default();
    has(&inline, "ephemeral,pod.name,pod.namespace,pod.uid,serviceAccount.name,serviceAccount.tokens")?;
    // It grows while it is used; a new label has the kubelet look at once.
    let grow = r#"{"spec":{"capacity":{"storage":"2Gi"}}}"#;
    case.kubectl.ask(&["patch", "pv", &format!("data-{}", case.namespace), "--type=merge", "-p", grow])?;
    case.kubectl.ask(&["label", "pod", "user", "look=again"])?;
    case.becomes("pvc/data", ".status.capacity.storage", "2Gi")?;
    eventually("the event", LIMIT, || has(&case.kubectl.ask(&["get", "events"])?, "FileSystemResizeSuccessful"))?;
    case.kubectl.ask(&["delete", "pod", "user"])?;
    eventually("the volume to be given back", LIMIT, || {
        ensure!(told.count("unstage data") == 1 && told.count("unpublish") == 2, "{:?}", told.log.lock());
        Ok(())
    })?;
    case.kubectl.ask(&["delete", "pv", &format!("data-{}", case.namespace), "--wait=false"])?;
    drop(driver);
    case.becomes(&csi_node, ".spec.drivers[*].name", "")
}
