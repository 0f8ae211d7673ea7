//! The plan as text, for people and for golden tests.

use std::fmt;

use super::{Action, Front, Masquerade, NodePortAddresses, Plan, Scope};

impl fmt::Display for Plan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.globals.node_port_addresses {
            NodePortAddresses::All => writeln!(out, "node ports on all addresses")?,
            NodePortAddresses::In(nets) => writeln!(out, "node ports on{}", list(nets))?,
        }
        if !self.globals.service_cidrs.is_empty() {
            writeln!(out, "service addresses in{}", list(&self.globals.service_cidrs))?;
        }
        if !self.cluster_ips.is_empty() {
            writeln!(out, "cluster addresses{}", list(&self.cluster_ips))?;
        }
        if !self.local_endpoints.is_empty() {
            writeln!(out, "endpoints on this node{}", list(&self.local_endpoints))?;
        }
        for (key, (name, front)) in &self.fronts {
            writeln!(out, "{key}: {front}  # {name}")?;
            for scope in [Scope::Cluster, Scope::Local] {
                for endpoint in front.scope(scope) {
                    let note = if scope == Scope::Local { " (this node)" } else { "" };
                    writeln!(out, "  {endpoint}{note}")?;
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Front {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self.action {
            Action::Balance(Masquerade::Never) => "balance",
            Action::Balance(Masquerade::OffCluster) => "balance, masquerade off-cluster",
            Action::Balance(Masquerade::Always) => "balance, masquerade",
            Action::Local => "balance on this node",
            Action::Reject => "reject",
            Action::Drop => "drop",
        })?;
        if let Some(seconds) = self.affinity {
            write!(out, ", affinity {seconds}s")?;
        }
        if let Some(sources) = &self.sources {
            write!(out, ", only from{}", list(sources.iter()))?;
        }
        Ok(())
    }
}

fn list(items: impl IntoIterator<Item = impl fmt::Display>) -> String {
    items.into_iter().map(|item| format!(" {item}")).collect()
}
