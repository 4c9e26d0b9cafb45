//! Files that are remembered (`open_files`), and large ones, which go from the kernel's memory to the client.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::files::Site;
use crate::harness::client::{Connection, Request, get};
use crate::harness::wait::{PATIENCE, eventually};
use crate::harness::{Setup, Weir};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Content in which every place looks different from its neighbours near and far.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251 + i / 65_521) as u8).collect()
}

/// Puts a file in the place of another as deployments do, in one step.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, content)?;
    fs::rename(new, path)
}

/// A file of that length that takes no room on the disk.
fn sparse(setup: Setup, name: &str, length: u64) -> Setup {
    let setup = setup.file(name, "");
    let file = File::options().write(true).open(setup.dir().join(name));
    file.and_then(|file| file.set_len(length)).expect("a file");
    setup
}

fn status_of_files(weir: &Weir) -> serde_json::Value {
    let run = weir.setup().run(&["status", "--json", "-c", "weir.yaml"]);
    let status: serde_json::Value = serde_json::from_str(&run.stdout).expect("JSON");
    status["files"].clone()
}

#[test]
fn replaced_file_is_served_once_what_is_known_is_no_longer_valid() {
    for length in [10, 100_000] {
        let setup = Setup::new().file("www/a", vec![b'1'; length]);
        let path = setup.dir().join("www/a");
        let site = Site::of(setup, "open_files: { valid: 1s }");
        let before = site.get("/a");
        let replaced = Instant::now();
        replace(&path, &vec![b'2'; length]).expect("replace");
        for (answer, listener) in before.into_iter().zip(["http", "static"]) {
            assert_eq!(answer.body, vec![b'1'; length]);
            let address = site.weir.address(listener);
            let after = loop {
                let mut connection = Connection::tcp(address).expect("connect");
                let asked = Instant::now();
                let after = connection.fetch(&get("/a")).expect("an answer");
                if after.body != answer.body {
                    break after;
                }
                let late = asked.saturating_duration_since(replaced + Duration::from_secs(1));
                assert_eq!(late, Duration::ZERO, "the old one was served for longer");
            };
            assert_eq!(after.body, vec![b'2'; length]);
            assert_ne!(after.header("etag"), answer.header("etag"));
        }
    }
}

#[test]
fn file_that_is_gone_is_missed_once_what_is_known_is_no_longer_valid() {
    let setup = Setup::new()
        .file("www/a", "a")
        .file("www/b", vec![b'b'; 100_000]);
    let www = setup.dir().join("www");
    let site = Site::of(setup, "open_files: { valid: 200ms }");
    for name in ["a", "b"] {
        let target = format!("/{name}");
        site.get(&target);
        fs::remove_file(www.join(name)).expect("remove");
        let is_missed = || site.get(&target).iter().all(|answer| answer.status == 404);
        eventually(PATIENCE, is_missed);
    }
}

#[test]
fn what_is_known_is_not_looked_at_and_outlasts_a_reload() {
    let setup = Setup::new().file("www/a", "one").file("www/b", "b");
    let document = "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        sites:
          main:
            hosts: ['*']
            routes: [{ files: { root: ./www, open_files: { valid: 1h } } }]
        static: { more: { bind: '127.0.0.1:{static}', root: ./www, open_files: off } }
    ";
    let path = setup.dir().join("www/a");
    let weir = setup.start(document);
    for _ in 0..4 {
        assert_eq!(weir.get("/a").text(), "one");
    }
    let files = status_of_files(&weir);
    assert_eq!(files.as_array().map(Vec::len), Some(1), "{files}");
    assert_eq!(files[0]["name"], "main.routes[0]");
    let open_files = &files[0]["open_files"];
    assert_eq!(open_files["files"], 1);
    assert_eq!(
        (&open_files["hits"], &open_files["misses"]),
        (&3.into(), &1.into())
    );
    assert!(open_files["memory"].as_u64() > Some(3), "{open_files}");
    let page = weir.setup().run(&["status", "-c", "weir.yaml"]).stdout;
    assert!(page.contains("75 % of 4 look-ups were hits"), "{page}");

    replace(&path, b"two").expect("replace");
    weir.reload(document);
    assert_eq!(weir.get("/a").text(), "one");
    let mut uncached = Connection::tcp(weir.address("static")).expect("connect");
    assert_eq!(uncached.fetch(&get("/a")).expect("an answer").text(), "two");
    // one that is served in another way is another
    weir.reload(&document.replace("valid: 1h", "valid: 2h"));
    assert_eq!(weir.get("/a").text(), "two");
}

#[test]
fn ranges_of_large_files_are_right_to_the_byte() {
    const LENGTH: u64 = 3 * MIB + 17;
    let content = pattern(LENGTH as usize);
    let setup = Setup::new().file("www/large", &content);
    let site = Site::of(setup, "hidden: false");
    for (start, end) in [
        (0, 1),
        (0, 256 * 1024),
        (1, 256 * 1024 + 1),
        (262_143, 262_145),
        (1_000_003, 2_999_999),
        (LENGTH - 1, LENGTH),
        (0, LENGTH),
    ] {
        let range = format!("bytes={start}-{}", end - 1);
        let request = get("/large").header("Range", &range);
        let part = &content[start as usize..end as usize];
        for answer in site.fetch(&request) {
            assert_eq!((answer.status, answer.complete), (206, true), "{range}");
            assert!(answer.body == part, "{range}");
        }
        let mut tls = site.weir.connect_tls("localhost");
        let answer = tls.fetch(&request).expect("an answer over TLS");
        assert!(answer.body == part, "{range} over TLS");
        let mut http2 = site.weir.connect_http2("localhost");
        let answer = http2.fetch(&request).expect("an answer over HTTP/2");
        assert!(answer.body == part, "{range} over HTTP/2");
    }
    let request = get("/large").header("Range", "bytes=5-70004, 2000000-2300000, -3");
    for answer in site.fetch(&request) {
        assert_eq!((answer.status, answer.complete), (206, true));
        for part in [
            5..70_005,
            2_000_000..2_300_001,
            LENGTH as usize - 3..LENGTH as usize,
        ] {
            let part = &content[part];
            assert!(answer.body.windows(part.len()).any(|window| window == part));
        }
    }
}

#[test]
fn connection_goes_on_behind_a_large_file() {
    let content = pattern(1_000_000);
    let setup = Setup::new()
        .file("www/large", &content)
        .file("www/small", "small");
    let site = Site::of(setup, "hidden: false");
    for listener in ["http", "static"] {
        let mut connection = Connection::tcp(site.weir.address(listener)).expect("connect");
        let asked = ["/large", "/small", "/large", "/none", "/large"];
        let all: Vec<u8> = asked
            .iter()
            .flat_map(|target| get(target).to_bytes())
            .collect();
        connection.send(&all).expect("send all at once");
        for target in asked {
            let answer = connection.read().expect("an answer");
            match target {
                "/large" => assert!(answer.body == content),
                "/small" => assert_eq!(answer.text(), "small"),
                _ => assert_eq!(answer.status, 404),
            }
        }
        let head = connection
            .fetch(&Request::new("HEAD", "/large"))
            .expect("a head");
        assert_eq!(
            (head.header("content-length"), head.length),
            (Some("1000000"), 0)
        );
        assert!(connection.fetch(&get("/large")).expect("an answer").body == content);
    }
}

#[test]
fn file_that_shrinks_while_it_is_sent_ends_the_connection() {
    for tls in [false, true] {
        let setup = sparse(Setup::new(), "www/large", 256 * MIB);
        let path = setup.dir().join("www/large");
        let site = Site::of(setup, "hidden: false");
        let mut connection = match tls {
            false => site.weir.connect(),
            true => site.weir.connect_tls("localhost"),
        };
        connection.send_request(&get("/large")).expect("send");
        let mut length = 0;
        let answer = connection.read_into("GET", |part| {
            if length == 0 {
                let file = File::options().write(true).open(&path);
                file.and_then(|file| file.set_len(MIB)).expect("shrink");
            }
            length += part.len() as u64;
        });
        let answer = answer.expect("the head of an answer");
        assert_eq!(answer.header("content-length"), Some("268435456"));
        assert!(!answer.complete && length < 256 * MIB, "{length}");
    }
}

#[test]
fn file_that_is_replaced_is_served_whole_from_the_old_or_the_new_one() {
    for length in [1000, 300_000] {
        let setup = Setup::new().file("www/a", vec![b'a'; length]);
        let path = setup.dir().join("www/a");
        let site = Site::of(setup, "open_files: { valid: 5ms }");
        let stop = AtomicBool::new(false);
        let (seen, stop) = (&mut [0_u32; 2], &stop);
        thread::scope(|scope| {
            scope.spawn(move || {
                for byte in [b'b', b'a'].into_iter().cycle() {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    replace(&path, &vec![byte; length]).expect("replace");
                }
            });
            let end = Instant::now() + PATIENCE;
            while seen.iter().any(|seen| *seen < 20) && Instant::now() < end {
                let answer = site.weir.get("/a");
                assert_eq!(answer.body.len(), length);
                let first = answer.body[0];
                assert!(answer.body.iter().all(|byte| *byte == first), "it is mixed");
                seen[usize::from(first - b'a')] += 1;
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(seen.iter().all(|seen| *seen >= 20), "{seen:?}");
    }
}

#[test]
fn slow_readers_of_a_huge_file_need_no_memory() {
    const READERS: usize = 200;
    let setup = sparse(Setup::new(), "www/huge", 5 * GIB).file("www/small", "small");
    let site = Site::of(setup, "hidden: false");
    site.get("/small");
    let before = site.weir.peak_memory();
    let mut readers = Vec::new();
    for listener in ["http", "static"] {
        for _ in 0..READERS / 2 {
            let mut reader = Connection::tcp(site.weir.address(listener)).expect("connect");
            reader.send_request(&get("/huge")).expect("send");
            reader.read_head().expect("a head"); // and nothing more
            readers.push(reader);
        }
    }
    // meanwhile others are served, and these go on
    for reader in &mut readers {
        reader.read_length(MIB, &mut |_| {}).expect("a mebibyte");
    }
    for _ in 0..20 {
        for answer in site.get("/small") {
            assert_eq!(answer.text(), "small");
        }
    }
    let grown = site.weir.peak_memory() - before;
    let each = grown / READERS as u64;
    assert!(
        each < 64 * 1024,
        "memory grew by {each} bytes for each reader"
    );
}
