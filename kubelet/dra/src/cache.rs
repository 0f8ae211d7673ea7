//! What is prepared on this node, and for which pods.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

/// A claim by namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Key {
    /// Of that namespace and name.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A claim that was, or is to be, prepared. Its fields have the names of stock's checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ClaimInfo {
    /// The claim's UID.
    #[serde(rename = "ClaimUID")]
    pub claim_uid: String,
    /// Its name.
    pub claim_name: String,
    /// Its namespace.
    pub namespace: String,
    /// The pods that use it, by UID.
    #[serde(rename = "PodUIDs", with = "set")]
    pub pod_uids: BTreeSet<String>,
    /// What its drivers made available, by their names. A driver without devices has an entry too.
    pub driver_state: BTreeMap<String, DriverState>,
    /// Its drivers have prepared it since this kubelet began; whether they had before is not kept, so that a kubelet
    /// asks them again (which does no harm) before it makes another sandbox.
    #[serde(skip)]
    pub prepared: bool,
}

/// What a driver made available for a claim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DriverState {
    /// Devices.
    #[serde(with = "list")]
    pub devices: Vec<Device>,
}

/// A device as its driver described it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Device {
    /// The pool that it is of.
    pub pool_name: String,
    /// Its name in the pool.
    pub device_name: String,
    /// The share of it, where several claims have one.
    #[serde(rename = "ShareID")]
    pub share_id: Option<String>,
    /// The requests that it is for; none for all.
    #[serde(with = "list")]
    pub request_names: Vec<String>,
    /// Its names in CDI.
    #[serde(rename = "CDIDeviceIDs", with = "list")]
    pub cdi_device_ids: Vec<String>,
}

impl Device {
    /// Whether it is for this request; none means any. A request of which one of several alternatives was allocated is
    /// referred to by its own name, the device perhaps by `request/alternative` (KEP-4816).
    fn is_for(&self, request: Option<&str>) -> bool {
        let Some(request) = request else { return true };
        let fits = |name: &String| name == request || name.split_once('/').is_some_and(|(base, _)| base == request);
        self.request_names.is_empty() || self.request_names.iter().any(fits)
    }
}

impl ClaimInfo {
    /// Namespace and name.
    pub fn key(&self) -> Key {
        Key::new(&self.namespace, &self.claim_name)
    }

    /// The devices for a request (none for all), with their drivers.
    pub fn devices<'a>(&'a self, request: Option<&'a str>) -> impl Iterator<Item = (&'a str, &'a Device)> {
        let all = self.driver_state.iter();
        let all = all.flat_map(|(driver, state)| state.devices.iter().map(|device| (driver.as_str(), device)));
        all.filter(move |(_, device)| device.is_for(request))
    }
}

/// What a container has of one claim, as the pod-resources API shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerClaim {
    /// The claim.
    pub key: Key,
    /// Its devices that the container uses, with the names of their drivers.
    pub devices: Vec<(String, Device)>,
}

/// All claims known here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cache(BTreeMap<Key, ClaimInfo>);

impl Cache {
    /// Holding these.
    pub fn new(claims: impl IntoIterator<Item = ClaimInfo>) -> Self {
        Self(claims.into_iter().map(|claim| (claim.key(), claim)).collect())
    }

    /// A claim.
    pub fn get(&self, key: &Key) -> Option<&ClaimInfo> {
        self.0.get(key)
    }

    /// A claim, to be changed; its names stay.
    pub fn get_mut(&mut self, key: &Key) -> Option<&mut ClaimInfo> {
        self.0.get_mut(key)
    }

    /// Holds a claim, in place of one of the same name.
    pub fn insert(&mut self, claim: ClaimInfo) {
        self.0.insert(claim.key(), claim);
    }

    /// Forgets a claim.
    pub fn remove(&mut self, key: &Key) {
        self.0.remove(key);
    }

    /// All claims.
    pub fn claims(&self) -> impl Iterator<Item = &ClaimInfo> {
        self.0.values()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The claims that the pod uses.
    pub fn of_pod(&self, uid: &str) -> Vec<Key> {
        self.0.iter().filter(|(_, claim)| claim.pod_uids.contains(uid)).map(|(key, _)| key.clone()).collect()
    }
}

/// Go's way to write a set: an object whose keys are its members.
mod set {
    use std::collections::{BTreeMap, BTreeSet};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Empty {}

    pub(super) fn serialize<S: Serializer>(set: &BTreeSet<String>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(set.iter().map(|member| (member, Empty {})))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeSet<String>, D::Error> {
        let members = Option::<BTreeMap<String, Empty>>::deserialize(from)?;
        Ok(members.unwrap_or_default().into_keys().collect())
    }
}

/// Go's way to write a list: an empty one may be `null`.
mod list {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer, T: Serialize>(list: &[T], to: S) -> Result<S::Ok, S::Error> {
        if list.is_empty() { to.serialize_none() } else { list.serialize(to) }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
        Ok(Option::deserialize(from)?.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_by_request_and_alternative() {
        let device = |name: &str, requests: &[&str]| Device {
            device_name: name.into(),
            request_names: requests.iter().map(|request| (*request).to_owned()).collect(),
            ..Device::default()
        };
        let devices = vec![device("all", &[]), device("big", &["gpu/big"]), device("nic", &["nic", "other"])];
        let claim =
            ClaimInfo { driver_state: [("d".to_owned(), DriverState { devices })].into(), ..ClaimInfo::default() };
        let names = |request| -> Vec<&str> { claim.devices(request).map(|(_, d)| d.device_name.as_str()).collect() };
        assert_eq!(names(None), ["all", "big", "nic"]);
        assert_eq!(names(Some("gpu")), ["all", "big"]);
        assert_eq!(names(Some("gpu/big")), ["all", "big"]);
        assert_eq!(names(Some("other")), ["all", "nic"]);
        assert_eq!(names(Some("none")), ["all"]);
    }
}
