use super::*;
use hickory_proto::rr::{Name, RData, Record, rdata::A};
use serde_json::json;
use std::{net::Ipv4Addr, time::Instant};

fn zone(endpoints: usize) -> Arc<RwLock<Zone>> {
    let mut zone = Zone::new("cluster.local").unwrap();
    for (name, spec) in [
        ("web", json!({"clusterIP": "10.96.0.7"})),
        ("many", json!({"clusterIP": "None"})),
        ("out", json!({"type": "ExternalName", "externalName": "example.test"})),
    ] {
        let object = json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec});
        zone.apply_service(&serde_json::from_value(object).unwrap());
    }
    let endpoints: Vec<_> =
        (0..endpoints).map(|n| json!({"addresses": [format!("10.0.{}.{}", n / 250, n % 250)]})).collect();
    let labels = json!({"kubernetes.io/service-name": "many"});
    let slice = json!({
        "metadata": {"name": "many-1", "namespace": "default", "labels": labels},
        "addressType": "IPv4", "endpoints": endpoints,
    });
    zone.apply_slice(&serde_json::from_value(slice).unwrap());
    Arc::new(RwLock::new(zone))
}

/// An upstream server that knows one name, and counts.
async fn upstream() -> (SocketAddr, Arc<AtomicUsize>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
            counter.fetch_add(1, Ordering::Relaxed);
            let request = Message::from_vec(&buffer[..length]).unwrap();
            let name = request.queries[0].name().clone();
            let mut answer = failure(&request, ResponseCode::NoError);
            answer.add_answer(Record::from_rdata(name, 60, RData::A(A(Ipv4Addr::new(192, 0, 2, 1)))));
            // A forged answer comes first and is passed over.
            let mut forged = answer.clone();
            forged.metadata.id ^= 1;
            socket.send_to(&forged.to_vec().unwrap(), client).await.unwrap();
            socket.send_to(&answer.to_vec().unwrap(), client).await.unwrap();
        }
    });
    (address, asked)
}

async fn start(upstreams: Vec<SocketAddr>, endpoints: usize) -> SocketAddr {
    // A port that both protocols have free.
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let figures = Figures::default();
    let server = Server::new(zone(endpoints), Forwarder::new(upstreams, figures.clone()), figures);
    tokio::spawn(async move { server.serve(&[address], &CancellationToken::new()).await.unwrap() });
    let deadline = Instant::now() + Duration::from_secs(5);
    while TcpStream::connect(address).await.is_err() {
        assert!(Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
    address
}

fn question(name: &str) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message
}

async fn ask_udp(server: SocketAddr, request: &Message) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&request.to_vec().unwrap(), server).await.unwrap();
    let mut buffer = [0; 4096];
    let length = timeout(Duration::from_secs(8), socket.recv(&mut buffer)).await.unwrap().unwrap();
    let answer = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(answer.metadata.id, request.metadata.id);
    assert_eq!(answer.queries, request.queries);
    answer
}

async fn ask_tcp(server: SocketAddr, request: &Message) -> Message {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let bytes = request.to_vec().unwrap();
    stream.write_u16(bytes.len().try_into().unwrap()).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let mut buffer = vec![0; stream.read_u16().await.unwrap().into()];
    stream.read_exact(&mut buffer).await.unwrap();
    Message::from_vec(&buffer).unwrap()
}

#[tokio::test]
async fn cluster_names_by_both_protocols() {
    let server = start(Vec::new(), 3).await;
    let request = question("Web.default.svc.cluster.local.");
    for answer in [ask_udp(server, &request).await, ask_tcp(server, &request).await] {
        assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
        assert_eq!(answer.answers[0].to_string(), "Web.default.svc.cluster.local. 5 IN A 10.96.0.7");
    }
    let none = ask_udp(server, &question("none.default.svc.cluster.local.")).await;
    assert_eq!(none.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn addresses_take_turns() {
    let server = start(Vec::new(), 3).await;
    let request = question("many.default.svc.cluster.local.");
    let mut first = Vec::new();
    for _ in 0..3 {
        first.push(ask_udp(server, &request).await.answers[0].to_string());
    }
    first.sort();
    first.dedup();
    assert_eq!(first.len(), 3);
}

#[tokio::test]
async fn what_does_not_fit_is_cut_and_comes_whole_by_tcp() {
    let server = start(Vec::new(), 100).await;
    let mut request = question("many.default.svc.cluster.local.");
    let plain = ask_udp(server, &request).await;
    assert!(plain.metadata.truncation && plain.answers.is_empty() && plain.edns.is_none());
    assert_eq!(ask_tcp(server, &request).await.answers.len(), 100);
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    request.set_edns(edns);
    let with_edns = ask_udp(server, &request).await;
    assert!(with_edns.metadata.truncation);
    assert_eq!(with_edns.edns.unwrap().max_payload(), UDP_PAYLOAD);
    let fits = start(Vec::new(), 50).await;
    assert_eq!(ask_udp(fits, &request).await.answers.len(), 50);
}

#[tokio::test]
async fn other_names_come_from_upstream_once() {
    let (upstream, asked) = upstream().await;
    let server = start(vec![upstream], 0).await;
    for name in ["example.test.", "EXAMPLE.test."] {
        let answer = ask_udp(server, &question(name)).await;
        assert_eq!(answer.answers[0].data, RData::A(A(Ipv4Addr::new(192, 0, 2, 1))), "{name}");
        assert!(!answer.metadata.authoritative);
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    let alias = ask_udp(server, &question("out.default.svc.cluster.local.")).await;
    let lines: Vec<_> = alias.answers.iter().map(ToString::to_string).collect();
    assert_eq!(lines[0], "out.default.svc.cluster.local. 5 IN CNAME example.test.");
    assert!(lines[1].ends_with("IN A 192.0.2.1"), "{lines:?}");
}

#[tokio::test]
async fn without_an_upstream_that_answers_it_is_servfail() {
    let nobody = start(Vec::new(), 0).await;
    let answer = ask_udp(nobody, &question("example.test.")).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    // Nobody listens there: the refusal counts as an answer that failed, and the next is asked.
    let closed = "127.0.0.1:9".parse().unwrap();
    let (upstream, _) = upstream().await;
    let mended = start(vec![closed, upstream], 0).await;
    assert_eq!(ask_udp(mended, &question("example.test.")).await.metadata.response_code, ResponseCode::NoError);
}

#[tokio::test]
async fn what_is_no_question_is_refused_or_ignored() {
    let server = start(Vec::new(), 0).await;
    let mut update = question("example.test.");
    update.metadata.op_code = OpCode::Status;
    assert_eq!(ask_udp(server, &update).await.metadata.response_code, ResponseCode::NotImp);
    let mut future = question("web.default.svc.cluster.local.");
    let mut edns = Edns::new();
    edns.set_version(1);
    future.set_edns(edns);
    let refused = ask_udp(server, &future).await;
    assert_eq!(refused.edns.unwrap().rcode_high(), 1);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for junk in [&[][..], &[0; 3], &[0xff; 200]] {
        socket.send_to(junk, server).await.unwrap();
    }
    assert!(!ask_udp(server, &question("web.default.svc.cluster.local.")).await.answers.is_empty());
}
