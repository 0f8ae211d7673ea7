//! `v1.PodLogOptions` from the query string, checked as the stock validation does.

use jiff::{SignedDuration, Timestamp};

/// Which of the container's streams to show.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StreamChoice {
    /// Both, in the order written.
    #[default]
    All,
    /// Standard output alone.
    Stdout,
    /// Standard error alone.
    Stderr,
}

/// What a log request asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Go on until the container has ended.
    pub follow: bool,
    /// The instance before the present one.
    pub previous: bool,
    /// Write each line's RFC 3339 time before it.
    pub timestamps: bool,
    /// Nothing older than this.
    pub since: Option<Timestamp>,
    /// Only this many lines from the end.
    pub tail_lines: Option<u64>,
    /// No more than this many bytes.
    pub limit_bytes: Option<u64>,
    /// Which stream.
    pub stream: StreamChoice,
}

/// Why a query was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// A value does not parse (400).
    #[error(r#"{{"message": "Unable to decode query."}}"#)]
    Undecodable,
    /// The values parse and do not fit together (422).
    #[error(r#"{{"message": "Invalid request."}}"#)]
    Invalid,
}

impl LogQuery {
    /// Reads decoded `key=value` pairs; unknown keys are passed over, as the first value of a key counts.
    ///
    /// # Errors
    /// See [`QueryError`].
    pub fn parse<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>, now: Timestamp) -> Result<Self, QueryError> {
        let mut raw = Raw::default();
        for (key, value) in pairs {
            raw.set(key, value)?;
        }
        raw.check(now)
    }
}

/// The values before they are checked against each other.
#[derive(Default)]
struct Raw {
    query: LogQuery,
    tail: Option<i64>,
    limit: Option<i64>,
    since_seconds: Option<i64>,
    since_time: Option<Timestamp>,
}

impl Raw {
    fn set(&mut self, key: &str, value: &str) -> Result<(), QueryError> {
        match key {
            "follow" => self.query.follow = boolean(value)?,
            "previous" => self.query.previous = boolean(value)?,
            "timestamps" => self.query.timestamps = boolean(value)?,
            "tailLines" => first(&mut self.tail, integer(value)?),
            // The old spelling; "all" is no limit.
            "tail" if value == "all" => {}
            "tail" => self.tail = integer(value)?,
            "limitBytes" => first(&mut self.limit, integer(value)?),
            "sinceSeconds" => first(&mut self.since_seconds, integer(value)?),
            "sinceTime" if value.is_empty() => {}
            "sinceTime" => first(&mut self.since_time, Some(value.parse().map_err(|_| QueryError::Undecodable)?)),
            "stream" => {
                self.query.stream = match value {
                    "" | "All" => StreamChoice::All,
                    "Stdout" => StreamChoice::Stdout,
                    "Stderr" => StreamChoice::Stderr,
                    _ => return Err(QueryError::Invalid),
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn check(self, now: Timestamp) -> Result<LogQuery, QueryError> {
        let mut query = self.query;
        query.tail_lines = self.tail.map(|n| at_least(n, 0)).transpose()?;
        query.limit_bytes = self.limit.map(|n| at_least(n, 1)).transpose()?;
        query.since = match (self.since_seconds, self.since_time) {
            (Some(_), Some(_)) => return Err(QueryError::Invalid),
            (Some(seconds), None) => {
                let seconds = SignedDuration::from_secs(at_least(seconds, 1)? as i64);
                Some(now.checked_sub(seconds).unwrap_or(Timestamp::MIN))
            }
            (None, time) => time,
        };
        // The tail is counted over both streams, so it says nothing about one of them.
        if query.tail_lines.is_some() && query.stream != StreamChoice::All {
            return Err(QueryError::Invalid);
        }
        Ok(query)
    }
}

fn first<T>(slot: &mut Option<T>, value: Option<T>) {
    if slot.is_none() {
        *slot = value;
    }
}

fn at_least(n: i64, least: u64) -> Result<u64, QueryError> {
    u64::try_from(n).ok().filter(|&n| n >= least).ok_or(QueryError::Invalid)
}

/// Go's reading of a boolean parameter: present is true, unless it says false.
fn boolean(value: &str) -> Result<bool, QueryError> {
    Ok(!matches!(value.to_ascii_lowercase().as_str(), "false" | "0"))
}

fn integer(value: &str) -> Result<Option<i64>, QueryError> {
    if value.is_empty() {
        return Ok(None);
    }
    value.parse().map(Some).map_err(|_| QueryError::Undecodable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Result<LogQuery, QueryError> {
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        LogQuery::parse(query.split('&').filter_map(|p| p.split_once('=')), now)
    }

    #[test]
    fn reads_every_option() {
        let query = parse("follow=true&previous=0&timestamps=&tailLines=3&limitBytes=9&sinceSeconds=60").unwrap();
        assert_eq!(
            query,
            LogQuery {
                follow: true,
                previous: false,
                timestamps: true,
                since: Some("2026-01-01T00:00:00Z".parse().unwrap()),
                tail_lines: Some(3),
                limit_bytes: Some(9),
                stream: StreamChoice::All,
            }
        );
        assert_eq!(parse("stream=Stderr").unwrap().stream, StreamChoice::Stderr);
        assert_eq!(parse("tail=all&unknown=1").unwrap(), LogQuery::default());
        assert_eq!(parse("tail=2").unwrap().tail_lines, Some(2));
    }

    #[test]
    fn refuses_what_stock_refuses() {
        for bad in ["tailLines=x", "sinceTime=yesterday", "limitBytes=1e3"] {
            assert_eq!(parse(bad), Err(QueryError::Undecodable), "{bad}");
        }
        for bad in [
            "tailLines=-1",
            "limitBytes=0",
            "sinceSeconds=0",
            "sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z",
            "stream=stdout",
            "stream=Stdout&tailLines=1",
        ] {
            assert_eq!(parse(bad), Err(QueryError::Invalid), "{bad}");
        }
    }
}
