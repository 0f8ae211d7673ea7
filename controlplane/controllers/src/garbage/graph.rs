//! Who owns whom: the garbage collector's picture of the cluster, and what follows from it. Pure.

use std::collections::{HashMap, HashSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// Finalizer of an owner whose dependents go first.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an owner whose dependents stay.
pub(super) const ORPHAN: &str = "orphan";

/// Index of a kind in the collector's table.
pub(super) type KindId = usize;

/// What is known of one object.
#[derive(Clone, Debug, Default)]
pub(super) struct Node {
    pub(super) kind: KindId,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) owners: Vec<OwnerReference>,
    pub(super) deleting: bool,
    pub(super) foreground: bool,
    pub(super) orphaning: bool,
    dependents: HashSet<String>,
}

/// Objects by uid; only those that own, are owned, or wait.
#[derive(Debug, Default)]
pub(super) struct Graph {
    nodes: HashMap<String, Node>,
    /// Owners that were named but never seen → who names them.
    unseen: HashMap<String, HashSet<String>>,
    /// Uids that are known to be gone for good (a uid never returns).
    gone: Gone,
}

/// The last so many uids that vanished.
#[derive(Debug, Default)]
struct Gone {
    uids: HashSet<String>,
    order: std::collections::VecDeque<String>,
}

const REMEMBERED: usize = 4096;

impl Gone {
    fn insert(&mut self, uid: String) {
        if self.uids.insert(uid.clone()) {
            self.order.push_back(uid);
        }
        while self.order.len() > REMEMBERED {
            if let Some(oldest) = self.order.pop_front() {
                self.uids.remove(&oldest);
            }
        }
    }
}

/// What the graph knows about an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is there.
    Solid,
    /// It is being deleted and waits for its dependents.
    Waiting,
    /// It is gone.
    Absent,
    /// Only the API server knows.
    Unknown,
}

/// What to do about one object.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Nothing.
    Nothing,
    /// Ask the API server about these owners first.
    Ask(Vec<OwnerReference>),
    /// Take these owners off it: it has others.
    Disown(Vec<String>),
    /// Delete it, in foreground if its own dependents are to go before it.
    Delete {
        /// Its dependents go first.
        foreground: bool,
    },
    /// Take the finalizer off: its dependents are gone.
    Unblock,
    /// Have these dependents looked at: it waits for them.
    Wait(Vec<String>),
    /// Take it off its dependents, then take the finalizer off.
    Orphan(Vec<String>),
}

impl Graph {
    /// Takes in what a watch shows. Answers whose turn it is to be looked at.
    pub(super) fn applied(&mut self, kind: KindId, uid: &str, meta: &ObjectMeta) -> Vec<String> {
        let mut affected = Vec::new();
        let finalizers = meta.finalizers.as_deref().unwrap_or_default();
        let deleting = meta.deletion_timestamp.is_some();
        let has = |name: &str| deleting && finalizers.iter().any(|f| f == name);
        let owners = meta.owner_references.clone().unwrap_or_default();
        let before = self.nodes.remove(uid);
        let old_owners = before.as_ref().map(|n| n.owners.clone()).unwrap_or_default();
        let node = Node {
            kind,
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            deleting,
            foreground: has(FOREGROUND),
            orphaning: has(ORPHAN),
            dependents: before.map(|n| n.dependents).or_else(|| self.unseen.remove(uid)).unwrap_or_default(),
            owners,
        };
        for owner in &old_owners {
            let kept = node.owners.iter().find(|o| o.uid == owner.uid);
            if kept.is_none() {
                self.unlink(&owner.uid, uid);
            }
            // An owner that waits may go on if this one no longer blocks it.
            if kept.is_none_or(|k| k.block_owner_deletion != owner.block_owner_deletion)
                && self.nodes.get(&owner.uid).is_some_and(|o| o.foreground)
            {
                affected.push(owner.uid.clone());
            }
        }
        let new_owner = node.owners.iter().any(|o| !old_owners.iter().any(|old| old.uid == o.uid));
        for owner in &node.owners {
            self.link(&owner.uid, uid);
        }
        let hurt = |standing| matches!(standing, Standing::Absent | Standing::Unknown | Standing::Waiting);
        if (new_owner && node.owners.iter().any(|o| hurt(self.standing(&o.uid)))) || node.foreground || node.orphaning {
            affected.push(uid.to_owned());
        }
        self.nodes.insert(uid.to_owned(), node);
        affected
    }

    /// Takes in that an object is gone. Answers whose turn it is to be looked at.
    pub(super) fn deleted(&mut self, uid: &str) -> Vec<String> {
        self.gone.insert(uid.to_owned());
        let mut affected: Vec<String> = Vec::new();
        let node = self.nodes.remove(uid);
        let unseen = self.unseen.remove(uid).unwrap_or_default();
        affected.extend(unseen);
        let Some(node) = node else { return affected };
        for owner in &node.owners {
            self.unlink(&owner.uid, uid);
            if self.nodes.get(&owner.uid).is_some_and(|o| o.foreground) {
                affected.push(owner.uid.clone());
            }
        }
        affected.extend(node.dependents);
        affected
    }

    fn link(&mut self, owner: &str, dependent: &str) {
        match self.nodes.get_mut(owner) {
            Some(node) => node.dependents.insert(dependent.to_owned()),
            None => self.unseen.entry(owner.to_owned()).or_default().insert(dependent.to_owned()),
        };
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(node) = self.nodes.get_mut(owner) {
            node.dependents.remove(dependent);
        }
        if let Some(dependents) = self.unseen.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.unseen.remove(owner);
            }
        }
    }

    /// One object.
    pub(super) fn node(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// What is known of an owner.
    pub(super) fn standing(&self, uid: &str) -> Standing {
        match self.nodes.get(uid) {
            Some(node) if node.deleting && node.foreground => Standing::Waiting,
            Some(_) => Standing::Solid,
            None if self.gone.uids.contains(uid) => Standing::Absent,
            None => Standing::Unknown,
        }
    }

    /// Uids of the objects of one kind, to find what a new list no longer has.
    pub(super) fn of_kind(&self, kind: KindId) -> impl Iterator<Item = &String> {
        self.nodes.iter().filter(move |(_, n)| n.kind == kind).map(|(uid, _)| uid)
    }

    /// Works out what to do about an object. `asked` holds what the API server said of owners that the graph does not know.
    pub(super) fn step(&self, uid: &str, asked: &HashMap<String, Standing>) -> Step {
        let Some(node) = self.nodes.get(uid) else { return Step::Nothing };
        if node.orphaning {
            return Step::Orphan(node.dependents.iter().cloned().collect());
        }
        if node.foreground {
            return self.foreground_step(uid, node);
        }
        if node.deleting || node.owners.is_empty() {
            return Step::Nothing;
        }
        let standing = |owner: &OwnerReference| match self.standing(&owner.uid) {
            Standing::Unknown => asked.get(&owner.uid).copied().unwrap_or(Standing::Unknown),
            known => known,
        };
        let of = |wanted: Standing| node.owners.iter().filter(move |o| standing(o) == wanted);
        let unknown: Vec<OwnerReference> = of(Standing::Unknown).cloned().collect();
        if !unknown.is_empty() {
            return Step::Ask(unknown);
        }
        let lost: Vec<String> = of(Standing::Absent).chain(of(Standing::Waiting)).map(|o| o.uid.clone()).collect();
        if lost.is_empty() {
            return Step::Nothing;
        }
        if of(Standing::Solid).next().is_some() {
            return Step::Disown(lost);
        }
        let waited_for = of(Standing::Waiting).next().is_some();
        Step::Delete { foreground: waited_for && !node.dependents.is_empty() }
    }

    fn foreground_step(&self, uid: &str, node: &Node) -> Step {
        let blocks = |dependent: &&String| {
            self.nodes
                .get(*dependent)
                .is_some_and(|d| d.owners.iter().any(|o| o.uid == uid && o.block_owner_deletion == Some(true)))
        };
        if !node.dependents.iter().any(|d| blocks(&d)) {
            return Step::Unblock;
        }
        Step::Wait(node.dependents.iter().cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn object(name: &str, owners: &[&str]) -> ObjectMeta {
        let reference = |uid: &&str| OwnerReference {
            uid: (*uid).to_owned(),
            name: (*uid).to_owned(),
            block_owner_deletion: Some(true),
            ..OwnerReference::default()
        };
        ObjectMeta {
            name: Some(name.to_owned()),
            owner_references: Some(owners.iter().map(reference).collect()),
            ..ObjectMeta::default()
        }
    }

    fn deleting(mut meta: ObjectMeta, finalizer: &str) -> ObjectMeta {
        meta.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        meta.finalizers = Some(vec![finalizer.to_owned()]);
        meta
    }

    fn step(graph: &Graph, uid: &str) -> Step {
        graph.step(uid, &HashMap::new())
    }

    #[test]
    fn dependents_of_a_deleted_owner_go_after_it() {
        let mut graph = Graph::default();
        graph.applied(0, "rs", &object("rs", &[]));
        assert!(graph.applied(0, "pod", &object("pod", &["rs"])).is_empty());
        assert_eq!(step(&graph, "pod"), Step::Nothing);
        assert_eq!(graph.deleted("rs"), ["pod"]);
        assert_eq!(step(&graph, "pod"), Step::Delete { foreground: false });
    }

    #[test]
    fn an_owner_never_seen_is_asked_for() {
        let mut graph = Graph::default();
        assert_eq!(graph.applied(0, "pod", &object("pod", &["ghost"])), ["pod"]);
        assert!(matches!(step(&graph, "pod"), Step::Ask(owners) if owners[0].uid == "ghost"));
        let absent = [("ghost".to_owned(), Standing::Absent)].into();
        assert_eq!(graph.step("pod", &absent), Step::Delete { foreground: false });
        let solid = [("ghost".to_owned(), Standing::Solid)].into();
        assert_eq!(graph.step("pod", &solid), Step::Nothing);
    }

    #[test]
    fn dependents_that_come_before_their_owner_are_linked_to_it() {
        let mut graph = Graph::default();
        graph.applied(0, "pod", &object("pod", &["rs"]));
        graph.applied(0, "rs", &object("rs", &[]));
        assert_eq!(step(&graph, "pod"), Step::Nothing);
        assert_eq!(graph.deleted("rs"), ["pod"]);
    }

    #[test]
    fn foreground_goes_from_the_leaves_up() {
        let mut graph = Graph::default();
        graph.applied(0, "d", &object("d", &[]));
        graph.applied(0, "rs", &object("rs", &["d"]));
        graph.applied(0, "pod", &object("pod", &["rs"]));
        assert_eq!(graph.applied(0, "d", &deleting(object("d", &[]), FOREGROUND)), ["d"]);
        assert_eq!(step(&graph, "d"), Step::Wait(vec!["rs".into()]));
        assert_eq!(step(&graph, "rs"), Step::Delete { foreground: true });
        graph.applied(0, "rs", &deleting(object("rs", &["d"]), FOREGROUND));
        assert_eq!(step(&graph, "pod"), Step::Delete { foreground: false });
        assert_eq!(graph.deleted("pod"), ["rs"]);
        assert_eq!(step(&graph, "rs"), Step::Unblock);
        assert_eq!(graph.deleted("rs"), ["d"]);
        assert_eq!(step(&graph, "d"), Step::Unblock);
    }

    #[test]
    fn orphans_stay() {
        let mut graph = Graph::default();
        graph.applied(0, "rs", &object("rs", &[]));
        graph.applied(0, "pod", &object("pod", &["rs"]));
        graph.applied(0, "rs", &deleting(object("rs", &[]), ORPHAN));
        assert_eq!(step(&graph, "rs"), Step::Orphan(vec!["pod".into()]));
        graph.applied(0, "pod", &object("pod", &[]));
        assert!(graph.deleted("rs").is_empty());
    }

    #[test]
    fn one_owner_left_is_enough() {
        let mut graph = Graph::default();
        graph.applied(0, "a", &object("a", &[]));
        graph.applied(0, "b", &object("b", &[]));
        graph.applied(0, "x", &object("x", &["a", "b"]));
        assert_eq!(graph.deleted("a"), ["x"]);
        assert_eq!(step(&graph, "x"), Step::Disown(vec!["a".into()]));
    }
}
