//! Sessions that stay with their member.

use crate::harness::Weir;
use crate::harness::client::{Request, Response, get};
use crate::harness::origin::Origin;
use crate::harness::wait::{PATIENCE, eventually};

const POOL: &str =
    "{ backends: ['{a}', '{b}', '{c}'], sticky: { cookie: id, ttl: 1h, secret: of-these-tests } }";

fn origins() -> [Origin; 3] {
    ["a", "b", "c"].map(Origin::fixed)
}

fn start(pool: &str, [a, b, c]: &[Origin; 3]) -> Weir {
    let weir = Weir::with("a", a).with("b", b).with("c", c);
    weir.start_pool(pool)
}

/// `id=...` of the cookie that an answer sets.
fn cookie(answer: &Response) -> Option<String> {
    let cookie = answer.header("set-cookie")?;
    Some(cookie.split(';').next().expect("a pair").to_owned())
}

fn with(cookie: &str) -> Request {
    get("/").header("Cookie", &format!("theme=dark; {cookie}; x=y"))
}

#[test]
fn a_client_comes_back_to_the_member_that_it_was_given() {
    let origins = origins();
    let weir = start(POOL, &origins);
    let mut seen = Vec::new();
    for _ in 0..3 {
        let first = weir.get("/");
        let cookie = cookie(&first).expect("a cookie");
        for _ in 0..5 {
            let again = weir.fetch(&with(&cookie));
            assert_eq!(again.text(), first.text());
            assert_eq!(again.header("set-cookie"), None, "nothing changed");
        }
        seen.push(first.text().to_owned());
    }
    seen.sort();
    assert_eq!(seen, ["a", "b", "c"], "who comes without is balanced");
}

#[test]
fn the_cookie_tells_nothing_and_has_its_attributes() {
    let origins = origins();
    let weir = start(POOL, &origins);
    let answer = weir.get("/");
    let cookie = answer.header("set-cookie").expect("a cookie");
    let (pair, attributes) = cookie.split_once("; ").expect("attributes");
    assert_eq!(attributes, "Path=/; Max-Age=3600; HttpOnly; SameSite=Lax");
    let token = pair.strip_prefix("id=").expect("the name");
    assert_eq!(token.len(), 32);
    assert!(
        token.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{token}"
    );
}

#[test]
fn a_forged_cookie_is_none_and_is_replaced() {
    let origins = origins();
    let weir = start(POOL, &origins);
    let real = cookie(&weir.get("/")).expect("a cookie");
    let last = if real.ends_with('0') { '1' } else { '0' };
    let forged = format!("{}{last}", &real[..real.len() - 1]);
    for forged in [forged.as_str(), "id=", "id=127.0.0.1:1", "id=0"] {
        let answer = weir.fetch(&with(forged));
        assert_eq!(answer.status, 200);
        let cookie = cookie(&answer).expect("a real one");
        assert_ne!(cookie, forged);
    }
}

#[test]
fn backends_see_the_cookie_as_any_other() {
    let echo = Origin::echo();
    let pool = "{ backends: ['{app}'], sticky: { cookie: id } }";
    let weir = Weir::with("app", &echo)
        .allow("machine-id")
        .start_pool(pool);
    let cookie = cookie(&weir.get("/")).expect("a cookie");
    let answer = weir.fetch(&with(&cookie));
    assert!(answer.text().contains(&cookie), "{}", answer.text());
}

#[test]
fn a_session_moves_for_good_when_its_member_fails() {
    let mut origins = origins();
    let weir = start(POOL, &origins);
    let first = weir.get("/");
    let (home, old) = (first.text().to_owned(), cookie(&first).expect("a cookie"));
    let index = ["a", "b", "c"].iter().position(|name| *name == home);
    let index = index.expect("one of them");
    origins[index].kill();
    let moved = weir.fetch(&with(&old));
    assert_eq!(moved.status, 200);
    assert_ne!(moved.text(), home);
    let new = cookie(&moved).expect("a new cookie");
    assert_ne!(new, old);
    origins[index].revive();
    for _ in 0..5 {
        assert_eq!(weir.fetch(&with(&new)).text(), moved.text());
    }
}

#[test]
fn a_session_leaves_a_member_whose_health_checks_fail() {
    let origins = origins();
    let health = "health: { http: { path: /healthz }, interval: 50ms, rise: 1, fall: 1 } }";
    let pool = POOL.strip_suffix('}').expect("a map");
    let weir = start(&format!("{pool}, {health}"), &origins);
    let first = weir.get("/");
    let cookie = cookie(&first).expect("a cookie");
    let at_home = || weir.fetch(&with(&cookie)).text() == first.text();
    let home = origins.iter().find(|origin| origin.hits() == 1);
    let home = home.expect("one was asked");
    home.set_healthy(false);
    eventually(PATIENCE, || !at_home());
    home.set_healthy(true);
    // the old cookie is as good as before
    eventually(PATIENCE, at_home);
}

#[test]
fn sessions_outlive_reloads_and_restarts() {
    let origins = origins();
    let weir = start(POOL, &origins);
    let first = weir.get("/");
    let cookie = cookie(&first).expect("a cookie");
    weir.reload(&crate::harness::one_pool(&POOL.replace("1h", "2h")));
    let again = weir.fetch(&with(&cookie));
    assert_eq!(
        (again.text(), again.header("set-cookie")),
        (first.text(), None)
    );
    weir.stop();
    let weir = start(POOL, &origins);
    let again = weir.fetch(&with(&cookie));
    assert_eq!(
        (again.text(), again.header("set-cookie")),
        (first.text(), None)
    );
}

#[test]
fn on_tls_the_cookie_is_secure() {
    let app = Origin::fixed("a");
    let weir = Weir::with("a", &app).start(
        "
        listeners:
          http: { bind: '127.0.0.1:{http}' }
          https: { bind: '127.0.0.1:{https}', tls: {} }
        pools: { app: { backends: ['{a}'], sticky: { cookie: id, secret: x } } }
        sites: { main: { hosts: [shop.example], tls: { self_signed: true }, routes: [{ proxy: app }] } }
        ",
    );
    let request = get("/").host("shop.example");
    let plain = weir.fetch(&request);
    let mut connection = weir.connect_tls("shop.example");
    let secure = connection.fetch(&request).expect("an answer");
    let cookie = plain.header("set-cookie").expect("a cookie");
    assert!(
        cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax"),
        "{cookie}"
    );
    let secured = format!("{cookie}; Secure");
    assert_eq!(secure.header("set-cookie"), Some(secured.as_str()));
}
