//! The table, and the same as JSON.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

/// One measured number beside what it is compared with.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    /// What we reach.
    pub(crate) here: f64,
    /// The least that anything could reach: the raw calls, of the same run.
    pub(crate) floor: Option<f64>,
    /// Another implementation: of the same run, or as the note says.
    pub(crate) peer: Option<f64>,
    /// The bound that is promised.
    pub(crate) bound: f64,
    /// How the bound comes about, and who the peer is.
    pub(crate) note: String,
    /// Whether more is better.
    pub(crate) more_is_better: bool,
}

#[derive(Serialize)]
struct Document<'a> {
    cores: usize,
    containerd: &'a str,
    rows: &'a [Row],
}

impl Row {
    pub(crate) fn met(&self) -> bool {
        if self.more_is_better { self.here >= self.bound } else { self.here <= self.bound }
    }
}

/// The rows as a table that Markdown understands too.
pub(crate) fn table(rows: &[Row]) -> String {
    let head = ["", "here", "promise", "floor", "peer", "met", "note"].map(str::to_owned);
    let mut lines = vec![head];
    for row in rows {
        let unit = row.unit;
        let optional = |value: Option<f64>| value.map_or_else(String::new, |value| show(value, unit));
        let sign = if row.more_is_better { "≥" } else { "≤" };
        lines.push([
            row.name.clone(),
            show(row.here, unit),
            format!("{sign} {}", show(row.bound, unit)),
            optional(row.floor),
            optional(row.peer),
            if row.met() { "yes" } else { "NO" }.to_owned(),
            row.note.clone(),
        ]);
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..7).map(width).collect();
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        let pad = |(cell, width): (&String, &usize)| format!("{cell}{}", " ".repeat(width - cell.chars().count()));
        let cells: Vec<String> = line.iter().zip(&widths).map(pad).collect();
        text += &format!("| {} |\n", cells.join(" | "));
        if number == 0 {
            let rules: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
            text += &format!("| {} |\n", rules.join(" | "));
        }
    }
    text
}

/// Writes the rows for machines.
pub(crate) fn write(path: &Path, containerd: &str, rows: &[Row]) -> Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, Into::into);
    let text = serde_json::to_string_pretty(&Document { cores, containerd, rows })?;
    fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
}

fn show(value: f64, unit: &str) -> String {
    match unit {
        "objects/s" => format!("{value:.0} {unit}"),
        "MB" => format!("{value:.1} {unit}"),
        _ => format!("{value:.2} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_reads_as_a_line() {
        let row = Row {
            name: "one pod".to_owned(),
            unit: "s",
            here: 0.15,
            floor: Some(0.12),
            peer: None,
            bound: 0.18,
            note: "1.5 × floor".to_owned(),
            more_is_better: false,
        };
        let text = table(std::slice::from_ref(&row));
        assert!(text.ends_with("| one pod | 0.15 s | ≤ 0.18 s | 0.12 s |      | yes | 1.5 × floor |\n"), "{text}");
        assert!(!Row { here: 0.2, ..row }.met());
    }
}
