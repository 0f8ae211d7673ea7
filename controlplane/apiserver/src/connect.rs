//! Requests that the kubelet answers: logs, exec, attach, port-forward, and the proxies.

use std::net::IpAddr;
use std::sync::Arc;

use bosun_api::resource::Resource;
use bosun_api::status::ApiError;
use bosun_kit::http::Body;
use bosun_nodeproxy::{NodeProxy, Target};
use http::{Request, Response, StatusCode};
use k8s_openapi::api::authentication::v1::UserInfo;
use rustls::ClientConfig;
use serde_json::Value;

use crate::call::Call;
use crate::request::{Query, RequestInfo};
use crate::server::Inner;

const KUBELET_PORT: u16 = 10250;

/// Where a request is passed on to.
struct Route {
    /// An address, or a name to be looked up.
    host: String,
    port: u16,
    tls: bool,
    /// The kubelet is spoken to with our identity and must show its own.
    kubelet: bool,
    path: String,
}

impl Inner {
    pub(crate) async fn connect(
        self: &Arc<Self>,
        request: Request<Body>,
        resource: &'static Resource,
        info: RequestInfo,
        query: Query,
        user: UserInfo,
    ) -> Result<Response<Body>, ApiError> {
        let raw_query = request.uri().query().unwrap_or_default().to_owned();
        let mut call = Call::internal(resource, &info.namespace, &info.name);
        call.user = user;
        call.info = info;
        call.query = query;
        let target = match (resource.plural, call.info.subresource.as_str()) {
            // A pod that is nowhere has logged nothing.
            ("pods", "log") if self.is_unscheduled(&call).await? => {
                return Ok(bosun_kit::http::text(StatusCode::OK, ""));
            }
            ("pods", sub @ ("log" | "exec" | "attach" | "portforward")) => {
                let sub = sub.to_owned();
                self.kubelet_target(&call, &sub, &raw_query).await?
            }
            ("nodes", "proxy") => self.node_proxy_target(&call, &raw_query).await?,
            ("pods", "proxy") => self.pod_proxy_target(&call, &raw_query).await?,
            ("services", "proxy") => self.service_proxy_target(&call, &raw_query).await?,
            _ => return Err(ApiError::method_not_allowed()),
        };
        self.forward(request, target).await
    }

    async fn is_unscheduled(&self, call: &Call) -> Result<bool, ApiError> {
        let pod = self.current(call).await?.value();
        Ok(pod["spec"]["nodeName"].as_str().unwrap_or_default().is_empty())
    }

    async fn kubelet_target(&self, call: &Call, sub: &str, raw_query: &str) -> Result<Route, ApiError> {
        let pod = self.current(call).await?.value();
        let (namespace, name) = (&call.info.namespace, &call.info.name);
        let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        if node.is_empty() {
            return Err(ApiError::bad_request(format!("pod {name} does not have a host assigned")));
        }
        if sub != "log" && matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
            let phase = pod["status"]["phase"].as_str().unwrap_or_default();
            return Err(ApiError::bad_request(format!(
                "cannot exec into a container in a completed pod; current phase is {phase}"
            )));
        }
        let (host, port) = self.node_address(node).await?;
        let (path, query) = match sub {
            "portforward" => (format!("/portForward/{namespace}/{name}"), raw_query.to_owned()),
            _ => {
                let container = container(&pod, call.query.get("container"), name)?;
                let verb = if sub == "log" { "containerLogs" } else { sub };
                let path = format!("/{verb}/{namespace}/{name}/{container}");
                (path, kubelet_query(sub, raw_query))
            }
        };
        let path = if query.is_empty() { path } else { format!("{path}?{query}") };
        Ok(Route { host, port, tls: true, kubelet: true, path })
    }

    async fn node_proxy_target(&self, call: &Call, raw_query: &str) -> Result<Route, ApiError> {
        let (_, name, port) = split_proxy_name(&call.info.name);
        let (host, own_port) = self.node_address(name).await?;
        let port = match port {
            "" => own_port,
            port => {
                port.parse().map_err(|_| ApiError::bad_request(format!("invalid node request {:?}", call.info.name)))?
            }
        };
        let kubelet = port == own_port;
        Ok(Route { host, port, tls: kubelet, kubelet, path: rest(call, raw_query) })
    }

    async fn pod_proxy_target(&self, call: &Call, raw_query: &str) -> Result<Route, ApiError> {
        let (scheme, name, port) = split_proxy_name(&call.info.name);
        let mut named = Call::internal(call.resource, &call.info.namespace, name);
        named.user = call.user.clone();
        let pod = self.current(&named).await?.value();
        let host = pod["status"]["podIP"].as_str().unwrap_or_default().to_owned();
        if host.is_empty() {
            return Err(ApiError::bad_request("address not allowed"));
        }
        let first = pod["spec"]["containers"].as_array().into_iter().flatten();
        let mut ports = first.flat_map(|c| c["ports"].as_array().into_iter().flatten());
        let found = match port {
            "" => ports.next().and_then(|p| p["containerPort"].as_u64()).or(Some(80)),
            port => port
                .parse()
                .ok()
                .or_else(|| ports.find(|p| p["name"].as_str() == Some(port)).and_then(|p| p["containerPort"].as_u64())),
        };
        let port = found.and_then(|p| u16::try_from(p).ok());
        let port = port.ok_or_else(|| ApiError::bad_request(format!("invalid pod request {:?}", call.info.name)))?;
        Ok(Route { host, port, tls: scheme == "https", kubelet: false, path: rest(call, raw_query) })
    }

    async fn service_proxy_target(&self, call: &Call, raw_query: &str) -> Result<Route, ApiError> {
        let (scheme, name, wanted) = split_proxy_name(&call.info.name);
        let mut named = Call::internal(call.resource, &call.info.namespace, name);
        named.user = call.user.clone();
        let service = self.current(&named).await?.value();
        let ports: Vec<&Value> = service["spec"]["ports"].as_array().into_iter().flatten().collect();
        let number = wanted.parse::<u64>().ok();
        let port = ports
            .iter()
            .find(|p| match wanted {
                "" => ports.len() == 1,
                text => p["name"].as_str() == Some(text) || (number.is_some() && p["port"].as_u64() == number),
            })
            .copied();
        let unavailable = || {
            let shown = if wanted.is_empty() { name.to_owned() } else { format!("{name}:{wanted}") };
            ApiError::unavailable(format!("no endpoints available for service {shown:?}"))
        };
        let port = port.ok_or_else(unavailable)?;
        let (host, port) =
            self.endpoint_of(call, name, port["name"].as_str().unwrap_or_default()).ok_or_else(unavailable)?;
        Ok(Route { host, port, tls: scheme == "https", kubelet: false, path: rest(call, raw_query) })
    }

    /// A ready endpoint of a service's port.
    fn endpoint_of(&self, call: &Call, service: &str, port: &str) -> Option<(String, u16)> {
        let slices = bosun_api::resource::find("discovery.k8s.io", "v1", "endpointslices")?;
        let filter = crate::object::Filter {
            resource: slices,
            namespace: call.info.namespace.clone(),
            labels: bosun_api::selector::parse_label_selector(&format!("kubernetes.io/service-name={service}")).ok()?,
            fields: Default::default(),
        };
        let mut found = Vec::new();
        for slice in self.caches.list(&filter, None, 0).objects {
            let slice = slice.raw.value();
            let mut ports = slice["ports"].as_array().into_iter().flatten();
            let Some(number) = ports.find(|p| p["name"].as_str().unwrap_or_default() == port) else { continue };
            let Some(number) = number["port"].as_u64().and_then(|p| u16::try_from(p).ok()) else { continue };
            let ready = |e: &&Value| e["conditions"]["ready"].as_bool().unwrap_or(true);
            for endpoint in slice["endpoints"].as_array().into_iter().flatten().filter(ready) {
                if let Some(address) = endpoint["addresses"][0].as_str() {
                    found.push((address.to_owned(), number));
                }
            }
        }
        let chosen = rand::Rng::random_range(&mut rand::rng(), 0..found.len().max(1));
        (!found.is_empty()).then(|| found.swap_remove(chosen))
    }

    /// Where a node's kubelet listens.
    async fn node_address(&self, name: &str) -> Result<(String, u16), ApiError> {
        let nodes = bosun_api::resource::find("", "v1", "nodes").ok_or_else(ApiError::no_such_path)?;
        let node = self.current(&Call::internal(nodes, "", name)).await?.value();
        let addresses = node["status"]["addresses"].as_array().cloned().unwrap_or_default();
        let of = |kind: &str| {
            let found = addresses.iter().find(|a| a["type"].as_str() == Some(kind))?;
            found["address"].as_str().map(str::to_owned)
        };
        let address = of("InternalIP").or_else(|| of("ExternalIP")).or_else(|| of("Hostname"));
        let address =
            address.ok_or_else(|| ApiError::internal(format!("no preferred addresses found for node {name}")))?;
        let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64();
        Ok((address, port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0).unwrap_or(KUBELET_PORT)))
    }

    async fn forward(&self, request: Request<Body>, route: Route) -> Result<Response<Body>, ApiError> {
        if route.kubelet && self.config.kubelet_tls.is_none() {
            return Err(ApiError::unavailable(
                "this server has no identity for kubelets: start it with a kubelet client certificate",
            ));
        }
        let address = address(&route.host, route.port).await?;
        let target = Target { tls: route.tls, address, port: route.port, path_and_query: route.path };
        let forwarded = match route.kubelet {
            true => self.nodes.to_kubelet(request, &target).await,
            false => self.nodes.to_backend(request, &target).await,
        };
        forwarded.map_err(ApiError::internal)
    }
}

async fn address(host: &str, port: u16) -> Result<IpAddr, ApiError> {
    if let Ok(address) = host.parse() {
        return Ok(address);
    }
    let failed = |e: &dyn std::fmt::Display| ApiError::internal(format!("error dialing backend: lookup {host}: {e}"));
    let mut found = tokio::net::lookup_host((host, port)).await.map_err(|e| failed(&e))?;
    found.next().map(|addr| addr.ip()).ok_or_else(|| failed(&"no such host"))
}

/// The way to the nodes.
pub(crate) fn node_proxy(kubelet: Option<Arc<ClientConfig>>) -> NodeProxy {
    // Pods and services that speak TLS show certificates that nobody here could verify; stock does not try either.
    let backend = Arc::new(bosun_kit::tls::unverified_client_config());
    NodeProxy::new(kubelet.unwrap_or_else(|| backend.clone()), backend)
}

/// `[scheme:]name[:port]` of a proxy path.
fn split_proxy_name(text: &str) -> (&str, &str, &str) {
    let parts: Vec<&str> = text.split(':').collect();
    match parts.as_slice() {
        [scheme, name, port] => (scheme, name, port),
        [name, port] => ("", name, port),
        _ => ("", text, ""),
    }
}

fn rest(call: &Call, raw_query: &str) -> String {
    // Re-escaped: the parts were decoded when the path was read.
    let path: String = call.info.rest.split('/').map(escape).collect::<Vec<_>>().join("/");
    match raw_query {
        "" => format!("/{path}"),
        query => format!("/{path}?{query}"),
    }
}

fn escape(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// The container that a request is about: the one it names, or the only one.
fn container(pod: &Value, wanted: Option<&str>, name: &str) -> Result<String, ApiError> {
    let names = |list: &str| -> Vec<String> {
        let all = pod["spec"][list].as_array().into_iter().flatten();
        all.filter_map(|c| c["name"].as_str().map(str::to_owned)).collect()
    };
    let (containers, inits, ephemeral) = (names("containers"), names("initContainers"), names("ephemeralContainers"));
    match wanted.filter(|w| !w.is_empty()) {
        Some(wanted) => match [&containers, &inits, &ephemeral].iter().any(|list| list.iter().any(|n| n == wanted)) {
            true => Ok(wanted.to_owned()),
            false => Err(ApiError::bad_request(format!("container {wanted} is not valid for pod {name}"))),
        },
        None => match containers.as_slice() {
            [only] => Ok(only.clone()),
            many => Err(ApiError::bad_request(format!(
                "a container name must be specified for pod {name}, choose one of: [{}]{}",
                many.join(" "),
                match inits.as_slice() {
                    [] => String::new(),
                    inits => format!(" or one of the init containers: [{}]", inits.join(" ")),
                }
            ))),
        },
    }
}

/// The query as the kubelet names its parameters.
fn kubelet_query(sub: &str, raw_query: &str) -> String {
    let rename = |pair: &str| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let truth = |value: &str| if matches!(value, "false" | "0" | "") { "0" } else { "1" };
        match (sub, key) {
            (_, "container") => None,
            ("log", _) => Some(pair.to_owned()),
            (_, "stdin") => Some(format!("input={}", truth(value))),
            (_, "stdout") => Some(format!("output={}", truth(value))),
            (_, "stderr") => Some(format!("error={}", truth(value))),
            (_, "tty") => Some(format!("tty={}", truth(value))),
            _ => Some(pair.to_owned()),
        }
    };
    raw_query.split('&').filter(|p| !p.is_empty()).filter_map(rename).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn queries_are_renamed_for_the_kubelet() {
        let query = "command=sh&command=-c&container=a&stdin=true&stdout=true&tty=false";
        assert_eq!(kubelet_query("exec", query), "command=sh&command=-c&input=1&output=1&tty=0");
        assert_eq!(kubelet_query("log", "follow=true&container=a"), "follow=true");
    }

    #[test]
    fn a_container_must_be_named_when_there_are_several() {
        let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        assert_eq!(container(&pod, Some("i"), "p").unwrap(), "i");
        assert_eq!(
            container(&pod, None, "p").unwrap_err().message(),
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
        );
        assert_eq!(container(&pod, Some("x"), "p").unwrap_err().message(), "container x is not valid for pod p");
    }

    #[test]
    fn proxy_names() {
        assert_eq!(split_proxy_name("a"), ("", "a", ""));
        assert_eq!(split_proxy_name("a:80"), ("", "a", "80"));
        assert_eq!(split_proxy_name("https:a:"), ("https", "a", ""));
        assert_eq!(escape("a b/"), "a%20b%2F");
    }
}
