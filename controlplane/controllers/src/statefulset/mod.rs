//! StatefulSets: pods with stable names and claims, started and replaced in order.

mod plan;

use std::sync::Arc;

use bosun_api::selector::Selector;
use bosun_kit::events::{EventType, Recorder};
use bosun_kit::informer::Informer;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, Volume};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};

use self::plan::{Revisions, ordinal};
use crate::history;
use crate::objects::{apply_claim, claim, controller_key, controller_of, controller_ref, reference, uid};
use crate::pods::{PodControl, from_template, text};
use crate::runtime::{Context, Controller, Expectations, Key, SyncError, Synced, code};

const NAME: &str = "statefulset-controller";

#[derive(Clone)]
struct StatefulSets {
    client: Client,
    recorder: Recorder,
    sets: Informer<StatefulSet>,
    pods: Informer<Pod>,
    revisions: Informer<ControllerRevision>,
    claims: Informer<PersistentVolumeClaim>,
    control: PodControl,
}

pub(crate) fn start(context: &Context) {
    let mut controller = Controller::new(context, NAME);
    let expectations = Expectations::default();
    let recorder = controller.recorder(NAME);
    let this = StatefulSets {
        client: controller.client.clone(),
        recorder: recorder.clone(),
        sets: context.watches.stateful_sets(),
        pods: context.watches.pods(),
        revisions: context.watches.controller_revisions(),
        claims: context.watches.claims(),
        control: PodControl { client: controller.client.clone(), recorder, expectations: expectations.clone() },
    };
    controller.watch_own(&this.sets);
    controller.needs(&this.revisions);
    controller.needs(&this.claims);
    controller.watch(&this.pods, move |delta, queue| {
        if let Some(key) = controller_key(&delta.object().metadata, "StatefulSet") {
            expectations.observe(&key, delta);
            queue.add(key);
        }
    });
    controller.run(2, move |key| {
        let this = this.clone();
        async move { this.sync(key).await }
    });
}

fn selector(set: &StatefulSet) -> Selector {
    let spec = set.spec.as_ref().map(|s| &s.selector);
    Selector::from_spec(spec).unwrap_or_else(|_| Selector::nothing())
}

fn same(a: &StatefulSetStatus, b: &StatefulSetStatus) -> bool {
    let normal = |s: &StatefulSetStatus| {
        let mut s = s.clone();
        let numbers = [
            &mut s.ready_replicas,
            &mut s.available_replicas,
            &mut s.current_replicas,
            &mut s.updated_replicas,
            &mut s.collision_count,
        ];
        for number in numbers {
            *number = Some(number.unwrap_or_default());
        }
        s
    };
    normal(a) == normal(b)
}

impl StatefulSets {
    async fn sync(&self, key: Key) -> Synced {
        let Some(set) = self.sets.get(key.scope(), &key.name) else {
            self.control.expectations.forget(&key);
            return Ok(None);
        };
        let pods_api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let sets_api: Api<StatefulSet> = Api::namespaced(self.client.clone(), &key.namespace);
        let own = uid(&set.metadata);
        let candidates = self.pods.filter(|p| {
            p.metadata.namespace == set.metadata.namespace && controller_of(&p.metadata).is_none_or(|o| o.uid == own)
        });
        let is_member = |pod: &Pod| ordinal(&key.name, &pod.name_any()).is_some();
        let claim = claim(&set.metadata, &selector(&set), candidates, is_member);
        let pods = apply_claim(&pods_api, &*set, claim, &sets_api).await?;
        if !self.control.expectations.satisfied(&key) {
            return Ok(None);
        }
        let (current, update) = self.sync_history(&set, &key, &pods).await?;
        // Stock names revisions in the status by their objects, and labels pods with the same names.
        let (old_name, new_name) = (current.name_any(), update.name_any());
        let revisions = Revisions { current: &old_name, update: &new_name };
        let plan = plan::plan(&set, revisions, &pods, Timestamp::now());
        let about = reference(&*set);
        let mut error = None;
        for (n, updated) in plan.create {
            let revision = if updated { &update } else { &current };
            if let Err(failed) = self.create(&set, &key, n, revision).await {
                error = Some(failed);
                break;
            }
        }
        if error.is_none() {
            error = self.delete(&about, &key, &plan.delete).await.err();
        }
        if !same(&plan.status, &set.status.clone().unwrap_or_default()) {
            let mut written = (*set).clone();
            written.status = Some(plan.status);
            sets_api.replace_status(&key.name, &PostParams::default(), &written).await?;
        }
        match error {
            Some(error) => Err(error),
            None => Ok(plan.again),
        }
    }

    /// The revisions that is and that is to come.
    async fn sync_history(
        &self,
        set: &StatefulSet,
        key: &Key,
        pods: &[Arc<Pod>],
    ) -> Result<(Arc<ControllerRevision>, Arc<ControllerRevision>), SyncError> {
        let own = uid(&set.metadata);
        let revisions = self.revisions.filter(|r| controller_of(&r.metadata).is_some_and(|o| o.uid == own));
        let spec = set.spec.clone().unwrap_or_default();
        let labels = spec.template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
        let status = set.status.clone().unwrap_or_default();
        let collisions = status.collision_count.unwrap_or_default();
        let api: Api<ControllerRevision> = Api::namespaced(self.client.clone(), &key.namespace);
        let update = history::apply(&api, history::plan(set, &spec.template, &labels, collisions, &revisions)).await?;
        let named = status.current_revision.unwrap_or_default();
        let current = revisions.iter().find(|r| r.name_any() == named).cloned().unwrap_or_else(|| update.clone());
        let mut used: Vec<String> = vec![history::hash_of(&current), history::hash_of(&update)];
        let labelled = |pod: &Arc<Pod>| {
            let name = pod.labels().get(history::REVISION_HASH)?;
            revisions.iter().find(|r| r.name_any() == *name).map(|r| history::hash_of(r))
        };
        used.extend(pods.iter().filter_map(labelled));
        history::clean_up(&api, &revisions, &used, spec.revision_history_limit.unwrap_or(10)).await?;
        Ok((current, update))
    }

    async fn create(
        &self,
        set: &StatefulSet,
        key: &Key,
        n: i32,
        revision: &ControllerRevision,
    ) -> Result<(), SyncError> {
        let about = reference(set);
        let name = format!("{}-{n}", key.name);
        let pod = pod_of(set, key, &name, n, revision);
        self.create_claims(set, key, n).await?;
        self.control.expectations.expect_creation(key, &name);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        match api.create(&PostParams::default(), &pod).await {
            Ok(_) => {
                let message = format!("create Pod {name} in StatefulSet {} successful", key.name);
                self.recorder.event(&about, EventType::Normal, "SuccessfulCreate", message);
                Ok(())
            }
            Err(error) => {
                self.control.expectations.give_up(key, &name);
                if code(&error) != 409 && !crate::pods::is_namespace_ending(&error) {
                    let why = text(&error);
                    let message = format!("create Pod {name} in StatefulSet {} failed error: {why}", key.name);
                    self.recorder.event(&about, EventType::Warning, "FailedCreate", message);
                }
                Err(error.into())
            }
        }
    }

    async fn create_claims(&self, set: &StatefulSet, key: &Key, n: i32) -> Result<(), SyncError> {
        let spec = set.spec.as_ref();
        let templates = spec.and_then(|s| s.volume_claim_templates.as_deref()).unwrap_or_default();
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &key.namespace);
        for template in templates {
            let name = claim_name(template, &key.name, n);
            if self.claims.get(key.scope(), &name).is_some() {
                continue;
            }
            let mut claim = template.clone();
            claim.metadata.name = Some(name.clone());
            claim.metadata.namespace = Some(key.namespace.clone());
            claim.status = None;
            let labels = spec.and_then(|s| s.selector.match_labels.clone()).unwrap_or_default();
            claim.labels_mut().extend(labels);
            match api.create(&PostParams::default(), &claim).await {
                Ok(_) => {
                    let message = format!("create Claim {name} Pod {0}-{n} in StatefulSet {0} success", key.name);
                    self.recorder.event(&reference(set), EventType::Normal, "SuccessfulCreate", message);
                }
                Err(error) if code(&error) == 409 => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn delete(
        &self,
        about: &k8s_openapi::api::core::v1::ObjectReference,
        key: &Key,
        pods: &[Arc<Pod>],
    ) -> Result<(), SyncError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        for pod in pods {
            let name = pod.name_any();
            self.control.expectations.expect_deletion(key, &name);
            let same = kube::api::Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
            let params = kube::api::DeleteParams::default().preconditions(same);
            match api.delete(&name, &params).await {
                Ok(_) => {
                    let message = format!("delete Pod {name} in StatefulSet {} successful", key.name);
                    self.recorder.event(about, EventType::Normal, "SuccessfulDelete", message);
                }
                Err(error) => {
                    self.control.expectations.give_up(key, &name);
                    if !matches!(code(&error), 404 | 409) {
                        return Err(error.into());
                    }
                }
            }
        }
        Ok(())
    }
}

fn claim_name(template: &PersistentVolumeClaim, set: &str, n: i32) -> String {
    format!("{}-{set}-{n}", template.name_any())
}

/// The pod of an ordinal: its name, its claims, its place in the Service's domain.
fn pod_of(set: &StatefulSet, key: &Key, name: &str, n: i32, revision: &ControllerRevision) -> Pod {
    let spec = set.spec.clone().unwrap_or_default();
    let template = history::template_of(revision).unwrap_or(spec.template);
    let mut pod = from_template(&template, &key.namespace, &key.name, controller_ref(set));
    pod.metadata.name = Some(name.to_owned());
    let labels = pod.labels_mut();
    labels.insert("statefulset.kubernetes.io/pod-name".to_owned(), name.to_owned());
    labels.insert("apps.kubernetes.io/pod-index".to_owned(), n.to_string());
    labels.insert(history::REVISION_HASH.to_owned(), revision.name_any());
    let pod_spec = pod.spec.get_or_insert_default();
    pod_spec.hostname = Some(name.to_owned());
    pod_spec.subdomain = spec.service_name.filter(|s| !s.is_empty());
    let volumes = pod_spec.volumes.get_or_insert_default();
    for template in spec.volume_claim_templates.iter().flatten() {
        volumes.retain(|v| v.name != template.name_any());
        volumes.push(Volume {
            name: template.name_any(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim_name(template, &key.name, n),
                read_only: Some(false),
            }),
            ..Volume::default()
        });
    }
    pod
}
