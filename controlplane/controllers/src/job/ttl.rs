//! Finished jobs are deleted when their `ttlSecondsAfterFinished` has passed.

use bosun_kit::informer::Informer;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, Client};

use super::finished;
use crate::objects::{plus_seconds, until};
use crate::runtime::{Context, Controller, Key, Synced, gone_is_fine};

const NAME: &str = "ttl-after-finished-controller";

/// When the job is to be deleted.
fn expires(job: &Job) -> Option<Timestamp> {
    let ttl = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let since = finished(job)?.last_transition_time.as_ref()?.0;
    Some(plus_seconds(since, i64::from(ttl)))
}

pub(crate) fn start(context: &Context) {
    let mut controller = Controller::new(context, NAME);
    let jobs = context.watches.jobs();
    controller.watch(&jobs, |delta, queue| {
        if expires(delta.object()).is_some() {
            queue.add(Key::of(&delta.object().metadata));
        }
    });
    let client = controller.client.clone();
    controller.run(1, move |key| {
        let (jobs, client) = (jobs.clone(), client.clone());
        async move { sync(&jobs, &client, key).await }
    });
}

async fn sync(jobs: &Informer<Job>, client: &Client, key: Key) -> Synced {
    let Some(job) = jobs.get(key.scope(), &key.name) else { return Ok(None) };
    let Some(at) = expires(&job).filter(|_| job.metadata.deletion_timestamp.is_none()) else { return Ok(None) };
    let now = Timestamp::now();
    if at > now {
        return Ok(Some(until(at, now)));
    }
    let api: Api<Job> = Api::namespaced(client.clone(), &key.namespace);
    // Someone may have raised the limit a moment ago: only this version of the job may go.
    let same = Preconditions { uid: job.metadata.uid.clone(), resource_version: job.metadata.resource_version.clone() };
    gone_is_fine(api.delete(&key.name, &DeleteParams::foreground().preconditions(same)).await)?;
    Ok(None)
}
