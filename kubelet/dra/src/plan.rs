//! What is to be asked of drivers: plain functions of the cache, the pods and their claims.
//!
//! A pod is written down as a user of its claims before any driver is asked, and struck off only after the drivers of
//! claims that it used last have answered. So whatever a driver may have prepared is always known here, and is
//! unprepared sooner or later, whenever the kubelet dies.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bosun_proto::dra::v1::Claim;

use crate::cache::{Cache, ClaimInfo, DriverState, Key};
use crate::claims::Allocated;

/// What to do with the claims of a pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// First: the cache with the pod as a user of them; to be kept before the calls.
    pub before: Vec<Change>,
    /// Then: what to ask of drivers, all claims of one at once.
    pub calls: BTreeMap<String, Vec<Claim>>,
    /// Last: once all calls have gone well; to be kept again.
    pub after: Vec<Change>,
}

/// A change of the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A claim that was not known is used by the pod.
    Add(Allocated, String),
    /// A known claim is used by the pod too.
    Use(Key, String),
    /// The claim is prepared.
    Prepared(Key),
    /// The pod uses the claim no more; others do.
    Release(Key, String),
    /// The claim is not prepared any more.
    Forget(Key),
}

impl Change {
    /// Makes it.
    pub fn apply(&self, cache: &mut Cache) {
        match self {
            Self::Add(claim, pod) => cache.insert(ClaimInfo {
                claim_uid: claim.uid.clone(),
                claim_name: claim.key.name.clone(),
                namespace: claim.key.namespace.clone(),
                pod_uids: [pod.clone()].into(),
                driver_state: claim.drivers.iter().map(|driver| (driver.clone(), DriverState::default())).collect(),
                prepared: false,
            }),
            Self::Use(key, pod) => {
                if let Some(claim) = cache.get_mut(key) {
                    claim.pod_uids.insert(pod.clone());
                }
            }
            Self::Prepared(key) => {
                if let Some(claim) = cache.get_mut(key) {
                    claim.prepared = true;
                }
            }
            Self::Release(key, pod) => {
                if let Some(claim) = cache.get_mut(key) {
                    claim.pod_uids.remove(pod);
                }
            }
            Self::Forget(key) => cache.remove(key),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add(claim, pod) => write!(f, "add {} ({}) for {pod}", claim.key, claim.uid),
            Self::Use(key, pod) => write!(f, "use {key} for {pod}"),
            Self::Prepared(key) => write!(f, "prepared {key}"),
            Self::Release(key, pod) => write!(f, "release {key} by {pod}"),
            Self::Forget(key) => write!(f, "forget {key}"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for change in &self.before {
            writeln!(f, "{change}")?;
        }
        for (driver, claims) in &self.calls {
            let claims: Vec<String> =
                claims.iter().map(|claim| format!("{}/{}", claim.namespace, claim.name)).collect();
            writeln!(f, "ask {driver}: {}", claims.join(" "))?;
        }
        for change in &self.after {
            writeln!(f, "{change}")?;
        }
        Ok(())
    }
}

fn claim(info: &ClaimInfo) -> Claim {
    Claim { namespace: info.namespace.clone(), uid: info.claim_uid.clone(), name: info.claim_name.clone() }
}

/// How the claims of a pod are prepared; those that are already are only written down as used.
///
/// # Errors
/// As stock words it: another claim of one's name is still in use here.
pub fn prepare(cache: &Cache, pod: &str, claims: &[Allocated]) -> Result<Plan, String> {
    let mut plan = Plan::default();
    for wanted in claims {
        let known = cache.get(&wanted.key);
        if let Some(known) = known.filter(|known| known.claim_uid != wanted.uid) {
            return Err(format!(
                "old ResourceClaim with same name {} and different UID {} still exists (previous pod force-deleted?!)",
                wanted.key.name, known.claim_uid
            ));
        }
        match known {
            None => plan.before.push(Change::Add(wanted.clone(), pod.to_owned())),
            Some(known) if known.pod_uids.contains(pod) => {}
            Some(_) => plan.before.push(Change::Use(wanted.key.clone(), pod.to_owned())),
        }
        if known.is_some_and(|known| known.prepared) {
            continue;
        }
        let claim =
            Claim { namespace: wanted.key.namespace.clone(), uid: wanted.uid.clone(), name: wanted.key.name.clone() };
        // The drivers that it was first prepared by, lest one of them is forgotten.
        let drivers: BTreeSet<&String> =
            known.map_or_else(|| wanted.drivers.iter().collect(), |known| known.driver_state.keys().collect());
        for driver in drivers {
            plan.calls.entry(driver.clone()).or_default().push(claim.clone());
        }
        plan.after.push(Change::Prepared(wanted.key.clone()));
    }
    Ok(plan)
}

/// How a pod that is over gives its claims back: those that no other pod uses are unprepared.
pub fn unprepare(cache: &Cache, pod: &str) -> Plan {
    let mut plan = Plan::default();
    for key in cache.of_pod(pod) {
        let Some(info) = cache.get(&key) else { continue };
        if info.pod_uids.len() > 1 {
            plan.after.push(Change::Release(key, pod.to_owned()));
            continue;
        }
        for driver in info.driver_state.keys() {
            plan.calls.entry(driver.clone()).or_default().push(claim(info));
        }
        plan.after.push(Change::Forget(key));
    }
    plan
}

/// The pods that claims are kept for although they are not among the active ones.
pub fn stale(cache: &Cache, active: &BTreeSet<String>) -> BTreeSet<String> {
    cache.claims().flat_map(|claim| &claim.pod_uids).filter(|pod| !active.contains(*pod)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocated(name: &str, uid: &str, drivers: &[&str]) -> Allocated {
        let drivers = drivers.iter().map(|driver| (*driver).to_owned()).collect();
        Allocated { key: Key::new("ns", name), uid: uid.into(), drivers }
    }

    fn done(cache: &mut Cache, plan: &Plan) {
        plan.before.iter().chain(&plan.after).for_each(|change| change.apply(cache));
    }

    #[test]
    fn claims_are_prepared_once_and_unprepared_by_their_last_pod() {
        let mut cache = Cache::default();
        let (shared, own) = (allocated("gpu", "u1", &["a", "b"]), allocated("nic", "u2", &["b"]));
        let first = prepare(&cache, "p1", &[shared.clone(), own]).unwrap();
        let golden = "\
add ns/gpu (u1) for p1
add ns/nic (u2) for p1
ask a: ns/gpu
ask b: ns/gpu ns/nic
prepared ns/gpu
prepared ns/nic
";
        assert_eq!(first.to_string(), golden);
        // Killed before the answer: the pod is known as a user, so it is asked again.
        first.before.iter().for_each(|change| change.apply(&mut cache));
        let again = prepare(&cache, "p1", std::slice::from_ref(&shared)).unwrap();
        assert_eq!(again.to_string(), "ask a: ns/gpu\nask b: ns/gpu\nprepared ns/gpu\n");
        done(&mut cache, &first);

        let second = prepare(&cache, "p2", std::slice::from_ref(&shared)).unwrap();
        assert_eq!(second.to_string(), "use ns/gpu for p2\n");
        done(&mut cache, &second);
        assert_eq!(prepare(&cache, "p2", &[shared]).unwrap(), Plan::default());
        let recreated = prepare(&cache, "p3", &[allocated("gpu", "u9", &["a"])]).unwrap_err();
        assert!(recreated.contains("same name gpu and different UID u1"), "{recreated}");

        let over = unprepare(&cache, "p1");
        assert_eq!(over.to_string(), "ask b: ns/nic\nrelease ns/gpu by p1\nforget ns/nic\n");
        done(&mut cache, &over);
        assert_eq!(stale(&cache, &["p1".to_owned()].into()), ["p2".to_owned()].into());
        let over = unprepare(&cache, "p2");
        assert_eq!(over.to_string(), "ask a: ns/gpu\nask b: ns/gpu\nforget ns/gpu\n");
        done(&mut cache, &over);
        assert!(cache.is_empty());
        assert_eq!(unprepare(&cache, "p2"), Plan::default());
    }

    mod states {
        use std::collections::BTreeMap;

        use proptest::prelude::*;

        use super::*;
        use crate::checkpoint;

        #[derive(Clone, Debug)]
        enum Event {
            /// A pod starts with these claims; the driver fails or not.
            Start(u8, Vec<u8>, bool),
            End(u8, bool),
            Restart,
        }

        fn events() -> impl Strategy<Value = Vec<Event>> {
            let start = (0..4_u8, prop::collection::vec(0..3_u8, 1..3), any::<bool>());
            let event = prop_oneof![
                4 => start.prop_map(|(pod, claims, ok)| Event::Start(pod, claims, ok)),
                4 => (0..4_u8, any::<bool>()).prop_map(|(pod, ok)| Event::End(pod, ok)),
                1 => Just(Event::Restart),
            ];
            prop::collection::vec(event, 0..40)
        }

        /// A node with one driver, which knows what it has prepared.
        #[derive(Default)]
        struct World {
            cache: Cache,
            kept: String,
            prepared: BTreeSet<String>,
            running: BTreeMap<String, BTreeSet<String>>,
        }

        impl World {
            fn apply(&mut self, changes: &[Change]) {
                changes.iter().for_each(|change| change.apply(&mut self.cache));
                self.kept = checkpoint::encode(&self.cache).unwrap();
            }

            fn start(&mut self, pod: &str, claims: &[u8], ok: bool) {
                if self.running.contains_key(pod) {
                    return;
                }
                let names: BTreeSet<String> = claims.iter().map(|claim| format!("c{claim}")).collect();
                let wanted: Vec<_> = names.iter().map(|name| allocated(name, name, &["d"])).collect();
                let plan = prepare(&self.cache, pod, &wanted).unwrap();
                self.apply(&plan.before);
                // A driver that fails may have done it all the same.
                self.prepared.extend(plan.calls.values().flatten().map(|claim| claim.name.clone()));
                if ok {
                    self.apply(&plan.after);
                    self.running.insert(pod.to_owned(), names);
                }
            }

            fn end(&mut self, pod: &str, ok: bool) {
                let plan = unprepare(&self.cache, pod);
                for claim in plan.calls.values().flatten() {
                    let users = self.running.iter().filter(|(user, _)| *user != pod);
                    let used = users.clone().any(|(_, claims)| claims.contains(&claim.name));
                    assert!(!used, "{} is taken from another pod", claim.name);
                    if ok {
                        self.prepared.remove(&claim.name);
                    }
                }
                self.running.remove(pod);
                if ok {
                    self.apply(&plan.after);
                }
            }
        }

        proptest! {
            #[test]
            fn nothing_is_taken_from_a_pod_and_nothing_is_left_behind(events in events()) {
                let mut world = World::default();
                for event in events {
                    match event {
                        Event::Start(pod, claims, ok) => world.start(&format!("p{pod}"), &claims, ok),
                        Event::End(pod, ok) => world.end(&format!("p{pod}"), ok),
                        Event::Restart if world.kept.is_empty() => {}
                        Event::Restart => world.cache = checkpoint::decode(&world.kept).unwrap(),
                    }
                    for claims in world.running.values() {
                        prop_assert!(claims.is_subset(&world.prepared));
                    }
                }
                // All pods end, and what is stale is found.
                for pod in world.running.clone().into_keys() {
                    world.end(&pod, true);
                }
                for pod in stale(&world.cache, &BTreeSet::new()) {
                    world.end(&pod, true);
                }
                prop_assert!(world.cache.is_empty());
                prop_assert!(world.prepared.is_empty());
            }
        }
    }
}
