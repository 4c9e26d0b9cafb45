use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use http::Version;

use super::*;
use crate::exchange::Failure;
use crate::exchange::cx::{Connection, TlsFacts, Try};
use crate::issue::Sources;

fn compile(stage: Stage, text: &str, captures: &[&str]) -> Result<Text, String> {
    let sources = Sources::default();
    let mut b = Build::new(&sources);
    b.captures = captures.iter().map(|&name| name.to_owned()).collect();
    let text = Text::compile_for(stage, &At::Root, text, &mut b);
    let issue = b.issues.0.pop();
    text.ok_or_else(|| {
        let issue = issue.expect("an issue says why there is no text");
        [issue.message, issue.hint.unwrap_or_default()].join("; ")
    })
}

fn cx() -> Cx {
    let since = Instant::now();
    let connection = Connection {
        number: 7,
        peer: Some("192.0.2.1:40000".parse().unwrap()),
        local: Some("[2001:db8::1]:443".parse().unwrap()),
        listener: "https".into(),
        tls: Some(TlsFacts {
            version: "TLSv1.3",
            cipher: "TLS_AES_128_GCM_SHA256",
            server_name: "shop.example".into(),
            alpn: "h2",
            ..TlsFacts::default()
        }),
        requests: 3.into(),
        since: Some(since),
        ..Connection::default()
    };
    let mut cx = Cx::new(since + Duration::from_secs(1), Arc::new(connection));
    cx.ended = Some(cx.started + Duration::from_millis(1042));
    cx.host = "shop.example".into();
    cx.path = "/a b".into();
    cx.captures = vec!["42".into()];
    cx.request_id = "id-1".to_owned().into();
    cx.site = Some("shop".into());
    cx.server_name = Some("shop.example".into());
    cx.status = 200;
    cx.body_bytes_sent = 5;
    cx.bytes_sent = 105;
    cx.request_length = 80;
    let attempt = |backend: &str, connect, header, response, status| Try {
        backend: backend.into(),
        started: cx.started,
        connect,
        header,
        response,
        status,
        head: 0,
        length: 0,
    };
    let ms = |n| Some(Duration::from_millis(n));
    cx.tries = vec![
        attempt("127.0.0.1:9001", None, None, ms(3), 0),
        attempt("unix:/run/app.sock", ms(0), ms(20), ms(1030), 200),
    ];
    (cx.tries[1].head, cx.tries[1].length) = (200, 4096);
    let fields = [
        ("x-a", "1"),
        ("x-a", "2"),
        ("set-cookie", "SID=old; Path=/"),
        ("set-cookie", "sid = new ; Secure"),
    ];
    let fields = fields.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
    cx.upstream = Some(Box::new(http::HeaderMap::from_iter(fields)));
    cx
}

fn request() -> RequestHeader {
    let mut request = RequestHeader::build("GET", b"/a%20b?x=1&Y=%41&z", None).unwrap();
    request.set_version(Version::HTTP_11);
    for (name, value) in [
        ("host", "shop.example:443"),
        ("x-a", "1"),
        ("x-a", "2"),
        ("cookie", "a=b; SESSION = s%3D ;c"),
        ("cookie", "d=e"),
    ] {
        request.append_header(name, value).unwrap();
    }
    request
}

/// What `text` renders to for the request above, `-` for a lone variable without a value.
fn rendered(cx: &Cx, text: &str) -> String {
    let request = request();
    let mut response = ResponseHeader::build(200, None).unwrap();
    response
        .append_header("content-type", "text/plain")
        .unwrap();
    let view = View {
        cx,
        request: &request,
        response: Some(&response),
        wall: UNIX_EPOCH + Duration::from_millis(1_795_362_225_007),
    };
    let text = compile(Stage::Log, text, &["id"]).unwrap();
    if let [Piece::Var(var)] = text.pieces() {
        let mut out = Vec::new();
        return match var.write(&view, &mut out) {
            // each byte as the character with its number
            Some(()) => out.into_iter().map(char::from).collect(),
            None => "-".to_owned(),
        };
    }
    text.render(&view).into_owned()
}

#[test]
fn variables_mean_what_they_mean_in_nginx() {
    let cx = cx();
    for (text, expected) in [
        ("$host", "shop.example"),
        ("$uri", "/a b"),
        ("$document_uri", "/a b"),
        ("$request_uri", "/a%20b?x=1&Y=%41&z"),
        ("$args", "x=1&Y=%41&z"),
        ("$query_string", "x=1&Y=%41&z"),
        ("$is_args", "?"),
        ("$arg_x", "1"),
        ("$arg_y", "%41"),
        ("$arg_z", "-"),
        ("$arg_none", "-"),
        ("$http_host", "shop.example:443"),
        ("$http_x_a", "1, 2"),
        ("$http_cookie", "a=b; SESSION = s%3D ;c; d=e"),
        ("$http_none", "-"),
        ("$sent_http_content_type", "text/plain"),
        ("$sent_http_none", "-"),
        ("$cookie_a", "b"),
        ("$cookie_session", "s%3D"),
        ("$cookie_c", "-"),
        ("$cookie_d", "e"),
        ("$remote_addr", "192.0.2.1"),
        ("$remote_port", "40000"),
        ("$server_addr", "2001:db8::1"),
        ("$server_port", "443"),
        ("$scheme", "https"),
        ("$https", "on"),
        ("$request_method", "GET"),
        ("$server_protocol", "HTTP/1.1"),
        ("$request", "GET /a%20b?x=1&Y=%41&z HTTP/1.1"),
        ("$status", "200"),
        ("$body_bytes_sent", "5"),
        ("$bytes_sent", "105"),
        ("$request_length", "80"),
        ("$request_time", "1.042"),
        ("$msec", "1795362225.007"),
        ("$connection", "7"),
        ("$connection_requests", "3"),
        ("$connection_time", "2.042"),
        ("$binary_remote_addr", "\u{c0}\0\u{2}\u{1}"),
        ("$proxy_add_x_forwarded_for", "192.0.2.1"),
        ("$proxy_protocol_addr", "-"),
        ("$proxy_protocol_server_port", "-"),
        ("$request_completion", "OK"),
        ("$http2", ""),
        ("$ssl_alpn_protocol", "h2"),
        ("$tcpinfo_rtt", "-"),
        ("$upstream_response_length", "0, 4096"),
        ("$upstream_bytes_received", "0, 4296"),
        ("$upstream_http_x_a", "1, 2"),
        ("$upstream_http_none", "-"),
        ("$upstream_cookie_sid", "new"),
        ("$upstream_cookie_none", "-"),
        ("$upstream_addr", "127.0.0.1:9001, unix:/run/app.sock"),
        ("$upstream_status", "-, 200"),
        ("$upstream_connect_time", "-, 0.000"),
        ("$upstream_header_time", "-, 0.020"),
        ("$upstream_response_time", "0.003, 1.030"),
        ("$request_id", "id-1"),
        ("$ssl_protocol", "TLSv1.3"),
        ("$ssl_cipher", "TLS_AES_128_GCM_SHA256"),
        ("$ssl_server_name", "shop.example"),
        ("$server_name", "shop.example"),
        ("$site", "shop"),
        ("$listener", "https"),
        ("$remote_user", "-"),
        ("$failure", "-"),
        ("$weir_version", env!("CARGO_PKG_VERSION")),
        ("$id", "42"),
        ("<$host$http_none>", "<shop.example>"),
    ] {
        assert_eq!(rendered(&cx, text), expected, "{text}");
    }
}

#[test]
fn unknown_facts_have_no_value() {
    let cx = Cx::new(Instant::now(), Arc::new(Connection::default()));
    for (text, expected) in [
        ("$remote_addr", "unix:"),
        ("$remote_port", "-"),
        ("$server_port", "-"),
        ("$https", ""),
        ("$ssl_protocol", "-"),
        ("$status", "200"),
        ("$request_time", "-"),
        ("$upstream_addr", "-"),
        ("$upstream_response_time", "-"),
        ("$host", "-"),
        ("$site", "-"),
        ("$id", "-"),
    ] {
        assert_eq!(rendered(&cx, text), expected, "{text}");
    }
}

#[test]
fn a_failure_gives_its_status_only_where_none_was_sent() {
    let mut cx = cx();
    cx.failure = Some(Failure::ClientClosed);
    assert_eq!(rendered(&cx, "$status $failure"), "200 client_closed");
    cx.status = 0;
    assert_eq!(rendered(&cx, "$status $failure"), "499 client_closed");
}

#[test]
fn an_answer_is_complete_unless_it_broke_off() {
    let mut cx = cx();
    for (status, failure, complete) in [
        (200, None, "OK"),
        (404, Some(Failure::NoRoute), "OK"),
        (403, Some(Failure::AuthRequest { status: 403 }), "OK"),
        (200, Some(Failure::UpstreamReset), ""),
        (200, Some(Failure::ClientClosed), ""),
        (0, Some(Failure::ClientClosed), ""),
    ] {
        (cx.status, cx.failure) = (status, failure);
        assert_eq!(
            rendered(&cx, "$request_completion"),
            complete,
            "{failure:?}"
        );
    }
}

#[test]
fn a_proxy_in_front_may_say_who_the_client_is() {
    let connection = Connection {
        peer: Some("192.0.2.7:4711".parse().unwrap()),
        local: Some("192.0.2.1:443".parse().unwrap()),
        by_proxy: true,
        ..Connection::default()
    };
    let cx = Cx::new(Instant::now(), Arc::new(connection));
    assert_eq!(
        rendered(
            &cx,
            "$proxy_protocol_addr:$proxy_protocol_port $proxy_protocol_server_addr:$proxy_protocol_server_port"
        ),
        "192.0.2.7:4711 192.0.2.1:443"
    );
}

#[test]
fn an_identifier_is_made_once_for_who_asks() {
    let cx = Cx::new(Instant::now(), Arc::new(Connection::default()));
    let id = rendered(&cx, "$request_id");
    assert_eq!(id.len(), 32);
    assert_eq!(rendered(&cx, "<$request_id>"), format!("<{id}>"));
}

#[test]
fn behind_a_trusted_proxy_the_client_has_no_known_port() {
    let mut cx = cx();
    cx.client = Some("203.0.113.9".parse().unwrap());
    assert_eq!(rendered(&cx, "$remote_addr"), "203.0.113.9");
    assert_eq!(rendered(&cx, "$remote_port"), "-");
    assert_eq!(
        rendered(&cx, "$realip_remote_addr:$realip_remote_port"),
        "192.0.2.1:40000"
    );
}

#[test]
fn a_rewritten_target_changes_the_arguments_but_not_the_request() {
    let mut cx = cx();
    cx.target = Some("/b?n=2".into());
    assert_eq!(rendered(&cx, "$args $arg_n"), "n=2 2");
    assert_eq!(rendered(&cx, "$request_uri"), "/a%20b?x=1&Y=%41&z");
    cx.target = Some("/b?".into());
    assert_eq!(rendered(&cx, "$is_args"), "");
}

#[test]
fn line_that_could_not_be_read_is_shown_as_it_came() {
    let mut cx = cx();
    for (line, parts) in [
        ("GET", "GET|-|-"),
        ("GET /a", "GET|/a|-"),
        ("GET /a b HTTP/1.1", "GET|/a b|HTTP/1.1"),
        ("GET HTTP/1.1", "GET|-|HTTP/1.1"),
        (" HTTP/1.1", "-|-|HTTP/1.1"),
        ("\u{16}\u{3}", "\u{16}\u{3}|-|-"),
    ] {
        cx.unread = Some(line.as_bytes().into());
        assert_eq!(rendered(&cx, "$request"), line);
        let variables = ["$request_method", "$request_uri", "$server_protocol"];
        let shown = variables.map(|variable| rendered(&cx, variable));
        assert_eq!(shown.join("|"), parts, "{line}");
    }
    cx.unread = Some([].into());
    assert_eq!(rendered(&cx, "$request"), "-");
}

#[test]
fn request_uri_is_in_origin_form() {
    let uri = |target: &[u8]| {
        let request = RequestHeader::build("GET", target, None).unwrap();
        String::from_utf8_lossy(request_uri(&request)).into_owned()
    };
    assert_eq!(uri(b"/a?b=http://c/d"), "/a?b=http://c/d");
    assert_eq!(uri(b"http://shop.example/a?b"), "/a?b");
    assert_eq!(uri(b"http://shop.example"), "/");
    assert_eq!(uri(b"*"), "*");
}

#[test]
fn bytes_that_are_not_utf8_survive_write_but_not_render() {
    let mut request = RequestHeader::build("GET", b"/", None).unwrap();
    let value = http::HeaderValue::from_bytes(b"\xff").unwrap();
    request.insert_header("x-a", value).unwrap();
    let cx = cx();
    let view = View {
        cx: &cx,
        request: &request,
        response: None,
        wall: UNIX_EPOCH,
    };
    let text = compile(Stage::Request, "<$http_x_a>", &[]).unwrap();
    let mut out = Vec::new();
    text.write(&view, &mut out);
    assert_eq!(out, b"<\xff>");
    assert_eq!(text.render(&view), "<\u{fffd}>");
}

#[test]
fn a_literal_is_borrowed() {
    let cx = cx();
    let request = request();
    let view = View {
        cx: &cx,
        request: &request,
        response: None,
        wall: UNIX_EPOCH,
    };
    for literal in ["", "just text, $$5"] {
        let text = compile(Stage::Request, literal, &[]).unwrap();
        assert!(matches!(text.render(&view), Cow::Borrowed(_)));
    }
}

#[test]
fn unknown_names_are_errors_with_a_suggestion() {
    let error = |text| compile(Stage::Log, text, &["user"]).unwrap_err();
    assert_eq!(
        error("$hots"),
        "no variable named `$hots`; did you mean `$host`?"
    );
    assert_eq!(
        error("$Host"),
        "no variable named `$Host`; did you mean `$host`?"
    );
    assert_eq!(
        error("${usr}"),
        "no variable named `$usr`; did you mean `$user`?"
    );
    assert_eq!(
        error("$completely_else"),
        "no variable named `$completely_else`; "
    );
    for prefix in ["$http_", "$arg_", "$cookie_", "$sent_http_"] {
        assert!(compile(Stage::Log, prefix, &[]).is_err(), "{prefix}");
    }
    assert!(error("a$").starts_with("`$` without a variable name"));
}

#[test]
fn variables_of_a_later_stage_are_errors() {
    assert!(compile(Stage::Request, "$host$uri$msec", &[]).is_ok());
    assert_eq!(
        compile(Stage::Request, "$status", &[]).unwrap_err(),
        "`$status` has no value here: it is known once there is a response; "
    );
    assert!(compile(Stage::Response, "$status $upstream_addr", &[]).is_ok());
    assert_eq!(
        compile(Stage::Response, "$request_time", &[]).unwrap_err(),
        "`$request_time` has no value here: it is known once the response has been sent; "
    );
}
