//! What hangs below an object's path and is no plain read or write of it.

use std::sync::Arc;

use bosun_api::resource;
use bosun_api::selector::Selector;
use bosun_api::status::ApiError;
use bosun_kit::http::Body;
use bytes::Bytes;
use http::{Response, StatusCode};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::{Value, json};

use crate::call::{Call, Kind};
use crate::codec;
use crate::delete::{Options, Preconditions};
use crate::object::Filter;
use crate::patch::Patch;
use crate::server::Inner;
use crate::strategy::Part;
use crate::tokens::{Claims, Private, Ref};
use crate::write::now;

/// A token is good for this long unless its client says otherwise, and for at least this long.
const TOKEN_SECONDS: i64 = 3600;
const TOKEN_SHORTEST: i64 = 600;
const TOKEN_LONGEST: i64 = 1 << 32;

impl Inner {
    /// Requests to subresources and to kinds that are answered and forgotten.
    pub(crate) async fn subresource(self: &Arc<Self>, call: &Call, body: Bytes) -> Result<Response<Body>, ApiError> {
        match (call.resource.plural, call.info.subresource.as_str(), call.info.verb.as_ref()) {
            ("pods", "binding", "create") => self.bind(call, body, None).await,
            ("bindings", "", "create") => self.bind(call, body, Some(())).await,
            ("pods", "eviction", "create") => self.evict(call, body).await,
            ("pods", "ephemeralcontainers" | "resize", "get") => self.get(call).await,
            ("pods", sub @ ("ephemeralcontainers" | "resize"), verb) => self.pod_part(call, sub, verb, body).await,
            ("namespaces", "finalize", "update") => self.finalize(call, body).await,
            ("certificatesigningrequests", "approval", "get") => self.get(call).await,
            ("certificatesigningrequests", "approval", verb) => self.approve(call, verb, body).await,
            ("serviceaccounts", "token", "create") => self.issue_token(call, body).await,
            (_, "scale", "get") => self.get_scale(call).await,
            (_, "scale", "update" | "patch") => self.set_scale(call, body).await,
            ("componentstatuses", "", _) => Ok(call.list(Vec::new(), &json!({}))),
            (_, "", "create") => self.review(call, body).await,
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    /// A pod gets its node.
    async fn bind(
        self: &Arc<Self>,
        call: &Call,
        body: Bytes,
        own_path: Option<()>,
    ) -> Result<Response<Body>, ApiError> {
        let binding = call.decode(&Kind::BINDING, &body)?;
        let named = binding["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let pods = resource::find("", "v1", "pods").ok_or_else(ApiError::no_such_path)?;
        let mut target = Call::internal(pods, &call.info.namespace, &call.info.name);
        target.user = call.user.clone();
        target.dry_run = call.dry_run;
        if own_path.is_some() {
            target.info.name = named;
        } else if !named.is_empty() && named != call.info.name {
            return Err(ApiError::bad_request("name in URL does not match name in Binding object"));
        }
        let node = binding["target"]["name"].as_str().unwrap_or_default().to_owned();
        let kind = binding["target"]["kind"].as_str().unwrap_or_default();
        if node.is_empty() || !matches!(kind, "" | "Node") {
            return Err(ApiError::bad_request("Binding: target must be a Node with a name"));
        }
        let uid = binding["metadata"]["uid"].as_str().filter(|u| !u.is_empty()).map(str::to_owned);
        let conflict = |why: String| ApiError::conflict("", "pods/binding", &target.info.name, &why);
        self.change(&target, Part::Exact, |old| {
            let mut pod = old.clone();
            if let Some(uid) = uid.as_deref().filter(|uid| Some(*uid) != pod["metadata"]["uid"].as_str()) {
                let actual = pod["metadata"]["uid"].as_str().unwrap_or_default();
                let name = &target.info.name;
                return Err(ApiError::uid_precondition("", "pods/binding", name, uid, actual));
            }
            if !pod["metadata"]["deletionTimestamp"].is_null() {
                return Err(conflict(format!(
                    "pod {} is being deleted, cannot be assigned to a host",
                    target.info.name
                )));
            }
            if let Some(present) = pod["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
                return Err(conflict(format!("pod {} is already assigned to node {present:?}", target.info.name)));
            }
            if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
                return Err(conflict(format!("pod {} has non-empty .spec.schedulingGates", target.info.name)));
            }
            pod["spec"]["nodeName"] = node.clone().into();
            for (key, value) in binding["metadata"]["annotations"].as_object().into_iter().flatten() {
                pod["metadata"]["annotations"][key] = value.clone();
            }
            set_condition(&mut pod, json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": now()}));
            Ok(pod)
        })
        .await?;
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
        Ok(codec::answer(StatusCode::CREATED, codec::Accept::JSON, &status))
    }

    /// A pod is asked to go, if the disruption budgets allow it.
    async fn evict(self: &Arc<Self>, call: &Call, body: Bytes) -> Result<Response<Body>, ApiError> {
        let eviction = call.decode(&Kind::EVICTION, &body)?;
        let named = eviction["metadata"]["name"].as_str().unwrap_or_default();
        if !named.is_empty() && named != call.info.name {
            return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
        }
        let mut options: Options = match &eviction["deleteOptions"] {
            Value::Null => Options::default(),
            given => serde_json::from_value(given.clone())
                .map_err(|e| ApiError::bad_request(format!("decoding DeleteOptions: {e}")))?,
        };
        let raw = self.current(call).await?;
        let pod = raw.value();
        let terminal = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Pending"));
        if !terminal && pod["metadata"]["deletionTimestamp"].is_null() && !call.dry_run {
            self.spend_budget(call, &pod).await?;
            // What was counted against the budget is this very pod.
            let wanted = options.preconditions.get_or_insert_with(Preconditions::default);
            wanted.uid = wanted.uid.take().or_else(|| pod["metadata"]["uid"].as_str().map(str::to_owned));
        }
        self.delete_object(call, &options).await?;
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
        Ok(codec::answer(StatusCode::CREATED, codec::Accept::JSON, &status))
    }

    async fn spend_budget(self: &Arc<Self>, call: &Call, pod: &Value) -> Result<(), ApiError> {
        let budgets = resource::find("policy", "v1", "poddisruptionbudgets").ok_or_else(ApiError::no_such_path)?;
        let filter = Filter {
            resource: budgets,
            namespace: call.info.namespace.clone(),
            labels: Selector::everything(),
            fields: Default::default(),
        };
        self.wait_until_fresh().await?;
        let labels = serde_json::from_value(pod["metadata"]["labels"].clone()).unwrap_or_default();
        let covers = |budget: &Value| {
            let selector: Option<LabelSelector> = serde_json::from_value(budget["spec"]["selector"].clone()).ok();
            Selector::from_spec(selector.as_ref()).is_ok_and(|s| s.matches(&labels))
        };
        let all = self.caches.list(&filter, None, 0).objects;
        let mine: Vec<Value> = all.iter().map(|o| o.raw.value()).filter(covers).collect();
        let budget = match mine.as_slice() {
            [] => return Ok(()),
            [one] => one["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
            _ => {
                return Err(ApiError::internal(
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
                ));
            }
        };
        let target = Call::internal(budgets, &call.info.namespace, &budget);
        let name = call.info.name.clone();
        self.change(&target, Part::Exact, |old| {
            let mut new = old.clone();
            let (generation, observed) = (&old["metadata"]["generation"], &old["status"]["observedGeneration"]);
            if observed.as_i64().unwrap_or(0) < generation.as_i64().unwrap_or(0) {
                return Err(ApiError::too_many_requests(
                    "Cannot evict pod as it would violate the pod's disruption budget.",
                    10,
                )
                .with_cause(
                    "DisruptionBudget",
                    &format!("The disruption budget {budget} is still being processed by the server."),
                    "",
                ));
            }
            let count = |key: &str| old["status"][key].as_i64().unwrap_or(0);
            let allowed = count("disruptionsAllowed");
            if allowed <= 0 {
                let why = format!(
                    "needs {} healthy pods and has {} currently",
                    count("desiredHealthy"),
                    count("currentHealthy")
                );
                return Err(ApiError::disruption_budget(&budget, &why));
            }
            new["status"]["disruptionsAllowed"] = (allowed - 1).into();
            new["status"]["disruptedPods"][name.as_str()] = now().into();
            Ok(new)
        })
        .await?;
        Ok(())
    }

    /// `ephemeralcontainers` and `resize`: a write of the pod that may change only one part.
    async fn pod_part(
        self: &Arc<Self>,
        call: &Call,
        sub: &str,
        verb: &str,
        body: Bytes,
    ) -> Result<Response<Body>, ApiError> {
        let patch = if verb == "patch" { Some(Patch::read(&call.headers, &body)?) } else { None };
        let sent = if verb == "patch" { Value::Null } else { call.decode_own(&body)? };
        let changed = self
            .change(call, Part::Wishes, |old| {
                let wanted = match &patch {
                    Some(patch) => {
                        let patched = patch.apply(call.resource.definition, old.clone())?;
                        call.decode_value(&Kind::of(call.resource), patched)?
                    }
                    None => sent.clone(),
                };
                let mut new = old.clone();
                new["metadata"]["resourceVersion"] = wanted["metadata"]["resourceVersion"].clone();
                match sub {
                    "ephemeralcontainers" => {
                        new["spec"]["ephemeralContainers"] = wanted["spec"]["ephemeralContainers"].clone();
                    }
                    _ => take_resources(&mut new, &wanted),
                }
                Ok(new)
            })
            .await?;
        Ok(call.object(StatusCode::OK, &changed))
    }

    /// The namespace controller takes its finalizer off.
    async fn finalize(self: &Arc<Self>, call: &Call, body: Bytes) -> Result<Response<Body>, ApiError> {
        let sent = call.decode_own(&body)?;
        let changed = self
            .change(call, Part::Exact, |old| {
                let mut new = old.clone();
                new["metadata"]["resourceVersion"] = sent["metadata"]["resourceVersion"].clone();
                match sent["spec"]["finalizers"].as_array().filter(|f| !f.is_empty()) {
                    Some(finalizers) => new["spec"]["finalizers"] = finalizers.clone().into(),
                    None => new["spec"] = json!({}),
                }
                Ok(new)
            })
            .await?;
        Ok(call.object(StatusCode::OK, &changed))
    }

    /// Conditions of a signing request.
    async fn approve(self: &Arc<Self>, call: &Call, verb: &str, body: Bytes) -> Result<Response<Body>, ApiError> {
        let patch = if verb == "patch" { Some(Patch::read(&call.headers, &body)?) } else { None };
        let sent = if verb == "patch" { Value::Null } else { call.decode_own(&body)? };
        let changed = self
            .change(call, Part::Exact, |old| {
                let wanted = match &patch {
                    Some(patch) => patch.apply(call.resource.definition, old.clone())?,
                    None => sent.clone(),
                };
                let mut new = old.clone();
                new["metadata"]["resourceVersion"] = wanted["metadata"]["resourceVersion"].clone();
                let mut conditions = wanted["status"]["conditions"].as_array().cloned().unwrap_or_default();
                for condition in &mut conditions {
                    for key in ["lastUpdateTime", "lastTransitionTime"] {
                        if condition[key].is_null() {
                            condition[key] = now().into();
                        }
                    }
                }
                new["status"]["conditions"] = conditions.into();
                Ok(new)
            })
            .await?;
        Ok(call.object(StatusCode::OK, &changed))
    }

    /// A token for a service account.
    async fn issue_token(self: &Arc<Self>, call: &Call, body: Bytes) -> Result<Response<Body>, ApiError> {
        let mut request = call.decode(&Kind::TOKEN_REQUEST, &body)?;
        let tokens = self
            .tokens
            .as_ref()
            .ok_or_else(|| ApiError::unavailable("this server has no service account key and issues no tokens"))?;
        let account = self.current(call).await?.value();
        let spec = &request["spec"];
        let seconds = spec["expirationSeconds"].as_i64().unwrap_or(TOKEN_SECONDS);
        if !(TOKEN_SHORTEST..=TOKEN_LONGEST).contains(&seconds) {
            let why = if seconds < TOKEN_SHORTEST {
                "may not specify a duration less than 10 minutes"
            } else {
                "may not specify a duration larger than 2^32 seconds"
            };
            return Err(ApiError::new(
                422,
                "Invalid",
                format!(
                    "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: {seconds}: {why}"
                ),
            ));
        }
        let mut audiences: Vec<String> = serde_json::from_value(spec["audiences"].clone()).unwrap_or_default();
        if audiences.is_empty() {
            audiences = tokens.audiences().to_vec();
        }
        let mut private = Private {
            namespace: call.info.namespace.clone(),
            serviceaccount: reference(&account),
            ..Private::default()
        };
        self.bind_token(call, &request["spec"]["boundObjectRef"], &mut private).await?;
        let began = Timestamp::now();
        let ends = began + SignedDuration::from_secs(seconds);
        let claims = Claims {
            iss: tokens.issuer().to_owned(),
            sub: format!("system:serviceaccount:{}:{}", private.namespace, private.serviceaccount.name),
            aud: audiences.clone(),
            exp: ends.as_second(),
            iat: began.as_second(),
            nbf: began.as_second(),
            jti: Some(uuid::Uuid::new_v4().to_string()),
            kubernetes: private,
        };
        request["spec"]["audiences"] = audiences.into();
        request["spec"]["expirationSeconds"] = seconds.into();
        let shown = ends.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        request["status"] = json!({"token": tokens.sign(&claims)?, "expirationTimestamp": shown});
        request["metadata"] =
            json!({"name": call.info.name, "namespace": call.info.namespace, "creationTimestamp": now()});
        Ok(codec::answer(StatusCode::CREATED, codec::Accept::JSON, &request))
    }

    /// Bind a token to the object that the request names.
    async fn bind_token(&self, call: &Call, bound: &Value, private: &mut Private) -> Result<(), ApiError> {
        if bound.is_null() {
            return Ok(());
        }
        let text = |key: &str| bound[key].as_str().unwrap_or_default();
        let (plural, storage) = match (text("apiVersion"), text("kind")) {
            ("v1", "Pod") => ("pods", format!("/registry/pods/{}/", call.info.namespace)),
            ("v1", "Secret") => ("secrets", format!("/registry/secrets/{}/", call.info.namespace)),
            ("v1", "Node") => ("nodes", "/registry/minions/".to_owned()),
            (version, kind) => {
                return Err(ApiError::bad_request(format!("cannot bind token to object of type {version}.{kind}")));
            }
        };
        let name = text("name");
        let kv = self.store.get(&format!("{storage}{name}")).await.map_err(crate::server::stored)?;
        let object = match kv {
            Some(kv) => crate::object::Raw::of(&kv).value(),
            None => return Err(ApiError::not_found("", plural, name)),
        };
        let found = reference(&object);
        let wanted = text("uid");
        if !wanted.is_empty() && wanted != found.uid {
            let why = format!(
                "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might \
                 have been deleted and then recreated"
            );
            return Err(ApiError::conflict("", plural, name, &why));
        }
        match plural {
            "pods" => {
                let account = object["spec"]["serviceAccountName"].as_str().unwrap_or_default();
                if account != private.serviceaccount.name {
                    return Err(ApiError::bad_request(format!(
                        "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                        private.serviceaccount.name
                    )));
                }
                if let Some(node) = object["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
                    let kv = self.store.get(&format!("/registry/minions/{node}")).await.ok().flatten();
                    let uid = kv.map(|kv| reference(&crate::object::Raw::of(&kv).value()).uid).unwrap_or_default();
                    private.node = Some(Ref { name: node.to_owned(), uid });
                }
                private.pod = Some(found);
            }
            "secrets" => private.secret = Some(found),
            _ => private.node = Some(found),
        }
        Ok(())
    }

    async fn get_scale(self: &Arc<Self>, call: &Call) -> Result<Response<Body>, ApiError> {
        let raw = self.current(call).await?;
        Ok(codec::answer(StatusCode::OK, call.accept, &scale(&raw.value())))
    }

    async fn set_scale(self: &Arc<Self>, call: &Call, body: Bytes) -> Result<Response<Body>, ApiError> {
        let patch = if call.info.verb == "patch" { Some(Patch::read(&call.headers, &body)?) } else { None };
        let sent = match patch {
            Some(_) => Value::Null,
            None => call.decode(&Kind::SCALE, &body)?,
        };
        let changed = self
            .change(call, Part::Main, |old| {
                let wanted = match &patch {
                    Some(patch) => {
                        let patched = patch.apply(Kind::SCALE.definition, scale(old))?;
                        call.decode_value(&Kind::SCALE, patched)?
                    }
                    None => sent.clone(),
                };
                let replicas = wanted["spec"]["replicas"].as_i64().unwrap_or(0);
                if replicas < 0 {
                    return Err(ApiError::new(
                        422,
                        "Invalid",
                        format!(
                            "Scale.autoscaling {:?} is invalid: spec.replicas: Invalid value: {replicas}: must be \
                             greater than or equal to 0",
                            call.info.name
                        ),
                    ));
                }
                let mut new = old.clone();
                new["metadata"]["resourceVersion"] = wanted["metadata"]["resourceVersion"].clone();
                new["spec"]["replicas"] = replicas.into();
                Ok(new)
            })
            .await?;
        Ok(codec::answer(StatusCode::OK, call.accept, &scale(&changed.value())))
    }
}

fn reference(object: &Value) -> Ref {
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
    Ref { name: text("name"), uid: text("uid") }
}

/// `autoscaling/v1` Scale of an object that has replicas.
fn scale(object: &Value) -> Value {
    let metadata = &object["metadata"];
    let selector = &object["spec"]["selector"];
    // A replication controller's selector is a plain map.
    let text = match selector.get("matchLabels").is_some() || selector.get("matchExpressions").is_some() {
        true => serde_json::from_value::<LabelSelector>(selector.clone())
            .ok()
            .and_then(|s| Selector::from_spec(Some(&s)).ok())
            .map(|s| s.to_string()),
        false => serde_json::from_value(selector.clone()).ok().map(|map| Selector::from_map(&map).to_string()),
    };
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"], "creationTimestamp": metadata["creationTimestamp"]},
        "spec": {"replicas": object["spec"]["replicas"].as_i64().unwrap_or(0)},
        "status": {"replicas": object["status"]["replicas"].as_i64().unwrap_or(0),
            "selector": text.unwrap_or_default()}})
}

/// Take over the resources of the pod as a whole, and the resources and resize policies of the containers, by name.
fn take_resources(pod: &mut Value, wanted: &Value) {
    if let Some(whole) = wanted["spec"].get("resources").filter(|whole| whole.is_object()) {
        pod["spec"]["resources"] = whole.clone();
    }
    for list in ["containers", "initContainers"] {
        let Some(containers) = pod["spec"][list].as_array_mut() else { continue };
        for container in containers {
            let mut all = wanted["spec"][list].as_array().into_iter().flatten();
            if let Some(other) = all.find(|other| other["name"] == container["name"]) {
                for key in ["resources", "resizePolicy"] {
                    match other.get(key) {
                        Some(value) => container[key] = value.clone(),
                        None => {
                            container.as_object_mut().map(|c| c.remove(key));
                        }
                    }
                }
            }
        }
    }
}

fn set_condition(object: &mut Value, condition: Value) {
    if object["status"]["conditions"].as_array().is_none() {
        object["status"]["conditions"] = json!([]);
    }
    let Some(conditions) = object["status"]["conditions"].as_array_mut() else { return };
    conditions.retain(|c| c["type"] != condition["type"]);
    conditions.push(condition);
}
