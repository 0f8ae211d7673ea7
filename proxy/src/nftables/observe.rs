//! What the kernel's table holds, in a form that compares with the plan.

use std::collections::{BTreeSet, HashMap};

use bosun_nft::{Connection, ElementInfo, Family, Key, Result, Table};

use super::element::{Data, Element};
use super::layout::{self, Options, SetId};

/// An element's key, and whether it ends a range.
pub(super) type FoundKey = (Box<[u8]>, bool);

/// A table as found.
pub(super) struct Observed {
    /// Its chains.
    pub(super) chains: BTreeSet<String>,
    /// By set: what each element maps to.
    pub(super) elements: HashMap<&'static str, HashMap<FoundKey, Box<[u8]>>>,
}

impl Observed {
    /// Whether the table has the layout of these options.
    pub(super) fn has_layout(&self, family: Family, options: &Options) -> bool {
        layout::chains(family, options).all(|name| self.chains.contains(&name))
    }
}

/// Reads a table; none when it is not there, lacks a set, or a chain has more or fewer rules than `rule_count` says.
pub(super) fn observe(
    connection: &mut Connection,
    table: Table<'static>,
    rule_count: &dyn Fn(&str) -> Option<usize>,
) -> Result<Option<Observed>> {
    let chains: BTreeSet<String> = connection.chains(table)?.into_iter().map(|chain| chain.name).collect();
    if chains.is_empty() {
        return Ok(None);
    }
    let mut counts: HashMap<String, usize> = HashMap::new();
    for rule in connection.rules(table, None)? {
        *counts.entry(rule.chain).or_default() += 1;
    }
    let tampered = |chain: &String| {
        let found = counts.get(chain).copied().unwrap_or_default();
        rule_count(chain).is_some_and(|wanted| wanted != found)
    };
    if chains.iter().any(tampered) {
        return Ok(None);
    }
    let mut observed = Observed { chains, elements: HashMap::new() };
    for set in SetId::PLANNED {
        let mut found = HashMap::new();
        let listed = connection.elements(set.define(table).reference(), |one| {
            found.insert((one.key.into(), one.interval_end), found_data(&one));
        });
        match listed {
            Err(error) if error.is_not_found() => return Ok(None),
            listed => listed?,
        }
        observed.elements.insert(set.name(), found);
    }
    Ok(Some(observed))
}

/// What must be taken out of a set and put into it, so that it holds what is planned.
pub(super) fn differences(
    mut found: HashMap<FoundKey, Box<[u8]>>,
    planned: impl Iterator<Item = Element>,
) -> (Vec<Element>, Vec<Element>) {
    let (mut removed, mut added) = (Vec::new(), Vec::new());
    for one in planned {
        match found.remove(&key(&one)) {
            Some(data) if data == data_of(&one) => {}
            Some(data) => {
                removed.push(Element { end: end_in(&data, &one), ..one });
                added.push(one);
            }
            None => added.push(one),
        }
    }
    removed.extend(found.into_iter().map(|((key, interval_end), data)| {
        let whole = Key::new().bytes(&key);
        let end = data.strip_prefix(&[RANGE]).map(|end| Key::new().bytes(end));
        Element { key: whole, end, interval_end, data: Data::None }
    }));
    (removed, added)
}

/// The end of the range that was found, which may differ from the planned one.
fn end_in(data: &[u8], planned: &Element) -> Option<Key> {
    planned.end?;
    data.strip_prefix(&[RANGE]).map(|end| Key::new().bytes(end))
}

const RANGE: u8 = 1;
const VALUE: u8 = 2;
const VERDICT: u8 = 3;

/// The key of an element as it would be found.
pub(super) fn key(one: &Element) -> FoundKey {
    (one.key.as_slice().into(), one.interval_end)
}

/// What an element maps to, in bytes that compare: the end of its range, its value, or its verdict in words.
fn data_of(one: &Element) -> Box<[u8]> {
    match (&one.end, one.data) {
        (Some(end), _) => tagged(RANGE, end.as_slice()),
        (None, Data::None) => Box::default(),
        (None, Data::Value(value)) => tagged(VALUE, value.as_slice()),
        (None, Data::Drop) => tagged(VERDICT, b"drop"),
        (None, Data::Reject) => tagged(VERDICT, format!("goto {}", layout::REJECT).as_bytes()),
        (None, Data::Goto(chain)) => tagged(VERDICT, format!("goto {chain}").as_bytes()),
    }
}

fn found_data(one: &ElementInfo<'_>) -> Box<[u8]> {
    match (one.key_end, one.value, one.verdict()) {
        (Some(end), _, _) => tagged(RANGE, end),
        (_, Some(value), _) => tagged(VALUE, value),
        (_, _, Some(verdict)) => tagged(VERDICT, verdict.to_string().as_bytes()),
        (None, None, None) => Box::default(),
    }
}

fn tagged(tag: u8, bytes: &[u8]) -> Box<[u8]> {
    let mut data = Vec::with_capacity(bytes.len() + 1);
    data.push(tag);
    data.extend_from_slice(bytes);
    data.into()
}
