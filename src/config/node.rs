//! A document as a tree: what the YAML says, before anyone asks what it means.
//!
//! It is not `serde_yaml::Value`, because that drops what the loader needs: equal keys, which are reported each with its
//! place; tags, which are refused rather than ignored; and what was filled in (`${env:X}`), which may be read again as a
//! number. This is the only file that knows the YAML reader.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::de::{
    DeserializeSeed, EnumAccess, Error, IgnoredAny, MapAccess, SeqAccess, VariantAccess, Visitor,
};
use serde::{Deserialize, Deserializer};

use crate::issue::{At, Issues, KeyPath, LeftOut, Step};

#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub content: Content,
    pub state: Cell<State>,
}

/// What is known of a node, in the order of how much it says against a verdict on the map or list that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// To be read.
    Unread,
    /// Not to be read: it is wrong and reported, or needs something that is. What holds it may be wrong only because of that.
    LeftOut,
    /// Read in an earlier pass and right, so that this pass need not read it. What holds it cannot be judged in this pass.
    Read,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    Scalar(Scalar),
    /// Text of which every character was filled in (`${env:X}`): a number or a boolean where one is meant, because in YAML
    /// it could not be written without quotes inside `{ }`.
    Filled(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Scalar {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub key: Key,
    pub value: Node,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    pub scalar: Scalar,
    /// The key as text, also when it is a number (`404: /404.html`).
    pub name: String,
}

/// A text that is not YAML, or not of the kind that a document can be.
#[derive(Debug, PartialEq)]
pub struct SyntaxError {
    pub message: String,
    /// Line and column, from 1.
    pub location: Option<(usize, usize)>,
}

impl Node {
    pub fn parse(text: &str) -> Result<Node, SyntaxError> {
        // Without aliases every node needs a byte. With them, a small file can describe a huge document.
        let budget = Cell::new(text.len() + ALIASED_NODES);
        let nodes = NodeSeed { budget: &budget };
        nodes
            .deserialize(serde_yaml::Deserializer::from_str(text))
            .map_err(SyntaxError::from)
    }

    pub fn new(content: Content) -> Node {
        let state = Cell::new(State::Unread);
        Node { content, state }
    }

    /// The node at `path`, if there is one.
    pub fn at_mut(&mut self, path: &KeyPath) -> Option<&mut Node> {
        path.0
            .iter()
            .try_fold(self, |node, step| match (step, &mut node.content) {
                (Step::Key(name), Content::Map(entries)) => {
                    let entry = entries.iter_mut().find(|entry| entry.key.name == *name)?;
                    Some(&mut entry.value)
                }
                (Step::Index(index), Content::List(items)) => items.get_mut(*index),
                _ => None,
            })
    }

    /// The value of a key, if this is a map that has it.
    pub fn get(&self, name: &str) -> Option<&Node> {
        let Content::Map(entries) = &self.content else {
            return None;
        };
        let entry = entries.iter().find(|entry| entry.key.name == name)?;
        Some(&entry.value)
    }

    /// Removes the entry at `path`.
    pub fn remove(&mut self, path: &KeyPath) {
        let Some((Step::Key(name), holder)) = path.0.split_last() else {
            return;
        };
        let holder = self.at_mut(&KeyPath(holder.to_vec()));
        if let Some(Content::Map(entries)) = holder.map(|node| &mut node.content) {
            entries.retain(|entry| entry.key.name != *name);
        }
    }

    /// Reads a filled-in text as YAML, if that makes it something else than text: once, because then it is no longer a
    /// filled-in text. Only scalars: the environment gives values, not structure.
    pub fn read_again(&mut self) -> bool {
        let Content::Filled(text) = &self.content else {
            return false;
        };
        let Ok(Node {
            content: Content::Scalar(scalar),
            ..
        }) = Node::parse(text)
        else {
            return false;
        };
        if matches!(scalar, Scalar::Text(_) | Scalar::Null) {
            return false;
        }
        self.content = Content::Scalar(scalar);
        true
    }

    /// Lets everything be read again that is not left out.
    pub fn reset(&self) {
        if self.state.get() == State::Read {
            self.state.set(State::Unread);
        }
        match &self.content {
            Content::Scalar(_) | Content::Filled(_) => {}
            Content::List(items) => items.iter().for_each(Node::reset),
            Content::Map(entries) => entries.iter().for_each(|entry| entry.value.reset()),
        }
    }

    /// Collects the paths of what is left out; `at` is the path of this node.
    pub fn left_out(&self, at: &At<'_>, paths: &mut LeftOut) {
        if self.state.get() == State::LeftOut {
            return paths.insert(at.to_path());
        }
        match &self.content {
            Content::Scalar(_) | Content::Filled(_) => {}
            Content::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    item.left_out(&at.index(index), paths);
                }
            }
            Content::Map(entries) => {
                for entry in entries {
                    entry.value.left_out(&at.key(&entry.key.name), paths);
                }
            }
        }
    }

    /// Reports equal keys, of which the first is kept, and carries out merges (`<<: *anchor`).
    pub fn settle(&mut self, at: &At<'_>, issues: &mut Issues) {
        match &mut self.content {
            Content::Scalar(_) | Content::Filled(_) => {}
            Content::List(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    item.settle(&at.index(index), issues);
                }
            }
            Content::Map(entries) => {
                let mut names = HashSet::with_capacity(entries.len());
                let mut again = HashMap::new();
                entries.retain(|entry| {
                    let first = names.insert(entry.key.name.clone());
                    if !first {
                        *again.entry(entry.key.name.clone()).or_insert(1) += 1;
                    }
                    first
                });
                for (name, times) in again {
                    issues.error(&at.key(&name), given(&name, times)).on_key();
                }
                for entry in entries.iter_mut() {
                    entry.value.settle(&at.key(&entry.key.name), issues);
                }
                merge(entries, at, issues);
            }
        }
    }
}

fn given(name: &str, times: usize) -> String {
    match times {
        2 => format!("key `{name}` is given twice"),
        _ => format!("key `{name}` is given {times} times"),
    }
}

/// Replaces `<<` by the entries of the maps that it names, except those that are there already.
fn merge(entries: &mut Vec<Entry>, at: &At<'_>, issues: &mut Issues) {
    let Some(position) = entries.iter().position(|entry| entry.key.name == "<<") else {
        return;
    };
    let merged = entries.remove(position).value;
    let sources = match merged.content {
        Content::List(items) => items,
        _ => vec![merged],
    };
    for source in sources {
        let Content::Map(more) = source.content else {
            issues.error(&at.key("<<"), "expected a map to merge, or a list of maps");
            continue;
        };
        let have: HashSet<String> = entries.iter().map(|entry| entry.key.name.clone()).collect();
        entries.extend(
            more.into_iter()
                .filter(|entry| !have.contains(&entry.key.name)),
        );
    }
}

impl Scalar {
    fn name(&self) -> String {
        match self {
            Scalar::Null => "null".to_owned(),
            Scalar::Bool(value) => value.to_string(),
            Scalar::Unsigned(value) => value.to_string(),
            Scalar::Signed(value) => value.to_string(),
            Scalar::Float(value) => value.to_string(),
            Scalar::Text(text) => text.clone(),
        }
    }
}

impl From<serde_yaml::Error> for SyntaxError {
    /// The reader's words, without the positions in them: the first is shown in front of the message, and the second (of
    /// the context) rarely says more.
    fn from(error: serde_yaml::Error) -> SyntaxError {
        let mut message = error.to_string();
        let location = error.location().map(|found| (found.line(), found.column()));
        while let Some(start) = message.find(" at line ") {
            let words = &message[start + " at line ".len()..];
            let rest = words.trim_start_matches(|c: char| c.is_ascii_digit());
            let rest = rest.strip_prefix(" column ").unwrap_or(rest);
            let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
            message = format!("{}{rest}", &message[..start]);
        }
        SyntaxError { message, location }
    }
}

/// Makes nodes from what the YAML reader hands over, and counts them.
#[derive(Clone, Copy)]
struct NodeSeed<'b> {
    budget: &'b Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for NodeSeed<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        let left = self.budget.get().checked_sub(1);
        self.budget.set(left.ok_or_else(|| {
            D::Error::custom("aliases (`*name`) make this document far too large")
        })?);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for NodeSeed<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Scalar::Null.into())
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Scalar::Null.into())
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Scalar::Bool(value).into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Scalar::Unsigned(value).into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Scalar::Signed(value).into())
    }

    fn visit_u128<E>(self, value: u128) -> Result<Node, E> {
        Ok(Scalar::Float(value as f64).into())
    }

    fn visit_i128<E>(self, value: i128) -> Result<Node, E> {
        Ok(Scalar::Float(value as f64).into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Scalar::Float(value).into())
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Ok(Scalar::Text(text.to_owned()).into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Node::new(Content::List(items)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key_seed(self)? {
            let Content::Scalar(scalar) = key.content else {
                return Err(A::Error::custom("a map or a list cannot be a key"));
            };
            let name = scalar.name();
            let key = Key { scalar, name };
            let value = map.next_value_seed(self)?;
            entries.push(Entry { key, value });
        }
        Ok(Node::new(Content::Map(entries)))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<Node, A::Error> {
        let (tag, value) = tagged.variant_seed(TagName)?;
        value.newtype_variant::<IgnoredAny>()?;
        Err(A::Error::custom(format!(
            "the tag `!{tag}` means nothing here; text that begins with `!` needs quotes"
        )))
    }
}

struct TagName;

impl<'de> DeserializeSeed<'de> for TagName {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        let name = String::deserialize(deserializer)?;
        Ok(name.trim_start_matches('!').to_owned())
    }
}

impl From<Scalar> for Node {
    fn from(scalar: Scalar) -> Node {
        Node::new(Content::Scalar(scalar))
    }
}

/// How many nodes aliases may add to a document.
const ALIASED_NODES: usize = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(text: &str) -> (Node, Vec<String>) {
        let mut node = Node::parse(text).unwrap();
        let mut issues = Issues::default();
        node.settle(&At::Root, &mut issues);
        let show = |issue: &crate::issue::Issue| format!("{}: {}", issue.path, issue.message);
        (node, issues.0.iter().map(show).collect())
    }

    fn parse(text: &str) -> Node {
        Node::parse(text).unwrap()
    }

    #[test]
    fn words_that_older_yaml_took_for_booleans_and_numbers_are_text() {
        let (node, _) = settled("[on, yes, off, 1_000, 8080:80, 0755, 5s]");
        let Content::List(items) = node.content else {
            panic!("a list")
        };
        assert!(
            items
                .iter()
                .all(|item| matches!(item.content, Content::Scalar(Scalar::Text(_)))),
            "{items:?}"
        );
        assert_eq!(parse("5"), Scalar::Unsigned(5).into());
        assert_eq!(parse("-5"), Scalar::Signed(-5).into());
        assert_eq!(parse("1.5"), Scalar::Float(1.5).into());
        assert_eq!(parse("~"), Scalar::Null.into());
        assert_eq!(parse("true"), Scalar::Bool(true).into());
        assert_eq!(parse("'5'"), Scalar::Text("5".to_owned()).into());
    }

    #[test]
    fn nothing_is_null() {
        for text in ["", "\n", "# only a comment\n", "---\n"] {
            assert_eq!(parse(text), Scalar::Null.into(), "{text:?}");
        }
    }

    #[test]
    fn merges_fill_in_what_is_not_given() {
        let (node, issues) = settled(
            "a: &a { x: 1, y: 2 }\nb: &b { <<: *a, y: 3 }\nc: { <<: [{ z: 0 }, *b], x: 9 }\n",
        );
        assert!(issues.is_empty(), "{issues:?}");
        assert_eq!(
            node,
            parse("a: { x: 1, y: 2 }\nb: { y: 3, x: 1 }\nc: { x: 9, z: 0, y: 3 }\n")
        );
        let (_, issues) = settled("a: { <<: 5, x: 1 }");
        assert_eq!(issues, ["a.<<: expected a map to merge, or a list of maps"]);
    }

    #[test]
    fn each_key_that_is_given_again_is_reported() {
        let (node, issues) = settled("a: { x: 1, x: 2, x: 3 }\nb: 1\nb: 2\n");
        assert_eq!(
            issues,
            ["b: key `b` is given twice", "a.x: key `x` is given 3 times"]
        );
        assert_eq!(node, parse("a: { x: 1 }\nb: 1\n"));
    }

    #[test]
    fn what_is_not_yaml_is_an_error_with_its_place() {
        let error = Node::parse("a: 1\nb: [1, 2\nc: 3\n").unwrap_err();
        assert_eq!(error.location.map(|(line, _)| line), Some(3));
        assert!(!error.message.contains("line"), "{}", error.message);
        let error = Node::parse("a: !tag 5\n").unwrap_err();
        assert!(
            error.message.contains("the tag `!tag` means nothing here"),
            "{}",
            error.message
        );
        let error = Node::parse("a: 1\n? [x]\n: 5\n").unwrap_err();
        assert!(
            error.message.contains("a map or a list cannot be a key"),
            "{}",
            error.message
        );
        assert!(Node::parse("a: *nowhere\n").is_err());
        assert!(
            Node::parse("a: 1\n---\nb: 2\n")
                .unwrap_err()
                .message
                .contains("more than one document")
        );
    }

    #[test]
    fn deep_and_exploding_documents_are_refused() {
        assert!(Node::parse(&"[".repeat(100_000)).is_err());
        assert!(Node::parse(&format!("{}{}", "[".repeat(1000), "]".repeat(1000))).is_err());
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let above = format!("*a{}", level - 1);
            laughs += &format!("a{level}: &a{level} [{}]\n", [above.as_str(); 9].join(", "));
        }
        assert!(Node::parse(&laughs).is_err());
        let wide = format!(
            "a: &a [{}]\nb: [{}]\n",
            "x, ".repeat(3000),
            "*a, ".repeat(3000)
        );
        let error = Node::parse(&wide).unwrap_err();
        assert!(error.message.contains("far too large"), "{}", error.message);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-c0:{}\\[\\],&*<>|!#'\"?% \n\t-]{0,80}|\\PC{0,40}") {
            if let Ok(mut node) = Node::parse(&text) {
                node.settle(&At::Root, &mut Issues::default());
            }
        }
    }
}
