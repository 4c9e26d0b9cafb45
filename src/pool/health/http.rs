//! Probes by HTTP: a request, and what its answer must be like.

use std::collections::BTreeMap;
use std::fmt;

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, USER_AGENT};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderValue, Method, Request};
use memchr::memmem;
use pingora::http::RequestHeader;
use pingora::protocols::http::v1::client::HttpSession;
use pingora::{Error, ErrorType};
use regex::Regex;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{AGENT, http2};
use crate::http::header::Name;
use crate::issue::{At, Issues};
use crate::pool::peer::Contact;
use crate::pool::{Expect, reason};
use crate::value::{OneOrMany, pattern};

/// A request, and what its answer must be like.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What to ask for: a path, with a query if need be. Default `/`.
    pub path: String,
    /// Default `GET`.
    pub method: String,
    /// The request's `Host`. Default: the backend's own address as written, or `localhost` for a unix socket.
    pub host: Option<String>,
    /// More headers of the request.
    pub headers: BTreeMap<String, String>,
    /// Which statuses pass: `200`, `200-299` or a list of such. Default `200-299`.
    pub expect: OneOrMany<Expect>,
    /// What the body must hold, within its first 64 KiB.
    pub body: Option<BodyConfig>,
}

/// What a body must hold. Exactly one of `contains` and `regex`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BodyConfig {
    /// This text.
    pub contains: Option<String>,
    /// Something that this regular expression matches.
    pub regex: Option<String>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            path: "/".to_owned(),
            method: "GET".to_owned(),
            host: None,
            headers: BTreeMap::new(),
            expect: OneOrMany(vec![Expect::SUCCESS]),
            body: None,
        }
    }
}

impl Config {
    pub fn compile(&self, at: &At<'_>, issues: &mut Issues) -> Option<Http> {
        let host = match &self.host {
            Some(host) => compile_host(host, &at.key("host"), issues).map(Some),
            None => Some(None),
        };
        if self.expect.0.is_empty() {
            let message = "no status is expected, so no member would be up";
            issues.error(&at.key("expect"), message);
        }
        let method = self.compile_method(&at.key("method"), issues);
        let body = match &self.body {
            Some(body) => body.compile(&at.key("body"), issues).map(Some),
            None => Some(None),
        };
        if method == Some(Method::HEAD) && self.body.is_some() {
            issues
                .error(&at.key("body"), "the answer to `HEAD` has no body")
                .hint("`method: GET`");
        }
        let headers = compile_headers(&self.headers, &at.key("headers"), issues);
        let path = self.compile_path(&at.key("path"), issues);
        let (host, body, path) = (host?, body?, path?);
        let request = build(method?, path, &headers?).ok()?;
        Some(Http {
            request: Box::new(request),
            host,
            expect: self.expect.0.clone().into(),
            body,
        })
    }

    fn compile_method(&self, at: &At<'_>, issues: &mut Issues) -> Option<Method> {
        match Method::from_bytes(self.method.as_bytes()) {
            Ok(Method::CONNECT) => {
                let message = "`CONNECT` asks for a tunnel, which says nothing about a member";
                issues.error(at, message);
                None
            }
            Ok(method) => Some(method),
            Err(_) => {
                issues.error(at, format!("`{}` is not a method", self.method));
                None
            }
        }
    }

    fn compile_path(&self, at: &At<'_>, issues: &mut Issues) -> Option<&str> {
        // a fragment is no part of a request; the parser would drop it silently
        let is_path = self.path.starts_with('/') && !self.path.contains('#');
        if is_path && self.path.parse::<PathAndQuery>().is_ok() {
            return Some(&self.path);
        }
        issues
            .error(at, format!("`{}` is not a path", self.path))
            .hint("a path starts with `/` and has spaces and the like percent-encoded");
        None
    }
}

/// The `Host` or `:authority` of a probe.
pub fn compile_host(host: &str, at: &At<'_>, issues: &mut Issues) -> Option<Authority> {
    match host.parse::<Authority>() {
        Ok(host) if !host.as_str().contains('@') => Some(host),
        _ => {
            issues
                .error(at, format!("`{host}` is not a host"))
                .hint("a name or an address, with or without port");
            None
        }
    }
}

fn compile_headers(
    headers: &BTreeMap<String, String>,
    at: &At<'_>,
    issues: &mut Issues,
) -> Option<Vec<(Name, HeaderValue)>> {
    let mut compiled = Vec::new();
    for (written, value) in headers {
        let at = at.key(written);
        let name = match Name::parse(written) {
            Ok(name) if *name.name() == HOST => {
                issues
                    .error(&at, format!("`{written}` has a key of its own"))
                    .on_key()
                    .hint("`host`, beside `headers`");
                continue;
            }
            Ok(name) => name,
            Err(message) => {
                issues.error(&at, message).on_key();
                continue;
            }
        };
        match HeaderValue::from_str(value) {
            Ok(value) => compiled.push((name, value)),
            Err(_) => {
                issues.error(&at, format!("`{value}` cannot stand in a header"));
            }
        }
    }
    (compiled.len() == headers.len()).then_some(compiled)
}

/// All of the request but its `Host`.
fn build(
    method: Method,
    path: &str,
    headers: &[(Name, HeaderValue)],
) -> pingora::Result<RequestHeader> {
    // RFC 9110 section 8.6: such a request says so if it has no body
    let takes_body = matches!(method, Method::POST | Method::PUT | Method::PATCH);
    let count = headers.len() + 4;
    let mut request = RequestHeader::build(method, path.as_bytes(), Some(count))?;
    request.insert_header(USER_AGENT, AGENT)?;
    // each probe also checks that new connections are taken
    request.insert_header(CONNECTION, "close")?;
    if takes_body {
        request.insert_header(CONTENT_LENGTH, "0")?;
    }
    for (name, value) in headers {
        request.insert_header(name.written(), value.clone())?;
    }
    Ok(request)
}

impl BodyConfig {
    fn compile(&self, at: &At<'_>, issues: &mut Issues) -> Option<Body> {
        match (&self.contains, &self.regex) {
            (Some(text), None) => Some(Body::Contains(text.clone())),
            (None, Some(pattern)) => match pattern::regex(pattern) {
                Ok(regex) => Some(Body::Regex(regex)),
                Err(message) => {
                    issues.error(&at.key("regex"), message);
                    None
                }
            },
            _ => {
                issues
                    .error(at, "`body` takes exactly one of `contains` and `regex`")
                    .hint("`body: { contains: ok }`");
                None
            }
        }
    }
}

/// A probe by HTTP, ready to run.
#[derive(Debug)]
pub struct Http {
    /// Without a `Host`.
    request: Box<RequestHeader>,
    host: Option<Authority>,
    expect: Box<[Expect]>,
    body: Option<Body>,
}

#[derive(Debug)]
enum Body {
    Contains(String),
    Regex(Regex),
}

/// How much of a body is looked at.
const ENOUGH: usize = 64 * 1024;

impl Http {
    /// `authority` is the `Host` unless the file names another.
    pub async fn run(&self, contact: Contact, authority: &str) -> Result<(), String> {
        let authority = self.host.as_ref().map_or(authority, Authority::as_str);
        let (status, body) = match contact.http2 {
            true => self.over_http2(contact, authority).await?,
            false => self
                .over_http1(contact, authority)
                .await
                .map_err(|error| reason::of_error(&error))?,
        };
        if !self.is_expected(status) {
            let expected = Expected(&self.expect);
            return Err(format!("status {status}, expected {expected}"));
        }
        match &self.body {
            Some(Body::Contains(text)) if memmem::find(&body, text.as_bytes()).is_none() => {
                Err(format!("the body does not contain `{text}`"))
            }
            Some(Body::Regex(regex)) if !regex.is_match(&String::from_utf8_lossy(&body)) => {
                Err(format!("the body does not match `{regex}`"))
            }
            _ => Ok(()),
        }
    }

    fn is_expected(&self, status: u16) -> bool {
        self.expect.iter().any(|range| range.contains(status))
    }

    /// The status and, when it is an expected one, the beginning of the body, which was read to its end.
    async fn over_http1(&self, contact: Contact, authority: &str) -> pingora::Result<(u16, Bytes)> {
        let mut session = HttpSession::new(Box::new(contact.stream));
        let mut request = self.request.clone();
        request.insert_header(HOST, authority)?;
        session.write_request_header(request).await?;
        let status = loop {
            session.read_response().await?;
            match session.resp_header() {
                Some(header) if header.status.is_informational() => {}
                Some(header) => break header.status.as_u16(),
                None => {
                    return Error::e_explain(ErrorType::InvalidHTTPHeader, "no response header");
                }
            }
        };
        let mut body = BytesMut::new();
        if self.is_expected(status) {
            while let Some(part) = session.read_body_bytes().await? {
                let room = ENOUGH - body.len();
                body.extend_from_slice(&part[..part.len().min(room)]);
            }
        }
        Ok((status, body.freeze()))
    }

    async fn over_http2(&self, contact: Contact, authority: &str) -> Result<(u16, Bytes), String> {
        let request = self.http2_request(authority, contact.secure);
        let request = request.map_err(|error| error.to_string())?;
        let answer = http2::exchange(Box::new(contact.stream), request, ENOUGH).await?;
        Ok((answer.status.as_u16(), answer.body))
    }

    fn http2_request(&self, authority: &str, secure: bool) -> http::Result<Request<Option<Bytes>>> {
        let path = self.request.uri.path_and_query().cloned();
        let path = path.unwrap_or(PathAndQuery::from_static("/"));
        let method = self.request.method.clone();
        let mut request = http2::request(method, path, authority, secure)?;
        for (name, value) in &self.request.headers {
            // a matter of HTTP/1.1
            if *name != CONNECTION {
                request = request.header(name, value);
            }
        }
        request.body(None)
    }
}

struct Expected<'a>(&'a [Expect]);

impl fmt::Display for Expected<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { ", " };
            write!(f, "{separator}{range}")?;
        }
        Ok(())
    }
}
