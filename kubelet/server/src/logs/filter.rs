//! From bytes of a CRI log file to bytes of the answer: a state machine without I/O.
//!
//! An entry is `<RFC 3339 time> <stdout|stderr> <tags> <text>\n`; the first tag is `P` when the line goes on in the
//! next entry and `F` when it ends here (Kubernetes, "CRI log format").

use jiff::Timestamp;

use super::{LogQuery, StreamChoice};

/// An entry longer than this has no newline where one must be: it is passed over, so that a broken file cannot take
/// all memory. containerd and CRI-O cut entries at 16 KiB.
const ENTRY_LIMIT: usize = 1 << 20;

/// Whether more input can change the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Push more.
    Continue,
    /// The byte limit is reached.
    Full,
}

/// Keeps what the query asks for. Push file bytes in any cut; the answer is the same.
#[derive(Debug)]
pub struct LogFilter {
    since: Option<Timestamp>,
    timestamps: bool,
    stream: StreamChoice,
    left: Option<u64>,
    /// The beginning of an entry whose newline has not come.
    pending: Vec<u8>,
    /// Drop input up to the next newline.
    skipping: bool,
    /// The next kept entry begins a line, per stream: a partial line of one may be cut by an entry of the other.
    fresh: [bool; 2],
}

impl LogFilter {
    /// A filter at the beginning of a line.
    pub fn new(query: &LogQuery) -> Self {
        Self {
            since: query.since,
            timestamps: query.timestamps,
            stream: query.stream,
            left: query.limit_bytes,
            pending: Vec::new(),
            skipping: false,
            fresh: [true; 2],
        }
    }

    /// Takes the next bytes of the file and appends what the client gets.
    pub fn push(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> Flow {
        while let Some(end) = input.iter().position(|&b| b == b'\n') {
            let (entry, rest) = (&input[..end], &input[end + 1..]);
            input = rest;
            let flow = if self.skipping {
                self.skipping = false;
                Flow::Continue
            } else if self.pending.is_empty() {
                self.entry(entry, out)
            } else {
                let mut whole = std::mem::take(&mut self.pending);
                whole.extend_from_slice(entry);
                let flow = self.entry(&whole, out);
                whole.clear();
                self.pending = whole;
                flow
            };
            if flow == Flow::Full {
                return flow;
            }
        }
        self.keep(input);
        Flow::Continue
    }

    /// The file was rotated or cut: what was begun will never be finished.
    pub fn restart(&mut self) {
        self.pending.clear();
        self.skipping = false;
    }

    fn keep(&mut self, rest: &[u8]) {
        if self.skipping {
            return;
        }
        if self.pending.len() + rest.len() > ENTRY_LIMIT {
            self.pending = Vec::new();
            self.skipping = true;
            return;
        }
        self.pending.extend_from_slice(rest);
    }

    fn entry(&mut self, entry: &[u8], out: &mut Vec<u8>) -> Flow {
        let Some(entry) = Entry::parse(entry) else { return Flow::Continue };
        let (index, wanted) = match entry.stream {
            b"stdout" => (0, self.stream != StreamChoice::Stderr),
            b"stderr" => (1, self.stream != StreamChoice::Stdout),
            _ => return Flow::Continue,
        };
        if !wanted || self.since.is_some_and(|since| entry.time().is_none_or(|time| time < since)) {
            return Flow::Continue;
        }
        let fresh = std::mem::replace(&mut self.fresh[index], !entry.partial);
        if fresh && self.timestamps && self.write(&[entry.stamp, b" "], out) == Flow::Full {
            return Flow::Full;
        }
        let end: &[u8] = if entry.partial { b"" } else { b"\n" };
        self.write(&[entry.text, end], out)
    }

    fn write(&mut self, parts: &[&[u8]], out: &mut Vec<u8>) -> Flow {
        for part in parts {
            let Some(left) = &mut self.left else {
                out.extend_from_slice(part);
                continue;
            };
            let take = part.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
            out.extend_from_slice(&part[..take]);
            *left -= take as u64;
            if *left == 0 {
                return Flow::Full;
            }
        }
        Flow::Continue
    }
}

/// One entry's parts.
pub(super) struct Entry<'a> {
    stamp: &'a [u8],
    stream: &'a [u8],
    pub(super) partial: bool,
    text: &'a [u8],
}

impl<'a> Entry<'a> {
    /// `None` for a line that is not in the format: a torn write, which the stock reader drops too.
    pub(super) fn parse(line: &'a [u8]) -> Option<Self> {
        let (stamp, rest) = cut(line)?;
        let (stream, rest) = cut(rest)?;
        let (tags, text) = cut(rest).unwrap_or((rest, b""));
        let partial = match tags.split(|&b| b == b':').next()? {
            b"P" => true,
            b"F" => false,
            _ => return None,
        };
        Some(Self { stamp, stream, partial, text })
    }

    fn time(&self) -> Option<Timestamp> {
        std::str::from_utf8(self.stamp).ok()?.parse().ok()
    }
}

fn cut(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = line.iter().position(|&b| b == b' ')?;
    Some((&line[..at], &line[at + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
2026-01-01T00:00:00.000000001Z stdout F one
2026-01-01T00:00:01.5Z stderr F bad
2026-01-01T00:00:02Z stdout P two, 
2026-01-01T00:00:02Z stderr F between
2026-01-01T00:00:02Z stdout P:tag still two, 
2026-01-01T00:00:03Z stdout F end of two
torn
2026-01-01T02:00:04+02:00 stdout F 
2026-01-01T00:00:05Z stdout F  indented
";

    fn run(query: LogQuery, step: usize) -> String {
        let mut filter = LogFilter::new(&query);
        let mut out = Vec::new();
        for chunk in LOG.as_bytes().chunks(step) {
            if filter.push(chunk, &mut out) == Flow::Full {
                break;
            }
        }
        String::from_utf8(out).unwrap()
    }

    fn check(query: LogQuery, want: &str) {
        for step in [1, 2, 7, 64, 4096] {
            assert_eq!(run(query.clone(), step), want, "cut at {step}");
        }
    }

    #[test]
    fn joins_partial_entries() {
        let query = LogQuery { stream: StreamChoice::Stdout, ..LogQuery::default() };
        check(query, "one\ntwo, still two, end of two\n\n indented\n");
        let query = LogQuery { stream: StreamChoice::Stderr, ..LogQuery::default() };
        check(query, "bad\nbetween\n");
    }

    #[test]
    fn stamps_the_beginning_of_a_line_once() {
        let query = LogQuery { stream: StreamChoice::Stdout, timestamps: true, ..LogQuery::default() };
        check(
            query,
            "2026-01-01T00:00:00.000000001Z one\n\
             2026-01-01T00:00:02Z two, still two, end of two\n\
             2026-01-01T02:00:04+02:00 \n\
             2026-01-01T00:00:05Z  indented\n",
        );
    }

    #[test]
    fn since_is_a_time_and_not_a_text() {
        let since = Some("2026-01-01T00:00:04Z".parse().unwrap());
        check(LogQuery { since, ..LogQuery::default() }, "\n indented\n");
    }

    #[test]
    fn the_limit_cuts_within_a_line() {
        check(LogQuery { limit_bytes: Some(6), ..LogQuery::default() }, "one\nba");
        check(LogQuery { limit_bytes: Some(5), timestamps: true, ..LogQuery::default() }, "2026-");
    }

    #[test]
    fn an_endless_entry_is_passed_over() {
        let mut filter = LogFilter::new(&LogQuery::default());
        let mut out = Vec::new();
        for _ in 0..40 {
            filter.push(&[b'x'; 1 << 16], &mut out);
        }
        assert!(filter.pending.len() <= ENTRY_LIMIT);
        filter.push(b"\n2026-01-01T00:00:05Z stdout F after\n", &mut out);
        assert_eq!(out, b"after\n");
    }
}
