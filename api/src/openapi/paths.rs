//! The operations on every resource, in the forms of v2 and v3.

use serde_json::{Map, Value, json};

use crate::resource::{Resource, Subresource, find_kind, in_version};

/// The version of OpenAPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    V2,
    V3,
}

const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const PATCH_TYPES: [&str; 3] =
    ["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json"];

/// One operation, before it has a form.
struct Operation<'a> {
    verb: &'a str,
    method: &'static str,
    /// The definition of the body, if there is one; a patch has none of its own.
    body: Option<&'a str>,
    /// The definition of the answer; text when there is none.
    answer: Option<String>,
    gvk: (&'a str, &'a str, &'a str),
    tag: String,
    id: String,
}

/// The path items of a group's version.
pub(super) fn of(group: &str, version: &str, form: Form) -> Map<String, Value> {
    let root = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
    let mut paths = Map::new();
    for resource in in_version(group, version) {
        let place = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
        let collection = format!("{root}{place}/{}", resource.plural);
        if resource.namespaced && resource.has_verb("list") {
            let item = path_item(resource, &["list"], &[], form, "ForAllNamespaces");
            paths.insert(format!("{root}/{}", resource.plural), item);
        }
        let namespace: &[&str] = if resource.namespaced { &["namespace"] } else { &[] };
        let item = path_item(resource, &["list", "create", "deletecollection"], namespace, form, "");
        paths.insert(collection.clone(), item);
        let single: Vec<&str> = std::iter::once("name").chain(namespace.iter().copied()).collect();
        if ["get", "update", "patch", "delete"].iter().any(|verb| resource.has_verb(verb)) {
            let item = path_item(resource, &["get", "update", "patch", "delete"], &single, form, "");
            paths.insert(format!("{collection}/{{name}}"), item);
        }
        for subresource in resource.subresources {
            let item = subresource_item(resource, subresource, &single, form);
            paths.insert(format!("{collection}/{{name}}/{}", subresource.name), item);
        }
    }
    paths
}

fn method(verb: &str) -> &'static str {
    match verb {
        "create" => "post",
        "update" => "put",
        "patch" => "patch",
        "delete" | "deletecollection" => "delete",
        _ => "get",
    }
}

fn action(verb: &str) -> &str {
    match verb {
        "create" => "post",
        "update" => "put",
        other => other,
    }
}

/// `core_v1`, `apps_v1`.
fn tag(resource: &Resource) -> String {
    let group = resource.group.split('.').next().filter(|group| !group.is_empty()).unwrap_or("core");
    format!("{group}_{}", resource.version)
}

fn operation_id(resource: &Resource, verb: &str, suffix: &str) -> String {
    let word = match verb {
        "get" => "read",
        "update" => "replace",
        "deletecollection" => "deleteCollection",
        other => other,
    };
    let group: String = tag(resource).split('_').map(capital).collect();
    let scope = if resource.namespaced && suffix != "ForAllNamespaces" { "Namespaced" } else { "" };
    format!("{word}{group}{scope}{}{suffix}", resource.kind)
}

fn path_item(resource: &Resource, verbs: &[&str], parameters: &[&str], form: Form, suffix: &str) -> Value {
    let mut item = Map::new();
    for verb in verbs.iter().filter(|verb| resource.has_verb(verb)) {
        let answer = match *verb {
            "list" => format!("{}List", resource.definition),
            "delete" | "deletecollection" => STATUS.to_owned(),
            _ => resource.definition.to_owned(),
        };
        let body = match *verb {
            "create" | "update" => Some(resource.definition),
            "delete" | "deletecollection" => Some(DELETE_OPTIONS),
            _ => None,
        };
        let operation = Operation {
            verb,
            method: method(verb),
            body,
            answer: Some(answer),
            gvk: (resource.group, resource.version, resource.kind),
            tag: tag(resource),
            id: operation_id(resource, verb, suffix),
        };
        item.insert(operation.method.to_owned(), operation.render(form));
    }
    finish(item, parameters, form)
}

fn subresource_item(resource: &Resource, sub: &Subresource, parameters: &[&str], form: Form) -> Value {
    let gvk = if sub.kind.is_empty() {
        (resource.group, resource.version, resource.kind)
    } else {
        (sub.group, sub.version, sub.kind)
    };
    let definition = match (sub.kind, find_kind(gvk.0, gvk.1, gvk.2)) {
        ("", _) => Some(resource.definition),
        (_, Some(resource)) => Some(resource.definition),
        ("Scale", _) => Some("io.k8s.api.autoscaling.v1.Scale"),
        ("Eviction", _) => Some("io.k8s.api.policy.v1.Eviction"),
        ("TokenRequest", _) => Some("io.k8s.api.authentication.v1.TokenRequest"),
        _ => None,
    };
    let mut item = Map::new();
    for verb in sub.verbs {
        // What is a stream or a proxy exchanges text.
        let typed = definition.filter(|_| sub.name != "log");
        let operation = Operation {
            verb: if definition.is_some() { verb } else { "connect" },
            method: method(verb),
            body: typed.filter(|_| matches!(*verb, "create" | "update")),
            answer: typed.map(str::to_owned),
            gvk,
            tag: tag(resource),
            id: format!("{}{}", operation_id(resource, verb, ""), capital(sub.name)),
        };
        item.insert(operation.method.to_owned(), operation.render(form));
    }
    finish(item, parameters, form)
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_ascii_uppercase().to_string() + letters.as_str()).unwrap_or_default()
}

fn finish(mut item: Map<String, Value>, parameters: &[&str], form: Form) -> Value {
    let mut list: Vec<Value> = parameters
        .iter()
        .map(|name| {
            let what = if *name == "name" { "name of the object" } else { "object name and auth scope" };
            typed(json!({"name": name, "in": "path", "required": true, "description": what}), "string", form)
        })
        .collect();
    list.push(query("pretty", "string", "If 'true', then the output is pretty printed.", form));
    item.insert("parameters".to_owned(), Value::Array(list));
    Value::Object(item)
}

fn typed(mut parameter: Value, ty: &str, form: Form) -> Value {
    match form {
        Form::V2 => {
            parameter["type"] = ty.into();
            parameter["uniqueItems"] = true.into();
        }
        Form::V3 => parameter["schema"] = json!({"type": ty, "uniqueItems": true}),
    }
    parameter
}

fn query(name: &str, ty: &str, description: &str, form: Form) -> Value {
    typed(json!({"name": name, "in": "query", "description": description}), ty, form)
}

const FIELD_VALIDATION: &str = "What to do with unknown and duplicate fields: Ignore drops them, Warn (the default) \
                                drops them and answers with a warning for each, Strict refuses the request.";
const DRY_RUN: &str = "With All, nothing is stored.";
const FIELD_MANAGER: &str = "The name of who makes the change.";

fn query_parameters(verb: &str, form: Form) -> Vec<Value> {
    let q = |name, ty, description| query(name, ty, description, form);
    match verb {
        "create" | "update" | "patch" => {
            let mut all = vec![
                q("dryRun", "string", DRY_RUN),
                q("fieldManager", "string", FIELD_MANAGER),
                q("fieldValidation", "string", FIELD_VALIDATION),
            ];
            if verb == "patch" {
                all.push(q("force", "boolean", "Take over fields that others manage; for apply patches only."));
            }
            all
        }
        "list" | "watch" | "deletecollection" => vec![
            q("allowWatchBookmarks", "boolean", "Ask for events of type BOOKMARK."),
            q("continue", "string", "Go on with a list where the one that gave this ended."),
            q("fieldSelector", "string", "Only objects whose fields match."),
            q("labelSelector", "string", "Only objects whose labels match."),
            q("limit", "integer", "At most this many objects."),
            q("resourceVersion", "string", "The version the answer must have reached."),
            q("resourceVersionMatch", "string", "How resourceVersion is meant: Exact or NotOlderThan."),
            q("sendInitialEvents", "boolean", "Begin a watch with what there is."),
            q("timeoutSeconds", "integer", "How long the request may take."),
            q("watch", "boolean", "Go on with changes as they happen."),
        ],
        "delete" => vec![
            q("dryRun", "string", DRY_RUN),
            q("gracePeriodSeconds", "integer", "How long the object may take to end."),
            q("orphanDependents", "boolean", "Deprecated: use propagationPolicy."),
            q("propagationPolicy", "string", "Orphan, Background or Foreground."),
        ],
        _ => Vec::new(),
    }
}

impl Operation<'_> {
    fn render(&self, form: Form) -> Value {
        let mut parameters = query_parameters(self.verb, form);
        let (group, version, kind) = self.gvk;
        let mut operation = json!({
            "description": format!("{} {kind}", self.verb),
            "tags": [self.tag],
            "operationId": self.id,
            "x-kubernetes-action": action(self.verb),
            "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
        });
        match form {
            Form::V2 => self.render_v2(&mut operation, &mut parameters),
            Form::V3 => self.render_v3(&mut operation),
        }
        if !parameters.is_empty() {
            operation["parameters"] = Value::Array(parameters);
        }
        operation
    }

    fn render_v2(&self, operation: &mut Value, parameters: &mut Vec<Value>) {
        let schema = match (self.verb, self.body) {
            ("patch", _) => Some(json!({"type": "object"})),
            (_, Some(body)) => Some(json!({"$ref": format!("#/definitions/{body}")})),
            _ => None,
        };
        if let Some(schema) = schema {
            let required = !self.verb.starts_with("delete");
            parameters.push(json!({"name": "body", "in": "body", "required": required, "schema": schema}));
        }
        let answer = match &self.answer {
            Some(answer) => json!({"$ref": format!("#/definitions/{answer}")}),
            None => json!({"type": "string"}),
        };
        operation["schemes"] = json!(["https"]);
        operation["consumes"] = if self.verb == "patch" { json!(PATCH_TYPES) } else { json!(["*/*"]) };
        operation["produces"] = json!(["application/json", "application/yaml"]);
        operation["responses"] =
            json!({"200": {"description": "OK", "schema": answer}, "401": {"description": "Unauthorized"}});
    }

    fn render_v3(&self, operation: &mut Value) {
        let body = match (self.verb, self.body) {
            ("patch", _) => {
                let content: Map<String, Value> =
                    PATCH_TYPES.iter().map(|ty| ((*ty).to_owned(), json!({"schema": {"type": "object"}}))).collect();
                Some(Value::Object(content))
            }
            (_, Some(body)) => Some(json!({"*/*": {"schema": {"$ref": format!("#/components/schemas/{body}")}}})),
            _ => None,
        };
        if let Some(content) = body {
            operation["requestBody"] = json!({"content": content, "required": !self.verb.starts_with("delete")});
        }
        let answer = match &self.answer {
            Some(answer) => json!({"$ref": format!("#/components/schemas/{answer}")}),
            None => json!({"type": "string"}),
        };
        operation["responses"] = json!({
            "200": {"description": "OK", "content": {"application/json": {"schema": answer}}},
            "401": {"description": "Unauthorized"},
        });
    }
}
