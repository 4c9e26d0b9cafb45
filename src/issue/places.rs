//! Where each key and value of one file stands.
//!
//! Made only when an issue must be located, from a second, marked reading of the text: the values come from elsewhere,
//! without positions. This is the only file that knows the marked event parser.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, Span};

use super::{KeyPath, Spot, Step};

/// The nodes of one document; the first is its root.
#[derive(Debug, Default)]
pub struct Places {
    nodes: Vec<Node>,
}

#[derive(Debug)]
struct Node {
    spot: Spot,
    children: Children,
}

#[derive(Debug)]
enum Children {
    /// A scalar; also the unknown.
    None,
    List(Vec<usize>),
    Map(Vec<Entry>),
}

#[derive(Debug)]
struct Entry {
    key: String,
    spot: Spot,
    value: usize,
}

/// What [`Places::find`] found.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    pub spot: Spot,
    /// The path without the steps that nobody can find, because a short form is written: one value instead of a list of
    /// one (`hosts: a` has no `hosts[0]`), or a word instead of a map (`proxy: app` has no `proxy.pool`).
    pub written: KeyPath,
}

impl Places {
    /// Reads as far as the text can be read.
    pub fn of(text: &str) -> Places {
        let mut reader = Reader::default();
        for event in Parser::new_from_str(text) {
            let Ok((event, span)) = event else { break };
            if matches!(event, Event::DocumentEnd) {
                break;
            }
            reader.take(event, span);
        }
        reader.places
    }

    /// The place of the value at `path`, or of its key when `on_key`, or when the value is a block of its own that starts
    /// on a later line. What is not there is found at the nearest thing that is: what should hold it.
    pub fn find(&self, path: &KeyPath, on_key: bool) -> Option<Found> {
        self.walk(path, on_key, false)
    }

    /// As [`Places::find`] for a key, but of several equal keys in one map the last.
    pub fn find_again(&self, path: &KeyPath) -> Option<Found> {
        self.walk(path, true, true)
    }

    fn walk(&self, path: &KeyPath, on_key: bool, again: bool) -> Option<Found> {
        let mut node = self.nodes.first()?;
        let mut key: Option<Spot> = None;
        let mut written = KeyPath::default();
        for (taken, step) in path.0.iter().enumerate() {
            let held = match (step, &node.children) {
                (Step::Key(name), Children::Map(entries)) => {
                    let mut named = entries.iter().filter(|entry| entry.key == *name);
                    let entry = match again && taken + 1 == path.0.len() {
                        true => named.next_back(),
                        false => named.next(),
                    };
                    let entry = entry.or_else(|| self.merged(entries, name));
                    entry.map(|entry| (Some(entry.spot), entry.value))
                }
                (Step::Index(index), Children::List(items)) => {
                    items.get(*index).map(|item| (None, *item))
                }
                // the one value of a list that is not written as one
                (Step::Index(0), _) => continue,
                _ => {
                    let spot = node.spot;
                    return Some(Found { spot, written });
                }
            };
            let Some((its_key, value)) = held else {
                let spot = key.unwrap_or(node.spot);
                written.0.extend_from_slice(&path.0[taken..]);
                return Some(Found { spot, written });
            };
            written.0.push(step.clone());
            key = its_key;
            node = self.nodes.get(value)?;
        }
        let starts_below = key.is_some_and(|key| node.spot.line > key.line)
            && !matches!(node.children, Children::None);
        let spot = match (key, &node.children) {
            (Some(key), _) if on_key || starts_below || node.spot.length == 0 => key,
            // a block in a list has nothing to mark but the key that it begins with
            (None, Children::Map(entries)) if node.spot.length == 0 => {
                entries.first().map_or(node.spot, |entry| entry.spot)
            }
            _ => node.spot,
        };
        Some(Found { spot, written })
    }

    /// The entry that a merge key (`<<`) brings into a map.
    fn merged<'p>(&'p self, entries: &'p [Entry], name: &str) -> Option<&'p Entry> {
        let merge = entries.iter().find(|entry| entry.key == "<<")?;
        let sources = match &self.nodes.get(merge.value)?.children {
            Children::List(items) => items.as_slice(),
            _ => std::slice::from_ref(&merge.value),
        };
        sources
            .iter()
            .find_map(|source| match &self.nodes.get(*source)?.children {
                Children::Map(entries) => {
                    let own = entries.iter().find(|entry| entry.key == name);
                    own.or_else(|| self.merged(entries, name))
                }
                _ => None,
            })
    }
}

/// Builds [`Places`] event by event. A node is entered into its parent when it begins, so that what has been read stands
/// even when the text turns bad.
#[derive(Default)]
struct Reader {
    places: Places,
    open: Vec<Open>,
    /// Complete nodes by the number of their anchor. Incomplete ones are left out: an alias to them would be a cycle.
    anchors: HashMap<usize, usize>,
}

struct Open {
    node: usize,
    anchor: usize,
    /// The key that has been read in a map and waits for its value.
    key: Option<(String, Spot)>,
}

impl Reader {
    fn take(&mut self, event: Event<'_>, span: Span) {
        match event {
            Event::Alias(anchor) => match self.anchors.get(&anchor) {
                Some(node) => self.enter(*node, "*", spot(span)),
                None => {
                    self.add(span, "*", Children::None);
                }
            },
            Event::Scalar(text, _, anchor, _) => {
                let node = self.add(span, &text, Children::None);
                self.anchors.insert(anchor, node);
            }
            Event::SequenceStart(anchor, _) => self.begin(span, anchor, Children::List(Vec::new())),
            Event::MappingStart(anchor, _) => self.begin(span, anchor, Children::Map(Vec::new())),
            Event::SequenceEnd | Event::MappingEnd => self.end(span),
            _ => {}
        }
    }

    fn begin(&mut self, span: Span, anchor: usize, children: Children) {
        let node = self.add(span, "?", children);
        self.open.push(Open {
            node,
            anchor,
            key: None,
        });
    }

    fn end(&mut self, span: Span) {
        let Some(open) = self.open.pop() else { return };
        let spot = &mut self.places.nodes[open.node].spot;
        // Only the end of a flow collection is a character, and the span goes on to what follows it.
        let bracket = span.start;
        if !span.is_empty() {
            spot.length = match bracket.line() == spot.line {
                true => bracket.col() + 2 - spot.column.min(bracket.col() + 1),
                false => usize::MAX,
            };
        }
        self.anchors.insert(open.anchor, open.node);
    }

    fn add(&mut self, span: Span, text: &str, children: Children) -> usize {
        let node = self.places.nodes.len();
        self.places.nodes.push(Node {
            spot: spot(span),
            children,
        });
        self.enter(node, text, spot(span));
        node
    }

    /// Enters a node into the open map or list: in a map as the key (its `text`) and then as the value of that key.
    fn enter(&mut self, node: usize, text: &str, spot: Spot) {
        let Some(open) = self.open.last_mut() else {
            return;
        };
        match &mut self.places.nodes[open.node].children {
            Children::None => {}
            Children::List(items) => items.push(node),
            Children::Map(entries) => match open.key.take() {
                None => open.key = Some((text.to_owned(), spot)),
                Some((key, spot)) => entries.push(Entry {
                    key,
                    spot,
                    value: node,
                }),
            },
        }
    }
}

/// The span of a quoted scalar goes on to what follows it, and some end on another line: who knows the line cuts it.
fn spot(span: Span) -> Spot {
    let length = match span.start.line() == span.end.line() {
        true => span.end.col() - span.start.col().min(span.end.col()),
        false => usize::MAX,
    };
    Spot {
        line: span.start.line(),
        column: span.start.col() + 1,
        length,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
pools:
  app: &app
    backends:
      - 127.0.0.1:9001
      - { addr: 127.0.0.1:9002, weight: 'x y' }
    health: { tcp: {} }   # why
    empty:
  more:
    <<: *app
    keepalive: 5
    body: |
      several
      lines
  copy: *app
  flow: [a, \"b\\tc\", { d: 1 }]
  app: again
blocks:
  - one: 1
    two: 2
";

    /// The text under the mark.
    fn at(path: &str, on_key: bool) -> String {
        let path = read(path);
        let Found { spot, .. } = Places::of(TEXT).find(&path, on_key).unwrap();
        show(spot)
    }

    fn show(spot: Spot) -> String {
        let line = TEXT.lines().nth(spot.line - 1).unwrap();
        let text: String = line
            .chars()
            .skip(spot.column - 1)
            .take(spot.length)
            .collect();
        format!("{}:{}:{text}", spot.line, spot.column)
    }

    fn read(path: &str) -> KeyPath {
        let step = |text: &str| match text.parse() {
            Ok(index) => Step::Index(index),
            Err(_) => Step::Key(text.to_owned()),
        };
        KeyPath(path.split_terminator('/').map(step).collect())
    }

    #[test]
    fn scalars_are_found() {
        assert_eq!(at("pools/app/backends/0", false), "4:9:127.0.0.1:9001");
        assert_eq!(
            at("pools/app/backends/1/addr", false),
            "5:17:127.0.0.1:9002"
        );
        assert_eq!(at("pools/flow/2/d", true), "15:23:d");
        assert_eq!(at("pools/more/body", false), "12:7:several");
    }

    #[test]
    fn flow_collections_are_marked_whole_and_blocks_by_their_key() {
        assert_eq!(at("pools/app/health", false), "6:13:{ tcp: {} }");
        assert_eq!(
            at("pools/app/backends/1", false),
            "5:9:{ addr: 127.0.0.1:9002, weight: 'x y' }"
        );
        assert_eq!(at("pools/app/backends", false), "3:5:backends");
        assert_eq!(at("pools/app/empty", false), "7:5:empty");
        assert_eq!(at("pools", false), "1:1:pools");
        assert_eq!(at("blocks/0", false), "18:5:one");
    }

    #[test]
    fn what_is_missing_is_found_where_it_should_be() {
        assert_eq!(at("pools/app/balance", false), "2:3:app");
        assert_eq!(at("pools/app/backends/7", false), "3:5:backends");
        assert_eq!(
            at("pools/app/backends/1/port", true),
            "5:9:{ addr: 127.0.0.1:9002, weight: 'x y' }"
        );
        assert_eq!(at("sites/shop", false), "1:1:");
    }

    #[test]
    fn steps_into_a_short_form_are_dropped() {
        let places = Places::of(TEXT);
        for (path, written, mark) in [
            (
                "pools/app/backends/0/addr",
                "pools/app/backends/0",
                "4:9:127.0.0.1:9001",
            ),
            ("pools/more/keepalive/0", "pools/more/keepalive", "10:16:5"),
            (
                "pools/app/0/health/0/tcp",
                "pools/app/health/tcp",
                "6:20:{}",
            ),
            ("pools/0/more/0", "pools/more", "8:3:more"),
            ("pools/more/0/none/1", "pools/more/none/1", "8:3:more"),
        ] {
            let found = places.find(&read(path), false).unwrap();
            assert_eq!(
                (show(found.spot).as_str(), found.written),
                (mark, read(written))
            );
        }
    }

    #[test]
    fn aliases_and_merges_lead_to_where_the_text_is() {
        assert_eq!(at("pools/copy/backends/0", false), "4:9:127.0.0.1:9001");
        assert_eq!(at("pools/more/health/tcp", true), "6:15:tcp");
        assert_eq!(at("pools/more/keepalive", false), "10:16:5");
    }

    #[test]
    fn the_second_of_two_equal_keys_can_be_found() {
        let found = Places::of(TEXT).find_again(&read("pools/app")).unwrap();
        assert_eq!(show(found.spot), "16:3:app");
    }

    #[test]
    fn bad_text_is_read_as_far_as_it_goes() {
        let places = Places::of("a: 1\nb: [1, { c: 2 }\nd: ]]");
        assert_eq!(places.find(&read("a"), false).unwrap().spot.column, 4);
        assert_eq!(places.find(&read("b/1/c"), false).unwrap().spot.line, 2);
        assert!(Places::of("").find(&read("a"), false).is_none());
        let looped = Places::of("a: &x { <<: *x, b: 1 }");
        assert!(looped.find(&read("a/zz"), false).is_some());
    }

    proptest::proptest! {
        #[test]
        fn any_text_has_places(text in "[a-c:{}\\[\\],&*<>|#'\" \n-]{0,60}", on_key: bool) {
            let _ = Places::of(&text).find(&read("a/0/b"), on_key);
        }
    }
}
