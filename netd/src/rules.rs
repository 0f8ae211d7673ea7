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

/// Loads our table, and tells when somebody else deletes from it.
pub(crate) struct Guard {
    connection: Connection,
    /// None once it has failed.
    monitor: Option<AsyncFd<Monitor>>,
}

impl Guard {
    pub(crate) fn open() -> Result<Self> {
        let connection = Connection::open().context("open a netfilter socket")?;
        let monitor = Monitor::open().context("listen to changes of rules")?;
        #[expect(unsafe_code, reason = "the registration must not outlive the descriptor")]
        // SAFETY: the monitor owns its socket, keeps the same one until it is dropped, and is owned by the AsyncFd.
        let monitor = unsafe { AsyncFd::register_with_interest(monitor, Interest::READABLE)? };
        Ok(Self { connection, monitor: Some(monitor) })
    }

    /// Loads the rules.
    pub(crate) fn load(&mut self, rules: &Rules) -> Result<()> {
        let batch = rules.batch();
        self.connection.commit(batch).context("load the masquerade rules (needs nf_tables with NAT in the kernel)")
    }

    /// Waits until something of ours was deleted, not by us. After an error it waits for ever.
    pub(crate) async fn deleted(&mut self) -> Result<()> {
        let seen = self.next_deletion().await;
        if seen.is_err() {
            self.monitor = None;
        }
        seen
    }

    async fn next_deletion(&mut self) -> Result<()> {
        let own = self.connection.port();
        let Some(monitor) = &mut self.monitor else { return std::future::pending().await };
        loop {
            let mut ready = monitor.readable_mut().await?;
            let mut deleted = false;
            ready.get_inner_mut().read(|event| match event {
                Event::Deleted { table, port, .. } => deleted |= table == TABLE.name && port != own,
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
