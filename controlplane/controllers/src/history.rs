//! Revisions of a template, as ControllerRevisions: what `kubectl rollout history` and `undo` read.

use std::sync::Arc;

use bosun_api::hash::{fnv32a, safe_encode};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Resource, ResourceExt};
use serde_json::{Value, json};

use crate::objects::{Map, controller_ref, created};
use crate::runtime::{SyncError, code, gone_is_fine};

/// Label that names a pod's revision.
pub(crate) const REVISION_HASH: &str = "controller-revision-hash";

/// The revision of a template, as data: what to patch into the owner to go back to it.
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    template["$patch"] = json!("replace");
    json!({"spec": {"template": template}})
}

/// What a set of revisions calls for.
#[derive(Debug)]
pub(crate) enum Step {
    /// The newest one is the current template's already.
    Current(Arc<ControllerRevision>),
    /// An earlier one is the current template's: it becomes the newest, with this number.
    Promote(Arc<ControllerRevision>, i64),
    /// There is none of the current template: create this one.
    Create(Box<ControllerRevision>),
}

/// Finds the template's revision.
pub(crate) fn plan<O: Resource<DynamicType = ()>>(
    owner: &O,
    template: &PodTemplateSpec,
    labels: &Map,
    collisions: i32,
    revisions: &[Arc<ControllerRevision>],
) -> Step {
    let data = data(template);
    let newest = revisions.iter().map(|r| r.revision).max().unwrap_or_default();
    let mut same: Vec<&Arc<ControllerRevision>> =
        revisions.iter().filter(|r| r.data.as_ref().is_some_and(|d| d.0 == data)).collect();
    same.sort_by_key(|r| (r.revision, created(&r.metadata)));
    if let Some(latest) = same.last() {
        if latest.revision == newest {
            return Step::Current((*latest).clone());
        }
        return Step::Promote((*latest).clone(), newest + 1);
    }
    let hash = safe_encode(&fnv32a(format!("{data}{collisions}").as_bytes()).to_string());
    let mut labels = labels.clone();
    labels.insert(REVISION_HASH.to_owned(), hash.clone());
    Step::Create(Box::new(ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", owner.name_any())),
            namespace: owner.meta().namespace.clone(),
            labels: Some(labels),
            annotations: owner.meta().annotations.clone(),
            owner_references: Some(vec![controller_ref(owner)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data)),
        revision: newest + 1,
    }))
}

/// The hash that pods of a revision are labelled with.
pub(crate) fn hash_of(revision: &ControllerRevision) -> String {
    revision.labels().get(REVISION_HASH).cloned().unwrap_or_default()
}

/// The template that a revision holds.
pub(crate) fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let template = revision.data.as_ref()?.0.get("spec")?.get("template")?;
    serde_json::from_value(template.clone()).ok()
}

/// Carries a step out and answers the current revision.
pub(crate) async fn apply(api: &Api<ControllerRevision>, step: Step) -> Result<Arc<ControllerRevision>, SyncError> {
    match step {
        Step::Current(revision) => Ok(revision),
        Step::Promote(revision, number) => {
            let patch = Patch::Merge(json!({"revision": number}));
            let promoted = api.patch(&revision.name_any(), &PatchParams::default(), &patch).await?;
            Ok(Arc::new(promoted))
        }
        Step::Create(revision) => match api.create(&PostParams::default(), &revision).await {
            Ok(created) => Ok(Arc::new(created)),
            Err(error) if code(&error) == 409 => {
                let there = api.get(&revision.name_any()).await?;
                if there.data == revision.data {
                    Ok(Arc::new(there))
                } else {
                    Err(SyncError::Other(format!("revision name {} is taken by another", revision.name_any())))
                }
            }
            Err(error) => Err(error.into()),
        },
    }
}

/// Deletes the oldest revisions beyond `limit` that nothing uses.
pub(crate) async fn clean_up(
    api: &Api<ControllerRevision>,
    revisions: &[Arc<ControllerRevision>],
    used: &[String],
    limit: i32,
) -> Result<(), SyncError> {
    let mut unused: Vec<&Arc<ControllerRevision>> = revisions.iter().filter(|r| !used.contains(&hash_of(r))).collect();
    let surplus = unused.len().saturating_sub(usize::try_from(limit).unwrap_or_default());
    unused.sort_by_key(|r| r.revision);
    for revision in unused.into_iter().take(surplus) {
        gone_is_fine(api.delete(&revision.name_any(), &DeleteParams::default()).await)?;
    }
    Ok(())
}
