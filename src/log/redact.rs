//! `redact`: what a request has that no log may hold, such as tokens in queries.
//!
//! ```yaml
//! redact: { args: [token, key], headers: [Authorization], cookies: [session] }
//! ```
//!
//! A value that is left out is written [`MASK`], wherever it would stand in the line: a parameter in the target, in the
//! query alone, in the `Referer` and in a `Location`, there in the fragment as well, a cookie in the `Cookie` header as well.
//! A `Set-Cookie` is left out as a whole: where several are joined, their commas are not told from those of a date.

use std::ops::Range;

use http::HeaderName;
use http::header::{COOKIE, LOCATION, REFERER, SET_COOKIE};
use percent_encoding::percent_decode;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::build::Build;
use crate::exchange::vars::{Var, View};
use crate::issue::At;

/// What stands in the place of a value.
pub const MASK: &[u8] = b"***";

/// What is left out of a log.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Parameters of the query, in whatever case.
    pub args: Vec<String>,
    /// Fields of the request's header and of the answer's.
    pub headers: Vec<String>,
    /// Cookies of the request, and what `$upstream_cookie_NAME` says of them. If there are any, `$sent_http_set_cookie` and
    /// `$upstream_http_set_cookie` are left out as a whole.
    pub cookies: Vec<String>,
}

#[derive(Debug)]
pub struct Redact {
    args: Vec<String>,
    headers: Vec<HeaderName>,
    cookies: Vec<String>,
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Redact> {
        let at = at.key("headers");
        let name = |(i, written): (usize, &String)| match written.parse::<HeaderName>() {
            Ok(name) => Some(name),
            Err(_) => {
                let message = format!("`{written}` is not the name of a header");
                b.error(&at.index(i), message);
                None
            }
        };
        let headers: Vec<Option<HeaderName>> = self.headers.iter().enumerate().map(name).collect();
        Some(Redact {
            args: self.args.clone(),
            headers: headers.into_iter().collect::<Option<_>>()?,
            cookies: self.cookies.clone(),
        })
    }
}

impl Redact {
    /// As [`Var::write`], without what is to be left out.
    pub fn write(&self, var: &Var, view: &View<'_>, out: &mut Vec<u8>) -> Option<()> {
        let start = out.len();
        var.write(view, out)?;
        match var {
            _ if self.is_hidden(var) => {
                hide(out, start..out.len());
            }
            Var::Args => self.hide_args(out, start),
            Var::Request
            | Var::RequestUri
            | Var::Http(REFERER)
            | Var::SentHttp(LOCATION)
            | Var::UpstreamHttp(LOCATION) => {
                if let Some(query) = memchr::memchr(b'?', &out[start..]) {
                    self.hide_args(out, start + query + 1);
                }
                // An authorization server may send a token there.
                if !matches!(var, Var::Http(_))
                    && let Some(fragment) = memchr::memchr(b'#', &out[start..])
                {
                    let start = start + fragment + 1;
                    hide_pairs(out, start, b'&', b"", |name| self.has_arg(name));
                }
            }
            Var::Http(COOKIE) => hide_pairs(out, start, b';', b"", |name| self.has_cookie(name)),
            _ => {}
        }
        Some(())
    }

    /// Whether the whole value is to be left out.
    fn is_hidden(&self, var: &Var) -> bool {
        match var {
            Var::SentHttp(SET_COOKIE) | Var::UpstreamHttp(SET_COOKIE)
                if !self.cookies.is_empty() =>
            {
                true
            }
            Var::Http(name) | Var::SentHttp(name) | Var::UpstreamHttp(name) => {
                self.headers.contains(name)
            }
            Var::Arg(name) => self.has_arg(name.as_bytes()),
            Var::Cookie(name) => self.headers.contains(&COOKIE) || self.has_cookie(name.as_bytes()),
            Var::UpstreamCookie(name) => {
                self.headers.contains(&SET_COOKIE) || self.has_cookie(name.as_bytes())
            }
            _ => false,
        }
    }

    /// Hides parameters in the query that begins at `start`; a blank or a `#` ends it.
    fn hide_args(&self, out: &mut Vec<u8>, start: usize) {
        hide_pairs(out, start, b'&', b" #", |name| self.has_arg(name));
    }

    fn has_arg(&self, name: &[u8]) -> bool {
        // A backend finds it under an encoded name, too.
        self.args.iter().any(|arg| {
            let bytes = arg.bytes().map(|byte| byte.to_ascii_lowercase());
            percent_decode(name)
                .map(|byte| byte.to_ascii_lowercase())
                .eq(bytes)
        })
    }

    fn has_cookie(&self, name: &[u8]) -> bool {
        let is_it = |cookie: &String| cookie.as_bytes().eq_ignore_ascii_case(name);
        self.cookies.iter().any(is_it)
    }
}

/// Hides the values of pairs in the text from `start` on, up to its end or one of the `ends`.
fn hide_pairs(
    out: &mut Vec<u8>,
    start: usize,
    separator: u8,
    ends: &[u8],
    is_hidden: impl Fn(&[u8]) -> bool,
) {
    let mut at = start;
    loop {
        let rest = &out[at..];
        let is_end = |byte: &u8| *byte == separator || ends.contains(byte);
        let length = rest.iter().position(is_end).unwrap_or(rest.len());
        let mut end = at + length;
        if let Some(equals) = memchr::memchr(b'=', &rest[..length])
            && is_hidden(rest[..equals].trim_ascii())
        {
            end = hide(out, at + equals + 1..end);
        }
        if out.get(end) != Some(&separator) {
            return;
        }
        at = end + 1;
    }
}

/// Puts the mask in the place of a value; returns where it ends.
fn hide(out: &mut Vec<u8>, value: Range<usize>) -> usize {
    let end = value.start + MASK.len();
    out.splice(value, MASK.iter().copied());
    end
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Instant, SystemTime};

    use http::header::AUTHORIZATION;
    use pingora::http::{RequestHeader, ResponseHeader};
    use proptest::prelude::*;

    use super::*;
    use crate::exchange::Cx;
    use crate::exchange::cx::Connection;

    fn redact() -> Redact {
        Redact {
            args: vec!["token".to_owned(), "key".to_owned()],
            headers: vec![AUTHORIZATION],
            cookies: vec!["session".to_owned()],
        }
    }

    fn written(var: &Var, request: &RequestHeader) -> String {
        written_by(&redact(), var, request, "/")
    }

    fn written_by(redact: &Redact, var: &Var, request: &RequestHeader, location: &str) -> String {
        let mut answer = ResponseHeader::build(302, None).unwrap();
        for (name, value) in [("Location", location), ("Set-Cookie", "session=s3cret")] {
            answer.append_header(name, value).unwrap();
        }
        let mut cx = Cx::new(Instant::now(), Arc::new(Connection::default()));
        cx.upstream = Some(Box::new(answer.headers.clone()));
        let view = View {
            cx: &cx,
            request,
            response: Some(&answer),
            wall: SystemTime::UNIX_EPOCH,
        };
        let mut out = b"before ".to_vec();
        redact.write(var, &view, &mut out);
        let text = String::from_utf8(out).unwrap();
        text.strip_prefix("before ").unwrap().to_owned()
    }

    fn request(target: &str) -> RequestHeader {
        let mut request = RequestHeader::build("GET", target.as_bytes(), None).unwrap();
        for (name, value) in [
            ("Authorization", "Bearer x"),
            ("Cookie", "a=b; session=s3cret;  c; SESSION=t"),
            ("Referer", "http://x/y?token=1&z=2#key=3"),
            ("Accept", "*/*"),
        ] {
            request.append_header(name, value).unwrap();
        }
        request
    }

    #[test]
    fn parameters_are_hidden_wherever_they_stand() {
        let request = request("/a?token=1&b=token=2&TOKEN=&%74oken=x&key&c=key#");
        let query = "token=***&b=token=2&TOKEN=***&%74oken=***&key&c=key";
        assert_eq!(written(&Var::Args, &request), query);
        assert_eq!(written(&Var::RequestUri, &request), format!("/a?{query}"));
        assert_eq!(
            written(&Var::Request, &request),
            format!("GET /a?{query} HTTP/1.1")
        );
        assert_eq!(written(&Var::Arg("token".into()), &request), "***");
        assert_eq!(written(&Var::Arg("b".into()), &request), "token=2");
        assert_eq!(
            written(&Var::Http(REFERER), &request),
            "http://x/y?token=***&z=2#key=3"
        );
    }

    #[test]
    fn headers_and_cookies_are_hidden() {
        let request = request("/");
        assert_eq!(written(&Var::Http(AUTHORIZATION), &request), "***");
        assert_eq!(written(&Var::Http(http::header::ACCEPT), &request), "*/*");
        assert_eq!(
            written(&Var::Http(COOKIE), &request),
            "a=b; session=***;  c; SESSION=***"
        );
        assert_eq!(written(&Var::Cookie("session".into()), &request), "***");
        assert_eq!(written(&Var::Cookie("a".into()), &request), "b");
        for var in [
            Var::SentHttp(SET_COOKIE),
            Var::UpstreamHttp(SET_COOKIE),
            Var::UpstreamCookie("session".into()),
        ] {
            assert_eq!(written(&var, &request), "***", "{var:?}");
        }
    }

    #[test]
    fn a_set_cookie_stays_if_no_cookie_is_hidden() {
        let mut redact = redact();
        redact.cookies.clear();
        let shown =
            |redact: &Redact| written_by(redact, &Var::SentHttp(SET_COOKIE), &request("/"), "/");
        assert_eq!(shown(&redact), "session=s3cret");
        redact.headers.push(SET_COOKIE);
        assert_eq!(shown(&redact), "***");
    }

    #[test]
    fn parameters_are_hidden_on_both_sides_of_a_location() {
        let request = request("/");
        for (location, expected) in [
            ("/login?next=%2F&token=1", "/login?next=%2F&token=***"),
            ("/cb#token=1", "/cb#token=***"),
            ("/cb?a=b#token=1", "/cb?a=b#token=***"),
            ("/cb?token=1&a=b#c=d&key=2", "/cb?token=***&a=b#c=d&key=***"),
            ("/cb#a=b#c&token=1 2", "/cb#a=b#c&token=***"),
            ("/cb#/view?token=1", "/cb#/view?token=***"),
        ] {
            for var in [Var::SentHttp(LOCATION), Var::UpstreamHttp(LOCATION)] {
                assert_eq!(written_by(&redact(), &var, &request, location), expected);
            }
        }
    }

    proptest! {
        #[test]
        fn no_hidden_value_is_left(
            pairs in prop::collection::vec(("(token|key|a|b)", "[s-z]{4}"), 0..6),
        ) {
            let query: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let request = request(&format!("/?{}", query.join("&")));
            let expected: Vec<String> = pairs
                .iter()
                .map(|(name, value)| match name.len() {
                    1 => format!("{name}={value}"),
                    _ => format!("{name}=***"),
                })
                .collect();
            prop_assert_eq!(
                written(&Var::RequestUri, &request),
                format!("/?{}", expected.join("&"))
            );
        }
    }
}
