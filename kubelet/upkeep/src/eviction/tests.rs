//! Plans as text, and what holds for any.

use super::*;
use crate::signals::Observation;
use crate::thresholds::{Given, parse};
use crate::usage::{DiskUsage, VolumeUsage};
use proptest::prelude::{Just, Strategy, any, prop, prop_oneof, proptest};
use serde_json::{Value, json};

const MI: i64 = 1 << 20;

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn config() -> Config {
    let given = Given {
        hard: map(&[("memory.available", "100Mi"), ("nodefs.available", "10%"), ("pid.available", "50")]),
        soft: map(&[("memory.available", "300Mi")]),
        soft_grace: [("memory.available".to_owned(), Duration::from_secs(30))].into(),
        minimum_reclaim: map(&[("memory.available", "50Mi")]),
        ..Given::default()
    };
    Config { thresholds: parse(&given).unwrap(), transition: Duration::from_secs(300), max_pod_grace: 20 }
}

fn observed(memory: i64, disk: i64, pids: i64) -> Observations {
    [
        (Signal::MemoryAvailable, Observation { available: memory * MI, capacity: 1000 * MI }),
        (Signal::NodeFsAvailable, Observation { available: disk * MI, capacity: 1000 * MI }),
        (Signal::PidAvailable, Observation { available: pids, capacity: 1000 }),
    ]
    .into()
}

fn pod(name: &str, priority: i32, requests: &Value) -> Pod {
    let container = json!({"name": "x", "resources": {"requests": requests}});
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "d", "uid": name},
        "spec": {"priority": priority, "terminationGracePeriodSeconds": 30, "containers": [container]}}))
    .unwrap()
}

fn using(memory: i64) -> Option<PodUsage> {
    let memory = Some((memory * MI) as u64);
    let container = ContainerUsage { name: "x".into(), memory, ..ContainerUsage::default() };
    Some(PodUsage { memory, containers: vec![container], ..PodUsage::default() })
}

#[test]
fn a_shortage_is_shown_acted_on_and_remembered() {
    let (config, start) = (config(), Instant::now());
    let at = |second| start + Duration::from_secs(second);
    let step = |observed: &Observations, history: &History, second| assess(&config, observed, history, at(second));

    let fine = step(&observed(500, 500, 500), &History::default(), 0);
    assert_eq!(fine.to_string(), "");
    // Below the soft threshold: shown at once, acted on after its grace.
    let soft = step(&observed(200, 500, 500), &fine.history, 10);
    assert_eq!(soft.to_string(), "show MemoryPressure\n");
    let due = step(&observed(200, 500, 500), &soft.history, 40);
    assert_eq!(
        due.to_string(),
        "show MemoryPressure\nstarved: memory.available < 300Mi for 30 s, by 50Mi more, 200Mi left\n"
    );
    // What is won back must be the minimum more.
    let almost = step(&observed(340, 500, 500), &due.history, 50);
    assert!(almost.starved.is_some(), "{almost}");
    let over = step(&observed(350, 500, 500), &almost.history, 60);
    assert_eq!(over.to_string(), "show MemoryPressure\n", "shown for the transition period");
    assert_eq!(step(&observed(350, 500, 500), &over.history, 349).to_string(), "show MemoryPressure\n");
    assert_eq!(step(&observed(350, 500, 500), &over.history, 350).to_string(), "");
    // A shortage that ends before its grace begins anew.
    let again = step(&observed(200, 500, 500), &over.history, 400);
    assert!(again.starved.is_none());
}

#[test]
fn memory_goes_before_the_rest() {
    let all = assess(&config(), &observed(50, 50, 5), &History::default(), Instant::now());
    assert_eq!(
        all.to_string(),
        "show MemoryPressure\nshow DiskPressure\nshow PIDPressure\nstarved: memory.available < 100Mi, by 50Mi more, 50Mi left\n"
    );
    let disk = assess(&config(), &observed(500, 99, 50), &History::default(), Instant::now());
    assert_eq!(disk.to_string(), "show DiskPressure\nstarved: nodefs.available < 10%, 99Mi left\n");
    assert!(is_short(&config(), &observed(500, 99, 50)) && !is_short(&config(), &observed(500, 101, 50)));
}

fn starving(observed: &Observations) -> Starved {
    assess(&config(), observed, &History::default(), Instant::now()).starved.unwrap()
}

fn order(signal: &Observations, layout: Layout, pods: &[Candidate<'_>]) -> Vec<String> {
    let mut left: Vec<Candidate<'_>> = pods.to_vec();
    let mut order = Vec::new();
    while let Some(next) = choose(&config(), layout, &starving(signal), &left) {
        left.retain(|candidate| candidate.pod.metadata.uid.as_deref() != Some(&next.uid));
        order.push(next.uid);
    }
    order
}

#[test]
fn pods_above_their_request_go_first_then_by_priority_then_by_excess() {
    let none = json!({});
    let pods = [
        pod("within", 0, &json!({"memory": "500Mi"})),
        pod("high", 100, &none),
        pod("small", 0, &none),
        pod("large", 0, &none),
        pod("asked", 0, &json!({"memory": "100Mi"})),
        pod("critical", 2_000_000_000, &none),
        pod("unmeasured", 0, &none),
    ];
    let usages = [using(400), using(900), using(10), using(60), using(150), using(999), None];
    let candidates: Vec<_> = pods.iter().zip(usages).map(|(pod, usage)| Candidate { pod, usage }).collect();
    let low = observed(50, 500, 500);
    assert_eq!(
        order(&low, Layout::default(), &candidates),
        ["unmeasured", "large", "asked", "small", "high", "within"]
    );
    let first = choose(&config(), Layout::default(), &starving(&low), &candidates[3..5]).unwrap();
    assert_eq!(
        first.to_string(),
        "evict d/large within 1 s: The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. \
         Container x was using 60Mi, request is 0, has larger consumption of memory. "
    );
    assert!(first.disruption);
}

#[test]
fn a_soft_threshold_gives_grace() {
    let soft = Starved { threshold: config().thresholds[3], ..starving(&observed(50, 500, 500)) };
    assert!(!soft.threshold.is_hard());
    let pod = pod("a", 0, &json!({}));
    let chosen = choose(&config(), Layout::default(), &soft, &[Candidate { pod: &pod, usage: using(1) }]).unwrap();
    assert_eq!(chosen.grace, 20);
}

#[test]
fn disk_counts_what_is_on_the_file_system_that_is_short() {
    let usage = |rootfs: u64, logs: u64, volume: u64| {
        let disk = |bytes: u64| DiskUsage { bytes: bytes << 20, inodes: bytes };
        let container = ContainerUsage {
            name: "x".into(),
            rootfs: Some(disk(rootfs)),
            logs: Some(disk(logs)),
            ..ContainerUsage::default()
        };
        let volumes = vec![VolumeUsage { name: "v".into(), used: disk(volume) }];
        Some(PodUsage { containers: vec![container], volumes, ..PodUsage::default() })
    };
    let pods = [pod("layer", 0, &json!({})), pod("volume", 0, &json!({})), pod("log", 0, &json!({}))];
    let usages = [usage(90, 0, 1), usage(0, 0, 50), usage(0, 20, 0)];
    let candidates: Vec<_> = pods.iter().zip(usages).map(|(pod, usage)| Candidate { pod, usage }).collect();
    let low = observed(500, 50, 500);
    assert_eq!(order(&low, Layout::default(), &candidates), ["layer", "volume", "log"]);
    let apart = Layout { image_fs: true, container_fs: false };
    assert_eq!(order(&low, apart, &candidates), ["volume", "log", "layer"]);
    let message = choose(&config(), Layout::default(), &starving(&low), &candidates[..1]).unwrap().message;
    assert_eq!(
        message,
        "The node was low on resource: ephemeral-storage. Threshold quantity: 104857601, available: 50Mi. Container x \
         was using 90Mi, request is 0, has larger consumption of ephemeral-storage. "
    );
    assert_eq!(starving(&low).reclaims(Layout::default()), [Reclaim::Containers, Reclaim::Images]);
    assert_eq!(starving(&low).reclaims(apart), []);
}

#[test]
fn processes_count_after_priority() {
    let pods = [pod("many", 5, &json!({})), pod("few", 0, &json!({})), pod("some", 0, &json!({}))];
    let usage = |processes| Some(PodUsage { processes: Some(processes), ..PodUsage::default() });
    let usages = [usage(900), usage(3), usage(7)];
    let candidates: Vec<_> = pods.iter().zip(usages).map(|(pod, usage)| Candidate { pod, usage }).collect();
    assert_eq!(order(&observed(500, 500, 5), Layout::default(), &candidates), ["some", "few", "many"]);
}

#[test]
fn a_node_in_need_refuses_pods_but_critical_ones() {
    let memory: BTreeSet<Condition> = [Condition::Memory].into();
    let both: BTreeSet<Condition> = [Condition::Disk, Condition::Memory].into();
    let best_effort = pod("a", 0, &json!({}));
    let burstable = pod("b", 0, &json!({"memory": "1Mi"}));
    let mut tolerant = best_effort.clone();
    tolerant.spec.as_mut().unwrap().tolerations = serde_json::from_value(
        json!([{"key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoSchedule"}]),
    )
    .unwrap();
    assert!(!admits(&best_effort, &memory) && admits(&burstable, &memory) && admits(&tolerant, &memory));
    assert!(!admits(&burstable, &both) && !admits(&tolerant, &both));
    assert!(admits(&pod("c", 2_000_000_000, &json!({})), &both) && admits(&best_effort, &BTreeSet::new()));
    assert_eq!(refusal_message(&memory), "The node had condition: [MemoryPressure]. ");
    assert_eq!(refusal_message(&both), "The node had condition: [MemoryPressure DiskPressure]. ");
}

fn any_candidate() -> impl Strategy<Value = (i32, Option<i64>, i64)> {
    let priority = prop_oneof![4 => 0..5i32, 1 => Just(2_000_000_000)];
    (priority, prop_oneof![5 => (0..1000i64).prop_map(Some), 1 => Just(None)], 0..1000i64)
}

proptest! {
    #[test]
    fn the_chosen_pod_is_never_critical_and_never_better_than_another(
        pods in prop::collection::vec(any_candidate(), 0..12), memory in 0..100i64
    ) {
        let built: Vec<(Pod, Option<PodUsage>)> = pods.iter().enumerate().map(|(n, (priority, used, request))| {
            (pod(&format!("p{n}"), *priority, &json!({"memory": format!("{request}Mi")})), used.and_then(using))
        }).collect();
        let candidates: Vec<_> = built.iter().map(|(pod, usage)| Candidate { pod, usage: usage.clone() }).collect();
        let chosen = choose(&config(), Layout::default(), &starving(&observed(memory, 500, 500)), &candidates);
        let open: Vec<_> = pods.iter().enumerate().filter(|(_, (priority, ..))| *priority < 2_000_000_000).collect();
        assert_eq!(chosen.is_some(), !open.is_empty());
        if let Some(chosen) = chosen {
            let key = |(priority, used, request): &(i32, Option<i64>, i64)| {
                let excess = used.map_or(i64::MAX, |used| used - request);
                (excess <= 0, *priority, -excess)
            };
            let index: usize = chosen.uid[1..].parse().unwrap();
            assert!(open.iter().all(|(_, other)| key(&pods[index]) <= key(other)));
        }
    }

    #[test]
    fn an_assessment_shows_what_it_acts_on(
        steps in prop::collection::vec((any::<u16>(), any::<u16>(), any::<u16>(), 0u64..100), 1..20)
    ) {
        let (config, mut now, mut history) = (config(), Instant::now(), History::default());
        for (memory, disk, pids, wait) in steps {
            now += Duration::from_secs(wait);
            let seen = observed(i64::from(memory % 1000), i64::from(disk % 1000), i64::from(pids % 1000));
            let found = assess(&config, &seen, &history, now);
            if let Some(starved) = found.starved {
                assert!(found.conditions.contains(&starved.threshold.signal.condition()));
            }
            let hard = |t: &&Threshold| t.is_hard() && starved_now(t, &seen);
            assert!(found.starved.is_some() || config.thresholds.iter().find(hard).is_none());
            history = found.history;
        }
    }
}

fn starved_now(threshold: &Threshold, observed: &Observations) -> bool {
    starved(*threshold, observed).is_some_and(|found| found.quantity > found.available)
}
