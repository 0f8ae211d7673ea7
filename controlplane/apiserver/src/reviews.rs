//! Kinds that are posted, answered and forgotten: who am I, may I, whose token is this.

use std::sync::Arc;

use bosun_api::status::ApiError;
use bosun_kit::http::Body;
use bytes::Bytes;
use http::{Response, StatusCode};
use k8s_openapi::api::authentication::v1::UserInfo;
use serde_json::{Value, json};

use crate::authorize::attributes;
use crate::call::Call;
use crate::codec;
use crate::request::RequestInfo;
use crate::server::Inner;
use crate::write::now;

impl Inner {
    pub(crate) async fn review(self: &Arc<Self>, call: &Call, body: Bytes) -> Result<Response<Body>, ApiError> {
        let mut review = call.decode_own(&body)?;
        match call.resource.kind {
            "SelfSubjectReview" => review["status"] = json!({"userInfo": call.user}),
            "TokenReview" => self.review_token(&mut review).await,
            "SelfSubjectAccessReview" => {
                let wanted = wanted(&review["spec"]);
                review["status"] = self.access(&call.user, &wanted);
            }
            "SubjectAccessReview" | "LocalSubjectAccessReview" => {
                let wanted = wanted(&review["spec"]);
                if call.resource.namespaced && wanted.namespace != call.info.namespace {
                    return Err(ApiError::bad_request(
                        "spec.resourceAttributes.namespace must match the namespace of the request",
                    ));
                }
                let user = subject(&review["spec"]);
                review["status"] = self.access(&user, &wanted);
            }
            "SelfSubjectRulesReview" => {
                let namespace = review["spec"]["namespace"].as_str().unwrap_or_default();
                review["status"] = self.policy.rules_of(&call.user, namespace);
            }
            _ => return Err(ApiError::method_not_allowed()),
        }
        review["metadata"]["creationTimestamp"] = now().into();
        Ok(codec::answer(StatusCode::CREATED, call.accept, &review))
    }

    fn access(&self, user: &UserInfo, wanted: &RequestInfo) -> Value {
        let decision = self.policy.decide(&attributes(user, wanted, None));
        let mut status = json!({"allowed": decision.is_allowed()});
        if matches!(decision, bosun_authz::Decision::Deny(_)) {
            status["denied"] = true.into();
        }
        if !decision.reason().is_empty() {
            status["reason"] = decision.reason().into();
        }
        status
    }

    async fn review_token(&self, review: &mut Value) {
        let audiences: Vec<String> = serde_json::from_value(review["spec"]["audiences"].clone()).unwrap_or_default();
        let token = review["spec"]["token"].as_str().unwrap_or_default().to_owned();
        review["status"] = match self.authenticate_token(&token, &audiences).await {
            Ok((user, audiences)) => json!({"authenticated": true, "user": user, "audiences": audiences}),
            Err(_) => json!({"authenticated": false, "user": {}, "error": "[invalid bearer token]"}),
        };
    }
}

/// What a review asks about.
fn wanted(spec: &Value) -> RequestInfo {
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let resource = &spec["resourceAttributes"];
    if resource.is_object() {
        return RequestInfo {
            verb: text(resource, "verb").into(),
            is_resource: true,
            group: text(resource, "group"),
            version: text(resource, "version"),
            resource: text(resource, "resource"),
            subresource: text(resource, "subresource"),
            namespace: text(resource, "namespace"),
            name: text(resource, "name"),
            ..RequestInfo::default()
        };
    }
    let plain = &spec["nonResourceAttributes"];
    RequestInfo { verb: text(plain, "verb").into(), path: text(plain, "path"), ..RequestInfo::default() }
}

fn subject(spec: &Value) -> UserInfo {
    UserInfo {
        username: spec["user"].as_str().map(str::to_owned),
        groups: serde_json::from_value(spec["groups"].clone()).ok(),
        uid: spec["uid"].as_str().map(str::to_owned),
        extra: serde_json::from_value(spec["extra"].clone()).ok(),
    }
}
