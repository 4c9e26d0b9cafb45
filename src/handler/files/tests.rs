use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use http::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH,
    CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    LAST_MODIFIED, RANGE, VARY,
};
use nix::sys::stat::Mode;
use nix::unistd::{Uid, mkfifo, setfsuid};
use pingora::http::RequestHeader;
use tokio::runtime::{Builder, Runtime};

use super::resource::SMALL;
use super::*;
use crate::build::Build;
use crate::exchange::{Body, Cx, Parts};
use crate::issue::{At, Severity, Sources};
use crate::value::FromShort;

/// A folder with `www` inside, and beside it what must never be served. Removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("weir-files-{}-{number}", process::id()));
        fs::create_dir_all(path.join("www")).unwrap();
        // /tmp may be a link itself
        let folder = Folder(path.canonicalize().unwrap());
        fs::write(folder.0.join("secret"), "secret").unwrap();
        folder
    }

    fn www(&self) -> PathBuf {
        self.0.join("www")
    }

    fn at(&self, relative: &str) -> PathBuf {
        self.www().join(relative)
    }

    fn write(&self, relative: &str, content: impl AsRef<[u8]>) -> &Folder {
        let path = self.at(relative);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    fn link(&self, relative: &str, target: impl AsRef<Path>) -> &Folder {
        symlink(target, self.at(relative)).unwrap();
        self
    }

    fn files(&self) -> Files {
        self.compile("{}").unwrap()
    }

    /// Files by each way of opening them.
    fn both(&self) -> [Files; 2] {
        self.both_with("{}")
    }

    fn both_with(&self, keys: &str) -> [Files; 2] {
        let mut walking = self.compile(keys).unwrap();
        let root = Root::open(&self.www(), walking.root.symlinks()).unwrap();
        walking.root = Arc::new(root.without_openat2());
        [self.compile(keys).unwrap(), walking]
    }

    /// With keys beside `root`.
    fn compile(&self, keys: &str) -> Result<Files, String> {
        let mut value: serde_yaml::Mapping = serde_yaml::from_str(keys).unwrap();
        value
            .entry("root".into())
            .or_insert_with(|| self.www().to_str().unwrap().into());
        // most tests change a file and look at once
        value
            .entry("open_files".into())
            .or_insert_with(|| "off".into());
        let config: Config = serde_yaml::from_value(value.into()).map_err(|e| e.to_string())?;
        let sources = Sources::default();
        let mut b = Build::new(&sources);
        let files = config.compile(&At::Root, &mut b);
        match b
            .issues
            .0
            .iter()
            .find(|issue| issue.severity == Severity::Error)
        {
            Some(issue) => Err(format!("{}: {}", issue.path, issue.message)),
            None => Ok(files.unwrap()),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The answer to a request whose path is `path` when it comes to the files.
fn serve(
    files: &Files,
    method: Method,
    lines: &[(HeaderName, &str)],
    path: &str,
    query: Option<&str>,
) -> Reply {
    let mut cx = cx();
    cx.path = path.to_owned();
    let target = query.map_or("/".to_owned(), |query| format!("/?{query}"));
    serve_in(files, method, lines, &cx, &target)
}

fn serve_in(
    files: &Files,
    method: Method,
    lines: &[(HeaderName, &str)],
    cx: &Cx,
    target: &str,
) -> Reply {
    thread_local! {
        static RUNTIME: Runtime = Builder::new_current_thread().build().unwrap();
    }
    let mut request = RequestHeader::build(method, target.as_bytes(), None).unwrap();
    for (name, value) in lines {
        request.append_header(name.clone(), *value).unwrap();
    }
    let view = View {
        cx,
        request: &request,
        response: None,
        wall: SystemTime::UNIX_EPOCH,
    };
    let served = RUNTIME.with(|runtime| runtime.block_on(files.serve(&view)));
    served.unwrap_or_else(|elsewhere| elsewhere.otherwise)
}

fn cx() -> Cx {
    Cx::new(Instant::now(), Arc::default())
}

fn get(files: &Files, path: &str) -> Reply {
    serve(files, Method::GET, &[], path, None)
}

fn get_if(files: &Files, path: &str, lines: &[(HeaderName, &str)]) -> Reply {
    serve(files, Method::GET, lines, path, None)
}

/// What a client gets for a path as it would write it.
fn status_of_raw(files: &Files, raw: &str) -> u16 {
    match path::normalise(raw) {
        Ok(path) => status(&get(files, &path)),
        Err(_) => 400,
    }
}

fn status(reply: &Reply) -> u16 {
    reply.head.status.as_u16()
}

fn header(reply: &Reply, name: HeaderName) -> Option<&str> {
    Some(reply.head.headers.get(name)?.to_str().unwrap())
}

fn content(reply: &Reply) -> Vec<u8> {
    match &reply.body {
        Body::Empty => Vec::new(),
        Body::Bytes(bytes) => bytes.to_vec(),
        Body::File {
            file,
            start,
            length,
        } => {
            let mut bytes = vec![0; usize::try_from(*length).unwrap()];
            file.read_exact_at(&mut bytes, *start).unwrap();
            bytes
        }
        Body::Parts(Parts { file, parts, end }) => {
            let mut bytes = Vec::new();
            for (before, part) in parts {
                let mut content = vec![0; usize::try_from(part.end - part.start).unwrap()];
                file.read_exact_at(&mut content, part.start).unwrap();
                bytes.extend_from_slice(before);
                bytes.append(&mut content);
            }
            bytes.extend_from_slice(end);
            assert_eq!(bytes.len() as u64, reply.body.length());
            bytes
        }
    }
}

#[test]
fn a_file_is_served_with_its_facts() {
    let folder = Folder::new();
    folder.write("a/page.html", "<p>hello");
    for files in folder.both() {
        let reply = get(&files, "/a/page.html");
        assert_eq!(status(&reply), 200);
        assert_eq!(content(&reply), b"<p>hello");
        assert_eq!(
            header(&reply, CONTENT_TYPE),
            Some("text/html; charset=utf-8")
        );
        assert_eq!(header(&reply, ACCEPT_RANGES), Some("bytes"));
        assert_eq!(header(&reply, CONTENT_LENGTH), Some("8"));
        assert!(header(&reply, LAST_MODIFIED).unwrap().ends_with(" GMT"));
        assert!(header(&reply, ETAG).unwrap().starts_with('"'));
    }
}

#[test]
fn names_may_hold_any_character_but_a_few() {
    let folder = Folder::new();
    for name in ["ü b.txt", "a%20b", "a?b#c", "..a", "a\nb"] {
        folder.write(name, "x");
    }
    let files = folder.compile("hidden: true").unwrap();
    for raw in [
        "/%C3%BC%20b.txt",
        "/ü%20b.txt",
        "/a%2520b",
        "/a%3Fb%23c",
        "/..a",
        "/a%0ab",
    ] {
        assert_eq!(status_of_raw(&files, raw), 200, "{raw}");
    }
}

#[test]
fn small_files_come_as_bytes_and_large_ones_as_files() {
    let folder = Folder::new();
    let large = vec![b'x'; SMALL as usize + 1];
    folder
        .write("small", &large[1..])
        .write("large", &large)
        .write("empty", "");
    let files = folder.files();
    let small = get(&files, "/small");
    assert!(matches!(&small.body, Body::Bytes(bytes) if bytes.len() as u64 == SMALL));
    let large = get(&files, "/large");
    assert!(matches!(large.body, Body::File { start: 0, length, .. } if length == SMALL + 1));
    assert_eq!(content(&large).len() as u64, SMALL + 1);
    let empty = get(&files, "/empty");
    assert_eq!((status(&empty), empty.body.length()), (200, 0));
}

#[test]
fn a_part_of_a_large_file_is_a_part_of_it() {
    let folder = Folder::new();
    let large: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    folder.write("large", &large);
    let files = folder.files();
    for part in [0..1usize, 1000..1010, 1000..200_000, 299_999..300_000] {
        let range = format!("bytes={}-{}", part.start, part.end - 1);
        let reply = get_if(&files, "/large", &[(RANGE, &range)]);
        assert_eq!(status(&reply), 206);
        assert_eq!(content(&reply), large[part]);
    }
}

#[test]
fn ranges() {
    let folder = Folder::new();
    folder.write("a.txt", "0123456789").write("empty", "");
    let files = folder.files();
    for (range, code, content_range, body) in [
        ("bytes=2-4", 206, Some("bytes 2-4/10"), "234"),
        ("bytes=8-", 206, Some("bytes 8-9/10"), "89"),
        ("bytes=-1", 206, Some("bytes 9-9/10"), "9"),
        ("bytes=0-99", 206, Some("bytes 0-9/10"), "0123456789"),
        ("bytes=10-", 416, Some("bytes */10"), ""),
        ("bytes=-0", 416, Some("bytes */10"), ""),
        ("bytes=4-2", 200, None, "0123456789"),
        ("bytes=0-1,2-4", 206, Some("bytes 0-4/10"), "01234"),
        ("bytes=20-,9-,-0", 206, Some("bytes 9-9/10"), "9"),
        ("bytes=10-,-0", 416, Some("bytes */10"), ""),
        ("bytes=0-1,x", 200, None, "0123456789"),
        ("lines=1-2", 200, None, "0123456789"),
    ] {
        let reply = get_if(&files, "/a.txt", &[(RANGE, range)]);
        assert_eq!(status(&reply), code, "{range}");
        assert_eq!(header(&reply, CONTENT_RANGE), content_range, "{range}");
        assert_eq!(content(&reply), body.as_bytes(), "{range}");
    }
    let empty = get_if(&files, "/empty", &[(RANGE, "bytes=0-")]);
    assert_eq!(header(&empty, CONTENT_RANGE), Some("bytes */0"));
}

#[test]
fn a_range_counts_only_for_the_version_that_if_range_names() {
    let folder = Folder::new();
    folder.write("a.txt", "0123456789");
    let files = folder.files();
    let whole = get(&files, "/a.txt");
    let (etag, date) = (
        header(&whole, ETAG).unwrap(),
        header(&whole, LAST_MODIFIED).unwrap(),
    );
    let weak = format!("W/{etag}");
    for (value, code) in [
        (etag, 206),
        (date, 206),
        (&weak, 200),
        ("\"other\"", 200),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 200),
    ] {
        let lines = [(RANGE, "bytes=0-1"), (IF_RANGE, value)];
        assert_eq!(status(&get_if(&files, "/a.txt", &lines)), code, "{value}");
    }
    let lines = [(RANGE, "bytes=50-"), (IF_RANGE, "\"other\"")];
    assert_eq!(status(&get_if(&files, "/a.txt", &lines)), 200);
}

#[test]
fn preconditions() {
    let folder = Folder::new();
    folder.write("a.txt", "0123456789");
    let files = folder.files();
    let whole = get(&files, "/a.txt");
    let (etag, date) = (
        header(&whole, ETAG).unwrap(),
        header(&whole, LAST_MODIFIED).unwrap(),
    );
    for (name, value) in [
        (IF_NONE_MATCH, etag),
        (IF_NONE_MATCH, "*"),
        (IF_MODIFIED_SINCE, date),
    ] {
        let lines = [(name, value), (RANGE, "bytes=50-")];
        for method in [Method::GET, Method::HEAD] {
            let reply = serve(&files, method.clone(), &lines, "/a.txt", None);
            assert_eq!(status(&reply), 304, "{method} {lines:?}");
            assert!(matches!(reply.body, Body::Empty));
            assert_eq!(header(&reply, ETAG), Some(etag));
            assert_eq!(header(&reply, LAST_MODIFIED), Some(date));
            assert_eq!(header(&reply, CONTENT_LENGTH), None);
            assert_eq!(header(&reply, CONTENT_TYPE), None);
        }
    }
    let reply = get_if(&files, "/a.txt", &[(IF_MATCH, "\"other\"")]);
    assert_eq!(status(&reply), 412);
    let lines = [(IF_NONE_MATCH, "\"other\""), (IF_MODIFIED_SINCE, date)];
    assert_eq!(status(&get_if(&files, "/a.txt", &lines)), 200);
}

#[test]
fn each_version_of_a_file_has_its_own_tag() {
    let folder = Folder::new();
    folder.write("a", "one").write("b", "one");
    let files = folder.files();
    let tag = |path: &str| header(&get(&files, path), ETAG).unwrap().to_owned();
    let first = tag("/a");
    assert_eq!(tag("/a"), first);
    let file = File::options().write(true).open(folder.at("a")).unwrap();
    let time = file.metadata().unwrap().modified().unwrap();
    file.set_modified(time + Duration::from_nanos(1)).unwrap();
    let second = tag("/a");
    assert_ne!(second, first);
    file.set_len(2).unwrap();
    file.set_modified(time).unwrap();
    assert_ne!(tag("/a"), first);
    File::options()
        .write(true)
        .open(folder.at("b"))
        .unwrap()
        .set_modified(time)
        .unwrap();
    assert_ne!(tag("/b"), first);
}

#[test]
fn a_time_that_no_header_can_express_does_no_harm() {
    let folder = Folder::new();
    folder.write("a", "x");
    let file = File::options().write(true).open(folder.at("a")).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH - Duration::from_secs(5))
        .unwrap();
    let reply = get_if(
        &folder.files(),
        "/a",
        &[(IF_MODIFIED_SINCE, "Thu, 01 Jan 1970 00:00:00 GMT")],
    );
    assert_eq!(status(&reply), 200);
    assert_eq!(header(&reply, LAST_MODIFIED), None);
    assert!(header(&reply, ETAG).is_some());
}

#[test]
fn head_is_get_without_the_body() {
    let folder = Folder::new();
    folder
        .write("small.txt", "hello")
        .write("large.txt", vec![0; 100_000]);
    let files = folder.files();
    for path in ["/small.txt", "/large.txt"] {
        let get = get(&files, path);
        let lines = [(RANGE, "bytes=0-1")];
        let head = serve(&files, Method::HEAD, &lines, path, None);
        assert_eq!(status(&head), 200);
        assert!(matches!(head.body, Body::Empty));
        let length = get.body.length().to_string();
        assert_eq!(header(&head, CONTENT_LENGTH), Some(&*length));
        for name in [CONTENT_TYPE, ETAG, LAST_MODIFIED, ACCEPT_RANGES] {
            assert_eq!(header(&head, name.clone()), header(&get, name));
        }
    }
    let head = serve(&files, Method::HEAD, &[], "/missing", None);
    assert_eq!(status(&head), 404);
}

#[test]
fn other_methods() {
    let folder = Folder::new();
    folder.write("a", "x");
    let files = folder.files();
    for (method, code) in [
        (Method::OPTIONS, 204),
        (Method::POST, 405),
        (Method::PUT, 405),
        (Method::DELETE, 405),
        (Method::TRACE, 405),
        (Method::from_bytes(b"PROPFIND").unwrap(), 405),
    ] {
        let reply = serve(&files, method.clone(), &[], "/a", None);
        assert_eq!(status(&reply), code, "{method}");
        assert_eq!(header(&reply, ALLOW), Some("GET, HEAD, OPTIONS"));
        assert_eq!(reply.body.length(), 0);
    }
}

#[test]
fn a_folder_answers_with_its_index() {
    let folder = Folder::new();
    folder
        .write("index.html", "root")
        .write("a/index.html", "a")
        .write("b/home.htm", "b")
        .write("c/x", "")
        .write("d/home.htm/index.html", "d")
        .write("d/index.html", "the second choice");
    for files in folder.both() {
        assert_eq!(content(&get(&files, "/")), b"root");
        let a = get(&files, "/a/");
        assert_eq!(content(&a), b"a");
        assert_eq!(header(&a, CONTENT_TYPE), Some("text/html; charset=utf-8"));
        for path in ["/b/", "/c/", "/missing/"] {
            assert_eq!(status(&get(&files, path)), 404, "{path}");
        }
    }
    let files = folder.compile("index: [home.htm, index.html]").unwrap();
    assert_eq!(content(&get(&files, "/b/")), b"b");
    assert_eq!(content(&get(&files, "/a/")), b"a");
    assert_eq!(content(&get(&files, "/d/")), b"the second choice");
    let files = folder.compile("index: []").unwrap();
    assert_eq!(status(&get(&files, "/")), 404);
}

#[test]
fn a_folder_without_slash_is_redirected() {
    let folder = Folder::new();
    folder
        .write("a/b c/x", "")
        .write("ü/x", "")
        .write("q?#%/x", "")
        .write("a/evil.com/x", "");
    for files in folder.both() {
        for (path, query, location) in [
            ("/a", None, "/a/"),
            ("/a", Some(""), "/a/?"),
            ("/a", Some("x=1&y=%20?/"), "/a/?x=1&y=%20?/"),
            ("/a", Some("x=ü"), "/a/?x=%C3%BC"),
            ("/a/b c", None, "/a/b%20c/"),
            ("/ü", None, "/%C3%BC/"),
            ("/q?#%", None, "/q%3F%23%25/"),
            ("/a/evil.com", None, "/a/evil.com/"),
        ] {
            let reply = serve(&files, Method::GET, &[], path, query);
            assert_eq!(status(&reply), 301, "{path}");
            assert_eq!(header(&reply, LOCATION), Some(location));
        }
        // what a rewrite may make of a path
        for path in ["//a", "//evil.com", "/\\a", "/a/../a", "/./a", "a", ""] {
            assert_eq!(status(&get(&files, path)), 404, "{path}");
        }
    }
}

#[test]
fn dot_files_are_hidden() {
    let folder = Folder::new();
    folder
        .write(".env", "")
        .write(".git/config", "")
        .write("a/.htpasswd", "")
        .write("a/b.", "x")
        .write(".well-known/acme", "x")
        .write(".well-known/.hidden", "");
    for files in folder.both() {
        for path in [
            "/.env",
            "/.git",
            "/.git/",
            "/.git/config",
            "/a/.htpasswd",
            "/.well-known/.hidden",
        ] {
            assert_eq!(status(&get(&files, path)), 404, "{path}");
        }
        for path in ["/.well-known/acme", "/a/b."] {
            assert_eq!(status(&get(&files, path)), 200, "{path}");
        }
    }
    let files = folder.compile("hidden: true").unwrap();
    for path in [
        "/.env",
        "/.git/config",
        "/a/.htpasswd",
        "/.well-known/.hidden",
    ] {
        assert_eq!(status(&get(&files, path)), 200, "{path}");
    }
}

#[test]
fn nothing_escapes() {
    let folder = Folder::new();
    folder
        .write("a/index.html", "a")
        .link("absolute", folder.0.join("secret"))
        .link("absolute-folder", &folder.0)
        .link("relative", "../secret")
        .link("a/deeper", "../../secret")
        .link("etc", "/etc")
        .link("magic", "/proc/self/root")
        .link("magic-cwd", "/proc/self/cwd")
        .link("two-steps", "relative")
        .link("www-not", folder.0.join("www-not"))
        .link("index.html", "../secret");
    // shares a prefix with the root, but is another folder
    fs::create_dir(folder.0.join("www-not")).unwrap();
    fs::write(folder.0.join("www-not/file"), "secret").unwrap();
    for mut files in folder.both() {
        for hidden in [false, true] {
            files.hidden = hidden;
            for raw in [
                "/../secret",
                "/..%2fsecret",
                "/%2e%2e/secret",
                "/%2e%2e%2fsecret",
                "/.%2e/secret",
                "/a/../../secret",
                "/a/%2e%2e/%2e%2e/secret",
                "/a%2f..%2f..%2fsecret",
                "//../secret",
                "/%2f../secret",
                "/%252e%252e/secret",
                "/%252e%252e%252fsecret",
                "/..%5csecret",
                "/..\\secret",
                "/a%5c..%5c..%5csecret",
                "/..%c0%afsecret",
                "/%c0%ae%c0%ae/secret",
                "/..;/secret",
                "/.../secret",
                "/....//secret",
                "/secret%00.html",
                "//etc/passwd",
                "/%2fetc/passwd",
                "/absolute",
                "/absolute-folder/secret",
                "/relative",
                "/a/deeper",
                "/etc/passwd",
                "/magic/etc/passwd",
                "/magic-cwd/Cargo.toml",
                "/two-steps",
                "/www-not/file",
                "/",
            ] {
                let code = status_of_raw(&files, raw);
                assert!(code == 404 || code == 400, "{raw}: {code}");
            }
            // and where nothing normalised them
            for path in [
                "/../secret",
                "/a/../../secret",
                "//etc/passwd",
                "/a\0",
                "/..",
                "/../www/a/",
            ] {
                assert_eq!(status(&get(&files, path)), 404, "{path}");
            }
        }
    }
}

#[test]
fn links_within_are_followed() {
    let folder = Folder::new();
    folder
        .write("releases/5/page.html", "five")
        .write("releases/5/index.html", "index")
        .link("relative", "releases/5/page.html")
        .link("current", "releases/5")
        .link("absolute", folder.at("releases/5/page.html"))
        .link("absolute-folder", folder.at("releases/5"))
        .link("out-and-in", "../www/releases/5/page.html")
        .link("releases/up", "../current")
        .link("self", folder.www());
    for files in folder.both() {
        for path in [
            "/relative",
            "/current/page.html",
            "/absolute",
            "/absolute-folder/page.html",
            "/out-and-in",
            "/releases/up/page.html",
            "/self/relative",
        ] {
            let reply = get(&files, path);
            assert_eq!(
                (status(&reply), content(&reply)),
                (200, b"five".to_vec()),
                "{path}"
            );
        }
        assert_eq!(status(&get(&files, "/current")), 301);
        assert_eq!(status(&get(&files, "/absolute-folder")), 301);
        assert_eq!(status(&get(&files, "/self")), 301);
        assert_eq!(content(&get(&files, "/current/")), b"index");
    }
}

#[test]
fn links_that_lead_nowhere_are_missing() {
    let folder = Folder::new();
    folder
        .link("loop", "loop")
        .link("a", "b")
        .link("b", "a")
        .link("dangling", "gone");
    folder.link("outside", folder.0.join("gone"));
    for files in folder.both() {
        for path in [
            "/loop",
            "/a",
            "/b/x",
            "/loop/",
            "/dangling",
            "/dangling/x",
            "/outside",
        ] {
            assert_eq!(status(&get(&files, path)), 404, "{path}");
        }
    }
}

#[test]
fn only_regular_files_are_served() {
    let folder = Folder::new();
    mkfifo(&folder.at("fifo"), Mode::from_bits_truncate(0o666)).unwrap();
    fs::create_dir(folder.at("dir")).unwrap();
    mkfifo(
        &folder.at("dir/index.html"),
        Mode::from_bits_truncate(0o666),
    )
    .unwrap();
    let _listener = UnixListener::bind(folder.at("socket")).unwrap();
    folder.link("tty", "/dev/tty").link("null", "/dev/null");
    for files in folder.both() {
        for path in ["/fifo", "/fifo/", "/dir/", "/socket", "/tty", "/null"] {
            assert_eq!(status(&get(&files, path)), 404, "{path}");
        }
    }
}

#[test]
fn a_file_is_no_folder() {
    let folder = Folder::new();
    folder.write("a.txt", "x");
    for files in folder.both() {
        for path in ["/a.txt/", "/a.txt/b", "/a.txt/b/", "/missing", "/missing/b"] {
            assert_eq!(status(&get(&files, path)), 404, "{path}");
        }
    }
}

#[test]
fn names_that_are_too_long_are_missing() {
    let folder = Folder::new();
    for files in folder.both() {
        assert_eq!(status(&get(&files, &format!("/{}", "a".repeat(300)))), 404);
        assert_eq!(status(&get(&files, &"/a".repeat(5000))), 404);
        assert_eq!(
            status(&get(&files, &format!("{}/", "/a".repeat(5000)))),
            404
        );
    }
}

#[test]
fn what_may_not_be_read_is_forbidden() {
    let folder = Folder::new();
    folder
        .write("unreadable", "x")
        .write("closed/file", "x")
        .write("enter-only/file", "x")
        .write("index/index.html", "x");
    for (relative, mode) in [
        ("unreadable", 0),
        ("closed", 0),
        ("enter-only", 0o711),
        ("index/index.html", 0),
    ] {
        fs::set_permissions(folder.at(relative), fs::Permissions::from_mode(mode)).unwrap();
    }
    let both = folder.both();
    let ask = || {
        // as somebody whom permissions bind, in this thread only
        setfsuid(Uid::from_raw(65534));
        for files in &both {
            for (path, code) in [
                ("/unreadable", 403),
                ("/closed", 301),
                ("/closed/file", 403),
                ("/closed/", 403),
                ("/enter-only/file", 200),
                ("/index/", 403),
            ] {
                assert_eq!(status(&get(files, path)), code, "{path}");
            }
            let reply = get(files, "/enter-only");
            assert_eq!(
                (status(&reply), header(&reply, LOCATION)),
                (301, Some("/enter-only/"))
            );
        }
    };
    thread::scope(|scope| scope.spawn(ask).join()).unwrap();
    fs::set_permissions(folder.at("closed"), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_link_that_changes_never_leads_outside() {
    let folder = Folder::new();
    folder.write("inside/file", "inside");
    fs::create_dir(folder.0.join("outside")).unwrap();
    fs::write(folder.0.join("outside/file"), "outside").unwrap();
    let both = folder.both();
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..2000 {
                let target = match round % 2 {
                    0 => folder.0.join("outside"),
                    _ => folder.at("inside"),
                };
                let next = folder.0.join("next");
                symlink(target, &next).unwrap();
                fs::rename(next, folder.at("link")).unwrap();
            }
        });
        for files in &both {
            scope.spawn(move || {
                for _ in 0..2000 {
                    let reply = get(files, "/link/file");
                    match status(&reply) {
                        200 => assert_eq!(content(&reply), b"inside"),
                        code => assert_eq!(code, 404),
                    }
                }
            });
        }
    });
}

#[test]
fn a_bad_root_is_found_while_loading() {
    let folder = Folder::new();
    folder.write("file", "");
    let error = |keys: String| folder.compile(&keys).unwrap_err();
    let missing = folder.at("missing").display().to_string();
    assert_eq!(
        error(format!("root: {missing}")),
        format!("root: there is no folder `{missing}`")
    );
    let file = folder.at("file").display().to_string();
    assert_eq!(
        error(format!("root: {file}")),
        format!("root: `{file}` is not a folder")
    );
    assert_eq!(error("root: ''".to_owned()), ": needs a folder: `root`");
}

#[test]
fn a_bad_index_is_found_while_loading() {
    let folder = Folder::new();
    for name in ["''", "a/b", "/index.html", "..", "'a\\b'"] {
        let error = folder
            .compile(&format!("index: [index.html, {name}]"))
            .unwrap_err();
        assert!(error.starts_with("index[1]: "), "{error}");
    }
}

#[test]
fn keys_are_those_of_the_manual() {
    let folder = Folder::new();
    assert!(
        folder
            .compile("autoindex: true")
            .unwrap_err()
            .contains("unknown field `autoindex`")
    );
    let short = Config::from_short("./www").unwrap();
    let long: Config = serde_yaml::from_str("root: ./www").unwrap();
    assert_eq!(short, long);
    assert_eq!(long.index, ["index.html"]);
    assert!(!long.hidden);
}

#[test]
fn the_first_that_exists_of_try_answers() {
    let folder = Folder::new();
    folder
        .write("index.html", "app")
        .write("a.txt", "a")
        .write("page.html", "page")
        .write("docs/index.html", "docs")
        .write("assets/x.js", "x")
        .write(".env", "secret");
    let files = folder
        .compile("try: ['$uri', '$uri.html', '$uri/', /index.html]")
        .unwrap();
    for (path, body) in [
        ("/a.txt", "a"),
        ("/page", "page"),
        ("/docs/", "docs"),
        ("/", "app"),
        ("/some/view", "app"),
        ("/some/view/", "app"),
        ("/a.txt/", "app"),
        // a folder with nothing to show
        ("/assets", "app"),
        ("/assets/", "app"),
        ("/assets/x.js", "x"),
        ("/assets/y.js", "app"),
        ("/.env", "app"),
    ] {
        let reply = get(&files, path);
        assert_eq!(
            (status(&reply), content(&reply)),
            (200, body.as_bytes().to_vec()),
            "{path}"
        );
    }
    let reply = serve(&files, Method::GET, &[], "/docs", Some("q"));
    assert_eq!(
        (status(&reply), header(&reply, LOCATION)),
        (301, Some("/docs/?q"))
    );
}

#[test]
fn try_may_end_with_a_status() {
    let folder = Folder::new();
    folder.write("a.txt", "a").write("sub/index.html", "sub");
    for (written, code) in [("['$uri', =410]", 410), ("['$uri']", 404)] {
        let files = folder.compile(&format!("try: {written}")).unwrap();
        assert_eq!(status(&get(&files, "/a.txt")), 200);
        for path in ["/none", "/sub", "/sub/", "/"] {
            assert_eq!(status(&get(&files, path)), code, "{written} {path}");
        }
    }
}

#[test]
fn try_takes_any_variable_but_leads_nowhere_else() {
    let folder = Folder::new();
    folder
        .write("shop.example/a", "a of shop")
        .write("spare/index.html", "spare");
    folder.write("lang/de", "deutsch");
    let files = folder
        .compile("try: ['/$host$uri', '/lang/$arg_l', '$arg_l', /spare/]")
        .unwrap();
    let ask = |path: &str, query: &str| {
        let mut cx = cx();
        cx.host = "shop.example".to_owned();
        cx.path = path.to_owned();
        let target = format!("/?{query}");
        String::from_utf8(content(&serve_in(&files, Method::GET, &[], &cx, &target))).unwrap()
    };
    assert_eq!(ask("/a", ""), "a of shop");
    assert_eq!(ask("/b", "l=de"), "deutsch");
    for query in ["l=../../secret", "l=/../secret", "l=//etc/passwd", "l=."] {
        assert_eq!(ask("/b", query), "spare", "{query}");
    }
}

#[test]
fn a_folder_in_place_of_another_is_not_redirected_to() {
    let folder = Folder::new();
    folder.write("spare/index.html", "spare");
    let files = folder.compile("try: ['$uri', '$uri/', /spare/]").unwrap();
    for path in ["/x", "/x/", "/spare/"] {
        assert_eq!(content(&get(&files, path)), b"spare", "{path}");
    }
    assert_eq!(status(&get(&files, "/spare")), 301);
}

#[test]
fn a_redirect_leads_to_where_the_client_was() {
    let folder = Folder::new();
    folder
        .write("index.html", "root")
        .write("sub/index.html", "sub");
    for keys in ["{}", "try: ['$uri', '$uri/']"] {
        let files = folder.compile(keys).unwrap();
        for (target, path, is_stripped_whole, location) in [
            ("/docs/sub?q", "/sub", false, Some("/docs/sub/?q")),
            ("/docs", "/", true, Some("/docs/")),
            ("//docs//sub", "/sub", false, Some("/docs/sub/")),
            ("/docs/", "/", false, None),
            ("/docs/sub/", "/sub/", false, None),
            // a rewrite that brings or takes the slash knows what it does
            ("/home", "/", false, None),
            ("/home/", "/sub", false, None),
        ] {
            let mut cx = cx();
            cx.path = path.to_owned();
            cx.target = Some(path.to_owned());
            cx.is_stripped_whole = is_stripped_whole;
            let reply = serve_in(&files, Method::GET, &[], &cx, target);
            assert_eq!(header(&reply, LOCATION), location, "{keys} {target}");
            let code = if location.is_some() { 301 } else { 200 };
            assert_eq!(status(&reply), code, "{keys} {target}");
        }
    }
}

#[test]
fn a_bad_try_is_found_while_loading() {
    let folder = Folder::new();
    for (written, message) in [
        ("[]", "try: needs a path to look for"),
        ("[=404]", "try: needs a path to look for"),
        ("['$uri', =200]", "try[1]: expected a status of 400 to 599"),
        ("['$uri', =4x4]", "try[1]: expected a status of 400 to 599"),
        ("[=404, '$uri']", "try[0]: `=404` is not the last entry"),
        ("[index.html]", "try[0]: `index.html` is not a path"),
        ("['$uri', '/a?$args']", "try[1]: `/a?$args` has a query"),
        ("['$url']", "try[0]: no variable named `$url`"),
        (
            "['$uri', '/$status']",
            "try[1]: `$status` has no value here",
        ),
    ] {
        let error = folder.compile(&format!("try: {written}")).unwrap_err();
        assert!(error.starts_with(message), "{written}: {error}");
    }
}

#[test]
fn a_variant_in_the_clients_coding_answers() {
    let folder = Folder::new();
    folder
        .write("app.js", "the plain one")
        .write("app.js.br", "br")
        .write("app.js.gz", "gzip")
        .write("only.css", "plain")
        .write("lonely.css.gz", "gzip")
        .write("index.html", "index")
        .write("index.html.zst", "zstd of index");
    let files = folder.compile("precompressed: [br, zstd, gzip]").unwrap();
    let ask = |path: &str, accept: Option<&str>| {
        let lines = accept.map(|accept| (ACCEPT_ENCODING, accept));
        let reply = get_if(&files, path, lines.as_slice());
        let text = String::from_utf8(content(&reply)).unwrap();
        let owned = |name| header(&reply, name).map(str::to_owned);
        (text, owned(CONTENT_ENCODING), owned(VARY), reply)
    };
    for (path, accept, body, coding) in [
        ("/app.js", Some("gzip, br, zstd"), "br", Some("br")),
        ("/app.js", Some("gzip, zstd"), "gzip", Some("gzip")),
        ("/app.js", Some("gzip;q=1, br;q=0.5"), "gzip", Some("gzip")),
        ("/app.js", Some("zstd"), "the plain one", None),
        ("/app.js", Some("br;q=0, identity"), "the plain one", None),
        (
            "/app.js",
            Some("br;q=0.5, identity;q=0.6"),
            "the plain one",
            None,
        ),
        (
            "/app.js",
            Some("gzip;q=0.1, identity;q=0"),
            "gzip",
            Some("gzip"),
        ),
        ("/app.js", None, "the plain one", None),
        ("/", Some("zstd"), "zstd of index", Some("zstd")),
    ] {
        let (text, got, vary, reply) = ask(path, accept);
        assert_eq!(
            (text.as_str(), got.as_deref()),
            (body, coding),
            "{accept:?}"
        );
        // also when it came to nothing: with another header it would have
        assert_eq!(vary.as_deref(), Some("Accept-Encoding"), "{accept:?}");
        assert!(header(&reply, CONTENT_TYPE).unwrap().starts_with("text/"));
    }
    let (_, coding, vary, _) = ask("/only.css", Some("br, gzip"));
    assert_eq!((coding, vary), (None, None));
    let (_, _, _, reply) = ask("/lonely.css", Some("gzip"));
    assert_eq!(status(&reply), 404);
    // asked for by its own name it is a file like any other
    let (_, coding, vary, reply) = ask("/app.js.gz", Some("gzip"));
    assert_eq!((coding, vary), (None, None));
    assert_eq!(header(&reply, CONTENT_TYPE), Some("application/gzip"));
    // nothing is looked for that was not asked for
    let [_, walking] = folder.both_with("precompressed: [zstd]");
    let reply = get_if(&walking, "/app.js", &[(ACCEPT_ENCODING, "br, gzip")]);
    assert_eq!(header(&reply, VARY), None);
}

#[test]
fn each_variant_is_a_version_of_its_own() {
    let folder = Folder::new();
    folder
        .write("a.txt", "0123456789")
        .write("a.txt.gz", "abcde");
    let files = folder.compile("precompressed: [gzip]").unwrap();
    let plain = get(&files, "/a.txt");
    let gzip = get_if(&files, "/a.txt", &[(ACCEPT_ENCODING, "gzip")]);
    let (plain, gzip) = (header(&plain, ETAG).unwrap(), header(&gzip, ETAG).unwrap());
    assert_ne!(plain, gzip);
    for (accept, etag, code) in [
        ("gzip", gzip, 304),
        ("gzip", plain, 200),
        ("identity", plain, 304),
        ("identity", gzip, 200),
    ] {
        let lines = [(ACCEPT_ENCODING, accept), (IF_NONE_MATCH, etag)];
        let reply = get_if(&files, "/a.txt", &lines);
        assert_eq!(status(&reply), code, "{accept} {etag}");
        assert_eq!(header(&reply, VARY), Some("Accept-Encoding"));
    }
    let lines = [
        (ACCEPT_ENCODING, "gzip"),
        (RANGE, "bytes=1-3"),
        (IF_RANGE, gzip),
    ];
    let part = get_if(&files, "/a.txt", &lines);
    assert_eq!((status(&part), content(&part)), (206, b"bcd".to_vec()));
    assert_eq!(header(&part, CONTENT_RANGE), Some("bytes 1-3/5"));
    assert_eq!(header(&part, CONTENT_ENCODING), Some("gzip"));
    let head = serve(
        &files,
        Method::HEAD,
        &[(ACCEPT_ENCODING, "gzip")],
        "/a.txt",
        None,
    );
    assert_eq!(header(&head, CONTENT_LENGTH), Some("5"));
    assert_eq!(header(&head, CONTENT_ENCODING), Some("gzip"));
}

#[test]
fn a_variant_that_is_no_readable_file_is_passed_over() {
    let folder = Folder::new();
    folder
        .write("a", "plain")
        .write("a.br/x", "")
        .write("b", "plain")
        .link("b.br", folder.0.join("secret"));
    mkfifo(&folder.at("a.gz"), Mode::from_bits_truncate(0o666)).unwrap();
    for files in folder.both_with("precompressed: [br, gzip]") {
        for path in ["/a", "/b"] {
            let reply = get_if(&files, path, &[(ACCEPT_ENCODING, "br, gzip")]);
            assert_eq!((status(&reply), content(&reply)), (200, b"plain".to_vec()));
        }
    }
}

#[test]
fn types_and_charset() {
    let folder = Folder::new();
    folder
        .write("a.html", "")
        .write("a.wasm", "")
        .write("a.md", "")
        .write("a.tar.gz", "");
    let kind = |keys: &str, path: &str| {
        let reply = get(&folder.compile(keys).unwrap(), path);
        header(&reply, CONTENT_TYPE).unwrap().to_owned()
    };
    let keys = "{ types: { .md: text/plain, .tar.gz: application/x-gtar }, charset: koi8-r }";
    assert_eq!(kind(keys, "/a.html"), "text/html; charset=koi8-r");
    assert_eq!(kind(keys, "/a.md"), "text/plain; charset=koi8-r");
    assert_eq!(kind(keys, "/a.tar.gz"), "application/x-gtar");
    assert_eq!(kind(keys, "/a.wasm"), "application/wasm");
    assert_eq!(kind("charset: 'off'", "/a.html"), "text/html");
    for (keys, message) in [
        ("types: { md: text/plain }", "types.md: `md` is not the end"),
        ("types: { .: text/plain }", "types..: `.` is not the end"),
        (
            "types: { .md: text }",
            "types..md: `text` is not a media type",
        ),
        ("charset: 'utf 8'", "charset: `utf 8` is not the name"),
    ] {
        let error = folder.compile(keys).unwrap_err();
        assert!(
            error.replace(['[', ']', '"'], "").starts_with(message),
            "{error}"
        );
    }
}

#[test]
fn the_first_cache_control_that_takes_the_file_counts() {
    let folder = Folder::new();
    folder
        .write("index.html", "")
        .write("assets/deep/a.js", "")
        .write("assets/a.html", "")
        .write("b.js", "");
    let files = folder
        .compile("cache_control: { '*.html': no-cache, '/assets/*': 'max-age=9, immutable' }")
        .unwrap();
    for (path, value) in [
        ("/", Some("no-cache")),
        ("/assets/a.html", Some("no-cache")),
        ("/assets/deep/a.js", Some("max-age=9, immutable")),
        ("/b.js", None),
        ("/none.html", None),
    ] {
        assert_eq!(header(&get(&files, path), CACHE_CONTROL), value, "{path}");
    }
    let not_modified = get_if(&files, "/", &[(IF_NONE_MATCH, "*")]);
    assert_eq!(header(&not_modified, CACHE_CONTROL), Some("no-cache"));
    for keys in ["{ 'a/*': x }", "{ '[': x }", "{ '*': \"a\\nb\" }"] {
        assert!(folder.compile(&format!("cache_control: {keys}")).is_err());
    }
}

#[test]
fn errors_have_pages() {
    let folder = Folder::new();
    folder
        .write("404.html", "not here")
        .write("404.html.gz", "gzip")
        .write("405.txt", "no")
        .write("a", "x");
    let files = folder
        .compile(
            "{ errors: { 404: /404.html, 405: /405.txt, 412: /gone, 410: /404.html }, \
               try: ['$uri', =410], precompressed: [gzip] }",
        )
        .unwrap();
    let missing = get(&files, "/none");
    assert_eq!(
        (status(&missing), content(&missing)),
        (410, b"not here".to_vec())
    );
    assert_eq!(
        header(&missing, CONTENT_TYPE),
        Some("text/html; charset=utf-8")
    );
    assert_eq!(header(&missing, ETAG), None);
    let lines = [
        (ACCEPT_ENCODING, "gzip"),
        (RANGE, "bytes=0-1"),
        (IF_NONE_MATCH, "*"),
    ];
    let missing = get_if(&files, "/none", &lines);
    assert_eq!(
        (status(&missing), content(&missing)),
        (410, b"gzip".to_vec())
    );
    assert_eq!(header(&missing, CONTENT_ENCODING), Some("gzip"));
    let refused = serve(&files, Method::POST, &[], "/a", None);
    assert_eq!((status(&refused), content(&refused)), (405, b"no".to_vec()));
    assert_eq!(header(&refused, ALLOW), Some("GET, HEAD, OPTIONS"));
    // no page after all
    let failed = get_if(&files, "/a", &[(IF_MATCH, "\"x\"")]);
    assert_eq!((status(&failed), content(&failed)), (412, Vec::new()));
    for (keys, message) in [
        ("{ 502: /404.html }", "files are never answered with `502`"),
        ("{ 410: /404.html }", "files are never answered with `410`"),
        ("{ 404: 404.html }", "`404.html` is not the path of a file"),
        (
            "{ 404: /../secret }",
            "`/../secret` is not the path of a file",
        ),
        ("{ 404: / }", "`/` is not the path of a file"),
    ] {
        let error = folder.compile(&format!("errors: {keys}")).unwrap_err();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn links_may_be_followed_anywhere_or_nowhere() {
    let folder = Folder::new();
    folder
        .write("real/file", "inside")
        .link("to-file", "real/file")
        .link("to-folder", "real")
        .link("to-secret", "../secret")
        .link("to-outside", &folder.0)
        .link("to-fifo", "fifo")
        .link("magic", "/proc/self/root");
    mkfifo(&folder.at("fifo"), Mode::from_bits_truncate(0o666)).unwrap();
    for files in folder.both_with("symlinks: deny") {
        assert_eq!(content(&get(&files, "/real/file")), b"inside");
        for path in [
            "/to-file",
            "/to-folder",
            "/to-folder/",
            "/to-folder/file",
            "/to-secret",
            "/to-outside/secret",
        ] {
            assert_eq!(status(&get(&files, path)), 404, "{path}");
        }
    }
    for files in folder.both_with("symlinks: follow") {
        for (path, body) in [
            ("/real/file", "inside"),
            ("/to-file", "inside"),
            ("/to-folder/file", "inside"),
            ("/to-secret", "secret"),
            ("/to-outside/secret", "secret"),
        ] {
            assert_eq!(content(&get(&files, path)), body.as_bytes(), "{path}");
        }
        for path in ["/../secret", "/to-outside/../secret", "/to-fifo"] {
            assert_eq!(status(&get(&files, path)), 404, "{path}");
        }
    }
}

#[test]
fn several_parts_come_in_one_answer() {
    let folder = Folder::new();
    folder.write("a.txt", "0123456789");
    let files = folder.files();
    let whole = get(&files, "/a.txt");
    let reply = get_if(&files, "/a.txt", &[(RANGE, "bytes=-2,0-1,4-4")]);
    assert_eq!(status(&reply), 206);
    let kind = header(&reply, CONTENT_TYPE).unwrap();
    let boundary = kind
        .strip_prefix("multipart/byteranges; boundary=")
        .unwrap();
    let part = |range: &str, bytes: &str| {
        format!(
            "--{boundary}\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Range: bytes {range}/10\r\n\r\n{bytes}\r\n"
        )
    };
    let parts = [part("8-9", "89"), part("0-1", "01"), part("4-4", "4")];
    let expected = format!("{}--{boundary}--\r\n", parts.concat());
    assert_eq!(String::from_utf8(content(&reply)).unwrap(), expected);
    // it stands with each part
    assert_eq!(header(&reply, CONTENT_RANGE), None);
    for name in [ETAG, LAST_MODIFIED, ACCEPT_RANGES] {
        assert_eq!(header(&reply, name.clone()), header(&whole, name));
    }
    let other = folder.files();
    let other = get_if(&other, "/a.txt", &[(RANGE, "bytes=-2,0-1")]);
    assert_ne!(header(&other, CONTENT_TYPE), Some(kind));
    let lines = [(RANGE, "bytes=0-0,5-5"), (IF_RANGE, "\"other\"")];
    assert_eq!(content(&get_if(&files, "/a.txt", &lines)), b"0123456789");
}

/// The names and the number of pages of a listing in JSON, and its text.
/// As `get`, that much later than `start`.
fn get_at(files: &Files, path: &str, start: Instant, later: u64) -> Reply {
    let mut cx = Cx::new(start + Duration::from_millis(later), Arc::default());
    cx.path = path.to_owned();
    serve_in(files, Method::GET, &[], &cx, "/")
}

#[test]
fn what_is_known_is_believed_for_a_time() {
    let folder = Folder::new();
    let large = |byte| vec![byte; SMALL as usize + 1];
    folder.write("small", "1").write("large", large(b'1'));
    folder.write("gone", "1");
    let files = folder.compile("open_files: { valid: 100ms }").unwrap();
    let start = Instant::now();
    let get = |path, later| get_at(&files, path, start, later);
    for path in ["/small", "/large", "/gone"] {
        assert_eq!(content(&get(path, 0))[0], b'1');
    }
    for (path, new) in [("small", vec![b'2']), ("large", large(b'2'))] {
        fs::write(folder.at("new"), new).unwrap();
        fs::rename(folder.at("new"), folder.at(path)).unwrap();
    }
    fs::remove_file(folder.at("gone")).unwrap();
    // of one that is open it shows at once
    assert_eq!(content(&get("/large", 99))[0], b'2');
    for path in ["/small", "/gone"] {
        let known = get(path, 99);
        assert_eq!(content(&known)[0], b'1');
        let now = get(path, 100);
        assert_ne!(header(&known, ETAG), header(&now, ETAG));
        match path {
            "/gone" => assert_eq!(status(&now), 404),
            _ => assert_eq!(content(&now)[0], b'2'),
        }
    }
    let known = files.open_files().unwrap();
    assert_eq!((known.files, known.open), (2, 1));
    assert_eq!((known.hits, known.misses), (2, 6));
    // a look that finds what was there before makes it believed for as long again
    for (later, hits) in [(199, 3), (200, 3), (299, 4), (400, 4)] {
        assert_eq!(content(&get("/small", later)), b"2");
        assert_eq!(files.open_files().unwrap().hits, hits, "{later}");
    }
}

#[test]
fn a_change_that_hides_its_time_is_noticed() {
    let folder = Folder::new();
    folder.write("a", "1");
    let files = folder.compile("open_files: { valid: 0ms }").unwrap();
    let modified = fs::metadata(folder.at("a")).unwrap().modified().unwrap();
    assert_eq!(content(&get(&files, "/a")), b"1");
    // the clock of the file system ticks more slowly than that of this test
    let before = Version::of(&fs::metadata(folder.at("a")).unwrap());
    while Version::of(&fs::metadata(folder.at("a")).unwrap()) == before {
        fs::write(folder.at("a"), "2").unwrap();
        let file = File::options().write(true).open(folder.at("a")).unwrap();
        file.set_modified(modified).unwrap();
    }
    assert_eq!(content(&get(&files, "/a")), b"2");
}

#[test]
fn no_more_is_remembered_than_is_allowed() {
    let folder = Folder::new();
    for n in 0..100 {
        folder.write(&format!("{n}"), vec![b'x'; 5000]);
    }
    let start = Instant::now();
    for (keys, most) in [
        ("{ max: 10, valid: 1h }", 10),
        ("{ memory: 62KiB, valid: 1h }", 10),
    ] {
        let files = folder.compile(&format!("open_files: {keys}")).unwrap();
        for n in 0..100 {
            get_at(&files, &format!("/{n}"), start, 0);
            // one that is asked for again and again stays
            get_at(&files, "/0", start, 0);
        }
        let known = files.open_files().unwrap();
        assert_eq!((known.files, known.open), (most, 0), "{keys}");
        assert!(known.memory <= 62 * 1024);
        assert_eq!((known.hits, known.misses), (100, 100), "{keys}");
    }
    // what is too large for all of it pushes nothing out
    let files = folder.compile("open_files: { memory: 3KiB }").unwrap();
    folder.write("tiny", "x");
    get_at(&files, "/tiny", start, 0);
    get_at(&files, "/1", start, 0);
    assert_eq!(files.open_files().unwrap().files, 1);
}

#[test]
fn what_nobody_asks_for_is_closed() {
    let folder = Folder::new();
    folder.write("large", vec![b'x'; SMALL as usize + 1]);
    folder.write("a", "a");
    let files = folder.compile("open_files: { valid: 1s }").unwrap();
    let start = Instant::now();
    for second in 0..70 {
        if second < 5 {
            get_at(&files, "/large", start, second * 1000);
        }
        get_at(&files, "/a", start, second * 1000);
        let open = files.open_files().unwrap().open;
        assert!(open == 1 || second > 60, "{second}");
    }
    assert_eq!(files.open_files().unwrap().open, 0);
}

fn list(files: &Files, path: &str, query: &str) -> (Vec<String>, u64, String) {
    let query = format!("format=json&{query}");
    let reply = serve(files, Method::GET, &[], path, Some(&query));
    assert_eq!(status(&reply), 200, "{path}?{query}");
    let text = String::from_utf8(content(&reply)).unwrap();
    let listing: serde_json::Value = serde_json::from_str(&text).unwrap();
    let entries = listing["entries"].as_array().unwrap();
    let name = |entry: &serde_json::Value| entry["name"].as_str().unwrap().to_owned();
    let names = entries.iter().map(name).collect();
    (names, listing["pages"].as_u64().unwrap(), text)
}

#[test]
fn a_folder_without_index_is_listed_if_wanted() {
    let folder = Folder::new();
    folder
        .write("a/index.html", "index")
        .write("b/x", "x")
        .write("b/c/y", "y")
        .write("file", "");
    for files in folder.both_with("listing: true") {
        assert_eq!(content(&get(&files, "/a/")), b"index");
        let reply = get(&files, "/b/");
        assert_eq!(status(&reply), 200);
        let kind = Some("text/html; charset=utf-8");
        assert_eq!(header(&reply, CONTENT_TYPE), kind);
        assert_eq!(header(&reply, VARY), Some("Accept"));
        let page = String::from_utf8(content(&reply)).unwrap();
        for expected in [
            "<title>Index of /b/</title>",
            "<a href=\"./c/\">c/</a>",
            "<a href=\"./x\">x</a>",
        ] {
            assert!(page.contains(expected), "{page}");
        }
        let json = get_if(&files, "/b/", &[(ACCEPT, "application/json")]);
        assert_eq!(header(&json, CONTENT_TYPE), Some("application/json"));
        assert_eq!(list(&files, "/", "").0, ["a", "b", "file"]);
        assert_eq!(header(&get(&files, "/b"), LOCATION), Some("/b/"));
        for path in ["/none/", "/file/", "/b/x/"] {
            assert_eq!(status(&get(&files, path)), 404, "{path}");
        }
    }
    assert_eq!(status(&get(&folder.files(), "/b/")), 404);
}

#[test]
fn a_listing_shows_what_is_served_and_nothing_else() {
    let folder = Folder::new();
    folder
        .write("file", "12345")
        .write("sub/x", "")
        .write(".env", "")
        .write(".well-known/x", "")
        .write("back\\slash", "")
        .link("to-file", "file")
        .link("to-sub", "sub")
        .link("to-secret", "../secret")
        .link("absolute", folder.at("file"))
        .link("dangling", "gone")
        .link("loop", "loop");
    mkfifo(&folder.at("fifo"), Mode::from_bits_truncate(0o666)).unwrap();
    let _listener = UnixListener::bind(folder.at("socket")).unwrap();
    let not_text = std::ffi::OsStr::from_bytes(b"not-text-\xff");
    fs::write(folder.www().join(not_text), "").unwrap();
    let (all, links) = (
        [".well-known", "sub", "file"],
        [
            ".well-known",
            "sub",
            "to-sub",
            "absolute",
            "file",
            "to-file",
        ],
    );
    for files in folder.both_with("listing: true") {
        for query in ["", "sort=size", "sort=time"] {
            let (mut names, _, text) = list(&files, "/", query);
            names.sort();
            let mut expected = links.to_vec();
            expected.sort_unstable();
            assert_eq!(names, expected, "{query}");
            assert!(!text.contains(folder.www().to_str().unwrap()), "{text}");
        }
        let (names, _, text) = list(&files, "/", "");
        assert_eq!(names, links);
        assert!(text.contains("{\"name\":\"to-file\",\"type\":\"file\",\"size\":5,"));
        // each of them can be asked for
        for name in names {
            let code = status(&get(&files, &format!("/{name}")));
            assert!([200, 301].contains(&code), "{name}: {code}");
        }
    }
    for files in folder.both_with("{ listing: true, symlinks: deny }") {
        assert_eq!(list(&files, "/", "").0, all);
        assert_eq!(status(&get(&files, "/to-sub/")), 404);
    }
    for files in folder.both_with("{ listing: true, symlinks: follow, hidden: true }") {
        let (names, ..) = list(&files, "/", "");
        assert!(names.contains(&"to-secret".to_owned()), "{names:?}");
        assert!(names.contains(&".env".to_owned()), "{names:?}");
        assert!(!names.contains(&"back\\slash".to_owned()), "{names:?}");
    }
}

#[test]
fn a_listing_is_sorted_and_paged() {
    let folder = Folder::new();
    for i in 0..2500 {
        folder.write(&format!("f{i:04}"), "x".repeat(i % 7));
    }
    folder.write("zz/x", "");
    let old = File::options()
        .write(true)
        .open(folder.at("f0042"))
        .unwrap();
    old.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    let files = folder.compile("listing: true").unwrap();
    let (names, pages, _) = list(&files, "/", "");
    assert_eq!((names.len(), pages), (1000, 3));
    assert_eq!((&*names[0], &*names[1]), ("zz", "f0000"));
    let (names, ..) = list(&files, "/", "page=3");
    assert_eq!((names.len(), &*names[500]), (501, "f2499"));
    let (names, ..) = list(&files, "/", "order=desc");
    assert_eq!((&*names[0], &*names[1]), ("zz", "f2499"));
    assert_eq!(list(&files, "/", "sort=time").0[1], "f0042");
    assert_eq!(list(&files, "/", "sort=size&order=desc").0[1], "f0006");
    let mut seen = Vec::new();
    for page in 1..=3 {
        seen.extend(list(&files, "/", &format!("sort=size&page={page}")).0);
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 2501);
    for page in ["4", "101", "18446744073709551615"] {
        let query = format!("page={page}");
        let reply = serve(&files, Method::GET, &[], "/", Some(&query));
        assert_eq!(status(&reply), 404, "{page}");
    }
}

#[test]
fn a_listing_is_one_of_the_things_to_try() {
    let folder = Folder::new();
    folder.write("index.html", "app").write("pub/x", "");
    let files = folder
        .compile("{ listing: true, try: ['$uri', '$uri/', /pub/, /index.html] }")
        .unwrap();
    assert_eq!(list(&files, "/pub/", "").0, ["x"]);
    assert_eq!(header(&get(&files, "/pub"), LOCATION), Some("/pub/"));
    // a folder that stands in for another path is not listed
    assert_eq!(content(&get(&files, "/none/")), b"app");
}

#[test]
fn a_folder_that_may_not_be_read_is_not_listed() {
    let folder = Folder::new();
    folder.write("closed/x", "");
    fs::set_permissions(folder.at("closed"), fs::Permissions::from_mode(0o711)).unwrap();
    let files = folder.compile("listing: true").unwrap();
    let ask = || {
        // as somebody whom permissions bind; threads that are started from here inherit it
        setfsuid(Uid::from_raw(65534));
        assert_eq!(status(&get(&files, "/closed/")), 403);
        assert_eq!(status(&get(&files, "/closed/x")), 200);
    };
    thread::scope(|scope| scope.spawn(ask).join()).unwrap();
}
