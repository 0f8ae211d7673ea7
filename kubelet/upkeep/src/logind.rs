//! The edge to systemd's login manager: it holds a shutdown off for us, and tells of it beforehand.
//!
//! The lock is one of its inhibitors (`org.freedesktop.login1.Manager.Inhibit`, mode `delay`); the longest delay is the
//! administrator's (`InhibitDelayMaxSec`), and is raised by a drop-in file where it is too short for our pods.

use std::path::Path;
use std::time::Duration;

use futures::{Stream, StreamExt};
use zbus::zvariant::OwnedFd;
use zbus::{Connection, Proxy};

const SERVICE: &str = "org.freedesktop.login1";
const OBJECT: &str = "/org/freedesktop/login1";
const INTERFACE: &str = "org.freedesktop.login1.Manager";
/// The drop-in file that raises the longest delay.
const DROP_IN: &str = "99-kubelet.conf";

/// Why the login manager is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not there, or it refuses.
    #[error("systemd-logind: {0}")]
    Bus(#[from] zbus::Error),
    /// The longest delay could not be raised.
    #[error("write {path}: {source}")]
    DropIn {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// It holds a shutdown off for too short a time, whatever we ask.
    #[error(
        "node shutdown manager was unable to update logind InhibitDelayMaxSec to {wanted:?} (ShutdownGracePeriod), current value of InhibitDelayMaxSec ({current:?}) is less than requested ShutdownGracePeriod"
    )]
    Delay {
        /// What the pods need.
        wanted: Duration,
        /// What there is.
        current: Duration,
    },
}

/// As long as it lives, a shutdown is held off.
#[derive(Debug)]
pub struct Lock {
    _descriptor: OwnedFd,
}

/// The login manager.
#[derive(Clone, Debug)]
pub struct Logind {
    connection: Connection,
    manager: Proxy<'static>,
}

impl Logind {
    /// The login manager on the system's bus.
    ///
    /// # Errors
    /// There is no bus.
    pub async fn connect() -> Result<Self, Error> {
        Self::on(Connection::system().await?).await
    }

    /// The login manager at the other end of a connection.
    ///
    /// # Errors
    /// The connection is broken.
    pub async fn on(connection: Connection) -> Result<Self, Error> {
        let builder = zbus::proxy::Builder::<'static, Proxy<'static>>::new(&connection)
            .destination(SERVICE)?
            .path(OBJECT)?
            .interface(INTERFACE)?
            .cache_properties(zbus::proxy::CacheProperties::No);
        Ok(Self { manager: builder.build().await?, connection })
    }

    /// How long a shutdown is held off at most.
    ///
    /// # Errors
    /// The login manager does not answer.
    pub async fn longest_delay(&self) -> Result<Duration, Error> {
        let micros: u64 = self.manager.get_property("InhibitDelayMaxUSec").await?;
        Ok(Duration::from_micros(micros))
    }

    /// Makes sure that a shutdown can be held off for `wanted`, by a file in `folder` (`/etc/systemd/logind.conf.d`).
    ///
    /// # Errors
    /// It cannot.
    pub async fn allow_delay(&self, wanted: Duration, folder: &Path) -> Result<(), Error> {
        if self.longest_delay().await? >= wanted {
            return Ok(());
        }
        let path = folder.join(DROP_IN);
        let failed = |source| Error::DropIn { path: path.display().to_string(), source };
        std::fs::create_dir_all(folder).map_err(failed)?;
        let text = format!("# Kubelet logind override\n[Login]\nInhibitDelayMaxSec={}\n", wanted.as_secs());
        std::fs::write(&path, text).map_err(failed)?;
        self.reload().await?;
        for _ in 0..10 {
            if self.longest_delay().await? >= wanted {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Err(Error::Delay { wanted, current: self.longest_delay().await? })
    }

    /// Has the login manager read its configuration again: it does so on SIGHUP, which systemd sends for us.
    async fn reload(&self) -> Result<(), Error> {
        const SIGHUP: i32 = 1;
        let systemd = Proxy::new(
            &self.connection,
            "org.freedesktop.systemd1",
            "/org/freedesktop/systemd1",
            "org.freedesktop.systemd1.Manager",
        );
        systemd.await?.call_method("KillUnit", &("systemd-logind.service", "all", SIGHUP)).await?;
        Ok(())
    }

    /// Holds shutdowns off.
    ///
    /// # Errors
    /// The login manager refuses.
    pub async fn inhibit(&self) -> Result<Lock, Error> {
        let request = ("shutdown", "kubelet", "Kubelet needs time to handle node shutdown", "delay");
        Ok(Lock { _descriptor: self.manager.call("Inhibit", &request).await? })
    }

    /// Tells whenever a shutdown is about to begin (true) or was called off (false).
    ///
    /// # Errors
    /// The login manager cannot be listened to.
    pub async fn shutdowns(&self) -> Result<impl Stream<Item = bool> + Unpin + Send + use<>, Error> {
        let signals = self.manager.receive_signal("PrepareForShutdown").await?;
        Ok(Box::pin(signals.filter_map(|message| async move { message.body().deserialize::<bool>().ok() })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream as StdStream;

    /// A login manager that hands out one end of a socket as the lock.
    struct Fake {
        delay: u64,
        other_end: StdStream,
    }

    #[zbus::interface(name = "org.freedesktop.login1.Manager")]
    impl Fake {
        async fn inhibit(&self, what: &str, who: &str, why: &str, mode: &str) -> OwnedFd {
            assert_eq!((what, who, mode), ("shutdown", "kubelet", "delay"));
            assert!(!why.is_empty());
            std::os::fd::OwnedFd::from(self.other_end.try_clone().unwrap()).into()
        }

        #[zbus(property, name = "InhibitDelayMaxUSec")]
        fn inhibit_delay_max_usec(&self) -> u64 {
            self.delay
        }

        #[zbus(signal)]
        async fn prepare_for_shutdown(
            emitter: &zbus::object_server::SignalEmitter<'_>,
            active: bool,
        ) -> zbus::Result<()>;
    }

    #[tokio::test]
    async fn a_shutdown_is_held_off_and_told() {
        let (near, far) = tokio::net::UnixStream::pair().unwrap();
        let (other_end, _lock_end) = StdStream::pair().unwrap();
        let fake = Fake { delay: 30_000_000, other_end };
        let server = zbus::connection::Builder::unix_stream(far)
            .server(zbus::Guid::generate())
            .unwrap()
            .p2p()
            .serve_at(OBJECT, fake)
            .unwrap()
            .build();
        let client = zbus::connection::Builder::unix_stream(near).p2p().build();
        let (server, client) = tokio::try_join!(server, client).unwrap();
        let logind = Logind::on(client).await.unwrap();
        assert_eq!(logind.longest_delay().await.unwrap(), Duration::from_secs(30));
        let folder = tempfile::tempdir().unwrap();
        logind.allow_delay(Duration::from_secs(30), folder.path()).await.unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "long enough as it is");
        drop(logind.inhibit().await.unwrap());
        let mut shutdowns = logind.shutdowns().await.unwrap();
        let emitter = zbus::object_server::SignalEmitter::new(&server, OBJECT).unwrap();
        Fake::prepare_for_shutdown(&emitter, true).await.unwrap();
        Fake::prepare_for_shutdown(&emitter, false).await.unwrap();
        assert_eq!((shutdowns.next().await, shutdowns.next().await), (Some(true), Some(false)));
    }
}
