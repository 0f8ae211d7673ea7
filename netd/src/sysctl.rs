//! The kernel settings that pods' traffic needs.

use ipnet::IpNet;
use std::{io, path::Path};

/// Sets what can be set and tells of what cannot.
pub(crate) fn prepare(pod_cidrs: &[IpNet]) {
    let families = [("net/ipv4/ip_forward", "iptables", true), ("net/ipv6/conf/all/forwarding", "ip6tables", false)];
    for (forward, filter, v4) in families {
        if !pod_cidrs.iter().any(|net| net.addr().is_ipv4() == v4) {
            continue;
        }
        if let Err(error) = set(forward) {
            tracing::error!(key = forward, %error, "packets will not be forwarded; set it to 1");
        }
        // Without it a Service's answer from a pod on the same bridge never meets the address translation.
        let bridged = format!("net/bridge/bridge-nf-call-{filter}");
        if let Err(error) = set(&bridged) {
            tracing::warn!(key = bridged, %error, "pods may not reach Services whose pod is on their own node; load br_netfilter");
        }
    }
}

fn set(key: &str) -> io::Result<()> {
    let path = Path::new("/proc/sys").join(key);
    if std::fs::read_to_string(&path)?.trim() == "1" { Ok(()) } else { std::fs::write(&path, "1") }
}
