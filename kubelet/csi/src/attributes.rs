//! What a driver is told of the pod, as its CSIDriver object asks: who it is, and tokens of its service account.

use std::collections::BTreeMap;

use k8s_openapi::api::authentication::v1::TokenRequestStatus;
use k8s_openapi::api::storage::v1::{CSIDriver, CSIDriverSpec};

use crate::mounter::PodUse;
use crate::volume::{Lifecycle, Volume};

/// The key under which tokens are handed over.
pub const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// The attributes that tell of the pod; none if the driver does not ask for them.
pub fn of_pod(driver: Option<&CSIDriver>, pod: &PodUse, volume: &Volume) -> BTreeMap<String, String> {
    if driver.and_then(|driver| driver.spec.pod_info_on_mount) != Some(true) {
        return BTreeMap::new();
    }
    let ephemeral = volume.lifecycle == Lifecycle::Ephemeral;
    let pairs = [
        ("pod.name", pod.name.clone()),
        ("pod.namespace", pod.namespace.clone()),
        ("pod.uid", pod.uid.clone()),
        ("serviceAccount.name", pod.service_account.clone()),
        ("ephemeral", ephemeral.to_string()),
    ];
    pairs.into_iter().map(|(key, value)| (format!("csi.storage.k8s.io/{key}"), value)).collect()
}

/// The tokens by audience, as one text of JSON.
pub fn tokens(tokens: &BTreeMap<String, TokenRequestStatus>) -> String {
    serde_json::to_string(tokens).unwrap_or_default()
}

/// Whether the driver takes volumes of this lifecycle.
///
/// # Errors
/// Why not, in stock's words.
pub fn check_lifecycle(driver: Option<&CSIDriverSpec>, volume: &Volume) -> Result<(), String> {
    let (name, mode) = (&volume.driver, volume.lifecycle.as_str());
    let Some(spec) = driver else {
        return match volume.lifecycle {
            Lifecycle::Persistent => Ok(()),
            Lifecycle::Ephemeral => {
                Err(format!("volume mode {mode:?} not supported by driver {name} (no CSIDriver object)"))
            }
        };
    };
    // The API server's default for drivers that say nothing.
    let default = vec![Lifecycle::Persistent.as_str().to_owned()];
    let modes = spec.volume_lifecycle_modes.as_ref().filter(|modes| !modes.is_empty()).unwrap_or(&default);
    if modes.iter().any(|known| known == mode) {
        return Ok(());
    }
    let known: Vec<String> = modes.iter().map(|mode| format!("{mode:?}")).collect();
    Err(format!("volume mode {mode:?} not supported by driver {name} (only supports [{}])", known.join(" ")))
}
