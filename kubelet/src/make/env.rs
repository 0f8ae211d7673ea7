//! A container's environment: services, `envFrom`, `env`, with `$(VAR)` expanded.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, Pod, Secret, Service};

use super::{Node, downward};
use crate::pod::spec;

/// Objects that the environment refers to. An object that was looked for and is not there is none.
#[derive(Clone, Debug, Default)]
pub struct EnvObjects {
    /// By name.
    pub config_maps: BTreeMap<String, Option<ConfigMap>>,
    /// By name.
    pub secrets: BTreeMap<String, Option<Secret>>,
    /// Texts of files in volumes, by volume and path; one that is not there is none.
    pub files: BTreeMap<(String, String), Option<String>>,
    /// Services of the pod's namespace, and `kubernetes` of `default`.
    pub services: Vec<Service>,
}

/// Names of the configMaps and secrets that the container's environment needs.
pub fn references(container: &Container) -> (Vec<String>, Vec<String>) {
    let (mut config_maps, mut secrets) = (Vec::new(), Vec::new());
    for from in container.env_from.iter().flatten() {
        config_maps.extend(from.config_map_ref.iter().map(|r| r.name.clone()));
        secrets.extend(from.secret_ref.iter().map(|r| r.name.clone()));
    }
    for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        config_maps.extend(source.config_map_key_ref.iter().map(|r| r.name.clone()));
        secrets.extend(source.secret_key_ref.iter().map(|r| r.name.clone()));
    }
    for list in [&mut config_maps, &mut secrets] {
        list.sort();
        list.dedup();
    }
    (config_maps, secrets)
}

/// Files of volumes that the container's environment needs: volume and path.
pub fn files(container: &Container) -> impl Iterator<Item = (&str, &str)> {
    let sources = container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()?.file_key_ref.as_ref());
    sources.map(|selector| (selector.volume_name.as_str(), selector.path.as_str()))
}

/// The environment of a container, sorted by name but for the order that expansion gives `env` its values in.
///
/// # Errors
/// An object, key or field that is missing and not optional, in stock's words.
pub fn environment(
    pod: &Pod,
    container: &Container,
    node: &Node,
    pod_ips: &[String],
    objects: &EnvObjects,
) -> Result<Vec<(String, String)>, String> {
    let services = service_variables(pod, &objects.services);
    let mut result: BTreeMap<String, String> = BTreeMap::new();
    env_from(container, objects, &mut result)?;
    // Later entries see earlier ones, and services where nothing else has the name.
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            None => Some(expand(variable.value.as_deref().unwrap_or_default(), |name| {
                seen.get(name).or_else(|| result.get(name)).or_else(|| services.get(name)).cloned()
            })),
            Some(_) => value_from(pod, container, node, pod_ips, objects, variable)?,
        };
        if let Some(value) = value {
            seen.insert(variable.name.clone(), value.clone());
            result.insert(variable.name.clone(), value);
        }
    }
    for (name, value) in services {
        result.entry(name).or_insert(value);
    }
    Ok(result.into_iter().collect())
}

fn env_from(container: &Container, objects: &EnvObjects, result: &mut BTreeMap<String, String>) -> Result<(), String> {
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &from.config_map_ref {
            match objects.config_maps.get(&reference.name).and_then(Option::as_ref) {
                Some(map) => {
                    let entries = map.data.iter().flatten();
                    result.extend(entries.map(|(k, v)| (format!("{prefix}{k}"), v.clone())));
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("configmap {:?} not found", reference.name)),
            }
        }
        if let Some(reference) = &from.secret_ref {
            match objects.secrets.get(&reference.name).and_then(Option::as_ref) {
                Some(secret) => {
                    let entries = secret.data.iter().flatten();
                    let text = |v: &k8s_openapi::ByteString| String::from_utf8_lossy(&v.0).into_owned();
                    result.extend(entries.map(|(k, v)| (format!("{prefix}{k}"), text(v))));
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("secret {:?} not found", reference.name)),
            }
        }
    }
    Ok(())
}

fn value_from(
    pod: &Pod,
    container: &Container,
    node: &Node,
    pod_ips: &[String],
    objects: &EnvObjects,
    variable: &EnvVar,
) -> Result<Option<String>, String> {
    let Some(source) = &variable.value_from else { return Ok(None) };
    let namespace = spec::namespace(pod);
    if let Some(selector) = &source.field_ref {
        return downward::field(pod, node, pod_ips, selector).map(Some);
    }
    if let Some(selector) = &source.resource_field_ref {
        return downward::resource(pod, node, &container.name, selector).map(Some);
    }
    if let Some(selector) = &source.config_map_key_ref {
        let optional = selector.optional == Some(true);
        let Some(map) = objects.config_maps.get(&selector.name).and_then(Option::as_ref) else {
            return if optional { Ok(None) } else { Err(format!("configmap {:?} not found", selector.name)) };
        };
        return match map.data.as_ref().and_then(|data| data.get(&selector.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {} in ConfigMap {namespace}/{}", selector.key, selector.name)),
        };
    }
    if let Some(selector) = &source.secret_key_ref {
        let optional = selector.optional == Some(true);
        let Some(secret) = objects.secrets.get(&selector.name).and_then(Option::as_ref) else {
            return if optional { Ok(None) } else { Err(format!("secret {:?} not found", selector.name)) };
        };
        return match secret.data.as_ref().and_then(|data| data.get(&selector.key)) {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {} in Secret {namespace}/{}", selector.key, selector.name)),
        };
    }
    if let Some(selector) = &source.file_key_ref {
        let optional = selector.optional == Some(true);
        let file = format!("{}/{}", selector.volume_name, selector.path);
        let known = objects.files.get(&(selector.volume_name.clone(), selector.path.clone()));
        let Some(text) = known.and_then(Option::as_ref) else {
            return if optional { Ok(None) } else { Err(format!("couldn't parse env file: {file}: no such file")) };
        };
        let found = super::env_file::value_of(text, &selector.key);
        return match found.map_err(|error| format!("couldn't parse env file: {file}: {error}"))? {
            Some(value) => Ok(Some(value)),
            None if optional => Ok(None),
            None => Err(format!("environment variable key {:?} not found in file {file:?}", selector.key)),
        };
    }
    Err(format!("environment variable {}: this source of values is not supported", variable.name))
}

/// Replaces `$(NAME)` by what `lookup` knows; `$$` stands for `$`, and what is unknown stays as written.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let tail = &rest[at + 1..];
        if let Some(after) = tail.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = tail.strip_prefix('(').and_then(|t| t.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
            rest = tail;
        }
    }
    out.push_str(rest);
    out
}

/// Variables of the services that the pod sees, in the form of the first container linkers.
fn service_variables(pod: &Pod, services: &[Service]) -> BTreeMap<String, String> {
    let links = spec::spec(pod).enable_service_links.unwrap_or(true);
    let namespace = spec::namespace(pod);
    let mut result = BTreeMap::new();
    for service in services {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let of = service.metadata.namespace.as_deref().unwrap_or_default();
        let master = of == "default" && name == "kubernetes";
        if !(master || links && of == namespace) {
            continue;
        }
        let Some(service_spec) = &service.spec else { continue };
        let ip = service_spec.cluster_ip.as_deref().unwrap_or_default();
        let ports = service_spec.ports.as_deref().unwrap_or_default();
        let (true, Some(first)) = (!ip.is_empty() && ip != "None", ports.first()) else { continue };
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        let upper = name.to_uppercase().replace('-', "_");
        let mut set = |key: String, value: String| result.insert(format!("{upper}_{key}"), value);
        set("SERVICE_HOST".into(), ip.into());
        set("SERVICE_PORT".into(), first.port.to_string());
        for port in ports {
            if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
                set(format!("SERVICE_PORT_{}", port_name.to_uppercase().replace('-', "_")), port.port.to_string());
            }
        }
        for (index, port) in ports.iter().enumerate() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
            if index == 0 {
                set("PORT".into(), url.clone());
            }
            let prefix = format!("PORT_{}_{}", port.port, protocol.to_uppercase());
            set(prefix.clone(), url);
            set(format!("{prefix}_PROTO"), protocol.to_lowercase());
            set(format!("{prefix}_PORT"), port.port.to_string());
            set(format!("{prefix}_ADDR"), ip.into());
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expansion_keeps_what_it_does_not_know() {
        let lookup = |name: &str| (name == "A").then(|| "1".to_owned());
        for (text, wanted) in [("$(A)$(B)", "1$(B)"), ("$$(A)", "$(A)"), ("$A $", "$A $"), ("$(A", "$(A")] {
            assert_eq!(expand(text, lookup), wanted, "{text}");
        }
    }

    #[test]
    fn services_become_variables() {
        let service: Service =
            serde_json::from_value(serde_json::json!({"metadata": {"name": "my-db", "namespace": "n"},
            "spec": {"clusterIP": "10.0.0.1", "ports": [{"name": "sql", "port": 5432}]}}))
            .unwrap();
        let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {"namespace": "n"}})).unwrap();
        let variables = service_variables(&pod, &[service]);
        assert_eq!(variables["MY_DB_SERVICE_HOST"], "10.0.0.1");
        assert_eq!(variables["MY_DB_PORT_5432_TCP"], "tcp://10.0.0.1:5432");
        assert_eq!(variables.len(), 8);
    }
}
