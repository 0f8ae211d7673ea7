//! Bodies in protobuf, as stock clients with generated types send them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Request;
use serde_json::{Value, json};

use crate::harness::Server;

const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

/// `kubectl create deployment web --image=nginx --replicas=0 --port=80`
const DEPLOYMENT: &str = "azhzAAoVCgdhcHBzL3YxEgpEZXBsb3ltZW50ErgBCh8KA3dlYhIAGgAiACoAMgA4AEIAWgoKA2FwcBIDd2ViEoYBCAASDAoKCgNh\
    cHASA3dlYhpsChwKABIAGgAiACoAMgA4AEIAWgoKA2FwcBIDd2ViEkwSLgoFbmdpbngSBW5naW54KgAyCgoAEAAYUCIAKgBCAGoA\
    cgCAAQCIAQCQAQCiAQAaADIAQgBKAFIAWABgAGgAggEAigEAmgEAwgEAIgIKACgAOAAaDAgAEAAYACAAKAA4ABoAIgA=";

async fn send(server: &Server, method: &str, path: &str, accept: &str, body: Vec<u8>) -> (u16, Value) {
    let request = Request::builder().method(method).uri(path).header("content-type", MEDIA_TYPE);
    let request = request.header("accept", accept).body(body.into()).unwrap();
    let response = server.client.send(request).await.unwrap();
    let status = response.status().as_u16();
    let bytes = response.into_body().collect_bytes().await.unwrap();
    (status, serde_json::from_slice(&bytes).unwrap())
}

/// `DeleteOptions{preconditions: {uid}}`
fn delete_options(uid: &str) -> Vec<u8> {
    let field = |number: u8, value: &[u8]| [&[number << 3 | 2, u8::try_from(value.len()).unwrap()], value].concat();
    let kind = [field(1, b"apps/v1"), field(2, b"DeleteOptions")].concat();
    [b"k8s\0".to_vec(), field(1, &kind), field(2, &field(2, &field(1, uid.as_bytes())))].concat()
}

#[tokio::test]
async fn objects_and_options_are_read() {
    let server = Server::start().await;
    let body = STANDARD.decode(DEPLOYMENT).unwrap();
    let accept = format!("{MEDIA_TYPE},application/json");
    let path = format!("{DEPLOYMENTS}?fieldManager=kubectl-create&fieldValidation=Strict");
    let (status, made) = send(&server, "POST", &path, &accept, body.clone()).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!(made["spec"]["replicas"], 0);
    assert_eq!(
        made["spec"]["template"]["spec"]["containers"][0]["ports"],
        json!([{"containerPort": 80, "protocol": "TCP"}])
    );
    // What was sent empty has its default, not an empty text.
    assert_eq!(made["spec"]["template"]["spec"]["restartPolicy"], "Always");

    let web = format!("{DEPLOYMENTS}/web");
    let (status, answer) = send(&server, "DELETE", &web, &accept, delete_options("other")).await;
    assert_eq!(status, 409, "{answer}");
    let uid = made["metadata"]["uid"].as_str().unwrap();
    let (status, answer) = send(&server, "DELETE", &web, &accept, delete_options(uid)).await;
    assert_eq!(status, 200, "{answer}");
}

#[tokio::test]
async fn what_cannot_be_read_or_answered_is_refused() {
    let server = Server::start().await;
    let body = STANDARD.decode(DEPLOYMENT).unwrap();
    // We answer in JSON only.
    let (status, answer) = send(&server, "POST", DEPLOYMENTS, MEDIA_TYPE, body.clone()).await;
    assert_eq!((status, &answer["reason"]), (406, &json!("NotAcceptable")));
    let (status, answer) = send(&server, "POST", DEPLOYMENTS, "*/*", body[..90].to_vec()).await;
    assert_eq!(status, 400);
    assert_eq!(answer["message"], "couldn't decode the body: unexpected EOF");
    let (status, answer) = send(&server, "POST", "/api/v1/namespaces/default/pods", "*/*", body).await;
    assert_eq!((status, &answer["reason"]), (400, &json!("BadRequest")), "{answer}");
}
