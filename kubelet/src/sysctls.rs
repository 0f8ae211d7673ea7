//! Which kernel parameters a pod may set: those that are its own namespaces' and cannot hurt other pods, and those that
//! `allowedUnsafeSysctls` names. Pure.

use k8s_openapi::api::core::v1::Pod;

use crate::pod::spec;

/// The reason of a refusal.
pub const REASON: &str = "SysctlForbidden";

/// Isolated in the pod's namespaces (Kubernetes, "Using sysctls in a cluster"); kernels from 4.15 on have them all.
const SAFE: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// As many characters as a name may have.
const LONGEST: usize = 253;

/// The kernel's namespace that a parameter belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Namespace {
    Ipc,
    Net,
}

/// The parameters that pods may set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowlist {
    names: Vec<(String, Namespace)>,
    prefixes: Vec<(String, Namespace)>,
}

impl Default for Allowlist {
    fn default() -> Self {
        let of = |name: &&str| Some(((*name).to_owned(), namespace(name)?));
        Self { names: SAFE.iter().filter_map(of).collect(), prefixes: Vec::new() }
    }
}

impl Allowlist {
    /// The safe ones, and those of `allowedUnsafeSysctls`: names, or beginnings of names followed by `*`.
    ///
    /// # Errors
    /// A pattern is none, or names what belongs to the whole machine; in stock's words.
    pub fn with(patterns: &[String]) -> Result<Self, String> {
        let mut list = Self::default();
        for pattern in patterns {
            if !is_pattern(pattern) {
                return Err(format!(
                    "sysctl {pattern:?} must have at most {LONGEST} characters and match regex \
                     ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9][-_a-z0-9]*[a-z0-9*]$"
                ));
            }
            let dotted = with_dots(pattern);
            match dotted.strip_suffix('*') {
                Some(prefix) => {
                    let found = namespace(prefix);
                    let found =
                        found.ok_or_else(|| format!("the sysctls {dotted:?} are not known to be namespaced"))?;
                    list.prefixes.push((prefix.to_owned(), found));
                }
                None => {
                    let found = namespace(&dotted);
                    let found = found.ok_or_else(|| format!("the sysctl {dotted:?} are not known to be namespaced"))?;
                    list.names.push((dotted, found));
                }
            }
        }
        Ok(list)
    }

    /// Whether the pod may set what it asks for.
    ///
    /// # Errors
    /// The message of the refusal, in stock's words.
    pub fn check(&self, pod: &Pod) -> Result<(), String> {
        let wanted = spec::spec(pod).security_context.iter().flat_map(|context| context.sysctls.iter().flatten());
        let host = |space: Namespace| match space {
            Namespace::Ipc => spec::spec(pod).host_ipc.unwrap_or_default(),
            Namespace::Net => spec::host_network(pod),
        };
        for sysctl in wanted {
            let name = with_dots(&sysctl.name);
            let exact = self.names.iter().find(|(known, _)| *known == name);
            let found = exact.or_else(|| self.prefixes.iter().find(|(prefix, _)| name.starts_with(prefix.as_str())));
            match found {
                None => return Err(format!("forbidden sysctl: {name:?} not allowlisted")),
                Some((_, space)) if host(*space) => {
                    let space = if *space == Namespace::Ipc { "ipc" } else { "net" };
                    return Err(format!("forbidden sysctl: {name:?} not allowed with host {space} enabled"));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

fn namespace(name: &str) -> Option<Namespace> {
    let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    match name {
        "kernel.sem" => Some(Namespace::Ipc),
        _ if begins(&["kernel.shm", "kernel.msg", "fs.mqueue."]) => Some(Namespace::Ipc),
        _ if begins(&["net."]) => Some(Namespace::Net),
        _ => None,
    }
}

/// The name with dots between its parts. It may be written with slashes, and then a dot is part of a name
/// (`net/ipv4/conf/eth0.1/rp_filter`, see sysctl.d(5)).
pub fn with_dots(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with('/') => {
            let swap = |c: char| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            };
            name.chars().map(swap).collect()
        }
        _ => name.to_owned(),
    }
}

fn is_pattern(text: &str) -> bool {
    let word = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let inner = |part: &[u8]| part.iter().all(|c| word(*c) || matches!(c, b'-' | b'_'));
    let part = |part: &str, last: bool| {
        let bytes = part.as_bytes();
        let (body, starred) = match bytes.split_last() {
            Some((b'*', body)) if last => (body, true),
            _ => (bytes, false),
        };
        let ends = |c: Option<&u8>| c.is_some_and(|c| word(*c));
        inner(body) && ((starred && body.is_empty()) || (ends(body.first()) && (starred || ends(body.last()))))
    };
    let mut parts = text.split(['.', '/']).rev();
    let last = parts.next().unwrap_or_default();
    text.len() <= LONGEST && text != "*" && part(last, true) && parts.all(|p| part(p, false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, more: serde_json::Value) -> Pod {
        let mut spec = json!({"containers": [], "securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    #[test]
    fn a_pod_sets_what_is_its_own() {
        let list = Allowlist::with(&["kernel.msg*".into(), "net/core/somaxconn".into()]).unwrap();
        let check = |name: &str| list.check(&pod(name, json!({})));
        for fine in ["net.ipv4.tcp_rmem", "net/ipv4/tcp_rmem", "kernel.msgmax", "net.core.somaxconn"] {
            assert_eq!(check(fine), Ok(()), "{fine}");
        }
        assert_eq!(check("kernel.sem"), Err("forbidden sysctl: \"kernel.sem\" not allowlisted".into()));
        assert_eq!(check("vm.swappiness"), Err("forbidden sysctl: \"vm.swappiness\" not allowlisted".into()));
        let shared = |name: &str, with: &str| list.check(&pod(name, json!({with: true}))).unwrap_err();
        assert_eq!(
            shared("net.ipv4.tcp_rmem", "hostNetwork"),
            "forbidden sysctl: \"net.ipv4.tcp_rmem\" not allowed with host net enabled"
        );
        assert_eq!(
            shared("kernel.msgmax", "hostIPC"),
            "forbidden sysctl: \"kernel.msgmax\" not allowed with host ipc enabled"
        );
    }

    #[test]
    fn what_is_the_machines_cannot_be_allowed() {
        let refused = |pattern: &str| Allowlist::with(&[pattern.to_owned()]).unwrap_err();
        assert_eq!(refused("vm.swappiness"), "the sysctl \"vm.swappiness\" are not known to be namespaced");
        assert_eq!(refused("kernel.*"), "the sysctls \"kernel.*\" are not known to be namespaced");
        for bad in ["*", "net.*.x", "Net.core", "net..core", "", "net.core."] {
            assert!(refused(bad).contains("must have at most 253 characters"), "{bad}");
        }
        assert_eq!(with_dots("net/ipv4/conf/eth0.1/rp_filter"), "net.ipv4.conf.eth0/1.rp_filter");
    }
}
