//! The store against a model that keeps every state it was ever in.

#![expect(clippy::unwrap_used, reason = "in a test a failed unwrap is the report")]

use std::collections::BTreeMap;

use bosun_store::{EmbeddedStore, EventKind, Expect, Guard, Op, Range, Store, Txn, TxnOutcome};
use futures::StreamExt;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Txn { guards: Vec<(u8, u8)>, puts: Vec<(u8, u8)>, deletes: Vec<u8> },
    Compact(u8),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0u8..5;
    let guards = prop::collection::vec((key.clone(), 0u8..4), 0..2);
    let puts = prop::collection::vec((key.clone(), any::<u8>()), 0..3);
    let deletes = prop::collection::vec(key, 0..2);
    prop_oneof![
        20 => (guards, puts, deletes).prop_map(|(guards, puts, deletes)| Step::Txn { guards, puts, deletes }),
        1 => (0u8..6).prop_map(Step::Compact),
        1 => Just(Step::Reopen),
    ]
}

/// Key to (value, mod revision).
type State = BTreeMap<String, (Vec<u8>, u64)>;

/// The states at revisions 1, 2, ….
struct Model {
    states: Vec<State>,
    compacted: u64,
}

impl Model {
    fn revision(&self) -> u64 {
        self.states.len() as u64
    }

    fn now(&self) -> &State {
        self.states.last().unwrap()
    }

    fn commit(&mut self, txn: &Txn) -> bool {
        let holds = txn.guards.iter().all(|g| match (&g.expect, self.now().get(&g.key)) {
            (Expect::Absent, None) => true,
            (Expect::At(r), Some((_, at))) => r == at,
            _ => false,
        });
        if holds {
            let revision = self.revision() + 1;
            let mut next = self.now().clone();
            for op in &txn.ops {
                match op {
                    Op::Put { key, value } => {
                        next.insert(key.clone(), (value.to_vec(), revision));
                    }
                    Op::Delete { key } => {
                        next.remove(key);
                    }
                }
            }
            if next != *self.now() {
                self.states.push(next);
            }
        }
        holds
    }
}

fn key(n: u8) -> String {
    format!("/k/{n}")
}

async fn run(steps: Vec<Step>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let mut store = EmbeddedStore::open(&path).unwrap();
    let mut model = Model { states: vec![State::new()], compacted: 0 };
    for step in steps {
        match step {
            Step::Txn { guards, puts, deletes } => {
                let txn = transaction(&model, guards, puts, &deletes);
                let held = matches!(store.txn(txn.clone()).await.unwrap(), TxnOutcome::Committed { .. });
                assert_eq!(held, model.commit(&txn), "{txn:?}");
            }
            Step::Compact(back) => {
                let revision = model.revision().saturating_sub(u64::from(back));
                if store.compact(revision).await.is_ok() {
                    model.compacted = revision;
                }
            }
            Step::Reopen => {
                drop(store);
                store = EmbeddedStore::open(&path).unwrap();
            }
        }
        assert_eq!(store.revision().await.unwrap(), model.revision());
    }
    compare(&store, &model).await;
}

fn transaction(model: &Model, guards: Vec<(u8, u8)>, puts: Vec<(u8, u8)>, deletes: &[u8]) -> Txn {
    let mut txn = Txn::default();
    for (k, how) in guards {
        let expect = match (how, model.now().get(&key(k))) {
            (0, _) => Expect::Absent,
            (1, Some((_, at))) => Expect::At(at - 1),
            (_, Some((_, at))) => Expect::At(*at),
            (_, None) => Expect::Absent,
        };
        txn.guards.push(Guard { key: key(k), expect });
    }
    let puts: BTreeMap<u8, u8> = puts.into_iter().collect();
    for k in deletes.iter().filter(|k| !puts.contains_key(k)) {
        txn.ops.push(Op::Delete { key: key(*k) });
    }
    txn.ops.extend(puts.into_iter().map(|(k, v)| Op::Put { key: key(k), value: vec![v].into() }));
    txn
}

async fn compare(store: &EmbeddedStore, model: &Model) {
    for revision in model.compacted.max(1)..=model.revision() {
        let range = Range { revision: Some(revision), ..Range::default() };
        let listed = store.list(range).await.unwrap().items;
        let listed: State =
            listed.into_iter().map(|kv| (kv.key.to_string(), (kv.value.to_vec(), kv.mod_revision))).collect();
        assert_eq!(listed, model.states[revision as usize - 1], "at {revision}");
    }
    // Played back from any revision, the events lead from the state then to the state now.
    for from in model.compacted.max(1)..=model.revision() {
        let batch = store.watch("/k/", from + 1).await.unwrap().next().await.unwrap().unwrap();
        let mut state = model.states[from as usize - 1].clone();
        for event in batch.events {
            let prev = event.prev.as_ref().map(|kv| kv.value.to_vec());
            let known = state.get(event.kv.key.as_ref()).map(|(value, _)| value.clone());
            assert!(prev == known, "{event:?} after {state:?}");
            match event.kind {
                EventKind::Put => {
                    state.insert(event.kv.key.to_string(), (event.kv.value.to_vec(), event.kv.mod_revision))
                }
                EventKind::Delete => state.remove(event.kv.key.as_ref()),
            };
        }
        assert_eq!(&state, model.now(), "from {from}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn behaves_as_the_model(steps in prop::collection::vec(step(), 1..60)) {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap().block_on(run(steps));
    }
}
