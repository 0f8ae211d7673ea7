//! Pods.

use serde_json::{Value, json};

use super::{NONE, View, or, since, text};

/// The state of a pod in words, as people know it from stock clients.
struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: String,
}

/// Restarts counted so far, with the last one's time.
#[derive(Default)]
struct Restarts {
    count: i64,
    last: String,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += status["restartCount"].as_i64().unwrap_or_default();
        // Times are in one form, so their text compares as they do.
        let finished = status.pointer("/lastState/terminated/finishedAt").and_then(Value::as_str).unwrap_or_default();
        if finished > self.last.as_str() {
            finished.clone_into(&mut self.last);
        }
    }
}

pub(super) fn cells(view: &View<'_>) -> Vec<Value> {
    let summary = summarize(view);
    let restarts = if summary.restarts != 0 && !summary.last_restart.is_empty() {
        format!("{} ({} ago)", summary.restarts, since(&summary.last_restart, view.now))
    } else {
        summary.restarts.to_string()
    };
    let ip = view.list("/status/podIPs").first().map_or(view.text("/status/podIP"), |ip| text(ip, "ip"));
    vec![
        view.name(),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        view.age(),
        or(ip, NONE).into(),
        view.or_none("/spec/nodeName"),
        view.or_none("/status/nominatedNodeName"),
        gates(view).into(),
    ]
}

/// What a row says of a pod that has ended.
pub(super) fn row_condition(pod: &Value) -> Option<Value> {
    match pod.pointer("/status/phase").and_then(Value::as_str)? {
        "Succeeded" => Some(json!({"type": "Completed", "status": "True", "reason": "Succeeded",
            "message": "The pod has completed successfully."})),
        "Failed" => {
            Some(json!({"type": "Completed", "status": "True", "reason": "Failed", "message": "The pod failed."}))
        }
        _ => None,
    }
}

fn gates(view: &View<'_>) -> String {
    let gates = view.list("/spec/readinessGates");
    if gates.is_empty() {
        return NONE.to_owned();
    }
    let holds = |gate: &&Value| {
        view.list("/status/conditions")
            .iter()
            .any(|condition| condition["type"] == gate["conditionType"] && condition["status"] == "True")
    };
    format!("{}/{}", gates.iter().filter(holds).count(), gates.len())
}

fn condition<'v>(view: &View<'v>, kind: &str) -> Option<&'v Value> {
    view.list("/status/conditions").iter().find(|condition| condition["type"] == kind)
}

fn summarize(view: &View<'_>) -> Summary {
    let init = view.list("/spec/initContainers");
    let sidecar = |name: &Value| {
        init.iter().any(|container| container["name"] == *name && container["restartPolicy"] == "Always")
    };
    let sidecars = init.iter().filter(|container| container["restartPolicy"] == "Always").count();
    let mut summary = Summary {
        reason: or(view.text("/status/reason"), view.text("/status/phase")).to_owned(),
        ready: 0,
        total: view.count("/spec/containers") + sidecars,
        restarts: 0,
        last_restart: String::new(),
    };
    if condition(view, "PodScheduled").is_some_and(|condition| condition["reason"] == "SchedulingGated") {
        "SchedulingGated".clone_into(&mut summary.reason);
    }
    let (mut all, mut of_sidecars) = (Restarts::default(), Restarts::default());
    let mut initializing = false;
    for (index, status) in view.list("/status/initContainerStatuses").iter().enumerate() {
        all.add(status);
        let restartable = sidecar(&status["name"]);
        if restartable {
            of_sidecars.add(status);
        }
        let terminated = &status["state"]["terminated"];
        if terminated.is_object() && terminated["exitCode"].as_i64().unwrap_or_default() == 0 {
            continue;
        }
        if restartable && status["started"] == true {
            summary.ready += usize::from(status["ready"] == true);
            continue;
        }
        let waiting = text(&status["state"]["waiting"], "reason");
        summary.reason = if terminated.is_object() {
            format!("Init:{}", ended(terminated))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{index}/{}", init.len())
        };
        initializing = true;
        break;
    }
    let initialized = condition(view, "Initialized").is_some_and(|condition| condition["status"] == "True");
    if !initializing || initialized {
        all = of_sidecars;
        main_containers(view, &mut summary, &mut all);
    }
    summary.restarts = all.count;
    summary.last_restart = all.last;
    deleted(view, &mut summary);
    summary
}

fn ended(terminated: &Value) -> String {
    let reason = text(terminated, "reason");
    match terminated["signal"].as_i64().unwrap_or_default() {
        _ if !reason.is_empty() => reason.to_owned(),
        0 => format!("ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or_default()),
        signal => format!("Signal:{signal}"),
    }
}

fn main_containers(view: &View<'_>, summary: &mut Summary, restarts: &mut Restarts) {
    let mut running = false;
    for status in view.list("/status/containerStatuses").iter().rev() {
        restarts.add(status);
        let state = &status["state"];
        let waiting = text(&state["waiting"], "reason");
        if !waiting.is_empty() {
            waiting.clone_into(&mut summary.reason);
        } else if state["terminated"].is_object() {
            summary.reason = ended(&state["terminated"]);
        } else if status["ready"] == true && state["running"].is_object() {
            running = true;
            summary.ready += 1;
        }
    }
    if summary.reason == "Completed" && running {
        let ready = condition(view, "Ready").is_some_and(|condition| condition["status"] == "True");
        summary.reason = if ready { "Running" } else { "NotReady" }.to_owned();
    }
}

fn deleted(view: &View<'_>, summary: &mut Summary) {
    if view.at("/metadata/deletionTimestamp").is_null() {
        return;
    }
    if view.text("/status/reason") == "NodeLost" {
        "Unknown".clone_into(&mut summary.reason);
    } else if !matches!(view.text("/status/phase"), "Succeeded" | "Failed") {
        "Terminating".clone_into(&mut summary.reason);
    }
}
