//! Each `yaml` block of README.md and docs/ is accepted by weir.
//!
//! A block may show a part of a document or of a site, or routes: the rest is put around it here, and the files and pools
//! that it names are made. One that is not meant to be accepted says so behind the fence: ```` ```yaml ignore ````.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;
use serde_yaml::Value;

use crate::harness::certs::Authority;
use crate::harness::{Setup, dedent};

#[test]
fn yaml_in_the_documentation_is_accepted() {
    let mut refused = Vec::new();
    for file in documents() {
        let text = fs::read_to_string(&file).expect("read a document");
        for (line, block) in yaml_blocks(&text) {
            let run = surroundings(&block).run(&["check", "-c", "weir.yaml"]);
            if run.status != 0 {
                refused.push(format!("{}:{line}\n{}", file.display(), run.stderr));
            }
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

#[test]
fn links_in_the_documentation_lead_somewhere() {
    let link = Regex::new(r"\]\(([^):]+)\)").expect("a valid pattern");
    let mut astray = Vec::new();
    for file in documents() {
        let text = fs::read_to_string(&file).expect("read a document");
        for found in link.captures_iter(&text) {
            let (path, anchor) = found[1].split_once('#').unwrap_or((&found[1], ""));
            let target = match path {
                "" => file.clone(),
                _ => file.parent().expect("a folder").join(path),
            };
            let is_there = match anchor {
                "" => target.exists(),
                _ => fs::read_to_string(&target)
                    .is_ok_and(|text| text.lines().any(|line| anchor_of(line) == anchor)),
            };
            if !is_there {
                astray.push(format!("{}: {}", file.display(), &found[1]));
            }
        }
    }
    assert!(astray.is_empty(), "{}", astray.join("\n"));
}

/// What a heading is linked by, as GitHub does it.
fn anchor_of(line: &str) -> String {
    let Some(heading) = line.strip_prefix('#') else {
        return String::new();
    };
    let heading = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// A folder in which `block` can be checked: its `weir.yaml`, and what such blocks refer to.
fn surroundings(block: &str) -> Setup {
    let setup = Setup::new()
        .file("www/index.html", "")
        .file("www-a/index.html", "")
        .file("www-b/index.html", "")
        .file("www/404.html", "")
        .file("www/sorry.html", "")
        .file("conf.d/empty.yaml", "{}")
        .file("passwords", "secret\n")
        .file("secret", "0123456789abcdef\n")
        .file("moved.txt", "/old /new\n")
        .file("blocked.txt", "192.0.2.0/24\n")
        .file("htpasswd", "ada:{SHA}qZk+NkcGgWq6PiVxeFDCbJzQ2J0=\n")
        .file("jwks.json", KEYS)
        .file("today.key", [1; 80])
        .file("yesterday.key", [2; 80]);
    let authority = Authority::new();
    let certificate = Regex::new(r"([\w-]+)\.pem").expect("a valid pattern");
    for found in certificate.captures_iter(block) {
        authority.issue(setup.dir(), &found[1], &["shop.example"]);
    }
    setup.write("revoked.pem", authority.revoke(&[]));
    // folders that a system with weir has
    let dir = setup.dir().display().to_string();
    let document = ["/var/log/weir", "/run/weir", "/srv"]
        .iter()
        .fold(whole(block), |text, folder| text.replace(folder, &dir));
    setup.write("weir.yaml", document);
    setup
}

/// The document of which `block` is a part.
fn whole(block: &str) -> String {
    const SECTIONS: [&str; 18] = [
        "admin",
        "version",
        "threads",
        "pid_file",
        "include",
        "log",
        "pools",
        "listeners",
        "trusted_proxies",
        "sites",
        "defaults",
        "static",
        "grace_period_seconds",
        "drain",
        "watch",
        "map",
        "geo",
        "split",
    ];
    let parsed: Value = serde_yaml::from_str(block).expect("parsed before");
    let has = |key: &str| parsed.get(key).is_some();
    let indented = |depth: usize| -> String {
        let lines = block.lines();
        lines.map(|line| format!("{:depth$}{line}\n", "")).collect()
    };
    let mut document = if SECTIONS.into_iter().any(has) {
        block.to_owned()
    } else if parsed.is_sequence() {
        format!(
            "sites:\n  main:\n    hosts: '*'\n    routes:\n{}",
            indented(6)
        )
    } else {
        format!(
            "sites:\n  main:\n    hosts: '*'\n    routes: [{{ respond: ok }}]\n{}",
            indented(4)
        )
    };
    if !has("pools") {
        let pool = Regex::new(r"\b(?:pool|proxy|mirror): ([a-z]\w*)").expect("a valid pattern");
        let names = pool.captures_iter(block).map(|found| found[1].to_owned());
        let names = BTreeSet::from_iter(names).into_iter();
        let pools: Vec<_> = names
            .map(|name| format!("{name}: {{ backends: [127.0.0.1:9001] }}"))
            .collect();
        document += &format!("\npools: {{ {} }}\n", pools.join(", "));
    }
    if !has("listeners") && !has("static") {
        document += "
listeners:
  http: { bind: 127.0.0.1:8080 }
  https: { bind: 127.0.0.1:8443, tls: { certificates: [{ self_signed: true }] } }
";
    }
    document
}

/// A set of one public key (RFC 7517 appendix A.1).
const KEYS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
    "y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;

/// The line and the text of each block that is to be accepted.
fn yaml_blocks(text: &str) -> Vec<(usize, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(usize, String, bool)> = None;
    for (number, line) in text.lines().enumerate() {
        let fence = line.trim_start().strip_prefix("```");
        match (&mut open, fence) {
            (None, Some(info)) => {
                let wanted = info.trim() == "yaml";
                open = Some((number + 1, String::new(), wanted));
            }
            (Some(_), Some(_)) => {
                let (line, block, wanted) = open.take().expect("a block is open");
                if wanted {
                    blocks.push((line, dedent(&block)));
                }
            }
            (Some((_, block, _)), None) => {
                block.push_str(line);
                block.push('\n');
            }
            (None, None) => {}
        }
    }
    for (line, block) in &blocks {
        let parsed = serde_yaml::from_str::<Value>(block);
        assert!(parsed.is_ok(), "line {line}: {parsed:?}");
    }
    blocks
}

/// README.md and the pages of docs/ and docs/policies/.
fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages = ["docs", "docs/policies"].map(|folder| root.join(folder).read_dir());
    let pages = pages.into_iter().flat_map(|pages| pages.expect("a folder"));
    let pages = pages.map(|entry| entry.expect("read docs/").path());
    std::iter::once(root.join("README.md"))
        .chain(pages)
        .filter(|path| path.extension().is_some_and(|extension| extension == "md") && path.exists())
        .collect()
}

#[test]
fn blocks_are_found_with_their_lines() {
    let text = "a\n```yaml\nx: 1\n```\n```yaml ignore\ny: 2\n```\n```sh\nz\n```\n  ```yaml\n  w: 3\n  ```\n";
    let blocks = yaml_blocks(text);
    assert_eq!(
        blocks,
        [(2, "x: 1\n".to_owned()), (11, "w: 3\n".to_owned())]
    );
}
