//! Imports go one way: a module of `src/` uses modules of the layers above its own in the list of `src/lib.rs`, and
//! of its own layer only where nothing comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

/// Within these, one feature does not know another.
const FEATURES: [&str; 2] = ["filter", "handler"];

#[test]
fn modules_import_only_from_the_layers_above() {
    let layers = layers();
    let mut edges: BTreeSet<(String, String)> = BTreeSet::new();
    for (module, file, import) in imports() {
        let Some(used) = layers.get(&import) else {
            panic!(
                "{}: `crate::{import}` is not in the list of src/lib.rs",
                file.display()
            );
        };
        let own = layers[&module];
        assert!(
            *used <= own,
            "{}: layer {own} ({module}) uses layer {used} ({import})",
            file.display()
        );
        if *used == own && import != module {
            edges.insert((module, import));
        }
    }
    for (from, to) in &edges {
        let back = (to.clone(), from.clone());
        assert!(!edges.contains(&back), "{from} and {to} use each other");
    }
}

#[test]
fn features_do_not_know_each_other() {
    for folder in FEATURES {
        for file in sources(&source().join(folder)) {
            let relative = file
                .strip_prefix(source().join(folder))
                .expect("a file below");
            let name = relative.components().next().expect("a name").as_os_str();
            let own = Path::new(name).with_extension("");
            if own == Path::new("mod") {
                continue; // the registry knows them all
            }
            for path in crate_paths(&code(&file)) {
                let mut steps = path.split("::");
                let (module, feature) = (steps.next(), steps.next().unwrap_or_default());
                let is_feature = |name: &str| {
                    let file = source().join(folder).join(name);
                    file.is_dir() || file.with_extension("rs").is_file()
                };
                if module == Some(folder) && Path::new(feature) != own {
                    assert!(
                        !is_feature(feature),
                        "{}: uses `crate::{path}`",
                        file.display()
                    );
                }
            }
        }
    }
}

/// Module -> number of its layer.
fn layers() -> BTreeMap<String, usize> {
    let text = fs::read_to_string(source().join("lib.rs")).expect("read src/lib.rs");
    let mut layers = BTreeMap::new();
    let mut layer = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("// layer ") {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            layer = digits.parse().ok();
        }
        let module = line.strip_prefix("pub mod ").or(line.strip_prefix("mod "));
        if let Some(module) = module.and_then(|rest| rest.strip_suffix(';')) {
            let layer = layer.unwrap_or_else(|| panic!("`{module}` stands above the first layer"));
            layers.insert(module.to_owned(), layer);
        }
    }
    assert!(
        layers.len() > 10,
        "the list of src/lib.rs was not understood: {layers:?}"
    );
    layers
}

/// Every use of another module: the user, its file, the used one.
fn imports() -> Vec<(String, PathBuf, String)> {
    let mut found = Vec::new();
    for file in sources(&source()) {
        let relative = file.strip_prefix(source()).expect("a file below");
        let first = relative.components().next().expect("a name").as_os_str();
        let module = Path::new(first).with_extension("");
        let module = module.to_str().expect("a name in UTF-8").to_owned();
        if ["lib", "main"].contains(&module.as_str()) {
            continue; // the list itself, and who stands outside of it
        }
        for path in crate_paths(&code(&file)) {
            let import = path.split("::").next().unwrap_or_default().to_owned();
            found.push((module.clone(), file.clone(), import));
        }
    }
    assert!(found.len() > 10, "hardly any import was found");
    found
}

/// What follows `crate::` in each path, groups taken apart: `crate::{a, b::c}` gives `a` and `b::c`.
fn crate_paths(code: &str) -> Vec<String> {
    let path = Regex::new(r"\bcrate::(\{)?([\w:]+)?").expect("a valid pattern");
    let mut paths = Vec::new();
    for found in path.captures_iter(code) {
        if found.get(1).is_none() {
            paths.extend(found.get(2).map(|path| path.as_str().to_owned()));
            continue;
        }
        let start = found.get(1).expect("an open brace").end();
        paths.extend(group(&code[start..]));
    }
    paths
}

/// The first path of each member of a group whose opening brace was just read.
fn group(code: &str) -> Vec<String> {
    let (mut depth, mut members) = (1, vec![String::new()]);
    for c in code.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => members.push(String::new()),
            c if depth == 1 && !c.is_whitespace() => members.last_mut().expect("one").push(c),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    members.retain(|member| !member.is_empty());
    members
}

/// The code of a file without comments and without its tests.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).expect("read a source file");
    let shipped = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let lines = shipped
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("read a folder") {
        let path = entry.expect("read a folder").path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

#[test]
fn groups_are_taken_apart() {
    let code = "use crate::{a, b::{c, d}, e::f};\nlet x = crate::g::h(y);";
    assert_eq!(crate_paths(code), ["a", "b::", "e::f", "g::h"]);
}
