//! The roles and bindings every cluster begins with, read from `bootstrap.policy` beside this file.

use serde_json::{Value, json};

const TEXT: &str = include_str!("bootstrap.policy");
const GROUP: &str = "rbac.authorization.k8s.io";

/// Every object with the plural of its resource, in an order in which they can be made. Namespaces are the caller's.
///
/// They are marked for automatic update as stock ones are: on start the server adds what they lack and takes nothing
/// away.
#[must_use]
pub fn objects() -> Vec<(&'static str, Value)> {
    let mut objects: Vec<(&'static str, Value)> = Vec::new();
    for line in TEXT.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if line.starts_with(' ') {
            if let Some(rules) = objects.last_mut().and_then(|(_, object)| object["rules"].as_array_mut()) {
                rules.push(rule(&words));
            }
        } else {
            objects.push(object(&words));
        }
    }
    objects
}

fn metadata(namespace: Option<&str>, name: &str) -> Value {
    let mut metadata = json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
    });
    if let Some(namespace) = namespace {
        metadata["namespace"] = namespace.into();
    }
    metadata
}

fn object(words: &[&str]) -> (&'static str, Value) {
    let api = "rbac.authorization.k8s.io/v1";
    match words {
        ["clusterrole", name, options @ ..] => {
            let mut object =
                json!({"apiVersion": api, "kind": "ClusterRole", "metadata": metadata(None, name), "rules": []});
            for option in options {
                if let Some(label) = option.strip_prefix("label=") {
                    object["metadata"]["labels"][label] = "true".into();
                } else if let Some(label) = option.strip_prefix("aggregate=") {
                    object["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
                }
            }
            ("clusterroles", object)
        }
        ["clusterrolebinding", name, role, subjects @ ..] => {
            let subjects: Vec<_> = subjects.iter().map(|word| subject(word)).collect();
            let reference = json!({"apiGroup": GROUP, "kind": "ClusterRole", "name": role});
            let object = json!({"apiVersion": api, "kind": "ClusterRoleBinding", "metadata": metadata(None, name),
                "roleRef": reference, "subjects": subjects});
            ("clusterrolebindings", object)
        }
        ["role", namespace, name] => {
            let metadata = metadata(Some(namespace), name);
            ("roles", json!({"apiVersion": api, "kind": "Role", "metadata": metadata, "rules": []}))
        }
        ["rolebinding", namespace, name, role, subjects @ ..] => {
            let subjects: Vec<_> = subjects.iter().map(|word| subject(word)).collect();
            let (kind, role) = match role.split_once(':') {
                Some(("clusterrole", role)) => ("ClusterRole", role),
                Some((_, role)) => ("Role", role),
                None => ("Role", *role),
            };
            let reference = json!({"apiGroup": GROUP, "kind": kind, "name": role});
            let object = json!({"apiVersion": api, "kind": "RoleBinding", "metadata": metadata(Some(namespace), name),
                "roleRef": reference, "subjects": subjects});
            ("rolebindings", object)
        }
        other => unreachable!("the policy is part of the program and a test reads all of it: {other:?}"),
    }
}

fn subject(word: &str) -> Value {
    match word.split_once(':') {
        Some(("user", name)) => json!({"apiGroup": GROUP, "kind": "User", "name": name}),
        Some(("group", name)) => json!({"apiGroup": GROUP, "kind": "Group", "name": name}),
        Some(("account", name)) => {
            let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
            json!({"kind": "ServiceAccount", "name": name, "namespace": namespace})
        }
        _ => unreachable!("the policy is part of the program and a test reads all of it: {word}"),
    }
}

fn rule(words: &[&str]) -> Value {
    let list = |word: &str| -> Vec<String> {
        word.split(',').map(|item| if item == "core" { String::new() } else { item.to_owned() }).collect()
    };
    match words {
        ["url", verbs, paths] => json!({"nonResourceURLs": list(paths), "verbs": list(verbs)}),
        [verbs, groups, resources, names @ ..] => {
            let mut rule = json!({"apiGroups": list(groups), "resources": list(resources), "verbs": list(verbs)});
            if let Some(names) = names.first().and_then(|names| names.strip_prefix("names=")) {
                rule["resourceNames"] = list(names).into();
            }
            rule
        }
        other => unreachable!("the policy is part of the program and a test reads all of it: {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bosun_api::{resource, schema, validation};

    #[test]
    fn every_object_is_valid() {
        let objects = objects();
        assert!(objects.len() > 90, "{}", objects.len());
        for (plural, object) in objects {
            let resource = resource::find(GROUP, "v1", plural).unwrap();
            let decoded = schema::decode_value(resource.definition, object.clone()).unwrap();
            assert_eq!(decoded.unknown, [""; 0]);
            let faults: Vec<_> = validation::validate_create(resource, &object)
                .into_iter()
                .map(|fault| format!("{} {}: {fault}", plural, object["metadata"]["name"]))
                .collect();
            assert_eq!(faults, [""; 0]);
        }
    }
}
