//! Against the real kernel, each test in a network namespace of its own, compared with what `nft` prints.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;

use bosun_nft::expr::{Expr, Match, NatKind, Reg};
use bosun_nft::{
    Batch, Chain, Connection, Element, Error, Event, Family, Hook, Key, Monitor, Rule, Set, SetData, Table, Type,
    Verdict,
};
use nix::sched::{CloneFlags, unshare};

const TABLE: Table<'_> = Table::new(Family::Ip, "t");

/// Runs a test on a thread in a new network namespace, which goes away with the thread.
fn in_netns(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn nft(args: &[&str]) -> String {
    let output = Command::new("nft").args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn commit(fill: impl FnOnce(&mut Batch)) -> Result<(), Error> {
    let mut batch = Batch::new();
    fill(&mut batch);
    Connection::open()?.commit(batch)
}

fn assert_listed(wanted: &[&str]) {
    let listed = nft(&["list", "ruleset"]);
    for line in wanted {
        assert!(listed.contains(line), "{line:?} is not in\n{listed}");
    }
}

#[test]
fn rules_print_as_written() {
    in_netns(|| {
        let v4 = |text: &str| text.parse::<IpAddr>().unwrap();
        commit(|batch| {
            batch.add_table(TABLE);
            batch.add_chain(&Chain::base(TABLE, "post", Hook::Postrouting, "nat", 100));
            batch.add_chain(&Chain::base(TABLE, "pre", Hook::Prerouting, "nat", -100));
            batch.add_chain(&Chain::base(TABLE, "fwd", Hook::Forward, "filter", 0));
            batch.add_chain(&Chain::regular(TABLE, "sub"));
            let rules = [
                ("post", Match::new().saddr_in(v4("10.1.0.0"), 16).oifname_not("cni0").masquerade()),
                ("post", Match::new().mark_any(0x4000).clear_mark_bits(0x4000).masquerade_random()),
                ("pre", Match::new().l4proto(6).dport(8080).daddr_local(true).dnat(v4("10.1.0.5"), Some(80))),
                ("fwd", Match::new().iifname("eth0").saddr_not_in(v4("10.1.3.0"), 20).counter().jump("sub")),
                ("sub", Match::new().ct_state(bosun_nft::expr::ct_state::NEW).set_mark_bits(0x4000).reject()),
            ];
            for (chain, expressions) in rules {
                batch.add_rule(&Rule::new(TABLE, chain, expressions).comment("note"));
            }
        })
        .unwrap();
        assert_listed(&[
            "type nat hook postrouting priority srcnat; policy accept;",
            "ip saddr 10.1.0.0/16 oifname != \"cni0\" masquerade comment \"note\"",
            "meta mark & 0x00004000 != 0x00000000 meta mark set meta mark & 0xffffbfff masquerade fully-random",
            "tcp dport 8080 fib daddr type local dnat to 10.1.0.5:80",
            "iifname \"eth0\" ip saddr != 10.1.0.0/20 counter packets 0 bytes 0 jump sub",
            "ct state new meta mark set meta mark | 0x00004000 reject comment",
        ]);
        let mut connection = Connection::open().unwrap();
        let rules = connection.rules(TABLE, Some("post")).unwrap();
        assert_eq!(rules.len(), 2);
        assert_eq!(rules[0].comment.as_deref(), Some("note"));
        commit(|batch| batch.delete_rule(TABLE, "post", rules[0].handle)).unwrap();
        assert_eq!(connection.rules(TABLE, Some("post")).unwrap(), rules[1..]);
        assert_eq!(connection.chains(TABLE).unwrap().len(), 4);
        assert_eq!(connection.tables(Family::Ip).unwrap(), ["t"]);
    });
}

#[test]
fn refusals_take_the_form_of_their_family() {
    in_netns(|| {
        commit(|batch| {
            for family in [Family::Ip, Family::Ip6, Family::Inet] {
                let table = Table::new(family, "t");
                batch.add_table(table);
                batch.add_chain(&Chain::base(table, "in", Hook::Input, "filter", 0));
                batch.add_rule(&Rule::new(table, "in", Match::new().reject()));
                let prohibited = Expr::Reject(bosun_nft::expr::Reject::AdminProhibited);
                batch.add_rule(&Rule::new(table, "in", Match::new().then(prohibited)));
            }
        })
        .unwrap();
        assert_listed(&[
            "reject\n\t\treject with icmp admin-prohibited",
            "reject\n\t\treject with icmpv6 admin-prohibited",
            "reject\n\t\treject with icmpx admin-prohibited",
        ]);
    });
}

#[test]
fn the_service_layout_prints_as_nft_writes_it() {
    in_netns(|| {
        let key = [Type::Ipv4Addr, Type::InetProto, Type::InetService];
        let slots = [Type::Ipv4Addr, Type::InetProto, Type::InetService, Type::Mark];
        let services = Set::verdict_map(TABLE, "services", &key);
        let endpoint = [Type::Ipv4Addr, Type::InetService];
        let endpoints = Set::map(TABLE, "endpoints", &slots, &endpoint);
        let vip = Ipv4Addr::new(10, 96, 0, 1);
        let front = Key::new().ipv4(vip).proto(6).port(443);
        let r = Reg::word;
        let load_front = [
            Expr::destination_address(Family::Ip, r(0)),
            Expr::Meta { key: bosun_nft::expr::Meta::L4Proto, dreg: r(1) },
            Expr::destination_port(r(2)),
        ];
        let mut dnat = load_front.to_vec();
        dnat.extend([
            Expr::Random { dreg: r(3), modulus: 2, offset: 0 },
            Expr::Lookup { set: "endpoints".into(), sreg: r(0), dreg: Some(r(0)), invert: false },
            Expr::Nat { kind: NatKind::Destination, family: Family::Ip, addr: Some(r(0)), port: Some(r(1)), flags: 0 },
        ]);
        commit(|batch| {
            batch.add_table(TABLE);
            batch.add_chain(&Chain::regular(TABLE, "two"));
            batch.add_chain(&Chain::base(TABLE, "pre", Hook::Prerouting, "nat", -100));
            batch.add_set(&services);
            batch.add_set(&endpoints);
            batch.add_rule(&Rule::new(TABLE, "pre", Match::from(load_front.to_vec()).verdict_map("services")));
            batch.add_rule(&Rule::new(TABLE, "two", dnat));
            batch.add_elements(services.reference(), [Element::verdict(front, &Verdict::Goto("two".into()))]);
            let slot = |slot: u8| {
                let backend = Key::new().ipv4(Ipv4Addr::new(10, 1, 0, slot)).port(6443);
                Element::value(front.mark(slot.into()), backend)
            };
            batch.add_elements(endpoints.reference(), [slot(0), slot(1)]);
        })
        .unwrap();
        assert_listed(&[
            "type ipv4_addr . inet_proto . inet_service : verdict",
            "elements = { 10.96.0.1 . tcp . 443 : goto two }",
            "type ipv4_addr . inet_proto . inet_service . mark : ipv4_addr . inet_service",
            "10.96.0.1 . tcp . 443 . 0x00000001 : 10.1.0.1 . 6443",
            "ip daddr . meta l4proto . th dport vmap @services",
            "dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 2 map @endpoints",
        ]);
        let mut connection = Connection::open().unwrap();
        let mut found = Vec::new();
        connection.elements(services.reference(), |e| found.push((e.key.to_vec(), e.verdict()))).unwrap();
        assert_eq!(found, [(front.as_slice().to_vec(), Some(Verdict::Goto("two".into())))]);
        // A chain and its last reference go in one transaction.
        commit(|batch| {
            batch.delete_elements(services.reference(), [Element::new(front)]);
            batch.delete_chain(TABLE, "two");
        })
        .unwrap();
    });
}

#[test]
fn ranges_timeouts_and_dynamic_sets() {
    in_netns(|| {
        let v6 = Table::new(Family::Ip6, "t");
        let ranges = Set { interval: true, comment: Some("nets"), ..Set::new(TABLE, "ranges", &[Type::Ipv4Addr]) };
        let pairs = Set { interval: true, ..Set::new(TABLE, "pairs", &[Type::InetService, Type::Ipv4Addr]) };
        let seen = Set {
            dynamic: true,
            timeout: Some(0),
            size: Some(1000),
            data: SetData::Value(&[Type::Ipv6Addr, Type::InetService]),
            ..Set::new(v6, "seen", &[Type::Ipv6Addr])
        };
        let ip = |d: u8| Key::new().ipv4(Ipv4Addr::new(10, 0, d, 0));
        commit(|batch| {
            batch.add_table(TABLE);
            batch.add_table(v6);
            batch.add_set(&ranges);
            batch.add_set(&pairs);
            batch.add_set(&seen);
            batch
                .add_elements(ranges.reference(), Element::range(ip(0), Key::new().ipv4(Ipv4Addr::new(10, 0, 0, 255))));
            let start = Key::new().port(80).ipv4(Ipv4Addr::new(10, 2, 0, 0));
            let end = Key::new().port(80).ipv4(Ipv4Addr::new(10, 2, 255, 255));
            batch.add_elements(pairs.reference(), [Element { key_end: Some(end), ..Element::new(start) }]);
            let value = Key::new().ipv6(Ipv6Addr::LOCALHOST).port(80);
            let element = Element::value(Key::new().ipv6(Ipv6Addr::LOCALHOST), value);
            batch.add_elements(seen.reference(), [Element { timeout: Some(60_000), comment: Some("c"), ..element }]);
        })
        .unwrap();
        assert_listed(&[
            "flags interval\n\t\tcomment \"nets\"\n\t\telements = { 10.0.0.0/24 }",
            "elements = { 80 . 10.2.0.0/16 }",
            "flags dynamic,timeout",
            "::1 timeout 1m expires",
            "comment \"c\" : ::1 . 80",
        ]);
        assert_eq!(Connection::open().unwrap().sets(TABLE).unwrap().len(), 2);
        assert_eq!(Connection::open().unwrap().sets(Table::new(Family::Ip, "other")).unwrap().len(), 0);
    });
}

#[test]
fn a_refused_batch_changes_nothing_and_says_what() {
    in_netns(|| {
        let error = commit(|batch| {
            batch.add_table(TABLE);
            batch.add_rule(&Rule::new(TABLE, "missing", Match::new().drop()));
        })
        .unwrap_err();
        assert!(error.is_not_found());
        let text = error.to_string();
        assert!(text.starts_with("add rule ip t missing: no such object"), "{text}");
        assert_eq!(nft(&["list", "ruleset"]), "");
        commit(|batch| batch.delete_table(TABLE)).unwrap_err();
        commit(|batch| {
            batch.add_table(TABLE);
            batch.delete_table(TABLE);
        })
        .unwrap();
    });
}

#[test]
fn a_batch_for_an_old_generation_is_refused() {
    in_netns(|| {
        let generation = Connection::open().unwrap().generation().unwrap();
        let add = |at: u32| {
            commit(|batch| {
                batch.at_generation(at);
                batch.add_table(TABLE);
            })
        };
        add(generation).unwrap();
        assert_eq!(add(generation).unwrap_err().errno(), Some(libc::ERESTART));
    });
}

#[test]
fn a_hundred_thousand_elements_go_in_one_transaction() {
    in_netns(|| {
        let set = Set::map(TABLE, "m", &[Type::Ipv4Addr, Type::Mark], &[Type::Ipv4Addr]);
        let key = |n: u32| Key::new().ipv4(Ipv4Addr::from(n)).mark(n);
        commit(|batch| {
            batch.add_table(TABLE);
            batch.add_set(&set);
            let value = |n| Element::value(key(n), Key::new().ipv4(Ipv4Addr::from(n)));
            batch.add_elements(set.reference(), (0..100_000).map(value));
        })
        .unwrap();
        let mut sum = 0u64;
        Connection::open().unwrap().elements(set.reference(), |_| sum += 1).unwrap();
        assert_eq!(sum, 100_000);
        commit(|batch| batch.flush_set(set.reference())).unwrap();
        Connection::open().unwrap().elements(set.reference(), |_| panic!("flushed")).unwrap();
    });
}

#[test]
fn the_monitor_tells_who_changed_what() {
    in_netns(|| {
        let mut monitor = Monitor::open().unwrap();
        nft(&["add", "table", "ip", "t"]);
        nft(&["flush", "ruleset"]);
        let mut events = Vec::new();
        monitor.read(|event| events.push(event)).unwrap();
        let is_ours = |family: Option<Family>, table: &str| family == Some(Family::Ip) && table == "t";
        assert!(matches!(&events[0], Event::Added { family, table, .. } if is_ours(*family, table)), "{events:?}");
        assert!(matches!(events[1], Event::Committed { .. }), "{events:?}");
        assert!(matches!(&events[2], Event::Deleted { family, table, .. } if is_ours(*family, table)), "{events:?}");
        let mut connection = Connection::open().unwrap();
        let mut batch = Batch::new();
        batch.add_table(TABLE);
        connection.commit(batch).unwrap();
        let mut ports = Vec::new();
        monitor
            .read(|event| {
                if let Event::Added { port, .. } = event {
                    ports.push(port)
                }
            })
            .unwrap();
        assert_eq!(ports, [connection.port()]);
    });
}

#[test]
fn tracked_connections_are_deleted_by_choice() {
    in_netns(|| {
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        // Tracking starts with the first rule that needs it.
        commit(|batch| {
            batch.add_table(TABLE);
            batch.add_chain(&Chain::base(TABLE, "out", Hook::Output, "nat", -100));
            batch.add_chain(&Chain::base(TABLE, "post", Hook::Postrouting, "nat", 100));
            batch.add_rule(&Rule::new(TABLE, "post", Match::new().saddr("10.0.0.1".parse().unwrap()).masquerade()));
        })
        .unwrap();
        let server = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"x", server.local_addr().unwrap()).unwrap();
        let port = server.local_addr().unwrap().port();
        let mut connection = Connection::open().unwrap();
        let delete = |connection: &mut Connection, port| {
            bosun_nft::conntrack::delete(connection, |flow| flow.original.destination_port == port).unwrap()
        };
        assert_eq!(delete(&mut connection, 1), 0);
        assert_eq!(delete(&mut connection, port), 1);
        assert_eq!(delete(&mut connection, port), 0);
    });
}
