//! Where pods come from: the API server's watch, a folder (or file) of static pod manifests, and a [`url`] of them.

mod check;
pub mod url;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};
use k8s_openapi::api::core::v1::{Pod, Toleration};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::pod::{labels, spec};

/// Reads all manifests at `path` (a folder's files, but hidden ones, or one file). A manifest that cannot be read is
/// logged with its name and left out; a missing folder is empty.
pub fn read_static(path: &Path, node: &str) -> BTreeMap<String, Arc<Pod>> {
    let files = match fs::read_dir(path) {
        Ok(entries) => {
            let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            files.retain(|file| {
                file.is_file() && !file.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'))
            });
            files.sort();
            files
        }
        Err(_) if path.is_file() => vec![path.to_path_buf()],
        Err(_) => Vec::new(),
    };
    let mut pods = BTreeMap::new();
    for file in files {
        match read(&file).and_then(|text| static_pod(&text, &file, node)) {
            Ok(pod) => drop(pods.insert(spec::uid(&pod).to_owned(), Arc::new(pod))),
            Err(error) => tracing::error!(file = %file.display(), error, "static pod manifest refused"),
        }
    }
    pods
}

/// Reads a manifest, no more of it than a manifest may have.
fn read(file: &Path) -> Result<String, String> {
    let mut text = String::new();
    // A pipe in its place (since it was looked at) is not waited for.
    let opened = fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open(file);
    let most = check::LARGEST;
    let read = opened.and_then(|file| file.take(most + 1).read_to_string(&mut text)).map_err(|e| e.to_string())?;
    if read as u64 > most {
        return Err(format!("it has more than the {most} bytes that a manifest may have"));
    }
    Ok(text)
}

/// A static pod from a manifest: named after the node, with a UID that follows from what it says.
///
/// # Errors
/// The manifest is no pod, or lacks what a pod needs; the text names the field.
pub fn static_pod(text: &str, file: &Path, node: &str) -> Result<Pod, String> {
    bosun_kit::config::check_depth(text)?;
    let pod: Pod = bosun_kit::config::from_yaml(text, &file.display().to_string()).map_err(|e| e.to_string())?;
    let mut pod = take_up(pod, text, &format!("host:{node}file:{}", file.display()), "file", node)?;
    // Nothing that keeps ordinary pods off a node may keep off a static one.
    let everything =
        Toleration { operator: Some("Exists".into()), effect: Some("NoExecute".into()), ..Toleration::default() };
    pod.spec.get_or_insert_default().tolerations.get_or_insert_default().push(everything);
    Ok(pod)
}

/// Makes the node's pod of a manifest's: its UID follows from what it says (`text`) and where that was found (`place`).
fn take_up(mut pod: Pod, text: &str, place: &str, source: &str, node: &str) -> Result<Pod, String> {
    let name = spec::name(&pod).to_owned();
    if name.is_empty() {
        return Err("metadata.name: Required value".to_owned());
    }
    let Some(pod_spec) = &mut pod.spec else { return Err("spec: Required value".to_owned()) };
    pod_spec.node_name = Some(node.to_owned());
    let mut hash = Sha256::new();
    hash.update(text);
    hash.update(place);
    let own = spec::uid(&pod).to_owned();
    let hash = hex::encode(&hash.finalize()[..16]);
    let uid = if own.is_empty() { hash.clone() } else { own };
    let metadata = &mut pod.metadata;
    metadata.uid = Some(uid);
    metadata.name = Some(format!("{name}-{}", node.to_lowercase()));
    metadata.namespace.get_or_insert_with(|| "default".to_owned());
    let annotations = metadata.annotations.get_or_insert_with(BTreeMap::new);
    annotations.insert(labels::CONFIG_HASH.into(), hash);
    annotations.insert(labels::CONFIG_SOURCE.into(), source.into());
    annotations.insert(labels::CONFIG_SEEN.into(), jiff::Timestamp::now().to_string());
    check::check(&pod)
}

/// The pod by which the API server shows a static pod.
pub fn mirror_of(pod: &Pod, node: &str) -> Pod {
    let mut mirror = pod.clone();
    mirror.status = None;
    let hash = spec::annotation(pod, labels::CONFIG_HASH).unwrap_or_default().to_owned();
    let metadata = &mut mirror.metadata;
    (metadata.uid, metadata.resource_version, metadata.creation_timestamp) = (None, None, None);
    metadata.annotations.get_or_insert_with(BTreeMap::new).insert(labels::CONFIG_MIRROR.into(), hash);
    if let Some(pod_spec) = &mut mirror.spec {
        pod_spec.node_name = Some(node.to_owned());
    }
    mirror
}

/// Whether the pod only shows a static pod.
pub fn is_mirror(pod: &Pod) -> bool {
    spec::annotation(pod, labels::CONFIG_MIRROR).is_some()
}

/// Sends all static pods at `path` now, whenever the kernel says that something there changed, and every `poll`.
pub async fn watch_static(
    path: PathBuf,
    node: String,
    poll: Duration,
    pods: mpsc::UnboundedSender<BTreeMap<String, Arc<Pod>>>,
    cancel: CancellationToken,
) {
    let mut seen: Option<Vec<String>> = None;
    loop {
        // From before it is read: what changes meanwhile is read again.
        let events = watching(&path);
        // Reading may take a while, and what is read may be anything.
        let (from, name) = (path.clone(), node.clone());
        let Ok(found) = tokio::task::spawn_blocking(move || read_static(&from, &name)).await else { return };
        let uids: Vec<String> = found.keys().cloned().collect();
        if seen.as_ref() != Some(&uids) {
            seen = Some(uids);
            if pods.send(found).is_err() {
                return;
            }
        }
        tokio::select! {
            () = changed(events) => tokio::time::sleep(Duration::from_millis(50)).await,
            () = tokio::time::sleep(poll) => {}
            () = cancel.cancelled() => return,
        }
    }
}

/// Watches a folder from now on; none if the kernel cannot.
fn watching(path: &Path) -> Option<EventStream<[u8; 1024]>> {
    let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::MOVED_FROM | WatchMask::DELETE;
    let watched = Inotify::init().and_then(|inotify| {
        inotify.watches().add(path, mask)?;
        inotify.into_event_stream([0; 1024])
    });
    watched.ok()
}

/// Returns when something in the folder has changed since it is watched; never, if it is not.
async fn changed(events: Option<EventStream<[u8; 1024]>>) {
    match events {
        Some(mut events) => drop(events.next().await),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: a, image: b}]}";

    #[test]
    fn a_static_pod_is_named_after_its_node_and_known_by_its_content() {
        let read = |text: &str| static_pod(text, Path::new("/m/web.yaml"), "Node1").unwrap();
        let pod = read(MANIFEST);
        assert_eq!((spec::name(&pod), spec::namespace(&pod), spec::uid(&pod).len()), ("web-node1", "default", 32));
        assert_eq!(spec::uid(&pod), spec::uid(&read(MANIFEST)));
        assert_ne!(spec::uid(&pod), spec::uid(&read(&MANIFEST.replace("image: b", "image: c"))));
        let mirror = mirror_of(&pod, "Node1");
        assert_eq!(spec::annotation(&mirror, labels::CONFIG_MIRROR), spec::annotation(&pod, labels::CONFIG_HASH));
        assert!(is_mirror(&mirror) && !is_mirror(&pod) && mirror.metadata.uid.is_none());
    }

    #[test]
    fn what_is_wrong_with_a_manifest_is_named() {
        let error = |text: &str| static_pod(text, Path::new("f"), "n").unwrap_err();
        assert!(error("metadata: {name: a}\nspec: {containers: []}").contains("spec.containers"));
        assert!(error("metadata: {nam: a}").contains("nam"));
    }
}
