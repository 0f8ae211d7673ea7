//! Names: what may be one, and why not, in the words clients know.
//!
//! Every check gives the list of what is wrong, empty when the value is fine.

/// What is wrong with a value; empty when nothing is.
pub type Complaints = Vec<String>;

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const LABEL_MESSAGE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character";
const SUBDOMAIN: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const SUBDOMAIN_MESSAGE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
const LABEL_1035: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const LABEL_1035_MESSAGE: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character";
const QUALIFIED: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const QUALIFIED_MESSAGE: &str =
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
const LABEL_VALUE: &str = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?";
const LABEL_VALUE_MESSAGE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
const CONFIG_KEY: &str = "[-._a-zA-Z0-9]+";
const CONFIG_KEY_MESSAGE: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
const WILDCARD: &str = "\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const WILDCARD_MESSAGE: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character";

/// The text for a value that does not match a pattern.
#[must_use]
pub fn regex_error(message: &str, pattern: &str, examples: &[&str]) -> String {
    let mut text = format!("{message} (");
    for (index, example) in examples.iter().enumerate() {
        text.push_str(if index == 0 { "e.g. " } else { " or " });
        text.push_str(&format!("'{example}', "));
    }
    text.push_str(&format!("regex used for validation is '{pattern}')"));
    text
}

/// The text for a value that is too long.
#[must_use]
pub fn max_length_error(bytes: usize) -> String {
    format!("must be no more than {bytes} bytes")
}

/// The text for a number out of its range.
#[must_use]
pub fn range_error(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

fn alphanumeric_lower(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn is_label(value: &str) -> bool {
    let bytes = value.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => {
            alphanumeric_lower(*first)
                && alphanumeric_lower(*last)
                && bytes.iter().all(|byte| alphanumeric_lower(*byte) || *byte == b'-')
        }
        _ => false,
    }
}

fn is_subdomain(value: &str) -> bool {
    value.split('.').all(is_label)
}

fn is_qualified_part(value: &str) -> bool {
    let bytes = value.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => {
            first.is_ascii_alphanumeric()
                && last.is_ascii_alphanumeric()
                && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
        }
        _ => false,
    }
}

/// RFC 1123 label: at most 63 bytes of `[a-z0-9-]`.
#[must_use]
pub fn dns1123_label(value: &str) -> Complaints {
    let mut wrong = Vec::new();
    if value.len() > 63 {
        wrong.push(max_length_error(63));
    }
    if !is_label(value) {
        if is_subdomain(value) {
            wrong.push("must not contain dots".to_owned());
        } else {
            wrong.push(regex_error(LABEL_MESSAGE, LABEL, &["my-name", "123-abc"]));
        }
    }
    wrong
}

/// RFC 1123 subdomain: labels with dots between, at most 253 bytes. The name of most objects.
#[must_use]
pub fn dns1123_subdomain(value: &str) -> Complaints {
    let mut wrong = Vec::new();
    if value.len() > 253 {
        wrong.push(max_length_error(253));
    }
    if !is_subdomain(value) {
        wrong.push(regex_error(SUBDOMAIN_MESSAGE, SUBDOMAIN, &["example.com"]));
    }
    wrong
}

/// RFC 1035 label: as RFC 1123's, but begins with a letter.
#[must_use]
pub fn dns1035_label(value: &str) -> Complaints {
    let mut wrong = Vec::new();
    if value.len() > 63 {
        wrong.push(max_length_error(63));
    }
    if !is_label(value) || !value.starts_with(|first: char| first.is_ascii_lowercase()) {
        wrong.push(regex_error(LABEL_1035_MESSAGE, LABEL_1035, &["my-name", "abc-123"]));
    }
    wrong
}

/// `*.` and a subdomain.
#[must_use]
pub fn wildcard_dns1123_subdomain(value: &str) -> Complaints {
    let mut wrong = Vec::new();
    if value.len() > 253 {
        wrong.push(max_length_error(253));
    }
    if !value.strip_prefix("*.").is_some_and(is_subdomain) {
        wrong.push(regex_error(WILDCARD_MESSAGE, WILDCARD, &["*.example.com"]));
    }
    wrong
}

/// A label or annotation key: a name of at most 63 bytes, perhaps after a subdomain and a slash.
#[must_use]
pub fn qualified_name(value: &str) -> Complaints {
    let mut wrong = Vec::new();
    let mut parts = value.split('/');
    let name = match (parts.next(), parts.next(), parts.next()) {
        (Some(name), None, None) => name,
        (Some(prefix), Some(name), None) => {
            if prefix.is_empty() {
                wrong.push("prefix part must be non-empty".to_owned());
            } else {
                wrong.extend(dns1123_subdomain(prefix).into_iter().map(|text| format!("prefix part {text}")));
            }
            name
        }
        _ => {
            let text = regex_error(QUALIFIED_MESSAGE, QUALIFIED, &["MyName", "my.name", "123-abc"]);
            let tail = "with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
            return vec![format!("a valid label key {text} {tail}")];
        }
    };
    if name.is_empty() {
        wrong.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        wrong.push(format!("name part {}", max_length_error(63)));
    }
    if !is_qualified_part(name) {
        let text = regex_error(QUALIFIED_MESSAGE, QUALIFIED, &["MyName", "my.name", "123-abc"]);
        wrong.push(format!("name part {text}"));
    }
    wrong
}

/// A label's value: empty, or at most 63 bytes of letters, digits, `-`, `_`, `.`.
#[must_use]
pub fn label_value(value: &str) -> Complaints {
    let mut wrong = Vec::new();
    if value.len() > 63 {
        wrong.push(max_length_error(63));
    }
    if !value.is_empty() && !is_qualified_part(value) {
        wrong.push(regex_error(LABEL_VALUE_MESSAGE, LABEL_VALUE, &["MyValue", "my_value", "12345"]));
    }
    wrong
}

/// A name that is one segment of a URL's path: not `.`, `..`, and without `/` and `%`. Names of RBAC objects.
#[must_use]
pub fn path_segment(value: &str) -> Complaints {
    if value == "." || value == ".." {
        return vec![format!("may not be '{value}'")];
    }
    ["/", "%"]
        .iter()
        .filter(|illegal| value.contains(**illegal))
        .map(|illegal| format!("may not contain '{illegal}'"))
        .collect()
}

/// A key of a ConfigMap or Secret, which may become a file's name.
#[must_use]
pub fn config_map_key(value: &str) -> Complaints {
    let mut wrong = Vec::new();
    if value.len() > 253 {
        wrong.push(max_length_error(253));
    }
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)) {
        wrong.push(regex_error(CONFIG_KEY_MESSAGE, CONFIG_KEY, &["key.name", "KEY_NAME", "key-name"]));
    }
    if value == "." || value == ".." {
        wrong.push(format!("must not be '{value}'"));
    } else if value.starts_with("..") {
        wrong.push("must not start with '..'".to_owned());
    }
    wrong
}

/// An environment variable's name: printable ASCII without `=`.
#[must_use]
pub fn env_var_name(value: &str) -> Complaints {
    let mut wrong = Vec::new();
    if value.is_empty() {
        wrong.push("environment variable name must be non-empty".to_owned());
    }
    if !value.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b'=') {
        wrong.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_owned(),
        );
    }
    wrong
}

/// An environment variable's name that a shell takes: a letter or `_`, then letters, digits, `_`.
///
/// For names made from others, such as service links and `envFrom` keys.
#[must_use]
pub fn is_c_identifier(value: &str) -> bool {
    let mut bytes = value.bytes();
    bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// A port's name (IANA_SVC_NAME): at most 15 of `[a-z0-9-]` with a letter among them.
#[must_use]
pub fn port_name(value: &str) -> Complaints {
    let mut wrong = Vec::new();
    if value.len() > 15 {
        wrong.push(max_length_error(15));
    }
    if value.is_empty() || !value.bytes().all(|byte| alphanumeric_lower(byte) || byte == b'-') {
        wrong.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !value.bytes().any(|byte| byte.is_ascii_lowercase()) {
        wrong.push("must contain at least one letter (a-z)".to_owned());
    }
    if value.contains("--") {
        wrong.push("must not contain consecutive hyphens".to_owned());
    }
    if value.starts_with('-') || value.ends_with('-') {
        wrong.push("must not begin or end with a hyphen".to_owned());
    }
    wrong
}

/// A port's number: 1 to 65535.
#[must_use]
pub fn port_number(value: i64) -> Complaints {
    in_range(value, 1, 65_535)
}

/// A number within bounds, both included.
#[must_use]
pub fn in_range(value: i64, low: i64, high: i64) -> Complaints {
    if (low..=high).contains(&value) { Vec::new() } else { vec![range_error(low, high)] }
}

/// An IPv4 or IPv6 address.
#[must_use]
pub fn ip_address(value: &str) -> Complaints {
    match value.parse::<std::net::IpAddr>() {
        Ok(_) => Vec::new(),
        Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()],
    }
}

/// A percentage such as `25%`.
#[must_use]
pub fn percent(value: &str) -> Complaints {
    let digits = value.strip_suffix('%').unwrap_or_default();
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Vec::new();
    }
    let message = "a valid percent string must be a numeric string followed by an ending '%'";
    vec![regex_error(message, "[0-9]+%", &["1%", "93%"])]
}

/// A header's name in an HTTP probe.
#[must_use]
pub fn http_header_name(value: &str) -> Complaints {
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Vec::new();
    }
    let message = "a valid HTTP header must consist of alphanumeric characters or '-'";
    vec![regex_error(message, "[-A-Za-z0-9]+", &["X-Header-Name"])]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_subdomains() {
        assert!(dns1123_label("a-1").is_empty());
        assert_eq!(dns1123_label("a.b"), ["must not contain dots"]);
        assert_eq!(
            dns1123_label("A"),
            [
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
              end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
              '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            ]
        );
        assert_eq!(dns1123_label(&"a".repeat(64)), ["must be no more than 63 bytes"]);
        assert!(dns1123_subdomain("a.b-c.d").is_empty());
        assert_eq!(dns1123_subdomain("a..b").len(), 1);
        assert!(dns1035_label("a1").is_empty());
        assert_eq!(dns1035_label("1a").len(), 1);
        assert!(wildcard_dns1123_subdomain("*.foo.com").is_empty());
    }

    #[test]
    fn keys_and_values() {
        assert!(qualified_name("app.kubernetes.io/name").is_empty());
        assert!(qualified_name("a/b/c")[0].starts_with("a valid label key must consist"));
        assert_eq!(qualified_name("/x"), ["prefix part must be non-empty"]);
        assert!(label_value("").is_empty());
        assert_eq!(label_value("-a").len(), 1);
        assert_eq!(config_map_key("..a"), ["must not start with '..'"]);
        assert_eq!(path_segment("a/b"), ["may not contain '/'"]);
        assert!(path_segment("system:node").is_empty());
    }

    #[test]
    fn ports_and_addresses() {
        assert!(port_name("http").is_empty());
        assert_eq!(port_name("80"), ["must contain at least one letter (a-z)"]);
        assert_eq!(port_number(0), ["must be between 1 and 65535, inclusive"]);
        assert!(ip_address("fd00::1").is_empty());
        assert_eq!(ip_address("1.2.3").len(), 1);
        assert!(is_c_identifier("A_1") && !is_c_identifier("1A"));
        assert!(env_var_name("my.name").is_empty());
        assert_eq!(env_var_name("a=b").len(), 1);
    }
}
