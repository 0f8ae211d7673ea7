//! Where device plugins make themselves known: `kubelet.sock` in the kubelet's folder `device-plugins`.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path};
use std::sync::Arc;

use async_trait::async_trait;
use bosun_proto::deviceplugin::registration_server::{Registration, RegistrationServer};
use bosun_proto::deviceplugin::{Empty, RegisterRequest};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::manager::DeviceManager;
use crate::plugin::GrpcPlugin;
use crate::unix;

const SOCKET: &str = "kubelet.sock";
/// The version of the API that plugins must speak.
pub const VERSION: &str = "v1beta1";

/// Listens for plugins until cancelled. Sockets of an earlier run are removed first: plugins take that for the sign to
/// register again.
///
/// # Errors
/// The socket cannot be made.
pub fn serve(manager: Arc<DeviceManager>, cancel: CancellationToken) -> io::Result<tokio::task::JoinHandle<()>> {
    let folder = manager.folder().to_owned();
    clean(&folder);
    let listener = unix::listen(&folder.join(SOCKET))?;
    let service = RegistrationServer::new(Registrar { manager, cancel: cancel.clone() });
    Ok(tokio::spawn(unix::serve(listener, service, cancel)))
}

fn clean(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
        if is_socket && let Err(error) = fs::remove_file(entry.path()) {
            tracing::warn!(path = %entry.path().display(), %error, "a socket of an earlier run was not removed");
        }
    }
}

struct Registrar {
    manager: Arc<DeviceManager>,
    cancel: CancellationToken,
}

/// Checks a registration.
fn check(request: &RegisterRequest) -> Result<(), String> {
    if request.version != VERSION {
        return Err(format!(
            "requested API version {:?} is not supported by kubelet. Supported versions are [{VERSION:?}]",
            request.version
        ));
    }
    if !is_extended_resource(&request.resource_name) {
        return Err(format!("the ResourceName {:?} is invalid", request.resource_name));
    }
    let inside = Path::new(&request.endpoint).components().all(|part| matches!(part, Component::Normal(_)));
    if request.endpoint.is_empty() || !inside {
        return Err(format!(
            "the Endpoint {:?} is invalid: give the name of a socket beside the kubelet's",
            request.endpoint
        ));
    }
    Ok(())
}

/// Whether it is the name of a resource that is not Kubernetes' own: `vendor.com/name`.
pub fn is_extended_resource(name: &str) -> bool {
    let Some((domain, rest)) = name.split_once('/') else { return false };
    let word = |text: &str, most: usize, others: &[char]| {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        text.len() <= most
            && edge(text.chars().next())
            && edge(text.chars().next_back())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(&c))
    };
    let own = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io") || name.starts_with("requests.");
    // With the prefix that quotas put before it, it must still be a qualified name.
    let labels = domain.len() + "requests.".len() <= 253
        && domain.split('.').all(|label| word(label, 63, &['-']) && !label.contains(char::is_uppercase));
    !own && labels && word(rest, 63, &['-', '_', '.'])
}

#[async_trait]
impl Registration for Registrar {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        let resource = request.resource_name.as_str();
        tracing::info!(resource, endpoint = request.endpoint, "a device plugin registers");
        self.manager.count_registration(resource);
        let registered = match check(&request) {
            Ok(()) => {
                let plugin = Arc::new(GrpcPlugin::new(self.manager.folder().join(&request.endpoint)));
                self.manager.clone().connect(resource, plugin, self.cancel.clone()).await.map(drop)
            }
            Err(fault) => Err(fault),
        };
        registered.map(|()| Response::new(Empty {})).map_err(|fault| {
            tracing::warn!(resource, fault, "a device plugin was not registered");
            Status::unknown(fault)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registrations_are_checked() {
        let check = |version: &str, resource_name: &str, endpoint: &str| {
            let (version, resource_name, endpoint) = (version.into(), resource_name.into(), endpoint.into());
            super::check(&RegisterRequest { version, resource_name, endpoint, options: None })
        };
        assert_eq!(check("v1beta1", "example.com/gpu", "gpu.sock"), Ok(()));
        assert!(check("v1", "example.com/gpu", "gpu.sock").unwrap_err().contains("\"v1\" is not supported"));
        for name in [
            "gpu",
            "kubernetes.io/gpu",
            "x.kubernetes.io/gpu",
            "requests.example.com/gpu",
            "Ex.com/a",
            "a/-b",
            "/a",
            "a/",
        ] {
            assert_eq!(check("v1beta1", name, "a"), Err(format!("the ResourceName {name:?} is invalid")));
        }
        for endpoint in ["", "../a", "/a", "."] {
            assert!(check("v1beta1", "example.com/gpu", endpoint).unwrap_err().contains("Endpoint"), "{endpoint}");
        }
    }
}
