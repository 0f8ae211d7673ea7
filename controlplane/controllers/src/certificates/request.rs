//! What a signing request asks for, and which of them are a kubelet's. Pure.

use std::net::IpAddr;

use bosun_kit::pki::Usage;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

/// A request's content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) common_name: String,
    pub(super) organizations: Vec<String>,
    pub(super) dns_names: Vec<String>,
    pub(super) addresses: Vec<IpAddr>,
    /// Other kinds of subject alternative names.
    pub(super) other_names: usize,
}

/// Reads a PEM request whose signature is its own key's.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read(pem: &[u8]) -> Result<Request, String> {
    let (_, block) = x509_parser::pem::parse_x509_pem(pem).map_err(|e| format!("no PEM: {e}"))?;
    if block.label != "CERTIFICATE REQUEST" {
        return Err(format!("PEM block type must be CERTIFICATE REQUEST, not {}", block.label));
    }
    let (_, csr) = X509CertificationRequest::from_der(&block.contents).map_err(|e| format!("no PKCS #10: {e}"))?;
    csr.verify_signature().map_err(|e| format!("signature: {e}"))?;
    let subject = &csr.certification_request_info.subject;
    let mut request = Request {
        common_name: subject.iter_common_name().filter_map(|a| a.as_str().ok()).next().unwrap_or_default().to_owned(),
        organizations: subject.iter_organization().filter_map(|a| a.as_str().ok()).map(str::to_owned).collect(),
        ..Request::default()
    };
    for extension in csr.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
        for name in &names.general_names {
            match name {
                GeneralName::DNSName(name) => request.dns_names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => match address(bytes) {
                    Some(address) => request.addresses.push(address),
                    None => request.other_names += 1,
                },
                _ => request.other_names += 1,
            }
        }
    }
    Ok(request)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(four.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

const NODES: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";

fn only(usages: &[String], needed: &[&str], allowed: &[&str]) -> bool {
    needed.iter().all(|n| usages.iter().any(|u| u == n))
        && usages.iter().all(|u| needed.contains(&u.as_str()) || allowed.contains(&u.as_str()))
}

/// Whether this is a kubelet's request for a client certificate (stock's rules for the signer); if not, why.
pub(super) fn check_kubelet_client(request: &Request, usages: &[String]) -> Result<(), &'static str> {
    if request.organizations != [NODES] {
        return Err("subject organization is not system:nodes");
    }
    if !request.dns_names.is_empty() || !request.addresses.is_empty() || request.other_names > 0 {
        return Err("DNS, IP, email and URI subjectAltNames are not allowed");
    }
    if !request.common_name.starts_with(NODE_PREFIX) {
        return Err("subject common name does not begin with system:node:");
    }
    if !only(usages, &["digital signature", "client auth"], &["key encipherment"]) {
        return Err(
            "usages did not match [digital signature client auth] or [key encipherment digital signature client auth]",
        );
    }
    Ok(())
}

/// Whether this is a kubelet's request for a serving certificate; if not, why.
pub(super) fn check_kubelet_serving(request: &Request, usages: &[String]) -> Result<(), &'static str> {
    if request.organizations != [NODES] {
        return Err("subject organization is not system:nodes");
    }
    if request.dns_names.is_empty() && request.addresses.is_empty() {
        return Err("DNS or IP subjectAltName is required");
    }
    if request.other_names > 0 {
        return Err("email and URI subjectAltNames are not allowed");
    }
    if !request.common_name.starts_with(NODE_PREFIX) {
        return Err("subject common name does not begin with system:node:");
    }
    if !only(usages, &["digital signature", "server auth"], &["key encipherment"]) {
        return Err(
            "usages did not match [digital signature server auth] or [key encipherment digital signature server auth]",
        );
    }
    Ok(())
}

/// Whether the client signer signs these usages.
pub(super) fn check_client(usages: &[String]) -> Result<(), &'static str> {
    if only(usages, &["client auth"], &["digital signature", "key encipherment"]) {
        Ok(())
    } else {
        Err("usages did not match: client auth is needed; digital signature and key encipherment are allowed")
    }
}

/// The extended usages among a request's usages.
pub(super) fn extended(usages: &[String]) -> Vec<Usage> {
    usages
        .iter()
        .filter_map(|usage| match usage.as_str() {
            "client auth" => Some(Usage::ClientAuth),
            "server auth" => Some(Usage::ServerAuth),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use bosun_kit::pki::new_csr;

    use super::*;

    fn usages(list: &[&str]) -> Vec<String> {
        list.iter().map(|u| (*u).to_owned()).collect()
    }

    fn of(cn: &str, organization: &str, sans: &[&str]) -> Request {
        let sans: Vec<String> = sans.iter().map(|s| (*s).to_owned()).collect();
        let (pem, _) = new_csr(cn, &[organization.to_owned()], &sans).unwrap();
        read(pem.as_bytes()).unwrap()
    }

    #[test]
    fn requests_are_read() {
        let request = of("system:node:n1", "system:nodes", &["n1", "10.0.0.1"]);
        assert_eq!(request.common_name, "system:node:n1");
        assert_eq!(request.dns_names, ["n1"]);
        assert_eq!(request.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert!(read(b"nonsense").is_err());
    }

    #[test]
    fn a_kubelets_client_request_has_no_names_and_the_right_group() {
        let client = usages(&["digital signature", "client auth"]);
        assert_eq!(check_kubelet_client(&of("system:node:n1", "system:nodes", &[]), &client), Ok(()));
        assert!(check_kubelet_client(&of("system:node:n1", "system:masters", &[]), &client).is_err());
        assert!(check_kubelet_client(&of("system:node:n1", "system:nodes", &["n1"]), &client).is_err());
        assert!(check_kubelet_client(&of("admin", "system:nodes", &[]), &client).is_err());
        let both = usages(&["digital signature", "client auth", "server auth"]);
        assert!(check_kubelet_client(&of("system:node:n1", "system:nodes", &[]), &both).is_err());
    }

    #[test]
    fn a_kubelets_serving_request_has_names() {
        let server = usages(&["key encipherment", "digital signature", "server auth"]);
        assert_eq!(check_kubelet_serving(&of("system:node:n1", "system:nodes", &["n1"]), &server), Ok(()));
        assert!(check_kubelet_serving(&of("system:node:n1", "system:nodes", &[]), &server).is_err());
    }
}
