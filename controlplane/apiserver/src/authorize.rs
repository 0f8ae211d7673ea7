//! Who may do what: the edge to the `authz` crate.

use k8s_openapi::api::authentication::v1::UserInfo;

use crate::request::RequestInfo;

/// The group that may do everything, whatever the policy says.
pub(crate) const MASTERS: &str = "system:masters";

/// What a request wants to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `get`, `list`, … for resources; the HTTP method in lower case for other paths.
    pub verb: String,
    /// Whether `resource` and its kin are set, or only `path`.
    pub is_resource: bool,
    /// The API group; empty for the core group.
    pub group: String,
    /// The version within the group.
    pub version: String,
    /// The plural name.
    pub resource: String,
    /// What hangs below the object.
    pub subresource: String,
    /// Empty for cluster-scoped resources and for all namespaces.
    pub namespace: String,
    /// Empty for all objects.
    pub name: String,
    /// The path of a request that is not to a resource.
    pub path: String,
}

impl Attributes {
    pub(crate) fn of(info: &RequestInfo) -> Self {
        Self {
            verb: info.verb.to_owned(),
            is_resource: info.is_resource,
            group: info.group.clone(),
            version: info.version.clone(),
            resource: info.resource.clone(),
            subresource: info.subresource.clone(),
            namespace: info.namespace.clone(),
            name: info.name.clone(),
            path: info.path.clone(),
        }
    }

    /// Why a refused request was refused, in stock's words.
    pub(crate) fn refusal(&self, user: &str, reason: &str) -> String {
        let mut text = if self.is_resource {
            let group = &self.group;
            let resource = match self.subresource.as_str() {
                "" => self.resource.clone(),
                sub => format!("{}/{sub}", self.resource),
            };
            let place = match self.namespace.as_str() {
                "" => "at the cluster scope".to_owned(),
                namespace => format!("in the namespace {namespace:?}"),
            };
            format!("User {user:?} cannot {} resource {resource:?} in API group {group:?} {place}", self.verb)
        } else {
            format!("User {user:?} cannot {} path {:?}", self.verb, self.path)
        };
        if !reason.is_empty() {
            text = format!("{text}: {reason}");
        }
        text
    }
}

/// What an authorizer says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Whether the request may go on.
    pub allowed: bool,
    /// Why, for people.
    pub reason: String,
}

/// Decides what users may do.
pub trait Authorizer: Send + Sync + 'static {
    /// Whether the user may do this.
    fn authorize(&self, user: &UserInfo, attributes: &Attributes) -> Decision;
}

/// Whether the user is in a group.
pub(crate) fn in_group(user: &UserInfo, group: &str) -> bool {
    user.groups.iter().flatten().any(|g| g == group)
}

/// Allows everything; `--authorization-mode=AlwaysAllow`.
#[derive(Debug)]
pub struct AlwaysAllow;

impl Authorizer for AlwaysAllow {
    fn authorize(&self, _user: &UserInfo, _attributes: &Attributes) -> Decision {
        Decision { allowed: true, reason: String::new() }
    }
}
