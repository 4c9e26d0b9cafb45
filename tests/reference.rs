//! docs/reference.md: every key of the language, made of the schema, and so of what stands at the fields in the source.
//!
//! `WEIR_BLESS=1` writes the page; the difference is to be read before it is kept.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use crate::harness::Setup;

#[test]
fn reference_is_what_the_source_says() {
    let printed = Setup::new().run(&["schema"]).stdout;
    let schema: Value = serde_json::from_str(&printed).expect("a schema");
    let page = Reference::new(&schema).page();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference.md");
    if std::env::var_os("WEIR_BLESS").is_some() {
        fs::write(&path, &page).expect("write the page");
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    let differs = written
        .lines()
        .zip(page.lines())
        .find(|(old, new)| old != new);
    assert!(
        written == page,
        "docs/reference.md is not what the source says; WEIR_BLESS=1 writes it anew: {differs:?}"
    );
}

const HEAD: &str = "# Reference

Every key, its kind and what it means: made of the JSON Schema of this language (`weir schema`), which editors read as
well. The [handbook](configuration.md) explains how the keys work together, with examples. Keys in *italics* are names of
your choice.

A *text* may be written without quotes where YAML allows that; a *duration* is `250ms`, `5s`, `2m`, `1h` or `7d`; a *size* is `64KiB`
or `10m`; a *ratio* is `20%`.
";

struct Reference<'a> {
    schema: &'a Value,
    policies: &'a Map<String, Value>,
    out: String,
    /// Definitions that stand on the page already, and where: below which key, in which section.
    told: Vec<(&'a str, String, String)>,
    /// Where the page is now.
    section: String,
    present: String,
    /// Keys of which the source says nothing.
    silent: Vec<String>,
}

impl<'a> Reference<'a> {
    fn new(schema: &'a Value) -> Reference<'a> {
        let policies = &schema["$defs"]["Filters"]["properties"];
        Reference {
            schema,
            policies: policies.as_object().expect("policies"),
            out: HEAD.to_owned(),
            told: Vec::new(),
            section: String::new(),
            present: String::new(),
            silent: Vec::new(),
        }
    }

    fn page(mut self) -> String {
        let sections = self.schema["properties"].as_object().expect("keys");
        let (long, short): (Vec<_>, Vec<_>) = sections
            .iter()
            .partition(|(_, value)| !self.objects(value).is_empty());
        self.heading("The process", "");
        for (key, value) in short {
            self.key(&format!("`{key}`"), value, 0);
        }
        for (key, value) in long {
            // what a level above sites may hold are policies, which have sections of their own
            if key != "defaults" {
                self.heading(key, description(value));
                self.keys(value, 0);
            }
        }
        let text = "In `defaults`, a site or a route; each may be `off`.";
        self.heading("Policies", text);
        for (key, value) in self.policies {
            let mut text = description(value).to_owned();
            let more = self.described(value);
            if !more.is_empty() && more != text {
                text += &format!("\n\n{more}");
            }
            self.heading(key, &text);
            let kind = self.kind(value);
            self.out +=
                &format!("`{key}`: {kind}; see [the handbook](configuration.md#{key}).\n\n");
            self.keys(value, 0);
        }
        assert!(
            self.silent.is_empty(),
            "nothing is said of {:?}",
            self.silent
        );
        self.out
    }

    fn heading(&mut self, name: &str, text: &str) {
        self.section = name.to_owned();
        self.present = format!("`{name}`");
        self.out += &format!("\n## {name}\n\n");
        if !text.is_empty() {
            self.out += &format!("{}\n\n", paragraphs(text, 0));
        }
    }

    /// A key, and those below it.
    fn key(&mut self, key: &str, value: &'a Value, depth: usize) {
        let mut text = paragraphs(description(value), depth + 1);
        if text.is_empty() {
            text = paragraphs(description(self.resolved(value)), depth + 1);
        }
        if text.is_empty() && key.starts_with('`') {
            self.silent.push(format!("{key} in {}", self.section));
        }
        let indent = "  ".repeat(depth);
        let kind = self.kind(value);
        let line = format!("{indent}- {key}: {kind}. {text}");
        self.out += &format!("{}\n", line.trim_end());
        self.present = key.to_owned();
        self.keys(value, depth + 1);
    }

    /// The keys of a value that is a map, or may be one.
    fn keys(&mut self, value: &'a Value, depth: usize) {
        for (name, object) in self.objects(value) {
            if let Some(name) = name {
                if let Some((_, key, section)) = self.told.iter().find(|told| told.0 == name) {
                    let indent = "  ".repeat(depth);
                    self.out += &format!("{indent}- as {key} in [{section}](#{section})\n");
                    continue;
                }
                let place = (self.present.clone(), self.section.clone());
                self.told.push((name, place.0, place.1));
            }
            self.words(object, depth);
            let required = object["required"].as_array();
            for (key, value) in object["properties"].as_object().into_iter().flatten() {
                if name.is_some_and(|name| ["Site", "Route"].contains(&name))
                    && self.policies.contains_key(key)
                {
                    continue;
                }
                let is_required =
                    required.is_some_and(|names| names.iter().any(|name| name == key));
                let mark = if is_required { " (required)" } else { "" };
                self.key(&format!("`{key}`{mark}"), value, depth);
            }
            for (pattern, value) in object["patternProperties"]
                .as_object()
                .into_iter()
                .flatten()
            {
                let name = match pattern.as_str() {
                    pattern if pattern.starts_with("^[45]") => "*status or range*",
                    pattern if pattern.contains('$') && pattern.contains("\\$") => "*$name*",
                    _ => "*name*",
                };
                self.key(name, value, depth);
            }
            if object["additionalProperties"].is_object() {
                self.key("*name*", &object["additionalProperties"], depth);
            }
        }
        self.words(value, depth);
    }

    /// The words that a value may be, where something is said about them.
    fn words(&mut self, value: &'a Value, depth: usize) {
        let value = self.resolved(value);
        let words = value["oneOf"].as_array().into_iter().flatten();
        let told = words.filter(|word| word["const"].is_string() && !description(word).is_empty());
        for word in told {
            let indent = "  ".repeat(depth);
            let text = paragraphs(description(word), depth + 1);
            self.out += &format!(
                "{indent}- `{}`: {text}\n",
                word["const"].as_str().unwrap_or("")
            );
        }
    }

    /// What a value is, in a few words.
    fn kind(&self, value: &'a Value) -> String {
        if let Some(name) = name_of(value) {
            let known = match name {
                "Size" => "size",
                "Span" => "duration",
                "Ratio" => "ratio",
                "Rate" => "rate, such as `10/s`",
                "Cidr" => "network or address",
                "Bind" => "address",
                name => return self.kind(&self.schema["$defs"][name]),
            };
            return known.to_owned();
        }
        if let Some(word) = value.get("const") {
            return format!(
                "`{}`",
                word.as_str()
                    .map_or_else(|| word.to_string(), str::to_owned)
            );
        }
        let alternatives = ["anyOf", "oneOf", "enum"]
            .into_iter()
            .find_map(|key| value[key].as_array().map(|list| (key, list)));
        if let Some((key, list)) = alternatives {
            let kinds = list
                .iter()
                .filter(|one| one["type"] != "null" && !one.is_null());
            let mut kinds: Vec<_> = kinds
                .map(|one| match key {
                    "enum" => format!(
                        "`{}`",
                        one.as_str().map_or_else(|| one.to_string(), str::to_owned)
                    ),
                    _ => self.kind(one),
                })
                .collect();
            kinds.dedup();
            // one or many
            if let [one, many] = &kinds[..]
                && *many == format!("list: {one}")
            {
                return format!("{one}, or a list");
            }
            return kinds.join(" or ");
        }
        let kinds = match &value["type"] {
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
            kind => Vec::from_iter(kind.as_str()),
        };
        let kinds = kinds.into_iter().filter(|kind| *kind != "null");
        let kinds = kinds.map(|kind| match kind {
            "string" => "text".to_owned(),
            "boolean" => "`true` or `false`".to_owned(),
            "integer" | "number" => "number".to_owned(),
            "array" => format!("list: {}", self.kind(&value["items"])),
            "object" if value["additionalProperties"].is_object() => {
                format!("map, name: {}", self.kind(&value["additionalProperties"]))
            }
            _ => "map".to_owned(),
        });
        kinds.collect::<Vec<_>>().join(" or ")
    }

    /// The maps that a value may be: with the name of their definition, if they have one.
    fn objects(&self, value: &'a Value) -> Vec<(Option<&'a str>, &'a Value)> {
        let resolved = self.resolved(value);
        let is_map = ["properties", "patternProperties"].iter().any(|key| {
            resolved[key]
                .as_object()
                .is_some_and(|keys| !keys.is_empty())
        });
        if is_map {
            return vec![(name_of(value), resolved)];
        }
        let mut found = Vec::new();
        for key in ["anyOf", "oneOf"] {
            for one in resolved[key].as_array().into_iter().flatten() {
                found.extend(self.objects(one));
            }
        }
        if found.is_empty() && resolved["items"].is_object() {
            found = self.objects(&resolved["items"]);
        }
        if found.is_empty() && resolved["additionalProperties"].is_object() {
            let below = &resolved["additionalProperties"];
            if !self.objects(below).is_empty() {
                return vec![(name_of(value), resolved)];
            }
        }
        // `{ allow, deny }` or a list of such
        found.dedup_by_key(|(name, object)| (*name, &object["properties"]));
        found
    }

    /// What is said of what a value is, rather than of the key that has it.
    fn described(&self, value: &'a Value) -> &'a str {
        let list = value["anyOf"].as_array().into_iter().flatten();
        let below = list.map(|one| match name_of(one) {
            Some(name) => description(&self.schema["$defs"][name]),
            None => self.described(one),
        });
        below
            .into_iter()
            .find(|text| !text.is_empty())
            .unwrap_or_default()
    }

    fn resolved(&self, value: &'a Value) -> &'a Value {
        match name_of(value) {
            Some(name) => self.resolved(&self.schema["$defs"][name]),
            None => value,
        }
    }
}

/// The name of the definition that a value refers to.
fn name_of(value: &Value) -> Option<&str> {
    value["$ref"].as_str()?.strip_prefix("#/$defs/")
}

fn description(value: &Value) -> &str {
    value["description"].as_str().unwrap_or_default()
}

/// A text as part of a list at that depth.
fn paragraphs(text: &str, depth: usize) -> String {
    let indent = "  ".repeat(depth);
    let lines: Vec<_> = text.lines().collect();
    let mut out = String::new();
    for (index, line) in lines.iter().enumerate() {
        if index > 0 {
            out.push('\n');
            if !line.is_empty() {
                out += &indent;
            }
        }
        out += line;
    }
    out
}
