//! Security contexts: the pod's and the container's joined, as the runtime takes them.

use bosun_proto::cri;
use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, SELinuxOptions, SeccompProfile, SecurityContext};

use super::Node;
use crate::pod::spec;

/// Paths that a container does not see, and those it cannot write, unless `procMount: Unmasked`.
const MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn of_pod(pod: &Pod) -> &PodSecurityContext {
    static EMPTY: std::sync::LazyLock<PodSecurityContext> = std::sync::LazyLock::new(PodSecurityContext::default);
    spec::spec(pod).security_context.as_ref().unwrap_or(&EMPTY)
}

fn of_container(container: &Container) -> &SecurityContext {
    static EMPTY: std::sync::LazyLock<SecurityContext> = std::sync::LazyLock::new(SecurityContext::default);
    container.security_context.as_ref().unwrap_or(&EMPTY)
}

fn int(value: Option<i64>) -> Option<cri::Int64Value> {
    value.map(|value| cri::Int64Value { value })
}

/// Who an image runs as: a number, a name, or nothing (root).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageUser {
    /// The numeric user.
    pub uid: Option<i64>,
    /// The user by name.
    pub name: String,
}

/// Checks `runAsNonRoot` against the user that the container would run as.
///
/// # Errors
/// In stock's words; the container must not be created.
pub fn check_non_root(pod: &Pod, container: &Container, image: &ImageUser) -> Result<(), String> {
    let (of_pod, of_container) = (of_pod(pod), of_container(container));
    if of_container.run_as_non_root.or(of_pod.run_as_non_root) != Some(true) {
        return Ok(());
    }
    let who = format!("(pod: \"{}\", container: {})", spec::title(pod), container.name);
    match of_container.run_as_user.or(of_pod.run_as_user) {
        Some(0) => Err(format!("container's runAsUser breaks non-root policy {who}")),
        Some(_) => Ok(()),
        None if !image.name.is_empty() => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root {who}",
            image.name
        )),
        None if image.uid.unwrap_or(0) == 0 => {
            Err(format!("container has runAsNonRoot and image will run as root {who}"))
        }
        None => Ok(()),
    }
}

/// Which namespaces the pod's processes live in.
pub fn namespaces(pod: &Pod) -> cri::NamespaceOption {
    let pod_spec = spec::spec(pod);
    let node_or_pod = |on_node: Option<bool>| match on_node {
        Some(true) => cri::NamespaceMode::Node,
        _ => cri::NamespaceMode::Pod,
    };
    let pid = match (pod_spec.host_pid, pod_spec.share_process_namespace) {
        (Some(true), _) => cri::NamespaceMode::Node,
        (_, Some(true)) => cri::NamespaceMode::Pod,
        _ => cri::NamespaceMode::Container,
    };
    cri::NamespaceOption {
        network: node_or_pod(pod_spec.host_network) as i32,
        ipc: node_or_pod(pod_spec.host_ipc) as i32,
        pid: pid as i32,
        ..Default::default()
    }
}

fn seccomp(profile: Option<&SeccompProfile>, node: &Node) -> cri::SecurityProfile {
    use cri::security_profile::ProfileType;
    let of = |kind: ProfileType| cri::SecurityProfile { profile_type: kind as i32, ..Default::default() };
    match profile.map(|p| (p.type_.as_str(), p.localhost_profile.as_deref().unwrap_or_default())) {
        Some(("RuntimeDefault", _)) => of(ProfileType::RuntimeDefault),
        Some(("Localhost", file)) => {
            let path = node.root_dir.join("seccomp").join(file);
            cri::SecurityProfile { localhost_ref: super::text(&path), ..of(ProfileType::Localhost) }
        }
        Some(_) => of(ProfileType::Unconfined),
        None if node.seccomp_default => of(ProfileType::RuntimeDefault),
        None => of(ProfileType::Unconfined),
    }
}

/// The AppArmor profile of a container (none: of the sandbox): its own, else its pod's, else that of the annotation which
/// was there before the field. Nothing if none is named.
fn apparmor(pod: &Pod, container: Option<&Container>) -> Option<cri::SecurityProfile> {
    use cri::security_profile::ProfileType;
    let of = |kind: ProfileType, name: &str| {
        Some(cri::SecurityProfile { profile_type: kind as i32, localhost_ref: name.to_owned() })
    };
    let own = container.and_then(|c| of_container(c).app_armor_profile.as_ref());
    if let Some(profile) = own.or(of_pod(pod).app_armor_profile.as_ref()) {
        return match profile.type_.as_str() {
            "RuntimeDefault" => of(ProfileType::RuntimeDefault, ""),
            "Localhost" => of(ProfileType::Localhost, profile.localhost_profile.as_deref().unwrap_or_default()),
            _ => of(ProfileType::Unconfined, ""),
        };
    }
    let key = format!("container.apparmor.security.beta.kubernetes.io/{}", container?.name);
    match spec::annotation(pod, &key)? {
        "runtime/default" => of(ProfileType::RuntimeDefault, ""),
        "unconfined" => of(ProfileType::Unconfined, ""),
        other => of(ProfileType::Localhost, other.strip_prefix("localhost/")?),
    }
}

/// The profile as runtimes took it before there was a message for it.
fn apparmor_text(profile: &cri::SecurityProfile) -> String {
    use cri::security_profile::ProfileType;
    match profile.profile_type() {
        ProfileType::RuntimeDefault => "runtime/default".to_owned(),
        ProfileType::Unconfined => "unconfined".to_owned(),
        ProfileType::Localhost => format!("localhost/{}", profile.localhost_ref),
    }
}

/// Whether the pod or one of its containers is to be confined by AppArmor, so that the node must have it.
pub fn needs_apparmor(pod: &Pod) -> bool {
    let confined = |profile: Option<cri::SecurityProfile>| {
        profile.is_some_and(|p| p.profile_type() != cri::security_profile::ProfileType::Unconfined)
    };
    confined(apparmor(pod, None)) || spec::containers(pod).any(|(_, c)| confined(apparmor(pod, Some(c))))
}

fn selinux(options: Option<&SELinuxOptions>) -> Option<cri::SeLinuxOption> {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    options.map(|o| cri::SeLinuxOption {
        user: text(&o.user),
        role: text(&o.role),
        r#type: text(&o.type_),
        level: text(&o.level),
    })
}

fn groups(pod: &Pod) -> Vec<i64> {
    let context = of_pod(pod);
    context.fs_group.into_iter().chain(context.supplemental_groups.iter().flatten().copied()).collect()
}

fn groups_policy(pod: &Pod) -> i32 {
    match of_pod(pod).supplemental_groups_policy.as_deref() {
        Some("Strict") => cri::SupplementalGroupsPolicy::Strict as i32,
        _ => cri::SupplementalGroupsPolicy::Merge as i32,
    }
}

/// Whether the pod's processes are to have the groups that it names and no others.
pub fn wants_strict_groups(pod: &Pod) -> bool {
    of_pod(pod).supplemental_groups_policy.as_deref() == Some("Strict")
}

/// The security context of the sandbox: that of its pause process and of what its containers share.
pub fn sandbox(pod: &Pod, node: &Node) -> cri::LinuxSandboxSecurityContext {
    let context = of_pod(pod);
    cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod)),
        run_as_user: int(context.run_as_user),
        // A group is only taken together with a user.
        run_as_group: int(context.run_as_group.filter(|_| context.run_as_user.is_some())),
        supplemental_groups: groups(pod),
        supplemental_groups_policy: groups_policy(pod),
        privileged: spec::containers(pod).any(|(_, c)| of_container(c).privileged == Some(true)),
        seccomp: Some(seccomp(
            context
                .seccomp_profile
                .as_ref()
                .or(Some(&SeccompProfile { type_: "RuntimeDefault".into(), ..Default::default() })),
            node,
        )),
        selinux_options: selinux(context.se_linux_options.as_ref()),
        apparmor: apparmor(pod, None),
        ..Default::default()
    }
}

/// The security context of a container; with the id of a `target` it sees that container's processes.
pub fn container(
    pod: &Pod,
    container: &Container,
    node: &Node,
    image: &ImageUser,
    target: Option<String>,
) -> cri::LinuxContainerSecurityContext {
    let mut namespaces = namespaces(pod);
    if let Some(target_id) = target {
        (namespaces.pid, namespaces.target_id) = (cri::NamespaceMode::Target as i32, target_id);
    }
    let (of_pod, own) = (of_pod(pod), of_container(container));
    let user = own.run_as_user.or(of_pod.run_as_user);
    let (uid, name) = match user {
        Some(_) => (user, String::new()),
        None => (image.uid, image.name.clone()),
    };
    let privileged = own.privileged == Some(true);
    let unmasked = privileged || own.proc_mount.as_deref() == Some("Unmasked");
    let paths = |list: &[&str]| if unmasked { Vec::new() } else { list.iter().map(|p| (*p).to_owned()).collect() };
    let capabilities = own.capabilities.as_ref();
    let apparmor = apparmor(pod, Some(container));
    #[expect(deprecated, reason = "runtimes before containerd 1.6 read the text alone")]
    cri::LinuxContainerSecurityContext {
        capabilities: capabilities.map(|c| cri::Capability {
            add_capabilities: c.add.clone().unwrap_or_default(),
            drop_capabilities: c.drop.clone().unwrap_or_default(),
            ..Default::default()
        }),
        privileged,
        namespace_options: Some(namespaces),
        run_as_user: int(uid),
        run_as_group: int(own.run_as_group.or(of_pod.run_as_group)),
        run_as_username: name,
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups: groups(pod),
        supplemental_groups_policy: groups_policy(pod),
        selinux_options: selinux(own.se_linux_options.as_ref().or(of_pod.se_linux_options.as_ref())),
        apparmor_profile: apparmor.as_ref().map(apparmor_text).unwrap_or_default(),
        apparmor,
        no_new_privs: no_new_privs(own),
        masked_paths: paths(MASKED),
        readonly_paths: paths(READ_ONLY),
        seccomp: Some(match privileged {
            true => seccomp(Some(&SeccompProfile { type_: "Unconfined".into(), ..Default::default() }), node),
            false => seccomp(own.seccomp_profile.as_ref().or(of_pod.seccomp_profile.as_ref()), node),
        }),
        ..Default::default()
    }
}

fn no_new_privs(context: &SecurityContext) -> bool {
    context.allow_privilege_escalation == Some(false)
}

#[cfg(test)]
#[path = "security_tests.rs"]
mod tests;
