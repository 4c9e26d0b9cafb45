//! From a path to the routes that might match it: one radix tree per site.
//!
//! Every path matcher begins with a literal: the path itself, the prefix, or what a regex begins with for certain.
//! The tree holds those literals. One walk along the request's path meets every route whose literal the path begins
//! with, and no other, so that a thousand routes cost what ten do. (Regexes without such a beginning all stand at
//! the root and are tried one by one, as nginx does.)

use std::fmt;
use std::ops::Range;

use regex::Regex;

use crate::value::pattern;

/// The path matcher of one route. Paths are decoded and normalised.
#[derive(Debug, Clone)]
pub enum PathRule {
    Any,
    Exact(String),
    /// Whole segments: the path goes on with `/` or not at all. Without a slash at the end.
    Prefix(String),
    StartsWith(String),
    Regex(Regex),
}

impl PathRule {
    /// Whether `path` matches. [`PathTree`] finds the same faster; this is the definition.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            PathRule::Any => true,
            PathRule::Exact(exact) => path == exact,
            PathRule::Prefix(prefix) => match path.strip_prefix(prefix.as_str()) {
                Some(rest) => rest.is_empty() || rest.starts_with('/'),
                None => false,
            },
            PathRule::StartsWith(start) => path.starts_with(start.as_str()),
            PathRule::Regex(regex) => regex.is_match(path),
        }
    }

    /// Whether `path` matches, as far as the tree leaves it open.
    pub fn regex_matches(&self, path: &str) -> bool {
        match self {
            PathRule::Regex(regex) => regex.is_match(path),
            _ => true,
        }
    }

    /// The bytes with which every path begins that matches.
    fn literal(&self) -> Vec<u8> {
        match self {
            PathRule::Any => Vec::new(),
            PathRule::Exact(text) | PathRule::Prefix(text) | PathRule::StartsWith(text) => {
                text.clone().into_bytes()
            }
            PathRule::Regex(regex) => pattern::literal_prefix(regex.as_str()),
        }
    }

    fn kind(&self) -> Kind {
        match self {
            PathRule::Exact(_) => Kind::Exact,
            PathRule::Prefix(_) => Kind::Prefix,
            PathRule::Any | PathRule::StartsWith(_) => Kind::StartsWith,
            PathRule::Regex(_) => Kind::Regex,
        }
    }
}

/// As it is written in the configuration.
impl fmt::Display for PathRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PathRule::Any => f.write_str("every path"),
            PathRule::Exact(path) => write!(f, "path {path}"),
            PathRule::Prefix(prefix) => write!(f, "prefix {prefix}"),
            PathRule::StartsWith(start) => write!(f, "starts_with {start}"),
            PathRule::Regex(regex) => write!(f, "regex {regex}"),
        }
    }
}

/// What must be true of the rest of a path, behind the literal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Exact,
    Prefix,
    StartsWith,
    Regex,
}

/// A route whose literal ends at a node.
#[derive(Debug, Clone, Copy)]
struct Entry {
    route: u32,
    kind: Kind,
    /// Whether the route has other conditions. It stands here so that a route without any is not looked at before
    /// it is chosen: its memory is cold.
    conditional: bool,
}

/// Three lists instead of a box per node: of ten thousand sites most are not in the processor's caches, and what
/// one lookup touches should stand close together. (`u32` holds what a file can: it would take 4 GiB of paths to
/// overflow.)
#[derive(Debug)]
pub struct PathTree {
    /// The first one is the root.
    nodes: Box<[Node]>,
    edges: Box<[u8]>,
    entries: Box<[Entry]>,
}

#[derive(Debug, Default, Clone)]
struct Node {
    /// The bytes from the parent to here; empty at the root only.
    edge: Range<u32>,
    /// In the order of the first bytes of their edges.
    children: Range<u32>,
    /// In the order of the routes.
    entries: Range<u32>,
}

impl PathTree {
    /// The tree of routes in their order: of each its matcher, and whether it has conditions beside.
    pub fn new<'a>(routes: impl Iterator<Item = (&'a PathRule, bool)>) -> PathTree {
        let mut literals: Vec<(Vec<u8>, Entry)> = (0..)
            .zip(routes)
            .map(|(route, (rule, conditional))| {
                let entry = Entry {
                    route,
                    kind: rule.kind(),
                    conditional,
                };
                (rule.literal(), entry)
            })
            .collect();
        // stable: equal literals keep the order of the routes
        literals.sort_by(|a, b| a.0.cmp(&b.0));

        // What belongs below one node stands together now: split each range by its next byte until it is used up. A
        // list of work instead of recursion, for the depth is up to the file.
        let mut nodes = vec![Node::default()];
        let mut edges = Vec::new();
        let mut entries = Vec::with_capacity(literals.len());
        let mut work = vec![(0, 0, literals.as_slice())];
        while let Some((node, depth, range)) = work.pop() {
            let (Some((first, _)), Some((last, _))) = (range.first(), range.last()) else {
                continue;
            };
            // all begin with what the first and the last have in common; the root has no edge
            let common = match node {
                0 => 0,
                _ => common_prefix(&first[depth..], &last[depth..]),
            };
            let end = depth + common;
            let (here, mut below) =
                range.split_at(range.partition_point(|(literal, _)| literal.len() == end));
            let first_child = nodes.len();
            nodes[node].edge = extend(&mut edges, first[depth..end].iter().copied());
            nodes[node].entries = extend(&mut entries, here.iter().map(|(_, entry)| *entry));
            while let Some((first, _)) = below.first() {
                let byte = first[end];
                let group;
                (group, below) =
                    below.split_at(below.partition_point(|(literal, _)| literal[end] == byte));
                work.push((nodes.len(), end, group));
                nodes.push(Node::default());
            }
            nodes[node].children = first_child as u32..nodes.len() as u32;
        }
        PathTree {
            nodes: nodes.into(),
            edges: edges.into(),
            entries: entries.into(),
        }
    }

    /// The first route in written order that matches `path`. What the tree does not know, regexes and other conditions,
    /// is left to `admits`.
    pub fn first(&self, path: &str, admits: impl Fn(usize) -> bool) -> Option<usize> {
        self.first_before(u32::MAX, path.as_bytes(), |entry, rest| {
            let decided = !entry.conditional && entry.kind != Kind::Regex;
            entry.kind.fits(rest) && (decided || admits(entry.route as usize))
        })
    }

    /// The first route before `route` that matches all that it matches, whose matcher is `rule`. Whether another one's
    /// regex is the same is left to `same_regex`.
    pub fn covering(
        &self,
        rule: &PathRule,
        route: usize,
        same_regex: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let kind = rule.kind();
        self.first_before(route as u32, &rule.literal(), |entry, rest| {
            !entry.conditional
                && entry.kind.covers(kind, rest)
                && (entry.kind != Kind::Regex || same_regex(entry.route as usize))
        })
    }

    fn first_before(
        &self,
        end: u32,
        path: &[u8],
        fits: impl Fn(&Entry, &[u8]) -> bool,
    ) -> Option<usize> {
        let mut best = end;
        self.walk(path, |entries, rest| {
            let mut earlier = entries.iter().take_while(|entry| entry.route < best);
            best = earlier
                .find(|entry| fits(entry, rest))
                .map_or(best, |entry| entry.route);
        });
        (best != end).then_some(best as usize)
    }

    /// Visits every node whose literal `path` begins with, with what is left of `path` behind it.
    fn walk(&self, path: &[u8], mut visit: impl FnMut(&[Entry], &[u8])) {
        let mut node = &self.nodes[0];
        let mut rest = path;
        while let Some(behind) = rest.strip_prefix(slice(&self.edges, &node.edge)) {
            rest = behind;
            visit(slice(&self.entries, &node.entries), rest);
            let children = slice(&self.nodes, &node.children);
            let first_byte = |child: &Node| self.edges[child.edge.start as usize];
            let Some(byte) = rest.first() else {
                return;
            };
            let Ok(child) = children.binary_search_by_key(byte, first_byte) else {
                return;
            };
            node = &children[child];
        }
    }
}

/// Appends `items`; where they stand now.
fn extend<T>(list: &mut Vec<T>, items: impl Iterator<Item = T>) -> Range<u32> {
    let start = list.len() as u32;
    list.extend(items);
    start..list.len() as u32
}

fn slice<'a, T>(list: &'a [T], range: &Range<u32>) -> &'a [T] {
    &list[range.start as usize..range.end as usize]
}

impl Kind {
    /// Whether a path matches that goes on with `rest` behind the literal; for a regex, whether it can.
    fn fits(self, rest: &[u8]) -> bool {
        match self {
            Kind::Exact => rest.is_empty(),
            Kind::Prefix => matches!(rest, [] | [b'/', ..]),
            Kind::StartsWith | Kind::Regex => true,
        }
    }

    /// Whether it matches all that `other` does, whose literal goes on with `rest` behind this one's; for a regex and
    /// another, whether it can.
    fn covers(self, other: Kind, rest: &[u8]) -> bool {
        match self {
            Kind::StartsWith => true,
            Kind::Prefix => match rest {
                [] => matches!(other, Kind::Exact | Kind::Prefix),
                _ => rest[0] == b'/',
            },
            Kind::Exact => rest.is_empty() && other == Kind::Exact,
            Kind::Regex => rest.is_empty() && other == Kind::Regex,
        }
    }
}

fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn prefixes_are_whole_segments() {
        let rule = PathRule::Prefix("/api".to_owned());
        for (path, matches) in [
            ("/api", true),
            ("/api/", true),
            ("/api/x", true),
            ("/apix", false),
            ("/ap", false),
        ] {
            assert_eq!(rule.matches(path), matches, "{path}");
        }
    }

    #[test]
    fn a_rule_covers_what_it_matches_in_full() {
        let exact = |path: &str| PathRule::Exact(path.to_owned());
        let prefix = |path: &str| PathRule::Prefix(path.to_owned());
        let start = |path: &str| PathRule::StartsWith(path.to_owned());
        let regex = |regex: &str| PathRule::Regex(Regex::new(regex).unwrap());
        for (earlier, later, covered) in [
            (PathRule::Any, exact("/a"), true),
            (PathRule::Any, regex("x$"), true),
            (PathRule::Any, PathRule::Any, true),
            (exact("/a"), exact("/a"), true),
            (exact("/a"), prefix("/a"), false),
            (prefix("/a"), exact("/a"), true),
            (prefix("/a"), exact("/a/b"), true),
            (prefix("/a"), exact("/ab"), false),
            (prefix("/a"), prefix("/a/b"), true),
            (prefix("/a"), start("/a"), false),
            (prefix("/a"), start("/a/"), true),
            (prefix("/a"), regex("^/a/[0-9]"), true),
            (prefix("/a"), regex("^/a[0-9]"), false),
            (start("/a"), prefix("/ab"), true),
            (start("/a"), prefix("/a"), true),
            (start("/a"), regex("^/ab*"), true),
            (start("/a"), PathRule::Any, false),
            (regex("^/a"), start("/a"), false),
        ] {
            let rules = [earlier, later];
            let tree = PathTree::new(rules.iter().map(|rule| (rule, false)));
            let covering = tree.covering(&rules[1], 1, |_| true);
            assert_eq!(covering.is_some(), covered, "{} / {}", rules[0], rules[1]);
        }
    }

    fn rule() -> impl Strategy<Value = PathRule> {
        let path = "(/[ab]{0,2}){1,3}";
        prop_oneof![
            Just(PathRule::Any),
            path.prop_map(PathRule::Exact),
            path.prop_map(|path| PathRule::Prefix(path.trim_end_matches('/').to_owned())),
            path.prop_map(PathRule::StartsWith),
            path.prop_map(|path| PathRule::Regex(Regex::new(&format!("^{path}[ab]$")).unwrap())),
            path.prop_map(|path| PathRule::Regex(Regex::new(&format!("{path}$")).unwrap())),
        ]
    }

    proptest! {
        #[test]
        fn the_tree_finds_what_trying_each_finds(
            rules in prop::collection::vec((rule(), any::<bool>()), 0..12),
            path in "(/[abc]{0,2}){1,4}|\\*",
        ) {
            let fits = |i: usize| rules[i].1 && rules[i].0.matches(&path);
            let naive = (0..rules.len()).find(|i| fits(*i));
            let tree = PathTree::new(rules.iter().map(|(rule, holds)| (rule, !holds)));
            prop_assert_eq!(tree.first(&path, fits), naive);
        }

        #[test]
        fn what_is_covered_is_never_found(
            rules in prop::collection::vec(rule(), 1..8),
            path in "(/[abc]{0,2}){1,4}",
        ) {
            let tree = PathTree::new(rules.iter().map(|rule| (rule, false)));
            let found = rules.iter().position(|rule| rule.matches(&path));
            if let Some(found) = found {
                prop_assert_eq!(tree.covering(&rules[found], found, |_| false), None);
            }
        }
    }
}
