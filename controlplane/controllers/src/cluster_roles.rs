//! Aggregated cluster roles: their rules are those of the roles that they select.

use std::sync::Arc;

use bosun_api::selector;
use bosun_kit::informer::Informer;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};

use crate::runtime::{Context, Controller, Key, Synced};

const NAME: &str = "clusterrole-aggregation-controller";

/// The rules of an aggregated role: those of all that it selects, by name, each once.
fn plan(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Option<Vec<PolicyRule>> {
    let selectors = role.aggregation_rule.as_ref()?.cluster_role_selectors.as_deref().unwrap_or_default();
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in selectors {
        let mut selected: Vec<&Arc<ClusterRole>> = all
            .iter()
            .filter(|r| r.metadata.name != role.metadata.name && selector::matches(selector, r.labels()))
            .collect();
        selected.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        for rule in selected.into_iter().flat_map(|r| r.rules.iter().flatten()) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    (role.rules.as_deref().unwrap_or_default() != rules).then_some(rules)
}

pub(crate) fn start(context: &Context) {
    let mut controller = Controller::new(context, NAME);
    let roles = context.watches.cluster_roles();
    let all = roles.clone();
    controller.watch(&roles, move |_, queue| {
        let aggregated = all.filter(|r| r.aggregation_rule.is_some());
        aggregated.iter().for_each(|r| queue.add(Key::of(&r.metadata)));
    });
    let client = controller.client.clone();
    controller.run(1, move |key| {
        let (roles, client) = (roles.clone(), client.clone());
        async move { sync(&roles, &client, key).await }
    });
}

async fn sync(roles: &Informer<ClusterRole>, client: &Client, key: Key) -> Synced {
    let Some(role) = roles.get(None, &key.name) else { return Ok(None) };
    if let Some(rules) = plan(&role, &roles.list()) {
        let mut written = (*role).clone();
        written.rules = Some(rules);
        Api::<ClusterRole>::all(client.clone()).replace(&key.name, &PostParams::default(), &written).await?;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_are_gathered_once_and_in_order() {
        let role = |value| -> Arc<ClusterRole> { Arc::new(serde_json::from_value(value).unwrap()) };
        let part = |name: &str, verb: &str| {
            role(json!({"metadata": {"name": name, "labels": {"to": "all"}}, "rules": [{"verbs": [verb]}]}))
        };
        let whole = role(json!({"metadata": {"name": "all"},
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "all"}}]}}));
        let roles = [part("b", "get"), part("a", "list"), part("c", "get"), whole.clone()];
        let rules = plan(&whole, &roles).unwrap();
        let verbs: Vec<_> = rules.iter().map(|r| r.verbs[0].as_str()).collect();
        assert_eq!(verbs, ["list", "get"]);
        let mut done = (*whole).clone();
        done.rules = Some(rules);
        assert!(plan(&done, &roles).is_none());
    }
}
