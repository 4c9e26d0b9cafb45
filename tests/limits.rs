//! limit_req, limit_conn, limit_rate, timeouts.

use std::time::{Duration, Instant};

use crate::harness::Weir;
use crate::harness::client::{Http2, get};
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::wait::{PATIENCE, eventually, holds_within};
use crate::harness::websocket::Frame;

#[test]
fn requests_beyond_rate_and_burst_are_refused_and_told_when_to_come_again() {
    let app = Origin::fixed("ok");
    let weir = Weir::with("app", &app).start_site(
        "
        limit_req: { key: '$arg_k', rate: 1/h, burst: 2 }
        routes: [{ proxy: app }]
        ",
    );
    for _ in 0..3 {
        assert_eq!(weir.get("/?k=a").status, 200);
    }
    let refused = weir.get("/?k=a");
    assert_eq!(refused.status, 429);
    let after: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((3500..=3600).contains(&after), "{after}");
    assert_eq!(
        refused.header("ratelimit-policy"),
        Some("\"limit_req\";q=3;w=10800")
    );
    let told = format!("\"limit_req\";r=0;t={after}");
    assert_eq!(refused.header("ratelimit"), Some(told.as_str()));
    // another key, and none
    assert_eq!(weir.get("/?k=b").status, 200);
    for _ in 0..5 {
        assert_eq!(weir.get("/").status, 200);
    }
    assert_eq!(app.hits(), 9);
}

#[test]
fn a_limit_is_shared_by_the_routes_below_it_and_each_of_several_must_let_through() {
    let weir = Weir::start_site(
        "
        limit_req: [{ key: '$arg_a', rate: 1/h, burst: 1 }, { key: '$arg_b', rate: 1/h }]
        routes:
          - match: { path: /own }
            limit_req: { key: '$arg_a', rate: 1/h }
            respond: ok
          - match: { path: /none }
            limit_req: off
            respond: ok
          - match: { path: /one }
            respond: ok
          - respond: ok
        ",
    );
    let status = |target| weir.get(target).status;
    assert_eq!(status("/one?a=1&b=1"), 200);
    // the second refuses, and the first has not counted it
    assert_eq!(status("/two?a=1&b=1"), 429);
    assert_eq!(status("/two?a=1"), 200);
    assert_eq!(status("/one?a=1"), 429);
    assert_eq!(status("/own?a=1"), 200);
    assert_eq!(status("/own?a=1"), 429);
    assert_eq!(status("/none?a=1"), 200);
}

#[test]
fn counts_outlive_a_reload_also_under_another_rate() {
    let document = |rate| {
        format!(
            "
            listeners: {{ http: {{ bind: '127.0.0.1:{{http}}' }} }}
            sites:
              main:
                hosts: ['*']
                limit_req: {{ rate: {rate}, burst: 1 }}
                routes: [{{ respond: ok }}]
            "
        )
    };
    let weir = Weir::start(&document("1/h"));
    let status = || weir.get("/").status;
    assert_eq!([status(), status(), status()], [200, 200, 429]);
    weir.reload(&document("1/h"));
    assert_eq!(status(), 429);
    weir.reload(&document("2/h"));
    assert_eq!(status(), 429);
}

#[test]
fn a_dry_run_refuses_nobody_and_says_whom_it_would() {
    let weir = Weir::start(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        log: { access: { file: '{dir}/access.log', format: '$limit_req_status $limit_conn_status' } }
        sites:
          main:
            hosts: ['*']
            limit_req: { rate: 1/h, dry_run: true }
            limit_conn: { max: 5 }
            routes: [{ respond: ok }]
        ",
    );
    for _ in 0..2 {
        assert_eq!(weir.get("/").status, 200);
    }
    let mut lines = weir.access_lines(2);
    lines.sort_unstable();
    assert_eq!(lines, ["PASSED PASSED", "REJECTED_DRY_RUN PASSED"]);
    assert!(
        weir.error_log()
            .contains("sites.main.limit_req would refuse GET localhost/ from 127.0.0.1\n")
    );
}

#[test]
fn requests_wait_for_their_time_and_no_longer_than_their_client() {
    let app = Origin::fixed("ok");
    let weir = Weir::with("app", &app).start_site(
        "
        routes:
          - match: { path: /soon }
            limit_req: { rate: 2/s, burst: 3, delay: true }
            proxy: app
          - match: { path: /late }
            limit_req: { rate: 1/h, burst: 3, delay: true }
            proxy: app
          - match: { path: /body }
            limit_req: { rate: 2/s, burst: 3, delay: true }
            proxy: app
        ",
    );
    let began = Instant::now();
    let mut connection = weir.connect();
    for _ in 0..3 {
        assert_eq!(connection.fetch(&get("/soon")).unwrap().status, 200);
    }
    assert!(
        began.elapsed() >= Duration::from_millis(900),
        "{:?}",
        began.elapsed()
    );
    // sent at once, on one connection
    let mut connection = weir.connect();
    let request = String::from_utf8(get("/soon").to_bytes()).unwrap();
    connection
        .send((request.clone() + &request).as_bytes())
        .unwrap();
    for _ in 0..2 {
        assert_eq!(connection.read().unwrap().status, 200);
    }
    // with a body, which is still there
    for _ in 0..2 {
        let request = crate::harness::client::post("/body", "hello");
        assert_eq!(weir.fetch(&request).status, 200);
    }
    assert_eq!(app.requests().last().unwrap().body, b"hello");

    assert_eq!(weir.get("/late").status, 200);
    let hits = app.hits();
    let mut connection = weir.connect();
    connection.send_request(&get("/late")).unwrap();
    // Who ends its side at once may only have nothing more to say.
    assert!(!holds_within(Duration::from_millis(1000), || app.hits() > hits));
    drop(connection);
    eventually(PATIENCE, || {
        weir.access_log().contains("\"GET /late HTTP/1.1\" 499")
    });
    assert_eq!(app.hits(), hits);
}

#[test]
fn so_many_requests_are_served_at_a_time() {
    let app = Origin::start(Behaviour::Held("ok".into()));
    let weir = Weir::with("app", &app).start(
        "
        listeners: { http: { bind: '127.0.0.1:{http}', protocols: [h1, h2] } }
        pools: { app: { backends: ['{app}'] } }
        sites:
          main:
            hosts: ['*']
            limit_conn: { max: 2 }
            routes:
              - match: { path: /busy }
                limit_conn: [{ key: '$host', max: 1, status: 429 }, { max: 5 }]
                proxy: app
              - proxy: app
        ",
    );
    let hold = |path| {
        let hits = app.hits();
        let mut held = weir.connect();
        held.send_request(&get(path)).unwrap();
        eventually(PATIENCE, || app.hits() > hits);
        held
    };
    let mut held = [hold("/"), hold("/")];
    assert_eq!(weir.get("/").status, 503);
    // streams of one connection count each
    let mut http2 = Http2::tcp(weir.address("http")).unwrap();
    assert_eq!(http2.fetch(&get("/")).unwrap().status, 503);
    let gone = hold("/busy");
    assert_eq!(weir.get("/busy").status, 429);
    // a client that goes leaves its place; who ends its side at once may only have nothing more to say
    let hits = app.hits();
    assert!(!holds_within(Duration::from_millis(1000), || app.hits() > hits));
    drop(gone);
    eventually(PATIENCE, || {
        weir.access_log().contains("\"GET /busy HTTP/1.1\" 499")
    });
    let mut busy = hold("/busy");
    // and so does an answer
    app.release(1000);
    for connection in &mut held {
        assert_eq!(connection.read().unwrap().status, 200);
    }
    assert_eq!(busy.read().unwrap().status, 200);
    eventually(PATIENCE, || weir.get("/").status == 200);
    eventually(PATIENCE, || weir.get("/busy").status == 200);
}

#[test]
fn a_tunnel_counts_for_as_long_as_it_lives() {
    let app = Origin::start(Behaviour::WebSocket);
    let weir = Weir::with("app", &app).start_site(
        "
        routes:
          - match: { path: /ok }
            limit_conn: off
            respond: ok
          - limit_conn: { max: 1 }
            proxy: app
        ",
    );
    let upgrade = get("/")
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
    let mut tunnel = weir.connect();
    tunnel.send_request(&upgrade).unwrap();
    assert_eq!(tunnel.read_head().unwrap().word(1), "101");
    tunnel.send_frame(&Frame::text("hello")).unwrap();
    tunnel.read_frame().unwrap();
    assert_eq!(weir.get("/").status, 503);
    drop(tunnel);
    eventually(PATIENCE, || weir.get("/").status != 503);
}

#[test]
fn answers_go_out_at_their_rate_whoever_makes_them() {
    let large = "x".repeat(96 * 1024);
    let app = Origin::fixed(&large);
    let weir = Weir::with("app", &app).file("www/large", &large).start(
        "
        listeners:
          http: { bind: '127.0.0.1:{http}', protocols: [h1, h2] }
          https: { bind: '127.0.0.1:{https}', tls: { certificates: [{ self_signed: true }] } }
        pools: { app: { backends: ['{app}'] } }
        sites:
          main:
            hosts: ['*']
            limit_rate: { rate: 32KiB, after: 32KiB }
            routes:
              - match: { prefix: /app }
                proxy: app
              - match: { path: /fast }
                limit_rate: off
                proxy: app
              - files: www
        ",
    );
    let took = |fetch: &mut dyn FnMut() -> Vec<u8>| {
        let began = Instant::now();
        assert_eq!(fetch(), large.as_bytes());
        began.elapsed()
    };
    // 96 KiB: 32 of them free, 32 in the first second, and one second for the rest
    let slow = Duration::from_millis(900);
    for path in ["/app", "/large"] {
        assert!(took(&mut || weir.get(path).body) >= slow, "{path}");
        let mut http2 = Http2::tcp(weir.address("http")).unwrap();
        assert!(
            took(&mut || http2.fetch(&get(path)).unwrap().body) >= slow,
            "{path}"
        );
        let mut tls = weir.connect_tls("localhost");
        assert!(
            took(&mut || tls.fetch(&get(path)).unwrap().body) >= slow,
            "{path}"
        );
    }
    assert_eq!(weir.get("/fast").body.len(), large.len());
}

#[test]
fn rate_is_that_of_what_goes_out() {
    let app = Origin::start(Behaviour::Raw(
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{}",
            4 << 20,
            "a".repeat(4 << 20)
        )
        .into_bytes(),
    ));
    let weir = Weir::with("app", &app).start_site(
        "
        routes:
          - match: { path: /small }
            limit_rate: { rate: 64KiB }
            compress: true
            proxy: app
          - match: { path: /large }
            limit_rate: { rate: 4MiB }
            sub_filter: { replace: { aaaa: bbbbbbbb }, types: [text/plain] }
            proxy: app
        ",
    );
    // a minute for what came from the backend
    let began = Instant::now();
    let answer = weir.fetch(&get("/small").header("Accept-Encoding", "gzip"));
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
    assert!(answer.complete && began.elapsed() < Duration::from_secs(30));
    // 8 MiB, of which those of one second go out at once
    let began = Instant::now();
    assert_eq!(weir.get("/large").length, 8 << 20);
    assert!(began.elapsed() >= Duration::from_millis(900));
}

#[test]
fn a_route_waits_as_long_as_it_says_and_not_as_its_pool_does() {
    let app = Origin::start(Behaviour::Held("ok".into()));
    let weir = Weir::with("app", &app).start(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        pools: { app: { backends: ['{app}'], timeouts: { read: 1h } } }
        sites:
          main:
            hosts: ['*']
            timeouts: { read: 300ms }
            routes:
              - match: { path: /read }
                proxy: app
              - match: { path: /total }
                timeouts: { read: 1h, total: 300ms }
                proxy: app
        ",
    );
    for path in ["/read", "/total"] {
        assert_eq!(weir.get(path).status, 504, "{path}");
    }
}
