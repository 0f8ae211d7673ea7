//! Nobody gives away what they do not have: roles, bindings, and the approval and signing of certificates.

use bosun_api::status::ApiError;
use bosun_authz::{Attributes, Rule};
use serde_json::Value;

use crate::admission::Operation;
use crate::call::Call;
use crate::server::Inner;
use crate::strategy::Part;

const RBAC: &str = "rbac.authorization.k8s.io";

impl Inner {
    /// # Errors
    /// 403 for a grant of what the user does not hold.
    pub(crate) fn check_grants(
        &self,
        call: &Call,
        operation: Operation,
        value: &Value,
        old: Option<&Value>,
    ) -> Result<(), ApiError> {
        if operation == Operation::Delete {
            return Ok(());
        }
        match (call.resource.group, call.resource.plural) {
            (RBAC, "roles" | "clusterroles") => self.check_role(call, value, old),
            (RBAC, "rolebindings" | "clusterrolebindings") => self.check_binding(call, value, old),
            ("certificates.k8s.io", "certificatesigningrequests") => self.check_signing(call, operation, value, old),
            _ => Ok(()),
        }
    }

    /// Whether the user may do something special to an object.
    fn may(&self, call: &Call, verb: &str, group: &str, resource: &str, name: &str) -> bool {
        let request = Attributes {
            user: call.user.username.as_deref().unwrap_or_default(),
            groups: call.user.groups.as_deref().unwrap_or_default(),
            verb,
            group,
            resource,
            name,
            namespace: call.namespace(),
            ..Attributes::default()
        };
        self.policy.decide(&request).is_allowed()
    }

    fn check_role(&self, call: &Call, value: &Value, old: Option<&Value>) -> Result<(), ApiError> {
        let same = |key: &str| old.is_some_and(|old| old[key] == value[key]);
        let name = value["metadata"]["name"].as_str().unwrap_or_default();
        if (same("rules") && same("aggregationRule")) || self.may(call, "escalate", RBAC, call.resource.plural, name) {
            return Ok(());
        }
        let mut rules: Vec<Rule> = serde_json::from_value(value["rules"].clone()).unwrap_or_default();
        if !value["aggregationRule"].is_null() && !same("aggregationRule") {
            // What will be gathered by labels cannot be known now.
            let star = || vec!["*".to_owned()];
            rules.push(Rule { verbs: star(), api_groups: star(), resources: star(), ..Rule::default() });
            rules.push(Rule { verbs: star(), non_resource_urls: star(), ..Rule::default() });
        }
        self.check_held(call, &rules)
    }

    fn check_binding(&self, call: &Call, value: &Value, old: Option<&Value>) -> Result<(), ApiError> {
        let same = |key: &str| old.is_some_and(|old| old[key] == value[key]);
        if same("roleRef") && same("subjects") {
            return Ok(());
        }
        let text = |key: &str| value["roleRef"][key].as_str().unwrap_or_default();
        let (kind, name) = (text("kind"), text("name"));
        let plural = if kind == "Role" { "roles" } else { "clusterroles" };
        if self.may(call, "bind", RBAC, plural, name) {
            return Ok(());
        }
        let rules = self.policy.read(|policy| policy.role_rules(kind, call.namespace(), name).map(<[Rule]>::to_vec));
        match rules {
            Some(rules) => self.check_held(call, &rules),
            None => Err(ApiError::not_found(RBAC, plural, name)),
        }
    }

    fn check_held(&self, call: &Call, rules: &[Rule]) -> Result<(), ApiError> {
        let user = call.user.username.as_deref().unwrap_or_default();
        let groups = call.user.groups.as_deref().unwrap_or_default();
        match self.policy.escalation(user, groups, call.namespace(), rules) {
            Some(why) => Err(call.forbidden(&why)),
            None => Ok(()),
        }
    }

    fn check_signing(
        &self,
        call: &Call,
        operation: Operation,
        value: &Value,
        old: Option<&Value>,
    ) -> Result<(), ApiError> {
        let signer = value["spec"]["signerName"].as_str().unwrap_or_default();
        let verb = match (operation, call.info.subresource.as_str()) {
            (Operation::Update(_), "approval") => "approve",
            (Operation::Update(Part::Status), _)
                if old.is_some_and(|old| old["status"]["certificate"] != value["status"]["certificate"]) =>
            {
                "sign"
            }
            _ => return Ok(()),
        };
        let domain = signer.split_once('/').map_or(String::new(), |(domain, _)| format!("{domain}/*"));
        let allowed = [signer, &domain].iter().any(|name| self.may(call, verb, "certificates.k8s.io", "signers", name));
        match allowed {
            true => Ok(()),
            false => Err(call.forbidden(&format!("user not permitted to {verb} requests with signerName {signer:?}"))),
        }
    }
}
