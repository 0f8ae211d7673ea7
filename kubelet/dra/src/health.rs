//! Whether devices are well, as their drivers tell (KEP-4680): a stream of each driver that can, and what is known by it.
//!
//! A report holds for a while (half a minute, unless the driver says otherwise); then, and when the stream ends, how its
//! devices are is unknown.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bosun_kubelet_plugins::Plugin;
use bosun_proto::dra::health::dra_resource_health_client::DraResourceHealthClient;
use bosun_proto::dra::health::{DeviceHealth, HealthStatus, NodeWatchResourcesRequest, NodeWatchResourcesResponse};
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// The name by which a plugin says that it tells.
pub const SERVICE: &str = "v1alpha1.DRAResourceHealth";
/// How long a report holds for which the driver names no time, as in stock.
const HOLDS: Duration = Duration::from_secs(30);
/// How long until a stream that ended is opened again, as in stock.
const AGAIN: Duration = Duration::from_secs(5);
/// How long a driver may take to begin a stream.
const DEADLINE: Duration = Duration::from_secs(45);

/// How a device is; what weighs more comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// Not well.
    Unhealthy,
    /// Well.
    Healthy,
    /// Nobody tells, or not any more.
    #[default]
    Unknown,
}

impl Condition {
    /// As the API names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "Healthy",
            Self::Unhealthy => "Unhealthy",
            Self::Unknown => "Unknown",
        }
    }
}

/// A device by pool and name.
pub type Name = (String, String);

/// What a driver said of its devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Reports(BTreeMap<Name, (Condition, Instant)>);

impl Reports {
    fn get(&self, name: &Name, now: Instant) -> Condition {
        self.0.get(name).filter(|(_, until)| *until > now).map(|(condition, _)| *condition).unwrap_or_default()
    }

    /// Takes in a report; returns the devices that are now otherwise. One that it leaves out keeps its condition until
    /// that holds no more.
    fn take(&mut self, report: &[DeviceHealth], now: Instant) -> Vec<Name> {
        let mut changed = self.expire(now);
        for device in report {
            let id = device.device.clone().unwrap_or_default();
            let name = (id.pool_name, id.device_name);
            let condition = match device.health() {
                HealthStatus::Healthy => Condition::Healthy,
                HealthStatus::Unhealthy => Condition::Unhealthy,
                HealthStatus::Unknown => Condition::Unknown,
            };
            let holds = u64::try_from(device.health_check_timeout_seconds).ok().filter(|seconds| *seconds > 0);
            // A time beyond all reason is as good as a long one.
            let holds = holds.map_or(HOLDS, |seconds| Duration::from_secs(seconds.min(1 << 20)));
            let before = self.0.insert(name.clone(), (condition, now + holds)).map(|(before, _)| before);
            if before.unwrap_or_default() != condition && !changed.contains(&name) {
                changed.push(name);
            }
        }
        changed
    }

    /// Forgets what holds no more; returns the devices that are now otherwise.
    fn expire(&mut self, now: Instant) -> Vec<Name> {
        let over = self.0.extract_if(.., |_, (_, until)| *until <= now);
        over.filter(|(_, (condition, _))| *condition != Condition::Unknown).map(|(name, _)| name).collect()
    }

    /// When a report will hold no more.
    fn next(&self) -> Option<Instant> {
        self.0.values().map(|(_, until)| *until).min()
    }
}

/// How the devices of all drivers are.
pub struct Health {
    /// By driver and plugin: while one replaces another, both may tell.
    reports: Mutex<BTreeMap<(String, String), Reports>>,
    changes: mpsc::UnboundedSender<Changed>,
}

/// Devices of a driver that are otherwise than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// The driver.
    pub driver: String,
    /// Its devices.
    pub devices: Vec<Name>,
}

impl Health {
    /// Nothing known yet; what changes is told to `changes`.
    pub fn new(changes: mpsc::UnboundedSender<Changed>) -> Self {
        Self { reports: Mutex::default(), changes }
    }

    /// How the device is now. Of two plugins of its driver the one that is worried counts.
    pub fn of(&self, driver: &str, name: &Name) -> Condition {
        let (reports, now) = (self.reports(), Instant::now());
        let own = reports.iter().filter(|((known, _), _)| known == driver);
        own.map(|(_, reports)| reports.get(name, now)).min().unwrap_or_default()
    }

    fn reports(&self) -> MutexGuard<'_, BTreeMap<(String, String), Reports>> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known of a driver, and tells what that made otherwise; returns when something will hold no more.
    fn change(&self, plugin: &Plugin, change: impl FnOnce(&mut Reports) -> Vec<Name>) -> Option<Instant> {
        let key = (plugin.name.clone(), plugin.socket.display().to_string());
        let mut all = self.reports();
        let reports = all.entry(key.clone()).or_default();
        let devices = change(reports);
        let next = reports.next();
        if reports.0.is_empty() {
            all.remove(&key);
        }
        if !devices.is_empty() {
            let _ = self.changes.send(Changed { driver: plugin.name.clone(), devices });
        }
        next
    }

    /// Listens to a plugin for as long as it is known.
    pub(crate) async fn watch(&self, plugin: &Plugin, channel: Channel) {
        // What was known ends with this future, however that ends.
        let _forget = Forget(self, plugin);
        loop {
            let error = match open(channel.clone()).await {
                Ok(stream) => self.listen(plugin, stream).await.err(),
                Err(error) => Some(error),
            };
            self.forget(plugin);
            let driver = &plugin.name;
            tracing::debug!(driver, error = error.map(|error| error.to_string()), "the health of devices is not told");
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn listen(&self, plugin: &Plugin, mut stream: Streaming<NodeWatchResourcesResponse>) -> Result<(), Status> {
        let mut next: Option<Instant> = None;
        loop {
            let over = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            next = tokio::select! {
                message = stream.message() => match message? {
                    Some(report) => self.change(plugin, |known| known.take(&report.devices, Instant::now())),
                    None => return Ok(()),
                },
                () = over => self.change(plugin, |known| known.expire(Instant::now())),
            };
        }
    }

    fn forget(&self, plugin: &Plugin) {
        self.change(plugin, |known| {
            let known = std::mem::take(known).0.into_iter();
            known.filter(|(_, (condition, _))| *condition != Condition::Unknown).map(|(name, _)| name).collect()
        });
    }
}

struct Forget<'a>(&'a Health, &'a Plugin);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.forget(self.1);
    }
}

async fn open(channel: Channel) -> Result<Streaming<NodeWatchResourcesResponse>, Status> {
    let mut client = DraResourceHealthClient::new(channel);
    let stream = client.node_watch_resources(NodeWatchResourcesRequest {});
    match tokio::time::timeout(DEADLINE, stream).await {
        Ok(stream) => Ok(stream?.into_inner()),
        Err(_) => Err(Status::deadline_exceeded("no stream")),
    }
}

#[cfg(test)]
mod tests {
    use bosun_proto::dra::health::DeviceIdentifier;

    use super::*;

    fn name(device: &str) -> Name {
        ("pool".to_owned(), device.to_owned())
    }

    fn report(device: &str, health: HealthStatus, holds: i64) -> DeviceHealth {
        let device = DeviceIdentifier { pool_name: "pool".into(), device_name: device.into() };
        DeviceHealth {
            device: Some(device),
            health: health.into(),
            health_check_timeout_seconds: holds,
            ..DeviceHealth::default()
        }
    }

    #[test]
    fn reports_hold_for_a_while() {
        let (mut known, begin) = (Reports::default(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        let first = [report("a", HealthStatus::Healthy, 0), report("b", HealthStatus::Unhealthy, 5)];
        assert_eq!(known.take(&first, begin), [name("a"), name("b")]);
        assert_eq!(known.take(&first, at(1)), []);
        assert_eq!(
            (known.get(&name("a"), at(2)), known.get(&name("c"), at(2))),
            (Condition::Healthy, Condition::Unknown)
        );
        assert_eq!(known.next(), Some(at(6)));
        // One is left out and holds no more; the other changes.
        assert_eq!(known.get(&name("b"), at(7)), Condition::Unknown);
        assert_eq!(known.take(&[report("a", HealthStatus::Unhealthy, -1)], at(7)), [name("b"), name("a")]);
        assert_eq!(known.expire(at(36)), []);
        assert_eq!(known.expire(at(37)), [name("a")]);
        assert_eq!((known.next(), known.take(&[report("a", HealthStatus::Unknown, 0)], at(38))), (None, vec![]));
        let long = known.take(&[report("a", HealthStatus::Healthy, i64::MAX)], at(39));
        assert_eq!(long, [name("a")]);
    }
}
