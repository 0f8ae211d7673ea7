//! Who may do what: the policy of the `authz` crate, kept up to date from the watch cache.

use std::sync::{Arc, PoisonError, RwLock};

use bosun_api::resource::{Resource, find};
use bosun_api::selector::{FieldSelector, Selector};
use bosun_authz::{Attributes, Authorizer, Decision, Rule, WATCHED};
use k8s_openapi::api::authentication::v1::UserInfo;
use serde_json::{Value, json};

use crate::cache::{Caches, Change, Observer};
use crate::object::Filter;
use crate::request::RequestInfo;

/// How requests are authorized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Authorization {
    /// RBAC and the rules for nodes.
    #[default]
    Policy,
    /// Everybody may do everything: for experiments and tests.
    AlwaysAllow,
}

/// The policy as it stands.
#[derive(Debug)]
pub(crate) struct Policy {
    mode: Authorization,
    authorizer: RwLock<Authorizer>,
}

impl Policy {
    pub(crate) fn new(mode: Authorization) -> Arc<Self> {
        Arc::new(Self { mode, authorizer: RwLock::default() })
    }

    /// Take in what is there.
    pub(crate) fn load(&self, caches: &Caches) {
        let mut authorizer = self.authorizer.write().unwrap_or_else(PoisonError::into_inner);
        for resource in WATCHED.iter().filter_map(|(group, plural)| find(group, "v1", plural)) {
            let all = Filter {
                resource,
                namespace: String::new(),
                labels: Selector::everything(),
                fields: FieldSelector::default(),
            };
            for object in caches.list(&all, None, 0).objects {
                authorizer.apply(resource.plural, &object.raw.value());
            }
        }
    }

    pub(crate) fn decide(&self, request: &Attributes<'_>) -> Decision {
        match self.mode {
            Authorization::AlwaysAllow => Decision::Allow(String::new()),
            Authorization::Policy => self.read(|authorizer| authorizer.authorize(request)),
        }
    }

    pub(crate) fn read<T>(&self, look: impl FnOnce(&Authorizer) -> T) -> T {
        look(&self.authorizer.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Why a user may not grant some rules, if so.
    pub(crate) fn escalation(&self, user: &str, groups: &[String], namespace: &str, rules: &[Rule]) -> Option<String> {
        match self.mode {
            Authorization::AlwaysAllow => None,
            Authorization::Policy => self.read(|authorizer| authorizer.escalation(user, groups, namespace, rules)),
        }
    }

    /// The status of a `SelfSubjectRulesReview`.
    pub(crate) fn rules_of(&self, user: &UserInfo, namespace: &str) -> Value {
        let groups = user.groups.as_deref().unwrap_or_default();
        let name = user.username.as_deref().unwrap_or_default();
        if self.mode == Authorization::AlwaysAllow {
            return json!({"incomplete": false,
                "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
                "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]});
        }
        self.read(|authorizer| rules_status(authorizer, name, groups, namespace))
    }
}

impl Observer for Policy {
    fn changed(&self, resource: &Resource, change: &Change) {
        if !WATCHED.contains(&(resource.group, resource.plural)) {
            return;
        }
        let mut authorizer = self.authorizer.write().unwrap_or_else(PoisonError::into_inner);
        match change.deleted {
            true => {
                let (namespace, name) = change.object.place();
                authorizer.remove(resource.plural, namespace, name);
            }
            false => authorizer.apply(resource.plural, &change.object.raw.value()),
        }
    }
}

fn rules_status(authorizer: &Authorizer, user: &str, groups: &[String], namespace: &str) -> Value {
    let review = authorizer.review(user, groups, namespace);
    let mut status = json!({"incomplete": !review.error.is_empty(),
        "resourceRules": review.resource_rules, "nonResourceRules": review.non_resource_rules});
    if !review.error.is_empty() {
        status["evaluationError"] = review.error.into();
    }
    status
}

/// A request as the policy sees it.
pub(crate) fn attributes<'a>(
    user: &'a UserInfo,
    info: &'a RequestInfo,
    fields: Option<&'a FieldSelector>,
) -> Attributes<'a> {
    // A list or watch of one object by its name is authorized like a request for that object, as stock does: so a node
    // may watch just the secrets of its pods.
    let selected = fields.and_then(|fields| fields.required("metadata.name"));
    let name = match info.name.as_str() {
        "" if matches!(&*info.verb, "list" | "watch" | "deletecollection") => selected.unwrap_or_default(),
        name => name,
    };
    Attributes {
        user: user.username.as_deref().unwrap_or_default(),
        groups: user.groups.as_deref().unwrap_or_default(),
        verb: &info.verb,
        group: &info.group,
        resource: if info.is_resource { &info.resource } else { "" },
        subresource: &info.subresource,
        namespace: &info.namespace,
        name,
        path: &info.path,
        fields,
    }
}

/// Whether the user is in a group.
pub(crate) fn in_group(user: &UserInfo, group: &str) -> bool {
    user.groups.iter().flatten().any(|g| g == group)
}
