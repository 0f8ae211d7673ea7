//! Hostname, hosts file and resolver configuration of a pod.

use bosun_proto::cri;
use k8s_openapi::api::core::v1::Pod;

use super::Node;
use crate::pod::spec;

/// A hostname is at most this long.
const MAX_HOSTNAME: usize = 63;
/// Nameservers that a resolver looks at.
const MAX_NAMESERVERS: usize = 3;
/// Search domains, and their length together.
const MAX_SEARCHES: (usize, usize) = (32, 2048);

/// The pod's short hostname; empty on the node's network, which keeps its own.
pub fn hostname(pod: &Pod) -> String {
    let wanted = spec::spec(pod).hostname.as_deref().filter(|h| !h.is_empty()).unwrap_or_else(|| spec::name(pod));
    if let Some(whole) = spec::spec(pod).hostname_override.as_deref().filter(|h| !h.is_empty()) {
        return whole.to_owned();
    }
    let cut: String = wanted.chars().take(MAX_HOSTNAME).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// The domain that the pod's hostname is completed with; empty without a subdomain.
pub fn domain(pod: &Pod, node: &Node) -> String {
    match spec::spec(pod).subdomain.as_deref() {
        Some(subdomain) if !subdomain.is_empty() => {
            format!("{subdomain}.{}.svc.{}", spec::namespace(pod), node.cluster_domain)
        }
        _ => String::new(),
    }
}

/// The name that `uname -n` shows in the pod.
pub fn sandbox_hostname(pod: &Pod, node: &Node) -> String {
    let (host, domain) = (hostname(pod), domain(pod, node));
    match spec::spec(pod).set_hostname_as_fqdn == Some(true) && !domain.is_empty() {
        true => format!("{host}.{domain}"),
        false => host,
    }
}

/// The pod's `/etc/hosts`. `of_node` is the node's own, for pods on its network.
pub fn hosts_file(pod: &Pod, node: &Node, pod_ips: &[String], of_node: Option<&str>) -> String {
    let mut text = match of_node {
        Some(own) => format!("# Kubernetes-managed hosts file (host network).\n{own}"),
        None => concat!(
            "# Kubernetes-managed hosts file.\n",
            "127.0.0.1\tlocalhost\n",
            "::1\tlocalhost ip6-localhost ip6-loopback\n",
            "fe00::0\tip6-localnet\n",
            "fe00::0\tip6-mcastprefix\n",
            "fe00::1\tip6-allnodes\n",
            "fe00::2\tip6-allrouters\n"
        )
        .to_owned(),
    };
    if of_node.is_none() {
        let (host, domain) = (hostname(pod), domain(pod, node));
        for ip in pod_ips {
            match domain.is_empty() {
                true => text.push_str(&format!("{ip}\t{host}\n")),
                false => text.push_str(&format!("{ip}\t{host}.{domain}\t{host}\n")),
            }
        }
    }
    let aliases = spec::spec(pod).host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
            text.push_str(&format!("{}\t{names}\n", alias.ip));
        }
    }
    text
}

/// The resolver configuration of the pod; `of_node` is the text of the node's resolver file.
pub fn resolver(pod: &Pod, node: &Node, of_node: &str) -> cri::DnsConfig {
    let pod_spec = spec::spec(pod);
    let policy = pod_spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let inherited = parse_resolver(of_node);
    let cluster_first = match policy {
        "ClusterFirst" => !spec::host_network(pod),
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let mut config = match policy {
        "None" => cri::DnsConfig::default(),
        _ if cluster_first && !node.cluster_dns.is_empty() => {
            let mut searches = Vec::new();
            if !node.cluster_domain.is_empty() {
                let domain = &node.cluster_domain;
                searches.push(format!("{}.svc.{domain}", spec::namespace(pod)));
                searches.push(format!("svc.{domain}"));
                searches.push(domain.clone());
            }
            searches.extend(inherited.searches);
            cri::DnsConfig { servers: node.cluster_dns.clone(), searches, options: vec!["ndots:5".into()] }
        }
        _ => inherited,
    };
    if let Some(more) = &pod_spec.dns_config {
        config.servers.extend(more.nameservers.iter().flatten().cloned());
        config.searches.extend(more.searches.iter().flatten().cloned());
        for option in more.options.iter().flatten() {
            let name = option.name.as_deref().unwrap_or_default();
            let text = option.value.as_ref().map_or(name.to_owned(), |value| format!("{name}:{value}"));
            config.options.retain(|known| known.split(':').next() != Some(name));
            config.options.push(text);
        }
    }
    limit(&mut config);
    config
}

fn limit(config: &mut cri::DnsConfig) {
    let mut seen = std::collections::BTreeSet::new();
    config.servers.retain(|server| seen.insert(server.clone()));
    config.servers.truncate(MAX_NAMESERVERS);
    let (mut seen, mut length) = (std::collections::BTreeSet::new(), 0);
    config.searches.retain(|search| {
        length += search.len() + 1;
        length <= MAX_SEARCHES.1 && seen.insert(search.clone())
    });
    config.searches.truncate(MAX_SEARCHES.0);
}

/// Nameservers, search domains and options of a resolver file.
fn parse_resolver(text: &str) -> cri::DnsConfig {
    let mut config = cri::DnsConfig::default();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => config.servers.extend(words.next().map(str::to_owned)),
            Some("search") => config.searches = words.map(|w| w.trim_end_matches('.').to_owned()).collect(),
            Some("options") => config.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    config.searches.retain(|search| !search.is_empty());
    config
}
