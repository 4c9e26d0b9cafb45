//! `cookies`: what backends' cookies are allowed to, and where they hold.
//!
//! ```yaml
//! cookies:
//!   flags: { "session*": [secure, http_only, same_site=lax], "*": [secure] }
//!   domain: { from: app.internal, to: shop.example }
//!   path: { from: /app/, to: / }
//! ```
//!
//! Changes `Set-Cookie` of every answer that passes the route. Cookies that nothing changes pass as they came. Of
//! several levels, `flags` are put together by pattern, the nearer ones first; `domain` and `path` are the nearest
//! level's that has them.

use std::time::SystemTime;

use glob::Pattern;
use http::{HeaderValue, header};
use indexmap::IndexMap;
use pingora::http::{RequestHeader, ResponseHeader};
use schemars::JsonSchema;
use serde::Deserialize;

use super::Filter;
use crate::build::Build;
use crate::exchange::Cx;
use crate::exchange::vars::{Stage, Text, View};
use crate::http::set_cookie::SetCookie;
use crate::issue::At;
use crate::value::OneOrMany;

/// Changes the cookies that backends set.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Flags by cookie, `*` standing for any text in its name; the first that fits counts. A flag is `secure`, `http_only`,
    /// `same_site=strict`, `same_site=lax` or `same_site=none`; `no_secure`, `no_http_only` and `no_same_site` take one
    /// away. nginx: `proxy_cookie_flags`.
    pub flags: IndexMap<String, OneOrMany<String>>,
    /// Replaces the domain `from`, whatever its case and with or without a dot in front, by `to`, a text with variables; an
    /// empty one takes it away. One or a list. nginx: `proxy_cookie_domain`.
    pub domain: OneOrMany<Exchange>,
    /// The same for a path that begins with `from`. nginx: `proxy_cookie_path`.
    pub path: OneOrMany<Exchange>,
}

/// One text in place of another.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Exchange {
    /// What the backend says.
    pub from: String,
    /// What the client gets, a text with variables.
    pub to: String,
}

#[derive(Debug)]
pub struct Cookies {
    flags: Vec<(Pattern, Vec<Flag>)>,
    domains: Vec<(String, Text)>,
    paths: Vec<(String, Text)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flag {
    /// An attribute without a value, or `SameSite` with one.
    Set(&'static str, Option<&'static str>),
    Remove(&'static str),
}

const FLAGS: [(&str, Flag); 8] = [
    ("secure", Flag::Set("Secure", None)),
    ("http_only", Flag::Set("HttpOnly", None)),
    ("same_site=strict", Flag::Set("SameSite", Some("Strict"))),
    ("same_site=lax", Flag::Set("SameSite", Some("Lax"))),
    ("same_site=none", Flag::Set("SameSite", Some("None"))),
    ("no_secure", Flag::Remove("Secure")),
    ("no_http_only", Flag::Remove("HttpOnly")),
    ("no_same_site", Flag::Remove("SameSite")),
];

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Cookies> {
        let at_flags = at.key("flags");
        let mut flags = Vec::new();
        for (name, words) in &self.flags {
            let at = at_flags.key(name);
            match Pattern::new(name) {
                Ok(pattern) => flags.push((pattern, compile_flags(words, &at, b))),
                Err(error) => {
                    b.error(&at, format!("`{name}` is not a pattern: {}", error.msg))
                        .on_key();
                }
            }
        }
        let domains = compile_exchanges(&self.domain, &at.key("domain"), b, |from| {
            from.trim_start_matches('.').to_ascii_lowercase()
        });
        let paths = compile_exchanges(&self.path, &at.key("path"), b, str::to_owned);
        Some(Cookies {
            flags,
            domains,
            paths,
        })
    }
}

fn compile_flags(words: &OneOrMany<String>, at: &At<'_>, b: &mut Build<'_>) -> Vec<Flag> {
    let mut flags = Vec::new();
    for (i, word) in words.0.iter().enumerate() {
        match FLAGS.iter().find(|(known, _)| known == word) {
            Some((_, flag)) => flags.push(*flag),
            None => {
                let known = FLAGS.iter().map(|(known, _)| *known);
                let hint = crate::value::hint(word, "flags are", known);
                b.error(&at.index(i), format!("no flag named `{word}`"))
                    .hint(hint);
            }
        }
    }
    flags
}

fn compile_exchanges(
    exchanges: &OneOrMany<Exchange>,
    at: &At<'_>,
    b: &mut Build<'_>,
    normal: impl Fn(&str) -> String,
) -> Vec<(String, Text)> {
    let mut compiled = Vec::new();
    for (i, Exchange { from, to }) in exchanges.0.iter().enumerate() {
        let at = at.index(i);
        if from.is_empty() {
            b.error(&at.key("from"), "needs what is to be replaced");
        }
        let to = Text::compile_for(Stage::Response, &at.key("to"), to, b);
        compiled.extend(to.map(|to| (normal(from), to)));
    }
    compiled
}

impl Filter for Cookies {
    /// Nearer patterns come first; what a nearer level does not mention is the farther one's.
    fn inherit(mut self, farther: &Cookies) -> Cookies {
        for (pattern, flags) in &farther.flags {
            if self.flags.iter().all(|(own, _)| own != pattern) {
                self.flags.push((pattern.clone(), flags.clone()));
            }
        }
        if self.domains.is_empty() {
            self.domains.clone_from(&farther.domains);
        }
        if self.paths.is_empty() {
            self.paths.clone_from(&farther.paths);
        }
        self
    }

    fn response(
        &self,
        cx: &Cx,
        request: &RequestHeader,
        response: &mut ResponseHeader,
        wall: SystemTime,
    ) {
        if !response.headers.contains_key(header::SET_COOKIE) {
            return;
        }
        let view = View {
            cx,
            request,
            response: Some(response),
            wall,
        };
        let cookies = response.headers.get_all(header::SET_COOKIE).iter();
        let changed: Vec<HeaderValue> = cookies
            .map(|cookie| match self.change(cookie.as_bytes(), &view) {
                // It was a header, and what a text may bring in addition is not let through.
                Some(changed) => {
                    HeaderValue::from_bytes(&changed).unwrap_or_else(|_| cookie.clone())
                }
                None => cookie.clone(),
            })
            .collect();
        response.remove_header(&header::SET_COOKIE);
        for cookie in changed {
            // There were as many before.
            let _ = response.append_header("Set-Cookie", cookie);
        }
    }
}

impl Cookies {
    /// The cookie as it is to be, if that is different.
    fn change(&self, cookie: &[u8], view: &View<'_>) -> Option<Vec<u8>> {
        let mut cookie = SetCookie::parse(cookie)?;
        if !self.flags.is_empty() {
            let name = String::from_utf8_lossy(cookie.name);
            let flags = self
                .flags
                .iter()
                .find(|(pattern, _)| pattern.matches(&name));
            for flag in flags.iter().flat_map(|(_, flags)| flags) {
                match flag {
                    Flag::Set(name, value) => cookie.set(name, value.map(str::as_bytes)),
                    Flag::Remove(name) => cookie.remove(name),
                }
            }
        }
        if let Some(domain) = cookie.get("Domain") {
            let plain = domain.strip_prefix(b".").unwrap_or(domain);
            let mut known = self.domains.iter();
            if let Some((_, to)) =
                known.find(|(from, _)| plain.eq_ignore_ascii_case(from.as_bytes()))
            {
                replace(&mut cookie, "Domain", render(to, view));
            }
        }
        if let Some(path) = cookie.get("Path") {
            let mut known = self.paths.iter();
            if let Some((from, to)) = known.find(|(from, _)| path.starts_with(from.as_bytes())) {
                let mut new = render(to, view);
                new.extend_from_slice(&path[from.len()..]);
                replace(&mut cookie, "Path", new);
            }
        }
        cookie.changed()
    }
}

fn render(text: &Text, view: &View<'_>) -> Vec<u8> {
    let mut value = Vec::new();
    text.write(view, &mut value);
    // What a client can put into it must not become an attribute of its own.
    value.retain(|byte| *byte != b';');
    value
}

fn replace(cookie: &mut SetCookie<'_>, name: &'static str, value: Vec<u8>) {
    match value.is_empty() {
        true => cookie.remove(name),
        false => cookie.set(name, Some(&value)),
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
    fn the_first_pattern_that_fits_gives_the_flags() {
        let cookies = compile(
            "flags: { 'sid*': [secure, http_only, same_site=lax], raw: no_secure, '*': secure }",
        );
        assert_eq!(
            respond(
                &cookies,
                &[
                    "sid1=a; samesite=none",
                    "raw=b; Secure; Path=/",
                    "x=c",
                    "broken"
                ]
            ),
            [
                "sid1=a; Secure; HttpOnly; SameSite=Lax",
                "raw=b; Path=/",
                "x=c; Secure",
                "broken"
            ]
        );
    }

    #[test]
    fn domains_and_paths_are_replaced() {
        let cookies = compile(
            "{ domain: [{ from: app.internal, to: $host }, { from: gone, to: '' }], path: { from: /app/, to: / } }",
        );
        assert_eq!(
            respond(
                &cookies,
                &[
                    "a=1; Domain=.APP.internal; Path=/app/x",
                    "b=2; domain=gone; path=/other",
                    "c=3"
                ]
            ),
            [
                "a=1; Domain=shop.example; Path=/x",
                "b=2; path=/other",
                "c=3"
            ]
        );
    }

    #[test]
    fn a_client_cannot_add_an_attribute() {
        let cookies = compile("path: { from: /, to: $http_x_p }");
        assert_eq!(
            respond(&cookies, &["a=1; Path=/"]),
            ["a=1; Path=/x Domain=evil"]
        );
    }

    #[test]
    fn nearer_levels_add_to_farther_ones() {
        let site = compile("{ flags: { '*': secure, a: http_only }, path: { from: /a, to: /b } }");
        let route = compile("{ flags: { a: no_secure }, domain: { from: x, to: y } }");
        assert_eq!(
            respond(
                &route.inherit(&site),
                &["a=1; Secure; Path=/a; Domain=x", "b=2"]
            ),
            ["a=1; Domain=y; Path=/b", "b=2; Secure"]
        );
    }

    #[test]
    fn mistakes_are_reported_at_their_keys() {
        for (yaml, expected) in [
            (
                "flags: { '*': [secure, httponly] }",
                "cookies.flags.*[1]: no flag named `httponly`",
            ),
            (
                "flags: { '[': secure }",
                "cookies.flags.\"[\": `[` is not a pattern",
            ),
            (
                "domain: { from: '', to: x }",
                "cookies.domain[0].from: needs what is to be replaced",
            ),
            (
                "path: { from: /, to: $request_time }",
                "cookies.path[0].to: `$request_time` has no value here",
            ),
        ] {
            let text = mistake(yaml, "cookies", Config::compile);
            assert!(text.starts_with(expected), "{text}");
        }
    }

    fn compile(yaml: &str) -> Cookies {
        compiled(yaml, Config::compile)
    }

    fn respond(cookies: &Cookies, lines: &[&str]) -> Vec<String> {
        let mut cx = Cx::new(Instant::now(), Arc::new(Connection::default()));
        cx.host = "shop.example".to_owned();
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        request.insert_header("X-P", "/x; Domain=evil").unwrap();
        let mut response = ResponseHeader::build(200, None).unwrap();
        for line in lines {
            response.append_header("Set-Cookie", *line).unwrap();
        }
        cookies.response(&cx, &request, &mut response, SystemTime::UNIX_EPOCH);
        let lines = response.headers.get_all("set-cookie").iter();
        lines
            .map(|line| line.to_str().unwrap().to_owned())
            .collect()
    }
}
