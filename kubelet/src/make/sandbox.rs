//! The configuration of a pod's sandbox.

use bosun_proto::cri;
use k8s_openapi::api::core::v1::Pod;

use super::{Node, names, resources, security, text};
use crate::pod::{labels, spec};
use crate::sysctls::with_dots;

/// The sandbox of the pod; `resolver_file` is the text of the node's.
pub fn config(
    pod: &Pod,
    node: &Node,
    attempt: u32,
    resolver_file: &str,
    user_namespace: cri::UserNamespace,
) -> cri::PodSandboxConfig {
    let mut security_context = security::sandbox(pod, node);
    if let Some(namespaces) = &mut security_context.namespace_options {
        namespaces.userns_options = Some(user_namespace);
    }
    let host_network = spec::host_network(pod);
    let sysctls = spec::spec(pod).security_context.iter().flat_map(|c| c.sysctls.iter().flatten());
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: spec::name(pod).into(),
            uid: spec::uid(pod).into(),
            namespace: spec::namespace(pod).into(),
            attempt,
        }),
        hostname: if host_network { String::new() } else { names::sandbox_hostname(pod, node) },
        log_directory: text(&node.log_dir(pod)),
        dns_config: Some(names::resolver(pod, node, resolver_file)),
        port_mappings: if host_network { Vec::new() } else { port_mappings(pod) },
        labels: labels::sandbox_labels(pod),
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: resources::cgroup_parent(pod, node),
            security_context: Some(security_context),
            sysctls: sysctls.map(|s| (with_dots(&s.name), s.value.clone())).collect(),
            overhead: Some(resources::overhead(pod, node)),
            resources: Some(resources::sandbox_resources(pod, node)),
        }),
        windows: None,
    }
}

/// Host ports that the pod's containers ask for.
fn port_mappings(pod: &Pod) -> Vec<cri::PortMapping> {
    let ports = spec::containers(pod).flat_map(|(_, c)| c.ports.iter().flatten());
    ports
        .filter_map(|port| {
            Some(cri::PortMapping {
                protocol: protocol(port.protocol.as_deref()) as i32,
                container_port: port.container_port,
                host_port: port.host_port.filter(|p| *p > 0)?,
                host_ip: port.host_ip.clone().unwrap_or_default(),
            })
        })
        .collect()
}

fn protocol(name: Option<&str>) -> cri::Protocol {
    match name {
        Some("UDP") => cri::Protocol::Udp,
        Some("SCTP") => cri::Protocol::Sctp,
        _ => cri::Protocol::Tcp,
    }
}
