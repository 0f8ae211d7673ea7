//! What the API answers when it refuses: `metav1.Status`, with the reasons, codes and words clients know.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, Status, StatusCause, StatusDetails};

/// An API error: a `Status` with `status: Failure`.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError(pub Box<Status>);

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

impl std::error::Error for ApiError {}

/// `plural` or `plural.group`, as messages name a resource.
#[must_use]
pub fn qualified(name: &str, group: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

impl ApiError {
    /// An error of any code and reason.
    #[must_use]
    pub fn new(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Self(Box::new(Status {
            code: Some(i32::from(code)),
            reason: some(reason),
            message: Some(message.into()),
            status: Some("Failure".to_owned()),
            metadata: ListMeta::default(),
            details: None,
        }))
    }

    fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        let details = self.details_mut();
        details.group = some(group);
        details.kind = some(kind);
        details.name = some(name);
        self
    }

    fn details_mut(&mut self) -> &mut StatusDetails {
        self.0.details.get_or_insert_default()
    }

    /// Adds a cause: a machine's reason, a message, and the field it is about (empty for none).
    #[must_use]
    pub fn with_cause(mut self, reason: &str, message: &str, field: &str) -> Self {
        let cause = StatusCause { reason: some(reason), message: some(message), field: some(field) };
        self.details_mut().causes.get_or_insert_default().push(cause);
        self
    }

    /// Says after how many seconds to try again.
    #[must_use]
    pub fn retry_after(mut self, seconds: i32) -> Self {
        self.details_mut().retry_after_seconds = Some(seconds);
        self
    }

    /// The HTTP status code.
    #[must_use]
    pub fn code(&self) -> u16 {
        self.0.code.and_then(|code| u16::try_from(code).ok()).unwrap_or(500)
    }

    /// The machine's reason, such as `NotFound`.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.0.reason.as_deref().unwrap_or_default()
    }

    /// What people read.
    #[must_use]
    pub fn message(&self) -> &str {
        self.0.message.as_deref().unwrap_or_default()
    }

    /// The body of the answer, with `kind` and `apiVersion`.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(&*self.0).expect("a status is JSON")
    }

    /// 404: no such object. `resource` is the plural.
    #[must_use]
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {name:?} not found", qualified(resource, group));
        Self::new(404, "NotFound", message).about(group, resource, name)
    }

    /// 404: no such path.
    #[must_use]
    pub fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource").about("", "", "")
    }

    /// 409: the name is taken.
    #[must_use]
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", qualified(resource, group));
        Self::new(409, "AlreadyExists", message).about(group, resource, name)
    }

    /// 409: no free name was found for a `generateName`.
    #[must_use]
    pub fn generate_name_conflict(group: &str, resource: &str, name: &str) -> Self {
        let message = format!(
            "{} {name:?} already exists, the server was not able to generate a unique name for the object",
            qualified(resource, group)
        );
        Self::new(409, "AlreadyExists", message).about(group, resource, name).retry_after(1)
    }

    /// 409 with a reason in words.
    #[must_use]
    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", qualified(resource, group));
        Self::new(409, "Conflict", message).about(group, resource, name)
    }

    /// 409: the object is no longer what the writer saw.
    #[must_use]
    pub fn modified(group: &str, resource: &str, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(group, resource, name, why)
    }

    /// 409: a precondition on the UID does not hold.
    #[must_use]
    pub fn uid_precondition(group: &str, resource: &str, name: &str, wanted: &str, actual: &str) -> Self {
        let why = format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {actual}");
        Self::conflict(group, resource, name, &why)
    }

    /// 401.
    #[must_use]
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403. `why` says who may not do what, or which rule of admission refused.
    #[must_use]
    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let qualified = qualified(resource, group);
        let message = match (resource, name) {
            ("", _) => format!("forbidden: {why}"),
            (_, "") => format!("{qualified} is forbidden: {why}"),
            _ => format!("{qualified} {name:?} is forbidden: {why}"),
        };
        Self::new(403, "Forbidden", message).about(group, resource, name)
    }

    /// 400.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 400: a query parameter or option has a value it cannot have.
    #[must_use]
    pub fn bad_parameter(parameter: &str, why: &str) -> Self {
        Self::bad_request(format!("invalid {parameter}: {why}"))
    }

    /// 405: the resource has no such verb.
    #[must_use]
    pub fn method_not_supported(group: &str, resource: &str, verb: &str) -> Self {
        let message = format!("{verb} is not supported on resources of kind \"{}\"", qualified(resource, group));
        Self::new(405, "MethodNotAllowed", message).about(group, resource, "")
    }

    /// 405: the path has no such HTTP method.
    #[must_use]
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(405, "MethodNotAllowed", message).about("", "", "")
    }

    /// 406.
    #[must_use]
    pub fn not_acceptable(types: &str) -> Self {
        Self::new(406, "NotAcceptable", format!("only the following media types are accepted: {types}"))
    }

    /// 410: the resource version asked for is gone.
    #[must_use]
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 410: a watch or list from a compacted revision.
    #[must_use]
    pub fn too_old(wanted: u64, oldest: u64) -> Self {
        Self::expired(format!("too old resource version: {wanted} ({oldest})"))
    }

    /// 410: a `continue` token whose revision is compacted.
    #[must_use]
    pub fn continue_expired() -> Self {
        Self::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new \
             list without the continue parameter.",
        )
    }

    /// 504: a resource version from the future.
    #[must_use]
    pub fn too_large(wanted: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {wanted}, current: {current}");
        Self::new(504, "Timeout", format!("Timeout: {message}")).retry_after(1).with_cause(
            "ResourceVersionTooLarge",
            "Too large resource version",
            "",
        )
    }

    /// 413.
    #[must_use]
    pub fn too_large_body(message: impl Into<String>) -> Self {
        Self::new(413, "RequestEntityTooLarge", message)
    }

    /// 415.
    #[must_use]
    pub fn unsupported_media_type(types: &str) -> Self {
        let message =
            format!("the body of the request was in an unknown format - accepted media types include: {types}");
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 422: the object is well-formed and wrong. The causes' text is put together into the message.
    #[must_use]
    pub fn invalid(group: &str, kind: &str, name: &str, causes: Vec<StatusCause>) -> Self {
        let mut texts: Vec<String> = Vec::with_capacity(causes.len());
        for cause in &causes {
            let text = format!(
                "{}: {}",
                cause.field.as_deref().unwrap_or("<nil>"),
                cause.message.as_deref().unwrap_or_default()
            );
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let joined = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let message = format!("{} {name:?} is invalid: {joined}", qualified(kind, group));
        let mut error = Self::new(422, "Invalid", message).about(group, kind, name);
        error.details_mut().causes = (!causes.is_empty()).then_some(causes);
        error
    }

    /// 422 without causes: a patch that cannot be applied and the like.
    #[must_use]
    pub fn unprocessable(message: impl Into<String>) -> Self {
        Self::new(422, "Invalid", message)
    }

    /// 429.
    #[must_use]
    pub fn too_many_requests(message: &str, seconds: i32) -> Self {
        Self::new(429, "TooManyRequests", message).retry_after(seconds)
    }

    /// 429: an eviction would break a disruption budget.
    #[must_use]
    pub fn disruption_budget(budget: &str, why: &str) -> Self {
        let message = "Cannot evict pod as it would violate the pod's disruption budget.";
        let cause = format!("The disruption budget {budget} {why}");
        Self::new(429, "TooManyRequests", message).with_cause("DisruptionBudget", &cause, "")
    }

    /// 500.
    #[must_use]
    pub fn internal(why: impl fmt::Display) -> Self {
        let why = why.to_string();
        Self::new(500, "InternalError", format!("Internal error occurred: {why}")).with_cause("", &why, "")
    }

    /// 503.
    #[must_use]
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// 504.
    #[must_use]
    pub fn timeout(message: &str) -> Self {
        Self::new(504, "Timeout", format!("Timeout: {message}")).retry_after(0)
    }

    /// 500 `ServerTimeout`: nothing is wrong but it took too long; try again.
    #[must_use]
    pub fn server_timeout(group: &str, resource: &str, verb: &str, seconds: i32) -> Self {
        let resource = qualified(resource, group);
        let message =
            format!("The {verb} operation against {resource} could not be completed at this time, please try again.");
        Self::new(500, "ServerTimeout", message).about(group, &resource, verb).retry_after(seconds)
    }
}

/// The answer to a deletion that left nothing: a `Status` with `status: Success`.
#[must_use]
pub fn success(group: &str, resource: &str, name: &str, uid: &str) -> Status {
    Status {
        status: Some("Success".to_owned()),
        details: Some(StatusDetails {
            group: some(group),
            kind: some(resource),
            name: some(name),
            uid: some(uid),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        assert_eq!(ApiError::not_found("", "pods", "x").message(), "pods \"x\" not found");
        assert_eq!(ApiError::not_found("apps", "deployments", "x").message(), "deployments.apps \"x\" not found");
        assert_eq!(ApiError::forbidden("", "pods", "", "no").message(), "pods is forbidden: no");
        assert_eq!(
            ApiError::modified("", "pods", "x").message(),
            "Operation cannot be fulfilled on pods \"x\": the object has been modified; please apply your changes to \
             the latest version and try again"
        );
        let internal = serde_json::from_slice::<serde_json::Value>(&ApiError::internal("x").to_json()).unwrap();
        assert_eq!(internal["kind"], "Status");
        assert_eq!(internal["code"], 500);
        assert_eq!(internal["details"]["causes"][0]["message"], "x");
    }

    #[test]
    fn invalid_lists_its_causes() {
        let cause = |field: &str| StatusCause {
            reason: Some("FieldValueRequired".into()),
            message: Some("Required value".into()),
            field: Some(field.into()),
        };
        assert_eq!(
            ApiError::invalid("", "Pod", "x", vec![cause("spec.containers[0].name")]).message(),
            "Pod \"x\" is invalid: spec.containers[0].name: Required value"
        );
        assert_eq!(
            ApiError::invalid("apps", "Deployment", "x", vec![cause("a"), cause("b")]).message(),
            "Deployment.apps \"x\" is invalid: [a: Required value, b: Required value]"
        );
    }
}
