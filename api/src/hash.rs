//! Hashes and random suffixes that become part of object names.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use rand::Rng as _;
use serde::Serialize;

/// Letters and digits that can neither spell a word nor be mistaken for one another.
const SAFE: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// The longest name that `generateName` yields.
const MAX_GENERATED_NAME: usize = 63;
const GENERATED_SUFFIX: usize = 5;

/// 32-bit FNV-1a.
#[derive(Clone, Copy, Debug)]
pub struct Fnv32a(u32);

impl Default for Fnv32a {
    fn default() -> Self {
        Self(0x811c_9dc5)
    }
}

impl Fnv32a {
    /// Feeds bytes.
    pub fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    }

    /// The hash of all bytes so far.
    #[must_use]
    pub fn finish(self) -> u32 {
        self.0
    }
}

impl std::io::Write for Fnv32a {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Fnv32a::write(self, bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// 32-bit FNV-1a of some bytes.
#[must_use]
pub fn fnv32a(bytes: &[u8]) -> u32 {
    let mut hash = Fnv32a::default();
    hash.write(bytes);
    hash.finish()
}

/// FNV-1a of a value's canonical JSON: equal values have equal hashes, in every process and every version.
#[must_use]
pub fn of_json<T: Serialize>(value: &T) -> u32 {
    let mut hash = Fnv32a::default();
    serde_json::to_writer(&mut hash, value).expect("hashing does not fail, and objects are JSON");
    hash.finish()
}

/// Writes a text in the alphabet of safe letters, one for each byte.
#[must_use]
pub fn safe_encode(text: &str) -> String {
    text.bytes().map(|byte| char::from(SAFE[usize::from(byte) % SAFE.len()])).collect()
}

/// The `pod-template-hash` of a template: FNV-1a over the template and the collision count, safe-encoded.
///
/// A label of that name in the template itself is left out, so the hash of a ReplicaSet's template is that of its
/// Deployment's.
#[must_use]
pub fn pod_template_hash(template: &PodTemplateSpec, collision_count: Option<i32>) -> String {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    let labels = template.metadata.as_ref().and_then(|meta| meta.labels.as_ref());
    let mut hash = Fnv32a::default();
    if labels.is_some_and(|labels| labels.contains_key("pod-template-hash")) {
        let mut metadata: ObjectMeta = template.metadata.clone().unwrap_or_default();
        if let Some(labels) = &mut metadata.labels {
            labels.remove("pod-template-hash");
        }
        let bare = PodTemplateSpec { metadata: Some(metadata), spec: template.spec.clone() };
        hash.write(&of_json(&bare).to_le_bytes());
    } else {
        hash.write(&of_json(template).to_le_bytes());
    }
    if let Some(count) = collision_count {
        hash.write(&u64::from(count.unsigned_abs()).to_le_bytes());
    }
    safe_encode(&hash.finish().to_string())
}

/// Random safe letters.
#[must_use]
pub fn random_suffix(length: usize) -> String {
    let mut rng = rand::rng();
    (0..length).map(|_| char::from(SAFE[rng.random_range(0..SAFE.len())])).collect()
}

/// A name from `metadata.generateName`: the base, cut so that the whole has at most 63 bytes, and five random letters.
#[must_use]
pub fn generate_name(base: &str) -> String {
    let mut end = base.len().min(MAX_GENERATED_NAME - GENERATED_SUFFIX);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{}", &base[..end], random_suffix(GENERATED_SUFFIX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    #[test]
    fn fnv_matches_its_published_vectors() {
        assert_eq!(fnv32a(b""), 0x811c_9dc5);
        assert_eq!(fnv32a(b"a"), 0xe40c_292c);
        assert_eq!(fnv32a(b"foobar"), 0xbf9c_f968);
    }

    #[test]
    fn encoding_uses_safe_letters() {
        assert_eq!(safe_encode("0123456789"), "456789bcdf");
    }

    #[test]
    fn template_hash_ignores_its_own_label() {
        let with = |labels: &[(&str, &str)]| PodTemplateSpec {
            metadata: Some(ObjectMeta {
                labels: Some(labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()),
                ..Default::default()
            }),
            spec: None,
        };
        let bare = pod_template_hash(&with(&[("a", "b")]), None);
        assert_eq!(bare, pod_template_hash(&with(&[("a", "b"), ("pod-template-hash", "x")]), None));
        assert_ne!(bare, pod_template_hash(&with(&[("a", "b")]), Some(1)));
        assert_ne!(bare, pod_template_hash(&with(&[("a", "c")]), None));
    }

    #[test]
    fn generated_names_fit() {
        assert_eq!(generate_name(&"x".repeat(100)).len(), 63);
        assert!(generate_name("web-").starts_with("web-"));
        assert_eq!(generate_name("web-").len(), 9);
    }
}
