//! access: who may come, by address.

use crate::harness::client::get;
use crate::harness::origin::Origin;
use crate::harness::{Setup, Weir};

#[test]
fn the_first_entry_that_has_the_address_decides() {
    let app = Origin::fixed("ok");
    let weir = Weir::with("app", &app).start_site(
        "
        routes:
          - match: { path: /in }
            access: { allow: [127.0.0.0/8], deny: [all] }
            proxy: app
          - match: { path: /out }
            access: { deny: [127.0.0.1], allow: [all] }
            proxy: app
          - match: { path: /never }
            access: { deny: [all], allow: [127.0.0.1] }
            proxy: app
          - match: { path: /list }
            access: [{ allow: 127.0.0.1 }, { deny: 127.0.0.0/8 }, { allow: all }]
            proxy: app
        ",
    );
    for (path, status) in [("/in", 200), ("/out", 403), ("/never", 403), ("/list", 200)] {
        assert_eq!(weir.get(path).status, status, "{path}");
    }
    assert_eq!(app.hits(), 2);
}

#[test]
fn the_address_is_the_one_that_a_trusted_proxy_names() {
    let weir = Setup::new().start(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        trusted_proxies: [127.0.0.0/8]
        sites:
          main:
            hosts: ['*']
            access: { deny: [192.0.2.0/24] }
            routes: [{ respond: ok }]
        ",
    );
    let from = |client| {
        weir.fetch(&get("/").header("X-Forwarded-For", client))
            .status
    };
    assert_eq!(from("192.0.2.7"), 403);
    assert_eq!(from("198.51.100.1"), 200);
}

#[test]
fn a_nearer_level_replaces_a_farther_one_and_answers_have_the_policies_of_the_route() {
    let weir = Weir::start_site(
        "
        access: { deny: [all] }
        headers: { response: { set: { X-Site: main } } }
        routes:
          - match: { path: /open }
            access: off
            respond: ok
          - respond: ok
        ",
    );
    assert_eq!(weir.get("/open").status, 200);
    let refused = weir.get("/");
    assert_eq!(
        (refused.status, refused.header("x-site")),
        (403, Some("main"))
    );
}

#[test]
fn networks_come_from_a_file_and_change_with_a_reload() {
    const DOCUMENT: &str = "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        sites:
          main:
            hosts: ['*']
            access: { deny: [{ file: blocked.txt }] }
            routes: [{ respond: ok }]
    ";
    let setup = Setup::new()
        .allow("reload failed")
        .allow("blocked.txt")
        .file("blocked.txt", "# nobody\n192.0.2.0/24\n");
    let weir = setup.start(DOCUMENT);
    assert_eq!(weir.get("/").status, 200);
    weir.setup().write("blocked.txt", "127.0.0.0/8 # us\n");
    weir.reload(DOCUMENT);
    assert_eq!(weir.get("/").status, 403);
    weir.setup().write("blocked.txt", "127.0.0.1\nhere\n");
    let said = weir.reload_in_vain(DOCUMENT);
    assert!(said.contains("blocked.txt`, line 2"), "{said}");
    assert_eq!(weir.get("/").status, 403);
}
