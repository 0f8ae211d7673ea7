//! Which handler a path means, and which subresources of `nodes` allow it. Pure: a path goes in, a decision comes out.

use http::Method;

use crate::host::{ContainerRef, PodRef};

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `/healthz`; the name picks one check (`/healthz/ping`).
    Health(Option<String>),
    /// `/pods`.
    Pods,
    /// `/runningpods/`.
    RunningPods,
    /// `/containerLogs/{ns}/{pod}/{container}`.
    Logs(ContainerRef),
    /// `/exec/{ns}/{pod}[/{uid}]/{container}`.
    Exec(ContainerRef),
    /// `/attach/{ns}/{pod}[/{uid}]/{container}`.
    Attach(ContainerRef),
    /// `/run/{ns}/{pod}[/{uid}]/{container}`.
    Run(ContainerRef),
    /// `/portForward/{ns}/{pod}[/{uid}]`.
    PortForward(PodRef),
    /// `/stats/summary`.
    Summary,
    /// `/metrics`.
    Metrics,
    /// `/metrics/resource`.
    ResourceMetrics,
    /// `/metrics/probes`.
    ProbeMetrics,
    /// `/metrics/cadvisor`.
    CadvisorMetrics,
    /// `/metrics/slis`.
    SliMetrics,
    /// `/checkpoint/{ns}/{pod}/{container}`.
    Checkpoint(ContainerRef),
    /// `/statusz`.
    Statusz,
    /// `/flagz`.
    Flagz,
    /// `/debug/pprof/…`.
    Profile,
    /// `/debug/flags/v`.
    DebugFlags,
    /// `/configz`.
    Configz,
    /// `/logs/{path}` below the node's log folder; percent-decoded.
    NodeLog(String),
    /// The path is known and the method is not for it; the text says which are.
    MethodNotAllowed(&'static str),
    /// A debug page that is switched off (405 with this text, as stock).
    Disabled(&'static str),
    /// No such path.
    NotFound,
}

impl Route {
    /// Reads a request line. The path is still percent-encoded.
    pub fn parse(method: &Method, path: &str) -> Self {
        let trimmed = path.trim_matches('/');
        let (root, rest) = trimmed.split_once('/').unwrap_or((trimmed, ""));
        let get = |route: Self| {
            if matches!(*method, Method::GET | Method::HEAD) { route } else { Self::MethodNotAllowed("GET") }
        };
        let get_or_post = |route: Self| {
            if matches!(*method, Method::GET | Method::POST) { route } else { Self::MethodNotAllowed("GET, POST") }
        };
        match (root, rest) {
            ("healthz", "") => get(Self::Health(None)),
            ("healthz", check) => get(Self::Health(Some(decode(check)))),
            ("pods", "") => get(Self::Pods),
            ("runningpods", "") => get(Self::RunningPods),
            ("metrics", "") => get(Self::Metrics),
            ("metrics", "resource") => get(Self::ResourceMetrics),
            ("metrics", "probes") => get(Self::ProbeMetrics),
            ("metrics", "cadvisor") => get(Self::CadvisorMetrics),
            ("metrics", "slis") => get(Self::SliMetrics),
            ("stats", "summary") => get_or_post(Self::Summary),
            ("configz", "") => get(Self::Configz),
            ("logs", rest) => get(Self::NodeLog(decode(rest))),
            ("statusz", "") => get(Self::Statusz),
            ("flagz", "") => get(Self::Flagz),
            ("debug", rest) if rest == "pprof" || rest.starts_with("pprof/") => Self::Profile,
            ("debug", "flags/v") => Self::DebugFlags,
            ("containerLogs", rest) => match container(rest, false) {
                Some(target) => get(Self::Logs(target)),
                None => Self::NotFound,
            },
            ("exec", rest) => container(rest, true).map_or(Self::NotFound, |c| get_or_post(Self::Exec(c))),
            ("attach", rest) => container(rest, true).map_or(Self::NotFound, |c| get_or_post(Self::Attach(c))),
            ("checkpoint", rest) => match container(rest, false) {
                Some(target) if method == Method::POST => Self::Checkpoint(target),
                Some(_) => Self::MethodNotAllowed("POST"),
                None => Self::NotFound,
            },
            ("run", rest) => match container(rest, true) {
                Some(target) if method == Method::POST => Self::Run(target),
                Some(_) => Self::MethodNotAllowed("POST"),
                None => Self::NotFound,
            },
            ("portForward", rest) => pod(rest).map_or(Self::NotFound, |p| get_or_post(Self::PortForward(p))),
            _ => Self::NotFound,
        }
    }

    /// The label of this route in `kubelet_http_requests_total`.
    pub fn metric(&self) -> &'static str {
        match self {
            Self::Health(_) => "healthz",
            Self::Pods => "pods",
            Self::RunningPods => "runningpods",
            Self::Logs(_) => "containerLogs",
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::Run(_) => "run",
            Self::PortForward(_) => "portForward",
            Self::Summary => "stats",
            Self::Metrics => "metrics",
            Self::ResourceMetrics => "metrics/resource",
            Self::ProbeMetrics => "metrics/probes",
            Self::CadvisorMetrics => "metrics/cadvisor",
            Self::SliMetrics => "metrics/slis",
            Self::Checkpoint(_) => "checkpoint",
            Self::Statusz => "statusz",
            Self::Flagz => "flagz",
            Self::Profile | Self::DebugFlags => "debug",
            Self::Configz => "configz",
            Self::NodeLog(_) => "logs",
            Self::Disabled(_) => "debug",
            Self::MethodNotAllowed(_) | Self::NotFound => "other",
        }
    }
}

fn container(rest: &str, with_uid: bool) -> Option<ContainerRef> {
    let parts: Vec<String> = rest.split('/').map(decode).collect();
    if parts.iter().any(String::is_empty) {
        return None;
    }
    match parts.as_slice() {
        [namespace, pod, container] => Some(ContainerRef {
            namespace: namespace.clone(),
            pod: pod.clone(),
            uid: None,
            container: container.clone(),
        }),
        [namespace, pod, uid, container] if with_uid => Some(ContainerRef {
            namespace: namespace.clone(),
            pod: pod.clone(),
            uid: Some(uid.clone()),
            container: container.clone(),
        }),
        _ => None,
    }
}

fn pod(rest: &str) -> Option<PodRef> {
    let parts: Vec<String> = rest.split('/').map(decode).collect();
    if parts.iter().any(String::is_empty) {
        return None;
    }
    match parts.as_slice() {
        [namespace, name] => Some(PodRef { namespace: namespace.clone(), name: name.clone(), uid: None }),
        [namespace, name, uid] => {
            Some(PodRef { namespace: namespace.clone(), name: name.clone(), uid: Some(uid.clone()) })
        }
        _ => None,
    }
}

/// Percent-decodes; what is no UTF-8 becomes U+FFFD and matches nothing.
pub(crate) fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |i: usize| bytes.get(i).and_then(|&b| char::from(b).to_digit(16));
        match (bytes[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

/// Decoded pairs of a query string (`+` is a space).
pub(crate) fn query_pairs(query: Option<&str>) -> Vec<(String, String)> {
    let decode = |text: &str| decode(&text.replace('+', " "));
    query
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (decode(key), decode(value)))
        .collect()
}

/// The API verb that an HTTP method stands for; empty for methods that have none (nothing allows those).
pub fn api_verb(method: &Method) -> &'static str {
    match method.as_str() {
        "POST" => "create",
        "GET" => "get",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "",
    }
}

/// The subresources of `nodes` of which any one allows the request, narrowest first (KEP-2862, fine-grained kubelet
/// API authorization).
pub fn subresources(path: &str) -> &'static [&'static str] {
    const TABLE: [(&str, &[&str]); 10] = [
        ("/stats", &["stats"]),
        ("/metrics", &["metrics"]),
        ("/logs", &["log"]),
        ("/checkpoint", &["checkpoint"]),
        ("/pods", &["pods", "proxy"]),
        ("/runningpods", &["pods", "proxy"]),
        ("/healthz", &["healthz", "proxy"]),
        ("/configz", &["configz", "proxy"]),
        ("/statusz", &["statusz", "proxy"]),
        ("/flagz", &["flagz", "proxy"]),
    ];
    let below = |root: &str| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    TABLE.iter().find(|(root, _)| below(root)).map_or(&["proxy"], |(_, subresources)| subresources)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(uid: Option<&str>) -> ContainerRef {
        ContainerRef {
            namespace: "default".into(),
            pod: "web".into(),
            uid: uid.map(Into::into),
            container: "app".into(),
        }
    }

    #[test]
    fn routes() {
        let pod =
            |uid: Option<&str>| PodRef { namespace: "default".into(), name: "web".into(), uid: uid.map(Into::into) };
        let cases = [
            ("GET", "/healthz", Route::Health(None)),
            ("GET", "/healthz/", Route::Health(None)),
            ("GET", "/healthz/ping", Route::Health(Some("ping".into()))),
            ("GET", "/pods", Route::Pods),
            ("POST", "/pods", Route::MethodNotAllowed("GET")),
            ("GET", "/runningpods/", Route::RunningPods),
            ("GET", "/containerLogs/default/web/app", Route::Logs(target(None))),
            ("GET", "/containerLogs/default/web", Route::NotFound),
            ("GET", "/containerLogs/default//app", Route::NotFound),
            ("POST", "/exec/default/web/app", Route::Exec(target(None))),
            ("GET", "/exec/default/web/u-1/app", Route::Exec(target(Some("u-1")))),
            ("PUT", "/exec/default/web/app", Route::MethodNotAllowed("GET, POST")),
            ("POST", "/attach/default/%77eb/app", Route::Attach(target(None))),
            ("GET", "/run/default/web/app", Route::MethodNotAllowed("POST")),
            ("POST", "/run/default/web/app", Route::Run(target(None))),
            ("POST", "/portForward/default/web", Route::PortForward(pod(None))),
            ("GET", "/portForward/default/web/u-1", Route::PortForward(pod(Some("u-1")))),
            ("GET", "/stats/summary", Route::Summary),
            ("GET", "/metrics", Route::Metrics),
            ("GET", "/metrics/resource", Route::ResourceMetrics),
            ("GET", "/metrics/probes", Route::ProbeMetrics),
            ("GET", "/metrics/cadvisor", Route::CadvisorMetrics),
            ("GET", "/configz", Route::Configz),
            ("GET", "/logs/", Route::NodeLog(String::new())),
            ("GET", "/logs/apt/term.log", Route::NodeLog("apt/term.log".into())),
            ("GET", "/metrics/slis", Route::SliMetrics),
            ("POST", "/checkpoint/default/web/app", Route::Checkpoint(target(None))),
            ("GET", "/checkpoint/default/web/app", Route::MethodNotAllowed("POST")),
            ("GET", "/statusz", Route::Statusz),
            ("GET", "/flagz", Route::Flagz),
            ("GET", "/debug/pprof/heap", Route::Profile),
            ("PUT", "/debug/flags/v", Route::DebugFlags),
            ("GET", "/debug/else", Route::NotFound),
            ("GET", "/", Route::NotFound),
            ("GET", "/podsy", Route::NotFound),
        ];
        for (method, path, want) in cases {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert_eq!(Route::parse(&method, path), want, "{method} {path}");
        }
    }

    #[test]
    fn subresources_of_paths() {
        let cases: [(&str, &[&str]); 12] = [
            ("/stats/summary", &["stats"]),
            ("/metrics", &["metrics"]),
            ("/metrics/resource", &["metrics"]),
            ("/metricsy", &["proxy"]),
            ("/logs/", &["log"]),
            ("/pods", &["pods", "proxy"]),
            ("/runningpods/", &["pods", "proxy"]),
            ("/healthz/ping", &["healthz", "proxy"]),
            ("/configz", &["configz", "proxy"]),
            ("/exec/default/web/app", &["proxy"]),
            ("/containerLogs/default/web/app", &["proxy"]),
            ("/", &["proxy"]),
        ];
        for (path, want) in cases {
            assert_eq!(subresources(path), want, "{path}");
        }
    }

    #[test]
    fn decodes_queries() {
        let pairs = query_pairs(Some("command=a+b&command=%2Fbin%2fsh&x&=&bad=%zz"));
        let pairs: Vec<_> = pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(pairs, [("command", "a b"), ("command", "/bin/sh"), ("x", ""), ("", ""), ("bad", "%zz")]);
    }
}
