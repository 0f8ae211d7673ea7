//! Events about objects, as `kubectl describe` shows them: written in the background, repeats counted instead of written
//! again, and limited per object so that a loop cannot flood the API server.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc;

use crate::rate::Limit;

/// How long an event is remembered for counting its repeats.
const MEMORY: Duration = Duration::from_secs(600);
/// How many events one object may have at once, and how long until one more is granted (client-go's spam filter).
const BURST: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(300);
/// How many events may wait to be written; more are dropped, as stock drops them.
const WAITING: usize = 1000;
const DEADLINE: Duration = Duration::from_secs(10);

/// Whether an event is as expected or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// All is well.
    Normal,
    /// Something to look at.
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Records events; cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    sender: mpsc::Sender<Record>,
}

struct Record {
    about: ObjectReference,
    event_type: EventType,
    reason: String,
    message: String,
    at: Timestamp,
}

impl Recorder {
    /// Events come from `component` (on `host`, if it runs on a node). Needs a tokio runtime.
    pub fn new(client: Client, component: &str, host: Option<&str>) -> Self {
        Self::limited(client, component, host, Limit::none())
    }

    /// The same, writing no more than `limit` lets through.
    pub fn limited(client: Client, component: &str, host: Option<&str>, limit: Limit) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        let source = EventSource { component: Some(component.to_owned()), host: host.map(str::to_owned) };
        tokio::spawn(write_all(client, source, receiver, limit));
        Self { sender }
    }

    /// A recorder that writes to the log alone, for a component without an API server.
    pub fn to_log() -> Self {
        let (sender, mut receiver) = mpsc::channel::<Record>(WAITING);
        tokio::spawn(async move {
            while let Some(record) = receiver.recv().await {
                let about = record.about.name.as_deref().unwrap_or_default();
                tracing::info!(object = about, reason = record.reason, "{}", record.message);
            }
        });
        Self { sender }
    }

    /// Records that something happened to `about`. Returns at once; when too many wait already, the event is dropped.
    pub fn event(
        &self,
        about: &ObjectReference,
        event_type: EventType,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) {
        let record = Record {
            about: about.clone(),
            event_type,
            reason: reason.into(),
            message: message.into(),
            at: Timestamp::now(),
        };
        tracing::debug!(
            kind = record.about.kind,
            namespace = record.about.namespace,
            name = record.about.name,
            reason = record.reason,
            message = record.message,
            "event"
        );
        if self.sender.try_send(record).is_err() {
            tracing::debug!("event dropped: too many wait to be written");
        }
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    uid: String,
    namespace: String,
    name: String,
    field: String,
    event_type: EventType,
    reason: String,
    message: String,
}

struct Written {
    name: String,
    count: i32,
    at: Instant,
}

struct Allowance {
    tokens: f64,
    at: Instant,
}

/// What is remembered to count repeats and to limit floods.
#[derive(Default)]
struct Correlator {
    written: HashMap<Key, Written>,
    allowances: HashMap<String, Allowance>,
}

/// What to do with one event.
#[derive(Debug, PartialEq)]
enum Action {
    Create { name: String },
    Count { name: String, count: i32 },
    Drop,
}

impl Correlator {
    fn plan(&mut self, key: &Key, at: Timestamp, now: Instant) -> Action {
        self.written.retain(|_, written| now.duration_since(written.at) < MEMORY);
        self.allowances.retain(|_, allowance| now.duration_since(allowance.at) < MEMORY);
        if !self.allow(&key.uid, now) {
            return Action::Drop;
        }
        if let Some(written) = self.written.get_mut(key) {
            written.count += 1;
            written.at = now;
            return Action::Count { name: written.name.clone(), count: written.count };
        }
        let name = format!("{}.{:x}", key.name, at.as_nanosecond());
        self.written.insert(key.clone(), Written { name: name.clone(), count: 1, at: now });
        Action::Create { name }
    }

    fn allow(&mut self, uid: &str, now: Instant) -> bool {
        let fresh = Allowance { tokens: BURST, at: now };
        let allowance = self.allowances.entry(uid.to_owned()).or_insert(fresh);
        let refill = now.duration_since(allowance.at).as_secs_f64() / REFILL.as_secs_f64();
        allowance.tokens = (allowance.tokens + refill).min(BURST);
        allowance.at = now;
        let allowed = allowance.tokens >= 1.0;
        if allowed {
            allowance.tokens -= 1.0;
        }
        allowed
    }
}

async fn write_all(client: Client, source: EventSource, mut receiver: mpsc::Receiver<Record>, limit: Limit) {
    let mut correlator = Correlator::default();
    while let Some(record) = receiver.recv().await {
        let about = &record.about;
        let key = Key {
            uid: about.uid.clone().unwrap_or_default(),
            namespace: about.namespace.clone().unwrap_or_default(),
            name: about.name.clone().unwrap_or_default(),
            field: about.field_path.clone().unwrap_or_default(),
            event_type: record.event_type,
            reason: record.reason.clone(),
            message: record.message.clone(),
        };
        let action = correlator.plan(&key, record.at, Instant::now());
        let namespace = if key.namespace.is_empty() { "default" } else { &key.namespace };
        let api = Api::<Event>::namespaced(client.clone(), namespace);
        limit.ready().await;
        let written = tokio::time::timeout(DEADLINE, write(&api, &source, &record, action)).await;
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                correlator.written.remove(&key);
                tracing::debug!(%error, reason = record.reason, "event not written");
            }
            Err(_) => tracing::debug!(reason = record.reason, "event not written in time"),
        }
    }
}

async fn write(api: &Api<Event>, source: &EventSource, record: &Record, action: Action) -> kube::Result<()> {
    match action {
        Action::Drop => Ok(()),
        Action::Create { name } => api.create(&PostParams::default(), &event(name, source, record)).await.map(drop),
        Action::Count { name, count } => {
            let patch = json!({"count": count, "lastTimestamp": Time(record.at)});
            api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
        }
    }
}

fn event(name: String, source: &EventSource, record: &Record) -> Event {
    let namespace = record.about.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let mut event = Event {
        involved_object: record.about.clone(),
        type_: Some(record.event_type.as_str().to_owned()),
        reason: Some(record.reason.clone()),
        message: Some(record.message.clone()),
        source: Some(source.clone()),
        reporting_component: source.component.clone(),
        reporting_instance: source.host.clone(),
        first_timestamp: Some(Time(record.at)),
        last_timestamp: Some(Time(record.at)),
        count: Some(1),
        ..Event::default()
    };
    event.metadata.name = Some(name);
    event.metadata.namespace = Some(namespace);
    event
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(message: &str) -> Key {
        Key {
            uid: "u".into(),
            namespace: "default".into(),
            name: "pod".into(),
            field: String::new(),
            event_type: EventType::Normal,
            reason: "Started".into(),
            message: message.into(),
        }
    }

    #[test]
    fn repeats_are_counted() {
        let mut correlator = Correlator::default();
        let now = Instant::now();
        let Action::Create { name } = correlator.plan(&key("m"), Timestamp::UNIX_EPOCH, now) else { panic!() };
        assert_eq!(correlator.plan(&key("m"), Timestamp::UNIX_EPOCH, now), Action::Count { name, count: 2 });
        assert!(matches!(correlator.plan(&key("other"), Timestamp::UNIX_EPOCH, now), Action::Create { .. }));
    }

    #[test]
    fn a_flood_about_one_object_is_cut() {
        let mut correlator = Correlator::default();
        let now = Instant::now();
        let dropped = (0..100)
            .filter(|i| correlator.plan(&key(&i.to_string()), Timestamp::UNIX_EPOCH, now) == Action::Drop)
            .count();
        assert_eq!(dropped, 75);
    }
}
