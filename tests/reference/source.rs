//! What the source says of a policy beyond the schema: the list in src/filter/mod.rs, and the file of the policy.

use std::fs;
use std::path::Path;

/// A policy as the list has it, and its file.
pub struct Policy {
    pub key: String,
    /// Why it stands where it does.
    pub reason: String,
    /// In which of [`PHASES`] it takes part.
    pub phases: Vec<&'static str>,
    /// Whether levels are put together, rather than the nearest one alone holding.
    pub merges: bool,
    /// The paragraphs at the top of its file, without the first, which says in a line what it is.
    pub text: String,
}

/// Where in the life of a request a policy may take part, by the functions of `Filter`. Of an answer, header and body are
/// changed in one go, policy by policy.
pub const PHASES: [(&str, &[&str]); 4] = [
    ("When the request comes", &["request"]),
    ("When it goes to a backend, at each try", &["upstream"]),
    ("While its body goes there", &["request_body"]),
    ("When the answer goes to the client", &["response", "body"]),
];

/// All policies, in the order in which they run.
pub fn policies() -> Vec<Policy> {
    let list = source("mod.rs").expect("the list of policies");
    let (_, list) = list.split_once("\nregistry! {\n").expect("a list");
    let (list, _) = list.split_once("\n}\n").expect("the end of the list");
    let mut policies = Vec::new();
    let mut reason = Vec::new();
    for line in list.lines().map(str::trim_start) {
        if line.starts_with("///") {
            continue;
        }
        if let Some(comment) = line.strip_prefix("// ") {
            reason.push(comment);
        } else if let Some((key, _)) = line.split_once(" => ") {
            policies.push(policy(key, &reason.join(" ")));
            reason.clear();
        }
    }
    policies
}

fn policy(key: &str, reason: &str) -> Policy {
    let file = source(&format!("{key}.rs")).or_else(|| source(&format!("{key}/mod.rs")));
    let file = file.unwrap_or_else(|| panic!("no file of `{key}`"));
    let (_, phases) = file.split_once("\nimpl Filter for ").expect("a policy");
    let phases = phases
        .split("\n}\n")
        .next()
        .expect("the policy's functions");
    let has = |function: &&str| phases.contains(&format!(" fn {function}("));
    assert!(
        !reason.is_empty(),
        "no word of why `{key}` stands where it does"
    );
    Policy {
        key: key.to_owned(),
        reason: reason.to_owned(),
        merges: has(&"inherit"),
        phases: PHASES
            .iter()
            .filter(|(_, functions)| functions.iter().any(has))
            .map(|(phase, _)| *phase)
            .collect(),
        text: text(key, &file),
    }
}

/// What concerns users stands before a heading, and links to nothing in the source.
fn text(key: &str, file: &str) -> String {
    let lines = file.lines().map_while(|line| line.strip_prefix("//!"));
    let lines = lines.map(|line| line.strip_prefix(' ').unwrap_or(line));
    let lines = lines.take_while(|line| !line.starts_with("# "));
    let text = lines.collect::<Vec<_>>().join("\n");
    assert!(
        !text.contains("[`"),
        "`{key}`: a link into the source: {text}"
    );
    let (first, rest) = text.split_once("\n\n").expect("more than a line");
    assert!(first.starts_with(&format!("`{key}`: ")), "{first}");
    rest.trim().to_owned()
}

fn source(name: &str) -> Option<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/filter");
    fs::read_to_string(folder.join(name)).ok()
}
