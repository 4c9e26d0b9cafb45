//! Variables that the document defines at its top level, beside those that every request has.
//!
//! ```text
//!  map.rs     by a text: exact, with `*` in front or behind, by regex    nginx: map
//!  geo.rs     by an address: the longest network that holds it           nginx: geo
//!  split.rs   by the hash of a text: so many percent each                nginx: split_clients
//! ```
//!
//! They may use each other, but not in a circle. A request computes each of them when it is first used, and remembers it:
//! what a policy changes after that (the path, by `rewrite`) changes it no more, as in nginx.

pub mod geo;
pub mod map;
pub mod split;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use indexmap::IndexMap;

use super::vars::{self, Text, View};
use crate::build::{Build, Defined, Stage};
use crate::issue::At;
use crate::value::template::{Part, Template};

use geo::Networks;
use map::Patterns;
use split::Shares;

/// The sections of the document that define variables; the keys are their names, `$tier`.
pub struct Sections<'a> {
    pub map: &'a IndexMap<String, map::Config>,
    pub geo: &'a IndexMap<String, geo::Config>,
    pub split: &'a IndexMap<String, split::Config>,
}

/// All variables that a document defines.
#[derive(Debug)]
pub struct Named {
    definitions: Vec<Definition>,
}

/// What one of them is worth.
#[derive(Debug)]
struct Definition {
    choice: Choice,
    values: Vec<Value>,
    /// Where none of them is chosen.
    default: Option<Value>,
}

/// How one of the values is chosen.
#[derive(Debug)]
enum Choice {
    Map(Text, Patterns),
    Geo(geo::From, Networks),
    Split(Text, Shares),
}

#[derive(Debug)]
enum Value {
    Fixed(Bytes),
    /// Its captures are those of the regex that has chosen it.
    Text(Text),
}

/// The variables of the document during one request.
#[derive(Debug, Default)]
pub struct Memo {
    named: Option<Arc<Named>>,
    /// What was computed so far.
    values: OnceLock<Box<[OnceLock<Option<Bytes>>]>>,
}

impl Memo {
    pub fn new(named: Option<Arc<Named>>) -> Memo {
        Memo {
            named,
            values: OnceLock::new(),
        }
    }

    /// The value of the variable with this index.
    pub fn value(&self, index: usize, view: &View<'_>) -> Option<&Bytes> {
        let definitions = &self.named.as_ref()?.definitions;
        let values = self
            .values
            .get_or_init(|| definitions.iter().map(|_| OnceLock::new()).collect());
        let value = values.get(index)?;
        // Nothing comes back to this one meanwhile: it would have been a mistake in the document.
        let value = value.get_or_init(|| definitions[index].value(view));
        value.as_ref()
    }
}

impl Definition {
    fn value(&self, view: &View<'_>) -> Option<Bytes> {
        let mut captures = Vec::new();
        let chosen = match &self.choice {
            Choice::Map(from, patterns) => patterns.find(&bytes(from, view), &mut captures),
            Choice::Geo(from, networks) => from
                .address(view)
                .and_then(|address| networks.find(address)),
            Choice::Split(by, shares) => shares.find(&bytes(by, view)),
        };
        let value = match chosen {
            Some(index) => self.values.get(index),
            None => self.default.as_ref(),
        };
        Some(match value? {
            Value::Fixed(value) => value.clone(),
            Value::Text(text) => {
                let mut out = Vec::with_capacity(64);
                text.write_with(&captures, view, &mut out);
                out.into()
            }
        })
    }
}

fn bytes(text: &Text, view: &View<'_>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    text.write(view, &mut bytes);
    bytes
}

impl Value {
    fn compile(at: &At<'_>, text: &str, b: &mut Build<'_>) -> Option<Value> {
        match text.contains('$') {
            true => Text::compile(at, text, b).map(Value::Text),
            false => Some(Value::Fixed(Bytes::copy_from_slice(text.as_bytes()))),
        }
    }

    /// The `default` of the definition at `at`; `Err(())` is a mistake.
    fn default(at: &At<'_>, text: Option<&str>, b: &mut Build<'_>) -> Result<Option<Value>, ()> {
        match text {
            None => Ok(None),
            Some(text) => match Value::compile(&at.key("default"), text, b) {
                Some(value) => Ok(Some(value)),
                None => Err(()),
            },
        }
    }
}

/// One variable as it is written.
struct Entry<'a> {
    section: &'static str,
    /// With its dollar sign.
    written: &'a str,
    raw: Raw<'a>,
}

enum Raw<'a> {
    Map(&'a map::Config),
    Geo(&'a geo::Config),
    Split(&'a split::Config),
}

impl Sections<'_> {
    /// Makes the variables, and makes them known to all that is compiled later; `None` where there are none.
    pub fn compile(&self, b: &mut Build<'_>) -> Option<Arc<Named>> {
        let entries = self.entries(b);
        let order = order(&entries, b);
        let mut definitions = Vec::new();
        for entry in order.into_iter().map(|index| &entries[index]) {
            let at = At::Root.key(entry.section);
            let at = at.key(entry.written);
            b.latest = Stage::Request;
            let definition = match &entry.raw {
                Raw::Map(config) => config.compile(&at, b),
                Raw::Geo(config) => config.compile(&at, b),
                Raw::Split(config) => config.compile(&at, b),
            };
            let defined = definition.map(|definition| {
                definitions.push(definition);
                Defined {
                    index: definitions.len() - 1,
                    from: b.latest,
                }
            });
            b.defined.insert(entry.name().to_owned(), defined);
        }
        (!definitions.is_empty()).then(|| Arc::new(Named { definitions }))
    }

    /// All entries whose names can be used.
    fn entries(&self, b: &mut Build<'_>) -> Vec<Entry<'_>> {
        let map = self.map.iter();
        let map = map.map(|(name, raw)| ("map", name, Raw::Map(raw)));
        let geo = self.geo.iter();
        let geo = geo.map(|(name, raw)| ("geo", name, Raw::Geo(raw)));
        let split = self.split.iter();
        let split = split.map(|(name, raw)| ("split", name, Raw::Split(raw)));
        let mut owners: HashMap<&str, &str> = HashMap::new();
        let mut entries = Vec::new();
        for (section, written, raw) in map.chain(geo).chain(split) {
            let at = At::Root.key(section);
            let at = at.key(written);
            let Some(name) = written.strip_prefix('$') else {
                b.error(&at, format!("`{written}` is not the name of a variable"))
                    .on_key()
                    .hint(format!("write `${written}`"));
                // Whoever uses it has made no mistake.
                b.defined.insert(written.clone(), None);
                continue;
            };
            let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
            let begins = name
                .bytes()
                .next()
                .is_some_and(|byte| !byte.is_ascii_digit());
            if !begins || !name.bytes().all(is_name) {
                b.error(&at, format!("`{written}` is not the name of a variable"))
                    .on_key()
                    .hint("a name consists of letters, digits and `_`, and does not begin with a digit");
            } else if vars::is_known(name) {
                b.error(&at, format!("`{written}` is one of weir's own variables"))
                    .on_key()
                    .hint("choose another name");
            } else if let Some(owner) = owners.insert(name, section) {
                b.error(&at, format!("`{written}` is defined in `{owner}` already"))
                    .on_key()
                    .hint("choose another name");
            } else {
                entries.push(Entry {
                    section,
                    written,
                    raw,
                });
            }
        }
        entries
    }
}

impl<'a> Entry<'a> {
    fn name(&self) -> &'a str {
        &self.written[1..]
    }

    /// The names in its texts. Texts that are none are reported when they are compiled.
    fn uses(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut collect = |text: &str| {
            if let (true, Ok(template)) = (text.contains('$'), Template::parse(text)) {
                names.extend(template.parts().iter().filter_map(|part| match part {
                    Part::Variable(name) => Some(name.clone()),
                    Part::Literal(_) => None,
                }));
            }
        };
        match &self.raw {
            Raw::Map(config) => {
                collect(&config.from);
                config.values.values().for_each(|value| collect(value));
                config.default.iter().for_each(|value| collect(value));
            }
            Raw::Geo(config) => {
                collect(&config.from);
                config.values.values().for_each(|value| collect(value));
                config.default.iter().for_each(|value| collect(value));
            }
            Raw::Split(config) => {
                collect(&config.by);
                config.values.keys().for_each(|value| collect(value));
                config.default.iter().for_each(|value| collect(value));
            }
        }
        names
    }
}

/// How far the search for an order has come with an entry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    New,
    /// What it uses is being looked at.
    Open,
    Done,
}

/// The entries in an order in which each comes behind those that it uses. Those that use each other in a circle are
/// reported and left out.
fn order(entries: &[Entry<'_>], b: &mut Build<'_>) -> Vec<usize> {
    let by_name = entries.iter().enumerate();
    let by_name: HashMap<&str, usize> = by_name.map(|(i, entry)| (entry.name(), i)).collect();
    let uses: Vec<Vec<usize>> = entries
        .iter()
        .map(|entry| {
            let names = entry.uses();
            let known = names.iter().filter_map(|name| by_name.get(name.as_str()));
            known.copied().collect()
        })
        .collect();
    let mut marks = vec![Mark::New; entries.len()];
    let mut order = Vec::new();
    for start in 0..entries.len() {
        // The way from `start` to where the search is: each entry, and how many of its uses were followed.
        let mut way = Vec::new();
        if marks[start] == Mark::New {
            marks[start] = Mark::Open;
            way.push((start, 0));
        }
        while let Some((index, followed)) = way.last_mut() {
            let index = *index;
            let Some(next) = uses[index].get(*followed).copied() else {
                way.pop();
                marks[index] = Mark::Done;
                order.push(index);
                continue;
            };
            *followed += 1;
            match marks[next] {
                Mark::Done => {}
                Mark::New => {
                    marks[next] = Mark::Open;
                    way.push((next, 0));
                }
                Mark::Open => {
                    let begin = way.iter().position(|(i, _)| *i == next).unwrap_or(0);
                    let circle: Vec<usize> = way[begin..].iter().map(|(i, _)| *i).collect();
                    report_circle(&circle, entries, b);
                }
            }
        }
    }
    order.retain(|index| !b.defined.contains_key(entries[*index].name()));
    order
}

fn report_circle(circle: &[usize], entries: &[Entry<'_>], b: &mut Build<'_>) {
    let [first, ..] = circle else {
        return;
    };
    let entry = &entries[*first];
    let names = circle.iter().chain([first]);
    let names: Vec<&str> = names.map(|index| entries[*index].written).collect();
    let at = At::Root.key(entry.section);
    b.error(
        &at.key(entry.written),
        format!("`{}` needs itself: {}", entry.written, names.join(" -> ")),
    )
    .on_key();
    for index in circle {
        b.defined.insert(entries[*index].name().to_owned(), None);
    }
}
