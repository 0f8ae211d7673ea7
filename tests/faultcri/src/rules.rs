//! Which calls fail, and how.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What befalls a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It never reaches the runtime and is answered with an error (code `Unknown`, as containerd's own are).
    Error,
    /// It reaches the runtime only after this long, if the caller still waits for it by then.
    Delay(Duration),
    /// The runtime does what it is asked, and the answer is lost: its stream is reset. Of a stream of events the next
    /// event is lost with it.
    Cut,
}

/// Calls to fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The call's name in the interface, such as `RunPodSandbox`.
    pub method: String,
    /// Only calls about this pod, by name; of image calls, about this image. None for any call.
    pub subject: Option<String>,
    /// What befalls it.
    pub fault: Fault,
    /// How many calls, from now on.
    pub times: usize,
}

impl Rule {
    fn applies(&self, method: &str, subject: Option<&str>) -> bool {
        self.times > 0 && self.method == method && self.subject.as_deref().is_none_or(|s| Some(s) == subject)
    }
}

/// The rules in force, and what was called.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    rules: Mutex<Vec<Rule>>,
    /// Calls, and those of them that failed, by method and subject.
    seen: Mutex<BTreeMap<(String, String), (usize, usize)>>,
}

impl Rules {
    pub(crate) fn add(&self, rule: Rule) {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).push(rule);
    }

    pub(crate) fn clear(&self) {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The fault for a call, if a rule has one left for it; counts both.
    pub(crate) fn judge(&self, method: &str, subject: Option<&str>) -> Option<Fault> {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let fault = rules.iter_mut().find(|rule| rule.applies(method, subject)).map(|rule| {
            rule.times -= 1;
            rule.fault
        });
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (calls, failed) = seen.entry((method.to_owned(), subject.unwrap_or_default().to_owned())).or_default();
        *calls += 1;
        *failed += usize::from(fault.is_some());
        fault
    }

    /// Calls of a method, and those that failed; only those about a subject if one is given.
    pub(crate) fn seen(&self, method: &str, subject: Option<&str>) -> (usize, usize) {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = seen.iter().filter(|((m, s), _)| m == method && subject.is_none_or(|wanted| wanted == s));
        wanted.fold((0, 0), |(calls, failed), (_, (c, f))| (calls + c, failed + f))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_counts_down_and_keeps_to_its_pod() {
        let rules = Rules::default();
        rules.add(Rule { method: "A".into(), subject: Some("p".into()), fault: Fault::Cut, times: 2 });
        assert_eq!(rules.judge("B", Some("p")), None);
        assert_eq!(rules.judge("A", Some("other")), None);
        assert_eq!(rules.judge("A", None), None);
        assert_eq!(rules.judge("A", Some("p")), Some(Fault::Cut));
        assert_eq!(rules.judge("A", Some("p")), Some(Fault::Cut));
        assert_eq!(rules.judge("A", Some("p")), None);
        assert_eq!(rules.seen("A", Some("p")), (3, 2));
        assert_eq!(rules.seen("A", None), (5, 2));
    }
}
