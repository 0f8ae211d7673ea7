//! Running probes and lifecycle hooks: exec through the runtime, HTTP and TCP by a connection of our own.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Probe};

use crate::cri::Runtime;
use crate::dial;

const PROBE_AGENT: &str = concat!("kube-probe/", "1.36");
const HOOK_AGENT: &str = concat!("kube-lifecycle/", "1.36");
/// A hook over HTTP that gets no answer must not hold the container for ever.
const HOOK_DEADLINE: Duration = Duration::from_secs(30);

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All is well.
    Success,
    /// It is not; the text says how.
    Failure(String),
    /// The probe itself could not be run; its result counts as nothing.
    Undecided(String),
}

/// Runs a probe of a container at `host`.
pub async fn run(runtime: &dyn Runtime, probe: &Probe, container: &Container, id: &str, host: &str) -> Outcome {
    let deadline = crate::pod::probe::timeout(probe);
    if let Some(exec) = &probe.exec {
        return run_exec(runtime, id, exec.command.clone().unwrap_or_default(), deadline).await;
    }
    if let Some(action) = &probe.http_get {
        return match dial::get(action, container, host, PROBE_AGENT, deadline).await {
            Ok(answer) if (200..400).contains(&answer.status) => Outcome::Success,
            Ok(answer) => Outcome::Failure(format!("HTTP probe failed with statuscode: {}", answer.status)),
            Err(error) => Outcome::Failure(error),
        };
    }
    if let Some(action) = &probe.tcp_socket {
        let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(host);
        let dialled = match dial::port(container, &action.port) {
            Ok(port) => dial::tcp(host, port, deadline).await,
            Err(error) => return Outcome::Undecided(error),
        };
        return dialled.map_or_else(Outcome::Failure, |()| Outcome::Success);
    }
    if let Some(action) = &probe.grpc {
        let service = action.service.as_deref().unwrap_or_default();
        let Ok(port) = u16::try_from(action.port) else {
            return Outcome::Undecided(format!("invalid port number: {}", action.port));
        };
        return crate::health::check(host, port, service, deadline).await;
    }
    Outcome::Undecided("missing probe handler".to_owned())
}

async fn run_exec(runtime: &dyn Runtime, id: &str, command: Vec<String>, deadline: Duration) -> Outcome {
    let shown = command.join(" ");
    let run = runtime.exec_sync(id, command, deadline);
    match tokio::time::timeout(deadline + Duration::from_secs(1), run).await {
        Ok(Ok(answer)) if answer.exit_code == 0 => Outcome::Success,
        Ok(Ok(answer)) => {
            let output = [answer.stdout, answer.stderr].concat();
            Outcome::Failure(String::from_utf8_lossy(&output).chars().take(1024).collect())
        }
        Ok(Err(error)) if error.kind == crate::cri::CriErrorKind::Deadline || error.message.contains("timeout") => {
            Outcome::Failure(format!("command timed out: {shown:?} timed out after {}s", deadline.as_secs()))
        }
        Ok(Err(error)) => Outcome::Undecided(error.message),
        Err(_) => Outcome::Failure(format!("command timed out: {shown:?} timed out after {}s", deadline.as_secs())),
    }
}

/// Runs a postStart or preStop hook of a container at `host`; `limit` bounds it where it has no bound of its own.
///
/// # Errors
/// What failed, for the event.
pub async fn hook(
    runtime: &dyn Runtime,
    handler: &LifecycleHandler,
    container: &Container,
    id: &str,
    host: &str,
    limit: Option<Duration>,
) -> Result<(), String> {
    let bounded = async {
        if let Some(exec) = &handler.exec {
            let command = exec.command.clone().unwrap_or_default();
            let shown = format!("{command:?}");
            let answer = runtime.exec_sync(id, command, limit.unwrap_or(Duration::ZERO)).await;
            return match answer {
                Ok(answer) if answer.exit_code == 0 => Ok(()),
                Ok(answer) => {
                    let output = String::from_utf8_lossy(&[answer.stdout, answer.stderr].concat()).into_owned();
                    Err(format!("command {shown} exited with {}: {output}", answer.exit_code))
                }
                Err(error) => Err(error.to_string()),
            };
        }
        if let Some(action) = &handler.http_get {
            let answer = dial::get(action, container, host, HOOK_AGENT, limit.unwrap_or(HOOK_DEADLINE)).await?;
            return match answer.status {
                200..400 => Ok(()),
                status => Err(format!("HTTP hook failed with statuscode: {status}")),
            };
        }
        if let Some(action) = &handler.sleep {
            tokio::time::sleep(Duration::from_secs(action.seconds.max(0) as u64)).await;
            return Ok(());
        }
        if handler.tcp_socket.is_some() {
            return Err(
                "tcpSocket is not a lifecycle handler that stock runs either; use exec, httpGet or sleep".into()
            );
        }
        Err("invalid handler: no action is given".to_owned())
    };
    match limit {
        None => bounded.await,
        Some(limit) => tokio::time::timeout(limit, bounded)
            .await
            .unwrap_or_else(|_| Err(format!("the hook did not end within {} s", limit.as_secs()))),
    }
}
