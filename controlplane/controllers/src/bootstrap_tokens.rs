//! Bootstrap tokens: a token whose time is over is deleted.

use bosun_kit::informer::Informer;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, Client};

use crate::objects::until;
use crate::runtime::{Context, Controller, Key, Synced, gone_is_fine};
use crate::watches::BOOTSTRAP_TOKEN_TYPE;

const NAME: &str = "token-cleaner";

/// When the token ends; one that says it unreadably has ended (stock deletes it, too).
fn expires(secret: &Secret) -> Option<Timestamp> {
    if secret.type_.as_deref() != Some(BOOTSTRAP_TOKEN_TYPE) {
        return None;
    }
    let text = secret.data.as_ref()?.get("expiration")?;
    let text = String::from_utf8_lossy(&text.0);
    Some(text.parse().unwrap_or(Timestamp::MIN))
}

pub(crate) fn start(context: &Context) {
    let mut controller = Controller::new(context, NAME);
    let tokens = context.watches.bootstrap_tokens();
    controller.watch_own(&tokens);
    let client = controller.client.clone();
    controller.run(1, move |key| {
        let (tokens, client) = (tokens.clone(), client.clone());
        async move { sync(&tokens, &client, key).await }
    });
}

async fn sync(tokens: &Informer<Secret>, client: &Client, key: Key) -> Synced {
    let Some(token) = tokens.get(key.scope(), &key.name) else { return Ok(None) };
    let Some(at) = expires(&token) else { return Ok(None) };
    let now = Timestamp::now();
    if at > now {
        return Ok(Some(until(at, now)));
    }
    let api: Api<Secret> = Api::namespaced(client.clone(), &key.namespace);
    let same =
        Preconditions { uid: token.metadata.uid.clone(), resource_version: token.metadata.resource_version.clone() };
    gone_is_fine(api.delete(&key.name, &DeleteParams::default().preconditions(same)).await)?;
    tracing::info!(token = key.name, "expired bootstrap token deleted");
    Ok(None)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    #[test]
    fn expirations() {
        let token = |expiration: &str| Secret {
            type_: Some(BOOTSTRAP_TOKEN_TYPE.to_owned()),
            data: Some([("expiration".to_owned(), ByteString(expiration.into()))].into()),
            ..Secret::default()
        };
        assert_eq!(expires(&token("1970-01-01T00:01:00Z")), Some(Timestamp::from_second(60).unwrap()));
        assert_eq!(expires(&token("soon")), Some(Timestamp::MIN));
        assert_eq!(expires(&Secret::default()), None);
    }
}
