//! The page of a policy, of docs/policies/.

use std::collections::BTreeMap;

use serde_json::Value;

use super::example::{Example, examples};
use super::keys::{Listing, description};
use super::kinds;
use super::source::{PHASES, Policy};

/// The pages by the keys of the policies.
pub fn pages(schema: &Value, policies: &[Policy]) -> BTreeMap<String, String> {
    let keys: Vec<_> = policies.iter().map(|policy| &policy.key[..]).collect();
    let known = Listing::new(schema).policies.len();
    assert_eq!(
        known,
        keys.len(),
        "the schema has other policies than the source"
    );
    let examples = examples(&keys);
    let page = |policy: &Policy| {
        let example = examples.get(&policy.key[..]);
        let example = example.unwrap_or_else(|| panic!("no file in conf/ shows `{}`", policy.key));
        (policy.key.clone(), page(schema, policies, policy, example))
    };
    policies.iter().map(page).collect()
}

fn page(
    schema: &Value,
    policies: &[Policy],
    policy: &Policy,
    (file, examples): &(String, Vec<Example>),
) -> String {
    let key = &policy.key;
    let listing = Listing::new(schema);
    let (does, nginx) = told(&listing, key);
    let kind = listing.kind(&listing.policies[key]);
    let levels = match policy.merges {
        true => "are merged; where they disagree, the nearest one counts",
        false => "the nearest one counts, with all that it says",
    };
    let mut page = format!(
        "# {key}

{does}

| | |
|---|---|
| value | {kind} |
| stands in | [`defaults`](../configuration.md#sites), a site, a route |
| several levels | {levels}; `{key}: off` removes it |
| nginx | {nginx} |
| handbook | [{key}](../configuration.md#{key}) |

{}
",
        policy.text
    );
    page += &keys(listing, key, &kind);
    page += &order(policies, policy);
    page +=
        &format!("\n## Example\n\nFrom [conf/{file}](../../conf/{file}), which runs as it is.\n");
    let mut last = "";
    for Example { level, text } in examples {
        if *level != last {
            page += &format!("\n{level}:\n");
        }
        last = level;
        page += &format!("\n```yaml\n{text}\n```\n");
    }
    page
}

/// The keys of a policy, or what its value is where it has none.
fn keys(mut listing: Listing, key: &str, kind: &str) -> String {
    let value = &listing.policies[key];
    // of what is a map and nothing else there is no more to say than its keys
    let is = match kind {
        "`off` or map" => "",
        _ => listing.described(value),
    };
    listing.enter(key);
    listing.keys(value, 0);
    let keys = listing.finish();
    let heading = if keys.is_empty() { "Value" } else { "Keys" };

    // the kind of a key stands before the first full stop
    let entries = keys
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("- "));
    let kinds_of_keys = entries.filter_map(|entry| entry.split_once(". ").map(|(kind, _)| kind));
    let named: Vec<_> = kinds_of_keys.chain([kind]).collect();
    let units = kinds(|kind| {
        let mut words = named.iter().flat_map(|named| named.split([' ', ',']));
        kind != "text" && words.any(|word| word == kind)
    });

    let heading = format!("\n## {heading}");
    let parts = [&heading, is, units.trim_end(), keys.trim_end()];
    let parts = parts.into_iter().filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join("\n\n") + "\n"
}

/// What runs before a policy and after it.
fn order(policies: &[Policy], policy: &Policy) -> String {
    let place = policies.iter().take_while(|one| one.key != policy.key);
    let place = place.count() + 1;
    let count = policies.len();
    let reason = linked(&policy.reason, policies, policy);
    let (first, rest) = reason.split_at(1);
    let mut out = format!(
        "\n## Order\n\nNumber {place} of the [{count} policies](../reference.md#policies). {}{rest}.\n",
        first.to_uppercase()
    );
    if !policy.phases.is_empty() {
        out += "\n| | before it | after it |\n|---|---|---|\n";
    }
    for (phase, _) in PHASES {
        if !policy.phases.contains(&phase) {
            continue;
        }
        let links = |policies: &[Policy]| {
            let taking_part = policies.iter().filter(|one| one.phases.contains(&phase));
            let links = taking_part.map(|one| format!("[{0}]({0}.md)", one.key));
            match links.collect::<Vec<_>>().join(", ") {
                none if none.is_empty() => "none".to_owned(),
                links => links,
            }
        };
        let (before, after) = (links(&policies[..place - 1]), links(&policies[place..]));
        out += &format!("| {phase} | {before} | {after} |\n");
    }
    out
}

/// A text in which the names of other policies are links.
fn linked(text: &str, policies: &[Policy], policy: &Policy) -> String {
    let others = policies.iter().filter(|other| other.key != policy.key);
    others.fold(text.to_owned(), |text, Policy { key, .. }| {
        text.replace(&format!("`{key}`"), &format!("[{key}]({key}.md)"))
    })
}

/// What a policy does, and the directives of nginx that it stands for.
pub fn told(listing: &Listing, key: &str) -> (String, String) {
    let text = description(&listing.policies[key]).replace('\n', " ");
    let (does, nginx) = text
        .split_once(" nginx: ")
        .unwrap_or_else(|| panic!("`{key}` names no directive of nginx: {text}"));
    (does.to_owned(), nginx.trim_end_matches('.').to_owned())
}
