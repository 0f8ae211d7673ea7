//! The edge to systemd: slices as transient units, over D-Bus (`org.freedesktop.systemd1.Manager`) on the system's bus.
//! systemd's own socket is not used where there is no bus: it signs its messages with a name that no bus would allow,
//! and zbus takes that for a broken connection.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use tokio::sync::Mutex;
use zbus::zvariant::{self, OwnedObjectPath};
use zbus::{Connection, Proxy};

use crate::plan::{Property, Value};

const SERVICE: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";
const INTERFACE: &str = "org.freedesktop.systemd1.Manager";
/// How long one answer, or one job, may take; runc has the same.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why systemd did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system's bus cannot be had.
    #[error(
        "connect to systemd: {0}; is this machine run by systemd, with dbus installed? Otherwise use cgroupDriver: cgroupfs, here and in the runtime"
    )]
    Connect(#[source] Box<zbus::Error>),
    /// It refused, or the connection broke.
    #[error("{doing} systemd unit {unit}: {source}")]
    Call {
        /// What was tried.
        doing: &'static str,
        /// On what.
        unit: String,
        /// Why it failed.
        source: Box<zbus::Error>,
    },
    /// The job ended otherwise than well.
    #[error("{doing} systemd unit {unit}: got {result:?}")]
    Job {
        /// What was tried.
        doing: &'static str,
        /// On what.
        unit: String,
        /// systemd's word for it.
        result: String,
    },
    /// No answer.
    #[error("{doing} systemd unit {unit}: no answer within {PATIENCE:?}")]
    Late {
        /// What was tried.
        doing: &'static str,
        /// On what.
        unit: String,
    },
}

/// Whoever keeps units.
#[async_trait]
pub trait Units: fmt::Debug + Send + Sync {
    /// Makes a slice and waits until it is there. One of that name that is there already is left as it is.
    ///
    /// # Errors
    /// It cannot be made.
    async fn start(&self, unit: &str, properties: &[Property]) -> Result<(), Error>;

    /// Changes a unit until the next boot.
    ///
    /// # Errors
    /// It is not there, or takes no such value.
    async fn set(&self, unit: &str, properties: &[Property]) -> Result<(), Error>;

    /// Stops a unit and waits until it is gone. One that is not there is no error.
    ///
    /// # Errors
    /// It cannot be stopped.
    async fn stop(&self, unit: &str) -> Result<(), Error>;
}

/// systemd. It is connected to when first needed, and anew when the connection broke.
#[derive(Debug, Default)]
pub struct Systemd {
    connection: Mutex<Option<Connection>>,
}

impl Systemd {
    /// The systemd at the other end of a connection.
    pub fn on(connection: Connection) -> Self {
        Self { connection: Mutex::new(Some(connection)) }
    }

    async fn manager(&self) -> Result<Proxy<'static>, zbus::Error> {
        let mut held = self.connection.lock().await;
        let connection = match &*held {
            Some(connection) => connection.clone(),
            None => {
                let fresh = Connection::system().await?;
                // Without it no job's end is told.
                let manager = proxy(&fresh).await?;
                manager.call_method("Subscribe", &()).await?;
                held.insert(fresh).clone()
            }
        };
        proxy(&connection).await
    }

    /// Has something done in time. After a broken connection it is tried once more: systemd or the bus may have been
    /// restarted since.
    async fn within<T, F>(&self, doing: &'static str, unit: &str, act: impl Fn(Proxy<'static>) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, zbus::Error>>,
    {
        let mut again = true;
        loop {
            let attempt = async {
                act(self.manager().await.map_err(|error| Error::Connect(error.into()))?)
                    .await
                    .map_err(|source| Error::Call { doing, unit: unit.to_owned(), source: source.into() })
            };
            let result = tokio::time::timeout(PATIENCE, attempt).await;
            match result.unwrap_or_else(|_| Err(Error::Late { doing, unit: unit.to_owned() })) {
                Err(Error::Call { source, .. }) if again && matches!(*source, zbus::Error::InputOutput(_)) => {
                    again = false
                }
                Err(error) => {
                    // An answer, even a refusal, comes over a connection that is whole.
                    let refused = matches!(&error, Error::Call { source, .. } if matches!(**source, zbus::Error::MethodError(..)));
                    if !refused {
                        self.connection.lock().await.take();
                    }
                    return Err(error);
                }
                done => return done,
            }
            self.connection.lock().await.take();
        }
    }

    /// Starts a job and waits for its end.
    async fn job<B>(&self, doing: &'static str, unit: &str, method: &str, body: &B) -> Result<(), Error>
    where
        B: serde::Serialize + zvariant::DynamicType + Sync,
    {
        let run = |manager: Proxy<'static>| async move {
            // Only the ends of jobs of this unit: those of others could fill the queue before the answer is read.
            let mut ended = manager.receive_signal_with_args("JobRemoved", &[(2, unit)]).await?;
            let job: OwnedObjectPath = manager.call(method, body).await?;
            while let Some(signal) = ended.next().await {
                let body = signal.body();
                let (_, path, _, result): (u32, OwnedObjectPath, String, String) = body.deserialize()?;
                if path == job {
                    return Ok(result);
                }
            }
            Err(zbus::Error::InputOutput(std::sync::Arc::new(std::io::ErrorKind::UnexpectedEof.into())))
        };
        let result = self.within(doing, unit, run).await?;
        if result == "done" {
            return Ok(());
        }
        // A failed unit would be in the way of the next attempt.
        let reset = |manager: Proxy<'static>| async move { manager.call_method("ResetFailedUnit", &(unit,)).await };
        let _ = self.within("reset", unit, reset).await;
        Err(Error::Job { doing, unit: unit.to_owned(), result })
    }
}

#[async_trait]
impl Units for Systemd {
    async fn start(&self, unit: &str, properties: &[Property]) -> Result<(), Error> {
        type Auxiliary<'a> = Vec<(&'a str, Vec<(&'a str, zvariant::Value<'a>)>)>;
        let none: Auxiliary<'_> = Vec::new();
        let started = self.job("start", unit, "StartTransientUnit", &(unit, "replace", values(properties), none)).await;
        match started {
            Err(Error::Call { source, .. }) if is(&source, "UnitExists") => Ok(()),
            other => other,
        }
    }

    async fn set(&self, unit: &str, properties: &[Property]) -> Result<(), Error> {
        let body = (unit, true, values(properties));
        let body = &body;
        let set = |manager: Proxy<'static>| async move { manager.call_method("SetUnitProperties", body).await };
        self.within("change", unit, set).await.map(|_| ())
    }

    async fn stop(&self, unit: &str) -> Result<(), Error> {
        match self.job("stop", unit, "StopUnit", &(unit, "replace")).await {
            Err(Error::Call { source, .. }) if is(&source, "NoSuchUnit") => Ok(()),
            other => other,
        }
    }
}

async fn proxy(connection: &Connection) -> Result<Proxy<'static>, zbus::Error> {
    zbus::proxy::Builder::<'static, Proxy<'static>>::new(connection)
        .destination(SERVICE)?
        .path(OBJECT)?
        .interface(INTERFACE)?
        .cache_properties(zbus::proxy::CacheProperties::No)
        .build()
        .await
}

fn is(error: &zbus::Error, name: &str) -> bool {
    matches!(error, zbus::Error::MethodError(full, ..) if full.strip_prefix("org.freedesktop.systemd1.") == Some(name))
}

fn values(properties: &[Property]) -> Vec<(&str, zvariant::Value<'_>)> {
    let value = |value: &Value| match value {
        Value::Bool(value) => zvariant::Value::from(*value),
        Value::Number(value) => zvariant::Value::from(*value),
        Value::Text(value) => zvariant::Value::from(value.clone()),
        Value::Units(units) => zvariant::Value::from(units.clone()),
        Value::Cores(mask) => zvariant::Value::from(mask.clone()),
    };
    properties.iter().map(|property| (property.name, value(&property.value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::sync::{Arc, PoisonError};
    use zbus::object_server::SignalEmitter;
    use zvariant::OwnedValue;

    /// A systemd of the bare necessities: it keeps what it was told, and ends a job at once.
    #[derive(Clone, Default)]
    struct Fake(Arc<std::sync::Mutex<Held>>);

    type Told = Vec<(String, OwnedValue)>;
    type Held = HashMap<String, Told>;
    type Auxiliary = Vec<(String, Told)>;

    impl Fake {
        fn units(&self) -> std::sync::MutexGuard<'_, Held> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }

        async fn end(emitter: &SignalEmitter<'_>, unit: &str) -> OwnedObjectPath {
            let job = OwnedObjectPath::try_from("/org/freedesktop/systemd1/job/7").unwrap();
            let result = if unit.contains("bad") { "failed" } else { "done" };
            // One of somebody else comes before it.
            let other = OwnedObjectPath::try_from("/org/freedesktop/systemd1/job/6").unwrap();
            Self::job_removed(emitter, 6, other, "x.slice", "failed").await.unwrap();
            Self::job_removed(emitter, 7, job.clone(), unit, result).await.unwrap();
            job
        }
    }

    #[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
    impl Fake {
        fn subscribe(&self) {}

        fn reset_failed_unit(&self, unit: &str) {
            self.units().remove(unit);
        }

        async fn start_transient_unit(
            &self,
            unit: &str,
            mode: &str,
            properties: Told,
            _auxiliary: Auxiliary,
            #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
        ) -> zbus::fdo::Result<OwnedObjectPath> {
            assert_eq!(mode, "replace");
            if self.units().insert(unit.to_owned(), properties).is_some() {
                return Err(zbus::fdo::Error::Failed("there already".to_owned()));
            }
            Ok(Self::end(&emitter, unit).await)
        }

        fn set_unit_properties(&self, unit: &str, runtime: bool, more: Told) -> zbus::fdo::Result<()> {
            assert!(runtime);
            let mut units = self.units();
            let Some(held) = units.get_mut(unit) else { return Err(zbus::fdo::Error::Failed("not there".to_owned())) };
            held.extend(more);
            Ok(())
        }

        async fn stop_unit(
            &self,
            unit: &str,
            _mode: &str,
            #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
        ) -> OwnedObjectPath {
            self.units().remove(unit);
            Self::end(&emitter, unit).await
        }

        #[zbus(signal)]
        async fn job_removed(
            emitter: &SignalEmitter<'_>,
            id: u32,
            job: OwnedObjectPath,
            unit: &str,
            result: &str,
        ) -> zbus::Result<()>;
    }

    async fn pair(fake: Fake) -> (Systemd, Connection) {
        let (near, far) = tokio::net::UnixStream::pair().unwrap();
        let server = zbus::connection::Builder::unix_stream(far)
            .server(zbus::Guid::generate())
            .unwrap()
            .p2p()
            .serve_at(OBJECT, fake)
            .unwrap()
            .build();
        let client = zbus::connection::Builder::unix_stream(near).p2p().build();
        let (server, client) = tokio::join!(server, client);
        (Systemd::on(client.unwrap()), server.unwrap())
    }

    #[tokio::test]
    async fn a_slice_comes_changes_and_goes() {
        let fake = Fake::default();
        let (systemd, _server) = pair(fake.clone()).await;
        let made = [
            Property { name: "MemoryMax", value: Value::Number(1 << 20) },
            Property { name: "Wants", value: Value::Units(vec!["kubepods.slice".to_owned()]) },
        ];
        systemd.start("a.slice", &made).await.unwrap();
        systemd.set("a.slice", &[Property { name: "CPUWeight", value: Value::Number(20) }]).await.unwrap();
        let held = fake.units().get("a.slice").cloned().unwrap();
        let number = |at: usize| u64::try_from(held[at].1.clone()).unwrap();
        assert_eq!((number(0), held[1].0.as_str(), number(2)), (1 << 20, "Wants", 20));
        systemd.stop("a.slice").await.unwrap();
        assert!(fake.units().is_empty());
        let error = systemd.set("a.slice", &[]).await.unwrap_err().to_string();
        assert!(error.starts_with("change systemd unit a.slice: "), "{error}");
    }

    #[tokio::test]
    async fn a_failed_job_is_told_and_forgotten() {
        let fake = Fake::default();
        let (systemd, _server) = pair(fake.clone()).await;
        let error = systemd.start("bad.slice", &[]).await.unwrap_err();
        assert_eq!(error.to_string(), "start systemd unit bad.slice: got \"failed\"");
        assert!(fake.units().is_empty(), "a failed unit is reset");
    }
}
