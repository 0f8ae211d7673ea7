//! Static pods, from a folder and from a URL.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config::KubeletConfiguration;
use crate::sources;

pub(super) fn static_pods(
    config: &KubeletConfiguration,
    name: &str,
    parts: &mut tokio::task::JoinSet<()>,
    cancel: &CancellationToken,
) -> Option<mpsc::UnboundedReceiver<BTreeMap<String, Arc<Pod>>>> {
    if config.static_pod_path.is_empty() {
        return None;
    }
    let (statics_to, statics) = mpsc::unbounded_channel();
    let path = PathBuf::from(&config.static_pod_path);
    let poll = config.file_check_frequency.0;
    parts.spawn(sources::watch_static(path, name.to_owned(), poll, statics_to, cancel.clone()));
    Some(statics)
}

/// Static pods from the URL, if one is configured.
pub(super) fn url_pods(
    config: &KubeletConfiguration,
    name: &str,
    parts: &mut tokio::task::JoinSet<()>,
    cancel: &CancellationToken,
) -> Option<mpsc::UnboundedReceiver<BTreeMap<String, Arc<Pod>>>> {
    if config.static_pod_url.is_empty() {
        return None;
    }
    let (pods_to, pods) = mpsc::unbounded_channel();
    let from = sources::url::Source {
        url: config.static_pod_url.clone(),
        headers: config.static_pod_url_header.clone(),
        node: name.to_owned(),
        period: config.http_check_frequency.0,
    };
    parts.spawn(from.watch(pods_to, cancel.clone()));
    Some(pods)
}
