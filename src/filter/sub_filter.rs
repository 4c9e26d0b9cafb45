//! `sub_filter`: replaces texts in the bodies of answers, on their way.
//!
//! ```yaml
//! sub_filter: { types: [text/html], replace: { "http://old.example": "https://$host" }, once: false }
//! ```
//!
//! All texts are looked for in one pass, also across the pieces in which a body comes; where several begin at one
//! place, the longest counts. What was put in is not looked at again.
//!
//! A body in a content coding cannot be searched: backends are asked for none. One that is in a coding all the same, a
//! precompressed file for one, stays as it is unless `decompress: { always: true }` takes the coding off; so does a
//! part of a body (206).
//!
//! The length of what comes out is not known, and neither a tag nor a date of the backend says when it changes:
//! `Content-Length`, `Accept-Ranges`, `ETag` and `Last-Modified` go.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use aho_corasick::{AhoCorasick, AhoCorasickBuilder, Input, MatchKind};
use http::{HeaderValue, Method, StatusCode, header};
use indexmap::IndexMap;
use pingora::http::{RequestHeader, ResponseHeader};
use schemars::JsonSchema;
use serde::Deserialize;

use super::Filter;
use crate::build::Build;
use crate::exchange::escape::Escape;
use crate::exchange::transform::forget_body;
use crate::exchange::vars::{Stage, Text, View};
use crate::exchange::{Cx, Transform};
use crate::http::media::{self, Pattern};
use crate::issue::At;
use crate::value::OneOrMany;

/// Replaces texts in bodies.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What to look for, and what to put in its place: a text with variables, whose values are escaped in HTML, XML and
    /// JSON. nginx: `sub_filter`.
    pub replace: IndexMap<String, String>,
    /// The types of bodies to look at. Default `text/html`. nginx: `sub_filter_types`.
    #[serde(default = "html")]
    pub types: OneOrMany<Pattern>,
    /// Replace each text only where it comes first. Default false. nginx: `sub_filter_once`, whose default is on.
    #[serde(default)]
    pub once: bool,
    /// Take `a` for `A`, among the letters of ASCII. Default false; nginx always does.
    #[serde(default)]
    pub ignore_case: bool,
}

fn html() -> OneOrMany<Pattern> {
    OneOrMany("text/html".parse().into_iter().collect())
}

#[derive(Debug)]
pub struct SubFilter {
    search: Search,
    /// What takes the place of each text, in the order of the search.
    replacements: Vec<Text>,
    types: Vec<Pattern>,
    once: bool,
}

/// Finds the texts.
#[derive(Debug, Clone)]
struct Search {
    automaton: AhoCorasick,
    /// The texts themselves, for the ends of pieces.
    texts: Arc<[Box<[u8]>]>,
    longest: usize,
    ignore_case: bool,
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<SubFilter> {
        let key = at.key("replace");
        if self.replace.is_empty() {
            b.error(&key, "there is nothing to replace")
                .hint("`sub_filter: off` switches it off");
        }
        if self.types.0.is_empty() {
            b.error(&at.key("types"), "there is nothing to look at")
                .hint("`sub_filter: off` switches it off");
        }
        let mut known = BTreeMap::new();
        let mut replacements = Vec::new();
        for (text, by) in &self.replace {
            let at = key.key(text);
            if text.is_empty() {
                b.error(&at, "an empty text is everywhere").on_key();
            }
            let folded = match self.ignore_case {
                true => text.to_ascii_lowercase(),
                false => text.clone(),
            };
            if let Some(other) = known.insert(folded, text) {
                b.error(&at, format!("without case this is `{other}` again"))
                    .on_key();
            }
            replacements.push(Text::compile_for(Stage::Response, &at, by, b));
        }
        let replacements = replacements.into_iter().collect::<Option<Vec<Text>>>()?;
        let texts = self.replace.keys().map(|text| text.as_bytes().into());
        let search = match Search::new(texts.collect(), self.ignore_case) {
            Ok(search) => search,
            Err(error) => {
                b.error(&key, format!("too much to look for: {error}"));
                return None;
            }
        };
        Some(SubFilter {
            search,
            replacements,
            types: self.types.0.clone(),
            once: self.once,
        })
    }
}

impl Filter for SubFilter {
    fn upstream(
        &self,
        _cx: &Cx,
        _request: &RequestHeader,
        upstream: &mut RequestHeader,
        _wall: SystemTime,
    ) {
        let identity = HeaderValue::from_static("identity");
        // A static name with a static value cannot be refused.
        let _ = upstream.insert_header(header::ACCEPT_ENCODING, identity);
    }

    fn body(
        &self,
        cx: &Cx,
        request: &RequestHeader,
        response: &mut ResponseHeader,
        wall: SystemTime,
    ) -> Option<Box<dyn Transform>> {
        if !self.is_for(response) {
            return None;
        }
        forget_body(response);
        response.remove_header(&header::ETAG);
        response.remove_header(&header::LAST_MODIFIED);
        if request.method == Method::HEAD {
            return None;
        }
        let content_type = response.headers.get(header::CONTENT_TYPE);
        let escape = Escape::of(content_type.map_or(b"", HeaderValue::as_bytes));
        let view = View {
            cx,
            request,
            response: Some(&*response),
            wall,
        };
        let by = self.replacements.iter();
        let replacements = by.map(|text| Some(escape.render(text, &view))).collect();
        Some(Box::new(Replacing {
            search: self.search.clone(),
            replacements,
            once: self.once,
            kept: Vec::new(),
        }))
    }
}

impl SubFilter {
    fn is_for(&self, response: &ResponseHeader) -> bool {
        let may_have_body = !response.status.is_informational()
            && !matches!(
                response.status,
                StatusCode::NO_CONTENT
                    | StatusCode::RESET_CONTENT
                    | StatusCode::PARTIAL_CONTENT
                    | StatusCode::NOT_MODIFIED
            );
        may_have_body
            && !response.headers.contains_key(header::CONTENT_ENCODING)
            && media::is_one_of(&self.types, &response.headers)
    }
}

/// One body on its way.
struct Replacing {
    search: Search,
    /// What takes the place of each text; `None` once it did, if it is to do so only once.
    replacements: Vec<Option<Vec<u8>>>,
    once: bool,
    /// What was received and may be the beginning of a text: shorter than the longest.
    kept: Vec<u8>,
}

impl Transform for Replacing {
    fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        out.reserve(piece.len());
        if self.kept.is_empty() {
            let keep_from = self.pass(piece, out, false);
            self.kept.extend_from_slice(&piece[keep_from..]);
        } else {
            let mut received = std::mem::take(&mut self.kept);
            received.extend_from_slice(piece);
            let keep_from = self.pass(&received, out, false);
            received.drain(..keep_from);
            self.kept = received;
        }
        Ok(())
    }

    // What may be the beginning of a text cannot go before its end is known, pause or not.

    fn finish(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        let kept = std::mem::take(&mut self.kept);
        self.pass(&kept, out, true);
        Ok(())
    }
}

impl Replacing {
    /// Passes on what is decided, with all replacements; the result is the place from which on it depends on what follows.
    fn pass(&mut self, received: &[u8], out: &mut Vec<u8>, is_end: bool) -> usize {
        if self.replacements.iter().all(Option::is_none) {
            out.extend_from_slice(received);
            return received.len();
        }
        let undecided_from = |from| match is_end {
            true => received.len(),
            false => self.search.undecided(received, from),
        };
        let mut undecided = undecided_from(0);
        let (mut done, mut searched) = (0, 0);
        while let Some(found) = self.search.find(received, searched)
            && found.start < undecided
        {
            let Some(replacement) = &mut self.replacements[found.text] else {
                // it had its turn; another one may begin inside of it
                searched = found.start + 1;
                continue;
            };
            out.extend_from_slice(&received[done..found.start]);
            out.extend_from_slice(replacement);
            if self.once {
                self.replacements[found.text] = None;
            }
            (done, searched) = (found.end, found.end);
            if done > undecided {
                undecided = undecided_from(done);
            }
        }
        out.extend_from_slice(&received[done..undecided]);
        undecided
    }
}

/// One of the texts, and where it is.
struct Found {
    text: usize,
    start: usize,
    end: usize,
}

impl Search {
    fn new(texts: Vec<Box<[u8]>>, ignore_case: bool) -> Result<Search, aho_corasick::BuildError> {
        let automaton = AhoCorasickBuilder::new()
            .match_kind(MatchKind::LeftmostLongest)
            .ascii_case_insensitive(ignore_case)
            .build(&texts)?;
        Ok(Search {
            automaton,
            longest: texts.iter().map(|text| text.len()).max().unwrap_or(0),
            texts: texts.into(),
            ignore_case,
        })
    }

    /// The first one from `start` on, and of those that begin there the longest.
    fn find(&self, received: &[u8], start: usize) -> Option<Found> {
        let input = Input::new(received).range(start..);
        let found = self.automaton.find(input)?;
        Some(Found {
            text: found.pattern().as_usize(),
            start: found.start(),
            end: found.end(),
        })
    }

    /// The first place, not before `from`, from which on all that was received is the beginning of a text, but not yet the
    /// whole of it.
    fn undecided(&self, received: &[u8], from: usize) -> usize {
        let reach = self.longest.saturating_sub(1);
        let first = received.len().saturating_sub(reach).max(from);
        let begins = |at: &usize| {
            let end = &received[*at..];
            self.texts.iter().any(|text| {
                text.len() > end.len()
                    && match self.ignore_case {
                        true => text[..end.len()].eq_ignore_ascii_case(end),
                        false => text.starts_with(end),
                    }
            })
        };
        (first..received.len())
            .find(begins)
            .unwrap_or(received.len())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;
    use crate::build::testing::{compiled, mistake};
    use crate::exchange::cx::Connection;

    #[test]
    fn the_longest_of_several_is_replaced_wherever_pieces_end() {
        let filter = compile("{ replace: { ab: '1', abcd: '2', bc: '3', '</b>': '<i/>' } }");
        let body = "abc abcd bcd abab xbcabcx</b><</b";
        for size in 1..body.len() {
            let pieces: Vec<&[u8]> = body.as_bytes().chunks(size).collect();
            assert_eq!(
                replaced(&filter, &pieces),
                "1c 2 3d 11 x31cx<i/><</b",
                "{size}"
            );
        }
    }

    #[test]
    fn each_text_once_or_without_case() {
        let filter = compile("{ replace: { aa: x, ab: y }, once: true }");
        assert_eq!(replaced(&filter, &[b"aaaa", b"aab", b"ab"]), "xaaayab");
        let filter = compile("{ replace: { HTTP: x }, ignore_case: true }");
        assert_eq!(replaced(&filter, &[b"ht", b"tp HTTP hTT"]), "x x hTT");
    }

    #[test]
    fn values_are_escaped_as_the_document_asks_and_texts_are_not() {
        let filter = compile("{ replace: { x: '<b>$uri</b>' } }");
        assert_eq!(replaced(&filter, &[b"x"]), "<b>/&lt;</b>");
    }

    #[test]
    fn headers_of_the_old_body_go() {
        let filter = compile("{ replace: { a: b } }");
        let mut head = head("text/html; charset=utf-8");
        for (name, value) in [
            ("ETag", "\"a\""),
            ("Last-Modified", "x"),
            ("Content-Length", "1"),
            ("Accept-Ranges", "bytes"),
            ("Cache-Control", "x"),
        ] {
            head.insert_header(name, value).unwrap();
        }
        assert!(transform(&filter, &mut head).is_some());
        let names: Vec<_> = head.headers.keys().map(|name| name.as_str()).collect();
        assert_eq!(names, ["content-type", "cache-control"]);
        for (status, name, value) in [
            (206, "x-a", ""),
            (304, "x-a", ""),
            (200, "content-encoding", "gzip"),
            (200, "content-type", "text/css"),
        ] {
            let mut head = ResponseHeader::build(status, None).unwrap();
            head.insert_header("Content-Type", "text/html").unwrap();
            head.insert_header(name, value).unwrap();
            assert!(transform(&filter, &mut head).is_none(), "{status} {name}");
        }
    }

    #[test]
    fn mistakes_are_reported() {
        for (yaml, expected) in [
            (
                "{ replace: {} }",
                "sub_filter.replace: there is nothing to replace",
            ),
            (
                "{ replace: { '': a } }",
                "sub_filter.replace.\"\": an empty text is everywhere",
            ),
            (
                "{ replace: { a: b }, types: [] }",
                "sub_filter.types: there is nothing to look at",
            ),
            (
                "{ replace: { a: b, A: c }, ignore_case: true }",
                "sub_filter.replace.A: without case this is `a` again",
            ),
            (
                "{ replace: { a: $nonsuch } }",
                "sub_filter.replace.a: no variable named `$nonsuch`",
            ),
        ] {
            let text = mistake(yaml, "sub_filter", Config::compile);
            assert_eq!(text, expected);
        }
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            texts in proptest::collection::btree_set("[ab]{1,4}", 1..5),
            body in "[abc]{0,60}",
            cuts in proptest::collection::vec(0usize..60, 0..6),
            once in any::<bool>(),
        ) {
            let texts: Vec<Box<[u8]>> = texts.iter().map(|text| text.as_bytes().into()).collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(body.len())).collect();
            cuts.sort_unstable();
            cuts.push(body.len());
            let run = |cuts: &[usize]| {
                let mut replacing = Replacing {
                    search: Search::new(texts.clone(), false).unwrap(),
                    replacements: (0..texts.len()).map(|i| Some(format!("<{i}>").into())).collect(),
                    once,
                    kept: Vec::new(),
                };
                let (mut out, mut start) = (Vec::new(), 0);
                for &cut in cuts {
                    replacing.push(&body.as_bytes()[start..cut], &mut out).unwrap();
                    assert!(replacing.kept.len() < replacing.search.longest);
                    start = cut;
                }
                replacing.finish(&mut out).unwrap();
                String::from_utf8(out).unwrap()
            };
            prop_assert_eq!(run(&cuts), run(&[body.len()]));
        }
    }

    fn compile(yaml: &str) -> SubFilter {
        compiled(yaml, Config::compile)
    }

    fn head(content_type: &str) -> ResponseHeader {
        let mut head = ResponseHeader::build(200, None).unwrap();
        head.insert_header("Content-Type", content_type).unwrap();
        head
    }

    fn transform(filter: &SubFilter, head: &mut ResponseHeader) -> Option<Box<dyn Transform>> {
        let mut cx = Cx::new(Instant::now(), Arc::new(Connection::default()));
        cx.path = "/<".to_owned();
        let request = RequestHeader::build("GET", b"/", None).unwrap();
        filter.body(&cx, &request, head, SystemTime::UNIX_EPOCH)
    }

    fn replaced(filter: &SubFilter, pieces: &[&[u8]]) -> String {
        let mut transform = transform(filter, &mut head("text/html")).unwrap();
        let mut out = Vec::new();
        for piece in pieces {
            transform.push(piece, &mut out).unwrap();
            transform.flush(&mut out).unwrap();
        }
        transform.finish(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }
}
