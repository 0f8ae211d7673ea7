//! The Kubernetes version whose behaviour this build follows.

/// `gitVersion` as `/version` and node status show it.
pub const GIT_VERSION: &str =
    concat!("v1.36.0+bosun", env!("CARGO_PKG_VERSION_MAJOR"), ".", env!("CARGO_PKG_VERSION_MINOR"));
/// Major version, as `/version` shows it.
pub const MAJOR: &str = "1";
/// Minor version, as `/version` shows it.
pub const MINOR: &str = "36";
