//! The one table of everything the API server serves.
//!
//! Discovery, routing, storage, decoding, printing and authorization all read it; a new kind is a new line here.

mod table;

pub use table::{GROUPS, RESOURCES};

/// A group of the API, in the order discovery gives them.
#[derive(Debug)]
pub struct Group {
    /// The group's name; empty for the core group.
    pub name: &'static str,
    /// Its versions, the preferred one first.
    pub versions: &'static [&'static str],
}

impl Group {
    /// The version clients should use.
    #[must_use]
    pub fn preferred(&self) -> &'static str {
        self.versions[0]
    }
}

/// A kind of object at a path of the API.
#[derive(Debug)]
pub struct Resource {
    /// The group's name; empty for the core group.
    pub group: &'static str,
    /// The version within the group.
    pub version: &'static str,
    /// The kind, such as `Pod`.
    pub kind: &'static str,
    /// The name in the path, such as `pods`.
    pub plural: &'static str,
    /// What kubectl takes for one, such as `pod`.
    pub singular: &'static str,
    /// What kubectl takes for short, such as `po`.
    pub short_names: &'static [&'static str],
    /// The sets it belongs to, such as `all`.
    pub categories: &'static [&'static str],
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// What can be done, in alphabetical order.
    pub verbs: &'static [&'static str],
    /// What hangs below an object's path, in alphabetical order.
    pub subresources: &'static [Subresource],
    /// Where objects are kept, as in a stock etcd; empty for what is answered and forgotten.
    pub storage: &'static str,
    /// The definition of its schema, such as `io.k8s.api.core.v1.Pod`.
    pub definition: &'static str,
}

/// Something below an object's path.
#[derive(Debug)]
pub struct Subresource {
    /// The last segment of the path, such as `status`.
    pub name: &'static str,
    /// The group of the kind exchanged; that of the resource itself when `version` is empty.
    pub group: &'static str,
    /// The version of the kind exchanged; that of the resource itself when empty.
    pub version: &'static str,
    /// The kind exchanged; that of the resource itself when empty.
    pub kind: &'static str,
    /// What can be done, in alphabetical order.
    pub verbs: &'static [&'static str],
}

impl Resource {
    /// `v1` or `apps/v1`.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The kind of a list, such as `PodList`.
    #[must_use]
    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    /// `pods` or `deployments.apps`, as messages name it.
    #[must_use]
    pub fn qualified(&self) -> String {
        crate::status::qualified(self.plural, self.group)
    }

    /// Whether a verb exists.
    #[must_use]
    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    /// A subresource by its name.
    #[must_use]
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|subresource| subresource.name == name)
    }

    /// Whether `status` is written apart from the rest.
    #[must_use]
    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }

    /// Whether objects are kept at all; reviews and bindings are answered and forgotten.
    #[must_use]
    pub fn is_stored(&self) -> bool {
        !self.storage.is_empty()
    }

    /// The resource in whose form objects are kept: another one where two versions share a storage.
    #[must_use]
    pub fn stored_as(&'static self) -> &'static Resource {
        let other = match (self.group, self.version, self.plural) {
            ("events.k8s.io", "v1", "events") => find("", "v1", "events"),
            ("autoscaling", "v1", "horizontalpodautoscalers") => find("autoscaling", "v2", "horizontalpodautoscalers"),
            _ => None,
        };
        other.unwrap_or(self)
    }

    /// The key of one object.
    #[must_use]
    pub fn key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced {
            format!("{}/{namespace}/{name}", self.storage)
        } else {
            format!("{}/{name}", self.storage)
        }
    }

    /// The prefix of the keys of all objects, or of those in one namespace. It ends with a slash.
    #[must_use]
    pub fn key_prefix(&self, namespace: Option<&str>) -> String {
        match namespace {
            Some(namespace) if self.namespaced && !namespace.is_empty() => format!("{}/{namespace}/", self.storage),
            _ => format!("{}/", self.storage),
        }
    }
}

/// The resource at a path.
#[must_use]
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|all| all.plural == plural && all.group == group && all.version == version)
}

/// The resource of a kind.
#[must_use]
pub fn find_kind(group: &str, version: &str, kind: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|all| all.kind == kind && all.group == group && all.version == version)
}

/// The resource of a plural in its group's preferred version.
#[must_use]
pub fn find_preferred(group: &str, plural: &str) -> Option<&'static Resource> {
    find(group, self::group(group)?.preferred(), plural)
}

/// A group by its name.
#[must_use]
pub fn group(name: &str) -> Option<&'static Group> {
    GROUPS.iter().find(|group| group.name == name)
}

/// The resources of a version, in alphabetical order.
pub fn in_version<'a>(group: &'a str, version: &'a str) -> impl Iterator<Item = &'static Resource> + 'a {
    RESOURCES.iter().filter(move |all| all.group == group && all.version == version)
}

/// Splits `apps/v1` into group and version; the core group is empty.
#[must_use]
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// Where the allocated service addresses are kept.
pub const SERVICE_IPS_KEY: &str = "/registry/ranges/serviceips";
/// Where the allocated node ports are kept.
pub const SERVICE_NODE_PORTS_KEY: &str = "/registry/ranges/servicenodeports";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order() {
        for group in GROUPS {
            for version in group.versions {
                let all: Vec<_> = in_version(group.name, version).map(|all| all.plural).collect();
                assert!(!all.is_empty(), "{} {version}", group.name);
                assert!(all.is_sorted(), "{all:?}");
            }
        }
        for all in RESOURCES {
            assert!(group(all.group).is_some_and(|group| group.versions.contains(&all.version)), "{}", all.plural);
            assert!(all.verbs.is_sorted(), "{}", all.plural);
            assert!(all.subresources.iter().map(|sub| sub.name).is_sorted(), "{}", all.plural);
        }
    }

    #[test]
    fn keys_are_those_of_a_stock_store() {
        let key = |group, version, plural| find(group, version, plural).unwrap().key("ns", "x");
        assert_eq!(key("", "v1", "pods"), "/registry/pods/ns/x");
        assert_eq!(key("", "v1", "services"), "/registry/services/specs/ns/x");
        assert_eq!(key("", "v1", "nodes"), "/registry/minions/x");
        assert_eq!(key("events.k8s.io", "v1", "events"), "/registry/events/ns/x");
        assert_eq!(find("", "v1", "pods").unwrap().key_prefix(Some("a")), "/registry/pods/a/");
        assert_eq!(find("", "v1", "pods").unwrap().key_prefix(None), "/registry/pods/");
    }

    #[test]
    fn look_ups() {
        assert_eq!(find_kind("apps", "v1", "Deployment").unwrap().plural, "deployments");
        assert_eq!(find_preferred("autoscaling", "horizontalpodautoscalers").unwrap().version, "v2");
        assert_eq!(find("autoscaling", "v1", "horizontalpodautoscalers").unwrap().stored_as().version, "v2");
        assert_eq!(find("", "v1", "pods").unwrap().subresource("eviction").unwrap().group, "policy");
        assert_eq!(split_api_version("apps/v1"), ("apps", "v1"));
    }
}
