//! `errors`: own pages for errors, by status.
//!
//! ```yaml
//! errors:
//!   404: { file: www/404.html }
//!   500-599: { body: "<h1>Sorry</h1><p>$request_id</p>", content_type: text/html }
//!   intercept: true
//! ```
//!
//! A page takes the place of the one that weir makes where an error has no body of its own: for whatever weir itself
//! refuses or cannot do, and, with `intercept`, for what a backend answers with such a status. The status stays. What
//! failed before a site was found gets the pages of `defaults`.
//!
//! A page can also be what a route of the site answers (`path`): its action alone, as for a GET of that path, without
//! policies. A route that leads to a backend has none: that is where errors come from.
//!
//! Files are read when the configuration is: a page is wanted most where things go wrong, as on a disk that is gone.
//!
//! Levels merge by status: what the nearest level says about a status is all that holds for it, and within a level the
//! narrowest range that holds it.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;
use indexmap::IndexMap;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::Filter;
use crate::build::Build;
use crate::exchange::page::{self, Page};
use crate::exchange::vars::View;
use crate::http::path;
use crate::issue::{At, KeyPath};
use crate::value::{FromShort, OrOff, Short};

/// Own pages for errors.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Config {
    /// By status (`404`) or range (`500-599`), as written.
    pub pages: IndexMap<String, OrOff<Short<Entry>>>,
    /// Whether the answers of backends with these statuses get the pages too, in place of their bodies. Default false.
    /// nginx: `proxy_intercept_errors`.
    pub intercept: Option<bool>,
}

/// What is shown: `file`, `body` or `path`; a text alone is short for `{ body: TEXT }`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Entry {
    /// A file that holds the page, of 1MiB at most. It is read when the configuration is loaded.
    pub file: Option<PathBuf>,
    /// The page itself, with variables. In HTML, XML and JSON their values are escaped.
    pub body: Option<String>,
    /// `Content-Type` of the page. Default: by the extension of the file; `text/html; charset=utf-8` for a body.
    pub content_type: Option<String>,
    /// The path of a page that a route of the same site answers by itself.
    pub path: Option<String>,
}

impl FromShort for Entry {
    fn from_short(body: &str) -> Result<Entry, String> {
        Ok(Entry {
            body: Some(body.to_owned()),
            ..Entry::default()
        })
    }
}

#[derive(Debug)]
pub struct Errors {
    /// The first whose range holds a status counts.
    pages: Vec<(Statuses, Option<Arc<Shown>>)>,
    intercept: Option<bool>,
}

#[derive(Debug)]
enum Shown {
    Page(Page),
    /// What a route answers; where that was written.
    Route(String, KeyPath),
}

/// Statuses of errors, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Statuses {
    first: u16,
    last: u16,
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Errors> {
        let mut pages: Vec<(Statuses, Option<Arc<Shown>>)> = Vec::new();
        for (written, page) in &self.pages {
            let at = at.key(written);
            let Some(statuses) = Statuses::parse(written) else {
                b.error(&at, format!("`{written}` is not the status of an error"))
                    .on_key()
                    .hint("it is a number from 400 to 599, or a range such as `500-599`");
                continue;
            };
            if pages.iter().any(|(known, _)| *known == statuses) {
                b.error(&at, format!("`{written}` is given twice")).on_key();
            }
            let ready = match page {
                OrOff::Off => None,
                OrOff::On(page) => match page.compile(&at, b) {
                    Some(ready) => Some(Arc::new(ready)),
                    None => continue,
                },
            };
            pages.push((statuses, ready));
        }
        pages.sort_by_key(|(statuses, _)| statuses.last - statuses.first);
        Some(Errors {
            pages,
            intercept: self.intercept,
        })
    }
}

impl Entry {
    fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Shown> {
        let Some(written) = &self.path else {
            let page = page::Config {
                file: self.file.clone(),
                body: self.body.clone(),
                content_type: self.content_type.clone(),
            };
            return page.compile(at, b).map(Shown::Page);
        };
        if self.file.is_some() || self.body.is_some() || self.content_type.is_some() {
            b.error(
                at,
                "what is shown is a file, a body or what a route answers",
            )
            .hint("give `file`, `body` or `path`");
            return None;
        }
        let at = at.key("path");
        let is_normal = path::normalise(written).is_ok_and(|normal| normal == written.as_str());
        if !is_normal || !written.starts_with('/') {
            b.error(&at, format!("`{written}` is not the path of a page"))
                .hint("it begins with `/`, as in a URL");
            return None;
        }
        Some(Shown::Route(written.clone(), at.to_path()))
    }
}

impl Errors {
    /// Type and body of the page for an answer of this status; `view` has its header.
    pub fn page(&self, status: u16, view: &View<'_>) -> Option<(HeaderValue, Bytes)> {
        match self.find(status)? {
            Shown::Page(page) => Some(page.render(view)),
            Shown::Route(..) => None,
        }
    }

    /// The path of which a route answers with the page for this status.
    pub fn route(&self, status: u16) -> Option<&str> {
        match self.find(status)? {
            Shown::Page(_) => None,
            Shown::Route(path, _) => Some(path),
        }
    }

    /// All such paths, and where they were written.
    pub fn routes(&self) -> impl Iterator<Item = (&str, &KeyPath)> {
        let shown = self.pages.iter().filter_map(|(_, shown)| shown.as_deref());
        shown.filter_map(|shown| match shown {
            Shown::Page(_) => None,
            Shown::Route(path, at) => Some((path.as_str(), at)),
        })
    }

    /// Whether an answer of a backend with this status gets a page of these in place of its body.
    pub fn intercepts(&self, status: u16) -> bool {
        self.intercept.unwrap_or(false) && self.find(status).is_some()
    }

    fn find(&self, status: u16) -> Option<&Shown> {
        let holds = |(statuses, _): &&(Statuses, _)| statuses.contain(status);
        self.pages.iter().find(holds)?.1.as_deref()
    }
}

impl Filter for Errors {
    fn inherit(self, farther: &Errors) -> Errors {
        let mut pages = self.pages;
        pages.extend(farther.pages.iter().cloned());
        Errors {
            pages,
            intercept: self.intercept.or(farther.intercept),
        }
    }
}

impl Statuses {
    fn parse(text: &str) -> Option<Statuses> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let status = |text: &str| {
            let is_number = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
            let status = text.parse().ok().filter(|_| is_number)?;
            (400..=599).contains(&status).then_some(status)
        };
        let (first, last) = (status(first)?, status(last)?);
        (first <= last).then_some(Statuses { first, last })
    }

    fn contain(self, status: u16) -> bool {
        (self.first..=self.last).contains(&status)
    }
}

impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Config, D::Error> {
        struct Pages;

        impl<'de> Visitor<'de> for Pages {
            type Value = Config;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of statuses and pages")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Config, A::Error> {
                let mut config = Config::default();
                while let Some(Key(key)) = map.next_key()? {
                    if key == "intercept" {
                        config.intercept = Some(map.next_value()?);
                    } else if config.pages.insert(key, map.next_value()?).is_some() {
                        return Err(A::Error::custom("a status is given twice"));
                    }
                }
                Ok(config)
            }
        }
        deserializer.deserialize_map(Pages)
    }
}

/// A status may be written as a number.
struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Key, D::Error> {
        struct TextOrNumber;

        impl Visitor<'_> for TextOrNumber {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a status such as `404`, a range such as `500-599`, or `intercept`")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Key, E> {
                Ok(Key(text.to_owned()))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Key, E> {
                Ok(Key(number.to_string()))
            }
        }
        deserializer.deserialize_any(TextOrNumber)
    }
}

impl JsonSchema for Config {
    fn schema_name() -> Cow<'static, str> {
        "Errors".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut page = generator.subschema_for::<OrOff<Short<Entry>>>();
        page.insert(
            "description".to_owned(),
            "The page for a status (`404`) or for all of a range (`500-599`), from 400 to 599; a text alone is short for \
             `{ body: TEXT }`, and `off` brings weir's own page back. nginx: `error_page`."
                .into(),
        );
        json_schema!({
            "description": "Own pages for errors, by status (`404`) or range (`500-599`).",
            "type": "object",
            "properties": {
                "intercept": {
                    "description": "Whether the answers of backends with these statuses get the pages too, in place of \
                        their bodies. Default false. nginx: `proxy_intercept_errors`.",
                    "type": ["boolean", "null"]
                }
            },
            "patternProperties": { "^[45][0-9]{2}(-[45][0-9]{2})?$": page },
            "additionalProperties": false
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Instant, SystemTime};

    use pingora::http::{RequestHeader, ResponseHeader};

    use super::*;
    use crate::build::testing::{compiled, mistake};
    use crate::exchange::Cx;
    use crate::exchange::cx::Connection;

    #[test]
    fn the_nearest_level_and_the_narrowest_range_decide() {
        let far = compile("{ 404: { body: far }, 500-599: { body: far }, intercept: true }");
        let near = compile("{ 400-499: { body: near }, 410: { body: gone }, 503: off }");
        let errors = near.inherit(&far);
        for (status, expected) in [
            (404, Some("near")),
            (410, Some("gone")),
            (500, Some("far")),
            (503, None),
            (399, None),
        ] {
            assert_eq!(page(&errors, status).as_deref(), expected, "{status}");
        }
        assert!(errors.intercepts(404));
        assert!(!errors.intercepts(503));
        let quiet = compile("{ intercept: false }").inherit(&far);
        assert!(!quiet.intercepts(404));
        assert_eq!(page(&quiet, 404).as_deref(), Some("far"));
    }

    #[test]
    fn what_a_client_sent_stays_text() {
        for (content_type, expected) in [
            ("text/html", "400 /&lt;a&gt;&amp;&quot;&#39;\\"),
            ("Application/Problem+JSON; x", "400 /<a>&\\\"'\\\\"),
            ("text/plain", "400 /<a>&\"'\\"),
        ] {
            let yaml =
                format!("{{ 400: {{ body: \"$status $uri\", content_type: {content_type} }} }}");
            assert_eq!(page(&compile(&yaml), 400).as_deref(), Some(expected));
        }
    }

    #[test]
    fn mistakes_are_reported() {
        for (yaml, expected) in [
            (
                "{ 200: { body: x } }",
                "errors.200: `200` is not the status of an error",
            ),
            (
                "{ 599-500: { body: x } }",
                "errors.599-500: `599-500` is not the status of an error",
            ),
            (
                "{ intrcept: { body: x } }",
                "errors.intrcept: `intrcept` is not the status of an error",
            ),
            (
                "{ 404: { body: x }, 404-404: off }",
                "errors.404-404: `404-404` is given twice",
            ),
            (
                "{ 404: {} }",
                "errors.404: a page is either a file or a body",
            ),
            (
                "{ 404: { file: a, body: x } }",
                "errors.404: a page is either a file or a body",
            ),
            (
                "{ 404: { body: $request_time } }",
                "errors.404.body: `$request_time` has no value here",
            ),
        ] {
            let text = mistake(yaml, "errors", Config::compile);
            assert!(text.starts_with(expected), "{text}");
        }
        for yaml in [
            "{ 404: { files: x } }",
            "{ intercept: 1 }",
            "[]",
            "{ 4.5: { body: x } }",
        ] {
            assert!(serde_yaml::from_str::<Config>(yaml).is_err(), "{yaml}");
        }
    }

    fn compile(yaml: &str) -> Errors {
        compiled(yaml, Config::compile)
    }

    fn page(errors: &Errors, status: u16) -> Option<String> {
        let mut cx = Cx::new(Instant::now(), Arc::new(Connection::default()));
        cx.path = "/<a>&\"'\\".to_owned();
        let response = ResponseHeader::build(status, None).unwrap();
        let view = View {
            cx: &cx,
            request: &RequestHeader::build("GET", b"/", None).unwrap(),
            response: Some(&response),
            wall: SystemTime::UNIX_EPOCH,
        };
        let (_, body) = errors.page(status, &view)?;
        Some(String::from_utf8(body.to_vec()).unwrap())
    }
}
