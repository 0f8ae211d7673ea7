//! Role-based access control: roles, their bindings, and who holds which.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bosun_api::selector::{self, Labels};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Attributes, Decision};

/// What may be done to what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// Verbs; `*` for all.
    #[serde(deserialize_with = "nullable")]
    pub verbs: Vec<String>,
    /// API groups; `*` for all.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    /// Resources, `resource/subresource`, `*/subresource`; `*` for all.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    /// Objects; none for all.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    /// Paths of requests that are about no resource; `*` at the end for all that begin so.
    #[serde(rename = "nonResourceURLs", deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
}

fn nullable<'de, D: serde::Deserializer<'de>>(reader: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(reader)?.unwrap_or_default())
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

impl Rule {
    /// Whether the rule allows a request.
    #[must_use]
    pub fn allows(&self, request: &Attributes<'_>) -> bool {
        if !has(&self.verbs, request.verb) {
            return false;
        }
        if !request.is_resource() {
            return self.non_resource_urls.iter().any(|pattern| path_matches(pattern, request.path));
        }
        has(&self.api_groups, request.group)
            && self.resources.iter().any(|pattern| resource_matches(pattern, request.resource, request.subresource))
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|name| name == request.name))
    }

    /// Whether this rule, on one verb of one resource of one group, gives at least what another asks.
    fn covers(&self, one: &Rule) -> bool {
        let all = |mine: &[String], theirs: &[String]| theirs.iter().all(|wanted| has(mine, wanted));
        all(&self.verbs, &one.verbs)
            && all(&self.api_groups, &one.api_groups)
            && one.resources.iter().all(|wanted| {
                let (resource, subresource) = wanted.split_once('/').unwrap_or((wanted, ""));
                self.resources.iter().any(|pattern| resource_matches(pattern, resource, subresource))
            })
            && (self.resource_names.is_empty()
                || !one.resource_names.is_empty()
                    && one.resource_names.iter().all(|name| self.resource_names.contains(name)))
            && one
                .non_resource_urls
                .iter()
                .all(|path| self.non_resource_urls.iter().any(|pattern| pattern == path || path_matches(pattern, path)))
    }

    /// The rule as many rules with one verb, one group and one resource, or one path, each.
    fn parts(&self) -> Vec<Rule> {
        let mut parts = Vec::new();
        for verb in &self.verbs {
            for path in &self.non_resource_urls {
                parts.push(Rule {
                    verbs: vec![verb.clone()],
                    non_resource_urls: vec![path.clone()],
                    ..Rule::default()
                });
            }
            for group in &self.api_groups {
                for resource in &self.resources {
                    parts.push(Rule {
                        verbs: vec![verb.clone()],
                        api_groups: vec![group.clone()],
                        resources: vec![resource.clone()],
                        resource_names: self.resource_names.clone(),
                        ..Rule::default()
                    });
                }
            }
        }
        parts
    }

    /// The rule as messages show it.
    fn compact(&self) -> String {
        let mut parts = Vec::new();
        for (label, list) in [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.non_resource_urls),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ] {
            if !list.is_empty() {
                let quoted: Vec<_> = list.iter().map(|item| format!("{item:?}")).collect();
                parts.push(format!("{label}:[{}]", quoted.join(" ")));
            }
        }
        format!("{{{}}}", parts.join(", "))
    }
}

fn resource_matches(pattern: &str, resource: &str, subresource: &str) -> bool {
    if pattern == "*" {
        return true;
    }
    match pattern.split_once('/') {
        None => subresource.is_empty() && pattern == resource,
        Some((all, wanted)) => wanted == subresource && (all == "*" || all == resource),
    }
}

fn path_matches(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => pattern == path,
    }
}

/// What a user may do in a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Review {
    /// Rules about resources.
    pub resource_rules: Vec<Rule>,
    /// Rules about paths.
    pub non_resource_rules: Vec<Rule>,
    /// What could not be looked at, empty for nothing.
    pub error: String,
}

/// Namespace and name; the namespace of what has none is empty.
type Key = (String, String);

#[derive(Debug, Default)]
struct ClusterRole {
    own: Vec<Rule>,
    labels: Labels,
    selectors: Vec<LabelSelector>,
    aggregated: Option<Vec<Rule>>,
}

impl ClusterRole {
    fn rules(&self) -> &[Rule] {
        self.aggregated.as_deref().unwrap_or(&self.own)
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Binding {
    key: Key,
    role_kind: String,
    role: String,
    /// Who holds it: the user's name or the group's, and how messages name it.
    subjects: Vec<(Subject, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    User(String),
    Group(String),
}

/// Roles and bindings with an index by who holds them.
#[derive(Debug, Default)]
pub(super) struct Rbac {
    roles: HashMap<Key, Vec<Rule>>,
    cluster_roles: BTreeMap<String, ClusterRole>,
    bindings: HashMap<Key, Arc<Binding>>,
    by_subject: HashMap<Subject, Vec<Arc<Binding>>>,
}

fn key_of(object: &Value) -> Key {
    let read = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (read("namespace"), read("name"))
}

fn read<T: serde::de::DeserializeOwned + Default>(value: &Value) -> T {
    T::deserialize(value).unwrap_or_default()
}

impl Rbac {
    pub(super) fn apply(&mut self, resource: &str, object: &Value) {
        let key = key_of(object);
        match resource {
            "roles" => {
                self.roles.insert(key, read(&object["rules"]));
            }
            "clusterroles" => {
                let role = ClusterRole {
                    own: read(&object["rules"]),
                    labels: read(&object["metadata"]["labels"]),
                    selectors: read(&object["aggregationRule"]["clusterRoleSelectors"]),
                    aggregated: None,
                };
                self.cluster_roles.insert(key.1, role);
                self.aggregate();
            }
            "rolebindings" | "clusterrolebindings" => {
                self.unbind(&key);
                self.bind(binding(key, object));
            }
            _ => {}
        }
    }

    pub(super) fn remove(&mut self, resource: &str, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        match resource {
            "roles" => {
                self.roles.remove(&key);
            }
            "clusterroles" => {
                self.cluster_roles.remove(name);
                self.aggregate();
            }
            "rolebindings" | "clusterrolebindings" => self.unbind(&key),
            _ => {}
        }
    }

    fn bind(&mut self, binding: Binding) {
        let binding = Arc::new(binding);
        for (subject, _) in &binding.subjects {
            self.by_subject.entry(subject.clone()).or_default().push(binding.clone());
        }
        self.bindings.insert(binding.key.clone(), binding);
    }

    fn unbind(&mut self, key: &Key) {
        let Some(old) = self.bindings.remove(key) else { return };
        for (subject, _) in &old.subjects {
            if let Some(list) = self.by_subject.get_mut(subject) {
                list.retain(|binding| binding.key != *key);
                if list.is_empty() {
                    self.by_subject.remove(subject);
                }
            }
        }
    }

    /// Puts the aggregated roles together. One may be part of another, so it goes on until nothing changes.
    fn aggregate(&mut self) {
        for _ in 0..self.cluster_roles.len() {
            let mut changes = Vec::new();
            for (name, role) in self.cluster_roles.iter().filter(|(_, role)| !role.selectors.is_empty()) {
                let rules = self.collect(name, role);
                if role.aggregated.as_ref() != Some(&rules) {
                    changes.push((name.clone(), rules));
                }
            }
            if changes.is_empty() {
                return;
            }
            for (name, rules) in changes {
                if let Some(role) = self.cluster_roles.get_mut(&name) {
                    role.aggregated = Some(rules);
                }
            }
        }
    }

    fn collect(&self, name: &str, role: &ClusterRole) -> Vec<Rule> {
        let mut rules: Vec<Rule> = Vec::new();
        for (_, part) in self.cluster_roles.iter().filter(|(other, _)| *other != name) {
            if role.selectors.iter().any(|wanted| selector::matches(wanted, &part.labels)) {
                for rule in part.rules() {
                    if !rules.contains(rule) {
                        rules.push(rule.clone());
                    }
                }
            }
        }
        rules
    }

    pub(super) fn stale_aggregates(&self) -> Vec<(String, Value)> {
        let stale = |role: &ClusterRole| role.aggregated.clone().filter(|rules| *rules != role.own);
        self.cluster_roles
            .iter()
            .filter_map(|(name, role)| {
                let rules = stale(role)?;
                Some((name.clone(), serde_json::to_value(rules).expect("rules are JSON")))
            })
            .collect()
    }

    pub(super) fn role_rules(&self, kind: &str, namespace: &str, name: &str) -> Option<&[Rule]> {
        match kind {
            "ClusterRole" => self.cluster_roles.get(name).map(ClusterRole::rules),
            "Role" => self.roles.get(&(namespace.to_owned(), name.to_owned())).map(Vec::as_slice),
            _ => None,
        }
    }

    /// The bindings that count for a user in a namespace, with the subject each counts by; cluster-wide ones first.
    fn bindings_of(&self, user: &str, groups: &[String], namespace: &str) -> Vec<(&Binding, &str)> {
        let subjects = std::iter::once(Subject::User(user.to_owned()))
            .chain(groups.iter().map(|group| Subject::Group(group.clone())));
        let mut found = Vec::new();
        for subject in subjects {
            for binding in self.by_subject.get(&subject).into_iter().flatten() {
                if !binding.key.0.is_empty() && (namespace.is_empty() || binding.key.0 != namespace) {
                    continue;
                }
                let shown = binding.subjects.iter().find(|(own, _)| *own == subject);
                found.push((&**binding, shown.map_or("", |(_, text)| text.as_str())));
            }
        }
        found.sort_by_key(|(binding, _)| !binding.key.0.is_empty());
        found
    }

    pub(super) fn authorize(&self, request: &Attributes<'_>) -> Decision {
        let mut missing = Vec::new();
        for (binding, subject) in self.bindings_of(request.user, request.groups, request.namespace) {
            match self.role_rules(&binding.role_kind, &binding.key.0, &binding.role) {
                Some(rules) if rules.iter().any(|rule| rule.allows(request)) => {
                    return Decision::Allow(format!("RBAC: allowed by {}", describe(binding, subject)));
                }
                Some(_) => {}
                None => missing.push(not_found(binding)),
            }
        }
        missing.dedup();
        match missing.as_slice() {
            [] => Decision::NoOpinion(String::new()),
            [one] => Decision::NoOpinion(format!("RBAC: {one}")),
            many => Decision::NoOpinion(format!("RBAC: [{}]", many.join(", "))),
        }
    }

    pub(super) fn review(&self, user: &str, groups: &[String], namespace: &str) -> Review {
        let mut review = Review::default();
        let mut missing = Vec::new();
        for (binding, _) in self.bindings_of(user, groups, namespace) {
            let Some(rules) = self.role_rules(&binding.role_kind, &binding.key.0, &binding.role) else {
                missing.push(not_found(binding));
                continue;
            };
            for rule in rules {
                if !rule.resources.is_empty() {
                    review.resource_rules.push(Rule { non_resource_urls: Vec::new(), ..rule.clone() });
                }
                if !rule.non_resource_urls.is_empty() {
                    review.non_resource_rules.push(Rule {
                        verbs: rule.verbs.clone(),
                        non_resource_urls: rule.non_resource_urls.clone(),
                        ..Rule::default()
                    });
                }
            }
        }
        review.error = missing.join(", ");
        review
    }

    pub(super) fn escalation(&self, user: &str, groups: &[String], namespace: &str, rules: &[Rule]) -> Option<String> {
        let held: Vec<&Rule> = self
            .bindings_of(user, groups, namespace)
            .into_iter()
            .filter_map(|(binding, _)| self.role_rules(&binding.role_kind, &binding.key.0, &binding.role))
            .flatten()
            .collect();
        let missing: Vec<String> = rules
            .iter()
            .flat_map(Rule::parts)
            .filter(|part| !held.iter().any(|rule| rule.covers(part)))
            .map(|part| part.compact())
            .collect();
        if missing.is_empty() {
            return None;
        }
        let quoted: Vec<_> = groups.iter().map(|group| format!("{group:?}")).collect();
        Some(format!(
            "user {user:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
            quoted.join(" "),
            missing.join("\n")
        ))
    }
}

fn not_found(binding: &Binding) -> String {
    let resource = if binding.role_kind == "Role" { "role" } else { "clusterrole" };
    format!("{resource}.rbac.authorization.k8s.io {:?} not found", binding.role)
}

fn describe(binding: &Binding, subject: &str) -> String {
    let (namespace, name) = &binding.key;
    let holder = if namespace.is_empty() {
        format!("ClusterRoleBinding {name:?}")
    } else {
        format!("RoleBinding \"{name}/{namespace}\"")
    };
    format!("{holder} of {} {:?} to {subject}", binding.role_kind, binding.role)
}

fn binding(key: Key, object: &Value) -> Binding {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let subjects = object["subjects"].as_array().map(Vec::as_slice).unwrap_or_default();
    let subjects = subjects.iter().filter_map(|subject| {
        let name = text(&subject["name"]);
        let quoted = format!("{} {name:?}", text(&subject["kind"]));
        Some(match subject["kind"].as_str()? {
            "User" => (Subject::User(name), quoted),
            "Group" => (Subject::Group(name), quoted),
            "ServiceAccount" => {
                let namespace = match text(&subject["namespace"]) {
                    own if own.is_empty() => key.0.clone(),
                    other => other,
                };
                let shown = format!("ServiceAccount \"{name}/{namespace}\"");
                (Subject::User(format!("system:serviceaccount:{namespace}:{name}")), shown)
            }
            _ => return None,
        })
    });
    let subjects = subjects.collect();
    Binding { role_kind: text(&object["roleRef"]["kind"]), role: text(&object["roleRef"]["name"]), subjects, key }
}
