//! The kinds that the API server serves, from discovery, for the controllers that act on all of them.

use kube::Client;
use kube::core::{ApiResource, GroupVersion};

use crate::runtime::SyncError;

/// A kind with what may be done to it.
#[derive(Clone, Debug)]
pub(crate) struct Kind {
    pub(crate) resource: ApiResource,
    pub(crate) namespaced: bool,
    pub(crate) verbs: Vec<String>,
}

impl Kind {
    pub(crate) fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }
}

/// Every kind in its group's preferred version, without subresources.
pub(crate) async fn discover(client: &Client) -> Result<Vec<Kind>, SyncError> {
    let mut kinds = Vec::new();
    let mut add = |version: &str, list: Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResource>| {
        let Ok(version) = version.parse::<GroupVersion>() else { return };
        for found in list.into_iter().filter(|r| !r.name.contains('/')) {
            let group = found.group.clone().unwrap_or_else(|| version.group.clone());
            let number = found.version.clone().unwrap_or_else(|| version.version.clone());
            let api_version = if group.is_empty() { number.clone() } else { format!("{group}/{number}") };
            kinds.push(Kind {
                resource: ApiResource { group, version: number, api_version, kind: found.kind, plural: found.name },
                namespaced: found.namespaced,
                verbs: found.verbs,
            });
        }
    };
    add("v1", client.list_core_api_resources("v1").await?.resources);
    for group in client.list_api_groups().await?.groups {
        let preferred = group.preferred_version.or_else(|| group.versions.first().cloned());
        let Some(version) = preferred else { continue };
        let list = client.list_api_group_resources(&version.group_version).await?;
        add(&version.group_version, list.resources);
    }
    Ok(kinds)
}
