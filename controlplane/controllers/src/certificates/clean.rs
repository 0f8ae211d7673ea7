//! Old requests are cleared away: decided ones after an hour, undecided ones after a day.

use bosun_kit::informer::Informer;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client};

use super::{has_certificate, is_decided};
use crate::objects::{created, plus_seconds, until};
use crate::runtime::{Context, Controller, Key, Synced, gone_is_fine};

const NAME: &str = "certificate-controller";
const HOUR: i64 = 3600;

/// When the request is to be deleted.
fn expires(csr: &CertificateSigningRequest) -> Timestamp {
    let conditions = csr.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let decided = conditions.iter().filter_map(|c| c.last_update_time.as_ref()).map(|t| t.0).max();
    let since = decided.unwrap_or_else(|| created(&csr.metadata));
    let approved_but_unsigned = is_decided(csr) && !has_certificate(csr) && !super::has_condition(csr, "Denied");
    let hours = if is_decided(csr) && !approved_but_unsigned { 1 } else { 24 };
    plus_seconds(since, hours * HOUR)
}

pub(crate) fn start(context: &Context) {
    let mut controller = Controller::new(context, NAME);
    let requests = context.watches.signing_requests();
    controller.watch_own(&requests);
    let client = controller.client.clone();
    controller.run(1, move |key| {
        let (requests, client) = (requests.clone(), client.clone());
        async move { sync(&requests, &client, key).await }
    });
}

async fn sync(requests: &Informer<CertificateSigningRequest>, client: &Client, key: Key) -> Synced {
    let Some(csr) = requests.get(None, &key.name) else { return Ok(None) };
    let now = Timestamp::now();
    let at = expires(&csr);
    if at > now {
        return Ok(Some(until(at, now)));
    }
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    gone_is_fine(api.delete(&key.name, &Default::default()).await)?;
    Ok(None)
}
