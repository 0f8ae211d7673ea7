//! Jobs simulated to their end.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

struct World {
    job: Job,
    pods: Vec<Pod>,
    born: usize,
    now: i64,
    events: Vec<&'static str>,
}

fn job(spec: Value) -> Job {
    let mut job = json!({
        "metadata": {"name": "j", "namespace": "default", "uid": "j"},
        "spec": {"template": {"spec": {"containers": [], "restartPolicy": "Never"}}},
    });
    for (key, value) in spec.as_object().unwrap() {
        job["spec"][key] = value.clone();
    }
    serde_json::from_value(job).unwrap()
}

impl World {
    fn new(spec: Value) -> Self {
        Self { job: job(spec), pods: Vec::new(), born: 0, now: 0, events: Vec::new() }
    }

    fn step(&mut self) -> Again {
        let now = Timestamp::from_second(self.now).unwrap();
        let pods: Vec<Arc<Pod>> = self.pods.iter().cloned().map(Arc::new).collect();
        let plan = plan(&self.job, &pods, true, now);
        self.job.status = Some(plan.status);
        self.events.extend(plan.events.iter().map(|e| e.1));
        for pod in &plan.release {
            let pod = self.pods.iter_mut().find(|p| p.metadata.uid == pod.metadata.uid).unwrap();
            pod.metadata.finalizers = None;
        }
        for pod in &plan.delete {
            let pod = self.pods.iter_mut().find(|p| p.metadata.uid == pod.metadata.uid).unwrap();
            pod.metadata.deletion_timestamp = Some(Time(now));
        }
        // The kubelet ends what is deleted; the API server drops what nothing holds.
        self.pods.retain(|p| p.metadata.deletion_timestamp.is_none() || p.metadata.finalizers.is_some());
        for index in plan.create {
            self.born += 1;
            let mut pod: Pod = serde_json::from_value(json!({
                "metadata": {"name": format!("p{}", self.born), "uid": format!("u{}", self.born), "finalizers": [FINALIZER]},
                "status": {"phase": "Running"},
            }))
            .unwrap();
            if let Some(index) = index {
                pod.annotations_mut().insert(INDEX.to_owned(), index.to_string());
            }
            self.pods.push(pod);
        }
        plan.again
    }

    fn end(&mut self, nth: usize, code: i32) {
        let at = Timestamp::from_second(self.now).unwrap();
        let running = self.pods.iter_mut().filter(|p| phase(p) == "Running" && p.metadata.deletion_timestamp.is_none());
        if let Some(pod) = running.into_iter().nth(nth) {
            let status = json!({
                "phase": if code == 0 { "Succeeded" } else { "Failed" },
                "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {"terminated": {"exitCode": code, "finishedAt": at.to_string()}}}],
            });
            pod.status = Some(serde_json::from_value(status).unwrap());
        }
    }

    fn running(&self) -> usize {
        self.pods.iter().filter(|p| phase(p) == "Running" && p.metadata.deletion_timestamp.is_none()).count()
    }

    fn settle(&mut self) {
        for _ in 0..5 {
            self.step();
        }
    }

    fn conditions(&self) -> Vec<String> {
        let status = self.job.status.as_ref().unwrap();
        let told = |c: &JobCondition| format!("{}={} {}", c.type_, c.status, c.reason.as_deref().unwrap_or_default());
        status.conditions.iter().flatten().map(told).collect()
    }
}

#[test]
fn a_job_runs_to_completion_and_each_pod_counts_once() {
    let mut world = World::new(json!({"parallelism": 2, "completions": 3}));
    world.settle();
    assert_eq!(world.running(), 2);
    world.end(0, 0);
    world.settle();
    assert_eq!((world.running(), world.job.status.as_ref().unwrap().succeeded), (2, Some(1)));
    world.end(0, 0);
    world.end(0, 0);
    world.settle();
    let status = world.job.status.as_ref().unwrap();
    assert_eq!((status.succeeded, status.active), (Some(3), None));
    assert!(status.completion_time.is_some());
    assert_eq!(world.conditions(), ["SuccessCriteriaMet=True CompletionsReached", "Complete=True CompletionsReached"]);
    assert_eq!(world.events, ["Completed"]);
    assert!(world.pods.iter().all(|p| !is_tracked(p)));
}

#[test]
fn failures_back_off_and_then_end_it() {
    let mut world = World::new(json!({"completions": 1, "backoffLimit": 1}));
    world.settle();
    world.end(0, 1);
    world.settle();
    assert_eq!(world.running(), 0);
    assert_eq!(world.step(), Some(Duration::from_secs(10)));
    world.now = 10;
    world.settle();
    assert_eq!(world.running(), 1);
    world.end(0, 1);
    world.settle();
    assert_eq!(world.conditions(), ["FailureTarget=True BackoffLimitExceeded", "Failed=True BackoffLimitExceeded"]);
    assert_eq!(world.job.status.as_ref().unwrap().failed, Some(2));
}

#[test]
fn a_deadline_ends_what_runs() {
    let mut world = World::new(json!({"completions": 1, "activeDeadlineSeconds": 30}));
    world.step();
    assert_eq!(world.step(), Some(Duration::from_secs(30)));
    world.now = 30;
    world.settle();
    assert_eq!(world.running(), 0);
    assert!(world.conditions().contains(&"Failed=True DeadlineExceeded".to_owned()));
}

#[test]
fn indexes_are_all_done_once() {
    let mut world = World::new(json!({"completions": 4, "parallelism": 2, "completionMode": "Indexed"}));
    world.settle();
    world.end(1, 0);
    world.settle();
    assert_eq!(world.job.status.as_ref().unwrap().completed_indexes.as_deref(), Some("1"));
    for _ in 0..3 {
        world.end(0, 0);
        world.settle();
    }
    let status = world.job.status.as_ref().unwrap();
    assert_eq!((status.completed_indexes.as_deref(), status.succeeded), (Some("0-3"), Some(4)));
    assert!(world.conditions().contains(&"Complete=True CompletionsReached".to_owned()));
}

#[test]
fn suspension_stops_and_resumes() {
    let mut world = World::new(json!({"completions": 1}));
    world.settle();
    world.job.spec.as_mut().unwrap().suspend = Some(true);
    world.settle();
    assert_eq!((world.running(), world.conditions()), (0, vec!["Suspended=True JobSuspended".to_owned()]));
    world.job.spec.as_mut().unwrap().suspend = Some(false);
    world.settle();
    assert_eq!(world.events, ["Suspended", "Resumed"]);
}

#[test]
fn policy_can_fail_a_job_at_once_or_overlook_a_failure() {
    let policy = |action: &str| {
        json!({"completions": 1, "podFailurePolicy": {"rules": [
            {"action": action, "onExitCodes": {"operator": "In", "values": [42]}}]}})
    };
    let mut world = World::new(policy("FailJob"));
    world.settle();
    world.end(0, 42);
    world.settle();
    assert!(world.conditions().contains(&"Failed=True PodFailurePolicy".to_owned()));
    let mut world = World::new(policy("Ignore"));
    world.settle();
    world.end(0, 42);
    world.settle();
    assert_eq!((world.running(), world.job.status.as_ref().unwrap().failed), (1, None));
}

proptest! {
    #[test]
    fn never_more_pods_than_parallelism_and_exactly_the_completions(
        parallelism in 1..5i32,
        completions in 1..8i32,
        ends in proptest::collection::vec((0..4usize, proptest::bool::weighted(0.2)), 0..60),
    ) {
        let mut world = World::new(json!({"parallelism": parallelism, "completions": completions, "backoffLimit": 1000}));
        for (nth, fails) in ends {
            world.step();
            prop_assert!(world.running() <= usize::try_from(parallelism).unwrap());
            world.end(nth, i32::from(fails));
            world.now += 700;
        }
        for _ in 0..40 {
            world.settle();
            world.end(0, 0);
            world.now += 700;
        }
        let status = world.job.status.clone().unwrap();
        prop_assert_eq!(status.succeeded, Some(completions));
        prop_assert!(world.conditions().contains(&"Complete=True CompletionsReached".to_owned()));
    }
}
