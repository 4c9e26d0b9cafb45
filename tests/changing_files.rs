//! Files that change while they are served: what a client gets is whole, or seen not to be.

use std::collections::HashMap;
use std::fs::{self, File, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;

use crate::files::Site;
use crate::harness::client::{Connection, Http2, Response, get};
use crate::harness::wait::{PATIENCE, eventually};
use crate::harness::{Setup, Weir};

/// More than the sockets between weir and a client who does not read can hold.
const HUGE: u64 = 48 << 20;

#[test]
fn truncated_file_is_never_padded_nor_called_complete() {
    let setup = Setup::new().file("www/file", vec![b'x'; HUGE as usize]);
    let site = Site::of(setup, "hidden: false");
    let (begun, shortened) = (Barrier::new(7), Barrier::new(7));
    let download = |address: SocketAddr| {
        let mut connection = Connection::tcp(address).expect("connect");
        connection.send_request(&get("/file")).expect("send");
        let head = connection.read_final_head().expect("a head");
        assert_eq!(
            head.headers.get("content-length"),
            Some(HUGE.to_string().as_str())
        );
        begun.wait();
        shortened.wait();
        let mut received = 0;
        let body = connection.read_length(HUGE, &mut |part| {
            assert!(part.iter().all(|byte| *byte == b'x'));
            received += part.len() as u64;
        });
        assert!(body.is_err() && received <= HUGE / 2, "{received} bytes");
        connection.read_close().expect("the end of the connection");
    };
    thread::scope(|scope| {
        for listener in ["http", "static"].repeat(3) {
            let (download, address) = (&download, site.weir.address(listener));
            scope.spawn(move || download(address));
        }
        begun.wait();
        let path = site.weir.dir().join("www/file");
        let file = File::options().write(true).open(path).expect("open");
        file.set_len(HUGE / 2).expect("truncate");
        shortened.wait();
    });
    for answer in site.get("/file") {
        assert_eq!((answer.complete, answer.length), (true, HUGE / 2));
    }
}

#[test]
fn replaced_file_is_served_whole_from_one_version() {
    const VERSIONS: u8 = 120;
    // one that is read at once, one that is sent in pieces; each version has its letter and its length
    let files = [("small", 1000), ("large", 700_000)];
    let length = |base: usize, version: u8| base + usize::from(version);
    let content = |base, version| vec![version; length(base, version)];
    let setup = Setup::new()
        .file("www/small", content(1000, 0))
        .file("www/large", content(700_000, 0));
    let site = Site::of(setup, "hidden: false");
    let www = site.weir.dir().join("www");
    let tags = Mutex::new(HashMap::new());
    under_load(
        &site.weir,
        &["/small", "/large"],
        |target, answer| {
            assert_eq!((answer.status, answer.complete), (200, true), "{target}");
            let version = answer.body[0];
            let (_, base) = files[usize::from(target == "/large")];
            assert_eq!(answer.body.len(), length(base, version), "{target}");
            assert!(answer.body.iter().all(|byte| *byte == version), "{target}");
            let tag = answer.header("etag").expect("a tag").to_owned();
            let mut tags = tags.lock().expect("no client panics with it");
            let known = *tags.entry((target.to_owned(), tag)).or_insert(version);
            assert_eq!(known, version, "one tag for two versions");
        },
        || {
            for version in 1..=VERSIONS {
                for (name, base) in files {
                    let new = www.join("new");
                    fs::write(&new, content(base, version)).expect("write");
                    fs::rename(&new, www.join(name)).expect("rename");
                }
            }
        },
    );
    eventually(PATIENCE, || {
        let mut answers = site.get("/large").into_iter();
        answers.all(|answer| answer.body[0] == VERSIONS)
    });
}

#[test]
fn renamed_folders_lead_nowhere_else() {
    let setup = Setup::new()
        .file("www/a/deep/er/file", "inside a")
        .file("www/b/deep/er/file", "inside b")
        .file("outside/deep/er/file", "outside")
        .file("www/b/index.html", "inside b");
    let site = Site::of(setup, "hidden: false");
    let dir = site.weir.dir().to_owned();
    let rename = |from: &str, to: &str| {
        fs::rename(dir.join(from), dir.join(to)).expect("rename");
    };
    under_load(
        &site.weir,
        &["/a/deep/er/file", "/b/", "/b/deep/../deep/er/file"],
        |target, answer| match answer.status {
            200 => assert!(answer.text().starts_with("inside"), "{target}: {answer:?}"),
            status => assert_eq!(status, 404, "{target}"),
        },
        || {
            for _ in 0..400 {
                rename("www/a", "www/c");
                rename("www/b", "www/a");
                rename("www/c", "www/b");
                // out of the root and in again, with what climbs from it ending elsewhere
                rename("www/b/deep", "moved");
                rename("moved", "www/b/deep");
            }
        },
    );
}

#[test]
fn permission_taken_away_is_forbidden() {
    let setup = Setup::new()
        .file("www/file", "content")
        .file("www/folder/file", "content");
    // root may read everything
    let user = match nix::unistd::geteuid().is_root() {
        true => "user: nobody",
        false => "",
    };
    let weir = setup.start(&format!(
        "
        {user}
        listeners: {{ http: {{ bind: '127.0.0.1:{{http}}' }} }}
        sites: {{ main: {{ hosts: ['*'], routes: [{{ files: ./www }}] }} }}
        "
    ));
    let permit = |path: &Path, mode| {
        fs::set_permissions(path, Permissions::from_mode(mode)).expect("change permissions");
    };
    for (closed, mode) in [("www/file", 0o644), ("www/folder", 0o755)] {
        let path = weir.dir().join(closed);
        let target = match closed {
            "www/file" => "/file",
            _ => "/folder/file",
        };
        assert_eq!(weir.get(target).text(), "content");
        permit(&path, 0);
        eventually(PATIENCE, || weir.get(target).status == 403);
        permit(&path, mode);
        eventually(PATIENCE, || weir.get(target).status == 200);
    }
}

/// Asks for `targets` from several clients, at the route and at the companion, over HTTP/1 and HTTP/2, for as long as `change`
/// runs; `judge` sees each answer.
fn under_load(
    weir: &Weir,
    targets: &[&str],
    judge: impl Fn(&str, &Response) + Sync,
    change: impl FnOnce(),
) {
    let over = AtomicBool::new(false);
    let ask = |fetch: &mut dyn FnMut(&str) -> Response| {
        let mut rounds = 0;
        // some rounds in any case: a client may start late
        while rounds < 10 || !over.load(Ordering::Relaxed) {
            for target in targets {
                judge(target, &fetch(target));
            }
            rounds += 1;
        }
    };
    let http1 = |address: SocketAddr| {
        let mut connection = Connection::tcp(address).expect("connect");
        ask(&mut |target| connection.fetch(&get(target)).expect("an answer"));
    };
    let http2 = |mut connection: Http2| {
        ask(&mut |target| connection.fetch(&get(target)).expect("an answer"));
    };
    thread::scope(|scope| {
        let (ask_http1, ask_http2) = (&http1, &http2);
        for listener in ["http", "static"] {
            let address = weir.address(listener);
            let connection = Http2::tcp(address).expect("connect");
            scope.spawn(move || ask_http1(address));
            scope.spawn(move || ask_http2(connection));
        }
        let connection = weir.connect_http2("localhost");
        scope.spawn(move || ask_http2(connection));
        change();
        over.store(true, Ordering::Relaxed);
    });
}
