//! A transaction: operations on the rule set that take effect together or not at all.

use std::ops::Range;

use crate::attr::{Encoder, Message, Messages};
use crate::object::{Chain, Element, ElementData, Hook, Rule, Set, SetData, SetRef, Table};
use crate::sys;

/// Elements of one message; a nest's length has 16 bits.
const CHUNK: usize = 60_000;
/// The most bytes of a note, so that it fits the kernel's 255 bytes of user data whatever else is in it.
const COMMENT_MAX: usize = 127;

/// Operations to apply in one transaction.
///
/// The order is kept: what a rule refers to must have been added before it. Adding what exists already is no error
/// unless it differs; deleting what does not exist is one, and refuses the whole batch.
pub struct Batch {
    out: Encoder,
    /// The sequence number of the next message; the first message opens the batch.
    seq: u32,
    /// Where the last message starts.
    last: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// Nothing to do yet.
    pub fn new() -> Self {
        let mut batch = Self { out: Encoder::default(), seq: 1, last: 0 };
        let start = batch.out.message(sys::NFNL_MSG_BATCH_BEGIN, sys::NLM_F_REQUEST, 0, 0, sys::NFNL_SUBSYS_NFTABLES);
        batch.out.end(start);
        batch
    }

    /// Makes the kernel refuse the batch (`ERESTART`) unless the rule set is still of this generation.
    pub fn at_generation(&mut self, generation: u32) {
        debug_assert!(self.is_empty(), "the generation goes before the operations");
        self.out.buf.clear();
        let start = self.out.message(sys::NFNL_MSG_BATCH_BEGIN, sys::NLM_F_REQUEST, 0, 0, sys::NFNL_SUBSYS_NFTABLES);
        self.out.be32(1, generation);
        self.out.end(start);
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.seq == 1
    }

    /// The size of the transaction in bytes.
    pub fn len(&self) -> usize {
        self.out.buf.len()
    }

    /// Adds a table unless it is there.
    pub fn add_table(&mut self, table: Table<'_>) {
        self.operation(sys::NFT_MSG_NEWTABLE, sys::NLM_F_CREATE, table, |out| {
            out.string(sys::NFTA_TABLE_NAME, table.name);
        });
    }

    /// Deletes a table and everything in it. [`Batch::add_table`] before it makes a missing table no error.
    pub fn delete_table(&mut self, table: Table<'_>) {
        self.operation(sys::NFT_MSG_DELTABLE, 0, table, |out| out.string(sys::NFTA_TABLE_NAME, table.name));
    }

    /// Adds a chain unless it is there.
    pub fn add_chain(&mut self, chain: &Chain<'_>) {
        self.operation(sys::NFT_MSG_NEWCHAIN, sys::NLM_F_CREATE, chain.table, |out| {
            out.string(sys::NFTA_CHAIN_TABLE, chain.table.name);
            out.string(sys::NFTA_CHAIN_NAME, chain.name);
            if let Some(base) = &chain.base {
                out.nest(sys::NFTA_CHAIN_HOOK, |out| {
                    out.be32(sys::NFTA_HOOK_HOOKNUM, hook_number(base.hook));
                    out.be32(sys::NFTA_HOOK_PRIORITY, base.priority.cast_unsigned());
                });
                out.be32(sys::NFTA_CHAIN_POLICY, u32::from(!base.drop));
                out.string(sys::NFTA_CHAIN_TYPE, base.kind);
            }
        });
    }

    /// Deletes a chain with its rules. Nothing may refer to it.
    pub fn delete_chain(&mut self, table: Table<'_>, chain: &str) {
        self.operation(sys::NFT_MSG_DELCHAIN, 0, table, |out| {
            out.string(sys::NFTA_CHAIN_TABLE, table.name);
            out.string(sys::NFTA_CHAIN_NAME, chain);
        });
    }

    /// Deletes the rules of a chain.
    pub fn flush_chain(&mut self, table: Table<'_>, chain: &str) {
        self.operation(sys::NFT_MSG_DELRULE, 0, table, |out| {
            out.string(sys::NFTA_RULE_TABLE, table.name);
            out.string(sys::NFTA_RULE_CHAIN, chain);
        });
    }

    /// Appends a rule.
    pub fn add_rule(&mut self, rule: &Rule<'_>) {
        self.rule(rule, sys::NLM_F_CREATE | sys::NLM_F_APPEND);
    }

    /// Puts a rule before those of its chain.
    pub fn insert_rule(&mut self, rule: &Rule<'_>) {
        self.rule(rule, sys::NLM_F_CREATE);
    }

    fn rule(&mut self, rule: &Rule<'_>, flags: u16) {
        self.operation(sys::NFT_MSG_NEWRULE, flags, rule.table, |out| {
            out.string(sys::NFTA_RULE_TABLE, rule.table.name);
            out.string(sys::NFTA_RULE_CHAIN, rule.chain);
            out.nest(sys::NFTA_RULE_EXPRESSIONS, |out| {
                rule.expressions.iter().for_each(|expr| expr.encode(out, rule.table.family))
            });
            if let Some(comment) = &rule.comment {
                out.bytes(sys::NFTA_RULE_USERDATA, &text_data(sys::UDATA_RULE_COMMENT, comment));
            }
        });
    }

    /// Deletes the rule of a handle, which [`crate::Connection::rules`] tells.
    pub fn delete_rule(&mut self, table: Table<'_>, chain: &str, handle: u64) {
        self.operation(sys::NFT_MSG_DELRULE, 0, table, |out| {
            out.string(sys::NFTA_RULE_TABLE, table.name);
            out.string(sys::NFTA_RULE_CHAIN, chain);
            out.be64(sys::NFTA_RULE_HANDLE, handle);
        });
    }

    /// Adds a set or map unless it is there.
    pub fn add_set(&mut self, set: &Set<'_>) {
        let id = self.seq;
        self.operation(sys::NFT_MSG_NEWSET, sys::NLM_F_CREATE, set.table, |out| encode_set(out, set, id));
    }

    /// Deletes a set or map with its elements. No rule may refer to it.
    pub fn delete_set(&mut self, set: SetRef<'_>) {
        self.operation(sys::NFT_MSG_DELSET, 0, set.table, |out| {
            out.string(sys::NFTA_SET_TABLE, set.table.name);
            out.string(sys::NFTA_SET_NAME, set.name);
        });
    }

    /// Deletes the elements of a set or map.
    pub fn flush_set(&mut self, set: SetRef<'_>) {
        self.operation(sys::NFT_MSG_DELSETELEM, 0, set.table, |out| {
            out.string(sys::NFTA_SET_ELEM_LIST_TABLE, set.table.name);
            out.string(sys::NFTA_SET_ELEM_LIST_SET, set.name);
        });
    }

    /// Adds elements. One that is there with other data refuses the batch: delete it first.
    pub fn add_elements<'a>(&mut self, set: SetRef<'_>, elements: impl IntoIterator<Item = Element<'a>>) {
        self.elements(sys::NFT_MSG_NEWSETELEM, sys::NLM_F_CREATE, set, elements);
    }

    /// Adds elements, refusing the batch when one is there already.
    pub fn create_elements<'a>(&mut self, set: SetRef<'_>, elements: impl IntoIterator<Item = Element<'a>>) {
        self.elements(sys::NFT_MSG_NEWSETELEM, sys::NLM_F_CREATE | sys::NLM_F_EXCL, set, elements);
    }

    /// Deletes elements.
    pub fn delete_elements<'a>(&mut self, set: SetRef<'_>, elements: impl IntoIterator<Item = Element<'a>>) {
        self.elements(sys::NFT_MSG_DELSETELEM, 0, set, elements);
    }

    fn elements<'a>(
        &mut self,
        kind: u16,
        flags: u16,
        set: SetRef<'_>,
        elements: impl IntoIterator<Item = Element<'a>>,
    ) {
        let mut elements = elements.into_iter().peekable();
        while elements.peek().is_some() {
            self.operation(kind, flags, set.table, |out| {
                out.string(sys::NFTA_SET_ELEM_LIST_TABLE, set.table.name);
                out.string(sys::NFTA_SET_ELEM_LIST_SET, set.name);
                let nest = out.begin_nest(sys::NFTA_SET_ELEM_LIST_ELEMENTS);
                while out.buf.len() - nest < CHUNK {
                    let Some(element) = elements.next() else {
                        break;
                    };
                    encode_element(out, &element);
                }
                out.end_nest(nest);
            });
        }
    }

    fn operation(&mut self, kind: u16, flags: u16, table: Table<'_>, fill: impl FnOnce(&mut Encoder)) {
        let kind = sys::NFNL_SUBSYS_NFTABLES << 8 | kind;
        self.last = self.out.message(kind, sys::NLM_F_REQUEST | flags, self.seq, table.family.number(), 0);
        self.seq += 1;
        fill(&mut self.out);
        self.out.end(self.last);
    }

    /// Closes the batch: its bytes, and the sequence number whose acknowledgement means success.
    pub(crate) fn finish(mut self) -> (Vec<u8>, u32) {
        let flags: Range<usize> = self.last + 6..self.last + 8;
        let current = u16::from_ne_bytes([self.out.buf[flags.start], self.out.buf[flags.start + 1]]);
        self.out.buf[flags].copy_from_slice(&(current | sys::NLM_F_ACK).to_ne_bytes());
        let end = self.out.message(sys::NFNL_MSG_BATCH_END, sys::NLM_F_REQUEST, self.seq, 0, sys::NFNL_SUBSYS_NFTABLES);
        self.out.end(end);
        (self.out.buf, self.seq - 1)
    }
}

fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    }
}

fn encode_set(out: &mut Encoder, set: &Set<'_>, id: u32) {
    out.string(sys::NFTA_SET_TABLE, set.table.name);
    out.string(sys::NFTA_SET_NAME, set.name);
    out.be32(sys::NFTA_SET_FLAGS, set_flags(set));
    out.be32(sys::NFTA_SET_KEY_TYPE, type_number(set.key));
    out.be32(sys::NFTA_SET_KEY_LEN, type_len(set.key));
    match set.data {
        SetData::None => {}
        SetData::Value(fields) => {
            out.be32(sys::NFTA_SET_DATA_TYPE, type_number(fields));
            out.be32(sys::NFTA_SET_DATA_LEN, type_len(fields));
        }
        SetData::Verdict => out.be32(sys::NFTA_SET_DATA_TYPE, sys::NFT_DATA_VERDICT),
    }
    let concatenated_ranges = set.interval && set.key.len() > 1;
    if set.size.is_some() || concatenated_ranges {
        out.nest(sys::NFTA_SET_DESC, |out| {
            if let Some(size) = set.size {
                out.be32(sys::NFTA_SET_DESC_SIZE, size);
            }
            if concatenated_ranges {
                out.nest(sys::NFTA_SET_DESC_CONCAT, |out| {
                    for field in set.key {
                        out.nest(sys::NFTA_LIST_ELEM, |out| out.be32(sys::NFTA_SET_FIELD_LEN, field.len() as u32));
                    }
                });
            }
        });
    }
    out.be32(sys::NFTA_SET_ID, id);
    if let Some(timeout) = set.timeout.filter(|timeout| *timeout > 0) {
        out.be64(sys::NFTA_SET_TIMEOUT, timeout);
    }
    out.bytes(sys::NFTA_SET_USERDATA, &set_data(set));
}

fn set_flags(set: &Set<'_>) -> u32 {
    let concatenated = set.interval && set.key.len() > 1;
    [
        (set.interval, sys::NFT_SET_INTERVAL),
        (concatenated, sys::NFT_SET_CONCAT),
        (set.data != SetData::None, sys::NFT_SET_MAP),
        (set.timeout.is_some(), sys::NFT_SET_TIMEOUT),
        (set.dynamic, sys::NFT_SET_EVAL),
    ]
    .into_iter()
    .filter_map(|(on, flag)| on.then_some(flag))
    .sum()
}

/// The number of a concatenated type, as `nft` packs it: six bits a field.
fn type_number(fields: &[crate::object::Type]) -> u32 {
    fields.iter().fold(0, |number, field| number << 6 | field.number())
}

fn type_len(fields: &[crate::object::Type]) -> u32 {
    match fields {
        [field] => field.len() as u32,
        fields => fields.iter().map(|field| field.len().next_multiple_of(4) as u32).sum(),
    }
}

/// What `nft` wants to know of a set to print it.
fn set_data(set: &Set<'_>) -> Vec<u8> {
    let mut data = Vec::new();
    if let [field] = set.key {
        number_data(&mut data, sys::UDATA_SET_KEY_BYTEORDER, field.byte_order());
    }
    if let SetData::Value([field]) = set.data {
        number_data(&mut data, sys::UDATA_SET_DATA_BYTEORDER, field.byte_order());
    }
    if let Some(comment) = set.comment {
        data.extend(text_data(sys::UDATA_SET_COMMENT, comment));
    }
    data
}

fn number_data(data: &mut Vec<u8>, kind: u8, value: u32) {
    data.extend([kind, 4]);
    data.extend(value.to_ne_bytes());
}

/// A note as user data, cut to what fits at a character's edge.
fn text_data(kind: u8, text: &str) -> Vec<u8> {
    let end = text.floor_char_boundary(COMMENT_MAX);
    let text = &text[..end];
    let mut data = vec![kind, (text.len() + 1) as u8];
    data.extend(text.as_bytes());
    data.push(0);
    data
}

fn encode_element(out: &mut Encoder, element: &Element<'_>) {
    let start = out.begin_nest(sys::NFTA_LIST_ELEM);
    if element.interval_end {
        out.be32(sys::NFTA_SET_ELEM_FLAGS, sys::NFT_SET_ELEM_INTERVAL_END);
    }
    out.nest(sys::NFTA_SET_ELEM_KEY, |out| out.bytes(sys::NFTA_DATA_VALUE, element.key.as_slice()));
    if let Some(end) = &element.key_end {
        out.nest(sys::NFTA_SET_ELEM_KEY_END, |out| out.bytes(sys::NFTA_DATA_VALUE, end.as_slice()));
    }
    match &element.data {
        ElementData::None => {}
        ElementData::Value(value) => {
            out.nest(sys::NFTA_SET_ELEM_DATA, |out| out.bytes(sys::NFTA_DATA_VALUE, value.as_slice()));
        }
        ElementData::Verdict(verdict) => out.nest(sys::NFTA_SET_ELEM_DATA, |out| verdict.encode(out)),
    }
    if let Some(timeout) = element.timeout {
        out.be64(sys::NFTA_SET_ELEM_TIMEOUT, timeout);
    }
    if let Some(comment) = element.comment {
        out.bytes(sys::NFTA_SET_ELEM_USERDATA, &text_data(sys::UDATA_ELEM_COMMENT, comment));
    }
    out.end_nest(start);
}

/// What the message of a sequence number asked for, in words.
pub(crate) fn describe(batch: &[u8], seq: u32) -> String {
    let message = Messages(batch).find(|message| message.seq == seq);
    message.map_or_else(|| "nf_tables transaction".into(), |message| describe_message(&message))
}

fn describe_message(message: &Message<'_>) -> String {
    let what = match message.kind & 0xff {
        _ if message.kind < 0x100 => return "nf_tables transaction".into(),
        sys::NFT_MSG_NEWTABLE => "add table",
        sys::NFT_MSG_DELTABLE => "delete table",
        sys::NFT_MSG_NEWCHAIN => "add chain",
        sys::NFT_MSG_DELCHAIN => "delete chain",
        sys::NFT_MSG_NEWRULE => "add rule",
        sys::NFT_MSG_DELRULE => "delete rule",
        sys::NFT_MSG_NEWSET => "add set",
        sys::NFT_MSG_DELSET => "delete set",
        sys::NFT_MSG_NEWSETELEM => "add element",
        sys::NFT_MSG_DELSETELEM => "delete element",
        _ => "request",
    };
    let family = crate::Family::from_number(message.family()).map_or("", crate::Family::name);
    let attributes = message.attributes();
    let name_at = if what.ends_with("chain") { sys::NFTA_CHAIN_NAME } else { sys::NFTA_SET_NAME };
    let table = attributes.text(sys::NFTA_TABLE_NAME).unwrap_or_default();
    match attributes.text(name_at).filter(|_| !what.ends_with("table")) {
        Some(name) => format!("{what} {family} {table} {name}"),
        None => format!("{what} {family} {table}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{Family, Key};

    const TABLE: Table<'_> = Table::new(Family::Ip, "t");

    #[test]
    fn elements_are_split_into_messages() {
        let mut batch = Batch::new();
        let set = SetRef { table: TABLE, name: "s" };
        batch.add_elements(set, (0..10_000u32).map(|n| Element::new(Key::new().mark(n))));
        let (bytes, _) = batch.finish();
        let messages: Vec<_> = Messages(&bytes).collect();
        assert!(messages.len() > 4, "{}", messages.len());
        assert!(messages.iter().all(|message| message.body.len() < 65_535));
        let count: usize =
            messages.iter().map(|m| m.attributes().nested(sys::NFTA_SET_ELEM_LIST_ELEMENTS).count()).sum();
        assert_eq!(count, 10_000);
    }

    #[test]
    fn only_the_last_operation_is_acknowledged() {
        let mut batch = Batch::new();
        assert!(batch.is_empty());
        batch.add_table(TABLE);
        batch.add_chain(&Chain::regular(TABLE, "c"));
        let (bytes, ack) = batch.finish();
        let asked: Vec<_> = Messages(&bytes).filter(|m| m.flags & sys::NLM_F_ACK != 0).map(|m| m.seq).collect();
        assert_eq!(asked, [ack]);
        assert_eq!(describe(&bytes, ack), "add chain ip t c");
        assert_eq!(describe(&bytes, 1), "add table ip t");
    }

    #[test]
    fn long_comments_are_cut_at_a_character() {
        let data = text_data(0, &"ä".repeat(200));
        assert_eq!(data.len(), 2 + 126 + 1);
        assert_eq!(usize::from(data[1]), data.len() - 2);
    }
}
