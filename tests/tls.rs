//! Which certificate a client is shown, and what becomes of bad ones.

use boring::ssl::SslVersion;

use crate::harness::certs::Authority;
use crate::harness::client::{Connection, get};
use crate::harness::{Setup, Weir};

/// Pairs `exact`, `wild` and `fallback` in the folder, and sites that use them.
const DOCUMENT: &str = "
    listeners:
      https:
        bind: '127.0.0.1:{https}'
        tls: { certificates: [{ cert: fallback.pem, key: fallback.key }] }
    sites:
      exact:
        hosts: [www.shop.example]
        tls: { cert: exact.pem, key: exact.key }
        routes: [{ respond: { body: exact } }]
      wild:
        hosts: ['*.shop.example']
        tls: [{ cert: wild.pem, key: wild.key }]
        routes: [{ respond: { body: wild } }]
      rest:
        hosts: ['*']
        routes: [{ respond: { body: rest } }]
    ";

fn with_pairs() -> Setup {
    let setup = Setup::new();
    let authority = Authority::new();
    for (file, name) in [
        ("exact", "www.shop.example"),
        ("wild", "*.shop.example"),
        ("fallback", "fallback.example"),
        ("other", "other.example"),
    ] {
        authority.issue(setup.dir(), file, &[name]);
    }
    setup
}

#[track_caller]
fn assert_shown(weir: &Weir, server_name: &str, certificate: &str, body: &str) {
    let mut connection = weir.connect_tls(server_name);
    assert_eq!(connection.certificate, [certificate], "for `{server_name}`");
    let host = if server_name.is_empty() {
        "a"
    } else {
        server_name
    };
    let answer = connection.fetch(&get("/").host(host)).expect("an answer");
    assert_eq!(answer.text(), body, "for `{server_name}`");
}

#[test]
fn certificate_is_chosen_by_server_name() {
    let weir = with_pairs().start(DOCUMENT);
    assert_shown(&weir, "www.shop.example", "www.shop.example", "exact");
    assert_shown(&weir, "WWW.Shop.Example", "www.shop.example", "exact");
    assert_shown(&weir, "api.shop.example", "*.shop.example", "wild");
    assert_shown(&weir, "unknown.example", "fallback.example", "rest");
    assert_shown(&weir, "", "fallback.example", "rest");
}

#[test]
fn certificate_is_chosen_by_server_name_in_http2() {
    let weir = with_pairs().start(DOCUMENT);
    let request = get("/").host("www.shop.example");
    let answer = weir.connect_http2("www.shop.example").fetch(&request);
    assert_eq!(answer.expect("an answer").text(), "exact");
}

#[test]
fn new_certificate_is_shown_after_a_reload() {
    let weir = with_pairs().start(DOCUMENT);
    let mut kept = weir.connect_tls("www.shop.example");
    weir.reload(&DOCUMENT.replace("exact.pem, key: exact.key", "other.pem, key: other.key"));
    assert_shown(&weir, "www.shop.example", "other.example", "exact");
    let answer = kept.fetch(&get("/").host("www.shop.example"));
    assert_eq!(answer.expect("the old connection goes on").text(), "exact");
}

#[test]
fn renewed_certificate_of_the_same_file_is_shown_after_a_reload() {
    let weir = with_pairs().start(DOCUMENT);
    Authority::new().issue(weir.dir(), "exact", &["renewed.example"]);
    assert_shown(&weir, "www.shop.example", "www.shop.example", "exact");
    weir.reload(DOCUMENT);
    assert_shown(&weir, "www.shop.example", "renewed.example", "exact");
}

#[test]
fn self_signed_certificate_is_made_for_the_hosts_of_the_site() {
    let weir = Weir::start(
        "
        listeners: { https: { bind: '127.0.0.1:{https}', tls: {} } }
        sites:
          dev:
            hosts: [dev.example, '*.dev.example']
            tls: { self_signed: true }
            routes: [{ respond: { body: dev } }]
        ",
    );
    let names = weir.connect_tls("dev.example").certificate;
    assert!(names.contains(&"dev.example".to_owned()), "{names:?}");
    assert!(names.contains(&"*.dev.example".to_owned()), "{names:?}");
}

#[test]
fn old_protocol_versions_are_refused() {
    let weir = with_pairs().start(DOCUMENT);
    let connect =
        |newest| Connection::tls_within(weir.address("https"), "www.shop.example", Some(newest));
    assert!(connect(SslVersion::TLS1_1).is_err());
    assert!(connect(SslVersion::TLS1_2).is_ok());
    assert!(connect(SslVersion::TLS1_3).is_ok());
}

#[test]
fn newest_version_can_be_demanded() {
    let document = DOCUMENT.replace(
        "tls: { certificates",
        "tls: { min_version: '1.3', certificates",
    );
    let weir = with_pairs().start(&document);
    let connect =
        |newest| Connection::tls_within(weir.address("https"), "www.shop.example", Some(newest));
    assert!(connect(SslVersion::TLS1_2).is_err());
    assert!(connect(SslVersion::TLS1_3).is_ok());
}

#[test]
fn plain_bytes_on_a_tls_listener_do_no_harm() {
    let weir = with_pairs().start(DOCUMENT);
    let mut connection = Connection::tcp(weir.address("https")).expect("connect");
    let answer = connection.fetch(&get("/"));
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status == 400));
    assert_shown(&weir, "www.shop.example", "www.shop.example", "exact");
}

#[test]
fn bad_pairs_are_mistakes_of_the_file() {
    let setup = with_pairs().file("garbage.pem", "not a certificate");
    for (bad, word) in [
        ("{ cert: exact.pem, key: wild.key }", "wild.key"),
        ("{ cert: none.pem, key: exact.key }", "none.pem"),
        ("{ cert: exact.pem, key: none.key }", "none.key"),
        ("{ cert: garbage.pem, key: exact.key }", "garbage.pem"),
        ("{ cert: exact.pem, key: garbage.pem }", "garbage.pem"),
    ] {
        setup.write_config(&DOCUMENT.replace("{ cert: exact.pem, key: exact.key }", bad));
        let run = setup.run(&["-t", "-c", "weir.yaml"]);
        assert_eq!(run.status, 1, "{bad}: {run:?}");
        assert!(run.stderr.contains("sites.exact.tls"), "{bad}: {run:?}");
        assert!(run.stderr.contains(word), "{bad}: {run:?}");
    }
}

#[test]
fn bad_pair_in_a_reload_changes_nothing() {
    let setup = with_pairs().allow("reload failed").allow("weir.yaml");
    let weir = setup.start(DOCUMENT);
    let said = weir.reload_in_vain(&DOCUMENT.replace("exact.key", "wild.key"));
    assert!(said.contains("sites.exact.tls"), "{said}");
    assert_shown(&weir, "www.shop.example", "www.shop.example", "exact");
}

#[test]
fn bytes_that_are_not_http_are_refused_inside_of_tls() {
    let weir = with_pairs().start(DOCUMENT);
    let mut connection = weir.connect_tls("www.shop.example");
    let good = "GET / HTTP/1.1\r\nHost: www.shop.example\r\n\r\n";
    let sent = connection.send(format!("{good}GARBAGE\r\n\r\n").as_bytes());
    sent.expect("send");
    assert_eq!(connection.read().expect("an answer").text(), "exact");
    let answer = connection.read().expect("an answer");
    assert_eq!(answer.status, 400);
    assert_eq!(answer.header("server"), Some("weir"));
    connection.read_close().expect("a clean end");
}
