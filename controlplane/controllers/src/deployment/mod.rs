//! Deployments: ReplicaSets rolled from one template to the next.

mod plan;
pub(crate) use plan::scaled;
mod status;

use std::sync::Arc;

use bosun_api::pod::is_terminal;
use bosun_api::selector::Selector;
use bosun_kit::events::{EventType, Recorder};
use bosun_kit::informer::{Delta, Informer};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};

use crate::deployment::plan::{Observed, Write, plan};
use crate::objects::{apply_claim, claim, controller_key, controller_of, reference, uid};
use crate::pods::text;
use crate::runtime::{Context, Controller, Key, SyncError, Synced, code, gone_is_fine};

const NAME: &str = "deployment-controller";

#[derive(Clone)]
struct Deployments {
    client: Client,
    recorder: Recorder,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
}

pub(crate) fn start(context: &Context) {
    let mut controller = Controller::new(context, NAME);
    let this = Deployments {
        client: controller.client.clone(),
        recorder: controller.recorder(NAME),
        deployments: context.watches.deployments(),
        sets: context.watches.replica_sets(),
        pods: context.watches.pods(),
    };
    controller.watch_own(&this.deployments);
    let deployments = this.deployments.clone();
    controller.watch(&this.sets, move |delta, queue| {
        let meta = &delta.object().metadata;
        if let Some(key) = controller_key(meta, "Deployment") {
            queue.add(key);
        } else if controller_of(meta).is_none() {
            let empty = crate::objects::Map::new();
            let labels = meta.labels.as_ref().unwrap_or(&empty);
            let takers = deployments.filter(|d| d.metadata.namespace == meta.namespace && selector(d).matches(labels));
            takers.iter().for_each(|d| queue.add(Key::of(&d.metadata)));
        }
    });
    // A Recreate rollout goes on once the last old pod is gone.
    let (deployments, sets) = (this.deployments.clone(), this.sets.clone());
    controller.watch(&this.pods, move |delta, queue| {
        let pod = delta.object();
        if !matches!(delta, Delta::Deleted(_)) && !is_terminal(pod) {
            return;
        }
        let Some(set) = controller_key(&pod.metadata, "ReplicaSet").and_then(|k| sets.get(k.scope(), &k.name)) else {
            return;
        };
        let Some(key) = controller_key(&set.metadata, "Deployment") else { return };
        let recreates = deployments.get(key.scope(), &key.name).is_some_and(|d| plan::recreates(&d));
        if recreates {
            queue.add(key);
        }
    });
    controller.run(4, move |key| {
        let this = this.clone();
        async move { this.sync(key).await }
    });
}

fn selector(deployment: &Deployment) -> Selector {
    let spec = deployment.spec.as_ref().map(|s| &s.selector);
    Selector::from_spec(spec).unwrap_or_else(|_| Selector::nothing())
}

impl Deployments {
    async fn sync(&self, key: Key) -> Synced {
        let Some(deployment) = self.deployments.get(key.scope(), &key.name) else {
            return Ok(None);
        };
        let sets: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &key.namespace);
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), &key.namespace);
        let own = uid(&deployment.metadata);
        let candidates = self.sets.filter(|s| {
            s.metadata.namespace == deployment.metadata.namespace
                && controller_of(&s.metadata).is_none_or(|o| o.uid == own)
        });
        let claim = claim(&deployment.metadata, &selector(&deployment), candidates, |_| true);
        let owned = apply_claim(&sets, &*deployment, claim, &deployments).await?;
        let observed = Observed { running: self.running(&owned), sets: owned };
        let plan = plan(&deployment, &observed, Timestamp::now());
        let mut current = (*deployment).clone();
        for write in plan.writes {
            self.write(&sets, &deployments, &mut current, write).await?;
        }
        if let Some(status) = plan.status {
            current.status = Some(status);
            deployments.replace_status(&key.name, &PostParams::default(), &current).await?;
        }
        Ok(plan.again)
    }

    /// Uids of the sets that still have pods that run.
    fn running(&self, sets: &[Arc<ReplicaSet>]) -> Vec<String> {
        let has_pods = |set: &ReplicaSet| {
            let own = uid(&set.metadata);
            let pods =
                self.pods.filter(|p| !is_terminal(p) && controller_of(&p.metadata).is_some_and(|o| o.uid == own));
            !pods.is_empty()
        };
        sets.iter().filter(|s| has_pods(s)).map(|s| uid(&s.metadata).to_owned()).collect()
    }

    async fn write(
        &self,
        sets: &Api<ReplicaSet>,
        deployments: &Api<Deployment>,
        current: &mut Deployment,
        write: Write,
    ) -> Result<(), SyncError> {
        let about = reference(current);
        match write {
            Write::Create(set) => self.create(sets, deployments, current, *set).await?,
            Write::Update(set, event) => {
                sets.replace(&set.name_any(), &PostParams::default(), &set).await?;
                if let Some(message) = event {
                    self.recorder.event(&about, EventType::Normal, "ScalingReplicaSet", message);
                }
            }
            Write::Delete(set) => {
                let same = Preconditions { uid: set.metadata.uid.clone(), resource_version: None };
                let params = DeleteParams::background().preconditions(same);
                gone_is_fine(sets.delete(&set.name_any(), &params).await)?;
            }
            Write::Revision(revision) => {
                let mut noted = current.clone();
                noted.annotations_mut().insert(plan::REVISION.to_owned(), revision);
                let written = deployments.replace(&current.name_any(), &PostParams::default(), &noted).await?;
                // Its status is written next, on top of this.
                current.metadata = written.metadata;
            }
        }
        Ok(())
    }

    async fn create(
        &self,
        sets: &Api<ReplicaSet>,
        deployments: &Api<Deployment>,
        current: &mut Deployment,
        set: ReplicaSet,
    ) -> Result<(), SyncError> {
        let name = set.name_any();
        let about = reference(current);
        let error = match sets.create(&PostParams::default(), &set).await {
            Ok(_) => {
                let replicas = set.spec.as_ref().and_then(|s| s.replicas).unwrap_or_default();
                if replicas > 0 {
                    let message = format!("Scaled up replica set {name} from 0 to {replicas}");
                    self.recorder.event(&about, EventType::Normal, "ScalingReplicaSet", message);
                }
                return Ok(());
            }
            Err(error) => error,
        };
        if code(&error) == 409 {
            let Some(there) = sets.get_opt(&name).await? else { return Err(error.into()) };
            let ours = controller_of(&there.metadata).is_some_and(|o| o.uid == uid(&current.metadata));
            if ours && plan::same_template(current, &there) {
                // Our informer is late: what we wanted to create is there.
                return Ok(());
            }
            let status = current.status.get_or_insert_default();
            status.collision_count = Some(status.collision_count.unwrap_or_default() + 1);
            deployments.replace_status(&current.name_any(), &PostParams::default(), current).await?;
            return Err(SyncError::Other(format!("replica set name {name} is taken by another; a new one is made")));
        }
        if !crate::pods::is_namespace_ending(&error) {
            let message = format!("Failed to create new replica set {name:?}: {}", text(&error));
            self.recorder.event(&about, EventType::Warning, "ReplicaSetCreateError", message.clone());
            let status = status::with_create_error(current, message, Timestamp::now());
            current.status = Some(status);
            deployments.replace_status(&current.name_any(), &PostParams::default(), current).await?;
        }
        Err(error.into())
    }
}
