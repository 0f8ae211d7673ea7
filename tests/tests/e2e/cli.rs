//! What people type.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bosun_tests::images::{BUSYBOX_IMAGE, WEB};
use bosun_tests::process::eventually;
use bosun_tests::program::{feed, line, output, run};

use crate::Cases;
use crate::case::{Case, Era, LIMIT, has};

pub(crate) const CASES: Cases = &[
    ("get_and_describe", get_and_describe),
    ("apply_patch_label_delete", apply_patch_label_delete),
    ("run_expose_scale_rollout", run_expose_scale_rollout),
    ("logs", logs),
    ("exec_with_input_terminal_and_code", exec_with_input_terminal_and_code),
    ("port_forward", port_forward),
    ("cp_both_ways", cp_both_ways),
    ("attach", attach),
    ("discovery_and_explain", discovery_and_explain),
    ("watch_and_selectors", watch_and_selectors),
];

/// Ends a client that would go on.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn get_and_describe(case: &Case) -> Result<()> {
    case.web("one")?;
    let pods = case.kubectl.ask(&["get", "pods", "-o", "wide"])?;
    let mut lines = pods.lines();
    let head: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    ensure!(head[..8] == ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE", "NOMINATED"], "{pods}");
    let row: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    ensure!(row[..4] == ["one", "1/1", "Running", "0"] && row[6] == case.member.node.name, "{pods}");
    let nodes = case.kubectl.ask(&["get", "nodes"])?;
    has(&nodes, "NAME     STATUS   ROLES")?;
    has(&nodes, "node-2   Ready")?;
    let told = case.kubectl.ask(&["describe", "pod", "one"])?;
    for part in ["Status:", "Running", "Successfully assigned", "Container created", "Container started", "QoS Class:"]
    {
        has(&told, part)?;
    }
    let told = case.kubectl.ask(&["describe", "node", &case.member.node.name])?;
    for part in ["Conditions:", "KubeletReady", "Allocatable:", "containerd://", "Non-terminated Pods:", "Lease:"] {
        has(&told, part)?;
    }
    has(&case.kubectl.ask(&["get", "pod", "one", "-o", "yaml"])?, "kind: Pod")?;
    has(&case.kubectl.ask(&["get", "events"])?, "Scheduled")
}

fn apply_patch_label_delete(case: &Case) -> Result<()> {
    let manifest = |color: &str| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: thing}}\ndata: {{color: {color}, gone: soon}}\n")
    };
    has(&case.kubectl.apply(&manifest("red"))?, "configmap/thing created")?;
    has(&case.kubectl.apply(&manifest("red"))?, "configmap/thing unchanged")?;
    has(&case.kubectl.apply(&manifest("blue"))?, "configmap/thing configured")?;
    has(&case.kubectl.apply(&manifest("blue").replace(", gone: soon", ""))?, "configmap/thing configured")?;
    ensure!(case.field("configmap/thing", ".data")?.replace(' ', "") == r#"{"color":"blue"}"#);
    let json = r#"[{"op":"replace","path":"/data/color","value":"green"}]"#;
    case.kubectl.ask(&["patch", "configmap", "thing", "--type=json", "-p", json])?;
    ensure!(case.field("configmap/thing", ".data.color")? == "green");
    case.kubectl.ask(&["label", "configmap", "thing", "tier=back"])?;
    case.kubectl.ask(&["annotate", "configmap", "thing", "note=seen"])?;
    has(&case.kubectl.ask(&["get", "configmaps", "-l", "tier=back", "-o", "name"])?, "configmap/thing")?;
    let diff = output(&mut case.kubectl.command(&["get", "configmap", "other"]))?;
    ensure!(!diff.status.success());
    has(&case.kubectl.ask(&["delete", "configmap", "-l", "tier=back"])?, "deleted")
}

fn run_expose_scale_rollout(case: &Case) -> Result<()> {
    let image = format!("--image={WEB}");
    case.kubectl.ask(&["run", "single", &image, "--image-pull-policy=Never", "--port=8080"])?;
    case.ready("single")?;
    has(&case.kubectl.ask(&["expose", "pod", "single", "--port=80", "--target-port=8080"])?, "service/single exposed")?;
    case.kubectl.ask(&["create", "deployment", "web", &image])?;
    case.kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    case.kubectl.ask(&["scale", "deployment", "web", "--replicas=3"])?;
    case.becomes("deployment/web", ".status.readyReplicas", "3")?;
    case.kubectl.ask(&["set", "env", "deployment/web", "GREETING=Ahoy"])?;
    case.kubectl.run(&["rollout", "status", "deployment/web", "--timeout=90s"])?;
    let history = case.kubectl.ask(&["rollout", "history", "deployment/web"])?;
    ensure!(history.lines().filter(|line| line.starts_with(['1', '2'])).count() == 2, "{history}");
    case.kubectl.ask(&["rollout", "undo", "deployment/web"])?;
    case.kubectl.run(&["rollout", "status", "deployment/web", "--timeout=90s"])?;
    ensure!(case.field("deployment/web", ".spec.template.spec.containers[0].env")?.is_empty());
    case.kubectl.ask(&["rollout", "restart", "deployment/web"])?;
    case.kubectl.run(&["rollout", "status", "deployment/web", "--timeout=90s"])?;
    has(&case.kubectl.ask(&["get", "deployment", "web"])?, "3/3")
}

fn logs(case: &Case) -> Result<()> {
    let spec = format!(
        "restartPolicy: Never\ncontainers:\n- name: talk\n  image: {BUSYBOX_IMAGE}\n  imagePullPolicy: Never\n  \
         command: [sh, -c, 'for i in 1 2 3; do echo line $i; sleep 1; done; echo last >&2']\n"
    );
    case.kubectl.apply(&case.pod("talker", &spec))?;
    eventually("the container having started", LIMIT, || case.kubectl.ask(&["logs", "talker"]))?;
    // Ends by itself when the container does.
    let followed = case.kubectl.run(&["logs", "-f", "talker"])?;
    ensure!(followed == "line 1\nline 2\nline 3\nlast\n", "{followed:?}");
    ensure!(case.kubectl.ask(&["logs", "talker", "--tail=2"])? == "line 3\nlast\n");
    let stamped = case.kubectl.ask(&["logs", "talker", "--timestamps", "--tail=1"])?;
    ensure!(stamped.starts_with("20") && stamped.ends_with("Z last\n"), "{stamped:?}");
    has(&case.kubectl.refused(&["logs", "talker", "-c", "other"], "")?, "container other is not valid for pod talker")
}

fn exec_with_input_terminal_and_code(case: &Case) -> Result<()> {
    case.shell("shell")?;
    ensure!(case.exec("shell", &["echo", "hello"])? == "hello\n");
    let sent = "x".repeat(200_000);
    let back = case.kubectl.feed(&["exec", "-i", "shell", "--", "cat"], &sent)?;
    ensure!(back == sent, "{} bytes came back of {}", back.len(), sent.len());
    let ended = output(&mut case.kubectl.command(&["exec", "shell", "--", "sh", "-c", "echo no >&2; exit 7"]))?;
    ensure!(ended.status.code() == Some(7), "{:?}", ended.status);
    has(&String::from_utf8_lossy(&ended.stderr), "no\n")?;
    let shown =
        in_terminal(&case.kubectl.command(&["exec", "-it", "shell", "--", "sh", "-c", "tty; read x; echo got $x"]))?;
    has(&shown, "/dev/pts/")?;
    has(&shown, "got word")?;
    has(&in_terminal(&case.kubectl.command(&["exec", "-it", "shell", "--", "ttysize"]))?, "101 33")
}

/// Runs a client in a terminal of 101 columns and 33 rows, so that it asks for one on the other side, and types a word.
fn in_terminal(typed: &Command) -> Result<String> {
    let mut terminal = Command::new("script");
    for (name, value) in typed.get_envs() {
        value.map(|value| terminal.env(name, value));
    }
    let typed = format!("stty cols 101 rows 33; exec {}", quoted(typed));
    feed(terminal.args(["-q", "-e", "-c", &typed, "/dev/null"]), "word\n")
}

/// A command for a shell.
fn quoted(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let quote = |word: &std::ffi::OsStr| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''"));
    words.map(quote).collect::<Vec<_>>().join(" ")
}

fn port_forward(case: &Case) -> Result<()> {
    case.web("one")?;
    let mut command = case.kubectl.command(&["port-forward", "pod/one", ":8080", "--address=127.0.0.1"]);
    let mut running = Running(command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?);
    let mut said = String::new();
    // Held to the end: kubectl goes on telling, and would end if nobody could hear it.
    let mut told = BufReader::new(running.0.stdout.take().context("no output")?);
    told.read_line(&mut said)?;
    let port = said.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()).context(line(&command))?;
    let port: u16 = port.parse().with_context(|| said.clone())?;
    for _ in 0..3 {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"GET /hostname HTTP/1.1\r\nHost: x\r\n\r\n")?;
        // Until the body is there: how the connection ends is between kubectl and the server.
        let mut answer = Vec::new();
        while !answer.ends_with(b"one\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).with_context(|| String::from_utf8_lossy(&answer).into_owned())?;
            answer.extend(byte);
        }
    }
    Ok(())
}

fn cp_both_ways(case: &Case) -> Result<()> {
    case.shell("shell")?;
    let folder = case.cluster.fabric.data.join(format!("cp-{}", case.namespace));
    fs::create_dir_all(&folder)?;
    let content: Vec<u8> = (0..300_000_u32).map(|number| (number * 7 % 251) as u8).collect();
    fs::write(folder.join("there"), &content)?;
    let there = folder.join("there").display().to_string();
    let back = folder.join("back").display().to_string();
    run(&mut case.kubectl.command(&["cp", &there, "shell:/tmp/file"]))?;
    run(&mut case.kubectl.command(&["cp", "shell:/tmp/file", &back]))?;
    ensure!(fs::read(&back)? == content, "the file came back otherwise");
    Ok(())
}

fn attach(case: &Case) -> Result<()> {
    let spec = format!(
        "restartPolicy: Never\ncontainers:\n- name: echo\n  image: {BUSYBOX_IMAGE}\n  imagePullPolicy: Never\n  stdin: true\n  \
         stdinOnce: true\n  command: [sh, -c, 'read x; echo got $x; sleep 1']\n"
    );
    case.kubectl.apply(&case.pod("reader", &spec))?;
    case.ready("reader")?;
    has(&case.kubectl.feed(&["attach", "-i", "reader"], "word\n")?, "got word")?;
    case.becomes("pod/reader", ".status.phase", "Succeeded")
}

fn discovery_and_explain(case: &Case) -> Result<()> {
    let resources = case.kubectl.ask(&["api-resources"])?;
    for name in ["pods", "deployments", "endpointslices", "leases", "clusterroles", "poddisruptionbudgets"] {
        has(&resources, name)?;
    }
    has(&case.kubectl.ask(&["api-versions"])?, "apps/v1\n")?;
    has(&case.kubectl.ask(&["version"])?, "1.36")?;
    has(&case.kubectl.ask(&["explain", "pod.spec.containers"])?, "image")?;
    has(&case.kubectl.ask(&["auth", "can-i", "create", "pods"])?, "yes")?;
    if case.era == Era::New {
        has(&case.kubectl.ask(&["auth", "whoami"])?, "system:masters")?;
    }
    has(&case.kubectl.ask(&["get", "--raw", "/healthz"])?, "ok")
}

fn watch_and_selectors(case: &Case) -> Result<()> {
    let mut command = case.kubectl.command(&["get", "configmaps", "-l", "seen=yes", "--watch", "-o", "name"]);
    let mut running = Running(command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?);
    let pipe = running.0.stdout.take().context("no output")?;
    for (name, seen) in [("first", "no"), ("second", "yes")] {
        case.kubectl.apply(&format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, labels: {{seen: '{seen}'}}}}\n"
        ))?;
    }
    let mut told = String::new();
    BufReader::new(pipe).read_line(&mut told)?;
    ensure!(told == "configmap/second\n", "{told:?}");
    let by_field = ["get", "configmaps", "--field-selector=metadata.name=first", "-o", "name"];
    ensure!(case.kubectl.ask(&by_field)? == "configmap/first\n");
    Ok(())
}
