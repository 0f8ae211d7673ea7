//! The configuration of one container.

use std::collections::BTreeMap;

use bosun_proto::cri;
use k8s_openapi::api::core::v1::{Container, Pod};

use super::security::ImageUser;
use super::{Node, env, resources, security};
use crate::pod::{labels, spec};

/// What was looked up for a container.
#[derive(Clone, Debug, Default)]
pub struct Looked {
    /// The environment; see [`env::environment`].
    pub env: Vec<(String, String)>,
    /// All mounts, in order.
    pub mounts: Vec<cri::Mount>,
    /// Devices of the node.
    pub devices: Vec<cri::Device>,
    /// The image as the runtime knows it.
    pub image_ref: String,
    /// Who the image runs as.
    pub image_user: ImageUser,
    /// The id of the container whose processes an ephemeral one sees.
    pub target: Option<String>,
    /// See [`crate::pod::record::PodRecord::round`].
    pub round: u32,
    /// The pod's user namespace.
    pub user_namespace: cri::UserNamespace,
}

/// The container's configuration.
pub fn config(pod: &Pod, container: &Container, node: &Node, attempt: u32, looked: Looked) -> cri::ContainerConfig {
    let variables: BTreeMap<&str, &str> = looked.env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let expand = |list: &Option<Vec<String>>| -> Vec<String> {
        let known = |name: &str| variables.get(name).map(|v| (*v).to_owned());
        list.iter().flatten().map(|text| env::expand(text, known)).collect()
    };
    let (command, args) = (expand(&container.command), expand(&container.args));
    let mut security_context = security::container(pod, container, node, &looked.image_user, looked.target);
    if let Some(namespaces) = &mut security_context.namespace_options {
        namespaces.userns_options = Some(looked.user_namespace);
    }
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: container.name.clone(), attempt }),
        image: Some(cri::ImageSpec {
            image: looked.image_ref,
            user_specified_image: spec::image(container).to_owned(),
            ..Default::default()
        }),
        command,
        args,
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: looked.env.into_iter().map(|(key, value)| cri::KeyValue { key, value: value.into_bytes() }).collect(),
        mounts: looked.mounts,
        devices: looked.devices,
        labels: labels::container_labels(pod, container),
        annotations: labels::container_annotations(pod, container, attempt, looked.round),
        log_path: format!("{}/{attempt}.log", container.name),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources::container_resources(pod, container, node)),
            security_context: Some(security_context),
        }),
        ..Default::default()
    }
}
