//! Zone and question in, records out.

use crate::zone::{Found, Port, Service, Zone};
use hickory_proto::{
    op::{Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT},
    },
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Seconds for which records may be kept.
pub const TTL: u32 = 5;
/// The version of the specification, which `dns-version` answers.
const SPECIFICATION: &str = "1.1.0";
/// How many aliases are followed within the cluster.
const ALIASES: usize = 8;

/// What to do with a question.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It is answered.
    Answer(Answer),
    /// It is not ours; upstream servers know.
    Forward,
}

/// An answer's sections.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the fields are the sections")]
pub struct Answer {
    pub code: ResponseCode,
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
    pub additionals: Vec<Record>,
    /// An alias leads out of the cluster: upstream's records of this name complete the answer.
    pub chase: Option<Name>,
}

/// What a name stands for.
enum Node<'a> {
    /// Nothing.
    Missing,
    /// A name that only has names below it.
    Empty,
    Apex,
    Version,
    Service(Found<'a>),
    /// `_port._protocol` of a Service.
    Port(Found<'a>, &'a str, &'a str),
    /// Addresses of one endpoint or pod.
    Addresses(Vec<IpAddr>),
    Alias(&'a Name),
}

/// Answers a question out of the zone.
#[must_use]
pub fn answer(zone: &Zone, question: &Query) -> Outcome {
    if question.query_class() != DNSClass::IN {
        return Outcome::Forward;
    }
    let name = question.name().to_lowercase();
    if !zone.domain().zone_of(&name) {
        return reverse(zone, question, &name);
    }
    Outcome::Answer(in_zone(zone, question, &name))
}

fn in_zone(zone: &Zone, question: &Query, name: &Name) -> Answer {
    let mut answer = Answer {
        code: ResponseCode::NoError,
        answers: Vec::new(),
        authorities: Vec::new(),
        additionals: Vec::new(),
        chase: None,
    };
    let mut owner = question.name().clone();
    let mut name = name.clone();
    for _ in 0..ALIASES {
        let labels = labels_below(zone, &name);
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let target = match node(zone, &labels) {
            Node::Alias(target) => target.clone(),
            node => {
                fill(zone, &node, &owner, question.query_type(), &mut answer);
                break;
            }
        };
        answer.answers.push(record(&owner, RData::CNAME(CNAME(target.clone()))));
        if question.query_type() == RecordType::CNAME {
            break;
        }
        if !zone.domain().zone_of(&target) {
            answer.chase = Some(target);
            break;
        }
        name = target.to_lowercase();
        owner = target;
    }
    if answer.answers.is_empty() {
        answer.authorities.push(soa(zone));
    }
    answer
}

/// The labels below the zone's domain, the one next to it first.
fn labels_below(zone: &Zone, name: &Name) -> Vec<String> {
    let below = usize::from(name.num_labels().saturating_sub(zone.domain().num_labels()));
    let mut labels: Vec<_> = name.iter().take(below).map(|label| String::from_utf8_lossy(label).into_owned()).collect();
    labels.reverse();
    labels
}

fn node<'a>(zone: &'a Zone, labels: &[&'a str]) -> Node<'a> {
    match labels {
        [] => Node::Apex,
        ["dns-version"] => Node::Version,
        ["svc" | "pod"] => Node::Empty,
        ["svc" | "pod", namespace] if zone.has_namespace(namespace) => Node::Empty,
        ["pod", _, address] => pod_address(address).map_or(Node::Missing, |address| Node::Addresses(vec![address])),
        ["svc", namespace, service, rest @ ..] => match zone.find(namespace, service) {
            Some(found) => below_service(found, rest),
            None => Node::Missing,
        },
        _ => Node::Missing,
    }
}

fn below_service<'a>(found: Found<'a>, rest: &[&'a str]) -> Node<'a> {
    match (found.service, rest) {
        (Service::External(target), []) => Node::Alias(target),
        (Service::External(_), _) => Node::Missing,
        (_, []) => Node::Service(found),
        (_, [protocol]) if protocol.starts_with('_') => {
            match ports(found).any(|port| port.protocol == &protocol[1..]) {
                true => Node::Empty,
                false => Node::Missing,
            }
        }
        (_, [protocol, port]) if protocol.starts_with('_') && port.starts_with('_') => {
            let (protocol, port) = (&protocol[1..], &port[1..]);
            match ports(found).any(|known| known.protocol == protocol && *known.name == *port) {
                true => Node::Port(found, port, protocol),
                false => Node::Missing,
            }
        }
        (Service::Headless { .. }, [label]) => {
            let matching = found.endpoints().filter(|(endpoint, _)| endpoint.label() == **label);
            let addresses: Vec<_> = matching.map(|(endpoint, _)| endpoint.address()).collect();
            if addresses.is_empty() { Node::Missing } else { Node::Addresses(addresses) }
        }
        _ => Node::Missing,
    }
}

/// The named ports of a Service: its own, or its endpoints'.
fn ports(found: Found<'_>) -> impl Iterator<Item = &Port> {
    let own: &[Port] = match found.service {
        Service::Cluster { ports, .. } => ports,
        _ => &[],
    };
    let theirs =
        matches!(found.service, Service::Headless { .. }).then(|| found.endpoints().flat_map(|(_, ports)| ports));
    own.iter().chain(theirs.into_iter().flatten())
}

/// `10-0-0-1` and `fd00--1`.
fn pod_address(label: &str) -> Option<IpAddr> {
    let v4 = label.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
    v4.or_else(|_| label.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6)).ok()
}

fn record(owner: &Name, data: RData) -> Record {
    Record::from_rdata(owner.clone(), TTL, data)
}

fn address_record(owner: &Name, address: IpAddr) -> Record {
    match address {
        IpAddr::V4(v4) => record(owner, RData::A(A(v4))),
        IpAddr::V6(v6) => record(owner, RData::AAAA(AAAA(v6))),
    }
}

fn wants(kind: RecordType, address: IpAddr) -> bool {
    match kind {
        RecordType::A => address.is_ipv4(),
        RecordType::AAAA => address.is_ipv6(),
        RecordType::ANY => true,
        _ => false,
    }
}

fn below(zone: &Zone, labels: &str) -> Name {
    // Labels of Services and endpoints are DNS labels; a zone with a longer name than fits has only its apex.
    Name::from_ascii(labels)
        .and_then(|name| name.append_domain(zone.domain()))
        .unwrap_or_else(|_| zone.domain().clone())
}

fn soa(zone: &Zone) -> Record {
    let soa = SOA::new(below(zone, "ns.dns"), below(zone, "hostmaster"), 1, 7200, 1800, 86400, TTL);
    record(zone.domain(), RData::SOA(soa))
}

/// Puts a node's records of the wanted type into the answer.
fn fill(zone: &Zone, node: &Node<'_>, owner: &Name, kind: RecordType, answer: &mut Answer) {
    match node {
        Node::Missing => answer.code = ResponseCode::NXDomain,
        Node::Empty | Node::Alias(_) => {}
        Node::Apex => match kind {
            RecordType::SOA => answer.answers.push(soa(zone)),
            RecordType::NS => answer.answers.push(record(owner, RData::NS(NS(below(zone, "ns.dns"))))),
            _ => {}
        },
        Node::Version if matches!(kind, RecordType::TXT | RecordType::ANY) => {
            answer.answers.push(record(owner, RData::TXT(TXT::new(vec![SPECIFICATION.to_owned()]))));
        }
        Node::Version => {}
        Node::Addresses(addresses) => push_addresses(owner, kind, addresses.iter().copied(), answer),
        Node::Service(found) => match (found.service, kind) {
            (_, RecordType::SRV) => push_srv(zone, *found, owner, |_| true, answer),
            (Service::Cluster { addresses, .. }, _) => push_addresses(owner, kind, addresses.iter().copied(), answer),
            _ => push_addresses(owner, kind, found.endpoints().map(|(endpoint, _)| endpoint.address()), answer),
        },
        Node::Port(found, port, protocol) => {
            if matches!(kind, RecordType::SRV | RecordType::ANY) {
                push_srv(zone, *found, owner, |known| known.protocol == *protocol && *known.name == **port, answer);
            }
        }
    }
}

fn push_addresses(owner: &Name, kind: RecordType, addresses: impl Iterator<Item = IpAddr>, answer: &mut Answer) {
    for address in addresses.filter(|address| wants(kind, *address)) {
        let record = address_record(owner, address);
        // An endpoint may be in two slices while it moves.
        if !answer.answers.contains(&record) {
            answer.answers.push(record);
        }
    }
}

/// SRV records of the ports that `wanted` picks, and their targets' addresses.
fn push_srv(zone: &Zone, found: Found<'_>, owner: &Name, wanted: impl Fn(&Port) -> bool, answer: &mut Answer) {
    let service = service_name(zone, owner);
    let mut push = |target: &Name, port: &Port, addresses: &[IpAddr]| {
        let record = record(owner, RData::SRV(SRV::new(0, 100, port.number, target.clone())));
        if !answer.answers.contains(&record) {
            answer.answers.push(record);
        }
        for record in addresses.iter().map(|address| address_record(target, *address)) {
            if !answer.additionals.contains(&record) {
                answer.additionals.push(record);
            }
        }
    };
    if let Service::Cluster { addresses, ports } = found.service {
        ports.iter().filter(|port| wanted(port)).for_each(|port| push(&service, port, addresses));
        return;
    }
    for (endpoint, ports) in found.endpoints() {
        let Ok(target) = service.prepend_label(endpoint.label()) else { continue };
        ports.iter().filter(|port| wanted(port)).for_each(|port| push(&target, port, &[endpoint.address()]));
    }
}

/// The name of the Service that `owner` is at or below, in lower case: `<service>.<namespace>.svc.<domain>`.
fn service_name(zone: &Zone, owner: &Name) -> Name {
    owner.to_lowercase().trim_to(usize::from(zone.domain().num_labels()) + 3)
}

/// Names of addresses: ours when the cluster has the address.
fn reverse(zone: &Zone, question: &Query, name: &Name) -> Outcome {
    let Some(address) = full_arpa(name) else { return Outcome::Forward };
    let mut answers = Vec::new();
    for ((namespace, service), found) in zone.by_address(address) {
        let base = below(zone, &format!("{service}.{namespace}.svc"));
        match found.service {
            Service::Cluster { .. } => answers.push(base),
            _ => {
                let matching = found.endpoints().filter(|(endpoint, _)| endpoint.address() == address);
                answers.extend(matching.filter_map(|(endpoint, _)| base.prepend_label(endpoint.label()).ok()));
            }
        }
    }
    answers.sort();
    answers.dedup();
    if answers.is_empty() {
        return Outcome::Forward;
    }
    let wanted = matches!(question.query_type(), RecordType::PTR | RecordType::ANY);
    let records: Vec<_> =
        answers.into_iter().filter(|_| wanted).map(|target| record(question.name(), RData::PTR(PTR(target)))).collect();
    let authorities = if records.is_empty() { vec![soa(zone)] } else { Vec::new() };
    Outcome::Answer(Answer {
        code: ResponseCode::NoError,
        answers: records,
        authorities,
        additionals: Vec::new(),
        chase: None,
    })
}

/// The address of a reverse name that is complete.
fn full_arpa(name: &Name) -> Option<IpAddr> {
    let labels = name.num_labels();
    if labels != 6 && labels != 34 {
        return None;
    }
    let net = name.parse_arpa_name().ok()?;
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

#[cfg(test)]
mod tests;
