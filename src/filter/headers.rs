//! `headers`: sets, adds, defaults and removes headers, of the request to the backend and of the answer to the client.
//!
//! ```yaml
//! headers:
//!   request:  { set: { X-Real-IP: "$remote_addr" }, remove: ["X-Debug-*"] }
//!   response:
//!     set: { Strict-Transport-Security: max-age=31536000 }
//!     default: { Cache-Control: no-cache }
//!     add: { Link: ["</a.css>; rel=preload", "</b.js>; rel=preload"] }
//! ```
//!
//! `response` changes every answer that passes the route: from a backend, from files, and those that weir makes itself,
//! errors included unless `always: false`. Values are texts with variables; one that turns out empty is not sent.
//! Removal by pattern comes before all that is said by name, and never takes `Host`, `Content-Length` and what else
//! frames a message.
//!
//! Levels merge by header: what the nearest level says about one header is all that holds for it, and headers that it
//! does not mention keep what the farther level says.

use std::collections::BTreeMap;
use std::time::SystemTime;

use glob::Pattern;
use http::header::HOST;
use http::{HeaderMap, HeaderName, HeaderValue};
use pingora::http::{RequestHeader, ResponseHeader};
use schemars::JsonSchema;
use serde::Deserialize;

use super::Filter;
use crate::build::Build;
use crate::exchange::Cx;
use crate::exchange::vars::{Stage, Text, View};
use crate::http::header::{self, Name};
use crate::issue::At;
use crate::value::OneOrMany;

/// Changes of headers.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Of the request that goes to the backend. Values see the client's request.
    pub request: Changes,
    /// Of the answer that goes to the client.
    pub response: Changes,
}

/// `remove` first, then `set`, `add` and `default`. Values are texts with variables; one that turns out empty is not sent.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Changes {
    /// Headers that have this value, a text with variables, whatever they had before. nginx: `proxy_set_header`.
    pub set: BTreeMap<String, String>,
    /// Header lines that come in addition; one value or a list. nginx: `add_header`.
    pub add: BTreeMap<String, OneOrMany<String>>,
    /// Headers that are given this value if there is none of that name.
    pub default: BTreeMap<String, String>,
    /// Headers that are taken out, by name; `*` stands for any text. nginx: `proxy_hide_header`.
    pub remove: Vec<String>,
    /// Of `response` only: whether errors (a status of 400 and more) are changed as well. Default: true. nginx's
    /// `add_header` without `always` is `false`.
    pub always: Option<bool>,
}

#[derive(Debug)]
pub struct Headers {
    request: Plan,
    response: Plan,
}

/// All that happens to one message.
#[derive(Debug, Clone, Default)]
struct Plan {
    /// Headers that go, whatever they are called exactly; those of errors only if so marked.
    patterns: Vec<(Pattern, bool)>,
    changes: Vec<Change>,
}

/// All that happens to one header.
#[derive(Debug, Clone)]
struct Change {
    name: Name,
    /// Whether the lines that are there go.
    replace: bool,
    /// The lines that come.
    values: Vec<Value>,
    /// The line that comes where there would be none.
    default: Option<Value>,
    /// Whether it happens to errors.
    always: bool,
}

#[derive(Debug, Clone)]
enum Value {
    Fixed(HeaderValue),
    Text(Text),
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Headers> {
        let request = self.request.compile(&at.key("request"), Stage::Request, b);
        if self.request.always.is_some() {
            let at = at.key("request");
            b.error(&at.key("always"), "requests have no status")
                .on_key()
                .hint("it belongs to `response`");
        }
        let response = self
            .response
            .compile(&at.key("response"), Stage::Response, b);
        Some(Headers { request, response })
    }
}

impl Changes {
    fn compile(&self, at: &At<'_>, stage: Stage, b: &mut Build<'_>) -> Plan {
        let mut changes = Vec::new();
        let mut patterns = Vec::new();
        let always = self.always.unwrap_or(true);
        let key = at.key("remove");
        for (i, name) in self.remove.iter().enumerate() {
            let at = key.index(i);
            if name.contains('*') {
                patterns.extend(pattern(&at, name, b).map(|pattern| (pattern, always)));
            } else if let Some(change) = change(&at, name, &mut changes, b) {
                change.replace = true;
            }
        }
        let key = at.key("set");
        for (name, value) in &self.set {
            let at = key.key(name);
            let Some(change) = change(&at, name, &mut changes, b) else {
                continue;
            };
            if !change.values.is_empty() {
                b.error(&at, format!("`{name}` is set twice")).on_key();
            }
            change.replace = true;
            change.values.extend(Value::compile(&at, value, stage, b));
        }
        let key = at.key("add");
        for (name, values) in &self.add {
            let at = key.key(name);
            let Some(change) = change(&at, name, &mut changes, b) else {
                continue;
            };
            for (i, value) in values.0.iter().enumerate() {
                change
                    .values
                    .extend(Value::compile(&at.index(i), value, stage, b));
            }
        }
        let key = at.key("default");
        for (name, value) in &self.default {
            let at = key.key(name);
            let Some(change) = change(&at, name, &mut changes, b) else {
                continue;
            };
            if change.replace && !change.values.is_empty() || change.default.is_some() {
                b.error(&at, format!("`{name}` is set already")).on_key();
            }
            change.default = Value::compile(&at, value, stage, b);
        }
        for change in &mut changes {
            change.always = always;
        }
        Plan { patterns, changes }
    }
}

/// A pattern of names, which are compared in lower case.
fn pattern(at: &At<'_>, written: &str, b: &mut Build<'_>) -> Option<Pattern> {
    match Pattern::new(&written.to_ascii_lowercase()) {
        Ok(pattern) => Some(pattern),
        Err(error) => {
            b.error(at, format!("`{written}` is not a pattern: {}", error.msg));
            None
        }
    }
}

/// The change of the header `name`, which is begun if there is none.
fn change<'a>(
    at: &At<'_>,
    name: &str,
    changes: &'a mut Vec<Change>,
    b: &mut Build<'_>,
) -> Option<&'a mut Change> {
    let name = match Name::parse(name) {
        Ok(name) => name,
        Err(message) => {
            b.error(at, message).on_key();
            return None;
        }
    };
    let known = changes
        .iter()
        .position(|change| change.name.name() == name.name());
    let index = known.unwrap_or_else(|| {
        changes.push(Change {
            name,
            replace: false,
            values: Vec::new(),
            default: None,
            always: true,
        });
        changes.len() - 1
    });
    changes.get_mut(index)
}

impl Value {
    fn compile(at: &At<'_>, text: &str, stage: Stage, b: &mut Build<'_>) -> Option<Value> {
        if text.contains('$') {
            return Text::compile_for(stage, at, text, b).map(Value::Text);
        }
        match HeaderValue::from_bytes(text.as_bytes()) {
            Ok(value) => Some(Value::Fixed(value)),
            Err(_) => {
                b.error(
                    at,
                    "the value of a header is one line without control characters",
                );
                None
            }
        }
    }

    /// The value for one message; `None` if it is empty.
    fn render(&self, view: &View<'_>) -> Option<HeaderValue> {
        let value = match self {
            Value::Fixed(value) => value.clone(),
            Value::Text(text) => {
                let mut bytes = Vec::with_capacity(64);
                text.write(view, &mut bytes);
                header::value(&bytes)
            }
        };
        (!value.is_empty()).then_some(value)
    }
}

impl Headers {
    /// Whether what an answer has under that name goes.
    pub fn replaces(&self, name: &HeaderName) -> bool {
        let mut changes = self.response.changes.iter();
        changes.any(|change| change.replace && change.name.name() == name)
    }
}

impl Filter for Headers {
    fn inherit(self, farther: &Headers) -> Headers {
        Headers {
            request: merge(self.request, &farther.request),
            response: merge(self.response, &farther.response),
        }
    }

    fn upstream(
        &self,
        cx: &Cx,
        request: &RequestHeader,
        upstream: &mut RequestHeader,
        wall: SystemTime,
    ) {
        apply(&self.request, cx, request, upstream, wall);
    }

    fn response(
        &self,
        cx: &Cx,
        request: &RequestHeader,
        response: &mut ResponseHeader,
        wall: SystemTime,
    ) {
        apply(&self.response, cx, request, response, wall);
    }
}

/// The farther changes of headers that the nearer ones do not mention, then the nearer ones.
fn merge(nearer: Plan, farther: &Plan) -> Plan {
    let mentioned = |change: &Change| {
        let name = change.name.name();
        let removes = |(pattern, _): &(Pattern, bool)| pattern.matches(name.as_str());
        nearer.changes.iter().any(|n| n.name.name() == name) || nearer.patterns.iter().any(removes)
    };
    let kept = farther.changes.iter().filter(|change| !mentioned(change));
    let mut changes: Vec<Change> = kept.cloned().collect();
    changes.extend(nearer.changes);
    let mut patterns = farther.patterns.clone();
    patterns.extend(nearer.patterns);
    Plan { patterns, changes }
}

fn apply<M: Message>(
    plan: &Plan,
    cx: &Cx,
    request: &RequestHeader,
    message: &mut M,
    wall: SystemTime,
) {
    let is_error = message
        .as_response()
        .is_some_and(|response| response.status.as_u16() >= 400);
    for (pattern, always) in &plan.patterns {
        if *always || !is_error {
            message.remove_matching(pattern);
        }
    }
    for change in &plan.changes {
        if is_error && !change.always {
            continue;
        }
        let render = |value: &Value, message: &M| {
            value.render(&View {
                cx,
                request,
                response: message.as_response(),
                wall,
            })
        };
        let mut replace = change.replace;
        for value in &change.values {
            let Some(value) = render(value, message) else {
                continue;
            };
            if replace {
                message.insert(&change.name, value);
                replace = false;
            } else {
                message.append(&change.name, value);
            }
        }
        if replace {
            message.remove(change.name.name());
        }
        if let Some(default) = &change.default
            && !message.headers().contains_key(change.name.name())
            && let Some(value) = render(default, message)
        {
            message.insert(&change.name, value);
        }
    }
}

/// What the headers of requests and of answers have in common.
///
/// Inserting fails only when there are more headers than a map can hold (32,768); the rest of the message is then
/// of more use than none.
trait Message {
    fn as_response(&self) -> Option<&ResponseHeader>;
    fn headers(&self) -> &HeaderMap;
    fn insert(&mut self, name: &Name, value: HeaderValue);
    fn append(&mut self, name: &Name, value: HeaderValue);
    fn remove(&mut self, name: &HeaderName);

    /// Takes out whatever fits, but for what a message does not come without.
    fn remove_matching(&mut self, pattern: &Pattern) {
        let names = self.headers().keys();
        let fitting = names.filter(|name| pattern.matches(name.as_str()));
        let gone: Vec<HeaderName> = fitting
            .filter(|name| **name != HOST && !header::is_framing(name))
            .cloned()
            .collect();
        for name in gone {
            self.remove(&name);
        }
    }
}

impl Message for RequestHeader {
    fn as_response(&self) -> Option<&ResponseHeader> {
        None
    }

    fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    fn insert(&mut self, name: &Name, value: HeaderValue) {
        let _ = self.insert_header(name.written(), value);
    }

    fn append(&mut self, name: &Name, value: HeaderValue) {
        let _ = self.append_header(name.written(), value);
    }

    fn remove(&mut self, name: &HeaderName) {
        self.remove_header(name);
    }
}

impl Message for ResponseHeader {
    fn as_response(&self) -> Option<&ResponseHeader> {
        Some(self)
    }

    fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    fn insert(&mut self, name: &Name, value: HeaderValue) {
        let _ = self.insert_header(name.written(), value);
    }

    fn append(&mut self, name: &Name, value: HeaderValue) {
        let _ = self.append_header(name.written(), value);
    }

    fn remove(&mut self, name: &HeaderName) {
        self.remove_header(name);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;
    use crate::build::testing::{compiled, mistake};
    use crate::exchange::cx::Connection;

    #[test]
    fn removes_sets_and_adds() {
        let headers = compile(
            "response: { set: { X-Set: new }, add: { X-Set: more, Link: [a, b] }, remove: [Server, X-None] }",
        );
        let response = respond(
            &headers,
            &[("Server", "x"), ("X-Set", "old"), ("Link", "0")],
        );
        assert_eq!(
            lines(&response),
            ["link: 0", "link: a", "link: b", "x-set: new", "x-set: more"]
        );
    }

    #[test]
    fn values_are_rendered_and_empty_ones_are_not_sent() {
        let headers = compile(
            r#"response: { set: { X-Site: "$host", Server: "$arg_none", X-Twice: "$sent_http_x_twice!" } }"#,
        );
        let response = respond(&headers, &[("Server", "x"), ("X-Twice", "a")]);
        assert_eq!(lines(&response), ["x-site: shop.example", "x-twice: a!"]);
    }

    #[test]
    fn a_request_cannot_break_the_line() {
        let headers = compile(r#"response: { set: { X-Path: "$uri" } }"#);
        let response = respond(&headers, &[]);
        assert_eq!(lines(&response), ["x-path: /a%0D%0AX: y"]);
    }

    #[test]
    fn the_request_to_the_backend_changes() {
        let headers =
            compile(r#"request: { set: { Host: app, X-Was: "$http_host" }, remove: [Cookie] }"#);
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        request.insert_header("Host", "shop.example").unwrap();
        request.insert_header("Cookie", "a=b").unwrap();
        let mut upstream = request.clone();
        headers.upstream(&cx(), &request, &mut upstream, SystemTime::UNIX_EPOCH);
        assert_eq!(upstream.headers["host"], "app");
        assert_eq!(upstream.headers["x-was"], "shop.example");
        assert!(!upstream.headers.contains_key("cookie"));
    }

    #[test]
    fn the_nearest_level_decides_about_a_header() {
        let site =
            compile("response: { set: { A: site, B: site }, add: { C: site }, remove: [D] }");
        let route = compile("response: { set: { b: route, D: route }, add: { C: route } }");
        let response = respond(&route.inherit(&site), &[("D", "backend")]);
        assert_eq!(
            lines(&response),
            ["a: site", "b: route", "c: route", "d: route"]
        );
    }

    #[test]
    fn a_default_is_for_what_is_missing() {
        let headers = compile(
            "response: { default: { A: d, B: d, C: $arg_none }, add: { D: a }, remove: [B] }",
        );
        let response = respond(&headers, &[("A", "own"), ("B", "own")]);
        assert_eq!(lines(&response), ["a: own", "b: d", "d: a"]);
    }

    #[test]
    fn patterns_remove_all_but_what_a_message_needs() {
        let headers = compile("response: { set: { X-Debug-C: c }, remove: [x-debug-*, '*-by'] }");
        let response = respond(
            &headers,
            &[
                ("X-Debug-A", "1"),
                ("X-Debug-C", "2"),
                ("X-Powered-By", "3"),
                ("X-Debug", "4"),
            ],
        );
        assert_eq!(lines(&response), ["x-debug: 4", "x-debug-c: c"]);
        let all = compile("{ request: { remove: ['*'] }, response: { remove: ['*'] } }");
        let response = respond(&all, &[("Content-Length", "0"), ("A", "1")]);
        assert_eq!(lines(&response), ["content-length: 0"]);
        let mut upstream = RequestHeader::build("GET", b"/", None).unwrap();
        upstream.insert_header("Host", "x").unwrap();
        upstream.insert_header("Cookie", "x").unwrap();
        let request = upstream.clone();
        all.upstream(&cx(), &request, &mut upstream, SystemTime::UNIX_EPOCH);
        assert_eq!(upstream.headers.len(), 1);
    }

    #[test]
    fn errors_may_be_left_alone() {
        let site = compile("response: { set: { A: site, B: site }, remove: [X-*], always: false }");
        let both = compile("response: { set: { B: route } }").inherit(&site);
        for (status, expected) in [
            (200, &["a: site", "b: route"][..]),
            (302, &["a: site", "b: route"]),
            (404, &["b: route", "x-a: 1"]),
            (502, &["b: route", "x-a: 1"]),
        ] {
            let request = RequestHeader::build("GET", b"/", None).unwrap();
            let mut response = ResponseHeader::build(status, None).unwrap();
            response.insert_header("X-A", "1").unwrap();
            both.response(&cx(), &request, &mut response, SystemTime::UNIX_EPOCH);
            assert_eq!(lines(&response), expected, "{status}");
        }
    }

    #[test]
    fn a_nearer_pattern_takes_back_what_a_farther_level_sets() {
        let site = compile("response: { set: { X-A: site, Y: site }, remove: [Z-*] }");
        let route = compile("response: { set: { Z-A: route }, remove: [X-*] }");
        let response = respond(&route.inherit(&site), &[("X-B", "1"), ("Z-B", "1")]);
        assert_eq!(lines(&response), ["y: site", "z-a: route"]);
    }

    #[test]
    fn mistakes_are_reported_at_their_keys() {
        for (yaml, expected) in [
            (
                "request: { set: { Content-Length: \"1\" } }",
                "headers.request.set.Content-Length: `Content-Length` frames",
            ),
            (
                "request: { remove: [ok, X y] }",
                "headers.request.remove[1]: `X y` is not a header name",
            ),
            (
                "request: { remove: [X-***] }",
                "headers.request.remove[0]: `X-***` is not a pattern",
            ),
            (
                "response: { set: { A: a }, default: { a: b } }",
                "headers.response.default.a: `a` is set already",
            ),
            (
                "request: { always: true }",
                "headers.request.always: requests have no status",
            ),
            (
                "response: { set: { A: a, a: b } }",
                "headers.response.set.a: `a` is set twice",
            ),
            (
                "response: { set: { A: \"x\\ny\" } }",
                "headers.response.set.A: the value of a header is one line",
            ),
            (
                "response: { add: { A: [x, $nonsuch] } }",
                "headers.response.add.A[1]: no variable named `$nonsuch`",
            ),
            (
                "request: { set: { A: $status } }",
                "headers.request.set.A: `$status` has no value here",
            ),
        ] {
            let text = mistake(yaml, "headers", Config::compile);
            assert!(text.starts_with(expected), "{text}");
        }
    }

    fn compile(yaml: &str) -> Headers {
        compiled(yaml, Config::compile)
    }

    fn cx() -> Cx {
        let mut cx = Cx::new(Instant::now(), Arc::new(Connection::default()));
        cx.host = "shop.example".to_owned();
        cx.path = "/a\r\nX: y".to_owned();
        cx
    }

    fn respond(headers: &Headers, lines: &[(&'static str, &str)]) -> ResponseHeader {
        let request = RequestHeader::build("GET", b"/", None).unwrap();
        let mut response = ResponseHeader::build(200, None).unwrap();
        for (name, value) in lines {
            response.append_header(*name, *value).unwrap();
        }
        headers.response(&cx(), &request, &mut response, SystemTime::UNIX_EPOCH);
        response
    }

    fn lines(response: &ResponseHeader) -> Vec<String> {
        let lines = response.headers.iter();
        let mut lines: Vec<String> = lines
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        // a map keeps the order within one name only
        lines.sort_by(|a, b| a.split(':').next().cmp(&b.split(':').next()));
        lines
    }
}
