//! Follows the API server and turns what it says into changes of the model.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Debug;

use futures::StreamExt as _;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::Sender;
use tokio_util::sync::CancellationToken;

use crate::convert;
use crate::model::{Change, Name};

/// Services with the first label are another proxy's, those with the second have no addresses.
const SELECTOR: &str = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";

/// How many watches say [`Change::Synced`] before the model is complete.
pub(crate) const WATCHES: usize = 3;

/// Starts the watches. Changes come until `cancel`.
pub(crate) fn start(client: &Client, node: &str, changes: &Sender<Change>, cancel: &CancellationToken) {
    let selected = watcher::Config::default().labels(SELECTOR);
    let services = follow(
        Api::<Service>::all(client.clone()),
        selected.clone(),
        Need::Required,
        changes.clone(),
        |name, object| Some(Change::Service(name, object.as_ref().and_then(convert::service))),
    );
    let here = node.to_owned();
    let slices = follow(
        Api::<EndpointSlice>::all(client.clone()),
        selected,
        Need::Required,
        changes.clone(),
        move |name, object| Some(Change::Slice(name, object.and_then(|object| convert::slice(&object, &here)))),
    );
    let own = watcher::Config::default().fields(&format!("metadata.name={node}"));
    let node = follow(Api::<Node>::all(client.clone()), own, Need::Required, changes.clone(), |_, object| {
        // Without its object the node keeps the addresses it had.
        object.map(|object| Change::Node(convert::node(&object)))
    });
    let mut cidrs = BTreeMap::new();
    let all = watcher::Config::default();
    let served = Api::<ServiceCIDR>::all(client.clone());
    let ranges = follow(served, all, Need::Optional, changes.clone(), move |name, object| {
        cidrs.remove(&name);
        cidrs.extend(object.map(|object| (name, service_cidrs(&object))));
        Some(Change::ServiceCidrs(cidrs.values().flatten().copied().collect()))
    });
    for watch in [boxed(services), boxed(slices), boxed(node), boxed(ranges)] {
        let cancel = cancel.clone();
        tokio::spawn(async move { cancel.run_until_cancelled_owned(watch).await });
    }
}

type Watch = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

fn boxed(watch: impl Future<Output = ()> + Send + 'static) -> Watch {
    Box::pin(watch)
}

fn service_cidrs(object: &ServiceCIDR) -> Vec<IpNet> {
    let cidrs = object.spec.as_ref().and_then(|spec| spec.cidrs.as_deref()).unwrap_or_default();
    cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect()
}

/// Whether the API server must serve a kind for the model to be complete.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Required,
    Optional,
}

/// Follows one kind for ever, or until it turns out that an optional one is not served.
async fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    need: Need,
    changes: Sender<Change>,
    convert: impl FnMut(Name, Option<K>) -> Option<Change>,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut follower =
        Follower { changes, convert, known: HashSet::new(), listed: None, synced: need == Need::Optional };
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => follower.take(event).await,
            Err(watcher::Error::InitialListFailed(kube::Error::Api(status)))
                if need == Need::Optional && [403, 404].contains(&status.code) =>
            {
                tracing::debug!(kind = %K::kind(&()), code = status.code, "not served; done without");
                return;
            }
            Err(error) => tracing::warn!(kind = %K::kind(&()), %error, "watch interrupted; it is taken up again"),
        }
    }
}

/// Turns a watch's events into changes.
struct Follower<F> {
    changes: Sender<Change>,
    convert: F,
    known: HashSet<Name>,
    /// What a list that is under way has told.
    listed: Option<HashSet<Name>>,
    /// Whether the end of the first list was told, or need not be.
    synced: bool,
}

impl<F> Follower<F> {
    async fn take<K>(&mut self, event: Event<K>)
    where
        F: FnMut(Name, Option<K>) -> Option<Change>,
        K: Resource<DynamicType = ()>,
    {
        match event {
            Event::Init => self.listed = Some(HashSet::new()),
            Event::InitApply(object) => {
                let name = convert::name(object.meta());
                self.listed.get_or_insert_default().insert(name.clone());
                self.tell(name, Some(object)).await;
            }
            Event::InitDone => {
                let listed = self.listed.take().unwrap_or_default();
                let known = std::mem::replace(&mut self.known, listed);
                for name in known {
                    if !self.known.contains(&name) {
                        self.tell(name, None).await;
                    }
                }
                if !std::mem::replace(&mut self.synced, true) {
                    self.send(Change::Synced).await;
                }
            }
            Event::Apply(object) => {
                let name = convert::name(object.meta());
                self.known.insert(name.clone());
                self.tell(name, Some(object)).await;
            }
            Event::Delete(object) => {
                let name = convert::name(object.meta());
                self.known.remove(&name);
                self.tell(name, None).await;
            }
        }
    }

    async fn tell<K>(&mut self, name: Name, object: Option<K>)
    where
        F: FnMut(Name, Option<K>) -> Option<Change>,
    {
        if let Some(change) = (self.convert)(name, object) {
            self.send(change).await;
        }
    }

    async fn send(&self, change: Change) {
        // Nobody listens any more only when the proxy stops, and the watches with it.
        let _ = self.changes.send(change).await;
    }
}
