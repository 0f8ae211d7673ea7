//! Feature gates: named switches with a stage and a default, set by flag or configuration file.

use std::collections::BTreeMap;

use thiserror::Error;

/// How settled a feature is, as Kubernetes counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Off by default, may change.
    Alpha,
    /// May be on by default.
    Beta,
    /// Generally available; locked to on where `locked` says so.
    Ga,
}

/// One gate that a component knows.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    /// The name, as stock spells it.
    pub name: &'static str,
    /// Its stage.
    pub stage: Stage,
    /// What holds when nobody sets it.
    pub default: bool,
    /// Whether setting it to anything but its default is refused.
    pub locked: bool,
}

/// Why a setting was refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum GateError {
    /// No gate of that name.
    #[error("unrecognized feature gate: {0}")]
    Unknown(String),
    /// The gate cannot be changed any more.
    #[error("cannot set feature gate {0} to {1}, feature is locked to {2}")]
    Locked(String, bool, bool),
    /// Not a boolean.
    #[error("invalid value of {0}: {1}, expected true or false")]
    Value(String, String),
}

/// The gates of one component and how they are set.
#[derive(Clone, Debug)]
pub struct FeatureGates {
    known: &'static [Gate],
    set: BTreeMap<&'static str, bool>,
}

impl FeatureGates {
    /// All gates at their defaults.
    pub fn new(known: &'static [Gate]) -> Self {
        Self { known, set: BTreeMap::new() }
    }

    /// Whether `name` is on. A name outside the table is off.
    pub fn enabled(&self, name: &str) -> bool {
        let default = self.known.iter().find(|g| g.name == name).is_some_and(|g| g.default);
        self.set.get(name).copied().unwrap_or(default)
    }

    /// Sets one gate; `AllAlpha` and `AllBeta` set their whole stage, without touching gates set by name.
    ///
    /// # Errors
    /// The name is unknown, or the gate is locked to another value.
    pub fn set(&mut self, name: &str, value: bool) -> Result<(), GateError> {
        let stage = match name {
            "AllAlpha" => Stage::Alpha,
            "AllBeta" => Stage::Beta,
            _ => return self.set_one(name, value),
        };
        for gate in self.known.iter().filter(|g| g.stage == stage && !g.locked) {
            self.set.entry(gate.name).or_insert(value);
        }
        Ok(())
    }

    /// Sets gates from the form `A=true,B=false`.
    ///
    /// # Errors
    /// As [`FeatureGates::set`], and a value that is no boolean.
    pub fn set_from_text(&mut self, text: &str) -> Result<(), GateError> {
        for pair in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = parse_bool(value).ok_or_else(|| GateError::Value(name.to_owned(), value.to_owned()))?;
            self.set(name, value)?;
        }
        Ok(())
    }

    fn set_one(&mut self, name: &str, value: bool) -> Result<(), GateError> {
        let gate = self.known.iter().find(|g| g.name == name).ok_or_else(|| GateError::Unknown(name.to_owned()))?;
        if gate.locked && value != gate.default {
            return Err(GateError::Locked(name.to_owned(), value, gate.default));
        }
        self.set.insert(gate.name, value);
        Ok(())
    }
}

/// A boolean as Go's `strconv.ParseBool` takes it.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[Gate] = &[
        Gate { name: "Old", stage: Stage::Ga, default: true, locked: true },
        Gate { name: "New", stage: Stage::Alpha, default: false, locked: false },
    ];

    #[test]
    fn defaults_settings_and_refusals() {
        let mut gates = FeatureGates::new(KNOWN);
        assert!(gates.enabled("Old") && !gates.enabled("New"));
        gates.set_from_text("New=true").unwrap();
        assert!(gates.enabled("New"));
        assert_eq!(gates.set_from_text("Nope=true"), Err(GateError::Unknown("Nope".into())));
        assert_eq!(gates.set_from_text("Old=false"), Err(GateError::Locked("Old".into(), false, true)));
        assert!(matches!(gates.set_from_text("New=maybe"), Err(GateError::Value(..))));
    }

    #[test]
    fn a_whole_stage_does_not_override_a_name() {
        let mut gates = FeatureGates::new(KNOWN);
        gates.set_from_text("New=false,AllAlpha=true").unwrap();
        assert!(!gates.enabled("New"));
    }
}
