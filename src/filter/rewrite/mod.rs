//! `rewrite`: another path, query or method than the client's for the action (file or backend) that a route leads to.
//!
//! ```yaml
//! rewrite: { strip_prefix: /api, add_prefix: /v2 }     # /api/x -> /v2/x
//! ```
//!
//! ```yaml
//! rewrite: { regex: "^/u/(?<id>[0-9]+)$", to: "/users/$id" }
//! ```
//!
//! ```yaml
//! rewrite: { query: { set: { lang: "$cookie_lang" }, remove: ["utm_*"] }, method: POST }
//! ```
//!
//! Runs after routing: it does not choose another route. It works on the normalised path (percent-decoded, `.` and `..`
//! resolved), and what it makes is encoded anew for the backend; the query stays, but for what `query` changes. Without
//! `strip_prefix`, `add_prefix` and `regex` the path goes out as the client sent it.

mod query;

use std::time::SystemTime;

use http::Method;
use pingora::http::RequestHeader;
use regex::Regex;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Filter, Flow};
use crate::build::Build;
use crate::exchange::vars::{self, Stage, Text, View};
use crate::exchange::{Cx, Failure, escape};
use crate::http::header::encode_query;
use crate::http::path;
use crate::issue::At;
use crate::value::pattern;

/// Changes the path that the action sees, by `strip_prefix` and `add_prefix` or by `regex` with `to`, its query, and the
/// method.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Removes these whole segments from the front of the path; a path that does not begin with them stays.
    /// nginx: a path in `proxy_pass`.
    pub strip_prefix: Option<String>,
    /// Puts these segments in front of the path, after `strip_prefix`. nginx: a path in `proxy_pass`.
    pub add_prefix: Option<String>,
    /// Replaces a path that this regular expression matches by `to`; any other path stays.
    /// nginx: `rewrite ... break`.
    pub regex: Option<String>,
    /// The new path, with variables; groups of `regex` are `$name`, or `${1}` without a name. With a query
    /// (`/x?a=1`) the client's query follows it after `&`; a `?` at the end, `/x?` or `/x?a=1?`, drops the client's query
    /// (as nginx's `rewrite`).
    pub to: Option<String>,
    /// Changes of the query, once the path is another: `remove` first, then `set`, then `add`. Names are compared decoded,
    /// values are texts with variables and get encoded; one that turns out empty is left out. nginx: `set $args`.
    pub query: Option<query::Config>,
    /// The method by which the backend is asked, whatever the client's; a HEAD request stays one. nginx: `proxy_method`.
    pub method: Option<String>,
}

#[derive(Debug)]
pub struct Rewrite {
    path: Option<PathChange>,
    query: Option<query::Changes>,
    method: Option<Method>,
}

#[derive(Debug)]
enum PathChange {
    Prefix { strip: String, add: String },
    Regex(Replacement),
}

#[derive(Debug)]
struct Replacement {
    regex: Regex,
    path: Text,
    query: Query,
    /// How many captures of the route stand before those of `regex` in the templates' list.
    outer_captures: usize,
}

/// What becomes of the query.
#[derive(Debug)]
enum Query {
    Keep,
    Drop,
    /// This one, then the client's.
    Prepend(Text),
    /// This one alone.
    Replace(Text),
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Rewrite> {
        let query = self.query.as_ref();
        let query = query.map(|query| query.compile(&at.key("query"), b));
        let method = self.method.as_ref();
        let method = method.map(|method| compile_method(&at.key("method"), method, b));
        let prefixes = self.strip_prefix.is_some() || self.add_prefix.is_some();
        let path = match (&self.regex, &self.to) {
            (None, None) if prefixes => Some(self.compile_prefixes(at, b)),
            (None, None) if query.is_some() || method.is_some() => None,
            (Some(regex), Some(to)) if !prefixes => Some(Replacement::compile(at, regex, to, b)),
            _ => {
                b.error(
                    at,
                    "a rewrite is either prefixes or a regex with its replacement",
                )
                .hint("give `strip_prefix` and `add_prefix`, one of them, or `regex` and `to`");
                return None;
            }
        };
        Some(Rewrite {
            path: sound(path)?,
            query: sound(query)?,
            method: sound(method)?,
        })
    }

    fn compile_prefixes(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<PathChange> {
        let mut segments = |key, prefix: &Option<String>| match prefix {
            None => Some(String::new()),
            Some(prefix) if prefix.starts_with('/') && prefix.len() > 1 => {
                Some(prefix.trim_end_matches('/').to_owned())
            }
            Some(prefix) => {
                b.error(
                    &at.key(key),
                    format!("`{prefix}` is not a prefix of a path"),
                )
                .hint("write whole segments, such as `/api`");
                None
            }
        };
        let strip = segments("strip_prefix", &self.strip_prefix);
        let add = segments("add_prefix", &self.add_prefix);
        Some(PathChange::Prefix {
            strip: strip?,
            add: add?,
        })
    }
}

impl Replacement {
    fn compile(at: &At<'_>, regex: &str, to: &str, b: &mut Build<'_>) -> Option<PathChange> {
        let regex = match pattern::regex(regex) {
            Ok(regex) => regex,
            Err(error) => {
                b.error(
                    &at.key("regex"),
                    format!("not a regular expression: {error}"),
                );
                return None;
            }
        };
        let names: Vec<String> = pattern::capture_names(&regex).collect();
        for name in &names {
            // a number means the group of the nearest regex; a name that means two things is a mistake
            if b.captures.contains(name) && name.parse::<usize>().is_err() {
                b.error(
                    &at.key("regex"),
                    format!("the route's `match` captures `{name}` too"),
                )
                .hint("give one of them another name");
            }
        }
        let outer = b.captures.clone();
        for hidden in b.captures.iter_mut().filter(|outer| names.contains(outer)) {
            hidden.clear();
        }
        b.captures.extend(names);

        let at = at.key("to");
        if !to.starts_with(['/', '$']) {
            b.error(&at, format!("`{to}` is not a path"))
                .hint("a path begins with `/`");
        }
        let (path, query) = match to.split_once('?') {
            None => (to, Some(Query::Keep)),
            Some((path, "")) => (path, Some(Query::Drop)),
            Some((path, query)) => {
                let (query, kind) = match query.strip_suffix('?') {
                    Some(query) => (query, Query::Replace as fn(Text) -> Query),
                    None => (query, Query::Prepend as fn(Text) -> Query),
                };
                let query = Text::compile_for(Stage::Request, &at, query, b);
                (path, query.map(kind))
            }
        };
        let path = Text::compile_for(Stage::Request, &at, path, b);
        let outer_captures = outer.len();
        b.captures = outer;
        Some(PathChange::Regex(Replacement {
            regex,
            path: path?,
            query: query?,
            outer_captures,
        }))
    }

    /// The new path and query, if the regex matches.
    fn apply(&self, cx: &mut Cx, request: &RequestHeader, wall: SystemTime) -> Option<Target> {
        // A rewrite that a site gives was compiled without the captures of the route: each template counts its own
        // captures from where it was compiled.
        let route_captures = cx
            .captures
            .split_off(self.outer_captures.min(cx.captures.len()));
        let matched = pattern::push_captures(&self.regex, &cx.path, &mut cx.captures);
        let target = matched.then(|| {
            let view = View {
                cx,
                request,
                response: None,
                wall,
            };
            let path = self.path.render(&view).into_owned();
            let client = request.uri.query();
            let query = match &self.query {
                Query::Keep => client.map(str::to_owned),
                Query::Drop => None,
                Query::Replace(query) => Some(rendered(query, &view)),
                Query::Prepend(query) => {
                    let mut query = rendered(query, &view);
                    if let Some(client) = client {
                        query.push('&');
                        query.push_str(client);
                    }
                    Some(query)
                }
            };
            Target { path, query }
        });
        cx.captures.truncate(self.outer_captures);
        cx.captures.extend(route_captures);
        target
    }
}

fn rendered(query: &Text, view: &View<'_>) -> String {
    encode_query(&escape::url(query, true, view)).collect()
}

/// A decoded path and an encoded query.
#[derive(Debug, PartialEq)]
struct Target {
    path: String,
    query: Option<String>,
}

impl Filter for Rewrite {
    async fn request(&self, cx: &mut Cx, request: &RequestHeader, wall: SystemTime) -> Flow {
        let target = match &self.path {
            None => None,
            Some(PathChange::Prefix { strip, add }) => {
                exchange_prefix(&cx.path, strip, add).map(|path| Target {
                    path,
                    query: request.uri.query().map(str::to_owned),
                })
            }
            Some(PathChange::Regex(replacement)) => replacement.apply(cx, request, wall),
        };
        if let Some(target) = target
            && let Err(failure) = target.take(cx)
        {
            return Flow::Fail(failure);
        }
        if let Some(changes) = &self.query {
            change_query(changes, cx, request, wall);
        }
        if let Some(method) = &self.method
            && request.method != Method::HEAD
        {
            cx.method = Some(method.clone());
        }
        Flow::Continue
    }
}

impl Target {
    /// Makes it the one of the request.
    fn take(mut self, cx: &mut Cx) -> Result<(), Failure> {
        cx.is_stripped_whole = self.path.is_empty();
        if !self.path.starts_with('/') {
            self.path.insert(0, '/');
        }
        // what a client can put into `to` (a parameter, a header) must not lead out of the root
        if leaves_root(&self.path) {
            return Err(Failure::BadRequest);
        }
        let mut encoded: String = path::encode(&self.path).collect();
        if let Some(query) = &self.query {
            encoded.push('?');
            encoded.push_str(query);
        }
        cx.path = self.path;
        cx.target = Some(encoded);
        Ok(())
    }
}

/// The path stays as it is, or as the client sent it.
fn change_query(changes: &query::Changes, cx: &mut Cx, request: &RequestHeader, wall: SystemTime) {
    let view = View {
        cx,
        request,
        response: None,
        wall,
    };
    let sent = std::str::from_utf8(vars::request_uri(request));
    let target = match &cx.target {
        Some(target) => target,
        // With other bytes in it the engine has made text of it.
        None => sent.unwrap_or(request.uri.path()),
    };
    // `OPTIONS *` has none
    if !target.starts_with('/') {
        return;
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = changes.apply(query, &view);
    cx.target = Some(match query.is_empty() {
        true => path.to_owned(),
        false => format!("{path}?{query}"),
    });
}

/// `None` for what is given and wrong.
fn sound<T>(given: Option<Option<T>>) -> Option<Option<T>> {
    match given {
        None => Some(None),
        Some(compiled) => compiled.map(Some),
    }
}

fn compile_method(at: &At<'_>, written: &str, b: &mut Build<'_>) -> Option<Method> {
    let method = Method::from_bytes(written.as_bytes()).ok();
    let method = method.filter(|_| !written.bytes().any(|byte| byte.is_ascii_lowercase()));
    match method {
        None => {
            b.error(at, format!("`{written}` is not a method"))
                .hint("methods have capital letters");
            None
        }
        // The answer to HEAD has no body, which who has asked for one would wait for.
        Some(Method::HEAD | Method::CONNECT | Method::TRACE) => {
            b.error(at, format!("a request cannot become `{written}`"));
            None
        }
        method => method,
    }
}

/// `path` with the segments `add` in place of `strip`; `None` if it stays.
fn exchange_prefix(path: &str, strip: &str, add: &str) -> Option<String> {
    // `OPTIONS *` has no path
    if !path.starts_with('/') {
        return None;
    }
    let rest = match path.strip_prefix(strip) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => rest,
        _ => path,
    };
    if rest.len() == path.len() && add.is_empty() {
        return None;
    }
    Some(format!("{add}{rest}"))
}

fn leaves_root(path: &str) -> bool {
    path.contains('\0') || path.split('/').any(|segment| matches!(segment, "." | ".."))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;
    use crate::exchange::cx::Connection;
    use crate::issue::Sources;

    #[test]
    fn prefixes_are_whole_segments() {
        for (path, strip, add, expected) in [
            ("/api/x", "/api", "", Some("/x")),
            ("/api/", "/api", "", Some("/")),
            ("/api", "/api", "", Some("")), // becomes `/` like every path without a slash in front
            ("/apix", "/api", "", None),
            ("/other", "/api", "", None),
            ("/api/x", "/api", "/v2", Some("/v2/x")),
            ("/api", "/api", "/v2", Some("/v2")),
            ("/other", "/api", "/v2", Some("/v2/other")),
            ("/x", "", "/v2", Some("/v2/x")),
            ("*", "", "/v2", None),
        ] {
            let new = exchange_prefix(path, strip, add);
            assert_eq!(new.as_deref(), expected, "{path} - {strip} + {add}");
        }
    }

    #[test]
    fn the_query_stays_and_the_path_is_encoded() {
        let config = Config {
            strip_prefix: Some("/api/".to_owned()),
            ..Config::default()
        };
        let (flow, cx) = run(&config, &[], "/api/a b%", "/api/a%20b%25?q=%20", &[]);
        assert!(matches!(flow, Flow::Continue));
        assert_eq!(cx.path, "/a b%");
        assert_eq!(cx.target.as_deref(), Some("/a%20b%25?q=%20"));
        let (_, cx) = run(&config, &[], "/api", "/api", &[]);
        assert_eq!((cx.path.as_str(), cx.target.as_deref()), ("/", Some("/")));
    }

    #[test]
    fn groups_of_the_regex_and_of_the_route_are_at_hand() {
        let config = regex("^/(x|y)/(?<name>.*)$", "/$1/$name/$id");
        let (_, cx) = run(&config, &["1", "id"], "/x/n", "/x/n?q", &["0", "7"]);
        assert_eq!(cx.target.as_deref(), Some("/x/n/7?q"));
        assert_eq!(cx.captures, ["0", "7"]);
        // given by the site, compiled without the captures of the route
        let config = regex("^/(x|y)/(?<name>.*)$", "/$1/$name");
        let (_, cx) = run(&config, &[], "/x/n", "/x/n", &["0", "7"]);
        assert_eq!(cx.target.as_deref(), Some("/x/n"));
        assert_eq!(cx.captures, ["0", "7"]);
        let (_, cx) = run(&config, &[], "/z", "/z", &["0", "7"]);
        assert_eq!(cx.target, None);
        assert_eq!(cx.captures, ["0", "7"]);
    }

    #[test]
    fn a_query_in_the_replacement_comes_before_the_clients() {
        let target = |to, target| {
            run(&regex("^/x$", to), &[], "/x", target, &[])
                .1
                .target
                .unwrap()
        };
        assert_eq!(target("/y?a=1", "/x?b=2"), "/y?a=1&b=2");
        assert_eq!(target("/y?a=1", "/x"), "/y?a=1");
        assert_eq!(target("/y?", "/x?b=2"), "/y");
        assert_eq!(target("/y?a=b c", "/x"), "/y?a=b%20c");
        assert_eq!(target("/y?a=1?", "/x?b=2"), "/y?a=1");
        assert_eq!(target("/y?a=$arg_b?", "/x?b=%20"), "/y?a=%20");
    }

    #[test]
    fn a_group_is_one_value_in_the_query() {
        let config = regex("^/u/(?<name>.*)$", "/user?name=$name&old=$uri");
        let (_, cx) = run(&config, &[], "/u/a&b=1%+", "/u/a%26b=1%25+?c", &[]);
        assert_eq!(
            cx.target.as_deref(),
            Some("/user?name=a%26b=1%25%2B&old=/u/a%26b=1%25%2B&c")
        );
    }

    #[test]
    fn a_parameter_cannot_lead_out_of_the_root() {
        let config = regex("^/get$", "/files/$arg_name");
        let (flow, cx) = run(&config, &[], "/get", "/get?name=../secret", &[]);
        assert!(matches!(flow, Flow::Fail(Failure::BadRequest)));
        assert_eq!(cx.path, "/get");
        let (flow, _) = run(&config, &[], "/get", "/get?name=a..b", &[]);
        assert!(matches!(flow, Flow::Continue));
    }

    #[test]
    fn parameters_are_set_added_and_removed() {
        let config = |yaml: &str| serde_yaml::from_str::<Config>(yaml).unwrap();
        let target = |config: &Config, target: &str| {
            let path = target.split('?').next().unwrap();
            run(config, &["id"], path, target, &["4 2"])
                .1
                .target
                .unwrap()
        };
        let all = config(
            r#"query: { set: { b: "$id", gone: "$arg_none" }, add: { c: [x, "ü&"] }, remove: ["utm_*", d] }"#,
        );
        for (sent, expected) in [
            ("/%7ex", "/%7ex?b=4%202&c=x&c=%C3%BC%26"),
            (
                "/x?a=1&b=2&b=3&gone=1&e",
                "/x?a=1&e&b=4%202&c=x&c=%C3%BC%26",
            ),
            (
                "/x?utm_source=y&%75tm_x=z&d&dd",
                "/x?dd&b=4%202&c=x&c=%C3%BC%26",
            ),
        ] {
            assert_eq!(target(&all, sent), expected, "{sent}");
        }
        let remove = config("query: { remove: '*' }");
        assert_eq!(target(&remove, "/x?a&b=c"), "/x");
        let both = config("{ strip_prefix: /api, query: { set: { v: '2' } } }");
        assert_eq!(target(&both, "/api/x?v=1&a"), "/x?a&v=2");
    }

    #[test]
    fn the_method_is_another_one_but_for_head() {
        let config: Config = serde_yaml::from_str("method: POST").unwrap();
        let (_, cx) = run(&config, &[], "/", "/", &[]);
        assert_eq!((cx.method, cx.target), (Some(Method::POST), None));
    }

    #[test]
    fn mistakes_are_reported_at_their_keys() {
        let prefix = |prefix: &str| Config {
            strip_prefix: Some(prefix.to_owned()),
            ..Config::default()
        };
        for (config, captures, expected) in [
            (Config::default(), &[][..], "rewrite: a rewrite is either"),
            (
                prefix("api"),
                &[],
                "rewrite.strip_prefix: `api` is not a prefix",
            ),
            (
                prefix("/"),
                &[],
                "rewrite.strip_prefix: `/` is not a prefix",
            ),
            (
                regex("(", "/"),
                &[],
                "rewrite.regex: not a regular expression: unclosed group",
            ),
            (
                regex("^/(?<id>.)", "/$id"),
                &["id"],
                "rewrite.regex: the route's `match` captures `id`",
            ),
            (
                serde_yaml::from_str("method: post").unwrap(),
                &[],
                "rewrite.method: `post` is not a method",
            ),
            (
                serde_yaml::from_str("method: HEAD").unwrap(),
                &[],
                "rewrite.method: a request cannot become `HEAD`",
            ),
            (
                serde_yaml::from_str("query: {}").unwrap(),
                &[],
                "rewrite.query: changes nothing",
            ),
            (
                serde_yaml::from_str("query: { set: { a: $status } }").unwrap(),
                &[],
                "rewrite.query.set.a: `$status` has no value here",
            ),
            (
                regex("^/", "users"),
                &[],
                "rewrite.to: `users` is not a path",
            ),
            (
                regex("^/", "/$nonsuch"),
                &[],
                "rewrite.to: no variable named `$nonsuch`",
            ),
        ] {
            let sources = Sources::default();
            let mut b = Build::new(&sources);
            b.captures = captures
                .iter()
                .map(|name: &&str| name.to_string())
                .collect();
            config.compile(&At::Root.key("rewrite"), &mut b);
            let [issue] = b.issues.0.as_slice() else {
                panic!("one issue, not {:?}", b.issues)
            };
            let text = format!("{}: {}", issue.path, issue.message);
            assert!(text.starts_with(expected), "{text}");
            assert_eq!(b.captures.len(), captures.len());
        }
    }

    fn regex(regex: &str, to: &str) -> Config {
        Config {
            regex: Some(regex.to_owned()),
            to: Some(to.to_owned()),
            ..Config::default()
        }
    }

    /// The rewrite of one request, whose route has these captures.
    fn run(
        config: &Config,
        names: &[&str],
        path: &str,
        target: &str,
        captures: &[&str],
    ) -> (Flow, Cx) {
        let sources = Sources::default();
        let mut b = Build::new(&sources);
        b.captures = names.iter().map(|name| name.to_string()).collect();
        let rewrite = config.compile(&At::Root, &mut b).expect("a sound rewrite");
        assert_eq!(b.issues.0.len(), 0, "{:?}", b.issues);
        let mut cx = Cx::new(Instant::now(), Arc::new(Connection::default()));
        cx.path = path.to_owned();
        cx.captures = captures.iter().map(|value| value.to_string()).collect();
        let request = RequestHeader::build("GET", target.as_bytes(), None).unwrap();
        let request = rewrite.request(&mut cx, &request, SystemTime::UNIX_EPOCH);
        let flow = futures_now(request);
        (flow, cx)
    }

    /// The outcome of a future that never waits.
    fn futures_now<T>(future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(value) => value,
            std::task::Poll::Pending => panic!("it waits"),
        }
    }
}
