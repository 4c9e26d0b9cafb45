//! docs/reference.md, every key of the language, and docs/policies/, a page for each policy: made of the schema and the source.
//!
//! `WEIR_BLESS=1` writes them; the difference is to be read before it is kept.

mod example;
mod keys;
mod page;
mod source;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::harness::Setup;

use keys::{Listing, description, paragraphs};
use page::told;

#[test]
fn reference_is_what_the_source_says() {
    let printed = Setup::new().run(&["schema"]).stdout;
    let schema: Value = serde_json::from_str(&printed).expect("a schema");
    let policies = source::policies();
    let pages = page::pages(&schema, &policies);
    let mut pages: BTreeMap<_, _> = pages
        .into_iter()
        .map(|(key, page)| (folder().join(format!("{key}.md")), page))
        .collect();
    let reference = root().join("docs/reference.md");
    pages.insert(reference.clone(), whole(&schema, &policies));

    let present = fs::read_dir(folder()).into_iter().flatten();
    let present = present.map(|entry| entry.expect("read docs/policies/").path());
    let superfluous: Vec<_> = present.filter(|path| !pages.contains_key(path)).collect();
    if std::env::var_os("WEIR_BLESS").is_some() {
        fs::create_dir_all(folder()).expect("make docs/policies/");
        for (path, page) in &pages {
            fs::write(path, page).expect("write a page");
        }
        for path in &superfluous {
            fs::remove_file(path).expect("remove a page");
        }
        return;
    }

    let stale = pages.iter().filter_map(|(path, page)| {
        let written = fs::read_to_string(path).unwrap_or_default();
        let lines = || written.lines().map(Some).chain([None]);
        let differs = lines()
            .zip(page.lines().map(Some).chain([None]))
            .find(|(old, new)| old != new);
        (written != *page).then(|| format!("{}: {differs:?}", path.display()))
    });
    let stale: Vec<_> = stale.collect();
    assert!(
        stale.is_empty() && superfluous.is_empty(),
        "pages are not what the source says; WEIR_BLESS=1 writes them anew: {stale:#?}; superfluous: {superfluous:?}"
    );
}

#[test]
fn the_handbook_has_the_policies_in_their_order() {
    let order: Vec<_> = source::policies()
        .into_iter()
        .map(|policy| policy.key)
        .collect();
    let handbook = fs::read_to_string(root().join("docs/configuration.md"));
    let handbook = handbook.expect("read the handbook");
    let contents: Vec<_> = order.iter().map(|key| format!("[{key}](#{key})")).collect();
    let contents = format!("- Policies: {}\n", contents.join(" · "));
    assert!(handbook.contains(&contents), "{contents}");
    let listed: Vec<_> = order.iter().map(|key| format!("`{key}`")).collect();
    let listed = format!("run in one order: {}.", listed.join(", "));
    let words: Vec<_> = handbook.split_whitespace().collect();
    assert!(words.join(" ").contains(&listed), "{listed}");
}

const HEAD: &str = "# Reference

Every key, its kind and what it means: made of the JSON Schema of this language (`weir schema`), which editors read as
well. The [handbook](configuration.md) explains how the keys work together, with examples. Keys in *italics* are names of
your choice.

";

/// What the kinds of values look like.
const KINDS: [(&str, &str); 5] = [
    (
        "text",
        "may be written without quotes where YAML allows that",
    ),
    ("duration", "is `250ms`, `5s`, `2m`, `1h` or `7d`"),
    ("size", "is `64KiB` or `10m`"),
    ("ratio", "is `20%`"),
    ("rate", "is `10/s`, `30/m` or `100/h`"),
];

fn whole(schema: &Value, policies: &[source::Policy]) -> String {
    let mut page = Listing::new(schema);
    page.out += HEAD;
    page.out += &kinds(|_| true);
    let sections = schema["properties"].as_object().expect("keys");
    let (long, short): (Vec<_>, Vec<_>) = sections
        .iter()
        .partition(|(_, value)| !page.objects(value).is_empty());
    heading(&mut page, "The process", "");
    for (key, value) in short {
        page.key(&format!("`{key}`"), value, 0);
    }
    for (key, value) in long {
        // what a level above sites may hold are policies, which have pages of their own
        if key != "defaults" {
            heading(&mut page, key, description(value));
            page.keys(value, 0);
        }
    }
    let text = "In `defaults`, a site or a route; each may be `off`. In whatever order they are written, they run in this one.";
    heading(&mut page, "Policies", text);
    page.out += "| policy | what it does | nginx |\n|---|---|---|\n";
    for policy in policies {
        let key = &policy.key;
        let (does, nginx) = told(&page, key);
        page.out += &format!("| [`{key}`](policies/{key}.md) | {does} | {nginx} |\n");
    }
    page.finish()
}

fn heading(page: &mut Listing, name: &str, text: &str) {
    page.enter(name);
    page.out += &format!("\n## {name}\n\n");
    if !text.is_empty() {
        page.out += &format!("{}\n\n", paragraphs(text, 0));
    }
}

/// A sentence about the kinds of values that are meant.
fn kinds(is_meant: impl Fn(&str) -> bool) -> String {
    let kinds = KINDS.iter().filter(|(kind, _)| is_meant(kind));
    let kinds: Vec<_> = kinds.map(|(kind, is)| format!("a *{kind}* {is}")).collect();
    match kinds.join("; ") {
        none if none.is_empty() => none,
        some => format!("A{}.\n", &some[1..]),
    }
}

fn folder() -> PathBuf {
    root().join("docs/policies")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
