//! Configuration files: YAML or JSON, strict, with the path of the field in every error.

use std::path::Path;

use serde::de::DeserializeOwned;
use thiserror::Error;

/// Why a configuration was refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("read {path}: {source}; check that the file exists and may be read")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text is no YAML, or a field has the wrong type.
    #[error("{origin}: {field}: {message}")]
    Field {
        /// Where the text came from.
        origin: String,
        /// The field's path, `.` for the whole document.
        field: String,
        /// What is wrong with it.
        message: String,
    },
    /// Fields that the type does not have.
    #[error("{origin}: unknown field{} {}; remove {}, or check the spelling and the file's apiVersion",
        if fields.len() == 1 { "" } else { "s" },
        fields.iter().map(|f| format!("\"{f}\"")).collect::<Vec<_>>().join(", "),
        if fields.len() == 1 { "it" } else { "them" })]
    Unknown {
        /// Where the text came from.
        origin: String,
        /// The fields' paths.
        fields: Vec<String>,
    },
    /// The document is of another kind.
    #[error("{origin}: expected {expected}, found {found}")]
    Kind {
        /// Where the text came from.
        origin: String,
        /// `apiVersion, Kind=` wanted.
        expected: String,
        /// What the file says.
        found: String,
    },
}

/// Reads and decodes `path`; see [`from_yaml`].
///
/// # Errors
/// The file cannot be read, or as [`from_yaml`].
pub fn from_file<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.display().to_string(), source })?;
    from_yaml(&text, &path.display().to_string())
}

/// The deepest nesting of lists and maps in brackets: as deep as the decoder goes. The time that the reader takes grows
/// with the product of size and depth, so what is deeper is not given to it.
const DEEPEST: usize = 128;

/// Whether a text's brackets are nested no deeper than is read.
///
/// # Errors
/// They are.
pub fn check_depth(text: &str) -> Result<(), String> {
    let mut depth = 0_usize;
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEEPEST {
            return Err(format!("lists and maps are nested more than {DEEPEST} deep"));
        }
    }
    Ok(())
}

/// Decodes YAML (or JSON, which YAML contains) into `T`, refusing fields that `T` does not have.
///
/// `origin` names the source in errors. An empty document decodes as an empty mapping.
///
/// # Errors
/// [`ConfigError::Field`] with the field's path, or [`ConfigError::Unknown`] with all unknown paths at once.
pub fn from_yaml<T: DeserializeOwned>(text: &str, origin: &str) -> Result<T, ConfigError> {
    let field_error = |field: String, message: String| ConfigError::Field { origin: origin.to_owned(), field, message };
    check_depth(text).map_err(|message| field_error(".".to_owned(), message))?;
    let mut value: serde_json::Value =
        serde_yaml_ng::from_str(text).map_err(|error| field_error(".".to_owned(), error.to_string()))?;
    if value.is_null() {
        value = serde_json::Value::Object(serde_json::Map::new());
    }
    let mut unknown = Vec::new();
    let mut note = |path: serde_ignored::Path<'_>| unknown.push(path.to_string());
    let mut track = serde_path_to_error::Track::new();
    let decoder = serde_path_to_error::Deserializer::new(value, &mut track);
    let decoded = T::deserialize(serde_ignored::Deserializer::new(decoder, &mut note));
    match decoded {
        Err(error) => Err(field_error(track.path().to_string(), error.to_string())),
        Ok(_) if !unknown.is_empty() => Err(ConfigError::Unknown { origin: origin.to_owned(), fields: unknown }),
        Ok(decoded) => Ok(decoded),
    }
}

/// Checks the `apiVersion` and `kind` of a configuration document against what the program takes.
///
/// # Errors
/// [`ConfigError::Kind`] when either differs.
pub fn expect_kind(origin: &str, expected: (&str, &str), found: (&str, &str)) -> Result<(), ConfigError> {
    if expected == found {
        return Ok(());
    }
    let say = |(version, kind): (&str, &str)| format!("{version}, Kind={kind}");
    Err(ConfigError::Kind { origin: origin.to_owned(), expected: say(expected), found: say(found) })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(default, rename_all = "camelCase")]
    struct Sample {
        max_pods: u32,
        nested: Nested,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(default, rename_all = "camelCase")]
    struct Nested {
        enabled: bool,
    }

    #[test]
    fn what_is_nested_too_deep_is_not_read() {
        assert_eq!(check_depth(&"[{a: b}] ".repeat(1000)), Ok(()));
        let error = from_yaml::<serde_json::Value>(&"[".repeat(100_000), "f").unwrap_err().to_string();
        assert!(error.contains("nested more than 128 deep"), "{error}");
    }

    #[test]
    fn takes_yaml_json_and_nothing() {
        let wanted = Sample { max_pods: 5, nested: Nested { enabled: true } };
        assert_eq!(from_yaml::<Sample>("maxPods: 5\nnested: {enabled: true}", "f").unwrap(), wanted);
        assert_eq!(from_yaml::<Sample>(r#"{"maxPods":5,"nested":{"enabled":true}}"#, "f").unwrap(), wanted);
        assert_eq!(from_yaml::<Sample>("", "f").unwrap(), Sample::default());
    }

    #[test]
    fn errors_name_the_field() {
        let error = from_yaml::<Sample>("nested: {enabled: 3}", "kubelet.yaml").unwrap_err().to_string();
        assert!(error.starts_with("kubelet.yaml: nested.enabled: "), "{error}");
        let error = from_yaml::<Sample>("nested: {enable: true}\nmax: 1", "f").unwrap_err().to_string();
        assert!(error.contains("\"nested.enable\"") && error.contains("\"max\""), "{error}");
    }
}
