//! Projected clusterTrustBundle sources: the certificates of one bundle, or of all of a signer that a selector takes,
//! as one file.

use std::collections::BTreeSet;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bosun_api::selector;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::ClusterTrustBundleProjection;
use x509_parser::pem::Pem;

use super::atomic::{File, Payload};
use crate::objects::Objects;

/// How soon is looked whether a bundle changed.
const LOOK_AGAIN: SignedDuration = SignedDuration::from_secs(60);
/// Letters a line of PEM, as RFC 7468 has it.
const LINE: usize = 64;

/// Puts the certificates into the volume. Returns when to look again.
///
/// # Errors
/// In stock's words: there is no such bundle, or it holds what is no certificate.
pub(super) async fn project(
    files: &mut Payload,
    objects: &dyn Objects,
    source: &ClusterTrustBundleProjection,
    mode: i32,
) -> Result<Timestamp, String> {
    let optional = source.optional == Some(true);
    let by_name = |why: String| format!("while getting ClusterTrustBundle by name: {why}");
    let by_signer = |why: String| format!("while getting ClusterTrustBundles by signer: {why}");
    let bundles: Vec<ClusterTrustBundle> = match (&source.name, &source.signer_name) {
        (Some(name), _) => {
            let found = objects.trust_bundle(name).await.map_err(by_name)?;
            if found.is_none() && !optional {
                return Err(by_name(format!("clustertrustbundle.certificates.k8s.io {name:?} not found")));
            }
            found.into_iter().collect()
        }
        (None, Some(signer)) => {
            let all = objects.trust_bundles(signer).await.map_err(by_signer)?;
            all.into_iter().filter(|bundle| is_selected(bundle, signer, source)).collect()
        }
        (None, None) => {
            return Err("bad ClusterTrustBundle reference: neither name nor signerName was specified".to_owned());
        }
    };
    let text = combined(&bundles)?;
    if text.is_empty() && !optional {
        return Err("combined trust bundle is empty".to_owned());
    }
    files.insert(PathBuf::from(&source.path), File { bytes: text.into_bytes(), mode: mode as u32, uid: None });
    Ok(Timestamp::now() + LOOK_AGAIN)
}

/// No selector takes none, an empty one takes all.
fn is_selected(bundle: &ClusterTrustBundle, signer: &str, source: &ClusterTrustBundleProjection) -> bool {
    let labels = bundle.metadata.labels.clone().unwrap_or_default();
    let selected = source.label_selector.as_ref().is_some_and(|wanted| selector::matches(wanted, &labels));
    selected && bundle.spec.signer_name.as_deref() == Some(signer)
}

/// The certificates of all bundles, each once, in an order that depends on nothing else.
fn combined(bundles: &[ClusterTrustBundle]) -> Result<String, String> {
    let mut certificates = BTreeSet::new();
    for bundle in bundles {
        let name = bundle.metadata.name.as_deref().unwrap_or_default();
        for block in Pem::iter_from_buffer(bundle.spec.trust_bundle.as_bytes()) {
            let block = block.map_err(|error| format!("invalid trust bundle {name:?}: {error}"))?;
            if block.label != "CERTIFICATE" {
                return Err(format!("invalid trust bundle {name:?}: it holds a block of type {:?}", block.label));
            }
            certificates.insert(block.contents);
        }
    }
    Ok(certificates.iter().map(|bytes| pem(bytes)).collect())
}

fn pem(bytes: &[u8]) -> String {
    let encoded = STANDARD.encode(bytes);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(LINE));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text + "-----END CERTIFICATE-----\n"
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use serde_json::{Value, json};

    use super::*;

    struct Bundles(Vec<ClusterTrustBundle>);

    #[async_trait]
    impl Objects for Bundles {
        async fn trust_bundle(&self, name: &str) -> Result<Option<ClusterTrustBundle>, String> {
            Ok(self.0.iter().find(|bundle| bundle.metadata.name.as_deref() == Some(name)).cloned())
        }

        async fn trust_bundles(&self, _signer: &str) -> Result<Vec<ClusterTrustBundle>, String> {
            Ok(self.0.clone())
        }
    }

    fn bundle(name: &str, zone: &str, text: String) -> ClusterTrustBundle {
        serde_json::from_value(json!({"metadata": {"name": name, "labels": {"zone": zone}},
            "spec": {"signerName": "s.example.com/x", "trustBundle": text}}))
        .unwrap()
    }

    async fn file(source: Value) -> Result<String, String> {
        let (long, short) = (pem(&[7; 100]), pem(b"short"));
        let bundles = Bundles(vec![
            bundle("a", "1", format!("words around\n{long}{short}")),
            bundle("b", "2", short),
            bundle("bad", "3", pem(b"x").replace("CERTIFICATE", "PRIVATE KEY")),
        ]);
        let mut files = Payload::default();
        project(&mut files, &bundles, &serde_json::from_value(source).unwrap(), 0o444).await?;
        Ok(String::from_utf8(files.remove(&PathBuf::from("ca.pem")).unwrap().bytes).unwrap())
    }

    #[tokio::test]
    async fn bundles_by_name_and_by_signer() {
        let by_signer = |selector: Value, optional: bool| json!({"signerName": "s.example.com/x", "labelSelector": selector, "path": "ca.pem", "optional": optional});
        let both = file(json!({"name": "a", "path": "ca.pem"})).await.unwrap();
        assert_eq!(both.matches("BEGIN CERTIFICATE").count(), 2);
        assert!(both.lines().all(|line| line.len() <= LINE && !line.contains("words")));
        let zones = json!({"matchExpressions": [{"key": "zone", "operator": "In", "values": ["1", "2"]}]});
        assert_eq!(file(by_signer(zones, false)).await.unwrap(), both, "each certificate once");
        assert_eq!(file(by_signer(Value::Null, true)).await.unwrap(), "", "no selector takes none");
        assert_eq!(file(by_signer(Value::Null, false)).await.unwrap_err(), "combined trust bundle is empty");
        let error = file(by_signer(json!({}), false)).await.unwrap_err();
        assert_eq!(error, "invalid trust bundle \"bad\": it holds a block of type \"PRIVATE KEY\"");
        assert_eq!(file(json!({"name": "none", "path": "ca.pem", "optional": true})).await.unwrap(), "");
        let error = file(json!({"name": "none", "path": "ca.pem"})).await.unwrap_err();
        let golden =
            "while getting ClusterTrustBundle by name: clustertrustbundle.certificates.k8s.io \"none\" not found";
        assert_eq!(error, golden);
    }
}
