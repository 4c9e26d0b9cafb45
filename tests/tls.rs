//! Which certificate a client is shown, and what becomes of bad ones.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use boring::pkey::{Id, PKey};
use boring::ssl::{HandshakeError, SslConnector, SslMethod, SslVersion};
use boring::symm::Cipher;
use socket2::{Domain, Socket, Type};

use crate::harness::certs::{Authority, Word};
use crate::harness::client::{Connection, get};
use crate::harness::tls_client::{TlsClient, only};
use crate::harness::wait::{PATIENCE, eventually};
use crate::harness::{Setup, Weir, dedent};

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
    weir.reload(DOCUMENT);
    assert_shown(&weir, "www.shop.example", "renewed.example", "exact");
}

/// The names of the certificate that a client is shown.
fn shown(weir: &Weir, server_name: &str) -> Vec<String> {
    weir.connect_tls(server_name).certificate
}

/// What `weir status` says of the certificate of a site.
fn status_of_certificate(weir: &Weir, owner: &str) -> serde_json::Value {
    let run = weir.setup().run(&["status", "-c", "weir.yaml", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&run.stdout).expect("JSON");
    assert_eq!(status["generation"], 1, "nothing was reloaded");
    let certificates = status["certificates"].as_array().expect("a list");
    let own = certificates.iter().find(|one| one["owner"] == owner);
    own.expect("a certificate of it").clone()
}

#[test]
fn renewed_certificate_is_shown_without_a_reload() {
    let weir = with_pairs().start(DOCUMENT);
    let mut kept = weir.connect_tls("www.shop.example");
    // As a client of ACME does: others, over links that are turned.
    let authority = Authority::new();
    authority.issue_until(weir.dir(), "new", &["renewed.example"], 20);
    for end in ["key", "pem"] {
        let path = |name: &str| weir.dir().join(format!("{name}.{end}"));
        std::os::unix::fs::symlink(path("new"), path("link")).expect("link");
        std::fs::rename(path("link"), path("exact")).expect("rename");
    }
    eventually(PATIENCE, || {
        shown(&weir, "www.shop.example") == ["renewed.example"]
    });
    let status = status_of_certificate(&weir, "sites.exact.tls");
    assert_eq!(status["names"][0], "renewed.example");
    assert!(status["days_left"].as_i64() < Some(21), "{status}");
    let log = weir.error_log();
    let told = "sites.exact.tls: certificate of `renewed.example` renewed, days left: ";
    assert!(log.contains(told), "{log}");
    assert_shown(&weir, "api.shop.example", "*.shop.example", "wild");
    let answer = kept.fetch(&get("/").host("www.shop.example"));
    assert_eq!(answer.expect("the old connection goes on").text(), "exact");
    weir.reload(DOCUMENT);
    assert_shown(&weir, "www.shop.example", "renewed.example", "exact");
}

#[test]
fn bad_renewal_is_refused_and_keeps_nothing_else_from_being_renewed() {
    let setup = with_pairs().allow("the new certificate is refused");
    let weir = setup.start(&format!("watch: true\n{}", dedent(DOCUMENT)));
    let authority = Authority::new();
    weir.setup().write("exact.pem", "-----BEGIN");
    authority.issue(weir.dir(), "wild", &["*.renewed.example"]);
    let refused = "sites.exact.tls: the new certificate is refused: cert: ";
    eventually(PATIENCE, || weir.error_log().contains(refused));
    eventually(PATIENCE, || {
        shown(&weir, "api.shop.example") == ["*.renewed.example"]
    });
    assert_shown(&weir, "www.shop.example", "www.shop.example", "exact");
    let status = status_of_certificate(&weir, "sites.exact.tls");
    assert_eq!(status["refused"], "cert: no certificate in it", "{status}");
    let page = weir.setup().run(&["status", "-c", "weir.yaml"]).stdout;
    assert!(
        page.contains("new files of sites.exact.tls are refused: cert: "),
        "{page}"
    );

    // A key of another one.
    authority.issue(weir.dir(), "exact", &["renewed.example"]);
    weir.setup()
        .write("exact.key", weir.setup().read("other.key"));
    eventually(PATIENCE, || {
        weir.error_log().contains("not the certificate's")
    });
    assert_shown(&weir, "www.shop.example", "www.shop.example", "exact");

    authority.issue(weir.dir(), "exact", &["renewed.example"]);
    eventually(PATIENCE, || {
        shown(&weir, "www.shop.example") == ["renewed.example"]
    });
    let status = status_of_certificate(&weir, "sites.exact.tls");
    assert!(status["refused"].is_null(), "{status}");
    let log = weir.error_log();
    assert_eq!(log.matches(" is refused").count(), 2, "{log}");
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

/// A listener for all hosts whose `tls` has these keys as well.
fn document(tls: &str) -> String {
    format!(
        "
        listeners:
          https:
            bind: '127.0.0.1:{{https}}'
            tls: {{ certificates: [{{ cert: fallback.pem, key: fallback.key }}], {tls} }}
        sites:
          all:
            hosts: ['*']
            routes: [{{ respond: {{ body: '$ssl_protocol $ssl_curve $ssl_session_reused' }} }}]
        "
    )
}

#[test]
fn key_exchange_withstands_quantum_computers_where_the_client_does() {
    let weir = with_pairs().start(&document(""));
    for (offered, chosen) in [
        ("X25519:X25519MLKEM768", "X25519MLKEM768"),
        ("P-384:X25519", "X25519"),
        ("P-256", "P-256"),
    ] {
        let client = TlsClient::with(|builder| builder.set_curves_list(offered).unwrap());
        let mut shaken = client.connect(weir.address("https"), "").unwrap();
        assert_eq!(shaken.group, chosen);
        let answer = shaken.connection.fetch(&get("/")).unwrap();
        assert_eq!(answer.text(), format!("TLSv1.3 {chosen} ."));
    }
}

#[test]
fn groups_and_ciphers_can_be_chosen() {
    let tls = "groups: [P-384], ciphers: [ECDHE-ECDSA-AES256-GCM-SHA384]";
    let weir = with_pairs().start(&document(tls));
    let client = TlsClient::of_version(SslVersion::TLS1_2);
    let shaken = client.connect(weir.address("https"), "").unwrap();
    assert_eq!(shaken.group, "P-384");
    assert_eq!(shaken.cipher, "ECDHE-ECDSA-AES256-GCM-SHA384");
    let other = TlsClient::with(|builder| builder.set_curves_list("X25519").unwrap());
    assert!(other.connect(weir.address("https"), "").is_err());
}

#[test]
fn server_chooses_the_cipher_but_for_what_is_equally_good() {
    let weir = with_pairs().start(&document(""));
    let chosen = |offered: &str| {
        let client = TlsClient::with(|builder| {
            only(builder, SslVersion::TLS1_2);
            builder.set_cipher_list(offered).unwrap();
        });
        let shaken = client.connect(weir.address("https"), "");
        shaken.map(|shaken| shaken.cipher)
    };
    let (aes, chacha) = (
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
    );
    let long = "ECDHE-ECDSA-AES256-GCM-SHA384";
    assert_eq!(chosen(&format!("{long}:{aes}")).unwrap(), aes);
    assert_eq!(chosen(&format!("{chacha}:{aes}")).unwrap(), chacha);
    assert_eq!(chosen(&format!("{aes}:{chacha}")).unwrap(), aes);
    assert!(chosen("ECDHE-ECDSA-AES128-SHA").is_err());
}

#[test]
fn nothing_is_signed_with_sha1() {
    let weir = with_pairs().start(&document(""));
    let signed = |offered: &str| {
        let client = TlsClient::with(|builder| {
            only(builder, SslVersion::TLS1_2);
            builder.set_sigalgs_list(offered).unwrap();
        });
        client.connect(weir.address("https"), "").is_ok()
    };
    assert!(signed("ECDSA+SHA1:ECDSA+SHA256"));
    assert!(!signed("ECDSA+SHA1"));
}

#[test]
fn unknown_groups_and_ciphers_are_mistakes_of_the_file() {
    let setup = with_pairs();
    for (keys, word) in [
        ("groups: [X25519, P-257]", "no group named `P-257`"),
        ("groups: []", "at least one group"),
        ("ciphers: [ECDHE-RSA]", "no cipher suite named `ECDHE-RSA`"),
        (
            "ciphers: ['HIGH:!aNULL']",
            "no cipher suite named `HIGH:!aNULL`",
        ),
        ("ciphers: [ALL]", "no cipher suite named `ALL`"),
        ("ciphers: [TLS_AES_128_GCM_SHA256]", "cannot be chosen"),
    ] {
        setup.write_config(&document(keys));
        let run = setup.run(&["-t", "-c", "weir.yaml"]);
        assert_eq!(run.status, 1, "{keys}: {run:?}");
        assert!(run.stderr.contains(word), "{keys}: {run:?}");
    }
}

#[test]
fn client_is_shown_the_certificate_that_it_can_check() {
    let setup = Setup::new();
    let authority = Authority::new();
    authority.issue_rsa(setup.dir(), "rsa", &["www.shop.example"]);
    authority.issue(setup.dir(), "ecdsa", &["www.shop.example"]);
    let weir = setup.start(
        "
        listeners: { https: { bind: '127.0.0.1:{https}', tls: {} } }
        sites:
          shop:
            hosts: [www.shop.example]
            tls: [{ cert: rsa.pem, key: rsa.key }, { cert: ecdsa.pem, key: ecdsa.key }]
            routes: [{ respond: { body: shop } }]
        ",
    );
    let shown = |client: TlsClient| {
        let shaken = client.connect(weir.address("https"), "www.shop.example");
        shaken.unwrap().key.unwrap()
    };
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        assert_eq!(shown(TlsClient::of_version(version)), Id::EC);
        let signs = |list: &str| {
            TlsClient::with(|builder| {
                only(builder, version);
                builder.set_sigalgs_list(list).unwrap();
            })
        };
        assert_eq!(shown(signs("RSA-PSS+SHA256:RSA+SHA256")), Id::RSA);
        assert_eq!(shown(signs("RSA-PSS+SHA256:ECDSA+SHA256")), Id::EC);
    }
    let suites = |list: &str| {
        TlsClient::with(|builder| {
            only(builder, SslVersion::TLS1_2);
            builder.set_cipher_list(list).unwrap();
        })
    };
    assert_eq!(shown(suites("ECDHE-RSA-AES128-GCM-SHA256")), Id::RSA);
    assert_eq!(shown(suites("ECDHE-ECDSA-AES128-GCM-SHA256")), Id::EC);
}

#[test]
fn encrypted_key_is_opened_with_a_password_of_a_file() {
    let setup = with_pairs()
        .file("passwords", "wrong\r\nright\n")
        .file("wrong", "wrong\n")
        .file("empty", "\n");
    let pem = setup.read("exact.key");
    let key = PKey::private_key_from_pem(pem.as_bytes()).unwrap();
    let cipher = Cipher::aes_256_cbc();
    let encrypted = key.private_key_to_pem_pkcs8_passphrase(cipher, b"right");
    setup.write("exact.key", encrypted.unwrap());
    let with = |more: &str| DOCUMENT.replace("exact.key }", &format!("exact.key{more} }}"));
    for (more, place, word) in [
        ("", "tls.key", "`password_file`"),
        (", password_file: wrong", "tls.key", "no password"),
        (
            ", password_file: empty",
            "password_file",
            "no password in it",
        ),
        (", password_file: none", "password_file", "no such file"),
    ] {
        setup.write_config(&with(more));
        let run = setup.run(&["-t", "-c", "weir.yaml"]);
        assert_eq!(run.status, 1, "{more}: {run:?}");
        assert!(run.stderr.contains(place), "{more}: {run:?}");
        assert!(run.stderr.contains(word), "{more}: {run:?}");
    }
    let weir = setup.start(&with(", password_file: passwords"));
    assert_shown(&weir, "www.shop.example", "www.shop.example", "exact");
}

/// What two connections in a row of `client` come to: whether the second resumes the session of the first.
#[track_caller]
fn resumes(client: &TlsClient, one: &Weir, other: &Weir) -> bool {
    visit(client, one);
    visit(client, other)
}

/// Whether a session was resumed; the next visit has one to resume.
#[track_caller]
fn visit(client: &TlsClient, weir: &Weir) -> bool {
    let shaken = client.connect(weir.address("https"), "fallback.example");
    let mut shaken = shaken.expect("a handshake");
    let answer = shaken.connection.fetch(&get("/")).expect("an answer");
    let reused = if shaken.resumed { " r" } else { " ." };
    assert!(answer.text().ends_with(reused), "{}", answer.text());
    shaken.resumed
}

const VERSIONS: [SslVersion; 2] = [SslVersion::TLS1_2, SslVersion::TLS1_3];

#[test]
fn sessions_are_resumed_over_a_reload_that_changes_the_listener() {
    let weir = with_pairs().start(&document(""));
    let clients = VERSIONS.map(TlsClient::of_version);
    for client in &clients {
        assert!(resumes(client, &weir, &weir));
    }
    weir.reload(&document("groups: [P-256]"));
    for client in &clients {
        assert!(visit(client, &weir));
    }
}

#[test]
fn sessions_are_resumed_by_the_next_process() {
    let mut weir = with_pairs().start(&document(""));
    let clients = VERSIONS.map(TlsClient::of_version);
    for client in &clients {
        assert!(resumes(client, &weir, &weir));
    }
    let mut old = weir.upgrade();
    assert!(old.wait().is_some_and(|status| status.success()));
    for client in &clients {
        assert!(visit(client, &weir));
    }
}

#[test]
fn sessions_are_resumed_by_nodes_that_share_keys() {
    let [one, two, three] = [1, 2, 3].map(|byte| vec![byte; 80]);
    let node = |keys: &str| {
        let setup = with_pairs().file("one", &one).file("two", &two);
        setup
            .file("three", &three[..48])
            .start(&document(&format!("ticket_keys: {keys}")))
    };
    let (new, old, stranger) = (node("[two, one]"), node("one"), node("[three]"));
    for version in VERSIONS {
        let client = || TlsClient::of_version(version);
        assert!(resumes(&client(), &old, &new), "the second decrypts");
        assert!(!resumes(&client(), &new, &old), "the first encrypts");
        assert!(!resumes(&client(), &old, &stranger));
        assert!(resumes(&client(), &stranger, &stranger));
    }
    // What was resumed with an old key goes on with the new one.
    let client = TlsClient::of_version(SslVersion::TLS1_2);
    assert!(resumes(&client, &old, &new));
    assert!(!visit(&client, &old));
}

#[test]
fn bad_ticket_keys_are_mistakes_of_the_file() {
    let setup = with_pairs()
        .file("short", "too short")
        .file("good", [7; 48]);
    for (keys, word) in [
        ("[good, short]", "this file has 9"),
        ("none", "no such file"),
        ("[]", "at least one file"),
    ] {
        setup.write_config(&document(&format!("ticket_keys: {keys}")));
        let run = setup.run(&["-t", "-c", "weir.yaml"]);
        assert_eq!(run.status, 1, "{keys}: {run:?}");
        assert!(run.stderr.contains("ticket_keys"), "{keys}: {run:?}");
        assert!(run.stderr.contains(word), "{keys}: {run:?}");
    }
}

/// Asks for `host` on a connection for `server_name`.
#[track_caller]
fn status_of(weir: &Weir, server_name: &str, host: &str) -> u16 {
    let mut connection = weir.connect_tls(server_name);
    let request = get("/").host(host);
    connection.fetch(&request).expect("an answer").status
}

#[test]
fn host_of_another_certificate_is_misdirected() {
    let document = DOCUMENT.to_owned()
        + "
      other:
        hosts: [other.example]
        routes: [{ respond: { body: other } }]
      shared:
        hosts: [shared.example]
        tls: { cert: exact.pem, key: exact.key }
        routes: [{ respond: { body: shared } }]
    ";
    let weir = with_pairs().start(&document);
    for (server_name, host, status) in [
        ("www.shop.example", "www.shop.example", 200),
        ("www.shop.example", "WWW.SHOP.example:443", 200),
        ("www.shop.example", "api.shop.example", 421),
        ("www.shop.example", "other.example", 421),
        ("api.shop.example", "web.shop.example", 200),
        ("other.example", "www.shop.example", 421),
        // the same certificate
        ("other.example", "whoever.example", 200),
        ("www.shop.example", "shared.example", 200),
        // nothing was chosen
        ("", "www.shop.example", 200),
    ] {
        let found = status_of(&weir, server_name, host);
        assert_eq!(found, status, "`{host}` on `{server_name}`");
    }
    let mut http2 = weir.connect_http2("www.shop.example");
    let mut status = |host: &str| http2.fetch(&get("/").host(host)).unwrap().status;
    assert_eq!(status("shared.example"), 200);
    assert_eq!(status("other.example"), 421);
    assert_eq!(status("www.shop.example"), 200);
}

#[test]
fn unknown_server_names_can_be_refused() {
    let refusing = DOCUMENT.replace(
        "tls: { certificates",
        "tls: { reject_unknown_sni: true, certificates",
    );
    let weir = with_pairs().start(&refusing);
    assert_shown(&weir, "www.shop.example", "www.shop.example", "exact");
    assert_shown(&weir, "api.shop.example", "*.shop.example", "wild");
    assert_shown(&weir, "fallback.example", "fallback.example", "rest");
    for name in ["unknown.example", ""] {
        let refused = TlsClient::new().connect(weir.address("https"), name);
        let error = refused.err().expect("no handshake").to_string();
        assert!(error.contains("UNRECOGNIZED_NAME"), "{error}");
    }
}

#[test]
fn handshakes_of_one_client_wait_for_each_other_and_others_do_not() {
    let document = DOCUMENT.replace(
        "        tls: { certificates",
        "        limits: { handshakes: 2 }
        tls: { certificates",
    );
    let weir = with_pairs().start(&document);
    let greeting = client_hello();
    let mut byte = [0];
    // They get an answer, and leave it at that.
    let idle = [(), ()].map(|()| {
        let mut stream = TcpStream::connect(weir.address("https")).expect("connect");
        stream.write_all(&greeting).expect("send");
        stream.read_exact(&mut byte).expect("an answer");
        stream
    });
    let mut third = TcpStream::connect(weir.address("https")).expect("connect");
    third.write_all(&greeting).expect("send");
    let patience = Duration::from_millis(300);
    third.set_read_timeout(Some(patience)).expect("set");
    let waits = third.read(&mut byte).expect_err("no answer yet");
    assert_eq!(waits.kind(), ErrorKind::WouldBlock);

    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let other: SocketAddr = "127.0.0.2:0".parse().expect("an address");
    socket.bind(&other.into()).expect("bind");
    socket
        .connect(&weir.address("https").into())
        .expect("connect");
    let mut other = TcpStream::from(socket);
    other.write_all(&greeting).expect("send");
    other.read_exact(&mut byte).expect("an answer at once");

    drop(idle);
    third.set_read_timeout(None).expect("set");
    third.read_exact(&mut byte).expect("an answer in turn");
    const HANDSHAKE: u8 = 22;
    assert_eq!(byte[0], HANDSHAKE);
}

#[test]
fn handshake_ends_in_time_also_while_it_waits_for_its_turn() {
    let document = DOCUMENT.replace(
        "        tls: { certificates",
        "        limits: { handshakes: 1 }
        tls: { handshake_timeout: 500ms, certificates",
    );
    let weir = with_pairs().start(&document);
    let greeting = client_hello();
    let begun = Instant::now();
    let streams = [&greeting[..greeting.len() / 2], &greeting].map(|bytes| {
        let mut stream = TcpStream::connect(weir.address("https")).expect("connect");
        stream.write_all(bytes).expect("send");
        stream
    });
    for mut stream in streams {
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        match stream.read_to_end(&mut Vec::new()) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => panic!("it goes on"),
            _ => assert!(begun.elapsed() >= Duration::from_millis(500)),
        }
    }
    assert_shown(&weir, "www.shop.example", "www.shop.example", "exact");
}

/// What a client says first.
fn client_hello() -> Vec<u8> {
    #[derive(Debug)]
    struct Deaf(Vec<u8>);
    impl Write for Deaf {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    impl Read for Deaf {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(ErrorKind::WouldBlock.into())
        }
    }
    let connector = SslConnector::builder(SslMethod::tls()).expect("a connector");
    match connector
        .build()
        .connect("www.shop.example", Deaf(Vec::new()))
    {
        Err(HandshakeError::WouldBlock(midway)) => midway.get_ref().0.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn secrets_are_logged_only_where_the_file_says_so() {
    let weir = with_pairs().start(&document("key_log: keys.log"));
    let said = weir.error_log();
    let warned = |line: &str| line.contains("WARN") && line.contains("secrets of all connections");
    assert!(said.lines().any(warned), "{said}");
    visit(&TlsClient::new(), &weir);
    let keys = weir.setup().read("keys.log");
    assert!(keys.contains("CLIENT_TRAFFIC_SECRET_0 "), "{keys}");
    assert!(keys.ends_with('\n'), "{keys}");
    let mode = std::fs::metadata(weir.dir().join("keys.log"));
    assert_eq!(mode.expect("a file").permissions().mode() & 0o777, 0o600);
}

#[test]
fn status_and_log_tell_when_certificates_end() {
    let setup = with_pairs();
    let authority = Authority::new();
    authority.issue_until(setup.dir(), "exact", &["www.shop.example"], -1);
    authority.issue_until(setup.dir(), "wild", &["*.shop.example"], 13);
    let weir = setup.start(DOCUMENT);
    let run = weir.setup().run(&["status", "-c", "weir.yaml", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&run.stdout).expect("JSON");
    let certificates = status["certificates"].as_array().expect("a list");
    let told: Vec<_> = certificates
        .iter()
        .map(|one| {
            let days = one["days_left"].as_i64().expect("a number");
            (one["owner"].as_str().unwrap(), &one["names"][0], days)
        })
        .collect();
    assert_eq!(told.len(), 3, "{told:?}");
    assert_eq!(told[0].0, "listeners.https.tls.certificates");
    assert!(told[0].2 >= 89, "{told:?}");
    assert_eq!(told[1].0, "sites.exact.tls");
    assert_eq!(told[1].1, "www.shop.example");
    assert!((-2..0).contains(&told[1].2), "{told:?}");
    assert_eq!(told[2].0, "sites.wild.tls");
    assert!((12..14).contains(&told[2].2), "{told:?}");
    let page = weir.setup().run(&["status", "-c", "weir.yaml"]).stdout;
    assert!(page.contains("sites.wild.tls"), "{page}");
    assert!(page.contains("DAYS LEFT"), "{page}");
    eventually(PATIENCE, || {
        let log = weir.error_log();
        log.contains("certificate of `www.shop.example` has expired")
            && log.contains("certificate of `*.shop.example`: days left: 1")
            && !log.contains("fallback.example")
    });
}

#[test]
fn answer_of_the_authority_is_shown_while_it_counts() {
    let setup = Setup::new();
    let authority = Authority::new();
    let pair = authority.issue(setup.dir(), "fallback", &["fallback.example"]);
    let other = authority.issue(setup.dir(), "other", &["other.example"]);
    let with_ocsp = document("").replace("fallback.key }", "fallback.key, ocsp: answer.der }");
    for (answer, word) in [
        (b"garbage".to_vec(), "not a successful OCSP response"),
        (
            authority.answer(&other, Word::Good, 1),
            "another certificate",
        ),
        (
            Authority::new()
                .subordinate("x")
                .answer(&pair, Word::Good, 1),
            "another certificate",
        ),
        (authority.answer(&pair, Word::Revoked, 1), "revoked"),
    ] {
        setup.write("answer.der", answer);
        setup.write_config(&with_ocsp);
        let run = setup.run(&["-t", "-c", "weir.yaml"]);
        assert_eq!(run.status, 1, "{word}: {run:?}");
        assert!(run.stderr.contains("certificates[0].ocsp"), "{run:?}");
        assert!(run.stderr.contains(word), "{word}: {run:?}");
    }
    let good = authority.answer(&pair, Word::Good, 1);
    setup.write("answer.der", &good);
    let weir = setup
        .allow("revoked")
        .allow("reload failed")
        .start(&with_ocsp);
    let shown = |version| {
        let client = TlsClient::of_version(version);
        client.connect(weir.address("https"), "").unwrap().ocsp
    };
    for version in VERSIONS {
        assert_eq!(shown(version).as_ref(), Some(&good));
    }
    weir.setup()
        .write("answer.der", authority.answer(&pair, Word::Revoked, 1));
    weir.reload_in_vain(&with_ocsp);
    assert_eq!(shown(SslVersion::TLS1_3).as_ref(), Some(&good));
    weir.setup()
        .write("answer.der", authority.answer(&pair, Word::Good, -1));
    weir.reload(&with_ocsp);
    assert_eq!(shown(SslVersion::TLS1_3), None);
    let log = weir.error_log();
    assert!(log.contains("out of date"), "{log}");
}
