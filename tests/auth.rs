//! auth_basic, auth_request, jwt, signed_url: who may come, by what they bring.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use boring::hash::hmac_sha256;

use crate::harness::client::{Http2, Request, get, post};
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::wait::{PATIENCE, eventually};
use crate::harness::websocket::Frame;
use crate::harness::{Setup, Weir};

/// `openssl passwd -6 -salt abcdefghijklmnop a`, `openssl passwd -apr1 -salt abcdefgh a`
const USERS: &str = "\
    # staff\n\
    ada:$6$abcdefghijklmnop$5IETrK7DfmBLCcDDd2uUkHSMDWAJF6Icsj01AxgOg03tQ1u38QhUaKCWDwYi/e/EJYW.XtfPCzI7EG7M7zlvZ.\n\
    bob:$apr1$abcdefgh$G8IsPsylW5ROvIKsQMRG61\n";

fn basic(pair: &str) -> String {
    format!("Basic {}", boring::base64::encode_block(pair.as_bytes()))
}

fn with(authorization: &str) -> Request {
    get("/").header("Authorization", authorization)
}

#[test]
fn who_has_a_name_and_its_password_gets_in() {
    let app = Origin::fixed("ok");
    let weir = Weir::with("app", &app).file("htpasswd", USERS).start(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        log: { access: { file: '{dir}/access.log', format: '$status $remote_user $failure' } }
        pools: { app: { backends: ['{app}'] } }
        sites:
          main:
            hosts: ['*']
            auth_basic: { realm: Staff, users: htpasswd }
            routes:
              - match: { path: /open }
                auth_basic: off
                proxy: app
              - match: { path: /forward }
                auth_basic: { users: htpasswd, forward: true }
                headers: { request: { set: { X-User: $remote_user } } }
                proxy: app
              - proxy: app
        ",
    );
    let refused = weir.get("/");
    assert_eq!(refused.status, 401);
    assert_eq!(
        refused.header("www-authenticate"),
        Some("Basic realm=\"Staff\", charset=\"UTF-8\"")
    );
    for (pair, status) in [
        ("ada:a", 200),
        ("ada:a", 200), // remembered
        ("ada:b", 401),
        ("ada:", 401),
        ("bob:a", 200),
        ("eve:a", 401),
        ("# staff:", 401),
    ] {
        assert_eq!(weir.fetch(&with(&basic(pair))).status, status, "{pair}");
    }
    assert_eq!(app.hits(), 3);
    for got in app.requests() {
        assert_eq!(got.header("authorization"), None);
    }
    assert_eq!(weir.get("/open").status, 200);
    let forwarded = get("/forward").header("Authorization", &basic("bob:a"));
    assert_eq!(weir.fetch(&forwarded).status, 200);
    let got = app.requests().pop().unwrap();
    assert_eq!(got.header("authorization"), Some(basic("bob:a").as_str()));
    assert_eq!(got.header("x-user"), Some("bob"));
    let lines = weir.access_lines(10);
    for (line, count) in [("200 ada -", 2), ("200 bob -", 2), ("401 - auth_basic", 5)] {
        let found = lines.iter().filter(|found| *found == line);
        assert_eq!(found.count(), count, "{line}: {lines:?}");
    }
}

#[test]
fn a_password_that_was_changed_is_not_remembered() {
    const DOCUMENT: &str = "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        sites:
          main:
            hosts: ['*']
            auth_basic: { users: htpasswd }
            routes: [{ respond: ok }]
    ";
    let setup = Setup::new()
        .allow("reload failed")
        .allow("htpasswd")
        .file("htpasswd", USERS);
    let weir = setup.start(DOCUMENT);
    assert_eq!(weir.fetch(&with(&basic("bob:a"))).status, 200);
    let changed = USERS.replace("G8IsPsylW5ROvIKsQMRG61", "L.PT565ESX4Tp2bqNs7Ie.");
    weir.setup().write("htpasswd", changed);
    weir.reload(DOCUMENT);
    assert_eq!(weir.fetch(&with(&basic("bob:a"))).status, 401);
    assert_eq!(weir.fetch(&with(&basic("bob:"))).status, 200);
    weir.setup().write("htpasswd", "bob:plain\n");
    let said = weir.reload_in_vain(DOCUMENT);
    assert!(said.contains("plain text are not taken"), "{said}");
}

const ASKING: &str = "
    listeners: { http: { bind: '127.0.0.1:{http}', protocols: [h1, h2] } }
    pools:
      app: { backends: ['{app}'] }
      auth: { backends: ['{auth}'] }
    sites:
      main:
        hosts: ['*']
        auth_request: { pool: auth, path: /check, headers: { copy: [X-User], answer: [Set-Cookie, X-Plan] }, timeout: 500ms }
        routes:
          - match: { path: /local }
            respond: ok
          - proxy: app
";

#[test]
fn a_service_is_asked_and_vouches_for_the_client() {
    let app = Origin::echo();
    let auth = Origin::raw("HTTP/1.1 204 No Content\r\nX-User: ada\r\nX-Else: x\r\n\r\n");
    let weir = Weir::with("app", &app).with("auth", &auth).start(ASKING);
    let request = post("/a?b=c", "hello")
        .header("Cookie", "session=1")
        .header("X-User", "eve")
        .header("X_User", "eve")
        .header("X-Private", "p");
    let answer = weir.fetch(&request);
    assert_eq!(answer.status, 200);
    let got = app.request();
    assert_eq!(got.body, b"hello");
    assert_eq!(got.headers().all("x-user"), ["ada"]);
    assert_eq!((got.header("x_user"), got.header("x-else")), (None, None));
    let asked = auth.request();
    assert_eq!((asked.method(), asked.target()), ("GET", "/check"));
    assert_eq!(asked.header("host"), Some("localhost"));
    assert_eq!(asked.header("x-original-uri"), Some("/a?b=c"));
    assert_eq!(asked.header("x-original-method"), Some("POST"));
    assert_eq!(asked.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(asked.header("cookie"), Some("session=1"));
    assert_eq!(
        (asked.header("x-private"), asked.header("content-length")),
        (None, None)
    );
    assert!(asked.body.is_empty());
    // over HTTP/2, for what weir answers itself as well
    let mut http2 = Http2::tcp(weir.address("http")).unwrap();
    assert_eq!(http2.fetch(&get("/x")).unwrap().status, 200);
    assert_eq!(http2.fetch(&get("/local")).unwrap().status, 200);
    assert_eq!(auth.hits(), 3);
}

#[test]
fn a_service_tells_the_client_what_it_is_to_know() {
    let app = Origin::raw(
        "HTTP/1.1 200 OK\r\nSet-Cookie: app=1\r\nX-Plan: free\r\nContent-Length: 0\r\n\r\n",
    );
    let auth = Origin::fixed("");
    let weir = Weir::with("app", &app).with("auth", &auth).start(ASKING);
    let mut http2 = Http2::tcp(weir.address("http")).unwrap();
    let own = ["session=2; Path=/", "seen=1"];
    for (status, cookies) in [(200, vec!["app=1", own[0], own[1]]), (401, own.to_vec())] {
        let [one, other] = own;
        let head = format!("HTTP/1.1 {status} X\r\nSet-Cookie: {one}\r\nSet-Cookie: {other}\r\n");
        let answer = head + "X-Plan: gold\r\nX-User: ada\r\nContent-Length: 0\r\n\r\n";
        auth.behave(Behaviour::Raw(answer.into_bytes()));
        for answer in [weir.get("/"), http2.fetch(&get("/")).unwrap()] {
            assert_eq!(answer.status, status);
            assert_eq!(answer.headers.all("set-cookie"), cookies);
            assert_eq!(answer.headers.all("x-plan"), ["gold"]);
            assert_eq!(answer.header("x-user"), None);
        }
        let local = weir.get("/local");
        assert_eq!(local.headers.all("set-cookie"), own);
    }
    // neither yes nor no
    let odd = "HTTP/1.1 302 Found\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n";
    auth.behave(Behaviour::Raw(odd.into()));
    let answer = weir.get("/");
    assert_eq!((answer.status, answer.header("set-cookie")), (500, None));
}

#[test]
fn connections_to_the_service_are_used_again() {
    let app = Origin::fixed("ok");
    let auth = Origin::fixed("yes");
    let weir = Weir::with("app", &app).with("auth", &auth).start(ASKING);
    for _ in 0..5 {
        assert_eq!(weir.get("/").status, 200);
    }
    assert_eq!((auth.hits(), auth.connections()), (5, 1));
}

#[test]
fn the_service_says_no_or_nothing() {
    let app = Origin::start(Behaviour::WebSocket);
    let auth = Origin::raw(
        "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer\r\nWWW-Authenticate: Basic realm=x\r\nX-Else: x\r\nContent-Length: 0\r\n\r\n",
    );
    let weir = Weir::with("app", &app).with("auth", &auth).start(ASKING);
    let upgrade = get("/")
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
    let refused = weir.fetch(&upgrade);
    assert_eq!(refused.status, 401);
    assert_eq!(
        refused.headers.all("www-authenticate"),
        ["Bearer", "Basic realm=x"]
    );
    assert_eq!(refused.header("x-else"), None);
    let raw = |text: &str| Behaviour::Raw(text.as_bytes().to_vec());
    for (behaviour, status) in [
        (
            raw("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"),
            403,
        ),
        (
            raw("HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n"),
            500,
        ),
        (raw("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"), 500),
        (raw("what?\r\n\r\n"), 502),
        (Behaviour::Held("too late".to_owned()), 502),
        (Behaviour::Close, 502),
    ] {
        auth.behave(behaviour.clone());
        assert_eq!(weir.fetch(&upgrade).status, status, "{behaviour:?}");
    }
    assert_eq!(app.hits(), 0);
    auth.behave(Behaviour::Fixed("yes".to_owned()));
    let mut tunnel = weir.connect();
    tunnel.send_request(&upgrade).unwrap();
    assert_eq!(tunnel.read_head().unwrap().word(1), "101");
    tunnel.send_frame(&Frame::text("hello")).unwrap();
    tunnel.read_frame().unwrap();
}

/// What signs a message, as it stands in a link.
fn signature(message: &str) -> String {
    let signature = hmac_sha256(b"0123456789abcdef", message.as_bytes()).unwrap();
    let signature = boring::base64::encode_block(&signature);
    signature
        .replace('+', "-")
        .replace('/', "_")
        .replace('=', "")
}

#[test]
fn a_link_that_is_signed_works_until_it_expires() {
    let weir = Setup::new()
        .file("secret", "0123456789abcdef\n")
        .start_site(
            "
        signed_url: { secret: '${file:secret}' }
        routes: [{ respond: ok }]
        ",
        );
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let link = |path: &str, expires: Duration| {
        let expires = expires.as_secs();
        let message = format!("{path}\n{expires}");
        let signature = signature(&message);
        format!("/dl/a%20b?expires={expires}&signature={signature}")
    };
    let later = now + Duration::from_secs(600);
    assert_eq!(weir.get(&link("/dl/a b", later)).status, 200);
    assert_eq!(weir.get(&link("/dl/else", later)).status, 403);
    assert_eq!(
        weir.get(&link("/dl/a b", now - Duration::from_secs(1)))
            .status,
        410
    );
    assert_eq!(weir.get("/dl/a%20b").status, 403);
}

#[test]
fn a_parameter_that_a_link_is_bound_to_has_one_value() {
    let weir = Setup::new().start_site(
        "
        signed_url: { secret: 0123456789abcdef, bind: $arg_user }
        routes: [{ respond: ok }]
        ",
    );
    let signed = |user: &str| {
        let message = format!("/x\n4102444800\n{user}");
        let signature = signature(&message);
        format!("expires=4102444800&signature={signature}")
    };
    let (own, nobodys) = (signed("me"), signed(""));
    for (query, status) in [
        (format!("user=me&{own}"), 200),
        (nobodys.clone(), 200),
        (format!("user=me&{own}&user=admin"), 403),
        (format!("USER=me&{own}&user=admin"), 403),
        (format!("user=me&{own}&%75ser=admin"), 403),
        (format!("%75ser=admin&{nobodys}"), 403),
    ] {
        assert_eq!(weir.get(&format!("/x?{query}")).status, status, "{query}");
    }
}

#[test]
fn tokens_are_checked_and_their_claims_are_variables() {
    let app = Origin::fixed("ok");
    let weir = Weir::with("app", &app).start(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        log: { access: { file: '{dir}/access.log', format: '$status $remote_user $failure' } }
        pools: { app: { backends: ['{app}'] } }
        sites:
          main:
            hosts: ['*']
            jwt: { secret: 0123456789abcdef0123456789abcdef, audience: shop, claims: { $user: sub, $plan: account.plan } }
            routes:
              - match: { path: /cookie }
                jwt: { secret: 0123456789abcdef0123456789abcdef, token: $cookie_t, claims: { $other: sub } }
                headers: { request: { set: { X-User: $other } } }
                proxy: app
              - headers: { request: { set: { X-User: $user, X-Plan: $plan } } }
                proxy: app
        ",
    );
    let refused = weir.get("/");
    assert_eq!(refused.status, 401);
    let challenge = "Bearer realm=\"Restricted\"";
    assert_eq!(refused.header("www-authenticate"), Some(challenge));
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let good = format!(
        r#"{{"sub":"ada","aud":["shop"],"exp":{},"account":{{"plan":"gold"}}}}"#,
        now + 600
    );
    let bearer = |claims: &str| format!("Bearer {}", token(claims));
    assert_eq!(weir.fetch(&with(&bearer(&good))).status, 200);
    let got = app.request();
    assert_eq!(
        (got.header("x-user"), got.header("x-plan")),
        (Some("ada"), Some("gold"))
    );
    let refused = weir.fetch(&with(&bearer(&good.replace("shop", "else"))));
    assert_eq!(refused.status, 401);
    let challenge = "Bearer realm=\"Restricted\", error=\"invalid_token\"";
    assert_eq!(refused.header("www-authenticate"), Some(challenge));
    let cookie = get("/cookie").header("Cookie", &format!("t={}", token(&good)));
    assert_eq!(weir.fetch(&cookie).status, 200);
    assert_eq!(app.requests().pop().unwrap().header("x-user"), Some("ada"));
    let mut lines = weir.access_lines(4);
    lines.sort_unstable();
    assert_eq!(lines, ["200 ada -", "200 ada -", "401 - jwt", "401 - jwt"]);
}

#[test]
fn keys_are_fetched_and_exchanged_while_requests_come() {
    let set = |secret: &str| {
        let key = boring::base64::encode_block(secret.as_bytes());
        let key = key.replace('+', "-").replace('/', "_").replace('=', "");
        format!(r#"{{"keys":[{{"kty":"oct","k":"{key}"}}]}}"#)
    };
    let keys = Origin::fixed(&set("another secret, of thirty-two bytes or more"));
    let weir = Weir::with("keys", &keys).start(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        pools: { id: { backends: ['{keys}'] } }
        sites:
          main:
            hosts: ['*']
            jwt: { keys: { pool: id, path: /jwks.json, host: id.example } }
            routes: [{ respond: ok }]
        ",
    );
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let request = with(&format!(
        "Bearer {}",
        token(&format!(r#"{{"exp":{}}}"#, now + 600))
    ));
    eventually(PATIENCE, || weir.fetch(&request).status == 401);
    let asked = keys.request();
    assert_eq!(
        (asked.target(), asked.header("host")),
        ("/jwks.json", Some("id.example"))
    );
    keys.behave(Behaviour::Fixed(set(SECRET)));
    // asked for at once, but not sooner than ten seconds after the last time
    eventually(PATIENCE * 3, || weir.fetch(&request).status == 200);
}

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// Signed by HS256 with the secret.
fn token(claims: &str) -> String {
    let encode = |bytes: &[u8]| {
        let text = boring::base64::encode_block(bytes);
        text.replace('+', "-").replace('/', "_").replace('=', "")
    };
    let message = format!(
        "{}.{}",
        encode(br#"{"alg":"HS256"}"#),
        encode(claims.as_bytes())
    );
    let signature = hmac_sha256(SECRET.as_bytes(), message.as_bytes()).unwrap();
    format!("{message}.{}", encode(&signature))
}
