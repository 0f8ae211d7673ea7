//! Small facts about objects that several controllers need: who owns them, how they are named in events, whose they become.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bosun_api::selector::Selector;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::runtime::{Key, SyncError, gone_is_fine};

/// Labels or annotations.
pub(crate) type Map = BTreeMap<String, String>;

/// The reference that makes `owner` the controller of an object.
pub(crate) fn controller_ref<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.name_any(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The controller of an object.
pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|o| o.controller == Some(true))
}

/// The key of the controller, if it is of that kind.
pub(crate) fn controller_key(meta: &ObjectMeta, kind: &str) -> Option<Key> {
    let owner = controller_of(meta).filter(|o| o.kind == kind)?;
    Some(Key::new(meta.namespace.as_deref().unwrap_or_default(), &owner.name))
}

/// How an event names an object.
pub(crate) fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

/// The uid, or nothing.
pub(crate) fn uid(meta: &ObjectMeta) -> &str {
    meta.uid.as_deref().unwrap_or_default()
}

/// When an object was created, for sorting.
pub(crate) fn created(meta: &ObjectMeta) -> Timestamp {
    meta.creation_timestamp.as_ref().map_or(Timestamp::MIN, |t| t.0)
}

/// Time from `now` until `at`; zero if it has passed.
pub(crate) fn until(at: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or_default()
}

/// `at` moved by whole seconds, within what a timestamp can say.
pub(crate) fn plus_seconds(at: Timestamp, seconds: i64) -> Timestamp {
    at.checked_add(k8s_openapi::jiff::SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}

/// Which objects an owner has, takes, and lets go.
#[derive(Debug)]
pub(crate) struct Claim<K> {
    pub(crate) owned: Vec<Arc<K>>,
    pub(crate) adopt: Vec<Arc<K>>,
    pub(crate) release: Vec<Arc<K>>,
}

/// Sorts candidates of the owner's namespace by its selector (controllerRef rules of KEP "controller ownership").
pub(crate) fn claim<K: Resource<DynamicType = ()>>(
    owner: &ObjectMeta,
    selector: &Selector,
    candidates: Vec<Arc<K>>,
    adoptable: impl Fn(&K) -> bool,
) -> Claim<K> {
    let mut claim = Claim { owned: Vec::new(), adopt: Vec::new(), release: Vec::new() };
    let empty = Map::new();
    let leaving = owner.deletion_timestamp.is_some();
    for candidate in candidates {
        let meta = candidate.meta();
        let matches = selector.matches(meta.labels.as_ref().unwrap_or(&empty));
        match controller_of(meta) {
            Some(controller) if controller.uid == uid(owner) => {
                if matches || leaving {
                    claim.owned.push(candidate);
                } else {
                    claim.release.push(candidate);
                }
            }
            Some(_) => {}
            None => {
                let free = meta.deletion_timestamp.is_none() && adoptable(&candidate);
                if matches && free && !leaving {
                    claim.adopt.push(candidate);
                }
            }
        }
    }
    claim
}

/// Carries a claim out and answers what is owned now.
///
/// `still_wanted` asks the API server, once and only if something is to be adopted, whether the owner is still there.
pub(crate) async fn apply_claim<O, K>(
    api: &Api<K>,
    owner: &O,
    claim: Claim<K>,
    owners: &Api<O>,
) -> Result<Vec<Arc<K>>, SyncError>
where
    O: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let Claim { mut owned, adopt, release } = claim;
    for object in release {
        let name = object.name_any();
        let patch = json!({"metadata": {
            "uid": object.meta().uid,
            "ownerReferences": [{"$patch": "delete", "uid": owner.meta().uid}],
        }});
        gone_is_fine(api.patch(&name, &PatchParams::default(), &Patch::Strategic(patch)).await)?;
    }
    if !adopt.is_empty() {
        let live = owners.get(&owner.name_any()).await?;
        if live.meta().uid != owner.meta().uid || live.meta().deletion_timestamp.is_some() {
            return Err(SyncError::Other(format!(
                "{} was replaced or is being deleted: nothing adopted",
                owner.name_any()
            )));
        }
    }
    for object in adopt {
        let name = object.name_any();
        let patch = json!({"metadata": {
            "uid": object.meta().uid,
            "ownerReferences": [controller_ref(owner)],
        }});
        let adopted = api.patch(&name, &PatchParams::default(), &Patch::Strategic(patch)).await;
        match adopted {
            Ok(adopted) => owned.push(Arc::new(adopted)),
            Err(error) => gone_is_fine::<K>(Err(error))?,
        }
    }
    Ok(owned)
}
