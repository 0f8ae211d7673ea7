//! Rollouts simulated to their end: what the plan promises holds after every step.

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// A world in which sets and pods do what they are told, some of them slowly.
struct World {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    born: i64,
    log: Vec<String>,
}

fn deployment(replicas: i32, surge: &serde_json::Value, unavailable: &serde_json::Value) -> Deployment {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "d", "generation": 1},
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 2,
            "progressDeadlineSeconds": 600,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "web:1"}]},
            },
        },
    }))
    .unwrap()
}

impl World {
    fn new(deployment: Deployment) -> Self {
        Self { deployment, sets: Vec::new(), born: 0, log: Vec::new() }
    }

    fn set_image(&mut self, image: &str) {
        let spec = self.deployment.spec.as_mut().unwrap();
        spec.template.spec.as_mut().unwrap().containers[0].image = Some(image.to_owned());
        self.bump();
    }

    fn bump(&mut self) {
        *self.deployment.metadata.generation.as_mut().unwrap() += 1;
    }

    /// One pass of the controller; answers whether it wrote anything.
    fn step(&mut self) -> bool {
        let running = self.sets.iter().filter(|s| s.status.as_ref().is_some_and(|s| s.replicas > 0));
        let observed = Observed {
            running: running.map(|s| s.metadata.uid.clone().unwrap()).collect(),
            sets: self.sets.iter().cloned().map(Arc::new).collect(),
        };
        let plan = plan(&self.deployment, &observed, Timestamp::UNIX_EPOCH);
        let busy = !plan.writes.is_empty() || plan.status.is_some();
        for write in plan.writes {
            self.apply(write);
        }
        if let Some(status) = plan.status {
            self.deployment.status = Some(status);
        }
        busy
    }

    fn apply(&mut self, write: Write) {
        match write {
            Write::Create(mut set) => {
                let nth = self.born;
                self.born += 1;
                set.metadata.uid = Some(format!("set{nth}"));
                let at = Timestamp::from_second(nth).unwrap();
                set.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at));
                self.log.push(format!("create of {}", size(&set)));
                self.sets.push(*set);
            }
            Write::Update(set, event) => {
                self.log.extend(event.map(|e| {
                    let (verb, rest) = e.split_once(" replica set ").unwrap();
                    let (_, change) = rest.split_once(' ').unwrap();
                    format!("{verb} {} {change}", set.metadata.uid.as_deref().unwrap())
                }));
                let place = self.sets.iter_mut().find(|s| s.metadata.uid == set.metadata.uid).unwrap();
                *place = *set;
            }
            Write::Delete(set) => {
                self.log.push(format!("delete {}", set.metadata.uid.as_deref().unwrap()));
                self.sets.retain(|s| s.metadata.uid != set.metadata.uid);
            }
            Write::Revision(revision) => {
                self.deployment.annotations_mut().insert(REVISION.to_owned(), revision);
            }
        }
    }

    /// Pods follow their set's size; `slow` of the new ones are not yet available.
    fn settle(&mut self, slow: i32) {
        for set in &mut self.sets {
            let wanted = size(set);
            let status = set.status.get_or_insert_default();
            let before = status.available_replicas.unwrap_or_default();
            status.replicas = wanted;
            status.available_replicas = Some(if wanted <= before { wanted } else { (wanted - slow).max(before) });
            status.ready_replicas = status.available_replicas;
            status.observed_generation = set.metadata.generation;
        }
    }

    fn total(&self) -> i32 {
        self.sets.iter().map(size).sum()
    }

    /// Available pods, counting those that this moment's sizes leave.
    fn available(&self) -> i32 {
        self.sets.iter().map(|s| ripe(s).min(size(s))).sum()
    }

    fn run(&mut self) {
        for _ in 0..100 {
            self.settle(0);
            if !self.step() {
                return;
            }
        }
        panic!("does not come to rest: {:#?}", self.log);
    }
}

#[test]
fn a_rollout_step_by_step() {
    let mut world = World::new(deployment(4, &json!("25%"), &json!("25%")));
    world.run();
    world.set_image("web:2");
    world.run();
    assert_eq!(
        world.log,
        [
            "create of 4",
            "create of 1",
            "Scaled down set0 from 4 to 2",
            "Scaled up set1 from 1 to 3",
            "Scaled down set0 from 2 to 0",
            "Scaled up set1 from 3 to 4",
        ]
    );
    let status = world.deployment.status.as_ref().unwrap();
    let reasons: Vec<_> = status.conditions.iter().flatten().filter_map(|c| c.reason.as_deref()).collect();
    assert_eq!(reasons, ["MinimumReplicasAvailable", "NewReplicaSetAvailable"]);
    assert_eq!(world.deployment.annotations()[REVISION], "2");
}

#[test]
fn going_back_raises_the_old_sets_revision() {
    let mut world = World::new(deployment(2, &json!(1), &json!(0)));
    world.run();
    world.set_image("web:2");
    world.run();
    world.set_image("web:1");
    world.run();
    assert_eq!(world.sets.len(), 2);
    assert_eq!(world.sets[0].annotations()[REVISION], "3");
    assert_eq!(world.sets[0].annotations()[REVISION_HISTORY], "1");
    assert_eq!(world.deployment.annotations()[REVISION], "3");
    assert_eq!((size(&world.sets[0]), size(&world.sets[1])), (2, 0));
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let mut start = deployment(3, &json!(0), &json!(0));
    start.spec.as_mut().unwrap().strategy = serde_json::from_value(json!({"type": "Recreate"})).unwrap();
    let mut world = World::new(start);
    world.run();
    world.set_image("web:2");
    world.step();
    world.step();
    assert_eq!(world.sets.len(), 1, "old pods still run");
    world.run();
    assert_eq!(world.log, ["create of 3", "Scaled down set0 from 3 to 0", "create of 3"]);
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut world = World::new(deployment(2, &json!(1), &json!(0)));
    world.run();
    world.deployment.spec.as_mut().unwrap().paused = Some(true);
    world.set_image("web:2");
    world.deployment.spec.as_mut().unwrap().replicas = Some(5);
    world.run();
    assert_eq!(world.log, ["create of 2", "Scaled up set0 from 2 to 5"]);
}

#[test]
fn history_is_cut_to_its_length() {
    let mut world = World::new(deployment(1, &json!(1), &json!(0)));
    for version in 1..=6 {
        world.set_image(&format!("web:{version}"));
        world.run();
    }
    assert_eq!(world.sets.len(), 3, "the current one and two of history");
}

#[test]
fn lack_of_progress_is_told_once_the_deadline_is_over() {
    let mut world = World::new(deployment(1, &json!(1), &json!(0)));
    world.step();
    let observed = || Observed { running: Vec::new(), sets: world.sets.iter().cloned().map(Arc::new).collect() };
    let early = plan(&world.deployment, &observed(), Timestamp::from_second(599).unwrap());
    assert_eq!(early.again, Some(std::time::Duration::from_secs(2)));
    let late = plan(&world.deployment, &observed(), Timestamp::from_second(601).unwrap());
    let status = late.status.unwrap();
    let progressing = status.conditions.iter().flatten().find(|c| c.type_ == "Progressing").unwrap();
    assert_eq!(progressing.reason.as_deref(), Some("ProgressDeadlineExceeded"));
}

fn amount() -> impl Strategy<Value = serde_json::Value> {
    prop_oneof![(0..5i32).prop_map(|n| json!(n)), (0..=100i32).prop_map(|n| json!(format!("{n}%")))]
}

proptest! {
    #[test]
    fn a_rollout_keeps_its_bounds_and_ends(
        replicas in 0..12i32,
        surge in amount(),
        unavailable in amount(),
        slow in proptest::collection::vec(0..3i32, 0..30),
    ) {
        let mut world = World::new(deployment(replicas, &surge, &unavailable));
        world.run();
        world.set_image("web:2");
        let spec = world.deployment.spec.clone().unwrap();
        let start = world.deployment.clone();
        let target = Target::new(&start, &spec);
        let (most, least) = (target.replicas + target.max_surge, target.replicas - target.max_unavailable);
        for slow in slow {
            world.step();
            prop_assert!(world.total() <= most, "{} pods, at most {most}: {:?}", world.total(), world.log);
            prop_assert!(world.available() >= least, "{} available, at least {least}: {:?}", world.available(), world.log);
            world.settle(slow);
        }
        world.settle(0);
        world.run();
        prop_assert_eq!(size(world.sets.last().unwrap()), replicas);
        prop_assert_eq!(world.total(), replicas);
    }

    #[test]
    fn scaling_amid_a_rollout_ends_at_the_new_size(before in 1..10i32, after in 0..20i32, steps in 0..6usize) {
        let mut world = World::new(deployment(before, &json!("25%"), &json!("25%")));
        world.run();
        world.set_image("web:2");
        for _ in 0..steps {
            world.step();
            world.settle(1);
        }
        world.deployment.spec.as_mut().unwrap().replicas = Some(after);
        world.bump();
        world.run();
        prop_assert_eq!(world.total(), after);
        prop_assert_eq!(size(world.sets.last().unwrap()), after);
    }
}
