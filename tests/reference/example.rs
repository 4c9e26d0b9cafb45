//! Where the files of conf/ show a policy, as it is written there.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The part of a file of conf/ that shows a policy.
#[derive(Debug, PartialEq)]
pub struct Example {
    /// What it is a part of.
    pub level: &'static str,
    pub text: String,
}

/// The examples of every policy in `keys`, with the name of the file that shows the most of it.
pub fn examples<'a>(keys: &[&'a str]) -> BTreeMap<&'a str, (String, Vec<Example>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf");
    let entries = fs::read_dir(folder).expect("read conf/");
    let paths = entries.map(|entry| entry.expect("read conf/").path());
    let mut paths: Vec<_> = paths
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "yaml")
        })
        .collect();
    paths.sort();
    let mut found = BTreeMap::new();
    for path in paths {
        let text = fs::read_to_string(&path).expect("read an example");
        let name = path.file_name().expect("a file").to_string_lossy();
        for key in keys {
            let shown = shown(&text, key);
            if shown.is_empty() {
                continue;
            }
            // a file of the policy's own, or else that which says the most
            let own = name.trim_end_matches(".yaml").replace('-', "_") == *key;
            let length: usize = shown.iter().map(|(length, _)| length).sum();
            let examples: Vec<_> = shown.into_iter().map(|(_, example)| example).collect();
            let best: &mut (_, _) = found.entry(*key).or_default();
            if (own, length) > best.0 {
                *best = ((own, length), (name.to_string(), examples));
            }
        }
    }
    let examples = found.into_iter();
    examples.map(|(key, (_, example))| (key, example)).collect()
}

/// Each place of a document where `key` is a policy, and how much is said there.
fn shown(text: &str, key: &str) -> Vec<(usize, Example)> {
    // what stands in for the user's backends comes last, and shows nothing
    let lines = text.lines();
    let lines: Vec<_> = lines
        .take_while(|line| {
            !["# A stand-in", "# Stand-ins"]
                .iter()
                .any(|start| line.trim_start().starts_with(start))
        })
        .collect();
    let mut found: Vec<(usize, Example)> = Vec::new();
    // the keys around the current one: each with its indentation
    let mut around: Vec<(usize, &str)> = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let content = line.trim_start_matches([' ', '-']);
        let Some((name, value)) = content.split_once(':') else {
            continue;
        };
        if line.trim_start().starts_with('#') {
            continue;
        }
        let indent = line.len() - content.len();
        around.retain(|above| above.0 < indent);
        around.push((indent, name));
        let names: Vec<_> = around.iter().map(|above| above.1).collect();
        let (level, start) = match names[..] {
            ["defaults", last] if last == key => ("In `defaults`", index),
            ["sites", _, last] if last == key => ("In a site", index),
            ["sites", _, "routes", last] if last == key => {
                let item = |index: &usize| {
                    let line = lines[*index];
                    line.get(..indent)
                        .is_some_and(|start| start.ends_with("- "))
                };
                let start = (0..=index).rev().find(item).expect("an item of the list");
                ("In a route", start)
            }
            _ => continue,
        };
        let said = part(&lines, index);
        let example = Example {
            level,
            text: part(&lines, start),
        };
        // `off` alone shows little
        let length = if value.trim() == "off" { 0 } else { said.len() };
        found.push((length, example));
    }
    found
}

/// The entry that begins in a line, and the comment above it; without the indentation.
fn part(lines: &[&str], start: usize) -> String {
    let indent = indentation(lines[start]);
    let comment = lines[..start]
        .iter()
        .rev()
        .take_while(|line| line.trim_start().starts_with('#') && indentation(line) == indent);
    let first = start - comment.count();
    let below = lines[start + 1..]
        .iter()
        .take_while(|line| line.trim().is_empty() || indentation(line) > indent);
    let end = start + 1 + below.count();
    let part = lines[first..end].iter();
    let part: Vec<_> = part.map(|line| line.get(indent..).unwrap_or("")).collect();
    part.join("\n").trim_end().to_owned()
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

#[test]
fn the_part_that_shows_a_policy_is_found() {
    let text = "pools:
  a:
    timeouts: { read: 1s }
defaults:
  timeouts: { read: 2s }
sites:
  main:
    # Why.
    timeouts:
      read: 3s

    routes:
      # Which.
      - match: { path: / } # timeouts: no
        timeouts: { read: 4s }
        respond: x
      - timeouts: off
        respond: y
";
    let shown = shown(text, "timeouts");
    let shown: Vec<_> = shown
        .iter()
        .map(|(_, example)| (example.level, &example.text[..]))
        .collect();
    let route =
        "# Which.\n- match: { path: / } # timeouts: no\n  timeouts: { read: 4s }\n  respond: x";
    assert_eq!(
        shown,
        [
            ("In `defaults`", "timeouts: { read: 2s }"),
            ("In a site", "# Why.\ntimeouts:\n  read: 3s"),
            ("In a route", route),
            ("In a route", "- timeouts: off\n  respond: y"),
        ]
    );
}
