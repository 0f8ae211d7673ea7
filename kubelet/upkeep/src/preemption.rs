//! Which pods make room for a critical one that does not fit. Pure.
//!
//! As few and as unimportant as possible: guaranteed pods only for what burstable and best-effort ones cannot give,
//! burstable ones only for what best-effort ones cannot; in each class those that come closest to what is missing.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;

use bosun_api::pod::{QosClass, qos_class, requests};
use k8s_openapi::api::core::v1::Pod;

use crate::critical::is_preemptable;

/// The reason of a preempted pod's status and event.
pub const REASON: &str = "Preempting";
/// What both say.
pub const MESSAGE: &str = "Preempted in order to admit critical pod";
/// What its condition DisruptionTarget says.
pub const CONDITION_MESSAGE: &str = "Pod was preempted by Kubelet to accommodate a critical pod.";

/// What is missing: amounts by resource, thousandths for `cpu`, whole units otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing(pub BTreeMap<String, i64>);

impl Missing {
    /// What is still missing once these pods are gone.
    fn without(&self, pods: &[&Pod]) -> Self {
        let left = self.0.iter().filter_map(|(name, amount)| {
            let given: i64 = pods.iter().map(|pod| request(pod, name)).sum();
            (given < *amount).then(|| (name.clone(), amount - given))
        });
        Self(left.collect())
    }

    /// How far the pod is from giving everything: 0 when it does, at most the number of resources.
    fn distance(&self, pod: &Pod) -> f64 {
        let part = |(name, amount): (&String, &i64)| {
            let short = (*amount - request(pod, name)).max(0) as f64 / (*amount).max(1) as f64;
            short * short
        };
        self.0.iter().map(part).sum()
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (name, amount) in &self.0 {
            write!(f, "(res: {name}, q: {amount}), ")?;
        }
        f.write_str("]")
    }
}

/// What the pod gives back of a resource.
pub fn request(pod: &Pod, resource: &str) -> i64 {
    match resource {
        "pods" => 1,
        "cpu" => requests(pod).get(resource).map_or(0, |quantity| quantity.milli_value()),
        _ => requests(pod).get(resource).map_or(0, |quantity| quantity.value()),
    }
}

/// The pods to end so that `wanted` fits.
///
/// # Errors
/// All that may be ended together do not give enough; in stock's words.
pub fn plan<'a>(wanted: &Pod, pods: &[&'a Pod], missing: &Missing) -> Result<Vec<&'a Pod>, String> {
    let of = |class| {
        let open = pods.iter().filter(|pod| is_preemptable(wanted, pod) && qos_class(pod) == class);
        open.copied().collect::<Vec<&'a Pod>>()
    };
    let (best_effort, burstable, guaranteed) =
        (of(QosClass::BestEffort), of(QosClass::Burstable), of(QosClass::Guaranteed));
    let left = missing.without(&[&best_effort[..], &burstable, &guaranteed].concat());
    if !left.0.is_empty() {
        return Err(format!("no set of running pods found to reclaim resources: {left}"));
    }
    let mut chosen = closest(guaranteed, missing.without(&[&best_effort[..], &burstable].concat()));
    chosen.extend(closest(burstable, missing.without(&[&best_effort[..], &chosen].concat())));
    chosen.extend(closest(best_effort, missing.without(&chosen)));
    Ok(chosen)
}

/// Takes the closest pod until nothing is missing.
fn closest(mut pods: Vec<&Pod>, mut missing: Missing) -> Vec<&Pod> {
    let mut chosen = Vec::new();
    while !missing.0.is_empty() {
        let by_distance = |(_, a): &(usize, &&Pod), (_, b): &(usize, &&Pod)| {
            let distance = missing.distance(a).total_cmp(&missing.distance(b));
            distance.then_with(|| by_request(a, b))
        };
        let Some((best, _)) = pods.iter().enumerate().min_by(by_distance) else { break };
        let pod = pods.swap_remove(best);
        missing = missing.without(&[pod]);
        chosen.push(pod);
    }
    chosen
}

fn by_request(a: &Pod, b: &Pod) -> Ordering {
    let key = |pod: &Pod| (request(pod, "memory"), request(pod, "cpu"));
    key(a).cmp(&key(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{prop, proptest};
    use serde_json::{Value, json};

    fn pod(name: &str, priority: i32, resources: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name, "uid": name},
            "spec": {"priority": priority, "containers": [{"name": "c", "resources": resources}]}}))
        .unwrap()
    }

    fn burstable(name: &str, cpu: i64, memory: i64) -> Pod {
        pod(name, 0, json!({"requests": {"cpu": format!("{cpu}m"), "memory": memory.to_string()}}))
    }

    fn guaranteed(name: &str, cpu: i64, memory: i64) -> Pod {
        let amounts = json!({"cpu": format!("{cpu}m"), "memory": memory.to_string()});
        pod(name, 0, json!({"requests": amounts, "limits": amounts}))
    }

    fn missing(pairs: &[(&str, i64)]) -> Missing {
        Missing(pairs.iter().map(|(name, amount)| ((*name).to_owned(), *amount)).collect())
    }

    fn names(wanted: &Pod, pods: &[Pod], missing: &Missing) -> Result<Vec<String>, String> {
        let pods: Vec<&Pod> = pods.iter().collect();
        Ok(plan(wanted, &pods, missing)?.iter().filter_map(|pod| pod.metadata.name.clone()).collect())
    }

    #[test]
    fn the_least_important_and_closest_make_room() {
        let critical = pod("critical", 2_000_000_000, json!({}));
        let pods = [
            pod("idle", 0, json!({})),
            burstable("small", 100, 100),
            burstable("fits", 300, 300),
            burstable("large", 800, 800),
            guaranteed("sure", 400, 400),
            pod("other-critical", 2_000_000_000, json!({"requests": {"cpu": "9"}})),
        ];
        let chosen = |pairs: &[(&str, i64)]| names(&critical, &pods, &missing(pairs));
        assert_eq!(chosen(&[("pods", 1)]).unwrap(), ["idle"]);
        assert_eq!(chosen(&[("cpu", 300)]).unwrap(), ["fits"], "the smallest of those that give enough");
        assert_eq!(chosen(&[("cpu", 1500)]).unwrap(), ["sure", "large", "fits"]);
        assert_eq!(
            chosen(&[("cpu", 1700)]).unwrap_err(),
            "no set of running pods found to reclaim resources: [(res: cpu, q: 100), ]"
        );
        let common = pod("common", 0, json!({}));
        assert!(names(&common, &pods, &missing(&[("pods", 1)])).is_err());
    }

    proptest! {
        #[test]
        fn what_is_chosen_gives_enough_and_touches_a_class_only_when_it_must(
            amounts in prop::collection::vec((0i64..500, 0i64..500, 0u8..3), 0..10), cpu in 0i64..1500, memory in 0i64..1500
        ) {
            let pods: Vec<Pod> = amounts.iter().enumerate().map(|(n, (cpu, memory, class))| match class {
                0 => pod(&format!("p{n}"), 0, json!({})),
                1 => burstable(&format!("p{n}"), *cpu + 1, *memory),
                _ => guaranteed(&format!("p{n}"), *cpu + 1, *memory + 1),
            }).collect();
            let critical = pod("critical", 2_000_000_000, json!({}));
            let list: Vec<&Pod> = pods.iter().collect();
            let wanted = missing(&[("cpu", cpu), ("memory", memory)]);
            match plan(&critical, &list, &wanted) {
                Ok(chosen) => {
                    assert!(wanted.without(&chosen).0.is_empty());
                    let lower: Vec<&Pod> = list.iter().copied().filter(|p| qos_class(p) != QosClass::Guaranteed).collect();
                    let any_guaranteed = chosen.iter().any(|p| qos_class(p) == QosClass::Guaranteed);
                    assert!(!any_guaranteed || !wanted.without(&lower).0.is_empty());
                }
                Err(_) => assert!(!wanted.without(&list).0.is_empty()),
            }
        }
    }
}
