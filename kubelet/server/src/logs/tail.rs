//! Where the last N lines of a log file begin.

use std::io::{self, Read, Seek, SeekFrom};

use super::filter::Entry;

const BLOCK: usize = 16 << 10;

/// The offset at which the last `lines` lines begin. Entries of one partial line count as one line, so a long line is
/// never cut in its middle.
///
/// # Errors
/// Reading the file.
pub(super) fn offset(file: &mut (impl Read + Seek), lines: u64) -> io::Result<u64> {
    let length = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(length);
    }
    let mut seen = 0;
    let mut start_of_next = length;
    for_each_entry_back(file, length, |start, entry| {
        // An entry that ends a line begins the count of that line; the last one may be in the writing.
        let ends = Entry::parse(entry).is_some_and(|e| !e.partial);
        if ends || start_of_next == length {
            seen += 1;
        }
        if seen > lines {
            return false;
        }
        start_of_next = start;
        true
    })?;
    Ok(start_of_next)
}

/// Calls with each entry's offset and text, last first, until told to stop.
fn for_each_entry_back(
    file: &mut (impl Read + Seek),
    length: u64,
    mut each: impl FnMut(u64, &[u8]) -> bool,
) -> io::Result<()> {
    // `tail` holds the file from `from` on, up to where entries were already told.
    let mut from = length;
    let mut tail: Vec<u8> = Vec::new();
    while from > 0 {
        let size = BLOCK.min(usize::try_from(from).unwrap_or(BLOCK));
        from -= size as u64;
        let mut block = vec![0; size];
        file.seek(SeekFrom::Start(from))?;
        file.read_exact(&mut block)?;
        block.extend_from_slice(&tail);
        tail = block;
        // The newline that ends the text in hand belongs to its last entry.
        loop {
            let body = tail.strip_suffix(b"\n").unwrap_or(&tail);
            let Some(newline) = body.iter().rposition(|&b| b == b'\n') else { break };
            if !each(from + newline as u64 + 1, &body[newline + 1..]) {
                return Ok(());
            }
            tail.truncate(newline + 1);
        }
    }
    if !tail.is_empty() {
        each(0, tail.strip_suffix(b"\n").unwrap_or(&tail));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn tail(log: &str, lines: u64) -> String {
        let at = offset(&mut Cursor::new(log.as_bytes()), lines).unwrap();
        log[usize::try_from(at).unwrap()..].replace("2026-01-01T00:00:00Z stdout ", "")
    }

    #[test]
    fn counts_whole_lines() {
        let log = "2026-01-01T00:00:00Z stdout F one\n\
                   2026-01-01T00:00:00Z stdout P two \n\
                   2026-01-01T00:00:00Z stdout F two\n\
                   2026-01-01T00:00:00Z stdout F three\n";
        assert_eq!(tail(log, 0), "");
        assert_eq!(tail(log, 1), "F three\n");
        assert_eq!(tail(log, 2), "P two \nF two\nF three\n");
        assert_eq!(tail(log, 3), "F one\nP two \nF two\nF three\n");
        assert_eq!(tail(log, 9), "F one\nP two \nF two\nF three\n");
        assert_eq!(tail("", 3), "");
    }

    #[test]
    fn a_line_in_the_writing_is_a_line() {
        let log = "2026-01-01T00:00:00Z stdout F one\n\
                   2026-01-01T00:00:00Z stdout P two\n\
                   2026-01-01T00:00:00Z stdout P more\n";
        assert_eq!(tail(log, 1), "P two\nP more\n");
        let torn = "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:00Z stdout F tw";
        assert_eq!(tail(torn, 1), "F tw");
    }

    #[test]
    fn reads_over_block_borders() {
        let line = |n: usize| format!("2026-01-01T00:00:00Z stdout F {n} {}\n", "x".repeat(n % 997));
        let log: String = (0..400).map(line).collect();
        for lines in [1, 17, 60, 399] {
            let want: String = (400 - lines..400).map(line).collect();
            let at = offset(&mut Cursor::new(log.as_bytes()), lines as u64).unwrap();
            assert!(log[usize::try_from(at).unwrap()..] == want, "{lines}");
        }
    }
}
