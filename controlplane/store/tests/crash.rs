//! SIGKILL at any instant: no acknowledged write is lost, the revision never falls, the file opens.

#![expect(clippy::unwrap_used, reason = "in a test a failed unwrap is the report")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use bosun_store::{EmbeddedStore, Op, Range, Store, Txn, TxnOutcome};

const FILE: &str = "BOSUN_STORE_CRASH_FILE";
const ROUNDS: u32 = 25;

/// The process that is killed: not a test of its own, it returns at once unless the other test started it.
#[test]
fn victim() {
    let Ok(path) = std::env::var(FILE) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = std::sync::Arc::new(EmbeddedStore::open(path).unwrap());
        let mut writers = Vec::new();
        for writer in 0..4 {
            let store = store.clone();
            writers.push(tokio::spawn(async move {
                for i in 0u64.. {
                    let value = format!("{i}-{}", "x".repeat((i % 50) as usize * 20));
                    let key = format!("/registry/test/w{writer}/{}", i % 20);
                    let op = Op::Put { key: key.clone(), value: value.clone().into() };
                    let outcome = store.txn(Txn { guards: vec![], ops: vec![op] }).await.unwrap();
                    let TxnOutcome::Committed { revision } = outcome else { panic!("no guard, no conflict") };
                    let line = format!("\nack {revision} {key} {value}\n");
                    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
                    if i % 100 == 99 && writer == 0 {
                        let _ = store.compact(revision - 50).await;
                    }
                }
            }));
        }
        for writer in writers {
            writer.await.unwrap();
        }
    });
}

#[test]
fn nothing_acknowledged_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let mut floor = 1;
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "victim", "--nocapture"])
            .env(FILE, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let reader = std::thread::spawn(move || {
            let acks = output.lines().map_while(Result::ok).filter(|l| l.starts_with("ack "));
            acks.collect::<Vec<_>>()
        });
        std::thread::sleep(Duration::from_millis(40 + u64::from(round * 37 % 90)));
        child.kill().unwrap();
        child.wait().unwrap();
        let acks = reader.join().unwrap();
        floor = check(&path, &acks, floor);
    }
    assert!(floor > u64::from(ROUNDS) * 10, "the victim did write: revision {floor}");
}

/// Every acknowledged write is there, or a later one of the same key. Gives the revision.
fn check(path: &std::path::Path, acks: &[String], floor: u64) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let store = EmbeddedStore::open(path).unwrap();
        let revision = store.revision().await.unwrap();
        assert!(revision >= floor, "the revision fell from {floor} to {revision}");
        for ack in acks {
            let mut words = ack.split(' ').skip(1);
            // The last line may have been cut off by the kill.
            let (Some(at), Some(key), Some(value)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            let at: u64 = at.parse().unwrap();
            assert!(revision >= at, "revision {at} was acknowledged, the store is at {revision}");
            let kv = store.get(key).await.unwrap().unwrap_or_else(|| panic!("{key} is lost"));
            assert!(kv.mod_revision >= at, "{key}: {at} was acknowledged, {} is there", kv.mod_revision);
            if kv.mod_revision == at {
                assert!(kv.value.starts_with(value.as_bytes()));
            }
        }
        store.list(Range::default()).await.unwrap();
        revision
    })
}
