//! create, update and patch.

use std::sync::Arc;

use bosun_api::resource::Resource;
use bosun_api::status::ApiError;
use bosun_api::{defaults, validation};
use bosun_kit::http::Body;
use bosun_store::{Txn, TxnOutcome};
use bytes::Bytes;
use http::{Response, StatusCode};
use jiff::Timestamp;
use rand::Rng;
use serde_json::{Value, json};

use crate::admission::Operation;
use crate::call::{Call, Kind};
use crate::convert;
use crate::object::{Raw, encode};
use crate::patch::Patch;
use crate::server::{Inner, stored};
use crate::services;
use crate::strategy::{self, Part};

/// Letters of generated names: no vowels, nothing that is misread, as stock has it.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const GENERATED: usize = 5;
/// Names are at most this long.
const NAME_LENGTH: usize = 63;
/// How often a free generated name is looked for.
const NAME_TRIES: usize = 8;
/// How often a change is tried again because another writer was faster.
const CHANGE_TRIES: usize = 32;

/// The moment, as objects carry it: whole seconds, UTC.
pub(crate) fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

impl Inner {
    pub(crate) async fn create(self: &Arc<Self>, call: &Call, body: Bytes) -> Result<Response<Body>, ApiError> {
        let value = call.decode_own(&body)?;
        let value = convert::to_stored(call.resource, value);
        let raw = self.create_object(call, value).await?;
        Ok(call.object(StatusCode::CREATED, &raw))
    }

    /// Create an object that has been decoded.
    pub(crate) async fn create_object(self: &Arc<Self>, call: &Call, mut value: Value) -> Result<Raw, ApiError> {
        let resource = call.resource;
        begin(call, &mut value)?;
        strategy::prepare_create(resource, &mut value);
        strategy::stamp_requester(resource, &mut value, &call.user);
        let base = generate_base(&value);
        for _ in 0..NAME_TRIES {
            let mut value = value.clone();
            if let Some(base) = &base {
                value["metadata"]["name"] = generated(base).into();
            }
            match self.create_named(call, value).await {
                Err(error) if base.is_some() && error.reason() == "AlreadyExists" => {}
                other => return other,
            }
        }
        let name = base.unwrap_or_default();
        Err(ApiError::generate_name_conflict(resource.group, resource.plural, &name))
    }

    async fn create_named(self: &Arc<Self>, call: &Call, mut value: Value) -> Result<Raw, ApiError> {
        let resource = call.resource;
        let kept = resource.stored_as();
        defaults::apply(kept, &mut value);
        self.admit(call, Operation::Create, &mut value, None)?;
        strategy::prune(kept, &mut value);
        validation::check(kept, &value, validation::validate_create(kept, &value))?;
        let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let key = resource.key(call.namespace(), &name);
        if call.dry_run {
            return match self.store.get(&key).await.map_err(stored)? {
                Some(_) => Err(ApiError::already_exists(resource.group, resource.plural, &name)),
                None => Ok(Raw::new(encode(&value), 0)),
            };
        }
        // Addresses are taken last: what was refused before need not give them back.
        let held = self.services.hold(resource, &mut value, None)?;
        strategy::prune(kept, &mut value);
        let bytes = encode(&value);
        match self.store.txn(Txn::create(key, bytes.clone())).await.map_err(stored)? {
            TxnOutcome::Committed { revision } => {
                held.keep();
                Ok(Raw::new(bytes, revision))
            }
            TxnOutcome::Conflict { .. } => Err(ApiError::already_exists(resource.group, resource.plural, &name)),
        }
    }

    pub(crate) async fn update(
        self: &Arc<Self>,
        call: &Call,
        part: Part,
        body: Bytes,
    ) -> Result<Response<Body>, ApiError> {
        let value = call.decode_own(&body)?;
        let sent = convert::to_stored(call.resource, value);
        check_place(call, &sent)?;
        let changed = self.change(call, part, |_| Ok(sent.clone())).await?;
        Ok(call.object(StatusCode::OK, &changed))
    }

    pub(crate) async fn patch(
        self: &Arc<Self>,
        call: &Call,
        part: Part,
        body: Bytes,
    ) -> Result<Response<Body>, ApiError> {
        let patch = Patch::read(&call.headers, &body)?;
        let resource = call.resource;
        let changed = self
            .change(call, part, |old| {
                let old = convert::from_stored(resource, old.clone());
                let patched = patch.apply(resource.definition, old)?;
                let patched = call.decode_value(&Kind::of(resource), patched)?;
                check_place(call, &patched)?;
                Ok(convert::to_stored(resource, patched))
            })
            .await?;
        Ok(call.object(StatusCode::OK, &changed))
    }

    /// Change the object that a call names: read, change, admit, validate, write if nobody else was faster, else again.
    pub(crate) async fn change(
        self: &Arc<Self>,
        call: &Call,
        part: Part,
        mut change: impl FnMut(&Value) -> Result<Value, ApiError> + Send,
    ) -> Result<Raw, ApiError> {
        let kept = call.resource.stored_as();
        let key = kept.key(call.namespace(), &call.info.name);
        for _ in 0..CHANGE_TRIES {
            let kv = self.store.get(&key).await.map_err(stored)?.ok_or_else(|| call.not_found())?;
            let old = Raw::of(&kv);
            let old_value = old.value();
            let mut new = change(&old_value)?;
            check_preconditions(call, &old, &old_value, &new)?;
            strategy::prepare_update(call.resource, part, &old_value, &mut new);
            services::carry_over(kept, &mut new, &old_value);
            if part != Part::Exact {
                defaults::apply(kept, &mut new);
            }
            self.admit(call, Operation::Update(part), &mut new, Some(&old_value))?;
            strategy::prune(kept, &mut new);
            let faults = match part {
                Part::Main => validation::validate_update(kept, &old_value, &new),
                Part::Status | Part::Wishes => validation::validate_status_update(&old_value, &new),
                Part::Exact => Vec::new(),
            };
            validation::check(kept, &new, faults)?;
            let held = self.services.hold(call.resource, &mut new, Some(&old_value))?;
            strategy::prune(kept, &mut new);
            let bytes = encode(&new);
            if old.same(&bytes) {
                return Ok(old);
            }
            if call.dry_run {
                return Ok(Raw::new(bytes, old.revision));
            }
            let removed = is_finished(call.resource, &new);
            let txn = match removed {
                true => Txn::delete(key.as_str(), old.revision),
                false => Txn::update(key.as_str(), bytes.clone(), old.revision),
            };
            if let TxnOutcome::Committed { revision } = self.store.txn(txn).await.map_err(stored)? {
                held.keep();
                if removed {
                    self.services.release(call.resource, &new);
                }
                return Ok(Raw::new(bytes, revision));
            }
        }
        Err(call.conflict())
    }
}

/// Identity, time and place of a new object.
fn begin(call: &Call, value: &mut Value) -> Result<(), ApiError> {
    if value.get("metadata").is_none_or(Value::is_null) {
        value["metadata"] = json!({});
    }
    place(call, value)?;
    let named = !call.info.name.is_empty() && call.info.subresource.is_empty();
    let metadata = value["metadata"].as_object_mut().ok_or_else(|| ApiError::bad_request("metadata is no object"))?;
    if metadata.get("resourceVersion").and_then(Value::as_str).is_some_and(|v| !v.is_empty() && v != "0") {
        return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
    }
    metadata.remove("resourceVersion");
    if named {
        metadata.insert("name".into(), call.info.name.clone().into());
    }
    metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".into(), now().into());
    Ok(())
}

/// The namespace is that of the path, also in the object.
fn place(call: &Call, value: &mut Value) -> Result<(), ApiError> {
    let metadata = &mut value["metadata"];
    let sent = metadata.get("namespace").and_then(Value::as_str).unwrap_or_default();
    if !call.resource.namespaced {
        if !sent.is_empty() && call.resource.plural != "namespaces" {
            return Err(ApiError::bad_request("namespace is not allowed on this type"));
        }
        return Ok(());
    }
    if !sent.is_empty() && sent != call.info.namespace {
        return Err(wrong_namespace(sent, &call.info.namespace));
    }
    metadata["namespace"] = call.info.namespace.clone().into();
    Ok(())
}

fn wrong_namespace(sent: &str, path: &str) -> ApiError {
    ApiError::bad_request(format!(
        "the namespace of the provided object does not match the namespace sent on the request: {sent:?} != {path:?}"
    ))
}

/// The object sent is the one that the path names.
fn check_place(call: &Call, value: &Value) -> Result<(), ApiError> {
    let text = |key: &str| value["metadata"].get(key).and_then(Value::as_str).unwrap_or_default();
    let (name, namespace) = (text("name"), text("namespace"));
    if name != call.info.name {
        let message = match name {
            "" => "name must be provided".to_owned(),
            name => format!("the name of the object ({name}) does not match the name on the URL ({})", call.info.name),
        };
        return Err(ApiError::bad_request(message));
    }
    if call.resource.namespaced && !namespace.is_empty() && namespace != call.info.namespace {
        return Err(wrong_namespace(namespace, &call.info.namespace));
    }
    Ok(())
}

fn check_preconditions(call: &Call, old: &Raw, old_value: &Value, new: &Value) -> Result<(), ApiError> {
    let sent = |key: &str| new["metadata"].get(key).and_then(Value::as_str).filter(|v| !v.is_empty());
    if let Some(uid) = sent("uid") {
        let actual = old_value["metadata"]["uid"].as_str().unwrap_or_default();
        if uid != actual {
            return Err(ApiError::uid_precondition(
                call.resource.group,
                call.resource.plural,
                &call.info.name,
                uid,
                actual,
            ));
        }
    }
    match sent("resourceVersion") {
        Some("0") | None => Ok(()),
        Some(revision) if revision == old.revision.to_string() => Ok(()),
        Some(_) => Err(call.conflict()),
    }
}

/// Whether an object that is being deleted has nothing left to wait for.
pub(crate) fn is_finished(resource: &Resource, value: &Value) -> bool {
    let metadata = &value["metadata"];
    let empty = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
    if metadata.get("deletionTimestamp").is_none_or(Value::is_null) || !empty(&metadata["finalizers"]) {
        return false;
    }
    match resource.plural {
        "namespaces" => empty(&value["spec"]["finalizers"]),
        _ => metadata.get("deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0) == 0,
    }
}

fn generate_base(value: &Value) -> Option<String> {
    let text = |key: &str| value["metadata"].get(key).and_then(Value::as_str).unwrap_or_default();
    (text("name").is_empty() && !text("generateName").is_empty()).then(|| text("generateName").to_owned())
}

fn generated(base: &str) -> String {
    let cut: String = base.chars().take(NAME_LENGTH - GENERATED).collect();
    let mut rng = rand::rng();
    let tail = (0..GENERATED).map(|_| char::from(LETTERS[rng.random_range(0..LETTERS.len())]));
    cut.chars().chain(tail).collect()
}
