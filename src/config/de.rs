//! From the tree to the raw types, with all mistakes in one run.
//!
//! serde stops at the first mistake. So the document is read in passes: what a pass has found right is not read again by
//! the next, and what is wrong is reported and left out, until a pass comes to the end. Then everything that is not left out
//! is read once more, and so on until that goes through in one pass: that is the document without its mistakes, of which
//! `compile` finds what is wrong with the rest. A large file with many mistakes costs little more than one without.
//!
//! A map of which entries were passed over cannot be judged as a whole (a "missing" key may be one of them), so a verdict
//! over such a map is not believed: see [`Mistake::doubt`]. If the entry that it lacks was left out, the map is left out
//! too, and nobody is told: it is no other mistake. The price: serde names only the first missing key, so a key that is
//! missing behind a required one with a wrong value is named in the next run.
//!
//! The deserializer is weir's own, because that of serde_yaml reads `balance: { hash: "$uri" }` only as `!hash "$uri"`, takes
//! a key without a value for a key that is not there, and returns mistakes as English sentences.

use std::fmt::{self, Display};

use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error, Expected, MapAccess,
    SeqAccess, Unexpected, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::node::{Content, Entry, Key, Node, Scalar, State};
use crate::issue::{At, Issues, KeyPath, LeftOut, Step};
use crate::value;

/// Reads a `T` from what is right in the document, and tells what was left out. No `T`: nothing can be made of it, or there
/// are so many mistakes that the search was given up. `incomplete`: parts of the document could not be read at all, so nothing
/// at the top level is called missing.
pub fn deserialize<T: DeserializeOwned>(
    root: &mut Node,
    incomplete: bool,
    issues: &mut Issues,
) -> (Option<T>, LeftOut) {
    let mut left_out = LeftOut::default();
    if incomplete {
        left_out.insert(KeyPath::default());
    }
    let document = read(root, &mut left_out, issues);
    root.left_out(&At::Root, &mut left_out);
    (document, left_out)
}

/// `lacking` are paths that the tree lacks though they were meant to be there.
fn read<T: DeserializeOwned>(
    root: &mut Node,
    lacking: &mut LeftOut,
    issues: &mut Issues,
) -> Option<T> {
    let mut mistakes = 0;
    // nothing was read in an earlier pass, so the verdict is final
    let mut first = true;
    loop {
        let mistake = match T::deserialize(&*root) {
            Ok(document) if first => return Some(document),
            Ok(_) => {
                root.reset();
                first = true;
                continue;
            }
            Err(mistake) => mistake,
        };
        let path = mistake.path();
        let Some(node) = root.at_mut(&path) else {
            mistake.report(path, issues);
            return None;
        };
        if !mistake.on_key && node.read_again() {
            first = false;
            continue;
        }
        let doubt = match mistake.doubt(node, &path, lacking) {
            State::Read if first => State::Unread,
            doubt => doubt,
        };
        node.state.set(match doubt {
            State::Read => State::Read,
            State::Unread | State::LeftOut => State::LeftOut,
        });
        first = false;
        if doubt == State::Unread {
            if let Kind::UnknownKey(meant) = mistake.kind {
                root.remove(&path);
                lacking.extend(meant.and_then(|meant| beside(&path, meant)));
            }
            mistake.report(path, issues);
            mistakes += 1;
        }
        match root.state.get() {
            State::LeftOut => return None,
            _ if mistakes > MISTAKES => return None,
            State::Read => {
                root.reset();
                first = true;
            }
            State::Unread => {}
        }
    }
}

/// The path of another entry in the map that holds `path`.
fn beside(path: &KeyPath, key: &str) -> Option<KeyPath> {
    let (_, holder) = path.0.split_last()?;
    Some(below(&KeyPath(holder.to_vec()), key))
}

fn below(path: &KeyPath, key: &str) -> KeyPath {
    let mut path = path.clone();
    path.0.push(Step::Key(key.to_owned()));
    path
}

/// Why a value is not what it should be, and where below the root. This is serde's error type here.
#[derive(Debug)]
pub struct Mistake {
    /// The way to the value, innermost step first.
    steps: Vec<Step>,
    message: String,
    hint: Option<String>,
    on_key: bool,
    kind: Kind,
    /// What was passed over in the map or list.
    passed_over: State,
}

/// What the passes must know of a mistake.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Value,
    MissingKey(&'static str),
    /// With the key that it was probably meant to be.
    UnknownKey(Option<&'static str>),
}

impl Default for Mistake {
    fn default() -> Mistake {
        Mistake {
            steps: Vec::new(),
            message: String::new(),
            hint: None,
            on_key: false,
            kind: Kind::Value,
            passed_over: State::Unread,
        }
    }
}

impl Mistake {
    fn path(&self) -> KeyPath {
        KeyPath(self.steps.iter().rev().cloned().collect())
    }

    /// The state of what makes this verdict on `node` doubtful, if anything does: something that it was perhaps only
    /// passed over (`Read`), or that it surely lacks (`LeftOut`).
    fn doubt(&self, node: &Node, path: &KeyPath, lacking: &LeftOut) -> State {
        let Kind::MissingKey(key) = self.kind else {
            return self.passed_over;
        };
        match node.get(key) {
            Some(value) => value.state.get(),
            // an unread file may hold it, or it is mistyped
            None if path.0.is_empty() && lacking.contains(path) => State::LeftOut,
            None if lacking.contains(&below(path, key)) => State::LeftOut,
            None => State::Unread,
        }
    }

    fn report(self, path: KeyPath, issues: &mut Issues) {
        let issue = issues.error_at(path, self.message);
        issue.hint = self.hint;
        issue.on_key = self.on_key;
    }

    fn below(mut self, step: Step) -> Mistake {
        self.steps.push(step);
        self
    }

    fn on_key(mut self, key: &str) -> Mistake {
        self.on_key = true;
        self.below(Step::Key(key.to_owned()))
    }

    /// Of a map or list that could not be shown whole.
    fn partial(mut self, passed_over: State) -> Mistake {
        if self.steps.is_empty() {
            self.passed_over = self.passed_over.max(passed_over);
        }
        self
    }

    fn expected(expected: &str, found: Unexpected<'_>) -> Mistake {
        Mistake {
            message: format!("expected {expected}, found {}", show(&found)),
            hint: way_out(expected, &found),
            ..Mistake::default()
        }
    }
}

impl Error for Mistake {
    fn custom<T: Display>(message: T) -> Mistake {
        let message = message.to_string();
        Mistake {
            message,
            ..Mistake::default()
        }
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Mistake {
        Mistake::expected(&in_words(&expected.to_string()), found)
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Mistake {
        Mistake::invalid_type(found, expected)
    }

    fn invalid_length(length: usize, expected: &dyn Expected) -> Mistake {
        Mistake::custom(format!(
            "expected {}, found {length}",
            in_words(&expected.to_string())
        ))
    }

    fn unknown_variant(name: &str, known: &'static [&'static str]) -> Mistake {
        Mistake {
            message: format!("unknown value `{name}`"),
            hint: Some(value::hint(name, "values here are", known.iter().copied())),
            ..Mistake::default()
        }
    }

    fn unknown_field(name: &str, known: &'static [&'static str]) -> Mistake {
        Mistake {
            message: format!("unknown key `{name}`"),
            hint: Some(value::hint(name, "keys here are", known.iter().copied())),
            kind: Kind::UnknownKey(value::suggest(name, known.iter().copied())),
            ..Mistake::default()
        }
    }

    fn missing_field(name: &'static str) -> Mistake {
        Mistake {
            message: format!("missing key `{name}`"),
            kind: Kind::MissingKey(name),
            ..Mistake::default()
        }
    }

    fn duplicate_field(name: &'static str) -> Mistake {
        Mistake::custom(format!("key `{name}` is given twice"))
    }
}

impl Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Mistake {}

impl<'de> Deserializer<'de> for &Node {
    type Error = Mistake;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match &self.content {
            Content::Scalar(scalar) => scalar.visit(visitor),
            Content::Filled(text) => visitor.visit_str(text),
            Content::List(items) => {
                let mut list = List {
                    items,
                    next: 0,
                    passed_over: State::Unread,
                };
                let value = visitor
                    .visit_seq(&mut list)
                    .map_err(|mistake| mistake.partial(list.passed_over))?;
                match list.next < items.len() {
                    true => Err(Mistake::custom(format!(
                        "expected {} items, found {}",
                        list.next,
                        items.len()
                    ))),
                    false => Ok(value),
                }
            }
            Content::Map(entries) => {
                let mut map = Map {
                    entries,
                    next: 0,
                    passed_over: State::Unread,
                };
                let value = visitor
                    .visit_map(&mut map)
                    .map_err(|mistake| mistake.partial(map.passed_over))?;
                match map.entries.get(map.next) {
                    Some(entry) => Err(Mistake::custom("one key too many").on_key(&entry.key.name)),
                    None => Ok(value),
                }
            }
        }
    }

    /// A key without a value (`tls:`) is not taken for a key that is not there.
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        visitor.visit_some(self)
    }

    /// serde would also read a struct from a list, by the order of its fields.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        match &self.content {
            Content::List(_) => Err(Mistake::expected("a map", Unexpected::Seq)),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        visitor.visit_newtype_struct(self)
    }

    /// A word (`least_conn`), or a map with the word as its only key (`{ hash: "$uri" }`).
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        words: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        match &self.content {
            Content::Scalar(Scalar::Text(word)) | Content::Filled(word) => {
                visitor.visit_enum(Word { word, value: None })
            }
            Content::Map(entries) => match entries.as_slice() {
                // without it, what is left says nothing
                [entry] if entry.value.state.get() != State::Unread => {
                    Err(Mistake::default().partial(entry.value.state.get()))
                }
                [entry] => {
                    let (word, value) = (&entry.key.name, Some(&entry.value));
                    visitor.visit_enum(Word { word, value })
                }
                _ => Err(Mistake::custom(format!(
                    "expected one key of {}, found {}",
                    words.join(", "),
                    entries.len()
                ))),
            },
            other => Err(Mistake::expected(
                &format!("one of {}", words.join(", ")),
                other.unexpected(),
            )),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier
    }
}

impl Content {
    fn unexpected(&self) -> Unexpected<'_> {
        match self {
            Content::Scalar(scalar) => scalar.unexpected(),
            Content::Filled(text) => Unexpected::Str(text),
            Content::List(_) => Unexpected::Seq,
            Content::Map(_) => Unexpected::Map,
        }
    }
}

impl Scalar {
    fn unexpected(&self) -> Unexpected<'_> {
        match self {
            Scalar::Null => Unexpected::Unit,
            Scalar::Bool(value) => Unexpected::Bool(*value),
            Scalar::Unsigned(value) => Unexpected::Unsigned(*value),
            Scalar::Signed(value) => Unexpected::Signed(*value),
            Scalar::Float(value) => Unexpected::Float(*value),
            Scalar::Text(text) => Unexpected::Str(text),
        }
    }

    fn visit<'de, V: Visitor<'de>>(&self, visitor: V) -> Result<V::Value, Mistake> {
        match self {
            // not `visit_unit`: no type of the language can be written as nothing
            Scalar::Null => Err(Mistake::invalid_type(Unexpected::Unit, &visitor)),
            Scalar::Bool(value) => visitor.visit_bool(*value),
            Scalar::Unsigned(value) => visitor.visit_u64(*value),
            Scalar::Signed(value) => visitor.visit_i64(*value),
            Scalar::Float(value) => visitor.visit_f64(*value),
            Scalar::Text(text) => visitor.visit_str(text),
        }
    }
}

/// The items of a list that are to be read.
struct List<'n> {
    items: &'n [Node],
    next: usize,
    passed_over: State,
}

impl<'de> SeqAccess<'de> for List<'_> {
    type Error = Mistake;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Mistake> {
        while let Some(item) = self.items.get(self.next) {
            let index = self.next;
            self.next += 1;
            if item.state.get() != State::Unread {
                self.passed_over = self.passed_over.max(item.state.get());
                continue;
            }
            let value = seed
                .deserialize(item)
                .map_err(|mistake| mistake.below(Step::Index(index)))?;
            item.state.set(State::Read);
            return Ok(Some(value));
        }
        Ok(None)
    }
}

/// The entries of a map that are to be read.
struct Map<'n> {
    entries: &'n [Entry],
    next: usize,
    passed_over: State,
}

impl<'de> MapAccess<'de> for Map<'_> {
    type Error = Mistake;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Mistake> {
        while let Some(entry) = self.entries.get(self.next) {
            if entry.value.state.get() != State::Unread {
                self.passed_over = self.passed_over.max(entry.value.state.get());
                self.next += 1;
                continue;
            }
            return seed
                .deserialize(&entry.key)
                .map(Some)
                .map_err(|mistake| mistake.on_key(&entry.key.name));
        }
        Ok(None)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Mistake> {
        let entry = self
            .entries
            .get(self.next)
            .ok_or_else(|| Mistake::custom("a value without a key"))?;
        self.next += 1;
        let value = seed
            .deserialize(&entry.value)
            .map_err(|mistake| mistake.below(Step::Key(entry.key.name.clone())))?;
        entry.value.state.set(State::Read);
        Ok(value)
    }
}

impl<'de> Deserializer<'de> for &Key {
    type Error = Mistake;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        self.scalar.visit(visitor)
    }

    /// A field is known by its name; serde would also take its number.
    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        visitor.visit_str(&self.name)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _words: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        visitor.visit_enum(Word {
            word: &self.name,
            value: None,
        })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct seq
        tuple tuple_struct map struct ignored_any
    }
}

/// One of several words, with or without a value.
#[derive(Clone, Copy)]
struct Word<'n> {
    word: &'n str,
    value: Option<&'n Node>,
}

impl Word<'_> {
    /// Lets `read` read the value of the word.
    fn value<T>(self, read: impl FnOnce(&Node) -> Result<T, Mistake>) -> Result<T, Mistake> {
        let word = self.word;
        let needed = || Mistake::custom(format!("`{word}` needs a value: `{{ {word}: ... }}`"));
        let node = self.value.ok_or_else(needed)?;
        let value = read(node).map_err(|mistake| mistake.below(Step::Key(word.to_owned())))?;
        node.state.set(State::Read);
        Ok(value)
    }
}

impl<'de> EnumAccess<'de> for Word<'_> {
    type Error = Mistake;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Mistake> {
        let word = seed.deserialize(StrDeserializer::<Mistake>::new(self.word));
        match (word, self.value) {
            (Ok(word), _) => Ok((word, self)),
            (Err(mistake), Some(_)) => Err(mistake.on_key(self.word)),
            (Err(mistake), None) => Err(mistake),
        }
    }
}

impl<'de> VariantAccess<'de> for Word<'_> {
    type Error = Mistake;

    fn unit_variant(self) -> Result<(), Mistake> {
        match self.value {
            None => Ok(()),
            Some(_) => Err(Mistake::custom(format!(
                "`{}` takes no value: write the word alone",
                self.word
            ))
            .on_key(self.word)),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Mistake> {
        self.value(|node| seed.deserialize(node))
    }

    fn tuple_variant<V: Visitor<'de>>(
        self,
        _length: usize,
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        self.value(|node| node.deserialize_seq(visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        self.value(|node| node.deserialize_struct("", fields, visitor))
    }
}

/// What serde and its derived code expect, in the words of who writes YAML.
fn in_words(expected: &str) -> String {
    let words = match expected {
        "a boolean" => "`true` or `false`",
        "a sequence" | "sequence" => "a list",
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" => "a whole number, 0 or more",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "path string" => "a string that is a path",
        _ if expected.starts_with("struct ") => "a map",
        _ if expected.starts_with("a nonzero ") => "a whole number, 1 or more",
        _ => expected,
    };
    words.to_owned()
}

fn show(found: &Unexpected<'_>) -> String {
    match found {
        Unexpected::Str(text) => format!("`{text}`"),
        Unexpected::Bool(value) => format!("`{value}`"),
        Unexpected::Unsigned(value) => format!("`{value}`"),
        Unexpected::Signed(value) => format!("`{value}`"),
        Unexpected::Float(value) => format!("`{value}`"),
        Unexpected::Unit => "nothing".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a map".to_owned(),
        other => other.to_string(),
    }
}

/// What to write instead, for the usual slips.
fn way_out(expected: &str, found: &Unexpected<'_>) -> Option<String> {
    match found {
        Unexpected::Bool(_) | Unexpected::Unsigned(_) | Unexpected::Signed(_)
            if expected.contains("string") =>
        {
            Some(format!("quote it: \"{}\"", show(found).trim_matches('`')))
        }
        // what was written is not known: 1.10 is found as 1.1
        Unexpected::Float(_) if expected.contains("string") => Some("quote it: \"...\"".to_owned()),
        Unexpected::Bool(false) if expected.contains("`off`") => Some("write `off`".to_owned()),
        Unexpected::Unit => Some("give the key a value, or remove it".to_owned()),
        Unexpected::Str(text) if expected.contains("`true`") => match text
            .to_ascii_lowercase()
            .as_str()
        {
            "on" | "yes" | "y" | "true" | "1" => Some("write `true`, without quotes".to_owned()),
            "off" | "no" | "n" | "false" | "0" => Some("write `false`, without quotes".to_owned()),
            _ => None,
        },
        Unexpected::Str(text) if expected.contains("number") => {
            let digits = text.replace('_', "");
            let is_number = digits.parse::<f64>().is_ok_and(f64::is_finite);
            is_number.then(|| format!("write `{digits}`, without quotes"))
        }
        _ => None,
    }
}

/// After so many mistakes the rest is not looked for: nobody reads on.
pub const MISTAKES: usize = 100;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;
    use crate::value::{FromShort, OneOrMany, OrOff, Ratio, Short, Span};

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Document {
        threads: Option<u16>,
        daemon: bool,
        name: String,
        pools: BTreeMap<String, Pool>,
        routes: Vec<Route>,
        pages: BTreeMap<u16, String>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Pool {
        backends: OneOrMany<String>,
        #[serde(default)]
        balance: Balance,
        timeout: Option<Span>,
        passive: Option<OrOff<Passive>>,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Balance {
        #[default]
        RoundRobin,
        LeastConn,
        Hash(String),
        Sticky {
            ttl: Span,
        },
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Passive {
        max_fails: u32,
        share: Option<Ratio>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Route {
        proxy: Short<Proxy>,
        #[serde(default)]
        tls: Option<Passive>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Proxy {
        pool: String,
        retry: u32,
    }

    impl FromShort for Proxy {
        fn from_short(text: &str) -> Result<Proxy, String> {
            let pool = text.to_owned();
            Ok(Proxy { pool, retry: 1 })
        }
    }

    fn read(text: &str) -> Result<Document, Vec<String>> {
        let mut root = Node::parse(text).unwrap();
        let mut issues = Issues::default();
        let (document, _) = deserialize(&mut root, false, &mut issues);
        match issues.is_empty() {
            true => Ok(document.unwrap()),
            false => Err(shown(issues)),
        }
    }

    fn shown(issues: Issues) -> Vec<String> {
        let show = |issue: crate::issue::Issue| match issue.hint {
            Some(hint) => format!("{}: {} ({hint})", issue.path, issue.message),
            None => format!("{}: {}", issue.path, issue.message),
        };
        issues.0.into_iter().map(show).collect()
    }

    fn wrong(text: &str) -> Vec<String> {
        read(text).unwrap_err()
    }

    #[test]
    fn words_may_carry_a_value() {
        let balance = |text: &str| {
            read(&format!(
                "pools: {{ a: {{ backends: x, balance: {text} }} }}"
            ))
            .map(|mut d| d.pools.remove("a").unwrap().balance)
        };
        assert_eq!(balance("least_conn"), Ok(Balance::LeastConn));
        assert_eq!(
            balance("{ hash: $uri }"),
            Ok(Balance::Hash("$uri".to_owned()))
        );
        assert!(matches!(
            balance("{ sticky: { ttl: 5s } }"),
            Ok(Balance::Sticky { .. })
        ));
        assert_eq!(
            balance("least_con").unwrap_err(),
            [
                "pools.a.balance: unknown value `least_con` (did you mean `least_conn`? values here are: round_robin, least_conn, hash, sticky)"
            ]
        );
        assert!(
            balance("{ hsh: x }").unwrap_err()[0]
                .starts_with("pools.a.balance.hsh: unknown value `hsh` (did you mean `hash`?")
        );
        assert_eq!(
            balance("hash").unwrap_err(),
            ["pools.a.balance: `hash` needs a value: `{ hash: ... }`"]
        );
        assert_eq!(
            balance("{ least_conn: 5 }").unwrap_err(),
            ["pools.a.balance.least_conn: `least_conn` takes no value: write the word alone"]
        );
        assert_eq!(
            balance("{ sticky: { ttl: 5 } }").unwrap_err(),
            ["pools.a.balance.sticky.ttl: expected a duration such as `5s`, found `5`"]
        );
        assert_eq!(
            balance("[]").unwrap_err(),
            [
                "pools.a.balance: expected one of round_robin, least_conn, hash, sticky, found a list"
            ]
        );
    }

    #[test]
    fn all_mistakes_are_found_in_one_run() {
        let text = "
threads: many
daemon: on
name: 8080
pools:
  a: { backends: [x, 5], timout: 5s, timeout: 5 }
  b: { balance: random }
  c: { backends: x, passive: { max_fails: -1, share: 20, more: 1 } }
  d: 5
  e: { backends: x, passive: false }
routes:
  - proxy: { pool: 1.10, retry: 1 }
  - tls:
  - proxy: a
    tls: []
pages: { 404: x, 4o4: y, 99999: z }
";
        assert_eq!(
            wrong(text),
            [
                "threads: expected a whole number from 0 to 65535, found `many`",
                "daemon: expected `true` or `false`, found `on` (write `true`, without quotes)",
                "name: expected a string, found `8080` (quote it: \"8080\")",
                "pools.a.backends[1]: expected a string, found `5` (quote it: \"5\")",
                "pools.a.timout: unknown key `timout` (did you mean `timeout`? keys here are: backends, balance, timeout, passive)",
                "pools.a.timeout: expected a duration such as `5s`, found `5`",
                "pools.b.balance: unknown value `random` (values here are: round_robin, least_conn, hash, sticky)",
                "pools.b: missing key `backends`",
                "pools.c.passive.max_fails: expected a whole number from 0 to 4294967295, found `-1`",
                "pools.c.passive.share: expected a ratio such as `20%`, found `20`",
                "pools.c.passive.more: unknown key `more` (keys here are: max_fails, share)",
                "pools.d: expected a map, found `5`",
                "pools.e.passive: expected a value or `off`, found `false` (write `off`)",
                "routes[0].proxy.pool: expected a string, found `1.1` (quote it: \"...\")",
                "routes[1].tls: expected a map, found nothing (give the key a value, or remove it)",
                "routes[1]: missing key `proxy`",
                "routes[2].tls: expected a map, found a list",
                "pages.4o4: expected a whole number from 0 to 65535, found `4o4`",
                "pages.99999: expected a whole number from 0 to 65535, found `99999`",
            ]
        );
    }

    #[test]
    fn what_is_left_out_of_a_pass_is_not_called_missing() {
        let text = "routes:\n  - { proxy: { pool: 5, retry: x } }\n  - { proxy: [], tls: { max_fails: x } }\n";
        assert_eq!(
            wrong(text),
            [
                "routes[0].proxy.pool: expected a string, found `5` (quote it: \"5\")",
                "routes[0].proxy.retry: expected a whole number from 0 to 4294967295, found `x`",
                "routes[1].proxy: expected a string or a map, found a list",
                "routes[1].tls.max_fails: expected a whole number from 0 to 4294967295, found `x`",
            ]
        );
    }

    #[test]
    fn what_is_right_is_read_without_the_mistakes() {
        let read = |text: &str| {
            let mut root = Node::parse(text).unwrap();
            let mut issues = Issues::default();
            let (document, left_out) = deserialize::<Document>(&mut root, false, &mut issues);
            let written = text.lines().filter(|line| line.contains("# wrong")).count();
            assert_eq!(issues.errors(), written, "{:?}", shown(issues));
            (document.unwrap(), left_out)
        };
        let (document, left_out) = read(
            "
threads: many                                   # wrong
name: weir
pools:
  a: { backends: [x, y], timeout: 5 }           # wrong
  b: { backend: x }                             # wrong
  c:
    balance: { hash: 5 }                        # wrong
    backends:
      - x
      - 5                                       # wrong
      - z
  d: { backends: x, passive: { max_fails: x } } # wrong
  e: { backends: x, more: 1 }                   # wrong
  f: { backends: 5 }                            # wrong
routes:
  - 5                                           # wrong
  - proxy: { pool: 5, retry: 1 }                # wrong
  - proxy: a
    tls: {}                                     # wrong
pages: { 404: x }
",
        );
        let (right, _) = read(
            "
name: weir
pools:
  a: { backends: [x, y] }
  c: { backends: [x, z] }
  d: { backends: x }
  e: { backends: x }
routes: [{ proxy: a }]
pages: { 404: x }
",
        );
        assert_eq!(document, right);
        let path = |text: &str| {
            let step = |text: &str| match text.parse() {
                Ok(index) => Step::Index(index),
                Err(_) => Step::Key(text.to_owned()),
            };
            KeyPath(text.split('/').map(step).collect())
        };
        for gone in [
            "threads",
            "pools/a/timeout",
            "pools/b",
            "pools/b/backends",
            "pools/c/balance",
            "pools/c/backends/1",
            "pools/d/passive",
            "pools/f",
            "routes/0",
            "routes/1",
            "routes/2/tls",
        ] {
            assert!(left_out.contains(&path(gone)), "{gone}: {left_out:?}");
        }
        for whole in ["name", "pages", "pools/e", "pools/c/backends/0"] {
            assert!(left_out.is_whole(&path(whole)), "{whole}: {left_out:?}");
        }
    }

    proptest::proptest! {
        /// Whatever is wrong, the reading ends, with a document or a mistake, and nothing is left out in silence.
        #[test]
        fn any_values_are_read_or_reported(
            values in proptest::collection::vec(0..VALUES.len(), 8),
            keys in proptest::collection::vec(0..KEYS.len(), 8),
        ) {
            let value = |n: usize| VALUES[values[n]];
            let key = |n: usize| KEYS[keys[n]];
            let text = format!(
                "{{ pools: {{ a: {{ {}: {}, {}x: {}, backends: {} }}, b: {{ {}: {} }} }}, {}: {}, \
                 routes: [{}, {{ proxy: {}, {}: {} }}] }}",
                key(0), value(0), key(1), value(1), value(2), key(3), value(3), key(4), value(4),
                value(5), value(6), key(7), value(7),
            );
            let mut root = Node::parse(&text).unwrap();
            let mut issues = Issues::default();
            root.settle(&At::Root, &mut issues);
            let right = Document::deserialize(&root).is_ok();
            root.reset();
            let given_twice = issues.errors();
            let (document, left_out) = deserialize::<Document>(&mut root, false, &mut issues);
            let mistakes = issues.errors() - given_twice;
            proptest::prop_assert_eq!(right, mistakes == 0, "{}", text);
            proptest::prop_assert!(document.is_some() || mistakes > 0, "{}", text);
            proptest::prop_assert!(mistakes > 0 || left_out.is_whole(&KeyPath::default()), "{}", text);
        }
    }

    const KEYS: &[&str] = &[
        "backends", "balance", "timeout", "passive", "tls", "name", "pages",
    ];
    const VALUES: &[&str] = &[
        "x",
        "5",
        "5s",
        "[]",
        "[x, 5]",
        "{}",
        "off",
        "true",
        "least_conn",
        "{ hash: x }",
        "{ hash: 5 }",
        "{ hsh: x }",
        "{ sticky: { ttl: 5 } }",
        "{ max_fails: 5 }",
        "{ max_fail: 5, share: 20 }",
        "{ pool: a, retry: x }",
        "{ 404: x, x: y }",
        "{ backends: [] }",
    ];

    #[test]
    fn a_mistyped_key_is_not_missing_as_well() {
        assert_eq!(
            wrong("pools: { a: { backend: x } }"),
            [
                "pools.a.backend: unknown key `backend` (did you mean `backends`? keys here are: backends, balance, timeout, passive)"
            ]
        );
    }

    #[test]
    fn a_document_of_the_wrong_kind_is_one_mistake() {
        assert_eq!(wrong("[a, b]"), [": expected a map, found a list"]);
        assert_eq!(wrong("text"), [": expected a map, found `text`"]);
    }

    #[test]
    fn after_a_hundred_mistakes_it_is_enough() {
        let text: String = (0..150).map(|n| format!("k{n}: 1\n")).collect();
        let found = wrong(&text);
        assert_eq!(found.len(), 101);
    }

    fn fill(node: &mut Node, path: &[&str], text: &str) {
        let path = KeyPath(
            path.iter()
                .map(|key| Step::Key((*key).to_owned()))
                .collect(),
        );
        node.at_mut(&path).unwrap().content = Content::Filled(text.to_owned());
    }

    #[test]
    fn filled_in_text_becomes_a_number_where_one_is_meant() {
        let mut root = Node::parse(
            "threads: x\ndaemon: x\nname: x\npools: { a: { backends: x, timeout: x } }\n",
        )
        .unwrap();
        fill(&mut root, &["threads"], "4");
        fill(&mut root, &["daemon"], "true");
        fill(&mut root, &["name"], "8080");
        fill(&mut root, &["pools", "a", "timeout"], "5s");
        let mut issues = Issues::default();
        let (document, _) = deserialize::<Document>(&mut root, false, &mut issues);
        let document = document.unwrap();
        assert_eq!(
            (document.threads, document.daemon, document.name.as_str()),
            (Some(4), true, "8080")
        );
        assert_eq!(document.pools["a"].timeout, Some("5s".parse().unwrap()));
        assert!(issues.is_empty());
    }

    #[test]
    fn filled_in_text_that_is_no_number_either_is_reported() {
        let mut root = Node::parse("threads: x\ndaemon: x\n").unwrap();
        fill(&mut root, &["threads"], "70000");
        fill(&mut root, &["daemon"], "perhaps");
        let mut issues = Issues::default();
        let (document, _) = deserialize(&mut root, false, &mut issues);
        assert_eq!(document, Some(Document::default()));
        let messages: Vec<&str> = issues
            .0
            .iter()
            .map(|issue| issue.message.as_str())
            .collect();
        assert_eq!(
            messages,
            [
                "expected a whole number from 0 to 65535, found `70000`",
                "expected `true` or `false`, found `perhaps`"
            ]
        );
    }

    #[test]
    fn many_mistakes_in_a_large_document_are_found_in_one_reading() {
        let mut text = "pools:\n".to_owned();
        for n in 0..2000 {
            text += &format!(
                "  p{n}: {{ backends: [a, b, c], timeout: {} }}\n",
                if n % 25 == 0 { "5" } else { "5s" }
            );
        }
        assert_eq!(wrong(&text).len(), 80);
    }
}
