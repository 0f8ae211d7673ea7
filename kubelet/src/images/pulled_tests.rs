use super::*;
use crate::images::keyring::Login;

const IMAGE: &str = "reg.io/team/app:1";
const REFERENCE: &str = "sha256:aa";

fn secret(uid: &str, password: &str) -> Credential {
    let login = Login { username: "u".into(), password: password.into() };
    let (namespace, name) = ("default".to_owned(), "pull".to_owned());
    let source = SecretRef { uid: uid.into(), namespace, name, credential_hash: login.hash() };
    Credential { login, source: Source::Secret(source) }
}

fn account(uid: &str) -> Credential {
    let account = AccountRef { uid: uid.into(), namespace: "default".into(), name: "sa".into() };
    Credential { login: Login::default(), source: Source::ServiceAccount(account) }
}

fn records(folder: &tempfile::TempDir, verification: Verification) -> Records {
    Records::open(folder.path(), verification).unwrap()
}

async fn must_pull(records: &Records, credentials: &[Credential]) -> bool {
    records.must_pull(IMAGE, REFERENCE, || async { credentials.to_vec() }).await
}

#[tokio::test]
async fn whoever_pulled_it_may_use_it_and_others_must_prove_it() {
    let folder = tempfile::tempdir().unwrap();
    let records = records(&folder, Verification::default());
    assert!(!must_pull(&records, &[]).await, "a preloaded image is everybody's");
    records.begin(IMAGE).unwrap();
    assert!(must_pull(&records, &[secret("a", "word")]).await, "it is being pulled, by whom is not known");
    records.succeeded(IMAGE, REFERENCE, Some(&secret("a", "word")));
    assert_eq!(records.count(), (0, 1));
    assert!(must_pull(&records, &[]).await);
    assert!(must_pull(&records, &[secret("b", "other")]).await);
    assert!(!must_pull(&records, &[secret("a", "word")]).await);
    assert!(!must_pull(&records, &[secret("b", "word")]).await, "the same login in another secret");
    assert!(!must_pull(&records, &[secret("b", "changed")]).await, "b is known now, and its login may change");
    records.succeeded(IMAGE, REFERENCE, Some(&account("s")));
    assert!(!must_pull(&records, &[account("s")]).await);
    assert!(must_pull(&records, &[account("t")]).await);
    records.succeeded(IMAGE, REFERENCE, None);
    assert!(!must_pull(&records, &[]).await, "it can be had without a login");
}

#[tokio::test]
async fn policies_ask_as_configured() {
    let (yes, no) = (true, false);
    for (policy, preloaded, pulled) in [
        ("NeverVerify", no, no),
        ("NeverVerifyPreloadedImages", no, yes),
        ("NeverVerifyAllowlistedImages", yes, yes),
        ("AlwaysVerify", yes, yes),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let records = records(&folder, Verification::of(policy, &["reg.io/other/*".into(), "reg.io/team".into()]));
        assert_eq!(must_pull(&records, &[]).await, preloaded, "{policy}, preloaded");
        records.succeeded(IMAGE, REFERENCE, Some(&secret("a", "word")));
        assert_eq!(must_pull(&records, &[]).await, pulled, "{policy}, pulled");
    }
    for listed in ["reg.io/team/*", "reg.io/team/app"] {
        let policy = Verification::of("NeverVerifyAllowlistedImages", &[listed.into()]);
        assert_eq!(decide(&policy, IMAGE, None, true, &[]), Verdict::Granted(None), "{listed}");
    }
}

#[tokio::test]
async fn a_pull_that_a_crash_cut_off_counts_as_pulled() {
    let folder = tempfile::tempdir().unwrap();
    records(&folder, Verification::default()).begin(IMAGE).unwrap();
    let records = records(&folder, Verification::default());
    assert!(must_pull(&records, &[]).await);
    records.recover([(REFERENCE, vec![IMAGE])].into_iter());
    assert_eq!(records.count(), (0, 1));
    assert!(must_pull(&records, &[secret("a", "word")]).await, "nobody has proven anything");
}

#[tokio::test]
async fn records_are_stocks_files() {
    let folder = tempfile::tempdir().unwrap();
    let records = records(&folder, Verification::default());
    let path =
        folder.path().join("image_manager/pulled").join(format!("sha256-{}", hex::encode(Sha256::digest(REFERENCE))));
    let old = serde_json::json!({
        "kind": "ImagePulledRecord", "apiVersion": "kubelet.config.k8s.io/v1alpha1",
        "lastUpdatedTime": "2024-10-21T12:26:40Z", "imageRef": REFERENCE,
        "credentialMapping": {"reg.io/team/app": {"kubernetesSecrets": [
            {"uid": "a", "namespace": "default", "name": "pull", "credentialHash": secret("a", "word").login.hash()}]}},
    });
    std::fs::write(&path, old.to_string()).unwrap();
    assert!(!must_pull(&records, &[secret("a", "word")]).await);
    records.succeeded(IMAGE, REFERENCE, None);
    let new: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(new["apiVersion"], VERSION);
    assert_eq!(new["credentialMapping"], serde_json::json!({"reg.io/team/app": {"nodePodsAccessible": true}}));
    std::fs::write(&path, "{").unwrap();
    assert!(must_pull(&records, &[]).await, "what cannot be read proves nothing");
}

#[test]
fn records_of_images_that_are_gone_go() {
    let folder = tempfile::tempdir().unwrap();
    let records = records(&folder, Verification::default());
    records.succeeded("a", "sha256:1", None);
    records.succeeded("b", "sha256:2", None);
    let present = HashSet::from(["sha256:2".to_owned()]);
    records.prune(&present, Timestamp::UNIX_EPOCH);
    assert_eq!(records.count(), (0, 2), "they are younger than the listing");
    records.prune(&present, Timestamp::now() + jiff::SignedDuration::from_secs(1));
    assert_eq!(records.count(), (0, 1));
}
