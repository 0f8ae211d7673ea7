//! Brings the kernel to the plan: by the difference of two plans, or by comparing with what the kernel has.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use bosun_nft::{Batch, Connection, Error, Family, Result, Rule, Table, Verdict, conntrack};

use super::chain::Chain;
use super::element::{self, Data, Element};
use super::layout::{self, Options, SetId};
use super::observe::{self, Observed};
use crate::model::Protocol;
use crate::plan::{Delta, Front, FrontChange, FrontKey, Globals, NodePortAddresses, Planner};

/// The table's name, in families `ip` and `ip6`; stock has the same, so that one replaces the other.
pub const TABLE: &str = "kube-proxy";

/// How often a listing is begun again because someone else changed the rules meanwhile.
const LISTINGS: u32 = 5;

const FAMILIES: [Family; 2] = [Family::Ip, Family::Ip6];

/// The kernel's tables, and what of them must be known to change them.
pub struct Backend {
    connection: Connection,
    options: Options,
    tables: Vec<Tables>,
    reject: Verdict,
}

/// One family's table.
struct Tables {
    table: Table<'static>,
    /// The balancing chains there are, and how many fronts use each.
    chains: HashMap<Chain, Use>,
}

struct Use {
    fronts: u32,
    verdict: Verdict,
}

impl Backend {
    /// Opens the kernel's interface and finds out which families it has. Changes nothing.
    pub fn open(options: Options) -> Result<Self> {
        let mut connection = Connection::open()?;
        let mut tables = Vec::new();
        for family in FAMILIES {
            let table = Table::new(family, TABLE);
            match usable(&mut connection, table) {
                Ok(()) => tables.push(Tables { table, chains: HashMap::new() }),
                Err(error) if family == Family::Ip6 => {
                    tracing::warn!(%error, "no IPv6 Services: the kernel refuses them")
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Self { connection, options, tables, reject: Verdict::Goto(layout::REJECT.to_owned()) })
    }

    /// Takes another way to tell what comes from pods. The next [`Backend::reconcile`] replaces the tables for it.
    pub fn set_detector(&mut self, detector: super::Detector) {
        self.options.detector = detector;
    }

    /// The socket by which changes of our own are told from others'.
    pub fn port(&self) -> u32 {
        self.connection.port()
    }

    /// The rule set's generation.
    pub fn generation(&mut self) -> Result<u32> {
        self.connection.generation()
    }

    /// Applies the difference of two plans in one transaction; the kernel must have the first. Returns its size in
    /// bytes.
    pub fn apply(&mut self, delta: &Delta) -> Result<usize> {
        let mut batch = Batch::new();
        for tables in &mut self.tables {
            tables.change(&mut batch, delta, &self.options, &self.reject);
        }
        let size = batch.len();
        self.connection.commit(batch)?;
        self.tables.iter_mut().for_each(|tables| tables.chains.retain(|_, chain| chain.fronts > 0));
        Ok(size)
    }

    /// Compares the kernel with the plan and changes what differs, in one transaction. A table with another layout,
    /// or one whose rules someone changed, is replaced as a whole. Returns whether anything differed.
    pub fn reconcile(&mut self, planner: &Planner) -> Result<bool> {
        let mut batch = Batch::new();
        for tables in &mut self.tables {
            tables.recount(planner);
            match observe_again(&mut self.connection, tables, &self.options)? {
                Some(observed) => tables.mend(&mut batch, observed, planner, &self.options, &self.reject),
                None => tables.replace(&mut batch, planner, &self.options, &self.reject),
            }
        }
        let differs = !batch.is_empty();
        self.connection.commit(batch)?;
        Ok(differs)
    }

    /// Deletes UDP connections that go where they should not: to an endpoint that is gone, or to a front in `gone`.
    pub fn clean_udp(&mut self, planner: &Planner, gone: &[FrontKey]) -> Result<usize> {
        let fronts = planner.udp_fronts();
        let globals = planner.globals();
        conntrack::delete(&mut self.connection, |flow| stale(flow, &fronts, globals, gone))
    }

    /// Deletes everything that the proxy ever put into the kernel.
    pub fn clean_up() -> Result<()> {
        let mut connection = Connection::open()?;
        for family in FAMILIES {
            if connection.tables(family)?.iter().any(|name| name == TABLE) {
                let mut batch = Batch::new();
                batch.delete_table(Table::new(family, TABLE));
                connection.commit(batch)?;
            }
        }
        Ok(())
    }
}

/// Whether the kernel takes what the layout needs, by trying it and taking it back in one transaction.
fn usable(connection: &mut Connection, table: Table<'static>) -> Result<()> {
    let trial = Table::new(table.family, "kube-proxy-trial");
    let options = Options { mark: 1, masquerade_all: false, detector: super::Detector::None };
    let mut batch = Batch::new();
    layout::build(&mut batch, trial, &options);
    batch.delete_table(trial);
    connection.commit(batch)
}

/// What a table holds; none when it must be replaced.
fn observe_again(connection: &mut Connection, tables: &Tables, options: &Options) -> Result<Option<Observed>> {
    for _ in 0..LISTINGS {
        match observe::observe(connection, tables.table, &|chain| tables.rule_count(chain, options)) {
            Err(Error::Interrupted) => {}
            observed => {
                return observed.map(|found| found.filter(|found| found.has_layout(tables.table.family, options)));
            }
        }
    }
    Ok(None)
}

/// Whether a UDP connection goes where its front does not.
fn stale(
    flow: &conntrack::Flow,
    fronts: &HashMap<FrontKey, &[SocketAddr]>,
    globals: &Globals,
    gone: &[FrontKey],
) -> bool {
    let (original, reply) = (flow.original, flow.reply);
    if original.protocol != conntrack::UDP {
        return false;
    }
    let port = original.destination_port;
    let direct = FrontKey { address: original.destination, protocol: Protocol::Udp, port };
    let node = FrontKey::node_port(original.destination.is_ipv6(), Protocol::Udp, port);
    let on_node = match &globals.node_port_addresses {
        NodePortAddresses::In(nets) => nets.iter().any(|net| net.contains(&original.destination)),
        // Any address may be this node's; one that was translated is.
        NodePortAddresses::All => reply.source != original.destination,
    };
    let key = if on_node && (fronts.contains_key(&node) || gone.contains(&node)) { node } else { direct };
    let used = SocketAddr::new(reply.source, reply.source_port);
    match fronts.get(&key) {
        Some(serving) => !serving.contains(&used),
        None => gone.contains(&key),
    }
}

impl Tables {
    fn v6(&self) -> bool {
        self.table.family == Family::Ip6
    }

    fn is_ours(&self, address: IpAddr) -> bool {
        address.is_ipv6() == self.v6()
    }

    /// Counts the users of a front's chains up or down.
    fn count(&mut self, key: &FrontKey, front: &Front, up: bool) {
        let Some(chain) = Chain::of(key, front) else { return };
        for chain in chain.targets().chain([chain]) {
            let used = self
                .chains
                .entry(chain)
                .or_insert_with(|| Use { fronts: 0, verdict: Verdict::Goto(chain.to_string()) });
            used.fronts = if up { used.fronts + 1 } else { used.fronts.saturating_sub(1) };
        }
    }

    fn recount(&mut self, planner: &Planner) {
        self.chains.clear();
        for (_, key, front) in planner.fronts() {
            if self.is_ours(key.address) {
                self.count(key, front, true);
            }
        }
    }

    /// How many rules a chain of the plan has; none for a chain that is not in it.
    fn rule_count(&self, name: &str, options: &Options) -> Option<usize> {
        let family = self.table.family;
        if layout::chains(family, options).any(|chain| chain == name) {
            return Some(layout::rules(family, options).iter().filter(|(chain, _)| *chain == name).count());
        }
        let (chain, _) = self.chains.iter().find(|(chain, _)| chain.to_string() == name)?;
        Some(chain.rules(family, options).len())
    }

    fn change(&mut self, batch: &mut Batch, delta: &Delta, options: &Options, reject: &Verdict) {
        let before: Vec<Chain> = self.chains.keys().copied().collect();
        let changes: Vec<&FrontChange> = delta.fronts.iter().filter(|c| self.is_ours(c.key.address)).collect();
        for change in &changes {
            for (front, up) in [(&change.new, true), (&change.old, false)] {
                if let Some(front) = front {
                    self.count(&change.key, front, up);
                }
            }
        }
        let mut added: Vec<Chain> = self.chains.keys().filter(|chain| !before.contains(chain)).copied().collect();
        added.sort_unstable_by(|a, b| b.cmp(a));
        self.add_chains(batch, &added, options);
        for set in SetId::PLANNED {
            let (removed, added) = differences(set, &changes);
            self.replace_elements(batch, set, &removed, &added, reject);
        }
        let addresses = |list: &[IpAddr], make: fn(IpAddr) -> Element| -> Vec<Element> {
            list.iter().filter(|address| self.is_ours(**address)).map(|address| make(*address)).collect()
        };
        let cluster_ips =
            [&delta.cluster_ips_removed, &delta.cluster_ips_added].map(|list| addresses(list, element::of_cluster_ip));
        self.replace_elements(batch, SetId::ClusterIps, &cluster_ips[0], &cluster_ips[1], reject);
        let hairpin = [&delta.local_removed, &delta.local_added].map(|list| addresses(list, element::of_hairpin));
        self.replace_elements(batch, SetId::Hairpin, &hairpin[0], &hairpin[1], reject);
        if let Some(globals) = &delta.globals {
            for set in [SetId::ServiceCidrs, SetId::NodePortAddresses] {
                batch.flush_set(set.define(self.table).reference());
                self.add_elements(batch, set, element::of_globals(set, globals, self.v6()), reject);
            }
        }
        let mut unused: Vec<Chain> =
            self.chains.iter().filter(|(_, used)| used.fronts == 0).map(|(chain, _)| *chain).collect();
        unused.sort_unstable();
        // A chain that came and went within one difference was added above all the same.
        unused.iter().for_each(|chain| batch.delete_chain(self.table, &chain.to_string()));
    }

    /// Adds chains; those that others go to must come first, which the reverse of their order does.
    fn add_chains(&self, batch: &mut Batch, chains: &[Chain], options: &Options) {
        for chain in chains {
            let name = chain.to_string();
            batch.add_chain(&bosun_nft::Chain::regular(self.table, &name));
            for expressions in chain.rules(self.table.family, options) {
                batch.add_rule(&Rule::new(self.table, &name, expressions));
            }
        }
    }

    fn replace_elements(
        &self,
        batch: &mut Batch,
        set: SetId,
        removed: &[Element],
        added: &[Element],
        reject: &Verdict,
    ) {
        let reference = set.define(self.table).reference();
        batch.delete_elements(reference, removed.iter().map(|one| encode_key(one)));
        self.add_elements(batch, set, added.iter().copied(), reject);
    }

    fn add_elements(
        &self,
        batch: &mut Batch,
        set: SetId,
        elements: impl IntoIterator<Item = Element>,
        reject: &Verdict,
    ) {
        let encoded = elements.into_iter().map(|one| {
            let data = match one.data {
                Data::None => bosun_nft::ElementData::None,
                Data::Value(value) => bosun_nft::ElementData::Value(value),
                Data::Drop => bosun_nft::ElementData::Verdict(&Verdict::Drop),
                Data::Reject => bosun_nft::ElementData::Verdict(reject),
                Data::Goto(chain) => {
                    bosun_nft::ElementData::Verdict(self.chains.get(&chain).map_or(reject, |used| &used.verdict))
                }
            };
            bosun_nft::Element { data, ..encode_key(&one) }
        });
        batch.add_elements(set.define(self.table).reference(), encoded);
    }

    /// Every element that the plan gives a set.
    fn planned<'a>(&'a self, set: SetId, planner: &'a Planner) -> Box<dyn Iterator<Item = Element> + 'a> {
        match set {
            SetId::ClusterIps => {
                Box::new(planner.cluster_ips().filter(|one| self.is_ours(*one)).map(element::of_cluster_ip))
            }
            SetId::Hairpin => {
                Box::new(planner.local_endpoints().filter(|one| self.is_ours(*one)).map(element::of_hairpin))
            }
            SetId::ServiceCidrs | SetId::NodePortAddresses => {
                Box::new(element::of_globals(set, planner.globals(), self.v6()).into_iter())
            }
            _ => Box::new(planner.fronts().filter(|(_, key, _)| self.is_ours(key.address)).flat_map(
                move |(_, key, front)| {
                    let mut elements = Vec::new();
                    element::of_front(set, key, front, |one| elements.push(one));
                    elements
                },
            )),
        }
    }

    /// Makes the table anew.
    fn replace(&self, batch: &mut Batch, planner: &Planner, options: &Options, reject: &Verdict) {
        batch.add_table(self.table);
        batch.delete_table(self.table);
        layout::build(batch, self.table, options);
        self.add_chains(batch, &self.sorted_chains(), options);
        for set in SetId::PLANNED {
            self.add_elements(batch, set, self.planned(set, planner), reject);
        }
    }

    fn sorted_chains(&self) -> Vec<Chain> {
        let mut chains: Vec<Chain> = self.chains.keys().copied().collect();
        chains.sort_unstable_by(|a, b| b.cmp(a));
        chains
    }

    /// Changes what differs from what was observed.
    fn mend(&self, batch: &mut Batch, mut observed: Observed, planner: &Planner, options: &Options, reject: &Verdict) {
        let mut wanted = self.sorted_chains();
        wanted.retain(|chain| !observed.chains.remove(&chain.to_string()));
        self.add_chains(batch, &wanted, options);
        for set in SetId::PLANNED {
            let found = observed.elements.remove(set.name()).unwrap_or_default();
            if matches!(set, SetId::ServiceCidrs | SetId::NodePortAddresses) {
                let planned: Vec<Element> = self.planned(set, planner).collect();
                let same =
                    planned.len() == found.len() && planned.iter().all(|one| found.contains_key(&observe::key(one)));
                if !same {
                    batch.flush_set(set.define(self.table).reference());
                    self.add_elements(batch, set, planned, reject);
                }
                continue;
            }
            let (removed, added) = observe::differences(found, self.planned(set, planner));
            self.replace_elements(batch, set, &removed, &added, reject);
        }
        for name in layout::chains(self.table.family, options) {
            observed.chains.remove(&name);
        }
        // What is left is not ours any more; chains that decide go before those that they go to.
        let (deciding, balancing): (Vec<_>, Vec<_>) = observed.chains.iter().partition(|name| name.contains("policy-"));
        deciding.into_iter().chain(balancing).for_each(|name| batch.delete_chain(self.table, name));
    }
}

fn encode_key(one: &Element) -> bosun_nft::Element<'static> {
    bosun_nft::Element { key_end: one.end, interval_end: one.interval_end, ..bosun_nft::Element::new(one.key) }
}

/// What fronts' changes take out of a set and put into it.
fn differences(set: SetId, changes: &[&FrontChange]) -> (Vec<Element>, Vec<Element>) {
    let (mut removed, mut added) = (Vec::new(), Vec::new());
    for change in changes {
        let mut before = BTreeMap::new();
        if let Some(old) = &change.old {
            element::of_front(set, &change.key, old, |one| _ = before.insert(one.key, one));
        }
        if let Some(new) = &change.new {
            element::of_front(set, &change.key, new, |one| match before.get(&one.key) {
                Some(same) if *same == one => _ = before.remove(&one.key),
                _ => added.push(one),
            });
        }
        removed.extend(before.into_values());
    }
    (removed, added)
}
