//! Keeps the zone by watching Services and EndpointSlices; the objects themselves are not kept.

use crate::zone::Zone;
use futures::{StreamExt, pin_mut};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError, RwLock, RwLockWriteGuard},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Objects of one listing; more take more memory while the first list is read.
const PAGE: u32 = 200;

/// What the zone does with a kind of object.
trait Kind: Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static {
    fn apply(&self, zone: &mut Zone);
    fn remove(&self, zone: &mut Zone);
    fn retain(zone: &mut Zone, seen: &BTreeSet<(String, String)>);
}

impl Kind for Service {
    fn apply(&self, zone: &mut Zone) {
        zone.apply_service(self);
    }
    fn remove(&self, zone: &mut Zone) {
        zone.remove_service(&self.namespace().unwrap_or_default(), &self.name_any());
    }
    fn retain(zone: &mut Zone, seen: &BTreeSet<(String, String)>) {
        zone.retain_services(seen);
    }
}

impl Kind for EndpointSlice {
    fn apply(&self, zone: &mut Zone) {
        zone.apply_slice(self);
    }
    fn remove(&self, zone: &mut Zone) {
        zone.remove_slice(self);
    }
    fn retain(zone: &mut Zone, seen: &BTreeSet<(String, String)>) {
        zone.retain_slices(seen);
    }
}

/// Starts watching; what is returned becomes true when both kinds were listed once.
pub fn start(client: Client, zone: Arc<RwLock<Zone>>, cancel: &CancellationToken) -> watch::Receiver<bool> {
    let (services, services_listed) = watch::channel(false);
    let (slices, slices_listed) = watch::channel(false);
    tokio::spawn(cancel.clone().run_until_cancelled_owned(follow::<Service>(client.clone(), zone.clone(), services)));
    tokio::spawn(cancel.clone().run_until_cancelled_owned(follow::<EndpointSlice>(client, zone, slices)));
    let (both, synced) = watch::channel(false);
    tokio::spawn(async move {
        for mut listed in [services_listed, slices_listed] {
            if listed.wait_for(|listed| *listed).await.is_err() {
                return;
            }
        }
        tracing::info!("services and endpoints are listed");
        both.send_replace(true);
    });
    synced
}

async fn follow<K: Kind>(client: Client, zone: Arc<RwLock<Zone>>, listed: watch::Sender<bool>) {
    let config = watcher::Config::default().page_size(PAGE);
    let events = watcher::watcher(Api::<K>::all(client), config).default_backoff();
    pin_mut!(events);
    let mut seen = BTreeSet::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => take(event, &zone, &mut seen, &listed),
            Err(error) => tracing::warn!(kind = %K::kind(&()), %error, "watch failed; trying again"),
        }
    }
}

fn write(zone: &RwLock<Zone>) -> RwLockWriteGuard<'_, Zone> {
    zone.write().unwrap_or_else(PoisonError::into_inner)
}

/// Objects are taken over as they come; what a new listing lacks goes when it is complete.
fn take<K: Kind>(
    event: Event<K>,
    zone: &RwLock<Zone>,
    seen: &mut BTreeSet<(String, String)>,
    listed: &watch::Sender<bool>,
) {
    match event {
        Event::Init => seen.clear(),
        Event::InitApply(object) => {
            seen.insert((object.namespace().unwrap_or_default(), object.name_any()));
            object.apply(&mut write(zone));
        }
        Event::InitDone => {
            K::retain(&mut write(zone), seen);
            *seen = BTreeSet::new();
            listed.send_replace(true);
        }
        Event::Apply(object) => object.apply(&mut write(zone)),
        Event::Delete(object) => object.remove(&mut write(zone)),
    }
}
