//! Backends given by name, with a real name server on loopback.

use std::time::Instant;

use crate::harness::client::get;
use crate::harness::dns::Dns;
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::wait::{PATIENCE, eventually};
use crate::harness::{Setup, Weir, one_pool};

/// A document with one pool, whose names are asked for at `{dns}` only.
fn document(pool: &str) -> String {
    one_pool(pool) + "resolver: { servers: ['{dns}'], timeout: 2s }\n"
}

/// An origin at `ip` and the port `{app}` that answers with `ip`.
fn origin(setup: &Setup, ip: &str) -> Origin {
    Origin::start_at(ip, setup.port("app"), Behaviour::Fixed(ip.to_owned()))
}

/// Starts weir on `document` and waits until it has found out who serves: on a loaded machine that may take longer than
/// loading waits for.
#[track_caller]
fn start(setup: Setup, document: &str) -> Weir {
    let weir = setup.start(document);
    eventually(PATIENCE, || weir.get("/").status == 200);
    weir
}

/// Who answers now, as often as each answers in `count` requests.
fn answers(weir: &Weir, count: usize) -> Vec<String> {
    let one = |_| weir.get("/").text().to_owned();
    let mut answers: Vec<String> = (0..count).map(one).collect();
    answers.sort();
    answers
}

/// Waits until the name server has been asked for `name` `times` more.
#[track_caller]
fn asked_again(dns: &Dns, name: &str, times: usize) {
    let before = dns.asked(name);
    eventually(PATIENCE, || dns.asked(name) >= before + times);
}

#[test]
fn each_address_of_a_name_is_a_member() {
    let dns = Dns::start();
    let setup = Weir::with("dns", &dns);
    let _origins = [origin(&setup, "127.0.0.1"), origin(&setup, "127.0.0.2")];
    dns.set("app.test", 60, &["127.0.0.2", "127.0.0.1"]);
    let weir = start(setup, &document("{ backends: ['app.test:{app}'] }"));
    assert_eq!(
        answers(&weir, 4),
        ["127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.2"]
    );
    // it holds for a minute
    assert_eq!(dns.asked("app.test"), 1);
}

#[test]
fn name_that_does_not_resolve_joins_when_it_does() {
    let dns = Dns::start();
    let setup = Weir::with("dns", &dns);
    let _origin = origin(&setup, "127.0.0.1");
    let weir = setup.start(&document("{ backends: ['app.test:{app}'] }"));
    assert_eq!(weir.get("/").status, 503);
    let warning = "does not resolve: there is no such name";
    assert!(weir.error_log().contains(warning), "{}", weir.error_log());
    dns.set("app.test", 60, &["127.0.0.1"]);
    eventually(PATIENCE, || weir.get("/").status == 200);
    let news = format!(
        "pool app: app.test:{} is now 127.0.0.1",
        weir.setup().port("app")
    );
    assert!(weir.error_log().contains(&news), "{}", weir.error_log());
}

#[test]
fn change_moves_new_requests_and_cuts_no_running_one() {
    let dns = Dns::start();
    let setup = Weir::with("dns", &dns);
    let port = setup.port("app");
    let old = Origin::start_at("127.0.0.1", port, Behaviour::Steps(2));
    let _new = origin(&setup, "127.0.0.2");
    dns.set("app.test", 1, &["127.0.0.1"]);
    let weir = setup.start(&document("{ backends: ['app.test:{app}'] }"));
    let mut download = weir.connect();
    download.send_request(&get("/")).expect("send");
    download.read_head().expect("a head");
    old.release(1);
    assert_eq!(download.read_chunk().expect("a chunk"), b"part 0\n");

    dns.set("app.test", 1, &["127.0.0.2"]);
    let news = format!("pool app: app.test:{port} is now 127.0.0.2 (was 127.0.0.1)");
    eventually(PATIENCE, || weir.error_log().contains(&news));
    for _ in 0..5 {
        assert_eq!(weir.get("/").text(), "127.0.0.2");
    }
    assert_eq!(old.hits(), 1);

    old.release(1);
    assert_eq!(download.read_chunk().expect("a chunk"), b"part 1\n");
    assert_eq!(download.read_chunk().expect("the last chunk"), b"");
}

#[test]
fn last_good_answer_is_kept_whatever_happens_to_the_name_server() {
    let mut dns = Dns::start();
    let setup = Weir::with("dns", &dns);
    let _origin = origin(&setup, "127.0.0.1");
    dns.set("app.test", 0, &["127.0.0.1"]);
    let weir = start(setup, &document("{ backends: ['app.test:{app}'] }"));
    let failures = || weir.error_log().matches("does not resolve").count();
    let recoveries = || weir.error_log().matches("resolves again").count();
    let trouble: [(&str, &dyn Fn()); 3] = [
        ("SERVFAIL", &|| dns.fail("app.test")),
        ("there is no such name", &|| dns.remove("app.test")),
        ("no answer", &|| dns.ignore("app.test")),
    ];
    for (i, (reason, begin)) in trouble.iter().enumerate() {
        begin();
        asked_again(&dns, "app.test", 3);
        eventually(PATIENCE, || failures() == i + 1);
        let log = weir.error_log();
        let line = log.lines().rfind(|line| line.contains("does not resolve"));
        let line = line.expect("a line says so");
        assert!(
            line.contains(reason) && line.ends_with("it stays 127.0.0.1"),
            "{line}"
        );
        assert_eq!(weir.get("/").text(), "127.0.0.1");
        dns.set("app.test", 0, &["127.0.0.1"]);
        eventually(PATIENCE, || recoveries() == i + 1);
    }
    dns.kill();
    eventually(PATIENCE, || failures() == 4);
    assert_eq!(weir.get("/").text(), "127.0.0.1");
}

#[test]
fn addresses_of_the_other_kind_stay_when_only_one_kind_is_told() {
    let dns = Dns::start();
    let setup = Weir::with("dns", &dns);
    let _origins = ["127.0.0.1", "127.0.0.2", "::1"].map(|ip| origin(&setup, ip));
    dns.set("app.test", 1, &["127.0.0.1", "::1"]);
    let weir = start(setup, &document("{ backends: ['app.test:{app}'] }"));
    assert_eq!(answers(&weir, 2), ["127.0.0.1", "::1"]);
    dns.fail_ipv6("app.test");
    dns.set("app.test", 1, &["127.0.0.2"]);
    eventually(PATIENCE, || answers(&weir, 2) == ["127.0.0.2", "::1"]);
}

#[test]
fn ipv6_can_be_left_out() {
    let dns = Dns::start();
    let setup = Weir::with("dns", &dns);
    let _origins = ["127.0.0.1", "::1"].map(|ip| origin(&setup, ip));
    dns.set("app.test", 1, &["127.0.0.1", "::1"]);
    let document = document("{ backends: ['app.test:{app}'] }");
    let document = document.replace("timeout: 2s", "timeout: 2s, ipv6: false");
    let weir = start(setup, &document);
    assert_eq!(answers(&weir, 2), ["127.0.0.1", "127.0.0.1"]);
}

#[test]
fn aliases_are_followed_and_expire() {
    let dns = Dns::start();
    let setup = Weir::with("dns", &dns);
    let _origins = [origin(&setup, "127.0.0.1"), origin(&setup, "127.0.0.2")];
    dns.set("blue.test", 3600, &["127.0.0.1"]);
    dns.set("green.test", 3600, &["127.0.0.2"]);
    dns.set_alias("app.test", 1, "blue.test");
    let weir = start(setup, &document("{ backends: ['app.test:{app}'] }"));
    assert_eq!(weir.get("/").text(), "127.0.0.1");
    dns.set_alias("app.test", 1, "green.test");
    eventually(PATIENCE, || weir.get("/").text() == "127.0.0.2");
}

#[test]
fn long_answers_come_over_tcp() {
    let dns = Dns::start();
    dns.truncate();
    let setup = Weir::with("dns", &dns);
    let _origin = origin(&setup, "127.0.0.1");
    dns.set("app.test", 60, &["127.0.0.1"]);
    let weir = start(setup, &document("{ backends: ['app.test:{app}'] }"));
    assert_eq!(weir.get("/").text(), "127.0.0.1");
    assert!(dns.asked_by_tcp() > 0);
}

#[test]
fn broken_name_server_does_not_matter_beside_a_good_one() {
    let (good, broken, silent) = (Dns::start(), Dns::start(), Dns::start());
    let setup = Weir::with("good", &good)
        .with("broken", &broken)
        .with("silent", &silent);
    let _origin = origin(&setup, "127.0.0.1");
    good.set("app.test", 60, &["127.0.0.1"]);
    broken.fail("app.test");
    silent.ignore("app.test");
    let document = one_pool("{ backends: ['app.test:{app}'] }")
        + "resolver: { servers: ['{silent}', '{broken}', '{good}'] }\n";
    let weir = start(setup, &document);
    assert_eq!(weir.get("/").text(), "127.0.0.1");
}

#[test]
fn service_records_bring_hosts_ports_weights_and_backups() {
    let dns = Dns::start();
    let setup = Weir::with("dns", &dns);
    let (mut a, mut b) = (Origin::fixed("a"), Origin::fixed("b"));
    let mut spare = Origin::fixed("spare");
    let port = |origin: &Origin| {
        let address: std::net::SocketAddr = origin.to_string().parse().expect("an address");
        address.port()
    };
    for host in ["a.test", "b.test", "spare.test"] {
        dns.set(host, 60, &["127.0.0.1"]);
    }
    let service = "_http._tcp.app.test";
    dns.set_service(
        service,
        1,
        &[
            (10, 30, port(&a), "a.test"),
            (10, 10, port(&b), "b.test"),
            (20, 1, port(&spare), "spare.test"),
        ],
    );
    let weir = start(
        setup,
        &document("{ backends: [{ srv: _http._tcp.app.test }] }"),
    );
    assert_eq!(answers(&weir, 4), ["a", "a", "a", "b"]);
    a.kill();
    b.kill();
    assert_eq!(weir.get("/").text(), "spare");

    // the servers stay, what is said about them changes
    let next = Origin::fixed("next");
    dns.set_service(
        service,
        1,
        &[
            (10, 0, port(&spare), "spare.test"),
            (20, 0, port(&next), "a.test"),
        ],
    );
    let news = format!(
        "is now 127.0.0.1:{} (weight 1, backup), 127.0.0.1:{} (weight 1) (was ",
        port(&next),
        port(&spare)
    );
    let other_order = format!(
        "is now 127.0.0.1:{} (weight 1), 127.0.0.1:{} (weight 1, backup) (was ",
        port(&spare),
        port(&next)
    );
    eventually(PATIENCE, || {
        let log = weir.error_log();
        log.contains(&news) || log.contains(&other_order)
    });
    assert_eq!(answers(&weir, 3), ["spare", "spare", "spare"]);
    spare.kill();
    assert_eq!(weir.get("/").text(), "next");
}

#[test]
fn name_can_be_resolved_once() {
    let dns = Dns::start();
    let setup = Weir::with("dns", &dns);
    let _origins = [origin(&setup, "127.0.0.1"), origin(&setup, "127.0.0.2")];
    dns.set("app.test", 1, &["127.0.0.1"]);
    dns.set("other.test", 1, &["127.0.0.9"]);
    let document = document(
        "{ backends: [{ addr: 'app.test:{app}', resolve: once }, { addr: 'other.test:{app}', weight: 0 }] }",
    );
    let weir = start(setup, &document);
    dns.set("app.test", 1, &["127.0.0.2"]);
    asked_again(&dns, "other.test", 3);
    assert_eq!(dns.asked("app.test"), 1);
    assert_eq!(weir.get("/").text(), "127.0.0.1");
    // once for each load
    weir.reload(&document);
    assert_eq!(weir.get("/").text(), "127.0.0.2");
}

#[test]
fn interval_of_the_file_goes_before_the_ttl() {
    let dns = Dns::start();
    let setup = Weir::with("dns", &dns);
    let _origins = [origin(&setup, "127.0.0.1"), origin(&setup, "127.0.0.2")];
    dns.set("app.test", 3600, &["127.0.0.1"]);
    let pool = "{ backends: [{ addr: 'app.test:{app}', resolve: 1s }] }";
    let weir = start(setup, &document(pool));
    assert_eq!(weir.get("/").text(), "127.0.0.1");
    dns.set("app.test", 3600, &["127.0.0.2"]);
    eventually(PATIENCE, || weir.get("/").text() == "127.0.0.2");
}

#[test]
fn reload_begins_with_the_addresses_that_are_known() {
    let mut dns = Dns::start();
    let setup = Weir::with("dns", &dns);
    let _origin = origin(&setup, "127.0.0.1");
    dns.set("app.test", 3600, &["127.0.0.1"]);
    let weir = start(setup, &document("{ backends: ['app.test:{app}'] }"));
    let failures = || weir.error_log().matches("does not resolve").count();
    let before = failures();
    dns.kill();
    weir.reload(&document(
        "{ backends: [{ addr: 'app.test:{app}', weight: 2 }] }",
    ));
    assert_eq!(weir.get("/").text(), "127.0.0.1");
    assert_eq!(failures(), before);
}

#[test]
fn reload_goes_on_asking() {
    let dns = Dns::start();
    let setup = Weir::with("dns", &dns);
    let _origins = [origin(&setup, "127.0.0.1"), origin(&setup, "127.0.0.2")];
    dns.set("app.test", 1, &["127.0.0.1"]);
    let weir = start(setup, &document("{ backends: ['app.test:{app}'] }"));
    // the same pool, then another one
    for weight in [1, 1, 2] {
        let pool = format!("{{ backends: [{{ addr: 'app.test:{{app}}', weight: {weight} }}] }}");
        weir.reload(&document(&pool));
    }
    dns.set("app.test", 1, &["127.0.0.2"]);
    eventually(PATIENCE, || weir.get("/").text() == "127.0.0.2");
}

#[test]
fn members_are_probed_as_long_as_they_are_members() {
    let dns = Dns::start();
    let setup = Weir::with("dns", &dns);
    let (old, new) = (origin(&setup, "127.0.0.1"), origin(&setup, "127.0.0.2"));
    dns.set("app.test", 1, &["127.0.0.1"]);
    let pool =
        "{ backends: ['app.test:{app}'], health: { http: { path: /healthz }, interval: 50ms } }";
    let weir = start(setup, &document(pool));
    eventually(PATIENCE, || old.probes() > 0);
    dns.set("app.test", 1, &["127.0.0.2"]);
    eventually(PATIENCE, || new.probes() > 0);
    assert_eq!(weir.get("/").text(), "127.0.0.2");
    let (old_probes, new_probes) = (old.probes(), new.probes());
    eventually(PATIENCE, || new.probes() > new_probes + 3);
    assert!(
        old.probes() <= old_probes + 1,
        "one may have been under way"
    );
}

#[test]
fn check_warns_and_does_not_wait_for_a_silent_name_server() {
    let dns = Dns::start();
    let setup = Weir::with("dns", &dns);
    for name in ["a.test", "b.test", "c.test"] {
        dns.ignore(name);
    }
    let document = document("{ backends: ['a.test:80', 'b.test:80', 'c.test:80'] }");
    setup.write_config(&document.replace("timeout: 2s", "timeout: 1m"));
    let start = Instant::now();
    let run = setup.run(&["check", "-c", "weir.yaml"]);
    assert_eq!(run.status, 0, "{run:?}");
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    let text = run.stdout + &run.stderr;
    for name in ["a.test:80", "b.test:80", "c.test:80"] {
        let warning = format!("`{name}` does not resolve: no answer within 1s");
        assert!(text.contains(&warning), "{text}");
    }
}
