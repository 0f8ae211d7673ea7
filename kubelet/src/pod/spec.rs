//! Reading a pod's definition: fields with the defaults that apply when nobody filled them in (static pods).

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec};

/// What role a container has in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`: starts before the main ones and ends after them.
    Sidecar,
    /// One of `spec.containers`.
    Main,
    /// One of `spec.ephemeralContainers`: added to a running pod to look at it; starts once, and counts for nothing.
    Ephemeral,
}

/// The pod's name, empty if it has none.
pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// The pod's namespace.
pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

/// The pod's UID, empty if it has none.
pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// `name_namespace(uid)`, as stock names pods in messages.
pub fn title(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

/// An annotation of the pod.
pub fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// The pod's spec; an empty one where there is none.
pub fn spec(pod: &Pod) -> &PodSpec {
    static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
    pod.spec.as_ref().unwrap_or(&EMPTY)
}

/// `Always`, `OnFailure` or `Never`.
pub fn restart_policy(pod: &Pod) -> &str {
    spec(pod).restart_policy.as_deref().unwrap_or("Always")
}

/// The pod's grace period in seconds: that of its deletion, else its own, else 30.
pub fn grace_period(pod: &Pod) -> i64 {
    pod.metadata.deletion_grace_period_seconds.or(spec(pod).termination_grace_period_seconds).unwrap_or(30).max(0)
}

/// Whether the pod uses the node's network.
pub fn host_network(pod: &Pod) -> bool {
    spec(pod).host_network.unwrap_or(false)
}

/// The init containers, sidecars included, in order.
pub fn init_containers(pod: &Pod) -> &[Container] {
    spec(pod).init_containers.as_deref().unwrap_or_default()
}

/// Whether an init container is a sidecar.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The ephemeral containers.
pub fn ephemeral_containers(pod: &Pod) -> &[EphemeralContainer] {
    spec(pod).ephemeral_containers.as_deref().unwrap_or_default()
}

/// An ephemeral container as any other, without its target.
pub fn as_container(ephemeral: &EphemeralContainer) -> Container {
    let EphemeralContainer {
        args,
        command,
        env,
        env_from,
        image,
        image_pull_policy,
        name,
        security_context,
        stdin,
        stdin_once,
        termination_message_path,
        termination_message_policy,
        tty,
        volume_devices,
        volume_mounts,
        working_dir,
        ..
    } = ephemeral.clone();
    // The API refuses the other fields (ports, probes, hooks, resources, restart policies).
    Container {
        args,
        command,
        env,
        env_from,
        image,
        image_pull_policy,
        name,
        security_context,
        stdin,
        stdin_once,
        termination_message_path,
        termination_message_policy,
        tty,
        volume_devices,
        volume_mounts,
        working_dir,
        ..Container::default()
    }
}

/// The container whose processes an ephemeral one sees, if it names one.
pub fn target<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    let ephemeral = ephemeral_containers(pod).iter().find(|c| c.name == name)?;
    ephemeral.target_container_name.as_deref().filter(|target| !target.is_empty())
}

/// Every init, sidecar and main container with its role, init containers first.
pub fn containers(pod: &Pod) -> impl Iterator<Item = (Role, &Container)> {
    let init = init_containers(pod).iter().map(|c| (if is_sidecar(c) { Role::Sidecar } else { Role::Init }, c));
    init.chain(spec(pod).containers.iter().map(|c| (Role::Main, c)))
}

/// The container of that name, with its role; ephemeral ones included.
pub fn container<'a>(pod: &'a Pod, name: &str) -> Option<(Role, Cow<'a, Container>)> {
    let ephemeral = || ephemeral_containers(pod).iter().find(|c| c.name == name);
    match containers(pod).find(|(_, c)| c.name == name) {
        Some((role, container)) => Some((role, Cow::Borrowed(container))),
        None => ephemeral().map(|c| (Role::Ephemeral, Cow::Owned(as_container(c)))),
    }
}

/// The role of the container of that name.
pub fn role(pod: &Pod, name: &str) -> Option<Role> {
    let ephemeral = || ephemeral_containers(pod).iter().any(|c| c.name == name).then_some(Role::Ephemeral);
    containers(pod).find(|(_, c)| c.name == name).map(|(role, _)| role).or_else(ephemeral)
}

/// The field path by which events name a container.
pub fn field_path(pod: &Pod, container: &str) -> String {
    match role(pod, container) {
        Some(Role::Main) => format!("spec.containers{{{container}}}"),
        Some(Role::Ephemeral) => format!("spec.ephemeralContainers{{{container}}}"),
        _ => format!("spec.initContainers{{{container}}}"),
    }
}

/// The image as written.
pub fn image(container: &Container) -> &str {
    container.image.as_deref().unwrap_or_default()
}

/// `Always`, `IfNotPresent` or `Never`; the default depends on the tag.
pub fn pull_policy(container: &Container) -> &str {
    pull_policy_of(image(container), container.image_pull_policy.as_deref())
}

/// The same of an image that is no container's.
pub fn pull_policy_of<'a>(image: &str, given: Option<&'a str>) -> &'a str {
    match given {
        Some(policy) if !policy.is_empty() => policy,
        _ if image.contains('@') => "IfNotPresent",
        _ => match image.rsplit('/').next().and_then(|last| last.split_once(':')) {
            Some((_, tag)) if tag != "latest" => "IfNotPresent",
            _ => "Always",
        },
    }
}

/// Where the container leaves its termination message.
pub fn message_path(container: &Container) -> &str {
    container.termination_message_path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/dev/termination-log")
}

/// `File` or `FallbackToLogsOnError`.
pub fn message_policy(container: &Container) -> &str {
    container.termination_message_policy.as_deref().filter(|p| !p.is_empty()).unwrap_or("File")
}

/// Hash of what makes a running container another one: its name and image (the only fields that may change in place and
/// need a restart). FNV-1a in hexadecimal.
pub fn container_hash(container: &Container) -> String {
    let text = serde_json::json!({"name": container.name, "image": image(container)}).to_string();
    let hash = text.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("{hash:x}")
}

/// The container's own restart policy, or its pod's.
pub fn restart_policy_of<'a>(pod: &'a Pod, container: &'a Container) -> &'a str {
    container.restart_policy.as_deref().unwrap_or_else(|| restart_policy(pod))
}

/// The action of the first of the container's rules that its exit code matches.
pub fn restart_rule(container: &Container, exit_code: i32) -> Option<&str> {
    let rule = container.restart_policy_rules.iter().flatten().find(|rule| {
        rule.exit_codes.as_ref().is_some_and(|codes| {
            let listed = codes.values.iter().flatten().any(|value| *value == exit_code);
            if codes.operator == "NotIn" { !listed } else { listed }
        })
    });
    rule.map(|rule| rule.action.as_str())
}

/// Whether this container is started again after it ended with `exit_code` (none: how it ended is unknown).
///
/// The container's own rules go first, then its own policy, then the pod's.
pub fn restarts_after(pod: &Pod, container: &Container, exit_code: Option<i32>) -> bool {
    if let Some("Restart" | "RestartAllContainers") = exit_code.and_then(|code| restart_rule(container, code)) {
        return true;
    }
    let role = role(pod, &container.name);
    if role == Some(Role::Ephemeral) {
        return false;
    }
    let init = matches!(role, Some(Role::Init | Role::Sidecar));
    match restart_policy_of(pod, container) {
        "Never" => false,
        "OnFailure" => exit_code != Some(0),
        // An init container that succeeded has done its work.
        _ if init && !is_sidecar(container) => exit_code != Some(0),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_image(image: &str) -> Container {
        Container { image: Some(image.into()), ..Default::default() }
    }

    #[test]
    fn the_pull_policy_depends_on_the_tag() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.25", "IfNotPresent"),
            ("host:5000/nginx", "Always"),
            ("host:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:00", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(&with_image(image)), policy, "{image}");
        }
    }

    #[test]
    fn rules_by_exit_code_go_before_the_policy() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {"restartPolicy": "Never", "containers": [
            {"name": "a", "restartPolicy": "Never", "restartPolicyRules": [
                {"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]},
            {"name": "b"}]}}))
        .unwrap();
        let containers = &spec(&pod).containers;
        assert!(restarts_after(&pod, &containers[0], Some(42)));
        assert!(!restarts_after(&pod, &containers[0], Some(1)));
        assert!(!restarts_after(&pod, &containers[1], Some(1)));
    }
}
