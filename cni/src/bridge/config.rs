//! bridge's configuration keys.

use crate::{Call, Code, Error, plan::Mac};
use serde::Deserialize;

/// The keys, with `mac` merged from its three places.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the keys are the reference plugin's")]
pub struct Config {
    pub bridge: String,
    pub is_gateway: bool,
    pub is_default_gateway: bool,
    pub force_address: bool,
    pub ip_masq: bool,
    pub ip_masq_backend: Option<String>,
    pub mtu: Option<u32>,
    pub hairpin_mode: bool,
    pub promisc_mode: bool,
    #[serde(rename = "enabledad")]
    pub enable_dad: bool,
    pub port_isolation: bool,
    pub disable_container_interface: bool,
    vlan: u16,
    vlan_trunk: Option<serde_json::Value>,
    #[serde(rename = "macspoofchk")]
    mac_spoof_check: bool,
    args: Args,
    runtime_config: MacKey,
    #[serde(skip)]
    pub mac: Option<Mac>,
    #[serde(skip)]
    ipam: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Args {
    cni: MacKey,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct MacKey {
    mac: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bridge: "cni0".to_owned(),
            is_gateway: false,
            is_default_gateway: false,
            force_address: false,
            ip_masq: false,
            ip_masq_backend: None,
            mtu: None,
            hairpin_mode: false,
            promisc_mode: false,
            enable_dad: false,
            port_isolation: false,
            disable_container_interface: false,
            vlan: 0,
            vlan_trunk: None,
            mac_spoof_check: false,
            args: Args::default(),
            runtime_config: MacKey::default(),
            mac: None,
            ipam: String::new(),
        }
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(Code::InvalidConfig, message)
}

fn unsupported(key: &str, value: impl std::fmt::Debug) -> Error {
    Error::new(Code::UnsupportedField, format!("bridge: {key}: {value:?} is not supported yet"))
}

impl Config {
    /// Reads and validates the configuration of a call.
    ///
    /// # Errors
    /// The first key that is wrong or not supported.
    pub fn of(call: &Call) -> Result<Self, Error> {
        let mut config: Self = call.config()?;
        config.is_gateway |= config.is_default_gateway;
        config.mtu = config.mtu.filter(|mtu| *mtu > 0);
        config.ipam.clone_from(&call.conf.ipam.kind);
        let places = [&config.runtime_config.mac, &config.args.cni.mac];
        let text =
            places.into_iter().map(String::as_str).chain(call.environment.arg("MAC")).find(|mac| !mac.is_empty());
        config.mac = text
            .map(|text| Mac::parse(text).ok_or_else(|| invalid(format!("invalid MAC address {text:?}"))))
            .transpose()?;
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), Error> {
        if self.bridge.is_empty() || self.bridge.len() >= libc::IFNAMSIZ || self.bridge.contains('/') {
            return Err(invalid(format!("invalid bridge name {:?}", self.bridge)));
        }
        if self.hairpin_mode && self.promisc_mode {
            return Err(invalid("cannot set hairpin mode and promiscuous mode at the same time"));
        }
        if self.disable_container_interface && self.has_ipam() {
            return Err(invalid("cannot use IPAM when DisableContainerInterface flag is set"));
        }
        if self.vlan != 0 {
            return Err(unsupported("vlan", self.vlan));
        }
        if let Some(trunk) = &self.vlan_trunk {
            return Err(unsupported("vlanTrunk", trunk));
        }
        if self.mac_spoof_check {
            return Err(unsupported("macspoofchk", true));
        }
        match self.ip_masq_backend.as_deref() {
            // There is one way to masquerade here, whichever is named.
            None | Some("" | "nftables" | "iptables") => Ok(()),
            Some(other) => Err(invalid(format!("unknown ipMasqBackend {other:?}"))),
        }
    }

    /// Whether the network has addresses at all.
    #[must_use]
    pub fn has_ipam(&self) -> bool {
        !self.ipam.is_empty()
    }
}
