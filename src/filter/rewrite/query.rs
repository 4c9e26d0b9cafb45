//! `query` of a rewrite: parameters that are set, added and taken away.

use glob::Pattern;
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::build::Build;
use crate::exchange::vars::{Stage, Text, View};
use crate::http::query;
use crate::issue::At;
use crate::value::OneOrMany;

/// Changes of the query: `remove` first, then `set`, then `add`. Names are compared decoded, values are texts with
/// variables and get encoded; one that turns out empty is left out.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Parameters that have this value, whatever they had before.
    pub set: IndexMap<String, String>,
    /// Parameters that come in addition; one value or a list.
    pub add: IndexMap<String, OneOrMany<String>>,
    /// Parameters that are taken out, by name; `*` stands for any text.
    pub remove: OneOrMany<String>,
}

#[derive(Debug)]
pub struct Changes {
    /// What goes, to begin with.
    gone: Vec<Pattern>,
    /// What comes, at the end.
    new: Vec<(String, Text)>,
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Changes> {
        let before = b.issues.errors();
        let mut gone = Vec::new();
        let mut new = Vec::new();
        for (i, name) in self.remove.0.iter().enumerate() {
            match Pattern::new(name) {
                Ok(pattern) => gone.push(pattern),
                Err(error) => {
                    let at = at.key("remove");
                    b.error(
                        &at.index(i),
                        format!("`{name}` is not a pattern: {}", error.msg),
                    );
                }
            }
        }
        let at_set = at.key("set");
        for (name, value) in &self.set {
            let value = Text::compile_for(Stage::Request, &at_set.key(name), value, b);
            gone.extend(Pattern::new(&Pattern::escape(name)));
            new.extend(value.map(|value| (name.clone(), value)));
        }
        let at_add = at.key("add");
        for (name, values) in &self.add {
            let at = at_add.key(name);
            for (i, value) in values.0.iter().enumerate() {
                let value = Text::compile_for(Stage::Request, &at.index(i), value, b);
                new.extend(value.map(|value| (name.clone(), value)));
            }
        }
        if gone.is_empty() && new.is_empty() && b.issues.errors() == before {
            b.error(at, "changes nothing")
                .hint("give `set`, `add` or `remove`");
        }
        (b.issues.errors() == before).then_some(Changes { gone, new })
    }
}

impl Changes {
    pub fn apply(&self, query: &str, view: &View<'_>) -> String {
        let mut changed = String::with_capacity(query.len() + 32);
        for (parameter, name, _) in query::parameters(query) {
            let name: Vec<u8> = query::decode(name).collect();
            let name = String::from_utf8_lossy(&name);
            if self.gone.iter().any(|pattern| pattern.matches(&name)) {
                continue;
            }
            if !changed.is_empty() {
                changed.push('&');
            }
            changed.push_str(parameter);
        }
        let mut value = Vec::new();
        for (name, text) in &self.new {
            value.clear();
            text.write(view, &mut value);
            if !value.is_empty() {
                query::push(&mut changed, name.as_bytes(), &value);
            }
        }
        changed
    }
}
