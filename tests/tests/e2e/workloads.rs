//! Pods and what makes them.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bosun_tests::images::{BUSYBOX_IMAGE, WEB};
use bosun_tests::process::eventually;

use crate::Cases;
use crate::case::{Case, Era, LIMIT, has};

pub(crate) const CASES: Cases = &[
    ("a_pod_becomes_ready_and_goes", a_pod_becomes_ready_and_goes),
    ("environment_and_volumes", environment_and_volumes),
    ("a_changed_config_map_reaches_the_file", a_changed_config_map_reaches_the_file),
    ("readiness_and_liveness", readiness_and_liveness),
    ("exec_and_tcp_probes", exec_and_tcp_probes),
    ("restart_policies", restart_policies),
    ("a_job_completes", a_job_completes),
    ("a_daemon_set_is_on_every_node", a_daemon_set_is_on_every_node),
    ("an_unplaceable_pod_says_why", an_unplaceable_pod_says_why),
    ("owned_objects_go_with_their_owner", owned_objects_go_with_their_owner),
    ("limits_reach_the_cgroup", limits_reach_the_cgroup),
    ("a_resize_reaches_the_cgroup", a_resize_reaches_the_cgroup),
    ("a_rule_restarts_all_containers", a_rule_restarts_all_containers),
    ("an_init_container_gives_variables", an_init_container_gives_variables),
    ("security_contexts_are_what_processes_have", security_contexts_are_what_processes_have),
    ("runtime_classes_name_a_handler", runtime_classes_name_a_handler),
    ("a_resize_of_the_whole_pod_reaches_its_cgroup", a_resize_of_the_whole_pod_reaches_its_cgroup),
    ("debug_with_an_ephemeral_container", debug_with_an_ephemeral_container),
];

fn a_pod_becomes_ready_and_goes(case: &Case) -> Result<()> {
    case.web("one")?;
    ensure!(case.field("pod/one", ".status.phase")? == "Running");
    ensure!(case.field("pod/one", ".spec.nodeName")? == case.member.node.name);
    ensure!(case.field("pod/one", ".status.hostIP")? == case.member.node.address.to_string());
    let address = case.field("pod/one", ".status.podIP")?;
    has(&case.member.fetch(&case.cluster.binaries, &format!("http://{address}:8080/hostname"))?, "one\n")?;
    let started = Instant::now();
    case.kubectl.ask(&["delete", "pod", "one"])?;
    // It ends at SIGTERM: its grace period is never waited for.
    ensure!(started.elapsed() < Duration::from_secs(20), "deleting took {:?}", started.elapsed());
    has(&case.kubectl.refused(&["get", "pod", "one"], "")?, r#"Error from server (NotFound): pods "one" not found"#)
}

fn environment_and_volumes(case: &Case) -> Result<()> {
    case.kubectl.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {color: green, file.txt: 'from a config map'}\n")?;
    case.kubectl
        .apply("apiVersion: v1\nkind: Secret\nmetadata: {name: hidden}\nstringData: {password: swordfish}\n")?;
    let spec = format!(
        "initContainers:
- name: before
  image: {BUSYBOX_IMAGE}
  imagePullPolicy: Never
  command: [sh, -c, 'echo made before > /shared/note']
  volumeMounts: [{{name: shared, mountPath: /shared}}]
containers:
- name: main
  image: {BUSYBOX_IMAGE}
  imagePullPolicy: Never
  command: [sleep, '100000']
  env:
  - {{name: PLAIN, value: plain}}
  - {{name: COLOR, valueFrom: {{configMapKeyRef: {{name: settings, key: color}}}}}}
  - {{name: PASSWORD, valueFrom: {{secretKeyRef: {{name: hidden, key: password}}}}}}
  - {{name: NODE, valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}}}
  - {{name: BOTH, value: $(PLAIN)-$(COLOR)}}
  envFrom:
  - {{prefix: CM_, configMapRef: {{name: settings}}}}
  volumeMounts:
  - {{name: shared, mountPath: /shared}}
  - {{name: settings, mountPath: /settings}}
  - {{name: hidden, mountPath: /hidden, readOnly: true}}
  - {{name: all, mountPath: /all}}
volumes:
- {{name: shared, emptyDir: {{}}}}
- {{name: settings, configMap: {{name: settings}}}}
- {{name: hidden, secret: {{secretName: hidden, defaultMode: 0400}}}}
- name: all
  projected:
    sources:
    - configMap: {{name: settings, items: [{{key: file.txt, path: renamed}}]}}
    - downwardAPI: {{items: [{{path: labels, fieldRef: {{fieldPath: metadata.labels}}}}]}}
"
    );
    case.kubectl.apply(&case.pod("full", &spec))?;
    case.ready("full")?;
    let script = "echo $PLAIN $COLOR $PASSWORD $NODE $BOTH $CM_color; cat /shared/note /settings/file.txt; echo; \
                  cat /hidden/password; echo; cat /all/renamed; echo; cat /all/labels; echo; stat -Lc %a /hidden/password; \
                  ls /var/run/secrets/kubernetes.io/serviceaccount";
    let shown = case.exec("full", &["sh", "-c", script])?;
    has(&shown, &format!("plain green swordfish {} plain-green green\n", case.member.node.name))?;
    has(&shown, "made before\nfrom a config map\nswordfish\nfrom a config map\napp=\"full\"\n400\n")?;
    has(&shown, "ca.crt\nnamespace\ntoken\n")
}

fn a_changed_config_map_reaches_the_file(case: &Case) -> Result<()> {
    case.kubectl.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: page}\ndata: {page: first}\n")?;
    let spec = format!(
        "containers:\n- name: web\n  image: {WEB}\n  imagePullPolicy: Never\n  args: [--root=/data]\n  \
         volumeMounts: [{{name: page, mountPath: /data}}]\nvolumes: [{{name: page, configMap: {{name: page}}}}]\n"
    );
    case.kubectl.apply(&case.pod("reader", &spec))?;
    case.ready("reader")?;
    let url = format!("http://{}:8080/files/page", case.field("pod/reader", ".status.podIP")?);
    let fetch = || case.member.fetch(&case.cluster.binaries, &url);
    ensure!(fetch()? == "first");
    case.kubectl.ask(&["patch", "configmap", "page", "--type=merge", "-p", r#"{"data":{"page":"second"}}"#])?;
    eventually("the changed file", Duration::from_secs(120), || {
        let page = fetch()?;
        ensure!(page == "second", "it is {page:?}");
        Ok(())
    })
}

fn readiness_and_liveness(case: &Case) -> Result<()> {
    let spec = format!(
        "containers:
- name: web
  image: {WEB}
  imagePullPolicy: Never
  args: [--ready-after=3]
  readinessProbe: {{httpGet: {{path: /readyz, port: 8080}}, periodSeconds: 1}}
  livenessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1, failureThreshold: 2}}
"
    );
    case.kubectl.apply(&case.pod("probed", &spec))?;
    case.becomes("pod/probed", ".status.phase", "Running")?;
    ensure!(case.field("pod/probed", ".status.containerStatuses[0].ready")? == "false", "Ready before its time");
    case.ready("probed")?;
    let address = case.field("pod/probed", ".status.podIP")?;
    case.member.fetch(&case.cluster.binaries, &format!("http://{address}:8080/fail"))?;
    case.becomes("pod/probed", ".status.containerStatuses[0].restartCount", "1")?;
    case.ready("probed")?;
    let events = case.kubectl.ask(&["describe", "pod", "probed"])?;
    has(&events, "Unhealthy")?;
    has(&events, "Liveness probe failed: HTTP probe failed with statuscode: 503")?;
    has(&events, "Container web failed liveness probe, will be restarted")
}

fn exec_and_tcp_probes(case: &Case) -> Result<()> {
    let spec = format!(
        "containers:
- name: shell
  image: {BUSYBOX_IMAGE}
  imagePullPolicy: Never
  command: [sh, -c, 'sleep 1; touch /tmp/ready; sleep 100000']
  startupProbe: {{exec: {{command: [test, -e, /tmp/ready]}}, periodSeconds: 1, failureThreshold: 30}}
  readinessProbe: {{exec: {{command: [test, -e, /tmp/ready]}}, periodSeconds: 1}}
- name: web
  image: {WEB}
  imagePullPolicy: Never
  readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}
"
    );
    case.kubectl.apply(&case.pod("probed", &spec))?;
    case.ready("probed")?;
    case.kubectl.ask(&["exec", "probed", "-c", "shell", "--", "rm", "/tmp/ready"])?;
    case.becomes("pod/probed", ".status.conditions[?(@.type==\"Ready\")].status", "False")?;
    ensure!(case.field("pod/probed", ".status.containerStatuses[*].restartCount")? == "0 0");
    Ok(())
}

fn restart_policies(case: &Case) -> Result<()> {
    let pod = |name: &str, policy: &str, script: &str| {
        let spec = format!(
            "restartPolicy: {policy}\ncontainers:\n- name: shell\n  image: {BUSYBOX_IMAGE}\n  imagePullPolicy: Never\n  \
             command: [sh, -c, '{script}']\n"
        );
        case.kubectl.apply(&case.pod(name, &spec))
    };
    pod("never", "Never", "exit 3")?;
    pod("on-failure", "OnFailure", "exit 0")?;
    pod("always", "Always", "exit 1")?;
    case.becomes("pod/never", ".status.phase", "Failed")?;
    let state = ".status.containerStatuses[0].state";
    ensure!(case.field("pod/never", &format!("{state}.terminated.exitCode"))? == "3");
    ensure!(case.field("pod/never", &format!("{state}.terminated.reason"))? == "Error");
    case.becomes("pod/on-failure", ".status.phase", "Succeeded")?;
    ensure!(case.field("pod/on-failure", &format!("{state}.terminated.reason"))? == "Completed");
    case.becomes("pod/always", &format!("{state}.waiting.reason"), "CrashLoopBackOff")?;
    ensure!(case.field("pod/always", ".status.phase")? == "Running");
    let restarts: u32 = case.field("pod/always", ".status.containerStatuses[0].restartCount")?.parse()?;
    ensure!(restarts >= 1, "CrashLoopBackOff before any restart");
    Ok(())
}

fn a_job_completes(case: &Case) -> Result<()> {
    case.kubectl.apply(&format!(
        "apiVersion: batch/v1
kind: Job
metadata: {{name: count}}
spec:
  completions: 3
  parallelism: 2
  template:
    spec:
      restartPolicy: Never
      containers:
      - {{name: count, image: '{BUSYBOX_IMAGE}', imagePullPolicy: Never, command: [echo, counted]}}
"
    ))?;
    case.kubectl.run(&["wait", "--for=condition=Complete", "job/count", "--timeout=60s"])?;
    ensure!(case.field("job/count", ".status.succeeded")? == "3");
    has(&case.kubectl.ask(&["logs", "job/count"])?, "counted\n")
}

fn a_daemon_set_is_on_every_node(case: &Case) -> Result<()> {
    case.kubectl.apply(&format!(
        "apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: everywhere}}
spec:
  selector: {{matchLabels: {{app: everywhere}}}}
  template:
    metadata: {{labels: {{app: everywhere}}}}
    spec:
      containers: [{{name: web, image: '{WEB}', imagePullPolicy: Never}}]
"
    ))?;
    case.kubectl.run(&["rollout", "status", "daemonset/everywhere", "--timeout=60s"])?;
    let nodes = case.field("pods", ".items[*].spec.nodeName")?;
    let mut nodes: Vec<&str> = nodes.split_whitespace().collect();
    nodes.sort_unstable();
    ensure!(nodes == ["node-1", "node-2"], "they are on {nodes:?}");
    Ok(())
}

fn an_unplaceable_pod_says_why(case: &Case) -> Result<()> {
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: nowhere}}\nspec:\n  nodeSelector: {{planet: mars}}\n  \
         containers: [{{name: web, image: '{WEB}', resources: {{requests: {{cpu: '1'}}}}}}]\n"
    );
    case.kubectl.apply(&pod)?;
    eventually("the reason", LIMIT, || {
        let told = case.kubectl.ask(&["describe", "pod", "nowhere"])?;
        has(&told, "FailedScheduling")?;
        has(&told, "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.")
    })?;
    ensure!(case.field("pod/nowhere", ".status.phase")? == "Pending");
    Ok(())
}

fn owned_objects_go_with_their_owner(case: &Case) -> Result<()> {
    case.kubectl.ask(&["create", "deployment", "owner", &format!("--image={WEB}")])?;
    case.kubectl.run(&["rollout", "status", "deployment/owner", "--timeout=60s"])?;
    case.kubectl.ask(&["delete", "deployment", "owner"])?;
    eventually("the pods being gone", LIMIT, || {
        let left = case.kubectl.ask(&["get", "replicasets,pods", "-o", "name"])?;
        ensure!(left.is_empty(), "left: {left}");
        Ok(())
    })
}

fn limits_reach_the_cgroup(case: &Case) -> Result<()> {
    let spec = format!(
        "containers:\n- name: shell\n  image: {BUSYBOX_IMAGE}\n  imagePullPolicy: Never\n  command: [sleep, '100000']\n  \
         resources: {{limits: {{memory: 32Mi, cpu: 250m}}}}\n"
    );
    case.kubectl.apply(&case.pod("bound", &spec))?;
    case.ready("bound")?;
    ensure!(case.field("pod/bound", ".status.qosClass")? == "Guaranteed");
    let script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || \
                  cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max";
    let shown = case.exec("bound", &["sh", "-c", script])?;
    has(&shown, "33554432\n25000")
}

/// `kubectl debug`: a container added to a running pod, which sees the processes of the one it is aimed at.
fn debug_with_an_ephemeral_container(case: &Case) -> Result<()> {
    case.web("one")?;
    if case.era == Era::Old {
        // kubectl 1.20 speaks the form that the API had before the feature was finished.
        return Ok(());
    }
    let image = format!("--image={BUSYBOX_IMAGE}");
    let look =
        "until [ -e /tmp/done ]; do for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done; sleep 1; done";
    case.kubectl.ask(&[
        "debug",
        "one",
        &image,
        "--image-pull-policy=Never",
        "--target=web",
        "--container=look",
        "--",
        "sh",
        "-c",
        look,
    ])?;
    eventually("the debugger sees the web server", LIMIT, || {
        let seen = case.kubectl.ask(&["logs", "one", "-c", "look"])?;
        ensure!(seen.contains("/web"), "{seen}");
        Ok(())
    })?;
    case.kubectl.ask(&["exec", "one", "-c", "look", "--", "touch", "/tmp/done"])?;
    case.becomes("pod/one", ".status.ephemeralContainerStatuses[0].state.terminated.exitCode", "0")?;
    ensure!(case.field("pod/one", ".status.containerStatuses[0].restartCount")? == "0");
    ensure!(case.field("pod/one", ".status.containerStatuses[0].ready")? == "true");
    Ok(())
}

/// Variables from a file that an init container wrote; a link out of the volume is not followed.
fn an_init_container_gives_variables(case: &Case) -> Result<()> {
    let spec = |script: &str| {
        format!(
            "restartPolicy: Never\nvolumes:\n- name: data\n  emptyDir: {{}}\ninitContainers:\n- name: write\n  \
             image: {BUSYBOX_IMAGE}\n  imagePullPolicy: Never\n  command: [sh, -c, \"{script}\"]\n  \
             volumeMounts: [{{name: data, mountPath: /data}}]\ncontainers:\n- name: shell\n  image: {BUSYBOX_IMAGE}\n  \
             imagePullPolicy: Never\n  command: [sh, -c, 'echo \"$GREETING\"; sleep 100000']\n  \
             env: [{{name: GREETING, valueFrom: {{fileKeyRef: {{volumeName: data, path: env, key: WORD}}}}}}]\n"
        )
    };
    case.kubectl.apply(&case.pod("told", &spec("echo WORD=\\\\'good day\\\\' > /data/env")))?;
    case.ready("told")?;
    ensure!(case.exec("told", &["sh", "-c", "echo $GREETING"])?.trim() == "good day");
    case.kubectl.apply(&case.pod("linked", &spec("ln -s /etc/passwd /data/env")))?;
    case.becomes("pod/linked", ".status.containerStatuses[0].state.waiting.reason", "CreateContainerConfigError")
}

/// Users, groups, capabilities, seccomp and the rest, as the process itself sees them.
fn security_contexts_are_what_processes_have(case: &Case) -> Result<()> {
    let spec = format!(
        "securityContext: {{runAsUser: 1000, runAsGroup: 2000, fsGroup: 3000, supplementalGroups: [4000], \
         seccompProfile: {{type: RuntimeDefault}}, \
         sysctls: [{{name: net.ipv4.ip_unprivileged_port_start, value: '80'}}]}}\n\
         volumes:\n- name: data\n  emptyDir: {{}}\n\
         containers:\n- name: shell\n  image: {BUSYBOX_IMAGE}\n  imagePullPolicy: Never\n  command: [sleep, '100000']\n  \
         securityContext: {{readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}\n  \
         volumeMounts: [{{name: data, mountPath: /data}}]\n"
    );
    case.kubectl.apply(&case.pod("confined", &spec))?;
    case.ready("confined")?;
    let run = |script: &str| case.exec("confined", &["sh", "-c", script]);
    ensure!(
        run("id -u; id -g; id -G")?.split_whitespace().eq(["1000", "2000", "2000", "3000", "4000"]),
        "{}",
        run("id")?
    );
    let status = run("cat /proc/self/status")?;
    for line in ["CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        has(&status, line)?;
    }
    ensure!(run("touch /etc/x 2>&1 || echo refused")?.contains("refused"), "the root file system is writable");
    ensure!(run("touch /data/x; stat -c %g /data/x")?.trim() == "3000", "the volume's files are the group's");
    ensure!(run("cat /proc/sys/net/ipv4/ip_unprivileged_port_start")?.trim() == "80");
    // A node without AppArmor says so instead of running the pod unconfined.
    if !std::path::Path::new("/sys/module/apparmor").exists() {
        let profile = format!(
            "securityContext: {{appArmorProfile: {{type: RuntimeDefault}}}}\ncontainers:\n- name: shell\n  image: {BUSYBOX_IMAGE}\n"
        );
        case.kubectl.apply(&case.pod("armoured", &profile))?;
        case.becomes("pod/armoured", ".status.reason", "AppArmor")?;
    }
    Ok(())
}

/// A RuntimeClass names the handler; one that is not there holds the pod back and says so. So does a user namespace in a
/// handler that has none.
fn runtime_classes_name_a_handler(case: &Case) -> Result<()> {
    let class = format!("usual-{}", case.namespace);
    let spec = |more: &str| {
        format!(
            "{more}\ncontainers:\n- name: shell\n  image: {BUSYBOX_IMAGE}\n  imagePullPolicy: Never\n  command: [sleep, '100000']\n"
        )
    };
    case.kubectl.apply(&case.pod("classy", &spec(&format!("runtimeClassName: {class}"))))?;
    let events = || case.kubectl.ask(&["get", "events", "-o", "jsonpath={.items[*].message}"]);
    eventually("the event about the class", LIMIT, || {
        has(&events()?, &format!("failed to lookup RuntimeClass {class}"))
    })?;
    case.kubectl.apply(&format!(
        "apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {{name: {class}}}\nhandler: runc\n"
    ))?;
    case.ready("classy")?;
    let node = case.field("pod/classy", ".spec.nodeName")?;
    let handlers = ".status.runtimeHandlers[?(@.name=='')].features.userNamespaces";
    let namespaces = case.field(&format!("node/{node}"), handlers)? == "true";
    case.kubectl.apply(&case.pod("mapped", &spec("hostUsers: false")))?;
    if namespaces {
        case.ready("mapped")?;
        let map = case.exec("mapped", &["cat", "/proc/self/uid_map"])?;
        let fields: Vec<&str> = map.split_whitespace().collect();
        ensure!(fields.len() == 3 && fields[0] == "0" && fields[1] != "0" && fields[2] == "65536", "{map}");
    } else {
        eventually("the event about user namespaces", LIMIT, || has(&events()?, "does not support user namespaces"))?;
    }
    case.kubectl.ask(&["delete", "runtimeclass", &class]).map(drop)
}

/// RestartAllContainers: one container's exit code starts all of them again in the same sandbox, init container first.
fn a_rule_restarts_all_containers(case: &Case) -> Result<()> {
    let spec = format!(
        "restartPolicy: Never\nvolumes:\n- name: data\n  emptyDir: {{}}\n\
         initContainers:\n- name: prepare\n  image: {BUSYBOX_IMAGE}\n  imagePullPolicy: Never\n  \
         command: [sh, -c, 'echo prepared >> /data/log']\n  volumeMounts: [{{name: data, mountPath: /data}}]\n\
         containers:\n- name: watcher\n  image: {BUSYBOX_IMAGE}\n  imagePullPolicy: Never\n  restartPolicy: Never\n  \
         restartPolicyRules: [{{action: RestartAllContainers, exitCodes: {{operator: In, values: [42]}}}}]\n  \
         command: [sh, -c, 'if [ -e /data/once ]; then exec sleep 100000; fi; touch /data/once; sleep 2; exit 42']\n  \
         volumeMounts: [{{name: data, mountPath: /data}}]\n\
         - name: worker\n  image: {BUSYBOX_IMAGE}\n  imagePullPolicy: Never\n  command: [sleep, '100000']\n  \
         volumeMounts: [{{name: data, mountPath: /data}}]\n"
    );
    case.kubectl.apply(&case.pod("group", &spec))?;
    let address = || case.field("pod/group", ".status.podIP");
    case.ready("group")?;
    let before = address()?;
    case.becomes("pod/group", ".status.containerStatuses[*].restartCount", "1 1")?;
    case.becomes("pod/group", ".status.initContainerStatuses[0].restartCount", "1")?;
    case.ready("group")?;
    case.becomes("pod/group", ".status.conditions[?(@.type=='AllContainersRestarting')].status", "False")?;
    ensure!(address()? == before, "another sandbox");
    let log = case.kubectl.ask(&["exec", "group", "-c", "worker", "--", "cat", "/data/log"])?;
    ensure!(log.lines().count() == 2, "the init container ran {} times", log.lines().count());
    Ok(())
}

/// A resize in place: the running container has it without a restart, one that does not fit waits and says so.
fn a_resize_reaches_the_cgroup(case: &Case) -> Result<()> {
    let spec = format!(
        "containers:\n- name: shell\n  image: {BUSYBOX_IMAGE}\n  imagePullPolicy: Never\n  command: [sleep, '100000']\n  \
         resources: {{requests: {{cpu: 100m, memory: 32Mi}}, limits: {{cpu: 200m, memory: 64Mi}}}}\n"
    );
    case.kubectl.apply(&case.pod("grows", &spec))?;
    case.ready("grows")?;
    let resize = |cpu: &str, limit: &str| {
        let resources = format!(r#"{{"requests":{{"cpu":"{cpu}"}},"limits":{{"cpu":"{limit}"}}}}"#);
        let patch = format!(r#"{{"spec":{{"containers":[{{"name":"shell","resources":{resources}}}]}}}}"#);
        // kubectl 1.20 does not know the subresource.
        case.cluster.kubectl().within(&case.namespace).ask(&[
            "patch",
            "pod",
            "grows",
            "--subresource=resize",
            "-p",
            &patch,
        ])
    };
    resize("150m", "500m")?;
    let quota = || {
        case.exec(
            "grows",
            &["sh", "-c", "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us || cut -d' ' -f1 /sys/fs/cgroup/cpu.max"],
        )
    };
    eventually("the new quota in the container", LIMIT, || {
        let quota = quota()?;
        ensure!(quota.trim() == "50000", "{quota}");
        Ok(())
    })?;
    case.becomes("pod/grows", ".status.containerStatuses[0].resources.limits.cpu", "500m")?;
    case.becomes("pod/grows", ".status.conditions[?(@.type=='PodResizeInProgress')].status", "")?;
    has(&case.kubectl.ask(&["get", "events"])?, "ResizeCompleted")?;

    resize("1000", "1000")?;
    case.becomes("pod/grows", ".status.conditions[?(@.type=='PodResizePending')].reason", "Infeasible")?;
    ensure!(case.field("pod/grows", ".status.containerStatuses[0].resources.limits.cpu")? == "500m");
    resize("150m", "500m")?;
    case.becomes("pod/grows", ".status.conditions[?(@.type=='PodResizePending')].reason", "")?;
    ensure!(case.field("pod/grows", ".status.containerStatuses[0].restartCount")? == "0");
    Ok(())
}

/// What a pod is given as a whole (KEP-2837) bounds its containers, and can be changed while they run.
fn a_resize_of_the_whole_pod_reaches_its_cgroup(case: &Case) -> Result<()> {
    let spec = format!(
        "resources: {{limits: {{cpu: 400m, memory: 64Mi}}}}\ncontainers:\n- name: own\n  image: {BUSYBOX_IMAGE}\n  \
         imagePullPolicy: Never\n  command: [sleep, '100000']\n  resources: {{requests: {{cpu: 100m}}, limits: {{cpu: 150m}}}}\n\
         - name: none\n  image: {BUSYBOX_IMAGE}\n  imagePullPolicy: Never\n  command: [sleep, '100000']\n"
    );
    case.kubectl.apply(&case.pod("whole", &spec))?;
    case.ready("whole")?;
    // Requests come from the containers where they ask, else from the limits.
    ensure!(case.field("pod/whole", ".spec.resources.requests.cpu")? == "100m");
    ensure!(case.field("pod/whole", ".spec.resources.requests.memory")? == "64Mi");
    ensure!(case.field("pod/whole", ".status.qosClass")? == "Burstable");
    ensure!(case.field("pod/whole", ".status.allocatedResources.cpu")? == "100m");
    let quota_of = |container: &str| {
        let script = "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 /sys/fs/cgroup/cpu.max";
        case.kubectl.ask(&["exec", "whole", "-c", container, "--", "sh", "-c", script])
    };
    has(&quota_of("none")?, "40000")?;
    has(&quota_of("own")?, "15000")?;
    let patch = r#"{"spec":{"resources":{"requests":{"cpu":"200m"},"limits":{"cpu":"600m"}}}}"#;
    // kubectl 1.20 does not know the subresource.
    let new = case.cluster.kubectl().within(&case.namespace);
    new.ask(&["patch", "pod", "whole", "--subresource=resize", "-p", patch])?;
    eventually("the new quota of the container without one", LIMIT, || {
        let quota = quota_of("none")?;
        ensure!(quota.trim() == "60000", "{quota}");
        Ok(())
    })?;
    has(&quota_of("own")?, "15000")?;
    case.becomes("pod/whole", ".status.resources.limits.cpu", "600m")?;
    case.becomes("pod/whole", ".status.allocatedResources.cpu", "200m")?;
    case.becomes("pod/whole", ".status.conditions[?(@.type=='PodResizeInProgress')].status", "")?;
    ensure!(case.field("pod/whole", ".status.containerStatuses[0].restartCount")? == "0");
    Ok(())
}
