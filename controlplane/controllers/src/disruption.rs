//! Disruption budgets: how many of the pods that a budget speaks of may go now.

use std::collections::BTreeMap;
use std::sync::Arc;

use bosun_api::pod::is_ready;
use bosun_api::selector::Selector;
use bosun_kit::informer::Informer;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};

use crate::deployment::scaled;
use crate::objects::{Map, controller_of, plus_seconds, until};
use crate::pods::is_active;
use crate::runtime::{Again, Context, Controller, Key, Synced};

const NAME: &str = "disruption-controller";
/// How long an evicted pod is counted as going before it shows it.
const DELETION_TIMEOUT: i64 = 120;

/// What a budget's pods amount to. `expected` is how many their controllers want.
fn plan(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    expected: i32,
    now: Timestamp,
) -> (PodDisruptionBudgetStatus, Again) {
    let before = budget.status.clone().unwrap_or_default();
    let mut again: Again = None;
    let disrupted: BTreeMap<String, Time> = before
        .disrupted_pods
        .unwrap_or_default()
        .into_iter()
        .filter(|(name, since)| {
            let there =
                pods.iter().any(|p| p.metadata.name.as_ref() == Some(name) && p.metadata.deletion_timestamp.is_none());
            let at = plus_seconds(since.0, DELETION_TIMEOUT);
            let recent = there && at > now;
            if recent {
                let wait = until(at, now);
                again = Some(again.map_or(wait, |a: std::time::Duration| a.min(wait)));
            }
            recent
        })
        .collect();
    let going = |p: &Pod| p.metadata.name.as_ref().is_some_and(|name| disrupted.contains_key(name));
    let healthy = pods.iter().filter(|p| is_active(p) && is_ready(p) && !going(p)).count();
    let healthy = i32::try_from(healthy).unwrap_or(i32::MAX);
    let spec = budget.spec.clone().unwrap_or_default();
    let desired = match (&spec.max_unavailable, &spec.min_available) {
        (Some(unavailable), _) => (expected - scaled(unavailable, expected, true)).max(0),
        (None, Some(IntOrString::Int(least))) => *least,
        (None, Some(percent)) => scaled(percent, expected, true),
        (None, None) => 1,
    };
    let allowed = if expected <= 0 { 0 } else { (healthy - desired).max(0) };
    let status = PodDisruptionBudgetStatus {
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        expected_pods: Some(expected),
        disruptions_allowed: Some(allowed),
        disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
        observed_generation: budget.metadata.generation,
        conditions: Some(vec![condition(before.conditions.as_deref(), allowed, budget.metadata.generation, now)]),
    };
    (status, again)
}

fn condition(before: Option<&[Condition]>, allowed: i32, generation: Option<i64>, now: Timestamp) -> Condition {
    let (status, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let same = before.unwrap_or_default().iter().find(|c| c.type_ == "DisruptionAllowed" && c.status == status);
    Condition {
        type_: "DisruptionAllowed".to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: String::new(),
        observed_generation: generation,
        last_transition_time: same.map_or(Time(now), |c| c.last_transition_time.clone()),
    }
}

#[derive(Clone)]
struct Budgets {
    client: Client,
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    replica_sets: Informer<ReplicaSet>,
    stateful_sets: Informer<StatefulSet>,
    deployments: Informer<Deployment>,
}

pub(crate) fn start(context: &Context) {
    let mut controller = Controller::new(context, NAME);
    let this = Budgets {
        client: controller.client.clone(),
        budgets: context.watches.disruption_budgets(),
        pods: context.watches.pods(),
        replica_sets: context.watches.replica_sets(),
        stateful_sets: context.watches.stateful_sets(),
        deployments: context.watches.deployments(),
    };
    controller.watch_own(&this.budgets);
    controller.needs(&this.replica_sets);
    controller.needs(&this.stateful_sets);
    controller.needs(&this.deployments);
    let budgets = this.budgets.clone();
    controller.watch(&this.pods, move |delta, queue| {
        let meta = &delta.object().metadata;
        let empty = Map::new();
        let labels = meta.labels.as_ref().unwrap_or(&empty);
        let concerned = budgets.filter(|b| b.metadata.namespace == meta.namespace && selector(b).matches(labels));
        concerned.iter().for_each(|b| queue.add(Key::of(&b.metadata)));
    });
    controller.run(1, move |key| {
        let this = this.clone();
        async move { this.sync(key).await }
    });
}

fn selector(budget: &PodDisruptionBudget) -> Selector {
    let spec = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
    Selector::from_spec(spec).unwrap_or_else(|_| Selector::nothing())
}

impl Budgets {
    async fn sync(&self, key: Key) -> Synced {
        let Some(budget) = self.budgets.get(key.scope(), &key.name) else { return Ok(None) };
        let selector = selector(&budget);
        let empty = Map::new();
        let pods = self.pods.filter(|p| {
            p.metadata.namespace == budget.metadata.namespace
                && selector.matches(p.metadata.labels.as_ref().unwrap_or(&empty))
        });
        let (status, again) = plan(&budget, &pods, self.expected(&budget, &pods), Timestamp::now());
        if budget.status.as_ref() != Some(&status) {
            let mut written = (*budget).clone();
            written.status = Some(status);
            let api: Api<PodDisruptionBudget> = Api::namespaced(self.client.clone(), &key.namespace);
            api.replace_status(&key.name, &PostParams::default(), &written).await?;
        }
        Ok(again)
    }

    /// How many pods there should be: a number counts the pods that are, a share is of what the controllers want.
    fn expected(&self, budget: &PodDisruptionBudget, pods: &[Arc<Pod>]) -> i32 {
        let spec = budget.spec.clone().unwrap_or_default();
        let by_controllers =
            spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)));
        if !by_controllers {
            return i32::try_from(pods.iter().filter(|p| is_active(p)).count()).unwrap_or(i32::MAX);
        }
        let mut wanted: BTreeMap<String, i32> = BTreeMap::new();
        for pod in pods {
            if let Some((uid, replicas)) = self.scale_of(pod) {
                wanted.insert(uid, replicas);
            }
        }
        wanted.values().sum()
    }

    /// Uid and size of what stands behind a pod.
    fn scale_of(&self, pod: &Pod) -> Option<(String, i32)> {
        let owner = controller_of(&pod.metadata)?;
        let namespace = pod.metadata.namespace.as_deref();
        match owner.kind.as_str() {
            "ReplicaSet" => {
                let set = self.replica_sets.get(namespace, &owner.name)?;
                let Some(above) = controller_of(&set.metadata).filter(|o| o.kind == "Deployment") else {
                    return Some((owner.uid.clone(), set.spec.as_ref()?.replicas.unwrap_or(1)));
                };
                let deployment = self.deployments.get(namespace, &above.name)?;
                Some((above.uid.clone(), deployment.spec.as_ref()?.replicas.unwrap_or(1)))
            }
            "StatefulSet" => {
                let set = self.stateful_sets.get(namespace, &owner.name)?;
                Some((owner.uid.clone(), set.spec.as_ref()?.replicas.unwrap_or(1)))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn allowed(spec: Value, ready: usize, expected: i32) -> i32 {
        let budget: PodDisruptionBudget = serde_json::from_value(json!({"spec": spec})).unwrap();
        let pod = |n: usize| -> Arc<Pod> {
            let pod = json!({"metadata": {"name": format!("p{n}")},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        let pods: Vec<_> = (0..ready).map(pod).collect();
        plan(&budget, &pods, expected, Timestamp::UNIX_EPOCH).0.disruptions_allowed.unwrap()
    }

    #[test]
    fn allowances() {
        assert_eq!(allowed(json!({"minAvailable": 2}), 3, 3), 1);
        assert_eq!(allowed(json!({"minAvailable": "50%"}), 3, 3), 1);
        assert_eq!(allowed(json!({"maxUnavailable": 1}), 2, 3), 0);
        assert_eq!(allowed(json!({"maxUnavailable": "30%"}), 3, 3), 1);
        assert_eq!(allowed(json!({"minAvailable": 5}), 3, 3), 0);
    }
}
