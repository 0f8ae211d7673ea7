//! The result of ADD in the shape of the newest version, and its older shapes.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::net::IpAddr;

/// A result as version 1.1.0 has it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CniResult {
    /// Interfaces that were made, on the host and in the container.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "list")]
    pub interfaces: Vec<Interface>,
    /// Addresses.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "list")]
    pub ips: Vec<IpConfig>,
    /// Routes in the container.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "list")]
    pub routes: Vec<Route>,
    /// Name service settings.
    pub dns: Dns,
}

/// One interface of a result.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU in bytes (since 1.1.0).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The namespace's path; empty on the host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// A socket that goes with the interface (since 1.1.0).
    #[serde(rename = "socketPath", skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// The PCI device behind it (since 1.1.0).
    #[serde(rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

/// One address of a result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Index into the interfaces.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub interface: Option<u32>,
    /// Address and prefix length.
    pub address: IpNet,
    /// The gateway of its subnet.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub gateway: Option<IpAddr>,
}

/// One route of a result; what follows `gw` came with 1.1.0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are rtnetlink's")]
pub struct Route {
    pub dst: IpNet,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub gw: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub advmss: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub priority: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub table: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub scope: Option<u8>,
}

impl Route {
    /// A plain route.
    #[must_use]
    pub fn new(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

/// Name service settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are resolv.conf's")]
pub struct Dns {
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "list")]
    pub nameservers: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "list")]
    pub search: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "list")]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether nothing is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A list, where writers in Go may say `null` for an empty one.
fn list<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl CniResult {
    /// Writes the result as `version` has it.
    #[must_use]
    pub fn to_json(&self, version: &str) -> String {
        self.to_value(version).to_string()
    }

    /// The result as `version` has it.
    #[must_use]
    pub fn to_value(&self, version: &str) -> Value {
        let mut value = match version {
            "0.1.0" | "0.2.0" => self.oldest(),
            _ => serde_json::to_value(self).unwrap_or_default(),
        };
        let old = version.starts_with("0.");
        if old && let Some(ips) = value.get_mut("ips").and_then(Value::as_array_mut) {
            for (ip, config) in ips.iter_mut().zip(&self.ips) {
                ip["version"] = if config.address.addr().is_ipv4() { "4" } else { "6" }.into();
            }
        }
        if old || version == "1.0.0" {
            remove_keys(&mut value, "interfaces", &["mtu", "socketPath", "pciID"]);
            remove_keys(&mut value, "routes", &["mtu", "advmss", "priority", "table", "scope"]);
        }
        // From 1.0.0 on the reference leaves an empty `dns` out; before, it is always there.
        if !old && self.dns.is_empty() {
            value.as_object_mut().map(|fields| fields.remove("dns"));
        }
        value["cniVersion"] = version.into();
        value
    }

    /// 0.1.0 and 0.2.0 know one address of each family and no interfaces.
    fn oldest(&self) -> Value {
        let mut value = Map::new();
        for (key, v4) in [("ip4", true), ("ip6", false)] {
            let Some(ip) = self.ips.iter().find(|ip| ip.address.addr().is_ipv4() == v4) else {
                continue;
            };
            let routes: Vec<_> = self.routes.iter().filter(|route| route.dst.addr().is_ipv4() == v4).collect();
            let mut part = json!({ "ip": ip.address });
            if let Some(gateway) = ip.gateway {
                part["gateway"] = gateway.to_string().into();
            }
            if !routes.is_empty() {
                part["routes"] = routes.iter().map(|route| json!({ "dst": route.dst, "gw": route.gw })).collect();
            }
            value.insert(key.to_owned(), part);
        }
        value.insert("dns".to_owned(), serde_json::to_value(&self.dns).unwrap_or_default());
        Value::Object(value)
    }

    /// Reads a result of any supported version; its own `cniVersion` wins over `version`.
    ///
    /// # Errors
    /// What in it could not be read.
    pub fn from_value(value: Value, version: &str) -> Result<Self, serde_json::Error> {
        #[derive(Default, Deserialize)]
        struct Oldest {
            ip4: Option<Part>,
            ip6: Option<Part>,
            #[serde(default)]
            dns: Dns,
        }
        #[derive(Deserialize)]
        struct Part {
            ip: IpNet,
            gateway: Option<IpAddr>,
            #[serde(default, deserialize_with = "list")]
            routes: Vec<Route>,
        }
        let version = value.get("cniVersion").and_then(Value::as_str).unwrap_or(version);
        if !matches!(version, "0.1.0" | "0.2.0") {
            return serde_json::from_value(value);
        }
        let oldest: Oldest = serde_json::from_value(value)?;
        let mut result = Self { dns: oldest.dns, ..Self::default() };
        for part in [oldest.ip4, oldest.ip6].into_iter().flatten() {
            result.ips.push(IpConfig { interface: None, address: part.ip, gateway: part.gateway });
            result.routes.extend(part.routes);
        }
        Ok(result)
    }
}

fn remove_keys(value: &mut Value, list: &str, keys: &[&str]) {
    for item in value.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(object) = item.as_object_mut() {
            keys.iter().for_each(|key| drop(object.remove(*key)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> CniResult {
        CniResult {
            interfaces: vec![Interface {
                name: "cni0".into(),
                mac: "0a:58:0a:01:00:01".into(),
                mtu: Some(1500),
                ..Default::default()
            }],
            ips: vec![
                IpConfig {
                    interface: Some(0),
                    address: "10.1.0.2/24".parse().unwrap(),
                    gateway: Some("10.1.0.1".parse().unwrap()),
                },
                IpConfig { interface: None, address: "fd00::2/64".parse().unwrap(), gateway: None },
            ],
            routes: vec![Route { mtu: Some(1400), ..Route::new("0.0.0.0/0".parse().unwrap(), None) }],
            dns: Dns::default(),
        }
    }

    #[test]
    fn every_version_has_its_own_shape() {
        let golden = [
            (
                "0.2.0",
                r#"{"cniVersion":"0.2.0","dns":{},"ip4":{"gateway":"10.1.0.1","ip":"10.1.0.2/24","routes":[{"dst":"0.0.0.0/0","gw":null}]},"ip6":{"ip":"fd00::2/64"}}"#,
            ),
            (
                "0.4.0",
                r#"{"cniVersion":"0.4.0","dns":{},"interfaces":[{"mac":"0a:58:0a:01:00:01","name":"cni0"}],"ips":[{"address":"10.1.0.2/24","gateway":"10.1.0.1","interface":0,"version":"4"},{"address":"fd00::2/64","version":"6"}],"routes":[{"dst":"0.0.0.0/0"}]}"#,
            ),
            (
                "1.0.0",
                r#"{"cniVersion":"1.0.0","interfaces":[{"mac":"0a:58:0a:01:00:01","name":"cni0"}],"ips":[{"address":"10.1.0.2/24","gateway":"10.1.0.1","interface":0},{"address":"fd00::2/64"}],"routes":[{"dst":"0.0.0.0/0"}]}"#,
            ),
            (
                "1.1.0",
                r#"{"cniVersion":"1.1.0","interfaces":[{"mac":"0a:58:0a:01:00:01","mtu":1500,"name":"cni0"}],"ips":[{"address":"10.1.0.2/24","gateway":"10.1.0.1","interface":0},{"address":"fd00::2/64"}],"routes":[{"dst":"0.0.0.0/0","mtu":1400}]}"#,
            ),
        ];
        for (version, text) in golden {
            assert_eq!(sample().to_json(version), text, "{version}");
        }
    }

    #[test]
    fn results_come_back_from_every_version() {
        for version in crate::SUPPORTED_VERSIONS {
            let back = CniResult::from_value(sample().to_value(version), version).unwrap();
            assert_eq!(
                back.ips.iter().map(|ip| ip.address).collect::<Vec<_>>(),
                sample().ips.iter().map(|ip| ip.address).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn null_lists_are_empty() {
        let value = serde_json::json!({"interfaces": null, "ips": null, "dns": {"search": null}});
        assert_eq!(CniResult::from_value(value, "1.0.0").unwrap(), CniResult::default());
    }
}
