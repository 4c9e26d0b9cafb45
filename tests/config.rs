//! Mistakes in the file: each `config/*.case` holds a document, a line `---`, and exactly what `weir check` says about it.
//!
//! Beside the document lie `www/index.html`, `a.pem`/`a.key` and `b.pem`/`b.key`. `WEIR_BLESS=1` writes what weir
//! says into the cases; the difference is to be read before it is kept.

use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::Setup;
use crate::harness::certs::Authority;

const LINE: &str = "\n---\n";

#[test]
fn mistakes_are_told_as_the_cases_say() {
    let bless = std::env::var_os("WEIR_BLESS").is_some();
    let mut wrong = Vec::new();
    for case in cases() {
        let name = case.display();
        let text = fs::read_to_string(&case).expect("read a case");
        let (document, expected) = text
            .split_once(LINE)
            .unwrap_or_else(|| panic!("{name}: no line `---`"));
        let setup = surroundings();
        setup.write("weir.yaml", format!("{document}\n"));
        let run = setup.run(&["check", "-c", "weir.yaml"]);
        let dir = setup.dir().display().to_string();
        let said = without_reason(&without_summary(&run.stderr).replace(&dir, "DIR"));
        if bless {
            fs::write(&case, format!("{document}{LINE}{said}")).expect("write a case");
        } else if said != expected {
            wrong.push(format!("{name}\nexpected:\n{expected}\nsaid:\n{said}"));
        }
        // a warning lets the file pass
        let issues = || said.lines().filter(|line| !line.starts_with(' '));
        let status = i32::from(!issues().all(|issue| issue.contains(": warning: ")));
        assert_eq!(run.status, status, "{name}: {run:?}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What is said about each mistake; the last line only counts them.
fn without_summary(said: &str) -> String {
    let issues = said
        .trim_end()
        .rsplit_once('\n')
        .map_or("", |(issues, _)| issues);
    format!("{}\n", issues.trim_end())
}

/// Why a name does not resolve is told by the system, each in its own words.
fn without_reason(said: &str) -> String {
    let cut = |line: &str| match line.split_once("does not resolve: ") {
        Some((head, _)) => format!("{head}does not resolve: WHY\n"),
        None => format!("{line}\n"),
    };
    said.lines().map(cut).collect()
}

fn surroundings() -> Setup {
    let setup = Setup::new().file("www/index.html", "");
    let authority = Authority::new();
    for name in ["a", "b"] {
        authority.issue(setup.dir(), name, &["shop.example"]);
    }
    setup
}

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config");
    let entries = fs::read_dir(folder).expect("read tests/config");
    let files = entries.map(|entry| entry.expect("read tests/config").path());
    let mut cases: Vec<_> = files
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "case")
        })
        .collect();
    assert!(cases.len() > 20, "the cases are gone");
    cases.sort();
    cases
}
