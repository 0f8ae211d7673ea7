//! Bad input: each is refused with a sentence that names the thing, and nothing is half done.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use bosun_tests::Kubectl;
use bosun_tests::process::{Daemon, eventually};
use bosun_tests::program::{call, output};
use bosun_tests::tools::KUBECTL;

use crate::Cases;
use crate::case::{Case, Era, LIMIT, has};

pub(crate) const CASES: Cases = &[
    ("malformed_manifests", malformed_manifests),
    ("invalid_objects", invalid_objects),
    ("an_absent_image_is_told", an_absent_image_is_told),
    ("bad_start_of_an_agent", bad_start_of_an_agent),
    ("bad_start_of_a_server", bad_start_of_a_server),
    ("foreign_credentials", foreign_credentials),
    ("a_full_disk_refuses_writes", a_full_disk_refuses_writes),
];

fn malformed_manifests(case: &Case) -> Result<()> {
    let apply = ["apply", "-f", "-"];
    has(&case.kubectl.refused(&apply, "kind: [")?, "yaml")?;
    has(&case.kubectl.refused(&apply, "a: b\n")?, "kind")?;
    has(&case.kubectl.refused(&apply, "apiVersion: v9\nkind: Gadget\nmetadata: {name: x}\n")?, "Gadget")?;
    let unknown = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\nstuff: {}\n";
    has(&case.kubectl.refused(&apply, unknown)?, "unknown field \"stuff\"")
        .or_else(|_| has(&case.kubectl.refused(&apply, unknown)?, "unknown field \"stuff\" in"))?;
    has(&case.kubectl.refused(&["get", "configmap", "x"], "")?, "not found")?;
    // The server itself, without a client's help.
    let raw = ["create", "--raw", &format!("/api/v1/namespaces/{}/configmaps", case.namespace), "-f", "-"];
    has(&case.kubectl.refused(&raw, "{\"kind\":")?, "unable to parse requested object")
        .or_else(|_| has(&case.kubectl.refused(&raw, "{\"kind\":")?, "Error from server (BadRequest)"))
}

fn invalid_objects(case: &Case) -> Result<()> {
    let apply = ["apply", "-f", "-"];
    let said = case.kubectl.refused(
        &apply,
        "apiVersion: v1\nkind: Pod\nmetadata: {name: Bad_Name}\nspec: {containers: [{name: a, image: b}]}\n",
    )?;
    has(
        &said,
        "The Pod \"Bad_Name\" is invalid: metadata.name: Invalid value: \"Bad_Name\": a lowercase RFC 1123 subdomain",
    )?;
    let said =
        case.kubectl.refused(&apply, "apiVersion: v1\nkind: Pod\nmetadata: {name: empty}\nspec: {containers: []}\n")?;
    has(&said, "spec.containers: Required value")?;
    let said = case
        .kubectl
        .refused(&apply, "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: 70000}]}\n")?;
    has(&said, "spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive")?;
    let pod = case.pod("once", "containers: [{name: a, image: 'localhost/bosun-web:dev', imagePullPolicy: Never}]\n");
    case.kubectl.feed(&["create", "-f", "-"], &pod)?;
    let said = case.kubectl.refused(&["create", "-f", "-"], &pod)?;
    has(&said, "Error from server (AlreadyExists)")?;
    has(&said, "pods \"once\" already exists")?;
    let changed = pod.replace("name: a,", "name: b,");
    has(&case.kubectl.refused(&apply, &changed)?, "pod updates may not")
        .or_else(|_| has(&case.kubectl.refused(&apply, &changed)?, "Forbidden"))
}

fn an_absent_image_is_told(case: &Case) -> Result<()> {
    let spec = "containers: [{name: a, image: 'localhost/absent:dev', imagePullPolicy: Never}]\n";
    case.kubectl.apply(&case.pod("absent", spec))?;
    case.becomes("pod/absent", ".status.containerStatuses[0].state.waiting.reason", "ErrImageNeverPull")?;
    let message = case.field("pod/absent", ".status.containerStatuses[0].state.waiting.message")?;
    has(&message, "localhost/absent:dev")
}

/// Runs `bosun` with arguments that must make it end, and returns what it said.
fn ends(case: &Case, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("timeout");
    command.arg("30").arg(case.cluster.binaries.join("bosun")).args(arguments);
    let output = output(&mut command)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "it should not have run: {arguments:?}\n{said}");
    ensure!(output.status.code() != Some(124), "it neither ran nor ended: {arguments:?}\n{said}");
    ensure!(!said.contains("panicked"), "it panicked: {arguments:?}\n{said}");
    Ok(said)
}

fn bad_start_of_an_agent(case: &Case) -> Result<()> {
    let folder = case.cluster.fabric.data.join(format!("bad-{}", case.namespace));
    fs::create_dir_all(&folder)?;
    let data = folder.join("agent").display().to_string();
    let url = case.cluster.url();
    let cni = folder.join("cni").display().to_string();
    let common = ["agent", "--server", &url, "--data-dir", &data, "--node-ip", "127.0.0.1", "--node-name", "bad"];
    let common = [&common[..], &["--cni-bin-dir", &cni, "--cni-conf-dir", &cni, "--cni-data-dir", &cni]].concat();
    let with = |more: &[&str]| ends(case, &[&common[..], more].concat());
    has(&with(&["--token", "a.b", "--ca-file", "/nowhere/ca.crt"])?, "/nowhere/ca.crt")?;
    let broken = folder.join("broken.crt").display().to_string();
    fs::write(&broken, "no certificate")?;
    has(&with(&["--token", "abcdef.0123456789abcdef", "--ca-file", &broken])?, "certificate")?;
    let ca = case.cluster.fabric.data.join("server/pki/ca.crt").display().to_string();
    let socket = ["--container-runtime-endpoint", "unix:///nowhere/containerd.sock"];
    let said = with(&[&["--token", "abcdef.0123456789abcdef", "--ca-file", &ca], &socket[..]].concat())?;
    has(&said, "/nowhere/containerd.sock")?;
    has(&ends(case, &["agent"])?, "--server")?;
    let kubeconfig = folder.join("broken.kubeconfig");
    fs::write(&kubeconfig, "clusters: 7\n")?;
    let kubeconfig = kubeconfig.display().to_string();
    has(&ends(case, &["scheduler", "--kubeconfig", &kubeconfig])?, &kubeconfig)
}

fn bad_start_of_a_server(case: &Case) -> Result<()> {
    if case.era == Era::Old {
        return Ok(());
    }
    let folder = case.cluster.fabric.data.join(format!("bad-{}", case.namespace));
    fs::create_dir_all(&folder)?;
    let taken = TcpListener::bind("127.0.0.1:6443")?;
    let data = folder.join("server").display().to_string();
    let said = ends(case, &["server", "--data-dir", &data, "--bind-address", "127.0.0.1"])?;
    has(&said, "6443")?;
    drop(taken);
    let file = folder.join("file").display().to_string();
    fs::write(&file, "")?;
    has(&ends(case, &["server", "--data-dir", &file, "--bind-address", "127.0.0.1"])?, &file)?;
    // A data folder that another server uses.
    let used = case.cluster.fabric.data.join("server").display().to_string();
    let said = ends(case, &["server", "--data-dir", &used, "--bind-address", "127.0.0.1"])?;
    has(&said, &used)
}

fn foreign_credentials(case: &Case) -> Result<()> {
    let url = case.cluster.url();
    let anonymous = Command::new("timeout")
        .arg("30")
        .arg(case.cluster.tools.path(&KUBECTL))
        .args(["--kubeconfig=/dev/null", "--server", &url, "--insecure-skip-tls-verify", "--token=nonsense"])
        .args(["get", "pods"])
        .output()?;
    has(&String::from_utf8_lossy(&anonymous.stderr), "Unauthorized")
        .or_else(|_| has(&String::from_utf8_lossy(&anonymous.stderr), "You must be logged in to the server"))?;
    let limited = ["auth", "can-i", "list", "secrets", "--as=system:serviceaccount:default:default"];
    let said = output(&mut case.kubectl.command(&limited))?;
    has(&String::from_utf8_lossy(&said.stdout), "no")?;
    Ok(())
}

/// A server of its own on a small file system: full, it serves reads and says why it refuses writes; with room again
/// it goes on.
fn a_full_disk_refuses_writes(case: &Case) -> Result<()> {
    if case.era == Era::Old {
        return Ok(());
    }
    let folder = case.cluster.fabric.data.join("full");
    fs::create_dir_all(&folder)?;
    call("mount", &["-t", "tmpfs", "-o", "size=48m", "tmpfs", &folder.display().to_string()])?;
    let kubeconfig = folder.join("admin.kubeconfig");
    let server = Daemon::new("full-server", &case.cluster.fabric.run(), &case.cluster.fabric.logs());
    let mut command = Command::new(case.cluster.binaries.join("bosun"));
    command.arg("server").arg("--data-dir").arg(folder.join("server")).arg("--write-kubeconfig").arg(&kubeconfig);
    command.args(["--bind-address", "127.0.0.1", "--secure-port", "7443", "--disable", "dns"]);
    server.start(&mut command)?;
    let kubectl = Kubectl::new(&case.cluster.tools.path(&KUBECTL), &kubeconfig);
    server.wait("readiness", LIMIT, || kubeconfig.exists() && kubectl.ask(&["get", "--raw=/readyz"]).is_ok())?;
    let written = || (0..200).try_for_each(|number| write_one(&kubectl, number));
    let filler = folder.join("filler");
    let mut file = fs::File::create(&filler)?;
    while file.write_all(&[1; 65536]).is_ok() {}
    let refused = written().err().map(|error| format!("{error:#}"));
    has(&refused.unwrap_or_else(|| "nothing was refused".to_owned()), "space")?;
    has(&kubectl.ask(&["get", "namespaces"])?, "kube-system")?;
    drop(file);
    fs::remove_file(&filler)?;
    eventually("writes with room again", LIMIT, || write_one(&kubectl, 1000))?;
    server.stop(Duration::from_secs(10))?;
    call("umount", &[&folder.display().to_string()])?;
    Ok(())
}

fn write_one(kubectl: &Kubectl, number: usize) -> Result<()> {
    let text = "x".repeat(400_000);
    let object = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: big-{number}}}\ndata: {{text: {text}}}\n");
    kubectl.feed(&["create", "--validate=false", "-f", "-"], &object)?;
    Ok(())
}
