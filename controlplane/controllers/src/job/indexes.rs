//! Sets of completion indexes, as the status writes them: `0-2,5`.

use std::collections::BTreeSet;

/// Parses; what cannot be read is left out.
pub(super) fn parse(text: &str) -> BTreeSet<i32> {
    let mut set = BTreeSet::new();
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
            // Validation keeps completions of indexed jobs below this.
            set.extend(first..=last.min(first.saturating_add(100_000)));
        }
    }
    set
}

/// Formats; runs of three and more become ranges, as do pairs (stock writes `1,2` for pairs).
pub(super) fn format(set: &BTreeSet<i32>) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut run: Option<(i32, i32)> = None;
    let mut close = |run: Option<(i32, i32)>| match run {
        None => {}
        Some((first, last)) if first == last => parts.push(first.to_string()),
        Some((first, last)) if first + 1 == last => parts.push(format!("{first},{last}")),
        Some((first, last)) => parts.push(format!("{first}-{last}")),
    };
    for index in set {
        run = match run {
            Some((first, last)) if last + 1 == *index => Some((first, *index)),
            before => {
                close(before);
                Some((*index, *index))
            }
        };
    }
    close(run);
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges() {
        assert_eq!(format(&[0, 1, 2, 4, 6, 7].into()), "0-2,4,6,7");
        assert_eq!(parse("0-2,4,x"), [0, 1, 2, 4].into());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(set in proptest::collection::btree_set(0..200i32, 0..60)) {
            prop_assert_eq!(parse(&format(&set)), set);
        }
    }
}
