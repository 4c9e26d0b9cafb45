//! A list of keys, made of the schema: their kinds, and what the source says of them.

use serde_json::{Map, Value};

/// A page, or a part of one, that keys are listed on.
pub struct Listing<'a> {
    pub schema: &'a Value,
    pub policies: &'a Map<String, Value>,
    pub out: String,
    /// Definitions that stand on the page already, and where: below which key, in which section.
    told: Vec<(&'a str, String, String)>,
    /// Where the page is now.
    section: String,
    present: String,
    /// Keys of which the source says nothing.
    silent: Vec<String>,
}

impl<'a> Listing<'a> {
    pub fn new(schema: &'a Value) -> Listing<'a> {
        let policies = &schema["$defs"]["Filters"]["properties"];
        Listing {
            schema,
            policies: policies.as_object().expect("policies"),
            out: String::new(),
            told: Vec::new(),
            section: String::new(),
            present: String::new(),
            silent: Vec::new(),
        }
    }

    /// What follows is in the section of that name.
    pub fn enter(&mut self, section: &str) {
        self.section = section.to_owned();
        self.present = format!("`{section}`");
    }

    pub fn finish(self) -> String {
        assert!(
            self.silent.is_empty(),
            "nothing is said of {:?}",
            self.silent
        );
        self.out
    }

    /// A key, and those below it.
    pub fn key(&mut self, key: &str, value: &'a Value, depth: usize) {
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
    pub fn keys(&mut self, value: &'a Value, depth: usize) {
        for (name, object) in self.objects(value) {
            if let Some(name) = name {
                if let Some((_, key, section)) = self.told.iter().find(|told| told.0 == name) {
                    let indent = "  ".repeat(depth);
                    let place = match *section == self.section {
                        true => "above".to_owned(),
                        false => format!("in [{section}](#{section})"),
                    };
                    self.out += &format!("{indent}- as {key} {place}\n");
                    continue;
                }
                let place = (self.present.clone(), self.section.clone());
                self.told.push((name, place.0, place.1));
            }
            self.words(object, depth);
            let required = object["required"].as_array();
            let is_required =
                |key: &String| required.is_some_and(|names| names.iter().any(|name| name == key));
            let keys = object["properties"].as_object().into_iter().flatten();
            let (first, others): (Vec<_>, Vec<_>) = keys.partition(|(key, _)| is_required(key));
            for (key, value) in first.into_iter().chain(others) {
                if name.is_some_and(|name| ["Site", "Route"].contains(&name))
                    && self.policies.contains_key(key)
                {
                    continue;
                }
                let mark = if is_required(key) { " (required)" } else { "" };
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
    pub fn kind(&self, value: &'a Value) -> String {
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
    pub fn objects(&self, value: &'a Value) -> Vec<(Option<&'a str>, &'a Value)> {
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
    pub fn described(&self, value: &'a Value) -> &'a str {
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

pub fn description(value: &Value) -> &str {
    value["description"].as_str().unwrap_or_default()
}

/// A text as part of a list at that depth.
pub fn paragraphs(text: &str, depth: usize) -> String {
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
