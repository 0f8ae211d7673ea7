//! What all pods together may use, and what the daemons beside them may (KEP "node allocatable"). Pure.
//!
//! Hard eviction thresholds are no part of it: they lessen what the scheduler may give away, but the cgroup's limit
//! stands above them, so that eviction comes before the kernel's killer.

use std::collections::{BTreeMap, BTreeSet};

use bosun_api::pod::Resources;
use bosun_api::quantity::Quantity;

use crate::limits::{Amount, Limits, page_size, shares};

/// What a configuration calls process ids, in reservations and in capacities.
pub const PIDS: &str = "pid";

/// What `enforceNodeAllocatable` may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Enforce {
    /// All pods together.
    Pods,
    /// The system's daemons.
    SystemReserved,
    /// The node's own daemons.
    KubeReserved,
    /// As [`Self::SystemReserved`], but only what a process can be kept short of without being killed: cores.
    SystemReservedCompressible,
    /// As [`Self::KubeReserved`], but only cores.
    KubeReservedCompressible,
}

impl Enforce {
    /// Reads one entry; `none` and an empty text stand for nothing at all.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "pods" => Self::Pods,
            "system-reserved" => Self::SystemReserved,
            "kube-reserved" => Self::KubeReserved,
            "system-reserved-compressible" => Self::SystemReservedCompressible,
            "kube-reserved-compressible" => Self::KubeReservedCompressible,
            _ => return None,
        })
    }

    /// What it is about, as stock's failures call it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Pods => "Node Allocatable",
            Self::SystemReserved => "System Reserved",
            Self::KubeReserved => "Kube Reserved",
            Self::SystemReservedCompressible => "System Reserved Compressible",
            Self::KubeReservedCompressible => "Kube Reserved Compressible",
        }
    }

    /// The text of the event once it is enforced on `cgroup`.
    pub fn done(self, cgroup: &str) -> String {
        match self {
            Self::Pods => "Updated Node Allocatable limit across pods".to_owned(),
            Self::SystemReserved | Self::SystemReservedCompressible => {
                format!("Updated limits on system reserved cgroup {cgroup}")
            }
            Self::KubeReserved | Self::KubeReservedCompressible => {
                format!("Updated limits on kube reserved cgroup {cgroup}")
            }
        }
    }

    /// The text of the event when it cannot be.
    pub fn failed(self, cgroup: &str, why: &str) -> String {
        match self {
            Self::Pods => format!("Failed to update Node Allocatable Limits {cgroup:?}: {why}"),
            other => format!("Failed to enforce {} Cgroup Limits on {cgroup:?}: {why}", other.title()),
        }
    }
}

/// What a node reserves for whom, and what it makes sure of.
#[derive(Clone, Debug, Default)]
pub struct Reservations {
    /// For the node's own daemons.
    pub kube: Resources,
    /// For the system's.
    pub system: Resources,
    /// What is enforced.
    pub enforce: BTreeSet<Enforce>,
}

impl Reservations {
    /// The limits of the cgroup of all pods, on a node with this capacity (`pid` among it). The weight is always set:
    /// the kernel's own is that of a single core.
    pub fn of_pods(&self, capacity: &Resources) -> Limits {
        if !self.enforce.contains(&Enforce::Pods) {
            return limits(capacity, false);
        }
        let none = Quantity::from_value(0);
        let left = capacity.iter().map(|(name, all)| {
            let reserved =
                [&self.system, &self.kube].into_iter().filter_map(|list| list.get(name).copied()).sum::<Quantity>();
            let left = *all - reserved;
            (name.clone(), if left < none { none } else { left })
        });
        limits(&left.collect(), false)
    }

    /// The limits of a daemons' cgroup.
    pub fn of_daemons(&self, what: Enforce) -> Limits {
        match what {
            Enforce::SystemReserved => limits(&self.system, false),
            Enforce::KubeReserved => limits(&self.kube, false),
            Enforce::SystemReservedCompressible => limits(&self.system, true),
            Enforce::KubeReservedCompressible => limits(&self.kube, true),
            Enforce::Pods => Limits::default(),
        }
    }

    /// Checks that no more is kept back (`evicted` by hard eviction thresholds) than there is.
    ///
    /// # Errors
    /// Stock's sentence, with every resource that is short.
    pub fn check(&self, capacity: &Resources, evicted: &Resources) -> Result<(), String> {
        let mut short = Vec::new();
        for (name, all) in capacity {
            let kept = [&self.system, &self.kube, evicted]
                .into_iter()
                .filter_map(|list| list.get(name).copied())
                .sum::<Quantity>();
            if kept > *all {
                short.push(format!(
                    "Resource {name:?} has a reservation of {kept} but capacity of {all}. Expected capacity >= reservation."
                ));
            }
        }
        if short.is_empty() {
            return Ok(());
        }
        Err(format!("invalid Node Allocatable configuration. {}", short.join(" ")))
    }
}

/// Amounts as limits.
fn limits(amounts: &Resources, compressible_only: bool) -> Limits {
    let whole = |name: &str| {
        amounts.get(name).filter(|_| !compressible_only).map(|q| Amount::Of(u64::try_from(q.value()).unwrap_or(0)))
    };
    Limits {
        shares: amounts.get("cpu").map(|cores| shares(cores.milli_value())),
        memory: whole("memory"),
        pids: whole(PIDS),
        hugepages: if compressible_only { BTreeMap::new() } else { hugepages(amounts) },
        ..Limits::default()
    }
}

/// The huge pages among some amounts, by the kernel's name of their size.
pub fn hugepages(amounts: &Resources) -> BTreeMap<String, Amount> {
    let size = |name: &str| page_size(name.strip_prefix("hugepages-")?);
    let of = |(name, amount): (&String, &Quantity)| {
        Some((size(name)?, Amount::Of(u64::try_from(amount.value()).unwrap_or(0))))
    };
    amounts.iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amounts(all: &[(&str, &str)]) -> Resources {
        all.iter().map(|(name, amount)| ((*name).to_owned(), amount.parse().unwrap())).collect()
    }

    fn capacity() -> Resources {
        amounts(&[("cpu", "4"), ("memory", "8Gi"), ("pid", "32768"), ("hugepages-2Mi", "64Mi")])
    }

    fn reservations(enforce: &[Enforce]) -> Reservations {
        Reservations {
            kube: amounts(&[("cpu", "500m"), ("memory", "1Gi"), ("pid", "1000")]),
            system: amounts(&[("cpu", "500m"), ("memory", "1Gi")]),
            enforce: enforce.iter().copied().collect(),
        }
    }

    #[test]
    fn what_pods_may_use() {
        let of_pods = reservations(&[Enforce::Pods]).of_pods(&capacity());
        assert_eq!((of_pods.shares, of_pods.memory), (Some(3072), Some(Amount::Of(6 << 30))));
        assert_eq!(of_pods.pids, Some(Amount::Of(31_768)));
        assert_eq!(of_pods.hugepages.get("2MB"), Some(&Amount::Of(64 << 20)));
        // Not enforced, the whole machine.
        let of_pods = reservations(&[]).of_pods(&capacity());
        assert_eq!((of_pods.shares, of_pods.memory), (Some(4096), Some(Amount::Of(8 << 30))));
        // Never below nothing.
        let greedy = Reservations { kube: amounts(&[("cpu", "9")]), ..reservations(&[Enforce::Pods]) };
        assert_eq!(greedy.of_pods(&capacity()).shares, Some(2));
    }

    #[test]
    fn what_daemons_may_use() {
        let all = reservations(&[]);
        let kube = all.of_daemons(Enforce::KubeReserved);
        assert_eq!(
            (kube.shares, kube.memory, kube.pids),
            (Some(512), Some(Amount::Of(1 << 30)), Some(Amount::Of(1000)))
        );
        let soft = all.of_daemons(Enforce::KubeReservedCompressible);
        assert_eq!(soft, Limits { shares: Some(512), ..Limits::default() });
    }

    #[test]
    fn no_more_is_kept_than_there_is() {
        assert_eq!(reservations(&[]).check(&capacity(), &amounts(&[("memory", "100Mi")])), Ok(()));
        let error = reservations(&[]).check(&capacity(), &amounts(&[("memory", "7Gi")])).unwrap_err();
        let want = "invalid Node Allocatable configuration. Resource \"memory\" has a reservation of 9Gi but capacity of 8Gi. \
            Expected capacity >= reservation.";
        assert_eq!(error, want);
    }

    #[test]
    fn words_of_events() {
        assert_eq!(Enforce::Pods.done("/kubepods"), "Updated Node Allocatable limit across pods");
        let failed = Enforce::KubeReserved.failed("/kubelet.slice", "not there");
        assert_eq!(failed, "Failed to enforce Kube Reserved Cgroup Limits on \"/kubelet.slice\": not there");
        assert_eq!(Enforce::parse("none"), None);
    }
}
