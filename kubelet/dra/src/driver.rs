//! One plugin of a driver, behind its socket.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bosun_kubelet_plugins::{Plugin, socket};
use bosun_proto::dra::v1::{
    Claim, NodePrepareResourceResponse, NodePrepareResourcesRequest, NodePrepareResourcesResponse,
    NodeUnprepareResourcesRequest, NodeUnprepareResourcesResponse,
};
use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::health;
use crate::metrics::Metrics;

/// How long a driver may take for one call, as in stock.
const DEADLINE: Duration = Duration::from_secs(45);

/// The versions of the API that this kubelet speaks, by the names that plugins register with, newest first.
const SERVICES: [(&str, Service); 2] = [("v1.DRAPlugin", Service::V1), ("v1beta1.DRAPlugin", Service::V1beta1)];

/// A version of the API; their messages are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Since Kubernetes 1.34.
    V1,
    /// The one before.
    V1beta1,
}

impl Service {
    /// The first that the plugin offers and this kubelet speaks.
    ///
    /// # Errors
    /// There is none; in stock's words.
    pub fn choose(offered: &[String]) -> Result<Self, String> {
        if offered.is_empty() {
            return Err("empty list of supported gRPC services (aka supported versions)".to_owned());
        }
        let known = |name: &String| SERVICES.iter().find(|(known, _)| known == name).map(|(_, service)| *service);
        offered.iter().find_map(known).ok_or_else(|| {
            let quoted = |names: &mut dyn Iterator<Item = &str>| -> String {
                names.map(|name| format!("{name:?}")).collect::<Vec<_>>().join(" ")
            };
            let (theirs, ours) =
                (quoted(&mut offered.iter().map(String::as_str)), quoted(&mut SERVICES.iter().map(|(name, _)| *name)));
            format!("none of services supported by the plugin ([{theirs}]) are supported by the kubelet ([{ours}])")
        })
    }

    /// Its names on the wire, the usual one first.
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::V1 => &["k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin"],
            // Drivers of 1.32 and 1.33 were made when the package had its short name.
            Self::V1beta1 => &["k8s.io.kubelet.pkg.apis.dra.v1beta1.DRAPlugin", "v1beta1.DRAPlugin"],
        }
    }
}

/// A plugin of a driver.
pub struct Driver {
    /// The driver's name.
    pub name: String,
    /// Its socket.
    pub endpoint: String,
    service: Service,
    tells_health: bool,
    channel: Channel,
    metrics: Metrics,
}

impl Driver {
    /// The plugin that registered so. Nothing is asked of it yet.
    ///
    /// # Errors
    /// It speaks no version of the API that this kubelet does.
    pub fn new(plugin: &Plugin, metrics: Metrics) -> Result<Self, String> {
        let service = Service::choose(&plugin.versions).map_err(|why| {
            let Plugin { name, endpoint, .. } = plugin;
            format!("invalid supported gRPC versions of DRA driver plugin {name} at endpoint {endpoint}: {why}")
        })?;
        Ok(Self {
            name: plugin.name.clone(),
            endpoint: plugin.endpoint.clone(),
            service,
            tells_health: plugin.versions.iter().any(|version| version == health::SERVICE),
            channel: socket::channel(&socket::path(&plugin.endpoint)),
            metrics,
        })
    }

    /// Its health service, if it has one.
    pub(crate) fn health(&self) -> Option<Channel> {
        self.tells_health.then(|| self.channel.clone())
    }

    /// Has claims prepared; the devices of each, by its UID.
    ///
    /// # Errors
    /// The call or one of its claims failed, or the driver left one out; in stock's words.
    pub async fn prepare(&self, claims: &[Claim]) -> Result<BTreeMap<String, NodePrepareResourceResponse>, String> {
        const METHOD: &str = "NodePrepareResources";
        let request = NodePrepareResourcesRequest { claims: claims.to_vec() };
        let answer: NodePrepareResourcesResponse = self.call(METHOD, request).await?;
        check(METHOD, claims, answer.claims.iter().map(|(uid, claim)| (uid.as_str(), claim.error.as_str())))?;
        Ok(answer.claims)
    }

    /// Has claims unprepared.
    ///
    /// # Errors
    /// As [`Driver::prepare`].
    pub async fn unprepare(&self, claims: &[Claim]) -> Result<(), String> {
        const METHOD: &str = "NodeUnprepareResources";
        let request = NodeUnprepareResourcesRequest { claims: claims.to_vec() };
        let answer: NodeUnprepareResourcesResponse = self.call(METHOD, request).await?;
        check(METHOD, claims, answer.claims.iter().map(|(uid, claim)| (uid.as_str(), claim.error.as_str())))
    }

    async fn call<Q, A>(&self, method: &str, request: Q) -> Result<A, String>
    where
        Q: prost_like::Message,
        A: prost_like::Message,
    {
        let mut last = Status::unimplemented("");
        for name in self.service.names() {
            let path = format!("/{name}/{method}");
            let began = Instant::now();
            let answer = match tokio::time::timeout(DEADLINE, self.unary(&path, request.clone())).await {
                Ok(answer) => answer,
                Err(_) => Err(Status::deadline_exceeded("context deadline exceeded")),
            };
            let code = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
            self.metrics.called(&self.name, &path, code, began.elapsed());
            match answer {
                Ok(answer) => return Ok(answer),
                Err(status) if status.code() == Code::Unimplemented => last = status,
                Err(status) => {
                    last = status;
                    break;
                }
            }
        }
        Err(format!("{method}: rpc error: code = {:?} desc = {}", last.code(), last.message()))
    }

    async fn unary<Q, A>(&self, path: &str, request: Q) -> Result<A, Status>
    where
        Q: prost_like::Message,
        A: prost_like::Message,
    {
        let path: PathAndQuery = path.parse().map_err(|_| Status::internal("no path"))?;
        let mut client = Grpc::new(self.channel.clone());
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut request = Request::new(request);
        request.set_timeout(DEADLINE);
        let answer = client.unary(request, path, ProstCodec::<Q, A>::default()).await;
        answer.map(Response::into_inner).map_err(lost)
    }
}

/// A connection that was lost has no status of its own; what is known of it is in its source.
fn lost(status: Status) -> Status {
    let mut source = std::error::Error::source(&status);
    if status.code() != Code::Unknown || source.is_none() {
        return status;
    }
    let mut text = status.message().to_owned();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    Status::unavailable(text)
}

/// What a message must be to be sent.
mod prost_like {
    pub(super) trait Message: prost::Message + Default + Clone + 'static {}
    impl<T: prost::Message + Default + Clone + 'static> Message for T {}
}

/// Whether the answer is about every claim that was asked for and about no other, and each went well.
fn check<'a>(method: &str, asked: &[Claim], answers: impl Iterator<Item = (&'a str, &'a str)>) -> Result<(), String> {
    let mut answered = 0;
    for (uid, error) in answers {
        let Some(claim) = asked.iter().find(|claim| claim.uid == uid) else {
            return Err(format!("{method} returned result for unknown claim UID {uid}"));
        };
        if !error.is_empty() {
            return Err(format!("{method} failed for ResourceClaim {}: {error}", claim.name));
        }
        answered += 1;
    }
    match asked.len() - answered {
        0 => Ok(()),
        skipped => Err(format!("{method} skipped {skipped} ResourceClaims")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_plugin_s_first_choice_that_is_spoken() {
        let choose = |list: &[&str]| Service::choose(&names(list));
        assert_eq!(choose(&["v1.DRAPlugin", "v1beta1.DRAPlugin", "v1alpha1.DRAResourceHealth"]), Ok(Service::V1));
        assert_eq!(choose(&["v2.DRAPlugin", "v1beta1.DRAPlugin"]), Ok(Service::V1beta1));
        let error = choose(&["v1alpha3", "x"]).unwrap_err();
        let want = r#"none of services supported by the plugin (["v1alpha3" "x"]) are supported by the kubelet (["v1.DRAPlugin" "v1beta1.DRAPlugin"])"#;
        assert_eq!(error, want);
        assert!(choose(&[]).unwrap_err().starts_with("empty list"));
    }

    #[test]
    fn answers_are_held_against_what_was_asked() {
        let claim = |name: &str| Claim { namespace: "ns".into(), uid: format!("u-{name}"), name: name.into() };
        let asked = [claim("a"), claim("b")];
        let said = |answers: &[(&str, &str)]| check("Do", &asked, answers.iter().copied());
        assert_eq!(said(&[("u-a", ""), ("u-b", "")]), Ok(()));
        assert_eq!(said(&[("u-a", "")]).unwrap_err(), "Do skipped 1 ResourceClaims");
        assert_eq!(said(&[("u-a", ""), ("u-b", "busy")]).unwrap_err(), "Do failed for ResourceClaim b: busy");
        assert_eq!(said(&[("u-c", "")]).unwrap_err(), "Do returned result for unknown claim UID u-c");
    }
}
