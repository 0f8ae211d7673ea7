//! Who may do what: the Node authorizer and RBAC, told of objects by events, asked about requests. No I/O.
//!
//! ```
//! use bosun_authz::{Attributes, Authorizer, Decision};
//! let mut authorizer = Authorizer::default();
//! for (resource, object) in bosun_authz::bootstrap::objects() {
//!     authorizer.apply(resource, &object);
//! }
//! let groups = ["system:masters".to_owned()];
//! let request = Attributes { user: "admin", groups: &groups, verb: "list", resource: "pods", ..Attributes::default() };
//! assert!(matches!(authorizer.authorize(&request), Decision::Allow(_)));
//! ```

pub mod bootstrap;
mod node;
mod rbac;

use bosun_api::selector::FieldSelector;
use bosun_api::status::ApiError;
use serde_json::Value;

pub use rbac::{Review, Rule};

/// The group whose members may do everything.
pub const MASTERS: &str = "system:masters";

/// A request, as authorization sees it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes<'a> {
    /// The user's name.
    pub user: &'a str,
    /// The user's groups.
    pub groups: &'a [String],
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection` or a special one; of a request
    /// that is about no resource the HTTP method in lower case.
    pub verb: &'a str,
    /// The API group; empty for the core group.
    pub group: &'a str,
    /// The resource's plural; empty for a request that is about no resource.
    pub resource: &'a str,
    /// The subresource; empty for none.
    pub subresource: &'a str,
    /// The namespace; empty for none.
    pub namespace: &'a str,
    /// The object's name; empty for none.
    pub name: &'a str,
    /// The path of a request that is about no resource.
    pub path: &'a str,
    /// What a list or watch is limited to.
    pub fields: Option<&'a FieldSelector>,
}

impl Attributes<'_> {
    /// Whether the request is about a resource.
    #[must_use]
    pub fn is_resource(&self) -> bool {
        !self.resource.is_empty()
    }

    /// Whether it only reads.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        matches!(self.verb, "get" | "list" | "watch")
    }

    /// What a client reads when it may not: `User "x" cannot list resource "pods" in API group "" in the namespace
    /// "default"`.
    #[must_use]
    pub fn denial(&self) -> String {
        let Self { user, verb, group, resource, subresource, namespace, path, .. } = self;
        if !self.is_resource() {
            return format!("User {user:?} cannot {verb} path {path:?}");
        }
        let slash = if subresource.is_empty() { "" } else { "/" };
        let place = match *namespace {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace {namespace:?}"),
        };
        format!(
            "User {user:?} cannot {verb} resource \"{resource}{slash}{subresource}\" in API group {group:?} {place}"
        )
    }
}

/// What the authorizers think of a request. The text says why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may go on.
    Allow(String),
    /// It may not, whatever others think.
    Deny(String),
    /// Nothing allows it, so it may not.
    NoOpinion(String),
}

impl Decision {
    /// Whether the request may go on.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }

    /// Why.
    #[must_use]
    pub fn reason(&self) -> &str {
        let (Self::Allow(reason) | Self::Deny(reason) | Self::NoOpinion(reason)) = self;
        reason
    }
}

/// All authorizers, in the order of a stock control plane: masters, Node, RBAC.
#[derive(Debug, Default)]
pub struct Authorizer {
    node: node::NodeAuthorizer,
    rbac: rbac::Rbac,
}

/// The resources whose objects the authorizer must be told of, with their groups.
pub const WATCHED: &[(&str, &str)] = &[
    ("rbac.authorization.k8s.io", "roles"),
    ("rbac.authorization.k8s.io", "rolebindings"),
    ("rbac.authorization.k8s.io", "clusterroles"),
    ("rbac.authorization.k8s.io", "clusterrolebindings"),
    ("", "pods"),
    ("", "persistentvolumes"),
    ("storage.k8s.io", "volumeattachments"),
];

impl Authorizer {
    /// Takes in an object that was made or has changed. Of resources not in [`WATCHED`] nothing is kept.
    pub fn apply(&mut self, resource: &str, object: &Value) {
        self.node.apply(resource, object);
        self.rbac.apply(resource, object);
    }

    /// Forgets an object that is gone.
    pub fn remove(&mut self, resource: &str, namespace: &str, name: &str) {
        self.node.remove(resource, namespace, name);
        self.rbac.remove(resource, namespace, name);
    }

    /// Decides on a request.
    #[must_use]
    pub fn authorize(&self, request: &Attributes<'_>) -> Decision {
        if request.groups.iter().any(|group| group == MASTERS) {
            return Decision::Allow(String::new());
        }
        let node = self.node.authorize(request);
        if !matches!(node, Decision::NoOpinion(_)) {
            return node;
        }
        match (self.rbac.authorize(request), node) {
            (Decision::NoOpinion(rbac), Decision::NoOpinion(node)) => Decision::NoOpinion(
                [node, rbac].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(", "),
            ),
            (decision, _) => decision,
        }
    }

    /// Decides on a request, as an answer.
    ///
    /// # Errors
    /// 403 in a stock server's words.
    pub fn check(&self, request: &Attributes<'_>) -> Result<(), ApiError> {
        match self.authorize(request) {
            Decision::Allow(_) => Ok(()),
            Decision::Deny(reason) | Decision::NoOpinion(reason) => Err(forbidden(request, &reason)),
        }
    }

    /// Everything a user may do in a namespace, for SelfSubjectRulesReview.
    #[must_use]
    pub fn review(&self, user: &str, groups: &[String], namespace: &str) -> Review {
        self.rbac.review(user, groups, namespace)
    }

    /// The rules among some that a user does not hold and therefore must not give to others: why, in a stock server's
    /// words. The `escalate` verb is the caller's to check first.
    #[must_use]
    pub fn escalation(&self, user: &str, groups: &[String], namespace: &str, rules: &[Rule]) -> Option<String> {
        if groups.iter().any(|group| group == MASTERS) {
            return None;
        }
        self.rbac.escalation(user, groups, namespace, rules)
    }

    /// The rules that a role gives (for a binding's `roleRef`), with what is aggregated into it.
    #[must_use]
    pub fn role_rules(&self, kind: &str, namespace: &str, name: &str) -> Option<&[Rule]> {
        self.rbac.role_rules(kind, namespace, name)
    }

    /// What the aggregated ClusterRoles' rules should be: name and rules, for those whose own differ.
    #[must_use]
    pub fn stale_aggregates(&self) -> Vec<(String, Value)> {
        self.rbac.stale_aggregates()
    }
}

/// The 403 for a request.
#[must_use]
pub fn forbidden(request: &Attributes<'_>, reason: &str) -> ApiError {
    let mut why = request.denial();
    if !reason.is_empty() {
        why.push_str(": ");
        why.push_str(reason);
    }
    ApiError::forbidden(request.group, request.resource, request.name, &why)
}

#[cfg(test)]
mod tests;
