//! `listing`: what is in a folder, as a page and as JSON.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::Value;

use crate::files::Site;
use crate::harness::Setup;
use crate::harness::client::{Response, get};

fn json(answer: &Response) -> Value {
    assert_eq!(answer.header("content-type"), Some("application/json"));
    serde_json::from_str(answer.text()).expect("JSON")
}

fn names(listing: &Value) -> Vec<&str> {
    let entries = listing["entries"].as_array().expect("entries");
    let names = entries.iter().map(|entry| &entry["name"]);
    names.map(|name| name.as_str().expect("a name")).collect()
}

#[test]
fn page_is_for_people_and_json_for_programs() {
    let setup = Setup::new()
        .file("www/a/<b> & \"c\".txt", "12345")
        .file("www/a/sub/x", "")
        .file("www/a/.hidden", "");
    let dir = setup.dir().display().to_string();
    let site = Site::of(setup, "listing: true");
    for answer in site.get("/a/") {
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("vary"), Some("Accept"));
        let policy = answer.header("content-security-policy").expect("a policy");
        assert!(policy.starts_with("default-src 'none';"));
        let page = answer.text();
        for expected in [
            "<a href=\"./%3Cb%3E%20&amp;%20%22c%22.txt\">&lt;b&gt; &amp; &quot;c&quot;.txt</a>",
            "<a href=\"./sub/\">sub/</a>",
            "<a href=\"?sort=size&amp;order=asc\">Size</a>",
            "<p>2 entries</p>",
        ] {
            assert!(page.contains(expected), "{page}");
        }
        assert!(!page.contains(&dir) && !page.contains("hidden") && !page.contains("<script"));
    }
    let accepting = get("/a/").header("Accept", "application/json");
    for request in [accepting, get("/a/?format=json")] {
        for answer in site.fetch(&request) {
            let listing = json(&answer);
            assert_eq!(listing["path"], "/a/");
            assert_eq!(names(&listing), ["sub", "<b> & \"c\".txt"]);
            let file = &listing["entries"][1];
            assert_eq!((&file["type"], &file["size"]), (&"file".into(), &5.into()));
            assert!(!answer.text().contains(&dir));
        }
    }
    // each link leads to what it says
    for answer in site.get("/a/%3Cb%3E%20&%20%22c%22.txt") {
        assert_eq!(answer.text(), "12345");
    }
}

#[test]
fn folder_without_listing_is_as_good_as_none() {
    let site = Site::of(Setup::new().file("www/a/x", ""), "listing: false");
    for target in ["/a/", "/a/?format=json", "/"] {
        for answer in site.get(target) {
            assert_eq!(answer.status, 404, "{target}");
        }
    }
}

#[test]
fn links_are_shown_as_far_as_they_are_followed() {
    for (policy, shown) in [
        ("follow_inside", vec!["file", "inside"]),
        ("follow", vec!["above", "file", "inside", "outside"]),
        ("deny", vec!["file"]),
    ] {
        let setup = Setup::new().file("www/file", "").file("secret.txt", "");
        let www = setup.dir().join("www");
        symlink("file", www.join("inside")).expect("link");
        symlink("../secret.txt", www.join("outside")).expect("link");
        symlink("..", www.join("above")).expect("link");
        symlink("gone", www.join("dangling")).expect("link");
        let site = Site::of(setup, &format!("listing: true, symlinks: {policy}"));
        for answer in site.get("/?format=json") {
            assert_eq!(names(&json(&answer)), shown, "{policy}");
        }
    }
}

#[test]
fn large_folder_is_paged_in_bounded_memory() {
    const COUNT: usize = 100_000;
    let setup = Setup::new().file("www/index.txt", "");
    let folder = setup.dir().join("www/large");
    fs::create_dir(&folder).expect("create a folder");
    // links to one file cost the disk less than files
    let first = folder.join("n000000");
    fs::write(&first, "x").expect("write a file");
    for i in 1..COUNT {
        // a file has only so many links
        let name = folder.join(format!("n{i:06}"));
        match i % 10_000 {
            0 => fs::write(name, "x").expect("write a file"),
            n => fs::hard_link(folder.join(format!("n{:06}", i - n)), name).expect("link"),
        }
    }
    let site = Site::of(setup, "listing: true");
    let mut connection = site.weir.connect();
    let mut ask = |query: &str| {
        let target = format!("/large/?format=json&{query}");
        json(&connection.fetch(&get(&target)).expect("an answer"))
    };
    let start = ask("");
    assert_eq!(start["total"], COUNT);
    assert_eq!(start["pages"], 100);
    assert_eq!(names(&start).len(), 1000);
    let before = site.weir.peak_memory();
    for (query, first, last) in [
        ("page=1", "n000000", "n000999"),
        ("page=100", "n099000", "n099999"),
        ("page=100&order=desc", "n000999", "n000000"),
        ("page=2&sort=size", "n001000", "n001999"),
        ("page=100&sort=time", "n099000", "n099999"),
    ] {
        let page = ask(query);
        let names = names(&page);
        assert_eq!((names[0], names[names.len() - 1]), (first, last), "{query}");
    }
    let grown = site.weir.peak_memory() - before;
    assert!(grown < 64 << 20, "{grown} bytes");
    assert_eq!(site.weir.get("/large/?page=101").status, 404);

    // with more than can be paged to, it says so, and the other order has the rest
    for i in 0..1000 {
        let name = folder.join(format!("z{i:06}"));
        fs::hard_link(&first, name).expect("link");
    }
    let last = ask("page=100");
    assert_eq!(
        (&last["total"], &last["pages"]),
        (&101_000.into(), &100.into())
    );
    assert_eq!(names(&last)[999], "n099999");
    assert_eq!(names(&ask("order=desc"))[0], "z000999");
    let page = site.weir.get("/large/?page=100");
    let said = "<p>101000 entries, of which 100000 can be paged to; the opposite order begins with the others</p>";
    assert!(page.text().contains(said));
    assert_eq!(site.weir.get("/large/?page=101").status, 404);
}
