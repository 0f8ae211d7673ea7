//! `Impersonate-User` and its kin: acting as somebody else, for those who may.

use bosun_api::status::ApiError;
use bosun_authz::Attributes;
use http::HeaderMap;
use k8s_openapi::api::authentication::v1::UserInfo;

use crate::authn::user;
use crate::authorize::in_group;
use crate::request::unescape;
use crate::server::Inner;

const EXTRA: &str = "impersonate-extra-";
const ACCOUNT: &str = "system:serviceaccount:";

impl Inner {
    /// The user that a request is to be taken as.
    ///
    /// # Errors
    /// 403 for who may not act as that user, 400 for headers without a user.
    pub(crate) fn impersonate(&self, caller: UserInfo, headers: &HeaderMap) -> Result<UserInfo, ApiError> {
        let one = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).filter(|v| !v.is_empty());
        let groups: Vec<String> =
            headers.get_all("impersonate-group").iter().filter_map(|v| v.to_str().ok()).map(str::to_owned).collect();
        let extra: Vec<(String, String)> = headers
            .iter()
            .filter_map(|(name, value)| {
                Some((unescape(name.as_str().strip_prefix(EXTRA)?), value.to_str().ok()?.to_owned()))
            })
            .collect();
        let uid = one("impersonate-uid");
        let Some(name) = one("impersonate-user") else {
            return match groups.is_empty() && extra.is_empty() && uid.is_none() {
                true => Ok(caller),
                false => Err(ApiError::bad_request("requested to impersonate without impersonating a user")),
            };
        };
        match name.strip_prefix(ACCOUNT).and_then(|rest| rest.split_once(':')) {
            Some((namespace, account)) => self.may_act_as(&caller, "", "serviceaccounts", namespace, account)?,
            None => self.may_act_as(&caller, "", "users", "", name)?,
        }
        for group in &groups {
            self.may_act_as(&caller, "", "groups", "", group)?;
        }
        if let Some(uid) = uid {
            self.may_act_as(&caller, "authentication.k8s.io", "uids", "", uid)?;
        }
        for (key, value) in &extra {
            self.may_act_as(&caller, "authentication.k8s.io", &format!("userextras/{key}"), "", value)?;
        }
        Ok(assume(name, groups, uid, extra))
    }

    fn may_act_as(
        &self,
        caller: &UserInfo,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<(), ApiError> {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let request = Attributes {
            user: caller.username.as_deref().unwrap_or_default(),
            groups: caller.groups.as_deref().unwrap_or_default(),
            verb: "impersonate",
            group,
            resource,
            subresource,
            namespace,
            name,
            ..Attributes::default()
        };
        let decision = self.policy.decide(&request);
        match decision.is_allowed() && !in_group(caller, "system:unauthenticated") {
            true => Ok(()),
            false => Err(bosun_authz::forbidden(&request, decision.reason())),
        }
    }
}

fn assume(name: &str, mut groups: Vec<String>, uid: Option<&str>, extra: Vec<(String, String)>) -> UserInfo {
    if let Some((namespace, _)) = name.strip_prefix(ACCOUNT).and_then(|rest| rest.split_once(':'))
        && groups.is_empty()
    {
        groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
    }
    let mut assumed = match name {
        "system:anonymous" => UserInfo {
            username: Some(name.to_owned()),
            groups: Some(vec!["system:unauthenticated".to_owned()]),
            ..UserInfo::default()
        },
        name => user(name, groups),
    };
    assumed.uid = uid.map(str::to_owned);
    for (key, value) in extra {
        assumed.extra.get_or_insert_default().entry(key).or_default().push(value);
    }
    assumed
}
