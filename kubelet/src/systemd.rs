//! What systemd is told of the kubelet (sd_notify(3)): that it has started, that it stops, and, where the unit asks for
//! a watchdog, that it is still well.
//!
//! The watchdog is fed only while all the checks of `/healthz` hold, so that a kubelet whose sync loop has stalled is
//! restarted by systemd (KEP-4460).

use std::env;
use std::io;
use std::time::Duration;

use bosun_kit::backoff::Backoff;
use bosun_kit::health::Checks;
use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

/// How often feeding the watchdog is tried before the next turn.
const ATTEMPTS: usize = 2;

/// Sends a state to systemd; nothing happens if this process is no service of it.
pub fn tell(state: NotifyState<'_>) -> io::Result<()> {
    sd_notify::notify(&[state])
}

/// The same for the beginning and the end of the kubelet: what fails is only told.
pub fn announce(state: NotifyState<'_>) {
    if let Err(error) = tell(state.clone()) {
        tracing::warn!(%state, %error, "systemd was not told; is the socket in NOTIFY_SOCKET there?");
    }
}

/// How long systemd waits for a sign of life, from the environment; none if it does not wait.
///
/// # Errors
/// The environment asks for a watchdog in words that make no sense; stock does not start then either.
pub fn watchdog_timeout() -> Result<Option<Duration>, String> {
    let read = |name| env::var(name).ok();
    timeout(read("WATCHDOG_USEC").as_deref(), read("WATCHDOG_PID").as_deref(), std::process::id())
}

/// The rule of sd_watchdog_enabled(3): microseconds, meant for the process of that id if one is named.
fn timeout(micros: Option<&str>, meant_for: Option<&str>, own: u32) -> Result<Option<Duration>, String> {
    let Some(micros) = micros.filter(|text| !text.is_empty()) else { return Ok(None) };
    let wrong = |name: &str, text: &str| {
        format!("configure watchdog: {name} {text:?} is no number above zero; WatchdogSec of the unit sets it")
    };
    let period: u64 = micros.parse().ok().filter(|n| *n > 0).ok_or_else(|| wrong("WATCHDOG_USEC", micros))?;
    let ours = match meant_for.filter(|text| !text.is_empty()) {
        Some(pid) => pid.parse::<u32>().map_err(|_| wrong("WATCHDOG_PID", pid))? == own,
        None => true,
    };
    Ok(ours.then(|| Duration::from_micros(period)))
}

/// Feeds the watchdog every half of `timeout` while no check fails, until cancelled.
pub async fn feed_watchdog(
    timeout: Duration,
    checks: Checks,
    tell: impl Fn(NotifyState<'_>) -> io::Result<()>,
    cancel: CancellationToken,
) {
    let mut turns = tokio::time::interval(timeout / 2);
    turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = turns.tick() => {}
            () = cancel.cancelled() => return,
        }
        match checks.failing() {
            Some((check, reason)) => {
                tracing::error!(check, reason, "the kubelet is not well: systemd's watchdog is not fed this time");
            }
            None => feed(&tell).await,
        }
    }
}

async fn feed(tell: impl Fn(NotifyState<'_>) -> io::Result<()>) {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(2));
    for attempt in 1..=ATTEMPTS {
        match tell(NotifyState::Watchdog) {
            Ok(()) => return,
            Err(error) => tracing::warn!(attempt, %error, "systemd's watchdog was not fed"),
        }
        if attempt < ATTEMPTS {
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn the_environment_says_whether_and_how_long() {
        let (second, none) = (Some(Duration::from_secs(1)), None);
        assert_eq!(timeout(None, None, 7), Ok(none));
        assert_eq!(timeout(Some(""), Some("7"), 7), Ok(none));
        assert_eq!(timeout(Some("1000000"), None, 7), Ok(second));
        assert_eq!(timeout(Some("1000000"), Some("7"), 7), Ok(second));
        assert_eq!(timeout(Some("1000000"), Some("8"), 7), Ok(none), "it is meant for another process");
        for (micros, pid) in [("soon", None), ("0", None), ("-5", None), ("1", Some("me"))] {
            assert!(timeout(Some(micros), pid, 7).unwrap_err().starts_with("configure watchdog: "));
        }
    }

    #[tokio::test]
    async fn the_watchdog_starves_while_a_check_fails() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let systemd = tokio::net::UnixDatagram::bind(&path).unwrap();
        let own = UnixDatagram::unbound().unwrap();
        let tell = move |state: NotifyState<'_>| own.send_to(state.to_string().as_bytes(), &path).map(drop);
        let heard = async |within: Duration| {
            let mut buffer = [0; 64];
            let size = tokio::time::timeout(within, systemd.recv(&mut buffer)).await.ok()?.unwrap();
            Some(String::from_utf8_lossy(&buffer[..size]).into_owned())
        };
        let (long, turn) = (Duration::from_secs(20), Duration::from_millis(40));
        let (checks, well) = (Checks::new(), Arc::new(AtomicBool::new(true)));
        let of_check = well.clone();
        checks.add("syncloop", move || of_check.load(Ordering::SeqCst).then_some(()).ok_or("stalled".to_owned()));
        let (cancel, began) = (CancellationToken::new(), tokio::time::Instant::now());
        let feeding = tokio::spawn(feed_watchdog(turn * 2, checks, tell, cancel.clone()));
        for _ in 0..3 {
            assert_eq!(heard(long).await.as_deref(), Some("WATCHDOG=1"));
        }
        assert!(began.elapsed() >= turn * 2, "at once, then every half of the time");
        well.store(false, Ordering::SeqCst);
        // What was sent before is heard first; then nothing more.
        while heard(turn).await.is_some() {}
        assert_eq!(heard(turn * 5).await, None);
        well.store(true, Ordering::SeqCst);
        assert_eq!(heard(long).await.as_deref(), Some("WATCHDOG=1"));
        cancel.cancel();
        feeding.await.unwrap();
    }

    #[tokio::test]
    async fn a_socket_that_fails_is_tried_once_more() {
        let tries = Arc::new(std::sync::Mutex::new(0));
        let counted = tries.clone();
        let fails = move |_: NotifyState<'_>| {
            *counted.lock().unwrap() += 1;
            Err(io::ErrorKind::ConnectionRefused.into())
        };
        feed(fails).await;
        assert_eq!(*tries.lock().unwrap(), ATTEMPTS);
    }
}
