//! Namespaces that are being deleted: their content goes first, then the finalizer.

use std::collections::BTreeMap;
use std::time::Duration;

use bosun_kit::informer::{Delta, Informer};
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, NamespaceSpec, NamespaceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, DynamicObject, ListParams, PostParams};
use kube::{Api, Client};
use serde_json::Value;

use crate::pods::text;
use crate::resources::{Kind, discover};
use crate::runtime::{Context, Controller, Key, SyncError, Synced, code};

const NAME: &str = "namespace-controller";
const FINALIZER: &str = "kubernetes";
/// How soon to look again at content that is not gone yet; the end of pods is seen by the watch.
const AGAIN: Duration = Duration::from_secs(1);

/// What is left in a namespace.
#[derive(Clone, Debug, Default, PartialEq)]
struct Remains {
    /// Resource, qualified by its group, → how many objects.
    counts: BTreeMap<String, usize>,
    /// Finalizer → on how many objects.
    finalizers: BTreeMap<String, usize>,
    /// What went wrong in deleting.
    failures: Vec<String>,
    /// What went wrong in finding out which kinds there are.
    discovery: Option<String>,
}

impl Remains {
    fn is_nothing(&self) -> bool {
        self.counts.is_empty() && self.failures.is_empty() && self.discovery.is_none()
    }
}

/// The conditions that tell people what a namespace waits for.
fn conditions(remains: &Remains, before: &[NamespaceCondition], now: Timestamp) -> Vec<NamespaceCondition> {
    let discovery = match &remains.discovery {
        None => ("False", "ResourcesDiscovered", "All resources successfully discovered".to_owned()),
        Some(why) => ("True", "DiscoveryFailed", format!("Discovery failed for some groups, 1 failing: {why}")),
    };
    let parsing = ("False", "ParsedGroupVersions", "All legacy kube types successfully parsed".to_owned());
    let deletion = if remains.failures.is_empty() {
        ("False", "ContentDeleted", "All content successfully deleted, may be waiting on finalization".to_owned())
    } else {
        let why = remains.failures.join(", ");
        (
            "True",
            "ContentDeletionFailed",
            format!("Failed to delete all resource types, {} remaining: {why}", remains.failures.len()),
        )
    };
    let content = if remains.counts.is_empty() {
        ("False", "ContentRemoved", "All content successfully removed".to_owned())
    } else {
        let list: Vec<String> =
            remains.counts.iter().map(|(kind, n)| format!("{kind} has {n} resource instances")).collect();
        ("True", "SomeResourcesRemain", format!("Some resources are remaining: {}", list.join(", ")))
    };
    let finalizers = if remains.finalizers.is_empty() {
        ("False", "ContentHasNoFinalizers", "All content-preserving finalizers finished".to_owned())
    } else {
        let list: Vec<String> =
            remains.finalizers.iter().map(|(name, n)| format!("{name} in {n} resource instances")).collect();
        let message = format!("Some content in the namespace has finalizers remaining: {}", list.join(", "));
        ("True", "SomeFinalizersRemain", message)
    };
    [
        ("NamespaceDeletionDiscoveryFailure", discovery),
        ("NamespaceDeletionGroupVersionParsingFailure", parsing),
        ("NamespaceDeletionContentFailure", deletion),
        ("NamespaceContentRemaining", content),
        ("NamespaceFinalizersRemaining", finalizers),
    ]
    .into_iter()
    .map(|(kind, (status, reason, message))| {
        let same = before.iter().find(|c| c.type_ == kind && c.status == status);
        NamespaceCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: same.and_then(|c| c.last_transition_time.clone()).or(Some(Time(now))),
        }
    })
    .collect()
}

#[derive(Clone)]
struct Namespaces {
    client: Client,
    namespaces: Informer<Namespace>,
}

pub(crate) fn start(context: &Context) {
    let mut controller = Controller::new(context, NAME);
    let this = Namespaces { client: controller.client.clone(), namespaces: context.watches.namespaces() };
    controller.watch(&this.namespaces, |delta, queue| {
        let meta = &delta.object().metadata;
        if meta.deletion_timestamp.is_some() && matches!(delta, Delta::Applied(_)) {
            queue.add(Key::of(meta));
        }
    });
    let namespaces = this.namespaces.clone();
    controller.watch(&context.watches.pods(), move |delta, queue| {
        if let (Delta::Deleted(pod), Some(namespace)) = (delta, &delta.object().metadata.namespace) {
            let ending = namespaces.get(None, namespace).is_some_and(|n| n.metadata.deletion_timestamp.is_some());
            if ending {
                tracing::trace!(pod = pod.metadata.name, namespace, "content of an ending namespace is gone");
                queue.add(Key::new("", namespace));
            }
        }
    });
    controller.run(4, move |key| {
        let this = this.clone();
        async move { this.sync(key).await }
    });
}

impl Namespaces {
    async fn sync(&self, key: Key) -> Synced {
        let Some(namespace) = self.namespaces.get(None, &key.name) else { return Ok(None) };
        let held = namespace.spec.iter().flat_map(|s| s.finalizers.iter().flatten()).any(|f| f == FINALIZER);
        if namespace.metadata.deletion_timestamp.is_none() || !held {
            return Ok(None);
        }
        let api: Api<Namespace> = Api::all(self.client.clone());
        let remains = self.delete_content(&key.name).await;
        if remains.is_nothing() {
            return self.finalize(&api, &key.name).await.map(|()| None);
        }
        let before = namespace.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
        let conditions = conditions(&remains, &before, Timestamp::now());
        if conditions != before {
            let mut written = api.get(&key.name).await?;
            let phase = Some("Terminating".to_owned());
            written.status = Some(NamespaceStatus { phase, conditions: Some(conditions) });
            api.replace_status(&key.name, &PostParams::default(), &written).await?;
        }
        if !remains.failures.is_empty() {
            return Err(SyncError::Other(remains.failures.join(", ")));
        }
        Ok(Some(AGAIN))
    }

    /// Deletes what is there, pods first, and answers what is left.
    async fn delete_content(&self, namespace: &str) -> Remains {
        let mut remains = Remains::default();
        let kinds = match discover(&self.client).await {
            Ok(kinds) => kinds,
            Err(error) => {
                remains.discovery = Some(error.to_string());
                return remains;
            }
        };
        let (pods, others): (Vec<Kind>, Vec<Kind>) = kinds
            .into_iter()
            .filter(|k| k.namespaced && k.can("list") && k.can("delete"))
            .partition(|k| k.resource.plural == "pods" && k.resource.group.is_empty());
        for kind in &pods {
            self.delete_kind(namespace, kind, &mut remains).await;
        }
        if !remains.counts.is_empty() {
            return remains;
        }
        for kind in &others {
            self.delete_kind(namespace, kind, &mut remains).await;
        }
        remains
    }

    async fn delete_kind(&self, namespace: &str, kind: &Kind, remains: &mut Remains) {
        if let Err(error) = self.try_delete_kind(namespace, kind, remains).await {
            // A kind that answers "no such method" or is gone again holds nothing.
            if !matches!(code(&error), 404 | 405) {
                remains.failures.push(format!("{}: {}", kind.resource.plural, text(&error)));
            }
        }
    }

    async fn try_delete_kind(&self, namespace: &str, kind: &Kind, remains: &mut Remains) -> kube::Result<()> {
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &kind.resource);
        let there = api.list_metadata(&ListParams::default()).await?.items;
        if there.is_empty() {
            return Ok(());
        }
        if kind.can("deletecollection") {
            api.delete_collection(&DeleteParams::background(), &ListParams::default()).await?;
        } else {
            for name in there.iter().filter_map(|o| o.metadata.name.as_deref()) {
                crate::runtime::gone_is_fine(api.delete(name, &DeleteParams::background()).await)?;
            }
        }
        let left = api.list_metadata(&ListParams::default()).await?.items;
        if left.is_empty() {
            return Ok(());
        }
        let group = &kind.resource.group;
        let plural = &kind.resource.plural;
        let qualified = if group.is_empty() { format!("{plural}.") } else { format!("{plural}.{group}") };
        remains.counts.insert(qualified, left.len());
        for finalizer in left.iter().flat_map(|o| o.metadata.finalizers.iter().flatten()) {
            *remains.finalizers.entry(finalizer.clone()).or_default() += 1;
        }
        Ok(())
    }

    async fn finalize(&self, api: &Api<Namespace>, name: &str) -> Result<(), SyncError> {
        let Some(mut namespace) = api.get_opt(name).await? else { return Ok(()) };
        let finalizers = namespace.spec.take().and_then(|s| s.finalizers).unwrap_or_default();
        let kept: Vec<String> = finalizers.into_iter().filter(|f| f != FINALIZER).collect();
        namespace.spec = Some(NamespaceSpec { finalizers: Some(kept) });
        let body = serde_json::to_vec(&namespace).map_err(|e| SyncError::Other(e.to_string()))?;
        let request = http::Request::put(format!("/api/v1/namespaces/{name}/finalize"))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|e| SyncError::Other(e.to_string()))?;
        match self.client.request::<Value>(request).await {
            Ok(_) => Ok(()),
            Err(error) if code(&error) == 404 => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_say_what_remains() {
        let remains = Remains {
            counts: [("pods.".to_owned(), 2)].into(),
            finalizers: [("example.com/f".to_owned(), 1)].into(),
            ..Remains::default()
        };
        let told: Vec<String> = conditions(&remains, &[], Timestamp::UNIX_EPOCH)
            .into_iter()
            .map(|c| {
                format!("{}={} {}: {}", c.type_, c.status, c.reason.unwrap_or_default(), c.message.unwrap_or_default())
            })
            .collect();
        assert_eq!(
            told[3..],
            [
                "NamespaceContentRemaining=True SomeResourcesRemain: Some resources are remaining: pods. has 2 resource instances",
                "NamespaceFinalizersRemaining=True SomeFinalizersRemain: Some content in the namespace has finalizers \
                 remaining: example.com/f in 1 resource instances",
            ]
        );
    }

    #[test]
    fn a_condition_that_holds_keeps_its_time() {
        let first = conditions(&Remains::default(), &[], Timestamp::UNIX_EPOCH);
        let later = conditions(&Remains::default(), &first, Timestamp::from_second(60).unwrap());
        assert_eq!(first, later);
    }
}
