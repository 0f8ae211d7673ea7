//! What the CPU manager has given away, and `cpu_manager_state`, the file in which stock keeps that.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::cpuset::CpuSet;
use crate::dump::Go;

/// Exclusive CPUs by pod UID and container.
pub type Assigned = BTreeMap<String, BTreeMap<String, CpuSet>>;

/// Who has which CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuState {
    /// The policy by which they were given.
    pub policy: String,
    /// The pool of those without CPUs of their own; empty under the policy `none`.
    pub shared: CpuSet,
    /// The others'.
    pub assigned: Assigned,
}

/// Why a state file is not taken.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StateError {
    /// No JSON of the right form.
    #[error("{0}")]
    Malformed(String),
    /// Its checksum is another.
    #[error("checkpoint is corrupted")]
    Corrupt,
    /// It is another policy's.
    #[error("configured policy {configured:?} differs from state checkpoint policy {found:?}")]
    OtherPolicy {
        /// The configured policy.
        configured: String,
        /// The file's.
        found: String,
    },
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Checkpoint {
    policy_name: String,
    // Go's decoder does not mind the case; stock's own tests spell it in two ways.
    #[serde(alias = "defaultCPUSet")]
    default_cpu_set: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    entries: BTreeMap<String, BTreeMap<String, String>>,
    checksum: u64,
}

impl Checkpoint {
    fn of(state: &CpuState) -> Self {
        let containers = |containers: &BTreeMap<String, CpuSet>| {
            containers.iter().map(|(name, cpus)| (name.clone(), cpus.to_string())).collect()
        };
        let entries = state.assigned.iter().map(|(pod, assigned)| (pod.clone(), containers(assigned))).collect();
        let default_cpu_set = state.shared.to_string();
        let mut checkpoint = Self { policy_name: state.policy.clone(), default_cpu_set, entries, checksum: 0 };
        checkpoint.checksum = checkpoint.sum("state.CPUManagerCheckpoint", false);
        checkpoint
    }

    /// The checksum under one of the names that the Go type has had.
    fn sum(&self, type_name: &'static str, with_pods: bool) -> u64 {
        let containers = |containers: &BTreeMap<String, String>| {
            Go::Map("map[string]string", containers.iter().map(|(k, v)| (Go::str(k), Go::str(v))).collect())
        };
        let entries = self.entries.iter().map(|(pod, assigned)| (Go::str(pod), containers(assigned))).collect();
        let mut fields = vec![
            ("PolicyName", Go::str(&self.policy_name)),
            ("DefaultCPUSet", Go::str(&self.default_cpu_set)),
            ("Entries", Go::Map("map[string]map[string]string", entries)),
        ];
        if with_pods {
            fields.push(("PodEntries", Go::Map("state.PodCPUAssignments", Vec::new())));
        }
        fields.push(("Checksum", Go::Number("checksum.Checksum", 0)));
        Go::Pointer(Box::new(Go::Struct(type_name, fields))).checksum()
    }

    fn is_whole(&self) -> bool {
        // Kubelets up to 1.35 sum up the first form, and later ones take it; 1.36 writes one of the others.
        let forms = [
            ("state.CPUManagerCheckpoint", false),
            ("state.CPUManagerCheckpointV2", false),
            ("state.CPUManagerCheckpoint", true),
        ];
        self.checksum == 0 || forms.into_iter().any(|(name, with_pods)| self.checksum == self.sum(name, with_pods))
    }
}

impl CpuState {
    /// Nothing given away under that policy.
    pub fn new(policy: &str) -> Self {
        Self { policy: policy.to_owned(), ..Self::default() }
    }

    /// The CPUs that a container may use: its own or the pool's; none if the policy does not say.
    pub fn cpus(&self, uid: &str, container: &str) -> Option<&CpuSet> {
        self.exclusive(uid, container).or(Some(&self.shared)).filter(|cpus| !cpus.is_empty())
    }

    /// The container's own CPUs.
    pub fn exclusive(&self, uid: &str, container: &str) -> Option<&CpuSet> {
        self.assigned.get(uid)?.get(container)
    }

    /// All CPUs that belong to somebody.
    pub fn all_exclusive(&self) -> CpuSet {
        self.assigned.values().flat_map(BTreeMap::values).flat_map(CpuSet::iter).collect()
    }

    /// Gives back what the pod has; whether that was anything.
    pub fn release(&mut self, uid: &str) -> bool {
        let Some(assigned) = self.assigned.remove(uid) else { return false };
        let cpus = assigned.values().flat_map(CpuSet::iter).collect();
        self.shared = self.shared.union(&cpus);
        true
    }

    /// The file's text.
    pub fn encode(&self) -> String {
        // Strings, maps of strings and a number always encode.
        serde_json::to_string(&Checkpoint::of(self)).unwrap_or_default()
    }

    /// Reads the file of the configured policy.
    ///
    /// # Errors
    /// It is damaged, or another policy's.
    pub fn decode(text: &[u8], policy: &str) -> Result<Self, StateError> {
        let malformed = |error: &dyn std::fmt::Display| StateError::Malformed(error.to_string());
        let checkpoint: Checkpoint = serde_json::from_slice(text).map_err(|error| malformed(&error))?;
        if !checkpoint.is_whole() {
            return Err(StateError::Corrupt);
        }
        if checkpoint.policy_name != policy {
            let (configured, found) = (policy.to_owned(), checkpoint.policy_name);
            return Err(StateError::OtherPolicy { configured, found });
        }
        let shared = checkpoint.default_cpu_set.parse().map_err(|error| {
            StateError::Malformed(format!("could not parse default CPU set {:?}: {error}", checkpoint.default_cpu_set))
        })?;
        let mut assigned = Assigned::new();
        for (pod, containers) in checkpoint.entries {
            for (container, text) in containers {
                let cpus = text.parse().map_err(|error| {
                    StateError::Malformed(format!(
                        "could not parse cpuset {text:?} for container {container:?} in pod {pod:?}: {error}"
                    ))
                })?;
                assigned.entry(pod.clone()).or_default().insert(container, cpus);
            }
        }
        Ok(Self { policy: policy.to_owned(), shared, assigned })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files and checksums of stock kubelets and of stock's own tests.
    #[test]
    fn stock_s_files_are_taken() {
        let decode = |text: &str| CpuState::decode(text.as_bytes(), "none");
        let fresh = r#"{"policyName":"none","defaultCpuSet":"","checksum":1353318690}"#;
        assert_eq!(decode(fresh), Ok(CpuState::new("none")));
        assert_eq!(CpuState::new("none").encode(), fresh);
        let pool = decode(r#"{"policyName":"none","defaultCPUSet":"4-6","entries":{},"checksum":354655845}"#).unwrap();
        assert_eq!(pool.shared.to_string(), "4-6");
        let text = r#"{"policyName":"none","defaultCPUSet":"1-3","entries":{"pod":{"container1":"4-6","container2":"1-3"}},"checksum":3610638499}"#;
        let state = decode(text).unwrap();
        assert_eq!(state.exclusive("pod", "container1").unwrap().to_string(), "4-6");
        assert_eq!(state.encode(), text.replace("CPUSet", "CpuSet"));
    }

    #[test]
    fn damage_is_told() {
        let fault = |text: &str| CpuState::decode(text.as_bytes(), "none").unwrap_err().to_string();
        assert_eq!(
            fault(r#"{"policyName":"none","defaultCPUSet":"4-6","entries":{},"checksum":1337}"#),
            "checkpoint is corrupted"
        );
        assert_eq!(
            fault(r#"{"policyName":"other","defaultCPUSet":"1-3","entries":{},"checksum":1394507217}"#),
            r#"configured policy "none" differs from state checkpoint policy "other""#
        );
        let set = fault(r#"{"policyName":"none","defaultCPUSet":"1.3","entries":{},"checksum":3021697696}"#);
        assert!(set.starts_with(r#"could not parse default CPU set "1.3""#), "{set}");
        assert!(fault("{").contains("EOF"));
    }

    #[test]
    fn a_pod_s_cpus_go_back_to_the_pool() {
        let mut state = CpuState { shared: "0-1".parse().unwrap(), ..CpuState::new("static") };
        let own = [("init".to_owned(), "2".parse().unwrap()), ("app".to_owned(), "2-3".parse().unwrap())];
        state.assigned.insert("a".into(), own.into());
        assert_eq!(state.cpus("a", "app").unwrap().to_string(), "2-3");
        assert_eq!(state.cpus("b", "app").unwrap().to_string(), "0-1");
        assert!(state.release("a") && !state.release("a"));
        assert_eq!((state.shared.to_string(), state.assigned.len()), ("0-3".into(), 0));
    }
}
