//! `auth_request`: asks a service whether a request may pass.
//!
//! ```yaml
//! auth_request: { pool: auth, path: /check, headers: { copy: [X-User] } }
//! ```
//!
//! A `GET` without a body goes to the pool, over the connections that weir keeps to it anyway; the body of the client's
//! request is not touched. 2xx lets the request through; 401 and 403 go to the client, with `WWW-Authenticate`.
//! Anything else is a fault of the service, and nobody gets in: the client gets 500, or 502 where there is no answer
//! within `timeout`.
//!
//! It is asked before the action, so before an upgrade to WebSocket and before any try of a backend, once for each
//! request. Beside the headers of `pass` it gets `Host` as the client sent it, `X-Original-URI` and
//! `X-Original-Method`, and the same as `X-Forwarded-Uri` and `X-Forwarded-Method`, `X-Forwarded-Host`,
//! `X-Forwarded-Proto` and `X-Forwarded-For` (the client's address).
//!
//! What `headers.copy` names comes from the service or not at all: the backend can rely on it, as the client's own
//! headers of these names are taken out, also those that a backend in the manner of CGI would take for them (`X_User`).

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use pingora::http::{RequestHeader, ResponseHeader};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Filter, Flow};
use crate::build::Build;
use crate::exchange::vars::request_uri;
use crate::exchange::{Cx, Failure, Reply};
use crate::http::header::Name;
use crate::issue::At;
use crate::pool::ask::Asker;
use crate::pool::{Choice, Ends, Needs, Pool};
use crate::value::{OneOrMany, Span};

/// Asks a service whether a request may pass.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the pool that is asked. nginx: `proxy_pass` of the subrequest.
    pool: String,
    /// Path of the question, with a query if need be: `/check`. nginx: `auth_request`.
    path: String,
    /// What of its answer goes on.
    #[serde(default)]
    headers: HeadersConfig,
    /// Headers of the client that the service gets. Default `[Authorization, Cookie]`.
    pass: Option<OneOrMany<String>>,
    /// How long it may take in all. Default 5s.
    timeout: Option<Span>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HeadersConfig {
    /// Headers of the service's answer that the backend gets, in place of the client's. nginx: `auth_request_set` and
    /// `proxy_set_header`.
    copy: OneOrMany<String>,
    /// Headers of the service's answer that the client gets, whether it is let in or not, such as a `Set-Cookie` that
    /// prolongs a session: cookies beside those of the answer, others in place of what it says. nginx: `auth_request_set` and
    /// `add_header`.
    answer: OneOrMany<String>,
}

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct AuthRequest {
    pool: Arc<Pool>,
    /// The question as far as it is always the same.
    question: RequestHeader,
    copy: Box<[Name]>,
    answer: Box<[Name]>,
    pass: Box<[Name]>,
    timeout: Duration,
    asker: Arc<Asker>,
}

impl Filter for AuthRequest {
    fn may_wait(&self) -> bool {
        true
    }

    async fn request(&self, cx: &mut Cx, request: &RequestHeader, _wall: SystemTime) -> Flow {
        let question = match self.question(cx, request) {
            Ok(question) => question,
            Err(e) => {
                log::warn!("auth_request: {e}");
                return Flow::Fail(Failure::Internal);
            }
        };
        let choice = Choice {
            client: cx.client,
            ..Choice::any(Instant::now(), fastrand::u64(..))
        };
        let needs = Needs {
            patient: true,
            ends: cx
                .connection
                .peer
                .zip(cx.connection.local)
                .map(|(client, server)| Ends { client, server }),
            ..Needs::default()
        };
        // Boxed: most requests need no room for it.
        let asked = Box::pin(
            self.asker
                .ask(&self.pool, &question, choice, needs, Instant::now),
        );
        let answer = match tokio::time::timeout(self.timeout, asked).await {
            Ok(Ok(answer)) => answer.head,
            Ok(Err(e)) => {
                log::warn!(
                    "auth_request: no answer of pool `{}`: {e}",
                    self.pool.name()
                );
                return Flow::Fail(Failure::AuthUnreachable);
            }
            Err(_) => {
                let limit = Span::new(self.timeout);
                log::warn!(
                    "auth_request: no answer of pool `{}` within {limit}",
                    self.pool.name()
                );
                return Flow::Fail(Failure::AuthUnreachable);
            }
        };
        match answer.status {
            status if status.is_success() => {
                cx.vouched = chosen(&self.copy, &answer);
                cx.told = chosen(&self.answer, &answer);
                Flow::Continue
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                cx.told = chosen(&self.answer, &answer);
                refusal(&answer)
            }
            status => {
                let pool = self.pool.name();
                log::warn!(
                    "auth_request: pool `{pool}` answers {status}, which is neither yes nor no"
                );
                Flow::Fail(Failure::AuthAnswer)
            }
        }
    }

    fn upstream(
        &self,
        cx: &Cx,
        _request: &RequestHeader,
        upstream: &mut RequestHeader,
        _wall: SystemTime,
    ) {
        for name in &self.copy {
            remove_look_alikes(name.name(), upstream);
        }
        for (name, value) in &cx.vouched {
            // fails only when there are more headers than a map can hold
            let _ = upstream.append_header(name.clone(), value.clone());
        }
    }

    fn response(
        &self,
        cx: &Cx,
        _request: &RequestHeader,
        response: &mut ResponseHeader,
        _wall: SystemTime,
    ) {
        for name in &self.answer {
            let values = || cx.told.iter().filter(|(told, _)| *told == name.written());
            // of cookies there may be several, from several sources
            if *name.name() != header::SET_COOKIE && values().next().is_some() {
                response.remove_header(name.name());
            }
            for (name, value) in values() {
                // as above
                let _ = response.append_header(name.clone(), value.clone());
            }
        }
    }
}

impl AuthRequest {
    /// What the service is asked.
    fn question(&self, cx: &Cx, request: &RequestHeader) -> pingora::Result<RequestHeader> {
        let mut question = self.question.clone();
        let authority = request.uri.authority().map(|authority| authority.as_str());
        let host = match (authority, request.headers.get(header::HOST)) {
            (Some(authority), _) => HeaderValue::from_str(authority).ok(),
            (None, host) => host.cloned(),
        };
        if let Some(host) = host {
            question.insert_header("Host", host.clone())?;
            question.insert_header("X-Forwarded-Host", host)?;
        }
        question.insert_header("X-Forwarded-Proto", cx.scheme())?;
        // whom weir takes for the client, whatever the request says
        if let Some(client) = cx.client {
            question.insert_header("X-Forwarded-For", client.to_string())?;
        }
        let target = HeaderValue::from_bytes(request_uri(request));
        if let Ok(target) = target {
            question.insert_header("X-Forwarded-Uri", target.clone())?;
            question.insert_header("X-Original-URI", target)?;
        }
        question.insert_header("X-Forwarded-Method", request.method.as_str())?;
        question.insert_header("X-Original-Method", request.method.as_str())?;
        for name in &self.pass {
            for value in request.headers.get_all(name.name()) {
                question.append_header(name.written(), value.clone())?;
            }
        }
        Ok(question)
    }
}

/// The headers of the service's answer that have these names.
fn chosen(names: &[Name], answer: &ResponseHeader) -> Vec<(Bytes, HeaderValue)> {
    let mut chosen = Vec::new();
    for name in names {
        let values = answer.headers.get_all(name.name()).iter();
        chosen.extend(values.map(|value| (name.written(), value.clone())));
    }
    chosen
}

/// The service's no, for the client.
fn refusal(answer: &ResponseHeader) -> Flow {
    let mut reply = Reply::empty(answer.status);
    for challenge in answer.headers.get_all(header::WWW_AUTHENTICATE) {
        let _ = reply
            .head
            .append_header("WWW-Authenticate", challenge.clone());
    }
    let status = answer.status.as_u16();
    Flow::Refuse(Failure::AuthRequest { status }, reply)
}

/// Takes out all headers that a backend may take for `name`.
fn remove_look_alikes(name: &HeaderName, headers: &mut RequestHeader) {
    headers.remove_header(name);
    let twins = look_alikes(name, &headers.headers);
    for twin in twins {
        headers.remove_header(&twin);
    }
}

fn look_alikes(name: &HeaderName, headers: &HeaderMap) -> Vec<HeaderName> {
    let dash = |byte: u8| if byte == b'_' { b'-' } else { byte };
    let is_twin = |other: &&HeaderName| {
        let (one, other) = (name.as_str().bytes(), other.as_str().bytes());
        one.map(dash).eq(other.map(dash))
    };
    headers.keys().filter(is_twin).cloned().collect()
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<AuthRequest> {
        let pool = b.pool(&at.key("pool"), &self.pool);
        let is_path = self.path.starts_with('/') && self.path.parse::<PathAndQuery>().is_ok();
        let question = RequestHeader::build(Method::GET, self.path.as_bytes(), Some(16));
        if !is_path || question.is_err() {
            b.error(&at.key("path"), format!("`{}` is not a path", self.path))
                .hint("a path begins with `/` and is encoded as in a request");
        }
        let headers = at.key("headers");
        let copy = names(&headers.key("copy"), &self.headers.copy.0, b);
        let answer = names(&headers.key("answer"), &self.headers.answer.0, b);
        let challenge = |name: &Name| *name.name() == header::WWW_AUTHENTICATE;
        if let Some(i) = answer.iter().flatten().position(challenge) {
            let at = headers.key("answer");
            b.error(
                &at.index(i),
                "`WWW-Authenticate` of a refusal goes to the client in any case",
            );
        }
        let default = ["Authorization".to_owned(), "Cookie".to_owned()];
        let pass = self.pass.as_ref().map_or(&default[..], |pass| &pass.0);
        let pass = names(&at.key("pass"), pass, b);
        let timeout = self.timeout.map_or(DEFAULT_TIMEOUT, Span::get);
        if timeout.is_zero() {
            b.error(&at.key("timeout"), "`timeout` must be longer than zero");
        }
        Some(AuthRequest {
            pool: pool?,
            question: question.ok()?,
            copy: copy?,
            answer: answer?,
            pass: pass?,
            timeout,
            asker: b.carry("asker".to_owned(), |_| true, Asker::default),
        })
    }
}

fn names(at: &At<'_>, written: &[String], b: &mut Build<'_>) -> Option<Box<[Name]>> {
    let mut names = Vec::new();
    for (i, text) in written.iter().enumerate() {
        match Name::parse(text) {
            Ok(name) if *name.name() == header::HOST => {
                b.error(&at.index(i), "`Host` is the client's on both ways");
            }
            Ok(name) => names.push(name),
            Err(message) => {
                b.error(&at.index(i), message);
            }
        }
    }
    (names.len() == written.len()).then(|| names.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_backend_may_take_for_the_name_goes() {
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        for name in ["X-Auth-User", "x_auth_user", "X-Auth_User", "X-Other"] {
            request.append_header(name, "forged").unwrap();
        }
        remove_look_alikes(&HeaderName::from_static("x-auth-user"), &mut request);
        let left: Vec<_> = request.headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["x-other"]);
    }
}
