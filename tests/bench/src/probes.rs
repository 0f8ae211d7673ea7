//! What probing costs: a node full of pods that are each asked once a second, beside a bare client that asks the same.

use std::fs::File;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use bosun_tests::Node;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, ListParams};
use nix::sched::{CloneFlags, setns};
use nix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Once a second, as the probes.
const PERIOD: Duration = Duration::from_secs(1);

/// A pod as [`crate::pods::pod`], asked once a second whether it is ready.
pub(crate) fn probed(name: &str, node: &str) -> Result<Pod> {
    let mut pod = crate::pods::pod(name, node)?;
    let container =
        pod.spec.as_mut().and_then(|spec| spec.containers.first_mut()).context("a pod without containers")?;
    container.readiness_probe = Some(serde_json::from_value(
        serde_json::json!({"httpGet": {"path": "/readyz", "port": 8080}, "periodSeconds": 1}),
    )?);
    Ok(pod)
}

/// Addresses of the pods that [`probed`] made.
pub(crate) async fn addresses(client: &Client, prefix: &str) -> Result<Vec<SocketAddr>> {
    let pods = Api::<Pod>::default_namespaced(client.clone()).list(&ListParams::default()).await?;
    let ours = pods.items.iter().filter(|p| p.metadata.name.as_deref().is_some_and(|name| name.starts_with(prefix)));
    let ips = ours.filter_map(|pod| pod.status.as_ref()?.pod_ip.clone());
    ips.map(|ip| Ok(SocketAddr::new(ip.parse()?, 8080))).collect()
}

/// Share of one core, in percent, that a client takes which does nothing but ask each of them once a second, from
/// within the node's network, over `span`.
pub(crate) async fn bare(node: &Node, pods: Vec<SocketAddr>, span: Duration) -> Result<f64> {
    let netns = node.netns.clone();
    let asking = tokio::task::spawn_blocking(move || {
        // A thread of its own, since it stays in the node's network.
        let thread = thread::spawn(move || -> Result<f64> {
            setns(File::open(&netns)?, CloneFlags::CLONE_NEWNET)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(ask_all(pods, span))
        });
        thread.join().map_err(|_| anyhow!("the bare client panicked"))?
    });
    asking.await?
}

async fn ask_all(pods: Vec<SocketAddr>, span: Duration) -> Result<f64> {
    let (before, started) = (thread_time()?, Instant::now());
    let share = PERIOD / u32::try_from(pods.len().max(1))?;
    let tasks: Vec<_> = (0..)
        .zip(pods)
        .map(|(number, pod)| {
            tokio::spawn(async move {
                // Spread over the second, as probes are that began at different times.
                tokio::time::sleep(share * number).await;
                let mut ticks = tokio::time::interval(PERIOD);
                let mut answered = 0;
                while started.elapsed() < span {
                    ticks.tick().await;
                    answered += usize::from(ask(pod).await.is_ok_and(|text| text.contains(" 200 ")));
                }
                answered
            })
        })
        .collect();
    let mut answered = 0;
    let asked = tasks.len();
    for task in tasks {
        answered += task.await?;
    }
    let used = thread_time()? - before;
    let wanted = asked * usize::try_from(span.as_secs())?;
    anyhow::ensure!(answered * 10 >= wanted * 9, "only {answered} of {wanted} requests were answered");
    Ok(used.as_secs_f64() / started.elapsed().as_secs_f64() * 100.0)
}

async fn ask(pod: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect(pod).await?;
    stream.write_all(format!("GET /readyz HTTP/1.1\r\nHost: {pod}\r\nConnection: close\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Processor time of this thread.
fn thread_time() -> Result<Duration> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?))
}
