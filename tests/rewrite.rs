//! rewrite: the query and the method that the backend gets.

use crate::harness::Weir;
use crate::harness::client::{Request, get, post};
use crate::harness::origin::{Behaviour, Origin};

#[test]
fn the_backend_gets_another_query_and_the_path_as_it_was_sent() {
    let app = Origin::fixed("ok");
    let weir = Weir::with("app", &app).start_site(
        "
        routes:
          - match: { path: /none }
            rewrite: { query: { remove: '*' } }
            proxy: app
          - rewrite: { query: { set: { lang: $cookie_lang, v: '2' }, add: { q: ['a b', $args] }, remove: ['utm_*'] } }
            headers: { request: { set: { X-Args: $args } } }
            proxy: app
        ",
    );
    let request = get("/%7ex?utm_a=1&v=1&x=%20&lang=old").header("Cookie", "lang=de&x");
    weir.fetch(&request);
    weir.get("/none?a=1");
    let requests = app.requests();
    let expected = "x=%20&lang=de%26x&v=2&q=a%20b&q=utm_a%3D1%26v%3D1%26x%3D%2520%26lang%3Dold";
    assert_eq!(requests[0].target(), format!("/%7ex?{expected}"));
    assert_eq!(requests[0].header("x-args"), Some(expected));
    assert_eq!(requests[1].target(), "/none");
}

#[test]
fn the_backend_is_asked_by_another_method() {
    let app = Origin::echo();
    let weir = Weir::with("app", &app).start_site(
        "routes: [{ match: { path: /get }, rewrite: { method: GET }, proxy: app }, { rewrite: { method: POST }, proxy: app }]",
    );
    let mut connection = weir.connect();
    for (request, sent) in [
        (get("/"), "POST"),
        (Request::new("HEAD", "/"), "HEAD"),
        (post("/get", "body"), "GET"),
        (Request::new("DELETE", "/"), "POST"),
    ] {
        let answer = connection
            .fetch(&request)
            .expect("an answer on one connection");
        assert_eq!(answer.status, 200);
        assert_eq!(app.requests().last().expect("a request").head.word(0), sent);
    }
}

#[test]
fn what_became_a_post_is_not_sent_twice() {
    let bad = Origin::start(Behaviour::Close);
    let good = Origin::fixed("ok");
    let weir = Weir::with("bad", &bad)
        .with("good", &good)
        .allow("upstream_reset")
        .start(
            "
            listeners: { http: { bind: '127.0.0.1:{http}' } }
            pools: { app: { backends: ['{bad}', { addr: '{good}', backup: true }] } }
            sites:
              main:
                hosts: '*'
                routes: [{ match: { path: /post }, rewrite: { method: POST }, proxy: app }, { proxy: app }]
            ",
        );
    assert_eq!(weir.get("/post").status, 502);
    assert_eq!(good.requests().len(), 0);
    assert_eq!(weir.get("/").status, 200);
}
