//! `cors`: which pages of other origins may read answers, and send what a form could not.
//!
//! ```yaml
//! cors: { origins: [https://app.example], methods: [PUT], headers: [X-A], credentials: true, max_age: 1h }
//! ```
//!
//! Preflight requests (`OPTIONS` with `Origin` and `Access-Control-Request-Method`) are answered here and reach neither
//! authentication, for they come without credentials, nor the action: with 204 for an origin of the list, 403 for any
//! other. All other answers, errors too, say whether the page may read them; what a backend says about that is
//! replaced.
//!
//! An origin that is given is told back, with `Vary: Origin`; `*` is told as it is, and never together with
//! credentials.
//!
//! # Inside
//!
//! Fetch standard, section 3.3.

use std::time::SystemTime;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use pingora::http::{RequestHeader, ResponseHeader};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Filter, Flow};
use crate::build::Build;
use crate::exchange::transform::vary;
use crate::exchange::{Cx, Reply};
use crate::issue::At;
use crate::value::{OneOrMany, Span};

/// Which pages of other origins may read answers.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Origins: `https://app.example`, `https://*.app.example` for every host below, or `*` for all.
    pub origins: OneOrMany<String>,
    /// Methods beside GET, HEAD and POST, which any page may use. Default none.
    #[serde(default)]
    pub methods: OneOrMany<String>,
    /// Request headers beside those that any page may send; `*`: whatever it asks for. Default none.
    #[serde(default)]
    pub headers: OneOrMany<String>,
    /// Response headers that the page may read beside those that any may. Default none.
    #[serde(default)]
    pub expose: OneOrMany<String>,
    /// Whether cookies and the like are sent along. Default false.
    #[serde(default)]
    pub credentials: bool,
    /// How long a browser need not ask again. Default: nothing is said, which browsers take for 5s.
    pub max_age: Option<Span>,
}

#[derive(Debug)]
pub struct Cors {
    origins: Origins,
    methods: HeaderValue,
    headers: Headers,
    expose: Option<HeaderValue>,
    credentials: bool,
    /// In seconds.
    max_age: Option<u64>,
}

#[derive(Debug)]
enum Origins {
    Any,
    Some(Vec<Origin>),
}

#[derive(Debug, PartialEq)]
enum Origin {
    Is(String),
    /// Begins with the scheme, ends with the domain and port.
    Below {
        scheme: String,
        domain: String,
    },
}

#[derive(Debug)]
enum Headers {
    Any,
    Some(Option<HeaderValue>),
}

const ALLOW_ORIGIN: HeaderName = header::ACCESS_CONTROL_ALLOW_ORIGIN;
const REQUEST_METHOD: HeaderName = header::ACCESS_CONTROL_REQUEST_METHOD;
const REQUEST_HEADERS: HeaderName = header::ACCESS_CONTROL_REQUEST_HEADERS;

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Cors> {
        let origins = self.origins(&at.key("origins"), b);
        let methods = tokens(&at.key("methods"), &self.methods.0, "method", b);
        let any_header = self.headers.0 == ["*"];
        let headers = match any_header {
            true => Some(Vec::new()),
            false => tokens(&at.key("headers"), &self.headers.0, "header", b),
        };
        let expose = match self.expose.0 == ["*"] && !self.credentials {
            true => Some(vec!["*".to_owned()]),
            false => tokens(&at.key("expose"), &self.expose.0, "header", b),
        };
        let (origins, mut methods) = (origins?, methods?);
        for always in ["GET", "HEAD", "POST"] {
            if !methods.iter().any(|method| method == always) {
                methods.push(always.to_owned());
            }
        }
        if self.credentials && matches!(origins, Origins::Any) {
            b.error(&at.key("credentials"), "credentials for all origins")
                .hint("any page could act for whoever looks at it; list the origins that may");
            return None;
        }
        Some(Cors {
            origins,
            methods: list(&methods)?,
            headers: match any_header {
                true => Headers::Any,
                false => Headers::Some(list(&headers?)),
            },
            expose: list(&expose?),
            credentials: self.credentials,
            max_age: self.max_age.map(|span| span.get().as_secs()),
        })
    }

    fn origins(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Origins> {
        match self.origins.0.as_slice() {
            [] => {
                b.error(at, "no origin is allowed")
                    .hint("`cors: off` leaves all to the backend");
                None
            }
            [any] if any == "*" => Some(Origins::Any),
            written => {
                let mut origins = Vec::new();
                for (i, written) in written.iter().enumerate() {
                    match Origin::parse(written) {
                        Some(origin) => origins.push(origin),
                        None => {
                            b.error(&at.index(i), format!("`{written}` is not an origin")).hint(
                                "write `https://app.example`, with a port if it is not the usual one, or \
                                 `https://*.app.example`; `*` stands alone",
                            );
                        }
                    }
                }
                Some(Origins::Some(origins))
            }
        }
    }
}

/// Checks that each is a token (RFC 9110 section 5.6.2).
fn tokens(at: &At<'_>, written: &[String], what: &str, b: &mut Build<'_>) -> Option<Vec<String>> {
    let mut is_right = true;
    for (i, text) in written.iter().enumerate() {
        // both are tokens, and so is `*`, which would mean something else
        if text == "*" || HeaderName::from_bytes(text.as_bytes()).is_err() {
            b.error(
                &at.index(i),
                format!("`{text}` is not the name of a {what}"),
            );
            is_right = false;
        }
    }
    is_right.then(|| written.to_vec())
}

fn list(names: &[String]) -> Option<HeaderValue> {
    if names.is_empty() {
        return None;
    }
    HeaderValue::from_str(&names.join(", ")).ok()
}

impl Origin {
    fn parse(written: &str) -> Option<Origin> {
        let (scheme, rest) = written.split_once("://")?;
        let scheme = scheme.to_ascii_lowercase();
        let rest = rest.to_ascii_lowercase();
        // browsers leave out the usual port
        let usual = match scheme.as_str() {
            "http" => ":80",
            "https" => ":443",
            _ => "",
        };
        let host = rest.strip_suffix(usual).unwrap_or(&rest);
        let is_scheme = !scheme.is_empty()
            && scheme
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
        let is_host = |host: &str| {
            !host.is_empty()
                && host
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b))
        };
        match host.strip_prefix("*.") {
            _ if !is_scheme => None,
            Some(domain) if is_host(domain) => Some(Origin::Below {
                scheme: format!("{scheme}://"),
                domain: format!(".{domain}"),
            }),
            None if is_host(host) => Some(Origin::Is(format!("{scheme}://{host}"))),
            _ => None,
        }
    }

    fn takes(&self, origin: &[u8]) -> bool {
        match self {
            Origin::Is(own) => origin == own.as_bytes(),
            Origin::Below { scheme, domain } => {
                let host = origin.strip_prefix(scheme.as_bytes());
                let below = host.and_then(|host| host.strip_suffix(domain.as_bytes()));
                below.is_some_and(|below| {
                    let is_name = |b: &u8| b.is_ascii_alphanumeric() || b"-._".contains(b);
                    !below.is_empty() && below.iter().all(is_name)
                })
            }
        }
    }
}

impl Filter for Cors {
    fn varies(&self) -> bool {
        matches!(self.origins, Origins::Some(_))
    }

    async fn request(&self, _cx: &mut Cx, request: &RequestHeader, _wall: SystemTime) -> Flow {
        match is_preflight(request) {
            true => Flow::Reply(self.preflight(&request.headers)),
            false => Flow::Continue,
        }
    }

    fn response(
        &self,
        _cx: &Cx,
        request: &RequestHeader,
        response: &mut ResponseHeader,
        _wall: SystemTime,
    ) {
        for name in [
            ALLOW_ORIGIN,
            header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
        ] {
            response.remove_header(&name);
        }
        let origin = match &self.origins {
            Origins::Any => Some(HeaderValue::from_static("*")),
            Origins::Some(_) => {
                vary(response, "Origin");
                self.allowed(&request.headers).cloned()
            }
        };
        let Some(origin) = origin else {
            return;
        };
        // Static names with values that were or are values of headers cannot be refused.
        let _ = response.insert_header("Access-Control-Allow-Origin", origin);
        if self.credentials {
            let _ = response.insert_header("Access-Control-Allow-Credentials", "true");
        }
        if let Some(expose) = &self.expose
            && !is_preflight(request)
        {
            let _ = response.insert_header("Access-Control-Expose-Headers", expose);
        }
    }
}

fn is_preflight(request: &RequestHeader) -> bool {
    let has = |name| request.headers.contains_key(name);
    request.method == Method::OPTIONS && has(header::ORIGIN) && has(REQUEST_METHOD)
}

impl Cors {
    /// The origin of a request, if pages of it may read the answer.
    fn allowed<'a>(&self, request: &'a HeaderMap) -> Option<&'a HeaderValue> {
        let origin = request.get(header::ORIGIN)?;
        let is_allowed = match &self.origins {
            Origins::Any => true,
            Origins::Some(origins) => origins.iter().any(|own| own.takes(origin.as_bytes())),
        };
        is_allowed.then_some(origin)
    }

    /// What only the answer to a preflight request has.
    fn preflight(&self, request: &HeaderMap) -> Reply {
        if self.allowed(request).is_none() {
            return Reply::empty(StatusCode::FORBIDDEN);
        }
        let mut reply = Reply::empty(StatusCode::NO_CONTENT);
        let head = &mut reply.head;
        // As above.
        let _ = head.insert_header("Access-Control-Allow-Methods", &self.methods);
        let headers = match &self.headers {
            Headers::Some(names) => names.as_ref(),
            Headers::Any => {
                vary(head, "Access-Control-Request-Headers");
                request.get(REQUEST_HEADERS)
            }
        };
        if let Some(headers) = headers {
            let _ = head.insert_header("Access-Control-Allow-Headers", headers);
        }
        if let Some(seconds) = self.max_age {
            let _ = head.insert_header("Access-Control-Max-Age", seconds);
        }
        reply
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::testing::mistake;

    #[test]
    fn origins_are_compared_whole() {
        for (own, takes, leaves) in [
            (
                "HTTPS://App.Example:443",
                &["https://app.example"][..],
                &[
                    "https://app.example:444",
                    "http://app.example",
                    "https://app.example.evil",
                    "null",
                    "",
                ][..],
            ),
            (
                "https://*.app.example",
                &["https://a.app.example", "https://a.b.app.example"],
                &[
                    "https://app.example",
                    "https://.app.example",
                    "http://a.app.example",
                    "https://evil/.app.example",
                    "https://evilapp.example",
                    "https://a.app.example:8443",
                ],
            ),
            (
                "http://localhost:3000",
                &["http://localhost:3000"],
                &["http://localhost"],
            ),
            (
                "capacitor://localhost",
                &["capacitor://localhost"],
                &["https://localhost"],
            ),
        ] {
            let own = Origin::parse(own).unwrap();
            for origin in takes {
                assert!(own.takes(origin.as_bytes()), "{own:?} {origin}");
            }
            for origin in leaves {
                assert!(!own.takes(origin.as_bytes()), "{own:?} {origin}");
            }
        }
        for written in [
            "app.example",
            "https://",
            "https://a/",
            "https://*",
            "*.app.example",
            "null",
            "://a",
            "https://a b",
        ] {
            assert_eq!(Origin::parse(written), None, "{written}");
        }
    }

    #[test]
    fn mistakes_are_reported() {
        for (yaml, expected) in [
            ("{ origins: [] }", "cors.origins: no origin is allowed"),
            (
                "{ origins: [https://a, b] }",
                "cors.origins[1]: `b` is not an origin",
            ),
            (
                "{ origins: ['*', https://a] }",
                "cors.origins[0]: `*` is not an origin",
            ),
            (
                "{ origins: '*', credentials: true }",
                "cors.credentials: credentials for all origins",
            ),
            (
                "{ origins: '*', methods: ['P U T'] }",
                "cors.methods[0]: `P U T` is not the name of a method",
            ),
            (
                "{ origins: '*', headers: [a, '*'] }",
                "cors.headers[1]: `*` is not the name of a header",
            ),
            (
                "{ origins: https://a, expose: '*', credentials: true }",
                "cors.expose[0]: `*` is not the name of a header",
            ),
        ] {
            let text = mistake(yaml, "cors", Config::compile);
            assert_eq!(text, expected);
        }
    }
}
