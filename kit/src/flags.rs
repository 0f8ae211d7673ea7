//! Flags as Go programs take them, brought to the spelling that clap takes.
//!
//! Go's pflag accepts `--name=value`, `--name value`, a bare `--bool` and `--bool=false`. Every flag of ours that is a
//! boolean is declared with [`clap::ArgAction::Set`] and `default_missing_value`, so that all four spellings work; this
//! module turns what remains (underscores in names, as stock normalizes them) into the canonical form.

use std::ffi::OsString;

/// The program's arguments with flag names normalized: `--feature_gates` becomes `--feature-gates`, and `-v=4` becomes
/// `-v4`'s long form `--v=4`.
pub fn go_args(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut after_separator = false;
    args.into_iter()
        .enumerate()
        .map(|(index, arg)| match arg.into_string() {
            Ok(text) if index > 0 && !after_separator => {
                after_separator = text == "--";
                normalize(text).into()
            }
            Ok(text) => text.into(),
            Err(raw) => raw,
        })
        .collect()
}

fn normalize(arg: String) -> String {
    if let Some(level) = arg.strip_prefix("-v=") {
        return format!("--v={level}");
    }
    let Some(long) = arg.strip_prefix("--") else { return arg };
    let (name, value) = match long.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (long, None),
    };
    let name = name.replace('_', "-");
    match value {
        Some(value) => format!("--{name}={value}"),
        None => format!("--{name}"),
    }
}

/// Parses `key=value,key=value`, the form of `--node-labels`, `--feature-gates` and their kin.
///
/// # Errors
/// The pair that has no `=`, in words.
pub fn parse_pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    text.split(',')
        .map(str::trim)
        .filter(|pair| !pair.is_empty())
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) => Ok((key.trim().to_owned(), value.trim().to_owned())),
            None => Err(format!("malformed pair, expect string=string: {pair:?}")),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn go(args: &[&str]) -> Vec<String> {
        go_args(args.iter().map(OsString::from)).into_iter().map(|a| a.into_string().unwrap()).collect()
    }

    #[test]
    fn underscores_in_names_become_dashes_and_values_stay() {
        assert_eq!(
            go(&["kubelet", "--feature_gates=A_b=true", "--v", "2", "-v=4"]),
            ["kubelet", "--feature-gates=A_b=true", "--v", "2", "--v=4"]
        );
    }

    #[test]
    fn nothing_changes_behind_the_separator() {
        assert_eq!(go(&["x", "--", "--a_b"]), ["x", "--", "--a_b"]);
    }

    #[test]
    fn pairs() {
        assert_eq!(
            parse_pairs("a=1, b=x=y").unwrap(),
            [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "x=y".to_owned())]
        );
        assert!(parse_pairs("a").unwrap_err().contains("\"a\""));
    }
}
