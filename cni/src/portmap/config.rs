//! portmap's configuration keys.

use crate::{Call, Code, Error};
use serde::Deserialize;
use std::net::IpAddr;

/// The configuration with every default filled in.
#[derive(Clone, Debug)]
pub struct Config {
    /// Masquerade what would not find its way back: from the container's own network and from 127.0.0.0/8.
    pub snat: bool,
    /// Masquerade everything that comes by a host's port.
    pub masquerade_all: bool,
    /// The ports.
    pub mappings: Vec<Mapping>,
}

/// A host's port that leads to a container's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The host's port.
    pub host_port: u16,
    /// The container's port.
    pub container_port: u16,
    /// The number of the protocol.
    pub protocol: u8,
    /// The host's address that the port is mapped at; every one when there is none.
    pub host_ip: Option<IpAddr>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Document {
    snat: Option<bool>,
    masq_all: bool,
    backend: Option<String>,
    #[serde(rename = "conditionsV4")]
    conditions_v4: Option<Vec<String>>,
    #[serde(rename = "conditionsV6")]
    conditions_v6: Option<Vec<String>>,
    mark_masq_bit: Option<u32>,
    external_set_mark_chain: Option<String>,
    runtime_config: RuntimeConfig,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RuntimeConfig {
    port_mappings: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    host_port: i64,
    container_port: i64,
    #[serde(default)]
    protocol: String,
    #[serde(default, rename = "hostIP")]
    host_ip: String,
}

/// The reference plugin's mark, which is ours too.
const MARK_BIT: u32 = 13;

fn invalid(message: String) -> Error {
    Error::new(Code::InvalidConfig, message)
}

fn unsupported(key: &str, value: impl std::fmt::Debug) -> Error {
    Error::new(Code::UnsupportedField, format!("portmap: {key}: {value:?} is not supported"))
}

impl Config {
    /// Reads and validates the configuration of a call.
    ///
    /// # Errors
    /// The first key that is wrong or not supported.
    pub fn of(call: &Call) -> Result<Self, Error> {
        Self::parse(&call.input)
    }

    pub(super) fn parse(input: &[u8]) -> Result<Self, Error> {
        let document: Document = serde_json::from_slice(input)
            .map_err(|error| Error::new(Code::Decode, format!("failed to load the network configuration: {error}")))?;
        document.refuse_unsupported()?;
        let entries = document.runtime_config.port_mappings.unwrap_or_default();
        // A container's port without a host's is only declared.
        let mappings = entries.iter().filter(|entry| entry.host_port != 0).map(mapping).collect::<Result<_, _>>()?;
        Ok(Self { snat: document.snat.unwrap_or(true), masquerade_all: document.masq_all, mappings })
    }
}

impl Document {
    fn refuse_unsupported(&self) -> Result<(), Error> {
        for (key, conditions) in [("conditionsV4", &self.conditions_v4), ("conditionsV6", &self.conditions_v6)] {
            if let Some(conditions) = conditions.as_ref().filter(|list| !list.is_empty()) {
                return Err(unsupported(key, conditions));
            }
        }
        match self.backend.as_deref() {
            None | Some("" | "nftables" | "iptables") => {}
            Some(other) => return Err(invalid(format!("portmap: unrecognized backend {other:?}"))),
        }
        if let Some(bit) = self.mark_masq_bit.filter(|bit| *bit != MARK_BIT) {
            return Err(unsupported("markMasqBit", bit));
        }
        self.external_set_mark_chain.as_ref().map_or(Ok(()), |chain| Err(unsupported("externalSetMarkChain", chain)))
    }
}

fn port(name: &str, number: i64) -> Result<u16, Error> {
    u16::try_from(number)
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| invalid(format!("Invalid {name} port number: {number}")))
}

fn mapping(entry: &Entry) -> Result<Mapping, Error> {
    let protocol = match entry.protocol.to_ascii_lowercase().as_str() {
        "" | "tcp" => libc::IPPROTO_TCP,
        "udp" => libc::IPPROTO_UDP,
        "sctp" => libc::IPPROTO_SCTP,
        other => return Err(invalid(format!("portmap: unknown protocol {other:?}"))),
    };
    let host_ip = match entry.host_ip.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| invalid(format!("portmap: hostIP: {text:?} is no address")))?),
    };
    Ok(Mapping {
        host_port: port("host", entry.host_port)?,
        container_port: port("container", entry.container_port)?,
        // All three fit a byte.
        protocol: protocol as u8,
        host_ip,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_keys_are_named() {
        let mapped = |entry: &str| format!(r#"{{"runtimeConfig": {{"portMappings": [{entry}]}}}}"#);
        for (config, message) in [
            (mapped(r#"{"hostPort": 70000, "containerPort": 1}"#), "Invalid host port number: 70000"),
            (mapped(r#"{"hostPort": 1, "containerPort": 0}"#), "Invalid container port number: 0"),
            (mapped(r#"{"hostPort": 1, "containerPort": 1, "protocol": "gre"}"#), r#"portmap: unknown protocol "gre""#),
            (mapped(r#"{"hostPort": 1, "containerPort": 1, "hostIP": "x"}"#), r#"portmap: hostIP: "x" is no address"#),
            (r#"{"conditionsV4": ["-s", "1"]}"#.into(), r#"portmap: conditionsV4: ["-s", "1"] is not supported"#),
            (r#"{"markMasqBit": 5}"#.into(), "portmap: markMasqBit: 5 is not supported"),
            (r#"{"backend": "magic"}"#.into(), r#"portmap: unrecognized backend "magic""#),
        ] {
            assert_eq!(Config::parse(config.as_bytes()).unwrap_err().message, message);
        }
        assert!(Config::parse(br#"{"backend": "iptables", "markMasqBit": 13}"#).is_ok());
    }
}
