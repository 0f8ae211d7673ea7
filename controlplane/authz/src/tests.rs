//! Decisions as a client meets them.

use bosun_api::selector::parse_field_selector;
use serde_json::{Value, json};

use super::*;

fn stock() -> Authorizer {
    let mut authorizer = Authorizer::default();
    for (resource, object) in bootstrap::objects() {
        authorizer.apply(resource, &object);
    }
    authorizer
}

fn request<'a>(user: &'a str, groups: &'a [String], what: &'a str) -> Attributes<'a> {
    let words: Vec<&str> = what.split(' ').collect();
    let (namespace, rest) = words[1].split_once('|').unwrap_or(("", words[1]));
    let mut parts = rest.split('/');
    let resource = parts.next().unwrap();
    let subresource = parts.next().unwrap_or_default();
    let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
    let name = words.get(2).copied().unwrap_or_default();
    Attributes { user, groups, verb: words[0], group, resource, subresource, namespace, name, ..Attributes::default() }
}

fn groups(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn stock_policy() {
    let authorizer = stock();
    let nobody = groups(&["system:authenticated"]);
    let cases: &[(&str, &[&str], &str, bool)] = &[
        ("admin", &["system:masters"], "delete nodes x", true),
        ("u", &["system:authenticated"], "list default|pods", false),
        ("u", &["system:authenticated"], "create selfsubjectaccessreviews.authorization.k8s.io", true),
        ("system:kube-scheduler", &[], "create default|pods/binding x", true),
        ("system:kube-scheduler", &[], "delete nodes x", false),
        ("system:kube-controller-manager", &[], "watch default|secrets", true),
        ("system:kube-controller-manager", &[], "delete default|pods x", false),
        ("system:kube-proxy", &[], "watch services", true),
        ("system:serviceaccount:kube-system:deployment-controller", &[], "create default|replicasets.apps", true),
        (
            "system:bootstrap:abc",
            &["system:bootstrappers"],
            "create certificatesigningrequests.certificates.k8s.io",
            true,
        ),
        ("system:bootstrap:abc", &["system:bootstrappers"], "list pods", false),
        (
            "system:node:n",
            &["system:nodes"],
            "create certificatesigningrequests.certificates.k8s.io/selfnodeclient",
            true,
        ),
    ];
    for (user, names, what, expected) in cases {
        let names = groups(names);
        let decision = authorizer.authorize(&request(user, &names, what));
        assert_eq!(decision.is_allowed(), *expected, "{user} {what}: {decision:?}");
    }
    let path = |path, groups| Attributes { user: "u", groups, verb: "get", path, ..Attributes::default() };
    assert!(authorizer.authorize(&path("/apis/apps/v1", &nobody)).is_allowed());
    assert!(!authorizer.authorize(&path("/metrics", &nobody)).is_allowed());
}

#[test]
fn denials_are_stock() {
    let authorizer = stock();
    let nobody = groups(&[]);
    let message = |what: &str| authorizer.check(&request("x", &nobody, what)).unwrap_err().message().to_owned();
    assert_eq!(
        message("list default|pods"),
        "pods is forbidden: User \"x\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    assert_eq!(
        message("get default|deployments.apps/scale d"),
        "deployments.apps \"d\" is forbidden: User \"x\" cannot get resource \"deployments/scale\" in API group \"apps\" in \
         the namespace \"default\""
    );
    assert_eq!(
        message("list nodes"),
        "nodes is forbidden: User \"x\" cannot list resource \"nodes\" in API group \"\" at the cluster scope"
    );
    let path = Attributes { user: "x", verb: "get", path: "/foo", ..Attributes::default() };
    assert_eq!(authorizer.check(&path).unwrap_err().message(), "forbidden: User \"x\" cannot get path \"/foo\"");
}

fn bind(authorizer: &mut Authorizer, namespace: &str, role: &str, subject: Value) {
    let (resource, kind) =
        if namespace.is_empty() { ("clusterrolebindings", "ClusterRole") } else { ("rolebindings", "Role") };
    let object = json!({
        "metadata": {"name": format!("b-{role}"), "namespace": namespace},
        "roleRef": {"kind": kind, "name": role}, "subjects": [subject],
    });
    authorizer.apply(resource, &object);
}

#[test]
fn roles_bind_in_their_namespace_and_to_names() {
    let mut authorizer = Authorizer::default();
    authorizer.apply(
        "roles",
        &json!({"metadata": {"name": "r", "namespace": "a"}, "rules": [
            {"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["one"]},
            {"verbs": ["*"], "apiGroups": ["apps"], "resources": ["*/scale"]},
        ]}),
    );
    bind(&mut authorizer, "a", "r", json!({"kind": "ServiceAccount", "name": "bot"}));
    let (user, none) = ("system:serviceaccount:a:bot", groups(&[]));
    let allowed = |authorizer: &Authorizer, what: &str| authorizer.authorize(&request(user, &none, what)).is_allowed();
    assert!(allowed(&authorizer, "get a|secrets one"));
    assert!(!allowed(&authorizer, "get a|secrets two"));
    assert!(!allowed(&authorizer, "get b|secrets one"));
    assert!(allowed(&authorizer, "patch a|deployments.apps/scale x"));
    assert!(!allowed(&authorizer, "patch a|deployments.apps x"));
    let review = authorizer.review(user, &none, "a");
    assert_eq!(review.resource_rules.len(), 2);
    authorizer.remove("roles", "a", "r");
    assert_eq!(
        authorizer.authorize(&request(user, &none, "get a|secrets one")),
        Decision::NoOpinion("RBAC: role.rbac.authorization.k8s.io \"r\" not found".to_owned())
    );
    authorizer.remove("rolebindings", "a", "b-r");
    assert_eq!(authorizer.authorize(&request(user, &none, "get a|secrets one")), Decision::NoOpinion(String::new()));
}

#[test]
fn aggregates_take_in_their_parts() {
    let mut authorizer = stock();
    bind(&mut authorizer, "", "view", json!({"kind": "User", "name": "v"}));
    bind(&mut authorizer, "", "admin", json!({"kind": "User", "name": "a"}));
    let none = groups(&[]);
    assert!(authorizer.authorize(&request("v", &none, "list x|pods")).is_allowed());
    assert!(!authorizer.authorize(&request("v", &none, "list x|secrets")).is_allowed());
    assert!(authorizer.authorize(&request("a", &none, "list x|pods")).is_allowed());
    assert!(!authorizer.authorize(&request("v", &none, "list x|widgets.example.com")).is_allowed());
    authorizer.apply(
        "clusterroles",
        &json!({
            "metadata": {"name": "w", "labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}},
            "rules": [{"verbs": ["list"], "apiGroups": ["example.com"], "resources": ["widgets"]}],
        }),
    );
    assert!(authorizer.authorize(&request("v", &none, "list x|widgets.example.com")).is_allowed());
    assert_eq!(authorizer.stale_aggregates().len(), 3);
}

#[test]
fn nobody_gives_what_they_do_not_hold() {
    let mut authorizer = stock();
    bind(&mut authorizer, "", "view", json!({"kind": "User", "name": "v"}));
    let rule = |verb: &str, resource: &str| Rule {
        verbs: groups(&[verb]),
        api_groups: groups(&[""]),
        resources: groups(&[resource]),
        ..Rule::default()
    };
    assert_eq!(authorizer.escalation("v", &[], "x", &[rule("list", "pods")]), None);
    assert_eq!(
        authorizer.escalation("v", &[], "x", &[rule("list", "secrets")]).unwrap(),
        "user \"v\" (groups=[]) is attempting to grant RBAC permissions not currently held:\n\
         {APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"list\"]}"
    );
}

#[test]
fn nodes_read_what_their_pods_need() {
    let mut authorizer = stock();
    let nodes = groups(&["system:nodes", "system:authenticated"]);
    let decide = |authorizer: &Authorizer, what: &str| authorizer.authorize(&request("system:node:n", &nodes, what));
    let pod = json!({
        "metadata": {"name": "p", "namespace": "a"},
        "spec": {"nodeName": "n", "serviceAccountName": "s",
            "containers": [{"envFrom": [{"secretRef": {"name": "env"}}]}],
            "volumes": [{"name": "v", "projected": {"sources": [{"configMap": {"name": "c"}}]}},
                {"name": "w", "persistentVolumeClaim": {"claimName": "claim"}}]},
    });
    assert_eq!(
        decide(&authorizer, "get a|secrets env"),
        Decision::NoOpinion("no relationship found between node 'n' and this object".to_owned())
    );
    authorizer.apply("pods", &pod);
    let claim = json!({"metadata": {"name": "pv"}, "spec": {"claimRef": {"namespace": "a", "name": "claim"}}});
    authorizer.apply("persistentvolumes", &claim);
    for what in [
        "get a|secrets env",
        "watch a|configmaps c",
        "create a|serviceaccounts/token s",
        "get a|persistentvolumeclaims claim",
        "get persistentvolumes pv",
        "get a|pods p",
        "update a|pods/status p",
        "update kube-node-lease|leases.coordination.k8s.io n",
        "patch nodes/status n",
        "list services",
        "create a|events",
    ] {
        assert!(decide(&authorizer, what).is_allowed(), "{what}: {:?}", decide(&authorizer, what));
    }
    for what in [
        "get a|secrets other",
        "list a|secrets",
        "get b|secrets env",
        "delete a|secrets env",
        "create a|serviceaccounts/token t",
        "update kube-node-lease|leases.coordination.k8s.io m",
        "patch nodes/status m",
        "list pods",
        "get a|pods q",
    ] {
        assert!(!decide(&authorizer, what).is_allowed(), "{what}");
    }
    let fields = parse_field_selector("spec.nodeName=n").unwrap();
    let mine = Attributes { fields: Some(&fields), ..request("system:node:n", &nodes, "list pods") };
    assert!(authorizer.authorize(&mine).is_allowed());
    authorizer.remove("pods", "a", "p");
    assert!(!decide(&authorizer, "get a|secrets env").is_allowed());
}
