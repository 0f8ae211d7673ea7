//! delete and deletecollection.

use std::sync::Arc;

use bosun_api::resource::Resource;
use bosun_api::status::{ApiError, success};
use bosun_kit::http::Body;
use bosun_store::{Txn, TxnOutcome};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use http::{Response, StatusCode};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::admission::Operation;
use crate::call::Call;
use crate::codec;
use crate::object::{Raw, encode};
use crate::server::{Inner, stored};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
/// Resources whose deletion is answered with the object.
const ANSWER_OBJECT: &[&str] = &[
    "persistentvolumeclaims",
    "persistentvolumes",
    "pods",
    "podtemplates",
    "resourcequotas",
    "serviceaccounts",
    "services",
];
/// A deletecollection works on this many objects at once.
const PARALLEL: usize = 8;
const CHANGE_TRIES: usize = 32;

/// `DeleteOptions` of a request.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Options {
    pub(crate) grace_period_seconds: Option<i64>,
    pub(crate) preconditions: Option<Preconditions>,
    pub(crate) propagation_policy: Option<String>,
    orphan_dependents: Option<bool>,
    dry_run: Option<Vec<String>>,
}

/// What must be true of the object.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Preconditions {
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
}

impl Options {
    /// # Errors
    /// 400 for a body or a parameter that is none, 422 for values that there are not.
    pub(crate) fn read(call: &Call, body: &[u8]) -> Result<Self, ApiError> {
        let mut options = match body.is_empty() {
            true => Self::default(),
            false => serde_json::from_value(codec::parse(&call.headers, body)?)
                .map_err(|e| ApiError::bad_request(format!("decoding DeleteOptions: {e}")))?,
        };
        if let Some(grace) = call.query.number("gracePeriodSeconds")? {
            options.grace_period_seconds = Some(grace);
        }
        if let Some(policy) = call.query.get("propagationPolicy") {
            options.propagation_policy = Some(policy.to_owned());
        }
        if call.query.get("orphanDependents").is_some() {
            options.orphan_dependents = Some(call.query.flag("orphanDependents"));
        }
        if let Some(orphan) = options.orphan_dependents.filter(|_| options.propagation_policy.is_none()) {
            options.propagation_policy = Some(if orphan { "Orphan" } else { "Background" }.to_owned());
        }
        options.check()?;
        Ok(options)
    }

    fn check(&self) -> Result<(), ApiError> {
        let invalid = |why: String| {
            Err(ApiError::new(422, "Invalid", format!("DeleteOptions.meta.k8s.io \"\" is invalid: {why}")))
        };
        match self.propagation_policy.as_deref() {
            None | Some("Orphan" | "Background" | "Foreground") => {}
            Some(other) => {
                return invalid(format!(
                    "propagationPolicy: Unsupported value: {other:?}: supported values: \"Foreground\", \
                     \"Background\", \"Orphan\", \"nil\""
                ));
            }
        }
        match self.dry_run.iter().flatten().find(|v| *v != "All") {
            Some(other) => invalid(format!("dryRun: Unsupported value: {other:?}: supported values: \"All\"")),
            None => Ok(()),
        }
    }

    fn dry(&self) -> bool {
        self.dry_run.as_ref().is_some_and(|d| !d.is_empty())
    }
}

/// What a deletion does to an object.
#[derive(Debug, PartialEq)]
enum Plan {
    /// It goes at once.
    Remove,
    /// It is marked, and goes when its grace or its finalizers are over.
    Mark(Box<Value>),
    /// It is on its way already.
    Wait,
}

/// What became of a deletion.
#[derive(Debug)]
pub(crate) struct Deleted {
    pub(crate) raw: Raw,
    pub(crate) gone: bool,
}

impl Inner {
    pub(crate) async fn delete(self: &Arc<Self>, call: &Call, body: Bytes) -> Result<Response<Body>, ApiError> {
        let options = Options::read(call, &body)?;
        let deleted = self.delete_object(call, &options).await?;
        Ok(answer(call, &deleted))
    }

    pub(crate) async fn delete_object(self: &Arc<Self>, call: &Call, options: &Options) -> Result<Deleted, ApiError> {
        let resource = call.resource;
        let key = resource.key(call.namespace(), &call.info.name);
        for _ in 0..CHANGE_TRIES {
            let kv = self.store.get(&key).await.map_err(stored)?.ok_or_else(|| call.not_found())?;
            let old = Raw::of(&kv);
            let mut value = old.value();
            check(call, options, &value)?;
            self.admit(call, Operation::Delete, &mut value, None)?;
            let (txn, deleted) = match plan(resource, &value, options, Timestamp::now()) {
                Plan::Wait => return Ok(Deleted { raw: old, gone: false }),
                Plan::Mark(marked) => {
                    let bytes = encode(&marked);
                    let txn = Txn::update(key.as_str(), bytes.clone(), old.revision);
                    (txn, Deleted { raw: Raw::new(bytes, old.revision), gone: false })
                }
                Plan::Remove => (Txn::delete(key.as_str(), old.revision), Deleted { raw: old, gone: true }),
            };
            if call.dry_run || options.dry() {
                return Ok(deleted);
            }
            if let TxnOutcome::Committed { revision } = self.store.txn(txn).await.map_err(stored)? {
                if deleted.gone {
                    self.services.release(resource, &value);
                }
                return Ok(Deleted { raw: deleted.raw.at(revision), gone: deleted.gone });
            }
        }
        Err(call.conflict())
    }

    pub(crate) async fn delete_collection(
        self: &Arc<Self>,
        call: &Call,
        body: Bytes,
    ) -> Result<Response<Body>, ApiError> {
        let options = Options::read(call, &body)?;
        let filter = self.filter(call)?;
        self.wait_until_fresh().await?;
        let snapshot = self.caches.list(&filter, None, 0);
        let options = &options;
        let one = |object: Arc<crate::object::Object>| async move {
            let (namespace, name) = object.place();
            let mut one = Call::internal(call.resource, namespace, name);
            one.user = call.user.clone();
            one.dry_run = call.dry_run;
            match self.delete_object(&one, options).await {
                Ok(deleted) => Ok(Some(deleted.raw)),
                Err(error) if error.reason() == "NotFound" => Ok(None),
                Err(error) => Err(error),
            }
        };
        let deleted: Vec<Option<Raw>> =
            stream::iter(snapshot.objects).map(one).buffered(PARALLEL).try_collect().await?;
        let metadata = json!({"resourceVersion": self.caches.revision().to_string()});
        Ok(call.list(deleted.into_iter().flatten().collect(), &metadata))
    }
}

fn answer(call: &Call, deleted: &Deleted) -> Response<Body> {
    if !deleted.gone || ANSWER_OBJECT.contains(&call.resource.plural) {
        return call.object(StatusCode::OK, &deleted.raw);
    }
    let value = deleted.raw.value();
    let uid = value["metadata"]["uid"].as_str().unwrap_or_default();
    let status = success(call.resource.group, call.resource.plural, &call.info.name, uid);
    let status = serde_json::to_value(status).unwrap_or_default();
    codec::answer(StatusCode::OK, codec::Accept { shape: codec::Shape::Full, ..call.accept }, &status)
}

fn check(call: &Call, options: &Options, value: &Value) -> Result<(), ApiError> {
    let (group, plural, name) = (call.resource.group, call.resource.plural, &call.info.name);
    let Some(wanted) = &options.preconditions else { return Ok(()) };
    let actual = |key: &str| value["metadata"][key].as_str().unwrap_or_default().to_owned();
    if let Some(uid) = &wanted.uid
        && *uid != actual("uid")
    {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", actual("uid"));
        return Err(ApiError::conflict(group, plural, name, &why));
    }
    if let Some(revision) = &wanted.resource_version
        && *revision != actual("resourceVersion")
    {
        let why = format!(
            "Precondition failed: ResourceVersion in precondition: {revision}, ResourceVersion in object meta: {}",
            actual("resourceVersion")
        );
        return Err(ApiError::conflict(group, plural, name, &why));
    }
    Ok(())
}

/// Decide what a deletion does.
fn plan(resource: &Resource, value: &Value, options: &Options, now: Timestamp) -> Plan {
    let metadata = &value["metadata"];
    let deleting = metadata["deletionTimestamp"].as_str();
    let finalizers = wanted_finalizers(metadata, options);
    let grace = if resource.plural == "pods" { pod_grace(value, options) } else { 0 };
    if let Some(since) = deleting {
        return plan_again(resource, value, options, since, finalizers, now);
    }
    if grace > 0 || !finalizers.is_empty() || resource.plural == "namespaces" {
        let mut marked = value.clone();
        set_finalizers(&mut marked, &finalizers);
        mark(&mut marked, now, grace);
        if resource.plural == "namespaces" {
            let held = value["spec"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
            if !held && finalizers.is_empty() {
                return Plan::Remove;
            }
            marked["status"]["phase"] = "Terminating".into();
            if let Some(metadata) = marked["metadata"].as_object_mut() {
                metadata.remove("deletionGracePeriodSeconds");
            }
        }
        return Plan::Mark(Box::new(marked));
    }
    Plan::Remove
}

/// A deletion of what is being deleted: its grace may become shorter, its finalizers others.
fn plan_again(
    resource: &Resource,
    value: &Value,
    options: &Options,
    since: &str,
    finalizers: Vec<Value>,
    now: Timestamp,
) -> Plan {
    let metadata = &value["metadata"];
    let mut changed = value.clone();
    set_finalizers(&mut changed, &finalizers);
    if resource.plural == "pods" {
        let before = metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
        let wanted = options.grace_period_seconds.unwrap_or(before).max(0);
        if wanted == 0 && finalizers.is_empty() {
            return Plan::Remove;
        }
        if wanted < before {
            let began = since.parse().unwrap_or(now) - SignedDuration::from_secs(before);
            changed["metadata"]["deletionTimestamp"] = shown(began + SignedDuration::from_secs(wanted)).into();
            changed["metadata"]["deletionGracePeriodSeconds"] = wanted.into();
        }
    } else if finalizers.is_empty() && resource.plural != "namespaces" {
        return Plan::Remove;
    }
    match changed == *value {
        true => Plan::Wait,
        false => Plan::Mark(Box::new(changed)),
    }
}

/// How long a pod that is not yet being deleted is given.
fn pod_grace(pod: &Value, options: &Options) -> i64 {
    let unscheduled = pod["spec"]["nodeName"].as_str().unwrap_or_default().is_empty();
    let over = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if unscheduled || over {
        return 0;
    }
    let own = pod["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    // A negative grace is taken for the shortest that is none.
    options.grace_period_seconds.map_or(own.max(1), |grace| if grace < 0 { 1 } else { grace })
}

/// The finalizers that the propagation policy leaves, adds and takes away.
fn wanted_finalizers(metadata: &Value, options: &Options) -> Vec<Value> {
    let present: Vec<Value> = metadata["finalizers"].as_array().cloned().unwrap_or_default();
    let Some(policy) = options.propagation_policy.as_deref() else { return present };
    let mut wanted: Vec<Value> =
        present.into_iter().filter(|f| !matches!(f.as_str(), Some(FOREGROUND | ORPHAN))).collect();
    match policy {
        "Orphan" => wanted.push(ORPHAN.into()),
        "Foreground" => wanted.push(FOREGROUND.into()),
        _ => {}
    }
    wanted
}

fn set_finalizers(value: &mut Value, finalizers: &[Value]) {
    let Some(metadata) = value["metadata"].as_object_mut() else { return };
    match finalizers {
        [] => metadata.remove("finalizers"),
        some => metadata.insert("finalizers".into(), some.into()),
    };
}

fn mark(value: &mut Value, now: Timestamp, grace: i64) {
    let metadata = &mut value["metadata"];
    metadata["deletionTimestamp"] = shown(now + SignedDuration::from_secs(grace)).into();
    metadata["deletionGracePeriodSeconds"] = grace.into();
    if let Some(generation) = metadata["generation"].as_i64().filter(|g| *g > 0) {
        metadata["generation"] = (generation + 1).into();
    }
}

fn shown(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use bosun_api::resource::find;

    use super::*;

    fn pod(extra: Value) -> Value {
        let mut pod = json!({"metadata": {"name": "a", "generation": 1},
            "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}, "status": {"phase": "Running"}});
        bosun_api::patch::merge(&mut pod, extra);
        pod
    }

    fn decide(object: &Value, options: &Options) -> Plan {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        plan(find("", "v1", "pods").unwrap(), object, options, now)
    }

    fn marked(plan: Plan) -> Value {
        match plan {
            Plan::Mark(value) => value["metadata"].clone(),
            other => panic!("{other:?}"),
        }
    }

    fn grace(seconds: i64) -> Options {
        Options { grace_period_seconds: Some(seconds), ..Options::default() }
    }

    #[test]
    fn a_running_pod_is_given_its_grace() {
        let metadata = marked(decide(&pod(json!({})), &Options::default()));
        assert_eq!(
            metadata,
            json!({"name": "a", "generation": 2, "deletionTimestamp": "2026-01-01T00:00:30Z",
                "deletionGracePeriodSeconds": 30})
        );
        assert_eq!(marked(decide(&pod(json!({})), &grace(5)))["deletionGracePeriodSeconds"], 5);
        assert_eq!(decide(&pod(json!({})), &grace(0)), Plan::Remove);
        assert_eq!(decide(&pod(json!({"spec": {"nodeName": null}})), &Options::default()), Plan::Remove);
        assert_eq!(decide(&pod(json!({"status": {"phase": "Failed"}})), &Options::default()), Plan::Remove);
    }

    #[test]
    fn a_second_deletion_can_only_shorten() {
        let dying = pod(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:30Z",
            "deletionGracePeriodSeconds": 30}}));
        assert_eq!(decide(&dying, &Options::default()), Plan::Wait);
        assert_eq!(decide(&dying, &grace(60)), Plan::Wait);
        assert_eq!(decide(&dying, &grace(0)), Plan::Remove);
        assert_eq!(marked(decide(&dying, &grace(10)))["deletionTimestamp"], "2026-01-01T00:00:10Z");
    }

    #[test]
    fn finalizers_follow_the_policy() {
        let held = pod(json!({"metadata": {"finalizers": ["x", "orphan"]}}));
        let policy = |p: &str| Options {
            propagation_policy: Some(p.into()),
            grace_period_seconds: Some(0),
            ..Options::default()
        };
        assert_eq!(marked(decide(&held, &policy("Foreground")))["finalizers"], json!(["x", "foregroundDeletion"]));
        assert_eq!(marked(decide(&held, &policy("Background")))["finalizers"], json!(["x"]));
        assert_eq!(marked(decide(&held, &grace(0)))["finalizers"], json!(["x", "orphan"]));
    }
}
