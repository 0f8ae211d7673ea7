//! Informers: one watch of a kind, kept as a local copy and told on to everyone in the process who cares.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, PoisonError, RwLock};

use futures::StreamExt;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// What happened to an object.
#[derive(Debug)]
pub enum Delta<K> {
    /// It is there, new or changed (or seen again after the watch was re-established).
    Applied(Arc<K>),
    /// It is gone; this is its last known state.
    Deleted(Arc<K>),
}

impl<K> Clone for Delta<K> {
    fn clone(&self) -> Self {
        match self {
            Self::Applied(object) => Self::Applied(object.clone()),
            Self::Deleted(object) => Self::Deleted(object.clone()),
        }
    }
}

impl<K> Delta<K> {
    /// The object, whatever happened to it.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Self::Applied(object) | Self::Deleted(object) => object,
        }
    }
}

type Objects<K> = HashMap<ObjectRef<K>, Arc<K>>;

struct Shared<K: Resource<DynamicType = ()>> {
    state: RwLock<State<K>>,
    synced: watch::Sender<bool>,
}

struct State<K: Resource<DynamicType = ()>> {
    objects: Objects<K>,
    subscribers: Vec<mpsc::UnboundedSender<Delta<K>>>,
}

/// A local copy of all objects that one watch sees; cheap to clone, every clone shares the watch.
///
/// Subscribers get every change, in order, each in a queue of its own, so a slow one loses nothing. After the watch was
/// lost and listed anew, objects that are unchanged (same resourceVersion) are not told again, and those that vanished
/// meanwhile are told as deleted.
pub struct Informer<K: Resource<DynamicType = ()>> {
    shared: Arc<Shared<K>>,
}

impl<K: Resource<DynamicType = ()>> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<K> Informer<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    /// Starts watching; needs a tokio runtime. `managedFields` are dropped from what is kept.
    pub fn start(api: Api<K>, config: watcher::Config, cancel: CancellationToken) -> Self {
        Self::start_trimmed(api, config, cancel, |_| {})
    }

    /// The same, with `trim` taking out of each object what nobody will ask for, to save memory.
    pub fn start_trimmed(
        api: Api<K>,
        config: watcher::Config,
        cancel: CancellationToken,
        mut trim: impl FnMut(&mut K) + Send + 'static,
    ) -> Self {
        let state = State { objects: HashMap::new(), subscribers: Vec::new() };
        let shared = Arc::new(Shared { state: RwLock::new(state), synced: watch::Sender::new(false) });
        let informer = Self { shared: shared.clone() };
        tokio::spawn(async move {
            let stream = watcher::watcher(api, config).default_backoff().take_until(cancel.cancelled_owned());
            let mut stream = std::pin::pin!(stream);
            let mut listed: Option<Objects<K>> = None;
            while let Some(event) = stream.next().await {
                match event {
                    Ok(event) => {
                        let event = event.modify(|object| {
                            object.managed_fields_mut().clear();
                            trim(object);
                        });
                        shared.take(event, &mut listed);
                    }
                    Err(error) => {
                        tracing::debug!(kind = %K::kind(&()), %error, "watch interrupted; it is taken up again");
                    }
                }
            }
        });
        informer
    }
}

impl<K: Resource<DynamicType = ()> + Clone> Informer<K> {
    /// Waits until the first list is complete.
    pub async fn synced(&self) {
        // The sender lives in `shared`, which we hold: it cannot be closed.
        let _ = self.shared.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Whether the first list is complete.
    pub fn is_synced(&self) -> bool {
        *self.shared.synced.borrow()
    }

    /// All changes from now on, after one [`Delta::Applied`] for each object already known.
    pub fn subscribe(&self) -> mpsc::UnboundedReceiver<Delta<K>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.shared.state.write().unwrap_or_else(PoisonError::into_inner);
        for object in state.objects.values() {
            // The receiver is in our hands: sending cannot fail.
            let _ = sender.send(Delta::Applied(object.clone()));
        }
        state.subscribers.push(sender);
        receiver
    }

    /// The object of that name, if it is there; `namespace` is none for cluster-scoped kinds.
    pub fn get(&self, namespace: Option<&str>, name: &str) -> Option<Arc<K>> {
        let mut key = ObjectRef::<K>::new(name);
        key.namespace = namespace.map(str::to_owned);
        self.read(|objects| objects.get(&key).cloned())
    }

    /// All objects.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.read(|objects| objects.values().cloned().collect())
    }

    /// The objects that `wanted` holds for.
    pub fn filter(&self, wanted: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        self.read(|objects| objects.values().filter(|object| wanted(object)).cloned().collect())
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.read(HashMap::len)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn read<R>(&self, read: impl FnOnce(&Objects<K>) -> R) -> R {
        read(&self.shared.state.read().unwrap_or_else(PoisonError::into_inner).objects)
    }
}

impl<K: Resource<DynamicType = ()> + Clone> Shared<K>
where
    ObjectRef<K>: Eq + Hash,
{
    /// Takes one event of the watch in: `listed` gathers a list that is under way.
    fn take(&self, event: Event<K>, listed: &mut Option<Objects<K>>) {
        match event {
            Event::Init => *listed = Some(HashMap::new()),
            Event::InitApply(object) => {
                listed.get_or_insert_default().insert(ObjectRef::from_obj(&object), Arc::new(object));
            }
            Event::InitDone => {
                self.replace(listed.take().unwrap_or_default());
                self.synced.send_replace(true);
            }
            Event::Apply(object) => {
                let object = Arc::new(object);
                let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
                state.objects.insert(ObjectRef::from_obj(&*object), object.clone());
                state.tell(Delta::Applied(object));
            }
            Event::Delete(object) => {
                let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
                state.objects.remove(&ObjectRef::from_obj(&object));
                state.tell(Delta::Deleted(Arc::new(object)));
            }
        }
    }

    fn replace(&self, new: Objects<K>) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::take(&mut state.objects);
        for (key, object) in &old {
            if !new.contains_key(key) {
                state.tell(Delta::Deleted(object.clone()));
            }
        }
        for (key, object) in &new {
            let unchanged = old.get(key).is_some_and(|before| before.resource_version() == object.resource_version());
            if !unchanged {
                state.tell(Delta::Applied(object.clone()));
            }
        }
        state.objects = new;
    }
}

impl<K: Resource<DynamicType = ()>> State<K> {
    fn tell(&mut self, delta: Delta<K>) {
        self.subscribers.retain(|subscriber| subscriber.send(delta.clone()).is_ok());
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    fn config_map(name: &str, version: &str) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.name = Some(name.to_owned());
        object.metadata.namespace = Some("default".to_owned());
        object.metadata.resource_version = Some(version.to_owned());
        object
    }

    fn informer() -> Informer<ConfigMap> {
        let state = State { objects: HashMap::new(), subscribers: Vec::new() };
        Informer { shared: Arc::new(Shared { state: RwLock::new(state), synced: watch::Sender::new(false) }) }
    }

    fn told(receiver: &mut mpsc::UnboundedReceiver<Delta<ConfigMap>>) -> Vec<String> {
        let mut lines = Vec::new();
        while let Ok(delta) = receiver.try_recv() {
            lines.push(match delta {
                Delta::Applied(object) => format!("+{}", object.name_any()),
                Delta::Deleted(object) => format!("-{}", object.name_any()),
            });
        }
        lines.sort();
        lines
    }

    #[tokio::test]
    async fn a_relist_tells_only_what_changed() {
        let informer = informer();
        let mut changes = informer.subscribe();
        let mut listed = None;
        let list = |objects: Vec<ConfigMap>, listed: &mut Option<_>| {
            informer.shared.take(Event::Init, listed);
            for object in objects {
                informer.shared.take(Event::InitApply(object), listed);
            }
            informer.shared.take(Event::InitDone, listed);
        };
        list(vec![config_map("a", "1"), config_map("b", "2"), config_map("c", "3")], &mut listed);
        informer.synced().await;
        assert_eq!(told(&mut changes), ["+a", "+b", "+c"]);
        list(vec![config_map("a", "1"), config_map("b", "5")], &mut listed);
        assert_eq!(told(&mut changes), ["+b", "-c"]);
        assert!(informer.get(Some("default"), "a").is_some());
        assert_eq!(informer.len(), 2);
        assert_eq!(told(&mut informer.subscribe()), ["+a", "+b"], "a late subscriber hears of what is there");
    }
}
