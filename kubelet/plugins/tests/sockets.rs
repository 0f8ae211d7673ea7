//! Plugins behind real sockets: found, registered, refused, lost, replaced.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bosun_kubelet_plugins::{CSI_PLUGIN, Handler, Plugin, PluginWatcher};
use bosun_proto::pluginregistration as api;
use bosun_proto::pluginregistration::registration_server::{Registration, RegistrationServer};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Serves the registration of one plugin and tells what it was told.
#[derive(Clone)]
struct FakePlugin {
    info: api::PluginInfo,
    told: mpsc::UnboundedSender<String>,
}

#[async_trait]
impl Registration for FakePlugin {
    async fn get_info(&self, _: Request<api::InfoRequest>) -> Result<Response<api::PluginInfo>, Status> {
        Ok(Response::new(self.info.clone()))
    }

    async fn notify_registration_status(
        &self,
        status: Request<api::RegistrationStatus>,
    ) -> Result<Response<api::RegistrationStatusResponse>, Status> {
        let status = status.into_inner();
        let text = if status.plugin_registered { "told: registered".to_owned() } else { status.error };
        let _ = self.told.send(text);
        Ok(Response::new(api::RegistrationStatusResponse {}))
    }
}

/// Writes down what it is asked; refuses the name `bad`, and the names in `failing` once each.
struct FakeHandler {
    told: mpsc::UnboundedSender<String>,
    failing: Mutex<Vec<String>>,
}

#[async_trait]
impl Handler for FakeHandler {
    fn validate(&self, plugin: &Plugin) -> Result<(), String> {
        if plugin.name == "bad" { Err("bad name".to_owned()) } else { Ok(()) }
    }

    async fn register(&self, plugin: &Plugin) -> Result<(), String> {
        let failing = {
            let mut failing = self.failing.lock().unwrap();
            failing.iter().position(|name| *name == plugin.name).map(|at| failing.remove(at))
        };
        let endpoint = Path::new(&plugin.endpoint).file_name().unwrap_or_default().display().to_string();
        let _ = self.told.send(format!("register {} {endpoint} {:?}", plugin.name, plugin.versions));
        failing.map_or(Ok(()), |_| Err("not now".to_owned()))
    }

    async fn deregister(&self, plugin: &Plugin) {
        let _ = self.told.send(format!("deregister {}", plugin.name));
    }
}

struct World {
    root: TempDir,
    told_to: mpsc::UnboundedSender<String>,
    told: mpsc::UnboundedReceiver<String>,
    cancel: CancellationToken,
}

impl World {
    fn new() -> Self {
        let (told_to, told) = mpsc::unbounded_channel();
        Self { root: tempfile::tempdir().unwrap(), told_to, told, cancel: CancellationToken::new() }
    }

    fn registry(&self) -> PathBuf {
        self.root.path().join("plugins_registry")
    }

    fn start(&self, failing: &[&str]) -> JoinHandle<()> {
        let failing = Mutex::new(failing.iter().map(ToString::to_string).collect());
        let handler: Arc<dyn Handler> = Arc::new(FakeHandler { told: self.told_to.clone(), failing });
        let watcher = PluginWatcher::new(&self.registry(), [(CSI_PLUGIN.to_owned(), handler)]).unwrap();
        tokio::spawn(watcher.run(self.cancel.clone()))
    }

    fn plugin(&self, socket: &str, kind: &str, name: &str, endpoint: &str) -> JoinHandle<()> {
        let path = self.registry().join(socket);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let info = api::PluginInfo {
            r#type: kind.into(),
            name: name.into(),
            endpoint: endpoint.into(),
            supported_versions: vec!["1.0.0".into()],
        };
        let listener = UnixListener::bind(&path).unwrap();
        let plugin = FakePlugin { info, told: self.told_to.clone() };
        tokio::spawn(async move {
            let server = tonic::transport::Server::builder().add_service(RegistrationServer::new(plugin));
            server.serve_with_incoming(UnixListenerStream::new(listener)).await.unwrap();
        })
    }

    async fn next(&mut self) -> String {
        tokio::time::timeout(PATIENCE, self.told.recv()).await.expect("something happens").unwrap()
    }

    fn remove(&self, socket: &str) {
        std::fs::remove_file(self.registry().join(socket)).unwrap();
    }
}

#[tokio::test]
async fn plugins_come_go_and_are_replaced() {
    let mut world = World::new();
    // There before the kubelet, and its endpoint is another socket.
    let _first = world.plugin("first-reg.sock", CSI_PLUGIN, "first", "/plugins/first/csi.sock");
    let running = world.start(&[]);
    assert_eq!(world.next().await, r#"register first csi.sock ["1.0.0"]"#);
    assert_eq!(world.next().await, "told: registered");
    // Later, in a folder of its own.
    let second = world.plugin("driver/second.sock", CSI_PLUGIN, "second", "");
    assert_eq!(world.next().await, r#"register second second.sock ["1.0.0"]"#);
    assert_eq!(world.next().await, "told: registered");
    // Replaced by a socket of the same name.
    second.abort();
    world.remove("driver/second.sock");
    let _again = world.plugin("driver/second.sock", CSI_PLUGIN, "second", "");
    assert_eq!(world.next().await, "deregister second");
    assert_eq!(world.next().await, r#"register second second.sock ["1.0.0"]"#);
    assert_eq!(world.next().await, "told: registered");
    world.remove("first-reg.sock");
    assert_eq!(world.next().await, "deregister first");
    // Folders that go take their plugins along.
    std::fs::remove_dir_all(world.registry().join("driver")).unwrap();
    assert_eq!(world.next().await, "deregister second");
    world.cancel.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn a_refusal_is_told_and_tried_again() {
    let mut world = World::new();
    let _unknown = world.plugin("unknown.sock", "OtherPlugin", "x", "");
    let running = world.start(&["shy"]);
    let told = world.next().await;
    assert!(told.starts_with("RegisterPlugin error -- no handler registered for plugin type: OtherPlugin at socket"));
    world.remove("unknown.sock");
    let _bad = world.plugin("bad.sock", CSI_PLUGIN, "bad", "");
    assert_eq!(world.next().await, "RegisterPlugin error -- plugin validation failed with err: bad name");
    world.remove("bad.sock");
    let _shy = world.plugin("shy.sock", CSI_PLUGIN, "shy", "");
    let mut lines = Vec::new();
    for _ in 0..4 {
        lines.push(world.next().await);
    }
    let golden = r#"register shy shy.sock ["1.0.0"]
RegisterPlugin error -- plugin registration failed with err: not now
register shy shy.sock ["1.0.0"]
told: registered"#;
    assert_eq!(lines.join("\n"), golden);
    world.cancel.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn a_socket_that_hangs_does_not_hold_up_another() {
    let mut world = World::new();
    std::fs::create_dir_all(world.registry()).unwrap();
    // Takes connections and never answers.
    let _hangs = UnixListener::bind(world.registry().join("hangs.sock")).unwrap();
    // Nobody listens any more.
    drop(UnixListener::bind(world.registry().join("stale.sock")).unwrap());
    let running = world.start(&[]);
    let _good = world.plugin("good.sock", CSI_PLUGIN, "good", "");
    let began = std::time::Instant::now();
    assert_eq!(world.next().await, r#"register good good.sock ["1.0.0"]"#);
    assert_eq!(world.next().await, "told: registered");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    world.cancel.cancel();
    running.await.unwrap();
}
