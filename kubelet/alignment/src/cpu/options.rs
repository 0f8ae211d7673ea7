//! Options of the static CPU manager policy (KEP-2625, KEP-2902, KEP-3327, KEP-3545, KEP-4176, KEP-4540, KEP-4800).

use std::collections::BTreeMap;

use crate::topology::{Level, Topology};
use crate::topology_manager::{ConfigError, Policy, parse_bool};

/// What refines the static policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Only whole cores; a container that asks for a part of one is refused.
    pub full_cores_only: bool,
    /// Evenly over the NUMA nodes, where one is not enough.
    pub across_numa: bool,
    /// A socket counts as one, not a NUMA node.
    pub align_by_socket: bool,
    /// Threads of different cores rather than of the same.
    pub across_cores: bool,
    /// Reserved CPUs are for the system alone, not in the shared pool.
    pub strict_reservation: bool,
    /// Within as few last-level caches as can be.
    pub align_by_uncore: bool,
}

/// Which options may be used, by the feature gates.
#[derive(Clone, Copy, Debug)]
pub struct Stages {
    /// `CPUManagerPolicyAlphaOptions`.
    pub alpha: bool,
    /// `CPUManagerPolicyBetaOptions`.
    pub beta: bool,
}

impl Default for Stages {
    fn default() -> Self {
        Self { alpha: false, beta: true }
    }
}

impl Options {
    /// The options of `cpuManagerPolicyOptions`.
    ///
    /// # Errors
    /// An option that is unknown or not enabled, a wrong value, or options that exclude each other.
    pub fn parse(options: &BTreeMap<String, String>, stages: Stages) -> Result<Self, ConfigError> {
        let mut parsed = Self::default();
        for (name, value) in options {
            let (field, enabled, stage) = match name.as_str() {
                "full-pcpus-only" => (&mut parsed.full_cores_only, true, ""),
                "strict-cpu-reservation" => (&mut parsed.strict_reservation, true, ""),
                "distribute-cpus-across-numa" => (&mut parsed.across_numa, stages.beta, "Beta"),
                "prefer-align-cpus-by-uncorecache" => (&mut parsed.align_by_uncore, stages.beta, "Beta"),
                "align-by-socket" => (&mut parsed.align_by_socket, stages.alpha, "Alpha"),
                "distribute-cpus-across-cores" => (&mut parsed.across_cores, stages.alpha, "Alpha"),
                _ => return Err(ConfigError(format!("unknown CPU Manager Policy option: {name:?}"))),
            };
            if !enabled {
                return Err(ConfigError(format!(
                    "CPU Manager Policy {stage}-level Options not enabled, but option {name:?} provided; set the feature gate CPUManagerPolicy{stage}Options"
                )));
            }
            *field =
                parse_bool(value).ok_or_else(|| ConfigError(format!("bad value for option {name:?}: {value:?}")))?;
        }
        parsed.check()?;
        Ok(parsed)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let exclusive = [
            (self.full_cores_only && self.across_cores, "full-pcpus-only", "distribute-cpus-across-cores"),
            (self.across_numa && self.across_cores, "distribute-cpus-across-numa", "distribute-cpus-across-cores"),
            (
                self.align_by_uncore && self.across_cores,
                "prefer-align-cpus-by-uncorecache",
                "distribute-cpus-across-cores",
            ),
            (
                self.align_by_uncore && self.across_numa,
                "prefer-align-cpus-by-uncorecache",
                "distribute-cpus-across-numa",
            ),
        ];
        match exclusive.iter().find(|(both, _, _)| *both) {
            Some((_, one, other)) => {
                Err(ConfigError(format!("static policy options {one} and {other} can not be used at the same time")))
            }
            None => Ok(()),
        }
    }

    /// Whether they fit the machine and the topology manager's policy.
    ///
    /// # Errors
    /// They do not, and why.
    pub fn fit(&self, topology: &Topology, policy: Policy) -> Result<(), ConfigError> {
        if self.align_by_socket && policy == Policy::SingleNumaNode {
            return Err(ConfigError(
                "Topology manager single-numa-node policy is incompatible with CPUManager align-by-socket policy option"
                    .to_owned(),
            ));
        }
        if self.align_by_socket && topology.groups(Level::Socket).len() > topology.nodes.len() {
            return Err(ConfigError(
                "Align by socket is not compatible with hardware where number of sockets are more than number of NUMA"
                    .to_owned(),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::machine;

    fn parse(names: &[&str], alpha: bool) -> Result<Options, String> {
        let options = names.iter().map(|name| ((*name).to_owned(), "true".to_owned())).collect();
        Options::parse(&options, Stages { alpha, beta: true }).map_err(|error| error.0)
    }

    #[test]
    fn options_are_checked() {
        assert!(parse(&["full-pcpus-only", "strict-cpu-reservation"], false).unwrap().full_cores_only);
        assert!(parse(&["align-by-socket"], false).unwrap_err().contains("Alpha-level Options not enabled"));
        assert!(parse(&["align-by-socket"], true).is_ok());
        assert_eq!(parse(&["no"], true).unwrap_err(), "unknown CPU Manager Policy option: \"no\"");
        let both = parse(&["full-pcpus-only", "distribute-cpus-across-cores"], true).unwrap_err();
        assert!(both.ends_with("can not be used at the same time"), "{both}");
        let socket = parse(&["align-by-socket"], true).unwrap();
        assert!(socket.fit(&machine(2, 1, 2, 2), Policy::BestEffort).is_ok());
        assert!(socket.fit(&machine(2, 1, 2, 2), Policy::SingleNumaNode).is_err());
    }
}
