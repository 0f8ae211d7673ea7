//! User namespaces of pods (`hostUsers: false`, KEP-127): each such pod has a range of the node's user and group ids to
//! itself, kept in `<pod>/userns` as stock keeps it, so that a restarted kubelet gives no range twice.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bosun_proto::cri;
use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};

use crate::pod::spec;

/// Ids per pod where the configuration says nothing; every length is a multiple of it.
const UNIT: u32 = 1 << 16;
/// The user whose subordinate ids pods get, if there is such a user.
const USER: &str = "kubelet";

/// The ids that pods may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// The first.
    pub first: u32,
    /// How many in all.
    pub count: u32,
    /// How many each pod has.
    pub per_pod: u32,
}

impl Ids {
    /// All ids of the node after the first `per_pod`, or those that were given to the kubelet's user; for `max_pods` pods.
    ///
    /// # Errors
    /// The ids given do not fit: not whole multiples, or too few.
    pub fn new(per_pod: Option<i64>, given: Option<(u32, u32)>, max_pods: i32) -> Result<Self, String> {
        let per_pod = match per_pod.map(u32::try_from) {
            None => UNIT,
            Some(Ok(length)) if length > 0 && length % UNIT == 0 => length,
            Some(_) => return Err(format!("userNamespaces.idsPerPod must be a positive multiple of {UNIT}")),
        };
        let (first, count) = given.unwrap_or((per_pod, (u32::MAX / per_pod).saturating_sub(1) * per_pod));
        let wrong = |text: String| Err(format!("subordinate ids of user {USER}: {text}"));
        if first % per_pod != 0 || first < per_pod {
            return wrong(format!("the first, {first}, must be a multiple of {per_pod}, and not 0"));
        }
        if count % per_pod != 0 {
            return wrong(format!("their number, {count}, is not a multiple of {per_pod}"));
        }
        if count / per_pod < u32::try_from(max_pods).unwrap_or(0) {
            return wrong(format!("{count} are not enough to support {max_pods} pods"));
        }
        Ok(Self { first, count, per_pod })
    }

    /// The first range that nobody has.
    fn free(self, used: &BTreeMap<String, u32>) -> Option<u32> {
        let taken: std::collections::BTreeSet<u32> = used.values().copied().collect();
        (0..self.count / self.per_pod).map(|n| self.first + n * self.per_pod).find(|first| !taken.contains(first))
    }
}

/// What `getsubids` says of the kubelet's user: its first id and how many; none if there is no such user on the node.
///
/// # Errors
/// There is such a user, but not exactly one range of user and group ids for it.
pub fn given() -> Result<Option<(u32, u32)>, String> {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    if !users.lines().any(|line| line.split(':').next() == Some(USER)) {
        return Ok(None);
    }
    let ask = |arguments: &[&str]| -> Result<String, String> {
        let output = std::process::Command::new("getsubids").args(arguments).output();
        let output = output.map_err(|error| format!("user {USER} exists, but getsubids does not run: {error}"))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let (users, groups) = (ask(&[USER])?, ask(&["-g", USER])?);
    if users != groups {
        return Err(format!("user {USER} has other subordinate user ids ({users}) than group ids ({groups})"));
    }
    parse(&users).map(Some)
}

/// One line as `0: kubelet 65536 7208960`.
fn parse(line: &str) -> Result<(u32, u32), String> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let numbers = match fields[..] {
        [_, user, first, count] if user == USER => first.parse().ok().zip(count.parse().ok()),
        _ => None,
    };
    numbers.ok_or_else(|| format!("user {USER} must have one range of subordinate ids, not {line:?}"))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    host_id: u32,
    container_id: u32,
    length: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mappings {
    uid_mappings: Vec<Mapping>,
    gid_mappings: Vec<Mapping>,
}

/// The user namespaces of the node's pods.
#[derive(Debug)]
pub struct UserNamespaces {
    ids: Ids,
    pods: PathBuf,
    /// The first id of each pod's range.
    used: Mutex<BTreeMap<String, u32>>,
}

impl UserNamespaces {
    /// Knows the ranges of the pods whose folders are in `pods`. A file that says what cannot be is told of and left out:
    /// its pod starts no further container.
    pub fn open(ids: Ids, pods: &Path) -> Self {
        let mut used = BTreeMap::new();
        for folder in std::fs::read_dir(pods).into_iter().flatten().flatten() {
            let uid = folder.file_name().to_string_lossy().into_owned();
            match read(&folder.path().join("userns"), ids) {
                Ok(Some(first)) => drop(used.insert(uid, first)),
                Ok(None) => {}
                Err(error) => tracing::warn!(pod = uid, error, "the pod's user namespace is not known"),
            }
        }
        Self { ids, pods: pods.to_owned(), used: Mutex::new(used) }
    }

    /// The namespace for the pod: the node's, or one of its own, which is then kept.
    ///
    /// # Errors
    /// No range is free, or the pod's cannot be kept or read.
    pub fn of(&self, pod: &Pod) -> Result<cri::UserNamespace, String> {
        if !wants(pod) {
            return Ok(cri::UserNamespace { mode: cri::NamespaceMode::Node as i32, ..Default::default() });
        }
        let first = self.first(spec::uid(pod)).map_err(|error| format!("create user namespace: {error}"))?;
        let mapping = cri::IdMapping { host_id: first, container_id: 0, length: self.ids.per_pod };
        let (uids, gids) = (vec![mapping], vec![mapping]);
        Ok(cri::UserNamespace { mode: cri::NamespaceMode::Pod as i32, uids, gids })
    }

    fn first(&self, uid: &str) -> Result<u32, String> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.pods.join(uid).join("userns");
        if let Some(first) = read(&path, self.ids)? {
            used.insert(uid.to_owned(), first);
            return Ok(first);
        }
        // Pods that went have given theirs back with their folder.
        used.retain(|uid, _| self.pods.join(uid).join("userns").exists());
        let first = self.ids.free(&used).ok_or("could not find an empty slot to allocate a user namespace")?;
        let mapping = vec![Mapping { host_id: first, container_id: 0, length: self.ids.per_pod }];
        let mappings = Mappings { uid_mappings: mapping.clone(), gid_mappings: mapping };
        let write = || -> io::Result<()> {
            bosun_kit::files::create_dir(&self.pods.join(uid), 0o750)?;
            bosun_kit::files::write_atomic(&path, &serde_json::to_vec(&mappings)?, 0o600)
        };
        write().map_err(|error| error.to_string())?;
        used.insert(uid.to_owned(), first);
        Ok(first)
    }
}

/// Whether the pod has a user namespace of its own.
pub fn wants(pod: &Pod) -> bool {
    spec::spec(pod).host_users == Some(false)
}

/// The first id in the file; none if there is no file.
fn read(path: &Path, ids: Ids) -> Result<Option<u32>, String> {
    let wrong = |text: String| format!("{}: {text}", path.display());
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(wrong(error.to_string())),
    };
    let mappings: Mappings = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    let [mapping] = mappings.uid_mappings[..] else { return Err(wrong("one mapping is expected".into())) };
    if mappings.gid_mappings != [mapping] || mapping.container_id != 0 || mapping.length != ids.per_pod {
        return Err(wrong(format!("expected are {} ids from 0 on, the same for users and groups", ids.per_pod)));
    }
    let within = mapping.host_id.checked_sub(ids.first).is_some_and(|at| at < ids.count && at % ids.per_pod == 0);
    if within { Ok(Some(mapping.host_id)) } else { Err(wrong(format!("id {} is out of range", mapping.host_id))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, host_users: bool) -> Pod {
        let pod = serde_json::json!({"metadata": {"uid": uid}, "spec": {"hostUsers": host_users, "containers": []}});
        serde_json::from_value(pod).unwrap()
    }

    fn first(namespaces: &UserNamespaces, uid: &str) -> Result<u32, String> {
        namespaces.of(&pod(uid, false)).map(|namespace| namespace.uids[0].host_id)
    }

    #[test]
    fn each_pod_has_a_range_of_its_own_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let ids = Ids::new(None, Some((65536, 3 * 65536)), 3).unwrap();
        let namespaces = UserNamespaces::open(ids, folder.path());
        assert_eq!(namespaces.of(&pod("host", true)).unwrap().mode, cri::NamespaceMode::Node as i32);
        assert_eq!((first(&namespaces, "a"), first(&namespaces, "b")), (Ok(65536), Ok(131_072)));
        assert_eq!(first(&namespaces, "a"), Ok(65536));
        let namespaces = UserNamespaces::open(ids, folder.path());
        assert_eq!(first(&namespaces, "c"), Ok(196_608));
        assert!(first(&namespaces, "d").unwrap_err().contains("empty slot"));
        std::fs::remove_dir_all(folder.path().join("a")).unwrap();
        assert_eq!(first(&namespaces, "d"), Ok(65536));
        std::fs::write(folder.path().join("b/userns"), r#"{"uidMappings":[],"gidMappings":[]}"#).unwrap();
        assert!(first(&UserNamespaces::open(ids, folder.path()), "b").unwrap_err().contains("one mapping is expected"));
    }

    #[test]
    fn ids_must_be_whole_multiples_and_enough() {
        let all = Ids::new(None, None, 110).unwrap();
        assert_eq!((all.first, all.per_pod, all.count), (65536, 65536, 65534 * 65536));
        for (per_pod, given, part) in [
            (Some(1), None, "idsPerPod"),
            (None, Some((1, 65536)), "must be a multiple"),
            (None, Some((0, 65536)), "not 0"),
            (None, Some((65536, 10)), "is not a multiple"),
            (None, Some((65536, 65536)), "not enough to support 110 pods"),
        ] {
            assert!(Ids::new(per_pod, given, 110).unwrap_err().contains(part), "{part}");
        }
        assert_eq!(parse("0: kubelet 65536 7208960"), Ok((65536, 7_208_960)));
        assert!(parse("0: kubelet 65536 7208960\n1: kubelet 1 1").is_err());
    }
}
