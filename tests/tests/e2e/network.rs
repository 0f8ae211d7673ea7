//! Services, by every way to reach them.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bosun_tests::images::WEB;
use bosun_tests::process::eventually;

use crate::Cases;
use crate::case::{Case, LIMIT, has};

pub(crate) const CASES: Cases = &[
    ("a_service_answers_in_every_way", a_service_answers_in_every_way),
    ("a_service_follows_its_pods", a_service_follows_its_pods),
    ("a_headless_service_names_its_pods", a_headless_service_names_its_pods),
    ("pods_reach_each_other_across_nodes", pods_reach_each_other_across_nodes),
    ("the_api_is_reached_from_pods", the_api_is_reached_from_pods),
];

fn deployment(case: &Case, replicas: u32) -> Result<()> {
    case.kubectl.apply(&format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 2
      containers: [{{name: web, image: '{WEB}', imagePullPolicy: Never, ports: [{{name: http, containerPort: 8080}}]}}]
"
    ))?;
    case.kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    Ok(())
}

fn service(case: &Case, spec: &str) -> Result<()> {
    case.kubectl.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  selector: {{app: web}}\n  \
         ports: [{{port: 80, targetPort: http}}]\n{spec}"
    ))?;
    Ok(())
}

fn a_service_answers_in_every_way(case: &Case) -> Result<()> {
    deployment(case, 3)?;
    service(case, "  type: NodePort\n")?;
    case.shell("shell")?;
    let address = case.field("service/web", ".spec.clusterIP")?;
    let port: u16 = case.field("service/web", ".spec.ports[0].nodePort")?.parse()?;
    has(&case.fetch("shell", &format!("http://{address}/"))?, "Hello from web-")?;
    has(&case.fetch("shell", "http://web/")?, "Hello from web-")?;
    has(&case.fetch("shell", &format!("http://web.{}.svc.cluster.local/", case.namespace))?, "Hello from web-")?;
    for member in &case.cluster.members {
        // From a pod, from the node itself by ClusterIP, and from outside.
        let node = member.node.address;
        has(&case.fetch("shell", &format!("http://{node}:{port}/"))?, "Hello from web-")?;
        let from_node = || member.fetch(&case.cluster.binaries, &format!("http://{address}/"));
        has(&eventually("ClusterIP from a node", LIMIT, from_node)?, "Hello from web-")?;
        has(&eventually("NodePort from outside", LIMIT, || get(node, port))?, "Hello from web-")?;
    }
    // All pods take their share. By its path: the shell would take busybox's own wget, which is broken.
    let all = "for i in $(seq 60); do /bin/wget -T 3 -qO- http://web/hostname; done | sort -u | wc -l";
    ensure!(case.exec("shell", &["sh", "-c", all])?.trim() == "3", "not every pod was asked");
    Ok(())
}

fn a_service_follows_its_pods(case: &Case) -> Result<()> {
    deployment(case, 1)?;
    service(case, "")?;
    case.shell("shell")?;
    case.fetch("shell", "http://web/")?;
    case.kubectl.ask(&["scale", "deployment", "web", "--replicas=0"])?;
    case.becomes("endpoints/web", ".subsets", "")?;
    eventually("no answer any more", LIMIT, || {
        let quick = case.exec("shell", &["sh", "-c", "timeout 5 /bin/wget -T 3 -qO- http://web/ 2>&1 || true"])?;
        has(&quick, "refused")
    })?;
    case.kubectl.ask(&["scale", "deployment", "web", "--replicas=2"])?;
    has(&case.fetch("shell", "http://web/")?, "Hello from web-")
}

fn a_headless_service_names_its_pods(case: &Case) -> Result<()> {
    deployment(case, 2)?;
    service(case, "  clusterIP: None\n")?;
    case.shell("shell")?;
    let addresses = case.field("pods -l app=web".split(' ').next().unwrap_or_default(), ".items[*].status.podIP")?;
    let name = format!("web.{}.svc.cluster.local", case.namespace);
    eventually("both addresses", LIMIT, || {
        let told = case.exec("shell", &["nslookup", &name])?;
        let found = addresses.split_whitespace().filter(|address| told.contains(*address)).count();
        ensure!(found == 2, "{told}");
        Ok(())
    })
}

fn pods_reach_each_other_across_nodes(case: &Case) -> Result<()> {
    case.shell("shell")?;
    let other = case.cluster.members.iter().find(|member| member.node.name != case.member.node.name);
    let other = &other.context("there is one node only")?.node.name;
    case.kubectl.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: far}}\nspec:\n  nodeName: {other}\n  \
         containers: [{{name: web, image: '{WEB}', imagePullPolicy: Never}}]\n"
    ))?;
    case.ready("far")?;
    let (far, near) = (case.field("pod/far", ".status.podIP")?, case.field("pod/shell", ".status.podIP")?);
    ensure!(far != near);
    // With the pod's own address as the source: nothing between pods is masqueraded.
    has(&case.fetch("shell", &format!("http://{far}:8080/client"))?, &near)
}

fn the_api_is_reached_from_pods(case: &Case) -> Result<()> {
    case.shell("shell")?;
    let script = "test -s /var/run/secrets/kubernetes.io/serviceaccount/token && \
                  nc -w 3 $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT </dev/null && echo reached";
    let told = eventually("the API from a pod", LIMIT, || case.exec("shell", &["sh", "-c", script]))?;
    has(&told, "reached")
}

fn get(address: Ipv4Addr, port: u16) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&(address, port).into(), Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
