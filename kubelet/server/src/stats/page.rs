//! A page of metrics in the Prometheus text format, put together sample by sample and written in the order of names.

use std::collections::BTreeMap;
use std::fmt::Write;

/// The type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// Metrics by name. A name without samples does not show.
#[derive(Debug, Default)]
pub(crate) struct Page {
    families: BTreeMap<&'static str, Family>,
}

#[derive(Debug)]
struct Family {
    kind: Kind,
    help: &'static str,
    samples: String,
}

impl Page {
    /// Adds one sample; `at` is its time in milliseconds, absent for "now".
    pub(crate) fn add(
        &mut self,
        (name, kind, help): (&'static str, Kind, &'static str),
        labels: &[(&str, &str)],
        value: f64,
        at: Option<i64>,
    ) {
        let family = self.families.entry(name).or_insert_with(|| Family { kind, help, samples: String::new() });
        let out = &mut family.samples;
        out.push_str(name);
        write_labels(out, labels);
        // Writing to a string cannot fail.
        let _ = match at {
            Some(at) => writeln!(out, " {value} {at}"),
            None => writeln!(out, " {value}"),
        };
    }

    /// The page as text.
    pub(crate) fn render(self) -> String {
        let mut out = String::new();
        for (name, Family { kind, help, samples }) in self.families {
            let kind = match kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
            };
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{samples}");
        }
        out
    }
}

/// Labels in the order of their names, as every stock page has them.
fn write_labels(out: &mut String, labels: &[(&str, &str)]) {
    if labels.is_empty() {
        return;
    }
    let mut labels: Vec<_> = labels.to_vec();
    labels.sort_unstable();
    for (index, (name, value)) in labels.iter().enumerate() {
        let separator = if index == 0 { '{' } else { ',' };
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(out, "{separator}{name}=\"{value}\"");
    }
    out.push('}');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_families_by_name_with_sorted_escaped_labels() {
        let mut page = Page::default();
        page.add(("z_total", Kind::Counter, "Last."), &[("b", "x\"y\n"), ("a", "\\")], 1.5, Some(7));
        page.add(("a_bytes", Kind::Gauge, "First."), &[], 1e9, None);
        page.add(("z_total", Kind::Counter, "Last."), &[], 2.0, None);
        let want = "# HELP a_bytes First.\n# TYPE a_bytes gauge\na_bytes 1000000000\n# HELP z_total Last.\n\
                    # TYPE z_total counter\nz_total{a=\"\\\\\",b=\"x\\\"y\\n\"} 1.5 7\nz_total 2\n";
        assert_eq!(page.render(), want);
    }
}
