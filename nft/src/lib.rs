//! nf_tables over netlink: batches, tables, chains, rules, sets and maps, and their elements.
//!
//! The crate speaks to the kernel directly and runs no program. It encodes nfnetlink messages itself because no
//! maintained crate under a permissive licence covers what a service dataplane needs: concatenated maps, dynamic
//! sets, verdict maps, and transactions of a hundred thousand elements.
//!
//! What goes to the kernel is a [`Batch`]: one transaction, wholly applied or wholly refused. What comes back is
//! read with the listing functions of [`Connection`]; [`Monitor`] tells of changes that anyone made. Everything works
//! in the network namespace that the calling thread is in when the connection is opened.
//!
//! Names of types, expressions and flags are those of `linux/netfilter/nf_tables.h`. Sets carry the type numbers of
//! the `nft` program, so that `nft list ruleset` prints what this crate loaded.
//!
//! ```no_run
//! use bosun_nft::{Batch, Chain, Connection, Family, Hook, Rule, Table, expr::Match};
//! let table = Table::new(Family::Ip, "example");
//! let mut batch = Batch::new();
//! batch.add_table(table);
//! batch.add_chain(&Chain::base(table, "post", Hook::Postrouting, "nat", 100));
//! batch.add_rule(&Rule::new(table, "post", Match::new().oifname("eth0").masquerade()).comment("node"));
//! Connection::open()?.commit(batch)?;
//! # Ok::<(), bosun_nft::Error>(())
//! ```

mod attr;
mod batch;
mod connection;
pub mod conntrack;
mod error;
pub mod expr;
mod list;
mod monitor;
mod object;
mod sys;

pub use batch::Batch;
pub use connection::Connection;
pub use error::{Error, Refusal, Result};
pub use expr::{Expr, Reg, Verdict};
pub use list::{ChainInfo, ElementInfo, RuleInfo, SetInfo};
pub use monitor::{Event, Monitor};
pub use object::{Chain, Element, ElementData, Family, Hook, Key, Rule, Set, SetData, SetRef, Table, Type};
