use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::schema;

/// What a stock client sends: its command line, the body in base64, and the object as the client prints it in JSON.
const GOLDEN: &str = include_str!("golden.txt");

const POD: &str = "io.k8s.api.core.v1.Pod";

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value > 0x7f {
        out.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap());
    out
}

fn int(number: u64, value: i64) -> Vec<u8> {
    [varint(number << 3), varint(value.cast_unsigned())].concat()
}

fn bytes(number: u64, value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    [varint(number << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
}

fn message<const N: usize>(number: u64, fields: [Vec<u8>; N]) -> Vec<u8> {
    bytes(number, fields.concat())
}

fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let type_meta = message(1, [bytes(1, api_version), bytes(2, kind)]);
    [MAGIC.to_vec(), type_meta, bytes(2, raw), bytes(3, ""), bytes(4, "")].concat()
}

fn core(kind: &str, raw: &[u8]) -> Value {
    to_json(&format!("io.k8s.api.core.v1.{kind}"), raw).unwrap()
}

fn golden() -> impl Iterator<Item = (&'static str, Vec<u8>, Value)> {
    use base64::Engine as _;
    GOLDEN.split("\n\n").map(|block| {
        let mut lines = block.lines();
        let command = lines.next().unwrap();
        let body = base64::engine::general_purpose::STANDARD.decode(lines.next().unwrap()).unwrap();
        (command, body, serde_json::from_str(lines.next().unwrap()).unwrap())
    })
}

#[test]
fn bodies_of_a_stock_client_are_what_it_prints() {
    for (command, body, printed) in golden() {
        let object = decode_body(&body).unwrap_or_else(|error| panic!("{command}: {error}"));
        let (api_version, kind) = (object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap());
        let name = type_name(api_version, kind).unwrap();
        let canonical = |value| schema::decode_value(name, value).unwrap();
        let (object, printed) = (canonical(object), canonical(printed));
        assert_eq!(object, printed, "{command}");
        assert!(object.unknown.is_empty(), "{command}");
    }
    assert!(golden().count() > 15);
}

#[test]
fn zero_stays_only_where_it_says_something() {
    let metadata = message(1, [bytes(1, "a"), bytes(3, ""), int(7, 0), bytes(8, ""), int(10, 0)]);
    let spec = message(2, [int(1, 0), int(5, 0), int(6, 0), int(7, 0), bytes(4, "")]);
    let deployment = to_json("io.k8s.api.apps.v1.Deployment", &[metadata, spec, bytes(3, "")].concat()).unwrap();
    assert_eq!(
        deployment,
        json!({
            "metadata": {"name": "a", "deletionGracePeriodSeconds": 0},
            "spec": {"replicas": 0, "revisionHistoryLimit": 0, "strategy": {}},
            "status": {},
        })
    );
}

#[test]
fn fields_of_inner_structs_are_the_outers_own() {
    let volume = message(1, [bytes(1, "v"), message(2, [message(2, [bytes(1, "Memory")])])]);
    let empty = message(1, [bytes(1, "e"), message(2, [bytes(2, "")])]);
    let get = message(1, [message(2, [bytes(1, "/x"), message(2, [int(1, 1), int(2, 0), bytes(3, "http")])])]);
    let container = message(2, [bytes(1, "c"), message(10, [get, int(4, 5)])]);
    let debugger = message(34, [message(1, [bytes(1, "d"), bytes(2, "sh")]), bytes(2, "c")]);
    let pod = core("Pod", &message(2, [volume, empty, container, debugger]));
    assert_eq!(
        pod["spec"],
        json!({
            "volumes": [{"name": "v", "emptyDir": {"medium": "Memory"}}, {"name": "e", "emptyDir": {}}],
            "containers": [{"name": "c",
                "livenessProbe": {"httpGet": {"path": "/x", "port": "http"}, "periodSeconds": 5}}],
            "ephemeralContainers": [{"name": "d", "image": "sh", "targetContainerName": "c"}],
        })
    );
}

#[test]
fn maps_lists_and_wrapped_values() {
    let secret =
        core("Secret", &[message(2, [bytes(1, "k"), bytes(2, [0, 255])]), message(2, [bytes(1, "l")])].concat());
    assert_eq!(secret["data"], json!({"k": "AP8=", "l": ""}));
    let quota = core("ResourceQuota", &message(2, [message(1, [bytes(1, "cpu"), message(2, [bytes(1, "500m")])])]));
    assert_eq!(quota["spec"]["hard"], json!({"cpu": "500m"}));
    let extra = message(5, [bytes(1, "scopes"), message(2, [bytes(1, "a"), bytes(1, "b")])]);
    let review = to_json("io.k8s.api.authorization.v1.SubjectAccessReview", &message(2, [extra])).unwrap();
    assert_eq!(review["spec"]["extra"], json!({"scopes": ["a", "b"]}));
    // Numbers of a list come one by one from some encoders and packed from others.
    let context = |groups: &[u8]| core("PodSecurityContext", groups)["supplementalGroups"].clone();
    assert_eq!(context(&[int(4, 1), int(4, -1)].concat()), json!([1, -1]));
    assert_eq!(context(&bytes(4, [varint(1), varint(300)].concat())), json!([1, 300]));
}

#[test]
fn times_numbers_and_raw_values() {
    let lease = message(2, [int(2, 40), message(4, [int(1, 1_700_000_000), int(2, 123_456_789)])]);
    let lease = to_json("io.k8s.api.coordination.v1.Lease", &lease).unwrap();
    assert_eq!(lease["spec"], json!({"leaseDurationSeconds": 40, "renewTime": "2023-11-14T22:13:20.123456Z"}));
    let entry = message(17, [bytes(1, "m"), bytes(6, "FieldsV1"), message(7, [bytes(1, r#"{"f:x":{}}"#)])]);
    let pod = core("Pod", &message(1, [message(9, [int(1, 0), int(2, 7)]), int(10, -1), entry]));
    assert_eq!(
        pod["metadata"],
        json!({"deletionTimestamp": "1970-01-01T00:00:00Z", "deletionGracePeriodSeconds": -1,
            "managedFields": [{"manager": "m", "fieldsType": "FieldsV1", "fieldsV1": {"f:x": {}}}]})
    );
    let config = body("v1", "ConfigMap", &message(2, [bytes(1, "a"), bytes(2, "b")]));
    let revision =
        to_json("io.k8s.api.apps.v1.ControllerRevision", &[message(2, [bytes(1, config)]), int(3, 4)].concat());
    let data = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "b"}});
    assert_eq!(revision.unwrap(), json!({"data": data, "revision": 4}));
}

#[test]
fn a_message_in_pieces_is_put_together_and_the_last_value_counts() {
    let pod = [message(1, [bytes(1, "a"), bytes(3, "x")]), message(1, [bytes(1, "b"), bytes(3, "")])].concat();
    assert_eq!(core("Pod", &pod), json!({"metadata": {"name": "b"}}));
}

#[test]
fn unknown_fields_are_skipped() {
    let fixed = [varint(900 << 3 | 1), vec![0; 8], varint(901 << 3 | 5), vec![0; 4]].concat();
    let pod = [int(902, 5), fixed, bytes(903, "x"), message(1, [bytes(1, "a")])].concat();
    assert_eq!(core("Pod", &pod), json!({"metadata": {"name": "a"}}));
}

#[test]
fn options_are_in_every_group() {
    let raw = [int(1, 0), message(2, [bytes(1, "u")]), bytes(4, "Orphan")].concat();
    for api_version in ["v1", "apps/v1", "rbac.authorization.k8s.io/v1"] {
        assert_eq!(
            decode_body(&body(api_version, "DeleteOptions", &raw)).unwrap(),
            json!({"apiVersion": api_version, "kind": "DeleteOptions", "gracePeriodSeconds": 0,
                "preconditions": {"uid": "u"}, "propagationPolicy": "Orphan"})
        );
    }
}

#[test]
fn errors_are_in_words() {
    let error = |body: &[u8]| decode_body(body).unwrap_err().to_string();
    assert_eq!(
        error(b"{}"),
        "provided data does not appear to be a protobuf message, expected prefix [107, 56, 115, 0]"
    );
    assert_eq!(error(&MAGIC), "Object 'Kind' is missing");
    assert_eq!(error(&body("x.io/v1", "Pod", &[])), "no kind \"Pod\" is registered for version \"x.io/v1\"");
    assert_eq!(error(&body("v1", "Pod", &[10])), "unexpected EOF");
    assert_eq!(error(&body("v1", "Pod", &[10, 5, 1])), "unexpected EOF");
    assert_eq!(error(&body("v1", "Pod", &[11])), "proto: illegal wireType 3");
    assert_eq!(error(&body("v1", "Pod", &[0])), "proto: integer overflow");
    assert_eq!(error(&body("v1", "Pod", &int(1, 1))), "proto: wrong wireType for field metadata");
    assert_eq!(error(&body("v1", "Pod", &message(1, [bytes(1, [255])]))), "field name contains invalid UTF-8");
    let time = message(8, [int(1, i64::MAX)]);
    assert_eq!(error(&body("v1", "Pod", &message(1, [time]))), "field creationTimestamp has a value out of range");
    let compressed = [body("v1", "Pod", &[]), bytes(3, "gzip")].concat();
    assert_eq!(error(&compressed), "content encoding \"gzip\" is not supported");
    let mut nested = body("v1", "Pod", &[]);
    for _ in 0..MAX_DEPTH {
        nested = body("apps/v1", "ControllerRevision", &message(2, [bytes(1, nested)]));
    }
    assert_eq!(error(&nested), "exceeded max depth");
}

proptest! {
    #[test]
    fn no_bytes_panic(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_body(&noise);
        let _ = decode_body(&[MAGIC.as_slice(), &noise].concat());
        let _ = to_json(POD, &noise);
    }

    #[test]
    fn no_damage_panics(pick in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
        cut in any::<prop::sample::Index>()) {
        let bodies: Vec<_> = golden().collect();
        let (_, body, _) = pick.get(&bodies);
        let mut body = body.clone();
        *at.get_mut(&mut body) = byte;
        let _ = decode_body(&body);
        body.truncate(cut.index(body.len()));
        let _ = decode_body(&body);
    }
}
