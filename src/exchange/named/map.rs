//! `map`: a variable whose value is looked up by a text.
//!
//! ```yaml
//! map:
//!   $tier: { from: "$http_x_plan", values: { gold: a, "~^sil": b }, default: c }
//! ```
//!
//! What a pattern looks like says how it is found: a text without marks in a hash table, one with a `*` in front or behind
//! in a table of ends or beginnings, one behind `~` by its regular expression. So the number of entries hardly matters, but
//! for regexes, which are tried one after the other. nginx: `map` with `hostnames`, whose order of precedence it is.

use std::borrow::Cow;
use std::collections::HashMap;

use indexmap::IndexMap;
use regex::Regex;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Choice, Definition, Value};
use crate::build::Build;
use crate::exchange::vars::Text;
use crate::issue::At;
use crate::value::pattern;

/// A variable whose value is looked up by a text: `map.$NAME`. nginx: `map`.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The text that is looked up, with variables.
    pub from: String,
    /// Values by pattern: `gold` is that text, `*.example.com` one that ends so, `/api/*` one that begins so, `~REGEX` one
    /// that it matches, `~*REGEX` the same in any case. Case matters to `~` only. The exact text goes first, then the
    /// longest end, then the longest beginning, then regexes in written order. Values are texts with variables, groups of
    /// the regex among them.
    pub values: IndexMap<String, String>,
    /// The value where nothing matches. Default: none.
    #[serde(default)]
    pub default: Option<String>,
}

/// Patterns, each with the index of its value.
#[derive(Debug, Default)]
pub struct Patterns {
    /// In lower case, as are ends and beginnings.
    exact: HashMap<Box<[u8]>, usize>,
    ends: Affixes,
    beginnings: Affixes,
    regexes: Vec<(Regex, usize)>,
}

/// Ends or beginnings of texts.
#[derive(Debug, Default)]
struct Affixes {
    by_text: HashMap<Box<[u8]>, usize>,
    /// Which lengths there are, the longest first.
    lengths: Vec<usize>,
}

impl Config {
    pub(super) fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Definition> {
        let from = Text::compile(&at.key("from"), &self.from, b);
        let mut patterns = Patterns::default();
        let at_values = at.key("values");
        let mut values = Vec::with_capacity(self.values.len());
        let mut sound = true;
        for (pattern, value) in &self.values {
            let at = at_values.key(pattern);
            sound &= patterns.add(pattern, values.len(), &at, b).is_some();
            match Value::compile(&at, value, b) {
                Some(value) => values.push(value),
                None => sound = false,
            }
            b.captures.clear();
            b.captures_unknown = false;
        }
        patterns.settle();
        let default = Value::default(at, self.default.as_deref(), b);
        let definition = Definition {
            choice: Choice::Map(from?, patterns),
            values,
            default: default.ok()?,
        };
        sound.then_some(definition)
    }
}

impl Patterns {
    /// Adds a pattern for the value with this index; the groups of a regex are known to `b` afterwards.
    fn add(&mut self, written: &str, value: usize, at: &At<'_>, b: &mut Build<'_>) -> Option<()> {
        if let Some(written) = written.strip_prefix('~') {
            let regex = match written.strip_prefix('*') {
                Some(regex) => Cow::Owned(format!("(?i){regex}")),
                None => Cow::Borrowed(written),
            };
            return match pattern::regex(&regex) {
                Ok(regex) => {
                    b.captures = pattern::capture_names(&regex).collect();
                    self.regexes.push((regex, value));
                    Some(())
                }
                Err(error) => {
                    b.captures_unknown = true;
                    b.error(at, format!("not a regular expression: {error}"))
                        .on_key();
                    None
                }
            };
        }
        let stars = written.bytes().filter(|byte| *byte == b'*').count();
        let (table, text) = match (stars, written.strip_prefix('*'), written.strip_suffix('*')) {
            (0, ..) => (&mut self.exact, written),
            (1, Some(""), _) => {
                b.error(at, "`*` matches everything")
                    .on_key()
                    .hint("that is what `default` is for, beside `values`");
                return None;
            }
            (1, Some(end), _) => (&mut self.ends.by_text, end),
            (1, None, Some(beginning)) => (&mut self.beginnings.by_text, beginning),
            _ => {
                b.error(
                    at,
                    format!("`{written}` has its `*` elsewhere than at one end"),
                )
                .on_key()
                .hint("`~` in front makes a regular expression, in which `.*` stands for any text");
                return None;
            }
        };
        let text = text.to_ascii_lowercase().into_bytes();
        if table.insert(text.into(), value).is_some() {
            b.error(at, format!("`{written}` is given twice"))
                .on_key()
                .hint("case does not matter here");
            return None;
        }
        Some(())
    }

    /// When all are there.
    fn settle(&mut self) {
        for affixes in [&mut self.ends, &mut self.beginnings] {
            affixes.lengths = affixes.by_text.keys().map(|text| text.len()).collect();
            affixes.lengths.sort_unstable_by(|a, b| b.cmp(a));
            affixes.lengths.dedup();
        }
    }

    /// The value for a text. What the groups of the regex have captured, if it was one, is appended to `captures`.
    pub fn find(&self, text: &[u8], captures: &mut Vec<String>) -> Option<usize> {
        let lower = match text.iter().any(u8::is_ascii_uppercase) {
            true => Cow::Owned(text.to_ascii_lowercase()),
            false => Cow::Borrowed(text),
        };
        let plain = self
            .exact
            .get(&*lower)
            .copied()
            .or_else(|| {
                self.ends
                    .find(|length| lower.get(lower.len().checked_sub(length)?..))
            })
            .or_else(|| self.beginnings.find(|length| lower.get(..length)));
        if plain.is_some() || self.regexes.is_empty() {
            return plain;
        }
        let text = String::from_utf8_lossy(text);
        let mut regexes = self.regexes.iter();
        let found = regexes.find(|(regex, _)| pattern::push_captures(regex, &text, captures));
        found.map(|(_, value)| *value)
    }
}

impl Affixes {
    /// The value of the longest one; `cut` gives as much of the text as is asked for.
    fn find<'a>(&self, cut: impl Fn(usize) -> Option<&'a [u8]>) -> Option<usize> {
        let mut cuts = self.lengths.iter().filter_map(|length| cut(*length));
        cuts.find_map(|text| self.by_text.get(text)).copied()
    }
}
