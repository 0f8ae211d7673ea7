//! EndpointSlices of Services with a selector.

mod plan;

use bosun_kit::events::{EventType, Recorder};
use bosun_kit::informer::{Delta, Informer};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};

use crate::objects::reference;
use crate::runtime::{Context, Controller, Expectations, Key, SyncError, Synced, code, gone_is_fine};
use crate::service_pods::{route, selector, selects};

const NAME: &str = "endpointslice-controller";
/// Label that names the slice's Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label that names who keeps the slice.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Us.
const MANAGER: &str = "endpointslice-controller.k8s.io";

#[derive(Clone)]
struct Slices {
    client: Client,
    recorder: Recorder,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    expectations: Expectations,
}

pub(crate) fn start(context: &Context) {
    let mut controller = Controller::new(context, NAME);
    let this = Slices {
        client: controller.client.clone(),
        recorder: controller.recorder("endpoint-slice-controller"),
        services: context.watches.services(),
        slices: context.watches.endpoint_slices(),
        pods: context.watches.pods(),
        nodes: context.watches.nodes(),
        expectations: Expectations::default(),
    };
    controller.watch_own(&this.services);
    controller.watch(&this.pods, route(this.services.clone()));
    controller.needs(&this.nodes);
    let expectations = this.expectations.clone();
    controller.watch(&this.slices, move |delta, queue| {
        let slice = delta.object();
        let labels = slice.labels();
        if labels.get(MANAGED_BY).is_none_or(|by| by != MANAGER) {
            return;
        }
        let Some(service) = labels.get(SERVICE_NAME) else { return };
        let key = Key::new(slice.metadata.namespace.as_deref().unwrap_or_default(), service);
        let waited = !expectations.satisfied(&key);
        expectations.observe(&key, delta);
        // Our own writes need no answer; what was deleted by others, or kept us waiting, does.
        if waited || matches!(delta, Delta::Deleted(_)) {
            queue.add(key);
        }
    });
    controller.run(5, move |key| {
        let this = this.clone();
        async move { this.sync(key).await }
    });
}

impl Slices {
    async fn sync(&self, key: Key) -> Synced {
        let Some(service) = self.services.get(key.scope(), &key.name) else {
            // Its slices have it as their owner and go with it.
            self.expectations.forget(&key);
            return Ok(None);
        };
        let Some(wanted) = selector(&service) else { return Ok(None) };
        if service.metadata.deletion_timestamp.is_some() || !self.expectations.satisfied(&key) {
            return Ok(None);
        }
        let empty = crate::objects::Map::new();
        let pods = self.pods.filter(|p| {
            p.metadata.namespace == service.metadata.namespace
                && selects(wanted, p.metadata.labels.as_ref().unwrap_or(&empty))
        });
        let existing = self.slices.filter(|s| {
            s.metadata.namespace == service.metadata.namespace
                && s.metadata.deletion_timestamp.is_none()
                && s.labels().get(SERVICE_NAME) == Some(&key.name)
                && s.labels().get(MANAGED_BY).is_some_and(|by| by == MANAGER)
        });
        let zone = |node: &str| {
            let node = self.nodes.get(None, node)?;
            node.labels().get("topology.kubernetes.io/zone").cloned()
        };
        let plan = plan::plan(&service, &pods, &existing, zone);
        let result = self.apply(&key, plan).await;
        if let Err(SyncError::Api(error)) = &result
            && code(error) != 409
            && !crate::pods::is_namespace_ending(error)
        {
            let message = format!("Error updating Endpoint Slices for Service {key}: {}", crate::pods::text(error));
            self.recorder.event(&reference(&*service), EventType::Warning, "FailedToUpdateEndpointSlices", message);
        }
        result.map(|()| None)
    }

    async fn apply(&self, key: &Key, plan: plan::Plan) -> Result<(), SyncError> {
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &key.namespace);
        for slice in plan.create {
            self.expectations.expect_creation(key, &slice.name_any());
            if let Err(error) = api.create(&PostParams::default(), &slice).await {
                self.expectations.give_up(key, &slice.name_any());
                return Err(error.into());
            }
        }
        for slice in plan.update {
            api.replace(&slice.name_any(), &PostParams::default(), &slice).await?;
        }
        for slice in plan.delete {
            let name = slice.name_any();
            self.expectations.expect_deletion(key, &name);
            let same = Preconditions { uid: slice.metadata.uid.clone(), resource_version: None };
            let deleted = api.delete(&name, &DeleteParams::default().preconditions(same)).await;
            if deleted.is_err() {
                self.expectations.give_up(key, &name);
            }
            gone_is_fine(deleted)?;
        }
        Ok(())
    }
}
