//! What a handshake may agree on: `tlsMinVersion`, `tlsCipherSuites` and `tlsCurvePreferences`, in stock's words.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::version::{TLS12, TLS13};
use rustls::{NamedGroup, SupportedCipherSuite, SupportedProtocolVersion};

use super::{TlsError, provider};

/// What a handshake may agree on. The default is what the cryptography offers: TLS 1.2 and 1.3.
#[derive(Clone, Debug, Default)]
pub struct TlsPolicy {
    only_tls13: bool,
    suites: Option<Vec<SupportedCipherSuite>>,
    groups: Option<Vec<&'static dyn SupportedKxGroup>>,
}

impl TlsPolicy {
    /// Reads the fields of a configuration; an empty one means the default. As in stock, `cipher_suites` bind TLS 1.2
    /// alone: those of 1.3 are always allowed.
    ///
    /// # Errors
    /// A value that is unknown, or that no secure library speaks; the text names the field.
    pub fn new(min_version: &str, cipher_suites: &[String], curves: &[i32]) -> Result<Self, TlsError> {
        let only_tls13 = match min_version {
            // Nothing below 1.2 is spoken here whatever is allowed.
            "" | "VersionTLS10" | "VersionTLS11" | "VersionTLS12" => false,
            "VersionTLS13" => true,
            other => {
                let known = "VersionTLS10, VersionTLS11, VersionTLS12 or VersionTLS13";
                return Err(TlsError::Config(format!("tlsMinVersion: {other:?} is not {known}")));
            }
        };
        let offered = provider();
        Ok(Self { only_tls13, suites: suites(&offered, cipher_suites)?, groups: groups(&offered, curves)? })
    }

    pub(super) fn versions(&self) -> &'static [&'static SupportedProtocolVersion] {
        static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
        if self.only_tls13 { &BOTH[..1] } else { &BOTH }
    }

    pub(super) fn provider(&self) -> Arc<CryptoProvider> {
        let offered = provider();
        if self.suites.is_none() && self.groups.is_none() {
            return offered;
        }
        let mut allowed = (*offered).clone();
        if let Some(suites) = &self.suites {
            allowed.cipher_suites.clone_from(suites);
        }
        if let Some(groups) = &self.groups {
            allowed.kx_groups.clone_from(groups);
        }
        Arc::new(allowed)
    }
}

/// The IANA name of a suite; the library's name of those of TLS 1.3 begins differently.
fn name(suite: &SupportedCipherSuite) -> String {
    format!("{:?}", suite.suite()).replacen("TLS13_", "TLS_", 1)
}

fn suites(offered: &CryptoProvider, names: &[String]) -> Result<Option<Vec<SupportedCipherSuite>>, TlsError> {
    if names.is_empty() {
        return Ok(None);
    }
    let of_tls13 = |suite: &SupportedCipherSuite| suite.tls13().is_some();
    let mut allowed: Vec<_> = offered.cipher_suites.iter().filter(|suite| of_tls13(suite)).copied().collect();
    for wanted in names {
        // Go's older names of two suites leave the hash out.
        let matches = |suite: &&SupportedCipherSuite| {
            let name = name(suite);
            name == *wanted || name.strip_suffix("_SHA256").is_some_and(|n| n.ends_with("POLY1305") && n == wanted)
        };
        let Some(suite) = offered.cipher_suites.iter().find(matches) else {
            let known: Vec<String> = offered.cipher_suites.iter().map(name).collect();
            let known = known.join(", ");
            return Err(TlsError::Config(format!(
                "tlsCipherSuites: {wanted:?} is not spoken here; spoken are {known}"
            )));
        };
        if !of_tls13(suite) {
            allowed.push(*suite);
        }
    }
    Ok(Some(allowed))
}

fn groups(offered: &CryptoProvider, curves: &[i32]) -> Result<Option<Vec<&'static dyn SupportedKxGroup>>, TlsError> {
    if curves.is_empty() {
        return Ok(None);
    }
    let find = |curve: &i32| {
        let named = u16::try_from(*curve).ok().map(NamedGroup::from);
        let group = offered.kx_groups.iter().find(|group| Some(group.name()) == named).copied();
        group.ok_or_else(|| {
            let known: Vec<String> = offered.kx_groups.iter().map(|g| u16::from(g.name()).to_string()).collect();
            let known = known.join(", ");
            TlsError::Config(format!("tlsCurvePreferences: {curve} is not spoken here; spoken are {known}"))
        })
    };
    curves.iter().map(find).collect::<Result<_, _>>().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn takes_stock_s_names_and_keeps_those_of_tls_1_3() {
        let wanted = names(&["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305"]);
        let policy = TlsPolicy::new("VersionTLS12", &wanted, &[29]).unwrap();
        let allowed: Vec<String> = policy.provider().cipher_suites.iter().map(name).collect();
        assert!(allowed.contains(&"TLS_AES_128_GCM_SHA256".to_owned()), "{allowed:?}");
        assert!(allowed.contains(&"TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256".to_owned()), "{allowed:?}");
        assert!(!allowed.iter().any(|name| name.contains("ECDSA")), "{allowed:?}");
        assert_eq!(policy.provider().kx_groups.len(), 1);
        assert_eq!(TlsPolicy::new("VersionTLS13", &[], &[]).unwrap().versions().len(), 1);
    }

    #[test]
    fn names_the_field_of_what_is_not_spoken() {
        let error = |min: &str, suites: &[&str], curves: &[i32]| {
            TlsPolicy::new(min, &names(suites), curves).unwrap_err().to_string()
        };
        assert!(error("", &["TLS_RSA_WITH_AES_128_CBC_SHA"], &[]).contains("tlsCipherSuites: \"TLS_RSA_WITH"));
        assert!(error("SSL3", &[], &[]).contains("tlsMinVersion"));
        assert!(error("", &[], &[25]).contains("tlsCurvePreferences: 25"));
    }
}
