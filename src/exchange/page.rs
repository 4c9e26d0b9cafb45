//! A page that the configuration gives: a file or a text.
//!
//! Files are read when the configuration is. A page is wanted most where things go wrong, as on a disk that is gone.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::HeaderValue;
use schemars::JsonSchema;
use serde::Deserialize;

use super::escape::Escape;
use super::vars::{Stage, Text, View};
use crate::build::Build;
use crate::http::mime::Types;
use crate::issue::At;
use crate::value::FromShort;

/// A page: `file` or `body`; a text alone is short for `{ body: TEXT }`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A file that holds it, of 1MiB at most. It is read when the configuration is loaded.
    pub file: Option<PathBuf>,
    /// The page itself, with variables. In HTML, XML and JSON their values are escaped.
    pub body: Option<String>,
    /// `Content-Type` of the page. Default: by the extension of the file; `text/html; charset=utf-8` for a body.
    pub content_type: Option<String>,
}

/// A page is held in memory, and is for people.
const MOST: u64 = 1 << 20;

impl FromShort for Config {
    fn from_short(body: &str) -> Result<Config, String> {
        Ok(Config {
            body: Some(body.to_owned()),
            ..Config::default()
        })
    }
}

/// A page that is ready to be sent.
#[derive(Debug)]
pub struct Page {
    content_type: HeaderValue,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Fixed(Bytes),
    Text(Text, Escape),
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Page> {
        let content_type = match &self.content_type {
            Some(written) => match HeaderValue::from_str(written) {
                Ok(value) => Some(value),
                Err(_) => {
                    b.error(&at.key("content_type"), "not the value of a header");
                    return None;
                }
            },
            None => None,
        };
        match (&self.file, &self.body) {
            (Some(file), None) => {
                let bytes = read(&at.key("file"), file, b)?;
                let by_name = || Types::new(Some("utf-8")).of(&file.to_string_lossy());
                Some(Page {
                    content_type: content_type.unwrap_or_else(by_name),
                    content: Content::Fixed(bytes),
                })
            }
            (None, Some(body)) if is_path(body) => {
                b.error(at, format!("`{body}` would be the page itself"))
                    .hint("`{ file: ... }` is a file, `{ path: ... }` in `errors` what a route answers");
                None
            }
            (None, Some(body)) => {
                let html = HeaderValue::from_static("text/html; charset=utf-8");
                let content_type = content_type.unwrap_or(html);
                let content = match body.contains('$') {
                    false => Content::Fixed(Bytes::copy_from_slice(body.as_bytes())),
                    true => {
                        let at = at.key("body");
                        let text = Text::compile_for(Stage::Response, &at, body, b)?;
                        Content::Text(text, Escape::of(content_type.as_bytes()))
                    }
                };
                Some(Page {
                    content_type,
                    content,
                })
            }
            _ => {
                b.error(at, "a page is either a file or a body")
                    .hint("give `file` or `body`");
                None
            }
        }
    }
}

impl Page {
    /// Type and body for one answer; `view` has its header.
    pub fn render(&self, view: &View<'_>) -> (HeaderValue, Bytes) {
        let body = match &self.content {
            Content::Fixed(bytes) => bytes.clone(),
            Content::Text(text, escape) => escape.render(text, view).into(),
        };
        (self.content_type.clone(), body)
    }
}

/// Whether what is given as a text looks like the place of a page, which is what nginx's `error_page` takes.
fn is_path(body: &str) -> bool {
    const ENDS: [&str; 4] = [".html", ".htm", ".json", ".txt"];
    let is_place = body.starts_with('/') || ENDS.iter().any(|end| body.ends_with(end));
    is_place && !body.contains([' ', '\n', '<'])
}

fn read(at: &At<'_>, file: &Path, b: &mut Build<'_>) -> Option<Bytes> {
    let path = b.sources.input(at, file);
    let read = std::fs::metadata(&path).and_then(|metadata| match metadata.len() > MOST {
        true => Ok(None),
        false => std::fs::read(&path).map(Some),
    });
    match read {
        Ok(Some(bytes)) => Some(bytes.into()),
        Ok(None) => {
            b.error(at, format!("`{}` is too large for a page", path.display()))
                .hint("it is held in memory, and may have 1MiB");
            None
        }
        Err(error) => {
            b.error(at, format!("cannot read `{}`: {error}", path.display()));
            None
        }
    }
}
