//! Certificates of clients: who is let in, and what is told of them.

use boring::ssl::SslVersion;

use crate::harness::certs::{Authority, Pair};
use crate::harness::client::{Response, get};
use crate::harness::origin::Origin;
use crate::harness::tls_client::{TlsClient, only, show};
use crate::harness::wait::{PATIENCE, eventually};
use crate::harness::{Setup, Weir, dedent};

const VERSIONS: [SslVersion; 2] = [SslVersion::TLS1_2, SslVersion::TLS1_3];

/// A listener that asks for certificates by these rules.
fn document(rules: &str) -> String {
    dedent(&format!(
        "
        listeners:
          https:
            bind: '127.0.0.1:{{https}}'
            tls:
              certificates: {{ cert: server.pem, key: server.key }}
              client_auth: {{ ca: ca.pem, {rules} }}
        log: {{ access: {{ file: access.log, format: '$status $failure $ssl_client_verify' }} }}
        sites:
          all:
            hosts: ['*']
            routes: [{{ respond: {{ body: '$ssl_client_verify $ssl_client_s_dn' }} }}]
        "
    ))
}

struct Scene {
    setup: Setup,
    authority: Authority,
    good: Pair,
    /// Of another authority.
    strange: Pair,
    expired: Pair,
}

fn scene() -> Scene {
    let setup = Setup::new();
    let authority = Authority::new();
    authority.write(setup.dir(), "ca.pem");
    authority.issue(setup.dir(), "server", &["localhost"]);
    Scene {
        good: authority.issue(setup.dir(), "good", &["good.example"]),
        strange: Authority::new().issue(setup.dir(), "strange", &["strange.example"]),
        expired: authority.issue_until(setup.dir(), "expired", &["expired.example"], -1),
        authority,
        setup,
    }
}

#[track_caller]
fn ask(weir: &Weir, client: &TlsClient) -> Response {
    let shaken = client.connect(weir.address("https"), "localhost");
    let mut connection = shaken.expect("a handshake").connection;
    connection.fetch(&get("/")).expect("an answer")
}

#[test]
fn required_certificate_must_be_there_and_trusted() {
    let Scene {
        setup,
        good,
        strange,
        expired,
        ..
    } = scene();
    let weir = setup.start(&document("mode: require"));
    let answer = ask(&weir, &TlsClient::showing(&good));
    assert_eq!(answer.text(), "SUCCESS CN=good.example");
    let answers = [
        ask(&weir, &TlsClient::new()),
        ask(&weir, &TlsClient::showing(&strange)),
        ask(&weir, &TlsClient::showing(&expired)),
    ];
    assert_eq!(answers.map(|answer| answer.status), [400; 3]);
    let mut lines = weir.lines("access.log", 4);
    lines.sort();
    assert_eq!(lines[0], "200 - SUCCESS");
    assert_eq!(lines[1], "400 client_cert FAILED:certificate has expired");
    assert!(lines[2].starts_with("400 client_cert FAILED:"), "{lines:?}");
    assert_eq!(lines[3], "400 no_client_cert NONE");
}

#[test]
fn requested_certificate_may_be_missing_but_not_bad() {
    let Scene {
        setup,
        good,
        strange,
        ..
    } = scene();
    let weir = setup.start(&document("mode: request"));
    assert_eq!(ask(&weir, &TlsClient::new()).text(), "NONE ");
    let answer = ask(&weir, &TlsClient::showing(&good));
    assert_eq!(answer.text(), "SUCCESS CN=good.example");
    assert_eq!(ask(&weir, &TlsClient::showing(&strange)).status, 400);
}

#[test]
fn requests_of_http2_need_the_certificate_too() {
    let weir = scene().setup.start(&document("mode: require"));
    let answer = weir.connect_http2("localhost").fetch(&get("/"));
    assert_eq!(answer.expect("an answer").status, 400);
}

#[test]
fn backend_learns_who_the_client_is_and_nobody_else_tells() {
    let Scene { setup, good, .. } = scene();
    let origin = Origin::echo();
    let headers = [
        ("X-Verify", "$ssl_client_verify"),
        ("X-Subject", "$ssl_client_s_dn"),
        ("X-Issuer", "$ssl_client_i_dn"),
        ("X-Serial", "$ssl_client_serial"),
        ("X-Print", "$ssl_client_fingerprint"),
        ("X-Start", "$ssl_client_v_start"),
        ("X-End", "$ssl_client_v_end"),
        ("X-Remain", "$ssl_client_v_remain"),
        ("X-Cert", "$ssl_client_escaped_cert"),
    ];
    let set: Vec<String> = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}"))
        .collect();
    let route = format!(
        "proxy: app, headers: {{ request: {{ set: {{ {} }} }} }}",
        set.join(", ")
    );
    let answer = "respond: { body: '$ssl_client_verify $ssl_client_s_dn' }";
    let document = document("mode: request").replace(answer, &route);
    let weir = setup
        .with("app", &origin)
        .start(&(document + "pools: { app: { backends: ['{app}'] } }\n"));
    let client = TlsClient::showing(&good);
    ask(&weir, &client);
    let pem = std::fs::read(&good.cert).expect("read");
    let certificate = boring::x509::X509::from_pem(&pem).expect("a certificate");
    let seen = origin.requests().pop().expect("a request");
    let header = |name: &str| seen.header(name).unwrap_or_default().to_owned();
    assert_eq!(header("x-verify"), "SUCCESS");
    assert_eq!(header("x-subject"), "CN=good.example");
    assert_eq!(header("x-issuer"), "CN=weir test authority");
    let serial = certificate.serial_number().to_bn().unwrap();
    assert_eq!(
        header("x-serial"),
        serial.to_hex_str().unwrap().to_uppercase()
    );
    assert_eq!(header("x-print").len(), 40);
    assert_eq!(header("x-start"), certificate.not_before().to_string());
    assert_eq!(header("x-end"), certificate.not_after().to_string());
    assert!(["89", "90"].contains(&&*header("x-remain")), "{seen:?}");
    let escaped = header("x-cert");
    assert!(
        escaped.starts_with("-----BEGIN%20CERTIFICATE-----%0AMI"),
        "{escaped}"
    );
    let unescaped = percent_encoding::percent_decode_str(&escaped).collect::<Vec<u8>>();
    assert_eq!(unescaped, pem);

    // Without a certificate, a client cannot say what only weir may say.
    let shaken = TlsClient::new().connect(weir.address("https"), "localhost");
    let mut connection = shaken.expect("a handshake").connection;
    for (name, value) in [
        ("X-Subject", "CN=admin"),
        ("x-subject", "CN=admin"),
        ("X-Cert", "admin"),
        ("X-Verify", "SUCCESS"),
        // So that what weir says is taken off.
        ("Connection", "X-Verify, X-Subject"),
    ] {
        let request = get("/").header("X-Subject", "CN=root").header(name, value);
        connection.fetch(&request).expect("an answer");
        let seen = origin.requests().pop().expect("a request");
        assert_eq!(seen.header("x-verify"), Some("NONE"), "{name}: {seen:?}");
        assert_eq!(seen.header("x-subject"), None, "{name}: {seen:?}");
        assert_eq!(seen.header("x-cert"), None, "{name}: {seen:?}");
    }
    let mut http2 = weir.connect_http2("localhost");
    let request = get("/").header("X-Subject", "CN=root");
    http2.fetch(&request).expect("an answer");
    let seen = origin.requests().pop().expect("a request");
    assert_eq!(seen.header("x-verify"), Some("NONE"), "{seen:?}");
    assert_eq!(seen.header("x-subject"), None, "{seen:?}");
}

#[test]
fn chain_may_be_as_long_as_the_rules_say() {
    let Scene {
        setup, authority, ..
    } = scene();
    let first = authority.subordinate("first");
    let second = first.subordinate("second");
    let one = first.issue(setup.dir(), "one", &["one.example"]);
    let two = second.issue(setup.dir(), "two", &["two.example"]);
    append(&one, &[&first]);
    append(&two, &[&second, &first]);
    let weir = setup.start(&document("depth: 1"));
    let status = |pair: &Pair| ask(&weir, &TlsClient::showing(pair)).status;
    assert_eq!((status(&one), status(&two)), (200, 400));
    weir.reload(&document("depth: 2"));
    assert_eq!((status(&one), status(&two)), (200, 200));
    weir.reload(&document("depth: 0"));
    assert_eq!((status(&one), status(&two)), (400, 400));
}

fn append(pair: &Pair, chain: &[&Authority]) {
    let mut pem = std::fs::read(&pair.cert).expect("read");
    for authority in chain {
        pem.extend(authority.to_pem());
    }
    std::fs::write(&pair.cert, pem).expect("write");
}

#[test]
fn revoked_certificate_is_refused_also_in_a_resumed_session() {
    let Scene {
        setup,
        authority,
        good,
        ..
    } = scene();
    let other = authority.issue(setup.dir(), "other", &["other.example"]);
    setup.write("crl.pem", authority.revoke(&[]));
    let weir = setup.start(&document("crl: crl.pem"));
    let clients = VERSIONS.map(|version| {
        TlsClient::with(|builder| {
            only(builder, version);
            show(builder, &good);
        })
    });
    for client in &clients {
        assert_eq!(ask(&weir, client).status, 200);
        let shaken = client.connect(weir.address("https"), "localhost");
        assert!(shaken.expect("a handshake").resumed);
    }
    weir.setup().write("crl.pem", authority.revoke(&[&good]));
    weir.reload(&document("crl: crl.pem"));
    for client in &clients {
        assert_eq!(ask(&weir, client).status, 400);
    }
    let answer = ask(&weir, &TlsClient::showing(&other));
    assert_eq!(answer.text(), "SUCCESS CN=other.example");
    let log = weir.lines("access.log", 5);
    let revoked = |line: &&String| **line == "400 client_cert FAILED:certificate revoked";
    assert_eq!(log.iter().filter(revoked).count(), 2, "{log:?}");
}

#[test]
fn session_of_one_listener_is_not_resumed_with_another() {
    let Scene { setup, .. } = scene();
    let document = document("mode: require").replace(
        "listeners:\n",
        "listeners:
  open:
    bind: '127.0.0.1:{open}'
    tls: { certificates: { cert: server.pem, key: server.key } }\n",
    );
    let weir = setup.start(&document);
    for version in VERSIONS {
        let client = TlsClient::of_version(version);
        let connect = |listener| client.connect(weir.address(listener), "localhost").unwrap();
        let answer = connect("open").connection.fetch(&get("/"));
        assert_eq!(answer.unwrap().text(), "NONE ");
        assert!(connect("open").resumed);
        let mut shaken = connect("https");
        assert!(!shaken.resumed);
        assert_eq!(shaken.connection.fetch(&get("/")).unwrap().status, 400);
    }
}

#[test]
fn bad_files_of_rules_are_mistakes_of_the_file() {
    let Scene {
        setup, authority, ..
    } = scene();
    let list = authority.revoke(&[]);
    let mixed = list.clone() + &String::from_utf8(authority.to_pem()).expect("text");
    let setup = setup
        .file("garbage.pem", "garbage")
        .file("crl.pem", list)
        .file("mixed.pem", mixed);
    for (rules, place, word) in [
        ("crl: none.pem", "client_auth.crl", "no such file"),
        ("crl: garbage.pem", "client_auth.crl", "revoked"),
        ("crl: mixed.pem", "client_auth.crl", "revoked"),
        ("mode: maybe", "client_auth.mode", "maybe"),
    ] {
        setup.write_config(&document(rules));
        let run = setup.run(&["-t", "-c", "weir.yaml"]);
        assert_eq!(run.status, 1, "{rules}: {run:?}");
        assert!(run.stderr.contains(place), "{rules}: {run:?}");
        assert!(run.stderr.contains(word), "{rules}: {run:?}");
    }
    for (ca, word) in [("none.pem", "no such file"), ("crl.pem", "authorities")] {
        setup.write_config(&document("").replace("ca.pem", ca));
        let run = setup.run(&["-t", "-c", "weir.yaml"]);
        assert!(run.stderr.contains("client_auth.ca"), "{ca}: {run:?}");
        assert!(run.stderr.contains(word), "{ca}: {run:?}");
    }
}

#[test]
fn list_of_revoked_certificates_is_watched() {
    let Scene {
        setup,
        authority,
        good,
        ..
    } = scene();
    setup.write("crl.pem", authority.revoke(&[]));
    let setup = setup.allow("client_auth.crl").allow("reload failed");
    let weir = setup.start(&(document("crl: crl.pem") + "watch: true\n"));
    let status = || ask(&weir, &TlsClient::showing(&good)).status;
    assert_eq!(status(), 200);
    weir.setup().write("crl.pem", "garbage");
    eventually(PATIENCE, || weir.error_log().contains("reload failed"));
    assert_eq!(status(), 200);
    weir.setup().write("crl.pem", authority.revoke(&[&good]));
    eventually(PATIENCE, || status() == 400);
}
