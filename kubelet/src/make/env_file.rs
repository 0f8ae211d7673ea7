//! Variables from a file of a volume (KEP-3721): lines `NAME='value'`, where the value is all between the quotes, line
//! breaks too, and nothing in it is special. Empty lines and lines that begin with `#` say nothing.

/// The largest file that is read, in bytes.
pub const MAX_SIZE: u64 = 64 << 10;

/// The value of `key` in the text; none if it has no such line. The last one counts.
///
/// # Errors
/// A line that is neither of these; it names its number.
pub fn value_of(text: &str, key: &str) -> Result<Option<String>, String> {
    let (mut rest, mut line, mut found) = (text, 1, None);
    while !rest.is_empty() {
        let (first, after) = rest.split_once('\n').unwrap_or((rest, ""));
        let trimmed = first.trim();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            (rest, line) = (after, line + 1);
            continue;
        }
        let wrong = |what: &str| format!("line {line}: {what}");
        let (name, quoted) = rest.trim_start().split_once('=').ok_or_else(|| wrong("no '=' after the name"))?;
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(wrong("a name is printable and without spaces, and '=' follows it at once"));
        }
        let inside = quoted.strip_prefix('\'').ok_or_else(|| wrong("the value must be in single quotes"))?;
        let (value, after) = inside.split_once('\'').ok_or_else(|| wrong("the closing quote is missing"))?;
        let (tail, after) = after.split_once('\n').unwrap_or((after, ""));
        let tail = tail.trim();
        if !tail.is_empty() && !tail.starts_with('#') {
            return Err(wrong("only a comment may follow the closing quote"));
        }
        if name == key {
            found = Some(value.to_owned());
        }
        line += value.matches('\n').count() + 1;
        rest = after;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_all_between_the_quotes() {
        let text = "# a comment\n\n  A='one'\nB='$A \"two\" \\n # x'   # why\nC='first\nsecond'\nA='last'\nEMPTY=''";
        for (key, want) in [
            ("A", Some("last")),
            ("B", Some("$A \"two\" \\n # x")),
            ("C", Some("first\nsecond")),
            ("EMPTY", Some("")),
            ("D", None),
        ] {
            assert_eq!(value_of(text, key).unwrap().as_deref(), want, "{key}");
        }
    }

    #[test]
    fn anything_else_is_an_error_with_its_line() {
        for (text, part) in [
            ("A='x'\nB=2", "line 2: the value must be in single quotes"),
            ("A='x\ny'\nB", "line 3: no '='"),
            ("A ='x'", "line 1: a name"),
            ("A='x", "line 1: the closing quote"),
            ("A='x''y'", "line 1: only a comment"),
            ("='x'", "line 1: a name"),
        ] {
            let error = value_of(text, "A").unwrap_err();
            assert!(error.starts_with(part), "{text:?}: {error}");
        }
    }
}
