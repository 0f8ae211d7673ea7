//! What there is: tables, chains, rules, sets and elements as the kernel lists them.

use crate::attr::{Attributes, Messages, text};
use crate::connection::Connection;
use crate::error::Result;
use crate::object::{Family, SetRef, Table};
use crate::{Verdict, sys};

const SUBSYSTEM: u16 = sys::NFNL_SUBSYS_NFTABLES << 8;

/// A chain that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainInfo {
    /// Its name.
    pub name: String,
    /// Hook number and priority of a base chain.
    pub hook: Option<(u32, i32)>,
}

/// A rule that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleInfo {
    /// The chain it is in.
    pub chain: String,
    /// By which it can be deleted.
    pub handle: u64,
    /// Its note.
    pub comment: Option<String>,
    /// Its expressions as the kernel encodes them, with counters at their present values.
    pub expressions: Vec<u8>,
}

/// A set or map that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetInfo {
    /// Its name.
    pub name: String,
    /// `NFT_SET_*` bits.
    pub flags: u32,
    /// The type number of its key.
    pub key_type: u32,
    /// The length of its key in bytes.
    pub key_len: u32,
    /// The length of its values in bytes; 0 for sets and verdict maps.
    pub data_len: u32,
}

/// An element that exists, borrowed from the kernel's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElementInfo<'a> {
    /// Its key.
    pub key: &'a [u8],
    /// The end of its range.
    pub key_end: Option<&'a [u8]>,
    /// Whether it ends a range.
    pub interval_end: bool,
    /// The value it maps to.
    pub value: Option<&'a [u8]>,
    /// The verdict it maps to: its code and its chain.
    pub verdict: Option<(i32, Option<&'a str>)>,
    /// Milliseconds until it expires.
    pub expires: Option<u64>,
    /// Its note.
    pub comment: Option<&'a str>,
}

impl ElementInfo<'_> {
    /// The verdict as an owned value.
    pub fn verdict(&self) -> Option<Verdict> {
        let (code, chain) = self.verdict?;
        let chain = || chain.map(str::to_owned);
        match code {
            0 => Some(Verdict::Drop),
            1 => Some(Verdict::Accept),
            -1 => Some(Verdict::Continue),
            -5 => Some(Verdict::Return),
            -3 => chain().map(Verdict::Jump),
            -4 => chain().map(Verdict::Goto),
            _ => None,
        }
    }
}

impl Connection {
    /// The generation of the rule set: it changes with each transaction of anyone.
    pub fn generation(&mut self) -> Result<u32> {
        let kind = SUBSYSTEM | sys::NFT_MSG_GETGEN;
        self.get("read the generation of the rule set", kind, 0, |m| m.attributes().be32(sys::NFTA_GEN_ID))
    }

    /// The names of the tables of a family.
    pub fn tables(&mut self, family: Family) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let kind = SUBSYSTEM | sys::NFT_MSG_GETTABLE;
        self.dump(
            "list tables",
            kind,
            family.number(),
            |_| {},
            |message| {
                names.extend(message.attributes().text(sys::NFTA_TABLE_NAME).map(str::to_owned));
            },
        )?;
        Ok(names)
    }

    /// The chains of a table; none when there is no such table.
    pub fn chains(&mut self, table: Table<'_>) -> Result<Vec<ChainInfo>> {
        let mut chains = Vec::new();
        let kind = SUBSYSTEM | sys::NFT_MSG_GETCHAIN;
        self.dump(
            "list chains",
            kind,
            table.family.number(),
            |_| {},
            |message| {
                let attributes = message.attributes();
                // Older kernels list the chains of every table.
                if attributes.text(sys::NFTA_CHAIN_TABLE) == Some(table.name) {
                    chains.extend(chain_info(attributes));
                }
            },
        )?;
        Ok(chains)
    }

    /// The rules of a table, or of one chain of it; none when there is no such table or chain.
    pub fn rules(&mut self, table: Table<'_>, chain: Option<&str>) -> Result<Vec<RuleInfo>> {
        let mut rules = Vec::new();
        let kind = SUBSYSTEM | sys::NFT_MSG_GETRULE;
        let ask = |out: &mut crate::attr::Encoder| {
            out.string(sys::NFTA_RULE_TABLE, table.name);
            if let Some(chain) = chain {
                out.string(sys::NFTA_RULE_CHAIN, chain);
            }
        };
        self.dump("list rules", kind, table.family.number(), ask, |message| {
            let attributes = message.attributes();
            let listed = attributes.text(sys::NFTA_RULE_CHAIN);
            let here = attributes.text(sys::NFTA_RULE_TABLE) == Some(table.name);
            if here && chain.is_none_or(|chain| listed == Some(chain)) {
                rules.extend(rule_info(attributes));
            }
        })?;
        Ok(rules)
    }

    /// The sets and maps of a table, without elements.
    pub fn sets(&mut self, table: Table<'_>) -> Result<Vec<SetInfo>> {
        let mut sets = Vec::new();
        let kind = SUBSYSTEM | sys::NFT_MSG_GETSET;
        let ask = |out: &mut crate::attr::Encoder| out.string(sys::NFTA_SET_TABLE, table.name);
        let listed = self.dump("list sets", kind, table.family.number(), ask, |message| {
            sets.extend(set_info(message.attributes()));
        });
        match listed {
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            listed => listed.map(|()| sets),
        }
    }

    /// Hands each element of a set or map to `take`. On [`crate::Error::Interrupted`] forget them and ask again.
    pub fn elements(&mut self, set: SetRef<'_>, mut take: impl FnMut(ElementInfo<'_>)) -> Result<()> {
        let what = format!("list elements of {} {} {}", set.table.family.name(), set.table.name, set.name);
        let ask = |out: &mut crate::attr::Encoder| {
            out.string(sys::NFTA_SET_ELEM_LIST_TABLE, set.table.name);
            out.string(sys::NFTA_SET_ELEM_LIST_SET, set.name);
        };
        let kind = SUBSYSTEM | sys::NFT_MSG_GETSETELEM;
        self.dump(&what, kind, set.table.family.number(), ask, |message| {
            for (_, element) in message.attributes().nested(sys::NFTA_SET_ELEM_LIST_ELEMENTS) {
                if let Some(element) = element_info(Attributes(element)) {
                    take(element);
                }
            }
        })
    }
}

fn chain_info(attributes: Attributes<'_>) -> Option<ChainInfo> {
    let hook = attributes.nested(sys::NFTA_CHAIN_HOOK);
    let number = hook.be32(sys::NFTA_HOOK_HOOKNUM);
    let priority = hook.be32(sys::NFTA_HOOK_PRIORITY).map(u32::cast_signed);
    Some(ChainInfo { name: attributes.text(sys::NFTA_CHAIN_NAME)?.to_owned(), hook: number.zip(priority) })
}

fn rule_info(attributes: Attributes<'_>) -> Option<RuleInfo> {
    Some(RuleInfo {
        chain: attributes.text(sys::NFTA_RULE_CHAIN)?.to_owned(),
        handle: attributes.be64(sys::NFTA_RULE_HANDLE)?,
        comment: comment(attributes.get(sys::NFTA_RULE_USERDATA), sys::UDATA_RULE_COMMENT).map(str::to_owned),
        expressions: attributes.get(sys::NFTA_RULE_EXPRESSIONS).unwrap_or_default().to_vec(),
    })
}

fn set_info(attributes: Attributes<'_>) -> Option<SetInfo> {
    Some(SetInfo {
        name: attributes.text(sys::NFTA_SET_NAME)?.to_owned(),
        flags: attributes.be32(sys::NFTA_SET_FLAGS).unwrap_or_default(),
        key_type: attributes.be32(sys::NFTA_SET_KEY_TYPE).unwrap_or_default(),
        key_len: attributes.be32(sys::NFTA_SET_KEY_LEN).unwrap_or_default(),
        data_len: attributes.be32(sys::NFTA_SET_DATA_LEN).unwrap_or_default(),
    })
}

fn element_info(attributes: Attributes<'_>) -> Option<ElementInfo<'_>> {
    let data = attributes.nested(sys::NFTA_SET_ELEM_DATA);
    let verdict = data.get(sys::NFTA_DATA_VERDICT).map(Attributes).and_then(|verdict| {
        Some((verdict.be32(sys::NFTA_VERDICT_CODE)?.cast_signed(), verdict.text(sys::NFTA_VERDICT_CHAIN)))
    });
    let flags = attributes.be32(sys::NFTA_SET_ELEM_FLAGS).unwrap_or_default();
    Some(ElementInfo {
        key: attributes.nested(sys::NFTA_SET_ELEM_KEY).get(sys::NFTA_DATA_VALUE)?,
        key_end: attributes.nested(sys::NFTA_SET_ELEM_KEY_END).get(sys::NFTA_DATA_VALUE),
        interval_end: flags & sys::NFT_SET_ELEM_INTERVAL_END != 0,
        value: data.get(sys::NFTA_DATA_VALUE),
        verdict,
        expires: attributes.be64(sys::NFTA_SET_ELEM_EXPIRATION),
        comment: comment(attributes.get(sys::NFTA_SET_ELEM_USERDATA), sys::UDATA_ELEM_COMMENT),
    })
}

/// The note in user data, which is a list of (type, length, value) of one byte each.
fn comment(data: Option<&[u8]>, wanted: u8) -> Option<&str> {
    let mut rest = data?;
    while let [kind, len, tail @ ..] = rest {
        let value = tail.get(..usize::from(*len))?;
        if *kind == wanted {
            return text(value);
        }
        rest = &tail[usize::from(*len)..];
    }
    None
}

/// The messages of a buffer that say a transaction was committed; see [`crate::Monitor`].
pub(crate) fn events(buf: &[u8]) -> impl Iterator<Item = crate::Event> {
    Messages(buf).filter_map(|message| crate::Event::of(&message))
}
