//! Masquerade of what pods send out of the cluster, in a table of our own.

use anyhow::{Context, Result};
use bosun_nft::{Batch, Chain, Connection, Event, Family, Hook, Monitor, Rule, Table, expr::Match};
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tokio::io::{Interest, unix::AsyncFd};

const TABLE: Table<'static> = Table::new(Family::Inet, "bosun-netd");
const CHAIN: &str = "postrouting";
/// `srcnat` in the words of `nft`.
const SOURCE_NAT: i32 = 100;

/// The rules as data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// This node's pod networks.
    pub(crate) pods: Vec<IpNet>,
    /// Networks that see pods' own addresses.
    pub(crate) inside: Vec<IpNet>,
}

impl Rules {
    /// The transaction that makes the table hold these rules and no others.
    fn batch(&self) -> Batch {
        let mut batch = Batch::new();
        // Adding first makes the deletion valid when there is no table yet.
        batch.add_table(TABLE);
        batch.delete_table(TABLE);
        batch.add_table(TABLE);
        batch.add_chain(&Chain::base(TABLE, CHAIN, Hook::Postrouting, "nat", SOURCE_NAT));
        for pods in &self.pods {
            let same = |net: &&IpNet| net.addr().is_ipv4() == pods.addr().is_ipv4();
            for inside in self.inside.iter().chain([&multicast(pods)]).filter(same) {
                let rule = from(pods).daddr_in(inside.network(), inside.prefix_len()).ret();
                batch.add_rule(&Rule::new(TABLE, CHAIN, rule));
            }
            let rule = from(pods).masquerade_random();
            batch.add_rule(&Rule::new(TABLE, CHAIN, rule).comment("pods leave the cluster by the node's address"));
        }
        batch
    }

    /// Loads the rules.
    pub(crate) fn load(&self) -> Result<()> {
        let mut connection = Connection::open().context("open a netfilter socket")?;
        connection.commit(self.batch()).context("load the masquerade rules (needs nf_tables with NAT in the kernel)")
    }
}

fn from(pods: &IpNet) -> Match {
    let family = if pods.addr().is_ipv4() { Family::Ip } else { Family::Ip6 };
    Match::new().nfproto(family).saddr_in(pods.network(), pods.prefix_len())
}

fn multicast(pods: &IpNet) -> IpNet {
    let (first, length): (IpAddr, u8) = match pods {
        IpNet::V4(_) => (Ipv4Addr::new(224, 0, 0, 0).into(), 4),
        IpNet::V6(_) => (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0).into(), 8),
    };
    // Both lengths fit their family.
    IpNet::new(first, length).unwrap_or_else(|_| first.into())
}

/// Tells when somebody deletes from our table.
pub(crate) struct Guard {
    monitor: AsyncFd<Monitor>,
}

impl Guard {
    pub(crate) fn open() -> Result<Self> {
        let monitor = Monitor::open().context("listen to changes of rules")?;
        #[expect(unsafe_code, reason = "the registration must not outlive the descriptor")]
        // SAFETY: the monitor owns its socket, keeps the same one until it is dropped, and is owned by the AsyncFd.
        let monitor = unsafe { AsyncFd::register_with_interest(monitor, Interest::READABLE)? };
        Ok(Self { monitor })
    }

    /// Waits until something of ours was deleted, not by this process.
    pub(crate) async fn deleted(&mut self) -> Result<()> {
        loop {
            let mut ready = self.monitor.readable_mut().await?;
            let mut pending = false;
            let mut deleted = false;
            ready.get_inner_mut().read(|event| match event {
                Event::Deleted { table, .. } if table == TABLE.name => pending = true,
                Event::Committed { pid, .. } => deleted |= std::mem::take(&mut pending) && pid != std::process::id(),
                Event::Lost => deleted = true,
                _ => {}
            })?;
            ready.clear_ready();
            if deleted {
                return Ok(());
            }
        }
    }
}
