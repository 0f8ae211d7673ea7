use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::StreamExt;
use redb::backends::InMemoryBackend;

use super::*;

fn put(key: &str, value: &str) -> Txn {
    Txn { guards: vec![], ops: vec![Op::Put { key: key.into(), value: Bytes::copy_from_slice(value.as_bytes()) }] }
}

async fn committed(store: &EmbeddedStore, txn: Txn) -> Revision {
    match store.txn(txn).await.unwrap() {
        TxnOutcome::Committed { revision } => revision,
        TxnOutcome::Conflict { current } => panic!("conflict with {current:?}"),
    }
}

async fn keys(store: &EmbeddedStore, prefix: &str, at: Option<Revision>) -> Vec<String> {
    let range = Range { prefix: prefix.into(), revision: at, ..Range::default() };
    let listing = store.list(range).await.unwrap();
    listing.items.iter().map(|kv| format!("{}={}", kv.key, String::from_utf8_lossy(&kv.value))).collect()
}

#[tokio::test]
async fn compare_and_swap() {
    let store = EmbeddedStore::in_memory().unwrap();
    assert_eq!(store.revision().await.unwrap(), 1);
    assert_eq!(committed(&store, Txn::create("a", "1")).await, 2);
    let TxnOutcome::Conflict { current } = store.txn(Txn::create("a", "2")).await.unwrap() else { panic!() };
    assert_eq!(current[0].as_ref().unwrap().mod_revision, 2);
    assert_eq!(committed(&store, Txn::update("a", "2", 2)).await, 3);
    assert!(matches!(store.txn(Txn::update("a", "3", 2)).await.unwrap(), TxnOutcome::Conflict { .. }));
    let kv = store.get("a").await.unwrap().unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version, &kv.value[..]), (2, 3, 2, &b"2"[..]));
    assert!(matches!(store.txn(Txn::delete("a", 2)).await.unwrap(), TxnOutcome::Conflict { .. }));
    assert_eq!(committed(&store, Txn::delete("a", 3)).await, 4);
    assert_eq!(store.get("a").await.unwrap(), None);
    let both = Txn::create("a", "x").and(Txn::create("b", "y"));
    assert_eq!(committed(&store, both.clone()).await, 5);
    assert!(matches!(store.txn(both).await.unwrap(), TxnOutcome::Conflict { .. }));
    assert!(matches!(
        store.txn(put("c", "1").and(put("c", "2"))).await,
        Err(Error::DuplicateKey(key)) if key == "c"
    ));
}

#[tokio::test]
async fn lists_page_and_look_back() {
    let store = EmbeddedStore::in_memory().unwrap();
    for key in ["p/a", "p/b", "p/c", "q/a"] {
        committed(&store, put(key, "1")).await;
    }
    let then = store.revision().await.unwrap();
    committed(&store, put("p/b", "2")).await;
    committed(&store, Txn::delete("p/c", 4)).await;
    assert_eq!(keys(&store, "p/", None).await, ["p/a=1", "p/b=2"]);
    assert_eq!(keys(&store, "p/", Some(then)).await, ["p/a=1", "p/b=1", "p/c=1"]);
    let page = Range { prefix: "p/".into(), limit: 2, revision: Some(then), ..Range::default() };
    let first = store.list(page.clone()).await.unwrap();
    assert_eq!((first.items.len(), first.remaining), (2, 1));
    let next = Range { start: Some("p/b\0".into()), ..page };
    assert_eq!(store.list(next).await.unwrap().items[0].key.as_ref(), "p/c");
    let future = Range { revision: Some(99), ..Range::default() };
    assert!(matches!(store.list(future).await, Err(Error::Future { .. })));
}

#[tokio::test]
async fn compaction_forgets_the_past_and_nothing_else() {
    let store = EmbeddedStore::in_memory().unwrap();
    for value in ["1", "2", "3"] {
        committed(&store, put("a", value)).await;
    }
    committed(&store, put("b", "1")).await; // 5
    committed(&store, Txn::delete("b", 5)).await; // 6
    store.compact(3).await.unwrap();
    assert_eq!(keys(&store, "", Some(3)).await, ["a=2"]);
    assert!(matches!(
        store.list(Range { revision: Some(2), ..Range::default() }).await,
        Err(Error::Compacted { requested: 2, oldest: 3 })
    ));
    assert!(matches!(store.watch("", 3).await.err(), Some(Error::Compacted { .. })));
    assert_eq!(events(&store, 4).await, ["4 a=3 was Some(2)", "5 b=1 was None", "6 b deleted was Some(1)"]);
    store.compact(6).await.unwrap();
    assert_eq!(keys(&store, "", None).await, ["a=3"]);
    assert!(matches!(store.compact(6).await, Err(Error::Compacted { .. })));
    assert!(matches!(store.compact(60).await, Err(Error::Future { .. })));
}

async fn events(store: &EmbeddedStore, from: Revision) -> Vec<String> {
    let batch = store.watch("", from).await.unwrap().next().await.unwrap().unwrap();
    let show = |e: &Arc<Event>| {
        let text = |kv: &KeyValue| String::from_utf8_lossy(&kv.value).into_owned();
        let what = match e.kind {
            EventKind::Put => format!("{}={}", e.kv.key, text(&e.kv)),
            EventKind::Delete => format!("{} deleted", e.kv.key),
        };
        let prev = e.prev.as_ref().map(text).map_or("None".to_owned(), |p| format!("Some({p})"));
        format!("{} {what} was {prev}", e.kv.mod_revision)
    };
    batch.events.iter().map(show).collect()
}

#[tokio::test]
async fn watchers_see_every_change_once_and_in_order() {
    let store = EmbeddedStore::in_memory().unwrap();
    committed(&store, put("w/a", "1")).await;
    committed(&store, put("x/a", "1")).await;
    let mut watch = store.watch("w/", 2).await.unwrap();
    for i in 0..100 {
        committed(&store, put("w/a", &i.to_string())).await;
    }
    let mut seen = Vec::new();
    while seen.len() < 101 {
        let batch = watch.next().await.unwrap().unwrap();
        seen.extend(batch.events.iter().map(|e| e.kv.mod_revision));
    }
    let expected: Vec<u64> = std::iter::once(2).chain(4..104).collect();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let store = EmbeddedStore::open(&path).unwrap();
    committed(&store, put("a", "1")).await;
    committed(&store, put("a", "2")).await;
    committed(&store, put("b", "1")).await;
    committed(&store, Txn::delete("b", 4)).await;
    assert!(matches!(EmbeddedStore::open(&path), Err(Error::Io { reason, .. }) if reason.contains("another process")));
    drop(store);
    let store = EmbeddedStore::open(&path).unwrap();
    assert_eq!(store.revision().await.unwrap(), 5);
    assert_eq!(keys(&store, "", None).await, ["a=2"]);
    assert_eq!(keys(&store, "", Some(4)).await, ["a=2", "b=1"]);
    assert_eq!(
        events(&store, 0).await,
        ["2 a=1 was None", "3 a=2 was Some(1)", "4 b=1 was None", "5 b deleted was Some(1)"]
    );
    store.compact(5).await.unwrap();
    drop(store);
    let store = EmbeddedStore::open(&path).unwrap();
    assert_eq!(store.revision().await.unwrap(), 5, "the revision outlives the records that carried it");
    assert_eq!(committed(&store, put("c", "1")).await, 6);
}

#[tokio::test]
async fn a_damaged_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let store = EmbeddedStore::open(&path).unwrap();
    committed(&store, put("key", &"precious".repeat(20))).await;
    drop(store);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(16).position(|w| w == b"preciousprecious").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let error = EmbeddedStore::open(&path).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    std::fs::write(&path, b"this is no database, and it is long enough to be looked at").unwrap();
    assert!(EmbeddedStore::open(&path).is_err());
}

/// A file on a device that can be full; its content outlives a reopening.
#[derive(Debug, Clone)]
struct Device {
    file: Arc<InMemoryBackend>,
    full: Arc<AtomicBool>,
}

impl Device {
    fn check(&self) -> Result<(), std::io::Error> {
        match self.full.load(Ordering::SeqCst) {
            true => Err(std::io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }
}

impl StorageBackend for Device {
    fn len(&self) -> Result<u64, std::io::Error> {
        self.file.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), std::io::Error> {
        self.file.read(offset, out)
    }
    fn set_len(&self, len: u64) -> Result<(), std::io::Error> {
        self.check()?;
        self.file.set_len(len)
    }
    fn sync_data(&self) -> Result<(), std::io::Error> {
        self.check()
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), std::io::Error> {
        self.check()?;
        self.file.write(offset, data)
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_serves_reads_and_heals() {
    let full = Arc::new(AtomicBool::new(false));
    let device = Device { file: Arc::new(InMemoryBackend::new()), full: full.clone() };
    let store = EmbeddedStore::with_backend("device", move || device.clone()).unwrap();
    committed(&store, put("a", "1")).await;
    full.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        let error = store.txn(put("a", "2")).await.unwrap_err();
        assert!(matches!(error, Error::NoSpace(_)), "{error}");
        assert_eq!(keys(&store, "", None).await, ["a=1"]);
    }
    full.store(false, Ordering::SeqCst);
    let revision = committed(&store, put("a", "3")).await;
    assert!(revision >= 3);
    assert_eq!(keys(&store, "", None).await, ["a=3"]);
    let batch = store.watch("", 2).await.unwrap().next().await.unwrap().unwrap();
    assert_eq!(batch.events.last().unwrap().kv.mod_revision, revision);
}
