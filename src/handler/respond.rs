//! `respond`: a fixed answer.
//!
//! ```yaml
//! respond: { status: 200, body: "ok\n" }
//! ```
//!
//! nginx: `return 200 "ok\n"`. Any method is answered; the body of a HEAD request is left out where the answer is
//! sent, and its length stays.

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::build::Build;
use crate::exchange::vars::{Stage, Text, View};
use crate::exchange::{Body, Failure, Reply};
use crate::issue::At;
use crate::value::FromShort;

/// What to answer; `respond: TEXT` is short for `respond: { body: TEXT }`.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// From 200 to 599. Default 200.
    #[schemars(range(min = 200, max = 599))]
    pub status: u16,
    /// The body, with variables. Default none.
    pub body: String,
    /// `Content-Type` of the body. Default `text/plain; charset=utf-8`.
    pub content_type: String,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            status: 200,
            body: String::new(),
            content_type: "text/plain; charset=utf-8".to_owned(),
        }
    }
}

impl FromShort for Config {
    fn from_short(body: &str) -> Result<Config, String> {
        Ok(Config {
            body: body.to_owned(),
            ..Config::default()
        })
    }
}

#[derive(Debug)]
pub struct Respond {
    status: StatusCode,
    content_type: HeaderValue,
    body: Content,
}

#[derive(Debug)]
enum Content {
    Fixed(Bytes),
    Text(Text),
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Respond> {
        let status = StatusCode::from_u16(self.status)
            .ok()
            .filter(|status| (200..600).contains(&status.as_u16()));
        if status.is_none() {
            b.error(
                &at.key("status"),
                format!("`{}` is not the status of an answer", self.status),
            )
            .hint("it is a number from 200 to 599");
        }
        // RFC 9110 sections 15.3.5, 15.3.6 and 15.4.5
        if matches!(self.status, 204 | 205 | 304) && !self.body.is_empty() {
            b.error(
                &at.key("body"),
                format!("an answer with status {} has no body", self.status),
            );
        }
        let content_type = HeaderValue::from_str(&self.content_type).ok();
        if content_type.is_none() {
            b.error(&at.key("content_type"), "not the value of a header");
        }
        let body = if self.body.contains('$') {
            Text::compile_for(Stage::Request, &at.key("body"), &self.body, b).map(Content::Text)
        } else {
            Some(Content::Fixed(Bytes::copy_from_slice(self.body.as_bytes())))
        };
        Some(Respond {
            status: status?,
            content_type: content_type?,
            body: body?,
        })
    }
}

impl Respond {
    pub fn reply(&self, view: &View<'_>) -> Result<Reply, Failure> {
        let body = match &self.body {
            Content::Fixed(body) => body.clone(),
            Content::Text(text) => {
                let mut body = Vec::with_capacity(256);
                text.write(view, &mut body);
                Bytes::from(body)
            }
        };
        if body.is_empty() {
            return Ok(Reply::empty(self.status));
        }
        let mut reply = Reply::new(self.status, Body::Bytes(body));
        reply
            .head
            .insert_header(header::CONTENT_TYPE, self.content_type.clone())
            .map_err(|_| Failure::Internal)?;
        Ok(reply)
    }

    /// What `weir route` says about it.
    pub fn summary(&self) -> String {
        format!("respond ({})", self.status.as_u16())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Instant, SystemTime};

    use pingora::http::RequestHeader;

    use super::*;
    use crate::exchange::Cx;
    use crate::exchange::cx::Connection;
    use crate::issue::Sources;
    use crate::value::Short;

    #[test]
    fn a_text_is_the_body() {
        let reply = reply("ok $uri", "/a");
        assert_eq!(reply.head.status, 200);
        assert_eq!(
            reply.head.headers["content-type"],
            "text/plain; charset=utf-8"
        );
        assert!(matches!(reply.body, Body::Bytes(bytes) if bytes == "ok /a"));
    }

    #[test]
    fn without_a_body_there_is_no_type() {
        let reply = reply("{ status: 204 }", "/");
        assert_eq!(reply.head.status, 204);
        assert!(matches!(reply.body, Body::Empty));
        assert!(!reply.head.headers.contains_key("content-type"));
    }

    fn reply(yaml: &str, path: &str) -> Reply {
        let sources = Sources::default();
        let mut b = Build::new(&sources);
        let config: Short<Config> = serde_yaml::from_str(yaml).unwrap();
        let handler = config.compile(&At::Root, &mut b).unwrap();
        assert_eq!(b.issues.0.len(), 0, "{:?}", b.issues);
        let mut cx = Cx::new(Instant::now(), Arc::new(Connection::default()));
        cx.host = "shop.example".to_owned();
        cx.path = path.to_owned();
        let view = View {
            cx: &cx,
            request: &RequestHeader::build("GET", b"/", None).unwrap(),
            response: None,
            wall: SystemTime::UNIX_EPOCH,
        };
        handler.reply(&view).unwrap()
    }
}
