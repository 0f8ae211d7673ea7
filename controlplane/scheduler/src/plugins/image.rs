//! Prefers nodes that hold the pod's images already.

use std::collections::HashMap;

use crate::framework::{Candidate, Events, MAX_SCORE, Plugin, Rejection, Rule};
use crate::snapshot::{NodeInfo, Snapshot};

const MIN: i64 = 23 * 1024 * 1024;
const MAX_PER_CONTAINER: i64 = 1000 * 1024 * 1024;

/// Images that are on the node.
pub(super) struct ImageLocality;

struct ImageRule {
    /// Node name → bytes of the pod's images there, thinned by how common they are.
    bytes: HashMap<String, i64>,
    containers: i64,
}

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    fn helped_by(&self) -> Events {
        Events::NONE
    }

    fn prepare<'a>(
        &self,
        candidate: Candidate<'a>,
        snapshot: &'a Snapshot,
    ) -> Result<Option<Box<dyn Rule + 'a>>, Rejection> {
        let total = i64::try_from(snapshot.node_count()).unwrap_or(i64::MAX);
        if total < 2 {
            return Ok(None);
        }
        let mut bytes: HashMap<String, i64> = HashMap::new();
        for container in &candidate.spec.containers {
            let Some(wanted) = container.image.as_deref().map(with_tag) else {
                continue;
            };
            let holders: Vec<(&str, i64)> =
                snapshot.nodes().filter_map(|node| Some((node.name.as_str(), image_size(node, &wanted)?))).collect();
            let spread = i64::try_from(holders.len()).unwrap_or(i64::MAX);
            for (node, size) in holders {
                *bytes.entry(node.to_owned()).or_default() += size * spread / total;
            }
        }
        Ok(Some(Box::new(ImageRule { bytes, containers: i64::try_from(candidate.spec.containers.len()).unwrap_or(1) })))
    }
}

/// The name with `:latest` if it has neither tag nor digest.
fn with_tag(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') || last.contains('@') { image.to_owned() } else { format!("{image}:latest") }
}

fn image_size(node: &NodeInfo, wanted: &str) -> Option<i64> {
    let images = node.object().status.as_ref()?.images.as_ref()?;
    images.iter().find(|i| i.names.iter().flatten().any(|name| name == wanted)).and_then(|i| i.size_bytes)
}

impl Rule for ImageRule {
    fn score(&self, node: &NodeInfo) -> Option<i64> {
        let max = MAX_PER_CONTAINER * self.containers.max(1);
        let have = self.bytes.get(&node.name).copied().unwrap_or_default();
        let have = have.clamp(MIN, max);
        Some(MAX_SCORE * (have - MIN) / (max - MIN))
    }
}
