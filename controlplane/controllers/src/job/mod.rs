//! Jobs: pods that run until enough of them have succeeded.

mod indexes;
mod plan;
pub(crate) mod ttl;

use std::sync::Arc;

use bosun_api::selector::Selector;
use bosun_kit::events::{EventType, Recorder};
use bosun_kit::informer::Informer;
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use self::plan::{FINALIZER, INDEX, finished, is_indexed, is_tracked, plan};
use crate::objects::{Map, apply_claim, claim, controller_key, controller_of, controller_ref, reference, uid};
use crate::pods::{PodControl, from_template, is_active};
use crate::runtime::{Context, Controller, Expectations, Key, SyncError, Synced, gone_is_fine};

const NAME: &str = "job-controller";

#[derive(Clone)]
struct Jobs {
    client: Client,
    recorder: Recorder,
    jobs: Informer<Job>,
    pods: Informer<Pod>,
    control: PodControl,
}

pub(crate) fn start(context: &Context) {
    let mut controller = Controller::new(context, NAME);
    let expectations = Expectations::default();
    let recorder = controller.recorder(NAME);
    let this = Jobs {
        client: controller.client.clone(),
        recorder: recorder.clone(),
        jobs: context.watches.jobs(),
        pods: context.watches.pods(),
        control: PodControl { client: controller.client.clone(), recorder, expectations: expectations.clone() },
    };
    controller.watch_own(&this.jobs);
    controller.watch(&this.pods, move |delta, queue| {
        if let Some(key) = controller_key(&delta.object().metadata, "Job") {
            expectations.observe(&key, delta);
            queue.add(key);
        }
    });
    controller.run(4, move |key| {
        let this = this.clone();
        async move { this.sync(key).await }
    });
}

fn selector(job: &Job) -> Selector {
    let spec = job.spec.as_ref().and_then(|s| s.selector.as_ref());
    if spec.is_some() {
        return Selector::from_spec(spec).unwrap_or_else(|_| Selector::nothing());
    }
    Selector::from_map(&own_labels(job))
}

/// Labels that tie pods to their job.
fn own_labels(job: &Job) -> Map {
    let (uid, name) = (uid(&job.metadata).to_owned(), job.name_any());
    [
        ("batch.kubernetes.io/controller-uid".to_owned(), uid.clone()),
        ("batch.kubernetes.io/job-name".to_owned(), name.clone()),
        ("controller-uid".to_owned(), uid),
        ("job-name".to_owned(), name),
    ]
    .into()
}

/// Whether two statuses say the same; absent numbers are zeros.
fn same(a: &JobStatus, b: &JobStatus) -> bool {
    let normal = |s: &JobStatus| {
        let mut s = s.clone();
        for number in [&mut s.active, &mut s.ready, &mut s.terminating, &mut s.succeeded, &mut s.failed] {
            *number = Some(number.unwrap_or_default());
        }
        s.uncounted_terminated_pods = Some(s.uncounted_terminated_pods.unwrap_or_default());
        s.conditions = Some(s.conditions.unwrap_or_default());
        s
    };
    normal(a) == normal(b)
}

impl Jobs {
    async fn sync(&self, key: Key) -> Synced {
        let job = self.jobs.get(key.scope(), &key.name);
        self.release_orphans(&key, job.as_deref()).await?;
        let Some(job) = job else {
            self.control.expectations.forget(&key);
            return Ok(None);
        };
        let managed_elsewhere = job
            .spec
            .as_ref()
            .and_then(|s| s.managed_by.as_deref())
            .is_some_and(|by| by != "kubernetes.io/job-controller");
        if job.metadata.deletion_timestamp.is_some() || managed_elsewhere {
            return Ok(None);
        }
        let pods_api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let jobs_api: Api<Job> = Api::namespaced(self.client.clone(), &key.namespace);
        let own = uid(&job.metadata);
        let candidates = self.pods.filter(|p| {
            p.metadata.namespace == job.metadata.namespace && controller_of(&p.metadata).is_none_or(|o| o.uid == own)
        });
        let claim = claim(&job.metadata, &selector(&job), candidates, is_active);
        let pods = apply_claim(&pods_api, &*job, claim, &jobs_api).await?;
        let settled = self.control.expectations.satisfied(&key);
        let plan = plan(&job, &pods, settled, Timestamp::now());
        if !same(&plan.status, &job.status.clone().unwrap_or_default()) {
            let mut written = (*job).clone();
            written.status = Some(plan.status);
            jobs_api.replace_status(&key.name, &PostParams::default(), &written).await?;
        }
        let about = reference(&*job);
        for (fine, reason, message) in plan.events {
            let kind = if fine { EventType::Normal } else { EventType::Warning };
            self.recorder.event(&about, kind, reason, message);
        }
        for pod in &plan.release {
            release(&pods_api, pod).await?;
        }
        if let Some(error) = self.control.delete_all(&about, &key, &plan.delete).await {
            return Err(error.into());
        }
        let create = plan.create.into_iter().map(|index| pod_of(&job, &key, index)).collect();
        match self.control.create_all(&about, &key, create).await {
            (_, Some(error)) => Err(error.into()),
            _ => Ok(plan.again),
        }
    }

    /// Lets go of pods whose job is gone or going: nobody will count them.
    async fn release_orphans(&self, key: &Key, job: Option<&Job>) -> Result<(), SyncError> {
        let counted_by = job.filter(|j| j.metadata.deletion_timestamp.is_none()).map(|j| uid(&j.metadata));
        let orphans: Vec<Arc<Pod>> = self.pods.filter(|p| {
            p.metadata.namespace.as_deref() == Some(&key.namespace)
                && is_tracked(p)
                && controller_of(&p.metadata)
                    .is_some_and(|o| o.kind == "Job" && o.name == key.name && Some(o.uid.as_str()) != counted_by)
        });
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        for pod in orphans {
            release(&api, &pod).await?;
        }
        Ok(())
    }
}

async fn release(api: &Api<Pod>, pod: &Pod) -> Result<(), SyncError> {
    let patch = Patch::Strategic(json!({"metadata": {
        "uid": pod.metadata.uid,
        "$deleteFromPrimitiveList/finalizers": [FINALIZER],
    }}));
    Ok(gone_is_fine(api.patch(&pod.name_any(), &PatchParams::default(), &patch).await)?)
}

/// A pod of the job, with its index if the job has indexes.
fn pod_of(job: &Job, key: &Key, index: Option<i32>) -> Pod {
    let spec = job.spec.clone().unwrap_or_default();
    let base = match index {
        Some(index) => format!("{}-{index}", key.name),
        None => key.name.clone(),
    };
    let mut pod = from_template(&spec.template, &key.namespace, &base, controller_ref(job));
    pod.finalizers_mut().push(FINALIZER.to_owned());
    pod.labels_mut().extend(own_labels(job));
    let Some(index) = index.filter(|_| is_indexed(&spec)) else { return pod };
    pod.annotations_mut().insert(INDEX.to_owned(), index.to_string());
    pod.labels_mut().insert(INDEX.to_owned(), index.to_string());
    let pod_spec = pod.spec.get_or_insert_default();
    pod_spec.hostname.get_or_insert(base);
    let variable = EnvVar {
        name: "JOB_COMPLETION_INDEX".to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: Some("v1".to_owned()),
                field_path: format!("metadata.labels['{INDEX}']"),
            }),
            ..EnvVarSource::default()
        }),
    };
    let containers = pod_spec.containers.iter_mut().chain(pod_spec.init_containers.iter_mut().flatten());
    for container in containers {
        let env = container.env.get_or_insert_default();
        if env.iter().all(|v| v.name != variable.name) {
            env.push(variable.clone());
        }
    }
    pod
}
